"""Load a trained model and transcribe: ``Speech2Text``."""

import argparse
import contextlib
import copy
import dataclasses
import lzma
import re
import shutil
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.audio import AudioError, conform, read_file
from espnet_speechllm_xl.config import ConfigError, SearchConfig, StreamConfig, from_dict, read_yaml, shown
from espnet_speechllm_xl.errors import UserError, action, of_machine
from espnet_speechllm_xl.io import DamagedWeights, atomic_write, read_weights, temporary_folder
from espnet_speechllm_xl.joint import JointModel, check_model
from espnet_speechllm_xl.streaming import Stream
from espnet_speechllm_xl.tasks import TASKS, find_task
from espnet_speechllm_xl.text import load_tokenizer

CONFIG, TOKENIZER, WEIGHTS = "config.yaml", "tokenizer", "model.pth"
LATER_SECTIONS = ("augment_conf",)  # of config.yaml, that models of before do not have: their defaults
# A packed file may unpack to so many bytes, and so many times its size besides: whoever packs with compression makes
# weights 1.1 times smaller, YAML about 10 times.
LARGEST_FREE, LARGEST_RATIO = 1 << 24, 20


class ModelError(UserError):
    """A model directory or packed file cannot be used; the message names it and what to do."""


def load_model(directory, task=None, weights=None, device="cpu", dtype="float32"):
    """Model, tokenizer and configuration of an experiment directory, ready to evaluate.

    Args:
        directory: holds ``config.yaml``, the tokenizer and the weights.
        task: name of the task it must be of (tasks/); None: any.
        weights: file name in the directory; None: the averaged best.
        device, dtype: of the result.

    Raises:
        ModelError: something is missing, truncated, of another task, or does not fit the configuration.
    """
    directory = Path(directory)
    device, dtype = _device(device), _dtype(dtype)
    args, task = _read_config(directory, task)
    tokenizer = load_tokenizer(_find_tokenizer(directory, args))
    args.stats_file = None  # mean and variance are in the weights
    if len(tokenizer.pieces) != len(args.token_list):
        raise ModelError(
            f"{directory}: the tokenizer has {len(tokenizer.pieces)} tokens, config.yaml {len(args.token_list)}: "
            "they are of different trainings; copy the tokenizer that the model was trained with"
        )
    path = directory / (weights or _default_weights(directory, task))
    with _naming_weights(path):
        state = read_weights(path)
    try:
        with _no_larger_than(state):
            model = task.build_model(args)
    except UserError as error:
        raise ConfigError(f"{directory / CONFIG}: {error}") from error
    except Exception as error:  # sizes that memory cannot hold, settings of ESPnet's own parts: any kind
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{directory / CONFIG}: no model can be made of it ({reason}): restore it") from error
    with _naming_weights(path):
        model.load_state_dict(state, strict=True)
    return _cast(model, dtype).to(device).eval(), tokenizer, args


