"""The command ``load-test``: how many live streams a server keeps up with, and how late their text is.

load_figures.py   the figures, of logged events; the search for the largest number
load_clients.py   the streams
load_server.py    the server
load_report.py    tables

Shape legend: ``n`` samples.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet_speechllm_xl.benchmarks.load_clients import Schedule, greet, play_streams
from espnet_speechllm_xl.benchmarks.load_figures import (
    Figures,
    Played,
    Window,
    find_maximum,
    keeps_up,
    make_figures,
)
from espnet_speechllm_xl.benchmarks.load_server import Counters, Server
from espnet_speechllm_xl.corpus.audio import read_audio, read_file, to_int16
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.errors import UserError

MOST_SECONDS = 3600.0  # of recordings that are held in memory: 115 MB at 16 kHz
TICK_SECONDS = 0.05  # between two looks at the clients' lag and the server's memory
AFTERWARDS_SECONDS = 0.5  # played on behind the last chunk that counts
LAG_PERCENTILE = 99
MOST_REASONS = 5  # of failed streams that are shown of a run


@dataclass(frozen=True)
class LoadPlan:
    """The settings of a load test.

    Attributes:
        dump: set whose recordings are played; None: ``files`` are.
        files: audio files.
        streams: numbers of streams that get a row in any case.
        maximum: look for the largest number, too.
        warm_up: seconds that all streams have played before what they send counts.
        seconds: how long it counts.
        message: seconds of audio in a message.
        seed: of the order of the recordings and of the begins of the streams.
    """

    dump: Path | None = None
    files: tuple[str, ...] = ()
    streams: tuple[int, ...] = ()
    maximum: bool = True
    warm_up: float = 5.0
    seconds: float = 30.0
    message: float = 0.1
    seed: int = 0


@dataclass
class Outcome:
    """What a load test found.

    Attributes:
        ready: greeting of the server: its model, chunk, settings.
        most: streams that the server admits.
        recordings: how many were played.
        runs: figures of each run, by the number of streams.
        maximum: largest number of streams that keeps up; None: it was not looked for.
    """

    ready: dict[str, Any]
    most: int
    recordings: int
    runs: dict[int, list[Figures]] = field(default_factory=dict)
    maximum: int | None = None

    @property
    def chunk_seconds(self) -> float:
        """Return the duration of a chunk."""
        return self.ready["chunk_seconds"]


def run(plan: LoadPlan, server: Server) -> Outcome:
    """Measure each number of streams of the plan, then look for the largest one.

    Raises:
        UserError: the server or the recordings cannot be used.
    """
    ready = asyncio.run(greet(server.address))
    most = server.most_streams()
    if plan.streams and max(plan.streams) > most:
        raise UserError(
            f"{max(plan.streams)} streams: the server admits {most}: give it a larger --max-streams, or fewer --streams"
        )
    recordings = load_recordings(plan, ready["sample_rate"])
    outcome = Outcome(ready, most, len(recordings))
    delay = ready["chunk_seconds"] + ready["lookahead_seconds"]
    # The begins are spread over a chunk: else all chunks would be complete at the same moment.
    schedule = Schedule(
        ready["chunk_seconds"], plan.warm_up, plan.seconds, delay + AFTERWARDS_SECONDS, plan.message, plan.seed
    )

    def runs_of(count: int, number: int) -> list[Figures]:
        runs = outcome.runs.setdefault(count, [])
        while len(runs) < number:
            figures, played = asyncio.run(measure(server, recordings, ready["sample_rate"], count, schedule))
            runs.append(figures)
            _say_how_it_went(count, len(runs), figures, played)
            server.most_streams()  # raises where it has ended
        return runs[:number]

    for count in plan.streams:
        runs_of(count, 1)
    if plan.maximum:
        outcome.maximum = find_maximum(
            lambda count, number: keeps_up(runs_of(count, number), outcome.chunk_seconds),
            max(plan.streams, default=1),
            most,
        )
    check(outcome)
    return outcome


def check(outcome: Outcome) -> None:
    """Raise UserError where nothing was measured, although all streams came to their end."""
    runs = [run for runs in outcome.runs.values() for run in runs]
    if not any(run.result_latency.count or run.errors for run in runs):
        raise UserError(
            "no stream had a result that counts: play recordings with speech in the model's language, or give more "
            "--seconds"
        )


def load_recordings(plan: LoadPlan, rate: int) -> list[NDArray[np.int16]]:
    """Read recordings in random order, int16 samples (n,) of each; an hour of them at most.

    Args:
        plan: names them.
        rate: Hz.

    Raises:
        UserError: there are none.
        AudioError: one of the user's files cannot be read.
    """
    if plan.dump is not None:
        names = list(read_table(plan.dump / "wav.scp").values())
    else:
        names = list(plan.files)
    if not names:
        raise UserError(f"{plan.dump or '--audio'} holds no recording: give another --dump, or files with --audio")
    read = read_audio if plan.dump is not None else read_file
    recordings: list[NDArray[np.int16]] = []
    seconds = 0.0
    for index in np.random.default_rng(plan.seed).permutation(len(names)):
        recordings.append(to_int16(read(names[index], rate, notes={}))[0])
        seconds += len(recordings[-1]) / rate
        if seconds >= MOST_SECONDS:
            break
    return recordings


async def measure(
    server: Server,
    recordings: Sequence[NDArray[np.int16]],
    rate: int,
    count: int,
    schedule: Schedule,
) -> tuple[Figures, list[Played]]:
    """Run ``count`` streams once; return the figures, and all that was played.

    Args:
        server: that is measured.
        recordings: int16 samples (n,) of each.
        rate: Hz.
        count: streams at a time.
        schedule: of the run.
    """
    window = schedule.window(time.monotonic())
    watch = Watch(server, window)
    watching = [asyncio.create_task(watch.look()), asyncio.create_task(watch.count())]
    try:
        played = await play_streams(server.address, recordings, rate, count, schedule, window)
        await watching[1]
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    return make_figures(played, window, watch.busy, watch.batch, watch.peak_bytes, watch.lag), played


class Watch:
    """Looks at the server and at the clients themselves during a run.

    Args:
        server: that is measured.
        window: what counts of the run.
    """

    def __init__(self, server: Server, window: Window) -> None:
        self._server, self._window = server, window
        self._lags: list[float] = []
        self._counters: list[tuple[float, Counters | None]] = []  # when they were read, and what they said
        self.peak_bytes: int | None = None

    async def look(self) -> None:
        """Note the server's memory and the clients' lag until cancelled."""
        while True:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now, resident = time.monotonic(), self._server.resident_bytes()
            if now in self._window:
                self._lags.append(now - due)
            if resident is not None:
                self.peak_bytes = max(resident, self.peak_bytes or 0)

    async def count(self) -> None:
        """Read the server's counters at both ends of the window."""
        for moment in (self._window.begin, self._window.end):
            await asyncio.sleep(moment - time.monotonic())
            counters = await asyncio.to_thread(self._server.counters)
            self._counters.append((time.monotonic(), counters))

    @property
    def lag(self) -> float | None:
        """Return the seconds by which the clients were late, 99th percentile."""
        return float(np.percentile(self._lags, LAG_PERCENTILE)) if self._lags else None

    @property
    def busy(self) -> float | None:
        """Return the share of the time in which the engine computed; None: it did not say."""
        (first, before), (last, after) = self._counters
        return None if before is None or after is None else (after.busy - before.busy) / (last - first)

    @property
    def batch(self) -> float | None:
        """Return the requests that one call of the decoder answered, in the mean; None: it did not say, or no call."""
        (_, before), (_, after) = self._counters
        if before is None or after is None or after.calls == before.calls:
            return None
        return (after.requests - before.requests) / (after.calls - before.calls)


def _say_how_it_went(count: int, number: int, figures: Figures, played: Sequence[Played]) -> None:
    latency = figures.result_latency.p99
    shown = "no result" if latency is None else f"P99 of result latency {1000 * latency:.0f} ms"
    _say(f"{count} streams, run {number}: {shown}, {figures.errors} errors")
    for error, times in Counter(one.error for one in played if one.error).most_common(MOST_REASONS):
        _say(f"{times} failed: {error}")


def _say(text: str) -> None:
    print(f"speechllm-xl load-test: {text}", file=sys.stderr, flush=True)
