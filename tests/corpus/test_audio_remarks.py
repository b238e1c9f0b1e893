"""Losses planted in a stand-in for speech, and found in files, arrays and pieces alike."""

import io

import numpy as np
import pytest
import soundfile
import soxr

from espnet_speechllm_xl.corpus.audio import conform, read_audio
from espnet_speechllm_xl.corpus.audio_remarks import Meter

RATE = 16000


def voice(seconds=3.0, seed=0, rate=RATE, level=-23.0):
    """Syllables of harmonics and hiss with pauses between, (n,) at ``level`` dB of full scale where it is loud."""
    rng, time = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    harmonics = sum(np.sin(2 * np.pi * 130 * k * time + rng.uniform(0, 6)) / k for k in range(1, 25))
    sound = harmonics + 0.1 * rng.standard_normal(len(time))
    sound *= np.clip(np.sin(2 * np.pi * 2 * time), 0, 1)
    loud = np.sqrt(np.mean(np.square(sound[sound != 0])))
    return (sound / loud * 10 ** (level / 20) + 1e-5 * rng.standard_normal(len(time))).astype(np.float32)


def found(samples, rate=RATE):
    """Kinds of the remarks on float (n,) or (n, channels), judged whole; then in pieces, which must say the same."""
    samples = np.asarray(samples, np.float32)
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    whole, pieces = Meter(rate, channels), Meter(rate, channels)
    whole.add(samples)
    for first in range(0, len(samples), 7777):
        pieces.add(samples[first : first + 7777])
    assert whole.remarks() == pieces.remarks()
    return [*whole.remarks()]


def as_16_bits(samples):
    return np.rint(np.asarray(samples) * 32768).clip(-32768, 32767) / 32768


@pytest.mark.parametrize("level", [-40.0, -23.0, -13.0])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_speech_is_not_remarked_on(rate, level):
    assert found(as_16_bits(voice(rate=rate, level=level)), rate) == []


def test_nearly_silent():
    assert found(as_16_bits(voice(level=-60.0))) == ["nearly-silent"]
    click = np.zeros(3 * RATE)
    click[RATE : RATE + 400] = 0.9
    assert found(click) == ["nearly-silent"]
    assert found(voice(level=-60.0) + 0.1) == ["nearly-silent"]  # a constant is no sound
    assert found(voice(0.2, level=-60.0)[-1500:]) == ["nearly-silent"]  # less than a block
    assert found(np.full(500, 1e-4)) == []  # too little to judge
    meter = Meter(RATE)
    assert meter.remarks() == {}
    meter.add(np.zeros(RATE, np.float32))
    assert "digital silence" in meter.remarks()["nearly-silent"]


def test_channels_that_cancel():
    left, right = voice(seed=1), voice(seed=2)
    assert found(np.stack([left, -left], axis=1)) == ["channels-cancel"]
    assert found(np.stack([left, -0.9 * left, left, -left], axis=1)) == ["channels-cancel"]
    partly = np.concatenate([np.stack([left, left], axis=1)] * 3 + [np.stack([left, -left], axis=1)])
    assert found(partly) == ["channels-cancel"]
    for good in ([left, left], [left, right], [left, 0 * left], [left] * 8, [left, 0.3 * right]):
        assert found(np.stack(good, axis=1)) == [], len(good)


def test_channels_that_cancel_are_not_said_of_one_that_is_chosen():
    pair, notes = np.stack([voice(), -voice()], axis=1), {}
    np.testing.assert_array_equal(conform(pair, RATE, channel=1, notes=notes), pair[:, 1])
    assert notes == {}
    conform(pair, RATE, notes=notes)
    assert sorted(notes) == ["channels-averaged", "channels-cancel"]


def test_heavily_clipped():
    loud = 20 * voice()
    assert found(loud.clip(-1, 1)) == ["heavily-clipped"]
    assert found(as_16_bits(loud.clip(-1, 1) * 0.3)) == ["heavily-clipped"]  # made quieter afterwards
    assert found(loud.clip(-0.6, 5) / 5) == ["heavily-clipped"]  # on one side
    for rate, hertz in ((16000, 50), (48000, 60), (16000, 440)):
        tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(2 * rate) / rate)
        assert "heavily-clipped" not in found(as_16_bits(tone), rate)
    once = voice()
    once[5000:5010] = 1.0
    assert found(once) == []


def through_8_khz(samples, way):
    narrow = as_16_bits(soxr.resample(samples, RATE, 8000))
    rate = 44100 if way == "44100" else RATE
    wide = as_16_bits(soxr.resample(narrow, 8000, rate))
    if way in ("MP3", "OGG"):
        file = io.BytesIO()
        soundfile.write(file, wide, rate, format=way)
        file.seek(0)
        return soundfile.read(file, dtype="float32")
    return wide, rate


@pytest.mark.parametrize("way", ["16000", "44100", "MP3", "OGG"])
def test_no_upper_band(way):
    assert found(*through_8_khz(voice(), way)) == ["no-upper-band"]


def test_8_khz_is_said_by_the_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", soxr.resample(voice(), RATE, 8000), 8000)
    notes = {}
    read_audio(tmp_path / "a.wav", notes=notes)
    assert notes == {"resampled": "resampled from 8000 to 16000 Hz"}


def test_a_remark_stands_once_in_the_log(tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", voice(10, level=-60.0), RATE)
    read_audio(tmp_path / "a.wav")
    (record,) = caplog.records
    assert record.message.startswith(f"{tmp_path / 'a.wav'}: nearly silent, its loudest parts are at -58 dB")
