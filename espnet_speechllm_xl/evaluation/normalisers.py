"""Normalisers of texts before scoring: those of the package whisper-normalizer, with which leaderboards score.

``english`` is its ``EnglishTextNormalizer``: small letters, no punctuation, no words in brackets, no fillers (hmm, um),
contractions and numbers written in one way, British spellings made American.  ``basic`` is its
``BasicTextNormalizer``, for any language: small letters, no punctuation and other signs, no words in brackets.
"""

import functools
import importlib
from collections.abc import Callable, Mapping

from espnet_speechllm_xl.errors import UserError

CLASSES = {"basic": "BasicTextNormalizer", "english": "EnglishTextNormalizer"}
NONE = "none"
NAMES = (NONE, *CLASSES)
PACKAGE = "whisper-normalizer"


@functools.cache
def _load(name: str) -> Callable[[str], str]:
    try:
        module = importlib.import_module(f"whisper_normalizer.{name}")
    except ImportError as error:
        raise UserError(f"--normaliser {name} ({error}): pip install {PACKAGE}") from error
    return getattr(module, CLASSES[name])()


def normalised(name: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Return ``{utterance: text}`` after a normaliser of :data:`NAMES`, with single spaces.

    Raises:
        UserError: the package is not installed.
    """
    if name == NONE:
        return dict(texts)
    normalise = _load(name)
    return {utterance: " ".join(normalise(text).split()) for utterance, text in texts.items()}


def described(name: str) -> str:
    """Return the name of the normaliser's class, its package and the package's version."""
    import importlib.metadata  # slow, and most commands need no version

    return f"{CLASSES[name]} of {PACKAGE} {importlib.metadata.version(PACKAGE)}"
