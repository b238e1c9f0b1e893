"""Epochs of a training, read from the logs of ESPnet's trainer."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# {epoch: {"train" or "valid": {figure: value}}}, times in seconds
Epochs = dict[int, dict[str, dict[str, float]]]

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "year": 31449600}
_TIMESPAN = re.compile(r"([\d.]+) (millisecond|second|minute|hour|day|week|year)s?")


def timespan_seconds(text: str) -> float | None:
    """Return the seconds of humanfriendly's ``1 hour, 2 minutes and 3.5 seconds``; None for another text."""
    parts = _TIMESPAN.findall(text)
    return sum(float(value) * _SECONDS.get(unit, 0.001) for value, unit in parts) if parts else None


def parse_epoch_line(line: str) -> tuple[int, dict[str, dict[str, float]]] | None:
    """Parse ESPnet's ``3epoch results: [train] loss=1.2, ..., time=5 minutes and 2.1 seconds, ..., [valid] ...``.

    Returns (epoch, ``{"train": {figure: value}, ...}``), times in seconds, or None for any other line.
    """
    found = re.search(r"(\d+)\s*epoch results:\s*(\[.*)", line)
    if not found:
        return None
    parts: dict[str, dict[str, float]] = {}
    for section, body in re.findall(r"\[(\w+)\]\s*(.*?)(?=,\s*\[\w+\]|$)", found[2]):
        values = parts.setdefault(section, {})
        # A time holds commas too: a value ends where the next ``key=`` begins.
        for key, value in re.findall(r"([\w.]+)=(.*?)(?=,\s*[\w.]+=|$)", body):
            number: float | None
            try:
                number = float(value)
            except ValueError:
                number = timespan_seconds(value)
            if number is not None:
                values[key] = number
    return int(found[1]), parts


def read_train_log(directory: str | Path) -> Epochs:
    """Read the results of all epochs from ``train.log`` and the older ``train.N.log`` of ESPnet's launcher.

    A run that starts again at epoch e replaces the results from e on of earlier logs.  Empty when there is no log.
    """
    epochs: Epochs = {}
    for line in _lines(directory):
        found = parse_epoch_line(line)
        if found:
            epoch, parts = found
            epochs = {number: values for number, values in epochs.items() if number < epoch}
            epochs[epoch] = parts
    return epochs


def stopped_early(directory: str | Path) -> bool:
    """Tell whether ``--patience`` ended the training in ``directory``, and it has not gone on since."""
    stopped = False
    for line in _lines(directory):
        stopped = "[Early stopping]" in line or (stopped and parse_epoch_line(line) is None)
    return stopped


def _lines(directory: str | Path) -> Iterator[str]:
    """Yield the lines of a training's logs, the oldest first."""

    def age(path: Path) -> int:
        number = re.fullmatch(r"train\.(\d+)\.log", path.name)
        return -int(number[1]) if number else 0

    logs = [path for path in Path(directory).glob("train*.log") if re.fullmatch(r"train(\.\d+)?\.log", path.name)]
    for path in sorted(logs, key=age):
        with open(path, encoding="utf-8", errors="replace") as stream:
            yield from stream


class TrainingSummary(NamedTuple):
    """A training in a table; ``best_epoch`` and its validation ``loss`` are None where no loss is finite."""

    epochs: int
    best_epoch: int | None
    loss: float | None
    seconds: float  # of training and validation


def training_summary(epochs: Epochs) -> TrainingSummary:
    """Summarise the log of a training."""
    losses = {epoch: parts.get("valid", {}).get("loss", math.nan) for epoch, parts in epochs.items()}
    finite = [(loss, epoch) for epoch, loss in losses.items() if math.isfinite(loss)]
    loss, best = min(finite) if finite else (None, None)
    seconds = sum(values.get("time", 0.0) for parts in epochs.values() for values in parts.values())
    return TrainingSummary(len(epochs), best, loss, seconds)


def ended_in_warmup(epochs: Epochs, config: Mapping[str, Any]) -> bool:
    """Tell whether the learning rate was still rising at the end of a training.

    The steps of the warm-up decide where the schedule counts them.  Else the mean rates of the epochs decide: at the
    end of a warm-up the last is the highest.

    Args:
        epochs: of the training.
        config: its ``config.yaml``.
    """
    if not epochs:
        return False
    train = [epochs[epoch].get("train", {}) for epoch in sorted(epochs)]
    warmup, batches = _warmup_steps(config.get("scheduler_conf") or {}), train[-1].get("total_count")
    if warmup is not None and batches is not None:
        return batches / (config.get("accum_grad") or 1) < warmup
    *before, last = (values.get("optim0_lr0", math.nan) for values in train)
    return bool(before) and all(rate < last for rate in before)


def _warmup_steps(conf: Mapping[str, Any]) -> float | None:
    """Return the steps up to the highest learning rate, as ESPnet's schedules name them; None where they do not."""
    steps, rates = conf.get("warmup_steps_list"), conf.get("warmup_lr_list")
    if steps and rates and len(steps) == len(rates):
        return steps[rates.index(max(rates))]
    return conf.get("warmup_steps")
