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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.acoustic import EncodeRequest
from espnet_speechllm_xl.audio import AudioError, check_scale
from espnet_speechllm_xl.config import ConfigError, StreamConfig
from espnet_speechllm_xl.ctm import Word, joined_text
from espnet_speechllm_xl.engine import answer, run
from espnet_speechllm_xl.search import make_search, shared
from espnet_speechllm_xl.text import lone_space, normalise, word_begins, word_spans
from espnet_speechllm_xl.token_times import TokenTimes, hypothesis_spans


@dataclass(frozen=True)
class Segment:
    """The text between two endpoints."""

    index: int  # 0-based
    words: tuple = ()
    tokens: tuple = ()  # token strings
    timestamps: tuple = ()  # start of each token, seconds from the start of the stream

    @property
    def text(self):
        """Its words, with single spaces where there are any."""
        return joined_text(self.words)

    @property
    def start(self):
        """Start of the first word in seconds; None without words."""
        return self.words[0].start if self.words else None

    @property
    def end(self):
        """End of the last word in seconds; None without words."""
        return self.words[-1].end if self.words else None

    @property
    def confidence(self):
        """Mean of the words'; None without words."""
        return sum(word.confidence for word in self.words) / len(self.words) if self.words else None


@dataclass(frozen=True)
class Update:
    """What a push changed."""

    text: str = ""  # newly settled text, never taken back
    partial: str = ""  # follows the settled text, may still change
    words: tuple = ()  # newly settled words
    segments: tuple = ()  # segments that ended, settled whole
    segment: Segment | None = None  # the open one with the words settled so far; None where endpoints are off
    joined: bool = False  # no space stands between the settled text and ``partial``


@dataclass(frozen=True)
class Transcript:
    """One hypothesis of a whole recording."""

    text: str
    score: float  # log-probability of tokens and `$`
    tokens: tuple  # token strings
    token_ids: tuple
    words: tuple
    capped: int | None  # chunks that reached max_tokens_per_chunk; None: of a system that has no such cap


