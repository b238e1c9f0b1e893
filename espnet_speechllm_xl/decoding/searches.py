"""Hypotheses and the searches over them: greedy, chunk-synchronous beam, alignment-synchronous beam.

A search never calls the decoder.  Its methods are generators: they yield the decoder steps that they want
(``list[Request]``) and are sent the results (``list[Result]``, same order).  engine.py drives any number of them
together, so that utterances, streams and hypotheses share the decoder's batches.

    inside chunk k    the chosen token is fed to the decoder         Request(past, k, token=w)
    after `$`         `$` itself is never fed; the hypothesis moves  Request(past, k + 1, frames=...)
                      on and is prefilled with the next chunk

A step is asked for only after pruning, hence only for hypotheses that live on.  The best outputs are picked for all
hypotheses of a call at once (``Outputs`` of decoder_steps.py), and only these are looked at here.  A score is the plain
sum of the log-probabilities of tokens and `$`, in float64, without length normalisation (joint_ctc.py has others).
Phrases that are expected raise it (phrases.py).
Equal scores are ordered by token sequence, then by the chunks of the tokens, so that results do not depend on the order
inside ``torch.topk``.  Scores that differ by rounding only (another batch, another device) are no ties and may swap.

A new search derives from :class:`Search`, or from :class:`LiveSearch` if a stream may use it, and is named in
:data:`SEARCHES`.

Shapes: ``q`` frames of a chunk, ``D`` encoding size, ``V`` text tokens.
"""

import abc
import copy
import functools
import math
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from espnet_speechllm_xl.config import SearchConfig
from espnet_speechllm_xl.decoding.phrases import PhraseTree, Place
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.model.decoder_steps import Candidate, Past, Request, Result

LOWEST = -sys.float_info.max  # finite: candidates below it are impossible (-inf) and never kept

Requests = list[Request]
Results = list[Result]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text with the chunk and the log-probability of each of its tokens (`$` is not among them)."""

    tokens: tuple[int, ...] = ()
    chunk_ids: tuple[int, ...] = ()  # chunk in which each token was emitted
    token_scores: tuple[float, ...] = ()  # log-probability of each token
    score: float = 0.0  # log-probability of tokens and `$`; when recombined, of the paths merged; and worth of phrases
    capped: int = 0  # chunks that reached max_tokens_per_chunk, where only `$` is allowed
    _chunk_id: int = field(default=0, repr=False, compare=False)  # chunk of the next output
    _emitted: int = field(default=0, repr=False, compare=False)  # tokens in that chunk so far
    _forgotten: int = field(default=0, repr=False, compare=False)  # tokens that ChunkSync.forget has dropped
    _past: Past | None = field(default=None, repr=False, compare=False)  # the decoder's; None: of a result
    _place: Place = field(default=PhraseTree.start, repr=False, compare=False)  # of its text, to the phrases

    def _public(self) -> "Hypothesis":
        """Return it without the decoder's past, so that a result kept by a caller keeps no cache alive."""
        return replace(self, _past=None)

    def _live_past(self) -> Past:
        """Return the decoder's past, which every hypothesis in a beam has."""
        assert self._past is not None
        return self._past

    def _request(self, chunks: Mapping[int, Tensor] | Sequence[Tensor], last: int | None) -> Request:
        """Return the decoder step that its last output asks for; see :meth:`Search._expand`."""
        is_last = self._chunk_id == last
        if self._emitted:
            return Request(self._live_past(), self._chunk_id, token=self.tokens[-1], last=is_last)
        return Request(self._live_past(), self._chunk_id, frames=chunks[self._chunk_id], last=is_last)


def _rank(hypothesis: Hypothesis) -> tuple:
    return -hypothesis.score, hypothesis.tokens, hypothesis.chunk_ids


