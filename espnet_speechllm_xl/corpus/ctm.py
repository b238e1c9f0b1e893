"""Words with their times, and the CTM files that hold them.

A line is ``utterance channel start duration word [confidence [type [speaker]]]`` in seconds (NIST's sclite manual; type
and speaker as in its evaluations of rich transcription, read past).
A CTM file cannot say that an utterance has no words: such utterances are not in the dictionary.

Aligners write entries that are no words of the transcript: silences, and signs for words that they do not know.
``spoken`` finds the entries that stand for the words of a transcript.
"""

import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import NamedTuple

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import (
    CONTROL_CHARACTER,
    CONVERT,
    NOT_UTF8,
    OF_ANOTHER_ENCODING,
    atomic_write,
    text_lines,
)
from espnet_speechllm_xl.timeline import LONGEST_SECONDS, parse_seconds
from espnet_speechllm_xl.tokenization import words_of


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
    """Part timed words of any segmentation into those of tokenization.py; the parts of one share its times.

    So texts without spaces can be compared whose words are letters, tokens, or those of a dictionary.
    """
    return [replace(word, text=part) for word in words for part in words_of(word.text)]


def folded(text: str) -> str:
    """``text`` without regard to case and to Unicode's ways to compose, for comparing."""
    return unicodedata.normalize("NFC", text.casefold())


# Written by Kaldi, MFA, HTK and others, in any case; an entry that the transcript has in its place is a word.
SILENCES = tuple(
    "<eps> <epsilon> SIL <SIL> [SIL] !SIL <silence> SP <SP> NSN <s> </s> !ENTER !EXIT <p:> <noise> [noise] [laughter] "
    "<breath> [breath]".split()
)

NO_CONFIDENCE = ("NA", "N/A", "-", "<NA>")  # in place of a number

UNKNOWN_WORDS = tuple("<UNK> [UNK] <OOV> [OOV] SPN <SPN> <SPOKEN_NOISE> [VOCALIZED-NOISE] <garbage>".split())


@dataclass(frozen=True)
class Spoken:
    """The entries that stand for words; the texts of those ``passed_over`` and ``replaced``, counted."""

    words: list[Word]
    passed_over: Counter = field(default_factory=Counter)
    replaced: Counter = field(default_factory=Counter)


def spoken(
    entries: Sequence[Word],
    words: Sequence[str],
    silences: Collection[str] = SILENCES,
    unknown: Collection[str] = UNKNOWN_WORDS,
) -> Spoken:
    """The entries of an utterance that stand for the words of its transcript, as :class:`Spoken`.

    Where entries and ``words`` differ, ``silences`` are passed over.  A sign for an ``unknown`` word becomes the word
    that it stands for when as many entries as words are left there; where no word is, it is passed over, too.  All
    else stays: whether the words are the transcript's is for the caller to see.
    """
    quiet, signs = ({folded(text) for text in texts} for texts in (silences, unknown))
    texts = [folded(entry.text) for entry in entries]
    found = Spoken([])
    matcher = difflib.SequenceMatcher(None, texts, [folded(word) for word in words], autojunk=False)
    for kind, first, last, begin, end in matcher.get_opcodes():
        missed = words[begin:end]
        dropped = set() if kind == "equal" else quiet if missed else quiet | signs
        kept = [index for index in range(first, last) if texts[index] not in dropped]
        found.passed_over.update(entries[index].text for index in range(first, last) if texts[index] in dropped)
        for position, index in enumerate(kept):
            entry = entries[index]
            if kind != "equal" and len(kept) == len(missed) and texts[index] in signs:
                found.replaced[entry.text] += 1
                entry = replace(entry, text=missed[position])
            found.words.append(entry)
    return found


def matching(timed: Sequence[Word], words: Sequence[str]) -> list[Word] | None:
    """The entries of ``timed`` for the ``words``, one each (:func:`spoken`); None when they are other words."""
    found = spoken(timed, words).words
    return found if [folded(word.text) for word in found] == [folded(word) for word in words] else None


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
    _refuse_bytes(line, where)
    if not 5 <= len(fields) <= 8:
        raise UserError(
            f"{where}: {len(fields)} fields where a CTM line has 5 or 6 (utterance channel start duration word "
            "[confidence], of some toolkits [type] and [speaker] behind it): mend the line"
        )
    if fields[2:4] == ["*", "*"]:
        raise UserError(f"{where}: alternatives ({fields[4]}) are not read: keep those of one")
    if controls := OF_ANOTHER_ENCODING.sub("", "".join(CONTROL_CHARACTER.findall(line))):  # texts lose theirs
        raise UserError(f"{where}: control character U+{ord(controls[0]):04X} within the line: mend the line")
    start = _number(fields[2], "start", where)
    duration = _number(fields[3], "duration", where)
    known = len(fields) > 5 and fields[5].upper() not in NO_CONFIDENCE
    confidence = _number(fields[5], "confidence", where) if known else None
    # Whole microseconds: 0.1 + 0.2 shall end at 0.3.
    return fields[0], fields[1], Word(fields[4], start, round(start + duration, 6), confidence)


