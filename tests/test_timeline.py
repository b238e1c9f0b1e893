"""Timeline arithmetic against counting by hand."""

import math
import random

import pytest
import torch
from slow import slow_stacks

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, EncoderConfig
from espnet_speechllm_xl.errors import UserError


def count_feature_frames(samples, rate):
    count, start = 0, 0
    while start + rate * 25 // 1000 <= samples:
        count, start = count + 1, start + rate * 10 // 1000
    return count


@pytest.mark.parametrize("rate", [8000, 16000, 44000])
def test_frames_are_counted_as_by_hand(rate):
    rng = random.Random(rate)
    edges = [start * rate // 100 + rate * 25 // 1000 + step for start in range(12) for step in (-1, 0, 1)]
    sizes = [0, 1, *edges, *(rng.randrange(200000) for _ in range(40))]
    for size in sizes:
        expected = count_feature_frames(size, rate)
        assert timeline.feature_frames(size, rate) == expected, size
        assert timeline.frames(size, rate) == expected // 4, size
    batch = torch.tensor(sizes)
    assert timeline.feature_frames(batch, rate).tolist() == [timeline.feature_frames(size, rate) for size in sizes]
    assert timeline.frames(batch, rate).tolist() == [timeline.frames(size, rate) for size in sizes]


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_sample_has_a_time_in_frames(rate):
    for sample in [0, 1, 399, timeline.samples_of_frames(7, rate), 10**9 + 1]:
        frame = timeline.frame_of_sample(sample, rate)
        assert timeline.frame_start_seconds(frame) == pytest.approx(sample / rate, abs=1e-9)
    assert timeline.frame_of_sample(timeline.samples_of_frames(7, rate), rate) == 7


@pytest.mark.parametrize("rate", [8000, 16000])
def test_samples_for_frames_is_the_least(rate):
    assert timeline.samples_for_frames(0, rate) == 0
    for count in [1, 2, 3, 31, 32, 1000]:
        samples = timeline.samples_for_frames(count, rate)
        assert timeline.frames(samples, rate) == count
        assert timeline.frames(samples - 1, rate) == count - 1


def test_first_frame_covers_55_ms():
    assert timeline.samples_for_frames(1, 16000) == 880
    assert timeline.frame_start_seconds(0) == 0
    assert timeline.frame_end_seconds(0) == pytest.approx(0.04)


def test_frame_at_inverts_frame_end_for_ten_hours():
    for frame in [*range(2000), *range(0, 900000, 997), 899999]:
        assert timeline.frame_at(timeline.frame_end_seconds(frame)) == frame
        assert timeline.frame_at(timeline.frame_end_seconds(frame) - 0.039) == frame
        assert timeline.frame_at(timeline.frame_end_seconds(frame) + 0.001) == frame + 1
    assert timeline.frame_at(0) == timeline.frame_at(0.0001) == timeline.frame_at(-1.0) == 0


@pytest.mark.parametrize("chunk", [1, 3, 32, None])
def test_chunks_against_lists(chunk):
    for total in [0, 1, 2, 3, 4, 31, 32, 33, 64, 100]:
        pieces = (
            [list(range(total))]
            if chunk is None
            else [list(range(total))[first : first + chunk] for first in range(0, total, chunk)]
        )
        pieces = [piece for piece in pieces if piece]
        assert timeline.num_chunks(total, chunk) == len(pieces)
        assert timeline.num_chunks(torch.tensor([total, total]), chunk).tolist() == [len(pieces)] * 2
        for index, piece in enumerate(pieces):
            assert all(timeline.chunk_of_frame(frame, chunk) == index for frame in piece)
            assert timeline.chunk_span_frames(index, chunk, total) == (piece[0], piece[-1] + 1)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("chunk", [1, 3, 8, 12, 32, None])
def test_decoder_inputs_are_counted_as_by_hand(chunk, reduction):
    totals = [*range(20), 31, 32, 33, 36, 64, 100]
    counts = [len(slow_stacks(total, chunk, reduction)[0]) for total in totals]
    assert [timeline.audio_inputs(total, chunk, reduction) for total in totals] == counts
    assert timeline.audio_inputs(torch.tensor(totals), chunk, reduction).tolist() == counts
    of_chunk = timeline.inputs_of_chunk(chunk, reduction)
    chunks = slow_stacks(100, chunk, reduction)[1]
    assert [timeline.chunk_of_frame(index, of_chunk) for index in range(len(chunks))] == chunks


@pytest.mark.parametrize("chunk", [1, 3, 32, None])
@pytest.mark.parametrize("delay", [0, 2, 40])
def test_a_token_never_lands_before_its_end(chunk, delay):
    rng = random.Random(f"{chunk} {delay}")
    totals = torch.tensor([rng.randint(1, 150) for _ in range(50)])
    ends = torch.stack([torch.randint(int(total), (20,)) for total in totals])
    chunks = timeline.num_chunks(totals, chunk)[:, None]
    got = timeline.chunk_of_token(ends, chunk, delay, chunks)
    for row, total in enumerate(totals.tolist()):
        last = timeline.num_chunks(total, chunk) - 1
        for end, index in zip(ends[row].tolist(), got[row].tolist(), strict=True):
            assert index == (0 if chunk is None else min((end + delay) // chunk, last))
            assert timeline.chunk_of_frame(end, chunk) <= index <= last


def test_latency_of_the_paper():
    encoder = EncoderConfig(segment=32, right_context=6)
    assert timeline.latency_seconds(encoder, ChunkingConfig(chunk=32)) == pytest.approx(1.52)
    assert timeline.latency_seconds(encoder, ChunkingConfig(chunk=8)) == pytest.approx(1.52)  # the encoder's hop
    assert timeline.latency_seconds(encoder, ChunkingConfig(chunk=64)) == pytest.approx(2.8)
    assert timeline.latency_seconds(encoder, ChunkingConfig(chunk=32, delay=12)) == pytest.approx(2.0)
    assert timeline.latency_seconds(encoder, ChunkingConfig(chunk=64, look_ahead=2)) == pytest.approx(2.64)
    assert timeline.latency_seconds(encoder, ChunkingConfig(chunk=None)) == math.inf
    whole = EncoderConfig(segment=None, left_context=0, right_context=0)
    assert timeline.latency_seconds(whole, ChunkingConfig(chunk=32)) == math.inf


def test_seconds_of_users():
    assert timeline.frames_from_seconds(1.28, "chunk size") == 32
    assert timeline.frames_from_seconds(0.0, "chunk size") == 0
    assert timeline.frames_from_seconds(math.inf, "chunk size") is None
    for wrong in [1.3, -0.04, 0.0401, math.nan, -math.inf]:
        with pytest.raises(UserError, match=f"chunk size {wrong} s is not a multiple of 0.04 s"):
            timeline.frames_from_seconds(wrong, "chunk size")
    assert timeline.chunks_from_seconds(5.12, 32) == 4
    assert timeline.chunks_from_seconds(0.0, 32) == 0
    assert timeline.chunks_from_seconds(math.inf, 32) is None
    assert timeline.chunks_from_seconds(5.12, None) is None
    assert timeline.chunks_from_seconds(5.13, None) is None  # one chunk: the context has no say
    with pytest.raises(UserError, match="context 5.0 s is not a multiple of the chunk size 1.28 s"):
        timeline.chunks_from_seconds(5.0, 32)
    assert timeline.chunk_seconds(32) == pytest.approx(1.28)
    assert timeline.chunk_seconds(None) == math.inf
    assert timeline.gap_frames(0.5) == 12 and timeline.gap_frames(0.0) == 0
