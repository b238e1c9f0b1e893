"""``endless``: one stream for hours, to show that memory, time and text stay the same."""

import argparse
import sys
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from espnet_speechllm_xl.bin.options import (
    add_config_arguments,
    add_model_arguments,
    duration,
    load_settings,
    pause,
    stream_settings,
)
from espnet_speechllm_xl.config import StreamConfig

if TYPE_CHECKING:
    from espnet_speechllm_xl.sets.endless import Hour


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
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


def main(args: argparse.Namespace) -> int:
    """Print a table with a line per hour; returns 1 when something grew or the text changed."""
    from espnet_speechllm_xl import timeline
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.sets.endless import make_loop, play

    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    stream = speech2text.stream(**stream_settings(args))
    chunk_size = stream.chunking.chunk
    if chunk_size is None or stream.chunking.context is None:
        raise UserError("an infinite chunk or context has no end to its memory: give --chunk-size and --context")
    recordings = [speech2text.load(file) for file in args.files]
    loop = make_loop(recordings, chunk_size, speech2text.sample_rate, args.pause, args.silence)
    minutes = len(loop) * timeline.chunk_seconds(chunk_size) / 60
    print(f"loop of {minutes:.1f} minutes, {len(args.files)} files", file=sys.stderr)
    return report(play(stream, loop, args.hours * 3600))


def report(hours: "Sequence[Hour]") -> int:
    """Print the table; returns 0 when all stayed the same, else 1."""
    from espnet_speechllm_xl.sets import endless

    print("| hour | loops | words | changed loops | CPU per chunk (ms, median) | RSS (MB, median) |")
    print("|---|---|---|---|---|---|")
    for number, hour in enumerate(hours, 1):
        rss = f"{median(hour.rss) / 1e6:.1f}" if hour.rss else "-"
        milliseconds = 1000 * hour.chunk_cpu_seconds
        print(f"| {number} | {hour.loops} | {hour.words} | {hour.changed} | {milliseconds:.2f} | {rss} |")
    found = endless.trends(hours)
    print(
        f"\nTrends from start to end: RSS {found.memory_percent:+.2f} % (allowed {endless.MEMORY_PERCENT}), an hour's "
        f"median {found.time_percent:+.1f} % (allowed {endless.TIME_PERCENT}); {found.changed} loops changed their "
        "words (allowed 0)"
    )
    return 0 if found.stays_the_same else 1
