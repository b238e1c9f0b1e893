import datetime
import io
import logging
import math

import pytest

from espnet_speechllm_xl.train_log import read_train_log, stopped_early, training_summary

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
