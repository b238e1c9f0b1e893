"""Losses that the systems share.

Shape legend: ``B`` batch, ``L`` sequence, ``D`` decoder dimension, ``n`` targets of the batch, ``V`` tokenizer size.
"""

import torch.nn.functional as F
from torch import Tensor

from espnet_speechllm_xl.config import LossConfig
from espnet_speechllm_xl.model.decoder_steps import TextDecoder
from espnet_speechllm_xl.model.sequence import IGNORE


def text_loss(
    decoder: TextDecoder, hidden: Tensor, targets: Tensor, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Return the cross-entropy of text and end-of-chunk targets.

    Args:
        decoder: scores the hidden states.
        hidden: (B, L, D) hidden states of the decoder.
        targets: (B, L) ids of what comes next, ``IGNORE`` where nothing counts.
        config: of the loss.

    Returns:
        loss: () mean over the targets.
        accuracies: for the statistics, by name.
        count: number of targets.
    """
    scored = targets != IGNORE
    targets = targets[scored]
    logits = decoder.logits(hidden[scored])
    loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
    return loss, _accuracies(logits, targets, decoder.eoc), len(targets)


def add_ctc_loss(
    loss: Tensor, ctc_losses: Tensor, num_targets: int, config: LossConfig, stats: dict[str, Tensor]
) -> Tensor:
    """Return ``loss`` with the auxiliary CTC loss added.

    Both count per target, so that DDP weights both right.

    Args:
        loss: () mean over the targets.
        ctc_losses: (B,) CTC loss of each utterance.
        num_targets: targets of the batch.
        config: has the weight of the CTC loss.
        stats: statistics of the batch, by name; the CTC loss is added to them.
    """
    ctc_loss = ctc_losses.sum() / num_targets
    stats["loss_ctc"] = ctc_loss.detach()
    return loss + config.ctc_weight * ctc_loss


def _accuracies(logits: Tensor, targets: Tensor, eoc: int) -> dict[str, Tensor]:
    """Return the share of right targets, and of right text tokens alone (nine in ten ``$`` are easy).

    Args:
        logits: (n, V + 1)
        targets: (n,)
        eoc: id of ``$``.
    """
    right = logits.argmax(-1) == targets
    text = targets != eoc
    return {
        "acc": right.float().mean().detach(),
        "acc_text": (right & text).sum() / text.sum().clamp(min=1),
    }
