"""Audio to encoder frames: log-mel, global normalisation, SpecAugment, Emformer.

The CTC aligner and the recogniser both hold an :class:`Acoustic` as ``acoustic``, so that the aligner's weights
start the recogniser's with ``--init_param aligner.pth:acoustic:acoustic``.

Shape legend: ``B`` batch, ``N`` samples, ``F`` feature frames, ``T`` frames, ``D`` encoder dimension.
"""

from dataclasses import dataclass

from torch import nn

from espnet_speechllm_xl.emformer import EmformerEncoder, EncoderState
from espnet_speechllm_xl.features import GlobalNormalizer, LogMel, LogMelState, SpecAugment


@dataclass(frozen=True)
class AcousticState:
    """What a stream of audio carries from one push to the next."""

    features: LogMelState
    encoder: EncoderState


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
        """Frames (B, T, D) and their counts (B,) of audio (B, N) with sample counts (B,)."""
        features, counts = self.features(speech, lengths)
        features = self.specaug(self.normalizer(features), counts).to(next(self.encoder.parameters()).dtype)
        frames, counts, _ = self.encoder(features, counts)
        return frames, counts

    def initial_state(self):
        """State of one stream before its first sample."""
        return AcousticState(self.log_mel.initial_state(), self.encoder.initial_state(batch=1))

    def push(self, samples, state, final=False):
        """The frames (t, D) that ``samples`` (n,) complete, and the next state.

        Args:
            final: no audio follows; the look-ahead that is missing is zeros, as in :meth:`forward`.
        """
        features, feature_state = self.log_mel.push(samples, state.features)
        features = self.normalizer(features)[None].to(next(self.encoder.parameters()).dtype)
        frames, encoder_state = self.encoder.push(features, state.encoder, final=final)
        return frames[0], AcousticState(feature_state, encoder_state)
