"""The decoder's text in the tokens of a CTC head that has a vocabulary of its own: the aligner's characters.

    decoder (V)    ĠIt    's     Ġ“     well   -      known  .
    text           " It"  "'s"   " “"   "well" "-"    "known" "."
    CTC            ▁ i t  ' s           ▁ w e l l     ▁ k n o w n

Training, searches and word times all write a text in this way, token by token:

- A character that CTC lacks is written as another form of it that CTC has (a small letter); else it is left out.
- A space is written with the character that follows it.  Punctuation and digits that are left out part words like a
  space; letters, marks and apostrophes do not.
- A character of which a token has some bytes only is written with its last byte.

Of a text without digits, that is what ``tokenization.plain_text`` gives an aligner; but an apostrophe that CTC has is
written at the edge of a word, too.  What follows it is not known yet, and texts that are not made plain have such ones.

What is left out costs a hypothesis nothing.  An LLM has thousands of such tokens, and a beam that CTC urges to go on
runs away into them.  So a search may only write those whose characters the training text has.
"""

import functools
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.tokenization import (
    APOSTROPHES,
    BYTE_PIECE,
    WORD_START,
    Tokenizer,
    decode_utf8,
    is_spoken,
    lone_space,
)

SPACE_MARKS = f"{WORD_START}Ġ "  # with which a token may begin
CONTINUING = bytes(range(0x80, 0xC0))  # in UTF-8, behind the first byte of a character
NAME, ADVICE = "loss_conf ctc_tokenizer", "give one of characters, as the aligner's (tokens --type char)"


class Written(NamedTuple):
    """The end of a text, as far as it matters for what follows."""

    tail: bytes = b""  # of a character that is not whole yet
    parted: bool = True  # a space goes before the next character


class Spelled(NamedTuple):
    """What CTC has for one token of the decoder."""

    ids: tuple[int, ...]  # CTC's tokens
    opens: bool  # it begins with a space, or ends inside a character: what follows belongs to it
    silent: bool  # it has no letters and digits, known to CTC or not


