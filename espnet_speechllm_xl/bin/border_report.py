"""``python3 -m espnet_speechllm_xl.bin.border_report``: how many errors of a decoded set lie at chunk borders."""

import argparse
import sys
from pathlib import Path

from espnet_speechllm_xl.errors import UserError

PROGRAM = "border_report"


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python3 -m espnet_speechllm_xl.bin.{PROGRAM}",
        description="Print the errors of a decoded set by the place of the words with respect to the chunk borders. "
        "The dump must have reference word times (ref.ctm).",
    )
    parser.add_argument("--decoded", required=True, metavar="DIR", help="exp/<model>/decode_*/<set>")
    parser.add_argument("--dump", required=True, metavar="DIR", help="dump/raw/<set>")
    parser.add_argument("--chunk", type=int, metavar="FRAMES", help="of 40 ms (default: that of the model)")
    parser.add_argument(
        "--near", type=int, default=3, metavar="FRAMES", help="from a border that are near it (default %(default)s)"
    )
    return parser


def main(argv=None):
    """Print the report; returns 0, 1 when a file is missing or damaged or nothing could be counted."""
    args = get_parser().parse_args(argv)
    try:
        lines, counted = report(Path(args.decoded), Path(args.dump), args.chunk, args.near)
    except (UserError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0 if counted else 1


def report(decoded, dump, chunk=None, near=3):
    """Lines of Markdown, and the number of utterances counted; raises UserError or OSError."""
    from espnet_speechllm_xl import metrics
    from espnet_speechllm_xl.borders import border_errors
    from espnet_speechllm_xl.ctm import read_ctm
    from espnet_speechllm_xl.kaldi import read_table
    from espnet_speechllm_xl.timeline import chunk_seconds

    chunk = chunk_of_model(decoded.parent.parent) if chunk is None else chunk
    references = read_table(dump / "text")
    found = border_errors(references, read_table(decoded / "text"), read_ctm(dump / "ref.ctm"), chunk, near)
    lines = ["|word|words|deleted (%)|substituted (%)|", "|---|---|---|---|"]
    for name, counts in [*found.counts.items(), ("all", sum(found.counts.values(), start=metrics.Counts()))]:
        shares = (f"{counts.percent(part):.2f}" for part in (counts.deletions, counts.substitutions))
        lines.append(f"|{name}|{counts.words}|{'|'.join(shares)}|")
    counted = len(references) - len(found.left_out)
    lines += [
        "",
        f"Chunks of {chunk_seconds(chunk):.2f} s; 'just' is within {chunk_seconds(near):.2f} s. "
        f"Insertions: {found.insertions}. Utterances: {len(references)}, counted: {counted}, "
        f"left out: {len(found.left_out)}.",
    ]
    reasons = sorted(set(found.left_out.values()))
    for reason in reasons:
        names = [name for name, why in found.left_out.items() if why == reason]
        lines.append(f"Left out, {reason}: {metrics.some_names(names)}.")
    return lines, counted


def chunk_of_model(directory):
    """Frames of a chunk of the model in ``directory``; raises UserError when it has none."""
    from espnet_speechllm_xl.paper import read_config

    chunk = ((read_config(directory) or {}).get("chunking_conf") or {}).get("chunk")
    if chunk is None:
        raise UserError(f"{directory}/config.yaml names no chunk: give --chunk FRAMES")
    return chunk


if __name__ == "__main__":
    sys.exit(main())
