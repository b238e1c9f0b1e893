"""Letter case in comparisons of a model's texts with references: every command that counts errors asks here.

A model whose tokenizer takes capitals as small letters writes small letters only.  Its texts are compared without
regard to case, whatever the references have.  Texts of which nothing is known are refused where one side has capitals
only and the other none: no word of them could be right.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.decoded_sets import is_decoded, writes_small_letters
from espnet_speechllm_xl.evaluation.scoring_inputs import NOTHING_IGNORED, Ignored

WITHOUT_CASE = "The model writes small letters: compared without regard to case."
ADVICE = "compare them with --ignore-case"


def ignoring(small_letters: bool, ignored: Ignored = NOTHING_IGNORED) -> Ignored:
    """Return what is left out of the texts of a model.

    Args:
        small_letters: whether it writes small letters only (``Tokenizer.lower_case``).
        ignored: what the user leaves out.
    """
    return dataclasses.replace(ignored, case=ignored.case or small_letters)


def is_of_small_letters(path: str | Path) -> bool:
    """Tell whether hypotheses, a directory or a file, are a set that a model of small letters has decoded."""
    directory = Path(path) if Path(path).is_dir() else Path(path).parent
    return is_decoded(directory) and writes_small_letters(directory)


def refuse_other_case(
    references: Mapping[str, str], hypotheses: Mapping[str, str], what: str, advice: str = ADVICE
) -> None:
    """Raise UserError where one side has capitals and no small letters, and the other small letters and no capitals.

    Args:
        references: ``{utterance: text}``.
        hypotheses: ``{utterance: text}``.
        what: name of the hypotheses in the message.
        advice: what to do.
    """
    sides = [_cases(side) for side in (references, hypotheses)]
    if sorted(sides) == [(False, True), (True, False)]:
        kinds = ["small letters" if small else "capitals" for _, small in sides]
        raise UserError(f"{what}: the references are in {kinds[0]}, the hypotheses in {kinds[1]}: {advice}")


def _cases(texts: Mapping[str, str]) -> tuple[bool, bool]:
    """Tell whether there are capitals, and small letters, outside of tags in any text."""
    plain = [Ignored(tags=True).left_of(text) for text in texts.values()]
    return any(text != text.lower() for text in plain), any(text != text.upper() for text in plain)


def compared(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    ignored: Ignored,
    what: str,
    advice: str = ADVICE,
) -> tuple[dict[str, str], dict[str, str]]:
    """Return references and hypotheses as they are compared.

    Args:
        references: ``{utterance: text}``.
        hypotheses: ``{utterance: text}``.
        ignored: what is left out of both.
        what: name of the hypotheses in the message of an error.
        advice: what to do about the error.

    Raises:
        UserError: they differ in case throughout, and case is not left out.
    """
    if not ignored.case:
        refuse_other_case(references, hypotheses, what, advice)
    return ignored.left_of_all(references), ignored.left_of_all(hypotheses)
