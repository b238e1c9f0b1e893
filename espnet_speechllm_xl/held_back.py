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

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.alignment import from_word_times, token_ends, within_audio
from espnet_speechllm_xl.sequence import IGNORE
from espnet_speechllm_xl.text import normalise, word_spans

AT_ONCE = 4  # sequences; the mask of each is as large as the square of its length


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
        due = [end + chunking.delay for end in within_audio(ends, int(model.acoustic.heard(counts)[0]))]
        spans = _at_borders(spans, due, chunking.chunk, near, timeline.num_chunks(int(counts[0]), chunking.chunk))
        if not spans:
            return []
        rows = [due, *(_held_back(due, *span, chunking.chunk) for span in spans)]
        rows, tokens = (torch.tensor(values, device=speech.device) for values in (rows, tokens))
        groups = (rows - chunking.delay).split(AT_ONCE)
        scored = [_log_probs(model, chunking, frames, counts, tokens, ends) for ends in groups]
    of_text, of_end = (torch.cat(parts) for parts in zip(*scored, strict=True))
    found = []
    for row, (first, last) in enumerate(spans, start=1):
        written, taken_up = (of_text[one, first : last + 1].sum().exp().item() for one in (0, row))
        distance = chunking.chunk - 1 - timeline.place_in_chunk(due[last], chunking.chunk)
        found.append(BorderWord(distance, written, of_end[0, first].exp().item(), taken_up))
    return found


def _at_borders(spans, due, chunk, near, chunks):
    """Those of ``spans`` (first and last token of a word) that end near a border, with the next word behind it."""
    chunk_of = [min(timeline.chunk_of_frame(frame, chunk), chunks - 1) for frame in due]
    return [
        (first, last)
        for (first, last), (following, _) in zip(spans, spans[1:], strict=False)
        if chunk_of[last] < chunk_of[following] and timeline.place_in_chunk(due[last], chunk) >= chunk - near
    ]


def _held_back(due, first, last, chunk):
    """``due`` with the tokens of a word moved to the first frame of the next chunk."""
    border = (timeline.chunk_of_frame(due[last], chunk) + 1) * chunk
    return due[:first] + [border] * (last + 1 - first) + due[last + 1 :]


def _log_probs(model, chunking, frames, counts, tokens, ends):
    """Log-probabilities (R, U) of every token, and of `$` in its place, when the tokens (U,) end in frames (R, U)."""
    many, lengths = len(ends), torch.full_like(ends[:, 0], len(tokens))
    tokens = tokens.expand(many, -1)
    hidden, targets = model.decode_aligned(
        frames.expand(many, -1, -1), counts.expand(many), tokens, lengths, ends, chunking
    )
    is_text = (targets != IGNORE) & (targets != model.decoder.eoc)
    logs = model.decoder.logits(hidden[is_text].reshape(*tokens.shape, -1)).log_softmax(-1)
    return logs.gather(-1, tokens[..., None])[..., 0], logs[..., model.decoder.eoc]
