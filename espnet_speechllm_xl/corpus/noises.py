"""Audio without intelligible speech, made from random numbers: what a recogniser meets between utterances.

Shape legend: ``N`` samples.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Samples = NDArray[np.float32]
Maker = Callable[[Generator, int, int], NDArray]  # random numbers, samples N, rate in Hz -> (N,) of any level

FADE_SECONDS = 0.01  # in which a joint, or a tone, rises from nothing
BABBLE = "babble"
HALF_SECONDS = (0.1, 1.0)  # in which a chord falls to half of its level


def make_noise(kind: str, rng: Generator, count: int, sample_rate: int, level_db: float) -> Samples:
    """Return noise (N,) at a level.

    Args:
        kind: one of :data:`NOISES`.
        rng: where all that is random in it comes from.
        count: samples N.
        sample_rate: Hz.
        level_db: its RMS, or the peaks of clicks, in dB of full scale.
    """
    return at_level(NOISES[kind](rng, count, sample_rate), level_db, by_peak=kind == "clicks")


def make_babble(recordings: Sequence[NDArray], rng: Generator, count: int, talkers: int, level_db: float) -> Samples:
    """Return babble (N,): many people who talk at once.

    Args:
        recordings: samples of utterances, one at least that is not silent.
        rng: draws who says what.
        count: samples N.
        talkers: how many talk, each without a pause between utterances, all equally loud.
        level_db: RMS in dB of full scale.
    """
    total = np.zeros(count)
    for _ in range(talkers):
        said = endless(recordings, rng, count)
        total += said / max(float(np.sqrt(np.mean(np.square(said)))), 1e-9)
    return at_level(total, level_db)


def endless(recordings: Sequence[NDArray], rng: Generator, count: int, fade: int = 0) -> NDArray:
    """Return recordings (N,) joined in random order, all of them before any comes again.

    Args:
        recordings: samples of each; one at least is longer than two fades.
        rng: shuffles them, and draws where the first begins.
        count: samples N.
        fade: samples over which one passes into the next.
    """
    joined, length = np.zeros(count), 0
    skipped = int(rng.integers(max(map(len, recordings))))
    while length < count:
        for index in rng.permutation(len(recordings)):
            samples = _faded(np.asarray(recordings[index], dtype=float)[skipped:], fade)
            skipped = 0
            if not len(samples) or length == count:
                continue
            start = max(0, length - fade)
            samples = samples[: max(0, count - start)]
            joined[start : start + len(samples)] += samples
            length = start + len(samples)
    return joined


def _faded(samples: NDArray, fade: int) -> NDArray:
    """Return samples (N,) that rise and fall within ``fade``; nothing of samples that are too short for both."""
    if len(samples) <= 2 * fade:
        return samples[:0]
    shape = np.ones(len(samples))
    shape[:fade] = (np.arange(fade) + 0.5) / max(fade, 1)
    shape[len(samples) - fade :] = shape[:fade][::-1]
    return samples * shape


def at_level(samples: NDArray, level_db: float, by_peak: bool = False) -> Samples:
    """Return samples (N,) at a level, clipped to [-1, 1]; silence stays silence.

    Args:
        samples: of any level.
        level_db: RMS in dB of full scale.
        by_peak: the level is of the highest peak.
    """
    level = float(np.abs(samples).max(initial=0) if by_peak else np.sqrt(np.mean(np.square(samples))))
    return np.clip(samples * (10 ** (level_db / 20) / (level or 1.0)), -1, 1).astype(np.float32)


def _silence(rng: Generator, count: int, sample_rate: int) -> NDArray:
    return np.zeros(count)


def _hum(rng: Generator, count: int, sample_rate: int) -> NDArray:
    """Mains hum: 50 or 60 Hz and its overtones."""
    base, seconds = float(rng.choice([50.0, 60.0])), np.arange(count) / sample_rate
    return sum(
        (
            rng.uniform(0.2, 1) / number * np.sin(2 * np.pi * (base * number * seconds + rng.random()))
            for number in range(1, 9)
        ),
        np.zeros(count),
    )


def _white(rng: Generator, count: int, sample_rate: int) -> NDArray:
    return rng.standard_normal(count)


def _pink(rng: Generator, count: int, sample_rate: int) -> NDArray:
    """Equal energy in each octave, from 20 Hz on."""
    size = 1 << max(1, count - 1).bit_length()  # a power of two is fast
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(frequencies, 20.0)), size)[:count]


def _sweeps(rng: Generator, count: int, sample_rate: int) -> NDArray:
    """Tones that glide up or down through all octaves, one after the other, each in 1 to 8 s."""
    low, high = np.log(60.0), np.log(0.45 * sample_rate)
    octaves, length = [np.zeros(0)], 0
    while length < count:
        size = int(rng.uniform(1, 8) * sample_rate)
        octaves.append(np.linspace(low, high, size)[:: int(rng.choice([-1, 1]))])
        length += size
    return np.sin(2 * np.pi * np.cumsum(np.exp(np.concatenate(octaves)[:count])) / sample_rate)


def _clicks(rng: Generator, count: int, sample_rate: int) -> NDArray:
    """Bursts of noise that are over in milliseconds, two a second on the average, as of keys and of bad cables."""
    samples = np.zeros(count + sample_rate)
    for start in rng.integers(count, size=rng.poisson(2 * count / sample_rate)):
        times = np.arange(sample_rate // 20) / sample_rate
        burst = rng.standard_normal(len(times)) * np.exp(-times / rng.uniform(0.0005, 0.005))
        samples[start : start + len(times)] += burst * rng.uniform(0.2, 1) / np.abs(burst).max()
    return samples[:count]


def _chords(rng: Generator, count: int, sample_rate: int) -> NDArray:
    """Chords of three or four notes with overtones, struck one after the other and fading, as of a piano."""
    samples, start = np.zeros(count + 4 * sample_rate), 0
    while start < count:
        size = int(rng.uniform(0.3, 2) * sample_rate)
        times = np.arange(2 * size) / sample_rate
        shape = np.minimum(times / FADE_SECONDS, 1) * 0.5 ** (times / rng.uniform(*HALF_SECONDS))
        shape *= np.minimum((times[-1] - times) / FADE_SECONDS, 1)
        root = rng.integers(45, 70)
        for step in ([0, 4, 7], [0, 3, 7], [0, 4, 7, 10])[rng.integers(3)]:
            base = 440 * 2 ** ((root + step - 69) / 12)
            for number in range(1, 7):
                if number * base < 0.45 * sample_rate:
                    samples[start : start + 2 * size] += shape * np.sin(2 * np.pi * number * base * times) / number
        start += size
    return samples[:count]


NOISES: dict[str, Maker] = {
    "silence": _silence,
    "hum": _hum,
    "white": _white,
    "pink": _pink,
    "sweeps": _sweeps,
    "clicks": _clicks,
    "chords": _chords,
}
