"""Offline == stream, batch == alone, settled text, causality, latency, word times; random weights, float64."""

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import tiny
import torch
from tiny import cuts, play, said

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, FeatureConfig, SearchConfig, SpecAugmentConfig, StreamConfig
from espnet_speechllm_xl.corpus.ctm import joined_text
from espnet_speechllm_xl.decoding.audio_chunks import AudioChunks
from espnet_speechllm_xl.decoding.engine import model_calls, run
from espnet_speechllm_xl.decoding.joint_ctc import JointModel
from espnet_speechllm_xl.decoding.output_formats import beside
from espnet_speechllm_xl.decoding.results import Update
from espnet_speechllm_xl.decoding.searches import ChunkSync, Hypothesis
from espnet_speechllm_xl.decoding.streams import Stream, transcribe
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.tokenization import normalise

RATE = 16000
ONE_FRAME = timeline.samples_for_frames(1, RATE)
# The encoder's segment is 8 frames.
OFF = StreamConfig(settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=math.inf)
CHUNKINGS = [(16, 2), (4, 3), (8, 0), (32, 1), (16, None), (None, None), (4, 3, 0, "word")]


@pytest.fixture(scope="module")
def tiny_model(tiny_model_dir):
    """(model, tokenizer) in float64."""
    from espnet_speechllm_xl.trained_model import load_model

    return load_model(tiny_model_dir, dtype="float64")[:2]


def search(method, beam=4, cap=8, nbest=1):
    return SearchConfig(method, beam_size=beam, nbest=nbest, max_tokens_per_chunk=cap)


def offline(tiny_model, chunking, config, *recordings):
    return transcribe(*tiny_model, ChunkingConfig(*chunking), config, recordings)


def live(tiny_model, chunking, config, stream_config=OFF):
    return Stream(*tiny_model, ChunkingConfig(*chunking), config, stream_config)


def same(first, second):
    assert [t.token_ids for t in first] == [t.token_ids for t in second]
    assert [t.text for t in first] == [t.text for t in second]
    for one, other in zip(first, second, strict=True):
        same_words(one.words, other.words)
        assert one.score == pytest.approx(other.score, abs=1e-9)
        assert one.capped == other.capped


def same_words(first, second, times=True):
    """``times``: not where a beam may settle a word before the others of its chunk, which decide its times as well."""
    for one, other in zip(first, second, strict=True):
        assert one.text == other.text
        assert one.confidence == pytest.approx(other.confidence, abs=1e-9)
        if times:
            assert (one.start, one.end) == pytest.approx((other.start, other.end), abs=1e-9)


@pytest.mark.parametrize("method", ["greedy", "chunk_sync"])
@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_stream_gives_what_offline_gives(tiny_model, method, chunking):
    rng = random.Random(f"{method} {chunking}")
    lengths = [rng.randint(20000, 56000), 16000 * 2 + 240, ONE_FRAME + 10240 * 2 - 1]
    config = search(method, nbest=3)
    texts = set()
    for seed, length in enumerate(lengths):
        audio = tiny.speech(seed + 50, length)
        expected = offline(tiny_model, chunking, config, audio)[0]
        stream = live(tiny_model, chunking, config)
        updates = play(stream, cuts(audio, rng, 9000))
        assert said(updates) == expected[0].text
        same_words([word for update in updates for word in update.words], expected[0].words, method == "greedy")
        assert (updates[-1].partial, stream.capped) == ("", expected[0].capped)
        texts.add(expected[0].text)
    assert len(texts) > 1  # the decoder listens


@pytest.fixture(scope="module")
def reduced_model(tmp_path_factory, tiny_tokens):
    """(model, tokenizer) in float64, whose decoder gets one input for four frames."""
    from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLTask
    from espnet_speechllm_xl.trained_model import load_model

    extra = [*tiny.conf("decoder_conf", tiny.DECODER), *tiny.conf("loss_conf", ["ctc_weight=0.1"])]
    extra += tiny.conf("projection_conf", ["reduction=4"])
    directory = tmp_path_factory.mktemp("reduced") / "m"
    weights = "valid.acc_text.ave.pth"
    tiny.write_model(directory, SpeechLLMXLTask, tiny_tokens, weights, extra, seed=3, change=tiny.talkative)
    return load_model(directory, dtype="float64")[:2]


