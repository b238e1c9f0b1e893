"""Error rates, delays and speed, as numbers, which the reports of this room write down.

Error rates come from jiwer's Levenshtein alignment, where a substitution, a deletion and an insertion cost
1 each, so Err is the fewest errors possible.  sclite weighs them 4, 3, 3 and now and then counts one more.
Text is compared as it stands, in Unicode NFC; tags and case are taken away before, where asked to (scoring_inputs.py).
"""

import math
from dataclasses import dataclass, field

from espnet_speechllm_xl.corpus.ctm import matching, parted
from espnet_speechllm_xl.errors import UserError


@dataclass(frozen=True)
class Counts:
    """What an alignment of reference and hypothesis counted; counts add up with ``+``.

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
    def errors(self):
        """Substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    def __add__(self, other):
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def percent(self, count):
        """``count`` in percent of the reference's words: 0 of 0 is 0, anything else of 0 is infinite."""
        return percent(count, self.words)

    @property
    def error_rate(self):
        """Err in percent."""
        return self.percent(self.errors)

    def rates(self):
        """(Corr, Sub, Del, Ins, Err, S.Err) in percent, the columns of ESPnet's RESULTS.md."""
        counts = (self.correct, self.substitutions, self.deletions, self.insertions, self.errors)
        return (*(self.percent(count) for count in counts), percent(self.wrong_sentences, self.sentences))


def percent(count, total):
    """100 count / total; 0 of 0 is 0, anything else of 0 is infinite."""
    if total:
        return 100 * count / total
    return math.inf if count else 0.0


@dataclass(frozen=True)
class Scored:
    """One utterance, compared.

    ``pairs`` is the alignment: tuples (kind, reference symbol or None, hypothesis symbol or None) with kind
    ``C`` correct, ``S`` substitution, ``D`` deletion, ``I`` insertion.
    """

    reference: list
    hypothesis: list
    pairs: list
    counts: Counts


@dataclass(frozen=True)
class ScoredSet:
    """All utterances of a set, their sum, and the ids without a hypothesis (all of whose symbols are deletions)."""

    utterances: dict
    total: Counts
    missing: list = field(default_factory=list)


def words(text):
    """The words of a text: what stands between spaces (any Unicode space, as ESPnet splits)."""
    return text.split()


def characters(text):
    """The characters (code points) of a text; the space between two words is one ``<space>``."""
    return ["<space>" if symbol == " " else symbol for symbol in " ".join(words(text))]


UNITS = {"words": words, "characters": characters}  # that errors of whole sets are counted in


def check_speakers(utterances, speakers, title=""):
    """Raise UserError, with the ``title`` before it, for utterances that the mapping ``speakers`` lacks."""
    absent = sorted(set(utterances) - set(speakers))
    if absent:
        start = f"{title}: " if title else ""
        raise UserError(f"{start}utt2spk lacks {some_names(absent)} ({len(absent)} in all): add them")


_KINDS = {"equal": "C", "substitute": "S", "delete": "D", "insert": "I"}


def _pairs(reference, hypothesis, chunks):
    pairs = []
    for chunk in chunks:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        left, right = left or [None] * len(right), right or [None] * len(left)
        pairs += [(_KINDS[chunk.type], *pair) for pair in zip(left, right, strict=True)]
    return pairs


def _count(pairs):
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


def align_symbols(references, hypotheses):
    """Align lists of symbols with jiwer; both arguments are lists of lists of strings, either may be empty.

    Returns one list of pairs (see :class:`Scored`) for each.
    """
    import jiwer

    # The lists are symbols already: jiwer's transforms would strip and split them once more.
    output = jiwer.process_words(references, hypotheses, reference_transform=list, hypothesis_transform=list)
    return [_pairs(*triple) for triple in zip(output.references, output.hypotheses, output.alignments, strict=True)]


def score(references, hypotheses, what="hypotheses"):
    """Compare ``{utterance: [symbol, ...]}`` dictionaries; returns a :class:`ScoredSet`, sorted by utterance.

    A reference without a hypothesis counts as deletions only, and is listed in ``missing``.
    A hypothesis without a reference raises UserError naming it (``what`` says where it comes from).
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


def some_names(names, most=5):
    """The first names of a list, for a message."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class Delay:
    """Word ends against a reference (paper Table III), all in milliseconds; None without words.

    ``delay`` is the mean signed difference (negative: earlier than the reference), ``delta`` the mean absolute
    difference; ``median`` and ``p95`` (of the absolute difference) show what the means hide.
    """

    words: int
    delay: float | None = None
    delta: float | None = None
    median: float | None = None
    p95: float | None = None


def delay(differences):
    """:class:`Delay` of signed differences in seconds (alignment minus reference)."""
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

    ``final`` are the last words of utterances, ``non_final`` all others; ``matched`` lists the utterances they come
    from and ``unmatched`` names the reason of every other one.  matched + unmatched = all utterances of either side.
    """

    non_final: list
    final: list
    matched: list
    unmatched: dict


def end_differences(words_by_utterance, reference, left_out=None):
    """Compare the ends of words with a reference, both ``{utterance: [Word, ...]}`` (``ctm.py``).

    An utterance counts only when both sides hold the same words (but for case, and for silences of the reference).
    ``left_out`` maps utterances that the aligner gave up to its reason.  A word's end is the end of its last token.
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
    p99: float | None = None


def spread(values):
    """:class:`Spread` of a list of numbers, in their unit."""
    if not values:
        return Spread(0)
    import numpy as np

    return Spread(len(values), math.fsum(values) / len(values), *np.percentile(values, (50, 90, 99)).tolist())


def real_time_factor(seconds, audio_seconds):
    """Time spent / duration of the audio, both in seconds; None without audio."""
    return seconds / audio_seconds if audio_seconds > 0 else None