class AudioChunks:
    """Samples of one recording in, encoder frames out, cut into chunks.

    ``most_segments`` are encoded at once; None: what the encoder's configuration says.
    """

    def __init__(self, acoustic, chunking, most_segments=None):
        encoder = acoustic.encoder.config
        chunking.check_against(encoder)
        self._rate = rate = acoustic.config.sample_rate
        # With look-ahead or a tail the last frames come when the recording ends, and only then.
        self._ends_known = encoder.segment is None or encoder.right_context > 0 or acoustic.config.tail_frames > 0
        self._size = chunking.chunk or math.inf
        # Samples that complete a segment: what is encoded in whole segments only keeps many streams in step.
        self._first = self._hop = math.inf  # an encoder of whole utterances waits for the end
        if encoder.segment is not None:
            self._first = timeline.samples_for_frames(encoder.segment + encoder.right_context, rate)
            self._hop = timeline.samples_of_frames(encoder.segment, rate)
        self._most = most_segments or encoder.block_segments
        self._state = acoustic.initial_state()
        self._samples = []  # not encoded yet
        self._count = 0  # of those
        self._total = 0  # of all
        self._needed = self._first  # to encode the next segment
        self._frames = []  # (t, D) that complete no chunk yet

    @property
    def wanted(self):
        """Samples that complete the next encoder segment."""
        return self._needed - self._count

    @property
    def frames(self) -> int:
        """Complete frames of the audio so far, without the silence behind its end."""
        return timeline.frames(self._total, self._rate)

    def take(self, samples, final):
        """Generator of encoder requests; returns the chunks completed, when final also the last, short one.

        A chunk is ``(frames (c, D), last)``; ``last``: it is known to be the last, however the samples were pushed.
        """
        self._samples.append(samples)
        self._count += len(samples)
        self._total += len(samples)
        if final or self._count >= self._needed:
            # A whole recording is not copied once more.
            samples = self._samples[0] if len(self._samples) == 1 else torch.cat(self._samples)
            for request in self._requests(samples, final):
                ((frames, self._state),) = yield [EncodeRequest(*request, self._state)]
                self._frames.append(frames)
        return self._cut(final)

    def _requests(self, samples, final):
        """``(samples, final)`` of each encoder call; the rest of ``samples`` is kept."""
        while len(samples) >= self._needed:
            segments = min(self._most, 1 + (len(samples) - self._needed) // self._hop)
            count = self._needed + (segments - 1) * self._hop
            yield samples[:count], False
            samples, self._needed = samples[count:], self._hop
        self._samples, self._count = [samples.clone()], len(samples)
        if final and self.frames:  # of less than a frame nothing is written, not of silence behind it either
            yield samples, True

    def _cut(self, final):
        count = sum(map(len, self._frames))
        if not count or not (final or count >= self._size):
            return []
        waiting = torch.cat(self._frames)
        chunks = list(waiting.split(min(self._size, count)))
        # A short one waits for more; cloned, as it would keep the others alive.
        self._frames = [] if final or len(chunks[-1]) == self._size else [chunks.pop().clone()]
        return [(chunk, final and self._ends_known and chunk is chunks[-1]) for chunk in chunks]


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
        model: :class:`~espnet_speechllm_xl.model.ChunkwiseModel`, in evaluation mode.
        tokenizer: see text.py.
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


def timed_words(tokenizer, tokens, scores, spans, joined=False):
    """Words of ``tokens`` with times and confidence, as :class:`~espnet_speechllm_xl.ctm.Word`.

    ``scores``: log-probability of each token; ``spans``: its start and end in frames; ``joined``: the first goes on
    without a space where other words end.
    """
    words, before = [], -1 if joined else 0
    for text, first, last in word_spans(tokenizer, tokens):
        start, end = (timeline.frame_start_seconds(frame) for frame in (spans[first][0], spans[last][1]))
        of_word = scores[first : last + 1]
        # What shares its tokens with the word before was parted from it by white space inside them.
        goes_on = first > before and not tokenizer.marks_space(tokens[first])
        words.append(Word(text, start, end, math.exp(sum(of_word) / len(of_word)), goes_on))
        before = first
    return words


def checked_samples(samples, model):
    """A copy of ``samples``, a tensor (n,) where the model is.

    Raises AudioError for what is no audio of that form: not (n,) floats, NaN or infinite, or far beyond [-1, 1].
    """
    like = next(model.parameters())
    try:
        # Copied because they are kept, and the caller may fill the same buffer again.
        tensor = samples.clone() if isinstance(samples, torch.Tensor) else torch.from_numpy(_native(samples))
    except (TypeError, ValueError) as error:  # not numbers
        raise AudioError("unreadable", f"stream: {error}: push (n,) floats in [-1, 1]") from None
    if tensor.dim() != 1 or not (tensor.is_floating_point() or len(tensor) == 0):
        raise AudioError(
            "unreadable",
            f"stream: samples of shape {tuple(tensor.shape)} and type {tensor.dtype}: push (n,) floats in [-1, 1]",
        )
    if not torch.isfinite(tensor).all():
        raise AudioError("not-finite", "stream: NaN or infinite samples: mend the source of the audio")
    if len(tensor):
        check_scale(float(tensor.abs().max()), "stream")
    return tensor.to(like.device, torch.promote_types(like.dtype, torch.float32))


def _native(samples: npt.ArrayLike) -> np.ndarray:
    """A copy as torch wants it: in this machine's byte order, with positive strides, also those of one sample."""
    array = np.asarray(samples)
    return np.array(array, array.dtype.newbyteorder("="), order="C", copy=True)


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
    return [_transcript(tokenizer, times, *item) for item in list(texts.items())[: search.nbest]]


def distinct_texts(tokenizer, hypotheses):
    """``{text: its best hypothesis}``, best first: several token sequences can spell one text."""
    texts = {}
    for hypothesis in hypotheses:
        # Single spaces, as the settled words joined: a word-start piece may stand alone.
        texts.setdefault(normalise(tokenizer.decode(hypothesis.tokens)), hypothesis)
    return texts


def _transcript(tokenizer, times, text, hypothesis):
    tokens = hypothesis.tokens
    spans = hypothesis_spans(times, tokens, hypothesis.chunks)
    return Transcript(
        text=text,
        score=hypothesis.score,
        tokens=tuple(tokenizer.pieces[token] for token in tokens),
        token_ids=tokens,
        words=tuple(timed_words(tokenizer, tokens, hypothesis.token_scores, spans)),
        capped=hypothesis.capped,
    )