def shared(a: Sequence, b: Sequence) -> int:
    """Count the first elements that two sequences have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def log_add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class Search(abc.ABC):
    """A search over the hypotheses of one recording: expanding, pruning, n-best.

    A generator that is dropped midway leaves the search as it was.

    Args:
        config: beam, caps and the size of the n-best list.
        initial_past: the decoder's, before the first chunk.
        eoc: the index V of `$`.
        word_starts: (V,) bool, tokens that may be the first of a chunk; None: all.  For a model that was trained with
            whole words in a chunk these are the tokens that begin a word.  The first token of all is free.
        phrases: that are expected; None: there are none.
    """

    def __init__(
        self,
        config: SearchConfig,
        initial_past: Past,
        eoc: int,
        word_starts: Tensor | None = None,
        phrases: PhraseTree | None = None,
    ) -> None:
        self.config = config
        self.eoc = eoc
        self.phrases = phrases
        self._word_starts = word_starts
        self.beam = self._start = [Hypothesis(_past=initial_past)]  # best first

    @abc.abstractmethod
    def advance(self, frames: Tensor, last: bool = False) -> Generator[Requests, Results, None]:
        """Take the next chunk; a generator of decoder steps.

        Args:
            frames: (q, D), q >= 1; only the last chunk may be shorter than the others.
            last: it is known that no audio follows.
        """

    @abc.abstractmethod
    def finish(self) -> Generator[Requests, Results, list[Hypothesis]]:
        """Return the n-best list, distinct texts, best first; a generator of decoder steps.

        Without any chunk that is one empty hypothesis with score 0.
        """

    def best(self) -> Hypothesis:
        """Return the best hypothesis so far."""
        return self.beam[0]._public()

    def settled(self) -> int:
        """Count the leading tokens that all current hypotheses share; the number never decreases."""
        return shared(min(h.tokens for h in self.beam), max(h.tokens for h in self.beam))

    def _nbest(self, hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
        texts: dict[tuple[int, ...], Hypothesis] = {}
        for hypothesis in sorted(hypotheses, key=_rank):
            texts.setdefault(hypothesis.tokens, hypothesis._public())
        return list(texts.values())[: self.config.nbest]

    def _expand(
        self, hypotheses: Sequence[Hypothesis], chunks: Mapping[int, Tensor] | Sequence[Tensor], last: int | None
    ) -> Generator[Requests, Results, list["_Expansion"]]:
        """Feed each hypothesis its last output; return what may come next, best first, at the cap only `$`.

        Args:
            hypotheses: to be extended.
            chunks: frames (q, D) of the chunk that each id names.
            last: id of the chunk behind which no audio follows; None: not known.
        """
        results = yield [h._request(chunks, last) for h in hypotheses]
        given = results[0].outputs.log_probs.shape[1]
        if given != self.eoc + 1:
            raise UserError(
                f"the decoder gave {given} log-probabilities for {self.eoc} tokens and `$`: "
                "use the token list that the model was trained with"
            )
        found = [None] * len(results) if self.phrases is None else self._swayed(self.phrases, hypotheses, results)
        return [
            _Expansion(h, result, self._candidates(h, result, best))
            for h, result, best in zip(hypotheses, results, found, strict=True)
        ]

    def _candidates(
        self, h: Hypothesis, result: Result, best: list[Candidate] | None
    ) -> dict[int, tuple[float, float]]:
        """Return the next outputs that can be among the best B: their total scores and log-probabilities.

        Args:
            h: the hypothesis.
            result: of its decoder step.
            best: these outputs, where phrases sway them.
        """
        if h._emitted >= self.config.max_tokens_per_chunk:
            best = [result.outputs.end(result.row)]
        elif best is None:
            best = result.outputs.best(result.row, self._count, self._closed(h), self.config.margin)
        return {token: (h.score + score, log_prob) for token, score, log_prob in best}

    def _swayed(self, phrases: PhraseTree, hypotheses: Sequence[Hypothesis], results: Results) -> list[list[Candidate]]:
        """Return the next outputs of each hypothesis that can be among the best B, with what phrases add to them."""
        found: list[list[Candidate]] = [[]] * len(results)
        for outputs in dict.fromkeys(result.outputs for result in results):  # of each kind of step
            own = [index for index, result in enumerate(results) if result.outputs is outputs]
            added = phrases.added([hypotheses[index]._place for index in own], outputs.scores.device)
            for row, index in enumerate(own):
                closed = self._closed(hypotheses[index])
                if closed is not None:
                    added[row] += closed.to(added)
            rows = [results[index].row for index in own]
            best = outputs.best_with(rows, added, self._count, self.config.margin)
            for index, each in zip(own, best, strict=True):
                found[index] = each
        return found

    @property
    def _count(self) -> int:
        """Return how many outputs of a hypothesis can be among the best B."""
        # Merging removes one output for each other hypothesis at most.
        return self.config.beam_size * (2 if self.config.recombine else 1)

    def _closed(self, h: Hypothesis) -> Tensor | None:
        """Return what is added (V + 1,) to the scores of the next output where not all may be that; else None."""
        return None if self._word_starts is None or not self._opens(h) else _closed(self._word_starts)

    @staticmethod
    def _opens(h: Hypothesis) -> bool:
        """Tell whether the next token is the first of a chunk, and not of all."""
        return not h._emitted and bool(h.tokens or h._forgotten)

    def _allows(self, h: Hypothesis, token: int) -> bool:
        """Tell whether ``token`` may be the next output."""
        if token == self.eoc:
            return True
        starts = self._word_starts is None or not self._opens(h) or bool(self._word_starts[token])
        return starts and h._emitted < self.config.max_tokens_per_chunk

    def _total(self, expansion: "_Expansion", token: int) -> float:
        """Return the score of a hypothesis with one more output."""
        if token not in expansion.candidates and self._allows(expansion.hypothesis, token):
            h = expansion.hypothesis
            _, score, log_prob = expansion.result.outputs.one(expansion.result.row, token)
            added = 0.0 if self.phrases is None or token == self.eoc else self.phrases.advance(h._place, token)[1]
            expansion.candidates[token] = (h.score + score + added, log_prob)
        return expansion.candidates.get(token, (-math.inf,))[0]

    def _prune(self, expansions: Sequence["_Expansion"], ended: Sequence[Hypothesis] = ()) -> list[Hypothesis]:
        """Return the best B of all expansions and of the hypotheses ``ended``, best first, within the margin."""
        scored = [
            (total, log_prob, token, expansion)
            for expansion in expansions
            for token, (total, log_prob) in expansion.candidates.items()
        ]
        totals = sorted((total for total, *_ in scored if not total < LOWEST), reverse=True)
        if any(map(math.isnan, totals)) or not (totals or ended):
            raise UserError(
                f"the decoder gave no usable log-probabilities in chunk {expansions[0].hypothesis._chunk_id} (NaN or "
                "all -inf): check the checkpoint, or decode in float32"
            )
        # Every candidate as good as the last one is grown: ties are ranked by their text.
        best = max([*totals[:1], *(h.score for h in ended)])
        least = max(min(totals[: self.config.beam_size], default=math.inf), best - self.config.margin)
        grown = [self._grow(*each) for each in scored if each[0] >= least]
        kept = sorted([*ended, *grown], key=_rank)[: self.config.beam_size]
        return [h for h in kept if h.score >= best - self.config.margin]

    def _grow(self, total: float, log_prob: float, token: int, expansion: "_Expansion") -> Hypothesis:
        """Return a hypothesis with one more output.

        Args:
            total: its score.
            log_prob: of the output.
            token: the output.
            expansion: of the hypothesis.
        """
        h, past = expansion.hypothesis, expansion.result.past
        if token == self.eoc:
            capped = h.capped + (h._emitted >= self.config.max_tokens_per_chunk)
            return Hypothesis(
                h.tokens, h.chunk_ids, h.token_scores, total, capped, h._chunk_id + 1, 0, h._forgotten, past, h._place
            )
        tokens, chunk_ids, scores = (*h.tokens, token), (*h.chunk_ids, h._chunk_id), (*h.token_scores, log_prob)
        place = h._place if self.phrases is None else self.phrases.advance(h._place, token)[0]
        return Hypothesis(
            tokens, chunk_ids, scores, total, h.capped, h._chunk_id, h._emitted + 1, h._forgotten, past, place
        )

    def _at_end(self, h: Hypothesis) -> Hypothesis:
        """Return a hypothesis whose text ends here, so that phrases that are not whole are worth nothing."""
        if self.phrases is None:
            return h
        return replace(h, score=h.score + self.phrases.end(h._place), _place=self.phrases.start)


@functools.lru_cache(maxsize=4)
def _closed(word_starts: Tensor) -> Tensor:
    """Return what is added (V + 1,) to the scores of a chunk's first token, where ``word_starts`` (V,) may be that."""
    return torch.cat([torch.zeros(len(word_starts)).masked_fill(~word_starts, -math.inf), torch.zeros(1)])


