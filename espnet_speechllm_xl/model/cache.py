"""Keys and values of the decoder with their positions and chunk ids: append, fork, evict, re-base.

A :class:`CachedPast` belongs to one hypothesis and never changes, so a fork is another reference to it.  A
:class:`Batch` joins pasts for one decoder call: they are copied once into a buffer with room for the new keys, Hugging
Face's attention writes those in place, and the pasts after the call are views of the buffer.

Shape legend: ``R`` hypotheses, ``H`` key heads, ``W`` cached slots, ``q`` new inputs, ``d`` head dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espnet_speechllm_xl.model.decoder_steps import Past
from espnet_speechllm_xl.model.visibility import PADDING, oldest_visible_chunk

EVERY_CHUNK = 1 << 62  # more than there are


@dataclass(frozen=True)
class CachedPast(Past):
    """The inputs that one hypothesis has read, in order and without gaps."""

    keys_values: Tensor  # (2 * layers, H, W, d): keys of layer 0, values of layer 0, keys of layer 1, ...
    position: Tensor  # (W,) rotary position of each slot
    chunk_id: Tensor  # (W,) chunk of each slot
    next_position: int  # position of the next input
    context: int | None  # previous chunks that stay visible; None: all

    def evict(self, chunk_id: int) -> "CachedPast":
        """Drop the slots that inputs of chunk ``chunk_id`` and of all later chunks cannot see."""
        gone = int((self.chunk_id < oldest_visible_chunk(chunk_id, self.context)).sum())
        return self._slots(slice(gone, None))

    def first(self, count: int) -> "CachedPast":
        """Return the past of the first ``count`` inputs; none may have been evicted."""
        return replace(self._slots(slice(count)), next_position=self.next_position - len(self.chunk_id[count:]))

    def _slots(self, some: slice) -> "CachedPast":
        return replace(
            self, keys_values=self.keys_values[:, :, some], position=self.position[some], chunk_id=self.chunk_id[some]
        )

    def alone(self) -> "CachedPast":
        """Return a copy that does not hold the buffer of the batch it came from."""
        return replace(
            self, keys_values=self.keys_values.clone(), position=self.position.clone(), chunk_id=self.chunk_id.clone()
        )

    def rebase(self, limit: int, rotate: Callable[[Tensor, int], Tensor]) -> "CachedPast":
        """Move all positions back to start at 0 once the first reaches ``limit``; only differences matter to RoPE.

        Angles of large positions lose float32 digits.  A key is visible for few chunks, so it is rotated back a few
        times at most and no error accumulates.

        Args:
            limit: the first position that is too large.
            rotate: ``(keys (..., W, d), shift) -> keys``, a rotation by ``shift`` positions.
        """
        shift = int(self.position[0]) if len(self.position) else self.next_position
        if shift < limit:
            return self
        moved = self.keys_values.clone()
        moved[0::2] = rotate(self.keys_values[0::2], -shift)
        position = self.position - shift
        return replace(self, keys_values=moved, position=position, next_position=self.next_position - shift)


def empty_past(
    layers: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, context: int | None
) -> CachedPast:
    """Return the past before the first input.

    Args:
        layers: decoder layers.
        heads: key heads H.
        head_dim: size d of a head.
        dtype: of keys and values.
        device: of all tensors.
        context: previous chunks that stay visible; None: all.
    """
    nothing = torch.empty(0, dtype=torch.long, device=device)
    keys_values = torch.empty(2 * layers, heads, 0, head_dim, dtype=dtype, device=device)
    return CachedPast(keys_values, nothing, nothing, 0, context)


class Batch:
    """Pasts joined for one decoder call; ``update`` is what Hugging Face's attention layers call.

    Args:
        pasts: of R hypotheses, any widths.
        counts: new inputs of each.
        chunk_ids: the chunk that each one's new inputs belong to.
    """

    def __init__(self, pasts: Sequence[CachedPast], counts: Sequence[int], chunk_ids: Sequence[int]) -> None:
        widths = [past.keys_values.shape[2] for past in pasts]
        self.width, self.new = max(widths), max(counts)
        first = pasts[0].keys_values
        total = self.width + self.new
        self.buffer = first.new_empty(first.shape[0], len(pasts), first.shape[1], total, first.shape[3])
        self.position = pasts[0].position.new_zeros(len(pasts), total)
        self.chunk_id = torch.full_like(self.position, PADDING)
        steps = torch.arange(self.new, device=first.device)
        # A past ends where its new inputs begin, so that no gap is left in it, which its forks would inherit.
        self.slots = [
            slice(self.width - width, self.width + count) for width, count in zip(widths, counts, strict=True)
        ]
        for index, (past, slots) in enumerate(zip(pasts, self.slots, strict=True)):
            self.buffer[:, index, :, : slots.start] = 0  # unseen, but 0 * NaN would be NaN
            self.buffer[:, index, :, slots.start : self.width] = past.keys_values
            self.position[index, slots.start : self.width] = past.position
            self.chunk_id[index, slots.start : self.width] = past.chunk_id
            self.position[index, self.width :] = past.next_position + steps
            self.chunk_id[index, self.width : slots.stop] = chunk_ids[index]
        self.next_positions = [past.next_position + count for past, count in zip(pasts, counts, strict=True)]
        self.contexts = [past.context for past in pasts]

    @property
    def query_position(self) -> Tensor:
        """Return the positions (R, q) of the new inputs."""
        return self.position[:, self.width :]

    @property
    def query_chunk_id(self) -> Tensor:
        """Return the chunk ids (R, q) of the new inputs, PADDING where a hypothesis has fewer than the others."""
        return self.chunk_id[:, self.width :]

    @property
    def context(self) -> Tensor | int | None:
        """Return the previous chunks that each hypothesis sees (R, 1, 1); one number, or None, if all see as many."""
        if len(set(self.contexts)) == 1:
            return self.contexts[0]
        numbers = [EVERY_CHUNK if context is None else context for context in self.contexts]
        return torch.tensor(numbers, device=self.chunk_id.device)[:, None, None]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return all that the layer has (Hugging Face's cache interface).

        Args:
            keys: (R, H, q, d)
            values: (R, H, q, d)
            layer: index of the layer.

        Returns:
            keys and values (R, H, W + q, d)
        """
        self.buffer[2 * layer, :, :, self.width :] = keys
        self.buffer[2 * layer + 1, :, :, self.width :] = values
        return self.buffer[2 * layer], self.buffer[2 * layer + 1]

    def get_seq_length(self, *_: object) -> int:
        """Return the number of cached slots before the call (Hugging Face's cache interface)."""
        return self.width

    def pasts(self) -> list[CachedPast]:
        """Return the pasts after the call."""
        parts = zip(self.slots, self.next_positions, self.contexts, strict=True)
        return [
            CachedPast(
                self.buffer[:, index, :, slots],
                self.position[index, slots],
                self.chunk_id[index, slots],
                next_position,
                context,
            )
            for index, (slots, next_position, context) in enumerate(parts)
        ]
