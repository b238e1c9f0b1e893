"""Attention in blocks against one dense mask, with gradients; which sequences take it; memory."""

import random

import pytest
import torch

from espnet_speechllm_xl.model import attention
from espnet_speechllm_xl.model.attention import BlockAttention, DenseAttention, sequence_attention
from espnet_speechllm_xl.model.visibility import PADDING, PROMPT, attention_mask


def ragged_batch(lengths, chunk, seed, prompts=(0, 0, 0)):
    """Positions and chunk ids (B, L): prompts, chunks of ``chunk`` to ``chunk + 9`` inputs, padding behind the end."""
    rng, longest = random.Random(seed), max(lengths)
    rows = []
    for length, prompt in zip(lengths, prompts, strict=False):
        row, chunk_id = [PROMPT] * prompt, 0
        while len(row) < length:
            row += [chunk_id] * (chunk + rng.randrange(10))
            chunk_id += 1
        rows.append(row[:length] + [PADDING] * (longest - length))
    return torch.arange(longest)[None].expand(len(lengths), -1), torch.tensor(rows)


@pytest.mark.parametrize("context", [0, 1, 4])
@pytest.mark.parametrize("prompts", [(0, 0, 0), (20, 0, 130), (140, 5, 0)])
@pytest.mark.parametrize("lengths", [(1400,), (2000, 1600, 1130), (1408, 1153)])
def test_blocks_equal_one_dense_mask(context, lengths, prompts):
    torch.manual_seed(0)
    position, chunk_id = ragged_batch(lengths, 30, seed=context, prompts=prompts)
    chosen = sequence_attention(position, chunk_id, context, torch.float64)
    assert isinstance(chosen, BlockAttention)
    dense = DenseAttention(attention_mask(position, chunk_id, position, chunk_id, context, torch.float64))
    inputs = torch.randn(3, len(lengths), max(lengths), 2, 8, dtype=torch.float64)
    real = (chunk_id != PADDING)[:, :, None, None]
    weights = torch.randn_like(inputs[0]) * real  # what stands in the padding does not matter
    results = []
    for one in (chosen, dense):
        query, keys, values = (each.clone().requires_grad_() for each in inputs)
        found = one.attend(0, query, keys, values)
        (found * weights).sum().backward()
        results.append([found * real, query.grad, keys.grad, values.grad])
    for blocks, wanted in zip(*results, strict=True):
        assert (blocks - wanted).abs().max() < 1e-12
    assert results[0][2].abs().sum() > 1


def test_what_is_short_or_sees_everything_has_one_mask():
    position, chunk_id = ragged_batch((500,), 30, seed=1)
    assert isinstance(sequence_attention(position, chunk_id, 1, torch.float32), DenseAttention)
    position, chunk_id = ragged_batch((2000,), 30, seed=1)
    assert isinstance(sequence_attention(position, chunk_id, None, torch.float32), DenseAttention)
    assert isinstance(sequence_attention(position, chunk_id, 60, torch.float32), DenseAttention)
    assert isinstance(sequence_attention(position, chunk_id, 4, torch.float32), BlockAttention)


def test_masks_grow_with_the_length_not_with_its_square():
    sizes = []
    for length in (2000, 8000):
        position, chunk_id = ragged_batch((length,), 36, seed=2)
        chosen = sequence_attention(position, chunk_id, 4, torch.float32)
        sizes.append(sum(mask.numel() for mask in chosen.masks))
    assert sizes[1] < 4.3 * sizes[0]
    assert sizes[0] < 2000 * (5 * 46 + 2 * attention.BLOCK)