@dataclass(frozen=True, slots=True)
class _Expansion:
    """A hypothesis with its next outputs."""

    hypothesis: Hypothesis
    result: Result  # of its decoder step
    candidates: dict[int, tuple[float, float]]  # total score and log-probability of each output


class LiveSearch(Search):
    """A search that a stream can use: it knows its hypotheses after every chunk, and lets go of the past.

    Any other search needs all audio: it knows nothing before :meth:`finish`.

    Attributes:
        beam: hypotheses after the last chunk, best first, all with equally many tokens forgotten.
        num_chunks: chunks taken so far.
    """

    num_chunks: int = 0

    @property
    @abc.abstractmethod
    def oldest(self) -> int:
        """Return the first chunk in which any hypothesis has a token; without tokens, the next chunk."""

    @abc.abstractmethod
    def commit(self, count: int) -> None:
        """Drop the hypotheses that do not begin with the first ``count`` tokens of the best."""

    @abc.abstractmethod
    def commit_until(self, end: float) -> int:
        """Drop the hypotheses that disagree with the best about the tokens of the chunks that end by ``end``.

        Args:
            end: a time in chunks, from the start of the recording; negative: nothing is dropped.

        Returns:
            The number of these tokens.
        """

    @abc.abstractmethod
    def forget(self, count: int) -> None:
        """Remove the first ``count`` tokens from all hypotheses, which share them; scores stay totals."""

    @abc.abstractmethod
    def preview(self, frames: Tensor) -> Generator[Requests, Results, tuple[int, ...]]:
        """Return what the best hypothesis would write if the next chunk ended here; a generator of decoder steps.

        The search stays as it is.

        Args:
            frames: (q, D), q >= 1, of the next chunk so far.
        """

    @abc.abstractmethod
    def restart(self) -> None:
        """Forget all chunks: the next one is the first of another recording."""

    @abc.abstractmethod
    def rest(self) -> None:
        """Let go of the batches in which the last steps ran, as no step may follow for long."""

    @abc.abstractmethod
    def end(self) -> None:
        """Take back what phrases that are not whole were worth, as nothing follows; order the hypotheses anew."""

    def expect(self, phrases: PhraseTree | None) -> None:
        """Expect phrases in place of those that it was made with; before the first chunk."""
        if self.num_chunks:
            raise ValueError("the search has begun: phrases must be known before the first chunk")
        self.phrases = phrases