@pytest.mark.parametrize("method, ctc_weight", [("greedy", 0.0), ("chunk_sync", 0.0), ("greedy", 0.3)])
@pytest.mark.parametrize("chunking", [(16, 2), (2, 4), (24, 0), (None, None), (8, 3, 0, "word")])
def test_stacked_frames_in_streams_files_and_batches(reduced_model, method, ctc_weight, chunking):
    """At chunk sizes other than the model's 32; chunks of 2 frames make an input that lacks two."""
    model, tokenizer = reduced_model
    chosen = (JointModel(model, ctc_weight) if ctc_weight else model), tokenizer
    rng = random.Random(f"{method} {chunking}")
    recordings = [tiny.speech(seed + 50, length) for seed, length in enumerate([20000, ONE_FRAME, 45000])]
    together = offline(chosen, chunking, search(method, nbest=3), *recordings)
    for audio, expected in zip(recordings, together, strict=True):
        same(offline(chosen, chunking, search(method, nbest=3), audio)[0], expected)
        updates = play(live(chosen, chunking, search(method)), cuts(audio, rng, 9000))
        assert said(updates) == expected[0].text
        same_words([word for update in updates for word in update.words], expected[0].words, method == "greedy")
    assert together[0][0].text != together[2][0].text  # the decoder listens


@pytest.fixture(scope="module")
def unspaced_model(tmp_path_factory):
    """(model, tokenizer) of Chinese characters, and a mark of space, in float64."""
    from espnet_speechllm_xl.bin import cli
    from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLTask
    from espnet_speechllm_xl.trained_model import load_model

    out = tmp_path_factory.mktemp("unspaced")
    (out / "text").write_text("u 今天天气很好我们去公园散步吧 朋友打电话给小明说明早九点见面", "utf-8")
    assert cli.main(["tokens", "--text", str(out / "text"), "--out", str(out), "--type", "char"]) == 0
    extra = [*tiny.conf("decoder_conf", tiny.DECODER), *tiny.conf("loss_conf", ["ctc_weight=0.1"])]
    tiny.write_model(out / "m", SpeechLLMXLTask, out, "valid.acc_text.ave.pth", extra, seed=3, change=tiny.talkative)
    return load_model(out / "m", dtype="float64")[:2]


@pytest.mark.parametrize("method", ["greedy", "chunk_sync"])
@pytest.mark.parametrize("chunking", [(16, 2), (4, 3), (4, 3, 0, "word")])
def test_text_without_spaces_is_settled_as_it_comes(unspaced_model, method, chunking):
    """Letter by letter, not when all is heard; the words joined are the text of the file, spaces and all."""
    audio = tiny.speech(3, 90000)
    expected = offline(unspaced_model, chunking, search(method), audio)[0][0]
    assert len(expected.words) > 8 and " " in expected.text
    assert joined_text(expected.words) == expected.text
    updates = play(live(unspaced_model, chunking, search(method)), list(np.split(audio, 10)))
    words = [word for update in updates for word in update.words]
    same_words(words, expected.words, method == "greedy")
    assert joined_text(words) == expected.text
    assert sum(bool(update.words) for update in updates) > 3
    if method == "greedy":
        for count, update in enumerate(updates, 1):  # what is settled and what may change are one text, too
            settled = joined_text([word for update in updates[:count] for word in update.words])
            tail = beside(settled, update.partial, update.joined)
            assert expected.text.startswith(settled + tail)