@contextlib.contextmanager
def _naming_weights(path: Path) -> Iterator[None]:
    """What is wrong with the weights of a file, in the block, raises ModelError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist: finish the training, or name the weights") from error
    except (DamagedWeights, RuntimeError) as error:  # the latter where names or shapes do not fit
        if of_machine(error):
            raise
        reason = " ".join(str(error).split())[:200].strip()
        raise ModelError(
            f"{path} does not load ({reason}): it is truncated or of another configuration; "
            f"copy it again, with its {CONFIG}, or train again"
        ) from error


@contextlib.contextmanager
def _no_larger_than(state: dict[str, torch.Tensor]) -> Iterator[None]:
    """Raise ConfigError in the block as soon as it makes a model that is far larger than the weights ``state``.

    Torch reserves memory for a weight, registers it and then fills it: what is refused in between has used none.
    """

    def size(weight: torch.Tensor) -> int:
        return max(weight.numel(), 64)  # else millions of layers with hardly a weight would pass

    left = 4 * sum(map(size, state.values()))  # one may be registered again: when it is shared, replaced, adapted
    thread = threading.get_ident()

    def count(_module: torch.nn.Module, _name: str, weight: torch.Tensor | None) -> None:
        nonlocal left
        if weight is None or threading.get_ident() != thread:  # others may make theirs
            return
        left -= size(weight)
        if left < 0:
            raise ConfigError("a model of its sizes is far larger than its weights: restore it")

    registered = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        registered.remove()


def _cast(model, dtype):
    """The model in ``dtype``; features and their normalisation in float32 at least: half has too small a range."""
    acoustic = model.acoustic
    wide = torch.promote_types(dtype, torch.float32)
    exact = [copy.deepcopy(part).to(wide) for part in (acoustic.log_mel, acoustic.normalizer)]
    model.to(dtype)
    acoustic.log_mel, acoustic.normalizer = exact
    return model


def _device(name):
    try:
        tensor = torch.zeros(1, device=name)
        tensor.item()  # which a device that only knows shapes ("meta") cannot give
        return tensor.device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"device '{name}' cannot be used ({reason}): use cpu, or cuda where there is a GPU"
        ) from error


def _dtype(name):
    dtype = getattr(torch, str(name), None)
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise ConfigError(f"dtype '{name}' is unknown: use float32, float64, float16 or bfloat16")
    return dtype


def _read_config(directory, wanted_task=None):
    """``config.yaml`` as a namespace, and the task; raises ModelError, also unless it is of ``wanted_task``."""
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
    if found not in list(TASKS) or found != (wanted_task or found):
        known = wanted_task or f"one of {', '.join(TASKS)}"
        raise ModelError(f"{path} is of task {shown(found)}, not {known}: give the directory of such a model")
    values = {**dict.fromkeys(LATER_SECTIONS, {}), **values}
    task, args = find_task(found), argparse.Namespace(**values)
    # ESPnet writes "distributed" last: where it lacks, the end is missing, and some values may be cut too.
    choices = [name for each in task.class_choices_list for name in (each.name, f"{each.name}_conf")]
    wanted = ("token_list", "tokenizer", "normalize", *task.sections, *choices, "distributed")
    missing = [name for name in wanted if name not in values]
    if missing:
        raise ModelError(f"{path} lacks {', '.join(missing)}: it is truncated; restore it or train again")
    try:
        task.check_sections(args)
        _check_tokens(args)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}: restore it or train again") from error
    return args, task


def _check_tokens(args: argparse.Namespace) -> None:
    """Raise ConfigError unless token list and tokenizer are what training writes."""
    tokens = args.token_list
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise ConfigError(f"token_list: {shown(tokens)} is not a list of tokens")
    if not isinstance(args.tokenizer, str):
        raise ConfigError(f"tokenizer: {shown(args.tokenizer)} is not the name of a file")


def _find_tokenizer(directory, args):
    """The copy beside the weights, else the file that training used."""
    for path in (directory / TOKENIZER, directory / f"{TOKENIZER}.model"):
        if path.exists():
            return path
    return args.tokenizer


def _default_weights(directory, task):
    phase, name, _ = task.criterion
    average = f"{phase}.{name}.ave.pth"
    others = sorted(path.name for path in directory.glob("valid.*.ave.pth"))  # of another best_model_criterion
    if average not in others and len(others) == 1:
        return others[0]
    return average if average in others else WEIGHTS


class Speech2Text:
    """Transcribe files and arrays, with a SpeechLLM-XL or a baseline.

    >>> s2t = Speech2Text.from_pretrained("exp/speechllm_xl_tiny")
    >>> s2t("speech.wav")[0].text
    """

    def __init__(self, task, model, tokenizer, search, chunking):
        self.task = task
        self.model = model
        self.tokenizer = tokenizer
        self.search = search
        self.chunking = chunking  # None: the model has no chunks

    @classmethod
    def from_pretrained(
        cls,
        path,
        device="cpu",
        dtype="float32",
        weights=None,
        chunk_size=None,
        context=None,
        search=None,
        **search_conf,
    ):
        """Load a model directory or a packed file.

        Args:
            path: experiment directory, or a file made by ``speechllm-xl pack``.
            device: "cpu", "cuda", ...
            dtype: "float32", "float64", "bfloat16", ...
            weights: file name of the weights in the directory; None: the averaged best.
            chunk_size, context: seconds, in place of training's; infinity is allowed.
            search: "greedy", "chunk_sync" or "alsd", or as the baseline's task has them; None: as the model's
                configuration says.
            search_conf: other fields of :class:`~espnet_speechllm_xl.config.SearchConfig`.

        Raises:
            ModelError: the model is missing, damaged or of another task.
            TokenizerError: the tokenizer is missing or damaged.
            UserError: a setting does not fit (ConfigError), or is off the grid of frames and chunks.
        """
        with _unpacked(Path(path)) as directory:
            model, tokenizer, args = load_model(directory, None, weights, device, dtype)
            own = _own_search(directory, args, model, given=search_conf)
        task = find_task(args.task)
        choices = task.search_choices
        if "method" in search_conf:
            raise ConfigError(f"method '{search_conf['method']}': give search instead")
        settings = {**own, **search_conf, "method": search or own["method"]}
        config = from_dict(SearchConfig, settings, "search_conf")
        if config.method not in choices.classes:
            raise ConfigError(
                f"search '{config.method}': a model of task '{task.name}' has {', '.join(choices.classes)}"
            )
        chunking = _rechunk(getattr(model, "chunking", None), chunk_size, context)
        if chunking is not None:
            chunking.check_against(model.acoustic.encoder.config)
        if config.ctc_weight:
            model = JointModel(model, config.ctc_weight)
        return cls(task, model, tokenizer, config, chunking)

    @property
    def sample_rate(self):
        """Hz that arrays and streams must have."""
        return self.model.acoustic.config.sample_rate

    def __call__(self, audio, sample_rate=None, channel: int | None = None):
        """The n-best :class:`~espnet_speechllm_xl.streaming.Transcript` list, best first.

        Args:
            audio: a file name, or a float array (n,) in [-1, 1].
            sample_rate: Hz of the array; another rate than the model's is resampled.
            channel: which one (0-based) of several; None averages them.
        """
        return self.transcribe_batch([self.load(audio, sample_rate, channel)])[0]

    def load(self, audio, sample_rate=None, channel: int | None = None, notes: dict | None = None):
        """Samples (n,) at the model's rate; raises :class:`~espnet_speechllm_xl.audio.AudioError`.

        Arguments as in the call; ``notes`` takes the remarks on the audio (audio.py), None logs them.
        """
        if isinstance(audio, (str, Path)):
            return read_file(audio, self.sample_rate, channel=channel, notes=notes)
        if getattr(audio, "ndim", 1) == 2 and audio.shape[1] > audio.shape[0]:
            raise AudioError("unreadable", f"audio array of {tuple(audio.shape)}: give (samples,) or its transpose")
        rate = self.sample_rate if sample_rate is None else sample_rate
        if not rate > 0:
            raise AudioError("sample-rate", f"audio array at {rate} Hz: give the rate that it was recorded with")
        return conform(audio, rate, self.sample_rate, channel=channel, notes=notes)

    def transcribe_batch(self, recordings):
        """The n-best lists of several recordings (n,), decoded together; each as if alone."""
        if not recordings:
            return []
        return self.task.transcribe(self.model, self.tokenizer, self.chunking, self.search, recordings)

    def stream(self, search=None, chunk_size=None, context=None, **stream_conf):
        """A :class:`~espnet_speechllm_xl.streaming.Stream` for audio that is still arriving.

        Args:
            search: "chunk_sync" or "greedy"; None: this object's, chunk_sync in place of alsd.
            chunk_size, context: seconds, in place of this object's.
            stream_conf: fields of :class:`~espnet_speechllm_xl.config.StreamConfig`.

        Raises:
            ConfigError: an unknown field, the search "alsd", which needs all audio before the first word, or a
                model without chunks.
            UserError: a duration off the grid of frames and chunks.
        """
        if self.chunking is None:
            raise ConfigError(
                f"a model of task '{self.task.name}' decodes whole recordings only: a live stream needs one that "
                "writes chunk by chunk"
            )
        chunking = _rechunk(self.chunking, chunk_size, context)
        config = from_dict(StreamConfig, stream_conf, "stream_conf")
        search = search or ("chunk_sync" if self.search.method == "alsd" else self.search.method)
        return Stream(self.model, self.tokenizer, chunking, dataclasses.replace(self.search, method=search), config)


def _own_search(directory: Path, args: argparse.Namespace, model: torch.nn.Module, given: dict) -> dict:
    """The model's own fields of :class:`SearchConfig`, without those that are ``given`` otherwise.

    Raises ConfigError naming the model's file where they are bad.
    """
    # An aligner of before it could be decoded has no settings for that.
    method = getattr(args, "search", find_task(args.task).search_choices.default)
    settings = {**getattr(args, "search_conf", {}), "method": method}
    settings = {name: value for name, value in settings.items() if name not in given}
    try:
        if from_dict(SearchConfig, settings, "search_conf").ctc_weight:
            check_model(model)
    except ConfigError as error:
        raise ConfigError(f"{directory / CONFIG}: {error}: restore it or train again") from error
    return settings


def _rechunk(chunking, chunk_size, context):
    """``chunking`` with a user's chunk size and context in seconds; a context that is not given keeps its length."""
    if chunking is None and (chunk_size, context) != (None, None):
        raise ConfigError("this model has no chunks: leave out the chunk size and the context")
    if chunk_size is not None:
        chunking = chunking.resized(timeline.frames_from_seconds(chunk_size, "chunk size"))
    if context is not None:
        chunking = dataclasses.replace(chunking, context=timeline.chunks_from_seconds(context, chunking.chunk))
    return chunking


