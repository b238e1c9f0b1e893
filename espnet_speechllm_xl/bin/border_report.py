"""``border-report``: what goes wrong at the borders of chunks.

Of a decoded set, how many errors lie there; of a model, whether a chunk takes up a word that the one before left out.
"""

import argparse
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_case_argument, add_llm_argument, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--decoded", metavar="DIR", help="exp/<model>/decode_*/<set>")
    what.add_argument("--model", help="model directory, or a file made by speechllm-xl pack")
    parser.add_argument("--dump", required=True, metavar="DIR", help="dump/raw/<set>")
    parser.add_argument("--reference", metavar="CTM", help="times of the words (default: ref.ctm in the dump)")
    parser.add_argument(
        "--chunk",
        type=at_least(int, 1),
        metavar="FRAMES",
        help="size of a chunk, in frames of 40 ms (default: as the set was decoded, or the model's)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for --model (default %(default)s)")
    add_llm_argument(parser)
    add_case_argument(parser)
    parser.add_argument(
        "--near",
        type=at_least(int, 1),
        default=3,
        metavar="FRAMES",
        help="frames before and behind a boundary that are near it (default %(default)s)",
    )


def main(args: argparse.Namespace) -> int:
    """Print the report; returns 0, or 1 when nothing could be counted."""
    from espnet_speechllm_xl.corpus.ctm import read_ctm
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.evaluation import border_errors

    dump = Path(args.dump)
    try:
        times = read_ctm(args.reference or dump / "ref.ctm")
        if args.model:
            from espnet_speechllm_xl.sets.border_probabilities import model_report

            lines, counted = model_report(args.model, dump, times, args.chunk, args.near, args.device, args.llm)
        else:
            lines, counted = border_errors.report(
                Path(args.decoded), dump, times, args.chunk, args.near, args.ignore_case
            )
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is not there: give --dump a formatted set (word times: its ref.ctm, or --reference), "
            "--decoded a set of a decode_* directory"
        ) from error
    print("\n".join(lines))
    return 0 if counted else 1
