"""Tokenizers with character offsets, and words assembled from tokens.

Ids are the tokenizer's own, 0 .. V-1; ``$`` and the CTC blank are not tokens of it.
"""

import abc
import codecs
import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from espnet_speechllm_xl.errors import UserError

CHARACTERS = "characters.txt"  # in the directory of a Hugging Face tokenizer
WORD_START = "▁"  # sentencepiece's mark of a word's first piece
UNKNOWN = "\N{DOUBLE QUESTION MARK}"

# Code points (first, last) of the scripts that put no spaces between words.
SPACELESS = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x312F),  # CJK radicals and punctuation, Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),  # extensions of Bopomofo and Katakana
    (0x3400, 0xA4CF),  # Han, Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9D),  # narrow Katakana
    (0x1AFF0, 0x1B16F),  # Kana
    (0x20000, 0x3FFFF),  # Han
)
UTF8_LEADS = ((1, 0x00, 0x7F), (2, 0xC2, 0xDF), (3, 0xE0, 0xEF), (4, 0xF0, 0xF4))  # bytes, first byte (least, most)
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
SMALL_KANA = re.compile("(HIRAGANA|KATAKANA) LETTER SMALL ")  # in the names of letters
# Other letters that belong to the one before them: vowels behind their consonant, tones, finals, signs.
FOLLOWING = frozenset(
    "\u0e2f\u0e30\u0e32\u0e33\u0e45"  # Thai
    "\u0eaf\u0eb0\u0eb2\u0eb3\u0ebd"  # Lao
    "\u17dc"  # Khmer
    "\u1963\u1964\u1965\u1966\u1967\u1968\u1969\u196a\u196b\u196c\u196d\u1970\u1971\u1972\u1973\u1974"  # Tai Le
    "\u19b0\u19b1\u19b2\u19b3\u19b4\u19b8\u19b9\u19bb\u19bc\u19bd\u19be\u19bf\u19c0"  # New Tai Lue
    "\u19c1\u19c2\u19c3\u19c4\u19c5\u19c6\u19c7\u19c8\u19c9"
    "\u31b4\u31b5\u31b6\u31b7\u31bb"  # Bopomofo
    "\uaab1\uaaba\uaabd\uaac0\uaac2"  # Tai Viet
)
# What the letter behind it belongs to.
JOINING = frozenset(
    "\u1039\u17d2\u1a60\u1b44\ua9c0"  # Myanmar, Khmer, Tai Tham, Balinese, Javanese: the next consonant is subjoined
    "\u0e40\u0e41\u0e42\u0e43\u0e44"  # vowels written before their consonant (Logical_Order_Exception): Thai
    "\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4"  # Lao
    "\u19b5\u19b6\u19b7\u19ba"  # New Tai Lue
    "\uaab5\uaab6\uaab9\uaabb\uaabc"  # Tai Viet
    "\u200d\u2060"  # zero width joiner, word joiner
)
APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
CONTEXT = 8  # tokens that hold the last letter and its marks, even where each is one of their bytes


def _letters_of_bytes() -> dict[str, int]:
    """Map the letters to bytes by which byte-level BPE (GPT-2) writes the 256 bytes: printable ones as they are."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTES = _letters_of_bytes()


class TokenizerError(UserError):
    """A tokenizer cannot be loaded or does not fit the text."""


def normalise(text: str) -> str:
    """Return text in Unicode NFC with single spaces, the form in which transcripts are tokenised and scored."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def begins_word(character: str, before: str = "") -> bool:
    """Tell whether a character begins a word behind the text ``before``: a letter of a script without spaces.

    What the words of such a script are, only a dictionary knows; so each letter is one (as in the mixed error rate of
    Chinese), with the marks, punctuation, digits and other letters that follow it.  A letter that is written below
    another one, a vowel before its consonant and one behind it are parts of one word.
    """
    return _may_begin_word(character) and not joins_next(before)


def _may_begin_word(character: str) -> bool:
    if not is_spaceless(character) or character in FOLLOWING:
        return False
    is_letter = unicodedata.category(character) == "Lo" or character == "\u3007"
    return is_letter and not SMALL_KANA.search(unicodedata.name(character, ""))


def joins_next(text: str) -> bool:
    """Tell whether the letter behind a text belongs to its last one; marks may stand between (Unicode's rule GB9c)."""
    for character in reversed(text):
        if character in JOINING or not unicodedata.combining(character):
            return character in JOINING
    return False


def is_spaceless(character: str) -> bool:
    """Tell whether a character is of a script without spaces."""
    return any(first <= ord(character) <= last for first, last in SPACELESS)


