"""The figures of a load test, computed from what its streams sent and received.

`docs/server.md` defines each figure.  Times are seconds of the clients' monotonic clock; ``time`` of an answer is
seconds of the stream's own audio.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.evaluation.metrics import Spread

RUNS_AT_THE_EDGE = 3  # of a number of streams that may be the largest
FINENESS = 32  # the largest number is found to within one of so many streams, and to within one stream below that


@dataclass(frozen=True)
class Answer:
    """One message of the server.

    Attributes:
        at: when it arrived.
        time: audio of the stream that it covers.
        kind: its type: "result", "progress" or "end".
        text: of a result, settled and partial.
        settled: the settled part of the text.
        final: the text is that of a stream segment that has ended.
    """

    at: float
    time: float
    kind: str = "result"
    text: str = ""
    settled: str = ""
    final: bool = False


@dataclass
class Played:
    """One recording as a client played it to the server, and what came back.

    Attributes:
        begin: when its first sample was spoken.
        seconds: audio that was sent.
        message: seconds of audio in a message.
        whole: it was played to its end; False: it was cut off when the test was over, or it failed.
        answers: in the order of their arrival.
        error: why it failed; None: it did not.
    """

    begin: float
    seconds: float
    message: float
    whole: bool = True
    answers: list[Answer] = field(default_factory=list)
    error: str | None = None

    def sent(self, time: float) -> float:
        """Return when the audio up to ``time`` was to be sent: with the message that holds its last sample.

        That is not when the client got round to it: a server that holds its clients back gains nothing by it.
        """
        messages = math.ceil(time / self.message - 1e-6)
        return self.begin + min(messages * self.message, max(time, self.seconds))


@dataclass(frozen=True)
class Window:
    """The part of a test that counts."""

    begin: float
    end: float

    def __contains__(self, moment: float) -> bool:
        return self.begin <= moment < self.end


@dataclass(frozen=True)
class Figures:
    """The figures of a number of streams; None: not measured.

    Attributes:
        result_latency: seconds.
        first_partial: seconds.
        ttfs: seconds.
        churn: share, 0 to 1.
        rtfx: seconds of audio a second, of all streams.
        errors: streams that failed.
        busy: share of the time in which the server's engine computed.
        batch: requests that one call of the decoder answered, in the mean.
        peak_bytes: largest resident set of the server.
        lag: seconds by which the clients themselves were late, 99th percentile.
    """

    result_latency: Spread
    first_partial: Spread
    ttfs: Spread
    churn: float | None
    rtfx: float
    errors: int
    busy: float | None = None
    batch: float | None = None
    peak_bytes: int | None = None
    lag: float | None = None


def make_figures(
    played: Sequence[Played],
    window: Window,
    busy: float | None = None,
    batch: float | None = None,
    peak_bytes: int | None = None,
    lag: float | None = None,
) -> Figures:
    """Compute the figures of one run; the last four arguments were measured beside it, see :class:`Figures`."""
    changes = [changed for one in played for shown, changed in partial_words(one.answers) if shown in window]
    return Figures(
        result_latency=metrics.spread([value for one in played for value in _result_latencies(one, window)]),
        first_partial=metrics.spread([value for one in played for value in _first_partial(one, window)]),
        ttfs=metrics.spread([value for one in played for value in _time_to_final(one, window)]),
        churn=sum(changes) / len(changes) if changes else None,
        rtfx=sum(_seconds_answered(one, window) for one in played) / (window.end - window.begin),
        errors=sum(one.error is not None for one in played),
        busy=busy,
        batch=batch,
        peak_bytes=peak_bytes,
        lag=lag,
    )


def _result_latencies(played: Played, window: Window) -> Iterator[float]:
    covered = 0.0
    for answer in played.answers:
        # Later results that cover no more audio belong to the same chunk, or foretell the next one.
        if answer.kind == "result" and answer.time > covered and (sent := played.sent(answer.time)) in window:
            yield answer.at - sent
        covered = max(covered, answer.time)


def _first_partial(played: Played, window: Window) -> Iterator[float]:
    first = next((answer for answer in played.answers if answer.text), None)
    if first is not None and played.begin in window:
        yield first.at - played.begin


def _time_to_final(played: Played, window: Window) -> Iterator[float]:
    end = played.begin + played.seconds
    if played.whole and end in window and played.answers and played.answers[-1].kind == "end":
        yield played.answers[-1].at - end


def _seconds_answered(played: Played, window: Window) -> float:
    seconds = covered = 0.0
    for answer in played.answers:
        seconds += max(0.0, answer.time - covered) if answer.at in window else 0.0
        covered = max(covered, answer.time)
    return seconds


def partial_words(answers: Sequence[Answer]) -> list[tuple[float, bool]]:
    """Follow the partial words of a stream: for each, when it was first shown, and whether it later changed.

    A word has changed when another one, or none, is shown at its place in the stream.  What follows in its place is
    a word of its own.
    """
    found: list[tuple[float, bool]] = []
    ended: list[str] = []  # words of the stream segments that have ended
    partial: dict[int, tuple[str, float]] = {}  # place in the stream: word that may still change, when it was shown
    for answer in answers:
        if answer.kind != "result":
            continue
        words = [*ended, *answer.text.split()]
        for place in [*partial]:
            # The text of a segment that has ended says nothing of the words behind it: the next result does.
            if place < len(words) or not answer.final:
                word, shown = partial[place]
                same = words[place : place + 1] == [word]
                settled = answer.final or place < len(ended) + len(answer.settled.split())
                if not same or settled:
                    found.append((shown, not same))
                    del partial[place]
        if answer.final:
            ended = words
        else:
            for place in range(len(ended) + len(answer.settled.split()), len(words)):
                partial.setdefault(place, (words[place], answer.at))
    return found + [(shown, True) for _, shown in partial.values()]


def median_figures(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure over runs of one number of streams; of the errors all, of memory the most."""
    spreads = {
        name: Spread(
            sum(getattr(run, name).count for run in runs),
            *(_median([getattr(getattr(run, name), part) for run in runs]) for part in _PARTS),
        )
        for name in ("result_latency", "first_partial", "ttfs")
    }
    return Figures(
        **spreads,
        churn=_median([run.churn for run in runs]),
        rtfx=median([run.rtfx for run in runs]),
        errors=sum(run.errors for run in runs),
        busy=_median([run.busy for run in runs]),
        batch=_median([run.batch for run in runs]),
        peak_bytes=max((run.peak_bytes for run in runs if run.peak_bytes is not None), default=None),
        lag=_median([run.lag for run in runs]),
    )


