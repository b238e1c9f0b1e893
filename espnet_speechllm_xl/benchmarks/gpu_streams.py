"""Part of the GPU check: how many streams that arrive in real time one model serves.

Every stream gets a chunk of audio each time as much has passed, the streams evenly spread over that time.  Their
latency is the time from the arrival of a chunk to the text; it has to stay below a chunk.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.benchmarks import made_up
from espnet_speechllm_xl.benchmarks.gpu_models import TOKENS_PER_SECOND, load_random
from espnet_speechllm_xl.benchmarks.gpu_report import PartFailed, Report, Setting
from espnet_speechllm_xl.decoding.engine import Engine
from espnet_speechllm_xl.decoding.streams import Stream
from espnet_speechllm_xl.inference import Speech2Text

FIRST = {1.28: 300, 0.32: 60}  # streams of the first trial, by seconds of a chunk
ROUNDS = 5  # chunks of each stream in a trial, behind one that is not counted


def streams(setting: Setting, report: Report, chunk_seconds: float) -> None:
    """Find the largest number of streams whose 99th percentile of latency is below a chunk.

    Args:
        setting: says where.
        report: takes a row for each trial.
        chunk_seconds: duration of a chunk.
    """
    speech2text = load_random(setting, chunk_seconds)
    rounds = 1 if setting.tiny else ROUNDS
    report.text(
        f"Chunks of {chunk_seconds} s, greedy search, about {TOKENS_PER_SECOND * chunk_seconds:.1f} tokens a chunk; "
        f"every trial lasts {rounds + 1} chunks.  Latency: from the arrival of a chunk to its text."
    )
    report.head("streams", "median", "99th percentile", "largest", "engine busy", "tokens a second", "kept up")
    with Engine(speech2text.model) as engine:
        paced = PacedStreams(speech2text, engine, chunk_seconds, rounds)
        taken = (rounds + 3) * chunk_seconds

        def try_out(count: int) -> Trial:
            nonlocal taken
            report.say(f"{count} streams")
            begin = time.perf_counter()
            trial = paced.trial(count, report.seconds_left)
            taken = time.perf_counter() - begin
            shown = (f"{1000 * trial.percentile(percent):.0f} ms" for percent in (50, 99, 100))
            kept_up = "yes" if trial.kept_up else "no"
            report.row(count, *shown, f"{trial.busy:.0%}", f"{trial.tokens_per_second:.0f}", kept_up)
            return trial

        start = 4 if setting.tiny else FIRST[chunk_seconds]
        most_trials = 1 if setting.tiny else 9
        best = search_most(try_out, start, lambda: report.seconds_left > 1.5 * taken, most_trials)
    report.figure(f"streams at {chunk_seconds} s", best)
    if best == 0 and not setting.tiny:
        raise PartFailed("no number of streams that was tried kept up")


def search_most(
    try_out: "Callable[[int], Trial]", start: int, may_go_on: Callable[[], bool], most_trials: int
) -> int:
    """Return the largest number of streams that was seen to keep up, found in few trials; 0: none did.

    From ``start`` it grows as far as the engine's idle time promises, at most fourfold.  When a number does not keep
    up, it goes on between the two until they are within 10 %.

    Args:
        try_out: tries a number.
        start: the first number.
        may_go_on: tells whether there is time for another trial.
        most_trials: how many there may be.
    """
    good, bad, count = 0, math.inf, start
    for _ in range(most_trials):
        if count < 1 or bad <= 1.1 * good or not may_go_on():
            break
        trial = try_out(count)
        if trial.kept_up:
            good = count
        else:
            bad = count
        if bad == math.inf:
            count = math.ceil(good * min(4.0, max(1.3, 0.8 / max(trial.busy, 0.01))))
        else:
            count = round(math.sqrt(good * bad)) if good else int(bad // 3)
    return good


@dataclass
class Trial:
    """The latencies of a number of streams, in seconds."""

    limit: float  # seconds, of a chunk
    latencies: list[float] = field(default_factory=list)
    busy: float = 0.0  # share of the time in which the engine computed
    tokens_per_second: float = 0.0  # token steps of all streams
    failed: bool = False  # it was broken off as the streams fell behind

    @property
    def kept_up(self) -> bool:
        """Tell whether the 99th percentile was below a chunk."""
        return not self.failed and self.percentile(99) < self.limit

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies; infinity without any."""
        values = sorted(self.latencies)
        return values[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else math.inf


class PacedStreams:
    """Streams on one engine that get audio in real time.

    Args:
        speech2text: the model.
        engine: on the same model.
        chunk_seconds: duration of a chunk.
        rounds: chunks of each stream in a trial, behind one that is not counted.
    """

    def __init__(self, speech2text: Speech2Text, engine: Engine, chunk_seconds: float, rounds: int) -> None:
        chunking = speech2text.chunking
        assert chunking is not None and chunking.chunk is not None
        encoder = speech2text.model.acoustic.encoder.config
        self._speech2text, self._engine, self._seconds = speech2text, engine, chunk_seconds
        self._rounds = rounds
        samples = timeline.samples_of_frames(chunking.chunk, made_up.RATE)
        # What completes the look-ahead of the first chunk; from then on each chunk of audio completes a chunk.
        first = timeline.samples_for_frames(chunking.chunk + encoder.right_context, made_up.RATE)
        noise = made_up.make_noise(0, (first + 8 * samples) / made_up.RATE)
        self._first = noise[:first]
        self._chunks = [noise[first + index * samples :][:samples] for index in range(8)]
        self._window = (chunking.context or 0) + 1
        self._streams: list[Stream] = []

    def _set_number(self, count: int) -> None:
        """Open or drop streams; new ones have heard as much as their window holds."""
        del self._streams[count:]
        tokens = TOKENS_PER_SECOND * self._seconds
        begun: list[Future] = []
        for index in range(len(self._streams), count):
            # Caps that vary about the mean, as speech does: 3 to 7 tokens a chunk, or 1 or 2.
            spread = (-0.4, -0.2, 0.0, 0.2, 0.4)[index % 5]
            config = dataclasses.replace(
                self._speech2text.search_config, max_tokens_per_chunk=max(1, round(tokens * (1 + spread)))
            )
            template = self._speech2text
            own = Speech2Text(template.system, template.model, template.tokenizer, config, template.chunking)
            stream = own.stream("greedy")
            self._streams.append(stream)
            for piece in [self._first, *(self._chunk(index, place) for place in range(self._window))]:
                begun.append(self._engine.submit(stream, stream.consume(piece)))
        for future in begun:
            future.result()

    def _chunk(self, index: int, place: int) -> made_up.Samples:
        return self._chunks[(index + place) % len(self._chunks)]

    def trial(self, count: int, seconds_left: float) -> Trial:
        """Run ``count`` streams in real time.

        Args:
            count: streams.
            seconds_left: the trial breaks off before.
        """
        self._set_number(count)
        trial, futures = Trial(self._seconds), list[Future]()
        begin, busy, tokens = time.perf_counter(), self._engine.seconds, self._engine.requests["token"]
        end = begin + seconds_left - 2
        for place in range(self._rounds + 1):
            for index, stream in enumerate(self._streams):
                due = begin + (place + index / count) * self._seconds
                while (now := time.perf_counter()) < due:
                    time.sleep(min(0.002, due - now))
                if now > end or now - due > self._seconds or self._is_late(futures, count):
                    trial.failed = True
                    break
                future = self._engine.submit(stream, stream.consume(self._chunk(index, place)))
                if place > 0:
                    future.add_done_callback(functools.partial(self._note, trial, due))
                futures.append(future)
            if trial.failed:
                break
        spent = time.perf_counter() - begin
        trial.busy = (self._engine.seconds - busy) / spent
        trial.tokens_per_second = (self._engine.requests["token"] - tokens) / spent
        for future in futures:
            future.result()
        return trial

    @staticmethod
    def _is_late(futures: list[Future], count: int) -> bool:
        """Tell whether a chunk from two rounds ago is still waiting."""
        return len(futures) > 2 * count and not futures[-2 * count].done()

    @staticmethod
    def _note(trial: Trial, due: float, _future: Future) -> None:
        trial.latencies.append(time.perf_counter() - due)
