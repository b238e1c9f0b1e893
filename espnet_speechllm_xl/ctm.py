"""Words with their times, and the CTM files that hold them.

A line is ``utterance channel start duration word [confidence]`` in seconds (NIST's sclite manual).
A CTM file cannot say that an utterance has no words: such utterances are not in the dictionary.
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

from .errors import UserError
from .io import CONVERT, NOT_UTF8, atomic_write, text_lines
from .timeline import LONGEST_SECONDS, parse_seconds


@dataclass(frozen=True)
class Word:
    """A word and when it was said; ``start`` and ``end`` in seconds, ``confidence`` in 0 .. 1 or None."""

    text: str
    start: float
    end: float
    confidence: float | None = None


def same_words(timed, words):
    """Whether a list of :class:`Word` has the texts ``words``, but for case and Unicode's ways to compose."""

    def folded(text):
        return unicodedata.normalize("NFC", text.casefold())

    return [folded(word.text) for word in timed] == [folded(word) for word in words]


def _number(value, name, where):
    try:
        return parse_seconds(value)  # a confidence lies within these limits, too
    except ValueError:
        limits = f"0 .. {LONGEST_SECONDS:.0f}"
        raise UserError(f"{where}: {name} '{value}' is not a number in {limits}: mend the line") from None


def _fields(line):
    # Only blanks and tabs part the fields: a word may hold other Unicode spaces (U+00A0).
    return re.split(r"[ \t]+", line.strip(" \t"))


def _parse_line(line, where):
    fields = _fields(line)
    if NOT_UTF8.search(line):
        raise NotText(f"{where}: bytes that are no UTF-8: {CONVERT}")
    if len(fields) not in (5, 6):
        raise UserError(
            f"{where}: {len(fields)} fields where a CTM line has 5 or 6 (utterance channel start duration word "
            "[confidence]): mend the line"
        )
    start = _number(fields[2], "start", where)
    duration = _number(fields[3], "duration", where)
    confidence = _number(fields[5], "confidence", where) if len(fields) == 6 else None
    # Whole microseconds: 0.1 + 0.2 shall end at 0.3.
    return fields[0], Word(fields[4], start, round(start + duration, 6), confidence)


def read_ctm(path):
    """Read a CTM file: dictionary from utterance to its list of :class:`Word`, times in seconds.

    Blank lines and ``;;`` comments are passed over.  Raises UserError naming file and line when a line has
    a wrong number of fields, an unusable number, or starts before the word above it in its utterance;
    FileNotFoundError when there is no such file.
    """
    utterances, defects = scan_ctm(path)
    if defects:
        raise defects[0].error
    return utterances


class Unordered(UserError):
    """Words of an utterance that are not in the order of their times."""


class NotText(UserError):
    """Bytes of a CTM file that are no UTF-8."""


class Defect(NamedTuple):
    """A line of a CTM file that :func:`read_ctm` refuses: the utterance that it is of, the error that says why."""

    utterance: str
    error: UserError


def scan_ctm(path: str | PathLike) -> tuple[dict, list[Defect]]:
    """Read a CTM file leniently: its utterances as :func:`read_ctm` gives them, and the defects of its lines.

    An :class:`Unordered` word is in its utterance, in the file's order; lines with other defects are left out.
    Raises FileNotFoundError.
    """
    utterances, defects = {}, []
    for number, line in text_lines(path):
        if not line.strip() or line.startswith(";;"):
            continue
        where = f"{path}:{number}"
        try:
            utterance, word = _parse_line(line, where)
        except UserError as error:
            defects.append(Defect(_fields(line)[0], error))
            continue
        words = utterances.setdefault(utterance, [])
        if words and word.start < words[-1].start:
            what = f"'{word.text}' starts at {word.start} s, before '{words[-1].text}' ({words[-1].start} s)"
            advice = "sort the file (LC_ALL=C sort -s -k1,1 -k3,3n)"
            defects.append(Defect(utterance, Unordered(f"{where}: {utterance} {what}: {advice}")))
        words.append(word)
    return utterances, defects


def format_word(utterance, word):
    """One CTM line, without its end of line; raises UserError as :func:`write_ctm`."""
    if not word.text or re.search(r"[ \t\r\n]", word.text) or re.search(r"\s", utterance):
        raise UserError(f"{utterance}: '{word.text}' cannot stand in a CTM file: it is empty or holds a space")
    if not 0 <= word.start <= word.end < math.inf:
        raise UserError(f"{utterance}: '{word.text}' from {word.start} s to {word.end} s is no span of time")
    # Both ends are rounded to whole milliseconds and then subtracted, so that start + duration is the rounded end.
    start, end = round(word.start * 1000), round(word.end * 1000)
    line = f"{utterance} 1 {start / 1000:.3f} {(end - start) / 1000:.3f} {word.text}"
    return line if word.confidence is None else f"{line} {word.confidence:.4f}"


def write_ctm(path, utterances):
    """Write ``{utterance: [Word, ...]}`` as a CTM file, sorted by utterance (C locale), times to 1 ms.

    Raises UserError naming the utterance when a word is empty, holds a space or has impossible times.
    """
    with atomic_write(path) as stream:
        for utterance in sorted(utterances):
            for word in utterances[utterance]:
                stream.write(format_word(utterance, word) + "\n")
