"""CTC head on the streaming encoder: of the aligner, of the CTC baseline, and of other systems as an auxiliary loss.

Classes are a tokenizer's ids 0 .. V-1, then the blank = V.  Beside a decoder it is the decoder's tokenizer, or one of
its own (ctc_spelling.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_speechllm_xl.model.ctc_spelling import Spelling
from espnet_speechllm_xl.model.dropout import Dropout


class CTCHead(nn.Module):
    """Frames (B, T, D) to log-probabilities (B, T, V + 1), and the CTC loss (Graves et al. 2006).

    Args:
        dim: size D of a frame.
        vocab_size: tokenizer ids (V).
        dropout: probability, on the frames.

    Attributes:
        blank: id of the blank, V.
        spelling: how the decoder's text is written in tokens of the head's own; None: the head has the decoder's
            tokens.  Decoding needs it, and loading a trained model sets it.
    """

    def __init__(self, dim: int, vocab_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blank = vocab_size
        self.spelling: Spelling | None = None
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(dim, vocab_size + 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the log-probabilities (B, T, V + 1) of frames (B, T, D)."""
        logits = self.output(self.dropout(frames))
        return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)

    def loss(self, log_probs: Tensor, frame_lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Return the loss of each utterance (B,); 0 where the frames are too few for the tokens.

        Args:
            log_probs: (B, T, V + 1)
            frame_lengths: (B,) frames.
            tokens: (B, U) token ids, any padding.
            token_lengths: (B,) tokens.
        """
        if not log_probs.shape[1]:  # torch makes an error of it
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
