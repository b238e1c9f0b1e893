"""``speechllm-xl compare``: error rates of decoded sets with intervals, and the others' differences to the first."""

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_speechllm_xl.bin.options import HYPOTHESES_HELP, REFERENCE_HELP, add_scoring_arguments

if TYPE_CHECKING:
    from espnet_speechllm_xl.evaluation.metrics import Counts
    from espnet_speechllm_xl.evaluation.scoring_inputs import Reference
    from espnet_speechllm_xl.evaluation.significance import Blocks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    text = f"{HYPOTHESES_HELP}; the first is the one that the others are compared with"
    parser.add_argument("hypotheses", nargs="*", metavar="DECODED", help=text)
    parser.add_argument("--hyp", nargs="+", default=[], metavar="PATH", help="the same, as score has it")
    parser.add_argument("--ref", "--dump", required=True, metavar="PATH", help=REFERENCE_HELP)
    add_scoring_arguments(parser)
    parser.add_argument(
        "--unit", choices=["words", "characters"], default="words", help="of the errors (default %(default)s)"
    )


def _counted(name: str, reference: "Reference", args: argparse.Namespace) -> "tuple[Blocks, Counts]":
    """Count the errors of a decoded set."""
    from espnet_speechllm_xl.corpus.kaldi import joined
    from espnet_speechllm_xl.evaluation import metrics, significance
    from espnet_speechllm_xl.evaluation.normalisers import normalised
    from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored, read_hypotheses

    ignored = Ignored(args.ignore_tags, args.ignore_case)
    hypotheses = ignored.left_of_all(read_hypotheses(name, reference))
    texts = normalised(args.normaliser, reference.against(hypotheses, ignored))
    hypotheses = normalised(args.normaliser, hypotheses)
    rows, scored = significance.counted(texts, hypotheses, reference.speakers, args.unit, f"{name}: hypotheses")
    if scored.missing:
        few = metrics.some_names(scored.missing)
        print(f"{name}: {len(scored.missing)} utterances without hypothesis count as deletions: {few}", file=sys.stderr)
    path = Path(args.ref).resolve()  # DIR/test_10x, DIR/test_10x/text, DIR/test_10x.stm
    several = any(joined(set_name) for set_name in (path.name, path.stem, path.parent.name))
    return significance.blocks([rows], by_speaker=not several), scored.total


def main(args: argparse.Namespace) -> int:
    """Print a table; returns 0.

    Raises:
        UserError: a file is missing, or not of the set.
    """
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.evaluation import normalisers, significance
    from espnet_speechllm_xl.evaluation.markdown import markdown_table
    from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored, read_reference
    from espnet_speechllm_xl.paper_tables.tables import RATES

    names = [*args.hypotheses, *args.hyp]
    if not names:
        raise UserError("compare: no hypotheses: give directories or files of them")
    reference = read_reference(args.ref, args.utt2spk, args.segments)
    found, counts = zip(*(_counted(name, reference, args) for name in names), strict=True)
    minus = functools.partial(significance.difference, same_words=not reference.has_alternatives)
    differences = ["-", *(minus(other, found[0]).text("{:+.1f}") for other in found[1:])]
    head = ["decoded", f"{RATES[args.unit]} (%)", "Sub", "Del", "Ins", "minus the first"]
    rates = [significance.error_rate(blocks).text("{:.1f}") for blocks in found]
    kinds = [[f"{rate:.1f}" for rate in total.rates()[1:4]] for total in counts]
    rows = zip(names, rates, *zip(*kinds, strict=True), differences, strict=True)
    print("\n".join(markdown_table(head, rows)))
    ignored = Ignored(args.ignore_tags, args.ignore_case)
    after = "" if args.normaliser == normalisers.NONE else f", after {normalisers.described(args.normaliser)}"
    print(f"95 % intervals; blocks: {found[0].described(args.unit)}{ignored}{after}")
    return 0
