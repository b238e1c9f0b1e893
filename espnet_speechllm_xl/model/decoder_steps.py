"""One step of a decoder, as a search asks for it and gets it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Request:
    """One hypothesis wants its decoder state extended, by the frames of a chunk or by one token."""

    row: Any  # decoder state, immutable: forks share the object
    chunk: int  # chunk that the inputs belong to
    frames: Tensor | None = None  # (q, D) encodings of the chunk (prefill)
    token: int | None = None  # one text token
    last: bool = False  # no audio follows the chunk; False also where that is not known yet

    @property
    def kind(self):
        """Steps of one kind make one batch (prefills of different lengths too)."""
        return "token" if self.frames is None else "prefill"


@dataclass(frozen=True, slots=True)
class Result:
    """The extended state, and what may come next."""

    row: Any
    log_probs: Tensor  # (V + 1,) natural logarithms after the last input; `$` is the last entry
    scores: Tensor | None = None  # (V + 1,) what each adds to a hypothesis' score; None: log_probs (joint_ctc.py)
