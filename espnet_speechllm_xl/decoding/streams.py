"""A stream: push samples, get text.  Offline decoding is a stream that is pushed once and drained.

    samples -> AudioChunks -> frames of a chunk -> Search.advance -> hypotheses -> settled tokens -> words -> segments

Everything happens chunk by chunk, so results do not depend on how the audio was cut.  Text is *settled* once all
hypotheses share it and no later token can lengthen its last word, or, as the best has it, once it is
``settle_seconds`` old.  Hypotheses that disagree with settled text are dropped, and so are settled tokens: a stream
holds the open end only and can run for ever.

A word's confidence is the geometric mean of its token probabilities.  Its times: token_times.py.
"""

import dataclasses
import functools
import math
import sys

import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import StreamConfig
from espnet_speechllm_xl.corpus.ctm import joined_text
from espnet_speechllm_xl.decoding.audio_chunks import AudioChunks, checked_samples
from espnet_speechllm_xl.decoding.engine import answer, run
from espnet_speechllm_xl.decoding.results import Segment, Update, distinct_texts, make_transcript, timed_words
from espnet_speechllm_xl.decoding.searches import make_search, shared
from espnet_speechllm_xl.decoding.token_times import TokenTimes, hypothesis_spans
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.tokenization import lone_space, normalise, word_begins


def _search(model, tokenizer, chunking, config):
    """The search of one recording; after training with whole words, a chunk's first token begins a word."""
    openers = _word_starts(tokenizer) if chunking.unit == "word" else None
    return make_search(config, model.decoder.initial_row(chunking.context), model.decoder.eoc, openers)


@functools.lru_cache(maxsize=4)  # a large vocabulary takes a while, and a server opens many streams
def _word_starts(tokenizer):
    """(V,) bool: the tokens that begin a word."""
    return torch.tensor([tokenizer.starts_word(token) for token in range(len(tokenizer.pieces))])


