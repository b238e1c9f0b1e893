"""How likely CTC holds a text to be, token by token, while audio arrives: prefix scores (Watanabe et al. 2017).

    value       log P(the paths begin with the tokens so far)
    next()      log P(the paths begin with the tokens so far and one more), for each token
    values()    log P(the paths begin with the tokens so far and a text), for each of some texts
    waiting(m)  log P(the paths begin with the tokens so far, and no other begins before the last m frames)
    end()       log P(the paths spell the tokens so far and no more, given that they begin with them)

Paths go through the frames so far.  Logarithms are natural.

Shape legend: ``c`` frames of the window that is kept, ``d`` new ones, ``V`` tokens; the blank is V; ``n`` texts.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class _Token:
    """The last token of a text, with the log-probabilities of the paths that spell the text.

    Entry t of a vector counts the paths through the first t frames of the window, t = 0 .. c.
    """

    token: int | None  # None: the empty text
    written: int  # frames of the window when the token was appended
    in_token: Tensor  # (c + 1,) of the paths that end in the token
    in_blank: Tensor  # (c + 1,) of the paths that end in blank
    value: Tensor  # () of the paths that begin with the text

    def before(self, token: int | None) -> Tensor:
        """Return the paths (c + 1,) that ``token`` can follow at once: a repeat is a new token only after a blank."""
        return self.in_blank if token == self.token else torch.logaddexp(self.in_blank, self.in_token)

    def grown(self, parent: "_Token | None", log_probs: Tensor) -> "_Token":
        """Return the token with new frames behind its window.

        Args:
            parent: the token before it, grown already, whose paths may enter it; None: no path enters.
            log_probs: (d, V + 1) of the new frames.
        """
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

    def without(self, count: int) -> "_Token":
        """Drop the first ``count`` frames of the window."""
        return dataclasses.replace(
            self, written=self.written - count, in_token=self.in_token[count:], in_blank=self.in_blank[count:]
        )


@dataclass(frozen=True)
class Prefix:
    """Text of a hypothesis with CTC's scores.  It never changes, so forks share it."""

    log_probs: Tensor  # (c, V + 1) float64
    tokens: tuple[_Token, ...]  # in order; tokens that new frames cannot change any more are dropped

    @classmethod
    def empty(cls, log_probs: Tensor) -> "Prefix":
        """Return the empty text.

        Args:
            log_probs: (c, V + 1) of the first frames.
        """
        log_probs = log_probs.double()
        in_blank = F.pad(log_probs[:, -1].cumsum(0), (1, 0))
        nothing = _Token(None, 0, torch.full_like(in_blank, -torch.inf), in_blank, in_blank.new_zeros(()))
        return cls(log_probs, (nothing,))

    @property
    def value(self) -> Tensor:
        """Return log P(the paths begin with the tokens so far), a scalar."""
        return self.tokens[-1].value

    def extend(self, token: int) -> "Prefix":
        """Append a token; O(c)."""
        before = self.tokens[-1].before(token)
        paths = _entered(before, self.log_probs[:, token], self.log_probs[:, -1])
        return Prefix(self.log_probs, (*self.tokens, _Token(token, len(self.log_probs), *paths)))

    def grow(self, log_probs: Tensor, history: int) -> "Prefix":
        """Append frames, and keep the last ``history`` of the frames before.

        This approximates: no path enters later into a token that was appended before the frames that are kept.

        Args:
            log_probs: (d, V + 1) of the new frames.
            history: old frames that are kept.
        """
        log_probs = log_probs.double()
        dropped = max(0, len(self.log_probs) - history)
        old = sum(token.written <= dropped for token in self.tokens)
        grown: list[_Token] = []
        for token in self.tokens[max(0, old - 1) :]:
            grown.append(token.grown(grown[-1] if grown else None, log_probs))
        window = torch.cat([self.log_probs[dropped:], log_probs])
        return Prefix(window, tuple(token.without(dropped) for token in grown))

    def next(self) -> Tensor:
        """Return the value (V,) with each token appended; O(c V)."""
        last, scores = self.tokens[-1], self.log_probs[:, :-1]
        values = torch.logsumexp(last.before(None)[:-1, None] + scores, 0)
        if last.token is not None:
            values[last.token] = torch.logsumexp(last.before(last.token)[:-1] + scores[:, last.token], 0)
        return values

    def values(self, texts: Sequence[Sequence[int]], least: Tensor | None = None) -> Tensor:
        """Return the value (n,) with each text appended; O(c) for each token, once where texts begin alike.

        Args:
            texts: tokens of each.
            least: (n,) no text is followed further when its beginning has a lower value.  It gets the value of that
                beginning, which is no lower than its own.  None: all are followed to their ends.
        """
        last = self.tokens[-1]
        in_token, in_blank, labels = last.in_token[None], last.in_blank[None], [last.token]
        values, places = last.value.repeat(len(texts)), [0] * len(texts)
        for depth in range(max(map(len, texts), default=0)):
            hopeful = [True] * len(texts) if least is None else (values >= least).tolist()
            longer = [index for index, text in enumerate(texts) if len(text) > depth and hopeful[index]]
            if not longer:
                break
            found: dict[tuple[int, int], int] = {}  # the text before and its next token -> where the paths stand
            for index in longer:
                places[index] = found.setdefault((places[index], texts[index][depth]), len(found))
            parents, tokens = map(list, zip(*found, strict=True))
            repeats = torch.tensor([labels[parent] == token for parent, token in found], device=values.device)
            either = torch.logaddexp(in_blank, in_token)
            before = torch.where(repeats[:, None], in_blank[parents], either[parents])
            in_token, in_blank, value = _entered(before, self.log_probs[:, tokens].t(), self.log_probs[:, -1])
            labels = tokens
            values[longer] = value[[places[index] for index in longer]]
        return values

    def waiting(self, margin: int, harmless: int | None = None) -> Tensor:
        """Return log P(the paths begin with the tokens so far, and no other begins before the last frames), a scalar.

        Args:
            margin: the last frames, in which another token may begin.
            harmless: a token that may have begun before, if none behind it has; None: there is none.
        """
        last, begin = self.tokens[-1], max(0, len(self.log_probs) - margin)
        value = torch.logaddexp(last.in_token[begin], last.in_blank[begin])
        if harmless is not None:
            begun = self.extend(harmless).tokens[-1]
            value = torch.logaddexp(value, torch.logaddexp(begun.in_token[begin], begun.in_blank[begin]))
        if len(self.tokens) == 1:
            return value
        entering = self.tokens[-2].before(last.token)[begin:-1] + self.log_probs[begin:, last.token]
        return torch.logaddexp(value, torch.logsumexp(entering, 0))

    def end(self) -> Tensor:
        """Return log P(the text ends here, given that the paths begin with it), a scalar; 0 if no path spells it."""
        last = self.tokens[-1]
        if torch.isinf(last.value):
            return torch.zeros_like(last.value)
        # Rounding must not make it a probability above 1.
        return (torch.logaddexp(last.in_token[-1], last.in_blank[-1]) - last.value).clamp(max=0.0)


