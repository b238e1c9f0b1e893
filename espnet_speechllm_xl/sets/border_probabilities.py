"""Does the next chunk take up a word that its own chunk left out?  Probabilities at chunk borders, of the right text.

Where a word ends just before a border, a model may take it for one that ends behind it, and end the chunk's text
without it.  Then the word is lost, unless the next chunk's text begins with it: the model must see that the chunk
before said the word and did not write it.  Both are asked of every such word, with all other text in its place::

    written     chunk k: frames, ... WORD $     chunk k + 1: frames, NEXT ...
    held back   chunk k: frames, ... $          chunk k + 1: frames, WORD NEXT ...

Shape legend: ``B`` recordings, ``N`` samples, ``T`` frames, ``D`` dimension, ``V`` vocabulary, ``U`` tokens,
``R`` 1 + words at borders, ``L`` decoder sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.corpus.kaldi import read_text
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.border_errors import count_rows, reason_rows, usable
from espnet_speechllm_xl.evaluation.markdown import markdown_table
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.model.alignment import from_word_times, token_ends, within_audio
from espnet_speechllm_xl.model.chunk_model import AlignedModel
from espnet_speechllm_xl.model.sequence import IGNORE
from espnet_speechllm_xl.sets.audio import SetAudio
from espnet_speechllm_xl.tokenization import Tokenizer, normalise, word_spans, words_of

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.corpus.ctm import Word

AT_ONCE = 4  # sequences; the mask of each is as large as the square of its length


@dataclass(frozen=True)
class BorderWord:
    """The last word of a chunk's text, and the probabilities that a model gives to it."""

    distance: int  # frames between its last frame and the chunk's last
    written: float  # the word, at the end of its chunk's text
    ended: float  # `$` in its place
    taken_up: float  # the word at the begin of the next chunk's text, when its own ended without it

    @property
    def lost(self) -> float:
        """Return the probability that both chunks leave it out."""
        return self.ended * (1 - self.taken_up)


def border_words(
    model: AlignedModel,
    tokenizer: Tokenizer,
    chunking: ChunkingConfig,
    speech: "np.ndarray",
    text: str,
    words: "Sequence[Word]",
    near: int,
) -> list[BorderWord]:
    """Return the words of an utterance that end near a border; the last word of a recording has no border behind it.

    Args:
        model: as it is loaded.
        tokenizer: the model's.
        chunking: settings with finite chunks.
        speech: (N,) samples at the model's rate.
        text: the transcript.
        words: the words of the transcript with their times.
        near: frames of a chunk, counted from its end, that are at its border.

    Raises:
        AlignmentError: the words differ from the text.
        UserError: a word ends much later than the audio.
    """
    text, chunk_size = normalise(text), _finite(chunking)
    token_ids, char_ends = tokenizer.encode(text)
    ends = token_ends(from_word_times(text, words)[1], char_ends)
    spans = [(first, last) for _, first, last in word_spans(tokenizer, token_ids)]
    with torch.inference_mode():
        samples = torch.as_tensor(speech, device=next(model.parameters()).device)
        frames, counts = model.acoustic(
            samples[None], torch.tensor([len(samples)], device=samples.device), chunking.look_ahead
        )
        # The frame that decides about a token's chunk:
        deciding = [end + chunking.delay for end in within_audio(ends, int(model.acoustic.audio_frames(counts)[0]))]
        num_chunks = timeline.num_chunks(int(counts[0]), chunk_size)
        spans = _at_borders(spans, deciding, chunk_size, near, num_chunks)
        if not spans:
            return []
        rows = [deciding, *(_held_back(deciding, first, last, chunk_size) for first, last in spans)]
        groups = (torch.tensor(rows, device=samples.device) - chunking.delay).split(AT_ONCE)
        tokens = torch.tensor(token_ids, device=samples.device)
        scored = [_log_probs(model, chunking, frames, counts, tokens, group) for group in groups]
    of_text, of_end = (torch.cat(parts) for parts in zip(*scored, strict=True))
    found = []
    for row, (first, last) in enumerate(spans, start=1):
        written, taken_up = (of_text[one, first : last + 1].sum().exp().item() for one in (0, row))
        distance = chunk_size - 1 - timeline.place_in_chunk(deciding[last], chunk_size)
        found.append(BorderWord(distance, written, of_end[0, first].exp().item(), taken_up))
    return found


def _finite(chunking: ChunkingConfig) -> int:
    """Return the frames of a chunk."""
    if chunking.chunk is None:
        raise UserError("an infinite chunk has no border: give --chunk FRAMES")
    return chunking.chunk


