"""The decoder: a Hugging Face causal LM, called with our masks, positions and cache.

Training is the call with an empty cache.  Vocabulary: the tokenizer's ids 0 .. V-1, then ``$`` (end of chunk) = V.

Shape legend: ``B`` batch, ``L`` sequence, ``D`` model dimension, ``V`` tokenizer size.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_speechllm_xl.config import DecoderConfig
from espnet_speechllm_xl.model import cache
from espnet_speechllm_xl.model.cache import CachedPast
from espnet_speechllm_xl.model.decoder_steps import Request, Result, TextDecoder
from espnet_speechllm_xl.model.dropout import drop_tokens, dropout
from espnet_speechllm_xl.model.visibility import attention_mask
from espnet_speechllm_xl.settings import ConfigError, from_dict, signature

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REBASE_POSITION = 2048  # float32 angles up to here err by 1e-4 rad; see CachedPast.rebase


class Decoder(nn.Module, TextDecoder[CachedPast]):
    """Llama-shaped decoder over interleaved audio and text (paper section 2).

    Args:
        vocab_size: tokenizer ids (V); ``$`` is added as id V.
        conf: fields of :class:`~espnet_speechllm_xl.config.DecoderConfig`.

    Raises:
        ConfigError: a field is unknown, or a checkpoint is missing or has no rotary positions of Llama's layout.
    """

    __signature__: ClassVar[inspect.Signature] = signature(
        DecoderConfig, inspect.Parameter("vocab_size", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=int)
    )

    def __init__(self, vocab_size: int, **conf: Any) -> None:  # as DecoderConfig has them
        super().__init__()
        self.config = from_dict(DecoderConfig, conf, "decoder_conf")
        self.eoc = vocab_size
        self.lm = _pretrained(self.config.pretrained) if self.config.pretrained else _llama(self.config, vocab_size + 1)
        if self.config.pretrained:
            self.lm.resize_token_embeddings(vocab_size + 1, mean_resizing=False)
        base = self.lm.get_decoder()
        # transformers 5.24 renamed the argument.
        self._cache_argument = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
        if self.config.pretrained and not self._keys_can_move():
            raise ConfigError(
                f"decoder_conf pretrained: {self.config.pretrained} has no rotary position embedding in Llama's "
                "layout, which the sliding window needs: choose a model of the Llama, Mistral or Qwen family"
            )
        if self.config.lora_rank:
            self.lm = _with_lora(self.lm, self.config)
        if self.config.dropout:
            # After the adapters, which take their layers' places: a hook on the frozen layer would spare them.
            _add_residual_dropout(base, self.config.dropout)

    @property
    def dim(self) -> int:
        """Return the width D of the inputs."""
        return self.lm.config.hidden_size

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the inputs (B, U, D) of text tokens (B, U); in training some embeddings are dropped whole."""
        return drop_tokens(self.lm.get_input_embeddings()(tokens), self.config.embed_dropout, self.training)

    def forward(
        self,
        inputs: Tensor,
        position: Tensor,
        chunk_id: Tensor,
        context: Tensor | int | None,
        past: cache.Batch | None = None,
    ) -> Tensor:
        """Return the hidden states (B, L, D) of ``inputs`` behind ``past``.

        Args:
            inputs: (B, L, D)
            position: (B, L) integers, of the inputs.
            chunk_id: (B, L) integers, of the inputs.
            context: previous chunks that stay visible, a number or a tensor (B, 1, 1); None: all.
            past: what the inputs follow; None, as in training: nothing.
        """
        key_position, key_chunk_id = (position, chunk_id) if past is None else (past.position, past.chunk_id)
        mask = attention_mask(position, chunk_id, key_position, key_chunk_id, context, inputs.dtype)
        output = self.lm.get_decoder()(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=position,
            use_cache=past is not None,
            **{self._cache_argument: past},
        )
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (..., V + 1) of the next token or ``$`` from hidden states (..., D)."""
        return self.lm.get_output_embeddings()(hidden)

    def initial_past(self, context: int | None) -> CachedPast:
        """Return the past of a hypothesis before any input; see :class:`ChunkDecoder`."""
        config = self.lm.config
        weight = self.lm.get_output_embeddings().weight
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cache.empty_past(config.num_hidden_layers, heads, head_dim, weight.dtype, weight.device, context)

    @torch.no_grad()
    def extend(self, requests: Sequence[Request[CachedPast]]) -> list[Result[CachedPast]]:
        """Advance hypotheses; see :class:`ChunkDecoder`."""
        pasts = [self._trim(request) for request in requests]
        counts = [1 if request.frames is None else len(request.frames) for request in requests]
        past = cache.Batch(pasts, counts, [request.chunk_id for request in requests])
        hidden = self(self._inputs(requests), past.query_position, past.query_chunk_id, past.context, past)
        last = hidden[torch.arange(len(requests)), [count - 1 for count in counts]]
        log_probs = F.log_softmax(self.logits(last).to(torch.promote_types(last.dtype, torch.float32)), dim=-1)
        return [Result(one, scores) for one, scores in zip(past.pasts(), log_probs, strict=True)]

    def _trim(self, request: Request[CachedPast]) -> CachedPast:
        """Return the request's past; a new chunk evicts slots out of sight for good, and re-bases the others."""
        if request.frames is None:
            return request.past
        return request.past.evict(request.chunk_id).rebase(REBASE_POSITION, self._rotate)

    def _inputs(self, requests: Sequence[Request[CachedPast]]) -> Tensor:
        """Return the decoder inputs (R, q, D) of R requests, padded with zeros."""
        if all(request.frames is None for request in requests):
            return self.embed(torch.tensor([[request.token] for request in requests], device=self.lm.device))
        pieces = [
            request.frames
            if request.frames is not None
            else self.embed(torch.tensor([request.token], device=self.lm.device))
            for request in requests
        ]
        return nn.utils.rnn.pad_sequence(pieces, batch_first=True)

    def _keys_can_move(self) -> bool:
        """Tell whether rotating keys of late positions back gives the keys of early ones; some models differ."""
        if not hasattr(self.lm.get_decoder(), "rotary_emb"):
            return False
        frames = torch.randn(3, self.dim, generator=torch.Generator().manual_seed(0))
        start = self.initial_past(None)
        late = replace(start, next_position=64)
        try:
            first, second = self.extend([Request(past, 0, frames=frames) for past in (start, late)])
            moved = second.past.rebase(1, self._rotate)
        except (RuntimeError, TypeError, ValueError):  # other shapes, other arguments, a cache of its own
            return False
        wanted = first.past.keys_values
        return bool((moved.keys_values - wanted).abs().max() < 1e-3 * wanted.abs().max())

    def _rotate(self, keys: Tensor, shift: int) -> Tensor:
        """Rotate cached keys (..., W, d) by ``shift`` positions (Llama's half-split layout)."""
        where = torch.full((1, keys.shape[-2]), shift, device=keys.device)
        rotary = self.lm.get_decoder().rotary_emb
        cos, sin = rotary(keys, position_ids=where)
        first, second = keys.chunk(2, dim=-1)
        rotated = keys * cos + torch.cat([-second, first], dim=-1) * sin
        return rotated / rotary.attention_scaling  # YaRN's factor, which the keys hold already