def pack(directory, target, weights=None):
    """One file to share: configuration, tokenizer and weights of an experiment directory (zip)."""
    directory = Path(directory)
    args, task = _read_config(directory)
    load_model(directory, None, weights)  # what does not load is not packed
    with atomic_write(target, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.write(directory / CONFIG, CONFIG)
        archive.write(directory / (weights or _default_weights(directory, task)), WEIGHTS)
        tokenizer = Path(_find_tokenizer(directory, args))
        files = [tokenizer] if tokenizer.is_file() else sorted(tokenizer.iterdir())
        for file in files:
            archive.write(file, f"{TOKENIZER}.model" if tokenizer.is_file() else f"{TOKENIZER}/{file.name}")


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """Yield a model directory as it is; of a packed file a folder with its content, removed when the block ends."""
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


# What zipfile raises for a file that is none, is truncated, has a password, or is compressed in ways it does not know.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


def _wanted(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The members of a packed model; raises ModelError where they would be far larger than a model is."""
    names = re.compile(rf"{re.escape(CONFIG)}|{re.escape(WEIGHTS)}|{TOKENIZER}\.model|{TOKENIZER}/[^/\\]+")
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
        if error.errno is None:  # of the archive
            raise
        raise ModelError(
            f"{path} cannot be unpacked into {folder.parent} (TMPDIR), where {member.filename} takes "
            f"{member.file_size / 1e6:.1f} MB: {error.strerror}: {action(error)}"
        ) from error
