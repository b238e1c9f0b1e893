"""``robustness``: how a model stands quiet and loud recordings, and audio that is cut where its last word ends."""

import argparse
import math
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_case_argument, add_model_arguments, at_least, load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--dump", required=True, metavar="DIR", help="formatted set with text (dump/raw/SET)")
    parser.add_argument(
        "--levels", type=_decibels, nargs="*", default=[10, -10, -20, -30, -40], metavar="DB",
        help="changes of the level, rounded and clipped as 16 bits do (default: 10 -10 -20 -30 -40)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=at_least(int, 1), default=8, help="utterances (default %(default)s)")
    add_case_argument(parser)
    add_model_arguments(parser)


def _decibels(text: str) -> float:
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text} is no number of decibels")
    return float(text)


def main(args: argparse.Namespace) -> int:
    """Print a table with a row for each way in which the audio was changed; returns 0."""
    from espnet_speechllm_xl.evaluation.letter_case import WITHOUT_CASE, ignoring
    from espnet_speechllm_xl.evaluation.markdown import markdown_table
    from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.sets.robustness import measure_robustness

    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    small = speech2text.tokenizer.lower_case
    ignored = ignoring(small, Ignored(case=args.ignore_case))
    found = measure_robustness(speech2text, Path(args.dump), args.levels, args.batch_size, ignored)
    rows = [[*row[:3], f"{row.last_words} of {row.utterances}"] for row in found.rows]
    print("\n".join(markdown_table(["audio", "WER (%)", "minus the first of its kind", "last word right"], rows)))
    print(f"search {speech2text.search_config.method}; 95 % intervals; blocks: {found.blocks}{ignored}")
    if small:
        print(WITHOUT_CASE)
    if found.not_cut:
        print(f"not cut: {found.not_cut} utterances whose words have no times (ref.ctm)")
    return 0
