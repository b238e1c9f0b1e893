"""GGUF files (llama.cpp's format) become Hugging Face directories, which the decoder loads.

transformers reads the file.  What it would silently leave out is looked for here: scaled positions, weights without a
place in its model, and weights that the file lacks.
"""

import contextlib
import io
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from espnet_speechllm_xl.errors import UserError, of_machine
from espnet_speechllm_xl.files import new_folder
from espnet_speechllm_xl.model.pretrained import without_progress_bars

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PretrainedConfig

READER = "gguf>=0.19,<0.20"  # the package that reads GGUF files; setup.py wants the same
# GGUF's names of architectures -> families.  Files of Mistral and SmolLM2 call themselves Llama.
FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "smollm3": "SmolLM3",
}
# Gemma's scores are scaled by the size of a head; in the largest models (27 B), by their layers, as below.
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
LICENCE = "LICENSE"
OTHER = "take the model as a Hugging Face directory, or choose another one"
WEIGHTS = "model.safetensors"
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's, by which the angles of positions are divided
OLD_LENGTH, LOW, HIGH = 8192, 1.0, 4.0  # of Llama 3.1's rule, which made those factors
# Rules by which text is cut before its tokens are looked up, and for which GPT-2's, the default, gives the same tokens:
# SmolLM's merges join no digits.
LIKE_GPT2 = (None, "default", "gpt-2", "smollm")

Say = Callable[[str], None]


def convert(gguf: str | Path, out: str | Path, dtype: str = "bfloat16", say: Say = lambda line: None) -> None:
    """Make a Hugging Face directory of a GGUF file, whole or not at all.

    Args:
        gguf: the file.
        out: the directory; there must be none.
        dtype: of the weights: "bfloat16", "float16" or "float32".
        say: takes lines about the progress.

    Raises:
        UserError: the file cannot be used, or ``out`` is in the way.
    """
    need_reader()
    with new_folder(out) as made:
        convert_into(Path(gguf), made, dtype, None, say)


def need_reader() -> None:
    """Raise UserError where the package that reads GGUF files is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'GGUF files are read with the package gguf, which is missing: pip install "{READER}", or '
            "local/install.sh --extras llm"
        ) from error


def convert_into(
    gguf: Path, folder: Path, dtype: str = "bfloat16", licence: Path | None = None, say: Say = lambda line: None
) -> None:
    """Write configuration, tokenizer and weights of a GGUF file into a folder.

    Args:
        gguf: the file.
        folder: that is there, and empty.
        dtype: of the weights.
        licence: a file to put beside them.
        say: takes lines about the progress.

    Raises:
        UserError: the file cannot be used.
    """
    from safetensors.torch import save_file

    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype]
    reader = open_gguf(gguf)
    say(f"reading {gguf.name} ({gguf.stat().st_size / 1e6:.0f} MB, {family(reader, gguf)})")
    with _naming(gguf), quiet():
        config = read_config(gguf, reader)
        state = _read_weights(gguf, reader, config, kind)
        tokenizer = _read_tokenizer(gguf)
    if (rule := value(reader, "tokenizer.ggml.pre")) not in _known_rules():
        say(f"transformers does not know how {rule} cuts text into tokens, and does it as GPT-2 does")
    say(f"writing {sum(weight.nbytes for weight in state.values()) / 1e6:.0f} MB of {dtype}")
    config.dtype = kind
    with quiet():
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _keep_own_tokens(folder / "tokenizer.json", len(value(reader, "tokenizer.ggml.tokens")))
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    if licence is not None:
        shutil.copyfile(licence, folder / LICENCE)


def open_gguf(path: Path) -> "GGUFReader":
    """Open a GGUF file.

    Raises:
        UserError: there is none at ``path``, it is damaged, or the package that reads it is missing.
    """
    need_reader()
    from gguf import GGUFReader

    if not path.is_file():
        raise UserError(f"{path} is no file: give a GGUF file")
    try:
        return GGUFReader(path)
    except Exception as error:  # of any kind, for a file cut short
        if of_machine(error):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return UserError(f"{path} cannot be read as a GGUF file ({reason}): it is truncated or another; get it again")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn errors of the block into a UserError about the file ``path``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers raises any kind
        if of_machine(error):
            raise
        raise _damaged(path, error) from error


def value(reader: "GGUFReader", key: str) -> Any:  # noqa: ANN401  # of any type
    """Return a value of the file's header; None where there is none."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def family(reader: "GGUFReader", path: Path) -> str:
    """Return the family of a GGUF file.

    Raises:
        UserError: its models are of no family that can be converted.
    """
    architecture = value(reader, "general.architecture")
    if architecture not in FAMILIES:
        raise UserError(
            f"{path} is of the architecture {architecture}, which is not converted: choose a model of "
            f"{', '.join(FAMILIES.values())}"
        )
    return FAMILIES[architecture]


