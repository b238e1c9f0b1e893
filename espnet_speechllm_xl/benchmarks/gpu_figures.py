"""Figures to compare measurements on a GPU with: data sheets, counted operations, bytes and kernel launches.

A multiplication with an addition counts as 2 FLOP.  Shape legend: ``P`` positions, ``D`` model dimension, ``F`` hidden
units of a feed-forward layer, ``V`` tokenizer size.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.benchmarks.floors import DecoderShape
from espnet_speechllm_xl.config import ChunkingConfig, DecoderConfig, EncoderConfig, ProjectionConfig


@dataclass(frozen=True)
class DataSheet:
    """A GPU's data sheet: dense products in bfloat16, without sparsity, and the bandwidth of its memory."""

    teraflops: float  # 10 ** 12 FLOP a second
    terabytes: float  # 10 ** 12 bytes a second


# By a part of the name that torch gives, the more special ones first.  Sources: NVIDIA's data sheets of each.
DATA_SHEETS = {
    "B200": DataSheet(2250, 8.0),
    "GH200": DataSheet(989, 4.0),
    "H200": DataSheet(989, 4.8),
    "H100 NVL": DataSheet(835, 3.9),
    "H100 PCIe": DataSheet(756, 2.0),
    "H100": DataSheet(989, 3.35),
    "H800": DataSheet(989, 3.35),
    "A100-SXM4-40GB": DataSheet(312, 1.555),
    "A100-PCIE-40GB": DataSheet(312, 1.555),
    "A100 80GB PCIe": DataSheet(312, 1.935),
    "A100": DataSheet(312, 2.039),
    "L40S": DataSheet(362, 0.864),
    "L4": DataSheet(121, 0.3),
    "A10G": DataSheet(70, 0.6),
    "A10": DataSheet(125, 0.6),
    "RTX 4090": DataSheet(165, 1.008),
    "RTX 3090": DataSheet(71, 0.936),
}


def data_sheet(name: str) -> DataSheet | None:
    """Return the data sheet of the GPU that torch calls ``name``; None: the table lacks it."""
    words = name.replace("-", " ").split()
    for key, sheet in DATA_SHEETS.items():
        parts = key.replace("-", " ").split()
        if any(words[start : start + len(parts)] == parts for start in range(len(words))):
            return sheet
    return None


