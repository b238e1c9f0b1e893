"""Joint CTC scoring of the decoder's text (Watanabe et al. 2017; for streams, Moritz et al. 2019).

The score of a hypothesis is

    (1 - weight) log P(tokens and `$`; the decoder)  +  weight log P(a text that begins with the tokens; CTC)

CTC is the auxiliary head of training.  It has heard the audio up to the end of the hypothesis' chunk.

- The decoder may leave a word out where two chunks meet, because each chunk leaves it to the other.  The next word that
  is written then costs CTC's part.
- The decoder may write a word twice.  That costs CTC's part at once.
- A hypothesis may have ended its chunk and have written nothing in the next.  CTC's part is then the probability that
  no further token has begun, except in the last :data:`MARGIN` frames and in those of a label delay.  Without this term
  a hypothesis could leave out words for free.  Without the exception it would pay for the first word of the next chunk,
  whose beginning may be heard already.
- The `$` of the last chunk says that there is no further token at all.  An encoder without look-ahead does not know
  which chunk is the last, and treats all alike.

CTC's tokens may be characters while the decoder's are pieces of words (ctc_spelling.py).  A token of the decoder then
adds all its characters to CTC's text, and a token without any costs nothing, or is refused.  The space before a word
belongs to the word: that it was heard does not say that another token has begun.  An LLM has too many tokens to score
all of them.  CTC gives no token more than it gives the text before, so the decoder's scores, with what phrases
add to them (phrases.py), tell which tokens can be among the best.  Only these are scored.

The paper's search is weight 0.  A joint score can rise again with the next chunk, so the alignment-synchronous search,
which stops when no active hypothesis is better than a complete one, may stop too soon.

Shape legend: ``c`` frames of a chunk, ``E`` size of an encoder frame, ``R`` hypotheses of a call, ``V`` size of the
decoder's tokenizer, ``C`` of CTC's.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_speechllm_xl.decoding.token_times import frames_back
from espnet_speechllm_xl.model.chunk_model import ChunkModel
from espnet_speechllm_xl.model.ctc_prefix_score import Prefix
from espnet_speechllm_xl.model.ctc_spelling import Spelling, Written
from espnet_speechllm_xl.model.decoder_steps import (
    Candidate,
    ChunkDecoder,
    Outputs,
    Past,
    Request,
    Result,
    make_results,
)
from espnet_speechllm_xl.settings import ConfigError

MARGIN = 12  # frames, 0.48 s
FIRST_TOKENS, MORE = 16, 4  # of each hypothesis, tokens that are scored first, and how many times more each time
ROUNDING = 1e-9  # of scores


@dataclass(frozen=True)
class JointPast(Past):
    """The past of one hypothesis, for the decoder and for CTC."""

    decoder: Past
    prefix: Prefix | None = None  # to CTC; None before the first chunk
    chunk_size: int = 0  # frames of the longest chunk so far: the last chunk may be shorter
    # (V + 1,) CTC's part of the score with each next output; where CTC has tokens of its own, (1,): with `$`.
    ctc_scores: Tensor | None = None
    written: Written = Written()  # the text's end, where CTC has tokens of its own

    def alone(self) -> "JointPast":
        """Return a copy that does not hold the buffer of the batch it came from."""
        return dataclasses.replace(self, decoder=self.decoder.alone())


class JointDecoder(ChunkDecoder[JointPast]):
    """The decoder of a model together with its CTC head; its frames are the encoder's, before the projection.

    Args:
        model: has a CTC head with the decoder's tokens.
        weight: of CTC, in 0 .. 1.
    """

    def __init__(self, model: ChunkModel, weight: float) -> None:
        assert model.ctc is not None  # check_model
        self._decoder, self._projection, self._ctc = model.decoder, model.projection, model.ctc
        self._weight, self._delay = weight, model.chunking.delay
        self.eoc = model.decoder.eoc

    def initial_past(self, context: int | None) -> JointPast:
        """Return the past of a hypothesis before any chunk; see :class:`ChunkDecoder`."""
        return JointPast(self._decoder.initial_past(context))

    @property
    def most_prompt_tokens(self) -> int:
        """Return the tokens of the longest prompt; see :class:`ChunkDecoder`."""
        return self._decoder.most_prompt_tokens

    def prompted_past(self, context: int | None, prompt: Sequence[int]) -> JointPast:
        """Return the past of a hypothesis that has read a prompt, of which CTC knows nothing; see ChunkDecoder."""
        return JointPast(self._decoder.prompted_past(context, prompt))

    @torch.no_grad()
    def extend(self, requests: Sequence[Request[JointPast]]) -> list[Result[JointPast]]:
        """Advance hypotheses; see :class:`ChunkDecoder`.

        The results' ``scores`` are joint, their ``log_probs`` the decoder's alone.
        """
        ctc_log_probs: dict[int, Tensor] = {}
        inputs: dict[int, Tensor] = {}  # of the decoder; both by the frames, which the hypotheses of a stream share
        for frames in (request.frames for request in requests if request.frames is not None):
            if id(frames) not in inputs:
                ctc_log_probs[id(frames)] = self._ctc(frames[None])[0]
                inputs[id(frames)] = self._projection(frames)
        steps: list[Request] = []
        prefixes = []
        for request in requests:
            key = id(request.frames)
            past = request.past.decoder
            steps.append(Request(past, request.chunk_id, inputs.get(key), request.token, request.last))
            prefixes.append(self._advanced(request, ctc_log_probs.get(key)))
        return self._joined(requests, self._decoder.extend(steps), prefixes)

    def _joined(
        self, requests: Sequence[Request[JointPast]], results: Sequence[Result], prefixes: Sequence[Prefix]
    ) -> list[Result[JointPast]]:
        """Return the joint results.

        Args:
            requests: of the search.
            results: the decoder's.
            prefixes: the text that each request leads to.
        """
        pasts, gains = zip(*map(self._scored, requests, results, prefixes), strict=True)
        log_probs = torch.stack([result.log_probs for result in results])
        scores = (1 - self._weight) * log_probs.double() + self._weight * torch.stack(gains)
        return make_results(pasts, log_probs, scores)

    def _scored(self, request: Request[JointPast], result: Result, prefix: Prefix) -> tuple[JointPast, Tensor]:
        """Return the past behind a request, and what each next output (V + 1,) adds to CTC's part of the score.

        Args:
            request: of the search.
            result: the decoder's.
            prefix: the text that the request leads to.
        """
        ctc_scores = torch.cat([prefix.next(), prefix.waiting(self._margin(request))[None]])
        before = request.past.ctc_scores
        counted = 0.0 if before is None else before[self.eoc if request.token is None else request.token]
        return JointPast(result.past, prefix, chunk_size(request), ctc_scores), ctc_scores - counted

    def _margin(self, request: Request[JointPast]) -> int:
        """Return the last frames, in which a token of the next chunk may have begun."""
        return 0 if request.last else MARGIN + self._delay

    def _extended(self, past: JointPast, prefix: Prefix, token: int) -> Prefix:
        """Return the prefix with a token of the decoder behind it.

        Args:
            past: of the hypothesis before the token.
            prefix: the same as ``past.prefix``.
            token: the token.
        """
        return prefix.extend(token)

    def _advanced(self, request: Request[JointPast], log_probs: Tensor | None) -> Prefix:
        """Return the prefix behind a request; ``log_probs`` (c, C + 1) are CTC's of its frames, if it has any."""
        prefix = request.past.prefix
        if log_probs is None:
            assert prefix is not None and request.token is not None  # a token follows the frames of its chunk
            return self._extended(request.past, prefix, request.token)
        if prefix is None:
            return Prefix.empty(log_probs)
        return prefix.grow(log_probs, frames_back(chunk_size(request), self._delay))


