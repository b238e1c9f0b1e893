"""Tokenizers with character offsets, and words assembled from tokens.

Ids are the tokenizer's own, 0 .. V-1; ``$`` and the CTC blank are not tokens of it.
"""

import itertools
import unicodedata
from pathlib import Path

from espnet_speechllm_xl.errors import UserError

WORD_START = "▁"  # sentencepiece's mark of a word's first piece
UNKNOWN = "\N{DOUBLE QUESTION MARK}"


class TokenizerError(UserError):
    """A tokenizer cannot be loaded or does not fit the text."""


def normalise(text):
    """Unicode NFC, single spaces: the form in which transcripts are tokenised, aligned and scored."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class SentencePieceTokenizer:
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
        self._unknown = self._model.unk_id()

    def encode(self, text):
        """Ids of ``text`` and, for each, the end (exclusive) of its last character in ``text``."""
        pieces = self._model.encode(text, out_type="immutable_proto").pieces
        # A byte piece inside a character has an empty surface there: it belongs to that character.
        ends = [piece.end if piece.end > piece.begin else _inside(piece.begin, len(text)) for piece in pieces]
        return [piece.id for piece in pieces], ends

    def unknown(self, text):
        """The characters of ``text`` that only the unknown token would cover."""
        pieces = self._model.encode(text, out_type="immutable_proto").pieces
        return "".join(piece.surface for piece in pieces if piece.id == self._unknown)

    def decode(self, ids):
        """Text of token ids; an unknown token is U+2047 inside its word (sentencepiece puts spaces around it)."""
        if not ids:
            return ""  # sentencepiece gives no proto for nothing
        pieces = self._model.decode(list(ids), out_type="immutable_proto").pieces
        return "".join(UNKNOWN if piece.id == self._unknown else piece.surface for piece in pieces)

    def starts_word(self, token):
        """Whether a token begins a word."""
        return self.pieces[token].startswith(WORD_START)


class HuggingFaceTokenizer:
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
        # Byte-level BPE marks no first word, so that texts whose tokens are joined would lose the space between them.
        # With a space before each text all words begin alike, as they do with sentencepiece.
        self._before = " " if self._ids("a") + self._ids("b") != self._ids("a b") else ""
        if self._ids(self._before + "a") + self._ids(self._before + "b") != self._ids(self._before + "a b"):
            self._before = ""

    def _ids(self, text):
        return self._model(text, add_special_tokens=False)["input_ids"]

    def _encoded(self, text):
        """Ids of ``text`` and the (begin, end) of each in it."""
        before = self._before if text else ""
        encoded = self._model(before + text, add_special_tokens=False, return_offsets_mapping=True)
        moved = [[max(0, place - len(before)) for place in span] for span in encoded["offset_mapping"]]
        return encoded["input_ids"], moved

    def encode(self, text):
        """Ids of ``text`` and, for each, the end (exclusive) of its last character in ``text``."""
        ids, spans = self._encoded(text)
        return ids, [end if end > begin else _inside(begin, len(text)) for begin, end in spans]

    def unknown(self, text):
        """The characters of ``text`` that only the unknown token would cover."""
        pairs = zip(*self._encoded(text), strict=True)
        return "".join(text[begin:end] for token, (begin, end) in pairs if token == self._model.unk_token_id)

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
    if not path.exists():
        raise TokenizerError(f"tokenizer {path} does not exist: run the tokens stage, or give --tokenizer")
    try:
        tokenizer = HuggingFaceTokenizer(path) if path.is_dir() else SentencePieceTokenizer(path)
    except UserError:
        raise
    except Exception as error:  # the libraries raise any kind for a file that holds something else, or no UTF-8
        reason = f"{type(error).__name__}: {error}"
        raise TokenizerError(f"{path} is damaged or no tokenizer ({reason}): run the tokens stage again") from error
    if not tokenizer.pieces:
        raise TokenizerError(f"{path} is a tokenizer without tokens: run the tokens stage again")
    return tokenizer


def word_spans(tokenizer, tokens):
    """Words of a token sequence: list of ``(text, first token, last token)`` indices, both inclusive.

    White space inside a token, or one that is nothing else (byte-level BPE), parts words that then share their tokens.
    """
    starts = [index for index, token in enumerate(tokens) if index == 0 or tokenizer.starts_word(token)]
    spans = []
    for first, after in itertools.pairwise([*starts, len(tokens)]):
        spans += [(word, first, after - 1) for word in normalise(tokenizer.decode(tokens[first:after])).split()]
    return spans
