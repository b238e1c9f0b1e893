"""``endless``: one stream for hours, to show that memory, time and text stay the same."""

import statistics
import sys
import time
from dataclasses import dataclass, field

from espnet_speechllm_xl.bin.options import (
    add_config_arguments,
    add_model_arguments,
    duration,
    load_settings,
    pause,
    stream_settings,
)
from espnet_speechllm_xl.config import StreamConfig

WARM_UP_SECONDS = 600  # of audio, after which memory must stay the same
MEMORY_PERCENT = 1.0  # that RSS may grow from the warm-up to the end, by its trend
TIME_PERCENT = 5.0  # that an hour's median time of a chunk may grow from the first hour to the last, by its trend
MOST_POINTS = 500  # of a trend: it looks at all pairs


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio that is looped")
    parser.add_argument("--hours", type=duration, default=10.0, help="of audio (default %(default)s)")
    parser.add_argument("--pause", type=pause, default=1.0, help="seconds between two files (default %(default)s)")
    parser.add_argument(
        "--silence",
        type=pause,
        default=60.0,
        help="seconds, half before the first file and half after the last (default %(default)s)",
    )
    add_config_arguments(parser, StreamConfig)
    add_model_arguments(parser)


def main(args):
    """Print a table with a line per hour; returns 1 when something grew or the text changed."""
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    stream = speech2text.stream(**stream_settings(args))
    if stream.chunking.chunk is None or stream.chunking.context is None:
        raise UserError("an infinite chunk or context has no end to its memory: give --chunk-size and --context")
    loop = make_loop([speech2text.load(file) for file in args.files], stream, args.pause, args.silence)
    print(f"loop of {len(loop) * chunk_seconds(stream) / 60:.1f} minutes, {len(args.files)} files", file=sys.stderr)
    hours = play(stream, loop, args.hours * 3600)
    return report(hours)


@dataclass
class Hour:
    """What was seen in an hour of audio."""

    cpu_seconds: list = field(default_factory=list)  # of each chunk
    rss: list = field(default_factory=list)  # bytes, after each loop that ended later than the warm-up
    words: int = 0
    loops: int = 0
    changed: int = 0  # loops whose words or their times were not those of the loop before


def chunk_seconds(stream):
    """Duration of one of the stream's chunks."""
    from espnet_speechllm_xl import timeline

    return timeline.chunk_seconds(stream.chunking.chunk)


def make_loop(recordings, stream, pause, silence):
    """The recordings (n,) with pauses and silence as a list of chunks of samples; a whole number of chunks.

    Silence on both sides, so that the first loop meets the stream as the others do, and ends as they do.
    """
    import numpy as np

    from espnet_speechllm_xl import timeline

    rate = stream.model.acoustic.config.sample_rate
    gap, half = (np.zeros(round(seconds * rate), np.float32) for seconds in (pause, silence / 2))
    parts = [part for recording in recordings for part in (recording, gap)]
    audio = np.concatenate([half, *parts, half])
    size = timeline.samples_of_frames(stream.chunking.chunk, rate)
    audio = np.concatenate([audio, np.zeros(-len(audio) % size, np.float32)])
    return list(audio.reshape(-1, size))


def play(stream, loop, seconds):
    """Push the loop over and over for ``seconds`` of audio; a list of :class:`Hour`."""
    import psutil
    from tqdm import tqdm

    process, hours, before = psutil.Process(), {}, None
    chunk, heard = chunk_seconds(stream), 0.0
    length = len(loop) * chunk
    count = max(3, round(seconds / length))
    for number in tqdm(range(count), desc="endless", unit="loop", file=sys.stderr, mininterval=5):
        words = []
        hour = hours.setdefault(int(heard // 3600), Hour())
        for samples in loop:
            started = time.process_time()
            update = stream.push(samples)
            hour.cpu_seconds.append(time.process_time() - started)
            words += [(word.text, round(word.start - number * length, 2)) for word in update.words]
        heard += length
        hour.loops, hour.words = hour.loops + 1, hour.words + len(words)
        hour.changed += number > 0 and words != before
        before = words
        if heard >= min(WARM_UP_SECONDS, seconds / 3):
            hour.rss.append(process.memory_info().rss)
    stream.close()
    return [hours[index] for index in sorted(hours)]


def report(hours):
    """Print the table; returns 0 when all stayed the same, else 1."""
    print("| hour | loops | words | changed loops | CPU per chunk (ms, median) | RSS (MB, median) |")
    print("|---|---|---|---|---|---|")
    medians = [statistics.median(hour.cpu_seconds) for hour in hours]
    for number, (hour, median) in enumerate(zip(hours, medians, strict=True), 1):
        rss = f"{statistics.median(hour.rss) / 1e6:.1f}" if hour.rss else "-"
        print(f"| {number} | {hour.loops} | {hour.words} | {hour.changed} | {1000 * median:.2f} | {rss} |")
    grew, slower = growth([value for hour in hours for value in hour.rss]), growth(medians)
    changed = sum(hour.changed for hour in hours)
    print(
        f"\nTrends from start to end: RSS {100 * grew:+.2f} % (allowed {MEMORY_PERCENT}), an hour's median "
        f"{100 * slower:+.1f} % (allowed {TIME_PERCENT}); {changed} loops changed their words (allowed 0)"
    )
    return int(100 * grew > MEMORY_PERCENT or 100 * slower > TIME_PERCENT or changed > 0)


def growth(values: list) -> float:
    """Compute by which share of their median ``values`` rise from the first to the last, by their trend.

    The slope is the median of those between all pairs (Theil 1950, Sen 1968): what rises for a while and falls again,
    as an allocator makes it, is no trend.
    """
    import numpy as np

    indices = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(int))
    points = np.asarray(values, dtype=float)[indices]
    first, second = np.triu_indices(len(points), 1)
    if not len(first):
        return 0.0
    slope = np.median((points[second] - points[first]) / (indices[second] - indices[first]))
    return float(slope * indices[-1] / np.median(points))
