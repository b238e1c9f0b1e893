"""Melodies whose letters are the words, and a recogniser of them that is trained in seconds."""

import numpy as np
import training

LETTERS = "b d a c b a d c".split()
BANDS = {"a": (150, 600), "b": (600, 1300), "c": (1300, 2800), "d": (2800, 6000)}  # Hz


def melody(rng, letters=None, tail=None):
    """As made_up.spell_tones(), but easier: every letter is a word, wide in frequency, and pauses surround it."""
    letters = letters or (2 * rng.sample("abcd", k=4))[: rng.randint(1, 5)]
    pieces, ends = [np.zeros(rng.randint(5, 25) * training.FRAME + rng.randrange(training.FRAME))], []
    for letter in letters:
        seconds = np.arange(rng.randint(6, 8) * training.FRAME) / training.RATE
        tones = np.arange(*BANDS[letter], 50)
        phases = np.pi * np.arange(len(tones)) ** 2 / len(tones)  # spread: no click
        pieces.append(np.cos(2 * np.pi * np.outer(seconds, tones) + phases).sum(axis=1) / (7 * len(tones) ** 0.5))
        end = round(sum(map(len, pieces)) / training.FRAME)
        ends += [end - 1, end]  # of the letter, and of the space after it
        pieces.append(np.zeros(rng.randint(5, 9) * training.FRAME))
    samples = np.concatenate([*pieces, np.zeros(tail or rng.randint(1, 15) * training.FRAME)])
    noise = np.random.default_rng(rng.randrange(1000)).normal(0, 0.003, len(samples))
    return " ".join(letters), np.round((samples + noise) * 32767).astype(np.int16), ends[:-1]


def train(folder):
    """The directory of a model of melodies, which survive a resampler and another start of the chunks.

    As in the recipes' configurations, its features are relative to the level, silence follows every recording,
    training examples have any level, and some end with their last letter.
    """
    from espnet_speechllm_xl.bin.cli import main

    for part, count in (("train", 250), ("valid", 8)):
        training.write_set(folder / part, count, seed=len(part), make=melody)
    tokens = folder / "tokens"
    assert main(["tokens", "--text", str(folder / "train/text"), "--out", str(tokens), "--type", "char"]) == 0
    data = training.ToyData(folder / "train", folder / "valid", tokens / "tokenizer.model", tokens / "tokens.txt")
    features = {"features_conf": {"level_seconds": 2.0, "tail_frames": 6}}
    stats = training.train("ctc", data, folder / "stats", **features)
    plain = {"specaug_conf": {"freq_masks": 0, "time_masks_per_second": 0.0}, "concat_conf": {"max_seconds": 0.0}}
    size = {"dim": 32, "ffn_dim": 64, "dropout": 0.0}
    plain |= {"encoder_conf": {**size, "conv_kernel": 5}, "decoder_conf": size, "optim_conf": {"lr": 0.005}}
    learn = {"chunking_conf": {"unit": "word"}, "loss_conf": {"ctc_weight": 1.0}, "batch_bins": 320, "max_epoch": 10}
    learn |= {"augment_conf": {"cut_probability": 0.3, "min_gain_db": -40.0, "max_gain_db": 10.0}}
    fall = {"scheduler": "exponentiallr", "scheduler_conf": {"gamma": 0.8}}
    return training.train("speechllm_xl", data, folder / "exp", stats, **features, **plain, **learn, **fall)
