r"""Punctuation and capitals: how many are right, by precision, recall and F1.

The words of reference and hypothesis are aligned as for the WER, but without regard to punctuation and case.

Punctuation.  A mark is a character of Unicode's punctuation (P) at the begin or the end of a word.  ``"Well, done!"``
has four.  A mark within a word (``3.5``, ``twenty-one``) is a part of the word.  So are apostrophes, single quotation
marks and the signs ``% & # @ * / \ _ [ ] { }``, and all of a word in brackets (``(laughs)``, ``<noise>``).  A mark that
stands alone belongs to the word before it, at the begin of a text to the word after it.  A mark of the hypothesis is
a *hit* when the aligned word of the reference has it on the same side, too; else it is *false*.  Marks of the reference
without a hit are *missed*, so are all of deleted words; all of inserted words are false.

Capitals.  Of two aligned words that are equal but for case and punctuation: a hit when both have capitals and are
spelt alike; a capitalised word is missed when the hypothesis spells it otherwise, and false when the reference does.
Words that were not recognised do not count.

precision = hits / (hits + false), recall = hits / (hits + missed), F1 = 2 hits / (2 hits + false + missed).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from espnet_speechllm_xl.corpus.ctm import folded
from espnet_speechllm_xl.corpus.kaldi import joined
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.tokenization import words_of

if TYPE_CHECKING:  # it imports numpy
    from espnet_speechllm_xl.evaluation import significance

IN_WORDS = frozenset("'\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}%&#@*/\\_[]{}")
TAG = re.compile(r"<.+>|\[.+\]|\(.+\)|\{.+\}")
ALL_MARKS, CAPITALS = "all marks", "capitals"
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Hits:
    """Counts of hits, false and missed ones; they add up with ``+``."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    def __add__(self, other: "Hits") -> "Hits":
        return Hits(self.hits + other.hits, self.false + other.false, self.missed + other.missed)

    @property
    def precision(self) -> float | None:
        """Return the share of the hypothesis' ones that are right, in percent; None without any."""
        found = self.hits + self.false
        return 100 * self.hits / found if found else None

    @property
    def recall(self) -> float | None:
        """Return the share of the reference's ones that were found, in percent; None without any."""
        wanted = self.hits + self.missed
        return 100 * self.hits / wanted if wanted else None


@dataclass(frozen=True)
class WrittenWord:
    """A word with its marks: ``(side, mark)`` and how often."""

    text: str
    marks: Counter[tuple[str, str]]


@dataclass(frozen=True)
class MarkRow:
    """A row of the report: a mark, or all of them, or capitals, with its counts and the interval of F1 in percent."""

    name: str
    total: Hits
    f1: "significance.Interval"


def is_mark(character: str) -> bool:
    """Tell whether a character is punctuation, see the module's text."""
    return unicodedata.category(character).startswith("P") and character not in IN_WORDS


def written_words(text: str) -> list[WrittenWord]:
    """Return the words of a text without their marks; in a script without spaces each letter is a word."""
    words: list[WrittenWord] = []
    waiting: list[str] = []  # marks at the begin of the text
    for written in words_of(text):
        core = written
        if not TAG.fullmatch(written):
            while core and is_mark(core[0]):
                core = core[1:]
            while core and is_mark(core[-1]):
                core = core[:-1]
        if not core and not words:
            waiting += written
        elif not core:
            words[-1].marks.update((AFTER, mark) for mark in written)
        else:
            begin = written.index(core)
            marks = Counter((BEFORE, mark) for mark in [*waiting, *written[:begin]])
            marks.update((AFTER, mark) for mark in written[begin + len(core) :])
            words.append(WrittenWord(core, marks))
            waiting = []
    return words


