"""Results written down: text, JSON, CTM, SRT and WebVTT of a recording; JSON and captions of a live stream."""

import html
import json
import re
from pathlib import Path

from espnet_speechllm_xl.ctm import format_word


class LiveResults:
    """Updates of a stream with endpoints to JSON objects; what has not changed is not said again."""

    def __init__(self):
        self._said = None  # last about the segment that goes on

    def of(self, update, seconds):
        """What an :class:`~espnet_speechllm_xl.streaming.Update` changed; ``seconds`` of audio are decoded.

        One object for each segment that ended (``is_final``), then one for the open segment.  ``text``, ``tokens``,
        ``timestamps`` (seconds from ``start_time``), ``start_time``, ``segment`` and ``is_final`` mean what they mean
        in sherpa-onnx; ``words`` have times from the start of the stream; ``time`` is the audio decoded so far.
        """
        results = [_result(segment, "", True, seconds) for segment in update.segments]
        begun = update.segment.words or update.partial
        if begun or (self._said is not None and self._said["segment"] == update.segment.index):  # or taken back
            results.append(_result(update.segment, update.partial, False, seconds))
        news = [result for result in results if not self._known(result)]
        self._said = results[-1] if results and not results[-1]["is_final"] else None
        return news

    def _known(self, result):
        return self._said is not None and {**result, "time": self._said["time"]} == self._said


def _result(segment, partial, final, seconds):
    start = segment.start
    # A word-start piece may have settled alone, long before its word.
    spoken = [
        (token, time) for token, time in zip(segment.tokens, segment.timestamps, strict=True) if time >= (start or 0)
    ]
    return {
        "text": f"{segment.text} {partial}".strip(),
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
    """A :class:`~espnet_speechllm_xl.ctm.Word` for JSON: times in seconds to 1 ms, confidence to 4 digits."""
    return {
        "text": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": round(word.confidence, 4),
    }


class Captions:
    """Words to captions of one track, "srt" or "vtt"; ``header`` comes first."""

    def __init__(self, kind):
        self.kind, self._number = kind, 0
        self.header = "WEBVTT\n\n" if kind == "vtt" else ""

    def add(self, words):
        """The text of the captions that show ``words``."""
        return "".join(self._caption(*caption) for caption in captions(words))

    def all(self, words):
        """A whole file of captions."""
        return self.header + self.add(words)

    def _caption(self, start, end, text):
        if self.kind == "vtt":
            return f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n\n"
        self._number += 1
        return f"{self._number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"


def captions(words, most_seconds=5.0, most_words=10):
    """Words cut into captions: ``(start, end, text)``."""
    caption = []
    for word in words:
        if caption and (len(caption) == most_words or word.end - caption[0].start > most_seconds):
            yield caption[0].start, caption[-1].end, " ".join(each.text for each in caption)
            caption = []
        caption.append(word)
    if caption:
        yield caption[0].start, caption[-1].end, " ".join(each.text for each in caption)


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
