"""The engine: side by side == alone, whoever joins, fails or is cancelled; toy models beside a real one."""

import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass

import numpy as np
import pytest
import tiny

from espnet_speechllm_xl import Speech2Text, timeline
from espnet_speechllm_xl.decoding.engine import Engine, model_calls, run
from espnet_speechllm_xl.decoding.streams import decode

TIMEOUT = 20  # seconds, for what should take none


@dataclass(frozen=True)
class Ask:
    """A request that a :class:`Doubler` answers with twice its value."""

    value: object
    kind: str = "encode"


class Doubler:
    """What an engine needs of a model; keeps the batches, and fails on the value None."""

    def __init__(self):
        self.acoustic = self.decoder = self
        self.batches = []

    def encode(self, requests):
        self.batches.append([request.value for request in requests])
        return [request.value * 2 for request in requests]

    extend = encode


def doubled(*values, kind="encode"):
    """Generator that asks for one value after the other; returns the answers."""
    answers = []
    for value in values:
        answers += yield [Ask(value, kind)]
    return answers


@pytest.fixture
def held():
    """``(engine, model, release, began)``: the engine is busy with a generator until ``release()``."""
    gate, began = threading.Event(), threading.Event()

    def holding():
        began.set()
        assert gate.wait(TIMEOUT)
        yield [Ask(0)]

    model = Doubler()
    with Engine(model) as engine:
        engine.submit("holder", holding())
        assert began.wait(TIMEOUT)
        yield engine, model, gate.set
        gate.set()


def result(future):
    return future.result(TIMEOUT)


def test_what_waits_shares_batches(held):
    engine, model, release = held
    futures = [engine.submit(owner, doubled(owner, owner + 10)) for owner in (1, 2, 3)]
    other = engine.submit(4, doubled(4, kind="token"))
    release()
    assert [result(future) for future in futures] == [[2, 22], [4, 24], [6, 26]] and result(other) == [8]
    assert [1, 2, 3] in model.batches and [11, 12, 13] in model.batches and [4] in model.batches


def test_counts(held):
    engine, model, release = held
    futures = [engine.submit(owner, doubled(owner, kind="token")) for owner in (1, 2, 3)]
    release()
    for future in futures:
        result(future)
    assert (engine.calls["token"], engine.requests["token"]) == (1, 3)


def test_generators_of_one_owner_run_in_order(held):
    engine, _, release = held
    order = []

    def noting(number):
        order.append(number)
        yield [Ask(number)]
        order.append(number)

    futures = [engine.submit("one", noting(number)) for number in range(4)]
    release()
    for future in futures:
        result(future)
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]


def test_one_joins_while_others_run():
    middle, go_on = threading.Event(), threading.Event()

    def waiting():
        first = yield [Ask(1)]
        middle.set()
        assert go_on.wait(TIMEOUT)
        second = yield [Ask(2)]
        return first + second

    model = Doubler()
    with Engine(model) as engine:
        long = engine.submit("long", waiting())
        assert middle.wait(TIMEOUT)
        short = engine.submit("short", doubled(7))
        go_on.set()
        assert (result(long), result(short)) == ([2, 4], [14])


def failing():
    yield [Ask(5)]
    raise KeyError("mine")


def test_an_error_of_a_generator_is_its_own(held):
    engine, _, release = held
    bad, good = engine.submit("bad", failing()), engine.submit("good", doubled(1, 2, 3))
    after = engine.submit("bad", doubled(9))
    release()
    with pytest.raises(KeyError, match="mine"):
        result(bad)
    assert result(good) == [2, 4, 6] and result(after) == [18]


def test_a_request_that_the_model_cannot_answer_ends_its_generator_alone(held):
    engine, model, release = held
    bad = engine.submit("bad", doubled(1, None, 3))
    good = [engine.submit(owner, doubled(1, 2, 3)) for owner in ("a", "b")]
    release()
    with pytest.raises(TypeError):
        result(bad)
    assert [result(future) for future in good] == [[2, 4, 6]] * 2
    assert result(engine.submit("bad", doubled(4))) == [8]


class Broken(Doubler):
    """Fails on everything but 1, and gives too few answers to 0."""

    def encode(self, requests):
        if any(request.value == 0 for request in requests):
            return []
        if any(request.value != 1 for request in requests):
            raise RuntimeError("out of memory")
        return super().encode(requests)