@dataclass(frozen=True)
class _Row:
    """A hypothesis of a call, to CTC."""

    prefix: Prefix
    written: Written
    counted: Tensor  # () CTC's part of its score
    ending: Tensor  # () the same with `$` behind it


class SpellingDecoder(JointDecoder):
    """A :class:`JointDecoder` whose CTC head has tokens of its own.

    Args:
        model: has such a CTC head.
        weight: of CTC, in 0 .. 1.
    """

    def __init__(self, model: ChunkModel, weight: float) -> None:
        super().__init__(model, weight)
        assert model.ctc is not None and model.ctc.spelling is not None
        self._spelling = model.ctc.spelling
        self._refused = torch.zeros(self.eoc + 1)
        self._refused[self._spelling.refused] = -math.inf

    def _extended(self, past: JointPast, prefix: Prefix, token: int) -> Prefix:
        _, spelled = self._spelling.advance(past.written, token)
        for label in spelled.ids:
            prefix = prefix.extend(label)
        return prefix

    def _joined(
        self, requests: Sequence[Request[JointPast]], results: Sequence[Result], prefixes: Sequence[Prefix]
    ) -> list[Result[JointPast]]:
        rows = list(map(self._row, requests, prefixes))
        log_probs = torch.stack([result.log_probs for result in results])
        self._refused = self._refused.to(log_probs)
        outputs = SpelledOutputs(log_probs, self._weight, self._spelling, rows, self._refused)
        return [
            Result(
                JointPast(result.past, row.prefix, chunk_size(request), row.ending[None], row.written), outputs, index
            )
            for index, (request, result, row) in enumerate(zip(requests, results, rows, strict=True))
        ]

    def _row(self, request: Request[JointPast], prefix: Prefix) -> _Row:
        """Return the hypothesis behind a request, whose text is ``prefix``."""
        past = request.past
        ending = prefix.waiting(self._margin(request), None if request.last else self._spelling.space)
        if request.token is not None:
            return _Row(prefix, self._spelling.advance(past.written, request.token)[0], prefix.value, ending)
        counted = torch.zeros_like(ending) if past.ctc_scores is None else past.ctc_scores[0]
        return _Row(prefix, past.written, counted, ending)


