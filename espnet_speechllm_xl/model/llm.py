"""The decoder: a Hugging Face causal LM, called with our masks, positions and cache.

Training is the call with an empty cache.  Vocabulary: the tokenizer's ids 0 .. V-1, then ``$`` (end of chunk) = V.

Shape legend: ``B`` batch, ``L`` sequence, ``D`` model dimension, ``V`` tokenizer size.
"""

import inspect
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from espnet_speechllm_xl.config import DecoderConfig
from espnet_speechllm_xl.model import cache
from espnet_speechllm_xl.model.decoder_steps import Request, Result
from espnet_speechllm_xl.model.dropout import drop_tokens, dropout
from espnet_speechllm_xl.model.visibility import attention_mask
from espnet_speechllm_xl.settings import ConfigError, from_dict, signature

REBASE_POSITION = 2048  # float32 angles up to here err by 1e-4 rad; see Row.rebase


class Decoder(nn.Module):
    """Llama-shaped decoder over interleaved audio and text (paper section 2).

    Args:
        vocab_size: tokenizer ids (V); ``$`` is added as id V.
        conf: fields of :class:`~espnet_speechllm_xl.config.DecoderConfig`.

    Raises:
        ConfigError: unknown field, or a checkpoint that is missing or whose positions are not Llama's rotary ones.
    """

    def __init__(self, vocab_size, **conf):
        super().__init__()
        self.config = from_dict(DecoderConfig, conf, "decoder_conf")
        self.eoc = vocab_size
        self.lm = _pretrained(self.config) if self.config.pretrained else _llama(self.config, vocab_size + 1)
        if self.config.pretrained:
            self.lm.resize_token_embeddings(vocab_size + 1, mean_resizing=False)
        base = self.lm.get_decoder()
        # transformers 5.24 renamed the argument.
        self._past = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
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
    def dim(self):
        """Width of the inputs, D."""
        return self.lm.config.hidden_size

    def embed(self, tokens):
        """Text tokens (B, U) -> inputs (B, U, D); in training some embeddings are dropped whole."""
        return drop_tokens(self.lm.get_input_embeddings()(tokens), self.config.embed_dropout, self.training)

    def forward(self, inputs, position, chunk, context, past=None):
        """Hidden states (B, L, D) of ``inputs`` (B, L, D) behind ``past``.

        Args:
            position, chunk: (B, L) integer tensors of the inputs.
            context: previous chunks that stay visible, a number or a tensor (B, 1, 1); None: all.
            past: :class:`~espnet_speechllm_xl.model.cache.Batch` or None (training: empty).
        """
        key_position, key_chunk = (position, chunk) if past is None else (past.position, past.chunk)
        mask = attention_mask(position, chunk, key_position, key_chunk, context, inputs.dtype)
        output = self.lm.get_decoder()(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=position,
            use_cache=past is not None,
            **{self._past: past},
        )
        return output.last_hidden_state

    def logits(self, hidden):
        """Scores (..., V + 1) of the next token or ``$``."""
        return self.lm.get_output_embeddings()(hidden)

    def initial_row(self, context):
        """The past of a hypothesis before any input, which will see ``context`` previous chunks (None: all)."""
        config = self.lm.config
        weight = self.lm.get_output_embeddings().weight
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cache.empty_row(config.num_hidden_layers, heads, head_dim, weight.dtype, weight.device, context)

    @torch.no_grad()
    def extend(self, requests):
        """Advance hypotheses, any number in one call, each by a chunk of audio or by one token.

        Args:
            requests: list of :class:`~espnet_speechllm_xl.model.decoder_steps.Request`; frames are (q, D) inputs.

        Returns:
            list of :class:`~espnet_speechllm_xl.model.decoder_steps.Result`: log-probabilities (V + 1,) after the
            last input.
        """
        rows = [self._trim(request) for request in requests]
        counts = [1 if request.frames is None else len(request.frames) for request in requests]
        past = cache.Batch(rows, counts, [request.chunk for request in requests])
        hidden = self(self._inputs(requests), past.query_position, past.query_chunk, past.context, past)
        last = hidden[torch.arange(len(requests)), [count - 1 for count in counts]]
        log_probs = F.log_softmax(self.logits(last).to(torch.promote_types(last.dtype, torch.float32)), dim=-1)
        return [Result(row, scores) for row, scores in zip(past.rows(), log_probs, strict=True)]

    def _trim(self, request):
        """A new chunk puts older ones out of sight for good: evict them, and re-base what is left."""
        if request.frames is None:
            return request.row
        return request.row.evict(request.chunk).rebase(REBASE_POSITION, self._rotate)

    def _inputs(self, requests):
        """Decoder inputs (R, q, D) of the requests, zero-padded."""
        device = self.lm.get_input_embeddings().weight.device
        if all(request.frames is None for request in requests):
            return self.embed(torch.tensor([[request.token] for request in requests], device=device))
        pieces = [
            self.embed(torch.tensor([request.token], device=device)) if request.frames is None else request.frames
            for request in requests
        ]
        return nn.utils.rnn.pad_sequence(pieces, batch_first=True)

    def _keys_can_move(self):
        """Whether keys of late positions, rotated back, are those of early ones: not so in every kind of model."""
        if not hasattr(self.lm.get_decoder(), "rotary_emb"):
            return False
        frames = torch.randn(3, self.dim, generator=torch.Generator().manual_seed(0))
        row = self.initial_row(None)
        late = replace(row, next_position=64)
        try:
            first, second = self.extend([Request(each, 0, frames=frames) for each in (row, late)])
            moved = second.row.rebase(1, self._rotate)
        except (RuntimeError, TypeError, ValueError):  # other shapes, other arguments, a cache of its own
            return False
        wanted = first.row.keys_values
        return bool((moved.keys_values - wanted).abs().max() < 1e-3 * wanted.abs().max())

    def _rotate(self, keys, shift):
        """Rotate cached keys (..., W, d) by ``shift`` positions (Llama's half-split layout)."""
        where = torch.full((1, keys.shape[-2]), shift, device=keys.device)
        rotary = self.lm.get_decoder().rotary_emb
        cos, sin = rotary(keys, position_ids=where)
        first, second = keys.chunk(2, dim=-1)
        rotated = keys * cos + torch.cat([-second, first], dim=-1) * sin
        return rotated / rotary.attention_scaling  # YaRN's factor, which the keys hold already