class ChunkSync(LiveSearch):
    """Chunk-synchronous beam search, live and offline; greedy search is its beam of 1.

    Within a chunk the hypotheses that have ended it (`$`) and all expansions of the others are pruned together to
    the best B, until those have all ended it.
    """

    def advance(self, frames: Tensor, last: bool = False) -> Generator[Requests, Results, None]:
        """Take the next chunk; see :class:`Search`."""
        chunk_id = self.num_chunks
        _check_chunk(frames, chunk_id)
        ended: list[Hypothesis] = []
        open_ = self.beam
        while open_:
            expansions = yield from self._expand(open_, {chunk_id: frames}, chunk_id if last else None)
            if self.config.recombine:
                ended = self._recombine(ended, expansions)
            best = self._prune(expansions, ended)
            ended = [h for h in best if h._chunk_id > chunk_id]
            open_ = [h for h in best if h._chunk_id == chunk_id]
        self.beam, self.num_chunks = ended, chunk_id + 1

    def finish(self) -> Generator[Requests, Results, list[Hypothesis]]:
        """Return the n-best list; see :class:`Search`."""
        yield from ()
        self.end()
        return self._nbest(self.beam)

    def end(self) -> None:
        """Take back what parts of phrases were worth; see :class:`LiveSearch`."""
        if self.phrases is not None:
            self.beam = sorted(map(self._at_end, self.beam), key=_rank)

    def commit(self, count: int) -> None:
        """Drop hypotheses; see :class:`LiveSearch`."""
        prefix = self.beam[0].tokens[:count]
        self.beam = [h for h in self.beam if h.tokens[:count] == prefix]

    def commit_until(self, end: float) -> int:
        """Drop hypotheses; see :class:`LiveSearch`."""

        def old(hypothesis: Hypothesis) -> tuple[int, ...]:
            return hypothesis.tokens[: sum(chunk_id + 1 <= end for chunk_id in hypothesis.chunk_ids)]

        of_best = old(self.beam[0])
        self.beam = [h for h in self.beam if old(h) == of_best]
        return len(of_best)

    @property
    def oldest(self) -> int:
        """Return the first chunk with a token; see :class:`LiveSearch`."""
        return min((h.chunk_ids[0] for h in self.beam if h.chunk_ids), default=self.num_chunks)

    def forget(self, count: int) -> None:
        """Remove tokens; see :class:`LiveSearch`."""
        self.beam = [
            replace(
                h,
                tokens=h.tokens[count:],
                chunk_ids=h.chunk_ids[count:],
                token_scores=h.token_scores[count:],
                _forgotten=h._forgotten + count,
            )
            for h in self.beam
        ]

    def preview(self, frames: Tensor) -> Generator[Requests, Results, tuple[int, ...]]:
        """Return what a greedy search writes; see :class:`LiveSearch`."""
        ahead = copy.copy(self)
        ahead.config, ahead.beam = replace(self.config, beam_size=1), self.beam[:1]
        yield from ahead.advance(frames)
        return ahead.beam[0].tokens[len(self.beam[0].tokens) :]

    def restart(self) -> None:
        """Forget all chunks; see :class:`LiveSearch`."""
        self.beam, self.num_chunks = self._start, 0

    def rest(self) -> None:
        """Let go of batches; see :class:`LiveSearch`."""
        pasts = {id(h._past): h._live_past().alone() for h in self.beam}
        self.beam = [replace(h, _past=pasts[id(h._past)]) for h in self.beam]

    def _recombine(self, ended: Sequence[Hypothesis], expansions: Sequence[_Expansion]) -> list[Hypothesis]:
        """Merge each ended hypothesis with the expansion by `$` that has its text; edits ``expansions``.

        No other two candidates can agree: open hypotheses are of distinct texts, with equally many tokens in the chunk.
        """
        sources = {expansion.hypothesis.tokens: expansion for expansion in expansions}
        kept = []
        for h in ended:
            source = sources.get(h.tokens)
            if source is None:
                kept.append(h)
                continue
            other = self._total(source, self.eoc)
            both = log_add(h.score, other)
            if h.score >= other:
                kept.append(replace(h, score=both))
                del source.candidates[self.eoc]
            else:
                source.candidates[self.eoc] = (both, source.candidates[self.eoc][1])
        return kept


