"""Chunked attention-based encoder-decoder (Zeineldeen et al., arXiv 2309.08436) on the streaming encoder.

The decoder attends to the frames of the current chunk only; with ``projection_conf reduction``, to inputs of several
frames.  The end-of-chunk label EOC is a label like the others: it is predicted after the text of each chunk and fed
back, and stands before the first chunk as the start label::

    input    EOC 1    EOC 2 3 4    EOC 5 6
    target   1  EOC   2 3 4 EOC    5 6 EOC
    attends  a b c d  e f g h      i j k l

As in SpeechLLM-XL, labels come from the CTC alignment, and frames from the encoder that all systems here share (the
paper's encoder has overlapping windows of its own).  The labels' memory is an LSTM: unbounded, at constant cost.

Shape legend: ``B`` batch (of hypotheses when decoding), ``T`` frames, ``U`` tokens, ``K`` chunks, ``L`` labels,
``D`` decoder dimension, ``H`` heads, ``d`` head dimension, ``V`` tokenizer size.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, LossConfig, ProjectionConfig
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.model.decoder_steps import Past, Request, Result, TextDecoder, make_results
from espnet_speechllm_xl.model.dropout import Dropout, drop_tokens
from espnet_speechllm_xl.model.sequence import build_label_sequence, frame_chunks, gather_inputs
from espnet_speechllm_xl.model.visibility import attention_mask
from espnet_speechllm_xl.settings import ConfigError, from_dict, require, require_share, signature
from espnet_speechllm_xl.systems.base_model import ChunkwiseModel
from espnet_speechllm_xl.systems.base_system import Choices, ChunkwiseSystem


@dataclass(frozen=True)
class LabelDecoderConfig:
    """The decoder of the chunked AED: LSTM over labels, blocks of cross-attention to the chunk and feed-forward."""

    dim: int = 768
    lstm_layers: int = 2
    blocks: int = 6
    heads: int = 12  # of the cross-attention
    ffn_dim: int = 3072  # hidden units of the feed-forward layers
    dropout: float = 0.1  # probability, on the LSTM's output and on each residual branch
    embed_dropout: float = 0.0  # probability that a text token's embedding is zeroed in training

    def __post_init__(self) -> None:
        for name in ("lstm_layers", "blocks", "heads", "dim", "ffn_dim"):
            require(getattr(self, name) >= 1, f"decoder {name} must be at least 1")
        require_share("decoder", self, "dropout", "embed_dropout")
        require(self.dim % self.heads == 0, f"decoder dim {self.dim} is not a multiple of heads {self.heads}")
        require(self.dim % 2 == 0, f"decoder dim {self.dim} must be even: frames are numbered by sines and cosines")


@dataclass(frozen=True)
class LabelPast(Past):
    """The past of one hypothesis: labels, and the frames of its chunk."""

    state: Tensor  # (2, LSTM layers, D): hidden and cell state after all labels but the next
    memory: Tensor  # (blocks, 2, H, T, d): keys and values of the current chunk's frames

    def alone(self) -> "LabelPast":
        """Return a copy that does not hold the tensors of the batch it came from."""
        return LabelPast(self.state.clone(), self.memory.clone())


class LabelDecoder(nn.Module, TextDecoder[LabelPast]):
    """LSTM over labels; cross-attention and feed-forward blocks on top of it; the next label.

    Vocabulary: the tokenizer's ids 0 .. V-1, then EOC = V.

    Args:
        vocab_size: tokenizer ids (V).
        conf: fields of :class:`~espnet_speechllm_xl.systems.chunked_aed.LabelDecoderConfig`.

    Raises:
        ConfigError: a field is unknown or has an unusable value.
    """

    __signature__: ClassVar[inspect.Signature] = signature(
        LabelDecoderConfig, inspect.Parameter("vocab_size", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=int)
    )

    def __init__(self, vocab_size: int, **conf: Any) -> None:  # as LabelDecoderConfig has them
        super().__init__()
        config = self.config = from_dict(LabelDecoderConfig, conf, "decoder_conf")
        self.eoc = vocab_size
        self.embedding = nn.Embedding(vocab_size + 1, config.dim)
        self.lstm = nn.LSTM(config.dim, config.dim, config.lstm_layers, batch_first=True)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.output = nn.Linear(config.dim, vocab_size + 1)

    @property
    def dim(self) -> int:
        """Return the width D of the inputs."""
        return self.config.dim

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the inputs (B, U, D) of text tokens (B, U); in training some embeddings are dropped whole."""
        return drop_tokens(self.embedding(tokens), self.config.embed_dropout, self.training)

    def memory(self, frames: Tensor, place: Tensor) -> Tensor:
        """Return keys and values (B, blocks, 2, H, T, d) of frames (B, T, D) at ``place`` (T,) within their chunks."""
        frames = frames + _sinusoids(place, self.dim).to(frames.dtype)
        return torch.stack([block.memory(frames) for block in cast("list[_Block]", self.blocks)], dim=1)

    def forward(
        self, inputs: Tensor, chunk_id: Tensor, memory: Tensor, memory_chunk_id: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states (B, L, D) of ``inputs``, and the LSTM's state (2, LSTM layers, B, D) after them.

        Args:
            inputs: (B, L, D)
            chunk_id: (B, L) of each input.
            memory: (B, blocks, 2, H, T, d), see :meth:`memory`.
            memory_chunk_id: (B, T) of each frame, ``PADDING`` where there is none.
            state: (2, LSTM layers, B, D) before the inputs; None: before the first label.
        """
        x, after = self.lstm(inputs, None if state is None else tuple(state))
        x = self.dropout(x)
        # With chunk ids in the place of positions the predicate for a context of 0 leaves the own chunk.
        mask = attention_mask(chunk_id, chunk_id, memory_chunk_id, memory_chunk_id, 0, x.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x, memory[:, index], mask)
        return self.norm(x), torch.stack(after)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (..., V + 1) of the next label from hidden states (..., D)."""
        return self.output(hidden)

    def initial_past(self, context: int | None) -> LabelPast:
        """Return the past of a hypothesis before any label; see :class:`ChunkDecoder`.

        Raises:
            ConfigError: ``context`` is not 0 chunks.
        """
        require_own_chunk(context)
        weight, config = self.embedding.weight, self.config
        nothing = weight.new_empty(config.blocks, 2, config.heads, 0, config.dim // config.heads)
        return LabelPast(weight.new_zeros(2, config.lstm_layers, config.dim), nothing)

    @torch.no_grad()
    def extend(self, requests: Sequence[Request[LabelPast]]) -> list[Result[LabelPast]]:
        """Advance hypotheses; see :class:`ChunkDecoder`; the frames of a chunk are read behind an EOC."""
        memories = self._memories(requests)
        labels = [self.eoc if request.frames is not None else request.token for request in requests]
        inputs = self.embedding(torch.tensor(labels, device=self.embedding.weight.device)[:, None])
        padded, memory_chunk_id = _pad(memories)
        state = torch.stack([request.past.state for request in requests], dim=2)
        hidden, state = self(inputs, memory_chunk_id.new_zeros(len(requests), 1), padded, memory_chunk_id, state)
        logits = self.logits(hidden[:, 0])
        log_probs = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
        pasts = [LabelPast(one, memory) for one, memory in zip(state.unbind(2), memories, strict=True)]
        return make_results(pasts, log_probs)

    def _memories(self, requests: Sequence[Request[LabelPast]]) -> list[Tensor]:
        """Return the memory (blocks, 2, H, q, d) that each request attends to.

        It depends on the frames alone, so the hypotheses of a stream, which begin a chunk with one and the same
        tensor, share it.
        """
        fresh = {id(request.frames): request.frames for request in requests if request.frames is not None}
        if fresh:
            frames = nn.utils.rnn.pad_sequence(list(fresh.values()), batch_first=True)
            made = self.memory(frames, torch.arange(frames.shape[1], device=frames.device))
            fresh = {key: one[..., : len(fresh[key]), :] for key, one in zip(fresh, made, strict=True)}
        return [request.past.memory if request.frames is None else fresh[id(request.frames)] for request in requests]


def _pad(memories: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack memories (blocks, 2, H, q, d); return (B, blocks, 2, H, T, d) and chunk ids (B, T): 0, then PADDING."""
    longest = max(memory.shape[3] for memory in memories)
    padded = torch.stack([F.pad(memory, (0, 0, 0, longest - memory.shape[3])) for memory in memories])
    lengths = torch.tensor([memory.shape[3] for memory in memories], device=padded.device)
    return padded, frame_chunks(lengths, None)


class _Block(nn.Module):
    """Cross-attention to the chunk's frames, then a feed-forward layer; each normalised before, and residual."""

    def __init__(self, config: LabelDecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.dim)
        self.query = nn.Linear(config.dim, config.dim)
        self.key_value = nn.Linear(config.dim, 2 * config.dim)
        self.attention_output = nn.Linear(config.dim, config.dim)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(), nn.Linear(config.ffn_dim, config.dim)
        )
        self.dropout = Dropout(config.dropout)

    def memory(self, frames: Tensor) -> Tensor:
        """Return keys and values (B, 2, H, T, d) of frames (B, T, D)."""
        return self.key_value(frames).unflatten(2, (2, self.heads, -1)).permute(0, 2, 3, 1, 4)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Attend from ``x`` (B, L, D) to ``memory`` (B, 2, H, T, d) under the additive ``mask`` (B, 1, L, T)."""
        queries = self.query(self.attention_norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, L, d)
        keys, values = memory.unbind(1)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        x = x + self.dropout(self.attention_output(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


def _sinusoids(place: Tensor, dim: int) -> Tensor:
    """Return sines and cosines (T, dim) of places (T,), for chunks of any length (Vaswani et al. 2017)."""
    rates = torch.exp(torch.arange(0, dim, 2, device=place.device) * (-math.log(10000.0) / dim))
    angles = place[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def require_own_chunk(context: int | None) -> None:
    """Raise ConfigError unless ``context`` (previous chunks in sight; None: all) is 0."""
    if context != 0:
        raise ConfigError(
            f"context of {'all' if context is None else context} previous chunks: a chunked AED attends to its own "
            "chunk only: set chunking_conf context to 0, and leave out --context"
        )


class ChunkedAED(ChunkwiseModel):
    """Chunked AED; its decoder is a :class:`LabelDecoder`.  Raises ConfigError for a context other than 0."""

    loss_name = "loss_aed"
    decoder: LabelDecoder

    def __init__(
        self,
        acoustic: Acoustic,
        decoder: LabelDecoder,
        chunking: ChunkingConfig,
        loss: LossConfig,
        projection: ProjectionConfig | None = None,
    ) -> None:
        require_own_chunk(chunking.context)
        super().__init__(acoustic, decoder, chunking, loss, projection)

    def decode_aligned(
        self,
        frames: Tensor,
        counts: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        ends: Tensor,
        chunking: ChunkingConfig,
        prompts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states and targets; see :class:`ChunkwiseModel`; all labels of a batch at once, no prompts."""
        assert prompts is None  # the system has no text_prompt_conf
        sequence = build_label_sequence(counts, tokens, token_lengths, ends, chunking, self.decoder.eoc)
        most_chunks = int(timeline.num_chunks(counts, chunking.chunk).max())
        chunk_ends = self.decoder.embedding(tokens.new_full((len(tokens), most_chunks), self.decoder.eoc))
        inputs = gather_inputs(sequence, chunk_ends, self.decoder.embed(tokens))
        reduction = self.projection_config.reduction
        heard = self.project(frames, counts, chunking.chunk)
        inputs_of_chunk = timeline.inputs_of_chunk(chunking.chunk, reduction)
        place = timeline.place_in_chunk(torch.arange(heard.shape[1], device=frames.device), inputs_of_chunk)
        memory = self.decoder.memory(heard, place)
        hidden, _ = self.decoder(inputs, sequence.chunk_id, memory, frame_chunks(counts, chunking.chunk, reduction))
        return hidden, sequence.target


class ChunkedAEDSystem(ChunkwiseSystem):
    """Chunked AED (arXiv 2309.08436)."""

    name = "chunked_aed"
    sections = {**ChunkwiseSystem.sections, "projection_conf": ProjectionConfig}
    model_class = ChunkedAED
    model_sections = (*ChunkwiseSystem.model_sections, "projection_conf")
    decoder_choices = Choices("decoder", {"label": LabelDecoder}, default="label")


__getattr__ = ChunkedAEDSystem.task_by_name  # ChunkedAEDTask

if __name__ == "__main__":
    ChunkedAEDSystem.task().main()
