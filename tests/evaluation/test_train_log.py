import datetime
import io
import logging
import math

import pytest

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import doubts
from espnet_speechllm_xl.evaluation.train_log import ended_in_warmup, read_train_log, stopped_early, training_summary

LOG = (
    "[host] 2025-01-01 10:00:00,000 (trainer:760) INFO: 1epoch:train:1-20batch: iter_time=0.1, loss=9.0\n"
    "[host] 2025-01-01 10:00:01,000 (trainer:394) INFO: 1epoch results: [train] iter_time=2.1e-04, loss=5.500, "
    "optim0_lr0=1.000e-03, train_time=0.5, time=1 minute and 10.5 seconds, total_count=100, "
    "gpu_max_cached_mem_GB=3.1, [valid] loss=4.500, acc=0.250, time=9.5 seconds, total_count=3\n"
    "[host] 2025-01-01 10:02:00,000 (trainer:394) INFO: 2epoch results: [train] loss=1.234e+03, "
    "time=1 hour, 2 minutes and 3 seconds, total_count=200, [valid] loss=nan, acc=0.500, time=7 seconds\n"
)


def test_train_log(tmp_path):
    (tmp_path / "train.log").write_text(LOG)
    epochs = read_train_log(tmp_path)
    assert sorted(epochs) == [1, 2]
    assert epochs[1]["train"] == {
        "iter_time": 2.1e-4,
        "loss": 5.5,
        "optim0_lr0": 1e-3,
        "train_time": 0.5,
        "time": 70.5,
        "total_count": 100.0,
        "gpu_max_cached_mem_GB": 3.1,
    }
    assert epochs[1]["valid"] == {"loss": 4.5, "acc": 0.25, "time": 9.5, "total_count": 3.0}
    assert epochs[2]["train"]["loss"] == 1234.0
    assert epochs[2]["train"]["time"] == 3723.0
    assert math.isnan(epochs[2]["valid"]["loss"])
    # 70.5 + 9.5 + 3723 + 7 s; the epoch without a number is not the best one.
    assert training_summary(epochs) == (2, 1, 4.5, 3810.0)
    assert read_train_log(tmp_path / "none") == {}


def test_train_log_resumed_and_restarted(tmp_path):
    line = "{}epoch results: [train] loss={}, time=1 second, [valid] loss={}, time=1 second\n"
    # The oldest was started again later.
    (tmp_path / "train.2.log").write_text("".join(line.format(e, 90, 90) for e in (1, 2, 3, 4)))
    (tmp_path / "train.1.log").write_text("".join(line.format(e, 10 + e, 10 + e) for e in (1, 2)))
    (tmp_path / "train.log").write_text("".join(line.format(e, 20 + e, 20 + e) for e in (2, 3)))  # killed in 2, resumed
    (tmp_path / "train_other.log").write_text(line.format(9, 1, 1))
    epochs = read_train_log(tmp_path)
    assert {epoch: parts["valid"]["loss"] for epoch, parts in epochs.items()} == {1: 11.0, 2: 22.0, 3: 23.0}


def test_a_training_that_went_on_has_not_stopped_early(tmp_path):
    line, stop = "{}epoch results: [train] loss=1, [valid] loss=1\n", "[Early stopping] valid.loss has not been\n"
    (tmp_path / "train.log").write_text(line.format(1))
    assert not stopped_early(tmp_path)
    (tmp_path / "train.log").write_text(line.format(1) + stop + "# ended with status 0\n")
    assert stopped_early(tmp_path)
    (tmp_path / "train.log").rename(tmp_path / "train.1.log")
    (tmp_path / "train.log").write_text("# started\n")
    assert stopped_early(tmp_path)
    (tmp_path / "train.log").write_text(line.format(2))
    assert not stopped_early(tmp_path) and not stopped_early(tmp_path / "none")