class AlignmentSync(Search):
    """Alignment-synchronous beam search (Saon et al. 2020 for transducers; the paper's), offline.

    All active hypotheses have the same number of outputs, `$` counted.  A hypothesis that emits `$` in the last chunk
    leaves the beam for the pool of complete ones.  The search stops when the best complete score is at least the best
    active one (scores only fall), so the n-best list can be shorter than asked for.  With ``recombine`` merging raises
    scores, and now and then the search stops before a text that would have come out better.  With phrases it goes on
    until the best active score is lower by what one more phrase may be worth, or by the margin.  :meth:`advance` only
    collects chunks; :meth:`best` and :meth:`settled` know nothing before :meth:`finish` has run.
    """

    _frames: tuple[Tensor, ...] = ()  # (q, D) of each chunk
    _last: int | None = None  # the last chunk, when known

    def advance(self, frames: Tensor, last: bool = False) -> Generator[Requests, Results, None]:
        """Keep the next chunk; see :class:`Search`."""
        _check_chunk(frames, len(self._frames))
        yield from ()
        self._frames = (*self._frames, frames)
        self._last = len(self._frames) - 1 if last else None

    def finish(self) -> Generator[Requests, Results, list[Hypothesis]]:
        """Search, and return the n-best list; see :class:`Search`."""
        complete, active = ([], self._start) if self._frames else (self._start, [])
        while active and not self._done(complete, active):
            expansions = yield from self._expand(active, self._frames, self._last)
            if self.config.recombine:
                self._recombine(expansions)
            best = self._prune(expansions)
            complete = complete + [self._at_end(h._public()) for h in best if h._chunk_id == len(self._frames)]
            active = [h for h in best if h._chunk_id < len(self._frames)]
        self.beam = sorted(complete, key=_rank)
        return self._nbest(self.beam)

    def _done(self, complete: Sequence[Hypothesis], active: Sequence[Hypothesis]) -> bool:
        # So much may an active score still rise that it is worth waiting for.
        rise = 0.0 if self.phrases is None else min(self.phrases.most, self.config.margin)
        return bool(complete) and max(h.score for h in complete) >= active[0].score + rise

    def _recombine(self, expansions: Sequence[_Expansion]) -> None:
        """Merge expansions of equal text in place: ``x w`` that emits `$`, and ``x`` that emits ``w``.

        With equally many outputs, equal texts are in the same chunk, and no more than these two can agree.
        """
        sources = {expansion.hypothesis.tokens: expansion for expansion in expansions}
        for ending in expansions:
            tokens = ending.hypothesis.tokens
            growing = sources.get(tokens[:-1]) if tokens else None
            if growing is None:
                continue
            a, b = self._total(ending, self.eoc), self._total(growing, tokens[-1])
            if max(a, b) == -math.inf:
                continue
            (kept, token), (dropped, other) = (ending, self.eoc), (growing, tokens[-1])
            if a < b:
                (kept, token), (dropped, other) = (dropped, other), (kept, token)
            kept.candidates[token] = (log_add(a, b), kept.candidates[token][1])
            dropped.candidates.pop(other, None)


