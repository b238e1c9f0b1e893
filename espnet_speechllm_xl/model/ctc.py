"""CTC model on the streaming encoder: the aligner, and a baseline.

Classes are the tokenizer's ids 0 .. V-1, then the blank = V.
"""

import torch
import torch.nn.functional as F
from torch import nn

from espnet_speechllm_xl.model.dropout import Dropout


class CTCHead(nn.Module):
    """Frames (B, T, D) -> log-probabilities (B, T, V + 1) and the CTC loss (Graves et al. 2006)."""

    def __init__(self, dim, vocab_size, dropout=0.0):
        super().__init__()
        self.blank = vocab_size
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(dim, vocab_size + 1)

    def forward(self, frames):
        """Log-probabilities (B, T, V + 1)."""
        logits = self.output(self.dropout(frames))
        return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)

    def loss(self, log_probs, frame_lengths, tokens, token_lengths):
        """Loss of each utterance (B,); 0 where the frames are too few for the tokens."""
        if not log_probs.shape[1]:  # of which torch makes an error
            return log_probs.sum((1, 2))
        return F.ctc_loss(
            log_probs.transpose(0, 1),
            tokens,
            frame_lengths,
            token_lengths,
            blank=self.blank,
            reduction="none",
            zero_infinity=True,
        )
