"""Models on pretrained LLMs of each family, from their directories: a stream writes what offline decoding writes."""

import math
import random
import warnings

import checkpoints
import pytest
import tiny

from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.systems import find_task
from espnet_speechllm_xl.trained_model import pack


@pytest.fixture(scope="module")
def model_of(tmp_path_factory, tiny_tokens):
    """``model_of(family)``: the directory of a model with adapters on a tiny checkpoint of it."""

    def make(family):
        folder = tmp_path_factory.mktemp(family)
        llm = checkpoints.make(folder / "llm", family)
        options = [
            *tiny.conf("decoder_conf", [f"pretrained={llm}", "lora_rank=2"]),
            *tiny.conf("chunking_conf", ["chunk=16", "context=2"]),
            *tiny.conf("search_conf", ["beam_size=3", "max_tokens_per_chunk=5"]),
        ]

        def change(model):
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.2)

        task = find_task("speechllm_xl")
        return tiny.write_model(folder / "exp", task, tiny_tokens, "valid.acc_text.ave.pth", options, change=change)

    return make


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_a_stream_is_offline_decoding(model_of, family):
    model = Speech2Text.from_pretrained(model_of(family), dtype="float64", search="chunk_sync")
    audio = tiny.speech(3, 60000)
    (best,) = model(audio)[:1]
    stream = model.stream(settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=math.inf)
    updates = tiny.play(stream, tiny.cuts(audio, random.Random(1), 20000))
    assert tiny.said(updates) == best.text and len(best.token_ids) >= 5


def test_loading_says_nothing_nor_does_loading_a_packed_model(model_of, tmp_path, capfd):
    directory = model_of("llama")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Speech2Text.from_pretrained(directory, search="greedy")(tiny.speech(3, 30000))
        pack(directory, tmp_path / "model.zip", with_llm=True)
        packed = Speech2Text.from_pretrained(tmp_path / "model.zip", search="greedy")
    assert capfd.readouterr() == ("", "")
    assert packed(tiny.speech(3, 30000)) == found
