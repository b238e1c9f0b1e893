"""Who may see whom in the decoder: the one predicate, and the masks made from it.

Shape legend: ``B`` batch, ``Q`` queries, ``K`` keys.
"""

from typing import TypeVar

import torch
from torch import Tensor

PADDING = -1  # chunk id of a slot that holds nothing
PROMPT = -2  # chunk id of the text before the first chunk, which every chunk sees


def visible(
    query_position: Tensor,
    query_chunk_id: Tensor,
    key_position: Tensor,
    key_chunk_id: Tensor,
    context: Tensor | int | None,
) -> Tensor:
    """Tell which keys the queries see.

    Position i of chunk m sees position j of chunk n when ``j <= i`` and ``m - n <= context``, or n is the prompt.

    With chunks of 2 frames, one token each, and ``context`` = 1 (paper section 2; 1 = visible)::

        key      a b 1   c d 2   e f 3
        chunk    0 0 0   1 1 1   2 2 2
        query 1  1 1 1   . . .   . . .
        query d  1 1 1   1 1 .   . . .
        query f  . . .   1 1 1   1 1 .

    A prompt of two tokens stands before the first chunk::

        key      x y   a b 1   c d 2   e f 3
        chunk    P P   0 0 0   1 1 1   2 2 2
        query y  1 1   . . .   . . .   . . .
        query f  1 1   . . .   1 1 1   1 1 .

    Args:
        query_position: integer tensor that broadcasts against the keys'.
        query_chunk_id: integer tensor that broadcasts against the keys'.
        key_position: integer tensor.
        key_chunk_id: integer tensor; a key of chunk ``PADDING`` is never seen.
        context: previous chunks that stay visible, a number or a tensor that broadcasts; None: all of them.

    Returns:
        Boolean tensor, the broadcast shape.
    """
    seen = (key_position <= query_position) & (key_chunk_id != PADDING)
    if context is not None:
        seen = seen & ((query_chunk_id - key_chunk_id <= context) | (key_chunk_id == PROMPT))
    return seen


def attention_mask(
    query_position: Tensor,
    query_chunk_id: Tensor,
    key_position: Tensor,
    key_chunk_id: Tensor,
    context: Tensor | int | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the additive mask (B, 1, Q, K) of :func:`visible`.

    The masked value is finite.  A query that sees nothing would become NaN otherwise, and its value would carry NaN
    into every later layer.

    Args:
        query_position: (B, Q) integers.
        query_chunk_id: (B, Q) integers.
        key_position: (B, K) integers.
        key_chunk_id: (B, K) integers.
        context: previous chunks that stay visible, a number or a tensor (B, 1, 1); None: all of them.
        dtype: of the mask.
    """
    seen = visible(
        query_position[:, :, None], query_chunk_id[:, :, None], key_position[:, None], key_chunk_id[:, None], context
    )
    unseen = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return torch.where(seen, torch.zeros_like(unseen), unseen)[:, None]


Chunks = TypeVar("Chunks", int, Tensor)


def oldest_visible_chunk(chunk_id: Chunks, context: int) -> Chunks:
    """Return the first chunk that queries of chunk ``chunk_id``, and of all later chunks, may still see."""
    return chunk_id - context