class SpelledOutputs(Outputs):
    """The next outputs of the hypotheses of a call, whose joint scores are computed when they are asked for.

    Args:
        log_probs: (R, V + 1) the decoder's; the last entry is `$`.
        weight: of CTC.
        spelling: writes the decoder's tokens in CTC's.
        rows: the R hypotheses.
        refused: (V + 1,) -inf for the tokens that no hypothesis may have, else 0.
    """

    def __init__(
        self, log_probs: Tensor, weight: float, spelling: Spelling, rows: Sequence[_Row], refused: Tensor
    ) -> None:
        super().__init__(log_probs)
        self._weight, self._spelling, self._rows, self._refused = weight, spelling, rows, refused
        self._end = log_probs.shape[1] - 1

    def best(self, row: int, count: int, closed: Tensor | None = None, margin: float = math.inf) -> list[Candidate]:
        """Return the best outputs of a hypothesis; see :class:`Outputs`."""
        return self._best_of(row, None if closed is None else closed.to(self.log_probs), count, margin)

    def best_with(
        self, rows: Sequence[int], added: Tensor, count: int, margin: float = math.inf
    ) -> list[list[Candidate]]:
        """Return the best outputs of some hypotheses; see :class:`Outputs`."""
        return [self._best_of(row, own, count, margin) for row, own in zip(rows, added, strict=True)]

    def _best_of(self, row: int, added: Tensor | None, count: int, margin: float) -> list[Candidate]:
        """Return the best outputs of a hypothesis.

        Tokens are scored in the order of the decoder, with what is added, until no other can be among the best.

        Args:
            row: the hypothesis.
            added: (V + 1,) to the scores; 0 for `$`; None: nothing.
            count: see :meth:`best`.
            margin: see :meth:`best`.
        """
        order = self.log_probs[row] + self._refused
        order = order if added is None else order + added / (1 - self._weight)
        most = self._joint(0.0, float(self._rows[row].prefix.value - self._rows[row].counted))
        seen: set[int] = set()
        ranked, least, size = [self.end(row)], -math.inf, max(FIRST_TOKENS, count)
        while True:
            top, tokens = order[:-1].topk(min(size, self._end))
            possible = zip(tokens.tolist(), top.tolist(), strict=True)
            fresh = [token for token, score in possible if token not in seen and score != -math.inf]
            seen.update(fresh)
            ranked += [one for one in self._scored(row, fresh, least, added) if not one.score < least]
            ranked.sort(key=lambda one: (not math.isnan(one.score), -one.score))
            worst = ranked[count - 1].score if len(ranked) >= count else -math.inf
            least = max(worst, ranked[0].score - margin)
            # A NaN ends it, too: the search refuses it.
            if size >= self._end or not self._joint(float(top[-1]), 0.0) + most >= least:
                ties = [one for one in ranked[count:] if one.score == worst > -math.inf]
                return ranked[:count] + ties
            size *= MORE

    def end(self, row: int) -> Candidate:
        """Return `$` as the next output; see :class:`Outputs`."""
        own, log_prob = self._rows[row], self.log_probs[row, self._end].item()
        return Candidate(self._end, self._joint(log_prob, float(own.ending - own.counted)), log_prob)

    def one(self, row: int, token: int) -> Candidate:
        """Return one output; see :class:`Outputs`."""
        return self.end(row) if token == self._end else self._scored(row, [token])[0]

    def _scored(
        self, row: int, tokens: list[int], least: float = -math.inf, added: Tensor | None = None
    ) -> list[Candidate]:
        """Return tokens as the next output of a hypothesis.

        Args:
            row: the hypothesis.
            tokens: to be scored.
            least: those that score less get any score that is less.
            added: (V + 1,) to the scores; None: nothing.
        """
        own, log_probs = self._rows[row], self.log_probs[row][tokens].double()
        texts = [self._spelling.advance(own.written, token)[1].ids for token in tokens]
        known = (1 - self._weight) * log_probs
        known = known if added is None else known + added[tokens]
        gains = own.prefix.values(texts, (least - ROUNDING - known) / self._weight + own.counted) - own.counted
        scores = known + self._weight * gains
        return list(map(Candidate, tokens, scores.tolist(), log_probs.tolist()))

    def _joint(self, log_prob: float, gain: float) -> float:
        """Return what an output adds to the score.

        Args:
            log_prob: the decoder's.
            gain: what it adds to CTC's part.
        """
        return (1 - self._weight) * log_prob + self._weight * gain


