"""When the tokens that the decoder wrote were said.

The decoder says only in which chunk the last frame of a token (with ``unit: word``, of its word) lies, the label delay
added.  A model trained with an auxiliary CTC loss knows more: CTC Viterbi aligns the tokens of a chunk to the frames
from the token before them, at most ``frames_back``, to the end of the chunk.  Without a CTC head, or where the frames
are too few, the tokens share the chunk, less the delay, evenly.

A CTC head with characters of its own aligns these (ctc_spelling.py).  A token has the times of its characters.
Punctuation without any has the end of the token before it, or, if a word begins with it, the start of the token behind.
Digits and letters that CTC lacks have the time between the tokens around them.

Times depend on nothing after the chunk, so with greedy search a stream gives the same times as a file.  With a beam a
stream may settle a word before the other words of its chunk, which decide its times as well.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.model.alignment import AlignmentError, TokenSpan, viterbi
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.ctc_spelling import Spelled

LOOKBACK = 25  # frames (1 s): a word may begin that long before the chunk in which it ends

FrameSpan = tuple[float, float]  # start and end in frames


def frames_back(chunk_size: int | None, delay: int) -> int:
    """Return how many frames before its chunk a token may have been said.

    Args:
        chunk_size: frames of a chunk; None: one chunk holds all.
        delay: the label delay in frames.
    """
    return max(LOOKBACK, chunk_size or 0) + delay


class TokenTimes:
    """Times of the tokens of one recording, chunk by chunk.

    Args:
        ctc: the model's head; None: it has none.
        chunking: of the decoding.

    Attributes:
        frames: frames of all chunks so far.
        end: frames of the audio once it has ended, else None; chunks hold silence behind it.
    """

    def __init__(self, ctc: CTCHead | None, chunking: ChunkingConfig) -> None:
        self._ctc, self._chunking = ctc, chunking
        self._chunks: list[Tensor] = []  # encoder frames (c, D) of the chunks from self._first on
        self._first = 0  # frame at which self._chunks begins
        self.frames = 0
        self.end: int | None = None

    def add(self, frames: Tensor) -> None:
        """Take the encoder frames (c, D) of the next chunk."""
        if self.end is not None:
            frames = frames[: max(0, self.end - self.frames)]  # no word is said behind the audio
        self.frames += len(frames)
        if self._ctc is not None:
            self._chunks.append(frames)

    def forget(self, chunk_id: int) -> None:
        """Drop the frames that only times of chunks before ``chunk_id`` need."""
        needed = self._window_start(chunk_id)
        while self._chunks and self._first + len(self._chunks[0]) <= needed:
            self._first += len(self._chunks.pop(0))

    def spans(self, tokens: Sequence[int], chunk_id: int, after: float) -> list[FrameSpan]:
        """Return start and end of tokens of one chunk.

        Args:
            tokens: in the order in which they were emitted.
            chunk_id: the chunk in which they were emitted.
            after: frame before which none of them begins.
        """
        begin, end = timeline.chunk_span_frames(chunk_id, self._chunking.chunk, self.frames)
        window = max(math.ceil(after), self._window_start(chunk_id))
        if self._ctc is not None and window < end:
            try:
                return self._aligned(tokens, window, end)
            except AlignmentError:
                pass  # too few frames
        delay = self._chunking.delay
        start, stop = max(0, begin - delay, after), float(end - delay)
        if start >= stop:  # settled words, or the delay, took the whole chunk: then a frame if there is one
            stop = max(start, min(start + 1, self.frames))
        width = (stop - start) / len(tokens)
        return [(start + index * width, start + (index + 1) * width) for index in range(len(tokens))]

    @torch.no_grad()
    def _aligned(self, tokens: Sequence[int], begin: int, end: int) -> list[FrameSpan]:
        """Align ``tokens`` to the frames from ``begin`` up to ``end``; raises AlignmentError if these are too few."""
        assert self._ctc is not None
        if begin < self._first:
            raise ValueError(f"times from frame {begin} on: the frames before {self._first} are forgotten")
        size = self._chunking.chunk or self.frames
        skipped = (begin - self._first) // size
        chunks = self._chunks[skipped : (end - 1 - self._first) // size + 1]
        offset = begin - self._first - skipped * size
        log_probs = self._ctc(torch.cat(chunks)[None, offset : offset + end - begin])[0].cpu()
        spelling = self._ctc.spelling
        if spelling is None:
            spans = viterbi(log_probs, list(tokens), self._ctc.blank)
            return [(float(begin + span.start), float(begin + span.end + 1)) for span in spans]
        spelled = spelling.each(tokens)
        labels = [label for each in spelled for label in each.ids]
        if all(each.silent for each in spelled):
            return [(float(begin), float(begin))] * len(tokens)
        found = spans_of_spelled(spelled, viterbi(log_probs, labels, self._ctc.blank), spelling.space, len(log_probs))
        return [(begin + start, begin + stop) for start, stop in found]

    def _window_start(self, chunk_id: int) -> int:
        begin, _ = timeline.chunk_span_frames(chunk_id, self._chunking.chunk, self.frames)
        return max(0, begin - frames_back(self._chunking.chunk, self._chunking.delay))


def spans_of_spelled(
    spelled: Sequence[Spelled], spans: Sequence[TokenSpan], space: int | None, num_frames: int
) -> list[FrameSpan]:
    """Return start and end of tokens, counted in the frames of ``spans``.

    Args:
        spelled: CTC's tokens of each; one at least has some.
        spans: of all CTC's tokens, in order.
        space: CTC's token between words, in which no token starts.
        num_frames: all that were aligned.
    """
    heard: list[FrameSpan | None] = []
    index = 0
    for each in spelled:
        own = spans[index : index + len(each.ids)]
        index += len(each.ids)
        first = 1 if len(own) > 1 and each.ids[0] == space else 0
        heard.append((float(own[first].start), float(own[-1].end + 1)) if own else None)
    found: list[FrameSpan] = []
    before = 0.0
    for is_heard, places in itertools.groupby(range(len(spelled)), lambda place: heard[place] is not None):
        group = list(places)
        if is_heard:
            found += [span for place in group if (span := heard[place]) is not None]
            before = found[-1][1]
            continue
        following = heard[group[-1] + 1] if group[-1] + 1 < len(heard) else None
        found += _between([spelled[place] for place in group], before, following, num_frames)
    return found


def _between(
    spelled: Sequence[Spelled], before: float, following: FrameSpan | None, num_frames: int
) -> list[FrameSpan]:
    """Return start and end of tokens that CTC does not hear.

    Args:
        spelled: the tokens.
        before: end of the token before them.
        following: span of the token behind them; None: there is none.
        num_frames: all that were aligned.
    """
    if not all(each.silent for each in spelled):
        return [(before, float(num_frames) if following is None else following[0])] * len(spelled)
    found, time = [], before
    for each in spelled:
        if each.opens and following is not None:
            time = following[0]
        found.append((time, time))
    return found


def hypothesis_spans(
    times: TokenTimes, tokens: Sequence[int], chunk_ids: Sequence[int], after: float = 0.0
) -> list[FrameSpan]:
    """Return start and end of all tokens of a hypothesis.

    Args:
        times: has the frames of their chunks.
        tokens: of the hypothesis.
        chunk_ids: the chunk of each token; never decreasing.
        after: frame before which none of the tokens begins.
    """
    spans: list[FrameSpan] = []
    index = 0
    while index < len(tokens):
        last = index
        while last < len(tokens) and chunk_ids[last] == chunk_ids[index]:
            last += 1
        spans += times.spans(tokens[index:last], chunk_ids[index], after)
        after, index = spans[-1][1], last
    return spans
