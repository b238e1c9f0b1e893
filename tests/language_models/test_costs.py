"""What is counted of a training equals what torch does: numbers, kept bytes, operations."""

from pathlib import Path

import ggufs
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from espnet_speechllm_xl.language_models.costs import KNOWN, Cost, Shape, Training, cost, cost_rows, kept_by_layer
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.settings import ConfigError

SIZES = dict(hidden_size=48, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
LENGTH = 40


def tiny(layers=2, tied=True):
    model = ggufs.make_model("Llama", num_hidden_layers=layers, tie_word_embeddings=tied, **SIZES)
    return model, Shape(layers, 48, 4, 2, 16, 96, model.config.vocab_size, tied)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model(tied):
    model, shape = tiny(3, tied)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())


def test_known_models_have_their_published_sizes():
    published = {"SmolLM2-135M": 134.5e6, "Llama-3.2-1B": 1.2358e9, "Llama-3.2-3B": 3.2127e9, "Llama-3.1-8B": 8.0303e9}
    assert set(KNOWN) == set(published)
    for name, count in published.items():
        assert KNOWN[name].parameters == pytest.approx(count, rel=1e-3), name


def test_adapters_are_those_that_peft_makes():
    model, shape = tiny()
    prepare(model, "lora")
    assert shape.adapters(4) == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def prepare(model, trained, rank=4):
    if trained == "frozen":
        model.requires_grad_(False)
    if trained == "lora":
        from peft import LoraConfig, get_peft_model

        get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))


def forward(model):
    """A call as the decoder makes it: frames that need a gradient, a dense mask."""
    torch.manual_seed(0)
    inputs = torch.randn(1, LENGTH, model.config.hidden_size, requires_grad=True)
    mask = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -1e9)
    return model.model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state


def kept_by(folder, layers, conf):
    """Bytes of the tensors that autograd keeps in the decoder, each storage once, without weights."""
    model, shape = tiny(layers)
    model.save_pretrained(folder)
    decoder = Decoder(model.config.vocab_size, pretrained=str(folder), **conf).train()
    weights = {weight.untyped_storage().data_ptr() for weight in decoder.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other gets its place
        return tensor

    position = torch.arange(LENGTH)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder(torch.randn(1, LENGTH, 48, requires_grad=True), position, torch.zeros_like(position), None)
    return sum(size for size, _ in kept.values()), shape


SETTINGS = {"frozen": {"freeze": True}, "lora": {"lora_rank": 4}, "all": {}}


@pytest.mark.parametrize("trained, size", [("frozen", 2), ("frozen", 4), ("lora", 2), ("lora", 4), ("all", 4)])
def test_bytes_that_a_layer_keeps_are_those_of_torch(trained, size, tmp_path):
    conf = {**SETTINGS[trained], **({"frozen_dtype": "bfloat16"} if size == 2 else {})}
    (three, _), (two, shape) = (kept_by(tmp_path / str(layers), layers, conf) for layers in (3, 2))
    assert kept_by_layer(shape, Training(trained, size, lora_rank=4)) == (three - two) / LENGTH


def test_operations_are_those_that_torch_counts():
    for trained in ("frozen", "lora", "all"):
        model, shape = tiny()
        prepare(model, trained)
        model.set_attn_implementation("eager")  # the counter does not know the fused attention of a CPU
        counter = FlopCounterMode(display=False)
        with counter:
            model.lm_head(forward(model)).sum().backward()
        # LENGTH inputs in a second, a score for each.
        rates = {"tokens_per_second": LENGTH - 25, "chunk_seconds": 1 / 25, "sequence_seconds": 1}
        training = Training(trained, **rates, lora_rank=4)
        assert training.inputs_per_second == training.targets_per_second == LENGTH
        assert cost(shape, training).operations == pytest.approx(counter.get_total_flops(), rel=1e-6), trained


def test_what_each_choice_saves():
    shape = KNOWN["Llama-3.2-1B"]

    def of(**options):
        return cost(shape, Training(**options))

    frozen, lora, everything = (of(trained=trained) for trained in ("frozen", "lora", "all"))
    assert frozen.trained == 0 < lora.trained < everything.trained == 12 * shape.parameters
    assert everything.weights == of(trained="all", bytes_per_weight=2).weights == 4 * shape.parameters
    assert of(bytes_per_weight=2).weights == 2 * shape.parameters
    assert of(checkpointing=True).kept < lora.kept / 4 and of(checkpointing=True).operations > 1.3 * lora.operations
    assert of(reduction=4).operations < lora.operations / 2 and of(reduction=4).kept < lora.kept / 2
    assert isinstance(lora, Cost) and lora.memory == lora.weights + lora.trained + lora.kept


def test_wrong_values_are_refused():
    with pytest.raises(ConfigError, match="trained 'some': use frozen, lora or all"):
        Training("some")
    with pytest.raises(ConfigError, match="reduction 0"):
        Training(reduction=0)


PAGE = (Path(__file__).parents[2] / "docs" / "llm.md").read_text(encoding="utf-8")


def test_the_page_says_what_is_counted():
    for name, shape in KNOWN.items():
        head, *rows = cost_rows(shape, Training())
        for row in [("LLM", *head), *((name, *row) for row in rows)]:
            assert f"| {' | '.join(row)} |" in PAGE, row
    work = cost(KNOWN["Llama-3.2-1B"], Training(reduction=4)).operations
    hours = 10 * 960 * work / 100e12  # 960 h have 3600 times as many seconds, and so have hours
    assert f"take {hours:.1f} hours for Llama-3.2-1B with LoRA" in PAGE.replace("\n", " ")
    assert f"{KNOWN['SmolLM2-135M'].adapters(16) / 1e6:.1f} M in the adapters" in PAGE.replace("\n", " ")