def test_train_log_is_what_espnet_writes(tmp_path):
    from espnet2.train.reporter import Reporter

    stream = io.StringIO()
    logger = logging.getLogger("espnet-probe")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(stream))
    logger.setLevel(logging.INFO)
    reporter = Reporter()
    for epoch, loss in ((1, 4.25), (2, 0.0005)):
        reporter.set_epoch(epoch)
        for part in ("train", "valid"):
            with reporter.observe(part) as sub:
                sub.register({"loss": loss, "acc": 0.5}, 2)
                sub.next()
        reporter.stats[epoch]["train"]["time"] = datetime.timedelta(hours=26, minutes=epoch, seconds=5)
        logger.info(reporter.log_message())
    (tmp_path / "train.log").write_text(stream.getvalue())
    epochs = read_train_log(tmp_path)
    assert [epochs[epoch]["valid"]["loss"] for epoch in (1, 2)] == [4.25, 0.0005]
    assert epochs[1]["train"]["time"] == pytest.approx(26 * 3600 + 60, abs=60)  # humanfriendly rounds long times
    assert epochs[2]["valid"]["acc"] == 0.5


RATE = "{}epoch results: [train] loss=1, optim0_lr0={}, total_count={}, [valid] ter={}, loss=1\n"
PIECES = {"scheduler_conf": {"warmup_steps_list": [0, 200, 2450], "warmup_lr_list": [0.0, 2e-3, 5e-5]}}


def trained(folder, rates, config="task: ctc\n", ters=(0.1,), steps=100):
    """A training's log, of epochs with these mean learning rates and best token error rates, and its configuration."""
    folder.mkdir(exist_ok=True)
    ters = [*ters, *[ters[-1]] * len(rates)]
    lines = [RATE.format(n, rate, n * steps, ters[n - 1]) for n, rate in enumerate(rates, 1)]
    (folder / "train.log").write_text("".join(lines))
    (folder / "config.yaml").write_text(config)
    return folder


@pytest.mark.parametrize(
    "rates, steps, config, ended",
    [
        ([5e-4], 100, PIECES, True),  # 100 of 200 steps
        ([5e-4], 200, PIECES, False),
        ([5e-4, 1e-3], 199, {**PIECES, "accum_grad": 2}, True),  # 398 batches are 199 steps
        ([1e-3, 1e-3], 100, {"scheduler_conf": {"warmup_steps": 25000}}, True),
        ([1e-3, 2e-3, 3e-3], 100, {}, True),  # a schedule that counts no steps
        ([1e-3, 3e-3, 2e-3], 100, {}, False),
        ([1e-3, 1e-3], 100, {}, False),  # constant
        ([1e-3], 100, {}, False),  # one epoch does not tell
        ([], 100, PIECES, False),
    ],
)
def test_a_training_that_ended_in_its_warm_up(tmp_path, rates, steps, config, ended):
    epochs = read_train_log(trained(tmp_path / "model", rates, steps=steps))
    assert ended_in_warmup(epochs, config) is ended


def test_doubts_are_a_line_each(tmp_path, capsys):
    good = trained(tmp_path / "good", [1e-3, 5e-4], ters=(0.5, 0.3))
    bad = trained(tmp_path / "bad", [1e-3, 2e-3], ters=(0.9, 0.304))
    other = trained(tmp_path / "other", [1e-3, 5e-4], config="task: speechllm_xl\n", ters=(0.9,))
    assert cli.main(["doubts", *map(str, (good, bad, other, tmp_path / "none"))]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {bad}: its token error rate is 0.304 at best, over 0.3: ")
    assert second.startswith(f"warning: {bad}: the training ended in its warm-up, after 2 epochs, ")
    (bad / "config.yaml").write_text("a: [")
    assert cli.main(["doubts", str(bad)]) == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="bad/config.yaml, line 1 is not readable YAML"):
        doubts.of_training(bad)


def test_hypotheses_that_are_all_empty_are_said():
    (line,) = doubts.of_hypotheses({"a": "", "b": " "}, "exp/m/decode_x/dev")
    assert line.startswith("exp/m/decode_x/dev: all 2 hypotheses are empty: ")
    assert doubts.of_hypotheses({"a": "", "b": "yes"}, "dev") == doubts.of_hypotheses({}, "dev") == []
