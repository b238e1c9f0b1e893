"""Tokenizers with character offsets, and words assembled from tokens.

Ids are the tokenizer's own, 0 .. V-1; ``$`` and the CTC blank are not tokens of it.
"""

import abc
import itertools
import unicodedata
from collections import Counter
from pathlib import Path

from espnet_speechllm_xl.errors import UserError

WORD_START = "▁"  # sentencepiece's mark of a word's first piece
UNKNOWN = "\N{DOUBLE QUESTION MARK}"


class TokenizerError(UserError):
    """A tokenizer cannot be loaded or does not fit the text."""


def normalise(text):
    """Unicode NFC, single spaces: the form in which transcripts are tokenised, aligned and scored."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class Tokenizer(abc.ABC):
    """Text to token ids and back; ``pieces``: the token of each id; ``unknown_id``: that of unknown text, or None."""

    pieces: list
    unknown_id: int | None

    @abc.abstractmethod
    def encode(self, text: str) -> tuple[list, list]:
        """Ids of ``text`` and, for each, the end (exclusive) of its last character in ``text``."""

    @abc.abstractmethod
    def decode(self, ids: list) -> str:
        """Text of token ids."""

    @abc.abstractmethod
    def starts_word(self, token: int) -> bool:
        """Whether a token begins a word."""

    def unknown(self, text: str) -> str:
        """The characters of ``text`` (normalised) that no token gives back: unknown ones, and those that it leaves out.

        Another way to write a character (a small letter, the letters of a ligature) gives it back.
        """
        known = [token for token in self.encode(text)[0] if token != self.unknown_id]
        wanted, given, lost = Counter(text.replace(" ", "")), Counter(normalise(self.decode(known))), []
        others = Counter(_folded("".join((given - wanted).elements())))
        for character in (wanted - given).elements():
            needed = Counter(_folded(character))
            if needed <= others:
                others -= needed
            else:
                lost.append(character)
        return "".join(lost)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text.casefold())


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model file (unigram, BPE or character)."""

    def __init__(self, path):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise TokenizerError(
                f"{path} is not a sentencepiece model ({error}): run the tokens stage again"
            ) from error
        self.pieces = [self._model.id_to_piece(index) for index in range(self._model.get_piece_size())]
        self.unknown_id = self._model.unk_id()
        # The pieces with their surfaces, by the name that sentencepiece has for them up to 0.2.1, and from then on.
        self._parts = "immutable_proto" if hasattr(self._model, "encode_as_immutable_proto") else "proto"

    def encode(self, text):
        """Ids of ``text`` and, for each, the end (exclusive) of its last character in ``text``."""
        pieces, ends, position = self._model.encode(text, out_type=self._parts).pieces, [], 0
        for piece in pieces:
            # Places are those of the surfaces, since a piece's own count characters or bytes, by the release.
            position = text.index(piece.surface, position) + len(piece.surface)
            # A byte piece inside a character has an empty surface there: it belongs to that character.
            ends.append(position if piece.surface else _inside(position, len(text)))
        return [piece.id for piece in pieces], ends

    def decode(self, ids):
        """Text of token ids; an unknown token is U+2047 inside its word (sentencepiece puts spaces around it)."""
        if not ids:
            return ""  # sentencepiece gives no proto for nothing
        pieces = self._model.decode(list(ids), out_type=self._parts).pieces
        return "".join(UNKNOWN if piece.id == self.unknown_id else piece.surface for piece in pieces)

    def starts_word(self, token):
        """Whether a token begins a word."""
        return self.pieces[token].startswith(WORD_START)


class HuggingFaceTokenizer(Tokenizer):
    """A local Hugging Face fast tokenizer (a directory with tokenizer.json)."""

    def __init__(self, path):
        from transformers import AutoTokenizer

        try:
            self._model = AutoTokenizer.from_pretrained(str(path), local_files_only=True, use_fast=True)
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path} holds no Hugging Face tokenizer: {str(error).splitlines()[0]}") from error
        if not self._model.is_fast:
            raise TokenizerError(f"{path}: only fast tokenizers give character offsets; convert it to tokenizer.json")
        self.pieces = self._model.convert_ids_to_tokens(range(len(self._model)))
        self.unknown_id = self._model.unk_token_id
        # Byte-level BPE marks no first word, so that texts whose tokens are joined would lose the space between them.
        # With a space before each text all words begin alike, as they do with sentencepiece.
        self._before = " " if self._ids("a") + self._ids("b") != self._ids("a b") else ""
        if self._ids(self._before + "a") + self._ids(self._before + "b") != self._ids(self._before + "a b"):
            self._before = ""

    def _ids(self, text):
        return self._model(text, add_special_tokens=False)["input_ids"]

    def encode(self, text):
        """Ids of ``text`` and, for each, the end (exclusive) of its last character in ``text``."""
        before = self._before if text else ""
        encoded = self._model(before + text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [[max(0, place - len(before)) for place in span] for span in encoded["offset_mapping"]]
        return encoded["input_ids"], [end if end > begin else _inside(begin, len(text)) for begin, end in spans]

    def decode(self, ids):
        """Text of token ids."""
        return self._model.decode(list(ids), clean_up_tokenization_spaces=False).strip()

    def starts_word(self, token):
        """Whether a token begins a word (byte-level BPE marks the space as ``Ġ``)."""
        return self.pieces[token].startswith((WORD_START, "Ġ", " "))


def _inside(begin, length):
    return min(begin + 1, length)


def load_tokenizer(path):
    """The tokenizer at ``path``: a sentencepiece file or a Hugging Face directory."""
    path = Path(path)
    if path.is_dir():
        return HuggingFaceTokenizer(path)
    if not path.exists():
        raise TokenizerError(f"tokenizer {path} does not exist: run the tokens stage, or give --tokenizer")
    return SentencePieceTokenizer(path)


def word_spans(tokenizer, tokens):
    """Words of a token sequence: list of ``(text, first token, last token)`` indices, both inclusive.

    White space inside a token, or one that is nothing else (byte-level BPE), parts words that then share their tokens.
    """
    starts = [index for index, token in enumerate(tokens) if index == 0 or tokenizer.starts_word(token)]
    spans = []
    for first, after in itertools.pairwise([*starts, len(tokens)]):
        spans += [(word, first, after - 1) for word in normalise(tokenizer.decode(tokens[first:after])).split()]
    return spans
