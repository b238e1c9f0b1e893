"""Load a trained model from its directory or a packed file, and pack one."""

import argparse
import contextlib
import copy
import lzma
import re
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from espnet_speechllm_xl.errors import UserError, action, of_machine
from espnet_speechllm_xl.experiment import (
    CONFIG,
    CTC_TOKENIZER,
    LLM,
    LLM_WEIGHTS,
    SENTENCEPIECE,
    TOKENIZER,
    WEIGHTS,
    default_weights,
    find_ctc_tokenizer,
    find_tokenizer,
    has_llm_weights,
)
from espnet_speechllm_xl.files import DamagedWeights, atomic_write, read_weights, temporary_folder
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.ctc_spelling import make_spelling
from espnet_speechllm_xl.model.int8 import use_int8
from espnet_speechllm_xl.model.pretrained import shown_digest, weights_follow
from espnet_speechllm_xl.model.weight_layout import store_by_columns
from espnet_speechllm_xl.settings import ConfigError, read_yaml, shown
from espnet_speechllm_xl.systems import SYSTEMS, find_system
from espnet_speechllm_xl.tokenization import Tokenizer, load_tokenizer

if TYPE_CHECKING:  # systems are imported when a model needs them
    from espnet_speechllm_xl.systems.base_system import System

# Of config.yaml, which older models lack: they get the defaults.
LATER_SECTIONS = ("augment_conf", "projection_conf", "text_prompt_conf")
# A packed file may unpack to LARGEST_FREE bytes and LARGEST_RATIO times its own size.  Compression makes weights 1.1
# times smaller and YAML about 10 times.
LARGEST_FREE, LARGEST_RATIO = 1 << 24, 20
INT8 = "int8"
DIGEST = "base_digest"  # last part of the name that a decoder's weights have for the digest of their language model


class ModelError(UserError):
    """A model directory or packed file cannot be used; the message names it and says how to mend it."""


def load_model(
    directory: str | Path,
    task: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    llm: str | Path | None = None,
) -> tuple[Any, Tokenizer, argparse.Namespace]:
    """Load a model from the directory of its training, ready to evaluate.

    Args:
        directory: of the training (experiment.py).
        task: name of the task that the model must have (systems/); None: any.
        weights: file name in the directory; None: the averaged best.
        device: "cpu", "cuda", ...
        dtype: "float32", "float64", "float16", "bfloat16", or "int8": float32 with weights of 8 bits, on a CPU.
        llm: directory of the pretrained language model that the decoder was trained from; None: the one in the model's
            directory, else where it was in training.

    Returns:
        The model (a class of systems/), its tokenizer, and config.yaml as a namespace.

    Raises:
        ModelError: a file is missing or truncated, or the model has another task.
        ConfigError: the configuration makes no model, or ``llm`` is not what the decoder was trained from.
    """
    directory = Path(directory)
    place, kind = _device(device), _dtype(dtype)
    if dtype == INT8 and place.type != "cpu":
        raise ConfigError(f"dtype 'int8' is for a CPU, not for {place}: use bfloat16 there")
    args, system = _read_config(directory, task)
    tokenizer = load_tokenizer(find_tokenizer(directory, args))
    args.stats_file = None  # mean and variance are in the weights
    if len(tokenizer.pieces) != len(args.token_list):
        raise ModelError(
            f"{directory}: the tokenizer has {len(tokenizer.pieces)} tokens, config.yaml {len(args.token_list)}: "
            "they are of different trainings; copy the tokenizer that the model was trained with"
        )
    ctc_tokenizer = _ctc_tokenizer(directory, args)
    if ctc_tokenizer is not None:
        args.loss_conf = {**args.loss_conf, "ctc_tokenizer": str(ctc_tokenizer)}
    path = directory / (weights or default_weights(directory, system.criterion))
    with _naming_weights(path):
        state = read_weights(path)
    _find_llm(args, directory, llm, state)
    try:
        with _no_larger_than(state, _base_size(args)), _Unfilled(), weights_follow():
            model = system.build_model(args)
    except UserError as error:
        raise ConfigError(f"{directory / CONFIG}: {error}") from error
    except Exception as error:  # memory and ESPnet's own parts raise any kind
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{directory / CONFIG}: no model can be made of it ({reason}): restore it") from error
    with _naming_weights(path):
        _give_weights(model, state)
    if ctc_tokenizer is not None:
        cast(CTCHead, model.ctc).spelling = make_spelling(tokenizer, load_tokenizer(ctc_tokenizer))
    model = _cast(model, kind)
    if dtype == INT8:
        use_int8(model)
    model = model.to(place).eval()
    store_by_columns(model)
    return model, tokenizer, args


