"""Trained models whose decoder is a pretrained language model."""

import pytest
import tiny
import torch

FILE = "valid.acc_text.ave.pth"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tokens):
    """``trained(*decoder_conf, loss=(), **changes) -> (its directory, its LLM's)``; what trains is random."""
    made = {}

    def make(*conf, loss=(), **changes):
        key = (*conf, loss, *sorted(changes.items()))
        if key not in made:
            from transformers import LlamaConfig, LlamaForCausalLM

            from espnet_speechllm_xl.systems import find_task

            folder = tmp_path_factory.mktemp("llm")
            shape = {
                "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "eos_token_id": 2,
                **changes,
            }  # fmt: skip
            torch.manual_seed(4)
            LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder / "TinyLM")

            def train(model):
                for weight in model.parameters():
                    if weight.requires_grad:
                        weight.add_(0.2 * torch.randn_like(weight))

            decoder = [f"pretrained={folder / 'TinyLM'}", *conf]
            options = [*tiny.conf("decoder_conf", decoder), *tiny.conf("loss_conf", loss)]
            task = find_task("speechllm_xl")
            directory = tiny.write_model(folder / "exp", task, tiny_tokens, FILE, options, change=train)
            made[key] = directory, folder / "TinyLM"
        return made[key]

    return make


@pytest.fixture
def copies(tmp_path):
    """``copies(directory, llm)``: a copy of a training, in which its LLM has a place that it can be moved from."""
    import shutil

    import yaml

    def copy(directory, llm):
        shutil.copytree(directory, tmp_path / "exp")
        shutil.copytree(llm, tmp_path / llm.name)
        values = yaml.safe_load((directory / "config.yaml").read_text())
        values["decoder_conf"]["pretrained"] = str(tmp_path / llm.name)
        (tmp_path / "exp" / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return tmp_path / "exp", tmp_path / llm.name

    return copy


def said(path, **options):
    """Tokens and score of a recording."""
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(path, search="chunk_sync", beam_size=2, max_tokens_per_chunk=6, **options)
    (best,) = speech2text(tiny.speech(7, 64000))
    assert len(best.tokens) > 3
    return best.tokens, best.score


@pytest.fixture
def decode():
    return said
