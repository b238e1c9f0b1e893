"""Error rates, delays and speed as numbers; the reports of this room write them down.

Error rates come from jiwer's Levenshtein alignment.  A substitution, a deletion and an insertion cost 1 each, so Err is
the fewest errors possible.  sclite weighs them 4, 3, 3 and now and then counts one more.
Text is compared as it stands, in Unicode NFC.  Where asked to, scoring_inputs.py takes tags and case away before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from espnet_speechllm_xl.corpus.ctm import Word, matching, parted
from espnet_speechllm_xl.errors import UserError

if TYPE_CHECKING:
    from jiwer import AlignmentChunk

# (kind, symbol of the reference or None, symbol of the hypothesis or None); kinds: C correct, S substituted, D deleted,
# I inserted
Pair = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Counts:
    """Counts of an alignment of reference and hypothesis; they add up with ``+``.

    ``words`` are the symbols of the reference (words, characters or tokens): correct + substitutions + deletions.
    """

    sentences: int = 0
    words: int = 0
    correct: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    wrong_sentences: int = 0

    @property
    def errors(self) -> int:
        """Return substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def percent(self, count: int) -> float:
        """Return ``count`` in percent of the reference's words: 0 of 0 is 0, anything else of 0 is infinite."""
        return percent(count, self.words)

    @property
    def error_rate(self) -> float:
        """Return Err in percent."""
        return self.percent(self.errors)

    def rates(self) -> tuple[float, ...]:
        """Return (Corr, Sub, Del, Ins, Err, S.Err) in percent, the columns of ESPnet's RESULTS.md."""
        counts = (self.correct, self.substitutions, self.deletions, self.insertions, self.errors)
        return (*(self.percent(count) for count in counts), percent(self.wrong_sentences, self.sentences))


def percent(count: float, total: float) -> float:
    """Return 100 count / total; 0 of 0 is 0, anything else of 0 is infinite."""
    if total:
        return 100 * count / total
    return math.inf if count else 0.0


@dataclass(frozen=True)
class Scored:
    """One utterance, compared; ``pairs`` is the alignment."""

    reference: list[str]
    hypothesis: list[str]
    pairs: list[Pair]
    counts: Counts


@dataclass(frozen=True)
class ScoredSet:
    """All utterances of a set, and their sum; all symbols of ``missing`` utterances (no hypothesis) are deletions."""

    utterances: dict[str, Scored]
    total: Counts
    missing: list[str] = field(default_factory=list)


def words(text: str) -> list[str]:
    """Split a text at its spaces (any Unicode space, as ESPnet splits)."""
    return text.split()


def characters(text: str) -> list[str]:
    """List the characters (code points) of a text; the space between two words is one ``<space>``."""
    return ["<space>" if symbol == " " else symbol for symbol in " ".join(words(text))]


# Units of the errors of whole sets.
UNITS: dict[str, Callable[[str], list[str]]] = {"words": words, "characters": characters}


def check_speakers(utterances: Iterable[str], speakers: Collection[str], title: str = "") -> None:
    """Raise UserError for utterances that have no speaker.

    Args:
        utterances: their ids.
        speakers: ids of all utterances that have a speaker.
        title: stands before the message.
    """
    absent = sorted(set(utterances) - set(speakers))
    if absent:
        start = f"{title}: " if title else ""
        raise UserError(f"{start}utt2spk lacks {some_names(absent)} ({len(absent)} in all): add them")


_KINDS = {"equal": "C", "substitute": "S", "delete": "D", "insert": "I"}


def _pairs(reference: list[str], hypothesis: list[str], spans: Iterable[AlignmentChunk]) -> list[Pair]:
    pairs: list[Pair] = []
    for span in spans:
        left = reference[span.ref_start_idx : span.ref_end_idx]
        right = hypothesis[span.hyp_start_idx : span.hyp_end_idx]
        nothing = [None] * max(len(left), len(right))
        pairs += [(_KINDS[span.type], *pair) for pair in zip(left or nothing, right or nothing, strict=True)]
    return pairs


def _count(pairs: Sequence[Pair]) -> Counts:
    kinds = [pair[0] for pair in pairs]
    correct, substitutions, deletions, insertions = (kinds.count(kind) for kind in "CSDI")
    return Counts(
        sentences=1,
        words=correct + substitutions + deletions,
        correct=correct,
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        wrong_sentences=int(correct < len(pairs)),
    )


def align_symbols(references: list[list[str]], hypotheses: list[list[str]]) -> list[list[Pair]]:
    """Align lists of symbols with jiwer, one pair of lists after the other; either may be empty."""
    import jiwer

    # jiwer's own transforms would strip and split the symbols once more; list() leaves them as they are.
    leave: Any = list
    output: Any = jiwer.process_words(
        cast(Any, references), cast(Any, hypotheses), reference_transform=leave, hypothesis_transform=leave
    )
    return [_pairs(*triple) for triple in zip(output.references, output.hypotheses, output.alignments, strict=True)]