def _check_chunk(frames: Tensor, chunk_id: int) -> None:
    if frames.dim() != 2 or len(frames) == 0:
        raise ValueError(f"chunk {chunk_id} has shape {tuple(frames.shape)}: give (frames, size), 1 frame at least")


SEARCHES: dict[str, type[Search]] = {
    "greedy": ChunkSync,
    "chunk_sync": ChunkSync,
    "alsd": AlignmentSync,  # the paper's
}
DEFAULT_LIVE = "chunk_sync"  # what a stream takes in place of a search that needs all audio


def make_search(
    config: SearchConfig,
    initial_past: Past,
    eoc: int,
    word_starts: Tensor | None = None,
    phrases: PhraseTree | None = None,
) -> Search:
    """Make the search that ``config.method`` names; greedy has a beam of 1.

    Args:
        config: the method and its settings.
        initial_past: see :class:`Search`.
        eoc: see :class:`Search`.
        word_starts: see :class:`Search`.
        phrases: see :class:`Search`.

    Raises:
        UserError: there is no search of that name.
    """
    if config.method not in SEARCHES:
        raise UserError(f"search '{config.method}': use one of {', '.join(SEARCHES)}")
    if config.method == "greedy":
        config = replace(config, beam_size=1)
    return SEARCHES[config.method](config, initial_past, eoc, word_starts, phrases)


def live_methods() -> list[str]:
    """List the names of the searches that a stream can use."""
    return [name for name, search_class in SEARCHES.items() if issubclass(search_class, LiveSearch)]


def live_method(method: str) -> str:
    """Return the name of a stream's search where offline decoding has ``method``: the same if a stream can use it."""
    return DEFAULT_LIVE if method in SEARCHES and method not in live_methods() else method
