"""Remarks on audio that has lost more than its reader would notice.

Four losses are found, in blocks of 0.1 s.  Audio may come in any pieces, so files and streams are judged alike:

    nearly-silent     no three blocks reach -50 dB of full scale: to a model this is noise
    channels-cancel   averaging removes the sound of a tenth of the blocks or more: one channel is another's negative
    heavily-clipped   1 % of the samples or more lie on flat tops at the recording's own peak
    no-upper-band     nothing from 5 to 7.5 kHz, at a rate that has room for it: the sound was at 8 kHz before

The levels were set on AN4, Mboshi, LJ Speech, FSDD and mini_espeak.  None of their recordings gets the remark
heavily-clipped or no-upper-band.  Amplified by 20 dB or more, nearly all get heavily-clipped; taken through 8 kHz
(resampled by soxr, coded as MP3 or Ogg), all get no-upper-band.
"""

import math

import numpy as np

BLOCK_SECONDS = 0.1
SILENT = -50.0  # dB of full scale, RMS of a block without its mean; speech is at -35 to -10
SILENT_BLOCKS = 3  # so many must be louder, because a click alone is no sound
CANCELLED = 0.2  # share of the power that averaging leaves of channels that have nothing in common
CANCELLED_SHARE = 0.1  # of the blocks that are not silent
FLAT_SECONDS = 0.0002  # shortest flat top; tones of 50 Hz and more are rounder
FLAT_STEP = 1.1 / 32768  # samples of a flat top differ by no more
FLAT_PEAK = 0.1  # below it the steps of 16 bits make round tops flat
CLIPPED_SHARE = 0.01  # of the samples in blocks that are not silent
LOW_BAND, HIGH_BAND = (300, 3400), (5000, 7500)  # Hz
EMPTY = -55.0  # dB, power density of the upper band against the lower one's; recordings have -45 to 0
FEWEST = 5  # clipping and the upper band are judged on so many blocks that are not silent, or more
MOST_SPECTRA = 600  # blocks: the first minute of sound
MOST_BLOCKS = 256  # computed at once


class Meter:
    """Measures audio as it comes.

    Args:
        rate: Hz.
        channels: how many channels are averaged.
    """

    def __init__(self, rate: int, channels: int = 1) -> None:
        self._rate, self._channels = rate, channels
        self._size = max(1, round(BLOCK_SECONDS * rate))
        self._rest = np.zeros((0, channels), np.float32)  # less than a block
        self._loudest = np.zeros(0)  # powers of the loudest blocks, ascending
        self._loud = self._cancelled = 0  # blocks that are not silent; how many of them averaging silences
        flat = max(3, round(FLAT_SECONDS * rate))
        self._tops = [_FlatTops(flat), _FlatTops(flat)]
        self._spectra, self._bands = 0, np.zeros(2)

    def add(self, samples: np.ndarray) -> None:
        """Take float samples (n,) or (n, channels), n >= 0, in [-1, 1]."""
        samples = samples.reshape(len(samples), self._channels)
        most = MOST_BLOCKS * self._size
        for first in range(0, len(samples), most):
            self._rest = np.concatenate([self._rest, samples[first : first + most]])
            whole = len(self._rest) // self._size
            if whole:
                self._measure(self._rest[: whole * self._size].reshape(whole, self._size, self._channels))
                self._rest = self._rest[whole * self._size :]

    def remarks(self) -> dict[str, str]:
        """Return the remarks on the audio so far, ``{kind: text}``; less than half a block gets none."""
        found, level = {}, self._level()
        if self._cancelled > CANCELLED_SHARE * self._loud:
            found["channels-cancel"] = (
                f"its {self._channels} channels cancel each other when averaged: take one of them (`channel`)"
            )
        elif level is not None and level < SILENT:
            loud = "digital silence" if level == -math.inf else f"its loudest parts are at {level:.0f} dB of full scale"
            found["nearly-silent"] = f"nearly silent, {loud}: words may be missing; record it louder, or amplify it"
        clipped = sum(top.count for top in self._tops) / max(1, self._loud * self._size * self._channels)
        if self._loud >= FEWEST and clipped >= CLIPPED_SHARE:
            found["heavily-clipped"] = f"heavily clipped, {100 * clipped:.0f} % of the samples: lower the input level"
        if self._spectra >= FEWEST and self._upper_band() < EMPTY:
            found["no-upper-band"] = (
                f"nothing above {HIGH_BAND[0] // 1000} kHz, though at {self._rate} Hz: it was at 8 kHz before, like "
                "telephone speech, which a model for 16 kHz understands less well"
            )
        return found

    def _measure(self, blocks: np.ndarray) -> None:
        """Measure blocks (k, samples, channels)."""
        mono = blocks[:, :, 0] if self._channels == 1 else blocks.mean(axis=2, dtype=np.float64)
        powers, least = _power(mono), 10 ** (SILENT / 10)
        self._loudest = np.sort(np.concatenate([self._loudest, powers]))[-SILENT_BLOCKS:]
        of_channels = powers if self._channels == 1 else _power(blocks).mean(axis=1)
        loud = of_channels >= least
        self._loud += int(loud.sum())
        self._cancelled += int((powers[loud] < CANCELLED / self._channels * of_channels[loud]).sum())
        for channel in np.moveaxis(blocks[loud], 2, 0):
            self._tops[0].add(channel.ravel())
            self._tops[1].add(-channel.ravel())
        self._add_spectra(mono[powers >= least])

    def _add_spectra(self, blocks: np.ndarray) -> None:
        blocks = blocks[: max(0, MOST_SPECTRA - self._spectra)]
        if self._rate < 2 * HIGH_BAND[1] or not len(blocks):
            return
        power = (np.abs(np.fft.rfft(blocks * np.hanning(self._size))) ** 2).sum(axis=0)
        frequency = np.fft.rfftfreq(self._size, 1 / self._rate)
        self._bands += [power[(frequency >= low) & (frequency < high)].mean() for low, high in (LOW_BAND, HIGH_BAND)]
        self._spectra += len(blocks)

    def _level(self) -> float | None:
        """Return the level, in dB of full scale, that SILENT_BLOCKS blocks reach; None for less than half a block."""
        if not len(self._loudest) and len(self._rest) < self._size / 2:
            return None
        power = self._loudest[0] if len(self._loudest) else _power(self._rest.mean(axis=1)[None])[0]
        return 10 * math.log10(power) if power > 0 else -math.inf

    def _upper_band(self) -> float:
        low, high = self._bands
        return 10 * math.log10(high / low) if high > 0 else -math.inf


def _power(blocks: np.ndarray) -> np.ndarray:
    """Return the mean square (k, ...) of each block (k, samples, ...), without the block's mean."""
    return blocks.var(axis=1, dtype=np.float64)


class _FlatTops:
    """A count of the samples on flat tops of at least ``length`` samples at the highest value so far."""

    def __init__(self, length: int) -> None:
        self.count = 0
        self._length, self._top = length, FLAT_PEAK

    def add(self, samples: np.ndarray) -> None:
        """Take samples (n,)."""
        highest = float(samples.max(initial=0))
        if highest < self._top - FLAT_STEP:
            return
        if highest > self._top + FLAT_STEP:
            self.count = 0
        self._top = max(self._top, highest)
        ends = np.flatnonzero(np.diff(samples >= self._top - FLAT_STEP, prepend=False, append=False))
        lengths = ends[1::2] - ends[::2]
        self.count += int(lengths[lengths >= self._length].sum())
