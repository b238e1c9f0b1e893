"""``speechllm-xl compare``: error rates of decoded sets with intervals, and the others' differences to the first."""

import sys
from pathlib import Path


def add_arguments(parser):
    """Declare the options of the command."""
    parser.add_argument(
        "hypotheses",
        nargs="+",
        metavar="DECODED",
        help="directories with a Kaldi text, as decoding writes them, or such files, of any toolkit; "
        "the first is the one that the others are compared with",
    )
    parser.add_argument("--dump", required=True, metavar="DIR", help="the set: text (references) and utt2spk")
    parser.add_argument(
        "--unit", choices=["words", "characters"], default="words", help="of the errors (default %(default)s)"
    )


def _blocks(name, args):
    from espnet_speechllm_xl import metrics, significance
    from espnet_speechllm_xl.kaldi import joined, read_table, read_text

    dump, path = Path(args.dump), Path(name)
    references, speakers = read_text(dump / "text"), read_table(dump / "utt2spk")
    hypotheses = read_text(path / "text" if path.is_dir() else path)
    counted, missing = significance.counted(references, hypotheses, speakers, args.unit, f"{name}: hypotheses")
    if missing:
        few = metrics.some_names(missing)
        print(f"{name}: {len(missing)} utterances without hypothesis count as deletions: {few}", file=sys.stderr)
    return significance.blocks([counted], by_speaker=joined(dump.resolve().name) is None)


def main(args):
    """Print a table; returns 0.  Raises UserError for files that are missing, or not of the set."""
    from espnet_speechllm_xl import significance
    from espnet_speechllm_xl.tables import RATES, markdown

    first, *others = found = [_blocks(name, args) for name in args.hypotheses]
    differences = ["-", *(significance.difference(other, first).text("{:+.1f}") for other in others)]
    rates = (significance.error_rate(blocks).text("{:.1f}") for blocks in found)
    head = ["decoded", f"{RATES[args.unit]} (%)", "minus the first"]
    print("\n".join(markdown(head, zip(args.hypotheses, rates, differences, strict=True))))
    print(f"95 % intervals; blocks: {first.described(args.unit)}")
    return 0
