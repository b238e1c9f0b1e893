"""Prompts of training: own words among others, drawn by seed; how many examples have one; a training with them."""

import contextlib
import dataclasses
import re
import shutil

import numpy as np
import pytest
import tiny
import training
from test_batches import RATE, corpus

from espnet_speechllm_xl import Speech2Text, timeline
from espnet_speechllm_xl.config import ConcatConfig, TextPromptConfig
from espnet_speechllm_xl.model.sequence import PAD_TOKEN, sequence_length
from espnet_speechllm_xl.tokenization import load_tokenizer
from espnet_speechllm_xl.training.batches import BatchFactory, DataError, Example, JoinedDataset, collate
from espnet_speechllm_xl.training.prompts import PromptMaker

OWN = "ada calls the red boat"
OTHERS = ["hugo paints a quiet street", "eve finds seven green apples", "ben thanks the old piano"]


@pytest.fixture(scope="module")
def tokenizer(sentencepiece_model):
    return load_tokenizer(sentencepiece_model())


def test_words_of_the_example_among_words_of_others(tokenizer):
    maker = PromptMaker(TextPromptConfig(probability=1.0, words=6, own_words=2), tokenizer, [OWN, *OTHERS])
    text, everything = tokenizer.encode(OWN)[0], {word for line in (OWN, *OTHERS) for word in line.split()}
    sizes, own_sizes, own_first = set(), set(), 0
    for seed in range(300):
        tokens = maker.draw(seed, text, 999)
        assert tokens.dtype == np.int64 and tokens.tolist() == maker.draw(seed, text, 999).tolist()
        words = tokenizer.decode(tokens.tolist()).split()
        assert set(words) <= everything and len(words) <= 6
        own = [word for word in words if word in OWN.split()]
        assert len(own) == len(set(own)) <= 2
        sizes.add(len(words))
        own_sizes.add(len(own))
        own_first += bool(own) and len(words) > 1 and words[0] in own
    assert {1, 2, 3, 4, 5, 6} <= sizes and own_sizes == {0, 1, 2}
    assert 0 < own_first < 250  # they stand anywhere
    assert maker.draw(None, text, 999).tolist() == []
    assert all(len(maker.draw(seed, [], 999)) for seed in range(20))  # an example without text has words of others


def test_words_that_have_no_room_are_left_out(tokenizer):
    """The first words of the prompt that the example would have."""
    maker = PromptMaker(TextPromptConfig(probability=1.0, words=6), tokenizer, [OWN, *OTHERS])
    text, cut = tokenizer.encode(OWN)[0], 0
    for seed in range(50):
        whole = maker.draw(seed, text, 999).tolist()
        words = tokenizer.decode(whole).split()
        for room in range(len(whole) + 1):
            kept = [" ".join(words[:count]) for count in range(len(words) + 1)]
            fitting = [tokens for tokens in (tokenizer.encode(line)[0] for line in kept) if len(tokens) <= room]
            found = maker.draw(seed, text, room).tolist()
            assert found == fitting[-1]
            cut += found != whole
    assert cut > 200


def test_the_length_of_a_full_prompt(tokenizer):
    maker = PromptMaker(TextPromptConfig(probability=1.0, words=200, own_words=0), tokenizer, [OWN, *OTHERS])
    lengths = [len(maker.draw(seed, [], 9999)) for seed in range(300)]
    assert 0.9 * max(lengths) < maker.full_length() < 1.1 * max(lengths)


@pytest.mark.parametrize("concat", [None, ConcatConfig(max_seconds=6.0, max_lead_seconds=1.0)])
def test_no_prompt_makes_an_example_longer_than_the_distance(tokenizer, concat, caplog):
    """Shorter examples with and without room for a whole prompt, longer ones, all drawn and loaded as in training."""
    samples, tokens, speakers = corpus(count=80)
    rng = np.random.default_rng(1)
    words = sorted({word for line in (OWN, *OTHERS) for word in line.split()})
    texts = {name: tokenizer.encode(" ".join(rng.choice(words, 30)))[0][:count] for name, count in tokens.items()}
    dataset = {
        name: (name, {"speech": np.zeros(samples[name], np.float32), "text": np.array(texts[name], dtype=np.int64)})
        for name in samples
    }
    plain = BatchFactory(dataset, samples, tokens, speakers, concat, 900, RATE, 1, train=True, workers=0)
    inputs = [plain._size(example)[1] for batch in plain.batches(1) for example in batch]
    distance = int(np.percentile(inputs, 80))
    maker = PromptMaker(TextPromptConfig(probability=0.9, words=8, distance=distance), tokenizer, [OWN, *OTHERS])
    options = {"train": True, "workers": 0, "prompts": maker, "count_inputs": sequence_length}
    factory = BatchFactory(dataset, samples, tokens, speakers, concat, 900, RATE, 1, **options)
    (said,) = [record.message for record in caplog.records if "text_prompt_conf" in record.message]
    long = sum(count >= distance for count in inputs)
    assert f"text_prompt_conf distance {distance}: {long} of {len(inputs)} training examples of the first" in said
    lengths, prompted, short = [], 0, 0
    for batch in factory.batches(1):
        for example in batch:
            _, arrays = factory.dataset[example]
            own = sequence_length(int(timeline.frames(len(arrays["speech"]), RATE)), len(arrays["text"]))
            lengths.append((own, len(arrays["prompt"])))
            prompted += example.prompt_seed is not None
            short += 0 < len(arrays["prompt"]) < len(maker.draw(example.prompt_seed, arrays["text"].tolist(), 999))
    assert all(own + prompt <= distance for own, prompt in lengths if prompt)
    assert max(own for own, _ in lengths) > distance and short > 0
    assert 0.75 * (len(inputs) - long) < prompted <= len(inputs) - long
    # The distance that the message names gives a prompt to each that draws one.
    named = int(re.search(r"set distance to (\d+),", said)[1])
    caplog.clear()
    config = dataclasses.replace(maker.config, distance=named)
    options["prompts"] = PromptMaker(config, tokenizer, [OWN, *OTHERS])
    BatchFactory(dataset, samples, tokens, speakers, concat, 900, RATE, 1, **options)
    assert not caplog.records and named > max(inputs)


