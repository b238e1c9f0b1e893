"""What streams carry from one push to the next, stacked so that one call continues many."""

import dataclasses

import torch


class Streams:
    """State of B streams: a frozen dataclass of tensors (B, ...), tuples of them, or other such states."""

    @classmethod
    def stack(cls, states):
        """One state of all streams, in order.  They may differ in age, not in what they buffer (ValueError)."""
        return _stack(list(states))

    def unstack(self):
        """A list of states of one stream each; copies, so that a stream at rest does not hold the whole batch."""
        return [_select(self, i) for i in range(self.batch)]


def _stack(parts):
    first = parts[0]
    if isinstance(first, torch.Tensor):
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = sorted({tuple(part.shape[1:]) for part in parts})
            raise ValueError(f"streams that buffer different amounts {shapes} cannot be stacked: push them one by one")
        return torch.cat(parts)
    if isinstance(first, tuple):
        return tuple(_stack(list(group)) for group in zip(*parts, strict=True))
    names = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: _stack([getattr(part, name) for part in parts]) for name in names})


def _select(part, i):
    if isinstance(part, torch.Tensor):
        return part[i : i + 1].clone()
    if isinstance(part, tuple):
        return tuple(_select(item, i) for item in part)
    return type(part)(**{field.name: _select(getattr(part, field.name), i) for field in dataclasses.fields(part)})