def _entered(before: Tensor, scores: Tensor, blank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the paths that go on with one more token.

    Args:
        before: (..., c + 1) log of the paths that the token can follow at once.
        scores: (..., c) log-probability of the token in each frame.
        blank: (c,) log-probability of the blank.

    Returns:
        (..., c + 1) of those that end in the token, (..., c + 1) of those that end in blank, (...) of all that begin
        with the longer text.
    """
    before = before[..., :-1]
    never = before.new_full(before.shape[:-1], -torch.inf)
    in_token = _stay(never, before, scores)
    in_blank = _stay(never, in_token[..., :-1], blank)
    return in_token, in_blank, torch.logsumexp(before + scores, -1)


def _stay(start: Tensor, before: Tensor, scores: Tensor) -> Tensor:
    """Return the paths that entered a symbol after any frame and stayed in it.

    They are x(t) = (x(t - 1) + before(t - 1)) scores(t).  Unrolled, x(t) is the sum over s < t of before(s) and the
    product of the scores after s: one cumulative sum.

    Args:
        start: (...) log of x(0).
        before: (..., d) log of the paths that may enter with the next frame.
        scores: (..., d) log-probability of the symbol in each frame.

    Returns:
        (..., d + 1) log of x.
    """
    total = F.pad(scores.cumsum(-1), (1, 0))
    return torch.logcumsumexp(torch.cat([start[..., None], before - total[..., :-1]], -1), -1) + total
