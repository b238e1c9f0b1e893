"""Prompts of training: own words among others, drawn by seed; how many examples have one; a training with them."""

import numpy as np
import pytest
import tiny
import training
from test_batches import RATE, corpus

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.config import TextPromptConfig
from espnet_speechllm_xl.model.sequence import PAD_TOKEN
from espnet_speechllm_xl.tokenization import load_tokenizer
from espnet_speechllm_xl.training.batches import BatchFactory, Example, JoinedDataset, collate
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
        tokens = maker.draw(seed, text)
        assert tokens.dtype == np.int64 and tokens.tolist() == maker.draw(seed, text).tolist()
        words = tokenizer.decode(tokens.tolist()).split()
        assert set(words) <= everything and len(words) <= 6
        own = [word for word in words if word in OWN.split()]
        assert len(own) == len(set(own)) <= 2
        sizes.add(len(words))
        own_sizes.add(len(own))
        own_first += bool(own) and len(words) > 1 and words[0] in own
    assert {1, 2, 3, 4, 5, 6} <= sizes and own_sizes == {0, 1, 2}
    assert 0 < own_first < 250  # they stand anywhere
    assert maker.draw(None, text).tolist() == []
    assert all(len(maker.draw(seed, [])) for seed in range(20))  # an example without text has words of others


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
    _, batch = collate([dataset[Example(("u",), (0,), prompt_seed=seed)] for seed in (None, 3)])
    expected = maker.draw(3, text.tolist())
    assert batch["prompt"].tolist() == [[PAD_TOKEN] * len(expected), expected.tolist()]
    assert "prompt" not in JoinedDataset({"u": ("u", item)}, RATE)[Example(("u",), (0,))][1]


def test_a_training_with_prompts_leaves_a_model_that_takes_them(toy_data, toy_stats, tmp_path):
    prompts = {"probability": 0.5, "words": 4}
    out = training.train(
        "speechllm_xl", toy_data, tmp_path / "exp", toy_stats, max_epoch=1, text_prompt_conf=prompts
    )
    (out / "tokenizer.model").write_bytes(toy_data.tokenizer.read_bytes())
    s2t = Speech2Text.from_pretrained(out, search="greedy", dtype="float64")
    audio = tiny.speech(3, 30000)
    plain, prompted = (s2t(audio, prompt=prompt)[0].score for prompt in ("", "abba cab"))
    assert plain != pytest.approx(prompted, abs=1e-6)