def _llama(config: DecoderConfig, vocab_size: int) -> "PreTrainedModel":
    """Make a Llama of the configured shape with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(  # type: ignore[call-arg]  # it takes more by **kwargs than its type says
            vocab_size=vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            rope_theta=config.rope_theta,
            attention_dropout=0.0,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
    )


def _pretrained(directory: str) -> "PreTrainedModel":
    """Load a local Hugging Face checkpoint; nothing is downloaded.  Raises ConfigError."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (Path(directory) / "config.json").exists():
        raise ConfigError(
            f"decoder_conf pretrained: {directory} holds no Hugging Face checkpoint (config.json); "
            "download the model first and give its directory"
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, attn_implementation="sdpa", dtype=torch.float32
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # also of a quantised one without its package
        raise ConfigError(
            f"decoder_conf pretrained: {directory} cannot be used ({str(error).splitlines()[0]}); "
            "download it again, or choose a model of the Llama, Mistral or Qwen family"
        ) from error


def _with_lora(model: "PreTrainedModel", config: DecoderConfig) -> "PreTrainedModel":
    """Add LoRA adapters to the attention and feed-forward products; embeddings and output train whole, for `$`."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules="all-linear",
            modules_to_save=["embed_tokens", "lm_head"],
        ),
    )
    return cast("PreTrainedModel", adapted.get_base_model())  # the adapters live inside its layers


def _add_residual_dropout(base: nn.Module, probability: float) -> None:
    """Drop elements on both residual branches, as small corpora want; Llama drops attention weights only."""

    def drop(module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):  # of a mixture of experts, with what its router says
            return dropout(output[0], probability, module.training), *output[1:]
        return dropout(output, probability, module.training)

    for layer in base.get_submodule("layers").children():
        for branch in ("self_attn.o_proj", "mlp"):
            layer.get_submodule(branch).register_forward_hook(drop)
