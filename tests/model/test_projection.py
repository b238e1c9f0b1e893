"""The projection: by default a linear layer of its old names; stacked frames; utterances chunk by chunk."""

import random

import pytest
import torch

from espnet_speechllm_xl.config import ProjectionConfig
from espnet_speechllm_xl.model.projection import make_projection, project_utterances, stacked


def test_by_default_it_is_the_linear_layer_that_it_was():
    torch.manual_seed(3)
    expected = torch.nn.Linear(5, 7)
    torch.manual_seed(3)
    projection = make_projection(5, 7, ProjectionConfig())
    assert list(projection.state_dict()) == ["weight", "bias"]
    frames = torch.randn(2, 9, 5)
    assert projection(frames).equal(expected(frames))
    inputs = project_utterances(projection, frames, torch.tensor([9, 4]), 4, reduction=1)
    assert inputs.equal(expected(frames))


def test_frames_are_stacked_in_order_and_zeros_follow():
    frames = torch.arange(1, 11).view(5, 2)  # 1 2 | 3 4 | 5 6 | 7 8 | 9 10
    assert stacked(frames, 1).equal(frames)
    assert stacked(frames, 2).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]
    assert stacked(frames, 4).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 0, 0, 0, 0, 0, 0]]
    assert stacked(frames[:1], 2).tolist() == [[1, 2, 0, 0]]
    assert stacked(frames[:0], 2).shape == (0, 4)
    assert stacked(frames.view(1, 5, 2).expand(3, 5, 2), 2).equal(stacked(frames, 2).expand(3, 3, 4))


@torch.no_grad()
@pytest.mark.parametrize("reduction", [1, 2])
def test_a_hidden_layer_with_gelu_between_two_linear_ones(reduction):
    torch.manual_seed(0)
    projection = make_projection(3, 4, ProjectionConfig(reduction, hidden_dim=6)).double()
    assert [tuple(weight.shape) for weight in projection.parameters()] == [(6, 3 * reduction), (6,), (4, 6), (4,)]
    first, first_bias, second, second_bias = projection.parameters()
    frames = torch.randn(2, 3).double()
    inputs = frames if reduction == 1 else frames.reshape(1, 6)
    for vector, found in zip(inputs, projection(frames), strict=True):
        hidden = first @ vector + first_bias
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        torch.testing.assert_close(found, second @ hidden + second_bias)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 4, 6, 8, 40, None])
@pytest.mark.parametrize("reduction, hidden", [(2, 0), (4, 0), (4, 5), (8, 0)])
def test_whole_utterances_are_projected_as_their_chunks_one_by_one(chunk, reduction, hidden):
    rng = random.Random(f"{chunk} {reduction}")
    projection = make_projection(3, 4, ProjectionConfig(reduction, hidden)).double()
    for longest in (1, 7, 16, 29):
        counts = [longest, *(rng.randint(0, longest) for _ in range(3))]
        frames = torch.randn(4, longest, 3).double()
        for row, count in enumerate(counts):
            frames[row, count:] = 99.0  # behind the utterance stands anything
        inputs = project_utterances(projection, frames, torch.tensor(counts), chunk, reduction)
        for row, count in enumerate(counts):
            pieces = frames[row, :count].split(chunk or longest) if count else []
            alone = torch.cat([projection(piece) for piece in pieces]) if count else frames[0, :0, :1]
            torch.testing.assert_close(inputs[row, : len(alone)], alone.expand(-1, 4), rtol=0, atol=1e-12)
        assert inputs.shape[1] == sum(len(projection(piece)) for piece in frames[0].split(chunk or longest))
    nothing = project_utterances(projection, frames[:, :0], torch.zeros(4).long(), chunk, reduction)
    assert nothing.shape == (4, 0, 4)