def _find_llm(
    args: argparse.Namespace, directory: Path, llm: str | Path | None, state: Mapping[str, torch.Tensor]
) -> None:
    """Write into ``args`` where the pretrained language model is, if the decoder has one.

    Args:
        args: config.yaml.
        directory: of the model.
        llm: a user's directory.
        state: weights of the model, with the digest of the language model that they need.

    Raises:
        ConfigError: a directory is given for a model without a pretrained language model.
        ModelError: the weights of the language model are needed, and not there.
    """
    conf = getattr(args, "decoder_conf", None) or {}
    name, own = conf.get("pretrained"), directory / LLM
    if not isinstance(name, str):
        if llm is not None:
            raise ConfigError("this model has no pretrained language model: leave out its directory (--llm)")
        return
    if llm is not None:
        conf["pretrained"] = str(llm)
        return
    if not own.is_dir():
        return
    digest = next((value for key, value in state.items() if key.endswith(f".{DIGEST}")), None)
    if digest is not None and not has_llm_weights(own):
        raise ModelError(
            f"{directory} was trained from the language model {name} (digest {shown_digest(digest)}), and "
            "does not hold its weights: give its directory (--llm DIR)"
        )
    conf["pretrained"] = str(own)


def _ctc_tokenizer(directory: Path, args: argparse.Namespace) -> Path | None:
    """Return the tokenizer of the CTC head's own tokens; raise ModelError where it is not there."""
    try:
        return find_ctc_tokenizer(directory, args)
    except UserError as error:
        raise ModelError(str(error)) from error


@contextlib.contextmanager
def _naming_weights(path: Path) -> Iterator[None]:
    """Turn errors of the block about the weights ``path`` into ModelError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist: finish the training, or name the weights") from error
    except (DamagedWeights, RuntimeError) as error:  # RuntimeError: names or shapes do not fit
        if of_machine(error):
            raise
        reason = " ".join(str(error).split())[:200].strip()
        raise ModelError(
            f"{path} does not load ({reason}): it is truncated or of another configuration; "
            f"copy it again, with its {CONFIG}, or train again"
        ) from error


def _base_size(args: argparse.Namespace) -> int:
    """Count the values in the files of the LLM that a model is built on, of two bytes each; 0 where there is none."""
    directory = (getattr(args, "decoder_conf", None) or {}).get("pretrained")
    if not isinstance(directory, str):
        return 0
    files = (path for pattern in LLM_WEIGHTS for path in Path(directory).glob(pattern))
    return sum(path.stat().st_size for path in files) // 2


@contextlib.contextmanager
def _no_larger_than(state: dict[str, torch.Tensor], others: int) -> Iterator[None]:
    """Raise ConfigError in the block as soon as it makes a model that is far larger than its weights.

    Torch reserves memory for a weight, registers it and then fills it.  A weight that is refused when it is registered
    has used no memory.

    Args:
        state: weights of the model.
        others: number of further weights.
    """

    def size(weight: torch.Tensor) -> int:
        return max(weight.numel(), 64)  # so that millions of layers with hardly a weight do not pass

    # A weight that is shared, replaced or adapted is registered again.
    left = 4 * (sum(map(size, state.values())) + others)
    thread = threading.get_ident()

    def count(_module: torch.nn.Module, _name: str, weight: torch.Tensor | None) -> None:
        nonlocal left
        if weight is None or threading.get_ident() != thread:  # other threads may make their own models
            return
        left -= size(weight)
        if left < 0:
            raise ConfigError("a model of its sizes is far larger than its weights: restore it")

    registered = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        registered.remove()


class _Unfilled(TorchFunctionMode):
    """Within it fresh weights are left as they are, since trained ones will take their place.

    Torch would draw 200 million random numbers in seconds, and need memory for them.
    """

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401  # of any function of torch
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("uniform_", "normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _give_weights(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Make the tensors of ``state`` the model's weights themselves, so that memory holds them once.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    given: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in state:  # weights that are shared stay so
            state[name] = given.setdefault(weight, torch.nn.Parameter(state[name]))
    model.load_state_dict(state, strict=True, assign=True)


def _cast(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Cast the model to ``dtype``, features and their normalisation to float32 at least: half has too small a range."""
    acoustic: Any = model.acoustic
    wide = torch.promote_types(dtype, torch.float32)
    exact = [copy.deepcopy(part).to(wide) for part in (acoustic.log_mel, acoustic.normalizer)]
    model.to(dtype)
    acoustic.log_mel, acoustic.normalizer = exact
    return model


