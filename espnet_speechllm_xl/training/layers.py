"""Options for the layers of a model in training: compiled, or computed again in the backward pass.

A layer is a member of a ``ModuleList`` that lies in no other: of the encoder, of the decoder, of a checkpoint of
Hugging Face.  Only its ``forward`` is replaced, so that names in state dicts stay, and files fit with and without.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espnet_speechllm_xl.model.attention import BlockAttention
from espnet_speechllm_xl.settings import ConfigError

RECOMPILATIONS = 64  # kinds of inputs for which a layer is compiled anew; torch's 8 are few for several systems


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model, those of its encoder first."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [layer for child in model.children() for layer in layers_of(child)]


def recompute_layers(model: nn.Module) -> None:
    """Keep only the inputs of each layer for the backward pass, which computes the layer again (Chen et al. 2016).

    Random numbers are drawn again as they were, so dropout drops the same elements.  Layers that are to be compiled
    must be compiled before.
    """
    for layer in layers_of(model):
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:  # of any layer
    @functools.wraps(forward)
    def run(*inputs: object, **options: object) -> object:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(functools.partial(forward, **options), *inputs, use_reentrant=False)

    return run


def check_backend(backend: str, device: torch.device | str) -> None:
    """Compile a small function, forward and backward.

    Args:
        backend: name of a backend of ``torch.compile``.
        device: that the model will be trained on.

    Raises:
        ConfigError: the backend does not exist, or does not work on this machine.
    """

    def function(x: Tensor) -> Tensor:
        return (torch.sin(x) * x).sum()

    try:
        compiled = torch.compile(function, backend=backend, dynamic=True)
        compiled(torch.ones(8, device=device, requires_grad=True)).backward()
    except Exception as error:  # backends raise any kind
        raise ConfigError(
            f"compile_layers {backend}: the backend does not work on this machine ({_first_lines(error)}): leave the "
            "option out, install what it names (inductor: a C++ compiler such as g++; on a GPU, triton), or choose "
            "another backend"
        ) from error


@contextmanager
def compiled_layers(model: nn.Module, backend: str | None) -> Iterator[None]:
    """Compile each layer when it is first called within the block; all layers of a kind share the result.

    Batches have ever other shapes: sizes are compiled as variables.  The attention in blocks is left out, because it
    would be compiled for each number of blocks.

    Args:
        model: its layers.
        backend: name of a backend of ``torch.compile``; None: nothing is compiled.

    Raises:
        ConfigError: a layer cannot be compiled.
    """
    if backend is None:
        yield
        return
    import torch._dynamo

    for layer in layers_of(model):
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)
    attend = BlockAttention.attend
    BlockAttention.attend = torch.compiler.disable(attend)  # type: ignore[method-assign]
    try:
        with torch._dynamo.config.patch(recompile_limit=RECOMPILATIONS):
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ConfigError(
            f"compile_layers {backend}: a layer cannot be compiled ({_first_lines(error)}): leave the option out, or "
            "choose another backend"
        ) from error
    finally:
        BlockAttention.attend = attend  # type: ignore[method-assign]


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())[:200]
