"""Flushed streams: each utterance as a stream of its own, on one clock; others of the same batch as if alone."""

import dataclasses
import math
import random

import numpy as np
import pytest
import tiny

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.config import ChunkingConfig, SearchConfig, StreamConfig
from espnet_speechllm_xl.decoding.engine import Engine, model_calls, run
from espnet_speechllm_xl.decoding.joint_ctc import JointModel
from espnet_speechllm_xl.decoding.results import Update
from espnet_speechllm_xl.decoding.searches import live_methods
from espnet_speechllm_xl.decoding.streams import Stream

RATE = 16000
OFF = StreamConfig(settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=math.inf)
RULES = StreamConfig(settle_seconds=1.3, endpoint_silence=0.3, endpoint_length=1.5, partial_seconds=0.32)
SIZES = [30000, 399, 21111, 16 * 640 * 2]  # samples of the utterances; the second is too short for a frame


@pytest.fixture(scope="module")
def tiny_model(tiny_model_dir):
    """(model, tokenizer) in float64."""
    from espnet_speechllm_xl.trained_model import load_model

    return load_model(tiny_model_dir, dtype="float64")[:2]


def with_ctc(tiny_model, weight):
    model, tokenizer = tiny_model
    return (JointModel(model, weight) if weight else model), tokenizer


def open_stream(tiny_model, method="greedy", chunking=(16, 2), config=OFF, cap=8):
    search = SearchConfig(method, beam_size=3, max_tokens_per_chunk=cap)
    return Stream(*tiny_model, ChunkingConfig(*chunking), search, config)


def same_update(found, expected, begin, segments):
    """``expected`` is of a stream that began at ``begin`` seconds, behind so many ``segments``."""
    assert (found.text, found.partial, found.joined) == (expected.text, expected.partial, expected.joined)
    same_words(found.words, expected.words, begin)
    assert len(found.segments) == len(expected.segments)
    opened = [] if found.segment is None else [(found.segment, expected.segment)]
    for one, other in [*zip(found.segments, expected.segments, strict=True), *opened]:
        assert (one.index, one.tokens) == (segments + other.index, other.tokens)
        same_words(one.words, other.words, begin)
        assert one.timestamps == pytest.approx([begin + time for time in other.timestamps], abs=1e-9)


def same_words(found, expected, begin):
    assert [(word.text, word.joined) for word in found] == [(word.text, word.joined) for word in expected]
    assert [word.confidence for word in found] == pytest.approx([word.confidence for word in expected], abs=1e-9)
    for name in ("start", "end"):
        assert [getattr(word, name) for word in found] == pytest.approx(
            [begin + getattr(word, name) for word in expected], abs=1e-9
        )


def compare_with_streams_of_their_own(open_one, seed, last="close"):
    """Flush behind each utterance and compare every update; return the words of each utterance."""
    rng = random.Random(seed)
    stream, begin, segments, capped, said = open_one(), 0.0, 0, 0, []
    for number, size in enumerate(SIZES):
        own = open_one()
        audio = tiny.speech(60 + number, size)
        updates = []
        for piece in tiny.cuts(audio, rng, 9000):
            updates.append(own.push(piece))
            found = stream.push(piece)
            same_update(found, updates[-1], begin, segments)
            assert stream.seconds == pytest.approx(begin + own.seconds, abs=1e-9)
        updates.append(own.close())
        is_last = number == len(SIZES) - 1
        found = stream.close() if is_last and last == "close" else stream.flush()
        same_update(found, updates[-1], begin, segments)
        capped += own.capped
        assert stream.capped == capped and found.partial == ""
        begin += size / RATE
        segments += sum(len(update.segments) for update in updates)
        said.append([word for update in updates for word in update.words])
    assert stream.closed == (last == "close")
    if last == "flush":
        assert stream.seconds == pytest.approx(sum(SIZES) / RATE, abs=1e-9)
    return said


@pytest.mark.parametrize("config", [OFF, RULES], ids=["off", "rules"])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
@pytest.mark.parametrize("method", live_methods())
@pytest.mark.parametrize("chunking", [(16, 2), (4, 3), (8, None, 0, "word"), (None, None)])
def test_a_flush_is_closing_one_stream_and_opening_another(tiny_model, method, ctc_weight, chunking, config):
    chosen = with_ctc(tiny_model, ctc_weight)
    said = compare_with_streams_of_their_own(
        lambda: open_stream(chosen, method, chunking, config), f"{method} {chunking}"
    )
    assert not said[1] and all(said[number] for number in (0, 2, 3))
    assert said[2][0].start < said[0][-1].end  # by its own clock


