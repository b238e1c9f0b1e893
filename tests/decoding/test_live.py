"""Live streams: any cut, any company, settling by age, endpoints, and no growth."""

import math
import random

import numpy as np
import pytest
import tiny
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, SearchConfig, StreamConfig
from espnet_speechllm_xl.decoding import engine
from espnet_speechllm_xl.decoding.searches import ChunkSync, Hypothesis
from espnet_speechllm_xl.decoding.streams import Stream, transcribe
from espnet_speechllm_xl.decoding.token_times import TokenTimes, hypothesis_spans
from espnet_speechllm_xl.settings import ConfigError

OFF = StreamConfig(settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=math.inf)
CHUNKING = ChunkingConfig(16, 2)
MARGIN = 1e-3  # top-2 difference of log-probabilities above which single precision decides alike


@pytest.fixture(scope="module", params=["float64", "float32"])
def model(request, tiny_model_dir):
    """(model, tokenizer, dtype name)"""
    from espnet_speechllm_xl.trained_model import load_model

    return (*load_model(tiny_model_dir, dtype=request.param)[:2], request.param)


def open_stream(model, method, chunking=CHUNKING, config=OFF):
    return Stream(*model[:2], chunking, SearchConfig(method, beam_size=3, max_tokens_per_chunk=8), config)


def pieces(audio, sizes):
    """``audio`` cut into pieces of ``sizes``, over and over."""
    begin, cut = 0, []
    for size in sizes * (1 + len(audio) // max(1, sum(sizes))):
        cut.append(audio[begin : begin + size])
        begin += size
    return [*cut, audio[begin:]]


def side_by_side(model, streams, parts, order):
    """Push all parts of all streams through one engine's rounds, joining in ``order``; the updates of each stream.

    A stream's next part joins as soon as its last one is done, while the others are in the midst of theirs.
    """
    margins = []

    def answer(requests):
        results = engine.model_calls(model[0])(requests)
        if requests[0].kind != "encode":
            for result in results:
                first, second = result.log_probs.topk(2).values.tolist()
                margins.append(first - second)
        return results

    rounds, updates = engine.Rounds(answer), [[] for _ in streams]
    waiting = [[stream.consume(part) for part in cut] for stream, cut in zip(streams, parts, strict=True)]
    for queue, stream in zip(waiting, streams, strict=True):
        queue.append(stream.consume((), final=True))
    idle = set(range(len(streams)))
    for index in order:
        if index in idle:
            rounds.add(index, waiting[index].pop(0))
            idle.discard(index)
        for done, update, error in rounds.step():
            assert error is None
            updates[done].append(update)
            idle.add(done)
    for index in range(len(streams)):  # the rest, one stream after the other
        while len(rounds):
            for done, update, error in rounds.step():
                assert error is None
                updates[done].append(update)
        while waiting[index]:
            updates[index].append(engine.run([waiting[index].pop(0)], answer)[0])
    return updates, min(margins, default=math.inf)


def words(updates):
    return [(word.text, round(word.start, 6), round(word.end, 6)) for update in updates for word in update.words]


def segments(updates):
    return [words([segment]) for update in updates for segment in update.segments]


SIZES = st.lists(st.sampled_from([0, 1, 159, 161, 640, 5119, 5120, 16000, 40000]), min_size=1, max_size=12)


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    seed=st.integers(0, 5),
    cut=SIZES,
    others=st.lists(SIZES, max_size=3),
    order=st.lists(st.integers(0, 3), max_size=60),
    method=st.sampled_from(["greedy", "chunk_sync"]),
    endpoints=st.booleans(),
)
def test_neither_cut_nor_company_matters(model, seed, cut, others, order, method, endpoints):
    config = StreamConfig(settle_seconds=1.3, endpoint_silence=0.3, endpoint_length=2.0) if endpoints else OFF
    audio = [tiny.speech(100 * index + seed, 30000 + 7001 * index) for index in range(1 + len(others))]
    streams = [open_stream(model, method, config=config) for _ in audio]
    parts = [pieces(one, sizes) for one, sizes in zip(audio, [cut, *others], strict=True)]
    order = [index for index in order if index < len(streams)]
    together, margin = side_by_side(model, streams, parts, order)
    for index, one in enumerate(audio):
        alone, margin_alone = side_by_side(model, [open_stream(model, method, config=config)], [[one]], [])
        if model[2] == "float64":
            assert words(together[index]) == words(alone[0])
            assert segments(together[index]) == segments(alone[0])
            assert sum(segments(together[index]), []) == (words(together[index]) if endpoints else [])
        elif min(margin, margin_alone) > MARGIN and method == "greedy" and not endpoints:
            # times, and the endpoints that depend on them, come from another search with ties of its own
            assert [word for word, *_ in words(together[index])] == [word for word, *_ in words(alone[0])]


