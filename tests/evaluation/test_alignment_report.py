import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus import kaldi
from espnet_speechllm_xl.corpus.ctm import Word, read_ctm, write_ctm
from espnet_speechllm_xl.corpus.kaldi import write_table
from espnet_speechllm_xl.evaluation import alignment_report, plots

PNG = b"\x89PNG\r\n\x1a\n"
TEXT = {"s1-a": "the cat sat", "s1-b": "go home", "s2/c": "straße $5", "s2-d": "unheard", "s2-e": "stop now"}
RATE = 16000


@pytest.fixture
def dump(tmp_path):
    """Five utterances of 2 s; the reference lacks s2-e."""
    out = tmp_path / "dump/raw/test"
    out.mkdir(parents=True)
    audio = np.sin(np.arange(2 * RATE) / 20).astype(np.float32)
    for index in range(len(TEXT)):
        soundfile.write(out / f"{index}.flac", audio, RATE, subtype="PCM_16")
    write_table(out / "wav.scp", {name: str(out / f"{index}.flac") for index, name in enumerate(sorted(TEXT))})
    write_table(out / "text", TEXT)
    write_table(out / "utt2spk", {name: name[:2] for name in TEXT})
    write_table(out / "utt2num_samples", {name: str(len(audio)) for name in TEXT})
    return out


def words(text, first_end, step=0.4):
    """Words that end at first_end, first_end + step, ... seconds."""
    ends = [first_end + index * step for index in range(len(text.split()))]
    return [Word(word, end - 0.2, end) for word, end in zip(text.split(), ends, strict=True)]


def aligned_from(dump, source, out):
    """The align command itself, from word times; s2-d cannot be aligned."""
    write_ctm(source, {name: words(text, 0.4) for name, text in TEXT.items() if name != "s2-d"})
    assert cli.main(["align", "--dump", str(dump), "--out", str(out), "--ctm", str(source)]) == 0
    return out


def test_with_a_reference(tmp_path, dump, capsys):
    # 0.4 s is a frame border, so our ends are exact; the reference is 30 ms later for two and 50 ms earlier for one.
    shift = {"s1-a": 0.03, "s1-b": 0.03, "s2/c": -0.05, "s2-d": 0.0}
    write_ctm(dump / "ref.ctm", {name: words(TEXT[name], 0.4 + late) for name, late in shift.items()})
    out = aligned_from(dump, tmp_path / "ours.ctm", tmp_path / "exp/aligned/test")
    capsys.readouterr()
    assert cli.main(["align-report", "--aligned", str(out), "--dump", str(dump), "--chunk", "16", "--plots", "3"]) == 0
    # Words: 3 + 2 at -30 ms, 2 at +50 ms.
    delay, delta = (5 * -30 + 2 * 50) / 7, (5 * 30 + 2 * 50) / 7
    counts = "3 of 5 utterances compared, 2 not (1 not in the CTM, 1 not in the reference)"
    assert capsys.readouterr().out == (
        f"{out}: word-end delay {delay:.1f} ms, word-end delta {delta:.1f} ms over 7 words; {counts}; "
        f"3 plots; see {out / 'report/report.md'}\n"
    )
    content = json.loads((out / "report/delay.json").read_text(encoding="utf-8"))
    utterances = content["utterances"]
    assert utterances["matched"] + sum(utterances["unmatched"].values()) == utterances["total"] == len(TEXT)
    assert content["unmatched"] == {"s2-d": "not in the CTM", "s2-e": "not in the reference"}
    images = ["delay.png", "utterance_1.png", "utterance_2.png", "utterance_3.png"]
    assert sorted(path.name for path in (out / "report").glob("*.png")) == images
    assert all((out / "report" / name).read_bytes().startswith(PNG) for name in images)
    text = (out / "report/report.md").read_text(encoding="utf-8")
    assert all(f"({name})" in text for name in images)


