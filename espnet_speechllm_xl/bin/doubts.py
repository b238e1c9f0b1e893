"""``python3 -m espnet_speechllm_xl.bin.doubts MODEL...``: signs that what follows from a training is in vain.

A line on stderr for each, before hours are spent on it; the recipe goes on.
"""

import argparse
import sys
from pathlib import Path

MOST_TOKEN_ERRORS = 0.3  # of an aligner on its validation set, beyond which its word ends are arbitrary


def of_training(directory: Path) -> list[str]:
    """Say what makes the model of a finished training doubtful, in lines; [] where nothing does or nothing is known.

    Raises:
        UserError: ``config.yaml`` cannot be read.
    """
    from espnet_speechllm_xl.errors import beside
    from espnet_speechllm_xl.evaluation.train_log import ended_in_warmup, read_train_log
    from espnet_speechllm_xl.experiment import read_config

    epochs, config, found = read_train_log(directory), read_config(directory) or {}, []
    rates = [parts["valid"]["ter"] for parts in epochs.values() if "ter" in parts.get("valid", {})]
    if config.get("task") == "ctc" and rates and not min(rates) <= MOST_TOKEN_ERRORS:
        best = beside(min(rates), MOST_TOKEN_ERRORS, 2)
        found.append(
            f"{directory}: its token error rate is {best} at best, over {MOST_TOKEN_ERRORS}: word ends and texts that "
            "it finds are hardly those of the speech; train it longer, or on more or cleaner data"
        )
    if ended_in_warmup(epochs, config):
        found.append(
            f"{directory}: the training ended in its warm-up, after {len(epochs)} epochs, the learning rate still "
            "rising: train for more epochs (--max_epoch), or shorten the warm-up (scheduler_conf)"
        )
    return found


def of_hypotheses(texts: dict[str, str], place: str) -> list[str]:
    """Say that all hypotheses (by utterance) of the decoded set ``place`` are empty, in a line; [] otherwise."""
    if not texts or any(text.strip() for text in texts.values()):
        return []
    return [
        f"{place}: all {len(texts)} hypotheses are empty: the model has learnt to write nothing, or the set holds no "
        "speech; look at both before more is decoded"
    ]


def say(lines: list[str]) -> None:
    """Print them to stderr."""
    for line in lines:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Say what is doubtful of each model; returns 0, whatever was said, and 2 when a file cannot be read."""
    from espnet_speechllm_xl.errors import UserError

    parser = argparse.ArgumentParser(prog="python3 -m espnet_speechllm_xl.bin.doubts", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="directory of a training")
    try:
        for directory in parser.parse_args(argv).models:
            say(of_training(directory))
    except (UserError, OSError) as error:
        print(f"doubts: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