Decoder.__signature__ = signature(
    DecoderConfig, inspect.Parameter("vocab_size", inspect.Parameter.POSITIONAL_OR_KEYWORD)
)


def _llama(config, vocab_size):
    """A Llama of the configured shape with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
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


def _pretrained(config):
    """A local Hugging Face checkpoint; nothing is downloaded."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (Path(config.pretrained) / "config.json").exists():
        raise ConfigError(
            f"decoder_conf pretrained: {config.pretrained} holds no Hugging Face checkpoint (config.json); "
            "download the model first and give its directory"
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            config.pretrained, local_files_only=True, attn_implementation="sdpa", dtype=torch.float32
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # also of a quantised one without its package
        raise ConfigError(
            f"decoder_conf pretrained: {config.pretrained} cannot be used ({str(error).splitlines()[0]}); "
            "download it again, or choose a model of the Llama, Mistral or Qwen family"
        ) from error


def _with_lora(model, config):
    """LoRA adapters on the attention and feed-forward products; embeddings and output stay trainable for `$`."""
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
    return adapted.get_base_model()  # the adapters live inside its layers


def _add_residual_dropout(base, probability):
    """Llama has dropout on attention weights only; small corpora want it on both residual branches."""

    def drop(module, _inputs, output):
        if isinstance(output, tuple):  # of a mixture of experts, with what its router says
            return dropout(output[0], probability, module.training), *output[1:]
        return dropout(output, probability, module.training)

    for layer in base.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
