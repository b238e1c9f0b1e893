"""Words with their times, and the CTM files that hold them.

A line is ``utterance channel start duration word [confidence]`` in seconds (NIST's sclite manual).
A CTM file cannot say that an utterance has no words: such utterances are not in the dictionary.
"""

import math
import re
import unicodedata
from dataclasses import dataclass, replace

from .errors import UserError
from .io import atomic_write
from .text import words_of


@dataclass(frozen=True)
class Word:
    """A word and when it was said; ``start`` and ``end`` in seconds, ``confidence`` in 0 .. 1 or None."""

    text: str
    start: float
    end: float
    confidence: float | None = None
    joined: bool = False  # no space stands before it, as in scripts that have none


def joined_text(words) -> str:
    """Join words (list of :class:`Word`) to their text."""
    return "".join(word.text if word.joined or not index else f" {word.text}" for index, word in enumerate(words))


def parted(words) -> list:
    """Part timed words of any segmentation into those of text.py; the parts of one share its times.

    So texts without spaces can be compared whose words are letters, tokens, or those of a dictionary.
    """
    return [replace(word, text=part) for word in words for part in words_of(word.text)]


def same_words(timed, words):
    """Whether a list of :class:`Word` has the texts ``words``, but for case and Unicode's ways to compose."""

    def folded(text):
        return unicodedata.normalize("NFC", text.casefold())

    return [folded(word.text) for word in timed] == [folded(word) for word in words]


def _number(value, name, where):
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{where}: {name} '{value}' is not a number of at least 0: mend the line")
    return number


def _parse_line(line, where):
    # Only blanks and tabs part the fields: a word may hold other Unicode spaces (U+00A0).
    fields = re.split(r"[ \t]+", line.strip(" \t\r\n"))
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
    utterances = {}
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip() or line.startswith(";;"):
                    continue
                where = f"{path}:{number}"
                utterance, word = _parse_line(line, where)
                words = utterances.setdefault(utterance, [])
                if words and word.start < words[-1].start:
                    raise UserError(
                        f"{where}: {utterance} '{word.text}' starts at {word.start} s, before '{words[-1].text}' "
                        f"({words[-1].start} s): sort the file (LC_ALL=C sort -s -k1,1 -k3,3n)"
                    )
                words.append(word)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text after line {number}: convert it (iconv -t UTF-8)") from error
    return utterances


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
