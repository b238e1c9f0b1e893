"""The recipe of read text as people write it."""

import importlib.util
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_speechllm_xl.corpus.directories import check_dir
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.model.alignment import move_to_written
from espnet_speechllm_xl.tokenization import plain_text

RECIPE = Path(__file__).resolve().parents[2] / "egs2/ljspeech/speechllm_xl1"
WRITTEN = read_table(RECIPE / "local/written")
PACK = Path(os.environ.get("SPEECHLLM_XL_DATA", "none")) / "ljspeech_subset"


@pytest.fixture(scope="module")
def ljspeech():
    spec = importlib.util.spec_from_file_location("ljspeech_data", RECIPE / "local/data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def release(folder):
    """LJSpeech-1.1 with five clips in its metadata, of which one is not there."""
    lines = [
        "LJ001-0007|of about 1455,|of about fourteen fifty-five,",
        "LJ030-0001|gone|gone",
        'LJ048-0009|"Mr. Neild"|"Mr. Neild"',
        "LJ049-0002|In 1813|In eighteen thirteen",
        "LJ050-0278|8. The press yard.|eight. The press yard.",
    ]
    (folder / "LJSpeech-1.1/wavs").mkdir(parents=True)
    (folder / "LJSpeech-1.1/metadata.csv").write_text("\n".join(lines) + "\n", "utf-8")
    for line in lines:
        if "gone" not in line:
            soundfile.write(folder / f"LJSpeech-1.1/wavs/{line[:10]}.wav", np.zeros(3000), 22050)


def subset(folder):
    """The subset with three of its clips."""
    clips = {"LJ001-0007": "OF ABOUT FOURTEEN FIFTY FIVE", "LJ001-0165": "ONE FRUITFUL", "LJ002-0198": "THE OFFICE"}
    (folder / "ljspeech_subset/data/all").mkdir(parents=True)
    rows = "".join(f"{clip} {text}\n" for clip, text in clips.items())
    (folder / "ljspeech_subset/data/all/text").write_text(rows, "utf-8")
    with tarfile.open(folder / "ljspeech_subset/ljspeech_subset.tar", "w") as tar:
        for clip in clips:
            soundfile.write(folder / f"{clip}.flac", np.zeros(3000), 16000)
            tar.add(folder / f"{clip}.flac", f"audio/{clip}.flac")


@pytest.mark.parametrize("make, sizes", [(release, (2, 1, 1)), (subset, (1, 1, 1))])
def test_sets(ljspeech, make, sizes, tmp_path, monkeypatch, capsys):
    make(tmp_path)
    monkeypatch.setenv("SPEECHLLM_XL_DATA", str(tmp_path))
    for _ in range(2):  # the second time over what is there
        assert ljspeech.main(["--out", str(tmp_path / "data")]) == 0
    for name, count in zip(("train", "dev", "test"), sizes, strict=True):
        folder = tmp_path / "data" / name
        assert check_dir(folder) == []
        audio, text, spoken = (read_table(folder / table) for table in ("wav.scp", "text", "text_spoken"))
        assert len(audio) == len(text) == len(spoken) == count
        assert all(Path(path).is_file() for path in audio.values())
    text, spoken = (read_table(tmp_path / "data/train" / table)["LJ001-0007"] for table in ("text", "text_spoken"))
    assert text.endswith("of about 1455,") and plain_text(spoken) == "of about fourteen fifty five"
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{sizes[2]} utterances of 1 speaker")


def test_what_is_missing_is_one_line(ljspeech, tmp_path, capsys):
    assert ljspeech.main(["--downloads", str(tmp_path), "--out", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err == (
        f"ljspeech data: {tmp_path} holds neither LJSpeech-1.1/metadata.csv nor ljspeech_subset/: get LJSpeech-1.1 "
        "from https://keithito.com/LJ-Speech-Dataset\n"
    )
    release(tmp_path)
    (tmp_path / "LJSpeech-1.1/wavs/LJ050-0278.wav").unlink()
    assert ljspeech.main(["--downloads", str(tmp_path), "--out", str(tmp_path / "data")]) == 1
    assert "holds no clips of the test set" in capsys.readouterr().err


def test_a_corpus_takes_120_lines():
    lines = sum(len((RECIPE / name).read_text(encoding="utf-8").splitlines()) for name in ("run.sh", "local/data.py"))
    assert lines <= 120


@pytest.mark.skipif(not PACK.is_dir(), reason="the corpus is not here ($SPEECHLLM_XL_DATA)")
def test_the_written_form_is_what_is_read():
    """But for numbers and abbreviations, every word of the one is a word of the other."""
    spoken = read_table(PACK / "data/all/text")
    assert list(WRITTEN) == list(spoken)
    otherwise = []
    for clip, text in WRITTEN.items():
        plain = plain_text(spoken[clip])
        times = [*range(len(plain))]
        moved = move_to_written(plain, [times, times], text)
        otherwise += moved.read_otherwise
        assert len(moved.ends) == len(text)
    strange = {word for word in otherwise if not re.search("[0-9]", word)}
    assert strange <= {"Mr.", "Messrs.", "etc.,"}
    assert 100 < len(otherwise) < 150
