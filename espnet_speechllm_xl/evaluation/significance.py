"""Confidence intervals of word error rates, and of their differences, by the bootstrap.

A test set is a sample of all possible speech.  Its *blocks* are drawn anew with replacement.  The error rate of a draw
is the ratio of two sums, errors over reference words; 95 % of the draws lie in the interval.

    blocks       speakers, where a set has at least 20 (errors of a speaker go together: Liu et al., arXiv 1912.09508),
                 else utterances (Bisani and Ney, ICASSP 2004)
    difference   both systems are scored on the same draw, so utterances that are hard for both cancel

The intervals are percentiles.  Simulated sets like the recipes' (20 or 100 speakers, 59 or 130 utterances, WER 5 to
8 %) have the true rate within 95 % intervals in 90 to 93 % of the cases; BCa is no better, and does not exist for a set
without errors.  So read the borders as a little too narrow for 20 blocks.

The interval is about the choice of the test set alone.  The seed of a training is another question: several trainings
of one system are averaged utterance by utterance before, and the rate of each is shown beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics

FEWEST_SPEAKERS = 20
FEWEST_BLOCKS = 20  # below, a bootstrap has little to draw from
DRAWS = 9999
CONFIDENCE = 0.95
SEED = 0

Array = npt.NDArray[np.float64]
# Errors of an utterance: errors, symbols of the reference, speaker (in this order, as a JSON file has them too).
Counted = Sequence[Any]


@dataclass(frozen=True)
class Blocks:
    """Errors and words of a set's blocks; errors are means over trainings.

    ``errors`` and ``words`` are arrays (N,), in the order of ``names``, which are speakers or utterances (``unit``).
    """

    unit: str
    names: tuple[str, ...]
    errors: Array
    words: Array

    @property
    def rate(self) -> float:
        """Return the errors in percent of the reference's words."""
        return metrics.percent(self.errors.sum(), self.words.sum())

    def described(self, symbols: str = "words") -> str:
        """Say how large the set is: ``773 words in 130 utterances``."""
        few = f" (fewer than {FEWEST_BLOCKS}: do not rely on it)" if len(self.names) < FEWEST_BLOCKS else ""
        return f"{int(self.words.sum())} {symbols} in {len(self.names)} {self.unit}s{few}"


