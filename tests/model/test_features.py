"""Features: streaming == offline, a slow reference, statistics, masks."""

import math

import numpy as np
import pytest
import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import FeatureConfig, SpecAugmentConfig
from espnet_speechllm_xl.model.features import GlobalNormalizer, LogMel, SpecAugment, stack_frames
from espnet_speechllm_xl.training.trainer import matmul_precision

RATE = 16000


def cut(total, generator, pieces):
    """Random cut points with empty pieces among them."""
    points = sorted(generator.integers(0, total + 1, pieces).tolist())
    return list(zip([0, *points], [*points, total], strict=True))


def slow_log_mel(samples, config):
    """One frame at a time, triangles by hand, float64."""
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 400) for n in range(400)]
    mel = lambda hz: 2595 * math.log10(1 + hz / 700)  # noqa: E731
    edges = np.linspace(mel(config.f_min), mel(config.f_max), config.n_mels + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = np.linspace(0, RATE / 2, 257)
    rows = []
    for start in range(0, len(samples) - 399, 160):
        power = np.abs(np.fft.rfft(samples[start : start + 400] * window, 512)) ** 2
        energies = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            weight = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(0)
            energies.append(max(float(weight @ power), config.floor))
        rows.append(np.log(energies))
    return np.array(rows)


def test_equals_slow_reference():
    samples = np.random.default_rng(1).normal(0, 0.1, 1777)
    samples[400:1200] = 0  # digital silence
    features, lengths = LogMel(FeatureConfig()).double()(torch.from_numpy(samples)[None], torch.tensor([1777]))
    assert lengths.tolist() == [9]
    np.testing.assert_allclose(features[0].numpy(), slow_log_mel(samples, FeatureConfig()), atol=1e-4)
    assert torch.allclose(features[0, 3], torch.tensor(math.log(1e-8), dtype=torch.float64))  # samples 480 .. 879


def slow_levels(log_mel, seconds):
    """Level of each frame: the weighted mean energy of the frames up to it, summed anew each time."""
    energies, levels = (np.exp(log_mel) - 1e-8).mean(1), []
    for last in range(len(energies)):
        weights = np.exp(-0.01 / seconds * np.arange(last, -1, -1))
        levels.append(max((weights * energies[: last + 1]).sum() / weights.sum(), 1e-4))
    return np.log(levels)


LEVELLED = FeatureConfig(level_seconds=0.05)


def test_relative_features_equal_a_slow_reference():
    samples = np.random.default_rng(1).normal(0, 0.1, 7777)
    samples[3000:6000] *= 1e-3  # below what has a level: the level falls to its least
    samples[4000:5000] = 0
    config = FeatureConfig(level_seconds=0.01)
    features, _ = LogMel(config).double()(torch.from_numpy(samples)[None], torch.tensor([7777]))
    log_mel = slow_log_mel(samples, config)
    levels = slow_levels(log_mel, config.level_seconds)
    assert levels.min() == pytest.approx(math.log(1e-4)) and levels.max() > 0
    expected = np.log((np.exp(log_mel) - 1e-8) / np.exp(levels[:, None]) + 1e-5)
    np.testing.assert_allclose(features[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("decibels, tolerance", [(10, 1e-5), (-20, 1e-3), (-40, 0.05)])
def test_relative_features_are_those_of_any_level(decibels, tolerance):
    """But for the floor, from which quiet bands come closer."""
    speech = torch.randn(1, 32000, generator=torch.Generator().manual_seed(1)) * 0.1
    speech *= torch.linspace(1, 0.3, 32000)
    log_mel, count = LogMel(FeatureConfig(level_seconds=10.0)), torch.tensor([32000])
    as_it_is, other = (log_mel(speech * gain, count)[0] for gain in (1, 10 ** (decibels / 20)))
    assert (as_it_is - other).abs().mean() < tolerance
    plain = LogMel(FeatureConfig())
    assert (plain(speech, count)[0] - plain(speech * 10 ** (decibels / 20), count)[0]).abs().median() > 2


def test_the_level_of_hours_is_that_of_their_last_minutes():
    """Its sums neither overflow nor lose their digits."""
    log_mel = LogMel(FeatureConfig(level_seconds=2.0))
    energies = torch.randn(1, 500_000, 2).exp()
    relative, state = log_mel._log(energies, log_mel.initial_state().level)
    late, _ = log_mel._log(energies[:, -10_000:], log_mel.initial_state().level)
    torch.testing.assert_close(relative[:, -2000:], late[:, -2000:], atol=1e-5, rtol=0)
    assert torch.isfinite(relative).all() and state.weight.item() == pytest.approx(math.log(200.5), abs=1e-3)


def test_the_precision_of_products_in_training_changes_no_feature():
    log_mel = LogMel(FeatureConfig())
    audio = torch.rand(2, 32000, generator=torch.Generator().manual_seed(0)) - 0.5
    found = []
    for name in ("highest", "medium"):
        with matmul_precision(name, on_cpu=True):
            found.append(log_mel(audio, torch.tensor([32000, 32000]))[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("count, frames", [(0, 0), (1, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16000, 98)])
def test_frame_counts_offline_and_stream(count, frames):
    logmel = LogMel(FeatureConfig())
    features, lengths = logmel(torch.zeros(2, count), torch.tensor([count, count // 2]))
    assert features.shape == (2, frames, 80)
    assert lengths.tolist() == [frames, timeline.feature_frames(count // 2, RATE)]
    pushed, state = logmel.push(torch.zeros(1, count), logmel.initial_state())
    assert pushed.shape == (1, frames, 80)
    assert state.samples.shape[1] == count - 160 * frames


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 4e-6), (torch.float64, 1e-11)])
@pytest.mark.parametrize("config", [FeatureConfig(), LEVELLED])
def test_stream_equals_offline_for_random_cuts(seed, dtype, tolerance, config):
    generator = np.random.default_rng(seed)
    total = int(generator.integers(300, 9000))
    samples = torch.from_numpy(generator.normal(0, 0.1, total)).to(dtype)
    logmel = LogMel(config).to(dtype)
    offline = logmel(samples[None], torch.tensor([total]))[0][0]
    state, parts = logmel.initial_state(), []
    for begin, end in cut(total, generator, int(generator.integers(1, 60))):
        features, state = logmel.push(samples[None, begin:end], state)
        parts.append(features[0])
        assert state.samples.shape[1] < 400
    stream = torch.cat(parts)
    assert stream.shape == offline.shape
    assert stream.dtype == dtype
    torch.testing.assert_close(stream, offline, atol=tolerance, rtol=0)


def test_state_can_be_forked():
    samples = torch.randn(1, 3000) * 0.1
    logmel = LogMel(LEVELLED)
    _, state = logmel.push(samples[:, :1000], logmel.initial_state())
    first = logmel.push(samples[:, 1000:], state)[0]
    logmel.push(torch.randn(1, 500), state)
    assert torch.equal(first, logmel.push(samples[:, 1000:], state)[0])


@pytest.mark.parametrize("config", [FeatureConfig(), LEVELLED])
def test_batch_equals_alone_and_long_audio_equals_its_blocks(monkeypatch, config):
    logmel = LogMel(config)
    speech = torch.randn(3, 6000) * 0.1
    lengths = torch.tensor([6000, 3333, 401])
    for i, n in enumerate(lengths.tolist()):
        speech[i, n:] = 0
    features, counts = logmel(speech, lengths)
    for i, n in enumerate(lengths.tolist()):
        alone, count = logmel(speech[i : i + 1, :n], lengths[i : i + 1])
        assert count.item() == counts[i].item() == alone.shape[1]
        torch.testing.assert_close(features[i, : counts[i]], alone[0], atol=2e-6, rtol=0)
    monkeypatch.setattr("espnet_speechllm_xl.model.features.BLOCK_FRAMES", 7)
    torch.testing.assert_close(logmel(speech, lengths)[0], features, atol=2e-6, rtol=0)


def test_no_parameters_and_nothing_in_the_checkpoint():
    logmel = LogMel(FeatureConfig())
    assert not list(logmel.parameters())
    assert not logmel.state_dict()


def test_every_band_has_a_filter():
    assert (LogMel(FeatureConfig()).filters.sum(0) > 0).all()
    assert (LogMel(FeatureConfig(sample_rate=8000, f_max=3800.0)).filters.sum(0) > 0).all()


def test_stack_frames():
    x = torch.arange(2 * 11 * 3).view(2, 11, 3)
    stacked = stack_frames(x)
    assert stacked.shape == (2, 2, 12)
    for b in range(2):
        for t in range(2):
            assert stacked[b, t].tolist() == [v for f in range(4) for v in x[b, 4 * t + f].tolist()]
    assert stack_frames(x[:, :3]).shape == (2, 0, 12)


def save_stats(path, frames):
    np.savez(path, count=len(frames), sum=frames.sum(0), sum_square=(frames**2).sum(0))


def test_normalizer_reads_statistics(tmp_path):
    frames = np.random.default_rng(0).normal(3.0, 2.0, (500, 5))
    frames[:, 4] = -18.0  # a constant band
    save_stats(tmp_path / "feats_stats.npz", frames)
    normalizer = GlobalNormalizer(5, tmp_path / "feats_stats.npz")
    out = normalizer(torch.from_numpy(frames).float()[None])
    torch.testing.assert_close(out[0].mean(0), torch.zeros(5), atol=2e-3, rtol=0)
    torch.testing.assert_close(out[0, :, :4].std(0, unbiased=False), torch.ones(4), atol=1e-4, rtol=0)
    assert normalizer(torch.full((1, 1, 5), -17.0))[0, 0, 4] < 1001
    copy = GlobalNormalizer(5)
    copy.load_state_dict(normalizer.state_dict(), strict=True)
    assert torch.equal(copy(out), normalizer(out))


@pytest.mark.parametrize("fault", ["missing", "no zip", "truncated", "keys", "bands", "empty", "nan"])
def test_normalizer_names_the_bad_file(tmp_path, fault):
    path = tmp_path / "feats_stats.npz"
    frames = np.ones((4, 5))
    if fault == "no zip":
        path.write_text("nothing")
    elif fault == "keys":
        np.savez(path, total=3)
    elif fault == "bands":
        save_stats(path, np.ones((4, 6)))
    elif fault == "empty":
        save_stats(path, frames[:0])
    elif fault == "nan":
        save_stats(path, frames * np.nan)
    elif fault == "truncated":
        save_stats(path, frames)
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="feats_stats.npz") as error:
        GlobalNormalizer(5, path)
    assert "\n" not in str(error.value)


def test_specaug_masks_what_it_should():
    torch.manual_seed(0)
    config = SpecAugmentConfig(freq_masks=2, freq_width=10, time_masks_per_second=1.0, time_width=20)
    augment = SpecAugment(config)
    lengths = torch.tensor([1000, 400, 90, 1] * 8)
    x = torch.ones(32, 1000, 80)
    y = augment(x, lengths)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    bands = (y == 0).all(1)  # (B, M)
    times = (y == 0).all(2)  # (B, F)
    assert torch.equal(y == 0, bands[:, None] | times[:, :, None])  # nothing but whole bands and whole frames
    assert bands.sum(1).max() <= 20
    assert bands.any(1).float().mean() > 0.8
    hidden = times.sum(1)
    limit = torch.tensor([10, 4, 1, 1] * 8) * torch.tensor([20, 20, 20, 1] * 8)
    assert (hidden <= limit).all()
    for i, n in enumerate(lengths.tolist()):
        assert not times[i, n:].any()
    assert len({tuple(row) for row in bands.tolist()}) > 25  # every item has its own masks
    # 10 masks of mean width 10, a little lost to overlap; 4 masks of the same.
    assert 60 < hidden[0::4].float().mean() < 110
    assert 24 < hidden[1::4].float().mean() < 56


def test_specaug_a_fraction_of_a_mask_is_a_probability():
    torch.manual_seed(0)
    augment = SpecAugment(SpecAugmentConfig(0, 0, time_masks_per_second=0.5, time_width=40))
    lengths = torch.full((4000,), 80)  # 0.4 masks, whose width is 0 in one of 41 cases
    hidden = (augment(torch.ones(4000, 80, 1), lengths) == 0).any(1).float().mean()
    assert abs(hidden - 0.4 * 40 / 41) < 0.03


def test_specaug_places_are_uniform():
    torch.manual_seed(0)
    augment = SpecAugment(SpecAugmentConfig(freq_masks=1, freq_width=1, time_masks_per_second=0))
    rate = (augment(torch.ones(20000, 1, 10), torch.ones(20000, dtype=torch.long)) == 0).float().mean((0, 1))
    torch.testing.assert_close(rate, torch.full((10,), 0.05), atol=0.008, rtol=0)


def test_specaug_is_off_outside_training_repeatable_and_can_be_disabled():
    x, lengths = torch.ones(2, 300, 80), torch.tensor([300, 200])
    augment = SpecAugment(SpecAugmentConfig())
    torch.manual_seed(3)
    first = augment(x, lengths)
    torch.manual_seed(3)
    assert torch.equal(first, augment(x, lengths))
    assert not torch.equal(first, x)
    assert augment.eval()(x, lengths) is x
    none = SpecAugment(SpecAugmentConfig(freq_masks=0, time_masks_per_second=0))
    assert torch.equal(none(x, lengths), x)
    assert augment.train()(x[:, :0], torch.tensor([0, 0])).shape == (2, 0, 80)
