"""Learning rates of parts of a model: a factor for each, whatever optimiser and schedule there are."""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch

from espnet_speechllm_xl.settings import ConfigError, check_mapping, has_kind, is_amount, shown

RATE_FACTOR = "rate_factor"  # of a group of an optimiser


def read_factors(values: object, weights: Iterable[str]) -> dict[str, float]:
    """Return the factors by the names of their parts: ``{"acoustic": 0.1, "decoder.lm": 0.5}``.

    Args:
        values: the setting; ``{decoder: {lm: 0.5}}`` says the same as ``{decoder.lm: 0.5}``.
        weights: names of the model's weights.

    Raises:
        ConfigError: a name is of no part of the model, or a factor is negative or no number.
    """
    names, factors = list(weights), {}
    for part, factor in _flat(check_mapping({} if values is None else values, "part_rates"), ""):
        if not any(_belongs(name, part) for name in names):
            raise ConfigError(f"part_rates {part}: the model has no such part; its first weight is {names[0]}")
        if not has_kind(factor, float) or not is_amount(cast(float, factor)):
            raise ConfigError(f"part_rates {part}: {shown(factor)} is no factor of the learning rate: give 0 or more")
        factors[part] = cast(float, factor)
    return factors


def _flat(values: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _belongs(weight: str, part: str) -> bool:
    return weight == part or weight.startswith(f"{part}.")


def split_groups(optimiser: torch.optim.Optimizer, model: torch.nn.Module, factors: Mapping[str, float]) -> None:
    """Give the weights of some parts a learning rate of their own; schedules multiply theirs by the same factor.

    Args:
        optimiser: has made no step; each of its groups is split.
        model: has the weights; of several parts that a weight belongs to, the longest name counts.
        factors: by the name of the part.
    """
    of_weight = {}
    for name, weight in model.named_parameters():
        parts = [part for part in factors if _belongs(name, part)]
        of_weight[weight] = factors[max(parts, key=len)] if parts else 1.0
    groups = []
    for group in optimiser.param_groups:
        for factor in dict.fromkeys(of_weight[weight] for weight in group["params"]):
            weights = [weight for weight in group["params"] if of_weight[weight] == factor]
            groups.append({**group, "params": weights, "lr": group["lr"] * factor, RATE_FACTOR: factor})
    optimiser.param_groups = groups
