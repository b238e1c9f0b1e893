"""Encoder frames and aligned tokens -> a decoder's inputs, chunk ids, positions and targets.

The table of the paper (section 2), with c = 4 and ``$`` a target only::

    input    a b c d  1   e f g h  2 3 4   i j k l  5 6
    target   . . . 1  $   . . . 2  3 4 $   . . . 5  6 $
    chunk    0 0 0 0  0   1 1 1 1  1 1 1   2 2 2 2  2 2

With a time reduction of 2 (``projection_conf``) two frames of a chunk are one input::

    input    ab cd  1   ef gh  2 3 4   ij kl  5 6
    target   .  1   $   .  2   3 4 $   .  5   6 $
    chunk    0  0   0   1  1   1 1 1   2  2   2 2

A prompt (x, y) comes first, in a chunk of its own (P), and has no targets::

    input    x y   a b c d  1   e f g h  2 3 4   i j k l  5 6
    target   . .   . . . 1  $   . . . 2  3 4 $   . . . 5  6 $
    chunk    P P   0 0 0 0  0   1 1 1 1  1 1 1   2 2 2 2  2 2

A decoder that is fed labels only (chunked AED) gets the end-of-chunk label in place of a chunk's frames::

    input    $ 1   $ 2 3 4   $ 5 6
    target   1 $   2 3 4 $   5 6 $
    chunk    0 0   1 1 1 1   2 2 2

Shape legend: ``B`` batch, ``T`` inputs that stand for frames (as many as frames, without a reduction), ``U`` tokens,
``K`` chunks, ``L`` = longest sequence (inputs for frames, and tokens), ``D`` size of a decoder input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.model.visibility import PADDING, PROMPT

IGNORE = -100  # target that does not count; torch's cross_entropy default
PAD_TOKEN = -1  # of token ids and their ends, behind the shorter texts of a batch


@dataclass(frozen=True)
class DecoderSequence:
    """Decoder sequences of a batch; integer tensors (B, L), padded at the end."""

    # index into [inputs for frames (T) or ends of chunk (K) | tokens (U; with prompts P + U)] along time; 0: padding
    source: Tensor
    position: Tensor  # counts every input of the sequence from 0
    chunk_id: Tensor  # ``PADDING`` where padded
    target: Tensor  # token, `$`, or ``IGNORE``


def sequence_length(num_frames: int, num_tokens: int, chunk_size: int | None = None, reduction: int = 1) -> int:
    """Count the decoder inputs of one utterance: ``reduction`` frames or one text token make one, ``$`` is none.

    Args:
        num_frames: of the audio.
        num_tokens: of the text.
        chunk_size: frames of a chunk, which matters with a reduction only; None: infinity.
        reduction: frames of a chunk that make one input.
    """
    return timeline.audio_inputs(num_frames, chunk_size, reduction) + num_tokens


def without_padding(text: Tensor) -> Tensor:
    """Return token ids (B, U) of a batch with a real id, 0, in place of ``PAD_TOKEN``, which no embedding has."""
    return text.clamp(min=0)


def with_prompts(prompts: Tensor, tokens: Tensor) -> Tensor:
    """Return the tokens (B, P + U) that a decoder reads: prompts (B, P), padded with ``PAD_TOKEN``, and text (B, U)."""
    return torch.cat([without_padding(prompts), tokens], dim=1)


def refuse_late_end(name: str, end: int, frames: int, kind: type[UserError] = UserError) -> None:
    """Raise an error if a token ends after the audio.

    Args:
        name: of the utterance, in the message.
        end: last frame of its last token.
        frames: of its audio.
        kind: of the error.
    """
    if end >= frames:
        raise kind(
            f"{name}: a token ends at frame {end} but the audio has {frames} frames: "
            "the alignment belongs to other audio; run the align stage again"
        )


def check_ends(frame_lengths: Tensor, token_lengths: Tensor, ends: Tensor) -> None:
    """Raise UserError if a token ends after the last frame of its utterance.

    Args:
        frame_lengths: (B,) frames.
        token_lengths: (B,) tokens.
        ends: (B, U) last frame of each token, any padding.
    """
    if not ends.shape[1]:
        return
    token_index = torch.arange(ends.shape[1], device=ends.device)[None]
    last = torch.where(token_index < token_lengths[:, None], ends, -1).max(1).values
    for index, (end, frames) in enumerate(zip(last.tolist(), frame_lengths.tolist(), strict=True)):
        refuse_late_end(f"utterance {index} of the batch", end, frames)


def build_sequence(
    frame_lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    ends: Tensor,
    chunking: ChunkingConfig,
    eoc: int,
    reduction: int = 1,
    prompts: Tensor | None = None,
) -> DecoderSequence:
    """Interleave frames and tokens of a batch chunk by chunk.

    Args:
        frame_lengths: (B,) encoder frames.
        tokens: (B, U) token ids, any padding.
        token_lengths: (B,) tokens.
        ends: (B, U) last aligned frame of each token; must not decrease within an utterance.
        chunking: chunk size and label delay.
        eoc: id of ``$``.
        reduction: frames of a chunk that make one input.
        prompts: (B, P) token ids before the first chunk, ``PAD_TOKEN`` behind the shorter ones; None: none.  In
            ``source`` they are the first tokens, P + U in all; see :func:`with_prompts`.

    Raises:
        UserError: a token ends after the last frame, or an utterance with tokens has no frame.
    """
    token_chunk_id = _token_chunks(frame_lengths, token_lengths, ends, chunking)
    if prompts is not None:
        prompt_chunk_id = torch.where(prompts == PAD_TOKEN, PADDING, PROMPT)
        token_chunk_id = torch.cat([prompt_chunk_id, token_chunk_id], dim=1)
        tokens = with_prompts(prompts, tokens)
    return interleave(frame_chunks(frame_lengths, chunking.chunk, reduction), token_chunk_id, tokens, eoc)


def build_label_sequence(
    frame_lengths: Tensor, tokens: Tensor, token_lengths: Tensor, ends: Tensor, chunking: ChunkingConfig, eoc: int
) -> DecoderSequence:
    """Build the sequences of a decoder that gets one end-of-chunk label in place of the frames of each chunk.

    Args:
        frame_lengths: (B,) encoder frames.
        tokens: (B, U) token ids, any padding.
        token_lengths: (B,) tokens.
        ends: (B, U) last aligned frame of each token; must not decrease within an utterance.
        chunking: chunk size and label delay.
        eoc: id of ``$``.

    Raises:
        UserError: see :func:`build_sequence`.
    """
    token_chunk_id = _token_chunks(frame_lengths, token_lengths, ends, chunking)
    num_chunks = timeline.num_chunks(frame_lengths, chunking.chunk)
    return interleave(frame_chunks(num_chunks, 1), token_chunk_id, tokens, eoc)


def frame_chunks(frame_lengths: Tensor, chunk_size: int | None, reduction: int = 1) -> Tensor:
    """Return the chunk id (B, T) of every frame, or input of several frames; ``PADDING`` behind an utterance's last.

    Args:
        frame_lengths: (B,) frames.
        chunk_size: frames; None: one chunk holds all.
        reduction: frames of a chunk that make one input.
    """
    lengths = timeline.audio_inputs(frame_lengths, chunk_size, reduction)
    inputs_of_chunk = timeline.inputs_of_chunk(chunk_size, reduction)
    index = torch.arange(int(lengths.max()), device=lengths.device)[None]
    return torch.where(index < lengths[:, None], timeline.chunk_of_frame(index, inputs_of_chunk), PADDING)


def _token_chunks(
    frame_lengths: Tensor, token_lengths: Tensor, ends: Tensor, chunking: ChunkingConfig
) -> Tensor:
    """Return the chunk id (B, U) of every token, ``PADDING`` behind an utterance's last; raise UserError."""
    check_ends(frame_lengths, token_lengths, ends)
    real = torch.arange(ends.shape[1], device=ends.device)[None] < token_lengths[:, None]
    num_chunks = timeline.num_chunks(frame_lengths, chunking.chunk)[:, None]
    return torch.where(real, timeline.chunk_of_token(ends, chunking.chunk, chunking.delay, num_chunks), PADDING)


