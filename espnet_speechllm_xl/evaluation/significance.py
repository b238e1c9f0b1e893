"""Confidence intervals of word error rates, and of their differences, by the bootstrap.

A test set is a sample of what could have been said.  Its *blocks* are drawn anew with replacement, and the error rate
of every draw is the ratio of two sums, errors over reference words; 95 % of the draws lie in the interval.

    blocks       speakers, where a set has at least 20 (errors of a speaker go together: Liu et al., arXiv 1912.09508),
                 else utterances (Bisani and Ney, ICASSP 2004)
    difference   both systems are scored on the same draw, so what is hard for both cancels

The intervals are percentiles.  Simulated sets like the recipes' (20 or 100 speakers, 59 or 130 utterances, WER 5 to
8 %) have the true rate within 95 % intervals in 90 to 93 % of the cases, with BCa no more often; percentiles also
exist where BCa's do not, in a set without errors.  So read the borders as a little too narrow for 20 blocks.

The interval is about the choice of the test set alone.  How much the seed of a training matters is another question:
several trainings of one system are averaged utterance by utterance before, and their spread is shown beside.
"""

from dataclasses import dataclass

import numpy as np

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics

FEWEST_SPEAKERS = 20
FEWEST_BLOCKS = 20  # below, a bootstrap has little to draw from
DRAWS = 9999
CONFIDENCE = 0.95
SEED = 0


@dataclass(frozen=True)
class Blocks:
    """What a set's blocks counted; errors are means over trainings.

    ``errors`` and ``words`` are arrays (N,), in the order of ``names``, which are speakers or utterances (``unit``).
    """

    unit: str
    names: tuple
    errors: np.ndarray
    words: np.ndarray

    @property
    def rate(self):
        """Errors in percent of the reference's words."""
        return metrics.percent(self.errors.sum(), self.words.sum())

    def described(self, symbols="words"):
        """How much of what was scored: ``773 words in 130 utterances``."""
        few = f" (fewer than {FEWEST_BLOCKS}: do not rely on it)" if len(self.names) < FEWEST_BLOCKS else ""
        return f"{int(self.words.sum())} {symbols} in {len(self.names)} {self.unit}s{few}"


@dataclass(frozen=True)
class Interval:
    """A value in percent with its 95 % interval; ``low`` and ``high`` are None for fewer than two blocks."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self):
        """Whether all of the interval lies on one side of 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)

    def text(self, form="{:.1f}"):
        """``8.7 [6.4, 11.1]``, without brackets where there is no interval; ``form`` is of each number."""
        value = form.format(self.value)
        return value if self.low is None else f"{value} [{form.format(self.low)}, {form.format(self.high)}]"


def counted(references, hypotheses, speakers, unit, what):
    """Errors by utterance, as :func:`blocks` takes them.

    Args:
        references, hypotheses: ``{utterance: text}``.
        speakers: ``{utterance: speaker}``.
        unit: ``words`` or ``characters``, which are counted.
        what: the hypotheses, in errors.

    Returns:
        ``{utterance: [errors, symbols of the reference, speaker]}``, and the :class:`metrics.ScoredSet`, in which
        all symbols of utterances without hypothesis are deletions.

    Raises:
        UserError: an utterance lacks a speaker, or is not in the references.
    """
    metrics.check_speakers(references, speakers)
    sides = ({name: metrics.UNITS[unit](text) for name, text in side.items()} for side in (references, hypotheses))
    scored = metrics.score(*sides, what)
    rows = {name: [one.counts.errors, one.counts.words, speakers[name]] for name, one in scored.utterances.items()}
    return rows, scored


def blocks(trainings, by_speaker=True):
    """:class:`Blocks` of one set.

    Args:
        trainings: list of ``{utterance: (errors, words, speaker)}`` of the same references, one a training.
        by_speaker: False where an utterance has several speakers: blocks are utterances.

    Raises:
        UserError: the trainings were not scored on the same references.
    """
    first, *others = trainings
    for other in others:
        differing = [name for name in {*first, *other} if _reference(first, name) != _reference(other, name)]
        if differing:
            names = metrics.some_names(sorted(differing))
            raise UserError(f"trainings to be averaged have other references in {names}: decode them again")
    speakers = {speaker for _, _, speaker in first.values()} if by_speaker else ()
    unit = "speaker" if len(speakers) >= FEWEST_SPEAKERS else "utterance"
    sums = {}
    for name, (_, words, speaker) in first.items():
        block = sums.setdefault(speaker if unit == "speaker" else name, [0.0, 0])
        block[0] += sum(training[name][0] for training in trainings) / len(trainings)
        block[1] += words
    if not any(words for _, words in sums.values()):
        raise UserError("the references hold no words: there is nothing to compare")
    names = tuple(sorted(sums))
    errors, words = np.array([sums[name] for name in names], dtype=float).reshape(-1, 2).T
    return Blocks(unit, names, errors, words)


def regrouped(utterances, parts, between=0):
    """What joined recordings count when their utterances are recognised one by one.

    ``utterances``: ``{utterance: (errors, words, speaker)}``; ``parts``: ``{recording: [utterances]}``; ``between``:
    symbols between the texts of two utterances (characters: their blank), which are right.  Returns
    ``{recording: (errors, words, speaker of its first utterance)}``; raises UserError when an utterance is missing.
    """
    absent = sorted({name for names in parts.values() for name in names} - set(utterances))
    if absent:
        raise UserError(
            f"joined recordings hold {metrics.some_names(absent)}, which were not scored alone: decode them again"
        )
    found = {}
    for recording, names in parts.items():
        errors, words, speakers = zip(*(utterances[name] for name in names), strict=True)
        texts = sum(count > 0 for count in words)  # an empty one is joined without a blank
        found[recording] = sum(errors), sum(words) + between * max(0, texts - 1), speakers[0]
    return found


def _reference(utterances, name):
    return [*utterances[name]][1:] if name in utterances else None


def error_rate(item):
    """:class:`Interval` of the error rate of :class:`Blocks`."""
    return _bootstrap(item.rate, (item.errors, item.words), _rates)


def difference(item, reference, same_words=True):
    """:class:`Interval` of ``item``'s error rate minus ``reference``'s, both :class:`Blocks` of the same set.

    ``same_words``: whether both have the same reference words; not where these are chosen among alternatives.  Raises
    UserError when they are not of the same set.
    """
    if item.names != reference.names or same_words and not np.array_equal(item.words, reference.words):
        raise UserError("the two were not scored on the same references and speakers: score both on the same data")
    samples = (item.errors, item.words, reference.errors, reference.words)
    return _bootstrap(item.rate - reference.rate, samples, _rate_differences)


def _rates(errors, words, axis=-1):
    # A draw may hold no words at all where single utterances have none: it counts as one word.
    return 100 * errors.sum(axis) / np.maximum(words.sum(axis), 1)


def _rate_differences(errors, words, reference_errors, reference_words, axis=-1):
    return _rates(errors, words, axis) - _rates(reference_errors, reference_words, axis)


def _bootstrap(value, samples, statistic):
    if len(samples[0]) < 2:
        return Interval(value, None, None)
    from scipy.stats import bootstrap

    found = bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=DRAWS,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    # Means over trainings are not exact: what is 0 is to be seen as 0.
    return Interval(value, round(float(found.low), 9), round(float(found.high), 9))
