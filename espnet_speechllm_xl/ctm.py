"""Words with their times, and the CTM files that hold them.

A line is ``utterance channel start duration word [confidence]`` in seconds (NIST's sclite manual).
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
from pathlib import Path

from .errors import UserError
from .io import atomic_write


@dataclass(frozen=True)
class Word:
    """A word and when it was said; ``start`` and ``end`` in seconds, ``confidence`` in 0 .. 1 or None."""

    text: str
    start: float
    end: float
    confidence: float | None = None


def folded(text: str) -> str:
    """``text`` without regard to case and to Unicode's ways to compose, for comparing."""
    return unicodedata.normalize("NFC", text.casefold())


# Written by Kaldi, MFA, HTK and others, in any case; an entry that the transcript has in its place is a word.
SILENCES = tuple(
    "<eps> <epsilon> SIL <SIL> [SIL] !SIL <silence> SP <SP> NSN <s> </s> !ENTER !EXIT <p:> <noise> [noise] [laughter] "
    "<breath> [breath]".split()
)
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
    return fields[0], fields[1], Word(fields[4], start, round(start + duration, 6), confidence)


def nist_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (``file:number``, line) of a CTM, STM or trn file; blank lines and ``;;`` comments are passed over.

    Raises UserError when the file is not UTF-8, FileNotFoundError when there is none.
    """
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip() and not line.startswith(";;"):
                    yield f"{path}:{number}", line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text after line {number}: convert it (iconv -t UTF-8)") from error


def _read(path: str | Path, key_of: Callable[[str, str], object]) -> dict:
    utterances = {}
    for where, line in nist_lines(path):
        utterance, channel, word = _parse_line(line, where)
        words = utterances.setdefault(key_of(utterance, channel), [])
        if words and word.start < words[-1].start:
            raise UserError(
                f"{where}: {utterance} '{word.text}' starts at {word.start} s, before '{words[-1].text}' "
                f"({words[-1].start} s): sort the file (LC_ALL=C sort -s -k1,1 -k3,3n)"
            )
        words.append(word)
    return utterances


def read_ctm(path):
    """Read a CTM file: dictionary from utterance to its list of :class:`Word`, times in seconds.

    Blank lines and ``;;`` comments are passed over.  Raises UserError naming file and line when a line has
    a wrong number of fields, an unusable number, or starts before the word above it in its utterance;
    FileNotFoundError when there is no such file.
    """
    return _read(path, lambda utterance, _channel: utterance)


def read_ctm_channels(path: str | Path) -> dict[tuple[str, str], list[Word]]:
    """:func:`read_ctm` by (recording, channel)."""
    return _read(path, lambda recording, channel: (recording, channel))


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