def _at_borders(
    spans: Sequence[tuple[int, int]], deciding: Sequence[int], chunk_size: int, near: int, num_chunks: int
) -> list[tuple[int, int]]:
    """Return the words that end near a border behind which the next word is, by their first and last tokens.

    Args:
        spans: first and last token of every word.
        deciding: the frame that decides about the chunk of each token.
        chunk_size: frames of a chunk.
        near: frames of a chunk, counted from its end, that are at its border.
        num_chunks: chunks of the recording; the last one takes all that is decided later.
    """
    chunk_ids = [min(timeline.chunk_of_frame(frame, chunk_size), num_chunks - 1) for frame in deciding]
    return [
        (first, last)
        for (first, last), (following, _) in zip(spans, spans[1:], strict=False)
        if chunk_ids[last] < chunk_ids[following]
        and timeline.place_in_chunk(deciding[last], chunk_size) >= chunk_size - near
    ]


def _held_back(deciding: list[int], first: int, last: int, chunk_size: int) -> list[int]:
    """Return ``deciding`` with the tokens from ``first`` to ``last`` moved to the first frame of the next chunk."""
    border = (timeline.chunk_of_frame(deciding[last], chunk_size) + 1) * chunk_size
    return deciding[:first] + [border] * (last + 1 - first) + deciding[last + 1 :]


def _log_probs(
    model: AlignedModel,
    chunking: ChunkingConfig,
    frames: torch.Tensor,
    counts: torch.Tensor,
    tokens: torch.Tensor,
    ends: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities (R, U) of every token, and of `$` in its place.

    ``frames`` (1, T, D) and ``counts`` (1,) are the recording; its tokens (U,) end in the frames ``ends`` (R, U).
    """
    num_rows, lengths = len(ends), torch.full_like(ends[:, 0], len(tokens))
    tokens = tokens.expand(num_rows, -1)
    hidden, targets = model.decode_aligned(
        frames.expand(num_rows, -1, -1), counts.expand(num_rows), tokens, lengths, ends, chunking
    )
    is_text = (targets != IGNORE) & (targets != model.decoder.eoc)
    log_probs = model.decoder.logits(hidden[is_text].reshape(*tokens.shape, -1)).log_softmax(-1)
    return log_probs.gather(-1, tokens[..., None])[..., 0], log_probs[..., model.decoder.eoc]


def model_report(
    model: str,
    dump: Path,
    times: "Mapping[str, list[Word]]",
    chunk_size: int | None = None,
    near: int = 3,
    device: str = "cpu",
    llm: str | None = None,
) -> tuple[list[str], int]:
    """Return lines of Markdown about the words that end just before borders, and how many utterances were counted.

    Args:
        model: directory of a model, or a packed file.
        dump: set with texts and audio.
        times: ``{utterance: words}`` with their times.
        chunk_size: frames; None: the model's.
        near: frames of a chunk, counted from its end, that are at its border.
        device: "cpu" or "cuda".
        llm: directory of the language model that the decoder was trained from; see ``Speech2Text.from_pretrained``.

    Raises:
        UserError: the model does not write chunk by chunk, or the set or a setting cannot be used.
    """
    speech2text = Speech2Text.from_pretrained(model, device, llm=llm, ctc_weight=0.0)
    chunking = speech2text.chunking
    if chunking is None or (chunk_size or chunking.chunk) is None or not hasattr(speech2text.model, "decode_aligned"):
        raise UserError(f"{model} does not write chunk by chunk: give a SpeechLLM-XL, ReaLLM or chunked AED")
    chunking = chunking if chunk_size is None else chunking.resized(chunk_size)
    if not 0 < near < _finite(chunking):
        raise UserError(f"{near} frames near a boundary do not fit into a chunk of {chunking.chunk}: give fewer")
    texts, audio = read_text(dump / "text"), SetAudio(dump, speech2text.sample_rate)
    found: list[BorderWord] = []
    left_out: dict[str, str] = {}
    for utterance, text in tqdm(texts.items(), desc=dump.name, disable=None):
        timed, reason = usable(times.get(utterance), words_of(text))
        reason = audio.why_unlisted(utterance) or reason
        try:
            if timed is not None and reason is None:
                speech = audio.read(utterance).samples
                found += border_words(speech2text.model, speech2text.tokenizer, chunking, speech, text, timed, near)
        except UserError as error:
            reason = str(error)
        if reason is not None:
            left_out[utterance] = reason
    seconds = timeline.chunk_seconds(_finite(chunking))
    lines = [
        *_table(found, near),
        "",
        f"frames: from the word's last to the last of its chunk of {seconds:.2f} s; the rest are "
        f"mean probabilities. {count_rows(texts, left_out)}",
    ]
    return lines + reason_rows(left_out), len(texts) - len(left_out)


def _table(found: Sequence[BorderWord], near: int) -> list[str]:
    rows = []
    for distance in [*range(near), "all"]:
        chosen = [word for word in found if distance in ("all", word.distance)]
        columns = ([getattr(word, name) for word in chosen] for name in ("written", "ended", "taken_up", "lost"))
        shares = (f"{sum(column) / len(column):.3f}" if column else "-" for column in columns)
        rows.append([str(distance), str(len(chosen)), *shares])
    return markdown_table(["frames", "words", "written", "`$` instead", "taken up, if left out", "lost"], rows)
