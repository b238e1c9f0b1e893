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

The paper's search is weight 0.  A joint score can rise again with the next chunk, so the alignment-synchronous search,
which stops when no active hypothesis is better than a complete one, may stop too soon.

Shape legend: ``c`` frames of a chunk, ``E`` size of an encoder frame, ``V`` tokenizer size.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_speechllm_xl.decoding.token_times import frames_back
from espnet_speechllm_xl.model.chunk_model import ChunkModel
from espnet_speechllm_xl.model.ctc_prefix_score import Prefix
from espnet_speechllm_xl.model.decoder_steps import ChunkDecoder, Past, Request, Result, make_results
from espnet_speechllm_xl.settings import ConfigError

MARGIN = 12  # frames, 0.48 s


@dataclass(frozen=True)
class JointPast(Past):
    """The past of one hypothesis, for the decoder and for CTC."""

    decoder: Past
    prefix: Prefix | None = None  # to CTC; None before the first chunk
    chunk_size: int = 0  # frames of the longest chunk so far: the last chunk may be shorter
    ctc_scores: Tensor | None = None  # (V + 1,) CTC's part of the score with each next output

    def alone(self) -> "JointPast":
        """Return a copy that does not hold the buffer of the batch it came from."""
        return dataclasses.replace(self, decoder=self.decoder.alone())


class JointDecoder(ChunkDecoder[JointPast]):
    """The decoder of a model together with its CTC head; its frames are the encoder's, before the projection.

    Args:
        model: has a CTC head.
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
        results = self._decoder.extend(steps)
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
        margin = 0 if request.last else MARGIN + self._delay
        ctc_scores = torch.cat([prefix.next(), prefix.waiting(margin)[None]])
        before = request.past.ctc_scores
        counted = 0.0 if before is None else before[self.eoc if request.token is None else request.token]
        return JointPast(result.past, prefix, chunk_size(request), ctc_scores), ctc_scores - counted

    def _advanced(self, request: Request[JointPast], log_probs: Tensor | None) -> Prefix:
        """Return the prefix behind a request; ``log_probs`` (c, V + 1) are CTC's of its frames, if it has any."""
        prefix = request.past.prefix
        if log_probs is None:
            assert prefix is not None and request.token is not None  # a token follows the frames of its chunk
            return prefix.extend(request.token)
        if prefix is None:
            return Prefix.empty(log_probs)
        return prefix.grow(log_probs, frames_back(chunk_size(request), self._delay))


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
        self.decoder = JointDecoder(model, weight)
