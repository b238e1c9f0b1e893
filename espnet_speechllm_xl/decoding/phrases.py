"""Phrases: text that is expected, such as names.  A hypothesis that spells one scores more.

Each character of a phrase is worth the boost of the search times the phrase's weight.  A hypothesis is worth the most
that phrases in its text are worth together, where

- no two of them overlap, so that no place counts twice, however many phrases it is in;
- the last may be cut off by the end of the text: a search must know what to follow before it is written;
- they begin and end where words do: `ann` is no part of `anna`.

What a token adds to the score is the worth of the longer text less that of the text before.  So the worth of a part is
taken back when the phrase breaks off, unless other phrases are in it, and a phrase that is complete keeps its own.  The
end of a chunk is nothing in a text.  The end of the text completes a phrase, and takes back what a part was worth.

The tree of phrases is walked character by character, not token by token: a decoder may spell a word with other tokens
than the tokenizer does, and all of them give the same text.  A character that takes several tokens counts with its
last.  Texts and phrases are read with one space at each word boundary, also where people write none:

    call anna's   ->   call anna ' s

Words are runs of letters, digits and marks; in scripts without spaces each letter is one.  A phrase then begins behind
a space, and is complete before the next, or at the end of the text.

Several phrases can be open at the end of a text, the longest of them first, as the failure links of Aho and Corasick
list them (:attr:`Place.open`).  They are held one by one, each with what is counted already by phrases in it.

A phrase is met by few tokens.  For all others, what they add is a constant, which depends on whether they end the word.
So the vector of all V + 1 outputs is made from two that all hypotheses share, and the few tokens that go on with
something open.  It is kept for the next hypothesis in the same place.

Shape legend: ``n`` hypotheses, ``V`` tokenizer size.
"""

import bisect
import functools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from espnet_speechllm_xl.corpus.ctm import nist_lines
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.tokenization import (
    UNKNOWN,
    Tokenizer,
    decode_utf8,
    is_spaceless,
    is_spoken,
    joins_next,
    normalise,
    parts_words,
)

LONGEST = 200  # characters of a phrase
MOST_NAMED = 5  # phrases in the message that refuses them
WEIGHT = re.compile(r"(.*\S)\s+:(-?[0-9]*\.?[0-9]+)")  # a phrase and its weight, as sherpa-onnx has its hotwords
ROOT = 0  # node of the tree, behind a space
# A character for each kind of last characters, by which :func:`parts_words` tells the same for all that may follow:
# a space, what is no part of a word, a letter, a letter that is a word, and one that takes the next with it.
SPACE, MARK, LETTER, WORD, JOINING = EDGES = " ", "-", "a", "\u0e01", "\u0e40"
CACHED_VALUES, FEWEST_CACHED, MOST_CACHED = 1 << 21, 16, 4096  # numbers in the vectors that a tree keeps; vectors

Open = tuple[tuple[int, float], ...]


class Place(NamedTuple):
    """The end of a text, as far as it matters for the phrases in it and behind it."""

    open: Open = ((ROOT, 0.0),)  # (node, worth of the phrases before its first character less that of all so far)
    edge: str = SPACE  # one of EDGES, for the last character
    tail: bytes = b""  # of a character that is not whole yet


def read_phrases(path: str | Path) -> list[str]:
    """Read phrases, one on each line; ``;;`` begins a comment.

    Raises:
        UserError: the file holds no phrases, or is no text.
        FileNotFoundError: there is no such file.
    """
    lines = [line for _, line in nist_lines(path) if line.strip()]
    if not lines:
        raise UserError(f"{path} holds no phrases: write one on each line")
    return lines