class Stream:
    """One recording as it arrives.

    Args:
        model: :class:`~espnet_speechllm_xl.systems.base_model.ChunkwiseModel`, in evaluation mode.
        tokenizer: see tokenization.py.
        chunking: :class:`~espnet_speechllm_xl.config.ChunkingConfig`; may differ from training's.
        search: :class:`~espnet_speechllm_xl.config.SearchConfig`; "greedy" or "chunk_sync".
        config: :class:`~espnet_speechllm_xl.config.StreamConfig`.

    Raises:
        ConfigError: the search, or the encoder, needs all audio before the first word.
    """

    def __init__(self, model, tokenizer, chunking, search, config=None):
        if search.method == "alsd":
            raise ConfigError("search 'alsd' needs all audio before the first word: use 'greedy' or 'chunk_sync'")
        if model.acoustic.encoder.config.segment is None:
            raise ConfigError("this model's encoder needs all audio (encoder_conf segment: null): it cannot stream")
        self.model, self.tokenizer, self.chunking, self.config = model, tokenizer, chunking, config or StreamConfig()
        self.search = _search(model, tokenizer, chunking, search)
        self.closed = False
        self._audio = AudioChunks(model.acoustic, chunking)
        self._times = TokenTimes(model.ctc, chunking)
        self._settle_chunks = timeline.duration_frames(self.config.settle_seconds) / (chunking.chunk or math.inf)
        self._last_end = 0.0  # frames, end of the last settled token
        self._last_token = None  # that was settled
        self._open = []  # (token, chunk, (start, end)) of the best hypothesis as its times were last asked for
        self._segment = Segment(0) if self.config.has_endpoints else None
        self._words, self._ended = [], []  # since the last update

    @property
    def seconds(self):
        """Audio decoded so far."""
        return timeline.frame_start_seconds(self._times.frames)

    @property
    def wanted(self):
        """Samples, at least one, that complete what can be encoded next; pushes of fewer are only kept."""
        return self._audio.wanted

    @property
    def capped(self):
        """Chunks that reached ``max_tokens_per_chunk`` so far."""
        return self.search.best().capped

    def push(self, samples):
        """Take samples (n,), n >= 0, float in [-1, 1] at the model's rate; return an :class:`Update`.

        Raises AudioError for what cannot be that (``checked_samples``); the stream goes on as if it had not come.
        """
        return run([self.consume(samples)], answer(self.model))[0]

    def close(self):
        """End the stream; return an :class:`Update` whose partial text is empty."""
        return run([self.consume((), final=True)], answer(self.model))[0]

    def consume(self, samples, final=False):
        """Generator of requests (engine.py) that takes ``samples`` and, if ``final``, ends the stream.

        Returns an :class:`Update`.  One such generator of a stream must end before the next may begin.
        """
        samples = checked_samples(samples, self.model)
        if self.closed:
            raise ValueError("the stream is closed: open another one")
        self.closed = True  # for good if what follows fails
        chunks = yield from self._audio.take(samples, final)
        if final:
            self._times.end = self._audio.frames
        for frames, last in chunks:
            self._times.add(frames)
            yield from self.search.advance(_inputs(self.model, frames), last)
            self._settle_shared()
            self._settle_old()
            self._end_segment_by_rule()
            self.search.rest()
            self._times.forget(self.search.oldest)
        if final:
            self._settle_all()
            self._end_segment()
        self.closed = final
        return self._update()

    def _update(self):
        words, ended = tuple(self._words), tuple(self._ended)
        self._words, self._ended = [], []
        tokens = self.search.best().tokens
        partial = normalise(self.tokenizer.decode(tokens))
        return Update(joined_text(words), partial, words, ended, self._segment, self._goes_on(tokens))

    def _goes_on(self, tokens):
        """Whether no space stands between the settled text and ``tokens``, which follow it."""
        if self._last_token is None or not tokens:
            return False
        return not (self.tokenizer.marks_space(tokens[0]) or lone_space(self.tokenizer, self._last_token))

    def _settle_shared(self):
        """Settle the words that all hypotheses share and that no later token can lengthen."""
        self._settle(self._whole_words(self.search.settled(), self.search.beam))

    def _settle_old(self):
        """Settle the best hypothesis's words that are ``settle_seconds`` old; one that goes on as long again is cut.

        That there are no more of them is settled as well: in silence a rival with one word more could stay for ever.
        """
        now, age = self.search.chunk, self._settle_chunks
        count = self.search.commit_until(now - age)
        whole = self._whole_words(count, self.search.beam, last_ends=True)
        endless = count and not whole and self.search.oldest + 1 <= now - 2 * age
        self._settle(count if endless else whole)

    def _settle_all(self):
        self._commit(len(self.search.best().tokens))

    def _commit(self, count):
        self.search.commit(count)
        self._settle(count)

    def _whole_words(self, count, hypotheses, last_ends=False):
        """``count`` tokens or fewer, so that all ``hypotheses`` have ended their word there.

        ``last_ends``: so has one without more tokens.
        """
        last_ends = last_ends or self.chunking.unit == "word"  # then no word goes on in the next chunk

        def ends(tokens):
            if count < len(tokens):
                return word_begins(self.tokenizer, tokens, count)
            return last_ends and not lone_space(self.tokenizer, tokens[-1])

        while count and not all(ends(h.tokens) for h in hypotheses):
            count -= 1
        return count

    def _settle(self, count):
        """Turn the first ``count`` tokens, which all hypotheses share, into words, and forget them."""
        if not count:
            return
        best = self.search.best()
        spans = self._spans(best)[:count]
        tokens = best.tokens[:count]
        words = timed_words(self.tokenizer, tokens, best.token_scores, spans, self._goes_on(tokens))
        self._words += words
        if self._segment is not None:
            self._segment = dataclasses.replace(
                self._segment,
                words=(*self._segment.words, *words),
                tokens=(*self._segment.tokens, *(self.tokenizer.pieces[token] for token in tokens)),
                timestamps=(*self._segment.timestamps, *(timeline.frame_start_seconds(start) for start, _ in spans)),
            )
        self._last_end, self._last_token = spans[-1][1], tokens[-1]
        self._open = self._open[count:]
        self.search.forget(count)

    def _spans(self, best):
        """Start and end of each token, in frames.  A chunk's tokens are aligned together, once: some may be settled
        before the others."""
        tokens = list(zip(best.tokens, best.chunks, strict=True))
        known = [(token, chunk) for token, chunk, _ in self._open]
        count = shared(tokens, known)
        while count and any(each[count - 1][1] == each[count][1] for each in (tokens, known) if count < len(each)):
            count -= 1  # of that chunk it has other tokens now
        spans = [span for *_, span in self._open[:count]]
        after = spans[-1][1] if spans else self._last_end
        spans += hypothesis_spans(self._times, best.tokens[count:], best.chunks[count:], after)
        self._open = [(*each, span) for each, span in zip(tokens, spans, strict=True)]
        return spans

    def _end_segment_by_rule(self):
        """Endpoints: enough silence after the last token, or a segment that grew too long."""
        best = self.search.best()
        if self._segment is None or not (self._segment.words or best.tokens):
            return
        last = self._spans(best)[-1][1] if best.tokens else self._last_end
        if self._lasts(timeline.frame_start_seconds(last), self.config.endpoint_silence):
            self._settle_all()
            self._end_segment()
        elif self._lasts(self._segment_start(best), self.config.endpoint_length):
            if not self._segment.words:  # what is settled needs no decision about a word that was just heard
                self._commit(self._whole_words(len(best.tokens), [best]))
            self._end_segment()

    def _lasts(self, start, limit):
        """Whether the audio since ``start`` is as long as ``limit``, both in seconds."""
        return timeline.duration_frames(self.seconds - start) >= timeline.duration_frames(limit)

    def _segment_start(self, best):
        if self._segment.words:
            return self._segment.start
        begin, _ = timeline.chunk_span_frames(best.chunks[0], self.chunking.chunk, self._times.frames)
        return timeline.frame_start_seconds(begin)

    def _end_segment(self):
        if self._segment is not None and self._segment.words:
            self._ended.append(self._segment)
            self._segment = Segment(self._segment.index + 1)


@torch.no_grad()
def _inputs(model, frames):
    """Decoder inputs (c, D) of a chunk; frame by frame, so that they do not depend on how the audio was cut."""
    return model.projection(frames)


def transcribe(model, tokenizer, chunking, search, recordings):
    """The n-best :class:`Transcript` list of each recording (n,) in a list, decoded as one batch."""
    return run([decode(model, tokenizer, chunking, search, samples) for samples in recordings], answer(model))


def decode(model, tokenizer, chunking, search, samples, most_segments=None):
    """Generator of requests (engine.py) that decodes one recording (n,); returns its n-best :class:`Transcript` list.

    Any search will do; nothing is settled or forgotten before the end.  ``most_segments`` of the encoder are asked for
    at once: where others wait for the same engine, few.
    """
    every = dataclasses.replace(search, nbest=sys.maxsize)
    searching, times = _search(model, tokenizer, chunking, every), TokenTimes(model.ctc, chunking)
    audio = AudioChunks(model.acoustic, chunking, most_segments)
    chunks = yield from audio.take(checked_samples(samples, model), final=True)
    times.end = audio.frames
    for frames, last in chunks:
        times.add(frames)
        yield from searching.advance(_inputs(model, frames), last)
    texts = distinct_texts(tokenizer, (yield from searching.finish()))
    return [make_transcript(tokenizer, times, *item) for item in list(texts.items())[: search.nbest]]
