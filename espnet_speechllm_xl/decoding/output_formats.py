"""Results written down: text, JSON, CTM, SRT and WebVTT of a recording; JSON and captions of a live stream."""

from __future__ import annotations

import html
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl.corpus.ctm import Word, format_word, joined_text

if TYPE_CHECKING:  # it imports torch
    from espnet_speechllm_xl.decoding.results import TextSegment, Transcript, Update

# Limits of a caption, as broadcasters have them.
COLUMNS = 42  # of a line; letters of full width (Han, Kana) take two
MOST_SECONDS = 7.0  # on the screen
PAUSE_SECONDS = 0.8  # between two words, where one caption ends and the next begins

Json = dict[str, Any]


class LiveResults:
    """Updates of a stream with endpoints to JSON objects; an object that says nothing new is left out."""

    def __init__(self) -> None:
        self._said: Json | None = None  # last about the segment that goes on

    def of(self, update: Update, seconds: float) -> list[Json]:
        """Return what an update changed: an object for each segment that ended, then one for the open segment.

        ``text``, ``tokens``, ``timestamps`` (seconds from ``start_time``), ``start_time``, ``segment`` and ``is_final``
        mean what they mean in sherpa-onnx; ``words`` have times from the start of the stream; ``time`` is the audio
        decoded so far.

        Args:
            update: of a stream that has endpoints.
            seconds: audio decoded so far.
        """
        assert update.segment is not None
        results = [_result(segment, "", True, seconds) for segment in update.segments]
        has_text = update.segment.words or update.partial
        if has_text or (self._said is not None and self._said["segment"] == update.segment.index):  # or taken back
            results.append(_result(update.segment, update.partial, False, seconds, update.joined))
        news = [result for result in results if not self._known(result)]
        self._said = results[-1] if results and not results[-1]["is_final"] else None
        return news

    def _known(self, result: Json) -> bool:
        return self._said is not None and {**result, "time": self._said["time"]} == self._said


def beside(settled: str, partial: str, joined: bool) -> str:
    """Return ``partial`` as it follows the settled text: behind a space, unless ``joined``."""
    return f" {partial}" if settled and partial and not joined else partial


def _result(segment: TextSegment, partial: str, final: bool, seconds: float, joined: bool = False) -> Json:
    start = segment.start
    # A word-start piece may have settled alone, long before its word.
    spoken = [
        (token, time) for token, time in zip(segment.tokens, segment.timestamps, strict=True) if time >= (start or 0)
    ]
    return {
        "text": segment.text + beside(segment.text, partial, joined),
        "settled": segment.text,
        "partial": partial,
        "tokens": [token for token, _ in spoken],
        "timestamps": [round(time - (start or 0), 3) for _, time in spoken],
        "start_time": start,
        "segment": segment.index,
        "is_final": final,
        "words": [word_dict(word) for word in segment.words],
        "confidence": segment.confidence,
        "time": seconds,
    }


def word_dict(word: Word) -> Json:
    """Return a word for JSON: times in seconds to 1 ms, confidence to 4 digits.

    ``joined`` is there, and true, where no space stands before the word.
    """
    return {
        "text": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": None if word.confidence is None else round(word.confidence, 4),
        **({"joined": True} if word.joined else {}),
    }


