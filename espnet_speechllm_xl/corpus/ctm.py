"""Words with their times, and the CTM files that hold them.

A line is ``utterance channel start duration word [confidence [type [speaker]]]`` in seconds (NIST's sclite manual).
Type and speaker stand in NIST's evaluations of rich transcription; they are not read.
A CTM file cannot say that an utterance has no words, so such utterances are not in the dictionary.

Aligners write entries that are no words of the transcript: silences, and signs for unknown words.
:func:`spoken` finds the entries that stand for the words of a transcript.
"""

import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar

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
    """A word and when it was said."""

    text: str
    start: float  # seconds
    end: float  # seconds
    confidence: float | None = None  # 0 .. 1
    joined: bool = False  # no space stands before it, as in scripts that have none


WordTimes: TypeAlias = dict[str, list[Word]]  # by utterance
Key = TypeVar("Key", str, tuple[str, str])  # of words: an utterance, or (recording, channel)


def joined_text(words: Iterable[Word]) -> str:
    """Join words to their text."""
    return "".join(word.text if word.joined or not index else f" {word.text}" for index, word in enumerate(words))


class TimedText(Protocol):
    """A dataclass of a text with times: a :class:`Word`, or what a stream settled."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def text(self) -> str:
        """Return the text."""


Timed = TypeVar("Timed", bound=TimedText)


def parted(words: Iterable[Timed]) -> list[Timed]:
    """Split timed words of any segmentation into the words of tokenization.py; the parts of one share its times.

    Texts without spaces can then be compared, whether their words are letters, tokens, or entries of a dictionary.
    """
    return [replace(word, text=part) for word in words for part in words_of(word.text)]


def folded(text: str) -> str:
    """Return ``text`` for comparing, without differences of case and of Unicode composition."""
    return unicodedata.normalize("NFC", text.casefold())


# Kaldi, MFA, HTK and others write these, in any case.  Where the transcript has the same text, the entry is a word.
SILENCES = tuple(
    "<eps> <epsilon> SIL <SIL> [SIL] !SIL <silence> SP <SP> NSN <s> </s> !ENTER !EXIT <p:> <noise> [noise] [laughter] "
    "<breath> [breath]".split()
)

NO_CONFIDENCE = ("NA", "N/A", "-", "<NA>")  # in place of a number

UNKNOWN_WORDS = tuple("<UNK> [UNK] <OOV> [OOV] SPN <SPN> <SPOKEN_NOISE> [VOCALIZED-NOISE] <garbage>".split())


@dataclass(frozen=True)
class Spoken:
    """The entries of an utterance that stand for words of its transcript."""

    words: list[Word]
    passed_over: Counter[str] = field(default_factory=Counter)  # texts of the other entries, with their counts
    replaced: Counter[str] = field(default_factory=Counter)  # signs that became the words they stand for


def spoken(
    entries: Sequence[Word],
    words: Sequence[str],
    silences: Collection[str] = SILENCES,
    unknown: Collection[str] = UNKNOWN_WORDS,
) -> Spoken:
    """Find the entries of an utterance that stand for the words of its transcript.

    Entries and transcript are aligned.  Where they differ, silences are passed over.  A sign for an unknown word
    becomes the transcript's word if as many entries as words are left there; where the transcript has no word, it is
    passed over, too.  All other entries stay: the caller sees whether they are the transcript's words.

    Args:
        entries: of the aligner, in order.
        words: the transcript.
        silences: texts of entries that are no words, in any case.
        unknown: texts of entries that stand for unknown words, in any case.
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
    """Return the entries of ``timed`` for the ``words``, one each (:func:`spoken`); None when the words differ."""
    found = spoken(timed, words).words
    return found if [folded(word.text) for word in found] == [folded(word) for word in words] else None


def _number(value: str, name: str, where: str) -> float:
    try:
        return parse_seconds(value)  # a confidence lies within these limits, too
    except ValueError:
        limits = f"0 .. {LONGEST_SECONDS:.0f}"
        raise UserError(f"{where}: {name} '{value}' is not a number in {limits}: mend the line") from None


def _fields(line: str) -> list[str]:
    # Only blanks and tabs separate the fields: a word may hold other Unicode spaces (U+00A0).
    return re.split(r"[ \t]+", line.strip(" \t"))


class _Line(NamedTuple):
    utterance: str
    channel: str
    word: Word


def _parse_line(line: str, where: str) -> _Line:
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
    return _Line(fields[0], fields[1], Word(fields[4], start, round(start + duration, 6), confidence))


def _lines(path: str | PathLike) -> Iterator[tuple[str, str]]:
    for number, line in text_lines(path):
        if line.strip() and not line.startswith(";;"):
            yield f"{path}:{number}", line


