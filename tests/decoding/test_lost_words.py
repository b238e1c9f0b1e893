"""Words that were lost where they are said: at the end of cut audio, and in quiet recordings."""

import dataclasses
import random

import melodies
import numpy as np
import pytest
import training


@pytest.fixture(scope="module")
def recordings():
    """(text, samples (n,), sample at which the last letter ends) of 30 melodies that the model has not heard."""
    rng, found = random.Random(9), []
    for _ in range(30):
        text, samples, ends = melodies.melody(rng)
        found.append((text, samples.astype(np.float32) / 32768, (ends[-1] + 1) * training.FRAME))
    return found


@pytest.fixture(scope="module", params=["greedy", "chunk_sync", "alsd"])
def recogniser(request, melody_model):
    from espnet_speechllm_xl import Speech2Text

    return Speech2Text.from_pretrained(melody_model, search=request.param)


def last_letters(recogniser, recordings):
    """How many of the recordings, cut where their last letter ends, are written with it; and their texts."""
    texts = [recogniser(samples[:end])[0].text for _, samples, end in recordings]
    right = sum(text.split()[-1:] == said.split()[-1:] for text, (said, _, _) in zip(texts, recordings, strict=True))
    return right, texts


def test_the_last_word_of_cut_audio_is_written(recogniser, recordings):
    right, texts = last_letters(recogniser, recordings)
    assert right >= 22
    if recogniser.search_config.method != "alsd":
        assert texts == [streamed(recogniser, samples[:end]) for _, samples, end in recordings]
    acoustic = recogniser.model.acoustic
    tail, acoustic.config = acoustic.config, dataclasses.replace(acoustic.config, tail_frames=0)
    assert last_letters(recogniser, recordings)[0] <= 12, "without silence behind it most are lost"
    acoustic.config = tail


def streamed(recogniser, samples):
    stream = recogniser.stream()
    updates = [stream.push(part) for part in np.array_split(samples, 5)] + [stream.close()]
    return " ".join(word.text for update in updates for word in update.words)


@pytest.mark.parametrize("decibels, most", [(10, 5), (-10, 5), (-20, 5), (-30, 5), (-40, 8)])
def test_a_recording_of_any_level_is_written_as_it_would_be_at_another(recogniser, recordings, decibels, most):
    expected = [recogniser(samples)[0].text for _, samples, _ in recordings]
    # As 16 bits hold it: at -40 dB the noise of these recordings is one step, and rounding adds a third of it.
    stored = [np.round(samples * 10 ** (decibels / 20) * 32768).clip(-32768, 32767) for _, samples, _ in recordings]
    found = [recogniser((samples / 32768).astype(np.float32))[0].text for samples in stored]
    assert sum(map(str.__ne__, found, expected)) <= most