class Captions:
    """Words to captions of one track.

    Args:
        kind: "srt" or "vtt".

    Attributes:
        header: the text that comes first.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self._number = kind, 0
        self.header = "WEBVTT\n\n" if kind == "vtt" else ""

    def add(self, words: Iterable[Word]) -> str:
        """Return the text of the captions that show ``words``."""
        return "".join(self._caption(c[0].start, c[-1].end, "\n".join(lines_of(c))) for c in captions(words))

    def all(self, words: Iterable[Word]) -> str:
        """Return a whole file of captions."""
        return self.header + self.add(words)

    def _caption(self, start: float, end: float, text: str) -> str:
        if self.kind == "vtt":
            return f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n\n"
        self._number += 1
        return f"{self._number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"


def captions(words: Iterable[Word]) -> Iterator[list[Word]]:
    """Cut words into captions of two lines at most; yield the words of each.

    A caption ends at a pause.  A caption that would get too long ends at the longest gap in its second half.  A word
    that is too long by itself stands alone.
    """
    words, first = list(words), 0
    while first < len(words):
        after = first + 1
        while after < len(words) and _gap(words, after) < PAUSE_SECONDS and _fits(words[first : after + 1]):
            after += 1
        if after < len(words) and _gap(words, after) < PAUSE_SECONDS:
            after = max(range((first + after) // 2 + 1, after + 1), key=lambda place: (_gap(words, place), place))
        yield words[first:after]
        first = after


def _gap(words: Sequence[Word], index: int) -> float:
    """Return the seconds without a word before ``words[index]``, to 1 ms."""
    return round(words[index].start - words[index - 1].end, 3)


def _fits(words: Sequence[Word]) -> bool:
    _, columns = _second_line(words)
    return words[-1].end - words[0].start <= MOST_SECONDS and columns <= COLUMNS


def lines_of(words: Sequence[Word]) -> list[str]:
    """Write the words of a caption as one line, or two of about the same length."""
    second, _ = _second_line(words)
    return [joined_text(words[:second]), joined_text(words[second:])] if second else [joined_text(words)]


def _second_line(words: Sequence[Word]) -> tuple[int, int]:
    """Return where the second line begins (0: there is but one) and the columns of the longer line, the fewest."""
    wide = [_columns(word.text) for word in words]
    spaces = [int(index > 0 and not word.joined) for index, word in enumerate(words)]
    upto = [0, *itertools.accumulate(map(int.__add__, wide, spaces))]
    total = upto[-1]
    if total <= COLUMNS or len(words) == 1:
        return 0, total
    best = min(range(1, len(words)), key=lambda place: max(upto[place], total - upto[place] - spaces[place]))
    return best, max(upto[best], total - upto[best] - spaces[best])


def _columns(text: str) -> int:
    kinds = ((unicodedata.east_asian_width(each), unicodedata.category(each)) for each in text)
    return sum(0 if category in ("Mn", "Me") else 2 if width in ("W", "F") else 1 for width, category in kinds)


def _clock(seconds: float, separator: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{separator}{rest % 1000:03d}"


def _text(file: str, nbest: Sequence[Transcript], several: bool, channel: int | None) -> str:
    columns = [*([file] if several else []), *([] if channel is None else [str(channel)]), nbest[0].text]
    return "\t".join(columns) + "\n"


def _json(file: str, nbest: Sequence[Transcript], _several: bool, channel: int | None) -> str:
    result = {
        "file": file,
        **({} if channel is None else {"channel": channel}),
        "text": nbest[0].text,
        "score": nbest[0].score,
        "words": [word_dict(word) for word in nbest[0].words],
        "nbest": [{"text": one.text, "score": one.score} for one in nbest],
    }
    return json.dumps(result, ensure_ascii=False) + "\n"


def recording_id(file: str) -> str:
    """Return the name of a file's recording in a CTM."""
    return re.sub(r"\s", "_", Path(file).stem)


def _ctm(file: str, nbest: Sequence[Transcript], _several: bool, channel: int | None) -> str:
    name = recording_id(file)
    return "".join(format_word(name, word, (channel or 0) + 1) + "\n" for word in nbest[0].words)


def _srt(_file: str, nbest: Sequence[Transcript], _several: bool, _channel: int | None) -> str:
    return Captions("srt").all(nbest[0].words)


def _vtt(_file: str, nbest: Sequence[Transcript], _several: bool, _channel: int | None) -> str:
    return Captions("vtt").all(nbest[0].words)


# A format: (file name, n-best list, whether there are several files, channel or None) -> text
FORMATS: dict[str, Callable[[str, Sequence[Transcript], bool, int | None], str]] = {
    "text": _text,
    "json": _json,
    "ctm": _ctm,
    "srt": _srt,
    "vtt": _vtt,
}
TIMED = ("ctm", "srt", "vtt")  # formats of nothing but words with their times
