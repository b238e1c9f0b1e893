"""Settings as dataclasses: reading them from YAML, and checking them."""

import dataclasses
import difflib
import inspect
import math
import numbers
import reprlib
import typing
from pathlib import Path

import yaml

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import CONVERT


class ConfigError(UserError):
    """A setting has an unusable value; the message names it and what to do."""


def from_dict(cls, values, section=None):
    """Make the dataclass ``cls`` from a YAML section; unknown names and values of other types raise ConfigError."""
    section, kinds = section or cls.__name__, typing.get_type_hints(cls)
    values = check_mapping({} if values is None else values, section)
    check_names(values, list(kinds), section)
    for name, value in values.items():
        wanted = typing.get_args(kinds[name]) or (kinds[name],)
        if not any(has_kind(value, kind) for kind in wanted):
            words = " or ".join(KINDS[kind][1] for kind in wanted)
            raise ConfigError(f"{section} {name}: {shown(value)} is not {words}")
        if not all(map(_is_in_range, value if isinstance(value, (list, tuple)) else [value])):
            raise ConfigError(f"{section} {name}: {shown(value)} is no number within +-{MOST}")
    return cls(**values)


MOST = 2**31 - 1  # beyond it sums and products of lengths do not fit


def _is_in_range(value: object) -> bool:
    """False for numbers that are none, or so large that computing with them fails; a section may allow infinity."""
    return not isinstance(value, numbers.Real) or abs(value) <= MOST or value == math.inf


def read_yaml(path: Path | str, advice: str = "mend it") -> dict:
    """The settings of a YAML file by their names; raises ConfigError with the place of the fault and ``advice``."""
    content = Path(path).read_bytes()
    try:
        values = yaml.safe_load(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: bytes that are no UTF-8: {CONVERT}") from error
    except Exception as error:  # besides YAMLError whatever Python raises for a date, a number, too deep a nesting
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        reason = getattr(error, "problem", None) or f"{type(error).__name__}: {error}"
        if isinstance(error, yaml.reader.ReaderError):  # of control characters
            line = content.decode("utf-8-sig").count("\n", 0, error.position) + 1
            reason = f"character U+{error.character:04X}, which YAML does not allow"
        where = f", line {line}" if line else ""
        raise ConfigError(f"{path}{where} is not readable YAML ({reason}): {advice}") from error
    try:
        return check_mapping(values, str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}: {advice}") from error


def check_mapping(values: object, what: str) -> dict:
    """``values``, which must be a mapping of names; raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{what}: {shown(values)} is not a mapping of settings to values")
    for name in values:
        if not isinstance(name, str):
            raise ConfigError(f"{what}: {shown(name)} is no name of a setting: names are text")
    return values


def shown(value: object) -> str:
    """A value in a message: as Python writes it, as far as it fits on a line."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # of whole numbers of thousands of digits
        return f"a {type(value).__name__}"


_SHORT = reprlib.Repr()  # no value is endless, not even one that YAML's references make so
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 2, 3, 4, 60, 60


# type of a field: (what a value may be, in words)
KINDS = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    list: ((list, tuple), "a list"),
    dict: (dict, "a mapping"),
    type(None): (type(None), "null"),
}


def has_kind(value, kind):
    if isinstance(value, numbers.Integral) and not -(2**63) <= value < 2**63:
        return False  # no tensor has such a size, and Python does not even write it
    return isinstance(value, KINDS[kind][0]) and (kind is bool or not isinstance(value, bool))


def check_names(values, names, section):
    """Raise :class:`ConfigError` for the first of ``values`` that is not in the list ``names``."""
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(names)
            raise ConfigError(f"{section} has no setting '{name}'; {hint}")


def signature(cls, *first):
    """A call signature: the parameters ``first``, then the fields of ``cls`` with their defaults.

    A class that takes its section as ``**conf`` shows it as ``__signature__``; ESPnet's ``--print_config`` and
    config.yaml then hold every field.
    """
    return inspect.Signature([*first, *inspect.signature(cls).parameters.values()])


def require(condition, message):
    if not condition:
        raise ConfigError(message)


def is_amount(value):
    return 0 <= value < math.inf  # and no NaN


def require_share(section, conf, *names):
    for name in names:
        require(0 <= getattr(conf, name) < 1, f"{section} {name} {getattr(conf, name)} is not in [0, 1)")


def option(default, text):
    """A field that is a command-line option as well, with its help."""
    return dataclasses.field(default=default, metadata={"help": text})
