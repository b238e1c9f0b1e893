"""What a decoder of a given size costs to train: bytes and operations, counted from its sizes.

Counted are the language model, what is trained of it, and what the backward pass keeps.  Not counted are the encoder,
the workspace of matrix products, and what the allocator holds in reserve.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.settings import require

FROZEN, LORA, ALL = "frozen", "lora", "all"
FLOAT = 4  # bytes
ADAM = 2 * FLOAT  # of a trained number: mean and variance


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a language model whose layers are attention and a gated feed-forward product, as Llama's are."""

    layers: int
    dim: int
    heads: int
    key_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    tied: bool  # one table for inputs and outputs

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """Return inputs and outputs of the matrix products of a layer."""
        query, key = self.heads * self.head_dim, self.key_heads * self.head_dim
        attention = ((self.dim, query), (self.dim, key), (self.dim, key), (query, self.dim))
        return (*attention, (self.dim, self.ffn_dim), (self.dim, self.ffn_dim), (self.ffn_dim, self.dim))

    @property
    def layer_weights(self) -> int:
        """Return how many weights the matrix products of a layer have."""
        return sum(inputs * outputs for inputs, outputs in self.products)

    @property
    def parameters(self) -> int:
        """Return how many numbers the model has; biases are not counted."""
        norms = (2 * self.layers + 1) * self.dim
        return self.layers * self.layer_weights + norms + (1 if self.tied else 2) * self.vocab_size * self.dim

    def adapters(self, rank: int) -> int:
        """Return how many numbers LoRA trains with adapters of ``rank`` at every matrix product of the layers."""
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in self.products)


KNOWN: Mapping[str, Shape] = MappingProxyType(
    {
        "SmolLM2-135M": Shape(30, 576, 9, 3, 64, 1536, 49152, True),
        "Llama-3.2-1B": Shape(16, 2048, 32, 8, 64, 8192, 128256, True),
        "Llama-3.2-3B": Shape(28, 3072, 24, 8, 128, 8192, 128256, True),
        "Llama-3.1-8B": Shape(32, 4096, 32, 8, 128, 14336, 128256, False),
    }
)


