"""Streaming a recording: a planted stream with known times."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.corpus.ctm import Word
from espnet_speechllm_xl.evaluation.stream_latency import Flushed, Run
from espnet_speechllm_xl.sets.stream import flush_at_the_end, stream_through

RATE = 100  # samples a second of the planted stream


class Clock:
    """Tells the time that the planted stream has spent."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class PlantedStream:
    """Chunks of 1 s; ``plan``: for each push, and the close or flush (compute time, chunks by then, words settled)."""

    chunking, capped = ChunkingConfig(chunk=25), 2

    def __init__(self, plan, clock):
        self.plan, self.clock, self.seconds, self.pushed = iter(plan), clock, 0.0, []

    def push(self, samples):
        self.pushed.append(len(samples))
        return self._next()

    def close(self):
        self.pushed.append("close")
        return self._next()

    def flush(self):
        self.pushed.append("flush")
        return self._next()

    def _next(self):
        spent, chunks, words = next(self.plan)
        self.clock.now += spent
        self.seconds = timeline.frame_start_seconds(25 * chunks)
        return SimpleNamespace(words=[Word(text, 0.1, end, 0.9) for text, end in words])


def planted(plan, samples, block, through=stream_through):
    clock = Clock()
    stream = PlantedStream(plan, clock)
    return through(stream, np.zeros(samples, np.float32), RATE, block, clock), stream.pushed


def test_emission_times_on_both_clocks():
    plan = [
        (0.01, 0, []),
        (0.2, 1, [("a", 0.5), ("b", 0.9)]),
        (0.01, 1, []),
        (0.6, 3, [("c", 1.1)]),
        (0.05, 4, [("d", 2.4)]),
    ]
    run, pushed = planted(plan, samples=250, block=70)
    assert pushed == [70, 70, 70, 40, "close"]
    # Blocks arrive at 0.7, 1.4, 2.1 and 2.5 s; the close follows the last, and waits for it (2.5 + 0.6).
    expected = [("a", 1.4, 1.6), ("b", 1.4, 1.6), ("c", 2.5, 3.1), ("d", 2.5, 3.15)]
    assert [word.text for word in run.words] == [text for text, _, _ in expected]
    assert [word.end for word in run.words] == [0.5, 0.9, 1.1, 2.4]
    assert [word.audio for word in run.words] == pytest.approx([audio for _, audio, _ in expected])
    assert [word.wall for word in run.words] == pytest.approx([wall for _, _, wall in expected])
    # The push of two chunks counts as two.
    assert run.chunk_seconds == pytest.approx([0.2, 0.3, 0.3, 0.05])
    assert (run.audio_seconds, run.seconds, run.capped) == (2.5, pytest.approx(0.87), 2)


def test_a_slow_machine_falls_behind():
    run, _ = planted([(1.0, 1, [("a", 0.5)]), (1.0, 2, [("b", 0.8)]), (0.5, 2, [("c", 1.0)])], samples=100, block=50)
    assert [word.audio for word in run.words] == pytest.approx([0.5, 1.0, 1.0])
    assert [word.wall for word in run.words] == pytest.approx([1.5, 2.5, 3.0])


def test_no_audio_is_only_closed():
    run, pushed = planted([(0.1, 0, [])], samples=0, block=50)
    assert (pushed, run.words, run.chunk_seconds, run.audio_seconds) == (["close"], (), (), 0.0)


def test_a_run_survives_json():
    run, _ = planted([(0.2, 1, [("a", 0.5)]), (0.1, 1, [])], samples=50, block=50)
    assert Run.from_json(json.loads(json.dumps(asdict(run)))) == run


def test_the_time_to_the_final_text_is_what_is_computed_when_the_speech_has_ended():
    plan = [(0.01, 0, []), (0.2, 1, [("a", 0.5)]), (0.03, 1, []), (0.08, 2, [("b", 1.9)])]
    flushed, pushed = planted(plan, samples=190, block=70, through=flush_at_the_end)
    assert pushed == [70, 70, 50, "flush"]
    assert flushed.ttfs == pytest.approx(0.03 + 0.08)  # of the last block, which ends with the speech, and of the flush
    (a, b) = flushed.run.words
    assert (a.wall, b.wall, b.audio) == pytest.approx((1.6, 1.9 + flushed.ttfs, 1.9))
    assert Flushed.from_json(json.loads(json.dumps(asdict(flushed)))) == flushed


def test_a_slow_machine_is_late_with_the_final_text():
    flushed, _ = planted([(1.0, 1, []), (1.0, 1, []), (0.5, 2, [])], samples=100, block=50, through=flush_at_the_end)
    assert flushed.ttfs == pytest.approx(2.0)  # at 1.0 s the first push still runs
