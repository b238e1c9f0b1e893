"""When each character of a transcript ends: CTC Viterbi, word times (CTM), and moving between tokenizers.

The artefact is ``char_ends``: a Kaldi-style line per utterance with one end frame (25 Hz, 0-based, inclusive) for
every character of its transcript, spaces included.  It knows no tokenizer: a target token ends where its last
character ends.

Shape legend: ``T`` frames, ``V`` tokenizer size (the blank is one more), ``S`` states of a CTC path.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus.ctm import Word
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.tokenization import Piece, Tokenizer, pieces_of, word_begins, word_edges

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]

NO_TEXT = "-"  # stands for an empty value: ESPnet's readers have none
# Most frames times states that torchaudio's aligner gets.  It counts them in 32 bits and ends the process from 2 ** 31
# on (half an hour of speech, in characters).  It needs a byte for each.  From about here on blocks are faster.
NATIVE_CELLS = 2**26


class AlignmentError(UserError):
    """An utterance cannot be aligned; the message is the reason."""


@dataclass(frozen=True)
class TokenSpan:
    """First and last frame (inclusive) that the best path gives to a token."""

    start: int
    end: int


def viterbi(log_probs: "Tensor", tokens: Sequence[int], blank: int) -> list[TokenSpan]:
    """Find the best CTC path of tokens; return the span of each.

    ``torchaudio.functional.forced_align`` finds it up to ``NATIVE_CELLS``, :func:`viterbi_in_blocks` beyond.

    Args:
        log_probs: (T, V + 1), on any device.
        tokens: the token ids.
        blank: index of the blank.

    Raises:
        AlignmentError: no tokens, or too few frames for them and their repeats.
    """
    if not tokens:
        raise AlignmentError("empty text")
    repeats = sum(first == second for first, second in zip(tokens, tokens[1:], strict=False))
    if len(log_probs) < len(tokens) + repeats:
        raise AlignmentError(f"too few frames ({len(log_probs)}) for {len(tokens)} tokens and {repeats} repeats")
    if len(log_probs) * num_states(tokens) > NATIVE_CELLS:
        # In float32 the sums of an hour would be off by more than two paths differ.
        return viterbi_in_blocks(log_probs.double().cpu().numpy(), tokens, blank)
    return _viterbi_by_torchaudio(log_probs, tokens, blank)


def _viterbi_by_torchaudio(log_probs: "Tensor", tokens: Sequence[int], blank: int) -> list[TokenSpan]:
    import torch
    from torchaudio.functional import forced_align

    targets = torch.tensor([tokens], dtype=torch.int32, device=log_probs.device)
    path, _ = forced_align(log_probs[None].float(), targets, blank=blank)
    # torchaudio's merge_tokens takes three times as long as the alignment of a chunk.
    spans, end = [], 0
    for label, frames in itertools.groupby(path[0].tolist()):
        start, end = end, end + sum(1 for _ in frames)
        if label != blank:
            spans.append(TokenSpan(start, end - 1))
    return spans


def num_states(tokens: Sequence[int]) -> int:
    """Count the states of the CTC path: the tokens, and a blank before, between and after them."""
    return 2 * len(tokens) + 1


def viterbi_in_blocks(
    log_probs: Floats, tokens: Sequence[int], blank: int, block: int | None = None
) -> list[TokenSpan]:
    """Find the best CTC path of tokens in bounded memory: (T * S) ** (2 / 3) instead of T * S cells.

    The first pass keeps the scores of all S states at the start of each block of frames.  The second pass goes from
    the last block to the first.  It repeats each block for the few states from which the block's last state can be
    reached.

    Args:
        log_probs: (T, V + 1); T is at least the number of tokens and of repeats among them.
        tokens: the token ids.
        blank: index of the blank.
        block: frames of a block; None: as many as make both passes need about the same memory.

    Returns:
        The span of each token.
    """
    lattice, frames = _Lattice(log_probs, tokens, blank), len(log_probs)
    block = block or max(1, round((frames * lattice.size) ** (1 / 3)))
    starts = range(0, frames, block)
    kept: list[Floats] = []
    scores = lattice.before()
    for start in starts:
        kept.append(scores.copy())
        for frame in range(start, min(start + block, frames)):
            lattice.advance(scores, frame, *lattice.reachable(frame))
    state = lattice.size - 1 if scores[-1] > scores[-2] else lattice.size - 2
    path = np.empty(frames, dtype=np.int64)
    for start, scores in zip(reversed(starts), reversed(kept), strict=True):
        end = min(start + block, frames)
        path[start:end], state = lattice.trace(scores, start, end, state)
    spoken = np.flatnonzero(path % 2)  # odd states are tokens, and each of them has a frame
    firsts = np.searchsorted(path[spoken], 2 * np.arange(len(tokens)) + 1)
    lasts = np.append(firsts[1:], len(spoken)) - 1
    return [TokenSpan(int(spoken[first]), int(spoken[last])) for first, last in zip(firsts, lasts, strict=True)]


class _Lattice:
    """The states of a CTC path: blank, first token, blank, second token, ... blank.

    Scores (S + 2,) have two places before the first state, so that every state has two places before it.

    Args:
        log_probs: (T, V + 1)
        tokens: the token ids.
        blank: index of the blank.
    """

    def __init__(self, log_probs: Floats, tokens: Sequence[int], blank: int) -> None:
        self.log_probs, self.size = log_probs, num_states(tokens)
        self.labels = np.full(self.size, blank)
        self.labels[1::2] = tokens
        # A path may pass over the blank before a token, unless the token before is the same.
        self.passing = np.full(self.size, -np.inf)
        self.passing[1] = 0
        self.passing[3::2][self.labels[3::2] != self.labels[1:-2:2]] = 0

    def before(self) -> Floats:
        """Return the scores before the first frame: only the first two states can follow."""
        scores = np.full(self.size + 2, -np.inf)
        scores[1] = 0
        return scores

    def reachable(self, frame: int) -> tuple[int, int]:
        """Return the first state that a path can be in, and the state after the last: it moves two a frame at most."""
        return max(0, self.size - 2 * (len(self.log_probs) - frame)), min(self.size, 2 * frame + 2)

    def advance(self, scores: Floats, frame: int, low: int, high: int) -> npt.NDArray[np.int8]:
        """Take a frame into the scores in place; return how far the best path to each state has moved.

        Args:
            scores: (S + 2,) before the frame.
            frame: index of the frame.
            low: first state to take it into.
            high: state after the last.
        """
        stay, move = scores[low + 2 : high + 2], scores[low + 1 : high + 1]
        jump = scores[low:high] + self.passing[low:high]
        steps = (move > stay).astype(np.int8)
        best = np.maximum(stay, move)
        steps[jump > best] = 2
        np.maximum(best, jump, out=best)
        best += self.log_probs[frame, self.labels[low:high]]
        scores[low + 2 : high + 2] = best
        scores[:2] = -np.inf
        return steps

    def trace(self, scores: Floats, start: int, end: int, state: int) -> tuple[list[int], int]:
        """Follow the best path back through a block of frames.

        Args:
            scores: (S + 2,) before the block; changed.
            start: first frame.
            end: frame after the last.
            state: of the path in the last frame.

        Returns:
            The states of the block's frames, and the state before them.
        """
        low = max(0, state - 2 * (end - start) + 1)
        steps = [self.advance(scores, frame, low, state + 1) for frame in range(start, end)]
        path = []
        for step in reversed(steps):
            path.append(state)
            state -= int(step[state - low])
        return path[::-1], state


def char_times(spans: Sequence[TokenSpan], token_char_ends: Sequence[int], num_chars: int) -> list[list[int]]:
    """Return the start frames and the end frames of the characters; a character has the times of its token.

    A character of several tokens (its bytes, or the word mark before the first) starts with the first and ends with
    the last.

    Args:
        spans: of each token.
        token_char_ends: exclusive end of each token's last character (tokenization.py).
        num_chars: length of the transcript.
    """
    starts: list[int] = []
    ends: list[int] = []
    start = end = 0
    for span, char_end in zip(spans, token_char_ends, strict=True):
        start, end = span.start, max(end, span.end)
        if ends and char_end == len(ends):
            ends[-1] = end
        starts.extend([start] * (char_end - len(starts)))
        ends.extend([end] * (char_end - len(ends)))
    rest = num_chars - len(ends)
    return [starts + [start] * rest, ends + [end] * rest]


def token_ends(char_ends: Sequence[int], token_char_ends: Iterable[int]) -> list[int]:
    """Return the end frame of each token of any tokenizer: its last character's; never decreasing.

    Args:
        char_ends: end frame of each character.
        token_char_ends: exclusive end of each token's last character (tokenization.py).
    """
    ends: list[int] = []
    last = 0
    for char_end in token_char_ends:
        last = max(last, char_ends[char_end - 1] if char_end else 0)
        ends.append(last)
    return ends


def within_audio(ends: Iterable[int], frames: int) -> list[int]:
    """Move end frames that lie a little behind the audio of ``frames`` frames to its last frame.

    Word times may go beyond the last complete frame.  An end much later is left, to be refused.
    """
    last = max(0, frames - 1)
    late = last + timeline.gap_frames(timeline.OVERSHOOT_SECONDS)
    return [min(end, last) if end <= late else end for end in ends]


def whole_word_ends(ends: Iterable[int], tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """Give all tokens of a word the end frame of its last token.

    Every token of a word then falls into the chunk in which the word ends, as with an alignment from word times.

    Args:
        ends: end frame of each token.
        tokens: their ids.
        tokenizer: tells where words begin.
    """
    ends = list(ends)
    for index in reversed(range(1, len(tokens))):
        if not word_begins(tokenizer, tokens, index):
            ends[index - 1] = ends[index]
    return ends


def transfer(source: str, char_ends: Sequence[int], target: str) -> list[int]:
    """Move end frames from the characters of one text to the characters of another, the same words respelt.

    Letters match without regard to case.  A character that the source lacks (punctuation, case marks) takes the end
    of the character before it; a space takes its own match or the end before it.

    Args:
        source: the aligned text.
        char_ends: end frame of each of its characters.
        target: the text whose characters get ends.

    Raises:
        AlignmentError: a letter or digit of either text has no match in the other.
    """
    ends: list[int] = []
    position = last = 0
    for character in target:
        match = _find(source, position, character)
        if match is not None:
            last = max(last, char_ends[match])
            position = match + 1
        elif character.isalnum():
            raise AlignmentError(
                f"'{character}' of the transcript is not in the aligned text at '{source[position:][:20]}'"
            )
        ends.append(last)
    if any(character.isalnum() for character in source[position:]):
        raise AlignmentError(f"the aligned text goes on with '{source[position:][:20]}' where the transcript ends")
    return ends


def _find(source: str, position: int, character: str) -> int | None:
    """Return the index of ``character`` in ``source``; None if a letter or a digit comes before it, or the end.

    Args:
        source: text in which to look.
        position: index from which to look.
        character: matches without regard to case.
    """
    wanted = character.casefold()
    while position < len(source):
        if source[position].casefold() == wanted:
            return position
        if source[position].isalnum():
            return None
        position += 1
    return None


class MovedTimes(NamedTuple):
    """The times of a written text.

    Attributes:
        starts: start frame of each character.
        ends: end frame of each character; never decreasing.
        read_otherwise: the words that are not written as they are read (``1998``, ``Dr.``), or are not read at all.
    """

    starts: list[int]
    ends: list[int]
    read_otherwise: list[str]


def move_to_written(spoken: str, times: Sequence[Sequence[int]], written: str) -> MovedTimes:
    """Move times from what is spoken (``nineteen ninety eight``) to what is written (``1998``).

    Words of both are matched without regard to case and punctuation (:func:`same_words`).  A matched word has the
    times of its characters, an abbreviation those of the whole word.  Between two matched words, all other written
    words have the time of all other spoken ones, from their start to their end; where there are as many of both, each
    has that of its own (``6 0 3``).  Where nothing was spoken, they end with the word before.  Punctuation ends with
    the character before it, at the begin of a word with the one after it.

    Args:
        spoken: the aligned text.
        times: start frames and end frames of its characters.
        written: the text whose characters get times.

    Raises:
        AlignmentError: the texts have no word in common.
    """
    starts, ends = times
    heard, pieces = pieces_of(spoken), pieces_of(written)
    pairs = same_words([piece.plain for piece in pieces], [piece.plain for piece in heard])
    if not pairs and heard and sum(piece.plain.isalpha() for piece in pieces) > 2:
        raise AlignmentError(f"no word of the text is spoken: '{written[:20]}', '{spoken[:20]}'")
    found: list[tuple[int, int] | None] = [None] * len(written)
    otherwise: set[int] = set()  # where such pieces begin
    next_piece = next_heard = 0
    for index, place in [*pairs, (len(pieces), len(heard))]:
        apart = index - next_piece == place - next_heard  # every one is read as a word at least: so as one
        for offset, piece in enumerate(pieces[next_piece:index]):
            first = next_heard + offset if apart else next_heard
            span = _span(heard, first, first + 1 if apart else place, times)
            found[piece.begin : piece.end] = [span] * (piece.end - piece.begin)
            otherwise.add(piece.begin)
        if index < len(pieces):
            piece, source = pieces[index], heard[place]
            letters = range(source.begin, source.end)
            if piece.plain == source.plain and len(letters) == piece.end - piece.begin:
                found[piece.begin : piece.end] = [(starts[letter], ends[letter]) for letter in letters]
            else:
                span = _span(heard, place, place + 1, times)
                found[piece.begin : piece.end] = [span] * (piece.end - piece.begin)
            if piece.plain != source.plain:
                otherwise.add(piece.begin)
        next_piece, next_heard = index + 1, place + 1
    words = [written[begin:end] for begin, end, _ in word_edges(written) if otherwise & {*range(begin, end)}]
    return MovedTimes(*_filled(written, found), words)


def same_words(written: Sequence[str], spoken: Sequence[str]) -> list[tuple[int, int]]:
    """Match the words of two texts, in order: as many equal ones as possible, then as many abbreviations.

    Of several ways, the one in which the fewest of the other words have nothing at their place in the other text.

    Args:
        written: words in plain form.
        spoken: words in plain form.

    Returns:
        The index in ``written`` and the index in ``spoken`` of each matched word.
    """
    most = min(len(written), len(spoken)) + 1  # one of a kind counts more than all of the next

    def gain(index: int, place: int) -> int:
        if written[index] == spoken[place]:
            return most * most
        return most if _abbreviates(written[index], spoken[place]) else 1

    # best[i][j]: of the words from the i-th and the j-th on
    best = [[0] * (len(spoken) + 1) for _ in range(len(written) + 1)]
    for index in reversed(range(len(written))):
        row, below = best[index], best[index + 1]
        for place in reversed(range(len(spoken))):
            row[place] = max(below[place + 1] + gain(index, place), below[place], row[place + 1])
    pairs: list[tuple[int, int]] = []
    index = place = 0
    while index < len(written) and place < len(spoken):
        gained = gain(index, place)
        if best[index][place] == best[index + 1][place + 1] + gained:
            pairs += [(index, place)] if gained > 1 else []
            index, place = index + 1, place + 1
        elif best[index][place] == best[index + 1][place]:
            index += 1
        else:
            place += 1
    return pairs


def _abbreviates(short: str, word: str) -> bool:
    """Tell whether ``short`` has some letters of a word in their order, its first among them: ``dr`` of ``doctor``."""
    if not (short.isalpha() and 1 < len(short) < len(word) and short[0] == word[0]):
        return False
    letters = iter(word)
    return all(letter in letters for letter in short)


def _span(heard: Sequence[Piece], first: int, after: int, times: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return start and end frame of the spoken words ``first`` to ``after``; of none, the end of the word before.

    Args:
        heard: the spoken words.
        first: index of the first.
        after: index behind the last.
        times: start frames and end frames of the characters.
    """
    starts, ends = times
    if first < after:
        return starts[heard[first].begin], ends[heard[after - 1].end - 1]
    if first:
        end = ends[heard[first - 1].end - 1]
        return end, end
    return (starts[heard[0].begin], ends[heard[0].begin]) if heard else (0, 0)


