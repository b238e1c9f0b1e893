"""The faults that trainer.py mends: files, resuming, averages, accumulation; and training on two processes."""

import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training
from limits import longest_file
from terminal import run_at_terminal

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.train_log import stopped_early
from espnet_speechllm_xl.training import trainer
from espnet_speechllm_xl.training.trainer import CheckpointError, Trainer, average_best

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Stands for a kill at a chosen moment; nothing catches it."""


def pth_files(directory):
    """Return the names of all files with weights, each link with its target."""
    files = [path for path in directory.iterdir() if path.suffix == ".pth"]
    return {path.name: os.readlink(path) if path.is_symlink() else "" for path in files}


def assert_same_training(first, second):
    assert pth_files(first) == pth_files(second)
    for name in pth_files(first):
        if name != "checkpoint.pth":
            assert training.same_weights(first / name, second / name), name
    for epoch, figures in training.history(first).items():
        for part in ("train", "valid"):
            assert figures[part]["loss"] == training.history(second)[epoch][part]["loss"]


# Odd numbers of batches and accumulation by 2: gradients are left over at the end of an epoch.
SETTINGS = {"keep_nbest_models": 1, "accum_grad": 2, "max_epoch": 3}


@pytest.fixture(scope="module", params=["ctc", "speechllm_xl"])
def undisturbed(request, toy_data, toy_stats, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "exp"
    return request.param, training.train(request.param, toy_data, out, toy_stats, **SETTINGS)


def kill_when_saving(monkeypatch, file, after=False, leave=b""):
    """Stop before or after ``file`` is saved the next time; ``leave`` a temporary file as SIGKILL would."""
    save = trainer._atomic_save

    def killing(value, target, *args, **kwargs):
        if Path(target).name != file:
            return save(value, target, *args, **kwargs)
        if after:
            save(value, target, *args, **kwargs)
        if leave:
            (Path(target).parent / f".{file}.abc123.pth").write_bytes(leave)
        raise Killed

    monkeypatch.setattr(trainer, "_atomic_save", killing)


@pytest.mark.parametrize(
    "file, after, leave",
    [
        ("1epoch.pth", False, b""),  # checkpoint.pth is there, 1epoch.pth is missing
        ("2epoch.pth", False, b"half"),
        ("2epoch.pth", True, b""),  # links and old epochs are not yet tidied
        ("3epoch.pth", False, b""),  # all epochs are trained
        ("3epoch.pth", True, b""),
    ],
)
def test_killed_and_resumed_is_undisturbed(undisturbed, toy_data, toy_stats, tmp_path, monkeypatch, file, after, leave):
    name, expected = undisturbed
    with monkeypatch.context() as patch:
        kill_when_saving(patch, file, after, leave)
        with pytest.raises(Killed):
            training.train(name, toy_data, tmp_path / "exp", toy_stats, **SETTINGS)
    assert (tmp_path / "exp" / file).exists() == after
    training.train(name, toy_data, tmp_path / "exp", toy_stats, **SETTINGS)
    assert_same_training(expected, tmp_path / "exp")


def test_killed_within_an_epoch(undisturbed, toy_data, toy_stats, tmp_path, monkeypatch):
    name, expected = undisturbed
    validate = Trainer.validate_one_epoch.__func__

    def killing(cls, *, reporter, **kwargs):
        if reporter.epoch == 2:
            raise Killed
        return validate(cls, reporter=reporter, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate_one_epoch", classmethod(killing))
        with pytest.raises(Killed):
            training.train(name, toy_data, tmp_path / "exp", toy_stats, **SETTINGS)
    training.train(name, toy_data, tmp_path / "exp", toy_stats, **SETTINGS)
    assert_same_training(expected, tmp_path / "exp")


def test_trained_on_with_more_epochs(undisturbed, toy_data, toy_stats, tmp_path):
    name, expected = undisturbed
    for epochs in (2, 3):
        training.train(name, toy_data, tmp_path / "exp", toy_stats, **{**SETTINGS, "max_epoch": epochs})
    assert_same_training(expected, tmp_path / "exp")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").glob("*.pth")}
    training.train(name, toy_data, tmp_path / "exp", toy_stats, **SETTINGS)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").glob("*.pth")}


def test_real_kill(toy_data, toy_stats, tmp_path):
    """The command gets SIGKILL in the middle of a training, then goes on."""
    long = {**SETTINGS, "max_epoch": 400}
    arguments = training.command("ctc", toy_data, tmp_path / "exp", toy_stats, **long)
    process = subprocess.Popen(
        [sys.executable, "-m", "espnet_speechllm_xl", "train-aligner", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(),
    )  # fmt: skip
    shown = next((line for line in process.stdout if line.startswith("epoch 3/400: train loss")), None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert shown
    reached = max(training.history(tmp_path / "exp"))
    epochs = {**SETTINGS, "max_epoch": reached + 1}
    training.train("ctc", toy_data, tmp_path / "exp", toy_stats, **epochs)
    training.train("ctc", toy_data, tmp_path / "undisturbed", toy_stats, **epochs)
    assert_same_training(tmp_path / "undisturbed", tmp_path / "exp")


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other"])
def test_damaged_checkpoint_is_one_clear_line(toy_data, toy_stats, tmp_path, damage):
    out = training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=1)
    file = out / "checkpoint.pth"
    whole = file.read_bytes()
    content = {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"not a checkpoint\n" * 9}.get(damage)
    if content is not None:
        file.write_bytes(content)
    changes = {"encoder_conf": {"dim": 32}} if damage == "other" else {}
    if damage == "other":
        (out / "settings.json").unlink()  # with it the change would be seen before
    with pytest.raises(CheckpointError, match="cannot be resumed .* remove it to start again") as caught:
        training.train("ctc", toy_data, out, toy_stats, **changes)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_a_damaged_checkpoint_asks_no_question_at_a_terminal(toy_data, toy_stats, tmp_path):
    """ESPnet from 202609 on would ask whether to load it unsafely."""
    out = training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=1)
    (out / "checkpoint.pth").write_bytes(b"not a checkpoint\n" * 9)
    command = training.command("ctc", toy_data, out, toy_stats, max_epoch=2)
    command = [sys.executable, "-m", "espnet_speechllm_xl", "train-aligner", *command]
    done = run_at_terminal(command, tmp_path, environment())
    assert done.returncode == 2
    assert f"\nspeechllm-xl: error: {out}/checkpoint.pth cannot be resumed (" in done.stdout
    assert "Traceback" not in done.stdout and "WARNING" not in done.stdout


@pytest.mark.parametrize("size, name", [(100, "config.yaml"), (12000, "pth")])
def test_a_full_disk_is_one_line(toy_data, toy_stats, tmp_path, capsys, size, name):
    from espnet_speechllm_xl.bin import cli

    command = ["train-aligner", *training.command("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=1)]
    with longest_file(size):
        assert cli.main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said.startswith("speechllm-xl: error: ") and f"{tmp_path / 'exp'}" in said and "File too large: raise" in said
    )
    assert not list((tmp_path / "exp").glob(".*")) and (name == "config.yaml" or ".pth cannot be written" in said)
    assert cli.main(command) == 0 and (tmp_path / "exp" / "valid.ter.ave.pth").exists()


def test_a_kill_inside_save_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "checkpoint.pth"
    trainer._atomic_save({"a": torch.ones(3)}, target)
    save = trainer._torch_save

    def cut(value, stream):
        save(value, stream)
        stream.truncate(50)
        raise Killed

    monkeypatch.setattr(trainer, "_torch_save", cut)
    with pytest.raises(Killed):
        trainer._atomic_save({"a": torch.zeros(3)}, target)
    assert torch.load(target)["a"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [target]


class Figures:
    """ESPnet's reporter, as far as averaging needs it: planted values of epochs 1, 2, ..."""

    def __init__(self, **values):
        self.values = values
        self.stats = dict.fromkeys(range(1, len(next(iter(values.values()))) + 1))

    def has(self, phase, name):
        return phase == "valid" and name in self.values

    def get_epoch(self):
        return len(self.stats)

    def sort_epochs(self, phase, name, mode):
        assert phase == "valid"
        return sorted(self.stats, key=lambda epoch: self.values[name][epoch - 1] * (1 if mode == "min" else -1))

    def get_value(self, phase, name, epoch):
        assert phase == "valid"
        return self.values[name][epoch - 1]


