"""Audio to encoder frames: log-mel, global normalisation, SpecAugment, Emformer.

All models hold an :class:`Acoustic` as ``acoustic``, so that the aligner's weights start the others' with
``--init_param aligner.pth:acoustic:acoustic``.

Shape legend: ``B`` batch, ``N`` samples, ``F`` feature frames, ``M`` mel bands, ``T`` frames, ``D`` encoder dimension.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_speechllm_xl.config import FeatureConfig, SpecAugmentConfig
from espnet_speechllm_xl.model.emformer import EmformerEncoder
from espnet_speechllm_xl.model.features import GlobalNormalizer, LogMel, LogMelState, SpecAugment
from espnet_speechllm_xl.model.stream_encoder import StreamEncoder
from espnet_speechllm_xl.model.stream_state import BufferingStreams


@dataclass(frozen=True)
class AcousticState(BufferingStreams):
    """State of streams of audio between two pushes."""

    features: LogMelState
    encoder: BufferingStreams

    @property
    def batch(self) -> int:
        """Return the number of streams."""
        return self.features.batch

    @property
    def buffered(self) -> tuple[int, ...]:
        """Return how much each stream has buffered, of each kind; only streams that agree make one batch."""
        return (*self.features.buffered, *self.encoder.buffered)


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """One stream asks for the frames of its next samples; the result is ``(frames (t, D), next state)``."""

    samples: Tensor  # (n,), n >= 0
    final: bool  # no audio follows
    state: AcousticState  # of this one stream
    right_context: int  # frames of look-ahead

    kind = "encode"

    @property
    def signature(self) -> tuple[int, ...]:
        """Return what requests of one batch have in common."""
        return (len(self.samples), self.final, self.right_context, *self.state.buffered)


class Acoustic(nn.Module):
    """Features and encoder of one configuration.

    Args:
        features: configuration of the features.
        specaug: configuration of their masks in training.
        encoder: the encoder class (ESPnet ``--encoder``).
        encoder_conf: fields of the encoder's configuration; None: its defaults.
        stats_file: ESPnet's ``feats_stats.npz`` of the training set; None when weights are loaded afterwards.
    """

    def __init__(
        self,
        features: FeatureConfig,
        specaug: SpecAugmentConfig,
        encoder: type[StreamEncoder] = EmformerEncoder,
        encoder_conf: Mapping[str, Any] | None = None,  # as EncoderConfig has them
        stats_file: Path | str | None = None,
    ) -> None:
        super().__init__()
        self.config = features
        self.log_mel = LogMel(features)
        self.normalizer = GlobalNormalizer(features.n_mels)
        if stats_file is not None:
            self.normalizer.load_stats(stats_file)
        self.specaug = SpecAugment(specaug)
        self.encoder = encoder(features.n_mels, **(encoder_conf or {}))

    def features(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-mel features (B, F, M) before normalisation, and the feature frames (B,) of each item.

        Args:
            speech: (B, N) samples in [-1, 1].
            lengths: (B,) samples of each item.
        """
        return self.log_mel(speech, lengths)

    def forward(self, speech: Tensor, lengths: Tensor, right_context: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the frames (B, T, D) of a padded batch, and how many of them (B,) each item has.

        ``tail_frames`` of silence follow each item that has a frame.  A word that ends with its recording then sounds
        like a word within it.

        Args:
            speech: (B, N) samples in [-1, 1].
            lengths: (B,) samples of each item.
            right_context: frames of look-ahead; None: the encoder's configuration has them.
        """
        features, counts = self.features(speech, lengths)
        features = self.specaug(self.normalizer(features), counts).to(next(self.encoder.parameters()).dtype)
        tail = self.config.tail_frames
        frames, counts, _ = self.encoder(features, counts, tail=tail, right_context=right_context)
        return frames, counts

    def audio_frames(self, counts: Tensor) -> Tensor:
        """Return how many of the ``counts`` (B,) frames of :meth:`forward` are audio; silence follows them."""
        return (counts - self.config.tail_frames).clamp(min=0)

    def initial_state(self, batch: int = 1) -> AcousticState:
        """Return the state of ``batch`` streams before their first sample."""
        return AcousticState(self.log_mel.initial_state(batch), self.encoder.initial_state(batch))

    def push(
        self, samples: Tensor, state: AcousticState, final: bool = False, right_context: int | None = None
    ) -> tuple[Tensor, AcousticState]:
        """Return the frames (B, t, D) that ``samples`` complete, and the next state.

        Args:
            samples: (B, n), n >= 0.
            state: of the B streams.
            final: no audio follows, and there was a frame at all; silence stands for what is missing, as in
                :meth:`forward`.
            right_context: frames of look-ahead, in all calls of a stream the same; None: as in :meth:`forward`.
        """
        features, feature_state = self.log_mel.push(samples, state.features)
        features = self.normalizer(features).to(next(self.encoder.parameters()).dtype)
        tail = self.config.tail_frames
        frames, encoder_state = self.encoder.push(
            features, state.encoder, final=final, tail=tail, right_context=right_context
        )
        return frames, AcousticState(feature_state, encoder_state)

    @torch.no_grad()
    def encode(self, requests: Sequence[EncodeRequest]) -> list[tuple[Tensor, AcousticState]]:
        """Return the frames (t, D) and the next state of each request, in order; streams in step share a batch."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.signature, []).append(index)
        results: dict[int, tuple[Tensor, AcousticState]] = {}
        for indices in groups.values():
            samples = torch.stack([requests[index].samples for index in indices])
            state = AcousticState.stack(requests[index].state for index in indices)
            first = requests[indices[0]]
            frames, state = self.push(samples, state, first.final, first.right_context)
            results.update(zip(indices, zip(frames.unbind(), state.unstack(), strict=True), strict=True))
        return [results[index] for index in range(len(requests))]