def count_written(
    reference: Sequence[WrittenWord], pairs: Iterable[metrics.Pair], hypothesis: Sequence[WrittenWord]
) -> dict[str, Hits]:
    """Count the hits of one utterance: of each mark, and of :data:`CAPITALS`.

    Args:
        reference: its words.
        pairs: the alignment of both, in which each word stands once, in order.
        hypothesis: the words of the hypothesis.
    """
    found: Counter[tuple[str, str]] = Counter()  # (name, "hits", "false" or "missed")
    ours, theirs = iter(hypothesis), iter(reference)
    nothing = WrittenWord("", Counter())
    for kind, _, _ in pairs:
        wanted = nothing if kind == "I" else next(theirs)
        given = nothing if kind == "D" else next(ours)
        both = wanted.marks & given.marks
        for what, marks in (("hits", both), ("false", given.marks - both), ("missed", wanted.marks - both)):
            for (_, mark), count in marks.items():
                found[mark, what] += count
        if kind == "C":
            same = wanted.text == given.text
            if _has_capital(given.text):
                found[CAPITALS, "hits" if same else "false"] += 1
            if _has_capital(wanted.text) and not same:
                found[CAPITALS, "missed"] += 1
    names = {name for name, _ in found}
    return {name: Hits(*(found[name, what] for what in ("hits", "false", "missed"))) for name in names}


def _has_capital(text: str) -> bool:
    return text != text.lower()


def mark_rows(
    references: Mapping[str, str], hypotheses: Mapping[str, str], speakers: Mapping[str, str], set_name: str = ""
) -> list[MarkRow]:
    """Return the rows of a set: each mark, all marks, capitals; only what its references are written with.

    References without any punctuation give no rows of marks.  References in one case give no row of capitals.

    Args:
        references: ``{utterance: text}``.
        hypotheses: ``{utterance: text}``, of these utterances or fewer.
        speakers: ``{utterance: speaker}``.
        set_name: name of the set; an utterance of a joined one (``test_10x``) may have several speakers.
    """
    left = {name: written_words(text) for name, text in references.items()}
    right = {name: written_words(hypotheses.get(name, "")) for name in references}
    with_marks = any(word.marks for words in left.values() for word in words)
    with_case = _has_capital("".join(references.values())) and any(text != text.upper() for text in references.values())
    if not (with_marks or with_case):
        return []
    plain = [
        {name: [folded(word.text) for word in words] for name, words in side.items()} for side in (left, right)
    ]
    scored = metrics.score(plain[0], plain[1]).utterances
    counts = {name: count_written(left[name], item.pairs, right[name]) for name, item in scored.items()}
    marks = {mark for found in counts.values() for mark in found} - {CAPITALS}
    for found in counts.values():
        found[ALL_MARKS] = sum((found[mark] for mark in marks & found.keys()), Hits())
    columns = {
        name: [found.get(name, Hits()) for found in counts.values()] for name in (*marks, ALL_MARKS, CAPITALS)
    }
    totals = {name: sum(column, Hits()) for name, column in columns.items()}
    frequent = sorted(marks, key=lambda mark: (-totals[mark].hits - totals[mark].missed, mark))
    names = [*([*frequent, ALL_MARKS] if with_marks else []), *([CAPITALS] if with_case else [])]
    own = [speakers[name] for name in counts]
    return [MarkRow(name, totals[name], _f1(columns[name], own, joined(set_name) is None)) for name in names]


def _f1(counts: Sequence[Hits], speakers: Sequence[str], by_speaker: bool) -> "significance.Interval":
    """Return F1 in percent with its interval: 100 - F1 is a ratio of sums, as an error rate is.

    Utterances without anything to count are left out, so that no draw is without any.

    Args:
        counts: of each utterance.
        speakers: of each utterance.
        by_speaker: False where an utterance has several speakers.
    """
    from espnet_speechllm_xl.evaluation import significance  # imports numpy

    rows: dict[str, significance.Counted] = {
        str(index): (item.false + item.missed, 2 * item.hits + item.false + item.missed, speaker)
        for index, (item, speaker) in enumerate(zip(counts, speakers, strict=True))
        if item != Hits()
    }
    if not rows:
        return significance.Interval(100.0, None, None)
    found = significance.error_rate(significance.blocks([rows], by_speaker))
    low, high = (None if bound is None else 100 - bound for bound in (found.high, found.low))
    return significance.Interval(100 - found.value, low, high)
