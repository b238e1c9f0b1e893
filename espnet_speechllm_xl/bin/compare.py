"""``speechllm-xl compare``: error rates of decoded sets with intervals, and the others' differences to the first.

With ``--words`` also the recall and the precision of listed words, and the error rates of these and of the others.
"""

import argparse
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_speechllm_xl.bin.options import HYPOTHESES_HELP, REFERENCE_HELP, add_scoring_arguments

if TYPE_CHECKING:
    from espnet_speechllm_xl.evaluation.listed_words import Part
    from espnet_speechllm_xl.evaluation.metrics import Counts
    from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored, Reference
    from espnet_speechllm_xl.evaluation.significance import Blocks
    from espnet_speechllm_xl.evaluation.written_marks import Hits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    text = f"{HYPOTHESES_HELP}; the first is the one that the others are compared with"
    parser.add_argument("hypotheses", nargs="*", metavar="DECODED", help=text)
    parser.add_argument("--hyp", nargs="+", default=[], metavar="PATH", help="the same, as score has it")
    parser.add_argument("--ref", "--dump", required=True, metavar="PATH", help=REFERENCE_HELP)
    add_scoring_arguments(parser)
    parser.add_argument(
        "--words", metavar="FILE", help="words, such as names: how many are right and how many false; error rates"
    )
    parser.add_argument(
        "--unit", choices=["words", "characters"], default="words", help="of the errors (default %(default)s)"
    )


@dataclass(frozen=True)
class _Counted:
    """The errors of a decoded set, and its listed words by utterance where there is a list."""

    blocks: "Blocks"
    total: "Counts"
    listed: "dict[str, Hits]"
    parts: "dict[str, tuple[Part, Part]]"


def _counted(
    name: str, reference: "Reference", by_speaker: bool, listed: str, ignored: "Ignored", args: argparse.Namespace
) -> _Counted:
    """Count the errors of a decoded set.

    Args:
        name: of its directory or file.
        reference: of the set.
        by_speaker: whether its blocks may be speakers.
        listed: words of a list; "": there is none.
        ignored: parts of the texts that are not scored.
        args: options of the command.
    """
    from espnet_speechllm_xl.evaluation import metrics, significance
    from espnet_speechllm_xl.evaluation.letter_case import refuse_other_case
    from espnet_speechllm_xl.evaluation.listed_words import count_listed, parts_of
    from espnet_speechllm_xl.evaluation.normalisers import normalised
    from espnet_speechllm_xl.evaluation.scoring_inputs import read_hypotheses

    hypotheses = ignored.left_of_all(read_hypotheses(name, reference))
    texts = normalised(args.normaliser, reference.against(hypotheses, ignored))
    hypotheses = normalised(args.normaliser, hypotheses)
    if not ignored.case:
        refuse_other_case(texts, hypotheses, name)
    counting = functools.partial(significance.counted, texts, hypotheses, reference.speakers)
    rows, scored = counting(args.unit, f"{name}: hypotheses")
    if scored.missing:
        few = metrics.some_names(scored.missing)
        print(f"{name}: {len(scored.missing)} utterances without hypothesis count as deletions: {few}", file=sys.stderr)
    hits, parts = {}, {}
    if listed:
        (text,) = normalised(args.normaliser, {"": ignored.left_of(listed)}).values()
        words, (_, by_words) = {*text.split()}, counting("words", name)
        hits, parts = count_listed(by_words, words), parts_of(by_words, words)
    return _Counted(significance.blocks([rows], by_speaker), scored.total, hits, parts)


def _several_speakers(path: Path) -> bool:
    """Tell whether an utterance may have several speakers, as in DIR/test_10x, DIR/test_10x/text, DIR/test_10x.stm."""
    from espnet_speechllm_xl.corpus.kaldi import joined

    return any(joined(name) for name in (path.name, path.stem, path.parent.name))


def main(args: argparse.Namespace) -> int:
    """Print a table, and one of the listed words; returns 0.

    Raises:
        UserError: a file is missing, or not of the set.
    """
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.evaluation import normalisers, significance
    from espnet_speechllm_xl.evaluation.letter_case import ignoring, is_of_small_letters
    from espnet_speechllm_xl.evaluation.listed_words import error_table, listed_table, read_words
    from espnet_speechllm_xl.evaluation.markdown import markdown_table
    from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored, read_reference
    from espnet_speechllm_xl.paper_tables.tables import RATES

    names = [*args.hypotheses, *args.hyp]
    if not names:
        raise UserError("compare: no hypotheses: give directories or files of them")
    reference = read_reference(args.ref, args.utt2spk, args.segments)
    listed = read_words(args.words) if args.words else ""
    by_speaker, same_words = not _several_speakers(Path(args.ref).resolve()), not reference.has_alternatives
    small = [name for name in names if is_of_small_letters(name)]
    ignored = ignoring(bool(small), Ignored(args.ignore_tags, args.ignore_case))  # the same for all
    found = [_counted(name, reference, by_speaker, listed, ignored, args) for name in names]
    minus = functools.partial(significance.difference, reference=found[0].blocks, same_words=same_words)
    differences = ["-", *(minus(other.blocks).text("{:+.1f}") for other in found[1:])]
    head = ["decoded", f"{RATES[args.unit]} (%)", "Sub", "Del", "Ins", "minus the first"]
    rates = [significance.error_rate(one.blocks).text("{:.1f}") for one in found]
    kinds = [[f"{rate:.1f}" for rate in one.total.rates()[1:4]] for one in found]
    rows = zip(names, rates, *zip(*kinds, strict=True), differences, strict=True)
    print("\n".join(markdown_table(head, rows)))
    after = "" if args.normaliser == normalisers.NONE else f", after {normalisers.described(args.normaliser)}"
    print(f"95 % intervals; blocks: {found[0].blocks.described(args.unit)}{ignored}{after}")
    if small:
        print(f"{', '.join(small)}: the model writes small letters, so all are compared without regard to case")
    if listed:
        hits, parts = [one.listed for one in found], [one.parts for one in found]
        settings = reference.speakers, by_speaker, same_words
        print("\n".join(["", *listed_table(names, hits, *settings), "", *error_table(names, parts, *settings)]))
    return 0
