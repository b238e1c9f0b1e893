"""The decoder's network: a Llama (Touvron et al. 2023) that leaves masks, caches and dropout of tokens to its caller.

Parameters are named as in transformers' ``LlamaForCausalLM``: its weights load, with the same outputs.  That class is
not used because its import, its many small operations and its cache cost more than the network of a small model.

Shape legend: ``B`` batch, ``L`` sequence, ``D`` model dimension, ``H`` heads, ``d`` head dimension, ``V`` tokenizer
size.
"""

import abc
import functools
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_speechllm_xl.config import DecoderConfig
from espnet_speechllm_xl.model.attention import Attention, sequence_attention
from espnet_speechllm_xl.model.cache import Rebase
from espnet_speechllm_xl.model.dropout import Dropout

EPSILON = 1e-6  # of the norms
INITIAL_STD = 0.02  # of weights


class Network(abc.ABC):
    """The contract of :class:`~espnet_speechllm_xl.model.llm.Decoder` with the language model inside."""

    @property
    @abc.abstractmethod
    def cache_shape(self) -> tuple[int, int, int]:
        """Return layers, key heads and head dimension."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Return the width D of the inputs."""

    @abc.abstractmethod
    def attention(
        self, position: Tensor, chunk_id: Tensor, context: Tensor | int | None, dtype: torch.dtype
    ) -> Attention:
        """Return the attention of whole sequences, as in training; see ``sequence_attention`` (attention.py).

        Args:
            position: (B, L) integers.
            chunk_id: (B, L) integers.
            context: previous chunks that stay visible, a number or a tensor (B, 1, 1); None: all.
            dtype: of the inputs.
        """

    @abc.abstractmethod
    def run(self, inputs: Tensor, position: Tensor, attention: Attention) -> Tensor:
        """Return the hidden states (B, L, D).

        Args:
            inputs: (B, L, D)
            position: (B, L) integers.
            attention: what the inputs attend to.
        """

    @property
    @abc.abstractmethod
    def rebase(self) -> Rebase | None:
        """Return how to keep positions small; None: any position is good."""


class Rotary:
    """Cosines and sines of rotary positions (Su et al. 2021), in the layout of Llama: halves, not pairs.

    Args:
        position: (...) integers.
        head_dim: d.
        theta: base of the angles.
        dtype: of the keys.
    """

    def __init__(self, position: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> None:
        angles = position[..., None, None] * _frequencies(head_dim, theta, position.device)  # (..., 1, d / 2)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self._half = head_dim // 2
        self._cos, self._sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return queries or keys (..., H, d), rotated."""
        return torch.addcmul(x * self._cos, x.roll(self._half, -1), self._sin)


@functools.lru_cache(maxsize=8)
def _frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Return how far (d / 2,) each pair of dimensions turns from one position to the next, in radians.

    In double precision the angles of any position are good.  Those of single precision err by 1e-4 at position 2000.
    """
    powers = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    return theta**-powers


class _SelfAttention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.dim, config.dim, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, rotary: Rotary, attention: Attention, layer: int) -> Tensor:
        """Attend from (B, L, D); return (B, L, D)."""
        query, keys, values = (
            projection(x).unflatten(-1, (self.heads, -1)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = attention.attend(layer, rotary(query), rotary(keys), values)
        return self.o_proj(found.flatten(-2))


class _FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return SwiGLU's output (B, L, D) of (B, L, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(config)
        self.mlp = _FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.dim, eps=EPSILON)
        self.post_attention_layernorm = nn.RMSNorm(config.dim, eps=EPSILON)
        # On both residual branches, as small corpora want.
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Rotary, attention: Attention, layer: int) -> Tensor:
        """Return the layer's output, of the shape of ``x`` (B, L, D)."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotary, attention, layer))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class _Body(nn.Module):
    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, config.dim)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=EPSILON)
        # Here, before the output layer draws: so a seed gives the weights that it gives transformers' class.
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INITIAL_STD)


class Llama(nn.Module, Network):
    """Embedding table, layers, output layer.

    Args:
        config: sizes, dropout, base of the positions.
        vocab_size: outputs, ``$`` among them.
    """

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config, vocab_size)
        self.lm_head = nn.Linear(config.dim, vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, std=INITIAL_STD)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """Return layers, key heads and head dimension."""
        return self.config.layers, self.config.heads, self.config.dim // self.config.heads

    @property
    def dim(self) -> int:
        """Return the width D of the inputs."""
        return self.config.dim

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the table of token embeddings."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output layer."""
        return self.lm_head

    def attention(
        self, position: Tensor, chunk_id: Tensor, context: Tensor | int | None, dtype: torch.dtype
    ) -> Attention:
        """Return the attention of whole sequences; see :class:`Network`."""
        return sequence_attention(position, chunk_id, context, dtype)

    def run(self, inputs: Tensor, position: Tensor, attention: Attention) -> Tensor:
        """Return the hidden states (B, L, D); see :class:`Network`."""
        x = inputs
        rotary = Rotary(position, self.cache_shape[2], self.config.rope_theta, x.dtype)
        for index, layer in enumerate(cast("Iterable[_Layer]", self.model.layers)):
            x = layer(x, rotary, attention, index)
        return self.model.norm(x)

    @property
    def rebase(self) -> Rebase:
        """Return how keys move; angles in double precision are good for any position."""
        return Rebase(None, self._rotate)

    def _rotate(self, keys: Tensor, shift: int) -> Tensor:
        """Return cached keys (..., H, d) as those of positions ``shift`` later."""
        position = torch.tensor(shift, device=keys.device)
        return Rotary(position, self.cache_shape[2], self.config.rope_theta, keys.dtype)(keys)
