"""The recipe of read text as people write it."""

import importlib.util
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_speechllm_xl.corpus.directories import check_dir
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.tokenization import plain_text

RECIPE = Path(__file__).resolve().parents[2] / "egs2/ljspeech/speechllm_xl1"
METADATA = [
    "LJ001-0007|of about 1455,|of about fourteen fifty-five,",
    "LJ001-0165|One fruitful|One fruitful",
    "LJ002-0198|The office|The office",
    "LJ030-0001|gone|gone",
    'LJ048-0009|"Mr. Neild"|"Mr. Neild"',
    "LJ049-0002|In 1813|In eighteen thirteen",
    "LJ050-0278|8. The press yard.|eight. The press yard.",
]


@pytest.fixture(scope="module")
def ljspeech():
    spec = importlib.util.spec_from_file_location("ljspeech_data", RECIPE / "local/data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def release(folder):
    """LJSpeech-1.1 with some clips in its metadata, of which one is not there."""
    (folder / "LJSpeech-1.1/wavs").mkdir(parents=True)
    (folder / "LJSpeech-1.1/metadata.csv").write_text("\n".join(METADATA) + "\n", "utf-8")
    for line in METADATA:
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


def subset_with_metadata(folder):
    """The same, with what is written."""
    subset(folder)
    (folder / "ljspeech_subset/metadata.csv").write_text("\n".join(METADATA) + "\n", "utf-8")


@pytest.mark.parametrize("make, sizes", [(release, (4, 1, 1)), (subset_with_metadata, (1, 1, 1))])
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


def test_the_subset_alone_has_what_is_read(ljspeech, tmp_path, capsys):
    subset(tmp_path)
    assert ljspeech.main(["--downloads", str(tmp_path), "--out", str(tmp_path / "data")]) == 0
    assert read_table(tmp_path / "data/train/text") == {"LJ001-0007": "OF ABOUT FOURTEEN FIFTY FIVE"}
    assert not (tmp_path / "data/train/text_spoken").exists()
    assert "has no metadata.csv, which holds what is written" in capsys.readouterr().out


def test_metadata_of_other_clips_are_refused(ljspeech, tmp_path, capsys):
    subset(tmp_path)
    (tmp_path / "ljspeech_subset/metadata.csv").write_text(METADATA[0] + "\n", "utf-8")
    assert ljspeech.main(["--downloads", str(tmp_path), "--out", str(tmp_path / "data")]) == 1
    assert "metadata.csv lacks 2 clips, first LJ001-0165" in capsys.readouterr().err


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
