"""Log-mel features that are the same, frame for frame, however the audio arrives; their normalisation and masks.

Shape legend: ``B`` batch, ``N`` samples, ``F`` feature frames (100 Hz), ``M`` mel bands, ``D`` any feature size.

Feature frame ``i`` covers the 25 ms that start at ``10 i`` ms: no padding at the edges, no dither, a fixed floor in
the log.
"""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import FeatureConfig, SpecAugmentConfig
from espnet_speechllm_xl.errors import UserError, of_machine
from espnet_speechllm_xl.model.stream_state import BufferingStreams, Streams

# Frames computed at once (5 minutes): the spectra of an hour would take gigabytes.
BLOCK_FRAMES = 30000


def stack_frames(features: Tensor) -> Tensor:
    """Join each ``timeline.STACK`` feature frames: (B, F, D) -> (B, F // 4, 4 D); drop an incomplete rest."""
    count = features.shape[1] // timeline.STACK
    return features[:, : count * timeline.STACK].reshape(features.shape[0], count, timeline.STACK * features.shape[2])


@dataclass(frozen=True)
class LevelState(Streams):
    """Running sums from which the level of streams follows; natural logarithms in double precision."""

    power: Tensor  # (B,) weighted sum of the mean mel energies of the frames so far
    weight: Tensor  # (B,) sum of the weights

    @property
    def batch(self) -> int:
        """Return the number of streams."""
        return self.power.shape[0]


@dataclass(frozen=True)
class LogMelState(BufferingStreams):
    """Feature streams between two pushes."""

    samples: Tensor  # (B, n) from the start of the next frame on
    level: LevelState

    @property
    def batch(self) -> int:
        """Return the number of streams."""
        return self.samples.shape[0]

    @property
    def buffered(self) -> tuple[int, ...]:
        """Return how many samples each stream has buffered."""
        return (self.samples.shape[1],)


