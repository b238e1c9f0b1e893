"""Weights of decoding are stored by columns, and are the same weights."""

import copy

import torch
from torch import nn

from espnet_speechllm_xl.model.weight_layout import store_by_columns


def test_weights_keep_their_values_and_their_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5, bias=False))
    before, x = copy.deepcopy(model), torch.randn(3, 12)
    store_by_columns(model)
    for name, weight in model.state_dict().items():
        assert weight.equal(before.state_dict()[name])
    assert model[0].weight.stride() == (1, 7) and model[2].weight.stride() == (1, 5)
    torch.testing.assert_close(model(x), before(x))


def test_other_types_stay_as_they_are():
    model = nn.Linear(12, 7).bfloat16()
    store_by_columns(model)
    assert model.weight.stride() == (12, 1)


def test_tied_weights_stay_one():
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "output": nn.Linear(4, 9, bias=False)})
    model["output"].weight = model["table"].weight
    store_by_columns(model)
    assert model["output"].weight is model["table"].weight