def score(
    references: Mapping[str, Iterable[str]], hypotheses: Mapping[str, Iterable[str]], what: str = "hypotheses"
) -> ScoredSet:
    """Compare references and hypotheses, both ``{utterance: [symbol, ...]}``; sorted by utterance.

    A reference without a hypothesis counts as deletions only, and is listed in ``missing``.

    Args:
        references: of all utterances.
        hypotheses: of these utterances or fewer.
        what: name of the hypotheses in the message of an error.

    Raises:
        UserError: a hypothesis has no reference.
    """
    extra = sorted(set(hypotheses) - set(references))
    if extra:
        raise UserError(
            f"{what}: {some_names(extra)} not in the references ({len(extra)} in all): decode and score the same set"
        )
    names = sorted(references)
    left = [list(references[name]) for name in names]
    right = [list(hypotheses.get(name, [])) for name in names]
    utterances = {}
    total = Counts()
    for name, reference, hypothesis, pairs in zip(names, left, right, align_symbols(left, right), strict=True):
        counts = _count(pairs)
        utterances[name] = Scored(reference, hypothesis, pairs, counts)
        total += counts
    return ScoredSet(utterances, total, [name for name in names if name not in hypotheses])


def some_names(names: Sequence[object], most: int = 5) -> str:
    """Write the first ``most`` names of a list for a message, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class Delay:
    """Word ends against a reference (paper Table III), all in milliseconds; None without words.

    ``delay`` is the mean signed difference (negative: earlier than the reference), ``delta`` the mean absolute
    difference, ``median`` the median signed difference, ``p95`` the 95th percentile of the absolute differences.
    """

    words: int
    delay: float | None = None
    delta: float | None = None
    median: float | None = None
    p95: float | None = None


def delay(differences: Sequence[float]) -> Delay:
    """Return the :class:`Delay` of signed differences in seconds (alignment minus reference)."""
    if not differences:
        return Delay(0)
    # Sums over whole microseconds do not depend on the order of the words.
    micros = [round(1e6 * value) for value in differences]
    sizes = sorted(abs(value) for value in micros)
    ordered = sorted(micros)
    count = len(micros)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    # Nearest rank: the smallest value that at least 95 % of the values do not exceed.
    p95 = sizes[math.ceil(0.95 * count) - 1]
    return Delay(count, sum(micros) / count / 1000, sum(sizes) / count / 1000, middle / 1000, p95 / 1000)


@dataclass(frozen=True)
class EndDifferences:
    """Differences of word ends, alignment minus reference, in seconds.

    ``final`` are the last words of utterances, ``non_final`` all others.  ``matched`` lists the utterances they come
    from; ``unmatched`` names the reason of every other one.  matched + unmatched = all utterances of either side.
    """

    non_final: list[float]
    final: list[float]
    matched: list[str]
    unmatched: dict[str, str]


def end_differences(
    words_by_utterance: Mapping[str, Sequence[Word]],
    reference: Mapping[str, Sequence[Word]],
    left_out: Mapping[str, str] | None = None,
) -> EndDifferences:
    """Compare the ends of words with a reference.

    An utterance counts only when both sides hold the same words (but for case, and for silences of the reference).
    A word's end is the end of its last token.

    Args:
        words_by_utterance: of the alignment.
        reference: of any utterances.
        left_out: ``{utterance: reason}`` of utterances that the aligner gave up.
    """
    left_out = left_out or {}
    result = EndDifferences([], [], [], {})
    for utterance in sorted({*words_by_utterance, *reference, *left_out}):
        ours, theirs = (parted(side.get(utterance, ())) for side in (words_by_utterance, reference))
        if not ours:
            result.unmatched[utterance] = left_out.get(utterance, "not in the alignment")
        elif not theirs:
            result.unmatched[utterance] = "not in the reference"
        elif (matched := matching(theirs, [word.text for word in ours])) is None:
            result.unmatched[utterance] = "other words than the reference"
        else:
            result.matched.append(utterance)
            values = [our.end - their.end for our, their in zip(ours, matched, strict=True)]
            result.non_final.extend(values[:-1])
            result.final.append(values[-1])
    return result


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles (linear between ranks, as numpy's) of ``count`` values; None without values."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


def spread(values: Sequence[float]) -> Spread:
    """Return the :class:`Spread` of numbers, in their unit."""
    if not values:
        return Spread(0)
    import numpy as np

    return Spread(len(values), math.fsum(values) / len(values), *np.percentile(values, (50, 90, 95, 99)).tolist())


def real_time_factor(seconds: float, audio_seconds: float) -> float | None:
    """Return time spent / duration of the audio, both in seconds; None without audio."""
    return seconds / audio_seconds if audio_seconds > 0 else None


def rtfx(factor: float | None) -> float | None:
    """Return the RTFx of a real-time factor, the seconds of audio a second; None where there is none."""
    return 1 / factor if factor else None
