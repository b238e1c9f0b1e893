"""Measure in rounds: every contestant once in each, so that a machine whose speed varies is the same for all."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Contestant(Protocol):
    """Something that can be measured again and again."""

    def measure(self) -> dict[str, list[float]]:
        """Do the work once; return quantities by name."""


@dataclass(frozen=True)
class Figure:
    """A quantity that was measured several times."""

    lower_quartile: float
    median: float
    samples: list[float]

    @staticmethod
    def of(samples: Sequence[float]) -> "Figure":
        """Return the figure of some samples, at least one."""
        return Figure(lower_quartile(samples), statistics.median(samples), list(samples))


Figures = dict[str, dict[str, Figure]]  # contestant: quantity: figure


def lower_quartile(values: Sequence[float]) -> float:
    """Return the sample below which a quarter of the others lie: other work on the machine only adds time."""
    return sorted(values)[(len(values) - 1) // 4]


def interleave(
    contestants: Mapping[str, Contestant], rounds: int, warm_up: int = 1, say: Callable[[str], None] = lambda _: None
) -> Figures:
    """Measure all contestants in turn (A B C A B C ...).

    Args:
        contestants: by name.
        rounds: that count.
        warm_up: rounds before them, which do not.
        say: is told each round.
    """
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    for number in range(-warm_up, rounds):
        say(f"round {number + 1} of {rounds}" if number >= 0 else "warm-up")
        for name, contestant in contestants.items():
            measured = contestant.measure()
            if number >= 0:
                for quantity, values in measured.items():
                    samples[name].setdefault(quantity, []).extend(values)
    return {
        name: {quantity: Figure.of(values) for quantity, values in quantities.items()}
        for name, quantities in samples.items()
    }
