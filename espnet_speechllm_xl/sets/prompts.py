"""The prompts of a dump set: one for all its utterances, or a table."""

import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_speechllm_xl.corpus.kaldi import read_table, read_text
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.metrics import some_names
from espnet_speechllm_xl.tokenization import normalise

if TYPE_CHECKING:
    from espnet_speechllm_xl.inference import Speech2Text


def prompts_of_set(dump: Path, utterances: Collection[str], prompt: str, table: str | None) -> dict[str, str]:
    """Return ``{utterance: prompt}`` of the utterances that have one.

    A joined recording that the table lacks has the prompts of its utterances, each once.  Standard error says how many
    lines of the table are not of the set.

    Args:
        dump: the set.
        utterances: its ids.
        prompt: of all utterances; "": none.
        table: file with lines ``utterance prompt``, in place of ``prompt``; None: there is none.

    Raises:
        UserError: the table is missing, damaged or of another set.
    """
    if table is None:
        return dict.fromkeys(utterances, normalise(prompt)) if prompt.strip() else {}
    if not Path(table).is_file():
        raise UserError(f"{table} is no file: give one with lines `utterance prompt`")
    given = {utterance: normalise(text) for utterance, text in read_text(table).items()}
    found = {
        utterance: " ".join(dict.fromkeys(filter(None, map(given.get, names))))
        for utterance, names in named_lines(dump, utterances, given, table, "prompts").items()
    }
    return {utterance: text for utterance, text in found.items() if text}


def named_lines(
    dump: Path, utterances: Iterable[str], given: Collection[str], table: str, what: str
) -> dict[str, list[str]]:
    """Return which ids of a table each utterance of a set has: its own, or those of a joined recording's utterances.

    Standard error says how many ids of the table are not of the set.

    Args:
        dump: the set.
        utterances: its ids.
        given: the ids of the table.
        table: its file.
        what: it holds.

    Raises:
        UserError: all ids are of another set.
    """
    parts = dump / "utt2parts"
    joined = read_table(parts) if parts.is_file() else {}
    found = {
        utterance: [utterance] if utterance in given else joined.get(utterance, "").split() for utterance in utterances
    }
    strange = sorted({*given}.difference(*found.values()))
    if len(strange) == len(given):
        raise UserError(
            f"{table}: its ids ({some_names(strange, 2)}) are none of {dump}'s ({some_names(sorted(found), 2)}): "
            f"give {what} of the same set"
        )
    if strange:
        print(f"{table}: {len(strange)} ids are not in {dump}: {some_names(strange)}", file=sys.stderr, flush=True)
    return found


def check_prompts(speech2text: "Speech2Text", prompts: dict[str, str]) -> None:
    """Raise UserError before any work if a model cannot read one of the prompts; the message names the utterance."""
    first = {prompt: utterance for utterance, prompt in reversed(prompts.items())}
    for prompt, utterance in first.items():
        try:
            speech2text.prompted(prompt)
        except UserError as error:
            raise UserError(f"prompt of {utterance}: {error}") from error
