"""Random utterances with text and alignment, and an encoder of random weights, for models that are trained on such."""

import random

import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import FeatureConfig, SpecAugmentConfig
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.training.batches import collate

VOCABULARY = 9
ENCODERS = {
    "paper": {"frontend": "stack", "conv_kernel": 0},
    "conv": {"frontend": "conv", "conv_kernel": 3},
}
SHAPE = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 24, "segment": 4, "left_context": 4, "right_context": 2}


def make_acoustic(encoder="conv"):
    """An :class:`Acoustic` of :data:`SHAPE` with random weights and a made-up corpus' statistics."""
    acoustic = Acoustic(FeatureConfig(), SpecAugmentConfig(), encoder_conf={**SHAPE, **ENCODERS[encoder]})
    acoustic.normalizer.mean.fill_(-4.0)
    acoustic.normalizer.std.fill_(2.0)
    return acoustic


def random_utterances(seed, count=4):
    """Ragged: whole chunks, a short last one, no text at all."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = [timeline.samples_for_frames(16, 16000), *(rng.randint(4000, 40000) for _ in range(count - 1))]
    utterances = []
    for index, samples in enumerate(lengths):
        frames = timeline.frames(samples, 16000)
        tokens = 0 if index == 1 else rng.randint(1, 9)
        speech = torch.randn(samples, generator=generator, dtype=torch.float64) * 0.1
        text = [rng.randrange(VOCABULARY) for _ in range(tokens)]
        utterances.append(
            {"speech": speech, "text": text, "ends": sorted(rng.randrange(frames) for _ in range(tokens))}
        )
    return utterances


def as_batch(utterances):
    """Through the collate function that training uses."""
    integers = ("text", "ends", "prompt")
    arrays = [{n: torch.tensor(v).long() if n in integers else v for n, v in u.items()} for u in utterances]
    return collate([(f"u{index}", item) for index, item in enumerate(arrays)])[1]