@pytest.mark.parametrize("ahead, tail", [(0, 0), (2, 0), (0, 3), (2, 3)])
@pytest.mark.parametrize("chunk", [4, 16])
def test_the_last_chunk_is_known_with_look_ahead_or_a_tail_and_however_the_audio_comes(ahead, tail, chunk):
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "segment": 8, "left_context": 8, "right_context": ahead}
    features = FeatureConfig(tail_frames=tail)
    acoustic = Acoustic(features, SpecAugmentConfig(), encoder_conf=shape).double().eval()
    rng = random.Random(ahead)
    for frames in (1, 7, 8, 9, 10, 11, 16, 18, 32, 33, 34):
        for more in (-1, 0, 1):
            audio = torch.zeros(timeline.samples_for_frames(frames, RATE) + more, dtype=torch.float64)
            found = []
            for pieces in ([audio], list(audio.split(100)), cuts(audio, rng, 9000)):
                chunks = AudioChunks(acoustic, ChunkingConfig(chunk, 2))
                takes = [chunks.take(torch.as_tensor(piece), final=False) for piece in pieces]
                takes.append(chunks.take(audio[:0], final=True))
                taken = [each for take in takes for each in run([take], acoustic.encode)[0]]
                found.append([last for _, last in taken])
                heard = timeline.frames(len(audio), RATE)
                assert sum(len(frames) for frames, _ in taken) == (heard + tail if heard else 0)
                assert chunks.frames == heard
            assert found[0] == found[1] == found[2]
            assert found[0] == [False] * (len(found[0]) - 1) + [ahead + tail > 0] * bool(found[0])


@pytest.mark.parametrize("method", ["greedy", "chunk_sync"])
@pytest.mark.parametrize("length", [0, 1, 399, ONE_FRAME - 1])
def test_audio_shorter_than_a_frame_is_empty_text(tiny_model, method, length):
    audio = tiny.speech(1, length)
    for chunk in (16, None):
        (transcript,) = offline(tiny_model, (chunk, 2), search(method), audio)[0]
        assert (transcript.text, transcript.score, transcript.tokens, transcript.words) == ("", 0.0, (), ())
        assert play(live(tiny_model, (chunk, 2), search(method)), [audio]) == [Update()] * 2


def test_one_frame_is_decoded(tiny_model):
    for method in ("greedy", "chunk_sync", "alsd"):
        (transcript,) = offline(tiny_model, (16, 2), search(method), tiny.speech(1, ONE_FRAME))[0]
        assert transcript.score < 0  # `$` at least was chosen


@pytest.mark.parametrize("method", ["greedy", "chunk_sync", "alsd"])
@pytest.mark.parametrize("chunking", [(16, 2), (4, 3), (None, 0)])
def test_each_of_a_batch_as_if_alone(tiny_model, method, chunking):
    recordings = [tiny.speech(seed, n) for seed, n in enumerate([30000, 41234, ONE_FRAME - 1, 16000, 0, 52001])]
    together = offline(tiny_model, chunking, search(method, nbest=4), *recordings)
    for audio, expected in zip(recordings, together, strict=True):
        same(offline(tiny_model, chunking, search(method, nbest=4), audio)[0], expected)
    assert transcribe(*tiny_model, ChunkingConfig(*chunking), search(method), []) == []


def test_greedy_is_a_beam_of_one(tiny_model):
    audio = tiny.speech(7, 64000)
    greedy = offline(tiny_model, (16, 2), search("greedy", beam=4), audio)[0]
    for method in ("chunk_sync", "alsd"):
        same(offline(tiny_model, (16, 2), search(method, beam=1), audio)[0], greedy)
    (wide,) = offline(tiny_model, (16, 2), search("chunk_sync", beam=8), audio)[0]
    assert wide.score > greedy[0].score and wide.text != greedy[0].text


@pytest.mark.parametrize("method", ["greedy", "chunk_sync"])
def test_settled_text_is_never_taken_back(tiny_model, method):
    partials = 0
    for seed in range(6):
        audio = tiny.speech(seed + 20, 60000)
        updates = play(live(tiny_model, (8, 3), search(method, beam=5)), np.array_split(audio, 23))
        (final,) = offline(tiny_model, (8, 3), search(method, beam=5), audio)[0]
        for count in range(len(updates) + 1):
            text = said(updates[:count])
            assert f"{final.text} ".startswith(f"{text} ".lstrip()), (text, final.text)
        for count, update in enumerate(updates, 1):
            settled = [word for each in updates[:count] for word in each.words]
            same_words(settled, final.words[: len(settled)], method == "greedy")
            assert " ".join(word.text for word in update.words) == update.text
        assert said(updates) == final.text
        partials += sum(update.partial != "" for update in updates)
    assert partials > 10


