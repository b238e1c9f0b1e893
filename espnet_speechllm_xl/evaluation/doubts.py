"""Signs that what follows from a training is in vain, to be said before hours are spent on it."""

from pathlib import Path

from espnet_speechllm_xl.errors import beside
from espnet_speechllm_xl.evaluation.train_log import ended_in_warmup, read_train_log
from espnet_speechllm_xl.experiment import read_config

MOST_TOKEN_ERRORS = 0.3  # an aligner that makes more on its validation set finds arbitrary word ends


def of_training(directory: Path) -> list[str]:
    """Return a line for each thing that makes the model of a finished training doubtful; [] where nothing is known.

    Raises:
        UserError: ``config.yaml`` cannot be read.
    """
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
    """Return a line when all hypotheses ``{utterance: text}`` of the decoded set ``place`` are empty; else []."""
    if not texts or any(text.strip() for text in texts.values()):
        return []
    return [
        f"{place}: all {len(texts)} hypotheses are empty: the model has learnt to write nothing, or the set holds no "
        "speech; look at both before more is decoded"
    ]
