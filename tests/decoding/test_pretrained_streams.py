"""Models on pretrained LLMs of each family, from their directories: a stream writes what offline decoding writes."""

import math
import random
import shutil
import warnings

import checkpoints
import pytest
import tiny
import torch

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.decoding.engine import model_calls, run
from espnet_speechllm_xl.decoding.prompts import with_prompt
from espnet_speechllm_xl.decoding.streams import decode
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


@pytest.fixture(scope="module")
def full_model_dir(tmp_path_factory, tiny_tokens):
    """A model with all at once: an LLM with a window and adapters, stacked frames, CTC of characters, prompts."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "text").write_text("".join(f"u{i:02d} {line}\n" for i, line in enumerate(tiny.SENTENCES)), "utf-8")
    assert cli.main(["tokens", "--text", str(folder / "text"), "--out", str(folder), "--type", "char"]) == 0
    llm = checkpoints.make(folder / "llm", "gemma3_text")
    options = [
        *tiny.conf("decoder_conf", [f"pretrained={llm}", "lora_rank=2"]),
        *tiny.conf("chunking_conf", ["chunk=16", "context=2"]),
        *tiny.conf("projection_conf", ["reduction=2", "hidden_dim=12"]),
        *tiny.conf("loss_conf", ["ctc_weight=0.3", f"ctc_tokenizer={folder / 'tokenizer.model'}"]),
        *tiny.conf("text_prompt_conf", ["probability=0.5", "distance=60"]),
        *tiny.conf("search_conf", ["beam_size=3", "max_tokens_per_chunk=5", "ctc_weight=0.3"]),
    ]

    def change(model):
        model.ctc.output.weight.mul_(10)
        model.decoder.end_row.add_(torch.randn_like(model.decoder.end_row))  # no tie with the end of text
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)

    task = find_task("speechllm_xl")
    return tiny.write_model(folder / "exp", task, tiny_tokens, "valid.acc_text.ave.pth", options, change=change)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_sizes_and_prompts_of_an_llm_share_a_batch(full_model_dir, ctc_weight):
    """Chunk sizes, look-aheads, prompts: each of a batch as if alone, and as a stream."""
    whole = {"settle_seconds": math.inf, "endpoint_silence": math.inf, "endpoint_length": math.inf}
    models, requests, alone, audio = [], [], [], tiny.speech(3, 60000)
    for chunk_size, look_ahead, prompt in (
        (0.64, 0.08, ""), (0.32, 0.0, "call anna"), (0.16, 0.16, "no rain today the other office"), (1.28, 0.0, ""),
    ):  # fmt: skip
        model = Speech2Text.from_pretrained(
            full_model_dir, dtype="float64", search="chunk_sync", ctc_weight=ctc_weight, chunk_size=chunk_size,
            look_ahead=look_ahead,
        )  # fmt: skip
        alone.append(model(audio, prompt=prompt)[0])
        stream = model.stream(prompt=prompt, **whole)
        assert tiny.said(tiny.play(stream, tiny.cuts(audio, random.Random(1), 20000))) == alone[-1].text
        models.append(model)
        prompted = with_prompt(models[0].model, model.tokenizer, prompt)
        requests.append(decode(prompted, model.tokenizer, model.chunking, model.search_config, audio))
    assert len({one.text for one in alone}) == 4
    for (one, *_), expected in zip(run(requests, model_calls(models[0].model)), alone, strict=True):
        assert one.token_ids == expected.token_ids and one.score == pytest.approx(expected.score, abs=1e-6)


def test_a_packed_model_holds_the_llm_and_the_tokens_of_ctc(full_model_dir, tmp_path):
    exp = shutil.copytree(full_model_dir.parent, tmp_path / "made") / "exp"
    config = (exp / "config.yaml").read_text().replace(str(full_model_dir.parent), str(tmp_path / "made"))
    (exp / "config.yaml").write_text(config)
    audio, settings = tiny.speech(3, 60000), {"search": "chunk_sync", "ctc_weight": 0.3}
    expected = Speech2Text.from_pretrained(exp, **settings)(audio, prompt="call anna")
    pack(exp, tmp_path / "model.zip", with_llm=True)
    shutil.rmtree(tmp_path / "made")
    assert Speech2Text.from_pretrained(tmp_path / "model.zip", **settings)(audio, prompt="call anna") == expected


def test_weights_of_8_bits_beside_adapters(full_model_dir):
    found = Speech2Text.from_pretrained(full_model_dir, dtype="int8", search="greedy")(tiny.speech(3, 60000))
    assert len(found[0].token_ids) >= 5 and math.isfinite(found[0].score)


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
