"""The decoder: a causal language model, called with our masks, positions and cache.

Training is the call with an empty cache.  Vocabulary: the tokenizer's ids 0 .. V-1, then ``$`` (end of chunk) = V.

The state dict of a decoder whose pretrained LLM is frozen holds what trains, and a digest of the LLM: its weights are
taken from its own directory.

Shape legend: ``B`` batch, ``L`` sequence, ``R`` hypotheses of a call, ``q`` their new inputs, ``D`` model dimension,
``V`` tokenizer size.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_speechllm_xl.config import DecoderConfig
from espnet_speechllm_xl.model import pretrained
from espnet_speechllm_xl.model.cache import Batch, CachedPast, Pool, Step
from espnet_speechllm_xl.model.decoder_steps import Outputs, Request, Result, TextDecoder
from espnet_speechllm_xl.model.dropout import drop_tokens
from espnet_speechllm_xl.model.llama import Llama, Network
from espnet_speechllm_xl.model.visibility import PROMPT
from espnet_speechllm_xl.settings import ConfigError, from_dict, signature

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decoder(nn.Module, TextDecoder[CachedPast]):
    """Llama-shaped decoder over interleaved audio and text (paper section 2).

    Args:
        vocab_size: tokenizer ids (V); ``$`` is added as id V.
        conf: fields of :class:`~espnet_speechllm_xl.config.DecoderConfig`.

    Attributes:
        prompt_distance: the last position at which a chunk may begin behind a prompt; None: it reads no prompts.
        end_row: (D,) the output layer's row of ``$`` beside a pretrained LLM, whose own tables keep their rows; our own
            Llama has it in its tables.
        base_digest: (32,) uint8, of the weights of a frozen LLM.

    Raises:
        ConfigError: a field is unknown, or a checkpoint is missing, or of a kind that cannot be used.
    """

    __signature__: ClassVar[inspect.Signature] = signature(
        DecoderConfig, inspect.Parameter("vocab_size", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=int)
    )

    lm: "Llama | PreTrainedModel"
    end_row: nn.Parameter | None
    base_digest: Tensor

    def __init__(self, vocab_size: int, **conf: Any) -> None:  # as DecoderConfig has them
        super().__init__()
        self.config = from_dict(DecoderConfig, conf, "decoder_conf")
        self.eoc = vocab_size
        self.prompt_distance: int | None = None
        self._pool: Pool | None = None
        self._pretrained: pretrained.PretrainedNetwork | None = None  # in place of ``lm``, which is no Network then
        self._input_rms: float | None = None
        self._left_out: dict[str, str] = {}  # names that the state dict leaves out -> those that have the values
        self.register_parameter("end_row", None)
        if self.config.pretrained:
            self._load(self.config.pretrained)
        else:
            self.lm = Llama(self.config, vocab_size + 1)

    def _load(self, directory: str) -> None:
        """Take the language model of a checkpoint."""
        lm = pretrained.load_pretrained(self.config, self.eoc)
        self._pretrained = pretrained.PretrainedNetwork(lm, directory)
        if pretrained.are_weights_to_follow(self.config):
            self.register_load_state_dict_post_hook(_check_loaded)
        else:
            self._pretrained.check()
            self._input_rms = pretrained.embedding_rms(lm, self.eoc)
        if pretrained.is_state_to_follow():
            self.end_row = nn.Parameter(torch.zeros(self._pretrained.dim))
        else:
            assert self._input_rms is not None
            self.end_row = nn.Parameter(self._pretrained.first_end_row(self.eoc, self._input_rms))
        if self.config.is_base_frozen:
            self.register_buffer("base_digest", pretrained.weight_digest(lm))
        self.lm = pretrained.choose_trained(lm, self.config)
        if self.config.dropout:
            # After the adapters, which take their layers' places: a hook on the frozen layer would spare them.
            pretrained.add_residual_dropout(self.lm, self.config.dropout)
        names: dict[nn.Parameter, str] = {}
        for name, weight in self.named_parameters(remove_duplicate=False):
            first = names.setdefault(weight, name)  # of tied weights
            if not weight.requires_grad or first != name:
                self._left_out[name] = first
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_fill_in)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Decoder":
        """Change all tensors, as ``to`` does, but frequencies of rotary positions, which half precision would ruin."""
        rotary = None if self._pretrained is None else self._pretrained.rotary
        exact = {} if rotary is None else dict(rotary.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            setattr(rotary, name, buffer.to(self._table().device))
        return self

    @torch.no_grad()
    def store_frozen(self) -> None:
        """Put the frozen weights of the LLM into ``frozen_dtype`` again, after a cast of the whole model."""
        if self.config.is_base_frozen:
            for weight in self.lm.parameters():
                if not weight.requires_grad:
                    weight.data = weight.to(getattr(torch, self.config.frozen_dtype))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy gets: all but the cache, whose hypotheses stay with the original."""
        return {**self.__dict__, "_pool": None}

    @property
    def network(self) -> Network:
        """Return the language model behind its contract."""
        if self._pretrained is not None:
            return self._pretrained
        assert isinstance(self.lm, Llama)
        return self.lm

    @property
    def dim(self) -> int:
        """Return the width D of the inputs."""
        return self.network.dim

    @property
    def input_rms(self) -> float | None:
        """Return the size of the embeddings that a pretrained LLM knows; see :class:`TextDecoder`."""
        return self._input_rms

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the inputs (B, U, D) of text tokens (B, U); in training some embeddings are dropped whole."""
        return drop_tokens(self.lm.get_input_embeddings()(tokens), self.config.embed_dropout, self.training)

    def forward(
        self, inputs: Tensor, position: Tensor, chunk_id: Tensor, context: Tensor | int | None
    ) -> Tensor:
        """Return the hidden states (B, L, D) of whole sequences.

        Args:
            inputs: (B, L, D)
            position: (B, L) integers.
            chunk_id: (B, L) integers.
            context: previous chunks that stay visible, a number or a tensor (B, 1, 1); None: all.
        """
        attention = self.network.attention(position, chunk_id, context, inputs.dtype)
        return self.network.run(inputs, position, attention)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (..., V + 1) of the next token or ``$`` from hidden states (..., D)."""
        if self._pretrained is None:
            return self.lm.get_output_embeddings()(hidden)
        assert self.end_row is not None
        scores = self._pretrained.scores(hidden, self.end_row)
        if scores.shape[-1] == self.eoc + 1:
            return scores
        # Rows behind the tokenizer's ids, which many checkpoints have, are no outputs.
        return torch.cat([scores[..., : self.eoc], scores[..., -1:]], dim=-1)

    def initial_past(self, context: int | None) -> CachedPast:
        """Return the past of a hypothesis before any input; see :class:`ChunkDecoder`."""
        return CachedPast(None, 0, 0, context)

    @property
    def most_prompt_tokens(self) -> int:
        """Return the tokens of the longest prompt: behind it, the first chunk begins within the trained distance."""
        return self.prompt_distance or 0

    @torch.no_grad()
    def prompted_past(self, context: int | None, prompt: Sequence[int]) -> CachedPast:
        """Return the past of a hypothesis that has read a prompt; see :class:`ChunkDecoder`."""
        inputs = self.embed(torch.tensor([list(prompt)], device=self._table().device))[0]
        (result,) = self.extend([Request(self.initial_past(context), PROMPT, frames=inputs)])
        return result.past

    @torch.no_grad()
    def extend(self, requests: Sequence[Request[CachedPast]]) -> list[Result[CachedPast]]:
        """Advance hypotheses; see :class:`ChunkDecoder`."""
        steps = [
            Step(request.past, request.chunk_id, 1)
            if request.frames is None
            else Step(request.past, request.chunk_id, len(request.frames), begins=True)
            for request in requests
        ]
        pool = self._fitting_pool()
        with pool.lock:
            pool.release()
            batch = Batch(pool, steps)
            inputs = self._inputs([requests[step] for step in batch.order])
            hidden = self.network.run(inputs, batch.query_position, batch)
        if batch.new == 1:
            last = hidden[:, 0]
        else:
            last = hidden[torch.arange(len(hidden)), [count - 1 for count in batch.counts]]
        log_probs = F.log_softmax(self.logits(last).to(torch.promote_types(last.dtype, torch.float32)), dim=-1)
        if not torch.isfinite(log_probs).all():  # of bad weights, or an overflow: the search will say so
            batch.spoil()
        rows = sorted(range(len(steps)), key=batch.order.__getitem__)  # of the batch, in the order of the requests
        outputs = Outputs(log_probs)
        return [Result(past, outputs, row) for past, row in zip(batch.pasts, rows, strict=True)]

    def _fitting_pool(self) -> Pool:
        """Return the store of the cache, a new one if the weights have moved or changed their type since."""
        weight = self._table() if self._pretrained is None else self._pretrained.weight
        if self._pool is None or (self._pool.dtype, self._pool.device) != (weight.dtype, weight.device):
            network = self.network
            self._pool = Pool(*network.cache_shape, weight, network.rebase, self.prompt_distance)
        return self._pool

    def _table(self) -> Tensor:
        """Return the weights of the embedding table, which tell device and type: other layers may be of 8 bits."""
        weight = self.lm.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    def _inputs(self, requests: Sequence[Request[CachedPast]]) -> Tensor:
        """Return the decoder inputs (R, q, D) of R requests, padded with zeros."""
        device = self._table().device
        if all(request.frames is None for request in requests):
            return self.embed(torch.tensor([[request.token] for request in requests], device=device))
        pieces = [
            request.frames
            if request.frames is not None
            else self.embed(torch.tensor([request.token], device=device))
            for request in requests
        ]
        return nn.utils.rnn.pad_sequence(pieces, batch_first=True)


