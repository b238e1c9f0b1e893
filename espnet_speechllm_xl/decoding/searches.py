"""Hypotheses and the searches over them: greedy, chunk-synchronous beam, alignment-synchronous beam.

A search never calls the decoder.  Its methods are generators that yield the decoder steps they want
(``list[Request]``) and are sent what came out (``list[Result]``, same order); engine.py drives any number
of them together, so utterances, streams and hypotheses share the decoder's batches.

    inside a chunk    the chosen token is fed to the decoder         Request(row, chunk, token=w)
    after `$`         `$` itself is never fed; the hypothesis moves  Request(row, chunk + 1, frames=...)
                      on and is prefilled with the next chunk

A step is asked for only after pruning, hence only for hypotheses that live on.  A score is the plain sum of the
log-probabilities of tokens and `$`, in float64, without length normalisation (joint_ctc.py has others).  Equal
scores are ordered by token sequence, then by the chunks of the tokens, so results do not depend on the order
inside ``torch.topk``; scores that differ by rounding only (another batch, another device) are no ties and may
swap.

Shapes: ``q`` frames of a chunk, ``D`` encoding size, ``V`` text tokens, ``n`` hypotheses being expanded.
"""

import abc
import math
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.model.decoder_steps import Request

LOWEST = -sys.float_info.max  # finite: candidates below it are impossible (-inf) and never kept


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text with the chunk and the log-probability of each of its tokens (`$` is not among them)."""

    tokens: tuple = ()
    chunks: tuple = ()  # chunk in which each token was emitted
    token_scores: tuple = ()  # log-probability of each token
    score: float = 0.0  # log-probability of tokens and `$`; when recombined, of the paths merged
    capped: int = 0  # chunks that reached max_tokens_per_chunk, where only `$` is allowed
    _chunk: int = field(default=0, repr=False, compare=False)  # chunk of the next output
    _emitted: int = field(default=0, repr=False, compare=False)  # tokens in that chunk so far
    _forgotten: int = field(default=0, repr=False, compare=False)  # tokens that ChunkSync.forget has dropped
    _row: Any = field(default=None, repr=False, compare=False)
    _log_probs: Tensor | None = field(default=None, repr=False, compare=False)
    _scores: Tensor | None = field(default=None, repr=False, compare=False)

    def _public(self):
        """Without the decoder state, so that a result kept by a caller does not keep a cache alive."""
        return replace(self, _row=None, _log_probs=None, _scores=None)


def _rank(hypothesis):
    return -hypothesis.score, hypothesis.tokens, hypothesis.chunks


def shared(a, b):
    """How many first elements of two sequences are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def log_add(a, b):
    """log(exp(a) + exp(b)) of two floats."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class Search(abc.ABC):
    """What the searches share: expanding, pruning, n-best.

    ``config`` is a :class:`~espnet_speechllm_xl.config.SearchConfig`, ``initial_row`` the decoder state before the
    first chunk, ``eoc`` the index V of `$`.  ``openers`` (V,) bool, if given, says which tokens may be the first of
    a chunk: those that begin a word, for a model that was trained with whole words in a chunk; the first token of all
    is free.  A generator that is dropped midway leaves the search as it was.
    """

    def __init__(self, config, initial_row, eoc, openers=None):
        self.config = config
        self.eoc = eoc
        # (V,) added to the scores of a chunk's first token
        self._closed = None if openers is None else torch.zeros(eoc).masked_fill(~openers, -math.inf)
        self.beam = [Hypothesis(_row=initial_row)]  # best first

    @abc.abstractmethod
    def advance(self, frames, last=False):
        """Generator that takes the next chunk: ``frames`` (q, D), q >= 1; only the last chunk may be shorter.

        ``last``: it is known that no audio follows.
        """

    @abc.abstractmethod
    def finish(self):
        """Generator that returns the n-best list of :class:`Hypothesis`: distinct texts, best first.

        Without any chunk that is one empty hypothesis with score 0.
        """

    def best(self):
        """The best :class:`Hypothesis` so far."""
        return self.beam[0]._public()

    def settled(self):
        """Number of leading tokens that all current hypotheses share; it never decreases."""
        return shared(min(h.tokens for h in self.beam), max(h.tokens for h in self.beam))

    def _nbest(self, hypotheses):
        texts = {}
        for hypothesis in sorted(hypotheses, key=_rank):
            texts.setdefault(hypothesis.tokens, hypothesis._public())
        return list(texts.values())[: self.config.nbest]

    def _extend(self, hypotheses, chunks, last):
        """Feed each hypothesis its last output; ``chunks[k]`` are the frames (q, D) of chunk k, ``last`` the last k."""
        results = yield [Request(h._row, h._chunk, **_input(h, chunks), last=h._chunk == last) for h in hypotheses]
        return [
            replace(h, _row=r.row, _log_probs=r.log_probs, _scores=r.log_probs if r.scores is None else r.scores)
            for h, r in zip(hypotheses, results, strict=True)
        ]

    def _expand(self, hypotheses):
        """Log-probabilities and float64 total scores (n, V + 1) of every next output; at the cap only of `$`."""
        steps = torch.stack([h._log_probs for h in hypotheses]).double()
        if steps.shape[1] != self.eoc + 1:
            raise UserError(
                f"the decoder gave {steps.shape[1]} log-probabilities for {self.eoc} tokens and `$`: "
                "use the token list that the model was trained with"
            )
        totals = torch.stack([h._scores for h in hypotheses]).double()
        totals += totals.new_tensor([h.score for h in hypotheses])[:, None]
        full = [i for i, h in enumerate(hypotheses) if h._emitted >= self.config.max_tokens_per_chunk]
        if full:
            totals[full, : self.eoc] = -math.inf
        if self._closed is not None:
            opening = [not h._emitted and bool(h.tokens or h._forgotten) for h in hypotheses]
            totals[opening, : self.eoc] += self._closed.to(totals)
        return steps, totals

    def _prune(self, hypotheses, steps, totals, ended=()):
        """The best B of all expansions and of the hypotheses ``ended``, best first."""
        flat = totals.flatten()
        top = torch.topk(flat, min(self.config.beam_size, len(flat))).values.tolist()
        if math.isnan(top[0]) or (top[0] < LOWEST and not ended):
            raise UserError(
                f"the decoder gave no usable log-probabilities in chunk {hypotheses[0]._chunk} (NaN or all -inf): "
                "check the checkpoint, or decode in float32"
            )
        # topk orders ties as it likes: take every candidate that reaches its last value, then rank
        picks = (flat >= max(top[-1], LOWEST)).nonzero().squeeze(1)
        candidates = list(ended)
        scores, steps = flat[picks].tolist(), steps.flatten()[picks].tolist()
        for index, score, step in zip(picks.tolist(), scores, steps, strict=True):
            source, token = divmod(index, self.eoc + 1)
            candidates.append(self._grow(hypotheses[source], token, score, step))
        return sorted(candidates, key=_rank)[: self.config.beam_size]

    def _grow(self, h, token, score, step):
        if token == self.eoc:
            capped = h.capped + (h._emitted >= self.config.max_tokens_per_chunk)
            return Hypothesis(h.tokens, h.chunks, h.token_scores, score, capped, h._chunk + 1, 0, h._forgotten, h._row)
        tokens, chunks, scores = (*h.tokens, token), (*h.chunks, h._chunk), (*h.token_scores, step)
        return Hypothesis(tokens, chunks, scores, score, h.capped, h._chunk, h._emitted + 1, h._forgotten, h._row)


class ChunkSync(Search):
    """Chunk-synchronous beam search, live and offline; greedy search is its beam of 1.

    Within a chunk the hypotheses that have ended it (`$`) and all expansions of the others are pruned together to
    the best B, until those have all ended it.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.chunk = 0  # chunks taken

    def advance(self, frames, last=False):
        chunk = self.chunk
        _check_chunk(frames, chunk)
        ended, open_ = [], self.beam
        while open_:
            open_ = yield from self._extend(open_, {chunk: frames}, chunk if last else None)
            steps, totals = self._expand(open_)
            if self.config.recombine:
                ended = self._recombine(ended, open_, totals)
            best = self._prune(open_, steps, totals, ended)
            ended = [h for h in best if h._chunk > chunk]
            open_ = [h for h in best if h._chunk == chunk]
        self.beam, self.chunk = ended, chunk + 1

    def finish(self):
        yield from ()
        return self._nbest(self.beam)

    def commit(self, count):
        """Drop the hypotheses that do not begin with the first ``count`` tokens of the best."""
        prefix = self.beam[0].tokens[:count]
        self.beam = [h for h in self.beam if h.tokens[:count] == prefix]

    def commit_until(self, end):
        """Drop the hypotheses whose tokens of the chunks that end by ``end`` (in chunks) are not those of the best.

        Returns the number of these tokens.
        """

        def old(hypothesis):
            return hypothesis.tokens[: sum(chunk + 1 <= end for chunk in hypothesis.chunks)]

        of_best = old(self.beam[0])
        self.beam = [h for h in self.beam if old(h) == of_best]
        return len(of_best)

    @property
    def oldest(self):
        """The first chunk that any hypothesis has a token in; without tokens, the next chunk."""
        return min((h.chunks[0] for h in self.beam if h.chunks), default=self.chunk)

    def forget(self, count):
        """Drop the first ``count`` tokens, which all hypotheses share, from their results; scores stay totals."""
        self.beam = [
            replace(
                h,
                tokens=h.tokens[count:],
                chunks=h.chunks[count:],
                token_scores=h.token_scores[count:],
                _forgotten=h._forgotten + count,
            )
            for h in self.beam
        ]

    def rest(self):
        """Let go of the batches that the last steps ran in, as no step may follow for long."""
        rows = {id(h._row): h._row.alone() for h in self.beam}
        self.beam = [replace(h, _row=rows[id(h._row)]) for h in self.beam]

    def _recombine(self, ended, open_, totals):
        """Merge each ended hypothesis with the expansion by `$` that has its text; edits ``totals``.

        No other two candidates can agree: open hypotheses are of distinct texts, with equally many tokens in the chunk.
        """
        sources = {h.tokens: i for i, h in enumerate(open_)}
        kept = []
        for h in ended:
            source = sources.get(h.tokens)
            if source is None:
                kept.append(h)
                continue
            other = totals[source, self.eoc].item()
            both = log_add(h.score, other)
            if h.score >= other:
                kept.append(replace(h, score=both))
            totals[source, self.eoc] = -math.inf if h.score >= other else both
        return kept