def bytes_begin_word(start: bytes) -> bool:
    """Tell whether the first character of UTF-8 bytes begins a word.

    The bytes may end inside the character; then all characters that it can become must begin one.
    """
    lead = start[0]
    length = next((count for count, low, high in UTF8_LEADS if low <= lead <= high), 0)
    try:
        if len(start) >= length:
            return bool(length) and begins_word(start[:length].decode())
        return all(is_spaceless(start.ljust(length, rest).decode()) for rest in (b"\x80", b"\xbf"))
    except UnicodeDecodeError:
        return False


def word_edges(text: str) -> list[tuple[int, int, bool]]:
    """Find the words of a transcript: ``(begin, end, joined)``, ``joined`` where no space stands before the word."""
    edges = []
    for part in re.finditer(r"\S+", text):
        first, after = part.span()
        inner = (place for place in range(first + 1, after) if begins_word(text[place], text[first:place]))
        begins = [first, *inner, after]
        edges += [(begin, end, begin > first) for begin, end in itertools.pairwise(begins)]
    return edges


def words_of(text: str) -> list[str]:
    """List the words of a transcript: what spaces separate, and each letter of a script without spaces."""
    return [text[begin:end] for begin, end, _ in word_edges(text)]


class Piece(NamedTuple):
    """A run of letters and digits in a text: its place, and how plain text has it (small letters)."""

    begin: int
    end: int
    plain: str


def pieces_of(text: str) -> list[Piece]:
    """Find the runs of letters, digits and their marks in a text; the rest (punctuation, signs, spaces) is not spoken.

    An apostrophe between two letters belongs to the run.  A run ends, too, where a word of a script without spaces
    begins or ends.
    """
    found: list[Piece] = []
    begin: int | None = None
    for place, character in enumerate([*text, " "]):
        within = begin is not None
        if character in APOSTROPHES:
            spoken = within and is_spoken(text[place + 1 : place + 2])
        else:
            spoken = is_spoken(character)
        if begin is not None and (not spoken or _parts_pieces(character, text[begin:place])):
            plain = text[begin:place].casefold().replace(APOSTROPHES[1], APOSTROPHES[0])
            found.append(Piece(begin, place, unicodedata.normalize("NFC", plain)))
            begin = None
        if spoken and begin is None:
            begin = place
    return found


def plain_text(text: str) -> str:
    """Return a text as an aligner of plain characters has it: small letters and digits, without punctuation and signs.

    A transcript without capitals, digits and punctuation stays as it is.
    """
    plain, last = "", 0
    for piece in pieces_of(text):
        plain += " " * (bool(plain) and piece.begin > last) + piece.plain
        last = piece.end
    return plain


