"""Checks of a training's options, made before it begins."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from espnet2.utils import types
from espnet2.utils.nested_dict_action import NestedDictAction

from espnet_speechllm_xl.config import FeatureConfig
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.experiment import CONFIG, read_config
from espnet_speechllm_xl.files import NOT_UTF8, text_lines
from espnet_speechllm_xl.settings import ConfigError, check_mapping, shown

# ESPnet's own settings that must not change in the middle of a training, as the sections of config.py must not.
TRAINING_SETTINGS = (
    "normalize", "batch_bins", "accum_grad", "grad_clip", "grad_clip_type", "grad_noise", "train_dtype", "seed",
    "optim", "optim_conf", "exclude_weight_decay", "exclude_weight_decay_conf", "scheduler", "scheduler_conf",
    "init_param", "ignore_init_mismatch", "freeze_param",
)  # fmt: skip

# Options of ESPnet's own batches, which are not used.
BATCH_OPTIONS = (
    "batch_type", "valid_batch_type", "batch_size", "valid_batch_size", "max_batch_size", "min_batch_size",
    "iterator_type", "valid_iterator_type", "drop_last_iter", "sort_in_batch", "sort_batch", "fold_length",
)  # fmt: skip

LEAST = {"accum_grad": 1, "batch_bins": 1, "max_epoch": 1, "ngpu": 0, "num_workers": 0, "patience": 0, "seed": 0}

FEATURES = "features.json"  # stands beside the statistics and holds the features_conf that made them


def check_values(args: argparse.Namespace, actions: Sequence[argparse.Action]) -> None:
    """Raise ConfigError for a value in ``args`` that the parser's ``actions`` could not make from a command line."""
    for action in actions:
        value = getattr(args, action.dest, action.default)
        # The task has a message of its own (check_options).
        if value != action.default and action.dest != "task" and not _fits(action, value):
            raise ConfigError(f"{action.dest}: {shown(value)} is not {_wanted(action)}")


# The function that converts an option's text -> what the option takes, in words.
KIND_WORDS: dict[object, str] = {
    None: "text", str: "text", int: "a whole number", float: "a number", types.str2bool: "true or false",
    types.int_or_none: "a whole number or null", types.float_or_none: "a number or null",
    types.str_or_none: "text or null", types.str2triple_str: "a list of three texts",
}  # fmt: skip


def _wanted(action: argparse.Action) -> str:
    if isinstance(action, NestedDictAction):
        return "a mapping of settings to values"
    if action.choices:
        return f"one of {', '.join(map(str, action.choices))}"
    return KIND_WORDS.get(action.type, "a value of this option")


def _fits(action: argparse.Action, value: object) -> bool:
    if isinstance(action, NestedDictAction):
        return value is None or isinstance(value, dict)
    if action.nargs == 0:  # a switch
        return isinstance(value, bool)
    several = action.nargs is not None or isinstance(action, argparse._AppendAction)
    if several and isinstance(value, (list, tuple)):
        return all(_is_one(action, item) for item in value)
    return _is_one(action, value)


def _is_one(action: argparse.Action, value: object) -> bool:
    """Tell whether the option converts the value's text to the value."""
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        text, value = ",".join(value), tuple(value)
    else:
        text = str(value)
    if action.type not in KIND_WORDS:
        return isinstance(value, (str, int, float)) and (action.choices is None or value in action.choices)
    convert = action.type if callable(action.type) else str
    try:
        converted = convert(text)
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        return False
    return converted == value and (action.choices is None or value in action.choices)


def check_numbers(args: argparse.Namespace) -> None:
    """Raise ConfigError for numbers that ESPnet takes but cannot train with."""
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and not least <= value < 2**32:  # seeds end there
            raise ConfigError(f"{name} {shown(value)}: give a whole number from {least} to {2**32 - 1}")
    for criterion in (*args.best_model_criterion, args.early_stopping_criterion):
        if len(criterion) != 3 or criterion[2] not in ("min", "max"):
            raise ConfigError(f"criterion {shown(criterion)}: give three texts, the last of them min or max")


def check_optimiser(
    args: argparse.Namespace,
    optimisers: Mapping[str, Callable[..., torch.optim.Optimizer]],
    schedules: Mapping[str, Callable[..., object]],
) -> None:
    """Raise ConfigError for settings that the optimiser or the schedule refuses; makes both once, for one weight.

    Args:
        args: the options; ``optim``, ``optim_conf``, ``scheduler`` and ``scheduler_conf`` are read.
        optimisers: name -> class, made from the weights and its settings.
        schedules: name -> class, made from the optimiser and its settings.
    """
    previous: object = [torch.nn.Parameter(torch.zeros(1))]
    for name, classes in (("optim", optimisers), ("scheduler", schedules)):
        if getattr(args, name) in classes:
            chosen, conf = getattr(args, name), getattr(args, f"{name}_conf")
            try:
                previous = classes[chosen](previous, **conf)
            except UserError:
                raise
            except Exception as error:  # torch's and ESPnet's classes raise any kind
                raise ConfigError(f"{name}_conf {shown(conf)}: {name} {chosen} does not take it ({error})") from error


