"""Generated audio without speech: levels, spectra, what babble is made of."""

import numpy as np
import pytest

from espnet_speechllm_xl.corpus.noises import NOISES, at_level, endless, make_babble, make_noise

RATE = 16000


def noise(kind, seed=1, seconds=20.0, level_db=-30.0):
    return make_noise(kind, np.random.default_rng(seed), round(seconds * RATE), RATE, level_db)


def decibels(value):
    return 20 * np.log10(value)


def octaves(samples):
    """The energy in dB of the octaves from 62.5 Hz to 4 kHz."""
    energy = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)
    edges = 62.5 * 2.0 ** np.arange(7)
    parts = [energy[(frequencies >= low) & (frequencies < 2 * low)].sum() for low in edges[:-1]]
    return 10 * np.log10(parts)


@pytest.mark.parametrize("kind", NOISES)
def test_every_kind_has_its_length_and_level_and_repeats_by_its_seed(kind):
    samples = noise(kind)
    assert samples.shape == (20 * RATE,) and samples.dtype == np.float32 and np.abs(samples).max() <= 1
    np.testing.assert_array_equal(samples, noise(kind))
    if kind == "silence":
        assert not samples.any()
        return
    assert not np.array_equal(samples, noise(kind, seed=2))
    level = np.abs(samples).max() if kind == "clicks" else np.sqrt(np.mean(np.square(samples, dtype=float)))
    assert decibels(level) == pytest.approx(-30, abs=0.01)
    for other in (1, 333):  # odd lengths
        assert noise(kind, seconds=other / RATE).shape == (other,)


def test_spectra():
    np.testing.assert_allclose(np.diff(octaves(noise("white", seconds=60))), 3.01, atol=0.4)
    np.testing.assert_allclose(np.diff(octaves(noise("pink", seconds=60))), 0, atol=0.4)
    spectrum = np.abs(np.fft.rfft(noise("hum")))[::20][: RATE // 2]  # at whole Hz
    loud = {int(hertz) for hertz in np.flatnonzero(spectrum > spectrum.max() / 100)}
    assert len(loud) == 8 and loud in ({50 * k for k in range(1, 9)}, {60 * k for k in range(1, 9)})


def test_sweeps_pass_through_all_octaves():
    samples = noise("sweeps", seconds=60)
    assert octaves(samples).min() > octaves(samples).max() - 10
    crossings = np.flatnonzero(np.diff(np.signbit(samples)))  # one frequency at a time: half a period between two
    periods = 2 * np.diff(crossings) / RATE
    assert 1 / 30 > periods.max() > 1 / 150 and periods.min() == pytest.approx(1 / 7200, rel=0.2)


def test_clicks_are_short_and_rare():
    samples = noise("clicks", seconds=60, level_db=-6)
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    bursts = 1 + np.count_nonzero(np.diff(loud) > RATE // 50)
    assert 60 < bursts <= 150 and len(loud) < 0.02 * len(samples)


def test_chords_are_notes_of_the_scale():
    spectrum = np.abs(np.fft.rfft(noise("chords", seconds=60)))
    frequencies = np.arange(len(spectrum)) / 60
    fundamental = spectrum.copy()
    fundamental[(frequencies < 100) | (frequencies > 700)] = 0
    peaks = frequencies[np.argsort(fundamental)[-20:]]
    off = 12 * np.log2(peaks / 440) - np.round(12 * np.log2(peaks / 440))
    assert np.abs(off).max() < 0.2  # semitones; overtones up to the sixth lie at most 0.16 beside a note


def test_babble_is_the_sum_of_its_talkers_equally_loud():
    rng = np.random.default_rng(3)
    loud, quiet = rng.standard_normal(5000), 0.01 * rng.standard_normal(5000)
    one = make_babble([loud], np.random.default_rng(4), 3000, 1, -25.0)
    assert decibels(np.sqrt(np.mean(one**2))) == pytest.approx(-25, abs=0.1)
    turned = np.array([np.roll(loud, -start)[:3000] for start in range(5000)])
    likeness = turned @ one / np.linalg.norm(turned, axis=1) / np.linalg.norm(one)
    assert likeness.max() == pytest.approx(1, abs=1e-6) and np.sort(likeness)[-2] < 0.2
    many = make_babble([loud, quiet], np.random.default_rng(4), 30000, 40, -25.0)
    halves = np.sqrt(np.mean(np.square(many.reshape(10, -1), dtype=float), axis=1))
    assert halves.max() / halves.min() < 1.5  # all talk all the time


def test_endless_has_each_recording_before_any_comes_again():
    recordings = [np.full(10, float(number)) for number in range(1, 6)]
    joined = endless(recordings, np.random.default_rng(0), 128)
    assert len(joined) == 128 and joined.all()
    ends = [0, *np.flatnonzero(np.diff(joined)) + 1]
    order = [joined[end] for end in ends]
    first = len(joined[: ends[1]])
    assert first <= 10 and sorted(order[:5]) == [1, 2, 3, 4, 5]
    assert all(np.diff(ends)[1:] % 10 == 0)


def test_a_fade_joins_without_a_step():
    joined = endless([np.ones(100), np.ones(80), np.ones(90)], np.random.default_rng(0), 1000, fade=10)
    np.testing.assert_allclose(joined[10:], 1, atol=1e-12)
    assert endless([np.ones(100), np.ones(5)], np.random.default_rng(0), 300, fade=10).shape == (300,)


def test_loud_samples_are_clipped():
    assert np.abs(at_level(np.random.default_rng(0).standard_normal(1000), -1.0)).max() == 1
