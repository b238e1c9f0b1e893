"""``pack``: one file of a trained model."""

import argparse
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_llm_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--model", required=True, help="experiment directory")
    parser.add_argument("--out", required=True, help="file to write, e.g. model.zip")
    parser.add_argument("--weights", help="file in the model directory (default: the averaged best)")
    parser.add_argument(
        "--with-llm", action="store_true", help="pack a pretrained language model's weights, too, not its name alone"
    )
    add_llm_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Write the file; returns 0."""
    from espnet_speechllm_xl.trained_model import pack

    pack(args.model, args.out, args.weights, args.with_llm, args.llm)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB; speechllm-xl transcribe FILE --model {args.out}")
    return 0
