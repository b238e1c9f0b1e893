"""A Hugging Face causal LM as the decoder's network: loading, adapters, dropout, and calls with our masks and cache."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from espnet_speechllm_xl.config import DecoderConfig
from espnet_speechllm_xl.model.attention import Attention, DenseAttention
from espnet_speechllm_xl.model.cache import Batch, CachedPast, Pool, Rebase, Step
from espnet_speechllm_xl.model.dropout import dropout
from espnet_speechllm_xl.model.llama import Network
from espnet_speechllm_xl.model.visibility import attention_mask
from espnet_speechllm_xl.settings import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REBASE_POSITION = 2048  # transformers' angles are float32: up to here they err by 1e-4 rad
LATE = 64  # position, of the test whether cached keys can move


class PretrainedNetwork(Network):
    """The language model of a local checkpoint.  It is no module: the decoder holds the model under its own name.

    Args:
        model: has rotary positions in Llama's layout; adapters are inside.
        name: of the checkpoint, for the error.

    Raises:
        ConfigError: the model has other positions.
    """

    def __init__(self, model: "PreTrainedModel", name: str) -> None:
        self._model = model
        # transformers 5.24 renamed the argument.
        arguments = inspect.signature(model.get_decoder().forward).parameters
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"
        if not self._keys_can_move():
            raise ConfigError(
                f"decoder_conf pretrained: {name} has no rotary position embedding in Llama's layout, which the "
                "sliding window needs: choose a model of the Llama, Mistral or Qwen family"
            )

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """Return layers, key heads and head dimension."""
        config = self._model.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.num_hidden_layers, heads, head_dim

    @property
    def dim(self) -> int:
        """Return the width D of the inputs."""
        return self._model.config.hidden_size

    def attention(
        self, position: Tensor, chunk_id: Tensor, context: Tensor | int | None, dtype: torch.dtype
    ) -> DenseAttention:
        """Return the attention of whole sequences; see :class:`Network`."""
        return DenseAttention(attention_mask(position, chunk_id, position, chunk_id, context, dtype))

    def run(self, inputs: Tensor, position: Tensor, attention: Attention) -> Tensor:
        """Return the hidden states (B, L, D); see :class:`Network`."""
        assert isinstance(attention, (Batch, DenseAttention))  # the model computes the attention, under a dense mask
        past = attention if isinstance(attention, Batch) else None
        output = self._model.get_decoder()(
            inputs_embeds=inputs,
            attention_mask=attention.mask,
            position_ids=position,
            use_cache=past is not None,
            **{self._cache_argument: past},
        )
        return output.last_hidden_state

    @property
    def rebase(self) -> Rebase:
        """Return how to keep positions small."""
        return Rebase(REBASE_POSITION, self._rotate)

    def _rotate(self, keys: Tensor, shift: int) -> Tensor:
        """Return cached keys (..., H, d) as those of positions ``shift`` later (Llama's half-split layout)."""
        rotary = self._model.get_decoder().rotary_emb
        cos, sin = rotary(keys, position_ids=torch.full((1, 1), shift, device=keys.device))
        first, second = keys.chunk(2, dim=-1)
        rotated = keys * cos + torch.cat([-second, first], dim=-1) * sin
        return rotated / rotary.attention_scaling  # YaRN's factor, which the keys hold already

    @torch.no_grad()
    def _keys_can_move(self) -> bool:
        """Tell whether rotating keys of late positions back gives the keys of early ones; some models differ."""
        if not hasattr(self._model.get_decoder(), "rotary_emb"):
            return False
        weight = next(self._model.parameters())
        frames = torch.randn(1, 3, self.dim, generator=torch.Generator().manual_seed(0)).to(weight)
        pool = Pool(*self.cache_shape, weight, None)
        keys = []
        try:
            for position in (0, LATE):
                batch = Batch(pool, [Step(CachedPast(None, 0, position, None), 0, frames.shape[1])])
                self.run(frames, batch.query_position, batch)
                keys.append(batch.pasts[0].entries[:, :, 0])
            moved = self._rotate(keys[1], -LATE)
        except (RuntimeError, TypeError, ValueError):  # other shapes, other arguments, a cache of its own
            return False
        return bool((moved - keys[0]).abs().max() < 1e-3 * keys[0].abs().max())


def load_pretrained(config: DecoderConfig, vocab_size: int) -> "PreTrainedModel":
    """Load a local Hugging Face checkpoint, with adapters and dropout; nothing is downloaded.

    Args:
        config: has the directory.
        vocab_size: rows of the embedding table, ``$`` among them.

    Raises:
        ConfigError: the checkpoint is missing or cannot be used.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    directory = config.pretrained
    assert directory is not None
    if not (Path(directory) / "config.json").exists():
        raise ConfigError(
            f"decoder_conf pretrained: {directory} holds no Hugging Face checkpoint (config.json); "
            "download the model first and give its directory"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, attn_implementation="sdpa", dtype=torch.float32
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # also of a quantised one without its package
        raise ConfigError(
            f"decoder_conf pretrained: {directory} cannot be used ({str(error).splitlines()[0]}); "
            "download it again, or choose a model of the Llama, Mistral or Qwen family"
        ) from error
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return model


def with_lora(model: "PreTrainedModel", config: DecoderConfig) -> "PreTrainedModel":
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


def add_residual_dropout(model: "PreTrainedModel", probability: float) -> None:
    """Drop elements on both residual branches, as small corpora want; Llama drops attention weights only."""

    def drop(module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):  # of a mixture of experts, with what its router says
            return dropout(output[0], probability, module.training), *output[1:]
        return dropout(output, probability, module.training)

    for layer in model.get_decoder().get_submodule("layers").children():
        for branch in ("self_attn.o_proj", "mlp"):
            layer.get_submodule(branch).register_forward_hook(drop)
