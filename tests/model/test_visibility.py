"""The visibility predicate and its masks against masks drawn in loops."""

import random

import pytest
import torch
from slow import slow_visible

from espnet_speechllm_xl.model.visibility import PADDING, PROMPT, attention_mask, oldest_visible_chunk, visible


def random_chunks(rng, length):
    chunks, k = [], 0
    while len(chunks) < length:
        chunks += [k] * rng.randint(1, 7)
        k += 1
    return chunks[:length]


def padded(rows, value):
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def test_the_papers_example():
    """Section 1 of the definition: with b = 1, token 4 sees a..h, 1, 2, 3, itself; token 6 sees e..l, 2..5, itself."""
    inputs = "a b c d 1 e f g h 2 3 4 i j k l 5 6".split()
    chunks = torch.tensor([0] * 5 + [1] * 7 + [2] * 6)
    position = torch.arange(len(inputs))

    def seen_by(name):
        i = inputs.index(name)
        row = visible(position[i], chunks[i], position, chunks, 1)
        return {inputs[j] for j in row.nonzero()[:, 0].tolist()}

    assert seen_by("4") == set("abcdefgh1234")
    assert seen_by("6") == set("efghijkl23456")


@pytest.mark.parametrize("context", [0, 1, None])
def test_a_prompt_is_seen_by_every_chunk_and_sees_itself(context):
    names = "x y a b 1 c d 2 e f 3".split()
    chunks = torch.tensor([PROMPT] * 2 + [0] * 3 + [1] * 3 + [2] * 3)
    position = torch.arange(len(names))
    seen = visible(position[:, None], chunks[:, None], position, chunks, context)
    rows = ["".join(name for name, one in zip(names, row, strict=True) if one) for row in seen.tolist()]
    assert rows[names.index("x")] == "x" and rows[names.index("y")] == "xy"
    assert rows[names.index("d")] == {0: "xycd", 1: "xyab1cd", None: "xyab1cd"}[context]
    assert rows[names.index("f")] == {0: "xyef", 1: "xycd2ef", None: "xyab1cd2ef"}[context]


@pytest.mark.parametrize("context", [0, 1, 2, 5, None])
def test_masks_of_ragged_batches(context):
    rng = random.Random(f"visibility {context}")
    for _ in range(25):
        rows = [random_chunks(rng, rng.randint(1, 40)) for _ in range(rng.randint(1, 5))]
        chunk = padded(rows, PADDING)
        position = torch.arange(chunk.shape[1]).expand_as(chunk)
        mask = attention_mask(position, chunk, position, chunk, context, torch.float64)
        assert mask.shape == (len(rows), 1, chunk.shape[1], chunk.shape[1])
        assert torch.isfinite(mask).all()
        for b, row in enumerate(rows):
            size = len(row)
            expected = torch.tensor(slow_visible(row, context))
            assert ((mask[b, 0, :size, :size] == 0) == expected).all()
            assert (mask[b, 0, :size, size:] == torch.finfo(torch.float64).min).all(), "padding is never seen"
            assert (mask[b, 0, :size, :size][~expected] == torch.finfo(torch.float64).min).all()


@pytest.mark.parametrize("context", [0, 1, 3, None])
def test_steps_see_what_the_whole_sequence_sees(context):
    """Queries that continue a past, with empty slots strewn among the keys, see what the full mask says."""
    rng = random.Random(f"steps {context}")
    for _ in range(30):
        chunks = random_chunks(rng, 30)
        first = rng.randrange(30)
        expected = slow_visible(chunks, context)
        slots = list(range(30)) + [None] * 6
        rng.shuffle(slots)
        key_position = torch.tensor([rng.randrange(30) if slot is None else slot for slot in slots])
        key_chunk_id = torch.tensor([PADDING if slot is None else chunks[slot] for slot in slots])
        query = torch.arange(first, 30)
        got = visible(query[:, None], torch.tensor(chunks)[first:, None], key_position, key_chunk_id, context)
        for i, row in zip(query.tolist(), got.tolist(), strict=True):
            assert row == [slot is not None and expected[i][slot] for slot in slots]


@pytest.mark.parametrize("context", [0, 1, 3])
def test_evicted_chunks_are_out_of_sight_for_good(context):
    chunks = [k for k in range(9) for _ in range(3)]
    seen = slow_visible(chunks, context)
    for current in range(9):
        oldest = oldest_visible_chunk(current, context)
        later = [i for i, k in enumerate(chunks) if k >= current]
        needed = {chunks[j] for i in later for j in range(len(chunks)) if seen[i][j]}
        assert min(needed) == max(oldest, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_mask_keeps_its_type_and_stays_finite(dtype):
    chunk = torch.tensor([[0, 0, 1, 1, PADDING], [PADDING] * 5])
    position = torch.arange(5).expand(2, 5)
    mask = attention_mask(position, chunk, position, chunk, 0, dtype)
    assert mask.dtype == dtype and torch.isfinite(mask).all()
    assert (mask[1] != 0).all()