def planted_epochs(directory, count):
    for epoch in range(1, count + 1):
        state = {"w": torch.full((2,), float(10**epoch)), "half": torch.full((1,), epoch, dtype=torch.bfloat16)}
        torch.save({**state, "steps": torch.tensor(epoch)}, directory / f"{epoch}epoch.pth")


def test_average_of_the_best(tmp_path):
    planted_epochs(tmp_path, 4)
    figures = Figures(loss=[4.0, 1.0, 2.0, 3.0], acc=[0.9, 0.1, 0.2, 0.8])
    criteria = [("valid", "loss", "min"), ("valid", "acc", "max"), ("valid", "absent", "max"), ("train", "loss", "min")]
    average_best(figures, tmp_path, criteria, nbest=[2, 1])
    loss, acc = (torch.load(tmp_path / f"valid.{name}.ave.pth") for name in ("loss", "acc"))
    assert loss["w"].tolist() == [550.0, 550.0]  # epochs 2 and 3
    assert acc["w"].tolist() == [5005.0, 5005.0]  # epochs 1 and 4
    assert loss["half"].dtype == torch.bfloat16 and loss["half"].item() == 2.5
    assert loss["steps"].item() == 2 and acc["steps"].item() == 1
    assert not list(tmp_path.glob("*absent*")) and not list(tmp_path.glob("train*"))
    for epoch in range(1, 5):
        assert torch.load(tmp_path / f"{epoch}epoch.pth")["w"][0] == 10.0**epoch


