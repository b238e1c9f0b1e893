"""What the parts of the GPU check share: their setting, and the report that they write as they go."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PartFailed(Exception):
    """A part could not do what it is for; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """What the parts are to measure, and where."""

    device: str  # "cuda" or "cpu"
    tiny: bool  # models of a few thousand weights: whether it runs, not how fast
    config: Path  # YAML of a training of the paper's size
    folder: Path  # for files; the parts share it

    @property
    def on_gpu(self) -> bool:
        """Tell whether the device is a GPU."""
        return self.device != "cpu"


class Report:
    """Takes the lines of one part, and hands them on at once, so that they outlive a part that is cut off.

    Args:
        send: takes ``(kind, text)``: "text" is a paragraph, "row" a row of a table, "figure" a name and a number,
            "failed" a check that did not hold, "progress" for the terminal only.
        seconds: how long the part may take.
    """

    def __init__(self, send: Callable[[tuple[str, Any]], None], seconds: float) -> None:
        self._send, self._end = send, time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Return how long the part may go on."""
        return self._end - time.monotonic()

    def say(self, text: str) -> None:
        """Show progress at the terminal."""
        self._send(("progress", text))

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._send(("text", text))

    def head(self, *cells: str) -> None:
        """Begin a table."""
        self._send(("text", _row(cells)))
        self._send(("row", "|" + "---|" * len(cells)))

    def row(self, *cells: object) -> None:
        """Add a row to the table that was begun."""
        self._send(("row", _row([str(cell) for cell in cells])))

    def figure(self, name: str, value: float) -> None:
        """Keep a figure for the summary."""
        self._send(("figure", (name, value)))

    def check(self, passed: bool, claim: str) -> None:
        """Add the outcome of a check; one that does not hold makes the part fail."""
        self._send(("text" if passed else "failed", f"{'holds' if passed else '**does not hold**'}: {claim}"))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
