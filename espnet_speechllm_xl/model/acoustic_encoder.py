"""Audio to encoder frames: log-mel, global normalisation, SpecAugment, Emformer.

All models hold an :class:`Acoustic` as ``acoustic``, so that the aligner's weights start the others' with
``--init_param aligner.pth:acoustic:acoustic``.

Shape legend: ``B`` batch, ``N`` samples, ``F`` feature frames, ``T`` frames, ``D`` encoder dimension.
"""

from dataclasses import dataclass

import torch
from torch import nn

from espnet_speechllm_xl.model.emformer import EmformerEncoder, EncoderState
from espnet_speechllm_xl.model.features import GlobalNormalizer, LogMel, LogMelState, SpecAugment
from espnet_speechllm_xl.model.stream_state import Streams


@dataclass(frozen=True)
class AcousticState(Streams):
    """What streams of audio carry from one push to the next."""

    features: LogMelState
    encoder: EncoderState

    @property
    def batch(self) -> int:
        """Return the number of streams."""
        return self.features.batch

    @property
    def buffered(self) -> tuple[int, ...]:
        """Return how much of each kind the streams have buffered; only streams that agree make one batch."""
        return (*self.features.buffered, *self.encoder.buffered)


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """One stream wants its next samples encoded; answered by ``(frames (t, D), next state)``."""

    samples: torch.Tensor  # (n,), n >= 0
    final: bool  # no audio follows
    state: AcousticState  # of this one stream

    kind = "encode"

    @property
    def signature(self):
        """Requests of equal signature are encoded as one batch."""
        return (len(self.samples), self.final, *self.state.buffered)


class Acoustic(nn.Module):
    """Features and encoder of one configuration.

    Args:
        features: :class:`~espnet_speechllm_xl.config.FeatureConfig`.
        specaug: :class:`~espnet_speechllm_xl.config.SpecAugmentConfig`.
        encoder: the encoder class (ESPnet ``--encoder``).
        encoder_conf: its fields.
        stats_file: ESPnet's ``feats_stats.npz`` of the training set; None when weights are loaded afterwards.
    """

    def __init__(self, features, specaug, encoder=EmformerEncoder, encoder_conf=None, stats_file=None):
        super().__init__()
        self.config = features
        self.log_mel = LogMel(features)
        self.normalizer = GlobalNormalizer(features.n_mels)
        if stats_file is not None:
            self.normalizer.load_stats(stats_file)
        self.specaug = SpecAugment(specaug)
        self.encoder = encoder(features.n_mels, **(encoder_conf or {}))

    def features(self, speech, lengths):
        """Log-mel (B, F, mels) before normalisation, and feature frames (B,), of audio (B, N), (B,)."""
        return self.log_mel(speech, lengths)

    def forward(self, speech, lengths):
        """Frames (B, T, D) and their counts (B,) of audio (B, N) with sample counts (B,).

        Behind each that has a frame there are ``tail_frames`` of silence: a word that ends with its recording sounds
        as one within it does.
        """
        features, counts = self.features(speech, lengths)
        features = self.specaug(self.normalizer(features), counts).to(next(self.encoder.parameters()).dtype)
        frames, counts, _ = self.encoder(features, counts, tail=self.config.tail_frames)
        return frames, counts

    def heard(self, counts: torch.Tensor) -> torch.Tensor:
        """How many of the frames (B,) that :meth:`forward` gave are of the audio, not of the silence behind it."""
        return (counts - self.config.tail_frames).clamp(min=0)

    def initial_state(self, batch=1):
        """State of ``batch`` streams before their first sample."""
        return AcousticState(self.log_mel.initial_state(batch), self.encoder.initial_state(batch))

    def push(self, samples, state, final=False):
        """The frames (B, t, D) that ``samples`` (B, n) complete, and the next state.

        Args:
            final: no audio follows, and there was a frame at all; silence stands for what is missing, as in
                :meth:`forward`.
        """
        features, feature_state = self.log_mel.push(samples, state.features)
        features = self.normalizer(features).to(next(self.encoder.parameters()).dtype)
        frames, encoder_state = self.encoder.push(features, state.encoder, final=final, tail=self.config.tail_frames)
        return frames, AcousticState(feature_state, encoder_state)

    @torch.no_grad()
    def encode(self, requests):
        """Answers to a list of :class:`EncodeRequest`, in order; those of streams in step share a batch."""
        groups, answers = {}, [None] * len(requests)
        for index, request in enumerate(requests):
            groups.setdefault(request.signature, []).append(index)
        for indices in groups.values():
            samples = torch.stack([requests[index].samples for index in indices])
            state = AcousticState.stack(requests[index].state for index in indices)
            frames, state = self.push(samples, state, final=requests[indices[0]].final)
            for index, answer in zip(indices, zip(frames.unbind(), state.unstack(), strict=True), strict=True):
                answers[index] = answer
        return answers
