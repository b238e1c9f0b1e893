"""The decoder: a causal language model, called with our masks, positions and cache.

Training is the call with an empty cache.  Vocabulary: the tokenizer's ids 0 .. V-1, then ``$`` (end of chunk) = V.

Shape legend: ``B`` batch, ``L`` sequence, ``R`` hypotheses of a call, ``q`` their new inputs, ``D`` model dimension,
``V`` tokenizer size.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_speechllm_xl.config import DecoderConfig
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
        prompt_distance: the last position at which a chunk may begin behind a prompt; None: prompts are refused.

    Raises:
        ConfigError: a field is unknown, or a checkpoint is missing or has no rotary positions of Llama's layout.
    """

    __signature__: ClassVar[inspect.Signature] = signature(
        DecoderConfig, inspect.Parameter("vocab_size", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=int)
    )

    lm: "Llama | PreTrainedModel"

    def __init__(self, vocab_size: int, **conf: Any) -> None:  # as DecoderConfig has them
        super().__init__()
        self.config = from_dict(DecoderConfig, conf, "decoder_conf")
        self.eoc = vocab_size
        self.prompt_distance: int | None = None
        self._pool: Pool | None = None
        self._pretrained: Network | None = None  # in place of ``lm``, which is no Network then
        if self.config.pretrained:
            self._load(self.config.pretrained)
        else:
            self.lm = Llama(self.config, vocab_size + 1)

    def _load(self, directory: str) -> None:
        """Take the language model of a checkpoint."""
        from espnet_speechllm_xl.model import pretrained  # transformers takes seconds to import

        self.lm = pretrained.load_pretrained(self.config, self.eoc + 1)
        self._pretrained = pretrained.PretrainedNetwork(self.lm, directory)
        if self.config.lora_rank:
            self.lm = pretrained.with_lora(self.lm, self.config)
        if self.config.dropout:
            # After the adapters, which take their layers' places: a hook on the frozen layer would spare them.
            pretrained.add_residual_dropout(self.lm, self.config.dropout)

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
        return self.lm.get_output_embeddings()(hidden)

    def initial_past(self, context: int | None) -> CachedPast:
        """Return the past of a hypothesis before any input; see :class:`ChunkDecoder`."""
        return CachedPast(None, 0, 0, context)

    @torch.no_grad()
    def prompted_past(self, context: int | None, prompt: Sequence[int]) -> CachedPast:
        """Return the past of a hypothesis that has read a prompt; see :class:`ChunkDecoder`."""
        if self.prompt_distance is None:
            raise ConfigError(
                "this model was trained without prompts (text_prompt_conf probability: 0): leave the prompt out"
            )
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
        weight = self._table()
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