def test_single_precision_margins_are_mostly_wide(model):
    """Otherwise the property would be empty in float32."""
    wide = 0
    for seed in range(6):
        stream = open_stream(model, "greedy")
        wide += side_by_side(model, [stream], [[tiny.speech(seed, 30000)]], [])[1] > MARGIN
    assert wide >= 3


class Scripted(ChunkSync):
    """A search whose hypotheses after each chunk are given: lists of [(token, chunk), ...], best first."""

    def __init__(self, script):
        self.script, self.num_chunks, self.dropped, self.beam = script, 0, 0, [Hypothesis()]
        self.dead = []  # (outputs of a hypothesis that was dropped, chunks by then)

    def advance(self, frames, last=False):
        yield from ()
        self.outputs = [outputs for outputs in self.script[self.num_chunks] if not self.continues_a_dead_one(outputs)]
        self.beam = []
        for outputs in self.outputs:
            tokens, chunks = zip(*outputs[self.dropped :], strict=True) if outputs[self.dropped :] else ((), ())
            self.beam.append(Hypothesis(tokens, chunks, (-1.0,) * len(tokens)))
        self.num_chunks += 1

    def continues_a_dead_one(self, outputs):
        return any(
            outputs[: len(dead)] == dead and all(chunk >= died for _, chunk in outputs[len(dead) :])
            for dead, died in self.dead
        )

    def commit(self, count):
        before = self.beam
        super().commit(count)
        self.bury(before)

    def commit_until(self, end):
        before = self.beam
        count = super().commit_until(end)
        self.bury(before)
        return count

    def bury(self, before):
        alive = {id(hypothesis) for hypothesis in self.beam}
        pairs = list(zip(before, self.outputs, strict=True))
        self.outputs = [outputs for hypothesis, outputs in pairs if id(hypothesis) in alive]
        self.dead += [(outputs, self.num_chunks) for hypothesis, outputs in pairs if id(hypothesis) not in alive]

    def forget(self, count):
        super().forget(count)
        self.dropped += count

    def rest(self):
        pass


def scripted(model, script, config, unit="token", ctc=False):
    """A stream that hears silence and whose search follows ``script``; returns its updates, one a chunk of 0.64 s."""
    stream = open_stream(model, "chunk_sync", ChunkingConfig(16, 2, unit=unit), config)
    stream.search = Scripted(script)
    if not ctc:
        stream._times._ctc = None
    rate = model[0].acoustic.config.sample_rate
    look_ahead = timeline.samples_for_frames(2, rate)
    block = timeline.samples_of_frames(16, rate)
    updates = [stream.push(np.zeros(look_ahead, np.float32))]
    updates += [stream.push(np.zeros(block, np.float32)) for _ in script]
    assert updates[0].text == "" and stream.search.num_chunks == len(script)
    return updates[1:]


@pytest.fixture
def piece(model):
    return {name: model[1].pieces.index(name) for name in ("▁the", "▁on", "at", "▁a")}


