"""Encoder frames -> decoder inputs: a projection, before which some frames of a chunk may be stacked to one.

A chunk of 5 frames (letters) with a reduction of 2; what the last input lacks is zeros::

    frames   a b c d e   ->   stacked   ab cd e0   ->   inputs   P(ab) P(cd) P(e0)

Zeros add nothing to the sums of a linear layer.  Where the chunk size is no multiple of the reduction, the last input
of every chunk lacks frames; else only the last one of a recording may.

Shape legend: ``B`` batch, ``T`` frames, ``c`` frames of a chunk, ``r`` reduction, ``E`` size of an encoder frame,
``D`` size of a decoder input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ProjectionConfig


class StackedProjection(nn.Sequential):
    """Stacked frames of a chunk through a linear layer, or through two with GELU between them.

    Args:
        frame_size: E.
        dim: D.
        config: reduction and hidden layer.
    """

    def __init__(self, frame_size: int, dim: int, config: ProjectionConfig) -> None:
        size, hidden = config.reduction * frame_size, config.hidden_dim
        layers = [nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, dim)] if hidden else [nn.Linear(size, dim)]
        super().__init__(*layers)
        self.reduction = config.reduction

    def forward(self, frames: Tensor) -> Tensor:
        """Return the decoder inputs (..., ceil(c / r), D) of the frames (..., c, E) of a chunk."""
        return super().forward(stacked(frames, self.reduction))


def make_projection(frame_size: int, dim: int, config: ProjectionConfig) -> nn.Module:
    """Make the function from the encoder frames of a chunk to decoder inputs.

    Args:
        frame_size: E.
        dim: D.
        config: reduction and hidden layer; by default a linear layer alone, so that weights keep the names which they
            have in models from before there was a choice.
    """
    if config == ProjectionConfig():
        return nn.Linear(frame_size, dim)
    return StackedProjection(frame_size, dim, config)


def stacked(frames: Tensor, reduction: int) -> Tensor:
    """Stack frames (..., c, E) of a chunk to (..., ceil(c / r), r E); what the last one lacks is zeros."""
    *batch, count, size = frames.shape
    inputs = timeline.audio_inputs(count, None, reduction)
    padded = F.pad(frames, (0, 0, 0, inputs * reduction - count))
    return padded.reshape(*batch, inputs, reduction * size)


def project_utterances(
    projection: nn.Module, frames: Tensor, counts: Tensor, chunk_size: int | None, reduction: int
) -> Tensor:
    """Return the decoder inputs (B, n, D) of whole utterances, made chunk by chunk as a stream makes them.

    Args:
        projection: of :func:`make_projection`.
        frames: (B, T, E)
        counts: (B,) frames; what stands behind them does not count.
        chunk_size: frames of a chunk; None: infinity.
        reduction: frames of a chunk that make one input.
    """
    if reduction == 1:
        return projection(frames)
    longest = frames.shape[1]
    size = max(1, longest if chunk_size is None else min(chunk_size, longest))
    behind = torch.arange(longest, device=frames.device) >= counts.to(frames.device)[:, None]
    num_chunks = timeline.num_chunks(longest, size)
    padded = F.pad(frames.masked_fill(behind[:, :, None], 0), (0, 0, 0, num_chunks * size - longest))
    inputs = projection(padded.unflatten(1, (num_chunks, size))).flatten(1, 2)
    return inputs[:, : timeline.audio_inputs(longest, chunk_size, reduction)]