@pytest.mark.parametrize("last", ["flush", "close"])
def test_the_clock_goes_on_behind_any_number_of_samples(tiny_model, last):
    compare_with_streams_of_their_own(lambda: open_stream(tiny_model, cap=1), 5, last)


@pytest.mark.parametrize("look_ahead", [0, 5])
def test_the_missing_look_ahead_is_silence(tiny_model, look_ahead):
    """With any look-ahead, all that was heard is in the final text at once."""
    compare_with_streams_of_their_own(
        lambda: open_stream(tiny_model, chunking=(16, 2, 0, "token", None, look_ahead)), 3
    )


@pytest.mark.parametrize("method", live_methods())
@pytest.mark.parametrize("told", [{"prompt": "call anna"}, {"phrases": ["no rain", "the other office", "anna :3"]}])
def test_each_utterance_has_the_prompt_and_the_phrases(prompted_model_dir, method, told):
    speech2text = Speech2Text.from_pretrained(prompted_model_dir, dtype="float64", max_tokens_per_chunk=8, beam_size=3)

    def utterances(**told):
        return compare_with_streams_of_their_own(lambda: speech2text.stream(method, **told), 1)

    swayed, plain = utterances(**told), utterances()
    assert [word.confidence for word in swayed[2]] != [word.confidence for word in plain[2]]


@pytest.mark.parametrize("config", [OFF, RULES], ids=["off", "rules"])
def test_a_flush_of_nothing_gives_nothing(tiny_model, config):
    audio = tiny.speech(3, 30000)
    stream, own = open_stream(tiny_model, config=config), open_stream(tiny_model, config=config)
    nothing = Update(segment=own.push(()).segment)
    assert stream.flush() == stream.flush() == nothing and stream.seconds == 0
    same_update(stream.push(audio), own.push(audio), 0, 0)
    first = stream.flush()
    assert first.words
    same_update(first, own.close(), 0, 0)
    again = stream.flush()
    assert again == dataclasses.replace(nothing, segment=again.segment) and stream.seconds == 30000 / RATE
    assert again.segment is None or not again.segment.words
    assert stream.close() == again  # what a flush has settled is not given once more
    for refused in (stream.flush, stream.close, lambda: stream.push(audio)):
        with pytest.raises(ValueError, match="the stream is closed: open another one"):
            refused()


def test_what_is_no_audio_leaves_a_flushed_stream_as_it_is(tiny_model):
    from espnet_speechllm_xl.corpus.audio import AudioError

    audio = tiny.speech(4, 20000)
    stream, own = open_stream(tiny_model), open_stream(tiny_model)
    stream.push(audio)
    stream.flush()
    with pytest.raises(AudioError):
        stream.push([math.nan])
    same_update(stream.push(audio), own.push(audio), 20000 / RATE, 0)
    same_update(stream.flush(), own.close(), 20000 / RATE, 0)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
@pytest.mark.parametrize("method", live_methods())
@pytest.mark.parametrize("threaded", [False, True])
def test_other_streams_of_the_batch_stay_as_they_are(tiny_model, method, ctc_weight, threaded):
    """In each round three streams are one batch; one is flushed every third time, one every other, one never."""
    chosen = with_ctc(tiny_model, ctc_weight)
    audio = [list(np.array_split(tiny.speech(80 + number, 60000), 9)) for number in range(3)]
    flushed = [[every > 0 and number % every == 0 for number in range(9)] for every in (3, 2, 0)]
    alone = [
        [consumed(chosen, stream, piece, flush) for piece, flush in zip(pieces, flushes, strict=True)]
        for stream, pieces, flushes in zip(streams_of(chosen, method), audio, flushed, strict=True)
    ]
    streams, rounds = streams_of(chosen, method), zip(*audio, strict=True)
    steps = [
        [stream.consume(piece, flush=flush) for stream, piece, flush in zip(streams, pieces, flushes, strict=True)]
        for pieces, flushes in zip(rounds, zip(*flushed, strict=True), strict=True)
    ]
    if threaded:
        with Engine(chosen[0]) as engine:
            futures = [[engine.submit(*each) for each in zip(streams, step, strict=True)] for step in steps]
            together = [[future.result() for future in each] for each in futures]
    else:
        together = [run(step, model_calls(chosen[0])) for step in steps]
    for expected, found in zip(alone, zip(*together, strict=True), strict=True):
        assert any(update.words for update in found)
        for one, other in zip(found, expected, strict=True):
            same_update(one, other, 0, 0)


def streams_of(chosen, method):
    return [open_stream(chosen, method, config=RULES) for _ in range(3)]


def consumed(chosen, stream, piece, flush):
    return run([stream.consume(piece, flush=flush)], model_calls(chosen[0]))[0]
