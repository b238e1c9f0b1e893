"""Joint CTC scoring of what the decoder writes (Watanabe et al. 2017; for streams, Moritz et al. 2019).

A hypothesis scores

    (1 - weight) log P(tokens and `$`; the decoder)  +  weight log P(a text that begins with the tokens; CTC)

where CTC, the auxiliary head of training, hears the audio up to the end of the hypothesis' chunk.  A word that the
decoder leaves out at the border of two chunks, as each leaves it to the other, costs CTC's part when the word behind
it is written; a word that it writes twice, at once.  While a hypothesis has ended its chunk and written nothing in the
next, CTC's part is that no further token came but in the last ``MARGIN`` frames (and those of a label delay):
otherwise it would be free to leave out words.  In those frames the beginning of the next chunk's first word may be
heard already.  Behind the last chunk no word comes: its `$` counts as that there is no further token at all.  (Without
look-ahead of the encoder the last chunk is not known to be the last, and counts as the others.)

The paper has no such thing: its search is weight 0.  As a score can rise again with the next chunk, the alignment-
synchronous search, which stops when no active hypothesis is better than a complete one, may stop too soon.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espnet_speechllm_xl.decoding.token_times import frames_back
from espnet_speechllm_xl.model.ctc_prefix_score import Prefix
from espnet_speechllm_xl.settings import ConfigError

MARGIN = 12  # frames, 0.48 s


@dataclass(frozen=True)
class JointRow:
    """One hypothesis' past.  Never changes: forks share it."""

    past: Any  # of the decoder
    prefix: Prefix | None = None  # to CTC; None before the first chunk
    chunk: int = 0  # frames of a chunk: the last one may be shorter
    heard: torch.Tensor | None = None  # (V + 1,) CTC's part of the score with each next output

    def alone(self):
        """A copy that does not hold the buffer of the batch it came from."""
        return dataclasses.replace(self, past=self.past.alone())


class JointDecoder:
    """The decoder of a model, and its CTC head: takes the encoder's frames, as they are before the projection.

    Args:
        model: :class:`~espnet_speechllm_xl.systems.base_model.ChunkwiseModel`, or another that writes chunk by chunk.
        weight: of CTC.
    """

    def __init__(self, model, weight):
        self._model, self._weight = model, weight
        self._margin = MARGIN + model.chunking.delay
        self.eoc = model.decoder.eoc

    def initial_row(self, context):
        """The past of a hypothesis before any chunk, which will see ``context`` previous ones (None: all)."""
        return JointRow(self._model.decoder.initial_row(context))

    @torch.no_grad()
    def extend(self, requests):
        """Advance hypotheses; takes and gives what the decoder's own ``extend`` does, with frames (c, E).

        The results' ``scores`` are joint, their ``log_probs`` those of the decoder alone.
        """
        chunks = {}  # the hypotheses of a stream share its chunks
        for request in requests:
            if request.frames is not None and id(request.frames) not in chunks:
                heard = self._model.ctc(request.frames[None])[0]
                chunks[id(request.frames)] = heard, self._model.projection(request.frames)
        steps, prefixes = [], []
        for request in requests:
            heard, inputs = chunks.get(id(request.frames), (None, None))
            steps.append(dataclasses.replace(request, row=request.row.past, frames=inputs))
            prefixes.append(self._advanced(request, heard))
        results = self._model.decoder.extend(steps)
        return [self._result(*each) for each in zip(requests, results, prefixes, strict=True)]

    def _result(self, request, result, prefix):
        heard = torch.cat([prefix.next(), prefix.waiting(0 if request.last else self._margin)[None]])
        before = request.row.heard
        counted = 0.0 if before is None else before[self.eoc if request.token is None else request.token]
        scores = (1 - self._weight) * result.log_probs.double() + self._weight * (heard - counted)
        row = JointRow(result.row, prefix, chunk_size(request), heard)
        return dataclasses.replace(result, row=row, scores=scores)

    def _advanced(self, request, heard):
        """The prefix behind a request; ``heard``: log-probabilities (c, V + 1) of its frames, if it has any."""
        prefix = request.row.prefix
        if request.frames is None:
            return prefix.extend(request.token)
        if prefix is None:
            return Prefix.empty(heard)
        return prefix.grow(heard, frames_back(chunk_size(request), self._model.chunking.delay))


def chunk_size(request):
    """Frames of a chunk of the recording: of the longest one so far, as the last may be shorter."""
    return max(request.row.chunk, 0 if request.frames is None else len(request.frames))


def check_joint(has_chunks: bool, has_ctc: bool) -> None:
    """Raise ConfigError where a model cannot have joint CTC scoring."""
    if not has_chunks:
        raise ConfigError("search_conf ctc_weight: this model does not write chunk by chunk: leave it out")
    if not has_ctc:
        raise ConfigError("search_conf ctc_weight: this model has no CTC head (loss_conf ctc_weight is 0): set it to 0")


def check_model(model: nn.Module) -> None:
    """:func:`check_joint` of a model."""
    check_joint(*(getattr(model, name, None) is not None for name in ("chunking", "ctc")))


class JointModel(nn.Module):
    """A model as streams.py and engine.py want it, whose decoder is a :class:`JointDecoder`.

    Raises ConfigError for a model without chunks or without CTC head.
    """

    def __init__(self, model, weight):
        super().__init__()
        check_model(model)
        self.acoustic, self.ctc, self.chunking = model.acoustic, model.ctc, model.chunking
        self.projection = nn.Identity()
        self.decoder = JointDecoder(model, weight)
