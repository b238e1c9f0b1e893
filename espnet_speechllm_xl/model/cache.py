"""Keys and values of the decoder with their positions and chunk ids: append, fork, evict, re-base.

A :class:`Row` is one hypothesis' past and never changes, so a fork is another reference to it.  A
:class:`Batch` joins rows for one decoder call: the pasts are copied once into a buffer with room for the new
keys, Hugging Face's attention writes those in place, and the rows after the call are views of the buffer.

Shape legend: ``R`` rows, ``H`` key heads, ``W`` cached slots, ``q`` new inputs, ``d`` head dimension.
"""

from dataclasses import dataclass, replace

import torch

from espnet_speechllm_xl.model.visibility import PADDING, oldest_visible_chunk

EVERY_CHUNK = 1 << 62  # more than there are


@dataclass(frozen=True)
class Row:
    """One hypothesis' past: its inputs in their order, without gaps."""

    keys_values: torch.Tensor  # (2 * layers, H, W, d): keys of layer 0, values of layer 0, keys of layer 1, ...
    position: torch.Tensor  # (W,) rotary position of each slot
    chunk: torch.Tensor  # (W,) chunk id of each slot
    next_position: int  # position of the next input
    context: int | None  # previous chunks that stay visible; None: all

    def evict(self, chunk):
        """Drop what inputs of ``chunk``, and all later ones, cannot see."""
        gone = int((self.chunk < oldest_visible_chunk(chunk, self.context)).sum())
        return self._slots(slice(gone, None))

    def first(self, count):
        """The past of its first ``count`` inputs, of which none was evicted."""
        return replace(self._slots(slice(count)), next_position=self.next_position - len(self.chunk[count:]))

    def _slots(self, some):
        return replace(
            self, keys_values=self.keys_values[:, :, some], position=self.position[some], chunk=self.chunk[some]
        )

    def alone(self):
        """A copy that does not hold the buffer of the batch it came from."""
        return replace(
            self, keys_values=self.keys_values.clone(), position=self.position.clone(), chunk=self.chunk.clone()
        )

    def rebase(self, limit, rotate):
        """Move all positions back to start at 0 once the first reaches ``limit``; only differences matter to RoPE.

        Angles of large positions lose float32 digits.  A key is visible for few chunks, so it is rotated back
        a few times at most and no error accumulates.

        Args:
            rotate: ``(keys (..., W, d), shift) -> keys``, a rotation by ``shift`` positions.
        """
        shift = int(self.position[0]) if len(self.position) else self.next_position
        if shift < limit:
            return self
        moved = self.keys_values.clone()
        moved[0::2] = rotate(self.keys_values[0::2], -shift)
        position = self.position - shift
        return replace(self, keys_values=moved, position=position, next_position=self.next_position - shift)


def empty_row(layers, heads, head_dim, dtype, device, context):
    """The past before the first input."""
    nothing = torch.empty(0, dtype=torch.long, device=device)
    keys_values = torch.empty(2 * layers, heads, 0, head_dim, dtype=dtype, device=device)
    return Row(keys_values, nothing, nothing, 0, context)


class Batch:
    """Rows joined for one decoder call; ``update`` is what Hugging Face's attention layers call.

    Args:
        rows: pasts, any widths.
        counts: new inputs of each row.
        chunks: the chunk each row's new inputs belong to.
    """

    def __init__(self, rows, counts, chunks):
        widths = [row.keys_values.shape[2] for row in rows]
        self.width, self.new = max(widths), max(counts)
        first = rows[0].keys_values
        total = self.width + self.new
        self.buffer = first.new_empty(first.shape[0], len(rows), first.shape[1], total, first.shape[3])
        self.position = rows[0].position.new_zeros(len(rows), total)
        self.chunk = torch.full_like(self.position, PADDING)
        steps = torch.arange(self.new, device=first.device)
        # A row's past ends where its new inputs begin, so that no gap is left in it, which its forks would inherit.
        self.slots = [
            slice(self.width - width, self.width + count) for width, count in zip(widths, counts, strict=True)
        ]
        for index, (row, slots) in enumerate(zip(rows, self.slots, strict=True)):
            self.buffer[:, index, :, : slots.start] = 0  # unseen, but 0 * NaN would be NaN
            self.buffer[:, index, :, slots.start : self.width] = row.keys_values
            self.position[index, slots.start : self.width] = row.position
            self.chunk[index, slots.start : self.width] = row.chunk
            self.position[index, self.width :] = row.next_position + steps
            self.chunk[index, self.width : slots.stop] = chunks[index]
        self.next_positions = [row.next_position + count for row, count in zip(rows, counts, strict=True)]
        self.contexts = [row.context for row in rows]

    @property
    def query_position(self):
        """(R, q) positions of the new inputs."""
        return self.position[:, self.width :]

    @property
    def query_chunk(self):
        """(R, q) chunk ids of the new inputs, PADDING where a row has fewer than the others."""
        return self.chunk[:, self.width :]

    @property
    def context(self):
        """(R, 1, 1) previous chunks that each row sees, or one number or None for all of them."""
        if len(set(self.contexts)) == 1:
            return self.contexts[0]
        numbers = [EVERY_CHUNK if context is None else context for context in self.contexts]
        return torch.tensor(numbers, device=self.chunk.device)[:, None, None]

    def update(self, keys, values, layer, *_, **__):
        """Store one layer's new keys and values (R, H, q, d); return all of that layer's (R, H, W + q, d)."""
        self.buffer[2 * layer, :, :, self.width :] = keys
        self.buffer[2 * layer + 1, :, :, self.width :] = values
        return self.buffer[2 * layer], self.buffer[2 * layer + 1]

    def get_seq_length(self, *_):
        """Cached slots before the call (part of Hugging Face's cache interface)."""
        return self.width

    def rows(self):
        """The rows after the call."""
        parts = zip(self.slots, self.next_positions, self.contexts, strict=True)
        return [
            Row(
                self.buffer[:, index, :, slots],
                self.position[index, slots],
                self.chunk[index, slots],
                next_position,
                context,
            )
            for index, (slots, next_position, context) in enumerate(parts)
        ]
