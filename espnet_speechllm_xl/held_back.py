"""Does the next chunk take up a word that its own chunk left out?  Probabilities at chunk borders, of the right text.

Where a word ends just before a border, a model may take it for one that ends behind it, and end the chunk's text
without it.  Then the word is lost, unless the next chunk's text begins with it: the model must see that the word was
said in the chunk before, and not written.  Both are asked of every such word, with all other text in its place::

    written     chunk k: frames, ... WORD $     chunk k + 1: frames, NEXT ...
    held back   chunk k: frames, ... $          chunk k + 1: frames, WORD NEXT ...

Shape legend: ``N`` samples, ``U`` tokens, ``R`` 1 + words at borders, ``L`` decoder sequence.
"""

from dataclasses import dataclass

import torch

from . import timeline
from .alignment import from_word_times, token_ends, within_audio
from .sequence import IGNORE
from .text import normalise, word_spans


@dataclass(frozen=True)
class BorderWord:
    """The last word of a chunk's text, and the probabilities that a model gives to it."""

    distance: int  # frames between its last frame and the chunk's last
    written: float  # the word, at the end of its chunk's text
    ended: float  # `$` in its place
    taken_up: float  # the word at the begin of the next chunk's text, when its own ended without it

    @property
    def lost(self):
        """The probability that both chunks leave it out."""
        return self.ended * (1 - self.taken_up)


def border_words(model, tokenizer, chunking, speech, text, words, near):
    """The :class:`BorderWord` of an utterance; the last words of recordings have no border behind them.

    Args:
        model: a :class:`~espnet_speechllm_xl.model.ChunkwiseModel`.
        tokenizer: of the model.
        chunking: :class:`~espnet_speechllm_xl.config.ChunkingConfig` with finite chunks.
        speech: (N,) samples at the model's rate.
        text: the transcript.
        words: its :class:`~espnet_speechllm_xl.ctm.Word`.
        near: frames of a chunk, counted from its end, that are at its border.

    Raises:
        AlignmentError: the words are not those of the text.
        UserError: a word ends much later than the audio.
    """
    text = normalise(text)
    tokens, char_ends = tokenizer.encode(text)
    ends = token_ends(from_word_times(text, words)[1], char_ends)
    spans = [(first, last) for _, first, last in word_spans(tokenizer, tokens)]
    with torch.inference_mode():
        speech = torch.as_tensor(speech, device=next(model.parameters()).device)
        frames, counts = model.acoustic(speech[None], torch.tensor([len(speech)], device=speech.device))
        # The frame that decides about a token's chunk:
        due = [end + chunking.delay for end in within_audio(ends, int(counts[0]))]
        spans = _at_borders(spans, due, chunking.chunk, near)
        if not spans:
            return []
        rows = [due, *(_held_back(due, *span, chunking.chunk) for span in spans)]
        rows, tokens = (torch.tensor(values, device=speech.device) for values in (rows, tokens))
        logs, places = _log_probs(model, chunking, frames, counts, tokens, rows - chunking.delay)
    found = []
    for row, (first, last) in enumerate(spans, start=1):
        word = slice(first, last + 1)
        written, taken_up = (logs[one, places[one, word], tokens[word]].sum().exp().item() for one in (0, row))
        ended = logs[0, places[0, first], model.decoder.eoc].exp().item()
        distance = chunking.chunk - 1 - timeline.place_in_chunk(due[last], chunking.chunk)
        found.append(BorderWord(distance, written, ended, taken_up))
    return found


def _at_borders(spans, due, chunk, near):
    """Those of ``spans`` (first and last token of a word) that end near a border, with the next word behind it."""
    return [
        (first, last)
        for (first, last), (following, _) in zip(spans, spans[1:], strict=False)
        if timeline.chunk_of_frame(due[last], chunk) < timeline.chunk_of_frame(due[following], chunk)
        and timeline.place_in_chunk(due[last], chunk) >= chunk - near
    ]


def _held_back(due, first, last, chunk):
    """``due`` with the tokens of a word moved to the first frame of the next chunk."""
    border = (timeline.chunk_of_frame(due[last], chunk) + 1) * chunk
    return due[:first] + [border] * (last + 1 - first) + due[last + 1 :]


def _log_probs(model, chunking, frames, counts, tokens, rows):
    """Log-probabilities (R, L, V) after every decoder input, and the place (R, U) in L that predicts each token.

    ``tokens`` is (U,); ``rows`` (R, U) are their last frames in each of the sequences to score.
    """
    many, lengths = len(rows), torch.full_like(rows[:, 0], len(tokens))
    hidden, targets = model.decode_aligned(
        frames.expand(many, -1, -1), counts.expand(many), tokens.expand(many, -1), lengths, rows, chunking
    )
    is_text = (targets != IGNORE) & (targets != model.decoder.eoc)
    return model.decoder.logits(hidden).log_softmax(-1), is_text.nonzero()[:, 1].reshape(many, -1)