def test_disputed_text_is_settled_when_it_is_old(model, piece):
    the, on, a = piece["▁the"], piece["▁on"], piece["▁a"]
    best, other = [(the, 0), (on, 1)], [(a, 0), (on, 1)]
    script = [[best[:1], other[:1]], *([[best, other]] * 4)]
    config = StreamConfig(settle_seconds=1.28, endpoint_silence=math.inf, endpoint_length=math.inf)
    updates = scripted(model, script, config)
    # "the" is of chunk 0, which is two chunks old after chunk 2; then the rival is gone and nothing lengthens "the"
    assert [update.text for update in updates] == ["", "", "the", "on", ""]  # nothing ever ended "on"
    assert [update.partial for update in updates] == ["the", "the on", "on", "", ""]
    never = scripted(model, script, OFF)
    assert all(update.text == "" for update in never) and never[-1].partial == "the on"


def test_a_word_over_a_border_stays_whole(model, piece):
    the, on, at = piece["▁the"], piece["▁on"], piece["at"]
    config = StreamConfig(settle_seconds=1.28, endpoint_silence=math.inf, endpoint_length=math.inf)
    word = [(on, 0), (at, 1)]
    for rivals in ([], [word[:1]], [[*word[:1], (the, 1)]]):  # the beam may dispute its second half
        updates = scripted(model, [[word[:1]], *([[word, *rivals]] * 4)], config)
        assert [update.text for update in updates] == ["", "", "", "onat", ""]
    # Or the best has no second half, and a rival has: "on" waits until the rival is too old.
    updates = scripted(model, [[word[:1]], *([[word[:1], word]] * 4)], config)
    assert [update.text for update in updates] == ["", "", "", "on", ""]


def test_a_word_that_goes_on_and_on_is_cut(model, piece):
    endless = [(piece["▁the"], 0), *((piece["at"], chunk) for chunk in range(1, 8))]
    config = StreamConfig(settle_seconds=1.28, endpoint_silence=math.inf, endpoint_length=math.inf)
    updates = scripted(model, [[endless[: chunk + 1]] for chunk in range(8)], config)
    # When its first chunk is four chunks old, what is two chunks old is cut off.
    assert [update.text for update in updates] == ["", "", "", "", "theatat", "", "", "atatat"]


def test_that_nothing_was_said_is_settled_when_it_is_old(model, piece):
    the, on = piece["▁the"], piece["▁on"]
    none, one = [], [(the, 0)]
    script = [[none, one]] * 4 + [[[*one, (on, 4)], [*none, (on, 4)]]] * 3
    config = StreamConfig(settle_seconds=1.28, endpoint_silence=math.inf, endpoint_length=math.inf)
    updates = scripted(model, script, config)
    # The rival comes to the front too late: it is not there any more.
    assert [update.partial for update in updates] == ["", "", "", "", "on", "on", ""]
    assert [update.text for update in updates][-1] == "on"
    late = scripted(model, script, OFF)
    assert [update.partial for update in late][-1] == "the on"


def test_a_rival_that_begins_earlier_may_come_to_the_front(model, piece):
    the, on = piece["▁the"], piece["▁on"]
    first, second = [(on, 6)], [(the, 1), (on, 6)]
    script = [[[]]] + [[[], second[:1]]] * 5 + [[first, second]] * 2 + [[second]]
    updates = scripted(model, script, OFF, ctc=True)  # its times are asked for after those of the other were
    assert [update.text for update in updates][-1] == "the" and updates[-1].words[0].start < 1.28


def test_silence_after_text_ends_a_segment(model, piece):
    the, on = piece["▁the"], piece["▁on"]
    hypothesis = [(the, 0), (on, 1), (the, 5)]
    script = [[[output for output in hypothesis if output[1] <= chunk]] for chunk in range(8)]
    config = StreamConfig(settle_seconds=math.inf, endpoint_silence=1.28, endpoint_length=math.inf)
    updates = scripted(model, script, config)
    ended = [(index, segment.index, segment.text) for index, u in enumerate(updates) for segment in u.segments]
    assert ended == [(3, 0, "the on"), (7, 1, "the")]
    assert updates[3].segments[0].timestamps == (0.0, 0.64) and updates[3].segments[0].end == 1.28
    assert (updates[4].segment.index, updates[4].segment.words, updates[4].partial) == (1, (), "")
    assert " ".join(u.text for u in updates if u.text) == "the on the"


