"""Remarks on transcripts that make recognisers stumble, and cleaners of texts.

Tables are ``{utterance: text}``; every remark is one line.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from espnet_speechllm_xl.corpus.kaldi import Table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import CONVERT, NOT_UTF8, text_lines
from espnet_speechllm_xl.tokenization import Tokenizer, normalise

# <noise>, [noise], (laughs), {breath}
TAG = re.compile(r"<[^<>]{1,40}>|\[[^\[\]]{1,40}\]|\([^()]{1,40}\)|\{[^{}]{1,40}\}")
RARE = 5  # a model hardly learns a symbol that occurs less often
LISTED = 10  # so many of many symbols are named
CASES = ("lower case", "UPPER CASE", "Both Cases")


def remarks(name: str, texts: Table, rare: int = RARE, symbols: Sequence[str] = ()) -> list[str]:
    """Remark on the transcripts of a file: on tags, digits, several cases, and rare symbols.

    Args:
        name: of the file, for the remarks.
        texts: the transcripts.
        rare: a symbol that occurs less often is rare.
        symbols: symbols of ``--nlsyms``; tags among them are all right.
    """
    tags = Counter(tag for text in texts.values() for tag in _tags(text, symbols))
    plain = {utterance: TAG.sub(" ", text) for utterance, text in texts.items()}
    said = []
    if tags:
        with_tags = [utterance for utterance, text in texts.items() if _tags(text, symbols)]
        listed = _listed(f"{tag} {count}" for tag, count in tags.most_common())
        said.append(f"{name}: tags in {_share(with_tags, texts)}: {listed}; --nlsyms makes each one token")
    if with_digits := [utterance for utterance, text in plain.items() if any(map(str.isdigit, text))]:
        advice = "one number has many readings: spell them out (in English --cleaner tacotron; or --text written)"
        said.append(f"{name}: digits in {_share(with_digits, texts)}; {advice}")
    return said + _mixed_cases(name, plain) + _rare_symbols(name, plain, rare)


def _tags(text: str, symbols: Sequence[str]) -> list[str]:
    return [tag for tag in TAG.findall(text) if tag not in symbols]


def _rare_symbols(name: str, texts: Table, rare: int) -> list[str]:
    counts = Counter(character for text in texts.values() for character in normalise(text).replace(" ", ""))
    found = sorted((count, character) for character, count in counts.items() if count < rare)
    listed = _listed(f"{shown_symbol(character)} {count}" for count, character in found)
    return [f"{name}: {len(found)} of {len(counts)} symbols occur fewer than {rare} times: {listed}"] if found else []


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _share(utterances: Sequence[str], texts: Table) -> str:
    return f"{len(utterances)} of {len(texts)} utterances (first '{utterances[0]}')"


def shown_symbol(character: str) -> str:
    """Return a symbol as itself, or as its code point (U+00AD) where it could not be seen."""
    seen = character.isprintable() and not unicodedata.category(character).startswith(("M", "Z"))
    return f"'{character}'" if seen else f"U+{ord(character):04X}"


def _by_case(texts: Table) -> dict[str, list[str]]:
    """Return the utterances of each of :data:`CASES`; an utterance without upper or lower case is in none."""
    found: dict[str, list[str]] = {case: [] for case in CASES}
    for utterance, text in texts.items():
        lower, upper = text != text.upper(), text != text.lower()
        if lower or upper:
            found[CASES[2] if lower and upper else CASES[upper]].append(utterance)
    return found


def _mixed_cases(name: str, texts: Table) -> list[str]:
    groups = [(case, utterances) for case, utterances in _by_case(texts).items() if utterances]
    if len(groups) < 2:
        return []
    listed = ", ".join(f"{case} {len(utterances)} (first '{utterances[0]}')" for case, utterances in groups)
    return [f"{name}: utterances in several cases: {listed}"]


def case_of(texts: Table) -> str | None:
    """Return the one of :data:`CASES` that most utterances have; None where there are no cases."""
    groups = _by_case(texts)
    case = max(groups, key=lambda name: len(groups[name]))
    return case if groups[case] else None


def case_differences(sets: Mapping[str, Table]) -> list[str]:
    """Remark on the sets, by the names of their files, that are not in the case of the first one."""
    cases = {name: case_of({key: TAG.sub(" ", text) for key, text in texts.items()}) for name, texts in sets.items()}
    first, wanted = next(iter(cases.items()))
    advice = "words in another case count as errors: make them alike (--cleaner lower)"
    return [
        f"{name} is in {case}, {first} in {wanted}: {advice}"
        for name, case in cases.items()
        if None not in (case, wanted) and case != wanted
    ]


def losses(name: str, texts: Table, tokenizer: Tokenizer) -> list[str]:
    """Remark on symbols for which a tokenizer has no token, and on texts that their tokens do not give back.

    Args:
        name: of the file of the transcripts, for the remarks.
        texts: the transcripts.
        tokenizer: encodes them.
    """
    unknown: Counter[str] = Counter()
    with_unknown: list[str] = []
    changed: list[tuple[str, str, str]] = []  # utterance, text, text of its tokens
    for utterance, text in texts.items():
        text = normalise(text)
        decoded = normalise(tokenizer.decode(tokenizer.encode(text)[0]))
        wanted = normalise(text.lower()) if tokenizer.lower_case else text
        if characters := tokenizer.unknown(text):
            unknown.update(characters)
            with_unknown.append(utterance)
        elif decoded != wanted:
            changed.append((utterance, text, decoded))
    said = []
    if unknown:
        listed = _listed(f"{shown_symbol(character)} {count}" for character, count in unknown.most_common())
        said.append(f"{name}: the tokenizer has no token for {listed}, in {_share(with_unknown, texts)}")
    if changed:
        utterance, text, decoded = changed[0]
        said.append(
            f"{name}: {len(changed)} of {len(texts)} transcripts come back otherwise from their tokens, first "
            f"'{utterance}': '{_cut(text)}' as '{_cut(decoded)}'; the difference counts as errors"
        )
    return said


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_otherwise(counts: Mapping[str, int], words: int) -> str:
    """Say how many words are not written as they are read, and which are the most frequent ones.

    Args:
        counts: how often there is each of them.
        words: all words.
    """
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
    named = f" (most often: {', '.join(f'{word} {count}' for word, count in most)})" if most else ""
    return (
        f"{sum(counts.values())} of {words} words are not written as they are read{named}; they have the time of what "
        "is spoken between their neighbours"
    )


def read_symbols(path: str) -> list[str]:
    """Read a file of symbols for ``--nlsyms``, one a line; [] for "" and "none".

    Raises:
        UserError: no such file, bytes that are no UTF-8, a blank within a symbol, or no symbol.
    """
    if path in ("", "none"):
        return []
    symbols: dict[str, None] = {}  # an ordered set
    if not Path(path).is_file():
        raise UserError(f"--nlsyms {path} is no file: give one with a symbol such as <noise> on each line")
    for number, line in text_lines(path):
        if NOT_UTF8.search(line):
            raise UserError(f"--nlsyms {path}, line {number}: bytes that are no UTF-8: {CONVERT}")
        if len(line.split()) > 1:
            raise UserError(f"--nlsyms {path}, line {number}: '{line}' holds a blank: give one symbol a line")
        symbols[normalise(line)] = None
    symbols.pop("", None)
    if not symbols:
        raise UserError(f"--nlsyms {path} holds no symbol: give one such as <noise> on each line")
    return list(symbols)


def cleaner(names: str, symbols: Sequence[str]) -> Callable[[str], str]:
    """Return the function of a text for ``--cleaner``: ESPnet's cleaners, ``lower`` or ``upper``, one after the other.

    Args:
        names: separated by blanks; "" and "none" leave a text as it is.
        symbols: as :func:`read_symbols` returns them; they stay as they are.

    Raises:
        UserError: an unknown name, or a cleaner whose package is not installed.
    """
    steps = [_one_cleaner(name) for name in names.split() if name != "none"]
    if not steps:
        return lambda text: text
    longest_first = sorted(symbols, key=len, reverse=True)
    kept = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if symbols else None

    def clean(text: str) -> str:
        parts = kept.split(text) if kept else [text]
        for index in range(0, len(parts), 2):  # every second part is a symbol
            for step in steps if parts[index].strip() else ():
                parts[index] = step(parts[index])
        return normalise(" ".join(parts))

    return clean


def _one_cleaner(name: str) -> Callable[[str], str]:
    if name in ("lower", "upper"):
        return getattr(str, name)
    try:
        from espnet2.text.cleaner import TextCleaner

        step = TextCleaner(name)
        step("a 1")
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"--cleaner {name}: {' '.join(str(error).split())}: give lower, upper, or one of ESPnet's that is "
            "installed (tacotron, jaconv, korean_cleaner, vietnamese, whisper_en, whisper_basic)"
        ) from error
    return step
