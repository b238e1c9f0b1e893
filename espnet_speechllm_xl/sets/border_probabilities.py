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
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.border_errors import count_rows, reason_rows
from espnet_speechllm_xl.evaluation.markdown import markdown_table
from espnet_speechllm_xl.model.alignment import from_word_times, token_ends, within_audio
from espnet_speechllm_xl.model.sequence import IGNORE
from espnet_speechllm_xl.tokenization import normalise, word_spans

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
        model: a :class:`~espnet_speechllm_xl.systems.base_model.ChunkwiseModel`.
        tokenizer: of the model.
        chunking: :class:`~espnet_speechllm_xl.config.ChunkingConfig` with finite chunks.
        speech: (N,) samples at the model's rate.
        text: the transcript.
        words: its :class:`~espnet_speechllm_xl.corpus.ctm.Word`.
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
        due = [end + chunking.delay for end in within_audio(ends, int(model.acoustic.audio_frames(counts)[0]))]
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


def model_report(model, dump, times, chunk, near, device):
    """Lines of Markdown about a model, and the number of utterances counted; raises UserError or OSError."""
    from tqdm import tqdm

    from espnet_speechllm_xl.corpus.audio import read_audio
    from espnet_speechllm_xl.corpus.kaldi import read_table, read_text
    from espnet_speechllm_xl.evaluation.border_errors import usable
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.timeline import chunk_seconds
    from espnet_speechllm_xl.tokenization import words_of

    speech2text = Speech2Text.from_pretrained(model, device, ctc_weight=0.0)
    chunking = speech2text.chunking
    if chunking is None or (chunk or chunking.chunk) is None or not hasattr(speech2text.model, "decode_aligned"):
        raise UserError(f"{model} does not write chunk by chunk: give a SpeechLLM-XL, ReaLLM or chunked AED")
    chunking = chunking if chunk is None else chunking.resized(chunk)
    if not 0 < near < chunking.chunk:
        raise UserError(f"{near} frames near a boundary do not fit into a chunk of {chunking.chunk}: give fewer")
    texts, audio = read_text(dump / "text"), read_table(dump / "wav.scp")
    found, left_out = [], {}
    for utterance, text in tqdm(texts.items(), desc=dump.name, disable=None):
        timed, reason = usable(times.get(utterance), words_of(text))
        reason = reason if utterance in audio else "not in wav.scp"
        try:
            if reason is None:
                speech = read_audio(audio[utterance], speech2text.sample_rate, notes={})
                found += border_words(speech2text.model, speech2text.tokenizer, chunking, speech, text, timed, near)
        except UserError as error:
            reason = str(error)
        if reason is not None:
            left_out[utterance] = reason
    lines = [
        *_table(found, near),
        "",
        f"frames: from the word's last to the last of its chunk of {chunk_seconds(chunking.chunk):.2f} s; the rest are "
        f"mean probabilities. {count_rows(texts, left_out)}",
    ]
    return lines + reason_rows(left_out), len(texts) - len(left_out)


def _table(found, near):
    rows = []
    for distance in [*range(near), "all"]:
        chosen = [word for word in found if distance in ("all", word.distance)]
        columns = ([getattr(word, name) for word in chosen] for name in ("written", "ended", "taken_up", "lost"))
        shares = (f"{sum(column) / len(column):.3f}" if column else "-" for column in columns)
        rows.append([str(distance), str(len(chosen)), *shares])
    return markdown_table(["frames", "words", "written", "`$` instead", "taken up, if left out", "lost"], rows)
