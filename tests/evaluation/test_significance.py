import numpy as np
import pytest

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import significance
from espnet_speechllm_xl.evaluation.significance import Blocks


def scored(errors, speakers=1):
    """``{utterance: (errors, words, speaker)}`` of utterances u00, u01, ... of 10 words."""
    return {f"u{index:02d}": (count, 10, f"s{index % speakers:02d}") for index, count in enumerate(errors)}


def of(errors, words, unit="utterance"):
    errors, words = np.asarray(errors, float), np.asarray(words, float)
    return Blocks(unit, tuple(range(len(errors))), errors, words)


def slow_interval(samples, rate, seed):
    """Percentiles of one draw after the other."""
    rng = np.random.default_rng(seed)
    count, rates = len(samples[0]), []
    for _ in range(4000):
        chosen = [rng.integers(count) for _ in range(count)]
        rates.append(rate(*(sum(float(sample[index]) for index in chosen) for sample in samples)))
    return np.percentile(rates, [2.5, 97.5])


def test_blocks_are_speakers_from_20_on():
    few = significance.blocks([scored([1] * 40, 19)])
    many = significance.blocks([scored([1] * 40, 20)])
    assert (few.unit, len(few.names)) == ("utterance", 40)
    assert significance.blocks([scored([1] * 40, 20)], by_speaker=False).unit == "utterance"
    assert (many.unit, len(many.names)) == ("speaker", 20)
    assert many.errors.tolist() == [2.0] * 20 and many.words.tolist() == [20.0] * 20
    assert few.rate == many.rate == 10.0


def test_speakers_with_few_bad_ones_are_wider_than_utterances():
    # All errors are those of two speakers: their utterances are not independent.
    errors = [8 if index % 20 < 2 else 0 for index in range(80)]
    by_speaker = significance.blocks([scored(errors, 20)])
    by_utterance = significance.blocks([scored(errors)])
    widths = [found.high - found.low for found in map(significance.error_rate, (by_speaker, by_utterance))]
    assert by_speaker.rate == by_utterance.rate == 8.0
    assert widths[0] > 1.5 * widths[1]


def test_an_interval_that_reaches_zero_does_not_exclude_it():
    """Means of three trainings are no exact numbers: a draw without a difference may come out as 1e-17."""
    rng, words = np.random.default_rng(1), 7
    reached = 0
    for _ in range(20):
        ours, theirs = rng.integers(0, 3, (2, 3, 25))
        theirs[:, 5:] = ours[:, 5:]  # most draws of 25 differ little, and many not at all

        def side(counts):
            return significance.blocks(
                [{f"u{i:02d}": (int(c), words, "s") for i, c in enumerate(row)} for row in counts]
            )

        found = significance.difference(side(ours), side(theirs))
        bounds = [bound for bound in (found.low, found.high) if abs(bound) < 1e-6]
        assert all(bound == 0 for bound in bounds)
        reached += len(bounds)
    assert reached


def test_trainings_are_averaged():
    both = significance.blocks([scored([0, 2, 4]), scored([2, 2, 0])])
    assert both.errors.tolist() == [1.0, 2.0, 2.0]
    assert both.rate == pytest.approx(100 * 5 / 30)


def test_equals_a_slow_bootstrap():
    rng = np.random.default_rng(3)
    words = rng.integers(3, 20, 40)
    errors, other = rng.poisson(0.1 * words), rng.poisson(0.15 * words)
    found = significance.error_rate(of(errors, words))
    slow = slow_interval((errors, words), lambda e, w: 100 * e / w, seed=5)
    assert found.value == pytest.approx(100 * errors.sum() / words.sum())
    assert [found.low, found.high] == pytest.approx(slow, abs=0.4) and significance.CONFIDENCE == 0.95
    found = significance.difference(of(errors, words), of(other, words))
    slow = slow_interval((errors, other, words), lambda e, o, w: 100 * (e - o) / w, seed=5)
    assert found.value == pytest.approx(100 * (errors.sum() - other.sum()) / words.sum())
    assert [found.low, found.high] == pytest.approx(slow, abs=0.5)
    assert found == significance.difference(of(errors, words), of(other, words))  # the same every time


def test_pairs_are_narrower_than_two_sets():
    # Hard and easy utterances, the same for both systems, of which one has an error more in every fourth.
    rng = np.random.default_rng(0)
    words = np.full(100, 20)
    errors = rng.poisson(words * rng.gamma(0.5, 0.2, 100)).clip(max=18)
    worse = errors + (np.arange(100) % 4 == 0)
    one, other = (significance.error_rate(of(each, words)) for each in (errors, worse))
    paired = significance.difference(of(worse, words), of(errors, words))
    assert one.high > other.low  # the intervals of the two overlap widely
    assert paired.value == pytest.approx(1.25)
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.3 * (one.high - one.low)
    assert not significance.difference(of(errors, words), of(errors, words)).excludes_zero


def test_covers_the_truth(monkeypatch):
    # 60 utterances, 10 % of the words wrong: the interval should hold 10 % in about 95 of 100 sets.
    monkeypatch.setattr(significance, "DRAWS", 499)
    rng = np.random.default_rng(1)
    inside, sets = 0, 300
    for _ in range(sets):
        words = rng.integers(5, 25, 60)
        found = significance.error_rate(of(rng.binomial(words, 0.1), words))
        inside += found.low <= 10 <= found.high
    assert 0.90 <= inside / sets <= 0.98


def test_sets_without_spread():
    assert significance.error_rate(of([0, 0, 0], [5, 5, 5])) == significance.Interval(0.0, 0.0, 0.0)
    one = significance.error_rate(of([1], [4]))
    assert (one.value, one.low, one.high, one.excludes_zero) == (25.0, None, None, False)
    # Utterances without words: a draw of those alone has no rate of its own.
    assert np.isfinite(significance.error_rate(of([1, 1], [0, 10])).high)


def test_other_references_are_refused():
    with pytest.raises(UserError, match="not scored on the same references"):
        significance.difference(of([1, 1], [5, 5]), of([1, 1], [5, 6]))
    with pytest.raises(UserError, match="other references in u02: decode them again"):
        significance.blocks([scored([1, 1]), scored([1, 1, 1])])


def test_utterances_regrouped_as_they_were_joined():
    counts = {"a": (1, 10, "x"), "b": (2.5, 7, "y"), "c": (0, 3, "x")}
    assert significance.regrouped(counts, {"a-x2": ["a", "b"], "c-x2": ["c"]}) == {
        "a-x2": (3.5, 17, "x"),
        "c-x2": (0, 3, "x"),
    }
    # Characters: the blank between two texts is one more, not beside a text that is empty.
    characters = {**counts, "e": (0, 0, "x")}
    joined = significance.regrouped(characters, {"a-x3": ["a", "e", "b"], "e-x1": ["e"]}, between=1)
    assert joined == {"a-x3": (3.5, 18, "x"), "e-x1": (0, 0, "x")}
    with pytest.raises(UserError, match="hold d, which were not scored alone"):
        significance.regrouped(counts, {"a-x2": ["a", "d"]})
