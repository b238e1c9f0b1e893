"""Encoder frames and aligned tokens -> the decoder's inputs, chunk ids, positions and targets.

The table of the paper (section 2), with c = 4 and ``$`` a target only::

    input    a b c d  1   e f g h  2 3 4   i j k l  5 6
    target   . . . 1  $   . . . 2  3 4 $   . . . 5  6 $
    chunk    0 0 0 0  0   1 1 1 1  1 1 1   2 2 2 2  2 2

Shape legend: ``B`` batch, ``T`` frames, ``U`` tokens, ``L`` = longest sequence (frames + tokens).
"""

from dataclasses import dataclass

import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.visibility import PADDING

IGNORE = -100  # target that does not count; torch's cross_entropy default


@dataclass(frozen=True)
class Sequence:
    """Decoder sequences of a batch; integer tensors (B, L), padded at the end."""

    source: torch.Tensor  # index into [frames (T) | tokens (U)] along time; 0 where padded
    position: torch.Tensor  # counts every input of the sequence from 0
    chunk: torch.Tensor  # chunk id, ``PADDING`` where padded
    target: torch.Tensor  # token, `$`, or ``IGNORE``


def sequence_length(num_frames, num_tokens):
    """Decoder inputs of one utterance: every frame and every text token is one, ``$`` is none."""
    return num_frames + num_tokens


def build_sequence(frame_lengths, tokens, token_lengths, ends, chunking, eoc):
    """Interleave frames and tokens of a batch chunk by chunk.

    Args:
        frame_lengths: (B,) encoder frames.
        tokens: (B, U) token ids, any padding.
        token_lengths: (B,) tokens.
        ends: (B, U) last aligned frame of each token; must not decrease within an utterance.
        chunking: :class:`~espnet_speechllm_xl.config.ChunkingConfig`.
        eoc: id of ``$``.

    Raises:
        UserError: a token ends after the last frame, or an utterance with tokens has no frame.
    """
    device = tokens.device
    last_frame = frame_lengths[:, None] - 1
    token_index = torch.arange(tokens.shape[1], device=device)[None]
    real_token = token_index < token_lengths[:, None]
    if bool((real_token & (ends > last_frame)).any()):
        worst = int((real_token & (ends > last_frame)).any(1).nonzero()[0])
        raise UserError(
            f"utterance {worst} of the batch: a token ends at frame {int(ends[worst].max())} but the audio has "
            f"{int(frame_lengths[worst])} frames: the alignment belongs to other audio; run the align stage again"
        )
    frame_index = torch.arange(int(frame_lengths.max()), device=device)[None].expand(len(tokens), -1)
    real_frame = frame_index < frame_lengths[:, None]
    chunks = timeline.num_chunks(frame_lengths, chunking.chunk)[:, None]
    frame_chunk = timeline.chunk_of_frame(frame_index, chunking.chunk)
    token_chunk = timeline.chunk_of_token(ends, chunking.chunk, chunking.delay, chunks)

    # Within a chunk its frames come first, then its tokens; ends never decrease, so a stable sort by
    # (chunk, is-token) keeps both in order.  Padding sorts behind everything.
    behind = 2 * chunks.max() + 2
    order_key = torch.cat(
        [
            torch.where(real_frame, 2 * frame_chunk, behind),
            torch.where(real_token, 2 * token_chunk + 1, behind),
        ],
        dim=1,
    )
    lengths = sequence_length(frame_lengths, token_lengths)
    longest = int(lengths.max())
    source = order_key.argsort(dim=1, stable=True)[:, :longest]
    position = torch.arange(longest, device=device)[None].expand(len(tokens), -1)
    real = position < lengths[:, None]
    chunk = torch.where(real, order_key.gather(1, source) // 2, PADDING)
    source = torch.where(real, source, 0)
    target = _targets(source, chunk, tokens, frame_index.shape[1], eoc)
    return Sequence(source=source, position=position, chunk=chunk, target=torch.where(real, target, IGNORE))


def _targets(source, chunk, tokens, num_frames, eoc):
    """The next input where that is a token of the same chunk, ``$`` where the chunk ends there."""
    nothing = torch.full_like(source[:, :1], PADDING)
    next_source = torch.cat([source[:, 1:], nothing], dim=1)
    next_chunk = torch.cat([chunk[:, 1:], nothing], dim=1)
    # The extra column lets a batch without any text through.
    next_token = torch.cat([tokens, nothing], dim=1).gather(1, (next_source - num_frames).clamp(min=0))
    target = torch.where(next_source >= num_frames, next_token, IGNORE)
    return torch.where(next_chunk != chunk, eoc, target)


def gather_inputs(sequence, frames, embeddings):
    """Decoder inputs (B, L, D) from ``frames`` (B, T, D) and token ``embeddings`` (B, U, D)."""
    both = torch.cat([frames, embeddings], dim=1)
    return both.gather(1, sequence.source[:, :, None].expand(-1, -1, both.shape[2]))