def hypotheses(*texts):
    return [Hypothesis(t, (0,) * len(t), (-1.0,) * len(t)) for t in texts]


@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_word_that_any_hypothesis_may_lengthen_is_not_settled(tiny_model, unit):
    tokenizer = tiny_model[1]
    the, on, at, a = (tokenizer.pieces.index(piece) for piece in ("▁the", "▁on", "at", "▁a"))
    stream = Stream(*tiny_model, ChunkingConfig(16, 2, unit=unit), search("chunk_sync"), OFF)
    stream._times.add(torch.zeros(16, 16, dtype=torch.float64))

    def update(*texts):
        stream.search.beam = hypotheses(*texts)
        stream._settle_shared()
        return stream._update()

    assert update((the, on), (the, at)) == Update(partial="the on")  # "the on", "theat"
    assert update((the,), (the, on)).text == ("the" if unit == "word" else "")  # a chunk ends between words
    both = update((the, on), (the, a))  # another word in both: "the" is over
    assert (both.text, both.partial) == ("the", "on")


@pytest.mark.parametrize("method", ["greedy", "chunk_sync"])
@pytest.mark.parametrize("chunk", [4, 16])
def test_later_audio_changes_nothing_that_was_settled(tiny_model, method, chunk):
    rng = random.Random(method)
    audio, changed = tiny.speech(3, 40000), 0
    whole = offline(tiny_model, (chunk, 2), search(method), audio)[0][0]
    for _ in range(2):
        cut = rng.randint(12000, 36000)
        stream = live(tiny_model, (chunk, 2), search(method))
        first = [stream.push(piece) for piece in cuts(audio[:cut], rng, 9000)]
        settled = [word for update in first for word in update.words]
        partial = first[-1].partial
        for tail in (audio[cut:], -audio[cut:] * 0.3, np.zeros(9000, np.float32), audio[:0]):
            other = offline(tiny_model, (chunk, 2), search(method), np.concatenate([audio[:cut], tail]))[0][0]
            same_words(other.words[: len(settled)], settled, method == "greedy")
            if method == "greedy":  # a beam may still change its mind about what is not settled
                assert other.text.startswith(f"{said(first)} {partial}".strip())
            changed += other.token_ids != whole.token_ids
    assert changed > 2


@pytest.mark.parametrize("chunk", [4, 8, 16, 32])
def test_a_chunk_is_decoded_within_the_promised_latency(tiny_model, chunk):
    model, tokenizer = tiny_model
    chunking = ChunkingConfig(chunk, 2)
    latency = timeline.latency_seconds(model.acoustic.encoder.config, chunking)
    audio = tiny.speech(9, 80000)
    stream = Stream(model, tokenizer, chunking, search("greedy"), OFF)
    tail = timeline.samples_for_frames(1, RATE) - 640  # the last feature frame's window reaches past its frame's end
    for begin in range(0, len(audio), 320):
        stream.push(audio[begin : begin + 320])
        heard = (begin + 320 - tail) / RATE
        started = max(0, math.floor((heard - latency) / timeline.chunk_seconds(chunk) + 1e-9) + 1)
        assert started <= stream.search.num_chunks <= max(0, heard) / timeline.chunk_seconds(chunk) + 1e-9
    assert started > 2


