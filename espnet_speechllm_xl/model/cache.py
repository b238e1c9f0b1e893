"""Keys and values of the decoder, in slots of one store: append in place, fork, evict, re-base.

A slot holds the inputs of one hypothesis, column by column.  A :class:`CachedPast` is the first ``length`` columns of a
slot and never changes, so a fork is another reference to it::

    slot 3   a b c d 1 2 . .     past of "1"     slot 3, length 5
                                 past of "1 2"   slot 3, length 6: it was extended in place

The past that fills its slot is extended in place, once.  Any other is copied to a slot of its own before: the second
child of a past, and a past whose first columns are out of sight.  So every past begins in column 0, and hypotheses of
all ages are read by one strided view of the store.

A prompt, text before the first chunk, stays in the first columns for good.  What follows it moves up when chunks get
out of sight, and in a long stream it also moves towards the prompt, in positions: see :attr:`Pool.farthest`.

A :class:`Batch` joins pasts for one decoder call.  Slots have one of a few widths; a past that outgrows its slot moves
to a wider one, so its length may grow without end, and streams of bounded context pay for what they hold.

Shape legend: ``R`` hypotheses, ``S`` slots, ``W`` columns of a slot, ``H`` key heads, ``n`` columns in use, ``q`` new
inputs, ``d`` head dimension.
"""

import heapq
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_speechllm_xl.model.attention import Attention
from espnet_speechllm_xl.model.decoder_steps import Past
from espnet_speechllm_xl.model.visibility import PADDING, PROMPT, attention_mask, oldest_visible_chunk

EVERY_CHUNK = 1 << 62  # more than there are
NARROWEST = 64  # columns
FEWEST = 4  # slots by which a store grows at least, if they are not wide
MANY_COLUMNS = 4096  # by which a store of wide slots grows at least
# What is read in the time of one more call to the attention, on a GPU and on a CPU: 5 us at 4 TB/s, 10 us at 10 GB/s.
CALL_BYTES = (20_000_000, 100_000)


