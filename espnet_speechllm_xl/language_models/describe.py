"""What a language model is: family, sizes, whether the decoder can use it, and what training it costs."""

import copy
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from espnet_speechllm_xl.errors import UserError, of_machine
from espnet_speechllm_xl.language_models.convert import open_gguf, quiet, read_config
from espnet_speechllm_xl.language_models.costs import Shape, Training, cost_rows
from espnet_speechllm_xl.model.pretrained import PretrainedNetwork, key_sizes
from espnet_speechllm_xl.settings import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MOST_LAYERS = 6  # of the small copy that is tried: a whole period of Gemma 3's kinds of layers


def describe(path: str | Path, training: Training) -> list[str]:
    """Return lines about a Hugging Face directory or a GGUF file.

    Args:
        path: of either.
        training: how it would be trained.

    Raises:
        UserError: ``path`` is neither, or damaged, or a GGUF file that cannot be converted.
    """
    path = Path(path)
    config, dtype = _read(path)
    shape = shape_of(config, path)
    parameters = count_parameters(config)
    table = "one table for inputs and outputs" if shape.tied else "tables for inputs and outputs"
    reason = refusal(config)
    lines = [
        f"{path}: {config.model_type}, {parameters / 1e6:.1f} M parameters, {dtype}",
        f"layers          {shape.layers}",
        f"width           {shape.dim}, feed-forward {shape.ffn_dim}",
        f"heads           {shape.heads} of {shape.head_dim}, key heads {shape.key_heads}",
        f"tokens          {shape.vocab_size}, {table}",
        f"positions       up to {config.max_position_embeddings} in its training",
        f"as the decoder  {f'no: {reason}' if reason else 'yes'}",
        "",
        f"Training, counted; {training.batch_seconds:g} s of audio in a batch, LoRA of rank {training.lora_rank}:",
    ]
    return [*lines, *_aligned(cost_rows(shape, training))]


def _read(path: Path) -> "tuple[PretrainedConfig, str]":
    """Return the configuration of a directory or GGUF file, and the type of its weights."""
    if path.is_file():
        reader = open_gguf(path)
        with quiet():
            config = read_config(path, reader)
        sizes: Counter[str] = Counter()
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        return config, f"mostly {sizes.most_common(1)[0][0]}"
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is neither a Hugging Face directory (config.json) nor a GGUF file")
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path / 'config.json'} cannot be used ({reason}): download the model again") from error
    dtype = getattr(config, "dtype", None)
    return config, str(dtype).removeprefix("torch.") if dtype is not None else "of unknown type"


def shape_of(config: "PretrainedConfig", path: Path) -> Shape:
    """Return the sizes that a configuration says; raise UserError where it says none."""
    try:
        key_heads, head_dim = key_sizes(config)
        return Shape(
            layers=config.num_hidden_layers,
            dim=config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=key_heads,
            head_dim=head_dim,
            ffn_dim=config.intermediate_size,
            vocab_size=config.vocab_size,
            tied=config.tie_word_embeddings,
        )
    except AttributeError as error:
        raise UserError(f"{path} is no language model like Llama's ({error}): choose another model") from error


def count_parameters(config: "PretrainedConfig") -> int:
    """Return how many numbers a model of this configuration has; no memory is used for them."""
    from transformers import AutoModelForCausalLM

    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())


def refusal(config: "PretrainedConfig") -> str | None:
    """Tell why the decoder cannot use a model of this configuration, None where it can: a small one is tried."""
    from transformers import AutoModelForCausalLM

    small = copy.deepcopy(config)
    _, head_dim = key_sizes(config)
    small.num_hidden_layers = min(config.num_hidden_layers, MOST_LAYERS)
    if getattr(config, "layer_types", None):
        small.layer_types = config.layer_types[: small.num_hidden_layers]
    small.num_attention_heads, small.num_key_value_heads, small.hidden_size = 2, 1, 2 * head_dim
    small.intermediate_size, small.vocab_size, small.pad_token_id = 16, 8, None
    try:
        with quiet():
            model = AutoModelForCausalLM.from_config(small, attn_implementation="eager", dtype=torch.float32)
            PretrainedNetwork(model, config.model_type).check()
    except ConfigError as error:
        return str(error)
    except Exception as error:  # transformers raises any kind
        if of_machine(error):
            raise
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _aligned(rows: Iterable[Iterable[str]]) -> list[str]:
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
