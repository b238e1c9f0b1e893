"""Endpoints of a stream against sentences with pauses between them: inside a sentence, late, on time.

A word of the stream belongs to a sentence if its middle is within :data:`TOLERANCE` of it; any other was written in a
pause.  A sentence is judged by the stream segments that hold its words:

    silent      none of its words was written, so there is nothing to end
    cut         its words are in several stream segments, or theirs ended before its last word did
    late        its segment holds words of another sentence too, or ended more than a limit behind its last word
    on time     all others
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from espnet_speechllm_xl.corpus.ctm import Word

TOLERANCE = 0.5  # seconds


class Sentence(NamedTuple):
    """A sentence of the reference: start of its first word and end of its last, in seconds."""

    start: float
    end: float


class EndedSegment(NamedTuple):
    """A stream segment: its words, and how many seconds of audio had been pushed when it ended."""

    words: tuple[Word, ...]
    ended: float


@dataclass(frozen=True)
class Endpoints:
    """Sentences by what became of their endpoints.

    Attributes:
        silent: sentences of which no word was written.
        cut: sentences with an endpoint inside.
        late: sentences that ended late.
        delays: seconds from the last word of each other sentence to its endpoint.
        stray: words that were written in pauses.
    """

    silent: int
    cut: int
    late: int
    delays: tuple[float, ...]
    stray: int

    @property
    def sentences(self) -> int:
        """Return the number of all sentences."""
        return self.silent + self.cut + self.late + len(self.delays)


def judge_endpoints(sentences: Sequence[Sentence], segments: Sequence[EndedSegment], limit: float) -> Endpoints:
    """Compare the stream segments of one stream with its sentences.

    Args:
        sentences: in order; the pauses between them are longer than twice :data:`TOLERANCE`.
        segments: in order.
        limit: seconds behind the last word after which an endpoint is late.
    """
    holders: list[list[int]] = [[] for _ in sentences]  # of each sentence, the segments with a word of it
    stray = 0
    for index, segment in enumerate(segments):
        for word in segment.words:
            owner = _owner(sentences, (word.start + word.end) / 2)
            if owner is None:
                stray += 1
            elif index not in holders[owner]:
                holders[owner].append(index)
    counts, delays = dict.fromkeys(("silent", "cut", "late"), 0), []
    for sentence, held in zip(sentences, holders, strict=True):
        if not held:
            counts["silent"] += 1
        elif len(held) > 1 or segments[held[0]].ended < sentence.end:
            counts["cut"] += 1
        elif sum(held[0] in others for others in holders) > 1 or segments[held[0]].ended - sentence.end > limit:
            counts["late"] += 1
        else:
            delays.append(segments[held[0]].ended - sentence.end)
    return Endpoints(**counts, delays=tuple(delays), stray=stray)


def _owner(sentences: Sequence[Sentence], middle: float) -> int | None:
    """Return which sentence was being said at a time; None: none was."""
    for index, sentence in enumerate(sentences):
        if sentence.start - TOLERANCE <= middle <= sentence.end + TOLERANCE:
            return index
    return None
