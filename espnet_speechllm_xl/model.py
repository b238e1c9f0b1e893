"""The recogniser as an ESPnet model: encoder, projection, decoder, loss.

Shape legend: ``B`` batch, ``N`` samples, ``T`` frames, ``U`` tokens, ``L`` decoder sequence, ``V`` tokenizer size.
"""

import torch
import torch.nn.functional as F
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import nn

from espnet_speechllm_xl.ctc import CTCHead
from espnet_speechllm_xl.sequence import IGNORE, build_sequence, gather_inputs


class SpeechLLMXL(AbsESPnetModel):
    """SpeechLLM-XL (arXiv 2410.03752).

    Args:
        acoustic: :class:`~espnet_speechllm_xl.acoustic.Acoustic`.
        decoder: :class:`~espnet_speechllm_xl.llm.Decoder`.
        chunking: :class:`~espnet_speechllm_xl.config.ChunkingConfig`.
        loss: :class:`~espnet_speechllm_xl.config.LossConfig`.
    """

    def __init__(self, acoustic, decoder, chunking, loss):
        super().__init__()
        chunking.check_against(acoustic.encoder.config)
        self.acoustic = acoustic
        self.projection = nn.Linear(acoustic.encoder.output_size(), decoder.dim)
        self.decoder = decoder
        self.chunking = chunking
        self.loss_config = loss
        self.ctc = CTCHead(acoustic.encoder.output_size(), decoder.eoc) if loss.ctc_weight else None

    def forward(self, speech, speech_lengths, text, text_lengths, ends, **_):
        """ESPnet's ``(loss, stats, weight)``: cross-entropy per text and ``$`` target.

        Args:
            speech: (B, N) audio, speech_lengths (B,) samples.
            text: (B, U) token ids, text_lengths (B,).
            ends: (B, U) last aligned frame of each token (alignment.py).
        """
        chunking = self._draw_chunking()
        frames, counts = self.acoustic(speech, speech_lengths)
        tokens = text.clamp(min=0)  # the collate function pads with a negative id
        sequence = build_sequence(counts, tokens, text_lengths, ends, chunking, self.decoder.eoc)
        inputs = gather_inputs(sequence, self.projection(frames), self.decoder.embed(tokens))
        hidden = self.decoder(inputs, sequence.position, sequence.chunk, chunking.context)
        scored = sequence.target != IGNORE
        targets = sequence.target[scored]
        logits = self.decoder.logits(hidden[scored])
        loss = F.cross_entropy(logits, targets, label_smoothing=self.loss_config.label_smoothing)
        stats = {"loss_llm": loss.detach(), **_accuracy(logits, targets, self.decoder.eoc)}
        if self.ctc is not None:
            losses = self.ctc.loss(self.ctc(frames), counts, tokens, text_lengths)
            ctc_loss = losses.sum() / len(targets)  # per target like the loss itself, so that DDP weights both right
            stats["loss_ctc"] = ctc_loss.detach()
            loss = loss + self.loss_config.ctc_weight * ctc_loss
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, len(targets)), loss.device)

    def _draw_chunking(self):
        """The chunking of a batch: the configured one, in training with one of its ``train_chunks``."""
        sizes = self.chunking.train_chunks
        if not self.training or not sizes:
            return self.chunking
        return self.chunking.resized(sizes[int(torch.randint(len(sizes), ()))])

    def collect_feats(self, speech, speech_lengths, **_):
        """Features for ESPnet's statistics stage."""
        features, counts = self.acoustic.features(speech, speech_lengths)
        return {"feats": features, "feats_lengths": counts}


def _accuracy(logits, targets, eoc):
    """Share of right targets, and of right text tokens alone (nine in ten ``$`` are easy)."""
    right = logits.argmax(-1) == targets
    text = targets != eoc
    return {
        "acc": right.float().mean().detach(),
        "acc_text": (right & text).sum() / text.sum().clamp(min=1),
    }
