"""Learning rates over shares of a training: one schedule fits any amount of data and any number of epochs."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler

from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.training.rates import RATE_FACTOR


class LinearShares(AbsBatchStepScheduler):
    """Move the learning rate in straight lines between points, each at a share of all steps of the training.

    ``scheduler: linearshares`` with ``scheduler_conf: {shares: [0, 0.08, 1], rates: [0, 0.002, 0.00005]}`` warms up
    for 8 % of the steps and then falls to the end of ``max_epoch``.
    :class:`~espnet_speechllm_xl.training.trainer.Trainer` sets the number of steps by :meth:`begin`.

    Args:
        optimizer: its groups get the same learning rate, times their ``rate_factor`` where they have one (rates.py).
        shares: shares of the training, rising from 0 to 1.
        rates: learning rate at each share.

    Raises:
        ConfigError: the points make no schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shares: Sequence[float], rates: Sequence[float]) -> None:
        _check_points(shares, rates)
        self.optimizer, self.shares, self.rates = optimizer, shares, rates
        self.steps = 0  # done so far
        self.length = 0  # steps of the whole training; 0: not known yet
        self.length_before: int | None = None  # the length in the checkpoint of a resumed training

    def begin(self, length: int) -> None:
        """Set the number of steps of the whole training, including the steps of a loaded checkpoint."""
        self.length = max(1, length)
        self._set()

    @property
    def share(self) -> float:
        """Return how much of the schedule is done, 0 to 1."""
        return min(1.0, self.steps / self.length)

    def rate(self, steps: int, length: int | None = None) -> float:
        """Return the learning rate of the step after ``steps``, in a training of ``length`` steps (None: this one)."""
        return float(np.interp((steps + 1) / (length or self.length), self.shares, self.rates))

    def step(self, epoch: int | None = None) -> None:
        """Count a step of the optimizer and set the rate of the next."""
        self.steps += 1
        self._set()

    def state_dict(self) -> dict:
        """Return the state for a checkpoint."""
        return {"steps": self.steps, "length": self.length}

    def load_state_dict(self, state: dict) -> None:
        """Continue after the steps of a checkpoint; its length does not replace the one set by :meth:`begin`."""
        self.steps, self.length_before = state["steps"], state["length"]
        self._set()

    def change(self) -> str | None:
        """Describe in a line how a resumed schedule changed with the number of steps; return None if it did not."""
        before = self.length_before
        if not before or before == self.length:
            return None
        return (
            f"the schedule ends after {self.length} steps now, not {before}: after step {self.steps} the learning rate "
            f"is {self.rate(self.steps):.2g}, not {self.rate(self.steps, before):.2g}"
        )

    def _set(self) -> None:
        if self.length:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.steps) * group.get(RATE_FACTOR, 1.0)


def _check_points(shares: Sequence[float], rates: Sequence[float]) -> None:
    """Raise ConfigError unless the points make a schedule."""
    where = f"scheduler_conf shares {shares}, rates {rates}"
    if not isinstance(shares, (list, tuple)) or not isinstance(rates, (list, tuple)):
        raise ConfigError(f"{where}: give two lists")
    if len(shares) != len(rates) or len(shares) < 2:
        raise ConfigError(f"{where}: give as many rates as shares, two at least")
    if not all(isinstance(value, (int, float)) for value in (*shares, *rates)):
        raise ConfigError(f"{where}: give numbers, such as 0.002 or 2.0e-3 (to YAML 2e-3 is text)")
    if shares[0] != 0 or shares[-1] != 1 or not all(a < b for a, b in itertools.pairwise(shares)):
        raise ConfigError(f"{where}: shares rise from 0 to 1")
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise ConfigError(f"{where}: rates are finite and not negative")


SCHEDULERS = {"linearshares": LinearShares}
