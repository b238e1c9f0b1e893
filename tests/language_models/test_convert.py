"""GGUF files become Hugging Face directories: the same model, the same tokens; what would differ is refused."""

import sys

import ggufs
import numpy as np
import pytest
import torch

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.language_models.convert import convert
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.tokenization import load_tokenizer

# GGUF's name, transformers' class, settings beside the shape.
MODELS = {
    "llama, one table": ("llama", "Llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e5}}),
    "llama, two tables": ("llama", "Llama", {"tie_word_embeddings": False}),
    "mistral": ("llama", "Mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", "Qwen2", {"tie_word_embeddings": True, "head_dim": 4}),
    "qwen3": ("qwen3", "Qwen3", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", "Gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 32}),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {"num_hidden_layers": 6, "query_pre_attn_scalar": 8, "sliding_window": 32},
    ),
}


def logits(model):
    tokens = torch.arange(20)[None] * 7 % 250
    with torch.no_grad():
        return model(input_ids=tokens).logits


def load(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_is_the_same_model(name, tmp_path):
    architecture, kind, changes = MODELS[name]
    model = ggufs.make_model(kind, **changes)
    file = ggufs.write(tmp_path / "tiny.gguf", model, architecture)
    convert(file, tmp_path / "out", "float32")
    again = load(tmp_path / "out")
    expected = logits(model)
    assert expected.std() > 0.5
    assert (logits(again) - expected).abs().max() < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.gguf"], "nothing temporary is left"


def test_the_tokenizer_and_the_decoder_take_the_directory(tmp_path):
    file = ggufs.write(tmp_path / "tiny.gguf", ggufs.make_model("Llama"), "llama")
    convert(file, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.pieces == ggufs.vocabulary()
    assert tokenizer.split("hello world") == ["Ġ", "hello", "Ġwor", "ld"]
    assert tokenizer.decode(tokenizer.encode("caf\N{LATIN SMALL LETTER E WITH ACUTE} 1998")[0]) == "café 1998"
    decoder = Decoder(len(tokenizer.pieces), pretrained=str(tmp_path / "out"))
    assert decoder.dim == 16


def test_quantised_weights_are_taken_as_they_are_stored(tmp_path):
    model = ggufs.make_model("Llama", hidden_size=32, intermediate_size=64)
    file = ggufs.write(tmp_path / "tiny.gguf", model, "llama", quantised=True)
    convert(file, tmp_path / "out", "float32")
    weight = load(tmp_path / "out").model.layers[1].mlp.up_proj.weight
    original = model.model.layers[1].mlp.up_proj.weight
    blocks = original.detach().reshape(-1, 32)
    step = blocks.abs().amax(1, keepdim=True) / 127
    assert ((weight.detach().reshape(-1, 32) - blocks).abs() <= 0.6 * step).all(), "a step, whose size has 16 bits"
    assert not torch.equal(weight, original)


def test_scaled_positions_of_llama_3_are_kept(tmp_path):
    """llama.cpp stores them as factors of the angles, which transformers does not read."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    model = ggufs.make_model("Llama", rope_parameters=scaled, head_dim=64)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    factors = 500000.0 ** -(np.arange(32) / 32) / frequencies.numpy()
    assert factors.max() == pytest.approx(32) and factors.min() == pytest.approx(1)

    def add(writer):
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))

    convert(ggufs.write(tmp_path / "tiny.gguf", model, "llama", extra=add), tmp_path / "out", "float32")
    again = load(tmp_path / "out")
    assert again.config.rope_parameters == scaled
    assert (logits(again) - logits(model)).abs().max() < 1e-4

    def other(writer):
        writer.add_tensor("rope_freqs.weight", (factors * np.linspace(1, 2, 32)).astype(np.float32))

    file = ggufs.write(tmp_path / "other.gguf", model, "llama", extra=other)
    with pytest.raises(UserError, match=r"other.gguf has positions that are scaled otherwise than Llama 3.1's"):
        convert(file, tmp_path / "other")


def refused(tmp_path, message, **options):
    architecture = options.pop("architecture", "llama")
    file = ggufs.write(tmp_path / "tiny.gguf", ggufs.make_model("Llama"), architecture, **options)
    with pytest.raises(UserError, match=message):
        convert(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_another_family_is_refused_by_name(tmp_path):
    refused(tmp_path, "of the architecture gemma, which is not converted: choose a model of Llama, Mistral, Qwen2",
            architecture="gemma")  # fmt: skip


def test_a_family_that_transformers_does_not_read_is_refused_by_name(tmp_path):
    refused(tmp_path, "the installed transformers reads no GGUF files of SmolLM3", architecture="smollm3")


def test_stretched_positions_are_refused(tmp_path):
    import gguf

    def stretched(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)

    refused(tmp_path, "positions that are scaled \\(yarn\\)", extra=stretched)


def test_a_file_without_all_weights_is_refused(tmp_path):
    refused(tmp_path, "lacks model.layers.1.mlp.up_proj.weight", without=["model.layers.1.mlp.up_proj.weight"])


def test_weights_without_a_place_are_refused(tmp_path):
    def bias(writer):
        writer.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32))

    refused(tmp_path, "has weights that are not among transformers'", extra=bias)


def test_a_truncated_file_is_refused(tmp_path):
    file = ggufs.write(tmp_path / "tiny.gguf", ggufs.make_model("Llama"), "llama")
    content = file.read_bytes()
    for size in (0, 10, 1000, len(content) - 2000):
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match="tiny.gguf cannot be read as a GGUF file .*: it is truncated"):
            convert(file, tmp_path / "out")


def test_the_command(tmp_path, capsys):
    model = ggufs.make_model("Llama")
    file = ggufs.write(tmp_path / "tiny.gguf", model, "llama", rule="martian")
    capsys.readouterr()
    options = ["--out", str(tmp_path / "out"), "--dtype", "float16"]
    assert cli.main(["llm", "convert", str(file), *options]) == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        f"speechllm-xl llm convert: {line}"
        for line in (
            "reading tiny.gguf (0 MB, Llama)",
            "transformers does not know how martian cuts text into tokens, and does it as GPT-2 does",
            "writing 0 MB of float16",
        )
    ]
    assert output.out == f"{tmp_path}/out: 0 MB; train with --decoder_conf pretrained={tmp_path}/out\n"
    assert load(tmp_path / "out").config.dtype == torch.float32
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask()
    assert cli.main(["llm", "convert", str(file), *options]) == 2
    assert "out is there already" in capsys.readouterr().err


def umask():
    import os

    value = os.umask(0)
    os.umask(value)
    return value


def test_without_the_package_gguf(tmp_path, monkeypatch):
    file = ggufs.write(tmp_path / "tiny.gguf", ggufs.make_model("Llama"), "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match='the package gguf, which is missing: pip install "gguf>='):
        convert(file, tmp_path / "out")
