"""The differences between ESPnet's releases; the tests pretend that each is installed."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import espnet_speechllm_xl
from espnet_speechllm_xl.bin import cli, guard
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.training import compat


@pytest.fixture
def plant(monkeypatch):
    """A function ``plant(espnet="202611", ...)`` that pretends these versions to be installed."""

    def plant(**versions):
        monkeypatch.setattr(compat, "version", lambda name: versions.get(name, importlib.metadata.version(name)))

    return plant


GOOD = {"torch": "2.14.1+cu130", "torchaudio": "2.11.1"}


@pytest.mark.parametrize("release", ["202511", "202609.post2", "202610", "202611", "202611.post1"])
def test_supported_releases(plant, release):
    plant(espnet=release, **GOOD)
    compat.check_stack()


@pytest.mark.parametrize("release", ["202509", "202612", "0.10.6"])
def test_other_releases_are_refused_in_one_line(plant, release, capsys):
    plant(espnet=release, **GOOD)
    with pytest.raises(UserError, match=rf"^ESPnet {release} is not supported: pip install 'espnet>=202511,<202612'$"):
        compat.check_stack()
    with pytest.raises(UserError, match="is not supported"):
        assert espnet_speechllm_xl.Speech2Text
    assert cli.main(["transcribe", "none.wav", "--model", "none"]) == guard.WRONG_USE
    assert capsys.readouterr().err.startswith(f"speechllm-xl: error: ESPnet {release} is not supported")


@pytest.mark.parametrize("torchaudio, fits", [("2.11.0", True), ("2.11.1", False)])
def test_the_pair_that_does_not_load_is_named(plant, torchaudio, fits):
    plant(espnet="202611", torch="2.11.0+cpu", torchaudio=torchaudio)
    if fits:
        compat.check_stack()
    else:
        with pytest.raises(UserError, match=r"2.11.1 does not load with torch 2.11.0\+cpu: pip install torchaudio==2"):
            compat.check_stack()


def test_only_the_newest_resumes_what_had_stopped(plant):
    for release, itself in (("202511", False), ("202610.post2", False), ("202611", True)):
        plant(espnet=release)
        assert compat.resumes_what_had_stopped() == itself


def test_a_safe_load_takes_what_old_releases_wrote(tmp_path):
    figures = {"loss": numpy.float64(1.5), "acc": numpy.float32(0.5), "count": numpy.int64(3)}
    torch.save({"stats": figures, "time": compat.datetime.timedelta(seconds=4)}, tmp_path / "old.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "old.pth", weights_only=True)
    found = compat.load_checkpoint(torch.load, tmp_path / "old.pth", weights_only=True)
    assert found == {"stats": figures, "time": compat.datetime.timedelta(seconds=4)}


class Foreign:
    """An object that no training writes."""


def test_a_safe_load_takes_nothing_else(tmp_path):
    torch.save(Foreign(), tmp_path / "foreign.pth")
    with pytest.raises(OSError, match="^Unsupported global: GLOBAL .*Foreign was not an allowed global by default$"):
        compat.load_checkpoint(torch.load, tmp_path / "foreign.pth", weights_only=True)


@pytest.mark.parametrize("release, stands_in", [("202511", True), ("202609", False)])
def test_g2p_is_kept_out_of_old_releases(plant, monkeypatch, release, stands_in):
    plant(espnet=release)
    monkeypatch.delitem(sys.modules, "g2p_en", raising=False)
    with compat.without_g2p():
        assert ("g2p_en" in sys.modules) == stands_in
        assert not stands_in or importlib.util.find_spec("g2p_en")
    assert "g2p_en" not in sys.modules


def test_our_tasks_are_imported_without_a_word():
    command = [sys.executable, "-W", "ignore", "-c", "import espnet_speechllm_xl.systems.speechllm_xl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_else_asks_for_the_release():
    package = Path(compat.__file__).parent
    for path in package.rglob("*.py"):
        if path.name != "compat.py":
            assert not any(
                word in path.read_text(encoding="utf-8") for word in ('version("espnet', "safe_torch_load")
            ), path
