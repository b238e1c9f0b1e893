"""The recipe of isolated digits, and the page that reads its two files."""

import importlib.util
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_speechllm_xl.corpus.directories import check_dir
from espnet_speechllm_xl.corpus.kaldi import read_table

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs2/fsdd/speechllm_xl1"
PAGE = (ROOT / "docs/new_corpus.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fsdd():
    spec = importlib.util.spec_from_file_location("fsdd_data", RECIPE / "local/data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def names():
    return [f"{digit}_{speaker}_{take}" for digit in range(10) for speaker in ("jo", "al") for take in range(0, 20, 3)]


@pytest.fixture
def clone(tmp_path, names):
    """A clone of the repository with two speakers and takes 0, 3, 6, ..., 18."""
    recordings = tmp_path / "clone/recordings"
    recordings.mkdir(parents=True)
    for name in names:
        soundfile.write(recordings / f"{name}.wav", np.zeros(1000), 8000)
    return recordings.parent


@pytest.mark.parametrize("packed", [False, True])
def test_sets(fsdd, clone, names, tmp_path, monkeypatch, packed, capsys):
    monkeypatch.chdir(tmp_path)
    if packed:
        (tmp_path / "pack/fsdd").mkdir(parents=True)
        with tarfile.open(tmp_path / "pack/fsdd/fsdd.tar", "w") as tar:
            for path in (clone / "recordings").iterdir():
                tar.add(path, f"audio/{path.name}")
        monkeypatch.setenv("SPEECHLLM_XL_DATA", str(tmp_path / "pack"))
    for _ in range(2):  # the second time over what is there
        assert fsdd.main([] if packed else ["--downloads", str(clone)]) == 0
    takes = {"test": {"00", "03"}, "dev": {"06", "09"}, "train": {"12", "15", "18"}}
    found = set()
    for name, wanted in takes.items():
        directory = tmp_path / "data" / name
        assert check_dir(directory) == []
        audio, text, speakers = (read_table(directory / table) for table in ("wav.scp", "text", "utt2spk"))
        assert {utterance.split("-")[2] for utterance in audio} == wanted
        assert len(audio) == 20 * len(wanted) and all(Path(path).is_file() for path in audio.values())
        assert text["al-7-" + min(wanted)] == "seven" and speakers["al-7-" + min(wanted)] == "al"
        found |= {Path(path).stem for path in audio.values()}
    assert found == set(names)
    assert capsys.readouterr().out.splitlines()[-1].endswith(" utterances of 2 speakers")


def test_the_first_digits_alone(fsdd, clone, tmp_path):
    assert fsdd.main(["--downloads", str(clone), "--out", str(tmp_path / "data"), "--digits", "2"]) == 0
    assert set(read_table(tmp_path / "data/train/text").values()) == {"zero", "one"}


def test_what_is_missing_is_one_line(fsdd, tmp_path, capsys):
    assert fsdd.main(["--downloads", str(tmp_path), "--out", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"fsdd data: {tmp_path} holds neither recordings/ nor fsdd.tar: "
        f"git clone https://github.com/Jakobovski/free-spoken-digit-dataset {tmp_path}\n"
    )
    (tmp_path / "recordings").mkdir()
    assert fsdd.main(["--downloads", str(tmp_path), "--out", str(tmp_path / "data")]) == 1
    assert "recordings holds no recordings: remove it and get https://" in capsys.readouterr().err


def lines_of(recipe):
    return sum(len((recipe / name).read_text(encoding="utf-8").splitlines()) for name in ("run.sh", "local/data.py"))


@pytest.mark.parametrize("corpus", ["fsdd", "ljspeech", "mini_mandarin"])
def test_a_corpus_takes_120_lines(corpus):
    assert lines_of(RECIPE.parents[1] / corpus / RECIPE.name) <= 120


def test_the_page_says_how_many():
    lines = lines_of(RECIPE)
    said = int(re.search(r"(\d+) lines together", PAGE)[1])
    assert abs(said - lines) <= 5


def test_the_page_quotes_the_files():
    blocks = re.findall(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    quoted = [(title, code) for _, title, code in blocks if title]
    assert {title for title, _ in quoted} == {
        "egs2/fsdd/speechllm_xl1/run.sh",
        "egs2/fsdd/speechllm_xl1/local/data.py",
    }
    for title, code in quoted:
        assert code in (ROOT / title).read_text(encoding="utf-8"), (title, code)
    assert len(PAGE.split()) <= 700


def test_the_page_names_what_there_is():
    for path in re.findall(r"`((?:egs2|conf)/[^`<]+)`", PAGE):
        assert (ROOT / path).exists(), path
    template = ROOT / "egs2/TEMPLATE/speechllm_xl1"
    declared = "".join((template / f"{name}.sh").read_text(encoding="utf-8") for name in ("speechllm_xl", "options"))
    for option in set(re.findall(r"--([a-z][a-z-]*)(?![\w-])", PAGE)) - {"help"}:
        assert re.search(rf"^{option.replace('-', '_')}=", declared, re.MULTILINE), option
    script = (RECIPE / "run.sh").read_text(encoding="utf-8")
    for option in re.findall(r"^- `--([a-z-]+)", PAGE, re.MULTILINE):
        assert f"--{option} " in script
