"""Recognisers that write text chunk by chunk, as ESPnet models: encoder, projection, decoder, loss.

Shape legend: ``B`` batch, ``N`` samples, ``T`` frames, ``U`` tokens, ``K`` tokens of CTC, ``L`` decoder sequence, ``E``
size of an encoder frame, ``D`` size of a decoder input, ``V`` tokenizer size.
"""

import abc
import dataclasses

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_speechllm_xl.config import ChunkingConfig, LossConfig, ProjectionConfig
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.decoder_steps import TextDecoder
from espnet_speechllm_xl.model.losses import add_ctc_loss, text_loss
from espnet_speechllm_xl.model.projection import make_projection, project_utterances
from espnet_speechllm_xl.model.sequence import without_padding
from espnet_speechllm_xl.tokenization import load_tokenizer

UNIT_FRAMES = 512  # frames by which the size of a projection's outputs is measured
Trained = tuple[Tensor, dict[str, Tensor], Tensor]  # ESPnet's (loss, statistics, weight)


class AcousticModel(AbsESPnetModel):
    """Base of the ESPnet models, which all have the same acoustic front.

    Attributes:
        acoustic: audio to encoder frames.
    """

    acoustic: Acoustic

    @staticmethod
    def espnet_result(loss: Tensor, stats: dict[str, Tensor], weight: int) -> Trained:
        """Return what ESPnet's trainer takes, with the loss among the statistics.

        The loss is copied, because the trainer divides it by ``accum_grad`` in place.

        Args:
            loss: () of the batch.
            stats: () each, for the log.
            weight: how much the batch counts in the means of an epoch.
        """
        return force_gatherable((loss.clone(), {**stats, "loss": loss.detach()}, weight), loss.device)

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_: object) -> dict[str, Tensor]:
        """Return the features for ESPnet's statistics stage.

        Args:
            speech: (B, N) audio.
            speech_lengths: (B,) samples.
        """
        features, counts = self.acoustic.features(speech, speech_lengths)
        return {"feats": features, "feats_lengths": counts}


class ChunkwiseModel(AcousticModel, abc.ABC):
    """Base: the cross-entropy of a decoder that writes the text of each chunk and then the end of the chunk.

    It fulfils :class:`~espnet_speechllm_xl.model.chunk_model.AlignedModel`, so searches and streams decode it.

    Args:
        acoustic: audio to encoder frames.
        decoder: writes the text.
        chunking: of training; decoding may have another.
        loss: label smoothing, and the weight and the tokens of the auxiliary CTC loss.
        projection: from frames to decoder inputs.
    """

    loss_name = "loss_labels"  # of the cross-entropy alone, in the statistics

    def __init__(
        self,
        acoustic: Acoustic,
        decoder: TextDecoder,
        chunking: ChunkingConfig,
        loss: LossConfig,
        projection: ProjectionConfig | None = None,
    ) -> None:
        super().__init__()
        chunking.check_against(acoustic.encoder.config)
        self.acoustic = acoustic
        self.projection_config = projection or ProjectionConfig()
        self.projection = make_projection(acoustic.encoder.output_size(), decoder.dim, self.projection_config)
        if decoder.input_rms is not None:
            start_at_scale(self.projection, acoustic.encoder.output_size(), decoder.input_rms)
        self.decoder = decoder
        self.chunking = chunking
        self.loss_config = loss
        self.ctc = CTCHead(acoustic.encoder.output_size(), _ctc_size(loss, decoder)) if loss.ctc_weight else None

    def project(self, frames: Tensor, counts: Tensor, chunk_size: int | None) -> Tensor:
        """Return the decoder inputs (B, n, D) that stand for the frames of whole utterances.

        Args:
            frames: (B, T, E)
            counts: (B,) frames.
            chunk_size: frames of a chunk; None: infinity.
        """
        reduction = self.projection_config.reduction
        return project_utterances(self.projection, frames, counts, chunk_size, reduction)

    @abc.abstractmethod
    def decode_aligned(
        self,
        frames: Tensor,
        counts: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        ends: Tensor,
        chunking: ChunkingConfig,
        prompts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states and targets; see :class:`~espnet_speechllm_xl.model.chunk_model.AlignedModel`.

        ``prompts`` (B, P) are token ids, see ``build_sequence``; None: none.
        """

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        ends: Tensor,
        ctc_text: Tensor | None = None,
        ctc_text_lengths: Tensor | None = None,
        prompt: Tensor | None = None,
        **_: object,
    ) -> Trained:
        """Return the cross-entropy per text and end-of-chunk target, with statistics.

        Args:
            speech: (B, N) audio.
            speech_lengths: (B,) samples.
            text: (B, U) token ids.
            text_lengths: (B,)
            ends: (B, U) last aligned frame of each token (alignment.py).
            ctc_text: (B, K) the same text in CTC's own tokens (ctc_spelling.py); None: CTC has the decoder's.
            ctc_text_lengths: (B,)
            prompt: (B, P) token ids before the first chunk, ``PAD_TOKEN`` behind the shorter ones; None: none.
        """
        chunking = self._draw_chunking()
        frames, counts = self.acoustic(speech, speech_lengths, chunking.look_ahead)
        tokens = without_padding(text)
        hidden, targets = self.decode_aligned(frames, counts, tokens, text_lengths, ends, chunking, prompt)
        loss, accuracies, num_targets = text_loss(self.decoder, hidden, targets, self.loss_config)
        stats = {self.loss_name: loss.detach(), **accuracies}
        if self.ctc is not None:
            labels, label_lengths = tokens, text_lengths
            if ctc_text is not None and ctc_text_lengths is not None:
                labels, label_lengths = without_padding(ctc_text), ctc_text_lengths
            losses = self.ctc.loss(self.ctc(frames), counts, labels, label_lengths)
            loss = add_ctc_loss(loss, losses, num_targets, self.loss_config, stats)
        return self.espnet_result(loss, stats, num_targets)

    def _draw_chunking(self) -> ChunkingConfig:
        """Return the chunking of a batch.

        It is the configured one, in training with one of its ``train_chunks`` and one of its ``train_look_aheads``.
        """
        chunking = self.chunking
        if self.training and chunking.train_chunks:
            chunking = chunking.resized(_drawn(chunking.train_chunks))
        if self.training and chunking.train_look_aheads:
            chunking = dataclasses.replace(chunking, look_ahead=_drawn(chunking.train_look_aheads))
        return chunking


def _drawn(sizes: list[int]) -> int:
    return sizes[int(torch.randint(len(sizes), ()))]


@torch.no_grad()
def start_at_scale(projection: nn.Module, frame_size: int, rms: float) -> None:
    """Scale a new projection so that frames of unit size, as a LayerNorm makes them, become inputs of size ``rms``.

    A pretrained LLM knows inputs of the size of its embeddings (SmolLM2: 0.14).  Larger ones drown what its first
    layers add to them.

    Args:
        projection: its last linear layer is changed.
        frame_size: E.
        rms: root mean square of the inputs.
    """
    *_, last = (part for part in projection.modules() if isinstance(part, nn.Linear))
    nn.init.zeros_(last.bias)
    frames = torch.randn(1, UNIT_FRAMES, frame_size, generator=torch.Generator().manual_seed(0))
    last.weight *= rms / projection(frames).square().mean().sqrt()


def _ctc_size(loss: LossConfig, decoder: TextDecoder) -> int:
    """Count the tokens of the CTC head, without the blank."""
    return decoder.eoc if loss.ctc_tokenizer is None else len(load_tokenizer(loss.ctc_tokenizer).pieces)
