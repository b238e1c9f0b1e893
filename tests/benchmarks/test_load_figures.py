"""The figures of a load test, from logs of events that were made up so that the right answers are known."""

import dataclasses
import itertools
import random

import pytest

from espnet_speechllm_xl.benchmarks.load_figures import (
    Answer,
    Figures,
    Played,
    Window,
    find_maximum,
    keeps_up,
    make_figures,
    median_figures,
    partial_words,
)
from espnet_speechllm_xl.evaluation.metrics import Spread

ALWAYS = Window(0.0, 1e9)


def result(at, time, text="a", settled=None, final=False):
    return Answer(at, time, "result", text, text if settled is None else settled, final)


def end(at, time):
    return Answer(at, time, "end")


def test_a_sample_is_sent_with_the_message_that_holds_it():
    played = Played(begin=100.0, seconds=2.05, message=0.1)
    assert played.sent(0.05) == pytest.approx(100.1)
    assert played.sent(0.1) == pytest.approx(100.1)
    assert played.sent(1.1) == pytest.approx(101.1)  # 1.1 / 0.1 is a little more than 11
    assert played.sent(1.28) == pytest.approx(101.3)
    assert played.sent(2.04) == played.sent(2.05) == pytest.approx(102.05)  # the last message is shorter


def test_known_percentiles_of_the_result_latency():
    """101 streams of one chunk, answered 0, 10, 20, ..., 1000 ms after its last sample was sent, in any order."""
    delays = [index / 100 for index in range(101)]
    random.Random(0).shuffle(delays)
    played = [
        Played(float(number), 4.0, 0.1, answers=[result(number + 1.3 + delay, 1.28)])
        for number, delay in enumerate(delays)
    ]
    found = make_figures(played, ALWAYS).result_latency
    assert (found.count, found.mean) == (101, pytest.approx(0.5))
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx([0.5, 0.9, 0.95, 0.99])


def test_each_chunk_has_one_result_latency():
    """Neither progress without text, nor the second result of a chunk, nor the preview of an open one."""
    answers = [
        Answer(1.1, 0.64, "progress"),
        result(2.0, 1.28, "a", final=True),  # sent at 1.3
        result(2.5, 1.28, "b"),
        result(3.1, 1.92, "b c"),  # sent at 2.0
        result(3.6, 1.92, "b c d", "b c"),
        result(9.0, 2.5, "b c d", final=True),  # behind the end of the audio: the server lags
        end(9.5, 2.5),
    ]
    found = make_figures([Played(0.0, 2.5, 0.1, answers=answers)], ALWAYS).result_latency
    assert (found.count, found.mean) == (3, pytest.approx((0.7 + 1.1 + 6.5) / 3))


def test_the_warm_up_and_what_comes_after_the_window_do_not_count():
    """One stream of 40 s whose chunk k is answered k ms late; the window holds the audio sent in 10 .. 20 s."""
    answers = [result(k + k / 1000, float(k)) for k in range(1, 40)]
    played = Played(0.0, 40.0, 0.5, whole=False, answers=answers)
    found = make_figures([played], Window(10.0, 20.0))
    assert found.result_latency.count == 10 and found.result_latency.mean == pytest.approx(0.0145)
    assert found.first_partial.count == found.ttfs.count == 0
    assert found.rtfx == pytest.approx(1.0)  # 10 .. 19 arrive in the window


def test_first_partial_and_ttfs():
    def played(begin, first, final, **options):
        answers = [
            Answer(begin + 0.7, 0.64, "progress"),
            result(begin + first, 1.28, "word", ""),
            result(begin + 3.0 + final - 0.01, 2.98, "word", final=True),
            end(begin + 3.0 + final, 2.98),
        ]
        return Played(begin, 3.0, 0.1, answers=answers, **options)

    firsts, finals = [1.4, 1.6, 1.5], [0.2, 0.5, 0.3]
    streams = [played(10.0 + n, *values) for n, values in enumerate(zip(firsts, finals, strict=True))]
    window = Window(10.0, 16.0)
    found = make_figures([*streams, played(9.9, 9.0, 8.0), played(14.0, 1.5, 8.0)], window)
    assert found.first_partial.count == 4 and found.first_partial.p50 == pytest.approx(1.5)
    # The stream of 9.9 ends within the window, the one of 14.0 behind it.
    assert found.ttfs.count == 4
    assert [found.ttfs.p50, found.ttfs.p99] == pytest.approx([0.4, 7.775])
    cut = [dataclasses.replace(stream, whole=False) for stream in streams]
    assert make_figures(cut, window).ttfs.count == 0