class LogMel(nn.Module):
    """Natural logarithm of mel energies (HTK mel scale, Hann window, power spectrum; no parameters).

    With ``level_seconds`` they are relative to the level of the audio so far, see :meth:`_log`.
    """

    # Energies so far below the level are as good as silence: in samples of 16 bits, rounding has drowned them.
    below_level = 1e-5
    # Audio below so many times the floor, some -67 dB of full scale, is not made louder: it is the noise of a recorder.
    least_level = 1e4

    window: Tensor  # (n,) samples of a feature frame
    filters: Tensor  # (n_fft // 2 + 1, M)

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        window = timeline.window_samples(config.sample_rate)
        self.n_fft = 1 << (window - 1).bit_length()
        filters = torchaudio.functional.melscale_fbanks(
            self.n_fft // 2 + 1, config.f_min, config.f_max, config.n_mels, config.sample_rate
        )
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return all complete frames of a padded batch.

        Args:
            speech: (B, N) samples in [-1, 1].
            lengths: (B,) integer, samples of each item.

        Returns:
            features: (B, F, M), F complete frames in N samples.  Frames from an item's own count on come from its
                padding (zeros give the log of the floor): mask them.
            feature_lengths: (B,) complete frames of each item; 0 for less than 25 ms.
        """
        features, _ = self._log(self._energies(speech), self.initial_state(len(speech)).level)
        return features, timeline.feature_frames(lengths, self.config.sample_rate)

    def initial_state(self, batch: int = 1) -> LogMelState:
        """Return the state of ``batch`` streams before their first sample."""
        nothing = self.window.new_full((batch,), -math.inf, dtype=torch.float64)
        return LogMelState(self.window.new_zeros(batch, 0), LevelState(nothing, nothing))

    def push(self, samples: Tensor, state: LogMelState) -> tuple[Tensor, LogMelState]:
        """Take samples (B, n), n >= 0; return the frames (B, f, M) that they complete, and the next state."""
        samples = torch.cat([state.samples, samples.to(state.samples)], dim=1)
        features, level = self._log(self._energies(samples), state.level)
        used = features.shape[1] * timeline.hop_samples(self.config.sample_rate)
        return features, LogMelState(samples[:, used:].clone(), level)

    def _log(self, energies: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        """Return the log of energies (B, F, M), and the next state.

        With ``level_seconds`` the energies are relative to the level, so that the gain makes no difference.  The level
        of a frame is the mean energy of all frames up to it, weighted by an exponential with the time constant
        ``level_seconds``.  It needs no look-ahead: a stream has it as a file has.
        """
        if self.config.level_seconds is None or energies.shape[1] == 0:
            return energies.log(), state
        energies = energies - self.config.floor  # leaves nothing of digital silence, whatever the level
        means = energies.double().mean(2).log()
        decay = -timeline.HOP_MS / 1000 / self.config.level_seconds
        power = _decaying_sums(means, state.power, decay)
        weight = _decaying_sums(torch.zeros_like(means), state.weight, decay)
        level = (power - weight).exp().clamp(min=self.least_level * self.config.floor)
        relative = energies / level[:, :, None].to(energies)
        return (relative + self.below_level).log(), LevelState(power[:, -1], weight[:, -1])

    def _energies(self, samples: Tensor) -> Tensor:
        """Return the mel energies (B, F, M) of samples (B, N); none is below the floor."""
        samples = samples.to(self.window)
        rate = self.config.sample_rate
        if timeline.feature_frames(samples.shape[1], rate) == 0:
            return samples.new_zeros(samples.shape[0], 0, self.config.n_mels)
        frames = samples.unfold(1, timeline.window_samples(rate), timeline.hop_samples(rate))
        # Half precision has too small a range for power spectra.
        with torch.autocast(samples.device.type, enabled=False):
            return torch.cat([self._energies_of_frames(part) for part in frames.split(BLOCK_FRAMES, dim=1)], dim=1)

    def _energies_of_frames(self, frames: Tensor) -> Tensor:
        """Return the mel energies (B, F, M) of the samples (B, F, n) of each frame."""
        spectrum = torch.fft.rfft(frames * self.window, n=self.n_fft)
        power = spectrum.real.square() + spectrum.imag.square()
        # In double precision: in single, training's matmul_precision may round both factors to bfloat16 or TF32.
        bands = (power.double() @ self.filters.double()).to(power)
        return bands.clamp(min=self.config.floor)


def _decaying_sums(values: Tensor, before: Tensor, decay: float) -> Tensor:
    """Return the sums s[i] = exp(decay) s[i - 1] + v[i] (B, F).

    Args:
        values: (B, F) log of v.
        before: (B,) log of the sums before the first value.
        decay: log of the factor from one frame to the next.

    Returns:
        log of s.
    """
    steps = decay * torch.arange(1, values.shape[1] + 1, dtype=values.dtype, device=values.device)
    series = torch.cat([before[:, None], values - steps], dim=1)
    return torch.logcumsumexp(series, dim=1)[:, 1:] + steps


class GlobalNormalizer(nn.Module):
    """Features minus the training set's mean, over its standard deviation; both travel in the checkpoint.

    There is no normalisation per utterance: its mean is known only when the audio has ended, so a stream could not
    reproduce it.

    Args:
        size: mel bands M.
        stats_file: see :meth:`load_stats`; None: mean 0 and standard deviation 1, until a checkpoint is loaded.
    """

    # A band that is constant in training (digital silence) must not be blown up afterwards.
    min_std = 1e-3

    mean: Tensor  # (M,)
    std: Tensor  # (M,)

    def __init__(self, size: int, stats_file: Path | str | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        if stats_file is not None:
            self.load_stats(stats_file)

    def load_stats(self, path: Path | str) -> None:
        """Read ESPnet's ``feats_stats.npz`` (``count``, ``sum``, ``sum_square``).

        Raises:
            UserError: the file is missing, unreadable or does not fit.
        """
        redo = "make the statistics again"
        try:
            with np.load(path) as stats:
                count, total, squares = (np.asarray(stats[k], np.float64) for k in ("count", "sum", "sum_square"))
        except (OSError, KeyError, TypeError, AttributeError, ValueError, EOFError, zipfile.BadZipFile) as error:
            if of_machine(error) and not isinstance(error, FileNotFoundError):
                raise
            raise UserError(f"{path}: no feature statistics ({' '.join(str(error).split())}); {redo}") from None
        bands = len(self.mean)
        if total.shape != (bands,) or squares.shape != (bands,) or count.size != 1:
            raise UserError(f"{path}: statistics of shape {total.shape} do not fit {bands} feature bands; {redo}")
        if not count.item() >= 1 or not np.isfinite([total, squares]).all():
            raise UserError(f"{path}: statistics of {count.item():g} frames, or not finite; {redo}")
        mean = total / count.item()
        variance = squares / count.item() - mean**2
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.sqrt(np.maximum(variance, self.min_std**2))))

    def forward(self, features: Tensor) -> Tensor:
        """Return the normalised features (..., M) of ``features`` (..., M)."""
        return (features - self.mean) / self.std


class SpecAugment(nn.Module):
    """Masks over bands and time (Park et al. 2019) on normalised features, so that 0 is the mean; training only.

    The number of time masks grows with the item's duration (Park et al. 2020).  A fraction of a mask becomes a whole
    mask with a probability of that fraction.  All draws come from torch's generator on the features' device.
    """

    def __init__(self, config: SpecAugmentConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return ``features`` with masks; outside training the input itself.

        Args:
            features: (B, F, M)
            lengths: (B,) feature frames of each item.
        """
        if not self.training or features.numel() == 0:
            return features
        config, lengths = self.config, lengths.to(features.device)
        bands = torch.full_like(lengths, features.shape[2])
        bands_hidden = _mask(bands, torch.full_like(lengths, config.freq_masks), config.freq_width, features.shape[2])
        wanted = lengths * (config.time_masks_per_second * timeline.HOP_MS / 1000)
        counts = (wanted + torch.rand(wanted.shape, device=wanted.device)).floor().long()
        time_hidden = _mask(lengths, counts, config.time_width, features.shape[1])
        return features.masked_fill(bands_hidden[:, None, :] | time_hidden[:, :, None], 0.0)


def _mask(extents: Tensor, counts: Tensor, max_width: int, size: int) -> Tensor:
    """Return a mask for each item, the union of random spans inside ``[0, extents[i])``: (B, size) bool.

    Widths are uniform over 0 .. max_width (at most the extent), starts uniform over the places where the span fits.

    Args:
        extents: (B,) places that spans may cover.
        counts: (B,) spans.
        max_width: largest width of a span.
        size: places of the mask.
    """
    spans = int(counts.max())
    draws = torch.rand(2, len(counts), spans, device=counts.device)
    limit = extents[:, None]
    width = (draws[0] * (limit.clamp(max=max_width) + 1)).long()
    start = (draws[1] * (limit - width + 1)).long()
    width = width * (torch.arange(spans, device=counts.device) < counts[:, None])
    # +1 where a span begins, -1 where it ends: the running sum counts the spans over each place.
    edges = torch.zeros(len(counts), size + 1, device=counts.device)
    edges.scatter_add_(1, start, torch.ones_like(draws[0]))
    edges.scatter_add_(1, start + width, -torch.ones_like(draws[0]))
    return edges[:, :size].cumsum(1) > 0.5
