"""Layers that are compiled, or computed again in the backward pass: the same losses and gradients, less memory."""

import pytest
import torch
import training

from espnet_speechllm_xl.model.attention import BlockAttention
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.training.layers import check_backend, compiled_layers, layers_of, recompute_layers

VOCABULARY = 30


def build(name="speechllm_xl", dropout=0.0, **encoder):
    """Build a micro model in training mode; random numbers are those of seed 0."""
    task = training.task_of(name)
    settings = training.config(name)
    args = task.get_parser().parse_args([])
    args.token_list, args.stats_file = [str(number) for number in range(VOCABULARY)], None
    args.encoder_conf = {**settings["encoder_conf"], "layers": 2, "dropout": dropout, **encoder}
    args.chunking_conf = {"chunk": 16, "context": 2}
    args.decoder_conf = {"dim": 24, "layers": 2, "heads": 3, "ffn_dim": 32, "dropout": dropout}
    torch.manual_seed(0)
    return task.build_model(args).train()


def draw(seconds, size=2, seed=0):
    """Draw a batch: noise, and random tokens in order."""
    generator = torch.Generator().manual_seed(seed)
    samples, tokens, frames = int(16000 * seconds), int(3 * seconds), int(25 * seconds) - 1
    return {
        "speech": torch.randn(size, samples, generator=generator),
        "speech_lengths": torch.tensor([samples - 640 * item for item in range(size)]),
        "text": torch.randint(0, VOCABULARY, (size, tokens), generator=generator),
        "text_lengths": torch.full((size,), tokens),
        "ends": torch.randint(0, frames - 2, (size, tokens), generator=generator).sort(1).values,
    }  # fmt: skip


def step(model, batch):
    """Return the loss and all gradients of a batch, in double precision; random numbers are those of seed 1."""
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(**batch)[0]
    loss.backward()
    gradients = {name: weight.grad.double().clone() for name, weight in model.named_parameters()}
    return float(loss.detach()), gradients


