"""``doubts``: signs that what follows from a training is in vain, a line on standard error each; the recipe goes on."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="directory of a training")


def main(args: argparse.Namespace) -> int:
    """Say what is doubtful of each model; returns 0, whatever was said."""
    from espnet_speechllm_xl.evaluation.doubts import of_training

    for directory in args.models:
        say(of_training(directory))
    return 0


def say(lines: Iterable[str]) -> None:
    """Print each doubt to standard error."""
    for line in lines:
        print(f"warning: {line}", file=sys.stderr, flush=True)
