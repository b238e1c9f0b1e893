"""Data and models made on the spot: tones with their texts, noise, and models of random weights in directories."""

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus.audio import write_flac
from espnet_speechllm_xl.corpus.kaldi import write_table
from espnet_speechllm_xl.experiment import CONFIG, SENTENCEPIECE, average_name
from espnet_speechllm_xl.model.sequence import sequence_length
from espnet_speechllm_xl.systems import find_system, find_task
from espnet_speechllm_xl.training.tokenizer import TokenizerRecipe, make_tokenizer, write_token_list

RATE = 16000  # Hz
TONES = {"a": 300.0, "b": 650.0, "c": 1400.0, "d": 3000.0}  # Hz
READ_TOKENS_PER_SECOND = 3.5  # of a vocabulary of 5000, in LibriSpeech
Samples = npt.NDArray[np.float32]


def spell_tones(rng: random.Random) -> tuple[str, npt.NDArray[np.int16], list[int]]:
    """Draw a text of a few letters, its samples, in which each letter is a tone, and each character's last frame."""
    text = " ".join("".join(rng.choices("abcd", k=rng.randint(1, 3))) for _ in range(rng.randint(2, 4)))
    frame_samples = timeline.samples_of_frames(1, RATE)
    pieces, ends, frames = [], [], 0
    for character in text:
        count = 2 if character == " " else rng.randint(3, 5)
        time = np.arange(count * frame_samples) / RATE
        level = 0.3 if character in TONES else 0.0
        pieces.append(level * np.sin(2 * np.pi * TONES.get(character, 0.0) * time))
        frames += count
        ends.append(frames - 1)
    # The last window reaches 240 samples past the last frame; the rest is ragged.
    samples = np.concatenate([*pieces, np.zeros(240 + rng.randrange(400))])
    noise = np.random.default_rng(rng.randrange(1000)).normal(0, 0.003, len(samples))
    return text, np.round((samples + noise) * 32767).astype(np.int16), ends


def write_tones(folder: Path, count: int, seed: int) -> None:
    """Write a set of ``count`` utterances as the align stage leaves one: wav.scp, text, utt2spk, char_ends, ...

    Args:
        folder: of the set.
        count: of utterances.
        seed: of the random numbers.
    """
    rng = random.Random(seed)
    tables: dict[str, dict[str, object]] = {
        name: {} for name in ("wav.scp", "text", "utt2spk", "utt2num_samples", "char_ends")
    }
    (folder / "audio").mkdir(parents=True)
    for index in range(count):
        text, samples, ends = spell_tones(rng)
        name = f"s{index % 2}-{folder.name}{index:03d}"
        path = folder / "audio" / f"{name}.flac"
        write_flac(path, samples, RATE)
        values = (path, text, f"s{index % 2}", len(samples), " ".join(map(str, ends)))
        for table, value in zip(tables.values(), values, strict=True):
            table[name] = value
    for file, table in tables.items():
        write_table(folder / file, table)


def make_noise(seed: int, seconds: float) -> Samples:
    """Return noise whose level changes ten times a second, so that no two chunks are alike.

    Args:
        seed: of the random numbers.
        seconds: duration.
    """
    rng = np.random.default_rng(seed)
    samples = round(seconds * RATE)
    levels = rng.choice([0.003, 0.03, 0.2], -(-samples // 1600)).repeat(1600)[:samples]
    return np.clip(rng.standard_normal(samples) * levels, -1, 1).astype(np.float32)


def draw_batch(
    rng: np.random.Generator, bins: int, vocab_size: int, device: str
) -> tuple[dict[str, torch.Tensor], float]:
    """Draw a batch of utterances of one length, as LibriSpeech's: 60 % of 14 to 16 s, the others of 2 to 14 s.

    Args:
        rng: draws the length.
        bins: frames and tokens that the batch may have.
        vocab_size: number of different tokens.
        device: of the tensors.

    Returns:
        Arguments of a model's ``forward``, and the seconds of audio.
    """
    seconds = rng.uniform(14, 16) if rng.random() < 0.6 else rng.uniform(2, 14)
    samples, tokens = round(RATE * seconds), max(1, round(READ_TOKENS_PER_SECOND * seconds))
    frames = int(timeline.frames(samples, RATE))
    size = max(1, bins // sequence_length(frames, tokens))
    batch = {
        "speech": torch.randn(size, samples), "speech_lengths": torch.full((size,), samples),
        "text": torch.randint(0, vocab_size, (size, tokens)), "text_lengths": torch.full((size,), tokens),
        "ends": torch.randint(0, frames, (size, tokens)).sort(1).values,
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in batch.items()}, seconds * size


def make_words(count: int) -> list[str]:
    """Return ``count`` different words, all of five letters."""
    letters = "abcdefghijklmnopqrst"
    return ["".join(letters[number // 20**place % 20] for place in range(5)) for number in range(count)]


def write_model(folder: Path, task_name: str, options: Sequence[str], vocab_size: int) -> Path:
    """Write a model of random weights, as training leaves one, with a tokenizer of words; return its directory.

    Args:
        folder: of the model.
        task_name: of systems/.
        options: ESPnet's.
        vocab_size: tokens of the tokenizer.
    """
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    folder.mkdir(parents=True)
    write_table(folder / "words", {f"u{number}": word for number, word in enumerate(make_words(vocab_size - 1))})
    recipe = TokenizerRecipe("word", vocab_size)  # one token is unknown text
    write_token_list(folder / "tokens.txt", make_tokenizer(str(folder / "words"), folder, recipe))
    task = find_task(task_name)
    files = ["--token_list", str(folder / "tokens.txt"), "--tokenizer", str(folder / SENTENCEPIECE)]
    args = task.get_parser().parse_args([*options, "--output_dir", str(folder), *files])
    torch.manual_seed(0)
    model: Any = task.build_model(args)
    # Noise has log-energies about so large; features should have mean 0 and variance 1.
    model.acoustic.normalizer.mean.fill_(-2.5)
    model.acoustic.normalizer.std.fill_(2.5)
    args.version, args.distributed = "", False
    with open(folder / CONFIG, "w", encoding="utf-8") as stream:
        yaml_no_alias_safe_dump(vars(args), stream, indent=4, sort_keys=False)
    torch.save(model.state_dict(), folder / average_name(*find_system(task_name).criterion[:2]))
    return folder


def copy_model(source: Path, folder: Path, changes: Mapping[str, Mapping[str, object]]) -> Path:
    """Copy a model with other settings of sections that leave the weights as they are; the files are linked.

    Args:
        source: its directory.
        folder: of the copy.
        changes: ``{section: {setting: value}}``.
    """
    import yaml

    shutil.copytree(source, folder, copy_function=lambda old, new: Path(new).symlink_to(old))
    values = yaml.safe_load((source / CONFIG).read_text(encoding="utf-8"))
    for section, settings in changes.items():
        values[section].update(settings)
    (folder / CONFIG).unlink()
    (folder / CONFIG).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return folder
