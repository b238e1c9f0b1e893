"""A model whose language model holds what training changed in it: no adapters, no base elsewhere."""

import argparse
import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from espnet_speechllm_xl.experiment import (
    CONFIG,
    CTC_TOKENIZER,
    LLM,
    SENTENCEPIECE,
    TOKENIZER,
    WEIGHTS,
    find_ctc_tokenizer,
    find_tokenizer,
)
from espnet_speechllm_xl.files import new_folder, share
from espnet_speechllm_xl.language_models.convert import quiet
from espnet_speechllm_xl.settings import ConfigError, read_yaml
from espnet_speechllm_xl.systems import find_system
from espnet_speechllm_xl.trained_model import DIGEST, load_model, unpacked

TASK = "speechllm_xl"  # the baselines' decoders hold more than a language model
Say = Callable[[str], None]


def merge(
    model: str | Path,
    out: str | Path,
    weights: str | None = None,
    llm: str | Path | None = None,
    dtype: str = "float32",
    say: Say = lambda line: None,
) -> None:
    """Write a model directory whose folder ``llm`` is the trained language model, with adapters merged into it.

    Args:
        model: directory of the training, or a packed file.
        out: the directory to make; there must be none.
        weights: file name in the directory; None: the averaged best.
        llm: directory of the language model that the decoder was trained from; see ``load_model``.
        dtype: of the language model's weights: "float32" or "bfloat16", which rounds them.
        say: takes lines about the progress.

    Raises:
        UserError: the model does not load, is a baseline or has no pretrained language model, or ``out`` is in the way.
    """
    with new_folder(out) as made, unpacked(Path(model)) as directory:
        trained, _, args = load_model(directory, TASK, weights, llm=llm)
        if not (getattr(args, "decoder_conf", None) or {}).get("pretrained"):
            raise ConfigError(f"{model} has no pretrained language model: there is nothing to merge")
        say(f"merging {merge_adapters(trained.decoder.lm)} adapters")
        lm = trained.decoder.lm.to(getattr(torch, dtype))
        for weight in lm.parameters():
            weight.data = weight.data.contiguous()  # decoding stores some by columns
        with quiet():
            lm.save_pretrained(made / LLM)
        share(made / LLM)
        values = read_yaml(directory / CONFIG)
        values["decoder_conf"] = merged_conf(args.decoder_conf, dtype)
        (made / CONFIG).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        _copy_tokenizer(find_tokenizer(directory, args), made)
        if ctc_tokenizer := find_ctc_tokenizer(directory, args):
            shutil.copyfile(ctc_tokenizer, made / CTC_TOKENIZER)
        _write_weights(trained, args, made, values["decoder_conf"])


def merge_adapters(lm: nn.Module) -> int:
    """Put the products of adapters into the layers that they stand beside; return how many there were.

    Args:
        lm: with the adapters of peft in the places of its layers; they are taken out.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [(name, part) for name, part in lm.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, adapter in found:
        adapter.merge(safe_merge=True)  # raises ValueError for weights that are not finite
        lm.set_submodule(name, adapter.get_base_layer())
    return len(found)


def merged_conf(conf: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a decoder's settings for its merged language model: that has no adapters, and stays as it is."""
    of_adapters = {"lora_rank": 0, "lora_dropout": 0.0, "lora_targets": None, "use_dora": False}
    return {**conf, **of_adapters, "pretrained": LLM, "freeze": True, "train_table": False, "frozen_dtype": dtype}


def _copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    if tokenizer.is_dir():
        shutil.copytree(tokenizer, folder / TOKENIZER)
    else:
        shutil.copyfile(tokenizer, folder / SENTENCEPIECE)


def _write_weights(trained: nn.Module, args: argparse.Namespace, folder: Path, conf: dict[str, Any]) -> None:
    """Write the weights that stand beside the merged language model: what its frozen form leaves out is in ``llm``."""
    args = copy.deepcopy(args)
    args.decoder_conf = {**conf, "pretrained": str(folder / LLM)}
    merged = find_system(args.task).build_model(args)
    own, given = merged.state_dict(), trained.state_dict()
    of_base = {name for name in own if name.endswith(f".{DIGEST}")}
    torch.save({name: (own if name in of_base else given)[name].contiguous() for name in own}, folder / WEIGHTS)