def _device(name: str) -> torch.device:
    try:
        tensor = torch.zeros(1, device=name)
        tensor.item()  # fails on a device that only knows shapes ("meta")
        return tensor.device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"device '{name}' cannot be used ({reason}): use cpu, or cuda where there is a GPU"
        ) from error


def _dtype(name: str) -> torch.dtype:
    if name == INT8:
        return torch.float32
    dtype = getattr(torch, str(name), None)
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise ConfigError(f"dtype '{name}' is unknown: use float32, float64, float16, bfloat16 or int8")
    return dtype


def _read_config(directory: Path, wanted_task: str | None = None) -> "tuple[argparse.Namespace, type[System]]":
    """Read ``config.yaml`` as a namespace, and find its system.

    Raises:
        ModelError: the file is missing or truncated, or its task is not ``wanted_task``.
    """
    path = directory / CONFIG
    if directory.is_file():
        raise ModelError(f"{directory} is a file: what is wanted here is the directory of a trained model")
    if not path.exists():
        raise ModelError(f"{directory} holds no {CONFIG}: give the directory of a trained model, or a packed file")
    try:
        values = read_yaml(path, "it is truncated or something else; restore it or train again")
    except ConfigError as error:
        raise ModelError(str(error)) from error
    found = values.get("task")
    if found not in list(SYSTEMS) or found != (wanted_task or found):
        known = wanted_task or f"one of {', '.join(SYSTEMS)}"
        raise ModelError(f"{path} is of task {shown(found)}, not {known}: give the directory of such a model")
    values = {**dict.fromkeys(LATER_SECTIONS, {}), **values}
    system, args = find_system(found), argparse.Namespace(**values)
    # ESPnet writes "distributed" last: without it the end of the file is missing, and some values may be cut too.
    choices = [name for each in system.part_choices for name in (each.name, f"{each.name}_conf")]
    wanted = ("token_list", "tokenizer", "normalize", *system.sections, *choices, "distributed")
    missing = [name for name in wanted if name not in values]
    if missing:
        raise ModelError(f"{path} lacks {', '.join(missing)}: it is truncated; restore it or train again")
    try:
        system.check_sections(args)
        _check_tokens(args)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}: restore it or train again") from error
    return args, system


def _check_tokens(args: argparse.Namespace) -> None:
    """Raise ConfigError unless token list and tokenizer have the form that training writes."""
    tokens = args.token_list
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise ConfigError(f"token_list: {shown(tokens)} is not a list of tokens")
    if not isinstance(args.tokenizer, str):
        raise ConfigError(f"tokenizer: {shown(args.tokenizer)} is not the name of a file")


