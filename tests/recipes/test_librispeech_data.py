"""Kaldi directories from a small tree in LibriSpeech's own layout."""

import importlib.util
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_speechllm_xl.corpus.directories import check_dir
from espnet_speechllm_xl.corpus.kaldi import read_table

SCRIPT = Path(__file__).parents[2] / "egs2/librispeech/speechllm_xl1/local/data.py"


@pytest.fixture(scope="module")
def librispeech():
    spec = importlib.util.spec_from_file_location("librispeech_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path, librispeech):
    """Two readers of a part, of whom one's number begins the other's; two chapters of the first."""
    for index, part in enumerate(librispeech.PARTS):
        for reader, chapter in (("84", f"{index}21"), ("84", f"{index}9"), ("841", f"{index}")):
            directory = tmp_path / "corpus/LibriSpeech" / part / reader / chapter
            directory.mkdir(parents=True)
            names = [f"{reader}-{chapter}-{number:04d}" for number in range(2)]
            for name in names:
                soundfile.write(directory / f"{name}.flac", np.zeros(4000), 16000)
            text = "".join(f"{name} {part.upper()} SAYS\n" for name in names)
            (directory / f"{reader}-{chapter}.trans.txt").write_text(text)
    return tmp_path / "corpus"


@pytest.mark.parametrize("hours", ["100", "960"])
def test_sets(librispeech, tree, tmp_path, capsys, hours):
    out = tmp_path / "data"
    assert librispeech.main(["--downloads", str(tree), "--out", str(out), "--train", hours]) == 0
    train = {"100": 6, "960": 18}[hours]
    sizes = {f"train_{hours}": train, "dev": 12, "dev_clean": 6, "dev_other": 6, "test_clean": 6, "test_other": 6}
    assert {path.name: len(read_table(path / "text")) for path in out.iterdir()} == sizes
    for name in sizes:
        assert check_dir(out / name) == []
    assert read_table(out / "dev_other/text")["84-49-0001"] == "DEV-OTHER SAYS"
    assert set(read_table(out / "test_clean/utt2spk").values()) == {"84", "841"}
    assert "note: dev-clean has 6 utterances, the official one 2703" in capsys.readouterr().out


def test_archives_are_extracted_part_by_part(librispeech, tree, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    for part in librispeech.PARTS:
        with tarfile.open(packed / f"{part}.tar.gz", "w:gz") as tar:
            tar.add(tree / "LibriSpeech" / part, f"LibriSpeech/{part}")
    work, out = tmp_path / "work", tmp_path / "data"
    for _ in range(2):
        assert (
            librispeech.main(["--downloads", str(packed), "--work", str(work), "--out", str(out), "--train", "100"])
            == 0
        )
    assert sorted(path.name for path in (work / "LibriSpeech").iterdir()) == [
        "dev-clean", "dev-other", "test-clean", "test-other", "train-clean-100",
    ]  # fmt: skip


def test_errors_name_the_part_and_the_next_action(librispeech, tree, tmp_path, capsys):
    def says(*options):
        assert librispeech.main(["--out", str(tmp_path / "data"), "--work", str(tmp_path / "work"), *options]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds neither LibriSpeech/train-clean-100 nor train-clean-100.tar.gz" in says("--downloads", str(empty))
    gone = tree / "LibriSpeech/dev-clean/84/39/84-39-0001.flac"
    gone.unlink()
    assert "84-39-0001 lacks its audio or its text" in says("--downloads", str(tree))
