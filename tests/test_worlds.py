"""Models and trainings go from one release of ESPnet to another and back.

Run where SPEECHLLM_XL_OTHER_PYTHON names the Python of a second environment with another release, as .ci/run does.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import training

ROOT = Path(__file__).resolve().parents[1]
OTHER = os.environ.get("SPEECHLLM_XL_OTHER_PYTHON")

pytestmark = pytest.mark.skipif(not OTHER, reason="SPEECHLLM_XL_OTHER_PYTHON names no second environment")
both_ways = pytest.mark.parametrize(
    "maker, user", [(sys.executable, OTHER), (OTHER, sys.executable)], ids=["out", "in"]
)


def run(python, *arguments):
    """Standard output of a command of the package, run by a Python."""
    command = [python, "-m", "espnet_speechllm_xl", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_they_have_different_releases():
    script = "from espnet_speechllm_xl.training.compat import espnet_release; print(espnet_release())"
    command = [[python, "-c", script] for python in (sys.executable, OTHER)]
    assert len({subprocess.check_output(each, cwd=ROOT, text=True) for each in command}) == 2


@pytest.fixture(scope="module")
def begun(toy_data, toy_stats, tmp_path_factory):
    """``begun(python) -> folder``: two epochs of a training by that Python, in ``folder / "exp"``."""
    made = {}

    def train(python):
        if python not in made:
            made[python] = tmp_path_factory.mktemp("begun")
            run(
                python,
                "train",
                *training.command("speechllm_xl", toy_data, made[python] / "exp", toy_stats, max_epoch=2),
            )
        return made[python]

    return train


@both_ways
def test_a_packed_model_says_the_same(maker, user, begun, toy_data, tmp_path):
    model = tmp_path / "model.zip"
    run(maker, "pack", "--model", begun(maker) / "exp", "--out", model)
    audio = sorted((toy_data.valid / "audio").iterdir())
    options = ["--model", model, "--search", "alsd", "--ctc-weight", "0.3", "--format", "json"]
    lines = (run(python, "transcribe", *audio, *options).splitlines() for python in (maker, user))
    expected, found = (list(map(json.loads, each)) for each in lines)
    assert len(expected) == len(audio) == 4 and any(each["text"] for each in expected)
    for before, after in zip(expected, found, strict=True):
        assert after["text"] == before["text"] and after["score"] == pytest.approx(before["score"], abs=1e-3)
        assert [word["end"] for word in after["words"]] == [word["end"] for word in before["words"]]


@both_ways
def test_a_training_is_continued(maker, user, begun, toy_data, toy_stats, tmp_path):
    losses = {}
    for python, name in ((maker, "maker"), (user, "user")):
        out = shutil.copytree(begun(maker), tmp_path / name, symlinks=True) / "exp"
        run(python, "train", *training.command("speechllm_xl", toy_data, out, toy_stats, max_epoch=3))
        figures = training.history(out)
        assert sorted(figures) == [1, 2, 3] and (out / "valid.acc_text.ave.pth").is_file()
        losses[name] = [figures[epoch][part]["loss"] for epoch in figures for part in ("train", "valid")]
    assert losses["user"] == pytest.approx(losses["maker"], rel=1e-3)