def weights_of(lines: Iterable[str]) -> dict[str, float]:
    """Return phrases with their weights, of lines ``phrase`` or ``phrase :weight``; of one given twice, the larger.

    Raises:
        UserError: a weight is negative, or a phrase is too long.
    """
    found: dict[str, float] = {}
    for line in lines:
        match = WEIGHT.fullmatch(line.strip())
        text, weight = (match[1], float(match[2])) if match else (line, 1.0)
        phrase = normalise(text.encode(errors="replace").decode())
        if weight < 0 or weight == math.inf:
            raise UserError(f"phrase '{phrase}': its weight {weight} is negative or infinite: give 0 or more")
        if len(phrase) > LONGEST:
            raise UserError(f"phrase '{phrase[:40]} ...' has {len(phrase)} characters: give at most {LONGEST}")
        if phrase:
            found[phrase] = max(weight, found.get(phrase, 0.0))
    return found


@functools.lru_cache(maxsize=1 << 16)
def _read(edge: str, character: str) -> tuple[str, str]:
    """Return how a text goes on with a character, a space before it where a word ends, and its new edge."""
    if character.isspace():
        return ("" if edge == SPACE else " "), SPACE
    space = " " if edge != SPACE and parts_words(edge, character) else ""
    if joins_next(edge + character):
        return space + character, JOINING
    if not is_spoken(character):
        return space + character, MARK
    return space + character, WORD if is_spaceless(character) else LETTER


def spaced(text: str) -> str:
    """Return a text with one space at each word boundary in it."""
    found, edge = "", SPACE
    for character in text:
        more, edge = _read(edge, character)
        found += more
    return found