def _filled(text: str, found: list[tuple[int, int] | None]) -> tuple[list[int], list[int]]:
    """Give punctuation and spaces their times; return the starts and the ends of all characters.

    Args:
        text: the written text.
        found: start and end of each of its characters; None of those that are not spoken.
    """
    known = [place for place, times in enumerate(found) if times is not None]
    for word in re.finditer(r"\S+", text):
        first = next((place for place in range(*word.span()) if found[place] is not None), word.start())
        found[word.start() : first] = [found[first]] * (first - word.start())
    last = found[known[0]] if known else None
    starts: list[int] = []
    ends: list[int] = []
    for times in found:
        last = times or last or (0, 0)
        starts.append(last[0])
        ends.append(max(last[1], ends[-1] if ends else 0))
    return starts, ends


def parse_char_ends(utterance: str, line: str, text: str) -> list[int]:
    """Read the end frames of a ``char_ends`` line.

    Args:
        utterance: its id, for messages.
        line: of the file, without the id.
        text: the transcript, which has a character for each frame.

    Raises:
        AlignmentError: the line holds something else, or does not fit the transcript.
    """
    try:
        ends = [] if line.strip() in ("", NO_TEXT) else [int(field) for field in line.split()]
    except ValueError as error:
        raise AlignmentError(
            f"{utterance}: alignment is not a list of frames ({error}): run the align stage"
        ) from error
    if len(ends) != len(text):
        raise AlignmentError(
            f"{utterance}: {len(ends)} aligned characters for a transcript of {len(text)}: "
            "the transcript changed after the alignment; run the align stage again"
        )
    return ends


