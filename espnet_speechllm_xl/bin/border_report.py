"""``python3 -m espnet_speechllm_xl.bin.border_report``: what goes wrong at the borders of chunks.

Of a decoded set, how many errors lie there; of a model, whether a chunk takes up a word that the one before left out.
"""

import argparse
import sys
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.bin.options import at_least
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.border_errors import report
from espnet_speechllm_xl.sets.border_probabilities import model_report

PROGRAM = "border_report"


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python3 -m espnet_speechllm_xl.bin.{PROGRAM}",
        description="Print the errors of a decoded set by the place of the words with respect to the chunk boundaries, "
        "or what a model thinks of the words that end just before one.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--decoded", metavar="DIR", help="exp/<model>/decode_*/<set>")
    what.add_argument("--model", help="model directory, or a file made by speechllm-xl pack")
    parser.add_argument("--dump", required=True, metavar="DIR", help="dump/raw/<set>")
    parser.add_argument("--reference", metavar="CTM", help="times of the words (default: ref.ctm in the dump)")
    parser.add_argument(
        "--chunk", type=at_least(int, 1), metavar="FRAMES", help="of 40 ms (default: that of the model)"
    )
    parser.add_argument("--device", default="cpu", help="of --model: cpu or cuda (default %(default)s)")
    parser.add_argument(
        "--near",
        type=at_least(int, 0),
        default=3,
        metavar="FRAMES",
        help="from a boundary that are near it (default %(default)s)",
    )
    return parser


def main(argv=None):
    """Print the report; returns 0, 1 when a file is missing or damaged or nothing could be counted."""
    args = get_parser().parse_args(argv)
    return guard.run(lambda: _main(args), PROGRAM, bad_input=1)


def _main(args):
    from espnet_speechllm_xl.corpus.ctm import read_ctm

    try:
        dump = Path(args.dump)
        settings = dump, read_ctm(args.reference or dump / "ref.ctm"), args.chunk, args.near
        if args.model:
            lines, counted = model_report(args.model, *settings, args.device)
        else:
            lines, counted = report(Path(args.decoded), *settings)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is not there: give --dump a formatted set (word times: its ref.ctm, or --reference), "
            "--decoded a set of a decode_* directory"
        ) from error
    print("\n".join(lines))
    return 0 if counted else 1


if __name__ == "__main__":
    sys.exit(main())