def test_limits_are_kept_wherever_in_the_stream_they_fall(model, piece):
    """As floats, 0.64 s of silence are less than 0.64 s after every other chunk, and 4.48 / 0.64 is more than 7."""
    the, a = piece["▁the"], piece["▁a"]
    silence = StreamConfig(settle_seconds=math.inf, endpoint_silence=0.64, endpoint_length=math.inf)
    length = StreamConfig(settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=1.28)
    for config in (silence, length):
        for chunk in range(12):
            script = [[[(the, chunk)][: index >= chunk]] for index in range(chunk + 3)]
            updates = scripted(model, script, config, "word")
            assert [index for index, update in enumerate(updates) if update.segments] == [chunk + 1]
    age = StreamConfig(settle_seconds=4.48, endpoint_silence=math.inf, endpoint_length=math.inf)
    updates = scripted(model, [[[(the, 0)], [(a, 0)]]] * 9, age, "word")
    assert [update.text for update in updates].index("the") == 7


def test_tokens_of_a_chunk_have_their_times_together(model, piece, monkeypatch):
    """A chunk's last word is settled later.  CTC has no room for all, so they share it; for the last alone it has."""
    the, on = piece["▁the"], piece["▁on"]
    outputs = [*[(the, 0)] * 9, *[(the, 1)] * 9, (on, 3)]
    script = [[[output for output in outputs if output[1] <= chunk]] for chunk in range(5)]
    heard, add = [], TokenTimes.add
    monkeypatch.setattr(TokenTimes, "add", lambda times, frames: (heard.append(frames), add(times, frames)))
    updates = scripted(model, script, OFF, ctc=True)
    assert [update.text for update in updates] == [" ".join(["the"] * count) for count in (8, 9, 0, 1, 0)]
    times = TokenTimes(model[0].ctc, CHUNKING)
    for frames in heard:
        add(times, frames)
    spans = hypothesis_spans(times, *zip(*outputs, strict=True))
    found = [time for update in updates for word in update.words for time in (word.start, word.end)]
    assert found == pytest.approx([timeline.frame_start_seconds(frame) for span in spans[:18] for frame in span])


def test_a_long_segment_ends_at_a_whole_word(model, piece):
    the, at = piece["▁the"], piece["at"]
    hypothesis = [(the, 0), (the, 1), (the, 2), (at, 3), (the, 4)]
    script = [[[output for output in hypothesis if output[1] <= chunk]] for chunk in range(5)]
    config = StreamConfig(settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=1.92)
    updates = scripted(model, script, config)
    found = [(index, segment.text) for index, u in enumerate(updates) for segment in u.segments]
    # at 1.92 s the third word may still grow, and does
    assert found[0] == (2, "the the")
    assert " ".join(u.text for u in updates if u.text).split() == ["the", "the", "theat"]


def test_a_long_segment_ends_before_words_that_hypotheses_dispute(model, piece):
    the, a, on = piece["▁the"], piece["▁a"], piece["▁on"]
    right, wrong = [(the, 0), (a, 1), (on, 2)], [(the, 0), (on, 1)]
    script = [[[(the, 0)]], [wrong, right[:2]], [right, wrong]]
    config = StreamConfig(settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=1.28)
    updates = scripted(model, script, config, "word")
    found = [(index, segment.text) for index, u in enumerate(updates) for segment in u.segments]
    assert found == [(1, "the"), (2, "a on")] and updates[1].partial == "on"


def test_no_text_makes_no_segments(model):
    config = StreamConfig(endpoint_silence=0.5, endpoint_length=1.0)
    updates = scripted(model, [[[]]] * 6, config)
    assert all((u.segments, u.segment.index) == ((), 0) for u in updates)