def test_a_failure_of_the_model_ends_what_runs_and_the_engine_goes_on():
    with Engine(Broken()) as engine:
        futures = [engine.submit(owner, doubled(owner)) for owner in (2, 3, 4)]
        for future in futures:
            with pytest.raises(RuntimeError, match="out of memory"):
                result(future)
        with pytest.raises(ValueError, match="the model gave 0 results for 1 requests"):
            result(engine.submit("few", doubled(0)))
        assert result(engine.submit("fine", doubled(1))) == [2]
        assert engine.alive


def test_cancel_drops_an_owner_and_nobody_else(held):
    engine, model, release = held
    other = engine.submit("other", doubled(1, 2))
    futures = [engine.submit("gone", doubled(50)), engine.submit("gone", doubled(60))]
    engine.cancel("gone")
    engine.cancel("never seen")
    release()
    for future in futures:
        with pytest.raises(CancelledError):
            result(future)
    assert result(other) == [2, 4]
    assert not any(value in (50, 60) for batch in model.batches for value in batch)
    assert result(engine.submit("gone", doubled(3))) == [6]  # the name may be used again


def test_cancel_ends_a_generator_that_runs():
    middle, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def endless():
        try:
            while True:
                yield [Ask(1)]
                middle.set()
                assert go_on.wait(TIMEOUT)
        finally:
            closed.set()

    with Engine(Doubler()) as engine:
        future = engine.submit("endless", endless())
        assert middle.wait(TIMEOUT)
        assert not future.cancel()  # it runs: only the engine can end it
        engine.cancel("endless")
        go_on.set()
        with pytest.raises(CancelledError):
            result(future)
        assert closed.is_set()


def test_a_future_cancelled_before_its_turn_is_skipped(held):
    engine, model, release = held
    first, second, third = (engine.submit("one", doubled(value)) for value in (1, 50, 3))
    alone = engine.submit("two", doubled(60))
    assert second.cancel() and alone.cancel()
    release()
    assert (result(first), result(third)) == ([2], [6])
    assert not any(value in (50, 60) for batch in model.batches for value in batch)


def test_stop_finishes_what_was_submitted_and_takes_no_more(held):
    engine, _, release = held
    futures = [engine.submit(owner, doubled(*range(20))) for owner in ("a", "b", "a")]
    threading.Timer(0.05, release).start()
    engine.stop()
    assert [future.result(0) for future in futures] == [[2 * value for value in range(20)]] * 3
    assert not engine.alive
    with pytest.raises(RuntimeError, match="the engine was stopped and takes nothing more: make another one"):
        engine.submit("late", doubled(1))
    engine.cancel("late")
    engine.stop()


def test_run_raises_the_first_error():
    with pytest.raises(KeyError, match="mine"):
        run([doubled(1, 2), failing()], Doubler().encode)
    assert run([doubled(1, 2), doubled()], Doubler().encode) == [[2, 4], []]


# A real model


@pytest.fixture(scope="module")
def speech2text(tiny_model_dir):
    return Speech2Text.from_pretrained(tiny_model_dir, dtype="float64", search="chunk_sync")


def same_updates(first, second):
    assert [(u.text, u.partial) for u in first] == [(u.text, u.partial) for u in second]
    for one, other in zip(first, second, strict=True):
        assert len(one.segments) == len(other.segments)
        for word, expected in zip(one.words, other.words, strict=True):
            assert (word.start, word.end) == pytest.approx((expected.start, expected.end), abs=1e-9)
            assert word.confidence == pytest.approx(expected.confidence, abs=1e-9)


def test_streams_side_by_side_give_what_each_gives_alone(speech2text):
    """Streams of different lengths and cuts, one that joins late, a file beside them."""
    cuts = [9000, 16000, 2500, 48000]
    audio = [tiny.speech(seed + 10, 40000 + 9000 * seed) for seed in range(4)]
    alone = []
    for samples, cut in zip(audio, cuts, strict=True):
        stream = speech2text.stream("greedy" if cut == 2500 else "chunk_sync")
        pieces = [samples[i : i + cut] for i in range(0, len(samples), cut)]
        alone.append([*(stream.push(piece) for piece in pieces), stream.close()])
    parts = speech2text.model, speech2text.tokenizer, speech2text.chunking, speech2text.search_config
    (expected,) = speech2text(audio[0])
    with Engine(speech2text.model) as engine:
        futures = []
        for samples, cut in zip(audio, cuts, strict=True):
            stream = speech2text.stream("greedy" if cut == 2500 else "chunk_sync")
            pieces = [samples[i : i + cut] for i in range(0, len(samples), cut)]
            futures.append([engine.submit(stream, stream.consume(piece)) for piece in pieces])
            futures[-1].append(engine.submit(stream, stream.consume((), final=True)))
            if len(futures) == 2:
                result(futures[0][1])  # the rest joins when these two are on their way
        (transcript,) = result(engine.submit("file", decode(*parts, audio[0])))
        for mine, others in zip(futures, alone, strict=True):
            same_updates([result(future) for future in mine], others)
        assert engine.requests["token"] > 1.5 * engine.calls["token"]
    assert (transcript.text, transcript.token_ids) == (expected.text, expected.token_ids)
    assert len({update.text for updates in alone for update in updates}) > 4