@pytest.mark.parametrize("method", ["greedy", "chunk_sync"])
def test_the_text_of_an_open_chunk_is_partial_only(tiny_model, method):
    """It is what the model writes if the chunk ends there, however the audio was cut; nothing else changes."""
    rng = random.Random(method)
    audio = tiny.speech(61, 60000)
    config = StreamConfig(endpoint_silence=0.6, partial_seconds=0.32)
    model = tiny_model[0]
    plain = live(tiny_model, (32, 2), search(method), dataclasses.replace(config, partial_seconds=math.inf))
    early = live(tiny_model, (32, 2), search(method), config)
    earlier = 0
    for piece in cuts(audio, rng, 9000):
        before, now = plain.push(piece), early.push(piece)
        assert (before.text, before.words, before.segments) == (now.text, now.words, now.segments)
        frames = early._audio.open_chunk(8)
        assert len(frames) % 8 == 0 and len(frames) < 32
        again = live(tiny_model, (32, 2), search(method), config)  # has the audio so far in one piece
        total = plain._audio.total
        assert again.push(audio[:total]).partial == now.partial
        if len(frames):
            best = plain.search.beam[0]
            ended = ChunkSync(search("greedy", 1), best._past, model.decoder.eoc)
            ended.beam, ended.num_chunks = [best], plain.search.num_chunks
            run([ended.advance(model.projection(frames))], model_calls(model))
            assert now.partial == normalise(tiny_model[1].decode(ended.best().tokens))
            earlier += now.partial != before.partial
        else:
            assert now.partial == before.partial
    assert earlier > 3
    before, now = plain.close(), early.close()
    assert (before.text, before.words, before.partial) == (now.text, now.words, now.partial) and not now.partial


@pytest.mark.parametrize("look_ahead", [0, 5, 9])
def test_another_look_ahead_streams_what_it_gives_offline(tiny_model, look_ahead):
    """It is the model's own (2) with that look-ahead in its encoder's configuration, at the promised latency."""
    rng = random.Random(look_ahead)
    audio = tiny.speech(60, 40000)
    chunking = ChunkingConfig(8, 2, look_ahead=look_ahead)
    (expected,) = transcribe(*tiny_model, chunking, search("greedy"), [audio])[0]
    stream = Stream(*tiny_model, chunking, search("greedy"), OFF)
    assert said(play(stream, cuts(audio, rng, 9000))) == expected.text
    encoder = copy.deepcopy(tiny_model[0])
    conf = dataclasses.replace(encoder.acoustic.encoder.config, right_context=look_ahead)
    encoder.acoustic.encoder.config = encoder.acoustic.encoder.emformer.config = conf
    (configured,) = transcribe(encoder, tiny_model[1], ChunkingConfig(8, 2), search("greedy"), [audio])[0]
    same([expected], [configured])
    (own,) = transcribe(*tiny_model, ChunkingConfig(8, 2), search("greedy"), [audio])[0]
    assert own.token_ids != expected.token_ids
    stream = Stream(*tiny_model, chunking, search("greedy"), OFF)
    stream.push(audio[: timeline.samples_for_frames(8 + look_ahead, RATE)])
    assert stream.search.num_chunks == 1


@pytest.mark.parametrize("method", ["greedy", "chunk_sync", "alsd"])
@pytest.mark.parametrize("chunk", [4, 16, None])
def test_word_times_increase_and_lie_inside_the_audio(tiny_model, method, chunk):
    words_seen = 0
    for seed, length in enumerate([33333, 60000]):
        (transcript,) = offline(tiny_model, (chunk, 2), search(method), tiny.speech(seed, length))[0]
        last = 0.0
        for word in transcript.words:
            assert last - 1e-9 <= word.start <= word.end <= length / RATE
            # Behind the last frame of the audio no word has room.
            assert word.start < word.end or word.end == timeline.frames(length, RATE) * timeline.FRAME_SECONDS
            assert 0 < word.confidence <= 1
            last = word.end
        assert " ".join(word.text for word in transcript.words) == transcript.text
        words_seen += len(transcript.words)
    assert words_seen > 1


@pytest.mark.parametrize("method", ["greedy", "chunk_sync", "alsd"])
def test_the_cap_holds_and_is_reported(tiny_model, method):
    audio = tiny.speech(0, 96000)
    (free,) = offline(tiny_model, (16, 2), search(method, cap=200), audio)[0]
    (capped,) = offline(tiny_model, (16, 2), search(method, cap=1), audio)[0]
    chunks = timeline.num_chunks(timeline.frames(len(audio), RATE), 16)
    assert free.capped == 0 and len(free.tokens) > chunks
    assert len(capped.tokens) <= chunks and 0 < capped.capped <= len(capped.tokens)