def test_segments_hold_all_text_and_close_ends_the_last(model):
    for method in ("greedy", "chunk_sync"):
        stream = open_stream(model, method, config=StreamConfig(endpoint_silence=0.4, endpoint_length=2.5))
        audio = tiny.speech(77, 120000)
        updates = [*(stream.push(part) for part in np.array_split(audio, 50)), stream.close()]
        found = [segment for update in updates for segment in update.segments]
        assert len(found) > 2 and [segment.index for segment in found] == list(range(len(found)))
        assert " ".join(s.text for s in found) == " ".join(u.text for u in updates if u.text)
        assert updates[-1].segment.words == () and updates[-1].partial == ""
        for segment in found:
            assert len(segment.tokens) == len(segment.timestamps) >= len(segment.words) > 0
            assert segment.start <= segment.timestamps[0] and segment.end - segment.start < 2.5 + 2 * 0.64
            assert 0 < segment.confidence <= 1


def test_settings_are_checked(tiny_model_dir):
    from espnet_speechllm_xl import Speech2Text

    speech2text = Speech2Text.from_pretrained(tiny_model_dir)
    with pytest.raises(ConfigError, match="stream settle_seconds must be positive"):
        speech2text.stream(settle_seconds=0)
    with pytest.raises(ConfigError, match="stream_conf has no setting 'endpoint_silenc'; did you mean"):
        speech2text.stream(endpoint_silenc=1)
    stream = speech2text.stream(chunk_size=0.32, context=0.64)
    assert stream.chunking == ChunkingConfig(8, 2)
    assert speech2text.stream().chunking == ChunkingConfig(16, 2)


@pytest.mark.parametrize("method", ["greedy", "chunk_sync"])
def test_a_stream_holds_no_more_after_minutes_than_after_seconds(model, method):
    def held(stream):
        best = stream.search.best()
        rows = [h._past for h in stream.search.beam]
        return [
            len(best.tokens),
            stream._times.frames if stream._times._ctc is None else sum(map(len, stream._times._chunks)),
            max(row.length for row in rows),
            max(row.slot.store.width for row in rows),
            stream._audio._count,
            len(stream._segment.words),
        ]

    stream = open_stream(model, method, config=StreamConfig(settle_seconds=3.0, endpoint_length=5.0))
    rng, highest = random.Random(method), []
    for _ in range(8):
        most = [0] * 6
        for _ in range(12):
            stream.push(tiny.speech(rng.randrange(10**6), 16000))
            most = list(map(max, most, held(stream)))
        highest.append(most)
    later = [max(column) for column in zip(*highest[2:], strict=True)]
    early = [max(column) for column in zip(*highest[:2], strict=True)]
    for name, first, then in zip(("tokens", "frames", "slots", "bytes", "samples", "words"), early, later, strict=True):
        assert then <= 1.5 * first + 16, name


def test_the_same_words_after_many_minutes(model):
    """A loop whose length is a whole number of chunks gives, once the window is past, the same words each time."""
    loop = tiny.speech(5, 16 * 640 * 8)  # 8 chunks; 2 layers see 2 x 2 chunks back, 2 encoder layers 2 segments
    stream, rounds = open_stream(model, "greedy"), []
    stream.push(loop[:0])
    for _ in range(30):
        update = stream.push(loop)
        rounds.append([(word.text, word.start) for word in update.words])
    length = len(loop) / 16000

    def relative(number):
        return [(text, round(start - number * length, 6)) for text, start in rounds[number]]

    assert all(relative(number) == relative(2) for number in range(3, 30)) and len(rounds[2]) > 2


def test_transcribe_has_no_live_rules(model):
    audio = tiny.speech(3, 60000)
    (whole,) = transcribe(*model[:2], CHUNKING, SearchConfig("greedy", max_tokens_per_chunk=8), [audio])[0]
    updates, _ = side_by_side(model, [open_stream(model, "greedy")], [[audio]], [])
    assert " ".join(update.text for update in updates[0] if update.text) == whole.text
