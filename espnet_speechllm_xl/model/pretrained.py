"""A Hugging Face causal LM as the decoder's network: loading, what trains of it, and calls with our masks and cache.

Its tables keep their rows.  ``$`` is a target only, never an input, so it has no embedding, and its row of the output
layer is a weight of :class:`~espnet_speechllm_xl.model.llm.Decoder`.  To add it to the tables would be costly: peft's
``modules_to_save=["embed_tokens", "lm_head"]`` on tied tables (most small models tie them) trains two copies, apart
from each other, beside the frozen one.  Here tied tables stay one, frozen or trained.

Shape legend: ``B`` batch, ``L`` sequence, ``D`` model dimension, ``H`` key heads, ``d`` head dimension, ``V`` tokenizer
size, ``q`` queries, ``n`` keys.
"""

import contextlib
import contextvars
import functools
import hashlib
import inspect
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
    from transformers import PreTrainedConfig, PreTrainedModel

REBASE_POSITION = 2048  # transformers' angles are float32: up to here they err by 1e-4 rad
LATE = 64  # position, of the test whether cached keys can move
EQUAL = 1e-3  # relative difference, at most, of what is equal but for the rounding of float32
MEASURED = 4096  # embeddings whose size is measured
# Made inputs, by which ``$`` gets its first row: sequences, their chunks, inputs of audio and tokens of a chunk.
SEQUENCES, CHUNKS, INPUTS, TOKENS = 4, 4, 8, 3
END_SHARE = 0.2  # of all targets, that are ``$`` before anything is known of the speech: one behind four tokens
RIDGE = 0.1  # of the states' mean square, which keeps the row small
NEAR_LIMIT = 0.95  # of a limit of scores: beyond it, a row would have to grow without end
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of the kinds of layers
CHOOSE = "choose a model of the Llama, Mistral, Qwen2, Qwen3, SmolLM3, Gemma 2 or Gemma 3 family"


