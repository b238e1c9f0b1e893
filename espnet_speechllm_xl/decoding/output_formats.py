"""Results written down: text, JSON, CTM, SRT and WebVTT of a recording; JSON and captions of a live stream."""

import html
import itertools
import json
import re
import unicodedata
from pathlib import Path

from espnet_speechllm_xl.corpus.ctm import format_word, joined_text

# Of a caption, as broadcasters have it.
COLUMNS = 42  # of a line; letters of full width (Han, Kana) take two
MOST_SECONDS = 7.0
PAUSE_SECONDS = 0.8  # between two words, where one caption ends and the next begins


class LiveResults:
    """Updates of a stream with endpoints to JSON objects; what has not changed is not said again."""

    def __init__(self):
        self._said = None  # last about the segment that goes on

    def of(self, update, seconds):
        """What an :class:`~espnet_speechllm_xl.decoding.results.Update` changed; ``seconds`` of audio are decoded.

        One object for each segment that ended (``is_final``), then one for the open segment.  ``text``, ``tokens``,
        ``timestamps`` (seconds from ``start_time``), ``start_time``, ``segment`` and ``is_final`` mean what they mean
        in sherpa-onnx; ``words`` have times from the start of the stream; ``time`` is the audio decoded so far.
        """
        results = [_result(segment, "", True, seconds) for segment in update.segments]
        begun = update.segment.words or update.partial
        if begun or (self._said is not None and self._said["segment"] == update.segment.index):  # or taken back
            results.append(_result(update.segment, update.partial, False, seconds, update.joined))
        news = [result for result in results if not self._known(result)]
        self._said = results[-1] if results and not results[-1]["is_final"] else None
        return news

    def _known(self, result):
        return self._said is not None and {**result, "time": self._said["time"]} == self._said


def beside(settled: str, partial: str, joined: bool) -> str:
    """Give ``partial`` with the space before it, if there is one, that parts it from the settled text."""
    return f" {partial}" if settled and partial and not joined else partial


def _result(segment, partial, final, seconds, joined=False):
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


def word_dict(word):
    """A :class:`~espnet_speechllm_xl.corpus.ctm.Word` for JSON: times in seconds to 1 ms, confidence to 4 digits.

    ``joined`` is there, and true, where no space stands before the word.
    """
    return {
        "text": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": round(word.confidence, 4),
        **({"joined": True} if word.joined else {}),
    }


class Captions:
    """Words to captions of one track, "srt" or "vtt"; ``header`` comes first."""

    def __init__(self, kind):
        self.kind, self._number = kind, 0
        self.header = "WEBVTT\n\n" if kind == "vtt" else ""

    def add(self, words):
        """The text of the captions that show ``words``."""
        return "".join(self._caption(c[0].start, c[-1].end, "\n".join(lines_of(c))) for c in captions(words))

    def all(self, words):
        """A whole file of captions."""
        return self.header + self.add(words)

    def _caption(self, start, end, text):
        if self.kind == "vtt":
            return f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n\n"
        self._number += 1
        return f"{self._number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"


def captions(words):
    """Cut words into captions of two lines at most; yields the words of each.

    A caption ends at a pause.  One that would get too long ends at the longest gap in its second half.  What is too
    long by itself, a single word, stands alone.
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


def _gap(words, index):
    """Seconds without a word before ``words[index]``, to 1 ms."""
    return round(words[index].start - words[index - 1].end, 3)


def _fits(words):
    _, columns = _second_line(words)
    return words[-1].end - words[0].start <= MOST_SECONDS and columns <= COLUMNS


def lines_of(words):
    """Write the words of a caption as one line, or two of about the same length."""
    second, _ = _second_line(words)
    return [joined_text(words[:second]), joined_text(words[second:])] if second else [joined_text(words)]


def _second_line(words):
    """Where the second line begins (0: there is but one), and the columns of the longer line: as few as can be."""
    wide = [_columns(word.text) for word in words]
    spaces = [int(index > 0 and not word.joined) for index, word in enumerate(words)]
    upto = [0, *itertools.accumulate(map(int.__add__, wide, spaces))]
    total = upto[-1]
    if total <= COLUMNS or len(words) == 1:
        return 0, total
    best = min(range(1, len(words)), key=lambda place: max(upto[place], total - upto[place] - spaces[place]))
    return best, max(upto[best], total - upto[best] - spaces[best])


def _columns(text):
    kinds = ((unicodedata.east_asian_width(each), unicodedata.category(each)) for each in text)
    return sum(0 if category in ("Mn", "Me") else 2 if width in ("W", "F") else 1 for width, category in kinds)


def _clock(seconds, separator):
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{separator}{rest % 1000:03d}"


def _text(file, nbest, several, channel):
    columns = [*([file] if several else []), *([] if channel is None else [str(channel)]), nbest[0].text]
    return "\t".join(columns) + "\n"


def _json(file, nbest, _several, channel):
    result = {
        "file": file,
        **({} if channel is None else {"channel": channel}),
        "text": nbest[0].text,
        "score": nbest[0].score,
        "words": [word_dict(word) for word in nbest[0].words],
        "nbest": [{"text": one.text, "score": one.score} for one in nbest],
    }
    return json.dumps(result, ensure_ascii=False) + "\n"


def recording_id(file):
    """The name of a file's recording in a CTM."""
    return re.sub(r"\s", "_", Path(file).stem)


def _ctm(file, nbest, _several, channel):
    name = recording_id(file)
    return "".join(format_word(name, word, (channel or 0) + 1) + "\n" for word in nbest[0].words)


def _srt(_file, nbest, _several, _channel):
    return Captions("srt").all(nbest[0].words)


def _vtt(_file, nbest, _several, _channel):
    return Captions("vtt").all(nbest[0].words)


# Each: (file name, n-best list of Transcript, whether there are several files, channel or None) -> text
FORMATS = {"text": _text, "json": _json, "ctm": _ctm, "srt": _srt, "vtt": _vtt}
TIMED = ("ctm", "srt", "vtt")  # of words only, with their times
