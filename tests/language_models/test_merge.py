"""A merged model decodes as the model that it was made of, without adapters and without another language model."""

import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.language_models.merge import merge
from espnet_speechllm_xl.trained_model import load_model, pack

WAYS = {
    "lora": ["lora_rank=4"],
    "dora": ["lora_rank=4", "use_dora=true"],
    "lora and tables": ["lora_rank=4", "train_table=true"],
    "frozen": ["freeze=true"],
    "all": [],
}


def log_probs(directory, **options):
    """Log-probabilities of a sequence of frames."""
    decoder = load_model(directory, **options)[0].decoder
    torch.manual_seed(0)
    frames, position = torch.randn(1, 30, 16), torch.arange(30)[None]
    with torch.no_grad():
        return decoder.logits(decoder(frames, position, position // 10, 1)).log_softmax(-1)


@pytest.mark.parametrize("tied", [True, False], ids=["one table", "two tables"])
@pytest.mark.parametrize("way", WAYS)
def test_a_merged_model_says_the_same(way, tied, trained, copies, decode, tmp_path, monkeypatch):
    directory, llm = copies(*trained(*WAYS[way], tie_word_embeddings=tied))
    (tokens, score), expected = decode(directory), log_probs(directory)
    out = tmp_path / "merged"
    merge(directory, out)
    assert (log_probs(directory) - log_probs(out)).abs().max() < 1e-4
    llm.rename(tmp_path / "elsewhere")
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"] or ["peft"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert (log_probs(out) - expected).abs().max() < 1e-4
    again = decode(out)
    assert again[0] == tokens and again[1] == pytest.approx(score, abs=1e-4 * len(tokens) * 10)
    pack(out, tmp_path / "model.zip")
    assert decode(tmp_path / "model.zip") == again, "it is packed with its language model"
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "llm", "model.pth", "tokenizer.model"]


def test_the_adapters_matter(trained, copies):
    """Otherwise the test above would show little."""
    directory, llm = copies(*trained("lora_rank=4"))
    model = load_model(directory)[0].decoder.lm
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            assert weight.abs().max() > 0.1


def test_rounded_weights_are_those_of_the_merged_model(trained, copies, tmp_path):
    directory, _ = copies(*trained("lora_rank=4"))
    merge(directory, tmp_path / "merged", dtype="bfloat16")
    merge(directory, tmp_path / "whole")
    rounded, whole = (load_file(tmp_path / name / "llm" / "model.safetensors") for name in ("merged", "whole"))
    assert set(rounded) == set(whole)
    assert all(weight.equal(whole[name].bfloat16()) for name, weight in rounded.items())
    decoder = load_model(tmp_path / "merged")[0].decoder
    assert decoder.lm.model.norm.weight.equal(rounded["model.norm.weight"].float())


def test_the_command(trained, copies, tmp_path, capsys):
    directory, llm = copies(*trained("lora_rank=4"))
    pack(directory, tmp_path / "model.zip")
    capsys.readouterr()
    options = ["--llm", str(llm), "--out", str(tmp_path / "merged")]
    assert cli.main(["llm", "merge", str(tmp_path / "model.zip"), *options]) == 0
    output = capsys.readouterr()
    assert output.err.splitlines()[0] == "speechllm-xl llm merge: merging 14 adapters"
    assert len(output.err.splitlines()) == 1 and output.out.startswith(f"{tmp_path}/merged: 0.")
    assert (log_probs(tmp_path / "merged") - log_probs(directory)).abs().max() < 1e-4
    assert cli.main(["llm", "merge", str(directory), *options]) == 2
    assert "merged is there already" in capsys.readouterr().err


def test_a_model_without_a_language_model(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match="has no pretrained language model: there is nothing to merge"):
        merge(tiny_model_dir, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_baseline(trained, copies, tmp_path):
    """Its decoder is more than a language model, and has it in another place."""
    directory, _ = copies(*trained("freeze=true"))
    text = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(text.replace("task: speechllm_xl", "task: ctc_prompt_lm"))
    with pytest.raises(UserError, match="config.yaml is of task 'ctc_prompt_lm', not speechllm_xl"):
        merge(directory, tmp_path / "merged")


def test_the_tokens_of_a_ctc_head_stay_with_it(trained, copies, tmp_path):
    out = tmp_path / "characters"
    out.mkdir()
    (out / "text").write_text("".join(f"u{i:02d} {line}\n" for i, line in enumerate(tiny.SENTENCES)), "utf-8")
    assert cli.main(["tokens", "--text", str(out / "text"), "--out", str(out), "--type", "char"]) == 0
    loss = ("ctc_weight=0.3", f"ctc_tokenizer={out / 'tokenizer.model'}")
    directory, _ = copies(*trained("lora_rank=4", loss=loss))
    head = load_model(directory)[0].ctc
    merge(directory, tmp_path / "merged")
    (out / "tokenizer.model").unlink()
    again = load_model(tmp_path / "merged")[0].ctc
    assert again.output.weight.equal(head.output.weight) and again.spelling is not None