def test_a_stream_without_text_has_a_ttfs_and_no_first_partial():
    found = make_figures([Played(0.0, 2.0, 0.1, answers=[end(2.25, 1.98)])], ALWAYS)
    assert (found.first_partial.count, found.ttfs.p50) == (0, pytest.approx(0.25))


def test_throughput_is_the_audio_answered_in_the_window():
    """Four streams that play all the time have an RTFx of 4; two of them answered at half the pace, of 3."""

    def played(pace):
        steps = [(step * 0.5 / pace, step * 0.5) for step in range(1, 200)]
        return Played(0.0, 100.0, 0.1, answers=[Answer(at, time, "progress") for at, time in steps])

    window = Window(10.0, 30.0)
    assert make_figures([played(1.0)] * 4, window).rtfx == pytest.approx(4.0)
    assert make_figures([played(1.0)] * 2 + [played(0.5)] * 2, window).rtfx == pytest.approx(3.0)


def test_errors_are_counted_wherever_they_happen():
    failed = Played(0.0, 0.0, 0.1, whole=False, error="the server is full")
    figures = make_figures([failed, Played(50.0, 1.0, 0.1, answers=[end(51.1, 1.0)]), failed], Window(40.0, 60.0))
    assert figures.errors == 2


# Churn


def changes(*answers):
    return [changed for _, changed in partial_words(answers)]


def test_partial_words_that_settle_as_they_were_have_not_changed():
    assert (
        changes(result(1, 1, "a b c", ""), result(2, 2, "a b c d", "a b"), result(3, 3, "a b c d", final=True))
        == [False] * 4
    )


def test_a_partial_word_that_is_replaced_has_changed():
    """Shown: a, b, c; then x for b; then the end without c.  Of four partial words two have changed."""
    found = changes(result(1, 1, "a b c", ""), result(2, 2, "a x c", "a"), result(3, 3, "a x", final=True))
    assert sorted(found) == [False, False, True, True]


def test_words_settled_at_once_are_no_partial_words():
    assert changes(result(1, 1, "a b"), result(2, 2, "a b c"), result(3, 3, "a b c", final=True), end(3, 3)) == []


def test_partial_text_that_moves_to_the_next_segment_has_not_changed():
    """A long segment ends at its last settled word; its partial text is then that of the next segment."""
    found = changes(
        result(1, 1, "a b c d", "a b"),
        result(2, 2, "a b c", "a b c", final=True),
        result(2, 2, "d e", ""),
        result(3, 3, "d f", final=True),
    )
    assert sorted(found) == [False, False, True]  # c, d; e became f


def test_partial_text_that_is_never_taken_up_has_changed():
    assert changes(result(1, 1, "a b", "a"), result(2, 2, "a", final=True), end(2, 2)) == [True]
    assert changes(result(1, 1, "a", ""), result(2, 2, "", "")) == [True]


def test_churn_counts_the_partial_words_shown_in_the_window():
    answers = [result(1, 1, "a", ""), result(2, 2, "b c", ""), result(3, 3, "b d e f", "b"), result(4, 4, "b d e f")]
    played = Played(0.0, 4.0, 0.1, answers=answers)
    # a became b; b stayed, c became d; d, e and f stayed.
    assert make_figures([played], ALWAYS).churn == pytest.approx(2 / 6)
    assert make_figures([played], Window(2.0, 9.0)).churn == pytest.approx(1 / 5)
    assert make_figures([played], Window(3.0, 9.0)).churn == 0.0
    assert make_figures([played], Window(5.0, 9.0)).churn is None


