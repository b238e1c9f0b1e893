"""The contract between a search and a decoder: requests for decoder steps, their results, and who answers them.

    search  --Request(past, chunk_id, frames or token)-->  ChunkDecoder.extend  --Result(past, outputs)-->  search

A search knows no decoder beyond this file, and a decoder knows no search.

Shape legend: ``R`` hypotheses of a call, ``B`` batch, ``L`` sequence, ``U`` tokens, ``q`` inputs for the
frames of a chunk, ``D`` size of an input, ``V`` tokenizer size.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

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


class Candidate(NamedTuple):
    """One possible next output of a hypothesis."""

    token: int  # or `$`
    score: float  # what it adds to the hypothesis' score
    log_prob: float  # the decoder's


class Outputs:
    """The scores of all next outputs of the R hypotheses of a call.

    A hypothesis needs only a few of its V + 1 outputs.  The first one that asks has them picked for all R at once.

    Args:
        log_probs: (R, V + 1) natural logarithms; the last entry is `$`.
        scores: (R, V + 1) what each output adds to the hypothesis' score (joint_ctc.py); None: ``log_probs``.
    """

    def __init__(self, log_probs: Tensor, scores: Tensor | None = None) -> None:
        self.log_probs = log_probs
        self.scores = log_probs if scores is None else scores
        self._best: dict[tuple[int, int | None], list[list[Candidate]]] = {}
        self._ends: list[Candidate] | None = None

    def best(self, row: int, count: int, closed: Tensor | None = None, margin: float = math.inf) -> list[Candidate]:
        """Return the ``count`` best outputs of a hypothesis, and all that score as much as the last of these.

        Args:
            row: the hypothesis.
            count: of outputs; where the tokenizer has fewer, all.
            closed: (V + 1,) what is added to the scores: 0, or -inf where an output is not allowed; None: nothing.
            margin: outputs that score so much less than the best may be left out.
        """
        key = count, None if closed is None else id(closed)
        if key not in self._best:
            scores = self.scores if closed is None else self.scores + closed.to(self.scores)
            self._best[key] = self._picked(scores, self.log_probs, count)
        return self._best[key][row]

    def best_with(
        self, rows: Sequence[int], added: Tensor, count: int, margin: float = math.inf
    ) -> list[list[Candidate]]:
        """Return the best outputs of some hypotheses, each with scores of its own.

        Args:
            rows: n hypotheses.
            added: (n, V + 1) float64, what is added to their scores; 0 for `$`.
            count: see :meth:`best`.
            margin: see :meth:`best`.
        """
        scores, log_probs = self.scores, self.log_probs
        if list(rows) != [*range(len(scores))]:
            scores, log_probs = scores[rows], log_probs[rows]
        return self._picked(scores + added, log_probs, count)

    def end(self, row: int) -> Candidate:
        """Return `$` as the next output of a hypothesis."""
        if self._ends is None:
            end = self.log_probs.shape[1] - 1
            scores, log_probs = self.scores[:, -1].tolist(), self.log_probs[:, -1].tolist()
            self._ends = [Candidate(end, *each) for each in zip(scores, log_probs, strict=True)]
        return self._ends[row]

    def one(self, row: int, token: int) -> Candidate:
        """Return one token as the next output of a hypothesis."""
        return Candidate(token, self.scores[row, token].item(), self.log_probs[row, token].item())

    @staticmethod
    def _picked(scores: Tensor, log_probs: Tensor, count: int) -> list[list[Candidate]]:
        """Return the ``count`` best outputs of n hypotheses, and all that score as much as the last of these.

        Args:
            scores: (n, V + 1), by which they are chosen.
            log_probs: (n, V + 1), the decoder's.
            count: of outputs.
        """
        # One more shows whether an output beyond is as good as the last.
        top, tokens = scores.topk(min(count + 1, scores.shape[1]))
        lists = tokens.tolist(), top.tolist()
        own = lists[1] if scores is log_probs else log_probs.gather(1, tokens).tolist()
        found = [list(map(Candidate, *each)) for each in zip(*lists, own, strict=True)]
        for row, best in enumerate(found):
            # A NaN stands first, and would be equal to nothing; impossible outputs are no ties.
            if len(best) > count and best[count].score == best[count - 1].score > -math.inf:
                equal = (scores[row] >= best[count - 1].score).nonzero()[:, 0]
                each = equal.tolist(), scores[row][equal].tolist(), log_probs[row][equal].tolist()
                found[row] = list(map(Candidate, *each))
            else:
                found[row] = best[:count]
        return found


@dataclass(frozen=True, slots=True)
class Result(Generic[P]):
    """The extended past, and what may come next."""

    past: P
    outputs: Outputs  # of all requests of the call
    row: int  # which of them are this one's

    @property
    def log_probs(self) -> Tensor:
        """Return the natural logarithms (V + 1,) of the probabilities of what may come next."""
        return self.outputs.log_probs[self.row]


def make_results(pasts: Sequence[P], log_probs: Tensor, scores: Tensor | None = None) -> list[Result[P]]:
    """Return the results of a call.

    Args:
        pasts: of the R hypotheses, extended.
        log_probs: (R, V + 1), see :class:`Outputs`.
        scores: (R, V + 1), see :class:`Outputs`.
    """
    outputs = Outputs(log_probs, scores)
    return [Result(past, outputs, row) for row, past in enumerate(pasts)]


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

    @property
    def most_prompt_tokens(self) -> int:
        """Return the tokens of the longest prompt that it can read; 0: it reads none."""
        return 0

    def prompted_past(self, context: int | None, prompt: Sequence[int]) -> P:
        """Return the past of a hypothesis that has read a prompt, before its first chunk.

        Args:
            context: see :meth:`initial_past`.
            prompt: its tokens, from 1 to ``most_prompt_tokens``.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no prompts")

    @abc.abstractmethod
    def extend(self, requests: Sequence[Request[P]]) -> list[Result[P]]:
        """Advance hypotheses, any number in one call, each by the frames of its next chunk or by one token.

        Args:
            requests: their frames are (q, D), q >= 1, as the model's ``projection`` makes them of a chunk.

        Returns:
            One result for each request, in their order; a result depends on its own request only, but for rounding.
        """


class TextDecoder(ChunkDecoder[P]):
    """A decoder that :class:`~espnet_speechllm_xl.systems.base_model.ChunkwiseModel` trains with a cross-entropy."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Return the size D of its inputs, frames and embedded tokens alike."""

    @property
    def input_rms(self) -> float | None:
        """Return the root mean square of the inputs it was trained with before; None: it has random weights."""
        return None

    @abc.abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the inputs (B, U, D) of text tokens (B, U); in training some embeddings are dropped whole."""

    @abc.abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (..., V + 1) of the next token or ``$`` from hidden states (..., D)."""
