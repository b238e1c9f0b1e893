"""Linear layers of 8 bits against those of 32."""

import pytest
import torch
from torch import nn

from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.int8 import Int8Linear, use_int8


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_err_by_the_rounding_of_both_factors(bias):
    torch.manual_seed(0)
    linear = nn.Linear(64, 40, bias=bias)
    linear.weight[3] = 0  # a row without a scale
    x = torch.randn(5, 7, 64) * torch.logspace(-6, 3, 7)[:, None]  # rows of all sizes
    x[2, 3] = 0
    wanted, given = linear(x), Int8Linear(linear)(x)
    offset = linear.bias if bias else 0
    error = (given - wanted).norm(dim=-1) / (wanted - offset).norm(dim=-1).clamp(min=1e-20)
    assert 1e-3 < error[x.abs().sum(-1) > 0].mean() < 0.02
    assert torch.equal(given[2, 3], wanted[2, 3])


@torch.no_grad()
def test_whole_numbers_are_exact():
    linear = nn.Linear(4, 2, bias=False)
    linear.weight.copy_(torch.tensor([[127.0, -3, 0, 1], [0, 0, 254, 2]]))
    x = torch.tensor([[127.0, 5, -7, 0], [0, 0, 0, -127]])
    assert torch.equal(Int8Linear(linear)(x), linear(x))


@torch.no_grad()
def test_a_row_is_the_same_in_any_company():
    torch.manual_seed(1)
    layer, x = Int8Linear(nn.Linear(48, 32)), torch.randn(33, 48)
    together = layer(x)
    for row in range(33):
        assert torch.equal(layer(x[row : row + 1])[0], together[row])


def test_all_but_ctc_heads_are_replaced():
    deep = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4)))
    model = nn.ModuleDict({"ctc": CTCHead(8, 3), "deep": deep})
    use_int8(model)
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["ctc.output"] is nn.Linear
    assert kinds["deep.0"] is kinds["deep.1.0"] is Int8Linear
    assert not list(model["deep"].parameters())
