"""A stream: push samples, get text.  Offline decoding is a stream that is pushed once and closed.

    samples -> Acoustic.push -> frames -> cut into chunks -> Search.advance -> hypotheses -> words

Word times: the model emits text a chunk at a time.  The tokens of a chunk are spread evenly over it, so a time is
exact to the chunk only.  A word's confidence is the geometric mean of its token probabilities.
"""

import bisect
import dataclasses
import math
import sys
from dataclasses import dataclass

import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.audio import AudioError
from espnet_speechllm_xl.ctm import Word
from espnet_speechllm_xl.search import make_search, run
from espnet_speechllm_xl.text import normalise, word_spans


@dataclass(frozen=True)
class Update:
    """What a push changed."""

    text: str  # newly settled text, never taken back
    partial: str  # follows the settled text, may still change
    words: tuple  # newly settled words


@dataclass(frozen=True)
class Transcript:
    """One hypothesis of a whole recording."""

    text: str
    score: float  # log-probability of tokens and `$`
    tokens: tuple  # token strings
    token_ids: tuple
    words: tuple
    capped: int  # chunks cut off at max_tokens_per_chunk


class Stream:
    """One recording as it arrives.

    Args:
        model: :class:`~espnet_speechllm_xl.model.SpeechLLMXL`, in evaluation mode.
        tokenizer: see text.py.
        chunking: :class:`~espnet_speechllm_xl.config.ChunkingConfig`; may differ from training's.
        search: :class:`~espnet_speechllm_xl.config.SearchConfig`.
    """

    def __init__(self, model, tokenizer, chunking, search):
        chunking.check_against(model.acoustic.encoder.config)
        self.model, self.tokenizer, self.chunking = model, tokenizer, chunking
        every = dataclasses.replace(search, nbest=sys.maxsize)
        self.search = make_search(every, model.decoder.initial_row(), model.decoder.eoc)
        self._nbest = search.nbest
        self._acoustic = model.acoustic.initial_state()
        self._waiting = []  # frames (t, D) that complete no chunk yet
        self._frames = 0  # frames of complete chunks so far
        self._settled = 0  # tokens given out as settled words
        self.closed = False

    def push(self, samples):
        """Take samples (n,), n >= 0, float in [-1, 1] at the model's rate; return an :class:`Update`.

        Raises AudioError for anything else; the stream goes on as if it had not been pushed.
        """
        run([self.consume(_checked(samples))], self.extend)
        return self._update()

    def close(self):
        """End the stream; return an :class:`Update` whose partial text is empty."""
        self.transcripts = run([self.consume(None, final=True)], self.extend)[0]
        return self._update()

    def extend(self, requests):
        """The decoder calls of this stream's search."""
        return self.model.decoder.extend(requests, self.chunking.context)

    def consume(self, samples, final=False):
        """Generator of decoder requests (search.py) that takes ``samples`` and, if ``final``, ends the stream.

        Returns the n-best :class:`Transcript` list when final.
        """
        if self.closed:
            raise ValueError("the stream is closed: open another one")
        self.closed = final
        for frames in self._chunks(samples, final):
            self._frames += len(frames)
            yield from self.search.advance(frames)
        if final:
            hypotheses = yield from self.search.finish()
            texts = {}  # several token sequences can spell one text
            for hypothesis in hypotheses:
                texts.setdefault(self._text(hypothesis), hypothesis)
            return [self._transcript(hypothesis) for hypothesis in list(texts.values())[: self._nbest]]

    @torch.no_grad()
    def _chunks(self, samples, final):
        """The chunks (c, D) that ``samples`` complete; when final also the last, short one."""
        weight = self.model.projection.weight
        samples = torch.as_tensor(() if samples is None else samples, device=weight.device)
        frames, self._acoustic = self.model.acoustic.push(samples, self._acoustic, final=final)
        # Projected frame by frame, so that results do not depend on how the audio was cut.
        waiting = torch.cat([*self._waiting, self.model.projection(frames)])
        size = self.chunking.chunk or max(1, len(waiting))
        whole = len(waiting) // size if self.chunking.chunk else 0
        chunks = list(waiting[: whole * size].split(size)) if whole else []
        rest = waiting[whole * size :]
        if final and len(rest):
            chunks.append(rest)
            rest = rest[:0]
        self._waiting = [rest]
        return chunks

    def _text(self, hypothesis):
        # Single spaces, as the settled words joined: a word-start piece may stand alone.
        return normalise(self.tokenizer.decode(hypothesis.tokens))

    def _transcript(self, hypothesis):
        return Transcript(
            text=self._text(hypothesis),
            score=hypothesis.score,
            tokens=tuple(self.tokenizer.pieces[token] for token in hypothesis.tokens),
            token_ids=hypothesis.tokens,
            words=tuple(self._words(hypothesis, 0, len(hypothesis.tokens))),
            capped=hypothesis.capped,
        )

    def _update(self):
        """Settled words are those that all hypotheses share and that no later token can lengthen."""
        best = self.search.best()
        shared = len(best.tokens) if self.closed else self.search.settled()
        if not self.closed:
            while shared > self._settled and not self._ends_word(shared):
                shared -= 1
        settled = tuple(self._words(best, self._settled, shared))
        self._settled = shared
        return Update(
            text=" ".join(word.text for word in settled),
            partial=normalise(self.tokenizer.decode(best.tokens[shared:])),
            words=settled,
        )

    def _ends_word(self, index):
        """Whether the word before ``index`` is over: every hypothesis goes on there with another."""
        hypotheses = self.search.beam
        return all(index < len(h.tokens) and self.tokenizer.starts_word(h.tokens[index]) for h in hypotheses)

    def _words(self, hypothesis, first, after):
        tokens = hypothesis.tokens[first:after]
        for text, begin, last in word_spans(self.tokenizer, tokens):
            begin, last = first + begin, first + last
            scores = hypothesis.token_scores[begin : last + 1]
            yield Word(
                text,
                self._token_span(hypothesis, begin)[0],
                self._token_span(hypothesis, last)[1],
                math.exp(sum(scores) / len(scores)),
            )

    def _token_span(self, hypothesis, index):
        """Seconds that token ``index`` gets when the tokens of its chunk share the chunk evenly."""
        chunks = hypothesis.chunks  # never decreasing
        chunk = chunks[index]
        first = bisect.bisect_left(chunks, chunk)
        count = bisect.bisect_right(chunks, chunk) - first
        begin, end = timeline.chunk_span_seconds(chunk, self.chunking.chunk, self._frames)
        width = (end - begin) / count
        return begin + (index - first) * width, begin + (index - first + 1) * width


def _checked(samples):
    """Samples of a push as a tensor (n,); raises AudioError for what is no audio of the documented form."""
    samples = torch.as_tensor(samples)
    if samples.dim() != 1 or not (samples.is_floating_point() or len(samples) == 0):
        raise AudioError(
            "unreadable",
            f"stream: samples of shape {tuple(samples.shape)} and type {samples.dtype}: push (n,) floats in [-1, 1]",
        )
    if not torch.isfinite(samples).all():
        raise AudioError("not-finite", "stream: NaN or infinite samples: mend the source of the audio")
    return samples


def transcribe(model, tokenizer, chunking, search, recordings):
    """The n-best :class:`Transcript` list of each recording (n,) in a list, decoded as one batch."""
    streams = [Stream(model, tokenizer, chunking, search) for _ in recordings]
    steps = [stream.consume(samples, final=True) for stream, samples in zip(streams, recordings, strict=True)]
    return run(steps, streams[0].extend) if streams else []
