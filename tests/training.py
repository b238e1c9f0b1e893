"""Speech-like audio whose alignment is known, and real trainings on it with a micro model, in this process."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import yaml

from espnet_speechllm_xl.benchmarks.made_up import spell_tones

if TYPE_CHECKING:
    import torch

    from espnet_speechllm_xl.systems.base_task import SpeechTask

RATE = 16000  # Hz
FRAME = 640  # samples
# Tasks that train on aligned text -> additions to decoder_conf for a micro decoder, and the context in chunks.
ALIGNED: dict[str, tuple[dict, int | None]] = {
    "speechllm_xl": ({"layers": 1}, 2),
    "chunked_aed": ({"lstm_layers": 1, "blocks": 1}, 0),
    "ctc_prompt_lm": ({"layers": 1}, None),
}


@dataclass(frozen=True)
class ToyData:
    """Sets ``train`` and ``valid`` (directories like those of the align stage), tokenizer, token list."""

    train: Path
    valid: Path
    tokenizer: Path
    tokens: Path


def write_set(
    folder: Path,
    count: int,
    seed: int,
    speakers: int = 2,
    make: Callable[[random.Random], tuple[str, np.ndarray, Sequence[int]]] = spell_tones,
) -> None:
    """Write a directory with wav.scp, text, utt2spk, utt2num_samples and char_ends.

    Args:
        folder: the directory.
        count: number of utterances.
        seed: of the random numbers.
        speakers: number of speakers.
        make: draws an utterance as :func:`spell_tones` does.
    """
    rng = random.Random(seed)
    tables: dict[str, list[str]] = {name: [] for name in ("wav.scp", "text", "utt2spk", "utt2num_samples", "char_ends")}
    for index in range(count):
        text, samples, ends = make(rng)
        speaker = f"s{index * speakers // count}"
        name = f"{speaker}-{folder.name}{index:02d}"
        path = folder / "audio" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, RATE)
        values = (path, text, speaker, len(samples), " ".join(map(str, ends)))
        for table, value in zip(tables.values(), values, strict=True):
            table.append(f"{name} {value}\n")
    for name, rows in tables.items():
        (folder / name).write_text("".join(rows))


def make_data(folder: Path) -> ToyData:
    """Write 12 + 4 utterances and a tokenizer below ``folder``."""
    from espnet_speechllm_xl.bin.cli import main

    write_set(folder / "train", 12, seed=1)
    write_set(folder / "valid", 4, seed=2)
    options = ["--text", str(folder / "train/text"), "--out", str(folder / "tokens"), "--type", "char"]
    assert main(["tokens", *options]) == 0
    return ToyData(folder / "train", folder / "valid", folder / "tokens/tokenizer.model", folder / "tokens/tokens.txt")


def task_of(name: str) -> "type[SpeechTask]":
    """Find the task of a name: "ctc", "speechllm_xl", ..."""
    from espnet_speechllm_xl.systems import find_task

    return find_task(name)


def config(name: str, **changes: object) -> dict:
    """Return the settings of a micro model; ``changes`` replace them, or extend the dicts among them."""
    settings: dict = {
        "encoder_conf": {
            "dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "segment": 8, "left_context": 8, "right_context": 2,
            "dropout": 0.1,
        },
        "specaug_conf": {"freq_masks": 1, "freq_width": 4},
        "batch_bins": 160, "max_epoch": 3, "optim": "adam", "optim_conf": {"lr": 0.01}, "grad_clip": 5.0,
        "keep_nbest_models": 2, "seed": 3,
    }  # fmt: skip
    if name == "transducer":
        settings["decoder_conf"] = {"hidden_size": 16}
        settings["joint_network_conf"] = {"joint_space_size": 16}
    if name in ALIGNED:
        decoder, context = ALIGNED[name]
        settings["decoder_conf"] = {"dim": 16, "heads": 2, "ffn_dim": 32, "dropout": 0.1, **decoder}
        settings["chunking_conf"] = {"chunk": 8, "context": context}
        settings["concat_conf"] = {"max_seconds": 4.0}
        settings["loss_conf"] = {"ctc_weight": 0.1}
    for key, value in changes.items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    return settings


def command(
    name: str,
    data: ToyData,
    out: str | Path,
    stats: str | Path | None = None,
    options: Sequence[object] = (),
    **changes: object,
) -> list[str]:
    """Write ``<out>.yaml`` and return the arguments of a training with it.

    Args:
        name: of the task.
        data: training and validation set.
        out: directory of the experiment.
        stats: directory of the statistics; None: the arguments are those of the statistics stage.
        options: more arguments.
        changes: settings that differ from :func:`config`.
    """
    out = Path(out)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(config(name, **changes)))
    arguments: list = [
        *("--config", file, "--output_dir", out, "--token_list", data.tokens, "--tokenizer", data.tokenizer)
    ]
    for part in ("train", "valid"):
        streams = ["wav.scp,speech,sound", "text,text,text", "utt2spk,spk,text"]
        streams += ["char_ends,alignment,text"] if name in ALIGNED else []
        for stream in streams:
            arguments += [f"--{part}_data_path_and_name_and_type", f"{getattr(data, part)}/{stream}"]
        for shape in ("speech_shape", "text_shape") if stats else ():
            arguments += [f"--{part}_shape_file", f"{stats}/{part}/{shape}"]
    if stats:
        arguments += ["--resume", "true", "--stats_file", f"{stats}/train/feats_stats.npz"]
    else:
        arguments += ["--collect_stats", "true"]
    return [str(argument) for argument in [*arguments, *options]]


def train(
    name: str,
    data: ToyData,
    out: str | Path,
    stats: str | Path | None = None,
    options: Sequence[object] = (),
    **changes: object,
) -> Path:
    """Run a training in this process; return its directory.  The arguments are those of :func:`command`."""
    task_of(name).main(cmd=command(name, data, out, stats, options, **changes))
    return Path(out)


def history(directory: str | Path) -> dict[int, dict[str, dict]]:
    """Read ESPnet's figures of every epoch: ``{epoch: {"train": {...}, "valid": {...}}}``."""
    import torch

    return torch.load(Path(directory) / "checkpoint.pth", weights_only=False)["reporter"]["stats"]


def weights(file: str | Path) -> "Mapping[str, torch.Tensor]":
    """Read the state dict in a file."""
    import torch

    return torch.load(file, weights_only=True)


def same_weights(first: str | Path, second: str | Path) -> bool:
    """Tell whether two files hold the same names and, bit for bit, the same tensors."""
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