def test_a_closed_stream_refuses(tiny_model):
    stream = live(tiny_model, (16, 2), search("greedy"))
    stream.push(tiny.speech(1, 9000))
    stream.close()
    with pytest.raises(ValueError, match="the stream is closed: open another one"):
        stream.push(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="the stream is closed"):
        stream.close()


def test_what_is_no_audio_is_refused_and_the_stream_goes_on(tiny_model):
    from espnet_speechllm_xl.corpus.audio import AudioError

    audio = tiny.speech(4, 40000)
    expected = offline(tiny_model, (16, 2), search("greedy"), audio)[0]
    stream = live(tiny_model, (16, 2), search("greedy"))
    updates = [stream.push(audio[:20000])]
    nan = np.array([0.1, np.nan], np.float32)
    ragged = [[0.1, 0.2], [0.3]]
    for bad, reason in (
        (nan, "not-finite"),
        (np.zeros((2, 9), np.float32), "unreadable"),
        (np.ones(9, np.int16), "unreadable"),
        (32767 * audio, "range"),
        *((bad, "unreadable") for bad in (["x"], None, object(), ragged, 0.5)),
    ):
        with pytest.raises(AudioError) as caught:
            stream.push(bad)
        assert caught.value.reason == reason and str(caught.value).startswith("stream: ")
        assert "\n" not in str(caught.value)
    updates.append(stream.push(list(map(float, audio[20000:25000]))))  # a list does as well
    updates.append(stream.push(audio[25000:30000].astype(">f8")))
    updates.append(stream.push(audio[30000:][::-1].copy()[::-1]))
    assert said([*updates, stream.close()]) == expected[0].text


def test_a_buffer_may_be_filled_again(tiny_model):
    audio = tiny.speech(4, 40000)
    expected = offline(tiny_model, (16, 2), search("greedy"), audio)[0]
    stream, buffer, updates = live(tiny_model, (16, 2), search("greedy")), np.zeros(160), []
    for block in audio.reshape(-1, 160):
        buffer[:] = block
        updates.append(stream.push(buffer))
    assert said([*updates, stream.close()]) == expected[0].text


def test_a_stream_with_one_endless_chunk_copies_its_frames_once(tiny_model, monkeypatch):
    joined = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts, *args, **kw: joined.append(len(parts)) or cat(parts, *args, **kw))
    chunks = AudioChunks(tiny_model[0].acoustic, ChunkingConfig(None, None))
    segments = 20
    for _ in range(segments):
        assert run([chunks.take(torch.zeros(8 * 640, dtype=torch.float64), final=False)], answer_of(tiny_model)) == [[]]
    waiting = len(chunks._frames)
    assert waiting >= segments - 2 and max(joined) < waiting
    ((frames, last),) = run([chunks.take(torch.zeros(0, dtype=torch.float64), final=True)], answer_of(tiny_model))[0]
    assert last and len(frames) == timeline.frames(segments * 8 * 640, RATE) + 3


def answer_of(tiny_model):
    return tiny_model[0].acoustic.encode


def test_alsd_cannot_stream(tiny_model):
    from espnet_speechllm_xl import Speech2Text
    from espnet_speechllm_xl.systems import find_system

    speech2text = Speech2Text(find_system("speechllm_xl"), *tiny_model, search("alsd"), tiny_model[0].chunking)
    with pytest.raises(ConfigError, match="'alsd' needs all audio before the first word: use 'greedy' or 'chunk_sync'"):
        speech2text.stream(search="alsd")
    greedy = Speech2Text(find_system("speechllm_xl"), *tiny_model, search("greedy"), tiny_model[0].chunking)
    assert greedy.stream().search.config == search("greedy", beam=1)
    updates = play(speech2text.stream(), np.array_split(tiny.speech(2, 40000), 7))
    assert said(updates) == offline(tiny_model, (16, 2), search("chunk_sync"), tiny.speech(2, 40000))[0][0].text


def test_chunk_and_segment_must_divide(tiny_model):
    with pytest.raises(ConfigError, match="chunk 12 and encoder segment 8 do not divide one another"):
        live(tiny_model, (12, 2), search("greedy"))