class PretrainedNetwork(Network):
    """The language model of a local checkpoint.  It is no module: the decoder holds the model under its own name.

    Layers with a sliding window (Mistral, Gemma) see what our mask shows them within that window, as they were trained.
    Cached keys are moved to other positions layer by layer, since layers may have rotary positions of another base
    (Gemma 3) or none (SmolLM3).

    Args:
        model: the checkpoint's, without adapters; they may be put inside later.
        name: of the checkpoint, for errors.

    Raises:
        ConfigError: the model has layers of a kind that is unknown here.
    """

    def __init__(self, model: "PreTrainedModel", name: str) -> None:
        self._model = model
        settings = model.config
        # transformers 5.24 renamed the argument.
        arguments = inspect.signature(model.get_decoder().forward).parameters
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"
        self._kinds: list[str] | None = getattr(settings, "layer_types", None)  # None: all layers are of one kind
        self._window: int | None = getattr(settings, "sliding_window", None)  # positions
        unknown = sorted(set(self._kinds or ()) - {FULL, SLIDING})
        if unknown:
            raise ConfigError(
                f"decoder_conf pretrained: {name} has layers of {unknown[0]}, which no mask limits to chunks: {CHOOSE}"
            )
        self._name = name

    def check(self) -> None:
        """Raise ConfigError where the model, with its weights, has other positions, or scores of an unknown kind."""
        with self._exact():
            known = self.turned is not None and self._scores_are_known()
        if not known:
            raise ConfigError(
                f"decoder_conf pretrained: {self._name} computes its scores in a way that is unknown here: {CHOOSE}"
            )

    @contextlib.contextmanager
    def _exact(self) -> Iterator[None]:
        """Compute in float32 at least, without dropout, within the block; weights of bfloat16 lose nothing by that.

        Training lets torch round the factors of products to bfloat16 or TF32, which 30 layers make an error of 1 %.
        """
        training, kept = self._model.training, next(self._model.parameters()).dtype
        precision = torch.get_float32_matmul_precision()
        self._model.eval()
        try:
            self._cast(torch.promote_types(kept, torch.float32))
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            self._cast(kept)
            self._model.train(training)

    def _cast(self, dtype: torch.dtype) -> None:
        """Cast the weights alone: the frequencies of rotary positions stay as they are."""
        for weight in self._model.parameters():
            weight.data = weight.data.to(dtype)

    @functools.cached_property
    def turned(self) -> Tensor:
        """Tell which layers have rotary positions, bool (layers, 1, 1, 1).

        Raises:
            ConfigError: some have positions of another kind.
        """
        turned = self._find_turned()
        if turned is None:
            raise ConfigError(
                f"decoder_conf pretrained: {self._name} has no rotary position embedding in Llama's layout, which the "
                f"sliding window of chunks needs: {CHOOSE}"
            )
        return turned

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """Return layers, key heads and head dimension."""
        return self._model.config.num_hidden_layers, *key_sizes(self._model.config)

    @property
    def dim(self) -> int:
        """Return the width D of the inputs."""
        return self._model.config.hidden_size

    @property
    def weight(self) -> Tensor:
        """Return a weight of the layers, which tells their device and type."""
        return next(self._model.get_decoder().get_submodule("layers").parameters())

    @property
    def rotary(self) -> nn.Module:
        """Return the module of the rotary positions, whose buffers are frequencies."""
        return self._model.get_decoder().rotary_emb

    def attention(
        self, position: Tensor, chunk_id: Tensor, context: Tensor | int | None, dtype: torch.dtype
    ) -> DenseAttention:
        """Return the attention of whole sequences; see :class:`Network`; the mask is of the layers' type."""
        return DenseAttention(attention_mask(position, chunk_id, position, chunk_id, context, self.weight.dtype))

    def run(self, inputs: Tensor, position: Tensor, attention: Attention) -> Tensor:
        """Return the hidden states (B, L, D); see :class:`Network`."""
        assert isinstance(attention, (Batch, DenseAttention))  # the model computes the attention, under a dense mask
        past = attention if isinstance(attention, Batch) else None
        key_position = position if past is None else past.key_position
        output = self._model.get_decoder()(
            inputs_embeds=inputs.to(self.weight.dtype),
            attention_mask=self._masks(attention.mask, position, key_position),
            position_ids=position,
            use_cache=past is not None,
            **{self._cache_argument: past},
        )
        return output.last_hidden_state

    def _masks(self, mask: Tensor, position: Tensor, key_position: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the mask of all layers, or the masks of the kinds of layers; transformers takes them as they are.

        Args:
            mask: (B, 1, q, n) additive, of our visibility.
            position: (B, q) of the queries.
            key_position: (B, n)
        """
        # Some softmaxes of transformers are of float32 in any type: a lesser number would be -inf there, and a query
        # that sees nothing (of padding, behind the window) NaN, which the next layer spreads.
        unseen = max(torch.finfo(mask.dtype).min, torch.finfo(torch.float32).min)
        mask = mask.clamp(min=unseen)
        if self._window is None or (self._kinds is not None and SLIDING not in self._kinds):
            return mask
        near = position[:, None, :, None] - key_position[:, None, None] < self._window
        sliding = torch.where(near, mask, unseen)
        return sliding if self._kinds is None else {FULL: mask, SLIDING: sliding}

    def scores(self, hidden: Tensor, end_row: Tensor) -> Tensor:
        """Return the scores (..., V' + 1) of all rows of the output layer, and of ``$`` behind them.

        Args:
            hidden: (..., D)
            end_row: (D,) row of ``$``, whose score is scaled and limited as the others are.
        """
        output, settings = self._model.get_output_embeddings(), self._model.config
        # Rows of 8 bits (int8.py) take float32.
        rows = output(hidden.to(output.weight.dtype) if output.weight.is_floating_point() else hidden)
        end = hidden.to(end_row.dtype) @ end_row
        scores = torch.cat([rows.to(end_row.dtype), end.to(end_row.dtype)[..., None]], dim=-1) * self._scale
        limit = getattr(settings, "final_logit_softcapping", None)
        return scores if limit is None else limit * torch.tanh(scores / limit)

    @property
    def _scale(self) -> float:
        """Return the factor between products of rows and scores."""
        settings = self._model.config
        return getattr(settings, "logit_scale", 1.0) / getattr(settings, "logits_scaling", 1.0)

    def _products(self, scores: Tensor) -> Tensor:
        """Return the products of rows and hidden states that :meth:`scores` makes such scores of, of any shape."""
        limit = getattr(self._model.config, "final_logit_softcapping", None)
        if limit is not None:
            scores = limit * torch.atanh((scores / limit).clamp(-NEAR_LIMIT, NEAR_LIMIT))
        return scores / self._scale

    @torch.no_grad()
    def first_end_row(self, vocab_size: int, rms: float) -> Tensor:
        """Return a row (D,) with which ``$`` has about ``END_SHARE`` of the probability before any training.

        A row of the model's own would not do.  Hearing frames, an LLM is sure of some tokens, and the end of text is
        none of them (docs/llm.md has SmolLM2's first loss).

        The row is fitted to the hidden states of made inputs, frames of noise and any tokens: by ridge regression, so
        that the product of row and state is what the share asks for beside the other scores.

        Args:
            vocab_size: ids of the tokenizer (V).
            rms: root mean square of the frames.
        """
        with self._exact():
            hidden = self._made_states(vocab_size, rms)
            scores = self.scores(hidden, torch.zeros_like(hidden[0]))[:, :vocab_size]
            wanted = self._products(scores.logsumexp(-1) + math.log(END_SHARE / (1 - END_SHARE)))
            products = hidden @ hidden.T
            products.diagonal().add_(RIDGE * products.diagonal().mean())
            return (hidden.T @ torch.linalg.solve(products, wanted)).float()

    def _made_states(self, vocab_size: int, rms: float) -> Tensor:
        """Return the hidden states (n, D) of made inputs, where a token or ``$`` comes next."""
        generator, length = torch.Generator().manual_seed(0), CHUNKS * (INPUTS + TOKENS)
        place = torch.arange(length, device=self.weight.device)
        chunk_id, of_chunk = place // (INPUTS + TOKENS), place % (INPUTS + TOKENS)
        frames = rms * torch.randn(SEQUENCES, length, self.dim, generator=generator).to(self.weight)
        tokens = torch.randint(vocab_size, (SEQUENCES, length), generator=generator).to(place.device)
        embedded = self._model.get_input_embeddings()(tokens)
        inputs = torch.where((of_chunk < INPUTS)[None, :, None], frames, embedded)
        position, chunk_id = (each.expand(SEQUENCES, -1) for each in (place, chunk_id))
        hidden = self.run(inputs, position, self.attention(position, chunk_id, None, inputs.dtype))
        return hidden[:, of_chunk >= INPUTS - 1].flatten(0, 1)

    @property
    def rebase(self) -> Rebase:
        """Return how to keep positions small."""
        return Rebase(REBASE_POSITION, self._rotate)

    def _rotate(self, keys: Tensor, shift: int) -> Tensor:
        """Return cached keys (layers, n, H, d) as those of positions ``shift`` later."""
        return torch.where(self.turned.to(keys.device), self._all_rotated(keys, shift), keys)

    def _all_rotated(self, keys: Tensor, shift: int) -> Tensor:
        """Return the keys of :meth:`_rotate` as if all layers had rotary positions (Llama's half-split layout)."""
        cos, sin = self._turns(shift, keys)
        first, second = keys.chunk(2, dim=-1)
        return keys * cos + torch.cat([-second, first], dim=-1) * sin

    def _turns(self, shift: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and the sines (layers or 1, 1, 1, d) that move ``keys`` by ``shift`` positions."""
        rotary: Any = self.rotary
        position = torch.full((1, 1), shift, device=keys.device)
        if "layer_type" in inspect.signature(rotary.forward).parameters:
            assert self._kinds is not None
            of_kind = {kind: rotary(keys, position, kind) for kind in set(self._kinds)}
            scales = [getattr(rotary, f"{kind}_attention_scaling") for kind in self._kinds]
            turns = [of_kind[kind] for kind in self._kinds]
        else:
            scales, turns = [rotary.attention_scaling], [rotary(keys, position_ids=position)]
        # YaRN's factor, which the keys hold already, is taken out.
        cos, sin = (
            torch.stack([turn[part].flatten() / scale for turn, scale in zip(turns, scales, strict=True)])
            for part in (0, 1)
        )
        return cos[:, None, None], sin[:, None, None]

    @torch.no_grad()
    def _find_turned(self) -> Tensor | None:
        """Return ``turned``, or None where some layer has positions of another kind.

        Rotating keys of late positions back must give the keys of early ones; in layers without positions, keys must be
        the same wherever they are.
        """
        if not hasattr(self._model.get_decoder(), "rotary_emb"):
            return None
        try:
            frames, weight, keys = self._frames(), self.weight, []
            pool = Pool(*self.cache_shape, weight, None)
            for position in (0, LATE):
                batch = Batch(pool, [Step(CachedPast(None, 0, position, None), 0, frames.shape[1])])
                self.run(frames, batch.query_position, batch)
                keys.append(batch.pasts[0].entries[:, :, 0])
            moved = self._all_rotated(keys[1], -LATE)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # other shapes, arguments or caches
            return None
        least = EQUAL * keys[0].abs().amax((1, 2, 3))
        turned, still = ((each - keys[0]).abs().amax((1, 2, 3)) <= least for each in (moved, keys[1]))
        return turned[:, None, None, None] if bool((turned | still).all()) else None

    @torch.no_grad()
    def _scores_are_known(self) -> bool:
        """Tell whether our scores of a short sequence are those that the model itself computes."""
        frames = self._frames()
        position = torch.arange(frames.shape[1], device=frames.device)[None]
        attention = self.attention(position, torch.zeros_like(position), None, frames.dtype)
        expected = self._model(inputs_embeds=frames, use_cache=False).logits.float()
        row = torch.zeros(self.dim, device=frames.device)
        scores = self.scores(self.run(frames, position, attention), row)[..., :-1]
        return bool((scores - expected).abs().max() <= EQUAL * expected.abs().max())

    def _frames(self) -> Tensor:
        """Return inputs (1, 3, D) to try the model with."""
        return torch.randn(1, 3, self.dim, generator=torch.Generator().manual_seed(0)).to(self.weight)


def key_sizes(settings: "PreTrainedConfig") -> tuple[int, int]:
    """Return key heads and head dimension; configurations leave out what follows from the rest."""
    heads = settings.num_attention_heads
    key_heads, head_dim = (getattr(settings, name, None) for name in ("num_key_value_heads", "head_dim"))
    return key_heads or heads, head_dim or settings.hidden_size // heads


_weights_follow: contextvars.ContextVar[bool] = contextvars.ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """Make LLMs of their configurations alone within the block: a state dict will be loaded that has all weights."""
    before = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(before)


def is_state_to_follow() -> bool:
    """Tell whether a state dict with all that trains will be loaded; see :func:`weights_follow`."""
    return _weights_follow.get()


def are_weights_to_follow(config: DecoderConfig) -> bool:
    """Tell whether the LLM of a configuration is made without its weights; see :func:`weights_follow`."""
    return is_state_to_follow() and not config.is_base_frozen


def load_pretrained(config: DecoderConfig, vocab_size: int) -> "PreTrainedModel":
    """Load a local Hugging Face checkpoint; nothing is downloaded.

    Args:
        config: has the directory, and the type of frozen weights.
        vocab_size: ids of the tokenizer (V).

    Raises:
        ConfigError: the checkpoint is missing, cannot be used, or has fewer embeddings than the tokenizer has ids.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = config.pretrained
    assert directory is not None
    if not (Path(directory) / "config.json").exists():
        raise ConfigError(
            f"decoder_conf pretrained: {directory} holds no Hugging Face checkpoint (config.json); "
            "download the model first and give its directory (where a trained model is used: --llm DIR)"
        )
    try:
        with without_progress_bars():
            settings = AutoConfig.from_pretrained(directory, local_files_only=True)
            options = {"attn_implementation": _attention_of(settings), "dtype": getattr(torch, config.frozen_dtype)}
            if are_weights_to_follow(config):
                model = AutoModelForCausalLM.from_config(settings, **options)
            else:
                model = AutoModelForCausalLM.from_pretrained(
                    directory, config=settings, local_files_only=True, **options
                )
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # also of a quantised one without its package
        raise ConfigError(
            f"decoder_conf pretrained: {directory} cannot be used ({str(error).splitlines()[0]}); "
            f"download it again, or {CHOOSE}"
        ) from error
    rows = len(model.get_output_embeddings().weight)
    if rows < vocab_size:
        raise ConfigError(
            f"decoder_conf pretrained: {directory} knows {rows} tokens, the tokenizer has {vocab_size}: give its own "
            f"tokenizer (run.sh --token-type hf --hf-tokenizer {directory})"
        )
    return model


def _attention_of(settings: "PreTrainedConfig") -> str:
    """Return transformers' name of an attention that computes all that the model asks for.

    Torch's fused attention limits no scores (Gemma 2).
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    limited = getattr(settings, "attn_logit_softcapping", None) is not None
    fused = getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(settings), None), "_supports_sdpa", True)
    return "sdpa" if fused and not limited else "eager"


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars within the block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def embedding_rms(model: "PreTrainedModel", vocab_size: int) -> float:
    """Return the root mean square of the embeddings of V tokens as the layers see them: some models scale them."""
    table = model.get_input_embeddings()
    tokens = torch.linspace(0, vocab_size - 1, min(vocab_size, MEASURED)).long()
    return float(table(tokens).float().square().mean().sqrt())


def weight_digest(model: nn.Module) -> Tensor:
    """Return the SHA-256 digest, uint8 (32,), of a model's weights in bfloat16, to which larger types are rounded."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().to("cpu", torch.bfloat16).flatten().view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def shown_digest(digest: Tensor) -> str:
    """Return the begin of a digest, as messages show it."""
    return bytes(digest.tolist()).hex()[:12]


def choose_trained(model: "PreTrainedModel", config: DecoderConfig) -> "PreTrainedModel":
    """Freeze what does not train, and put adapters in.

    Raises:
        ConfigError: the model has no layers of the names ``lora_targets``.
    """
    if config.lora_rank:
        model = with_lora(model, config)
    elif config.freeze:
        model.requires_grad_(False)
    if config.train_table:
        # In place, so that tied tables stay one.
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.float().requires_grad_(True)
    return model


def with_lora(model: "PreTrainedModel", config: DecoderConfig) -> "PreTrainedModel":
    """Put LoRA adapters into the linear products of the layers; all other weights are frozen.

    Raises:
        ConfigError: the model has no layers of the names ``lora_targets``.
    """
    from peft import LoraConfig, get_peft_model

    layers = model.get_decoder().get_submodule("layers")
    names = sorted({name.split(".")[-1] for name, part in layers.named_modules() if isinstance(part, nn.Linear)})
    targets = config.lora_targets or names
    for name in targets:
        if name not in names:
            raise ConfigError(f"decoder_conf lora_targets: '{name}' is none of the model's {', '.join(names)}")
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(targets),
        use_dora=config.use_dora,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.24 by an old name
        adapted = get_peft_model(model, adapters)
    return cast("PreTrainedModel", adapted.get_base_model())  # the adapters live inside its layers


def add_residual_dropout(model: "PreTrainedModel", probability: float) -> None:
    """Drop elements on both residual branches, as small corpora want; Llama drops attention weights only."""

    def drop(module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):  # of a mixture of experts, with what its router says
            return dropout(output[0], probability, module.training), *output[1:]
        return dropout(output, probability, module.training)

    for layer in model.get_decoder().get_submodule("layers").children():
        branches = ("self_attn.o_proj", "mlp")
        if hasattr(layer, "post_feedforward_layernorm"):  # Gemma's norms are the ends of its branches
            branches = ("post_attention_layernorm", "post_feedforward_layernorm")
        for branch in branches:
            layer.get_submodule(branch).register_forward_hook(drop)
