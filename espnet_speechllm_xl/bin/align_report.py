"""``align-report``: how good an aligned set is, in figures and pictures.

``ALIGNED/report/`` gets ``report.md`` and ``utterance_N.png`` (audio, word ends, chunk boundaries); where the dump has
reference word times (``ref.ctm``) also ``delay.json`` and ``delay.png`` (paper Table III).
"""

import argparse
import sys
from pathlib import Path

from espnet_speechllm_xl.bin.options import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--aligned", required=True, metavar="DIR", help="made by speechllm-xl align")
    parser.add_argument("--dump", required=True, metavar="DIR", help="dump/raw/SET that was aligned")
    parser.add_argument(
        "--chunk",
        type=at_least(int, 1),
        metavar="FRAMES",
        help="size of a chunk, in frames of 40 ms, whose boundaries are drawn (default: as --training has it, else the "
        "experiment that the aligned set lies in; without chunks there are no boundaries)",
    )
    parser.add_argument("--training", metavar="YAML", help="configuration of the model that the alignment is for")
    parser.add_argument("--training-args", metavar="TEXT", default="", help="further options of that training")
    parser.add_argument("--plots", type=at_least(int, 0), default=3, help="utterances to draw (default 3)")


def main(args: argparse.Namespace) -> int:
    """Write the report; returns 0, or 1 when an utterance could not be drawn."""
    from espnet_speechllm_xl.evaluation.alignment_report import write_report
    from espnet_speechllm_xl.experiment import planned_chunk_size

    chunk_size = args.chunk
    if chunk_size is None and args.training:
        chunk_size = planned_chunk_size(args.training, args.training_args)
    summary, failures = write_report(Path(args.aligned), Path(args.dump), chunk_size, args.plots)
    print(summary)
    for failure in failures:
        print(f"speechllm-xl align-report: not drawn: {failure}", file=sys.stderr)
    return 1 if failures else 0