@dataclasses.dataclass(frozen=True)
class Training:
    """How a language model is trained, as far as its cost depends on it.

    With "all" everything is float32, whatever ``bytes_per_weight`` says: Adam's steps are too small for 16 bits.
    """

    trained: str = LORA  # of the language model: "frozen" (nothing), "lora" or "all"
    bytes_per_weight: int = FLOAT  # of frozen weights and the values between them: 4 (float32) or 2 (bfloat16)
    checkpointing: bool = False  # layers are computed again in the backward pass
    lora_rank: int = 16
    reduction: int = 1  # encoder frames that make one input
    batch_seconds: float = 60.0  # audio in a batch
    sequence_seconds: float = 15.0  # audio in one of its sequences
    tokens_per_second: float = 4.0
    chunk_seconds: float = 1.28

    def __post_init__(self) -> None:
        require(self.trained in (FROZEN, LORA, ALL), f"trained '{self.trained}': use {FROZEN}, {LORA} or {ALL}")
        require(self.reduction >= 1, f"reduction {self.reduction} must be at least 1")

    @property
    def size(self) -> int:
        """Return the bytes of a weight of the language model, and of the values that its products compute."""
        return FLOAT if self.trained == ALL else self.bytes_per_weight

    @property
    def inputs_per_second(self) -> float:
        """Return the decoder inputs of a second of audio: frames and tokens."""
        return 1 / (timeline.FRAME_SECONDS * self.reduction) + self.tokens_per_second

    @property
    def targets_per_second(self) -> float:
        """Return the predicted tokens of a second of audio, the ends of chunks among them."""
        return self.tokens_per_second + 1 / self.chunk_seconds


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes of a training, and operations of a second of audio (a multiplication and an addition are two)."""

    weights: float
    trained: float  # gradients and Adam's states, and weights that the base does not have
    kept: float  # values that the backward pass needs
    operations: float

    @property
    def memory(self) -> float:
        """Return all bytes."""
        return self.weights + self.trained + self.kept


def cost(shape: Shape, training: Training) -> Cost:
    """Count what a training costs."""
    everything = training.trained == ALL
    adapters = shape.adapters(training.lora_rank) if training.trained == LORA else 0
    weights = shape.parameters * training.size
    trained = shape.parameters * (FLOAT + ADAM) if everything else adapters * (2 * FLOAT + ADAM)
    return Cost(weights, trained, kept_bytes(shape, training), _operations(shape, training, adapters))


def kept_by_layer(shape: Shape, training: Training) -> int:
    """Return the bytes that a layer keeps of one input for the backward pass, where everything is kept.

    A product keeps its input only where its weights train.  Norms compute in float32; they keep their input, and the
    normalised values where their weights train.  The attention keeps queries, keys and values, both repeated for every
    head, and its output; the gated product keeps its three factors.  Adapters compute in float32: where the layer does
    not, each one keeps a copy of its input.
    """
    query, size = shape.heads * shape.head_dim, training.size
    kept = 2 * (shape.dim + 1) * FLOAT + 4 * query * size + shape.heads * FLOAT + 3 * shape.ffn_dim * size
    if training.trained == ALL:
        kept += (4 * shape.dim + shape.ffn_dim) * FLOAT
    if training.trained == LORA:
        inputs = 2 * shape.dim if size == FLOAT else 5 * shape.dim + query
        kept += (inputs + shape.ffn_dim + len(shape.products) * training.lora_rank) * FLOAT
    return kept


def kept_bytes(shape: Shape, training: Training) -> float:
    """Return the bytes that a batch keeps for the backward pass: of the layers, the scores of tokens, and the mask."""
    inputs = training.batch_seconds * training.inputs_per_second
    # With checkpointing each layer keeps its input, and one layer at a time keeps everything.
    layers, whole = (shape.dim * shape.layers * training.size, 1) if training.checkpointing else (0, shape.layers)
    scores = training.batch_seconds * training.targets_per_second * shape.vocab_size * FLOAT
    mask = training.sequence_seconds * training.inputs_per_second * training.size
    # Scores, and their log-probabilities.
    return inputs * (layers + whole * kept_by_layer(shape, training) + mask) + 2 * scores


def _operations(shape: Shape, training: Training, adapters: int) -> float:
    """Return the operations for a second of audio: forward, backward, and forward again with checkpointing."""
    inputs, length = training.inputs_per_second, training.sequence_seconds * training.inputs_per_second
    products = 2 * inputs * shape.layers * shape.layer_weights
    # Of every input with every other one of its sequence: the mask is dense.
    attention = 4 * inputs * length * shape.layers * shape.heads * shape.head_dim
    output = 2 * training.targets_per_second * shape.vocab_size * shape.dim
    small = 2 * inputs * adapters
    weight_gradients = products + output if training.trained == ALL else 0
    again = products + attention + small if training.checkpointing else 0
    return 2 * (products + output) + 3 * (attention + small) + weight_gradients + again


COST_COLUMNS = (
    *("trained", "weights", "memory", "recomputed", "memory /4", "recomputed /4"),
    *("work", "work /2", "work /4", "work /8"),
)
WAYS = ((FROZEN, 2), (FROZEN, FLOAT), (LORA, 2), (LORA, FLOAT), (ALL, FLOAT))


def cost_rows(shape: Shape, training: Training) -> list[tuple[str, ...]]:
    """Return a table of what ways to train cost, its head first.

    "/4" is with four frames stacked to one input, "recomputed" with activation checkpointing.  Memory is in GB, work in
    GFLOP for a second of audio.

    Args:
        shape: of the language model.
        training: batches, sequences and the rank of LoRA; the rest is varied.
    """
    rows: list[tuple[str, ...]] = [COST_COLUMNS]
    for trained, size in WAYS:
        way = dataclasses.replace(training, trained=trained, bytes_per_weight=size)

        def counted(reduction: int, checkpointing: bool = False, way: Training = way) -> Cost:
            return cost(shape, dataclasses.replace(way, reduction=reduction, checkpointing=checkpointing))

        memory = [counted(reduction, again).memory / 1e9 for reduction in (1, 4) for again in (False, True)]
        work = [counted(reduction).operations / 1e9 for reduction in (1, 2, 4, 8)]
        name = {2: "bfloat16", FLOAT: "float32"}[size]
        rows.append((trained, name, *(f"{value:.1f}" for value in memory), *(f"{value:.0f}" for value in work)))
    return rows
