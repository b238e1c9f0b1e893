"""What transcripts hold that recognisers stumble over, and how it is cleaned away.

Tables are ``{utterance: text}``; every remark is one line.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import CONVERT, NOT_UTF8, text_lines
from espnet_speechllm_xl.tokenization import Tokenizer, normalise

# <noise>, [noise], (laughs), {breath}
TAG = re.compile(r"<[^<>]{1,40}>|\[[^\[\]]{1,40}\]|\([^()]{1,40}\)|\{[^{}]{1,40}\}")
RARE = 5  # what occurs less often is hardly learnt
LISTED = 10  # of many symbols, so many are named
CASES = ("lower case", "UPPER CASE", "Both Cases")


def remarks(name: str, texts: dict[str, str], rare: int = RARE, symbols: Sequence[str] = ()) -> list[str]:
    """Say what stands out in the transcripts of the file ``name``: tags, digits, cases, symbols rarer than ``rare``.

    Tags that are among the ``symbols`` of ``--nlsyms`` do not.
    """
    tags, plain = Counter(), {}
    with_tags, with_digits = [], []
    for utterance, text in texts.items():
        found = TAG.findall(text)
        plain[utterance] = TAG.sub(" ", text) if found else text
        found = [tag for tag in found if tag not in symbols]
        tags.update(found)
        with_tags += [utterance] if found else []
        with_digits += [utterance] if any(map(str.isdigit, plain[utterance])) else []
    said = []
    if tags:
        listed = _listed(f"{tag} {count}" for tag, count in tags.most_common())
        said.append(f"{name}: tags in {_share(with_tags, texts)}: {listed}; --nlsyms makes each one token")
    if with_digits:
        advice = "one number has many readings: spell them out (in English --cleaner tacotron)"
        said.append(f"{name}: digits in {_share(with_digits, texts)}; {advice}")
    said += _mixed_cases(name, plain)
    counts = Counter(character for text in plain.values() for character in normalise(text).replace(" ", ""))
    seldom = sorted((count, character) for character, count in counts.items() if count < rare)
    if seldom:
        listed = _listed(f"{shown(character)} {count}" for count, character in seldom)
        said.append(f"{name}: {len(seldom)} of {len(counts)} symbols occur fewer than {rare} times: {listed}")
    return said


def _listed(items) -> str:
    items = list(items)
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _share(utterances: list, texts: dict) -> str:
    return f"{len(utterances)} of {len(texts)} utterances (first '{utterances[0]}')"


def shown(character: str) -> str:
    """A symbol as itself, or as U+XXXX where nothing would be seen of it."""
    seen = character.isprintable() and not unicodedata.category(character).startswith(("M", "Z"))
    return f"'{character}'" if seen else f"U+{ord(character):04X}"


def _by_case(texts: dict[str, str]) -> dict[str, list]:
    """The utterances that hold letters of each of :data:`CASES`; those without such letters are in none."""
    found = {case: [] for case in CASES}
    for utterance, text in texts.items():
        lower, upper = text != text.upper(), text != text.lower()
        if lower or upper:
            found[CASES[2] if lower and upper else CASES[upper]].append(utterance)
    return found


def _mixed_cases(name: str, texts: dict[str, str]) -> list[str]:
    groups = [(case, utterances) for case, utterances in _by_case(texts).items() if utterances]
    if len(groups) < 2:
        return []
    listed = ", ".join(f"{case} {len(utterances)} (first '{utterances[0]}')" for case, utterances in groups)
    return [f"{name}: utterances in several cases: {listed}"]


def case_of(texts: dict[str, str]) -> str | None:
    """The one of :data:`CASES` that most utterances have; None where there are no cases."""
    counts = {case: len(utterances) for case, utterances in _by_case(texts).items()}
    return max(counts, key=counts.get) if any(counts.values()) else None


def case_differences(sets: dict[str, dict[str, str]]) -> list[str]:
    """Say which of the sets, by the names of their files, are not in the case of the first."""
    cases = {name: case_of({key: TAG.sub(" ", text) for key, text in texts.items()}) for name, texts in sets.items()}
    first, wanted = next(iter(cases.items()))
    advice = "words in another case count as errors: make them alike (--cleaner lower)"
    return [
        f"{name} is in {case}, {first} in {wanted}: {advice}"
        for name, case in cases.items()
        if None not in (case, wanted) and case != wanted
    ]


def losses(name: str, texts: dict[str, str], tokenizer: Tokenizer) -> list[str]:
    """Say which symbols of the transcripts no token gives back, and whether others come back otherwise."""
    lost, without, others = Counter(), [], []
    for utterance, text in texts.items():
        text = normalise(text)
        given = normalise(tokenizer.decode(tokenizer.encode(text)[0]))
        unknown = tokenizer.unknown(text)
        lost.update(unknown)
        without += [utterance] if unknown else []
        others += [(utterance, text, given)] if given != text and not unknown else []
    said = []
    if lost:
        listed = _listed(f"{shown(character)} {count}" for character, count in lost.most_common())
        said.append(f"{name}: the tokenizer has no token for {listed}, in {_share(without, texts)}")
    if others:
        utterance, text, given = others[0]
        said.append(
            f"{name}: {len(others)} of {len(texts)} transcripts come back otherwise from their tokens, first "
            f"'{utterance}': '{_cut(text)}' as '{_cut(given)}'; the difference counts as errors"
        )
    return said


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_symbols(path: str) -> list[str]:
    """The symbols of a file for ``--nlsyms``, one a line; [] for "" and "none".

    Raises:
        UserError: no such file, bytes that are no UTF-8, a blank within a symbol, or no symbol.
    """
    if path in ("", "none"):
        return []
    symbols = {}
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


def cleaner(names: str, symbols: list[str]) -> Callable[[str], str]:
    """Return what ``--cleaner`` does to a text: ESPnet's cleaners, ``lower`` or ``upper``, one after the other.

    Args:
        names: separated by blanks; "" and "none" leave a text as it is.
        symbols: those of :func:`read_symbols`; they are left alone.
    Raises:
        UserError: an unknown name, or a cleaner whose package is not installed.
    """
    steps = [_one_cleaner(name) for name in names.split() if name != "none"]
    if not steps:
        return lambda text: text
    longest_first = sorted(symbols, key=len, reverse=True)
    kept = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if symbols else None

    def clean(text):
        parts = kept.split(text) if kept else [text]
        for index in range(0, len(parts), 2):  # the others are the symbols
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