def format_char_ends(ends: Iterable[int]) -> str:
    """Return the ``char_ends`` line of one utterance, without its id."""
    return " ".join(map(str, ends)) or NO_TEXT


def word_times(text: str, starts: Sequence[int], ends: Sequence[int]) -> list[Word]:
    """Return the words of a transcript; a word starts with its first character and ends with its last.

    Args:
        text: the transcript.
        starts: start frame of each character.
        ends: end frame of each character.
    """
    words = []
    for first, after, joined in word_edges(text):
        start, end = timeline.frame_start_seconds(starts[first]), timeline.frame_end_seconds(ends[after - 1])
        words.append(Word(text[first:after], start, max(start, end), joined=joined))
    return words


def from_word_times(text: str, words: Sequence[Word]) -> list[list[int]]:
    """Return the start frames and the end frames of the characters: all characters of a word take its times.

    Args:
        text: the transcript.
        words: of the utterance, in order.

    Raises:
        AlignmentError: the words differ from the transcript.
    """
    spelt = [unicodedata.normalize("NFC", word.text) for word in words]  # as the transcript is
    source = " ".join(spelt)
    starts: list[int] = []
    ends: list[int] = []
    last = 0
    for index, word in enumerate(words):
        last = max(last, timeline.frame_at(word.end))
        count = len(spelt[index]) + (index > 0)  # the space before a word belongs to it
        starts.extend([min(last, timeline.frame_from(word.start))] * count)
        ends.extend([last] * count)
    return [transfer(source, starts, text), transfer(source, ends, text)]