def decode_utf8(content: bytes, errors: str) -> tuple[str, bytes]:
    """Return the whole characters of a piece of UTF-8, and the bytes of the one that is not whole yet.

    Args:
        content: begins with a whole character, unless it is damaged.
        errors: what becomes of damaged bytes: "ignore" or "replace", by U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    text = decoder.decode(content)
    return text, decoder.getstate()[0]


def is_spoken(character: str) -> bool:
    """Tell whether a character is a letter, a digit or a mark of one, and no punctuation, sign or space."""
    return bool(character) and (unicodedata.category(character)[0] in "LN" or _is_mark(character))


def _is_mark(character: str) -> bool:
    """Tell whether a character belongs to the letter before it: an accent, a vowel sign, a joiner."""
    return unicodedata.category(character)[0] == "M" or character in "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"


def _parts_pieces(character: str, before: str) -> bool:
    """Tell whether a piece ends between the text ``before`` and a spoken character."""
    if _is_mark(character) or character in APOSTROPHES:
        return False
    return begins_word(character, before) or is_spaceless(character) != is_spaceless(before[-1])


def parts_words(before: str, character: str) -> bool:
    """Tell whether a word ends between the text ``before`` and a character: words are runs of letters, digits, marks.

    Unlike in :func:`pieces_of`, an apostrophe is no part of a word, as what follows it need not be known yet.
    """
    if is_spoken(character) and joins_next(before):
        return False
    return not (is_spoken(character) and is_spoken(before[-1:])) or _parts_pieces(character, before)


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        pieces: the token of each id.
        unknown_id: the id of unknown text; None: there is none.
        lower_case: whether it takes capitals as small letters, and gives small letters back.
        characters: those of the training text, where the tokens can write many others; None: not known.
    """

    pieces: list[str]
    unknown_id: int | None
    lower_case: bool = False
    characters: frozenset[str] | None = None

    @abc.abstractmethod
    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of ``text`` and, for each, the end (exclusive) of its last character in ``text``."""

    def split(self, text: str) -> list[str]:
        """Return the tokens of ``text`` as they are written."""
        return [self.pieces[token] for token in self.encode(text)[0]]

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""

    @abc.abstractmethod
    def bytes_of(self, token: int) -> bytes:
        """Return the text of one token in UTF-8, its spaces included: of some tokens, a part of a character only."""

    @abc.abstractmethod
    def marks_space(self, token: int) -> bool:
        """Tell whether a token begins with a space."""

    @abc.abstractmethod
    def starts_word(self, token: int) -> bool:
        """Tell whether a token begins a word."""

    def unknown(self, text: str) -> str:
        """Return the characters of ``text`` (normalised) that no token gives back: they are unknown or left out.

        Another way to write a character (a small letter, the letters of a ligature) gives it back.
        """
        lost: list[str] = []
        known = [token for token in self.encode(text)[0] if token != self.unknown_id]
        wanted, given = Counter(text.replace(" ", "")), Counter(normalise(self.decode(known)))
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

    def __init__(self, path: Path) -> None:
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

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Return ids and ends; see :class:`Tokenizer`."""
        pieces, ends, position = self._model.encode(text, out_type=self._parts).pieces, [], 0
        for piece in pieces:
            # Places count in the surfaces, since a piece's own places count characters or bytes, by the release.
            position = text.index(piece.surface, position) + len(piece.surface)
            # A byte piece inside a character has an empty surface there: it belongs to that character.
            ends.append(position if piece.surface else _inside(position, len(text)))
        return [piece.id for piece in pieces], ends

    def split(self, text: str) -> list[str]:
        """Return the tokens of ``text`` as they are written, an unknown one as the text that it stands for."""
        return [piece.piece for piece in self._model.encode(text, out_type=self._parts).pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; an unknown one is U+2047, without sentencepiece's spaces around it."""
        if not ids:
            return ""  # sentencepiece gives no proto for nothing
        pieces = self._model.decode(list(ids), out_type=self._parts).pieces
        return "".join(UNKNOWN if piece.id == self.unknown_id else piece.surface for piece in pieces)

    def bytes_of(self, token: int) -> bytes:
        """Return the text of one token; see :class:`Tokenizer`.  Unknown text and marks of a sentence have none."""
        if self._model.is_byte(token):
            return bytes.fromhex(self.pieces[token][3:5])
        if token == self.unknown_id or self._model.is_control(token):
            return b""
        return self.pieces[token].replace(WORD_START, " ").encode(errors="ignore")

    def marks_space(self, token: int) -> bool:
        """Tell whether a token begins with a space."""
        return self.pieces[token].startswith(WORD_START)

    def starts_word(self, token: int) -> bool:
        """Tell whether a token begins a word."""
        if self._model.is_byte(token):
            return bytes_begin_word(bytes.fromhex(self.pieces[token][3:5]))
        return self.marks_space(token) or begins_word(self.pieces[token][0])


class HuggingFaceTokenizer(Tokenizer):
    """A local Hugging Face fast tokenizer (a directory with tokenizer.json; from the tokens stage, also CHARACTERS)."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._model = AutoTokenizer.from_pretrained(str(path), local_files_only=True, use_fast=True)
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path} holds no Hugging Face tokenizer: {str(error).splitlines()[0]}") from error
        if not self._model.is_fast:
            raise TokenizerError(f"{path}: only fast tokenizers give character offsets; convert it to tokenizer.json")
        self.pieces = list(self._model.convert_ids_to_tokens(list(range(len(self._model)))))
        self.unknown_id = self._model.unk_token_id
        # Byte-level BPE marks no first word, so that texts whose tokens are joined would lose the space between them.
        # With a space before each text all words begin alike, as they do with sentencepiece.
        self._before = " " if self._ids("a") + self._ids("b") != self._ids("a b") else ""
        if self._ids(self._before + "a") + self._ids(self._before + "b") != self._ids(self._before + "a b"):
            self._before = ""
        # Of two bytes, and no letter with a mark, which some tokenizers would take off.
        letters = self._model.convert_ids_to_tokens(self._ids("\u00f8"))
        self._byte_level = all(letter in "".join(letters) for letter in "\u00c3\u00b8")
        self.lower_case = self.decode(self._ids("ABC")) == "abc"
        if (path / CHARACTERS).is_file():
            self.characters = frozenset((path / CHARACTERS).read_text(encoding="utf-8"))

    def save_lower_case(self, path: Path) -> None:
        """Write a tokenizer.json of this tokenizer with small letters for capitals, which places still count."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import normalizers

        backend = Backend.from_str(self._model.backend_tokenizer.to_str())
        lower, own = normalizers.Lowercase(), backend.normalizer
        backend.normalizer = normalizers.Sequence([lower, own] if own else [lower])
        backend.save(str(path))

    def _ids(self, text: str) -> list[int]:
        return self._model(text, add_special_tokens=False)["input_ids"]

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Return ids and ends; see :class:`Tokenizer`."""
        before = self._before if text else ""
        encoded = self._model(before + text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [[max(0, place - len(before)) for place in span] for span in encoded["offset_mapping"]]
        return encoded["input_ids"], [end if end > begin else _inside(begin, len(text)) for begin, end in spans]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return str(self._model.decode(list(ids), clean_up_tokenization_spaces=False)).strip()

    def bytes_of(self, token: int) -> bytes:
        """Return the text of one token; see :class:`Tokenizer`.  Special tokens have none."""
        piece = self.pieces[token]
        if token in self._special:
            return b""
        if self._byte_level and all(letter in BYTES for letter in piece):
            return bytes(BYTES[letter] for letter in piece)
        if byte := BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return piece.replace(WORD_START, " ").encode(errors="ignore")

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        """Return the tokens that stand for no text."""
        return frozenset(self._model.all_special_ids)

    def marks_space(self, token: int) -> bool:
        """Tell whether a token begins with a space (``Ġ`` in byte-level BPE)."""
        return self.pieces[token].startswith((WORD_START, "Ġ", " "))

    def starts_word(self, token: int) -> bool:
        """Tell whether a token begins a word."""
        return self.marks_space(token) or self._letters[token]

    @functools.cached_property
    def _letters(self) -> list[bool]:
        """Tell of each token whether it begins with a letter that begins a word."""
        return [self._letter_begins(token) for token in range(len(self.pieces))]

    def _letter_begins(self, token: int) -> bool:
        piece = self.pieces[token]
        if byte := BYTE_PIECE.fullmatch(piece):
            return bytes_begin_word(bytes.fromhex(byte[1]))
        if piece.isascii():
            return False
        text = str(self._model.decode([token]))
        if text.startswith("\N{REPLACEMENT CHARACTER}"):  # byte-level BPE, a part of a character
            return bytes_begin_word(bytes(BYTES.get(letter, 0) for letter in piece))
        return bool(text) and begins_word(text[0])


def _inside(begin: int, length: int) -> int:
    return min(begin + 1, length)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a sentencepiece file or a directory of a Hugging Face tokenizer.

    Raises:
        TokenizerError: there is none at ``path``, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise TokenizerError(f"tokenizer {path} does not exist: run the tokens stage, or give --tokenizer")
    try:
        tokenizer: Tokenizer = HuggingFaceTokenizer(path) if path.is_dir() else SentencePieceTokenizer(path)
    except UserError:
        raise
    except Exception as error:  # the libraries raise any kind for a file that holds something else, or no UTF-8
        reason = f"{type(error).__name__}: {error}"
        raise TokenizerError(f"{path} is damaged or no tokenizer ({reason}): run the tokens stage again") from error
    if not tokenizer.pieces:
        raise TokenizerError(f"{path} is a tokenizer without tokens: run the tokens stage again")
    return tokenizer


def word_begins(tokenizer: Tokenizer, tokens: Sequence[int], index: int) -> bool:
    """Tell whether a word begins at ``tokens[index]``.

    A letter continues a word behind a mark of space alone, and behind a letter it belongs to (:func:`begins_word`).
    """
    here, before = tokens[index], tokens[index - 1] if index else None
    if tokenizer.marks_space(here) or before is None:
        return True
    if not tokenizer.starts_word(here) or lone_space(tokenizer, before):
        return False
    return not joins_next(tokenizer.decode(tokens[max(0, index - CONTEXT) : index]))


def lone_space(tokenizer: Tokenizer, token: int) -> bool:
    """Tell whether a token is a mark of space and nothing else."""
    return tokenizer.marks_space(token) and len(tokenizer.pieces[token]) == 1


def word_spans(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[str, int, int]]:
    """Return the words of a token sequence: text, index of the first token, index of the last token.

    White space inside a token, or one that is nothing else (byte-level BPE), parts words that then share their tokens.
    In a script without spaces a token of several letters is one word.
    """
    starts = [index for index in range(len(tokens)) if word_begins(tokenizer, tokens, index)]
    spans = []
    for first, after in itertools.pairwise([*starts, len(tokens)]):
        spans += [(word, first, after - 1) for word in normalise(tokenizer.decode(tokens[first:after])).split()]
    return spans
