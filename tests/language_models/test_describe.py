"""What `llm show` says of a language model."""

import checkpoints
import ggufs
import pytest
import torch

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.language_models.costs import Training
from espnet_speechllm_xl.language_models.describe import describe


def show(capsys, path, *options):
    capsys.readouterr()
    assert cli.main(["llm", "show", str(path), *options]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.splitlines()


def test_a_directory(tmp_path, capsys):
    model = ggufs.make_model("Llama", tie_word_embeddings=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    lines = show(capsys, tmp_path, "--seconds", "20", "--rank", "8")
    count = sum(weight.numel() for weight in model.parameters())
    assert lines[:7] == [
        f"{tmp_path}: llama, {count / 1e6:.1f} M parameters, bfloat16",
        "layers          2",
        "width           16, feed-forward 24",
        "heads           4 of 8, key heads 2",
        "tokens          265, one table for inputs and outputs",
        "positions       up to 64 in its training",
        "as the decoder  yes",
    ]
    assert lines[8] == "Training, counted; 20 s of audio in a batch, LoRA of rank 8:"
    head, *rows = [line.split("  ") for line in lines[9:]]
    assert len(rows) == 5 and "memory" in " ".join(head)


def test_a_gguf_file(tmp_path, capsys):
    model = ggufs.make_model("Llama", hidden_size=32, intermediate_size=64, tie_word_embeddings=False)
    lines = show(capsys, ggufs.write(tmp_path / "tiny.gguf", model, "llama", quantised=True))
    assert lines[0].endswith("M parameters, mostly Q8_0")
    assert lines[3:5] == ["heads           4 of 8, key heads 2", "tokens          265, tables for inputs and outputs"]
    assert lines[6] == "as the decoder  yes"


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_families_that_the_decoder_can_use(family, tmp_path):
    checkpoints.make(tmp_path, family)
    assert describe(tmp_path, Training())[6] == "as the decoder  yes"


def test_a_model_that_the_decoder_cannot_use(tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, rotary_pct=0.5
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    line = describe(tmp_path, Training())[6]
    assert line.startswith("as the decoder  no: ") and len(line) < 400


def test_what_is_neither(tmp_path):
    with pytest.raises(UserError, match="is neither a Hugging Face directory .config.json. nor a GGUF file"):
        describe(tmp_path, Training())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json cannot be used"):
        describe(tmp_path, Training())