def test_average_of_fewer_epochs_than_n(tmp_path):
    planted_epochs(tmp_path, 2)
    average_best(Figures(loss=[2.0, 1.0]), tmp_path, [("valid", "loss", "min")], nbest=10)
    assert torch.load(tmp_path / "valid.loss.ave.pth")["w"].tolist() == [55.0, 55.0]


def test_epochs_of_no_value_are_the_worst(tmp_path):
    planted_epochs(tmp_path, 4)
    figures = Figures(loss=[2.0, math.nan, 1.0, 1.5], acc=[math.nan, 0.3, 0.2, math.nan])
    average_best(figures, tmp_path, [("valid", "loss", "min"), ("valid", "acc", "max")], nbest=2)
    loss, acc = (torch.load(tmp_path / f"valid.{name}.ave.pth")["w"][0] for name in ("loss", "acc"))
    assert (loss, acc) == (5500.0, 550.0)  # epochs 3 and 4, 2 and 3
    assert os.readlink(tmp_path / "valid.loss.best.pth") == "3epoch.pth"


def test_average_within_training_has_a_suffix_and_removes_nothing(tmp_path):
    planted_epochs(tmp_path, 3)
    criteria = [("valid", "loss", "min")]
    average_best(reporter=Figures(loss=[1.0, 2.0, 3.0]), output_dir=tmp_path, best_model_criterion=criteria, nbest=[1],
                 suffix="till3epoch")  # fmt: skip
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"1epoch.pth", "2epoch.pth", "3epoch.pth", "valid.loss.ave.till3epoch.pth"}
    average_best(Figures(loss=[1.0, 2.0, 3.0]), tmp_path, criteria, nbest=[1])
    names = {path.name for path in tmp_path.iterdir()} - {"valid.loss.ave.till3epoch.pth"}
    assert names == {"1epoch.pth", "3epoch.pth", "valid.loss.ave.pth", "valid.loss.best.pth", "latest.pth"}
    assert os.readlink(tmp_path / "valid.loss.best.pth") == "1epoch.pth"
    assert os.readlink(tmp_path / "latest.pth") == "3epoch.pth"


def test_training_averages_its_epochs(toy_data, toy_stats, tmp_path):
    criteria = [["valid", "ter", "min"], ["valid", "loss", "min"]]
    out = training.train(
        "ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=2, keep_nbest_models=2, best_model_criterion=criteria
    )
    one, two = training.weights(out / "1epoch.pth"), training.weights(out / "2epoch.pth")
    for name in ("ter", "loss"):
        mean = training.weights(out / f"valid.{name}.ave.pth")
        for key, value in mean.items():
            torch.testing.assert_close(value, (one[key] + two[key]) / 2, rtol=1e-6, atol=1e-7)