@dataclass(frozen=True)
class Shape:
    """The sizes of a SpeechLLM-XL that its work follows from."""

    encoder: EncoderConfig
    decoder: DecoderConfig
    chunking: ChunkingConfig
    n_mels: int
    vocab_size: int
    projection: ProjectionConfig = ProjectionConfig()

    @property
    def decoder_shape(self) -> DecoderShape:
        """Return the decoder's sizes."""
        decoder = self.decoder
        return DecoderShape(decoder.dim, decoder.layers, decoder.heads, decoder.ffn_dim, self.vocab_size + 1)

    def forward_flop(self, frames: int, tokens: int) -> dict[str, float]:
        """Count the FLOP of one utterance, forward, by part of the model.

        The Emformer computes every segment with a copy of its look-ahead, which counts.  The decoder's attention counts
        the visible keys only, whatever a dense mask computes on top.

        Args:
            frames: of the encoder, 25 a second.
            tokens: spread evenly over the frames.
        """
        encoder, decoder = self.encoder, self.decoder
        segment = encoder.segment or frames
        segments, width = -(-frames // segment), segment + encoder.right_context
        positions, audio_inputs = segments * width, self._audio_inputs(frames)
        inputs = audio_inputs + tokens
        targets = tokens + (1 if self.chunking.chunk is None else -(-frames // self.chunking.chunk))
        front = 2 * frames * timeline.STACK * self.n_mels * encoder.dim
        products = 2 * positions * encoder.layers * (4 * encoder.dim**2 + 2 * encoder.dim * encoder.ffn_dim)
        keys = positions * (encoder.left_context + width)
        return {
            "encoder, products with weights": float(front + products),
            "encoder, attention": 4.0 * encoder.layers * encoder.dim * keys,
            "projection": 2.0 * audio_inputs * self._projection_weights,
            "decoder, products with weights": 2.0 * inputs * self.decoder_shape.layer_weights,
            "decoder, attention": 4.0 * decoder.layers * decoder.dim * self._visible_keys(frames, tokens),
            "decoder, output": 2.0 * targets * decoder.dim * (self.vocab_size + 1),
        }

    def _audio_inputs(self, frames: int) -> int:
        """Count the decoder inputs that stand for the frames of one utterance."""
        return timeline.audio_inputs(frames, self.chunking.chunk, self.projection.reduction)

    @property
    def _projection_weights(self) -> int:
        """Count the weights, but biases, from the frames of one input to that."""
        size, dim, hidden = self.projection.reduction * self.encoder.dim, self.decoder.dim, self.projection.hidden_dim
        return size * hidden + hidden * dim if hidden else size * dim

    def _visible_keys(self, frames: int, tokens: int) -> int:
        """Count the pairs of a decoder input and an input that it sees."""
        size = self.chunking.chunk or frames
        starts, end, pairs = [], 0, 0
        for begin in range(0, frames, size):
            starts.append(end)
            stop = min(begin + size, frames)
            count = self._audio_inputs(stop - begin) + tokens * stop // frames - tokens * begin // frames
            context = self.chunking.context
            oldest = starts[0 if context is None else max(0, len(starts) - 1 - context)]
            pairs += sum(end + place + 1 - oldest for place in range(count))
            end += count
        return pairs

    def cached_bytes(self, number_bytes: int) -> int:
        """Count the bytes of the keys and values of one decoder input; ``number_bytes`` has a number."""
        return number_bytes * self.decoder_shape.keys_and_values(1)

    def step_bytes(self, hypotheses: int, inputs: int, number_bytes: int) -> int:
        """Count the bytes that one token step has to move: all weights once, keys and values of what is visible.

        Args:
            hypotheses: that are advanced by one token each.
            inputs: that each of them sees.
            number_bytes: bytes of a number.
        """
        cached = hypotheses * inputs * self.cached_bytes(number_bytes)
        logits = 2 * hypotheses * (self.vocab_size + 1) * 4  # log_softmax reads and writes float32
        return self.decoder_shape.weights * number_bytes + cached + logits


# Operations that make a tensor and launch nothing, besides the views, which their schemas tell.
NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias",
        "lift_fresh", "detach", "resize_", "set_", "is_same_size", "_has_same_storage_numel", "sym_size", "sym_numel",
    )
)  # fmt: skip


# CUDA's functions that launch kernels and copies.
LAUNCHES = (
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync",
    "cudaMemsetAsync", "cudaGraphLaunch",
)  # fmt: skip


class LaunchCounter(TorchDispatchMode):
    """Counts, within a block and its thread, the operations that launch a kernel or copy memory on a GPU.

    On the CPU it stands for a GPU's launches: torch's operations below autograd, without views and allocations.  Most
    are one kernel on a GPU; a few are two or three (sorting, indexing by tensors), copies to the CPU make it wait.

    Attributes:
        operations: how many of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Return the number of all operations."""
        return sum(self.operations.values())

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # OpOverload, which torch has no public name for
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # of any operation
        schema = func._schema
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)
        if not is_view and schema.name not in NO_KERNEL:
            self.operations[schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def count_launches(function: Callable[[], object], device: str) -> int:
    """Count the kernels that a call launches: by CUPTI on a GPU, by :class:`LaunchCounter` elsewhere.

    Args:
        function: the call; run once.
        device: "cpu" or "cuda".
    """
    if torch.device(device).type != "cuda":
        with LaunchCounter() as counter:
            function()
        return counter.total
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in profiled.key_averages() if event.key in LAUNCHES)
