"""A stream: push samples, get text.  Offline decoding is a stream that is pushed once and drained.

    samples -> AudioChunks -> frames of a chunk -> Search.advance -> hypotheses -> settled tokens -> words -> segments

Everything happens chunk by chunk, so results do not depend on how the audio was cut.  Text is *settled* in one of two
ways: all hypotheses share it and no later token can lengthen its last word; or it is ``settle_seconds`` old, and then
the best hypothesis decides.  The stream drops hypotheses that disagree with settled text, and it drops settled tokens.
It holds the open end only and can run for ever.

A flush ends an utterance as the end of the audio would, and the next one begins as in a new stream.  Only the clock,
the segments and the counts go on.

With ``partial_seconds`` the open chunk is decoded, too, each time that so much more of it is there, as if it ended
there.  Its text is shown as partial and decoded again with more audio.  Nothing else depends on it.

A word's confidence is the geometric mean of its token probabilities.  Its times: token_times.py.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Iterable, Sequence

import numpy.typing as npt
import torch
from torch import Tensor

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, SearchConfig, StreamConfig
from espnet_speechllm_xl.corpus.ctm import Word, joined_text
from espnet_speechllm_xl.decoding.audio_chunks import AudioChunks, checked_samples
from espnet_speechllm_xl.decoding.engine import Steps, model_calls, run
from espnet_speechllm_xl.decoding.phrases import PhraseTree
from espnet_speechllm_xl.decoding.results import (
    TextSegment,
    Transcript,
    Update,
    distinct_texts,
    make_transcript,
    timed_words,
)
from espnet_speechllm_xl.decoding.searches import Hypothesis, LiveSearch, Search, live_methods, make_search, shared
from espnet_speechllm_xl.decoding.token_times import FrameSpan, TokenTimes, hypothesis_spans
from espnet_speechllm_xl.model.chunk_model import ChunkModel
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.tokenization import Tokenizer, lone_space, normalise, word_begins


def _make_search(
    model: ChunkModel,
    tokenizer: Tokenizer,
    chunking: ChunkingConfig,
    config: SearchConfig,
    phrases: PhraseTree | None,
) -> Search:
    """Make the search of one recording; after training with whole words, a chunk's first token begins a word."""
    word_starts = _word_starts(tokenizer) if chunking.unit == "word" else None
    return make_search(config, model.decoder.initial_past(chunking.context), model.decoder.eoc, word_starts, phrases)


@functools.lru_cache(maxsize=4)  # a large vocabulary takes a while, and a server opens many streams
def _word_starts(tokenizer: Tokenizer) -> Tensor:
    """Mark the tokens that begin a word: (V,) bool."""
    return torch.tensor([tokenizer.starts_word(token) for token in range(len(tokenizer.pieces))])