def steps(directory):
    states = torch.load(directory / "checkpoint.pth", weights_only=False)["optimizers"][0]["state"]
    return int(next(iter(states.values()))["step"])


def test_gradient_accumulation(toy_data, toy_stats, tmp_path):
    """Two batches make a step; the odd one at the end of an epoch makes none and is not carried over."""
    alone = training.train("ctc", toy_data, tmp_path / "alone", toy_stats, max_epoch=2)
    pairs = training.train("ctc", toy_data, tmp_path / "pairs", toy_stats, max_epoch=2, accum_grad=2)
    batches = steps(alone) // 2
    assert batches % 2 == 1 and batches > 2
    assert steps(pairs) == 2 * (batches // 2)
    halves = [training.history(out)[1]["train"]["loss"] for out in (alone, pairs)]
    assert 0.8 < halves[1] / halves[0] < 1.3, "the loss that is shown is that of a batch, not a share of it"


@pytest.mark.parametrize("wrong", [{"accum_grad": 99}, {"optim_conf": {"lr": 1e30}}])
def test_a_training_that_learns_nothing_is_an_error(toy_data, toy_stats, tmp_path, wrong):
    with pytest.raises(UserError, match=r"epoch [12]: none of its \d+ batches changed the weights"):
        training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=4, **wrong)
    assert not list((tmp_path / "exp").glob("valid.*.ave.pth"))


def test_a_criterion_that_is_not_measured_is_named_in_the_first_epoch(toy_data, toy_stats, tmp_path):
    criterion = [["valid", "ter_text", "min"]]
    with pytest.raises(UserError, match="best_model_criterion: the validation has no 'ter_text'; it has: .*loss.*ter"):
        training.train("ctc", toy_data, tmp_path / "exp", toy_stats, best_model_criterion=criterion)
    assert not list((tmp_path / "exp").glob("1epoch.pth"))


def test_a_training_begun_anew_has_its_own_settings(toy_data, toy_stats, tmp_path):
    out = tmp_path / "exp"
    training.train("ctc", toy_data, out, toy_stats, max_epoch=1)
    training.train("ctc", toy_data, out, toy_stats, ["--resume", "false"], max_epoch=1, seed=9)
    training.train("ctc", toy_data, out, toy_stats, max_epoch=2, seed=9)
    with pytest.raises(UserError, match=r"another seed \(was 9, is 3\)"):
        training.train("ctc", toy_data, out, toy_stats, max_epoch=2)


def test_a_training_that_stopped_early_goes_no_further(toy_data, toy_stats, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)

    def train():
        options = {"max_epoch": 9, "patience": 1, "optim_conf": {"lr": 0.0}, "scheduler": None}
        out = training.train("ctc", toy_data, tmp_path / "exp", toy_stats, **options)
        (out / "train.log").write_text(caplog.text, encoding="utf-8")
        assert stopped_early(out)
        caplog.clear()
        return out

    epochs = sorted(training.history(train()))
    assert 1 < len(epochs) < 9
    average = tmp_path / "exp/valid.ter.ave.pth"
    average.unlink()
    assert sorted(training.history(train())) == epochs and average.is_file()
    assert f"epoch {epochs[-1]}: the training had stopped early (patience 1)" in capsys.readouterr().out


def test_more_epochs_may_be_averaged_than_were_kept(toy_data, toy_stats, tmp_path):
    training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=4, keep_nbest_models=1)
    out = training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=5, keep_nbest_models=3)
    assert sorted(training.history(out)) == [1, 2, 3, 4, 5] and (out / "valid.ter.ave.pth").is_file()


