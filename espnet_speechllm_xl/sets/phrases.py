"""The phrases of a dump set: one list for all its utterances, or a table."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl.corpus.ctm import nist_lines
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.sets.prompts import named_lines

if TYPE_CHECKING:
    from espnet_speechllm_xl.inference import Speech2Text


@dataclass(frozen=True)
class SetPhrases:
    """The phrases of a set, for JSON."""

    lists: list[list[str]]  # lines of decoding/phrases.py, each list once
    of: dict[str, int]  # which of the lists an utterance has


def phrases_of_set(
    dump: Path, utterances: Collection[str], listed: list[str] | None, table: str | None
) -> SetPhrases | None:
    """Return the phrases of a set; None where it has none.

    Args:
        dump: the set.
        utterances: its ids.
        listed: lines of phrases, for all utterances; None: there are none.
        table: file with lines ``utterance phrase``, in place of them, any number for each utterance; a joined recording
            that it lacks has the phrases of its utterances; None: there is none.

    Raises:
        UserError: the table is missing, damaged or of another set.
    """
    if table is None:
        return SetPhrases([listed], dict.fromkeys(utterances, 0)) if listed else None
    if not Path(table).is_file():
        raise UserError(f"{table} is no file: give one with lines `utterance phrase`")
    given: dict[str, list[str]] = {}
    for _, line in nist_lines(table):
        utterance, *phrase = line.split(maxsplit=1)
        given.setdefault(utterance, []).extend(map(str.strip, phrase))
    if not any(given.values()):
        raise UserError(f"{table} holds no phrases: write lines `utterance phrase`")
    numbers: dict[tuple[str, ...], int] = {}
    of = {}
    for utterance, names in named_lines(dump, utterances, given, table, "phrases").items():
        lines = tuple(dict.fromkeys(line for name in names for line in given.get(name, ())))
        if lines:
            of[utterance] = numbers.setdefault(lines, len(numbers))
    return SetPhrases(list(map(list, numbers)), of)


def check_phrases(speech2text: "Speech2Text", phrases: dict[str, Any]) -> None:
    """Raise UserError before any work if a model cannot write phrases of a :class:`SetPhrases`, as JSON has it."""
    from espnet_speechllm_xl.decoding.phrases import written_phrases

    for index, lines in enumerate(phrases["lists"]):
        try:
            speech2text.phrase_tree(lines[:1])
            written_phrases(speech2text.tokenizer, lines)
        except UserError as error:
            utterance = next(name for name, number in phrases["of"].items() if number == index)
            raise UserError(f"phrases of {utterance}: {error}") from error
