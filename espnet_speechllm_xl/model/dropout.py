"""Dropout that does not dominate training on a CPU."""

import torch
import torch.nn.functional as F
from torch import nn


def dropout(x, probability, training):
    """``torch.nn.functional.dropout``; on a CPU with one random byte an element instead of one generator call.

    torch draws 2 million Bernoulli numbers in 15 ms on one core, and a fifth of the encoder's training step went
    there; bytes of 64-bit draws take a third of that.  ``probability`` is rounded to 1/256 on a CPU.
    """
    if not training or probability == 0.0:
        return x
    dropped = round(256 * probability)
    if x.device.type != "cpu" or not 0 < dropped < 256:
        return F.dropout(x, probability, training)
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(256 / (256 - dropped))


def drop_tokens(embedded, probability, training):
    """Token embeddings (B, U, D) of which, in training, some are zeroed whole; nothing is scaled."""
    if not training or probability == 0.0:
        return embedded
    kept = torch.rand(embedded.shape[:-1], device=embedded.device) >= probability
    return embedded * kept[..., None]


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` by :func:`dropout`."""

    def forward(self, x):
        return dropout(x, self.p, self.training)