def test_streams_of_all_sizes_share_the_calls_of_the_model(speech2text, monkeypatch):
    """Chunk sizes, contexts and look-aheads differ: the encoder's batches hold all streams of a look-ahead, and the
    decoder's all streams, prefills of all chunk sizes among them."""
    sizes = [(0.16, 0.48, 0.08), (0.32, 0.32, 0.08), (0.64, 1.28, 0.08), (1.28, 0, 0.08), (0.32, 0.96, 0), (0.64, 0, 0)]
    audio = [tiny.speech(seed + 30, 64000) for seed in range(len(sizes))]
    model, encoded, lengths = speech2text.model, [], []
    push, extend = model.acoustic.push, model.decoder.extend

    def watched_push(samples, *arguments):
        encoded.append(len(samples))
        return push(samples, *arguments)

    def watched_extend(requests):
        lengths.append({len(request.frames) for request in requests if request.frames is not None})
        return extend(requests)

    monkeypatch.setattr(model.acoustic, "push", watched_push)
    monkeypatch.setattr(model.decoder, "extend", watched_extend)

    def streamed(which):
        """Push segment by segment, as the server does; return the updates of each stream, and the calls."""
        encoded.clear(), lengths.clear()
        streams = [speech2text.stream(None, *sizes[index]) for index in which]
        updates = [[] for _ in which]
        for begin in range(0, 64000, 5120):
            pieces = [stream.consume(audio[i][begin : begin + 5120]) for i, stream in zip(which, streams, strict=True)]
            for each, update in zip(updates, run(pieces, model_calls(model)), strict=True):
                each.append(update)
        rest = run([stream.consume((), final=True) for stream in streams], model_calls(model))
        for each, update in zip(updates, rest, strict=True):
            each.append(update)
        return updates, (len(encoded), len(lengths))

    alone = [streamed([index]) for index in range(len(sizes))]
    together, (encoder_calls, decoder_calls) = streamed(range(len(sizes)))
    for found, ((expected,), _) in zip(together, alone, strict=True):
        same_updates(found, expected)
    assert len({said for ((updates,), _) in alone if (said := " ".join(update.text for update in updates))}) == 6
    longest = max(calls for _, (calls, _) in alone)
    assert encoder_calls == 2 * longest and set(encoded) == {4, 2}  # a call for each look-ahead
    assert {4, 8, 16, 32} in lengths
    assert decoder_calls < 0.5 * sum(calls for _, (_, calls) in alone)


def test_a_cancelled_stream_changes_no_other(speech2text):
    samples = tiny.speech(3, 60000)
    stream = speech2text.stream()
    expected = [stream.push(samples), stream.close()]
    with Engine(speech2text.model) as engine:
        kept, gone = speech2text.stream(), speech2text.stream()
        futures = [engine.submit(kept, kept.consume(samples))]
        engine.submit(gone, gone.consume(np.flip(samples).copy()))
        engine.cancel(gone)
        futures.append(engine.submit(kept, kept.consume((), final=True)))
        same_updates([result(future) for future in futures], expected)


def test_a_file_in_short_blocks_is_the_same_file(speech2text):
    """So that live streams never wait for more than a block of a file."""
    samples = tiny.speech(5, 100000)
    parts = speech2text.model, speech2text.tokenizer, speech2text.chunking, speech2text.search_config, samples
    respond, longest = model_calls(speech2text.model), []

    def watched(requests):
        longest.extend(len(request.samples) for request in requests if request.kind == "encode")
        return respond(requests)

    (blocks,) = run([decode(*parts, 1)], watched)
    encoder = speech2text.model.acoustic.encoder.config
    assert max(longest) == timeline.samples_for_frames(encoder.segment + encoder.right_context, 16000)
    (expected,) = speech2text(samples)
    assert (blocks[0].text, blocks[0].token_ids) == (expected.text, expected.token_ids) and expected.text