def _leave_out(decoder: Decoder, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    """Take the frozen weights of the LLM out of a state dict, and the second names of tied ones."""
    for name in decoder._left_out:
        state.pop(prefix + name, None)


def _fill_in(decoder: Decoder, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Put into a state dict, before it is loaded, what :func:`_leave_out` has taken out.

    Raises:
        ConfigError: it was trained with another LLM.
    """
    digest = state.get(f"{prefix}base_digest")
    if digest is not None and decoder.config.is_base_frozen and not digest.cpu().equal(decoder.base_digest.cpu()):
        raise ConfigError(
            f"decoder_conf pretrained: {decoder.config.pretrained} is not the LLM that the weights were trained with "
            f"(digest {pretrained.shown_digest(decoder.base_digest)}, not {pretrained.shown_digest(digest)}): give the "
            "directory of that one"
        )
    own = dict(decoder.named_parameters(remove_duplicate=False))
    for name, first in decoder._left_out.items():
        trained = state.get(prefix + first) if first != name else None
        state.setdefault(prefix + name, own[name] if trained is None else trained)


def _check_loaded(decoder: Decoder, _keys: object) -> None:
    """Raise ConfigError where an LLM that got its weights cannot be used."""
    assert decoder._pretrained is not None
    decoder._pretrained.check()
