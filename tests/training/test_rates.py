"""Learning rates of parts of a model."""

import pytest
import torch
import training

from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.training.rates import RATE_FACTOR, read_factors, split_groups
from espnet_speechllm_xl.training.schedule import LinearShares

NAMES = ["acoustic.encoder.weight", "decoder.lm.weight", "decoder.end_row"]


def model():
    lm = torch.nn.ModuleDict({"lm": torch.nn.Linear(2, 1), "head": torch.nn.Linear(2, 1)})
    return torch.nn.ModuleDict({"acoustic": torch.nn.Linear(2, 2), "decoder": lm})


def rates(optimiser, made):
    by_weight = {weight: group["lr"] for group in optimiser.param_groups for weight in group["params"]}
    return {name: by_weight[weight] for name, weight in made.named_parameters()}


def test_factors_are_read_from_nested_names():
    assert read_factors({"acoustic": 0.1, "decoder": {"lm": 2}}, NAMES) == {"acoustic": 0.1, "decoder.lm": 2}
    assert read_factors({"decoder.lm": 0}, NAMES) == {"decoder.lm": 0}
    assert read_factors(None, NAMES) == {}


@pytest.mark.parametrize(
    "values, says",
    [
        ({"encoder": 1}, "part_rates encoder: the model has no such part; its first weight is acoustic.encoder.weight"),
        ({"decoder": {"l": 1}}, "part_rates decoder.l: the model has no such part"),
        ({"acoustic": -1}, "part_rates acoustic: -1 is no factor"),
        ({"acoustic": "fast"}, "part_rates acoustic: 'fast' is no factor"),
        (3, "part_rates: 3 is not a mapping"),
    ],
)
def test_wrong_factors_are_refused(values, says):
    with pytest.raises(ConfigError) as caught:
        read_factors(values, NAMES)
    assert str(caught.value).startswith(says)


def test_the_longest_name_counts_and_schedules_keep_the_factors():
    made = model()
    optimiser = torch.optim.AdamW(made.parameters(), lr=0.01)
    split_groups(optimiser, made, {"decoder": 0.5, "decoder.lm": 0.1})
    expected = {"acoustic": 0.01, "decoder.lm": 0.001, "decoder.head": 0.005}
    assert rates(optimiser, made) == pytest.approx(
        {f"{part}.{name}": rate for part, rate in expected.items() for name in ("weight", "bias")}
    )
    LinearShares(optimiser, [0, 1], [0.0, 1.0]).begin(10)
    assert rates(optimiser, made)["decoder.lm.weight"] == pytest.approx(0.1 * 0.1)
    optimiser.step()
    own = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5**step)
    own.step()
    assert rates(optimiser, made)["decoder.lm.weight"] == pytest.approx(0.5 * 0.01)


def test_a_training_with_factors(toy_data, toy_stats, tmp_path):
    """A factor of 0 keeps a part as it was; the file of a part without one differs; the schedule keeps the factors."""
    settings = {"scheduler": "linearshares", "scheduler_conf": {"shares": [0, 1], "rates": [0.01, 0.01]}}
    options = ["--part_rates", "acoustic=0.0", "--part_rates", "decoder.lm=0.5"]
    out = training.train("speechllm_xl", toy_data, tmp_path / "exp", toy_stats, options, max_epoch=2, **settings)
    state = torch.load(out / "checkpoint.pth", weights_only=False)["optimizers"][0]
    groups = {group[RATE_FACTOR]: group for group in state["param_groups"]}
    assert {factor: group["lr"] for factor, group in groups.items()} == {0.0: 0.0, 0.5: 0.005, 1.0: 0.01}
    first, second = (training.weights(out / f"{epoch}epoch.pth") for epoch in (1, 2))
    for name, value in first.items():
        assert second[name].equal(value) == name.startswith("acoustic."), name
    with pytest.raises(ConfigError, match="part_rates encoder: the model has no such part"):
        training.train("ctc", toy_data, tmp_path / "ctc", toy_stats, ["--part_rates", "encoder=0.5"])


def test_factors_beside_frozen_parts(toy_data, toy_stats, tmp_path):
    """A frozen encoder stays as it is, whatever its factor; the others keep theirs."""
    options = ["--freeze_param", "acoustic.encoder", "--part_rates", "acoustic=0.5", "--part_rates", "decoder.lm=0.1"]
    out = training.train("speechllm_xl", toy_data, tmp_path / "exp", toy_stats, options, max_epoch=2)
    state = torch.load(out / "checkpoint.pth", weights_only=False)["optimizers"][0]
    assert {group[RATE_FACTOR] for group in state["param_groups"]} <= {0.5, 0.1, 1.0}
    first, second = (training.weights(out / f"{epoch}epoch.pth") for epoch in (1, 2))
    same = {name for name, value in first.items() if second[name].equal(value)}
    assert {name for name in first if name.startswith("acoustic.encoder.")} <= same
    assert any(name.startswith("decoder.lm.") for name in first.keys() - same)