def kept_bytes(model, batch):
    """Count the bytes that a forward pass keeps for the backward pass, weights among them."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch)[0]
    del loss
    return sum(kept.values())


def test_layers_are_those_of_encoder_and_decoder():
    model = build()
    found = layers_of(model)
    assert found == [*model.acoustic.encoder.emformer.emformer_layers, *model.decoder.lm.model.layers]
    assert len(found) == 4
    nested = torch.nn.ModuleList([torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.ReLU()])})])
    assert layers_of(nested) == [nested[0]]


@pytest.mark.parametrize("seconds", [3.0, 30.0])  # one mask; attention in blocks
def test_recomputed_layers_have_the_same_gradients_bit_for_bit(seconds):
    batch = draw(seconds)
    model = build(dropout=0.3)
    names = list(model.state_dict())
    loss, gradients = step(model, batch)
    recompute_layers(model)
    assert list(model.state_dict()) == names
    again, recomputed = step(model, batch)
    assert again == loss and all(recomputed[name].equal(value) for name, value in gradients.items())
    torch.manual_seed(2)
    assert float(model(**batch)[0].detach()) != loss, "dropout is drawn"


def test_recomputed_layers_work_in_half_precision():
    """The second pass computes as the first did: the type of the products is kept."""
    batch, model = draw(4.0), build(dropout=0.3)

    def mixed_step():
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch)[0]
        loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    plain = mixed_step()
    recompute_layers(model)
    again = mixed_step()
    assert all(again[name].equal(value) for name, value in plain.items())


def test_recomputed_layers_keep_less_memory_and_all_of_it_is_linear():
    model = build(layers=4)
    plain = [kept_bytes(model, draw(seconds, 1)) for seconds in (60, 240)]
    recompute_layers(model)
    kept = [kept_bytes(model, draw(seconds, 1)) for seconds in (60, 240)]
    assert kept[0] < 0.75 * plain[0]
    assert plain[1] < 4.3 * plain[0] and kept[1] < 4.3 * kept[0]


def test_evaluation_recomputes_nothing():
    model = build().eval()
    calls = []
    layer = layers_of(model)[0]
    forward = layer.forward
    layer.forward = lambda *inputs: calls.append(1) or forward(*inputs)
    recompute_layers(model)
    with torch.no_grad():
        model(**draw(0.5, 1))
    assert len(calls) == 1


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_have_the_same_loss_and_gradients(recompute):
    batches = [draw(3.0), draw(2.2, 3), draw(30.0)]
    model = build(conv_kernel=3)
    names = list(model.state_dict())
    expected = [step(model, batch) for batch in batches]
    attend = BlockAttention.attend
    with compiled_layers(model, "eager"):
        if recompute:
            recompute_layers(model)
        compiled = [step(model, batch) for batch in batches]
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert BlockAttention.attend is attend
    assert list(model.state_dict()) == names
    for (loss, gradients), (other, others) in zip(expected, compiled, strict=True):
        assert other == pytest.approx(loss, rel=1e-5)
        for name, value in gradients.items():
            assert (others[name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name


def test_compiled_layers_are_not_compiled_for_each_shape():
    model = build(conv_kernel=3, dropout=0.2)
    with compiled_layers(model, "eager"):
        for seconds, size in ((3.0, 2), (2.2, 3), (30.0, 2)):
            step(model, draw(seconds, size))
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for seconds, size in ((3.5, 4), (2.6, 5), (33.0, 3), (41.0, 2), (4.4, 3)):
            step(model, draw(seconds, size))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 2


def test_a_backend_that_does_not_work_is_one_line(monkeypatch):
    check_backend("eager", "cpu")
    with pytest.raises(ConfigError, match=r"^compile_layers inducktor: the backend does not work .*leave the option"):
        check_backend("inducktor", "cpu")

    def backend(_graph, _inputs):
        raise RuntimeError("no compiler here\n\nmany more lines")

    torch._dynamo.register_backend(name="broken_for_a_test")(backend)
    with pytest.raises(ConfigError) as caught:
        check_backend("broken_for_a_test", "cpu")
    assert "no compiler here" in str(caught.value) and "\n" not in str(caught.value)


def test_a_layer_that_cannot_be_compiled_is_one_line():
    """As with inductor of torch 2.11, which compiles a small function and fails at a layer."""

    def backend(graph, _inputs):
        if len(list(graph.graph.nodes)) > 20:
            raise RuntimeError("cannot determine truth value\n\nmany more lines")
        return graph.forward

    torch._dynamo.register_backend(name="small_ones_only")(backend)
    check_backend("small_ones_only", "cpu")
    model, attend = build(), BlockAttention.attend
    with pytest.raises(ConfigError, match="^compile_layers small_ones_only: a layer cannot be .*truth") as caught:
        with compiled_layers(model, "small_ones_only"):
            step(model, draw(1.0))
    assert "\n" not in str(caught.value) and BlockAttention.attend is attend


def test_a_training_with_both_options_trains_to_the_same(toy_data, toy_stats, tmp_path):
    options = {"max_epoch": 2, "accum_grad": 2, "encoder_conf": {"dropout": 0.0}, "decoder_conf": {"dropout": 0.0}}
    options["specaug_conf"] = {"freq_masks": 0, "time_masks_per_second": 0.0}
    plain = training.train("speechllm_xl", toy_data, tmp_path / "plain", toy_stats, **options)
    both = training.train(
        "speechllm_xl", toy_data, tmp_path / "both", toy_stats,
        ["--compile_layers", "eager", "--recompute_layers", "true"], **options,
    )  # fmt: skip
    for epoch, figures in training.history(plain).items():
        found = training.history(both)[epoch]
        for part in ("train", "valid"):
            assert found[part]["loss"] == pytest.approx(figures[part]["loss"], rel=1e-3)
    assert training.weights(plain / "2epoch.pth").keys() == training.weights(both / "2epoch.pth").keys()


def test_an_unknown_backend_is_refused_before_the_training(toy_data, toy_stats, tmp_path):
    with pytest.raises(ConfigError, match="compile_layers inducktor: the backend does not work"):
        training.train("ctc", toy_data, tmp_path / "exp", toy_stats, ["--compile_layers", "inducktor"])
    assert not (tmp_path / "exp" / "settings.json").exists()