def nist_lines(path: str | PathLike) -> Iterator[tuple[str, str]]:
    """Yield (``file:number``, line) of a CTM, STM or trn file; blank lines and ``;;`` comments are left out.

    Raises:
        NotText: a line is not UTF-8.
        FileNotFoundError: there is no such file.
    """
    for where, line in _lines(path):
        _refuse_bytes(line, where)
        yield where, line


def _refuse_bytes(line: str, where: str) -> None:
    if NOT_UTF8.search(line):
        raise NotText(f"{where}: bytes that are no UTF-8: {CONVERT}")


def read_ctm(path: str | PathLike) -> WordTimes:
    """Read a CTM file: the words of each utterance, in their order.  Blank lines and ``;;`` comments are left out.

    Raises:
        UserError: a line has a wrong number of fields, an unusable number, a control character, or a word that starts
            before the one above it in its utterance; the message names file and line.
        FileNotFoundError: there is no such file.
    """
    return _without_defects(*scan_ctm(path))


class Unordered(UserError):
    """Words of an utterance that are not in the order of their times."""


class NotText(UserError):
    """Bytes of a CTM file that are no UTF-8."""


class Defect(NamedTuple):
    """A line of a CTM file that :func:`read_ctm` refuses."""

    utterance: str  # of the line
    error: UserError  # says why


def read_ctm_channels(path: str | PathLike) -> dict[tuple[str, str], list[Word]]:
    """Read a CTM file as :func:`read_ctm` does, but by (recording, channel)."""
    return _without_defects(*_scan(path, lambda line: (line.utterance, line.channel)))


def scan_ctm(path: str | PathLike) -> tuple[WordTimes, list[Defect]]:
    """Read a CTM file leniently: the words that :func:`read_ctm` would return, and the defects of the lines.

    An :class:`Unordered` word stays in its utterance, in the file's order; lines with other defects are left out.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return _scan(path, lambda line: line.utterance)


def _without_defects(words: dict[Key, list[Word]], defects: list[Defect]) -> dict[Key, list[Word]]:
    if defects:
        raise defects[0].error
    return words


def _scan(path: str | PathLike, key_of: Callable[[_Line], Key]) -> tuple[dict[Key, list[Word]], list[Defect]]:
    utterances: dict[Key, list[Word]] = {}
    defects: list[Defect] = []
    for where, text in _lines(path):
        try:
            line = _parse_line(text, where)
        except UserError as error:
            defects.append(Defect(_fields(text)[0], error))
            continue
        utterance, word = line.utterance, line.word
        words = utterances.setdefault(key_of(line), [])
        if words and word.start < words[-1].start:
            what = f"'{word.text}' starts at {word.start} s, before '{words[-1].text}' ({words[-1].start} s)"
            advice = "sort the file (LC_ALL=C sort -s -k1,1 -k3,3n)"
            defects.append(Defect(utterance, Unordered(f"{where}: {utterance} {what}: {advice}")))
        words.append(word)
    return utterances, defects


def format_word(utterance: str, word: Word, channel: int | str = 1) -> str:
    """Format a word as a CTM line, without its end of line.

    Args:
        utterance: its id.
        word: times are written to 1 ms.
        channel: CTM counts channels from 1.

    Raises:
        UserError: the word is empty, holds a space or has impossible times.
    """
    if not word.text or re.search(r"[ \t\r\n]", word.text + utterance):
        raise UserError(f"{utterance}: '{word.text}' cannot stand in a CTM file: it is empty or holds a space")
    if not 0 <= word.start <= word.end < math.inf:
        raise UserError(f"{utterance}: '{word.text}' from {word.start} s to {word.end} s is no span of time")
    # Both ends are rounded to whole milliseconds and then subtracted, so that start + duration is the rounded end.
    start, end = round(word.start * 1000), round(word.end * 1000)
    line = f"{utterance} {channel} {start / 1000:.3f} {(end - start) / 1000:.3f} {word.text}"
    return line if word.confidence is None else f"{line} {word.confidence:.4f}"


def write_ctm(path: str | PathLike, words: Mapping[Key, Sequence[Word]]) -> None:
    """Write the words of utterances, or of pairs (recording, channel), as a CTM file in C order, whole or not at all.

    Raises:
        UserError: a word is empty, holds a space or has impossible times; the message names the utterance.
    """
    with atomic_write(path) as stream:
        for key in sorted(words):
            utterance, channel = (key, "1") if isinstance(key, str) else key
            stream.writelines(format_word(utterance, word, channel) + "\n" for word in words[key])
