"""CTC model on the streaming encoder: the aligner, and a baseline.

Classes are the tokenizer's ids 0 .. V-1, then the blank = V.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.functional import edit_distance

from espnet_speechllm_xl.acoustic import AcousticModel
from espnet_speechllm_xl.dropout import Dropout


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


def collapse(path, blank):
    """Token ids of a frame-wise path (list of int): repeats merged, blanks removed."""
    return [token for token, before in zip(path, [blank, *path], strict=False) if token not in (blank, before)]


class CTCModel(AcousticModel):
    """Encoder and CTC head.

    Args:
        acoustic: :class:`~espnet_speechllm_xl.acoustic.Acoustic`.
        vocab_size: tokenizer ids (V).
        dropout: probability, before the output layer.
    """

    def __init__(self, acoustic, vocab_size, dropout):
        super().__init__()
        self.acoustic = acoustic
        self.ctc = CTCHead(acoustic.encoder.output_size(), vocab_size, dropout)

    def log_probs(self, speech, speech_lengths):
        """Log-probabilities (B, T, V + 1) and frame counts (B,) of audio (B, N), (B,)."""
        frames, counts = self.acoustic(speech, speech_lengths)
        return self.ctc(frames), counts

    def forward(self, speech, speech_lengths, text, text_lengths, **_):
        """ESPnet's ``(loss, stats, weight)``: mean loss of an utterance; token error rate when evaluating."""
        log_probs, counts = self.log_probs(speech, speech_lengths)
        text = text.clamp(min=0)  # the collate function pads with a negative id
        loss = self.ctc.loss(log_probs, counts, text, text_lengths).mean()
        stats = {}
        if not self.training:
            stats["ter"] = self._error_rate(log_probs, counts, text, text_lengths)
        return self.answer(loss, stats, speech.shape[0])

    def _error_rate(self, log_probs, counts, text, text_lengths):
        errors = 0
        for path, count, tokens, length in zip(log_probs.argmax(-1), counts, text, text_lengths, strict=True):
            hypothesis = collapse(path[:count].tolist(), self.ctc.blank)
            errors += edit_distance(tokens[:length].tolist(), hypothesis)
        return torch.tensor(errors / max(1, int(text_lengths.sum())))