class Store:
    """Slots of one width.

    Args:
        layers: decoder layers.
        width: columns W.
        heads: key heads H.
        head_dim: size d of a head.
        like: a weight, for type and device.

    Attributes:
        entries: (layers, S, W, 2, H, d) keys and values.
        chunk_id: (S, W) chunk of each input.
    """

    def __init__(self, layers: int, width: int, heads: int, head_dim: int, like: Tensor) -> None:
        self.width = width
        self._free: list[int] = []  # a heap: slots in use stay close together, so that one view covers them
        # Free too, with whether all they hold is finite.  Any thread may drop a past at any time, and appends here.
        self._returned: list[tuple[int, bool]] = []
        self.entries = like.new_zeros(layers, 0, width, 2, heads, head_dim)
        self.chunk_id = torch.zeros(0, width, dtype=torch.long, device=like.device)

    def take(self, more: int) -> "Slot":
        """Return a free slot; ``more`` will be asked for next."""
        while self._returned:
            index, finite = self._returned.pop()
            if not finite:
                self.entries[:, index] = 0  # columns out of sight are multiplied by 0, and 0 * NaN is NaN
            heapq.heappush(self._free, index)
        if not self._free:
            least = min(FEWEST, MANY_COLUMNS // self.width)
            self._grow(max(1 + more, least, len(self.chunk_id) // 2))
        return Slot(self, heapq.heappop(self._free))

    def give_back(self, slot: "Slot") -> None:
        """Take a slot that nothing refers to any more."""
        self._returned.append((slot.index, slot.finite))

    def release(self) -> None:
        """Free the memory if no slot is in use."""
        if len(self._free) + len(self._returned) == len(self.chunk_id) > FEWEST:
            self._free, self._returned = [], []
            self.entries, self.chunk_id = self.entries[:, :0].clone(), self.chunk_id[:0].clone()

    def _grow(self, count: int) -> None:
        known = len(self.chunk_id)
        self.entries = F.pad(self.entries, (0, 0) * 4 + (0, count))
        self.chunk_id = F.pad(self.chunk_id, (0, 0, 0, count))
        for index in range(known, known + count):
            heapq.heappush(self._free, index)


class Slot:
    """The inputs of one hypothesis in a :class:`Store`; it is free again once no past refers to it."""

    __slots__ = ("filled", "finite", "index", "store")

    def __init__(self, store: Store, index: int) -> None:
        self.store, self.index = store, index
        self.filled = 0  # columns that were written: a past of as many may be extended in place
        self.finite = True  # False: the decoder may have written NaN or infinity

    def __del__(self) -> None:
        self.store.give_back(self)


@dataclass(frozen=True)
class CachedPast(Past):
    """The inputs that one hypothesis has read, in order and without gaps."""

    slot: Slot | None  # None: of no inputs
    length: int  # inputs, in the slot's first columns
    next_position: int  # rotary position of the next input; those of the others, but the prompt, precede it one by one
    context: int | None  # previous chunks that stay visible; None: all
    chunks: tuple[tuple[int, int], ...] = ()  # (chunk id, inputs) in order; kept where inputs get out of sight
    prompt: int = 0  # inputs of the prompt, the first; their positions are 0, 1, ...

    @property
    def entries(self) -> Tensor:
        """Return the keys and values (layers, n, 2, H, d) of n >= 1 inputs, where they lie."""
        assert self.slot is not None
        return self.slot.store.entries[:, self.slot.index, : self.length]

    def alone(self) -> "CachedPast":
        """Return itself: a slot is nobody else's."""
        return self

    def first(self, count: int) -> "CachedPast":
        """Return the past of the first ``count`` inputs; none may have been evicted."""
        left, chunks = count, []
        for chunk_id, inputs in self.chunks:
            chunks.append((chunk_id, min(left, inputs)))
            left -= chunks[-1][1]
        kept = tuple(chunk for chunk in chunks if chunk[1])
        return replace(self, length=count, next_position=self.next_position - (self.length - count), chunks=kept)

    def out_of_sight(self, chunk_id: int) -> int:
        """Count the inputs that inputs of chunk ``chunk_id`` and of all later chunks cannot see."""
        if self.context is None:
            return 0
        oldest = oldest_visible_chunk(chunk_id, self.context)
        return sum(inputs for other, inputs in self.chunks if other < oldest)

    def extended(self, slot: Slot, chunk_id: int, count: int, gone: int, shift: int) -> "CachedPast":
        """Return the past with ``count`` inputs more.

        Args:
            slot: that now holds the inputs.
            chunk_id: of the new inputs.
            count: of the new inputs.
            gone: inputs, the first behind the prompt, that are out of sight.
            shift: positions by which all inputs behind the prompt have moved towards 0.
        """
        chunks, prompt = self.chunks, self.prompt
        if chunk_id == PROMPT:
            prompt += count
        elif self.context is not None:
            oldest = oldest_visible_chunk(chunk_id, self.context)
            if chunks and chunks[-1][0] == chunk_id:
                chunks = (*chunks[:-1], (chunk_id, chunks[-1][1] + count))
            else:
                chunks = (*(chunk for chunk in chunks if chunk[0] >= oldest), (chunk_id, count))
        return CachedPast(
            slot, self.length - gone + count, self.next_position - shift + count, self.context, chunks, prompt
        )


@dataclass(frozen=True)
class Step:
    """What a decoder call does with one past."""

    past: CachedPast
    chunk_id: int  # of the new inputs
    count: int  # new inputs
    begins: bool = False  # they are the first of their chunk, so older ones may be out of sight: these are evicted


@dataclass(frozen=True)
class Rebase:
    """How to keep the positions of endless streams small, where a network computes large ones badly.

    A past is moved back to start at 0 once its first position reaches the limit; only differences matter to rotary
    positions.  A key is visible for few chunks, so it is rotated a few times at most and no error accumulates.
    """

    limit: int | None  # the first position that is too large; None: none is
    rotate: Callable[[Tensor, int], Tensor]  # (keys (..., H, d), positions to move by) -> keys


class Pool:
    """The stores of a decoder, one for each width of its slots.

    One call at a time uses it: hold ``lock``.  A copy is empty: pasts stay with the original.

    Args:
        layers: decoder layers.
        heads: key heads H.
        head_dim: size d of a head.
        like: a weight, for type and device.
        rebase: how to keep positions small; None: any position is good.
        farthest: see the attribute.

    Attributes:
        farthest: the last position at which a chunk may begin behind a prompt.  A later chunk begins there, with the
            chunks in its sight before it, so the prompt is never farther away than in training.  None: no such limit.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        like: Tensor,
        rebase: Rebase | None,
        farthest: int | None = None,
    ) -> None:
        self.farthest = farthest
        self.lock = threading.RLock()
        self.layers, self.heads, self.head_dim = layers, heads, head_dim
        self.dtype, self.device = like.dtype, like.device
        self._like, self._rebase = like.detach()[:0], rebase
        self._stores: dict[int, Store] = {}

    def prepare(self, step: Step, more: int) -> tuple[CachedPast, Slot, int]:
        """Make room for the new inputs of a step.

        Args:
            step: of a hypothesis.
            more: steps that follow in the same call.

        Returns:
            past: with the new inputs, which the caller writes.
            slot: that holds it.
            before: columns before the new inputs.
        """
        past, slot = step.past, step.past.slot
        gone = past.out_of_sight(step.chunk_id) if step.begins else 0
        kept = past.length - gone
        shift = self._shift(step, past.next_position - (kept - past.prompt))
        wanted = kept + step.count
        if slot is None or gone or shift or slot.filled != past.length or slot.store.width < wanted:
            slot = self._copy(step, gone, shift, more)
        slot.filled = wanted
        return past.extended(slot, step.chunk_id, step.count, gone, shift), slot, kept

    def _shift(self, step: Step, first: int) -> int:
        """Return the positions by which the inputs behind the prompt move towards 0.

        Args:
            step: of a hypothesis.
            first: position of the first input behind the prompt that stays.
        """
        past, rebase = step.past, self._rebase
        if not step.begins or rebase is None:
            return 0
        if past.prompt:
            # With all chunks in sight there is no window to move, and keys would be rotated again and again.
            if past.context is None or self.farthest is None:
                return 0
            return max(0, min(past.next_position - self.farthest, first - past.prompt))
        return first if rebase.limit is not None and first >= rebase.limit else 0

    def release(self) -> None:
        """Free the memory of stores that no past uses."""
        for store in self._stores.values():
            store.release()

    def _copy(self, step: Step, gone: int, shift: int, more: int) -> Slot:
        """Return a new slot for a step, with the past's inputs.

        Args:
            step: of a hypothesis.
            gone: inputs, the first behind the prompt, that are left out.
            shift: positions by which the others behind the prompt move towards 0.
            more: steps that follow in the same call.
        """
        past, kept, prompt = step.past, step.past.length - gone, step.past.prompt
        wanted = kept + step.count
        if step.begins and past.context is not None and step.chunk_id != PROMPT:
            # At once as wide as the window will be, with a text of a quarter of the frames.
            wanted = max(wanted, prompt + (past.context + 1) * step.count * 5 // 4)
        slot = self._store(wanted).take(more)
        if past.slot is not None and kept:
            source, to = past.slot, slot.store
            for begin, end, skipped in ((0, prompt, 0), (prompt, kept, gone)):
                if begin < end:
                    old, new = slice(begin + skipped, end + skipped), slice(begin, end)
                    to.entries[:, slot.index, new] = source.store.entries[:, source.index, old]
                    to.chunk_id[slot.index, new] = source.store.chunk_id[source.index, old]
            if shift and self._rebase is not None:
                keys = to.entries[:, slot.index, prompt:kept, 0]
                keys.copy_(self._rebase.rotate(keys, -shift))
        return slot

    def _store(self, wanted: int) -> Store:
        """Return the store of the narrowest slots with ``wanted`` columns: 64, 96, 128, 192, 256, ..."""
        width = NARROWEST
        while width < wanted:
            width += width // 2 if width & (width - 1) == 0 else width // 3
        if width not in self._stores:
            self._stores[width] = Store(self.layers, width, self.heads, self.head_dim, self._like)
        return self._stores[width]


class _Run(NamedTuple):
    """Hypotheses of a group that are read by one view: neighbours, or nearly so."""

    rows: slice  # of the group
    slots: slice  # of the store
    places: Tensor | None  # (r,) of the hypotheses among these slots; None: they fill them


class _Group:
    """The hypotheses of a batch whose slots are in one store.

    Args:
        store: of the slots.
        rows: of the batch, in the order of their slots.
        slots: index of each, increasing.
        before: (r,) columns before the new inputs, of each.
        real: (r, q) bool, new inputs that are no padding; None: all are real.
        new: new inputs q.
        width: columns n in use in the batch.
    """

    def __init__(
        self, store: Store, rows: slice, slots: Sequence[int], before: Tensor, real: Tensor | None, new: int, width: int
    ) -> None:
        self.store, self.rows = store, rows
        self.width = min(width, store.width)
        self._slots = torch.tensor(slots, device=store.entries.device)
        columns = before[:, None] + torch.arange(new, device=before.device)
        places = (self._slots[:, None] * store.width + columns).flatten()
        self._real = None if real is None else real.flatten().nonzero()[:, 0]
        self._places = places if self._real is None else places[self._real]
        self._runs = self._split(slots)

    def _split(self, slots: Sequence[int]) -> list[_Run]:
        """Return the runs: slots in between are read in vain, up to what a call costs."""
        layer = self.store.entries[0, :1, : self.width]
        affordable = CALL_BYTES[layer.device.type == "cpu"] // (layer.numel() * layer.element_size())
        runs, begin = [], 0
        for end in range(1, len(slots) + 1):
            if end < len(slots) and slots[end] - slots[end - 1] - 1 <= affordable:
                continue
            span = slice(slots[begin], slots[end - 1] + 1)
            whole = span.stop - span.start == end - begin
            runs.append(_Run(slice(begin, end), span, None if whole else self._slots[begin:end] - span.start))
            begin = end
        return runs

    def write(self, into: Tensor, values: Tensor) -> None:
        """Write values (r, q, ...) of the new inputs into ``into`` (S, W, ...)."""
        values = values.reshape(-1, *into.shape[2:])
        into.flatten(0, 1).index_copy_(0, self._places, values if self._real is None else values[self._real])

    def read(self, source: Tensor) -> Tensor:
        """Return the columns (r, n, ...) of ``source`` (S, W, ...): a view if the slots are neighbours."""
        if len(self._runs) == 1 and self._runs[0].places is None:
            return source[self._runs[0].slots, : self.width]
        return source[:, : self.width].index_select(0, self._slots)

    def attend(self, layer: int, query: Tensor, mask: Tensor) -> Tensor:
        """Return what queries (r, q, H, d) find in a layer under the additive ``mask`` (r, 1, q, n): (r, q, H, d)."""
        query, mask = query.transpose(1, 2), mask[..., : self.width]
        entries = self.store.entries[layer, :, : self.width]
        found = []
        for rows, slots, places in self._runs:
            if places is None:
                found.append(_attention(query[rows], entries[slots], mask[rows]))
                continue
            span = slots.stop - slots.start
            spread, masks = (
                each.new_zeros(span, *each.shape[1:]).index_copy_(0, places, each[rows]) for each in (query, mask)
            )
            found.append(_attention(spread, entries[slots], masks)[places])
        return (found[0] if len(found) == 1 else torch.cat(found)).transpose(1, 2)


def _attention(query: Tensor, entries: Tensor, mask: Tensor) -> Tensor:
    """Attend from (r, H, q, d) to entries (r, n, 2, H, d) under a mask (r, 1, q, n)."""
    keys, values = entries.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


class Batch(Attention):
    """Pasts joined for one decoder call.

    Args:
        pool: of the pasts; its lock is held until the call has ended.
        steps: of R hypotheses.

    Attributes:
        order: which step each row of the batch is: rows are in the order of their slots.
        pasts: after the call, in the order of the steps.
        query_position: (R, q) positions of the new inputs.
        query_chunk_id: (R, q) their chunks, PADDING where a hypothesis has fewer than the others.
        key_position: (R, n) positions of the columns.
        counts: new inputs of each row.
        mask: (R, 1, q, n) additive, what the new inputs see of the columns.
    """

    def __init__(self, pool: Pool, steps: Sequence[Step]) -> None:
        prepared = [pool.prepare(step, len(steps) - 1 - index) for index, step in enumerate(steps)]
        self.pasts = [past for past, _, _ in prepared]
        slots = [slot for _, slot, _ in prepared]
        self.order = sorted(range(len(steps)), key=lambda step: (slots[step].store.width, slots[step].index))
        self.counts = [steps[step].count for step in self.order]
        self.new = max(self.counts)
        before = [prepared[step][2] for step in self.order]
        table = torch.tensor(
            [
                before,
                [self.pasts[step].next_position - steps[step].count for step in self.order],
                [steps[step].chunk_id for step in self.order],
                self.counts,
            ],
            device=pool.device,
        )
        steps_new = torch.arange(self.new, device=pool.device)
        self.query_position = table[1, :, None] + steps_new
        real = steps_new < table[3, :, None]
        self.query_chunk_id = torch.where(real, table[2, :, None], PADDING)
        self.width = max(have + count for have, count in zip(before, self.counts, strict=True))
        self._groups = self._grouped([slots[step] for step in self.order], table[0], real)
        for group in self._groups:
            group.write(group.store.chunk_id, self.query_chunk_id[group.rows])
        key_chunk_id = self._read([group.store.chunk_id for group in self._groups])
        columns = torch.arange(self.width, device=pool.device)
        self.key_position = (table[1] - table[0])[:, None] + columns
        prompts = [self.pasts[step].prompt for step in self.order]
        if any(prompts):  # which stay at their place while the inputs behind them are moved
            own = columns < torch.tensor(prompts, device=pool.device)[:, None]
            self.key_position = torch.where(own, columns, self.key_position)
        self.mask = attention_mask(
            self.query_position,
            self.query_chunk_id,
            self.key_position,
            key_chunk_id,
            self._context([steps[step].past.context for step in self.order]),
            pool.dtype,
        )

    def _grouped(self, slots: Sequence[Slot], before: Tensor, real: Tensor) -> list[_Group]:
        """Return the groups of the rows.

        Args:
            slots: of the rows.
            before: (R,) columns of each before the new inputs.
            real: (R, q) bool, new inputs that are no padding.
        """
        ragged = min(self.counts) < self.new
        groups, begin = [], 0
        for end in range(1, len(slots) + 1):
            if end == len(slots) or slots[end].store is not slots[begin].store:
                rows = slice(begin, end)
                indices = [slot.index for slot in slots[rows]]
                own = real[rows] if ragged else None
                groups.append(_Group(slots[begin].store, rows, indices, before[rows], own, self.new, self.width))
                begin = end
        return groups

    def _context(self, contexts: Sequence[int | None]) -> Tensor | int | None:
        """Return the previous chunks that each row sees (R, 1, 1); one number, or None, if all see as many."""
        if len(set(contexts)) == 1:
            return contexts[0]
        numbers = [EVERY_CHUNK if context is None else context for context in contexts]
        return torch.tensor(numbers, device=self.query_position.device)[:, None, None]

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store the new keys and values, and return what the queries find, all (R, q, H, d); see :class:`Attention`."""
        self._write(layer, keys, values)
        found = [group.attend(layer, query[group.rows], self.mask[group.rows]) for group in self._groups]
        return found[0] if len(found) == 1 else torch.cat(found)

    def spoil(self) -> None:
        """Mark the slots as ones with NaN or infinity in them, lest a later past take that over."""
        for past in self.pasts:
            assert past.slot is not None
            past.slot.finite = False

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return all that the layer has (Hugging Face's cache interface).

        Args:
            keys: (R, H, q, d)
            values: (R, H, q, d)
            layer: index of the layer.

        Returns:
            keys and values (R, H, n, d)
        """
        self._write(layer, keys.transpose(1, 2), values.transpose(1, 2))
        all_keys, all_values = self._read([group.store.entries[layer] for group in self._groups]).permute(2, 0, 3, 1, 4)
        return all_keys, all_values

    def get_seq_length(self, *_: object) -> int:
        """Return the number of columns before the call (Hugging Face's cache interface)."""
        return self.width - self.new

    def _read(self, sources: Sequence[Tensor]) -> Tensor:
        """Return the columns (R, n, ...) of all rows; ``sources`` are tensors (S, W, ...) of the groups' stores."""
        parts = [group.read(source) for group, source in zip(self._groups, sources, strict=True)]
        if len(parts) == 1:
            return parts[0]
        padding = (0, 0) * (parts[0].dim() - 2)
        return torch.cat([F.pad(part, (*padding, 0, self.width - part.shape[1])) for part in parts])

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        for group in self._groups:
            new = torch.stack([keys[group.rows], values[group.rows]], dim=2)
            group.write(group.store.entries[layer], new)
