"""Floors: the least time that counted bytes and operations take on a machine whose bandwidth and rate were measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from espnet_speechllm_xl.benchmarks.rounds import Figure
from espnet_speechllm_xl.language_models.costs import Shape

READING = ("sum", "mv", "attention")  # the ways in which a probe reads its bytes


@dataclass(frozen=True)
class Machine:
    """What a machine can do."""

    bandwidth: float  # bytes a second that it reads from memory, in the fastest of several ways
    rate: float  # operations a second of matrix products; a multiplication and an addition are two

    @staticmethod
    def of(probe: Mapping[str, Figure], num_bytes: int, operations: int) -> "Machine":
        """Return the machine of a probe's figures (``Probe`` of worker.py).

        Args:
            probe: seconds by the way of reading, and of ``products``.
            num_bytes: that each way reads.
            operations: of the products.
        """
        fastest = min(probe[name].lower_quartile for name in READING)
        return Machine(num_bytes / fastest, operations / probe["products"].lower_quartile)


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a Llama decoder, as far as they make bytes and operations."""

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    outputs: int  # tokens and the end of a chunk

    @property
    def layer_weights(self) -> int:
        """Return the number of weights in the matrices of all layers."""
        head_dim = self.dim // self.heads
        shape = Shape(self.layers, self.dim, self.heads, self.heads, head_dim, self.ffn_dim, self.outputs, True)
        return self.layers * shape.layer_weights

    @property
    def weights(self) -> int:
        """Return the number of weights in all matrices that multiply; embeddings are only looked up."""
        return self.layer_weights + self.outputs * self.dim

    def keys_and_values(self, inputs: int) -> int:
        """Return how many numbers the keys and values of some inputs are, in all layers."""
        return 2 * self.layers * self.dim * inputs


@dataclass(frozen=True)
class StepFloor:
    """The floors of a decoder step, in seconds."""

    products_and_cache: float  # weight products as measured bare, then the keys and values as bytes
    bytes: float  # all bytes over the bandwidth
    operations: float  # of the weight products, over the rate


def step_floor(
    shape: DecoderShape, machine: Machine, products: float, batch: int, new: int, visible: float, itemsize: int
) -> StepFloor:
    """Return the floors of a decoder step, a prefill or a token.

    Args:
        shape: of the decoder.
        machine: that it runs on.
        products: seconds of its weight products alone.
        batch: hypotheses.
        new: inputs of each.
        visible: inputs that each has cached at the end, with the new ones.
        itemsize: bytes of a number.
    """
    cache_bytes = itemsize * batch * shape.keys_and_values(1) * visible
    weight_bytes = itemsize * shape.weights
    operations = 2 * batch * (new * shape.layer_weights + shape.outputs * shape.dim)  # one position gets logits
    return StepFloor(
        products_and_cache=products + cache_bytes / machine.bandwidth,
        bytes=(weight_bytes + cache_bytes) / machine.bandwidth,
        operations=operations / machine.rate,
    )


def least(operations: float, num_bytes: float, machine: Machine) -> float:
    """Return the least seconds for so many operations on so many bytes, both at once."""
    return max(operations / machine.rate, num_bytes / machine.bandwidth)
