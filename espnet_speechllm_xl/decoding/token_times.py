"""When the tokens that the decoder wrote were said.

The decoder says only in which chunk a token's (with ``unit: word`` its word's) last frame lies, the label delay added.
A model trained with an auxiliary CTC loss knows more: the tokens of a chunk are aligned by CTC Viterbi to the frames
between the token before them, at most ``frames_back``, and the end of the chunk.  Without a CTC head, or where the
frames are too few, they share the chunk, less the delay, evenly.  Times depend on nothing after the chunk, so with
greedy search a stream gives what a file gives; with a beam it may settle a word before the others of its chunk, which
decide its times as well.
"""

import math

import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.model.alignment import AlignmentError, viterbi

LOOKBACK = 25  # frames (1 s): a word may begin that long before the chunk in which it ends


def frames_back(chunk, delay):
    """How many frames before its chunk (``chunk`` frames; None: all) a token may have been said."""
    return max(LOOKBACK, chunk or 0) + delay


class TokenTimes:
    """Times of the tokens of one recording, chunk by chunk.

    Args:
        ctc: :class:`~espnet_speechllm_xl.model.ctc.CTCHead` of the model, or None.
        chunking: :class:`~espnet_speechllm_xl.config.ChunkingConfig` of the decoding.
    """

    def __init__(self, ctc, chunking):
        self._ctc, self._chunking = ctc, chunking
        self._chunks = []  # encoder frames (c, D) of the chunks from self._first on
        self._first = 0  # frame at which self._chunks begins
        self.frames = 0  # frames of all chunks so far
        self.end = None  # frames of the audio, once it has ended: what chunks hold behind it is silence

    def add(self, frames):
        """The encoder frames (c, D) of the next chunk."""
        if self.end is not None:
            frames = frames[: max(0, self.end - self.frames)]  # no word is said behind the audio
        self.frames += len(frames)
        if self._ctc is not None:
            self._chunks.append(frames)

    def forget(self, chunk):
        """No times of chunks before ``chunk`` will be asked for any more."""
        needed = self._window_start(chunk)
        while self._chunks and self._first + len(self._chunks[0]) <= needed:
            self._first += len(self._chunks.pop(0))

    def spans(self, tokens, chunk, after):
        """Start and end of each of ``tokens``, emitted in ``chunk``, none before ``after``; all in frames (float)."""
        begin, end = timeline.chunk_span_frames(chunk, self._chunking.chunk, self.frames)
        window = max(math.ceil(after), self._window_start(chunk))
        if self._ctc is not None and window < end:
            try:
                return self._aligned(tokens, window, end)
            except AlignmentError:
                pass  # too few frames
        delay = self._chunking.delay
        begin, end = max(0, begin - delay, after), end - delay
        if begin >= end:  # words that were settled before, or the delay, took the whole chunk: then a frame if there is
            end = max(begin, min(begin + 1, self.frames))
        width = (end - begin) / len(tokens)
        return [(begin + index * width, begin + (index + 1) * width) for index in range(len(tokens))]

    @torch.no_grad()
    def _aligned(self, tokens, begin, end):
        if begin < self._first:
            raise ValueError(f"times from frame {begin} on: the frames before {self._first} are forgotten")
        size = self._chunking.chunk or self.frames
        skipped = (begin - self._first) // size
        chunks = self._chunks[skipped : (end - 1 - self._first) // size + 1]
        offset = begin - self._first - skipped * size
        log_probs = self._ctc(torch.cat(chunks)[None, offset : offset + end - begin])[0].cpu()
        spans = viterbi(log_probs, list(tokens), self._ctc.blank)
        return [(float(begin + span.start), float(begin + span.end + 1)) for span in spans]

    def _window_start(self, chunk):
        begin, _ = timeline.chunk_span_frames(chunk, self._chunking.chunk, self.frames)
        return max(0, begin - frames_back(self._chunking.chunk, self._chunking.delay))


def hypothesis_spans(times, tokens, chunks, after=0.0):
    """Start and end in frames of all ``tokens`` of a hypothesis, emitted in ``chunks`` (never decreasing)."""
    spans, index = [], 0
    while index < len(tokens):
        last = index
        while last < len(tokens) and chunks[last] == chunks[index]:
            last += 1
        spans += times.spans(tokens[index:last], chunks[index], after)
        after, index = spans[-1][1], last
    return spans