def slow_churn(versions, final):
    """Changed and shown partial words of whole versions of a text, place by place: runs of the same word."""
    shown = changed = 0
    for place in range(max(map(len, versions))):
        column = [version[place] if place < len(version) else None for version in (*versions, final)]
        words = [word for word, _ in itertools.groupby(column)]
        shown += sum(word is not None for word, _ in itertools.groupby(column[:-1]))
        changed += sum(word is not None for word in words[:-1])
    return changed, shown


@pytest.mark.parametrize("seed", range(20))
def test_churn_as_a_slow_count_by_places_has_it(seed):
    """Random partial texts, nothing settled before the end."""
    rng = random.Random(seed)
    versions = [[rng.choice("ab") for _ in range(rng.randint(0, 4))] for _ in range(rng.randint(1, 5))]
    answers = [result(k, k, " ".join(version), "") for k, version in enumerate(versions, 1)]
    final = [rng.choice("ab") for _ in range(3)]
    found = changes(*answers, result(9, 9, " ".join(final), final=True), end(9, 9))
    if any(versions):
        assert (sum(found), len(found)) == slow_churn(versions, final)


# Several runs, and the largest number of streams


def figures(p99, errors=0, **values):
    nothing = Spread(0)
    latency = Spread(10, p99 / 2, p99 / 2, p99, p99, p99)
    return Figures(latency, nothing, nothing, **{"churn": None, "rtfx": 1.0, "errors": errors, **values})


def test_medians_of_runs():
    runs = [
        figures(0.3, churn=0.1, rtfx=3.0, peak_bytes=100, busy=0.2),
        figures(0.9, churn=None, rtfx=1.0, peak_bytes=300, busy=0.6),
        figures(0.5, churn=0.3, rtfx=2.0, peak_bytes=200, busy=0.4),
    ]
    found = median_figures(runs)
    assert (found.result_latency.p99, found.result_latency.p50, found.result_latency.count) == (0.5, 0.25, 30)
    assert (found.rtfx, found.churn, found.peak_bytes, found.busy) == (2.0, pytest.approx(0.2), 300, 0.4)
    assert found.ttfs == Spread(0) and found.batch is None and found.errors == 0
    assert median_figures(runs[:1]) == runs[0]


def test_what_keeps_up():
    assert keeps_up([figures(0.63)], 0.64) and not keeps_up([figures(0.64)], 0.64)
    assert keeps_up([figures(0.1), figures(9.0), figures(0.2)], 0.64)  # one run was disturbed
    assert not keeps_up([figures(0.1), figures(9.0), figures(0.7)], 0.64)
    assert not keeps_up([figures(0.1), figures(0.1, errors=1), figures(0.1)], 0.64)
    assert not keeps_up([dataclasses.replace(figures(0.1), result_latency=Spread(0))], 0.64)  # nothing was heard


@pytest.mark.parametrize("start", [1, 5, 64])
@pytest.mark.parametrize("limit", range(25))
def test_the_search_finds_the_largest_number_exactly(limit, start):
    asked = []

    def small_enough(count, runs):
        asked.append((count, runs))
        return count <= limit

    assert find_maximum(small_enough, start, 1000) == limit
    assert all(1 <= count <= max(start, 2 * limit, 1) for count, _ in asked)
    if limit:
        assert {(limit, 3), (limit + 1, 3)} <= set(asked)  # both sides of the edge, by the median of three


def test_the_search_of_large_numbers_is_exact_to_three_percent():
    for limit in (100, 333, 1370):
        assert limit - limit / 32 - 1 <= find_maximum(lambda count, _, most=limit: count <= most, 1, 5000) <= limit


def test_the_search_stops_at_what_the_server_admits():
    for most in (1, 6, 8):
        asked = []
        assert find_maximum(lambda count, runs, a=asked: a.append((count, runs)) or True, 1, most) == most
        assert max(count for count, _ in asked) == most and (most, 3) in asked


def test_medians_overrule_a_single_run():
    """One lucky run of 12 and an unlucky one of 7, where 9 is right: the edge moves to it."""
    for luck in ({12: True}, {7: False}, {8: False, 16: False}, {10: True, 11: True}):
        assert find_maximum(lambda count, runs, luck=luck: luck.get(count, count <= 9) if runs == 1 else count <= 9,
                            1, 100) == 9  # fmt: skip
