"""Settings as dataclasses: how they are read from YAML, and how they are checked."""

import contextlib
import dataclasses
import difflib
import inspect
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import yaml

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import CONVERT

T = TypeVar("T")
MOST = 2**31 - 1  # beyond it sums and products of lengths do not fit


class ConfigError(UserError):
    """A setting has an unusable value; the message names it and what to do."""


def from_dict(cls: type[T], values: object, section: str | None = None) -> T:
    """Make a dataclass of settings from a section of YAML.

    Args:
        cls: the dataclass; the types of its fields are keys of :data:`KINDS`, or unions of them.
        values: the section, ``{name: value}``; None: every field has its default.
        section: its name in messages; None: the name of the class.

    Raises:
        ConfigError: no mapping, an unknown name, a value of another type, or one that a check of ``cls`` refuses.
    """
    section, hints = section or cls.__name__, typing.get_type_hints(cls)
    values = check_mapping({} if values is None else values, section)
    check_names(values, list(hints), section)
    for name, value in values.items():
        wanted = _kinds(hints[name])
        if not any(has_kind(value, kind) for kind in wanted):
            words = " or ".join(KINDS[kind].words for kind in wanted)
            raise ConfigError(f"{section} {name}: {shown(value)} is not {words}")
        if not all(map(_is_in_range, value if isinstance(value, (list, tuple)) else [value])):
            raise ConfigError(f"{section} {name}: {shown(value)} is no number within +-{MOST}")
    return cls(**values)


def _kinds(hint: type) -> list[type]:
    """Return the keys of :data:`KINDS` that a field's type names: ``list[int] | None`` is list, NoneType."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if is_union else [hint])]


def _is_in_range(value: object) -> bool:
    """Refuse NaN and numbers too large to compute with; the section decides about infinity."""
    if not isinstance(value, numbers.Real):
        return True
    number = cast(float, value)  # as every Real it can be compared, which the types of `numbers` do not say
    return abs(number) <= MOST or number == math.inf


def _load_yaml(text: str) -> object:
    """Return the value of a YAML text; raise any kind of error where there is none."""
    if yaml.__with_libyaml__:
        from yaml import _yaml, composer, constructor, resolver

        # A list of 32000 tokens takes 0.3 s instead of 1.7.  PyYAML's CSafeLoader composes in C, too, and would let
        # deep nesting crash the process.
        class Loader(composer.Composer, _yaml.CParser, constructor.SafeConstructor, resolver.Resolver):
            def __init__(self, stream: str) -> None:
                _yaml.CParser.__init__(self, stream)
                for part in (composer.Composer, constructor.SafeConstructor, resolver.Resolver):
                    part.__init__(self)

        with contextlib.suppress(Exception):  # PyYAML's own parser says more about a fault
            return Loader(text).get_single_data()
    return yaml.safe_load(text)


def read_yaml(path: Path | str, advice: str = "mend it") -> dict[str, Any]:
    """Return the settings of a YAML file by their names.

    Raises:
        ConfigError: the content is unusable; the message has the place of the fault and ``advice``.
        OSError: the file cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        values = _load_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: bytes that are no UTF-8: {CONVERT}") from error
    except Exception as error:  # not only YAMLError: Python has its own for a date, a number, too deep a nesting
        number, reason = _yaml_fault(error, content)
        where = f", line {number}" if number else ""
        raise ConfigError(f"{path}{where} is not readable YAML ({reason}): {advice}") from error
    try:
        return check_mapping(values, str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}: {advice}") from error


def _yaml_fault(error: Exception, content: bytes) -> tuple[int | None, str]:
    """Return the line, from 1, and the reason of an error of the YAML reader; None for a line that it does not say."""
    if isinstance(error, yaml.reader.ReaderError):  # a control character
        line = content.decode("utf-8-sig").count("\n", 0, error.position) + 1
        return line, f"character U+{error.character:04X}, which YAML does not allow"
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else None, getattr(error, "problem", None) or f"{type(error).__name__}: {error}"


def check_mapping(values: object, what: str) -> dict[str, Any]:
    """Return ``values``, a mapping of names to settings; raise ConfigError, which names ``what``, for anything else."""
    if not isinstance(values, dict):
        raise ConfigError(f"{what}: {shown(values)} is not a mapping of settings to values")
    for name in values:
        if not isinstance(name, str):
            raise ConfigError(f"{what}: {shown(name)} is no name of a setting: names are text")
    return values


def shown(value: object) -> str:
    """Write a value for a message: as Python writes it, cut to fit on a line."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__}"


_SHORT = reprlib.Repr()  # also ends a value that YAML's references make endless
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 2, 3, 4, 60, 60


class Kind(NamedTuple):
    """The values that a field may have."""

    accepted: type | tuple[type, ...]
    words: str  # for messages


# type of a field -> what its values may be
KINDS: dict[type, Kind] = {
    bool: Kind(bool, "true or false"),
    int: Kind(numbers.Integral, "a whole number"),
    float: Kind(numbers.Real, "a number"),
    str: Kind(str, "text"),
    list: Kind((list, tuple), "a list"),
    dict: Kind(dict, "a mapping"),
    type(None): Kind(type(None), "null"),
}


def has_kind(value: object, kind: type) -> bool:
    """Tell whether a field of the type ``kind``, a key of :data:`KINDS`, may have this value."""
    if isinstance(value, numbers.Integral) and not -(2**63) <= cast(int, value) < 2**63:
        return False  # no tensor has such a size, and Python does not even write it
    return isinstance(value, KINDS[kind].accepted) and (kind is bool or not isinstance(value, bool))


def check_names(values: Iterable[str], names: Sequence[str], section: str) -> None:
    """Check the names of settings against the known ones.

    Args:
        values: names that the user gave.
        names: known names.
        section: where the names stand, for the message.

    Raises:
        ConfigError: one is unknown; the message has the most similar known name, or all of them.
    """
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(names)
            raise ConfigError(f"{section} has no setting '{name}'; {hint}")


def signature(cls: type, *first: inspect.Parameter) -> inspect.Signature:
    """Return a call signature: the parameters ``first``, then the fields of ``cls`` with their defaults.

    A class that takes its section as ``**conf`` shows it as ``__signature__``.  ESPnet's ``--print_config`` and
    config.yaml then hold every field.
    """
    return inspect.Signature([*first, *inspect.signature(cls).parameters.values()])


def require(condition: object, message: str) -> None:
    """Raise ConfigError with the message where the condition is false."""
    if not condition:
        raise ConfigError(message)


def is_amount(value: float) -> bool:
    """Tell whether a number is neither negative, nor infinite, nor NaN."""
    return 0 <= value < math.inf


def require_share(section: str, config: object, *names: str) -> None:
    """Raise ConfigError where a field of ``config`` among ``names`` is not in [0, 1); the message names the section."""
    for name in names:
        require(0 <= getattr(config, name) < 1, f"{section} {name} {getattr(config, name)} is not in [0, 1)")


def option(default: T, text: str) -> T:
    """Declare a field of a dataclass that is a command-line option, too; ``text`` is its help."""
    return dataclasses.field(default=default, metadata={"help": text})
