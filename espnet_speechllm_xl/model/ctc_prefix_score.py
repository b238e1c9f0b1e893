"""How likely CTC holds a text to be, token by token, while audio arrives: prefix scores (Watanabe et al. 2017).

    value       log P(the paths spell the tokens so far, or these and more)
    next()      the same with one more token, for each there is
    waiting(m)  log P(the same, and no other token before the last m frames)
    end()       log P(the paths spell no more than the tokens so far, given that they begin with them)

Paths are those through the frames so far.  Natural logarithms throughout.

Shape legend: ``c`` frames of the window that is kept, ``d`` new ones, ``V`` tokens; the blank is V.
"""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class _Token:
    """The paths that spell a text up to this token, its last one, after 0 .. c frames of the window."""

    token: int | None  # None: the empty text
    written: int  # frames of the window when it was written
    in_token: torch.Tensor  # (c + 1,) of the paths that end in the token
    in_blank: torch.Tensor  # (c + 1,) of those that end in blank
    value: torch.Tensor  # () of the paths that begin with the text

    def before(self, token):
        """(c + 1,) of the paths that ``token`` can follow at once: a repeat is a new token only after a blank."""
        return self.in_blank if token == self.token else torch.logaddexp(self.in_blank, self.in_token)

    def grown(self, parent, log_probs):
        """With the new frames (d, V + 1), which paths of ``parent``, grown already, may enter; None: no path."""
        begin, end = len(self.in_token) - 1, len(self.in_token) - 1 + len(log_probs)
        entering = log_probs.new_full((len(log_probs),), -torch.inf)
        in_token, value = F.pad(self.in_token, (0, len(log_probs)), value=-torch.inf), self.value
        if self.token is not None:
            scores = log_probs[:, self.token]
            entering = entering if parent is None else parent.before(self.token)[begin:end]
            in_token = torch.cat([self.in_token[:-1], _stay(self.in_token[-1], entering, scores)])
            value = torch.logaddexp(value, torch.logsumexp(entering + scores, 0))
        in_blank = _stay(self.in_blank[-1], in_token[begin:end], log_probs[:, -1])
        return dataclasses.replace(
            self, in_token=in_token, in_blank=torch.cat([self.in_blank[:-1], in_blank]), value=value
        )

    def without(self, count):
        """Without the first ``count`` frames of the window."""
        return dataclasses.replace(
            self, written=self.written - count, in_token=self.in_token[count:], in_blank=self.in_blank[count:]
        )


@dataclass(frozen=True)
class Prefix:
    """A text so far, to CTC.  Never changes: forks share it."""

    log_probs: torch.Tensor  # (c, V + 1) float64
    tokens: tuple  # of _Token, the last one last; those that new frames cannot change any more are dropped

    @classmethod
    def empty(cls, log_probs):
        """The empty text and the first frames (c, V + 1)."""
        log_probs = log_probs.double()
        in_blank = F.pad(log_probs[:, -1].cumsum(0), (1, 0))
        nothing = _Token(None, 0, torch.full_like(in_blank, -torch.inf), in_blank, in_blank.new_zeros(()))
        return cls(log_probs, (nothing,))

    @property
    def value(self):
        """A scalar tensor; see above."""
        return self.tokens[-1].value

    def extend(self, token):
        """With one more token; O(c)."""
        before, scores = self.tokens[-1].before(token)[:-1], self.log_probs[:, token]
        never = before.new_tensor(-torch.inf)
        in_token = _stay(never, before, scores)
        in_blank = _stay(never, in_token[:-1], self.log_probs[:, -1])
        value = torch.logsumexp(before + scores, 0)
        return Prefix(self.log_probs, (*self.tokens, _Token(token, len(self.log_probs), in_token, in_blank, value)))

    def grow(self, log_probs, history):
        """With new frames (d, V + 1) behind; of those before, the last ``history`` are kept.

        An approximation: tokens that were written earlier than those are heard by now, no path enters them later.
        """
        log_probs = log_probs.double()
        dropped = max(0, len(self.log_probs) - history)
        old = sum(token.written <= dropped for token in self.tokens)
        grown = []
        for token in self.tokens[max(0, old - 1) :]:
            grown.append(token.grown(grown[-1] if grown else None, log_probs))
        window = torch.cat([self.log_probs[dropped:], log_probs])
        return Prefix(window, tuple(token.without(dropped) for token in grown))

    def next(self):
        """The value (V,) with each token appended; O(c V)."""
        last, scores = self.tokens[-1], self.log_probs[:, :-1]
        values = torch.logsumexp(last.before(None)[:-1, None] + scores, 0)
        if last.token is not None:
            values[last.token] = torch.logsumexp(last.before(last.token)[:-1] + scores[:, last.token], 0)
        return values

    def waiting(self, margin):
        """log P(the paths begin with the tokens so far, another coming in the last ``margin`` frames or later)."""
        last, begin = self.tokens[-1], max(0, len(self.log_probs) - margin)
        value = torch.logaddexp(last.in_token[begin], last.in_blank[begin])
        if len(self.tokens) == 1:
            return value
        entering = self.tokens[-2].before(last.token)[begin:-1] + self.log_probs[begin:, last.token]
        return torch.logaddexp(value, torch.logsumexp(entering, 0))

    def end(self):
        """A scalar tensor, see above; 0 where there are too few frames for the tokens."""
        last = self.tokens[-1]
        if torch.isinf(last.value):
            return torch.zeros_like(last.value)
        # Rounding must not make it a probability above 1.
        return (torch.logaddexp(last.in_token[-1], last.in_blank[-1]) - last.value).clamp(max=0.0)


def _stay(start, before, scores):
    """Paths that entered a symbol after any frame and stayed in it: x(t) = (x(t - 1) + before(t - 1)) scores(t).

    Unrolled, x(t) is the sum over s < t of before(s) and the product of the scores after s: one cumulative sum.

    Args:
        start: () x(0), before: (d,), scores: (d,), logarithms.

    Returns:
        x (d + 1,), logarithms.
    """
    total = F.pad(scores.cumsum(0), (1, 0))
    return torch.logcumsumexp(torch.cat([start[None], before - total[:-1]]), 0) + total