class AlignmentSync(Search):
    """Alignment-synchronous beam search (Saon et al. 2020 for transducers; the paper's), offline.

    All active hypotheses have the same number of outputs, `$` counted.  One that emits `$` in the last chunk leaves
    the beam for the pool of complete ones; the search stops when the best complete score is at least the best
    active one (scores only fall), so the n-best list can be shorter than asked for.  With ``recombine`` merging raises
    scores, and now and then it stops before a text that would have come out better.  Chunks are only collected by
    :meth:`advance`; :meth:`best` and :meth:`settled` know nothing before :meth:`finish` has run.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.frames = []  # (q, D) of each chunk
        self._last = None  # the last chunk, when known
        self._start = self.beam

    def advance(self, frames, last=False):
        _check_chunk(frames, len(self.frames))
        yield from ()
        self.frames.append(frames)
        self._last = len(self.frames) - 1 if last else None

    def finish(self):
        complete, active = ([], self._start) if self.frames else (self._start, [])
        while active and not self._done(complete, active):
            active = yield from self._extend(active, self.frames, self._last)
            steps, totals = self._expand(active)
            if self.config.recombine:
                self._recombine(active, totals)
            best = self._prune(active, steps, totals)
            complete = complete + [h._public() for h in best if h._chunk == len(self.frames)]
            active = [h for h in best if h._chunk < len(self.frames)]
        self.beam = sorted(complete, key=_rank)
        return self._nbest(self.beam)

    @staticmethod
    def _done(complete, active):
        return bool(complete) and max(h.score for h in complete) >= active[0].score

    def _recombine(self, active, totals):
        """Merge expansions of equal text in place: ``x w`` that emits `$`, and ``x`` that emits ``w``.

        With equally many outputs, equal texts are in the same chunk, and no more than these two can agree.
        """
        sources = {h.tokens: i for i, h in enumerate(active)}
        for i, h in enumerate(active):
            j = sources.get(h.tokens[:-1]) if h.tokens else None
            if j is None:
                continue
            ending, growing = (i, self.eoc), (j, h.tokens[-1])
            a, b = totals[ending].item(), totals[growing].item()
            totals[ending] = log_add(a, b) if a >= b else -math.inf
            totals[growing] = log_add(a, b) if a < b else -math.inf


def _input(hypothesis, chunks):
    if hypothesis._emitted:
        return {"token": hypothesis.tokens[-1]}
    return {"frames": chunks[hypothesis._chunk]}


def _check_chunk(frames, chunk):
    if frames.dim() != 2 or len(frames) == 0:
        raise ValueError(f"chunk {chunk} has shape {tuple(frames.shape)}: give (frames, size), 1 frame at least")


SEARCHES = {"greedy": ChunkSync, "chunk_sync": ChunkSync, "alsd": AlignmentSync}  # alsd: the paper's


def make_search(config, initial_row, eoc, openers=None):
    """The :class:`Search` that ``config.method`` names; greedy has a beam of 1.  Raises UserError for another name."""
    if config.method not in SEARCHES:
        raise UserError(f"search '{config.method}': use one of {', '.join(SEARCHES)}")
    if config.method == "greedy":
        config = replace(config, beam_size=1)
    return SEARCHES[config.method](config, initial_row, eoc, openers)