@dataclass(frozen=True)
class Interval:
    """A value in percent with its 95 % interval; ``low`` and ``high`` are None for fewer than two blocks."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Tell whether all of the interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def text(self, form: str = "{:.1f}") -> str:
        """Write ``8.7 [6.4, 11.1]``, each number by ``form``; without brackets where there is no interval."""
        value = form.format(self.value)
        return value if self.low is None else f"{value} [{form.format(self.low)}, {form.format(self.high)}]"


def counted(
    references: Mapping[str, str], hypotheses: Mapping[str, str], speakers: Mapping[str, str], unit: str, what: str
) -> tuple[dict[str, Counted], metrics.ScoredSet]:
    """Count the errors of each utterance, for :func:`blocks`.

    Args:
        references: ``{utterance: text}``.
        hypotheses: ``{utterance: text}``, of these utterances or fewer.
        speakers: ``{utterance: speaker}``.
        unit: ``words`` or ``characters``, which are counted.
        what: name of the hypotheses in the message of an error.

    Returns:
        ``{utterance: [errors, symbols of the reference, speaker]}``, and the :class:`metrics.ScoredSet`, in which
        all symbols of utterances without hypothesis are deletions.

    Raises:
        UserError: an utterance lacks a speaker, or is not in the references.
    """
    metrics.check_speakers(references, speakers)
    split = metrics.UNITS[unit]
    left, right = ({name: split(text) for name, text in side.items()} for side in (references, hypotheses))
    scored = metrics.score(left, right, what)
    rows: dict[str, Counted] = {
        name: [one.counts.errors, one.counts.words, speakers[name]] for name, one in scored.utterances.items()
    }
    return rows, scored


def blocks(trainings: Sequence[Mapping[str, Counted]], by_speaker: bool = True) -> Blocks:
    """Sum the errors of one set by block, averaged over trainings.

    Args:
        trainings: of each training ``{utterance: (errors, words, speaker)}``, all of the same references.
        by_speaker: False where an utterance has several speakers: blocks are utterances.

    Raises:
        UserError: the trainings were not scored on the same references.
    """
    first, *others = trainings
    for other in others:
        differing = [name for name in {*first, *other} if _reference(first, name) != _reference(other, name)]
        if differing:
            few = metrics.some_names(sorted(differing))
            raise UserError(f"trainings to be averaged have other references in {few}: decode them again")
    speakers = {speaker for _, _, speaker in first.values()} if by_speaker else ()
    unit = "speaker" if len(speakers) >= FEWEST_SPEAKERS else "utterance"
    sums: dict[str, list[float]] = {}
    for name, (_, words, speaker) in first.items():
        block = sums.setdefault(speaker if unit == "speaker" else name, [0.0, 0.0])
        block[0] += sum(training[name][0] for training in trainings) / len(trainings)
        block[1] += words
    if not any(words for _, words in sums.values()):
        raise UserError("the references hold no words: there is nothing to compare")
    names = tuple(sorted(sums))
    errors, words = np.array([sums[name] for name in names], dtype=float).reshape(-1, 2).T
    return Blocks(unit, names, errors, words)


def regrouped(
    utterances: Mapping[str, Counted], parts: Mapping[str, Sequence[str]], between: int = 0
) -> dict[str, Counted]:
    """Sum the errors of utterances that were recognised alone by the joined recordings that hold them.

    Args:
        utterances: ``{utterance: (errors, words, speaker)}``.
        parts: ``{recording: [utterances]}``.
        between: symbols between the texts of two utterances (1 for characters, their blank); they count as correct.

    Returns:
        ``{recording: (errors, words, speaker of its first utterance)}``.

    Raises:
        UserError: an utterance is missing.
    """
    absent = sorted({name for names in parts.values() for name in names} - set(utterances))
    if absent:
        raise UserError(
            f"joined recordings hold {metrics.some_names(absent)}, which were not scored alone: decode them again"
        )
    found: dict[str, Counted] = {}
    for recording, names in parts.items():
        errors, words, speakers = zip(*(utterances[name] for name in names), strict=True)
        texts = sum(count > 0 for count in words)  # an empty one is joined without a blank
        found[recording] = sum(errors), sum(words) + between * max(0, texts - 1), speakers[0]
    return found


def _reference(utterances: Mapping[str, Counted], name: str) -> list | None:
    return [*utterances[name]][1:] if name in utterances else None


def error_rate(item: Blocks) -> Interval:
    """Return the error rate of a set with its interval."""
    return _bootstrap(item.rate, (item.errors, item.words), _rates)


def difference(item: Blocks, reference: Blocks, same_words: bool = True) -> Interval:
    """Return the difference of two error rates, ``item`` minus ``reference``, with its interval.

    Args:
        item: one system.
        reference: another one on the same set.
        same_words: whether both have the same reference words; not where these are chosen among alternatives.

    Raises:
        UserError: the two are not of the same set.
    """
    if item.names != reference.names or same_words and not np.array_equal(item.words, reference.words):
        raise UserError("the two were not scored on the same references and speakers: score both on the same data")
    samples = (item.errors, item.words, reference.errors, reference.words)
    return _bootstrap(item.rate - reference.rate, samples, _rate_differences)


def _rates(errors: Array, words: Array, axis: int = -1) -> Array:
    # Some utterances have no words, so a draw may have none at all: it counts as one word.
    return 100 * errors.sum(axis) / np.maximum(words.sum(axis), 1)


def _rate_differences(
    errors: Array, words: Array, reference_errors: Array, reference_words: Array, axis: int = -1
) -> Array:
    return _rates(errors, words, axis) - _rates(reference_errors, reference_words, axis)


def _bootstrap(value: float, samples: Sequence[Array], statistic: Callable[..., Array]) -> Interval:
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
    # Means over trainings are not exact; rounding makes 0 of an almost 0.
    return Interval(value, round(float(found.low), 9), round(float(found.high), 9))