def _lines(path: str | PathLike) -> Iterator[tuple[str, str]]:
    for number, line in text_lines(path):
        if line.strip() and not line.startswith(";;"):
            yield f"{path}:{number}", line


def nist_lines(path: str | PathLike) -> Iterator[tuple[str, str]]:
    """Yield (``file:number``, line) of a CTM, STM or trn file; blank lines and ``;;`` comments are passed over.

    Raises NotText when a line is not UTF-8, FileNotFoundError when there is no such file.
    """
    for where, line in _lines(path):
        _refuse_bytes(line, where)
        yield where, line


def _refuse_bytes(line, where):
    if NOT_UTF8.search(line):
        raise NotText(f"{where}: bytes that are no UTF-8: {CONVERT}")


def read_ctm(path):
    """Read a CTM file: dictionary from utterance to its list of :class:`Word`, times in seconds.

    Blank lines and ``;;`` comments are passed over.  Raises UserError naming file and line when a line has
    a wrong number of fields, an unusable number, a control character, or starts before the word above it in its
    utterance; FileNotFoundError when there is no such file.
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


def read_ctm_channels(path: str | PathLike) -> dict[tuple[str, str], list[Word]]:
    """:func:`read_ctm` by (recording, channel)."""
    utterances, defects = scan_ctm(path, lambda recording, channel: (recording, channel))
    if defects:
        raise defects[0].error
    return utterances


def _utterance(utterance, _channel):
    return utterance


def scan_ctm(path: str | PathLike, key_of: Callable[[str, str], object] = _utterance) -> tuple[dict, list[Defect]]:
    """Read a CTM file leniently: its utterances as :func:`read_ctm` gives them, and the defects of its lines.

    ``key_of`` makes a key of ``utterances`` from utterance and channel.
    An :class:`Unordered` word is in its utterance, in the file's order; lines with other defects are left out.
    Raises FileNotFoundError.
    """
    utterances, defects = {}, []
    for where, line in _lines(path):
        try:
            utterance, channel, word = _parse_line(line, where)
        except UserError as error:
            defects.append(Defect(_fields(line)[0], error))
            continue
        words = utterances.setdefault(key_of(utterance, channel), [])
        if words and word.start < words[-1].start:
            what = f"'{word.text}' starts at {word.start} s, before '{words[-1].text}' ({words[-1].start} s)"
            advice = "sort the file (LC_ALL=C sort -s -k1,1 -k3,3n)"
            defects.append(Defect(utterance, Unordered(f"{where}: {utterance} {what}: {advice}")))
        words.append(word)
    return utterances, defects


def format_word(utterance, word, channel=1):
    """One CTM line, without its end of line; raises UserError as :func:`write_ctm`.  CTM counts channels from 1."""
    if not word.text or re.search(r"[ \t\r\n]", word.text + utterance):
        raise UserError(f"{utterance}: '{word.text}' cannot stand in a CTM file: it is empty or holds a space")
    if not 0 <= word.start <= word.end < math.inf:
        raise UserError(f"{utterance}: '{word.text}' from {word.start} s to {word.end} s is no span of time")
    # Both ends are rounded to whole milliseconds and then subtracted, so that start + duration is the rounded end.
    start, end = round(word.start * 1000), round(word.end * 1000)
    line = f"{utterance} {channel} {start / 1000:.3f} {(end - start) / 1000:.3f} {word.text}"
    return line if word.confidence is None else f"{line} {word.confidence:.4f}"


def write_ctm(path, utterances):
    """Write ``{utterance: [Word, ...]}`` as a CTM file, sorted by utterance (C locale), times to 1 ms.

    An utterance may also be a pair, (recording, channel).  Raises UserError naming the utterance when a word is empty,
    holds a space or has impossible times.
    """
    with atomic_write(path) as stream:
        for key in sorted(utterances):
            utterance, channel = (key, 1) if isinstance(key, str) else key
            for word in utterances[key]:
                stream.write(format_word(utterance, word, channel) + "\n")
