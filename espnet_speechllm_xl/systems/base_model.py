"""Recognisers that write text chunk by chunk, as ESPnet models: encoder, projection, decoder, loss.

Shape legend: ``B`` batch, ``N`` samples, ``T`` frames, ``U`` tokens, ``L`` decoder sequence, ``V`` tokenizer size.
"""

import abc

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import nn

from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.losses import add_ctc_loss, text_loss
from espnet_speechllm_xl.model.sequence import without_padding


class AcousticModel(AbsESPnetModel):
    """Base of the ESPnet models: what has its :class:`Acoustic` as ``acoustic``."""

    @staticmethod
    def answer(loss, stats, weight):
        """ESPnet's ``(loss, stats, weight)``, with the loss among the statistics.

        A copy of it is returned, because ESPnet's trainer divides that by ``accum_grad`` in place.
        """
        return force_gatherable((loss.clone(), {**stats, "loss": loss.detach()}, weight), loss.device)

    def collect_feats(self, speech, speech_lengths, **_):
        """Features for ESPnet's statistics stage."""
        features, counts = self.acoustic.features(speech, speech_lengths)
        return {"feats": features, "feats_lengths": counts}


class ChunkwiseModel(AcousticModel, abc.ABC):
    """Base: the cross-entropy of a decoder that writes the text of each chunk and then the end of the chunk.

    searches.py and streams.py decode any of these models.

    Args:
        acoustic: :class:`~espnet_speechllm_xl.model.acoustic_encoder.Acoustic`.
        decoder: has ``eoc`` (id of the end of a chunk), ``dim``, ``initial_row(context)``, ``extend(requests)``, and
            ``logits(hidden)``; see :class:`~espnet_speechllm_xl.model.llm.Decoder`.
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
        tokens = without_padding(text)
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
