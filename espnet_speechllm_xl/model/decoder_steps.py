"""The contract between a search and a decoder: requests for decoder steps, their results, and who answers them.

    search  --Request(past, chunk_id, frames or token)-->  ChunkDecoder.extend  --Result(past, log_probs)-->  search

A search knows no decoder beyond this file, and a decoder knows no search.

Shape legend: ``B`` batch, ``L`` sequence, ``U`` tokens, ``q`` frames of a chunk, ``D`` size of a frame, ``V``
tokenizer size.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

P = TypeVar("P", bound="Past")


class Past(abc.ABC):
    """A decoder's memory of one hypothesis.  It never changes, so that a fork is another reference to it."""

    @abc.abstractmethod
    def alone(self: P) -> P:
        """Return a copy that keeps no tensor of the batch alive in which it was computed."""


@dataclass(frozen=True, slots=True)
class Request(Generic[P]):
    """One hypothesis asks to be extended, either by the frames of a chunk (a prefill) or by one token."""

    past: P
    chunk_id: int  # chunk that the inputs belong to
    frames: Tensor | None = None  # (q, D) of the chunk
    token: int | None = None  # one text token
    last: bool = False  # no audio follows the chunk; False also where that is not known yet

    @property
    def kind(self) -> str:
        """Return the kind of step; all steps of one kind make one batch, prefills of different lengths too."""
        return "token" if self.frames is None else "prefill"


@dataclass(frozen=True, slots=True)
class Result(Generic[P]):
    """The extended past, and the scores of what may come next."""

    past: P
    log_probs: Tensor  # (V + 1,) natural logarithms after the last input; the last entry is `$`
    scores: Tensor | None = None  # (V + 1,) what each adds to the hypothesis' score; None: log_probs (joint_ctc.py)


class ChunkDecoder(abc.ABC, Generic[P]):
    """The contract of a search with a decoder, which writes text chunk by chunk.

    Attributes:
        eoc: id of the end of a chunk, ``$``: V, behind the tokenizer's ids 0 .. V - 1.
    """

    eoc: int

    @abc.abstractmethod
    def initial_past(self, context: int | None) -> P:
        """Return the past of a hypothesis before its first chunk.

        Args:
            context: previous chunks that the hypothesis will see; None: all.

        Raises:
            ConfigError: the decoder cannot see so many.
        """

    @abc.abstractmethod
    def extend(self, requests: Sequence[Request[P]]) -> list[Result[P]]:
        """Advance hypotheses, any number in one call, each by the frames of its next chunk or by one token.

        Args:
            requests: their frames are (q, D), q >= 1, as the model's ``projection`` makes them.

        Returns:
            One result for each request, in their order; a result depends on its own request only, but for rounding.
        """


class TextDecoder(ChunkDecoder[P]):
    """A decoder that :class:`~espnet_speechllm_xl.systems.base_model.ChunkwiseModel` trains with a cross-entropy."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Return the size D of its inputs, frames and embedded tokens alike."""

    @abc.abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the inputs (B, U, D) of text tokens (B, U); in training some embeddings are dropped whole."""

    @abc.abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (..., V + 1) of the next token or ``$`` from hidden states (..., D)."""