class TokenTexts:
    """The texts of all tokens as phrases are read: with a space at each word boundary.

    Args:
        tokenizer: of the model.

    Attributes:
        contents: the text of each token in UTF-8.
        bodies: texts without a space before them, in order.
        tokens: the token of each.
        inner: their parts behind the spaces in them, in order, each with the token.
        starts: for each edge, (V,) bool: the token ends the word before it.
        inside: tokens that may begin inside a character, or end inside their first.
        combining: tokens that begin with a mark of the character before them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._forms: dict[str, str] = {}
        self.contents = [tokenizer.bytes_of(token) or UNKNOWN.encode() for token in range(len(tokenizer.pieces))]
        texts = [decode_utf8(content, "replace")[0] for content in self.contents]
        self.body_of = [spaced(text) for text in texts]
        self.tokens = sorted(range(len(texts)), key=self.body_of.__getitem__)
        self.bodies = [self.body_of[token] for token in self.tokens]
        inner = [
            (body[place + 1 :], token)
            for token, body in enumerate(self.body_of)
            for place, character in enumerate(body)
            if character == " "
        ]
        self.inner = sorted(inner)
        first = [text[:1] for text in texts]
        self.starts = {edge: torch.tensor([self._starts(edge, each) for each in first]) for edge in EDGES}
        self.inside = [t for t, content in enumerate(self.contents) if 0x80 <= content[0] < 0xC0 or not first[t]]
        self.combining = [token for token, each in enumerate(first) if each and unicodedata.combining(each)]

    @staticmethod
    @functools.cache
    def _starts(edge: str, character: str) -> bool:
        return bool(character) and (edge == SPACE or " " in _read(edge, character)[0])

    def form(self, character: str) -> str:
        """Return a character as the tokenizer writes it, or a small letter or a capital in its place; "": it lacks it.

        So case does not matter to a tokenizer that has only one.
        """
        if character not in self._forms:
            forms = (character, character.lower(), character.upper())
            known = (form for form in forms if not self._tokenizer.unknown(form))
            written = next(known, "")
            self._forms[character] = written and normalise(self._tokenizer.decode(self._tokenizer.encode(written)[0]))
        return self._forms[character]


@functools.lru_cache(maxsize=4)  # a large vocabulary takes a while, and a server opens many streams
def _token_texts(tokenizer: Tokenizer) -> TokenTexts:
    return TokenTexts(tokenizer)


class PhraseTree:
    """Phrases, and what they add to the scores of hypotheses.

    Args:
        tokenizer: of the model.
        phrases: with their weights, as the tokenizer writes them (:func:`written_phrases`).
        boost: what a character of a phrase of weight 1 is worth, a natural logarithm.

    Attributes:
        start: the place of a hypothesis without text.
        most: the worth of the phrase that is worth most.
    """

    start = Place()

    def __init__(self, tokenizer: Tokenizer, phrases: Mapping[str, float], boost: float) -> None:
        self._texts = texts = _token_texts(tokenizer)
        self._children: list[dict[str, int]] = [{}]
        self._worth = [0.0]  # of the text up to each node, if one of the phrases behind it becomes whole
        self._whole = [0.0]  # of the phrase that ends with each node
        for phrase, weight in phrases.items():
            self._add(spaced(phrase), weight * boost)
        self.most = max(self._whole)
        kept = max(FEWEST_CACHED, min(MOST_CACHED, CACHED_VALUES // (len(texts.contents) + 1)))
        self._vector = functools.lru_cache(kept)(self._made)
        inner = {token for token in self._ending(ROOT, [body for body, _ in texts.inner], [t for _, t in texts.inner])}
        begun = inner.union(self._ending(ROOT, texts.bodies, texts.tokens))
        self._behind_space = self._worths(begun, self.start.open)
        self._inside_word = self._worths(inner, ())

    def _add(self, text: str, boost: float) -> None:
        node, count = ROOT, 0
        for character in text:
            count += character != " "
            child = self._children[node].setdefault(character, len(self._children))
            if child == len(self._children):
                self._children.append({})
                self._worth.append(0.0)
                self._whole.append(0.0)
            node = child
            self._worth[node] = max(self._worth[node], boost * count)
        self._whole[node] = max(self._whole[node], boost * count)

    def advance(self, place: Place, token: int) -> tuple[Place, float]:
        """Return the place behind one more token, and what the token adds to the score.

        Args:
            place: of the text before.
            token: of the tokenizer, not `$`.
        """
        text, tail = decode_utf8(place.tail + self._texts.contents[token], "replace")
        still_open, edge, gain = place.open, place.edge, 0.0
        for character in text:
            more, edge = _read(edge, character)
            still_open, whole = self._walk(still_open, more)
            gain += whole
        return Place(still_open, edge, tail), gain + self._pending(still_open) - self._pending(place.open)

    def end(self, place: Place) -> float:
        """Return what the end of the text adds to the score, 0 or less."""
        return self._walk(place.open, " ")[1] - self._pending(place.open)

    def added(self, places: Sequence[Place], device: torch.device) -> Tensor:
        """Return what each output adds to the scores: (n, V + 1) float64; 0 for `$`.

        Args:
            places: of n hypotheses.
            device: where the result is.
        """
        return torch.stack([self._vector(place, device) for place in places])

    def _walk(self, still_open: Open, text: str) -> tuple[Open, float]:
        """Return what is open behind more of a text with spaces, and the worth of the phrases that it completed."""
        total = 0.0
        for character in text:
            children = [(self._children[node].get(character), node, base) for node, base in still_open]
            gain = 0.0
            if character == " ":
                gain = max([0.0, *(base + self._whole[node] for _, node, base in children)])
            still_open = tuple((child, base - gain) for child, _, base in children if child is not None)
            if character == " ":
                still_open += self.start.open
            total += gain
        return still_open, total

    def _pending(self, still_open: Open) -> float:
        """Return the worth of the best open phrase beyond that of the phrases that are complete."""
        return max([0.0, *(base + self._worth[node] for node, base in still_open)])

    def _worths(self, tokens: Iterable[int], still_open: Open) -> Tensor:
        """Return the worth (V,) of the texts of tokens behind what is open; 0 of the tokens that are not given."""
        found = torch.zeros(len(self._texts.contents), dtype=torch.float64)
        for token in tokens:
            behind, gain = self._walk(still_open, self._texts.body_of[token])
            found[token] = gain + self._pending(behind)
        return found

    def _made(self, place: Place, device: torch.device) -> Tensor:
        """Return what each output (V + 1,) adds to the score of a hypothesis."""
        texts = self._texts
        # A token that does not go on with an open character makes a mark of it.
        starts = texts.starts[MARK if place.tail else place.edge]
        gain = self._walk(place.open, " ")[1]
        added = torch.where(starts, gain + self._behind_space, self._inside_word) - self._pending(place.open)
        tokens = sorted({*self._met(place)})
        if tokens:
            added[tokens] = torch.tensor([self.advance(place, token)[1] for token in tokens], dtype=torch.float64)
        return torch.cat([added, added.new_zeros(1)]).to(device)

    def _met(self, place: Place) -> Iterator[int]:
        """Yield all tokens that do not just end what is open at a place."""
        texts = self._texts
        if place.tail:
            yield from texts.inside
        if place.edge == JOINING:
            yield from texts.combining
        starts = texts.starts[place.edge].tolist() if place.edge != SPACE else None
        for node, _ in place.open:
            if starts is None:
                if node != ROOT:
                    yield from self._ending(node, texts.bodies, texts.tokens)
                continue
            yield from (token for token in self._ending(node, texts.bodies, texts.tokens) if not starts[token])
            behind = self._children[node].get(" ")
            if behind is not None:
                yield from (token for token in self._ending(behind, texts.bodies, texts.tokens) if starts[token])

    def _ending(self, node: int, bodies: Sequence[str], tokens: Sequence[int]) -> Iterator[int]:
        """Yield the tokens whose texts, behind a node, end inside a phrase or complete one.

        Args:
            node: of the tree.
            bodies: texts in order.
            tokens: of each text.
        """
        todo = [(node, "", 0, len(bodies))]  # node, text before it, the texts that begin so
        while todo:
            node, before, low, high = todo.pop()
            while low < high and len(bodies[low]) == len(before):
                yield tokens[low]
                low += 1
            if low == high:
                continue
            children = self._children[node]
            if self._whole[node]:
                first, after = _span(bodies, before + " ", low, high)
                yield from tokens[first:after]
            for character, child in children.items():
                first, after = _span(bodies, before + character, low, high)
                if first < after:
                    todo.append((child, before + character, first, after))


def _span(bodies: Sequence[str], start: str, low: int, high: int) -> tuple[int, int]:
    """Return where in ``bodies[low:high]``, in order, the texts that begin with ``start`` begin and end."""
    first = bisect.bisect_left(bodies, start, low, high)
    return first, bisect.bisect_left(bodies, start[:-1] + chr(ord(start[-1]) + 1), first, high)


def written_phrases(tokenizer: Tokenizer, lines: Iterable[str]) -> dict[str, float]:
    """Return phrases as a tokenizer writes them, with their weights; without those of weight 0.

    Args:
        tokenizer: of the model.
        lines: see :func:`weights_of`.

    Raises:
        UserError: a line is bad, or the tokenizer lacks characters of phrases.
    """
    texts, found = _token_texts(tokenizer), dict[str, float]()
    refused: dict[str, str] = {}
    for phrase, weight in weights_of(lines).items():
        forms = {character: texts.form(character) for character in phrase.replace(" ", "")}
        if not all(forms.values()):
            refused[phrase] = ", ".join(character for character, form in forms.items() if not form)
        elif weight:
            written = "".join(forms.get(character, " ") for character in phrase)
            found[written] = max(weight, found.get(written, 0.0))
    if refused:
        named = [f"'{phrase}' ({lacking})" for phrase, lacking in refused.items()]
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        few = ", ".join(named[:MOST_NAMED]) + more
        raise UserError(f"the model's tokenizer lacks characters of phrases, {few}: leave these out")
    return found


@functools.lru_cache(maxsize=8)  # many streams may have the same phrases
def _cached_tree(tokenizer: Tokenizer, lines: tuple[str, ...], boost: float) -> PhraseTree | None:
    phrases = written_phrases(tokenizer, lines)
    return PhraseTree(tokenizer, phrases, boost) if phrases and boost else None


def make_tree(tokenizer: Tokenizer, lines: Iterable[str], boost: float) -> PhraseTree | None:
    """Return the tree of phrases; None where nothing has any weight.

    Args:
        tokenizer: of the model.
        lines: see :func:`weights_of`.
        boost: see :class:`PhraseTree`.

    Raises:
        UserError: see :func:`written_phrases`.
    """
    return _cached_tree(tokenizer, tuple(lines), boost)