def test_without_a_reference_after_one(tmp_path, dump, capsys):
    write_ctm(dump / "ref.ctm", {"s1-a": words(TEXT["s1-a"], 0.4)})
    out = aligned_from(dump, tmp_path / "ours.ctm", tmp_path / "exp/aligned/test")
    options = ["--aligned", str(out), "--dump", str(dump)]
    assert cli.main(["align-report", *options]) == 0
    (dump / "ref.ctm").unlink()
    capsys.readouterr()
    assert cli.main(["align-report", *options, "--plots", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        f"{out}: no reference ({dump / 'ref.ctm'}), so no word-end delay; 4 of 5 utterances aligned, 1 not (1 not in"
    )
    assert said.count("\n") == 1
    # Nothing of the earlier report stays.
    assert sorted(path.name for path in (out / "report").iterdir()) == ["report.md", "utterance_1.png"]


def test_no_words_in_common(tmp_path, dump, capsys):
    write_ctm(dump / "ref.ctm", {name: words("other", 0.4) for name in TEXT})
    out = aligned_from(dump, tmp_path / "ours.ctm", tmp_path / "aligned/test")
    capsys.readouterr()
    assert cli.main(["align-report", "--aligned", str(out), "--dump", str(dump), "--plots", "0"]) == 0
    said = capsys.readouterr().out
    assert "no word to compare" in said
    assert "0 of 5 utterances compared, 5 not (1 not in the CTM, 4 other words than the reference)" in said


def test_bad_input(tmp_path, dump, capsys):
    out = aligned_from(dump, tmp_path / "ours.ctm", tmp_path / "aligned/test")
    options = ["--aligned", str(out), "--dump", str(dump)]
    (dump / "0.flac").write_bytes(b"")
    capsys.readouterr()
    assert cli.main(["align-report", *options, "--plots", "9"]) == 1  # the other three are drawn
    said = capsys.readouterr()
    assert "3 plots" in said.out
    assert said.err.startswith("speechllm-xl align-report: not drawn: s1-a: ") and "is an empty file" in said.err
    write_table(dump / "text", {**TEXT, "s3-new": "more"})
    assert cli.main(["align-report", *options]) == 1
    assert (
        f"{out} (4 aligned, 1 failed) is not of {dump} (6 utterances): run the align stage" in capsys.readouterr().err
    )
    (out / "wav.scp").unlink()
    assert cli.main(["align-report", *options]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"speechllm-xl: error: {out / 'wav.scp'} does not exist: give a Kaldi data directory"
    ]
    for wrong in (["--chunk", "0"], ["--plots", "-1"], ["--plots", "x"]):
        with pytest.raises(SystemExit) as exit_code:
            cli.main(["align-report", *options, *wrong])
        assert exit_code.value.code == 2


def dashed(figure):
    """Seconds of the dashed lines in a picture of an utterance."""
    return [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]


def test_borders_are_those_of_the_experiment(tmp_path, dump, monkeypatch):
    out = aligned_from(dump, tmp_path / "ours.ctm", tmp_path / "exp/xl/aligned/test")
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    options = ["--aligned", str(out), "--dump", str(dump), "--plots", "1"]

    def borders(*more):
        assert cli.main(["align-report", *options, *map(str, more)]) == 0
        return dashed(drawn[-1]), drawn[-1].axes[-1].get_xlabel()

    assert borders() == ([], "seconds (solid: token ends)")  # nothing is known of the training
    config = tmp_path / "exp/xl/config.yaml"
    config.write_text("chunking_conf: {chunk: 16}\n")
    seconds, label = borders()
    assert seconds == pytest.approx([0.64, 1.28, 1.92]) and label.endswith("; dashed: chunk boundaries, 0.64 s)")
    config.write_text("chunking_conf: {chunk: null}\n")
    assert borders()[0] == []
    config.write_text("task: ctc\n")  # an aligner has no chunks
    assert borders()[0] == []
    # The training that it aligns for may not have begun.
    (tmp_path / "train.yaml").write_text("chunking_conf: {context: 2}\n")
    training = "--training", tmp_path / "train.yaml"
    assert borders(*training)[0] == pytest.approx([1.28])  # the default
    assert borders(*training, "--training-args", " --seed 3 --chunking_conf chunk=25")[0] == pytest.approx([1.0])
    assert borders(*training, "--training-args", " --chunking_conf chunk=null")[0] == []
    assert borders(*training, "--chunk", 10)[0] == pytest.approx([0.4, 0.8, 1.2, 1.6])


def test_plots_are_spread():
    names = list("abcdefg")
    assert alignment_report._spread(names, 3) == ["a", "c", "e"]
    assert alignment_report._spread(names, 9) == names
    assert alignment_report._spread([], 3) == alignment_report._spread(names, 0) == []


def test_kind_of_reason():
    assert kaldi.kind_of_reason("too few frames (3) for 5 tokens and 1 repeats") == "too few frames"
    assert kaldi.kind_of_reason("unknown symbols: %&") == "unknown symbols"


def test_needs_no_torch(tmp_path, dump):
    out = aligned_from(dump, tmp_path / "ours.ctm", tmp_path / "aligned/test")
    write_ctm(dump / "ref.ctm", read_ctm(tmp_path / "ours.ctm"))
    code = (
        "import sys; from espnet_speechllm_xl.bin import cli\n"
        f"assert cli.main(['align-report', '--aligned', {str(out)!r}, '--dump', {str(dump)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
