"""Rounds: who is measured when, what counts, and which sample is the lower quartile."""

import pytest

from espnet_speechllm_xl.benchmarks.rounds import Figure, interleave, lower_quartile


class Planted:
    """A contestant with planted samples, which notes its turns."""

    def __init__(self, name, turns, samples):
        self.name, self.turns, self.samples = name, turns, iter(samples)

    def measure(self):
        self.turns.append(self.name)
        return next(self.samples)


def test_contestants_take_turns_and_the_warm_up_does_not_count():
    turns, said = [], []
    a = Planted("a", turns, [{"seconds": [99.0]}, {"seconds": [1.0, 2.0]}, {"seconds": [3.0, 4.0]}])
    b = Planted("b", turns, [{"seconds": [99.0]}, {"seconds": [5.0], "bytes": [7.0]}, {"seconds": [6.0]}])
    figures = interleave({"first": a, "second": b}, rounds=2, say=said.append)
    assert turns == ["a", "b"] * 3
    assert said == ["warm-up", "round 1 of 2", "round 2 of 2"]
    assert figures["first"] == {"seconds": Figure(1.0, 2.5, [1.0, 2.0, 3.0, 4.0])}
    assert figures["second"] == {"seconds": Figure(5.0, 5.5, [5.0, 6.0]), "bytes": Figure(7.0, 7.0, [7.0])}


def test_without_a_warm_up_every_round_counts():
    figures = interleave({"a": Planted("a", [], [{"seconds": [2.0]}])}, rounds=1, warm_up=0)
    assert figures["a"]["seconds"].samples == [2.0]


@pytest.mark.parametrize("count, wanted", [(1, 0), (2, 0), (4, 0), (5, 1), (9, 2), (21, 5)])
def test_a_quarter_of_the_other_samples_lies_below_the_lower_quartile(count, wanted):
    assert lower_quartile(list(range(count))[::-1]) == wanted
