"""Weights of 8 bits for decoding on a CPU: a quarter of the bytes that a decoder step must read.

Weights have one scale an output, inputs one scale a row, found as they come (torchao's "dynamic activation" scheme).
The products are sums of whole numbers, so a row gives the same whatever it is batched with.  What comes before may
differ in its last digit, though, and now and then that rounds to another number of 8 bits.

Shape legend: ``M`` rows, ``N`` inputs, ``K`` outputs of a layer.
"""

import torch
from torch import Tensor, nn

from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.settings import ConfigError

LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer whose weights, and inputs on their way, are rounded to 8 bits.

    Args:
        linear: the layer to stand for.
    """

    weight: Tensor  # (K, N) int8
    scale: Tensor  # (K,)
    bias: Tensor | None  # (K,)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _rounded(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., K) of ``x`` (..., N)."""
        rows, scale = _rounded(x.reshape(-1, x.shape[-1]))
        products = torch._int_mm(rows, self.weight.t()).to(scale.dtype)
        products = products.mul_(scale).mul_(self.scale)
        if self.bias is not None:
            products += self.bias
        return products.unflatten(0, x.shape[:-1])


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (M, N) as int8, and the scale (M, 1) of each."""
    scale = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny * LARGEST) / LARGEST
    return (rows / scale).round_().to(torch.int8), scale


def use_int8(model: nn.Module) -> None:
    """Replace the linear layers of a model, in place.

    Those of CTC heads, which are small and tell times, are left, and adapters (LoRA), which a ``ModuleDict`` holds.

    Raises:
        ConfigError: adapters are of DoRA, which reads the weights that it stands beside.
    """
    if any(len(getattr(module, "lora_magnitude_vector", ())) for module in model.modules()):
        raise ConfigError("dtype 'int8': DoRA needs the weights as they are: merge it first (speechllm-xl llm merge)")
    for module in model.modules():
        if isinstance(module, (CTCHead, nn.ModuleDict)):
            continue
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
