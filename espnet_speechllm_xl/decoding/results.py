"""The results of decoding: transcripts, updates of a stream, their words."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus.ctm import Word, joined_text
from espnet_speechllm_xl.decoding.searches import Hypothesis
from espnet_speechllm_xl.decoding.token_times import FrameSpan, TokenTimes, hypothesis_spans
from espnet_speechllm_xl.tokenization import Tokenizer, normalise, word_spans


@dataclass(frozen=True)
class TextSegment:
    """The text between two endpoints."""

    index: int  # 0-based
    words: tuple[Word, ...] = ()
    tokens: tuple[str, ...] = ()
    timestamps: tuple[float, ...] = ()  # start of each token, seconds from the start of the stream

    @property
    def text(self) -> str:
        """Return the words, joined by single spaces where the script has spaces."""
        return joined_text(self.words)

    @property
    def start(self) -> float | None:
        """Return the start of the first word in seconds; None without words."""
        return self.words[0].start if self.words else None

    @property
    def end(self) -> float | None:
        """Return the end of the last word in seconds; None without words."""
        return self.words[-1].end if self.words else None

    @property
    def confidence(self) -> float | None:
        """Return the mean confidence of the words; None without words that have one."""
        known = [word.confidence for word in self.words if word.confidence is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Update:
    """The changes of a push."""

    text: str = ""  # newly settled text, never taken back
    partial: str = ""  # follows the settled text, may still change
    words: tuple[Word, ...] = ()  # newly settled words
    segments: tuple[TextSegment, ...] = ()  # segments that ended, settled whole
    segment: TextSegment | None = None  # the open one with the words settled so far; None where endpoints are off
    joined: bool = False  # no space stands between the settled text and ``partial``


@dataclass(frozen=True)
class Transcript:
    """One hypothesis of a whole recording."""

    text: str
    score: float  # log-probability of tokens and `$`
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    words: tuple[Word, ...]
    capped: int | None  # chunks that reached max_tokens_per_chunk; None: of a system that has no such cap


class TokenSequence(Protocol):
    """A hypothesis of any search, as far as its text goes."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the token ids."""


H = TypeVar("H", bound=TokenSequence)


def timed_words(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    scores: Sequence[float],
    spans: Sequence[FrameSpan],
    joined: bool = False,
) -> list[Word]:
    """Return the words that tokens spell, with times and confidence.

    Args:
        tokenizer: of the tokens.
        tokens: whole words.
        scores: log-probability of each token.
        spans: start and end of each token in frames.
        joined: no space stands before the first word.
    """
    words, before = [], -1 if joined else 0
    for text, first, last in word_spans(tokenizer, tokens):
        start, end = (timeline.frame_start_seconds(frame) for frame in (spans[first][0], spans[last][1]))
        word_scores = scores[first : last + 1]
        # What shares its tokens with the word before was parted from it by white space inside them.
        follows_closely = first > before and not tokenizer.marks_space(tokens[first])
        words.append(Word(text, start, end, math.exp(sum(word_scores) / len(word_scores)), follows_closely))
        before = first
    return words


def distinct_texts(tokenizer: Tokenizer, hypotheses: Iterable[H]) -> dict[str, H]:
    """Return the best hypothesis of each text, best first: several token sequences can spell one text."""
    texts: dict[str, H] = {}
    for hypothesis in hypotheses:
        # Single spaces, as the settled words joined: a word-start piece may stand alone.
        texts.setdefault(normalise(tokenizer.decode(hypothesis.tokens)), hypothesis)
    return texts


def make_transcript(tokenizer: Tokenizer, times: TokenTimes, text: str, hypothesis: Hypothesis) -> Transcript:
    """Return a hypothesis as a user wants it.

    Args:
        tokenizer: of its tokens.
        times: of the recording.
        text: of the hypothesis.
        hypothesis: of a search.
    """
    tokens = hypothesis.tokens
    spans = hypothesis_spans(times, tokens, hypothesis.chunk_ids)
    return Transcript(
        text=text,
        score=hypothesis.score,
        tokens=tuple(tokenizer.pieces[token] for token in tokens),
        token_ids=tokens,
        words=tuple(timed_words(tokenizer, tokens, hypothesis.token_scores, spans)),
        capped=hypothesis.capped,
    )
