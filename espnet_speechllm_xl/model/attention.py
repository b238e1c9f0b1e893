"""Attention of the decoder to whole sequences, as in training; cache.py has that of decoding.

Each query sees a window of keys (visibility.py), so the mask of a long sequence is nearly empty.  Its queries are taken
in blocks, and each block attends to the keys of its window alone: linear in length, with the same result.

Shape legend: ``B`` batch, ``L`` sequence, ``H`` heads, ``d`` head dimension, ``b`` queries of a block, ``w`` keys of
its window.
"""

import abc
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_speechllm_xl.model.visibility import PADDING, PROMPT, attention_mask, oldest_visible_chunk

BLOCK = 128  # queries


class Attention(abc.ABC):
    """The contract of a network's layers with what they attend to."""

    @abc.abstractmethod
    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the queries find (B, L, H, d).

        Args:
            layer: index of the layer.
            query: (B, L, H, d) of the new inputs.
            keys: (B, L, H, d) of the new inputs.
            values: (B, L, H, d) of the new inputs.
        """


class DenseAttention(Attention):
    """All queries attend to all keys of the sequence under one mask.

    Args:
        mask: (B, 1, L, L) additive.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the queries find; see :class:`Attention`."""
        return _attend(query, keys, values, self.mask)


class BlockAttention(Attention):
    """Blocks of queries attend to the blocks of keys that they see some of.

    Args:
        windows: the blocks of keys of each block of queries.
        masks: (B, 1, b, w) additive, of each block of queries.
    """

    def __init__(self, windows: Sequence[Sequence[int]], masks: Sequence[Tensor]) -> None:
        self.windows, self.masks = windows, masks

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the queries find; see :class:`Attention`."""
        # Split and joined again: the backward of overlapping slices would be as long as the sequence for each.
        blocks = [each.split(BLOCK, dim=1) for each in (query, keys, values)]
        found = []
        for index, (window, mask) in enumerate(zip(self.windows, self.masks, strict=True)):
            seen_keys, seen_values = (torch.cat([each[block] for block in window], dim=1) for each in blocks[1:])
            found.append(_attend(blocks[0][index], seen_keys, seen_values, mask))
        return torch.cat(found, dim=1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    query, keys, values = (each.transpose(1, 2) for each in (query, keys, values))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).transpose(1, 2)


def sequence_attention(
    position: Tensor, chunk_id: Tensor, context: Tensor | int | None, dtype: torch.dtype
) -> Attention:
    """Return the attention of whole sequences, in blocks where that saves most of the work.

    Args:
        position: (B, L) integers.
        chunk_id: (B, L) integers, never decreasing (``PROMPT`` is the least), ``PADDING`` behind the end.
        context: previous chunks that stay visible, a number or a tensor (B, 1, 1); None: all.
        dtype: of the masks.
    """
    length = position.shape[1]
    if isinstance(context, int) and length > 4 * BLOCK:
        windows = _windows(chunk_id, context)
        seen = sum(min(BLOCK, length - index * BLOCK) * len(window) for index, window in enumerate(windows))
        if 2 * seen * BLOCK < length * length:
            return BlockAttention(windows, _block_masks(position, chunk_id, context, dtype, windows))
    return DenseAttention(attention_mask(position, chunk_id, position, chunk_id, context, dtype))


def _windows(chunk_id: Tensor, context: int) -> list[list[int]]:
    """Return the blocks of keys that each block of queries sees, in any sequence of the batch."""
    prompt_blocks = -(-int((chunk_id == PROMPT).sum(1).max()) // BLOCK)
    chunk_id = torch.where(chunk_id == PADDING, torch.iinfo(chunk_id.dtype).max, chunk_id)
    first_queries = chunk_id[:, ::BLOCK].contiguous()  # of each block; they see the oldest keys
    first_keys = torch.searchsorted(chunk_id, oldest_visible_chunk(first_queries, context)).min(0).values
    # Blocks of padding alone see themselves.
    own = torch.arange(0, chunk_id.shape[1], BLOCK, device=chunk_id.device)
    starts = (first_keys.minimum(own) // BLOCK).tolist()
    return [[*range(min(prompt_blocks, start)), *range(start, index + 1)] for index, start in enumerate(starts)]


def _block_masks(
    position: Tensor, chunk_id: Tensor, context: int, dtype: torch.dtype, windows: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Return the additive mask (B, 1, b, w) of each block of queries to the blocks of its window."""
    positions, chunk_ids = position.split(BLOCK, dim=1), chunk_id.split(BLOCK, dim=1)
    masks = []
    for index, window in enumerate(windows):
        key_position, key_chunk_id = (
            torch.cat([each[block] for block in window], dim=1) for each in (positions, chunk_ids)
        )
        own = positions[index], chunk_ids[index], key_position, key_chunk_id
        masks.append(attention_mask(*own, context, dtype))
    return masks