class Stream:
    """One recording as it arrives.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        chunking: may differ from training's.
        search_config: its method is one that a stream can use: "greedy" or "chunk_sync".
        config: when text is settled and segments end; None: the defaults.
        phrases: that are expected (phrases.py); None: there are none.

    Raises:
        ConfigError: the search, or the encoder, needs all audio before the first word.
    """

    def __init__(
        self,
        model: ChunkModel,
        tokenizer: Tokenizer,
        chunking: ChunkingConfig,
        search_config: SearchConfig,
        config: StreamConfig | None = None,
        phrases: PhraseTree | None = None,
    ) -> None:
        search = _make_search(model, tokenizer, chunking, search_config, phrases)
        if not isinstance(search, LiveSearch):
            usable = " or ".join(f"'{name}'" for name in live_methods())
            raise ConfigError(f"search '{search_config.method}' needs all audio before the first word: use {usable}")
        if model.acoustic.encoder.config.segment is None:
            raise ConfigError("this model's encoder needs all audio (encoder_conf segment: null): it cannot stream")
        self.model, self.tokenizer, self.chunking, self.config = model, tokenizer, chunking, config or StreamConfig()
        self.search: LiveSearch = search
        self.closed = False
        self._settle_chunks = timeline.duration_frames(self.config.settle_seconds) / (chunking.chunk or math.inf)
        self._samples_before = 0  # of the utterances before the current one
        self._capped_before = 0  # chunks of these that reached the cap
        self._begin_utterance()
        self._segment = TextSegment(0) if self.config.has_endpoints else None
        self._words: list[Word] = []  # settled since the last update
        self._ended: list[TextSegment] = []  # since the last update

    def _begin_utterance(self) -> None:
        """Forget the utterance before; what is counted in frames and chunks counts from here."""
        self._audio = AudioChunks(self.model.acoustic, self.chunking)
        self._times = TokenTimes(self.model.ctc, self.chunking)
        # Frames of the stream before the utterance: the first sample may lie inside a frame.
        self._begin = timeline.frame_of_sample(self._samples_before, self.model.acoustic.config.sample_rate)
        self._ahead: tuple[int, ...] = ()  # tokens of the open chunk, behind those of the best hypothesis
        self._ahead_frames = 0  # of the open chunk from which they were decoded
        self._last_end = 0.0  # frames, end of the last settled token
        self._last_token: int | None = None  # that was settled
        # (token, chunk id, span) of the best hypothesis as its times were last asked for
        self._open: list[tuple[int, int, FrameSpan]] = []

    def _seconds(self, frame: float) -> float:
        """Return the time in the stream at which a frame of the utterance begins."""
        return timeline.frame_start_seconds(self._begin + frame)

    @property
    def seconds(self) -> float:
        """Return how much audio was decoded so far; after a flush, all."""
        return self._seconds(self._times.frames)

    @property
    def remarks(self) -> list[str]:
        """Return a line for each of its sizes that the model was not trained for."""
        return self.chunking.not_trained(self.model.chunking, self.model.acoustic.encoder.config)

    @property
    def wanted(self) -> int:
        """Return how many samples, at least one, the next encoder call still needs; fewer are only kept."""
        return self._audio.wanted

    @property
    def capped(self) -> int:
        """Return how many chunks reached ``max_tokens_per_chunk`` so far."""
        return self._capped_before + self.search.best().capped

    def push(self, samples: npt.ArrayLike | Tensor) -> Update:
        """Take more audio, and return what it changed.

        Args:
            samples: (n,), n >= 0, float in [-1, 1] at the model's rate.

        Raises:
            AudioError: the samples are no such thing (``checked_samples``); the stream goes on without them.
        """
        return run([self.consume(samples)], model_calls(self.model))[0]

    def flush(self) -> Update:
        """End the utterance here; return the rest of its text, which is final, with no partial text.

        Silence stands for the look-ahead that is missing.  The next push begins another utterance, decoded as if it
        were the first of another stream; its times go on.  Without audio since the last flush nothing changes.
        """
        return run([self.consume((), flush=True)], model_calls(self.model))[0]

    def close(self) -> Update:
        """End the stream; return an :class:`Update` whose partial text is empty."""
        return run([self.consume((), final=True)], model_calls(self.model))[0]

    def consume(self, samples: npt.ArrayLike | Tensor, final: bool = False, flush: bool = False) -> Steps[Update]:
        """Take more audio; a generator of requests (engine.py) that returns what it changed.

        One such generator of a stream must end before the next may begin.

        Args:
            samples: see :meth:`push`.
            final: no audio follows, and the stream ends.
            flush: the utterance ends behind the samples; see :meth:`flush`.
        """
        samples = checked_samples(samples, self.model)
        if self.closed:
            raise ValueError("the stream is closed: open another one")
        self.closed = True  # for good if what follows fails
        ends = final or flush
        chunks = yield from self._audio.take(samples, ends)
        if ends:
            self._times.end = self._audio.frames
        for frames, last in chunks:
            self._times.add(frames)
            yield from self.search.advance(_inputs(self.model, frames), last)
            self._settle_shared()
            self._settle_old()
            self._end_segment_by_rule()
            self.search.rest()
            self._times.forget(self.search.oldest)
        if ends or chunks:
            self._ahead, self._ahead_frames = (), 0
        if ends:
            self.search.end()
            self._settle_all()
            self._end_segment()
            if self._segment is not None:  # it has no words, but it may hold a lone space
                self._segment = TextSegment(self._segment.index)
        else:
            yield from self._decode_open_chunk()
        if flush and not final:
            self._end_utterance()
        self.closed = final
        return self._update()

    def _end_utterance(self) -> None:
        """Count the utterance among those before, and begin the next."""
        self._samples_before += self._audio.total
        self._capped_before = self.capped
        self.search.restart()
        self._begin_utterance()

    def _decode_open_chunk(self) -> Steps[None]:
        """Decode the chunk that is not complete yet, for the partial text; a generator of requests."""
        if self.config.partial_seconds == math.inf:
            return
        frames = self._audio.open_chunk(math.ceil(timeline.duration_frames(self.config.partial_seconds)))
        if len(frames) > self._ahead_frames:
            self._ahead = yield from self.search.preview(_inputs(self.model, frames))
            self._ahead_frames = len(frames)

    def _update(self) -> Update:
        words, ended = tuple(self._words), tuple(self._ended)
        self._words, self._ended = [], []
        tokens = self.search.best().tokens + self._ahead
        partial = normalise(self.tokenizer.decode(tokens))
        return Update(joined_text(words), partial, words, ended, self._segment, self._continues(tokens))

    def _continues(self, tokens: Sequence[int]) -> bool:
        """Tell whether no space stands between the settled text and ``tokens``, which follow it."""
        if self._last_token is None or not tokens:
            return False
        return not (self.tokenizer.marks_space(tokens[0]) or lone_space(self.tokenizer, self._last_token))

    def _settle_shared(self) -> None:
        """Settle the words that all hypotheses share and that no later token can lengthen."""
        self._settle(self._count_of_whole_words(self.search.settled(), self.search.beam))

    def _settle_old(self) -> None:
        """Settle the best hypothesis' words that are ``settle_seconds`` old.

        Hypotheses that have other words, or more words, in that time are dropped: in silence a rival with one word
        more could stay for ever.  A word that goes on for twice ``settle_seconds`` is cut.
        """
        now, age = self.search.num_chunks, self._settle_chunks
        count = self.search.commit_until(now - age)
        whole = self._count_of_whole_words(count, self.search.beam, last_ends=True)
        endless = count and not whole and self.search.oldest + 1 <= now - 2 * age
        self._settle(count if endless else whole)

    def _settle_all(self) -> None:
        self._commit(len(self.search.best().tokens))

    def _commit(self, count: int) -> None:
        self.search.commit(count)
        self._settle(count)

    def _count_of_whole_words(self, count: int, hypotheses: Iterable[Hypothesis], last_ends: bool = False) -> int:
        """Return how many of the first ``count`` tokens make whole words in every hypothesis.

        Args:
            count: tokens that all hypotheses share.
            hypotheses: each says by its next token whether the word before is whole.
            last_ends: the last word of a hypothesis without a next token is whole.
        """
        last_ends = last_ends or self.chunking.unit == "word"  # then no word goes on in the next chunk

        def ends(tokens: tuple[int, ...]) -> bool:
            if count < len(tokens):
                return word_begins(self.tokenizer, tokens, count)
            return last_ends and not lone_space(self.tokenizer, tokens[-1])

        while count and not all(ends(h.tokens) for h in hypotheses):
            count -= 1
        return count

    def _settle(self, count: int) -> None:
        """Turn the first ``count`` tokens, which all hypotheses share, into words, and forget them."""
        if not count:
            return
        best = self.search.best()
        spans = self._spans(best)[:count]
        tokens = best.tokens[:count]
        times = [(self._begin + start, self._begin + end) for start, end in spans]
        words = timed_words(self.tokenizer, tokens, best.token_scores, times, self._continues(tokens))
        self._words += words
        if self._segment is not None:
            self._segment = dataclasses.replace(
                self._segment,
                words=(*self._segment.words, *words),
                tokens=(*self._segment.tokens, *(self.tokenizer.pieces[token] for token in tokens)),
                timestamps=(*self._segment.timestamps, *(self._seconds(start) for start, _ in spans)),
            )
        self._last_end, self._last_token = spans[-1][1], tokens[-1]
        self._open = self._open[count:]
        self.search.forget(count)

    def _spans(self, best: Hypothesis) -> list[FrameSpan]:
        """Return start and end of each token, in frames.

        The tokens of a chunk are aligned together, once, because some may be settled before the others.
        """
        tokens = list(zip(best.tokens, best.chunk_ids, strict=True))
        known = [(token, chunk_id) for token, chunk_id, _ in self._open]
        count = shared(tokens, known)
        while count and any(each[count - 1][1] == each[count][1] for each in (tokens, known) if count < len(each)):
            count -= 1  # of that chunk it has other tokens now
        spans = [span for *_, span in self._open[:count]]
        after = spans[-1][1] if spans else self._last_end
        spans += hypothesis_spans(self._times, best.tokens[count:], best.chunk_ids[count:], after)
        self._open = [(*each, span) for each, span in zip(tokens, spans, strict=True)]
        return spans

    def _end_segment_by_rule(self) -> None:
        """End the segment at an endpoint: enough silence after the last token, or a segment that grew too long."""
        best = self.search.best()
        if self._segment is None or not (self._segment.words or best.tokens):
            return
        last = self._spans(best)[-1][1] if best.tokens else self._last_end
        if self._lasts(self._seconds(last), self.config.endpoint_silence):
            self._settle_all()
            self._end_segment()
        elif self._lasts(self._segment_start(self._segment, best), self.config.endpoint_length):
            if not self._segment.words:  # what is settled needs no decision about a word that was just heard
                self._commit(self._count_of_whole_words(len(best.tokens), [best]))
            self._end_segment()

    def _lasts(self, start: float, limit: float) -> bool:
        """Tell whether the audio since ``start`` is as long as ``limit``, both in seconds."""
        return timeline.duration_frames(self.seconds - start) >= timeline.duration_frames(limit)

    def _segment_start(self, segment: TextSegment, best: Hypothesis) -> float:
        """Return the start of the open segment in seconds; without a settled word, the start of its first chunk."""
        if segment.start is not None:
            return segment.start
        begin, _ = timeline.chunk_span_frames(best.chunk_ids[0], self.chunking.chunk, self._times.frames)
        return self._seconds(begin)

    def _end_segment(self) -> None:
        if self._segment is not None and self._segment.words:
            self._ended.append(self._segment)
            self._segment = TextSegment(self._segment.index + 1)