_PARTS = ("mean", "p50", "p90", "p95", "p99")


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def keeps_up(runs: Sequence[Figures], chunk_seconds: float) -> bool:
    """Tell whether the median of P99 of the result latency is under a chunk, without an error in any run."""
    figures = median_figures(runs)
    latency = figures.result_latency.p99
    return figures.errors == 0 and latency is not None and latency < chunk_seconds


def find_maximum(keeps_up: Callable[[int, int], bool], start: int, most: int) -> int:
    """Return the largest number of streams that keeps up; 0: not even one does.

    The number is doubled until it is too large, then the interval is bisected.  So far, one run decides.  At the edge
    the median of three does, of the number and of the next one; as long as they disagree with what one run said, the
    edge moves.

    Args:
        keeps_up: tells of a number of streams whether it keeps up, by the median of so many runs (1 or 3); asked
            twice, it says the same.
        start: the first number.
        most: the server admits no more.
    """
    good, bad, count = 0, most + 1, min(start, most)
    while bad > most and good < most:
        if keeps_up(count, 1):
            good, count = count, min(2 * count, most)
        else:
            bad = count
    while bad - good > _step(good):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if keeps_up(middle, 1) else (good, middle)
    while True:
        if good and not keeps_up(good, RUNS_AT_THE_EDGE):
            good, bad = max(0, good - _step(good)), good
        elif bad > most or not keeps_up(bad, RUNS_AT_THE_EDGE):
            return good
        else:
            good, bad = bad, min(bad + _step(bad), most) if bad < most else most + 1


def _step(count: int) -> int:
    return max(1, count // FINENESS)
