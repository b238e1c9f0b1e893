"""``latency``: stream a dump set at several chunk sizes; how late words come, how right they are, what it computes.

Each recording is streamed twice: whole, and up to the end of speech, where it is flushed (TTFS).

OUT gets ``LATENCY.md``, ``latency.json``, ``latency.png``, and ``streamed_<chunk size>.json`` and
``flushed_<chunk size>.json`` with every word and push: a chunk size that was streamed before by the same weights and
settings is only compared anew.
"""

import argparse
import math
import shlex
import sys
from pathlib import Path

from espnet_speechllm_xl.bin.options import (
    add_case_argument,
    add_config_arguments,
    add_model_arguments,
    add_prompt_argument,
    at_least,
    duration,
    load_settings,
    pause,
    stream_settings,
)
from espnet_speechllm_xl.config import StreamConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--dump", required=True, metavar="DIR", help="dump set to stream (dump/raw/SET)")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory for LATENCY.md, its figures and its plot"
    )
    parser.add_argument("--reference", metavar="CTM", help="when words ended (default: ref.ctm of the set, if there)")
    parser.add_argument(
        "--chunk-sizes",
        type=_chunk_sizes,
        metavar="SECONDS,...",
        help="default: the sizes that the model was trained with; inf is allowed",
    )
    parser.add_argument(
        "--block", type=duration, default=0.04, metavar="SECONDS", help="audio pushed at a time (default %(default)s)"
    )
    parser.add_argument(
        "--tail",
        type=pause,
        default=0.0,
        metavar="SECONDS",
        help="silence pushed after each recording, as if the microphone stayed open (default %(default)s)",
    )
    parser.add_argument(
        "--nj",
        type=at_least(int, 1),
        default=1,
        help="processes (default %(default)s; more disturb one another's compute times)",
    )
    add_prompt_argument(parser)
    add_case_argument(parser)
    add_model_arguments(parser, chunk_size=False)
    add_config_arguments(parser, StreamConfig)
    parser.set_defaults(endpoint_silence=math.inf, endpoint_length=math.inf)


def _chunk_sizes(text: str) -> list[float]:
    return list(dict.fromkeys(float(part) for part in text.split(",")))


_chunk_sizes.__name__ = "list of seconds"  # for argparse's message


def main(args: argparse.Namespace) -> int:
    """Measure and report; returns the exit code, 1 when some audio could not be read."""
    from espnet_speechllm_xl.evaluation.latency_report import latency_report
    from espnet_speechllm_xl.sets.stream import Streaming, measure_latency

    streaming = Streaming(
        load=load_settings(args),
        options={**stream_settings(args), **({"prompt": args.prompt} if args.prompt else {})},
        chunk_sizes=args.chunk_sizes,
        context=args.context,
        block_seconds=args.block,
        tail_seconds=args.tail,
        nj=args.nj,
        ignore_case=args.ignore_case,
    )
    out = Path(args.out)
    found = measure_latency(Path(args.dump), out, streaming, args.reference)
    command = shlex.join(["speechllm-xl", *args.argv])
    print("\n".join(latency_report(out, found.setup, found.sizes, command)))
    print(f"written: {out / 'LATENCY.md'}")
    for utterance, reason in found.failed.items():
        print(f"speechllm-xl latency: failed: {utterance}: {reason}", file=sys.stderr)
    return 1 if found.failed else 0
