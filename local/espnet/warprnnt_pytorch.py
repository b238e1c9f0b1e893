"""A stand-in for ``warprnnt_pytorch``, which ESPnet's transducer imports and which has no wheel: torchaudio's loss.

Only ``espnet_asr.sh`` puts this directory on PYTHONPATH.
"""

import torch
from torchaudio.functional import rnnt_loss


class RNNTLoss(torch.nn.Module):
    """The transducer loss (Graves 2012, arXiv 1211.3711), -log of the sum over all alignments.

    Args:
        blank: class of the blank.
        reduction: "mean" over the batch, "sum", or "none", as the real module takes them.
        fastemit_lambda: weight of FastEmit (arXiv 2010.11148), which torchaudio does not have: 0 only.

    Raises:
        ValueError: ``fastemit_lambda`` is not 0.
    """

    def __init__(self, blank=0, reduction="mean", fastemit_lambda=0.0):
        super().__init__()
        if fastemit_lambda:
            raise ValueError(f"fastemit_lambda {fastemit_lambda}: torchaudio's loss has no FastEmit, give 0")
        self.blank = blank
        self.reduction = reduction

    def forward(self, joint, labels, frames, counts):
        """Loss of ``joint`` (B, T, U + 1, V), scores before the softmax, for ``labels`` (B, U), padded with anything.

        ``frames`` and ``counts`` (B,) are the lengths in T and U.  Scores of half precision are taken as float32.
        """
        wide = joint.to(torch.promote_types(joint.dtype, torch.float32))
        integers = (each.to(joint.device, torch.int32) for each in (labels, frames, counts))
        return rnnt_loss(wide, *integers, blank=self.blank, reduction=self.reduction)
