"""The directory of a training, ``exp/<tag>/``: names of its files, and their only reader.

    config.yaml                         all settings of the training, written by ESPnet
    tokenizer.model  or  tokenizer/     the tokenizer: a sentencepiece file, or a Hugging Face directory
    ctc_tokenizer.model                 that of a CTC head with tokens of its own, else absent
    <phase>.<criterion>.ave.pth         the mean of the best epochs' weights, which decoding takes
    checkpoint.pth                      model and optimiser, with which a training goes on

A packed model holds the same settings and tokenizers, and its weights as ``model.pth``.  A model whose decoder is a
pretrained language model may have the folder ``llm/``: the configuration of that, and perhaps its weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl.config import ChunkingConfig, LossConfig
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import DamagedWeights, read_weights
from espnet_speechllm_xl.settings import read_yaml

if TYPE_CHECKING:
    import torch

CONFIG, TOKENIZER, WEIGHTS, CHECKPOINT = "config.yaml", "tokenizer", "model.pth", "checkpoint.pth"
SENTENCEPIECE = f"{TOKENIZER}.model"
LLM = "llm"  # folder of a Hugging Face language model
LLM_WEIGHTS = ("*.safetensors", "*.bin")
CTC_TOKENIZER = f"ctc_{SENTENCEPIECE}"

# Last parts of the names of tensors that are saved with the weights but not trained.
BUFFERS = {"mean", "std", "running_mean", "running_var", "num_batches_tracked", "inv_freq", "pe", "melmat"}


def own_tokenizer(directory: Path) -> Path | None:
    """Return the copy of the tokenizer beside the weights, of either kind; None where there is none."""
    paths = (directory / TOKENIZER, directory / SENTENCEPIECE)
    return next((path for path in paths if path.exists()), None)


def find_tokenizer(directory: Path, args: argparse.Namespace) -> Path:
    """Return the tokenizer beside the weights, else the file that training used (``args``: config.yaml)."""
    return own_tokenizer(directory) or Path(args.tokenizer)


def has_llm_weights(directory: Path) -> bool:
    """Tell whether a Hugging Face directory holds weights, and not the configuration alone."""
    return any(True for pattern in LLM_WEIGHTS for _ in directory.glob(pattern))


def find_ctc_tokenizer(directory: Path, args: argparse.Namespace) -> Path | None:
    """Return the tokenizer of the CTC head's own tokens, beside the weights, else the file that training used.

    Args:
        directory: of the training.
        args: its config.yaml.

    Returns:
        None where the model has no such head.

    Raises:
        UserError: the file is not there.
    """
    loss = getattr(args, "loss_conf", {})
    if not loss.get("ctc_tokenizer") or not loss.get("ctc_weight"):
        return None
    paths = directory / CTC_TOKENIZER, Path(str(loss["ctc_tokenizer"]))
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"{paths[0]} does not exist, the tokenizer of the model's CTC head: copy it from its training")


def averaged_weights(directory: Path) -> list[Path]:
    """List the averaged weights of a training in the order of their names, one file for each criterion."""
    return sorted(directory.glob("valid.*.ave.pth"))


def average_name(phase: str, criterion: str, part: str | None = None) -> str:
    """Return the name of the file with averaged weights.

    Args:
        phase: "train" or "valid".
        criterion: the figure by which the averaged epochs are the best.
        part: ESPnet's name of an average that is made before the training has ended; None: the last one.
    """
    return ".".join(filter(None, (phase, criterion, "ave", part, "pth")))


def default_weights(directory: Path, criterion: tuple[str, str, str]) -> str:
    """Return the name of the weights to load: the average by ``criterion`` of the task, or the only other one."""
    phase, name, _ = criterion
    average = average_name(phase, name)
    there = [path.name for path in averaged_weights(directory)]
    if average not in there and len(there) == 1:  # another best_model_criterion was set
        return there[0]
    return average if average in there else WEIGHTS


def stamp(model: str | Path, *files: str | Path) -> list[list]:
    """Return a value that changes with the weights of a directory or packed file ``model``, or with ``files``."""
    model = Path(model)
    weights = sorted(model.glob("[!.]*.pth")) if model.is_dir() else [model]
    return [[str(file), file.stat().st_mtime_ns] for file in [*weights, *map(Path, files)] if file.exists()]


def read_config(directory: str | Path) -> dict[str, Any] | None:
    """Return ``config.yaml`` of a training, or None before there is one; raise UserError when it cannot be read."""
    path = Path(directory) / CONFIG
    if not path.is_file():
        return None
    return read_yaml(path, "it is truncated; restore it or train again")


def chunk_size(config: dict[str, Any] | None) -> int | None:
    """Return the frames of a chunk by ``config.yaml``; None for one infinite chunk, and for a system without chunks."""
    return ((config or {}).get("chunking_conf") or {}).get("chunk")


def planned_chunk_size(path: str | Path, options: str = "") -> int | None:
    """Return the frames of a chunk in a training that has not begun; None for one infinite chunk.

    The system must have chunks: a YAML that does not set them gives the default.

    Args:
        path: YAML of the training, or the ``config.yaml`` of one.
        options: further options of the training, parted by spaces; only ``--chunking_conf`` matters.

    Raises:
        UserError: the YAML cannot be read.
    """
    conf = _planned(path, options, "chunking_conf")
    return chunk_size({"chunking_conf": {"chunk": ChunkingConfig.chunk, **conf}})


def planned_ctc_weight(path: str | Path, options: str = "") -> float:
    """Return the weight of the auxiliary CTC loss in a training that has not begun.

    Args:
        path: see :func:`planned_chunk_size`.
        options: further options of the training, parted by spaces; only ``--loss_conf`` matters.

    Raises:
        UserError: the YAML cannot be read.
    """
    return float(_planned(path, options, "loss_conf").get("ctc_weight") or LossConfig.ctc_weight)


def _planned(path: str | Path, options: str, section: str) -> dict[str, Any]:
    """Return a section of a YAML, changed by the options of a command line."""
    from espnet2.utils.nested_dict_action import NestedDictAction

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{section}", action=NestedDictAction, default=read_yaml(path).get(section) or {})
    return getattr(parser.parse_known_args(options.split())[0], section)


def count_parameters(directory: str | Path) -> int | None:
    """Return the number of trained values in the weights of a training; None where there are none.

    Weights that two modules share count once: they are matrices that are equal in every value.

    Raises:
        UserError: a file does not load.
    """
    import torch

    found = [path for path in sorted(Path(directory).glob("*.pth")) if path.name != CHECKPOINT and path.exists()]
    if not found:
        return None
    try:
        state = read_weights(found[0])
    except DamagedWeights as error:
        raise UserError(f"{found[0]} does not load ({error}): it is truncated; copy it again or train again") from error
    trained = [value for name, value in state.items() if name.rpartition(".")[2] not in BUFFERS]
    trained = [value for value in trained if value.is_floating_point()]
    different: dict[tuple[int, ...], list[torch.Tensor]] = {}  # by shape
    for value in trained:
        alike = different.setdefault(tuple(value.shape), [])
        if value.dim() < 2 or not any(torch.equal(value, other) for other in alike):
            alike.append(value)
    return sum(value.numel() for alike in different.values() for value in alike)
