"""One stream for hours of looped audio: whether memory, time and text stay the same.

Shape legend: ``N`` samples of a recording, ``C`` samples of a chunk.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from espnet_speechllm_xl import timeline

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.decoding.streams import Stream

WARM_UP_SECONDS = 600  # of audio, after which memory must stay the same
MEMORY_PERCENT = 1.0  # RSS may grow by as much from the warm-up to the end, by its trend
TIME_PERCENT = 5.0  # an hour's median time of a chunk may grow by as much from first to last, by its trend
MOST_POINTS = 500  # of a trend, which looks at all pairs


@dataclass
class Hour:
    """Observations of an hour of audio."""

    cpu_seconds: list[float] = field(default_factory=list)  # of each chunk
    rss: list[int] = field(default_factory=list)  # bytes, after each loop that ended later than the warm-up
    words: int = 0
    loops: int = 0
    changed: int = 0  # loops whose words, or their times, differ from the loop before

    @property
    def chunk_cpu_seconds(self) -> float:
        """Return the median CPU time of a chunk."""
        return median(self.cpu_seconds)


@dataclass(frozen=True)
class Trends:
    """The changes from the start to the end.

    Attributes:
        memory_percent: growth of RSS.
        time_percent: growth of an hour's median time of a chunk.
        changed: loops whose words, or their times, differ from the loop before.
    """

    memory_percent: float
    time_percent: float
    changed: int

    @property
    def stays_the_same(self) -> bool:
        """Tell whether all is within what is allowed."""
        return self.memory_percent <= MEMORY_PERCENT and self.time_percent <= TIME_PERCENT and not self.changed


def make_loop(
    recordings: "Iterable[np.ndarray]", chunk_size: int, sample_rate: int, pause: float, silence: float
) -> "list[np.ndarray]":
    """Join recordings with pauses and silence to a whole number of chunks, a list of samples (C,).

    There is silence on both sides, so that the first loop meets the stream as the others do, and ends as they do.

    Args:
        recordings: samples (N,) of each.
        chunk_size: frames of a chunk.
        sample_rate: Hz.
        pause: seconds after each recording.
        silence: seconds, half before the first recording and half after the last.
    """
    import numpy as np

    gap, half = (np.zeros(round(seconds * sample_rate), np.float32) for seconds in (pause, silence / 2))
    parts = [part for recording in recordings for part in (recording, gap)]
    audio = np.concatenate([half, *parts, half])
    size = timeline.samples_of_frames(chunk_size, sample_rate)
    audio = np.concatenate([audio, np.zeros(-len(audio) % size, np.float32)])
    return list(audio.reshape(-1, size))


def play(stream: "Stream", loop: "Sequence[np.ndarray]", seconds: float) -> list[Hour]:
    """Push a loop over and over through a stream, and return what was seen in each hour.

    Args:
        stream: a new one.
        loop: samples (C,) of each chunk.
        seconds: of audio; at least three loops are pushed.
    """
    import psutil
    from tqdm import tqdm

    process, before = psutil.Process(), None
    hours: dict[int, Hour] = {}
    length, pushed = len(loop) * timeline.chunk_seconds(stream.chunking.chunk), 0.0
    count = max(3, round(seconds / length))
    for number in tqdm(range(count), desc="endless", unit="loop", file=sys.stderr, mininterval=5):
        words: list[tuple[str, float]] = []
        hour = hours.setdefault(int(pushed // 3600), Hour())
        for samples in loop:
            begin = time.process_time()
            update = stream.push(samples)
            hour.cpu_seconds.append(time.process_time() - begin)
            words += [(word.text, round(word.start - number * length, 2)) for word in update.words]
        pushed += length
        hour.loops, hour.words = hour.loops + 1, hour.words + len(words)
        hour.changed += number > 0 and words != before
        before = words
        if pushed >= min(WARM_UP_SECONDS, seconds / 3):
            hour.rss.append(process.memory_info().rss)
    stream.close()
    return [hours[index] for index in sorted(hours)]


def trends(hours: Sequence[Hour]) -> Trends:
    """Compute how much memory, time and text changed over the hours."""
    return Trends(
        100 * growth([value for hour in hours for value in hour.rss]),
        100 * growth([hour.chunk_cpu_seconds for hour in hours]),
        sum(hour.changed for hour in hours),
    )


def growth(values: Sequence[float]) -> float:
    """Compute by which share of their median ``values`` rise from the first to the last, by their trend.

    The slope is the median of the slopes between all pairs (Theil 1950, Sen 1968): values that rise for a while and
    fall again, as an allocator makes them, have no trend.
    """
    import numpy as np

    indices = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(int))
    points = np.asarray(values, dtype=float)[indices]
    first, second = np.triu_indices(len(points), 1)
    if not len(first):
        return 0.0
    slope = np.median((points[second] - points[first]) / (indices[second] - indices[first]))
    return float(slope * indices[-1] / np.median(points))