def joint_decoder(model: ChunkModel, weight: float) -> JointDecoder:
    """Return the decoder of a model together with its CTC head, whatever the head's tokens.

    Args:
        model: has a CTC head.
        weight: of CTC, in 0 .. 1.
    """
    own = model.ctc is not None and model.ctc.spelling is not None
    return (SpellingDecoder if own else JointDecoder)(model, weight)


def chunk_size(request: Request[JointPast]) -> int:
    """Return the frames of a chunk of the recording: of the longest one so far, as the last may be shorter."""
    return max(request.past.chunk_size, 0 if request.frames is None else len(request.frames))


def check_joint(has_chunks: bool, has_ctc: bool) -> None:
    """Raise ConfigError where a model cannot have joint CTC scoring."""
    if not has_chunks:
        raise ConfigError("search_conf ctc_weight: this model does not write chunk by chunk: leave it out")
    if not has_ctc:
        raise ConfigError("search_conf ctc_weight: this model has no CTC head (loss_conf ctc_weight is 0): set it to 0")


def check_model(model: object) -> None:
    """Raise ConfigError where ``model`` cannot have joint CTC scoring."""
    check_joint(*(getattr(model, name, None) is not None for name in ("chunking", "ctc")))


class JointModel(nn.Module):
    """A :class:`ChunkModel` whose decoder is the :class:`JointDecoder` of another one.

    Args:
        model: a :class:`ChunkModel` with a CTC head.
        weight: of CTC, in 0 .. 1.

    Raises:
        ConfigError: the model has no chunks or no CTC head.
    """

    def __init__(self, model: ChunkModel, weight: float) -> None:
        super().__init__()
        check_model(model)
        self.acoustic, self.ctc, self.chunking = model.acoustic, model.ctc, model.chunking
        self.projection = nn.Identity()
        self.decoder = joint_decoder(model, weight)