def pack(
    directory: str | Path,
    target: str | Path,
    weights: str | None = None,
    with_llm: bool = False,
    llm: str | Path | None = None,
) -> None:
    """Write one file to share (zip) with configuration, tokenizer and weights of a model.

    Of a pretrained language model it gets the configuration.  Its weights are packed where they are wanted, or are in
    the model's own directory.

    Args:
        directory: of the training.
        target: the file to write.
        weights: file name in the directory; None: the averaged best.
        with_llm: pack the weights of a pretrained language model that training left as they were, too.
        llm: directory of that; see :func:`load_model`.

    Raises:
        ModelError: the model does not load.
    """
    directory = Path(directory)
    args, system = _read_config(directory)
    _, _, loaded = load_model(directory, None, weights, llm=llm)  # a damaged model is not packed
    base = (getattr(loaded, "decoder_conf", None) or {}).get("pretrained")
    if with_llm and base is None:
        raise ConfigError(f"{directory} has no pretrained language model: leave out --with-llm")
    with atomic_write(target, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        if base is None:
            archive.write(directory / CONFIG, CONFIG)
        else:
            _pack_llm(archive, directory, Path(base), with_llm)
        archive.write(directory / (weights or default_weights(directory, system.criterion)), WEIGHTS)
        tokenizer = find_tokenizer(directory, args)
        files = [tokenizer] if tokenizer.is_file() else sorted(tokenizer.iterdir())
        for file in files:
            archive.write(file, SENTENCEPIECE if tokenizer.is_file() else f"{TOKENIZER}/{file.name}")
        if ctc_tokenizer := _ctc_tokenizer(directory, args):
            archive.write(ctc_tokenizer, CTC_TOKENIZER)


def _pack_llm(archive: zipfile.ZipFile, directory: Path, base: Path, with_weights: bool) -> None:
    """Pack what a model needs of its language model ``base``, and config.yaml, which names that without its path."""
    values = read_yaml(directory / CONFIG, "it is truncated; restore it or train again")
    inside = base == directory / LLM
    if not inside:
        values["decoder_conf"]["pretrained"] = base.resolve().name
    archive.writestr(CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    # Of weights in several files there is an index, too.
    heavy = [end for name in LLM_WEIGHTS for end in (name, f"{name}.index.json")] if with_weights or inside else []
    for pattern in ("config.json", "generation_config.json", "LICENSE*", *heavy):
        for file in sorted(base.glob(pattern)):
            archive.write(file, f"{LLM}/{file.name}")


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a model directory as it is, or a folder with the content of a packed file, removed when the block ends."""
    if not path.exists():
        raise ModelError(f"{path} does not exist: give a model directory or a packed file")
    if path.is_dir():
        yield path
        return
    with temporary_folder("speechllm_xl.") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                for member in _wanted(archive, path):
                    _unpack(archive, member, folder, path)
        except _DAMAGED as error:
            if isinstance(error, UserError) or of_machine(error):
                raise
            raise ModelError(f"{path} is not a packed model, or is truncated: pack or copy it again") from error
        try:
            yield folder
        except UserError as error:
            # The user knows the packed file, not where it was unpacked.
            raise type(error)(str(error).replace(str(folder), str(path))) from error


# zipfile raises these for another file, a truncated one, one with a password, or an unknown compression.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


def _wanted(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """List the members of a packed model; raise ModelError where they would be far larger than a model is."""
    files = (CONFIG, WEIGHTS, SENTENCEPIECE, CTC_TOKENIZER)
    names = re.compile(rf"{'|'.join(map(re.escape, files))}|({TOKENIZER}|{LLM})/[^/\\]+")
    members = [member for member in archive.infolist() if names.fullmatch(member.filename)]
    size, packed = (sum(getattr(member, name) for member in members) for name in ("file_size", "compress_size"))
    if size > LARGEST_FREE + LARGEST_RATIO * packed:
        raise ModelError(
            f"{path} would be {size / 1e6:.0f} MB when unpacked, over {LARGEST_RATIO} times its size: "
            "that is no model; pack or copy it again"
        )
    return members


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, path: Path) -> None:
    target = folder / member.filename
    try:
        target.parent.mkdir(exist_ok=True)
        with archive.open(member) as source, open(target, "wb") as stream:
            shutil.copyfileobj(source, stream)
    except OSError as error:
        if error.errno is None:  # the archive is damaged
            raise
        raise ModelError(
            f"{path} cannot be unpacked into {folder.parent} (TMPDIR), where {member.filename} takes "
            f"{member.file_size / 1e6:.1f} MB: {error.strerror}: {action(error)}"
        ) from error