class Spelling:
    """Writes the text of decoder tokens in the tokens of a CTC head.

    Args:
        tokenizer: the decoder's.
        ctc_tokenizer: the CTC head's; its tokens are characters.

    Attributes:
        space: the token that CTC puts before each word; None: there is none.

    Raises:
        ConfigError: the tokens of ``ctc_tokenizer`` are no characters, or its words do not all begin alike.
    """

    def __init__(self, tokenizer: Tokenizer, ctc_tokenizer: Tokenizer) -> None:
        self._tokenizer, self._ctc = tokenizer, ctc_tokenizer
        names = [piece for token, piece in enumerate(ctc_tokenizer.pieces) if token != ctc_tokenizer.unknown_id]
        bare = {name.lstrip(SPACE_MARKS) for name in names}
        long = sorted(name for name in bare if len(name) > 1 and all(map(_is_letter_or_digit, name)))
        letter = next((name for name in sorted(bare) if len(name) == 1 and _is_letter_or_digit(name)), None)
        if long or letter is None:
            what = f"tokens of several letters ('{long[0]}')" if long else "no letters"
            raise ConfigError(f"{NAME}: it has {what}: {ADVICE}")
        word = ctc_tokenizer.encode(letter)[0]
        if ctc_tokenizer.encode(f"{letter} {letter}")[0] != [*word, *word]:
            raise ConfigError(f"{NAME}: its first word begins otherwise than the next: {ADVICE}")
        self._symbols = {name for name in bare if len(name) > 1 and not BYTE_PIECE.fullmatch(name)}  # <noise>
        self._letter, self._letters = letter, {name for name in bare if len(name) == 1}
        first = word[0]
        self.space = first if lone_space(ctc_tokenizer, first) else None
        self._forms: dict[str, str] = {}  # character -> the form that CTC has; "": none
        self._ids: dict[tuple[str, bool], tuple[int, ...]] = {}
        self._steps: dict[tuple[Written, int], tuple[Written, Spelled]] = {}

    @functools.cached_property
    def refused(self) -> list[int]:
        """Return the decoder's tokens that no search may write: CTC lacks a character, and the training text does, too.

        Tokens that stand for no text, and those with white space that texts never have, are among them.
        """
        known = self._tokenizer.characters
        if known is None:
            return []
        letters = known | self._letters
        forms = {form.encode() for letter in letters for form in (letter, letter.lower(), letter.upper())}
        wide = [form for form in forms if len(form) > 1]
        return [token for token in range(len(self._tokenizer.pieces)) if not self._may_write(token, known, wide)]

    def _may_write(self, token: int, known: frozenset[str], wide: list[bytes]) -> bool:
        """Tell whether all characters of a token are known to CTC or to the training text.

        Args:
            token: the decoder's.
            known: characters of the training text.
            wide: the characters of several bytes that may be written.
        """
        if self._tokenizer.pieces[token].lstrip(SPACE_MARKS) in self._symbols:
            return True
        content = self._tokenizer.bytes_of(token)
        inner = content.lstrip(CONTINUING)
        head, (text, tail) = content[: len(content) - len(inner)], decode_utf8(inner, "ignore")
        if not content or head + text.encode() + tail != content or "  " in text:  # bytes that are never in UTF-8
            return False
        whole = all(letter == " " or letter in known or self._form(letter) for letter in text)
        return whole and all(any(part in each for each in wide) for part in (head, tail) if part)

    def spell(self, tokens: Iterable[int]) -> list[int]:
        """Return a text in CTC's tokens.

        Args:
            tokens: the text in the decoder's.
        """
        return [label for spelled in self.each(tokens) for label in spelled.ids]

    def each(self, tokens: Iterable[int]) -> list[Spelled]:
        """Return what CTC has for each token of a text."""
        written, found = Written(), []
        for token in tokens:
            written, spelled = self.advance(written, token)
            found.append(spelled)
        return found

    def advance(self, written: Written, token: int) -> tuple[Written, Spelled]:
        """Write one more token of the decoder; return the end of the longer text, and what CTC has for the token.

        Args:
            written: the end of the text before.
            token: the decoder's.
        """
        step = self._steps.get((written, token))
        if step is None:
            step = self._steps[written, token] = self._advanced(written, token)
        return step

    def _advanced(self, written: Written, token: int) -> tuple[Written, Spelled]:
        name = self._tokenizer.pieces[token].lstrip(SPACE_MARKS)
        if name in self._symbols:
            parts, tail = [" "] * self._tokenizer.marks_space(token) + [name], b""
        else:
            text, tail = decode_utf8(written.tail + self._tokenizer.bytes_of(token), "ignore")
            parts = list(text)
        parted = written.parted
        ids: list[int] = []
        for part in parts:
            form = part if part in self._symbols else self._form(part)
            parted = parted or (not form and _parts_words(part))
            for unit in [form] if form in self._symbols else form:
                ids += self._ids_of(unit, parted)
                parted = False
        opens = bool(tail) or self._tokenizer.marks_space(token)
        silent = not any(part in self._symbols or _is_letter_or_digit(part) for part in parts)
        return Written(tail, parted), Spelled(tuple(ids), opens, silent)

    def _form(self, character: str) -> str:
        """Return a character as CTC has it, or an empty text."""
        if character not in self._forms:
            forms = [character, character.lower(), character.upper(), character.casefold()]
            forms += APOSTROPHES if character in APOSTROPHES else ""
            known = (form for form in forms if form.strip() and not self._ctc.unknown(form))
            self._forms[character] = next(known, "")
        return self._forms[character]

    def _ids_of(self, unit: str, parted: bool) -> tuple[int, ...]:
        """Return the tokens of a character, or of a symbol.

        Args:
            unit: as CTC has it.
            parted: a space stands before it.
        """
        if (unit, parted) not in self._ids:
            before = "" if parted else self._letter
            ids, count = self._ctc.encode(before + unit)[0], len(self._ctc.encode(before)[0])
            self._ids[unit, parted] = tuple(ids[count:])
        return self._ids[unit, parted]


def make_spelling(tokenizer: Tokenizer, ctc_tokenizer: Tokenizer) -> Spelling | None:
    """Return how the decoder's text is written in CTC's tokens; None where both have the same tokens.

    Args:
        tokenizer: the decoder's.
        ctc_tokenizer: the CTC head's.

    Raises:
        ConfigError: ``ctc_tokenizer`` has tokens of several letters, which are not the decoder's.
    """
    return None if tokenizer.pieces == ctc_tokenizer.pieces else Spelling(tokenizer, ctc_tokenizer)


def _is_letter_or_digit(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _parts_words(character: str) -> bool:
    """Tell whether words are parted by a space, or by a character that CTC leaves out."""
    if character in APOSTROPHES:
        return False
    return not is_spoken(character) or unicodedata.category(character)[0] == "N"
