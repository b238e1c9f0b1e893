"""Trainings with a pretrained LLM: files, resuming, averages, starts, recomputed layers."""

import shutil

import checkpoints
import pytest
import torch
import training

from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.trained_model import load_model
from espnet_speechllm_xl.training.layers import layers_of, recompute_layers
from espnet_speechllm_xl.training.trainer import Trainer, load_part

SETTINGS = {"keep_nbest_models": 2, "accum_grad": 2, "max_epoch": 3}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return checkpoints.make(tmp_path_factory.mktemp("llm") / "llama")


def train(data, out, stats, llm, options=(), **changes):
    conf = {"pretrained": llm, "lora_rank": 2, **changes.pop("decoder_conf", {})}
    return training.train("speechllm_xl", data, out, stats, options, decoder_conf=conf, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def trained(toy_data, toy_stats, llm, tmp_path_factory):
    """The directory of a training of adapters, three epochs."""
    return train(toy_data, tmp_path_factory.mktemp("trained") / "exp", toy_stats, llm)


def test_files_hold_what_was_trained(trained, llm):
    model, _, _ = load_model(trained, weights="3epoch.pth")
    learnt = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("lora_" in name for name in learnt) and "decoder.end_row" in learnt
    states = [training.weights(trained / name) for name in ("3epoch.pth", "valid.acc_text.ave.pth")]
    states.append(torch.load(trained / "checkpoint.pth", weights_only=False)["model"])
    for state in states:
        assert {name for name in state if state[name].is_floating_point() and ".normalizer." not in name} == learnt
        assert not any(name.startswith("decoder.lm") and "lora_" not in name for name in state)
    base = sum(weight.numel() for name, weight in model.decoder.lm.named_parameters() if "lora_" not in name)
    kept = sum(value.numel() for value in states[0].values())
    size = (trained / "3epoch.pth").stat().st_size
    assert size < 4 * kept + 800 * len(states[0]) and base > kept  # what torch adds for each tensor


def test_resumed_is_unbroken(trained, toy_data, toy_stats, llm, tmp_path):
    for epochs in (1, 3):
        out = train(toy_data, tmp_path / "exp", toy_stats, llm, max_epoch=epochs)
    for name in ("2epoch.pth", "3epoch.pth", "valid.acc_text.ave.pth"):
        assert (out / name).exists() == (trained / name).exists()
        assert not (out / name).exists() or training.same_weights(trained / name, out / name), name
    for epoch, figures in training.history(trained).items():
        assert figures["train"]["loss"] == training.history(out)[epoch]["train"]["loss"]


def test_the_average_is_of_what_was_trained(trained):
    epochs = [path for path in trained.glob("*epoch.pth")]
    average = training.weights(trained / "valid.acc_text.ave.pth")
    assert len(epochs) >= 2
    kept = [training.weights(path) for path in epochs]
    name = next(name for name in average if "lora_B" in name)
    lowest, highest = (torch.stack([state[name] for state in kept]).aminmax(dim=0)[part] for part in (0, 1))
    assert bool(((lowest - 1e-7 <= average[name]) & (average[name] <= highest + 1e-7)).all())
    assert average["decoder.base_digest"].equal(kept[0]["decoder.base_digest"])
    model, _, _ = load_model(trained)
    assert model.state_dict()[name].equal(average[name])


def test_another_llm_is_refused_when_loading_and_when_resuming(trained, toy_data, toy_stats, llm, tmp_path):
    place = tmp_path / "llm"
    shutil.copytree(llm, place)
    out = train(toy_data, tmp_path / "exp", toy_stats, str(place), max_epoch=1)
    load_model(out)
    shutil.rmtree(place)
    checkpoints.make(place, seed=9)
    says = f"{place} is not the LLM that the weights were trained with"
    with pytest.raises(ConfigError, match=says):
        load_model(out)
    with pytest.raises(ConfigError, match=says):
        train(toy_data, out, toy_stats, str(place), max_epoch=2)


def test_a_start_from_a_trained_model(trained, toy_data, toy_stats, llm, tmp_path):
    file = trained / "3epoch.pth"
    out = train(toy_data, tmp_path / "exp", toy_stats, llm, ["--init_param", file], max_epoch=1)
    model, _, _ = load_model(out)
    load_part(str(file), model, False)
    state = training.weights(file)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    earlier = next(path for path in trained.glob("[12]epoch.pth"))
    load_part(f"{earlier}:decoder:decoder", model, False)
    other = training.weights(earlier)
    assert model.state_dict()["decoder.end_row"].equal(other["decoder.end_row"])


def test_frozen_weights_train_in_bfloat16(trained, toy_data, toy_stats, llm, tmp_path, monkeypatch):
    """ESPnet casts the whole model before; trained is what is in float32, and decoding casts all of it."""
    kinds, run = {}, Trainer.run.__func__

    def watching(cls, *, model, **others):
        kinds.update({name: (weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()})
        return run(cls, model=model, **others)

    monkeypatch.setattr(Trainer, "run", classmethod(watching))
    conf = {"frozen_dtype": "bfloat16"}
    out = train(toy_data, tmp_path / "exp", toy_stats, llm, decoder_conf=conf)
    assert {learnt for kind, learnt in kinds.values() if kind == torch.bfloat16} == {False}
    assert {learnt for kind, learnt in kinds.values() if kind == torch.float32} == {True}
    assert all(value.dtype != torch.bfloat16 for value in training.weights(out / "3epoch.pth").values())
    losses = [training.history(folder)[1]["train"]["loss"] for folder in (out, trained)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[0] != losses[1]
    assert all(weight.dtype == torch.float32 for weight in load_model(out)[0].parameters())


def test_a_model_that_trained_whole_needs_the_configuration_alone(toy_data, toy_stats, llm, tmp_path):
    place = tmp_path / "llm"
    shutil.copytree(llm, place)
    whole = train(toy_data, tmp_path / "whole", toy_stats, str(place), max_epoch=1, decoder_conf={"lora_rank": 0})
    adapters = train(toy_data, tmp_path / "adapters", toy_stats, str(place), max_epoch=1)
    expected = load_model(whole)[0].state_dict()
    (place / "model.safetensors").unlink()
    found = load_model(whole)[0]
    assert all(value.equal(expected[name]) for name, value in found.state_dict().items())
    assert found.decoder._pretrained.turned.all()
    with pytest.raises(ConfigError, match="llm cannot be used .*model.safetensors"):
        load_model(adapters)


def test_no_model_far_larger_than_its_files(trained, tmp_path):
    """The LLM's files count, but a configuration that asks for more is refused."""
    import yaml

    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    values = yaml.safe_load((broken / "config.yaml").read_text())
    values["encoder_conf"]["ffn_dim"] = 4_000_000
    (broken / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="a model of its sizes is far larger than its weights"):
        load_model(broken)


def test_recomputed_layers_have_the_same_gradients(llm):
    task, settings = training.task_of("speechllm_xl"), training.config("speechllm_xl")
    args = task.get_parser().parse_args([])
    args.token_list, args.stats_file = [str(number) for number in range(30)], None
    args.encoder_conf, args.chunking_conf = settings["encoder_conf"], {"chunk": 16, "context": 2}
    args.decoder_conf = {"pretrained": llm, "lora_rank": 2, "dropout": 0.3, "lora_dropout": 0.3}
    torch.manual_seed(0)
    model = task.build_model(args).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    assert list(model.decoder.lm.get_decoder().layers) == layers_of(model)[-3:]
    generator = torch.Generator().manual_seed(0)
    batch = {
        "speech": torch.randn(2, 32000, generator=generator), "speech_lengths": torch.tensor([32000, 30000]),
        "text": torch.randint(0, 30, (2, 5), generator=generator), "text_lengths": torch.tensor([5, 4]),
        "ends": torch.tensor([[3, 9, 20, 30, 44], [5, 6, 7, 30, 31]]),
    }  # fmt: skip

    def step():
        """The gradients, and the bytes kept for the backward pass."""
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.zero_grad()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(**batch)[0]
        loss.backward()
        learnt = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
        assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)
        return learnt, sum(kept.values())

    plain, kept = step()
    recompute_layers(model)
    again, less = step()
    assert any(gradient.abs().max() > 0 for name, gradient in plain.items() if "lora_A" in name)
    assert all(again[name].equal(gradient) for name, gradient in plain.items())
    assert less < 0.8 * kept
