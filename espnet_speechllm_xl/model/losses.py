"""Losses that the systems share."""

import torch.nn.functional as F

from espnet_speechllm_xl.model.sequence import IGNORE


def text_loss(decoder, hidden, targets, config):
    """Cross-entropy of ``targets`` (B, L), ``IGNORE`` where none, given hidden states (B, L, D).

    ``decoder`` has ``logits`` and ``eoc``, ``config`` is :class:`~espnet_speechllm_xl.config.LossConfig`.  Returns
    ``(mean loss, accuracies for the statistics, number of targets)``.
    """
    scored = targets != IGNORE
    targets = targets[scored]
    logits = decoder.logits(hidden[scored])
    loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
    return loss, _accuracy(logits, targets, decoder.eoc), len(targets)


def add_ctc_loss(loss, losses, targets, config, stats):
    """``loss`` with the auxiliary CTC ``losses`` (B,) of the utterances; adds them to ``stats``.

    They count per target (a number), as ``loss`` itself, so that DDP weights both right.
    """
    ctc_loss = losses.sum() / targets
    stats["loss_ctc"] = ctc_loss.detach()
    return loss + config.ctc_weight * ctc_loss


def _accuracy(logits, targets, eoc):
    """Share of right targets, and of right text tokens alone (nine in ten ``$`` are easy)."""
    right = logits.argmax(-1) == targets
    text = targets != eoc
    return {
        "acc": right.float().mean().detach(),
        "acc_text": (right & text).sum() / text.sum().clamp(min=1),
    }
