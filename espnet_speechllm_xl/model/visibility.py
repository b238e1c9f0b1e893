"""Who may see whom in the decoder: the one predicate, and the masks made from it.

Shape legend: ``B`` batch, ``Q`` queries, ``K`` keys.
"""

import torch

PADDING = -1  # chunk id of a slot that holds nothing


def visible(query_position, query_chunk, key_position, key_chunk, context):
    """Position i of chunk m sees position j of chunk n when ``j <= i`` and ``m - n <= context``.

    With chunks of 2 frames, one token each, and ``context`` = 1 (paper section 2; 1 = visible)::

        key      a b 1   c d 2   e f 3
        chunk    0 0 0   1 1 1   2 2 2
        query 1  1 1 1   . . .   . . .
        query d  1 1 1   1 1 .   . . .
        query f  . . .   1 1 1   1 1 .

    Args:
        query_position, query_chunk: integer tensors that broadcast against the keys'.
        key_position, key_chunk: integer tensors; a key of chunk ``PADDING`` is never seen.
        context: previous chunks that stay visible, a number or a tensor that broadcasts; None: all of them.

    Returns:
        Boolean tensor, the broadcast shape.
    """
    seen = (key_position <= query_position) & (key_chunk != PADDING)
    if context is not None:
        seen = seen & (query_chunk - key_chunk <= context)
    return seen


def attention_mask(query_position, query_chunk, key_position, key_chunk, context, dtype):
    """Additive mask (B, 1, Q, K) from :func:`visible`; inputs are (B, Q) and (B, K).

    The masked value is finite: a query that sees nothing must not become NaN, which its value would carry into every
    later layer.
    """
    seen = visible(
        query_position[:, :, None], query_chunk[:, :, None], key_position[:, None], key_chunk[:, None], context
    )
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def oldest_visible_chunk(chunk, context):
    """The first chunk that queries of ``chunk``, and all later ones, may still see."""
    return 0 if context is None else chunk - context
