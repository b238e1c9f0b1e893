"""CTC searches against a sum over all paths, and the aligner as a recogniser."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import tiny
import torch

from espnet_speechllm_xl.config import SearchConfig
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.systems.ctc import BestPath, PrefixBeam, collapse

BLANK = 2


def random_log_probs(seed, frames, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, classes, generator=generator).double().mul(2).log_softmax(-1)


def exhaustive(log_probs):
    """Every labelling with the log of the sum of its paths."""
    sums = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = math.exp(sum(float(log_probs[frame, token]) for frame, token in enumerate(path)))
        labels = tuple(collapse(list(path), BLANK))
        sums[labels] = sums.get(labels, 0.0) + score
    return {labels: math.log(score) for labels, score in sums.items()}


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_as_large_as_the_space_is_exact(seed):
    log_probs = random_log_probs(seed, frames=6)
    wanted = exhaustive(log_probs)
    found = PrefixBeam(SearchConfig(beam_size=1000), BLANK)(log_probs)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert {one.tokens: pytest.approx(one.score, abs=1e-9) for one in found} == wanted


def test_a_beam_sums_paths_where_the_best_path_takes_one():
    # Two frames, each 0.4 "a" and 0.6 blank: the best path is empty (0.36), but "a" has 0.64.
    log_probs = torch.tensor([[0.4, 0.0, 0.6]] * 2).log()
    (greedy,) = BestPath(SearchConfig(), BLANK)(log_probs)
    best = PrefixBeam(SearchConfig(beam_size=4), BLANK)(log_probs)[0]
    assert (greedy.tokens, best.tokens) == ((), (0,))
    assert math.exp(greedy.score) == pytest.approx(0.36) and math.exp(best.score) == pytest.approx(0.64)


def test_a_small_beam_prunes_and_orders():
    found = PrefixBeam(SearchConfig(beam_size=3), BLANK)(random_log_probs(1, frames=30, classes=6))
    assert len(found) == 3 and found[0].score > found[1].score > found[2].score
    assert len({one.tokens for one in found}) == 3


def test_no_frames_give_the_empty_text():
    for search in (BestPath, PrefixBeam):
        (only,) = search(SearchConfig(), BLANK)(torch.zeros(0, 3))
        assert (only.tokens, only.score) == ((), 0.0)


@pytest.fixture(scope="module")
def recogniser(tiny_aligner_dir):
    from espnet_speechllm_xl import Speech2Text

    return lambda **settings: Speech2Text.from_pretrained(tiny_aligner_dir, **settings)


@pytest.mark.parametrize("search", ["greedy", "prefix_beam"])
def test_batch_is_alone_and_words_have_times(recogniser, search):
    speech2text = recogniser(search=search, nbest=3, dtype="float64")
    recordings = [tiny.speech(1, 30000), np.zeros(300, np.float32), tiny.speech(2, 47000)]
    together = speech2text.transcribe_batch(recordings)
    assert speech2text.transcribe_batch([]) == []
    for nbest, recording in zip(together, recordings, strict=True):
        alone = speech2text(recording)
        assert [one.token_ids for one in alone] == [one.token_ids for one in nbest]
        assert [one.score for one in alone] == pytest.approx([one.score for one in nbest])
    assert [one.text for one in together[1]] == [""]
    words = [word for nbest in together for word in nbest[0].words]
    assert words and all(0 <= word.start < word.end and 0 < word.confidence <= 1 for word in words)
    assert all(" ".join(word.text for word in nbest[0].words) == nbest[0].text for nbest in together)
    texts = [one.text for one in together[2]]
    assert len(set(texts)) == len(texts) and (search == "greedy") == (len(texts) == 1)


def test_greedy_times_and_confidences_are_those_of_the_best_path(recogniser):
    speech2text = recogniser(search="greedy", dtype="float64")
    acoustic = speech2text.model.acoustic
    acoustic.config = dataclasses.replace(acoustic.config, tail_frames=0)  # what is found there has other times
    audio, pieces = tiny.speech(2, 47000), speech2text.tokenizer.pieces
    log_probs, _ = speech2text.model.log_probs(torch.as_tensor(audio).double()[None], torch.tensor([len(audio)]))
    scores, path = log_probs[0].detach().max(-1)
    wanted, frame = [], 0
    for token, run in itertools.groupby(path.tolist()):
        begin, frame = frame, frame + len(list(run))
        if token == speech2text.model.ctc.blank:
            continue
        if pieces[token].startswith("▁") or not wanted:
            wanted.append([])
        wanted[-1].append((begin, frame, float(scores[begin:frame].mean())))
    (transcript,) = speech2text(audio)
    found = [(word.start, word.end, word.confidence) for word in transcript.words]
    assert len(found) > 2
    assert found == [
        pytest.approx((word[0][0] * 0.04, word[-1][1] * 0.04, math.exp(np.mean([score for *_, score in word]))))
        for word in wanted
    ]


def test_what_a_model_without_chunks_cannot_do(recogniser):
    for settings, message in (
        ({"search": "alsd"}, "search 'alsd': a model of task 'ctc' has greedy, prefix_beam"),
        ({"chunk_size": 0.64}, "this model has no chunks"),
    ):
        with pytest.raises(ConfigError, match=message):
            recogniser(**settings)
    with pytest.raises(ConfigError, match="a model of task 'ctc' decodes whole recordings only"):
        recogniser().stream("greedy")
