"""Audio without speech of a set: its pauses, sentences with pauses between them, the words that a stream writes."""

import random

import melodies
import numpy as np
import pytest

from espnet_speechllm_xl.corpus.ctm import Word
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.sets.nonspeech import (
    Audio,
    Noise,
    Utterance,
    join_sentences,
    late_after,
    measure_endpoints,
    parse_noise,
    pauses_of,
    pushed,
)

RATE = 16000


@pytest.mark.parametrize(
    "text, noise, title",
    [
        ("pink@-25", Noise("pink", -25.0), "pink, -25 dB"),
        ("silence", Noise("silence"), "silence"),
        ("pauses", Noise("pauses"), "pauses"),
        ("babble@-12.5", Noise("babble", -12.5), "babble, -12.5 dB"),
    ],
)
def test_kinds_and_levels(text, noise, title):
    assert parse_noise(text) == noise and noise.title == title


@pytest.mark.parametrize(
    "text, says",
    [
        ("brown@-3", "'brown' is no kind of audio: give one of silence, hum, "),
        ("pink", "'pink': give a level in -120 .. 0 dB"),
        ("pink@x", "'pink@x': give a level"),
        ("pink@nan", "'pink@nan': give a level"),
        ("pink@3", "'pink@3': give a level"),
        ("pauses@-3", "pauses has no level: leave '@-3' out"),
    ],
)
def test_what_is_no_kind_is_named(text, says):
    with pytest.raises(ValueError, match="^" + says.replace(".", r"\.")):
        parse_noise(text)


def numbered(seconds):
    return np.arange(round(seconds * RATE), dtype=np.float32)


def test_pauses_are_what_lies_between_words():
    words = [Word("a", 0.5, 0.8), Word("b", 0.9, 1.5), Word("c", 2.0, 2.75)]
    found = list(pauses_of(Utterance(numbered(3), words), RATE))
    # Before the first, between the second and the third, and behind the last, each less 0.1 s beside words.
    spans = [(0, 0.4), (1.6, 1.9), (2.85, 3)]
    assert len(found) == 3
    for samples, (begin, end) in zip(found, spans, strict=True):
        np.testing.assert_array_equal(samples, np.arange(round(begin * RATE), round(end * RATE)))
    assert not list(pauses_of(Utterance(numbered(3), None), RATE))


def test_sentences_are_where_they_are_said():
    timed = Utterance(np.full(RATE, 2, np.float32), [Word("a", 0.25, 0.5), Word("b", 0.5, 0.75)])
    untimed = Utterance(np.full(RATE // 2, 3, np.float32), None)
    samples, sentences = join_sentences([timed, untimed], np.ones(3 * RATE, np.float32), RATE, RATE)
    assert sentences == [(1.25, 1.75), (3.0, 3.5)]
    np.testing.assert_array_equal(samples, np.repeat([1, 2, 1, 3, 1], [RATE, RATE, RATE, RATE // 2, RATE]))


def test_babble_and_pauses_are_of_the_set():
    tone = np.sin(np.arange(RATE)).astype(np.float32)
    with_times = Utterance(np.concatenate([tone, np.full(RATE, 0.25, np.float32)]), [Word("a", 0.0, 1.0)])
    audio = Audio(RATE, [with_times])
    pauses = audio.make(Noise("pauses"), 3.0)
    np.testing.assert_allclose(pauses[RATE // 100 :], 0.25, atol=1e-6)  # of a speech of 1 s nothing is left
    babble = audio.make(Noise("babble", -20.0), 3.0)
    assert np.sqrt(np.mean(babble**2)) == pytest.approx(0.1, rel=1e-3)
    np.testing.assert_array_equal(babble, Audio(RATE, [with_times]).make(Noise("babble", -20.0), 3.0))
    with pytest.raises(UserError, match="babble is made of the recordings of a set"):
        Audio(RATE).make(Noise("babble", -20.0), 1.0)
    with pytest.raises(UserError, match="pauses need the times of the words"):
        Audio(RATE, [Utterance(tone, None)]).make(Noise("pauses"), 1.0)


@pytest.fixture(scope="module")
def speech2text(melody_model):
    return Speech2Text.from_pretrained(melody_model, search="greedy")


def melody(seed, letters):
    _, samples, ends = melodies.melody(random.Random(seed), letters)
    times = [Word(letter, end * 0.04 - 0.2, (end + 1) * 0.04) for letter, end in zip(letters, ends[::2], strict=True)]
    return Utterance(samples.astype(np.float32) / 32768, times)


def words_in(stream, samples):
    return sum(len(update.words) for update, _ in pushed(stream, samples, RATE))


def test_words_are_those_of_the_stream(speech2text):
    spoken = melody(3, list("abcd"))
    stream = speech2text.stream()
    assert words_in(stream, spoken.samples) == len(speech2text(spoken.samples)[0].words) >= 3
    assert stream.closed
    assert [*pushed(speech2text.stream(), spoken.samples, RATE)][-1][1] == len(spoken.samples) / RATE
    assert words_in(speech2text.stream(), np.zeros(5 * RATE, np.float32)) == 0


def test_endpoints_of_melodies(speech2text):
    """They come on time after pauses that are long enough, and cut a sentence with a pause as long."""
    audio = Audio(RATE)
    sentences = [melody(seed, list(letters)) for seed, letters in enumerate(["abcd", "dcba", "bdac"])]
    options = {"endpoint_silence": 1.0, "settle_seconds": 0.6}
    limit = late_after(speech2text.stream(**options))
    chunking, encoder = speech2text.chunking, speech2text.model.acoustic.encoder.config
    longest = max(encoder.segment, chunking.chunk) + chunking.right_context(encoder)
    assert limit == pytest.approx(1.0 + 0.04 * longest + 0.2)

    def judged(limit):
        ((noise, found),) = measure_endpoints(speech2text, options, audio, sentences, [Noise("silence")], 4.0, limit)
        assert noise.kind == "silence" and found.sentences == 3
        return found

    limit += 0.3  # this model hears letters end late
    found = judged(limit)
    assert (found.cut, found.late, found.silent, len(found.delays)) == (0, 0, 0, 3)
    assert all(1.0 - 0.2 <= delay <= limit for delay in found.delays)
    assert judged(0.5).late == 3
    gap = np.zeros(3 * RATE, np.float32)
    first, second = sentences[:2]
    words = [
        *first.words,
        *(
            Word(w.text, w.start + len(first.samples) / RATE + 3, w.end + len(first.samples) / RATE + 3)
            for w in second.words
        ),
    ]
    both = Utterance(np.concatenate([first.samples, gap, second.samples]), words)
    ((_, found),) = measure_endpoints(speech2text, options, audio, [both], [Noise("silence")], 4.0, limit)
    assert (found.cut, found.sentences) == (1, 1)