def test_a_distance_that_no_example_has_room_in_is_refused(tokenizer):
    samples, tokens, speakers = corpus(count=30)
    maker = PromptMaker(TextPromptConfig(probability=0.4, distance=5), tokenizer, [OWN, *OTHERS])
    said = r"distance 5: 30 of 30 training examples .* have no room for a prompt: set distance to \d+, where"
    for train in (False, True):  # validation has no prompts
        with pytest.raises(DataError, match=said) if train else contextlib.nullcontext():
            BatchFactory({}, samples, tokens, speakers, None, 600, RATE, 1, workers=0, train=train, prompts=maker)


def test_a_share_of_the_examples_of_training_has_a_prompt(tokenizer):
    maker = PromptMaker(TextPromptConfig(probability=0.4), tokenizer, [OWN, *OTHERS])
    samples, tokens, speakers = corpus(count=300)

    def made(**options):
        return BatchFactory({}, samples, tokens, speakers, None, 600, RATE, 1, workers=0, **options)

    prompted, plain = made(train=True, prompts=maker), made(train=True)
    examples = {one.utterances: one for batch in prompted.batches(2) for one in batch}
    seeds = [one.prompt_seed for one in examples.values() if one.prompt_seed is not None]
    assert 0.3 < len(seeds) / 300 < 0.5 and len(set(seeds)) > 100
    assert [[one.utterances for one in batch] for batch in prompted.batches(2)] == [
        [one.utterances for one in batch] for batch in plain.batches(2)
    ]
    other = {one.utterances: one.prompt_seed for batch in prompted.batches(3) for one in batch}
    assert any(other[name] != one.prompt_seed for name, one in examples.items())
    assert all(one.prompt_seed is None for batch in made(train=False, prompts=maker).batches(2) for one in batch)


def test_a_batch_holds_the_prompts(tokenizer):
    text = np.array(tokenizer.encode(OWN)[0])
    item = {"speech": np.zeros(20000, np.float32), "text": text, "ends": np.arange(len(text))}
    maker = PromptMaker(TextPromptConfig(probability=0.5), tokenizer, [OWN, *OTHERS])
    dataset = JoinedDataset({"u": ("u", item)}, RATE, maker)
    kinds = [{}, {"prompt_seed": 3, "prompt_room": 999}, {"prompt_seed": 3, "prompt_room": 7}]
    _, batch = collate([dataset[Example(("u",), (0,), **kind)] for kind in kinds])
    whole, short = maker.draw(3, text.tolist(), 999).tolist(), maker.draw(3, text.tolist(), 7).tolist()
    padded = [tokens + [PAD_TOKEN] * (len(whole) - len(tokens)) for tokens in ([], whole, short)]
    assert batch["prompt"].tolist() == padded and 0 < len(short) <= 7 < len(whole)
    assert "prompt" not in JoinedDataset({"u": ("u", item)}, RATE)[Example(("u",), (0,))][1]


def test_a_training_with_prompts_leaves_a_model_that_takes_them(toy_data, toy_stats, tmp_path, caplog):
    def train(distance):
        prompts = {"probability": 0.5, "words": 4, "distance": distance}
        return training.train(
            "speechllm_xl", toy_data, tmp_path / "exp", toy_stats, max_epoch=1, text_prompt_conf=prompts
        )

    with pytest.raises(DataError, match="no room for a prompt: set distance to") as refused:
        train(1)
    caplog.clear()
    shutil.rmtree(tmp_path / "exp")
    out = train(int(0.6 * int(re.search(r"to (\d+),", str(refused.value))[1])))
    assert any("training examples of the first epoch have no prompt" in record.message for record in caplog.records)
    (out / "tokenizer.model").write_bytes(toy_data.tokenizer.read_bytes())
    s2t = Speech2Text.from_pretrained(out, search="greedy", dtype="float64")
    audio = tiny.speech(3, 30000)
    plain, prompted = (s2t(audio, prompt=prompt)[0].score for prompt in ("", "abba cab"))
    assert plain != pytest.approx(prompted, abs=1e-6)
