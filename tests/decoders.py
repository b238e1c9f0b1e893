"""Hypotheses of a decoder that grow, fork and lose what is out of sight, against one call without a cache."""

import dataclasses
import random

import torch

from espnet_speechllm_xl.model.decoder_steps import Request

VOCABULARY = 11
ROUND_OFF = 1e-12  # float64
# Hugging Face computes rotary angles in float32 whatever the model's type: what a shift of positions may change.
ANGLES = 2e-5


@dataclasses.dataclass
class Stream:
    """A hypothesis under test: all its inputs so far, and the log-probabilities that extend() gave on the way."""

    past: object
    inputs: list = dataclasses.field(default_factory=list)  # (chunk, frames (q, D) or token)
    given: list = dataclasses.field(default_factory=list)  # (number of inputs, log-probabilities)

    def fork(self):
        return Stream(self.past, list(self.inputs), list(self.given))

    def request(self, rng, dim, dtype, most=6):
        chunk = self.inputs[-1][0] if self.inputs else -1
        if chunk < 0 or rng.random() < 0.5:
            frames = torch.randn(rng.randint(1, most), dim, dtype=dtype)
            self.inputs.append((chunk + 1, frames))
            return Request(self.past, chunk + 1, frames=frames)
        self.inputs.append((chunk, rng.randrange(VOCABULARY)))
        return Request(self.past, chunk, token=self.inputs[-1][1])

    def accept(self, result):
        self.past = result.past
        self.given.append((sum(1 if isinstance(x, int) else len(x) for _, x in self.inputs), result.log_probs))


@torch.no_grad()
def full_forward(decoder, inputs, context, first=0):
    """Log-probabilities (L, V + 1) of a whole history in one call without a cache."""
    pieces = [decoder.embed(torch.tensor([x])) if isinstance(x, int) else x for _, x in inputs]
    chunk = torch.tensor([k for (k, _), piece in zip(inputs, pieces, strict=True) for _ in range(len(piece))])[None]
    position = torch.arange(first, first + chunk.shape[1])[None]
    hidden = decoder(torch.cat(pieces)[None], position, chunk, context)
    return decoder.logits(hidden)[0].log_softmax(-1)


def run_streams(decoder, context, seed, rounds=40, forks=True):
    """Hypotheses of different ages, some forked, extended together in random groups."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = decoder.lm.get_output_embeddings().weight.dtype
    streams = [Stream(decoder.initial_past(context))]
    for _ in range(rounds):
        if len(streams) < 7 and rng.random() < 0.4:
            old = rng.choice(streams)
            streams.append(old.fork() if forks and rng.random() < 0.6 else Stream(decoder.initial_past(context)))
        group = rng.sample(streams, rng.randint(1, len(streams)))
        results = decoder.extend([stream.request(rng, decoder.dim, dtype) for stream in group])
        for stream, result in zip(group, results, strict=True):
            stream.accept(result)
    return streams


def worst_difference(decoder, streams, context):
    worst = 0.0
    for stream in streams:
        if stream.inputs:
            expected = full_forward(decoder, stream.inputs, context)
            for count, log_probs in stream.given:
                worst = max(worst, (expected[count - 1] - log_probs).abs().max().item())
    return worst


def assert_no_drift(decoder):
    """After 20,000 positions the last chunks alone decide: with L layers and context b, L b + 1 chunks."""
    torch.manual_seed(1)
    recent = [torch.randn(100, decoder.dim) for _ in range(decoder.network.cache_shape[0] + 1)]
    past, highest = decoder.initial_past(1), 0
    for chunk in range(197):
        past = decoder.extend([Request(past, chunk, frames=torch.randn(100, decoder.dim))])[0].past
        highest = max(highest, past.next_position)
    fresh = decoder.initial_past(1)
    for chunk, frames in enumerate(recent):
        old, new = decoder.extend([Request(past, 197 + chunk, frames=frames), Request(fresh, chunk, frames=frames)])
        past, fresh = old.past, new.past
    assert (old.log_probs - new.log_probs).abs().max() < 1e-3
    assert (old.log_probs - new.log_probs).abs().max() < 1e-2 * new.log_probs.std()
    return highest