@torch.no_grad()
def _inputs(model: ChunkModel, frames: Tensor) -> Tensor:
    """Return the decoder inputs (q, D) of a chunk's frames (c, E).

    They are made chunk by chunk, so that they do not depend on how the audio was cut.
    """
    return model.projection(frames)


def transcribe(
    model: ChunkModel,
    tokenizer: Tokenizer,
    chunking: ChunkingConfig,
    search_config: SearchConfig,
    recordings: Sequence[npt.ArrayLike | Tensor],
    prompted: Sequence[ChunkModel] | None = None,
    phrases: Sequence[PhraseTree | None] | None = None,
) -> list[list[Transcript]]:
    """Return the n-best list of each recording, decoded as one batch.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        chunking: may differ from training's.
        search_config: any method of searches.py.
        recordings: samples (n,) of each, see :meth:`Stream.push`.
        prompted: the model with the prompt of each recording (prompts.py); None: there are no prompts.
        phrases: those of each recording (phrases.py); None: there are none.

    Raises:
        AudioError: the samples of a recording cannot be used.
    """
    count = len(recordings)
    parts = zip(prompted or [model] * count, recordings, phrases or [None] * count, strict=True)
    generators = [
        decode(each, tokenizer, chunking, search_config, samples, phrases=own) for each, samples, own in parts
    ]
    return run(generators, model_calls(model))


