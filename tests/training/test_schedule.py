"""The learning rate over shares of a training, alone and in ESPnet's trainer."""

import math

import pytest
import torch
import training

from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.training.schedule import LinearShares


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates_of(schedule, count):
    rates = []
    for _ in range(count):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.step()
    return rates


def test_rates_lie_on_the_lines():
    schedule = LinearShares(optimizer(), [0, 0.5, 1], [0.0, 1.0, 0.2])
    schedule.begin(8)
    assert rates_of(schedule, 10) == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert schedule.share == 1


@pytest.mark.parametrize("length", [1, 7, 1000])
def test_any_length_has_the_same_shape(length):
    schedule = LinearShares(optimizer(), [0, 0.08, 1], [0.0, 0.002, 0.00005])
    schedule.begin(length)
    rates = rates_of(schedule, length)
    assert rates[-1] == pytest.approx(0.00005) and max(rates) <= 0.002
    if length == 1000:
        assert rates.index(max(rates)) == 79 and max(rates) == pytest.approx(0.002)


def test_a_resumed_schedule_goes_on_and_says_what_changed():
    first = LinearShares(optimizer(), [0, 1], [1.0, 0.0])
    first.begin(10)
    rates_of(first, 4)
    state = first.state_dict()
    for length, rate, said in ((10, 0.5, None), (20, 0.75, "ends after 20 steps now, not 10: after step 4")):
        resumed = LinearShares(optimizer(), [0, 1], [1.0, 0.0])
        resumed.begin(length)
        resumed.load_state_dict(state)
        assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert resumed.change() is None if said is None else said in resumed.change()
    assert resumed.change().endswith("the learning rate is 0.75, not 0.5")


@pytest.mark.parametrize(
    "shares, rates, says",
    [
        ([0, 0.5, 1], [0.0, 1.0], "as many rates as shares"),
        ([0], [1.0], "two at least"),
        ([0.1, 1], [0.0, 1.0], "rise from 0 to 1"),
        ([0, 0.5], [0.0, 1.0], "rise from 0 to 1"),
        ([0, 0.5, 0.5, 1], [0.0, 1.0, 1.0, 0.0], "rise from 0 to 1"),
        ([0, math.nan, 1], [0.0, 1.0, 0.0], "rise from 0 to 1"),
        ([0, 1], [0.0, -1.0], "not negative"),
        ([0, 1], [0.0, math.inf], "finite"),
        ([0, "half", 1], [0.0, 1.0, 0.0], "numbers"),
        ([0, 1], ["2e-3", 1e-5], "numbers, such as 0.002 or 2.0e-3"),  # as YAML gives 2e-3
        (3, [0.0, 1.0], "lists"),
    ],
)
def test_what_is_no_schedule_is_said(shares, rates, says):
    with pytest.raises(ConfigError, match=says):
        LinearShares(optimizer(), shares, rates)


SCHEDULE = {"scheduler": "linearshares", "scheduler_conf": {"shares": [0, 0.5, 1], "rates": [0.0, 0.01, 0.001]}}


def final_rate(directory):
    state = torch.load(directory / "checkpoint.pth", weights_only=False)
    return state["optimizers"][0]["param_groups"][0]["lr"], state["schedulers"][0]


@pytest.mark.parametrize("accum_grad", [1, 2])
def test_a_training_ends_with_its_schedule(toy_data, toy_stats, tmp_path, capsys, accum_grad):
    out = training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=4, accum_grad=accum_grad, **SCHEDULE)
    rate, state = final_rate(out)
    assert rate == pytest.approx(0.001) and state["steps"] == state["length"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    places = [line.split("learning rate ")[1].split(" of its schedule")[0] for line in lines]
    assert [place.split(" at ")[1] for place in places] == ["25%", "50%", "75%", "100%"]


def test_more_epochs_stretch_the_schedule_and_are_said_to(toy_data, toy_stats, tmp_path, capsys):
    settings = {"keep_nbest_models": 1, **SCHEDULE}
    training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=1, **settings)
    assert "the schedule ends" not in capsys.readouterr().out
    training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=1, **settings)
    assert "the schedule ends" not in capsys.readouterr().out
    out = training.train("ctc", toy_data, tmp_path / "exp", toy_stats, max_epoch=2, **settings)
    rate, state = final_rate(out)
    assert rate == pytest.approx(0.001) and state["steps"] == state["length"]
    said = f"the schedule ends after {state['length']} steps now, not {state['length'] // 2}: after step "
    assert said in capsys.readouterr().out


def test_wrong_points_end_a_training_before_it_begins(toy_data, toy_stats, tmp_path):
    wrong = {"scheduler": "linearshares", "scheduler_conf": {"shares": [0, 2], "rates": [0.0, 0.01]}}
    with pytest.raises(ConfigError, match="scheduler_conf shares .* rise from 0 to 1"):
        training.train("ctc", toy_data, tmp_path / "exp", toy_stats, **wrong)