def check_statistics(file: Path, features: Mapping[str, object]) -> None:
    """Raise ConfigError for statistics of other features.

    Old statistics have no record of their features and are trusted.

    Args:
        file: the statistics, ``<stage>/train/feats_stats.npz``.
        features: the features_conf of the training.
    """
    record = file.resolve().parents[1] / FEATURES
    before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    _check_features(file, before, features, f"remove {record.parent} and run the stage again")


class InitParam(NamedTuple):
    """The parts of an ``--init_param FILE:SOURCE:TARGET[:EXCLUDED]``; "" where there is none."""

    file: str
    source: str  # part of the model in the file
    target: str  # part of the model that takes the weights
    excluded: str  # beginnings of names, with commas between them


def parse_init_param(text: str) -> InitParam:
    """Part an ``--init_param`` at its colons."""
    return InitParam(*(text.split(":") + ["", "", ""])[:4])


def has_normaliser(init_param: str) -> bool:
    """Tell whether an ``--init_param`` takes the other model's means and variances."""
    parts = parse_init_param(init_param)
    return parts.target in ("", "acoustic", "acoustic.normalizer") and "normalizer" not in parts.excluded


def encoder_to_begin_with(init_params: list[str], encoder: str) -> dict[str, object]:
    """Return the ``encoder_conf`` of the model whose encoder training begins with; an empty one where there is none.

    Args:
        init_params: the values of ``--init_param``.
        encoder: the kind, as ``--encoder`` has it; settings of an encoder of another kind do not count.
    """
    for init_param in init_params:
        parts = parse_init_param(init_param)
        if parts.target not in ("", "acoustic", "acoustic.encoder") or "encoder" in parts.excluded:
            continue
        directory = Path(parts.file).parent
        before = read_config(directory) or {}
        if before.get("encoder") == encoder:
            return check_mapping(before.get("encoder_conf") or {}, f"{directory / CONFIG} encoder_conf")
    return {}


def check_init_features(init_param: str, features: Mapping[str, object]) -> None:
    """Raise ConfigError where the initial model has other features: its normaliser would not fit ``features``."""
    path = parse_init_param(init_param).file
    directory = Path(path).parent
    before = (read_config(directory) or {}).get("features_conf") or {}
    check_mapping(before, f"{directory / CONFIG} features_conf")
    _check_features(path, before, features, "begin with a model of the same features_conf")


def _check_features(
    file: str | Path, before: Mapping[str, object], features: Mapping[str, object], advice: str
) -> None:
    features = {name: value for name, value in features.items() if name != "tail_frames"}  # no part of the features
    before = {**dataclasses.asdict(FeatureConfig()), **before}  # an old file lacks the options that came later
    changed = [name for name, value in features.items() if before[name] != value]
    if changed:
        name = changed[0]
        raise ConfigError(
            f"{file} was made with another features_conf {name} (was {before[name]}, is {features[name]}): {advice}"
        )


def check_rate(args: argparse.Namespace, rate: int, setting: str) -> None:
    """Raise ConfigError for a training set at another sample rate, since training does not resample.

    Args:
        args: the options; the first file of each ``wav.scp`` in them is looked at.
        rate: Hz that the audio must have.
        setting: name of the setting with this rate, for the message.
    """
    for wav_scp in (path for path, name, _ in args.train_data_path_and_name_and_type if name == "speech"):
        first = next(iter(read_table(wav_scp).values()), None)
        found = soundfile.info(first).samplerate if first and Path(first).is_file() else rate
        if found != rate:
            raise ConfigError(
                f"{wav_scp}: audio at {found} Hz, but {setting} is {rate}: give run.sh --sample-rate {rate} from the "
                "format stage on, or the rate of the dump here"
            )


def read_token_list(path: str | Path) -> list[str]:
    """Read the tokens of a file, one a line; raise ConfigError if there is none or if it is not UTF-8."""
    if not Path(path).exists():
        raise ConfigError(f"token_list {path} does not exist: run the tokens stage")
    tokens = [line for _, line in text_lines(path)]
    if any(map(NOT_UTF8.search, tokens)):
        raise ConfigError(f"token_list {path} holds bytes that are no UTF-8: run the tokens stage again")
    return tokens


def read_first_ints(path: str | Path) -> dict[str, int]:
    """Read the first number of every utterance in a shape file of ESPnet: ``utt1 93680,80`` is ``{"utt1": 93680}``."""
    return {utterance: int(shape.split(",")[0]) for utterance, shape in read_table(path).items()}
