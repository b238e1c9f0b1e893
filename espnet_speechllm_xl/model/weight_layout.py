"""The order in which the weights of decoding lie in memory."""

import torch
from torch import nn


def store_by_columns(model: nn.Module) -> None:
    """Store the weights (K, N) of linear layers as N columns, in place, where a CPU's products are faster so.

    A layer reads all its weights for a few rows of input, those of a beam or of some streams.  In single precision, the
    library of torch then spends up to twice the time that the reading takes, and less of it on weights in this order
    (docs/benchmarks.md, "What was tried").  Names, shapes and values stay as they are.

    Args:
        model: for decoding; on other devices and in other types its weights stay where they are.
    """
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.weight.data = module.weight.data.t().contiguous().t()
