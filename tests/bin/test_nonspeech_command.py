"""The command that counts words in audio without speech, and judges endpoints."""

import json
import random

import melodies
import pytest
import soundfile
import training

from espnet_speechllm_xl.bin.cli import main
from espnet_speechllm_xl.corpus.kaldi import write_table


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Two melodies with the times of their letters."""
    folder, rng, lines = tmp_path_factory.mktemp("dump"), random.Random(9), []
    tables = {name: {} for name in ("wav.scp", "utt2num_samples")}
    for name in ("s-1", "s-2"):
        text, samples, ends = melodies.melody(rng, list("abdc"))
        soundfile.write(folder / f"{name}.flac", samples, training.RATE)
        tables["wav.scp"][name], tables["utt2num_samples"][name] = str(folder / f"{name}.flac"), str(len(samples))
        lines += [
            f"{name} 1 {end * 0.04 - 0.2:.2f} 0.24 {word}\n" for end, word in zip(ends[::2], text.split(), strict=True)
        ]
    for name, table in tables.items():
        write_table(folder / name, table)
    (folder / "ref.ctm").write_text("".join(lines))
    return folder


def rows(said):
    return [line.strip("|").split("|") for line in said.splitlines() if line.startswith("|") and "---" not in line]


def test_words_and_endpoints(capsys, dump, melody_model, tmp_path):
    options = ["--search", "greedy", "--minutes", "0.1", "--endpoint-silence", "1", "--out", str(tmp_path / "out")]
    command = ["nonspeech", "--model", str(melody_model), "--dump", str(dump), *options]
    assert main([*command, "--between", "silence"]) == 0
    said = capsys.readouterr().out
    table = rows(said)
    assert table[0] == ["audio", "minutes", "words", "words a minute"]
    words = {row[0]: row[1:] for row in table[1:12]}
    assert list(words)[:3] == ["silence", "hum, -30 dB", "white, -25 dB"] and list(words)[-2:] == [
        "babble, -25 dB",
        "pauses",
    ]
    assert words["silence"] == words["pauses"] == ["0.1", "0", "0.0"]
    assert int(words["babble, -25 dB"][1]) > 0  # 16 melodies at once
    (endpoints,) = table[13:]
    assert endpoints[:6] == ["silence", "2", "100.0", "0.0", "0.0", "0.0"]
    assert "search greedy, CTC 0" in said
    report = (tmp_path / "out/NONSPEECH.md").read_text()
    assert "|silence|0.1|0|0.0|" in report and "|silence|2|100.0|" in report and "speechllm-xl nonspeech" in report
    found = json.loads((tmp_path / "out/nonspeech.json").read_text())
    assert found["endpoints"][0]["on_time"] == 2 and found["seed"] == 0
    assert [row["words"] for row in found["words"]] == [int(row[1]) for row in words.values()]


def test_without_a_set_there_is_generated_audio_only(capsys, melody_model):
    assert main(["nonspeech", "--model", str(melody_model), "--search", "greedy", "--minutes", "0.05"]) == 0
    assert [row[0] for row in rows(capsys.readouterr().out)[1:]][-1] == "chords, -25 dB"


@pytest.mark.parametrize(
    "options, says",
    [
        (["--kinds", "pink"], "'pink': give a level in -120 .. 0 dB of full scale, such as pink@-25"),
        (["--kinds", "babble@-3"], "babble is made of the recordings of a set: give one (--dump)"),
        (["--between", "silence"], "--between is of the pauses between sentences of a set: give one (--dump)"),
        (["--dump", "DUMP", "--endpoint-silence", "inf"], "--endpoint-silence is inf: no endpoint can be on time"),
        (["--dump", "DUMP", "--reference", "none.ctm"], "--reference none.ctm: no such file"),
    ],
)
def test_bad_options_are_named(capsys, dump, melody_model, options, says):
    options = [option.replace("DUMP", str(dump)) for option in options]
    try:
        code = main(["nonspeech", "--model", str(melody_model), "--search", "greedy", *options])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert says in capsys.readouterr().err