def interleave(frame_chunk_id: Tensor, token_chunk_id: Tensor, tokens: Tensor, eoc: int) -> DecoderSequence:
    """Interleave inputs and tokens by their chunks: each chunk's inputs come first, then its tokens.

    Args:
        frame_chunk_id: (B, T) chunk of each frame, or of each input that stands for frames; ``PADDING`` where none.
        token_chunk_id: (B, U) chunk of each token; ``PADDING`` where none.
        tokens: (B, U) token ids, any padding.
        eoc: id of ``$``.
    """
    # Chunk ids never decrease within either, so a stable sort by (chunk, is-token) keeps both in order.
    # Padding sorts behind everything.
    order_key = torch.cat([2 * frame_chunk_id, 2 * token_chunk_id + 1], dim=1)
    real = torch.cat([frame_chunk_id, token_chunk_id], dim=1) != PADDING
    lengths = real.sum(1)
    order_key = torch.where(real, order_key, torch.iinfo(order_key.dtype).max)
    longest = int(lengths.max())
    source = order_key.argsort(dim=1, stable=True)[:, :longest]
    position = torch.arange(longest, device=source.device)[None].expand(len(source), -1)
    real = position < lengths[:, None]
    chunk_id = torch.where(real, order_key.gather(1, source) // 2, PADDING)
    source = torch.where(real, source, 0)
    target = _targets(source, chunk_id, tokens, frame_chunk_id.shape[1], eoc)
    target = torch.where(real, target, IGNORE)
    return DecoderSequence(source=source, position=position, chunk_id=chunk_id, target=target)


def _targets(source: Tensor, chunk_id: Tensor, tokens: Tensor, num_frames: int, eoc: int) -> Tensor:
    """Return the target (B, L) of each input: the next input if it is a token of the chunk, ``$`` at a chunk's end.

    Args:
        source: see :class:`DecoderSequence`.
        chunk_id: see :class:`DecoderSequence`.
        tokens: (B, U) token ids.
        num_frames: T, the sources before the first token's.
        eoc: id of ``$``.
    """
    nothing = torch.full_like(source[:, :1], PADDING)
    next_source = torch.cat([source[:, 1:], nothing], dim=1)
    next_chunk_id = torch.cat([chunk_id[:, 1:], nothing], dim=1)
    # The extra column lets a batch without any text through.
    next_token = torch.cat([tokens, nothing], dim=1).gather(1, (next_source - num_frames).clamp(min=0))
    target = torch.where(next_source >= num_frames, next_token, IGNORE)
    target = torch.where(next_chunk_id != chunk_id, eoc, target)
    return torch.where(chunk_id == PROMPT, IGNORE, target)


def gather_inputs(sequence: DecoderSequence, frames: Tensor, embeddings: Tensor) -> Tensor:
    """Return the decoder inputs (B, L, D) of a sequence.

    Args:
        sequence: which inputs, in which order.
        frames: (B, T, D), or what stands for them.
        embeddings: (B, U, D) of the tokens.
    """
    both = torch.cat([frames, embeddings], dim=1)
    return both.gather(1, sequence.source[:, :, None].expand(-1, -1, both.shape[2]))
