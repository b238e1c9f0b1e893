"""How likely CTC holds a block's text to be complete: prefix scores (Watanabe et al. 2017), token by token.

CTC's paths through a block that begin with the tokens ``g`` either end there or go on with another token, so

    P(end | g) = P(the paths spell g) / P(the paths spell g, or g and more)

and the shares of the end and of every next token add up to 1.  Natural logarithms throughout.

Shape legend: ``c`` frames of the block, ``V`` tokens; the blank is V.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class BlockPrefix:
    """Tokens so far of one block, and the paths that spell them after 0 .. c frames.  Never changes: forks share it."""

    log_probs: torch.Tensor  # (c, V + 1) float64
    in_token: torch.Tensor  # (c + 1,) of the paths that end in the last token
    in_blank: torch.Tensor  # (c + 1,) of those that end in blank
    prefix: torch.Tensor  # () of the paths through the whole block that begin with the tokens
    last: int | None  # last token

    @classmethod
    def empty(cls, log_probs):
        """Before the first token of a block with log-probabilities (c, V + 1)."""
        log_probs = log_probs.double()
        in_blank = F.pad(log_probs[:, -1].cumsum(0), (1, 0))
        return cls(log_probs, torch.full_like(in_blank, -torch.inf), in_blank, in_blank.new_zeros(()), None)

    def extend(self, token):
        """With one more token; O(c)."""
        scores = self.log_probs[:, token]
        # A repeat is a new token only after a blank.
        before = self.in_blank if token == self.last else torch.logaddexp(self.in_blank, self.in_token)
        in_token = _stay(before, scores)
        in_blank = _stay(in_token, self.log_probs[:, -1])
        prefix = torch.logsumexp(before[:-1] + scores, 0)
        return BlockPrefix(self.log_probs, in_token, in_blank, prefix, token)

    def end(self):
        """log P(end | tokens so far), a scalar tensor; 0 where the block has too few frames for the tokens."""
        if torch.isinf(self.prefix):
            return torch.zeros_like(self.prefix)
        # Rounding must not make it a probability above 1.
        return (torch.logaddexp(self.in_token[-1], self.in_blank[-1]) - self.prefix).clamp(max=0.0)


def _stay(before, scores):
    """Paths that entered a symbol after any frame and stayed in it: x(t) = (x(t - 1) + before(t - 1)) scores(t).

    Unrolled, x(t) is the sum over s < t of before(s) and the product of the scores after s: one cumulative sum.

    Args:
        before: (c + 1,) logarithms, scores: (c,).

    Returns:
        x (c + 1,), logarithms; x(0) is -inf.
    """
    total = F.pad(scores.cumsum(0), (1, 0))
    entered = torch.logcumsumexp(before - total, 0)[:-1]
    return F.pad(entered + total[1:], (1, 0), value=-torch.inf)


def fuse_end(log_probs, end, weight):
    """Next-token log-probabilities (V + 1,) whose end, the last entry, CTC had a say in.

    The log-probability of the end becomes the weighted mean of the LM's and CTC's ``end``; the tokens share what is
    left as the LM would, so that the result is a distribution and hypotheses that ended a block compare with those
    that did not.
    """
    ended = (1 - weight) * log_probs[-1:] + weight * end.to(log_probs)
    tokens = log_probs[:-1] - log_probs[:-1].logsumexp(0) + torch.log(-torch.expm1(ended))
    return torch.cat([tokens, ended])
