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

from espnet_speechllm_xl.model.visibility import PADDING, attention_mask, oldest_visible_chunk

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
        masks: (B, 1, b, w) additive, of each block; its window ends with the block.
    """

    def __init__(self, masks: Sequence[Tensor]) -> None:
        self.masks = masks

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the queries find; see :class:`Attention`."""
        # Split and joined again: the backward of overlapping slices would be as long as the sequence for each.
        blocks = [each.split(BLOCK, dim=1) for each in (query, keys, values)]
        found = []
        for index, mask in enumerate(self.masks):
            first = index + 1 - -(-mask.shape[3] // BLOCK)
            seen_keys, seen_values = (torch.cat(each[first : index + 1], dim=1) for each in blocks[1:])
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
        chunk_id: (B, L) integers, never decreasing, ``PADDING`` behind the end.
        context: previous chunks that stay visible, a number or a tensor (B, 1, 1); None: all.
        dtype: of the masks.
    """
    length = position.shape[1]
    if isinstance(context, int) and length > 4 * BLOCK:
        starts = _window_starts(chunk_id, context)
        seen = sum(min(BLOCK, length - index * BLOCK) * ((index + 1) - first) for index, first in enumerate(starts))
        if 2 * seen * BLOCK < length * length:
            return BlockAttention(_block_masks(position, chunk_id, context, dtype, starts))
    return DenseAttention(attention_mask(position, chunk_id, position, chunk_id, context, dtype))


def _window_starts(chunk_id: Tensor, context: int) -> list[int]:
    """Return the first block of keys that each block of queries sees, in any sequence of the batch."""
    chunk_id = torch.where(chunk_id == PADDING, torch.iinfo(chunk_id.dtype).max, chunk_id)
    first_queries = chunk_id[:, ::BLOCK].contiguous()  # of each block; they see the oldest keys
    first_keys = torch.searchsorted(chunk_id, oldest_visible_chunk(first_queries, context)).min(0).values
    # Blocks of padding alone see themselves.
    own = torch.arange(0, chunk_id.shape[1], BLOCK, device=chunk_id.device)
    return (first_keys.minimum(own) // BLOCK).tolist()


def _block_masks(
    position: Tensor, chunk_id: Tensor, context: int, dtype: torch.dtype, starts: Sequence[int]
) -> list[Tensor]:
    """Return the additive mask (B, 1, b, w) of each block; its window begins with the block ``starts`` names."""
    masks = []
    for index, first in enumerate(starts):
        queries, keys = (slice(begin * BLOCK, (index + 1) * BLOCK) for begin in (index, first))
        own = position[:, queries], chunk_id[:, queries], position[:, keys], chunk_id[:, keys]
        masks.append(attention_mask(*own, context, dtype))
    return masks
