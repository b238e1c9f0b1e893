"""The output of a live stream on standard output: text, JSON lines, subtitles, or the open segment of a terminal."""

import abc
import json
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from espnet_speechllm_xl.decoding.output_formats import Captions, LiveResults, beside

if TYPE_CHECKING:
    from espnet_speechllm_xl.decoding.results import TextSegment, Update


class LiveWriter(AbstractContextManager, abc.ABC):
    """Writes the updates of a stream."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Leave the output as it is."""

    @abc.abstractmethod
    def write(self, update: "Update", seconds: float) -> None:
        """Write the changes of an update; ``seconds`` of audio are decoded."""


class SegmentWriter(LiveWriter):
    """Writes each segment when it has ended."""

    def write(self, update: "Update", seconds: float) -> None:
        """Write the segments that have ended."""
        for segment in update.segments:
            self._write_segment(segment)

    @abc.abstractmethod
    def _write_segment(self, segment: "TextSegment") -> None:
        """Write a segment that has ended."""


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class TextWriter(SegmentWriter):
    """A line for each segment."""

    def _write_segment(self, segment: "TextSegment") -> None:
        _print(f"{segment.text}\n")


class JsonWriter(LiveWriter):
    """A JSON object a line, whenever something changed."""

    def __init__(self) -> None:
        self._results = LiveResults()

    def write(self, update: "Update", seconds: float) -> None:
        """Write an object for each result of the update, of open segments too."""
        for result in self._results.of(update, seconds):
            _print(json.dumps(result, ensure_ascii=False) + "\n")


class CaptionWriter(SegmentWriter):
    """Subtitles of a segment when it ends; ``kind`` is "srt" or "vtt"."""

    def __init__(self, kind: str) -> None:
        self._captions = Captions(kind)
        _print(self._captions.header)

    def _write_segment(self, segment: "TextSegment") -> None:
        _print(self._captions.add(segment.words))


class TerminalWriter(SegmentWriter):
    """The open segment in place, settled text solid and partial text dim; ended ones above it.

    Where standard output is no terminal: a line for each segment.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._shown: Text | None = None
        self._live = Live(console=Console(highlight=False), auto_refresh=False, transient=True)

    def __enter__(self) -> "TerminalWriter":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        self._live.stop()

    def write(self, update: "Update", seconds: float) -> None:
        """Show ended segments for good, and the open one in place."""
        super().write(update, seconds)
        if update.segment is None:
            return
        shown = self._text(update.segment.text)
        shown.append(beside(update.segment.text, update.partial, update.joined), style="dim italic")
        if shown != self._shown and self._live.console.is_terminal:
            self._live.update(shown, refresh=True)
            self._shown = shown

    def _write_segment(self, segment: "TextSegment") -> None:
        self._live.console.print(self._text(segment.text), soft_wrap=True)


WRITERS: dict[str, Callable[[], LiveWriter]] = {
    "terminal": TerminalWriter,
    "text": TextWriter,
    "json": JsonWriter,
    "srt": lambda: CaptionWriter("srt"),
    "vtt": lambda: CaptionWriter("vtt"),
}