def test_mixed_precision_is_accepted_without_gpu(toy_data, toy_stats, tmp_path):
    """ESPnet's mixed precision is CUDA's: on a CPU it computes in float32 and gives the same weights."""
    exact = training.train("ctc", toy_data, tmp_path / "exact", toy_stats, max_epoch=1)
    mixed = training.train("ctc", toy_data, tmp_path / "mixed", toy_stats, max_epoch=1, use_amp=True)
    if not torch.cuda.is_available():
        assert training.same_weights(exact / "1epoch.pth", mixed / "1epoch.pth")
    resumed = training.train("ctc", toy_data, tmp_path / "mixed", toy_stats, max_epoch=2, use_amp=True)
    assert sorted(training.history(resumed)) == [1, 2]


def test_matmul_precision(toy_data, toy_stats, tmp_path):
    """``medium`` (the default) and ``highest`` train to nearly the same; the setting ends with the training."""
    trained = {}
    for name in ("highest", "medium"):
        out = training.train("speechllm_xl", toy_data, tmp_path / name, toy_stats, max_epoch=1, matmul_precision=name)
        trained[name] = training.history(out)[1]["train"]["loss"]
        assert torch.get_float32_matmul_precision() == "highest"
    assert trained["medium"] == pytest.approx(trained["highest"], rel=0.02)
    with pytest.raises(CheckpointError, match="another matmul_precision .was highest, is medium"):
        training.train("speechllm_xl", toy_data, tmp_path / "highest", toy_stats, max_epoch=2)


def test_progress_says_epoch_loss_and_time_left(toy_data, toy_stats, tmp_path, capsys):
    training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    figures = training.history(tmp_path / "exp")
    assert len(lines) == 2
    for epoch, line in enumerate(lines, 1):
        assert line.startswith(f"epoch {epoch}/2: train loss {figures[epoch]['train']['loss']:.3f}; ")
        assert f"valid loss {figures[epoch]['valid']['loss']:.3f}, ter {figures[epoch]['valid']['ter']:.3f}; " in line
        assert re.search(r"; padding \d+\.\d% of the frames, \d+\.\d% with the tokens; \d+ s an epoch", line)
        assert line.endswith("min left")


def environment(**more):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("name, recompute", [("ctc", False), ("speechllm_xl", True)])
def test_two_processes_train_as_one(name, recompute, toy_data, toy_stats, tmp_path):
    """Two gloo ranks on the CPU give the losses and weights of one process (no dropout, no masks).

    The ranks of one system compute its layers again in the backward pass.
    """
    plain = {
        "encoder_conf": {"dropout": 0.0}, "specaug_conf": {"freq_masks": 0, "time_masks_per_second": 0.0},
        "batch_bins": 400, "max_epoch": 2, "optim": "sgd", "optim_conf": {"lr": 0.02}, "matmul_precision": "highest",
    }  # fmt: skip  # 400: every batch has two members at least, so that both ways make the same batches
    if name == "ctc":
        plain["ctc_conf"] = {"dropout": 0.0}
    else:
        plain.update(decoder_conf={"dropout": 0.0}, loss_conf={"ctc_weight": 0.1})
    subcommand = {"ctc": "train-aligner", "speechllm_xl": "train"}[name]

    def start(out, options=(), **variables):
        arguments = training.command(name, toy_data, tmp_path / out, toy_stats, options, **plain)
        return subprocess.Popen(
            [sys.executable, "-m", "espnet_speechllm_xl", subcommand, *arguments], env=environment(**variables),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    # A process of its own, too: threads, and what tests before have set in this one, change the last digits.
    alone, one = start("one"), tmp_path / "one"
    assert alone.communicate(timeout=300)[0] and alone.returncode == 0
    options = ["--multiprocessing_distributed", "false", "--dist_backend", "gloo", "--ngpu", "0"]
    options += ["--recompute_layers", str(recompute).lower()]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start("two", options, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
    expected, found = training.history(one), training.history(tmp_path / "two")
    assert sorted(found) == [1, 2]
    for epoch in (1, 2):
        for part in ("train", "valid"):
            assert found[epoch][part]["loss"] == pytest.approx(expected[epoch][part]["loss"], rel=1e-5)
    first, second = (training.weights(folder / "2epoch.pth") for folder in (one, tmp_path / "two"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-6)
    shown = [sum(line.startswith("epoch ") and "train loss" in line for line in text.splitlines()) for text in outputs]
    assert shown == [2, 0]  # one rank speaks