def decode(
    model: ChunkModel,
    tokenizer: Tokenizer,
    chunking: ChunkingConfig,
    search_config: SearchConfig,
    samples: npt.ArrayLike | Tensor,
    most_segments: int | None = None,
    phrases: PhraseTree | None = None,
) -> Steps[list[Transcript]]:
    """Return the n-best list of one recording; a generator of requests (engine.py).

    Nothing is settled or forgotten before the end, so any search will do.

    Args:
        model: see :func:`transcribe`.
        tokenizer: see :func:`transcribe`.
        chunking: see :func:`transcribe`.
        search_config: see :func:`transcribe`.
        samples: (n,), see :meth:`Stream.push`.
        most_segments: encoder segments that one request asks for at most: few where others wait for the same engine;
            None: as the encoder's configuration says.
        phrases: that are expected (phrases.py); None: there are none.

    Raises:
        AudioError: the samples cannot be used.
    """
    every = dataclasses.replace(search_config, nbest=sys.maxsize)
    search, times = _make_search(model, tokenizer, chunking, every, phrases), TokenTimes(model.ctc, chunking)
    audio = AudioChunks(model.acoustic, chunking, most_segments)
    chunks = yield from audio.take(checked_samples(samples, model), final=True)
    times.end = audio.frames
    for frames, last in chunks:
        times.add(frames)
        yield from search.advance(_inputs(model, frames), last)
    texts = distinct_texts(tokenizer, (yield from search.finish()))
    return [make_transcript(tokenizer, times, *item) for item in list(texts.items())[: search_config.nbest]]