def read_config(path: Path, reader: "GGUFReader") -> "PretrainedConfig":
    """Return the configuration of a GGUF file, with what transformers leaves out of it.

    Raises:
        UserError: its positions are scaled in a way that is not converted, or transformers does not read the family.
    """
    from transformers import AutoConfig

    name = family(reader, path)
    architecture = value(reader, "general.architecture")
    scaling = value(reader, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise UserError(f"{path} has positions that are scaled ({scaling}), which is not converted: {OTHER}")
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except ValueError as error:
        if "not supported yet" in str(error):
            raise UserError(
                f"{path}: the installed transformers reads no GGUF files of {name}: take the model as a Hugging Face "
                "directory"
            ) from error
        raise
    if (head_dim := value(reader, f"{architecture}.attention.key_length")) is not None:
        config.head_dim = head_dim
    if architecture in LAYERS_OF_27B:  # the file does not say it, and llama.cpp has the same rule
        largest = config.num_hidden_layers == LAYERS_OF_27B[architecture]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if largest else config.head_dim
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            _scale_positions(config, np.asarray(tensor.data, dtype=np.float64).ravel(), path)
    return config


def _scale_positions(config: "PretrainedConfig", factors: np.ndarray, path: Path) -> None:
    """Set the rule of Llama 3.1 that gives the ``factors`` of the angles; raise UserError where it does not."""
    theta, factor = config.rope_parameters["rope_theta"], float(factors.max())
    lengths = 2 * math.pi * theta ** (np.arange(len(factors)) / len(factors))  # positions of a whole turn
    smooth = ((OLD_LENGTH / lengths - LOW) / (HIGH - LOW)).clip(0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-3):
        raise UserError(f"{path} has positions that are scaled otherwise than Llama 3.1's: {OTHER}")
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": OLD_LENGTH,
    }


def _read_weights(
    path: Path, reader: "GGUFReader", config: "PretrainedConfig", dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the weights by transformers' names, a shared table once.

    Raises:
        UserError: weights are missing, or have no place in transformers' model.
    """
    from transformers import AutoModelForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained  # its type leaves out that it can return two values
    model, loading = read(
        path.parent, gguf_file=path.name, config=config, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    state, seen = {}, set()
    for name, weight in model.state_dict().items():
        if weight.data_ptr() not in seen:
            seen.add(weight.data_ptr())
            state[name] = weight.to(dtype).contiguous()
    missing = sorted(name for name in loading["missing_keys"] if name in state)
    there = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name != ROPE_FACTORS)
    if missing or there != sum(weight.numel() for weight in state.values()):
        reason = f"lacks {missing[0]}" if missing else "has weights that are not among transformers'"
        raise UserError(f"{path} {reason}, so the model would be another one: take it as a Hugging Face directory")
    return state


def _read_tokenizer(path: Path) -> Any:  # noqa: ANN401  # a class of transformers
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)


def _keep_own_tokens(file: Path, count: int) -> None:
    """Take tokens from ``count`` on out of a tokenizer: transformers adds GPT-2's end of text, the model has no row."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < count]
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _known_rules() -> tuple[str | None, ...]:
    """List the rules of cutting text that give the model's own tokens."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # of a transformers that knows none
        return LIKE_GPT2
    return (*LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, warnings and remarks of the libraries off the screen."""
    from transformers.utils import logging as remarks

    verbosity = remarks.get_verbosity()
    others = [logging.getLogger(name) for name in ("gguf", "gguf.gguf_writer", "accelerate")]
    levels = [each.level for each in others]
    remarks.set_verbosity_error()
    for each in others:
        each.setLevel(logging.ERROR)
    try:
        with without_progress_bars(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(others, levels, strict=True):
            each.setLevel(level)
        remarks.set_verbosity(verbosity)
