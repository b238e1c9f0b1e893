"""Recognisers that write text chunk by chunk, as ESPnet models: encoder, projection, decoder, loss.

Shape legend: ``B`` batch, ``N`` samples, ``T`` frames, ``U`` tokens, ``L`` decoder sequence, ``V`` tokenizer size.
"""

import abc

import torch
import torch.nn.functional as F
from torch import nn

from espnet_speechllm_xl.acoustic import AcousticModel
from espnet_speechllm_xl.ctc import CTCHead
from espnet_speechllm_xl.sequence import IGNORE, build_sequence, gather_inputs


class ChunkwiseModel(AcousticModel, abc.ABC):
    """Base: the cross-entropy of a decoder that writes the text of each chunk and then the end of the chunk.

    search.py and streaming.py decode any of these models.

    Args:
        acoustic: :class:`~espnet_speechllm_xl.acoustic.Acoustic`.
        decoder: has ``eoc`` (id of the end of a chunk), ``dim``, ``initial_row(context)``, ``extend(requests)``, and
            ``logits(hidden)``; see :class:`~espnet_speechllm_xl.llm.Decoder`.
        chunking: :class:`~espnet_speechllm_xl.config.ChunkingConfig`.
        loss: :class:`~espnet_speechllm_xl.config.LossConfig`.
    """

    loss_name = "loss_labels"  # of the cross-entropy alone, in the statistics

    def __init__(self, acoustic, decoder, chunking, loss):
        super().__init__()
        chunking.check_against(acoustic.encoder.config)
        self.acoustic = acoustic
        self.projection = nn.Linear(acoustic.encoder.output_size(), decoder.dim)
        self.decoder = decoder
        self.chunking = chunking
        self.loss_config = loss
        self.ctc = CTCHead(acoustic.encoder.output_size(), decoder.eoc) if loss.ctc_weight else None

    @abc.abstractmethod
    def decode_aligned(self, frames, counts, tokens, token_lengths, ends, chunking):
        """The decoder's hidden states (B, L, D) and targets (B, L), ``IGNORE`` where none, of aligned text.

        Args:
            frames: (B, T, encoder's dim), counts (B,) frames.
            tokens: (B, U) token ids, any padding; token_lengths (B,).
            ends: (B, U) last aligned frame of each token.
            chunking: the :class:`~espnet_speechllm_xl.config.ChunkingConfig` of this batch.
        """

    def forward(self, speech, speech_lengths, text, text_lengths, ends, **_):
        """ESPnet's ``(loss, stats, weight)``: cross-entropy per text and end-of-chunk target.

        Args:
            speech: (B, N) audio, speech_lengths (B,) samples.
            text: (B, U) token ids, text_lengths (B,).
            ends: (B, U) last aligned frame of each token (alignment.py).
        """
        chunking = self._draw_chunking()
        frames, counts = self.acoustic(speech, speech_lengths)
        tokens = text.clamp(min=0)  # the collate function pads with a negative id
        hidden, targets = self.decode_aligned(frames, counts, tokens, text_lengths, ends, chunking)
        loss, accuracies, targets = text_loss(self.decoder, hidden, targets, self.loss_config)
        stats = {self.loss_name: loss.detach(), **accuracies}
        if self.ctc is not None:
            losses = self.ctc.loss(self.ctc(frames), counts, tokens, text_lengths)
            loss = add_ctc_loss(loss, losses, targets, self.loss_config, stats)
        return self.answer(loss, stats, targets)

    def _draw_chunking(self):
        """The chunking of a batch: the configured one, in training with one of its ``train_chunks``."""
        sizes = self.chunking.train_chunks
        if not self.training or not sizes:
            return self.chunking
        return self.chunking.resized(sizes[int(torch.randint(len(sizes), ()))])


class SpeechLLMXL(ChunkwiseModel):
    """SpeechLLM-XL (arXiv 2410.03752); its decoder is a :class:`~espnet_speechllm_xl.llm.Decoder`."""

    loss_name = "loss_llm"

    def decode_aligned(self, frames, counts, tokens, token_lengths, ends, chunking):
        """See :class:`ChunkwiseModel`; ``$`` is a target only."""
        sequence = build_sequence(counts, tokens, token_lengths, ends, chunking, self.decoder.eoc)
        inputs = gather_inputs(sequence, self.projection(frames), self.decoder.embed(tokens))
        return self.decoder(inputs, sequence.position, sequence.chunk, chunking.context), sequence.target


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
