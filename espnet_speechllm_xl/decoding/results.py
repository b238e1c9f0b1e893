"""What decoding returns: transcripts, updates of a stream, their words."""

import math
from dataclasses import dataclass

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus.ctm import Word, joined_text
from espnet_speechllm_xl.decoding.token_times import hypothesis_spans
from espnet_speechllm_xl.tokenization import normalise, word_spans


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


def timed_words(tokenizer, tokens, scores, spans, joined=False):
    """Words of ``tokens`` with times and confidence, as :class:`~espnet_speechllm_xl.corpus.ctm.Word`.

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


def distinct_texts(tokenizer, hypotheses):
    """``{text: its best hypothesis}``, best first: several token sequences can spell one text."""
    texts = {}
    for hypothesis in hypotheses:
        # Single spaces, as the settled words joined: a word-start piece may stand alone.
        texts.setdefault(normalise(tokenizer.decode(hypothesis.tokens)), hypothesis)
    return texts


def make_transcript(tokenizer, times, text, hypothesis):
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
