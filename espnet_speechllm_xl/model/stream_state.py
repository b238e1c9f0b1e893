"""The state of streams between two pushes, stacked so that one call continues many."""

import abc
import dataclasses
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="Streams")


@dataclasses.dataclass(frozen=True)
class Streams(abc.ABC):
    """State of B streams: a frozen dataclass of tensors (B, ...), tuples of them, or other such states."""

    @property
    @abc.abstractmethod
    def batch(self) -> int:
        """Return the number B of streams."""

    @classmethod
    def stack(cls: type[S], states: Iterable[S]) -> S:
        """Return one state of all streams, in order.

        Raises:
            ValueError: the streams buffer different amounts; their ages may differ.
        """
        return _stack_states(list(states))

    def unstack(self: S) -> list[S]:
        """Return a state for each stream: copies, so that a stream at rest does not hold the whole batch."""
        return [_select_state(self, index) for index in range(self.batch)]


class BufferingStreams(Streams):
    """State of streams that keep input for the next push."""

    @property
    @abc.abstractmethod
    def buffered(self) -> tuple[int, ...]:
        """Return how much each stream has buffered, of each kind; only streams that agree make one batch."""


Part = Tensor | tuple | Streams  # value of a field


def _stack_states(states: list[S]) -> S:
    names = [field.name for field in dataclasses.fields(states[0])]
    return dataclasses.replace(states[0], **{name: _stack([getattr(each, name) for each in states]) for name in names})


def _stack(parts: list) -> Part:
    """Return one value of a field from the values (:data:`Part`) that it has in several states."""
    first = parts[0]
    if isinstance(first, Tensor):
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = sorted({tuple(part.shape[1:]) for part in parts})
            raise ValueError(f"streams that buffer different amounts {shapes} cannot be stacked: push them one by one")
        return torch.cat(parts)
    if isinstance(first, tuple):
        return tuple(_stack(list(group)) for group in zip(*parts, strict=True))
    return _stack_states(parts)


def _select_state(state: S, index: int) -> S:
    names = [field.name for field in dataclasses.fields(state)]
    return dataclasses.replace(state, **{name: _select(getattr(state, name), index) for name in names})


def _select(part: Part, index: int) -> Part:
    """Return the value of a field for one stream."""
    if isinstance(part, Tensor):
        return part[index : index + 1].clone()
    if isinstance(part, tuple):
        return tuple(_select(item, index) for item in part)
    return _select_state(part, index)
