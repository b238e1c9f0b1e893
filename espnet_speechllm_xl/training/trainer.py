"""ESPnet's trainer with whole checkpoints, right averages and progress lines; the training loops stay ESPnet's.

ESPnet 202511 to 202611 have these faults, mended here:

- They write checkpoints in place: a kill leaves a truncated file, and the training cannot be resumed.
- With fewer epochs than n, the n-best average is no average at all.
- Gradients that accumulation leaves over at the end of an epoch leak into the next one, but not into a resumed one.
- ``--init_param`` silently loads nothing when no name fits.

Faults of single releases: :mod:`~espnet_speechllm_xl.training.compat`.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Protocol, TypeVar

import espnet2.train.trainer as espnet_trainer
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model as _load_pretrained_model
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter, aggregate
from espnet2.utils.build_dataclass import build_dataclass
from torch.nn.attention import SDPBackend, sdpa_kernel

from espnet_speechllm_xl.errors import UserError, of_machine
from espnet_speechllm_xl.experiment import CHECKPOINT, average_name
from espnet_speechllm_xl.files import DamagedWeights, atomic_write, read_weights
from espnet_speechllm_xl.training import compat
from espnet_speechllm_xl.training.batches import BatchFactory, Padding
from espnet_speechllm_xl.training.checks import parse_init_param
from espnet_speechllm_xl.training.layers import compiled_layers, recompute_layers
from espnet_speechllm_xl.training.schedule import LinearShares

SHOWN = ("loss", "acc", "ter", "cer_ctc")  # figures of the validation that the line of an epoch shows

Criteria = Sequence[Sequence[str]]  # (phase, name of a figure, "min" or "max") each
Batch_co = TypeVar("Batch_co", covariant=True)
Loaded = tuple[list[str], dict[str, torch.Tensor]]  # utterance ids and batch, as batches.collate makes them


class CheckpointError(UserError):
    """Weights cannot be loaded; the message names the file and what to do."""


class StoppedEarlyError(Exception):
    """The training to be resumed had already ended by ``patience``; ``reporter`` has its epochs."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter


class Options(Protocol):
    """The part of ESPnet's ``TrainerOptions`` that this module reads."""

    accum_grad: int
    max_epoch: int
    output_dir: Path | str
    keep_nbest_models: int | list[int]
    best_model_criterion: Criteria
    patience: int | None
    early_stopping_criterion: Sequence[str]
    compile_layers: str | None
    recompute_layers: bool


@dataclass
class TrainerOptions(espnet_trainer.TrainerOptions):
    """ESPnet's options of the trainer, and those of :mod:`~espnet_speechllm_xl.training.layers`."""

    compile_layers: str | None
    recompute_layers: bool


class Batches(Iterable[Batch_co], Sized, Protocol[Batch_co]):
    """An epoch's batches, whose number is known."""


class Trainer(espnet_trainer.Trainer):
    """ESPnet's trainer, mended."""

    progress: "TrainingProgress"  # set by run()
    options: Options

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> TrainerOptions:
        """Return the part of the training's options that the trainer reads; ESPnet's own tasks lack ours."""
        ours = {"compile_layers": None, "recompute_layers": False}
        return build_dataclass(TrainerOptions, argparse.Namespace(**{**ours, **vars(args)}))

    @classmethod
    def run(
        cls,
        *,
        model: torch.nn.Module,
        schedulers: Sequence[object],
        train_iter_factory: AbsIterFactory,
        trainer_options: Options,
        distributed_option: DistributedOption,
        **others: object,
    ) -> None:
        """Train as ESPnet does; files appear whole, and ``<criterion>.ave.pth`` is the mean of the n best epochs.

        Args:
            model: is trained.
            schedulers: the learning rate schedules.
            train_iter_factory: makes the batches of an epoch.
            trainer_options: settings of the training.
            distributed_option: which of the processes this is.
            others: ESPnet's other arguments, passed on.
        """
        options = trainer_options
        schedules = [schedule for schedule in schedulers if isinstance(schedule, LinearShares)]
        if schedules:
            num_batches = len(train_iter_factory.build_iter(1))  # other epochs have about as many
            for schedule in schedules:
                schedule.begin(num_batches // options.accum_grad * options.max_epoch)
        # The batches of ESPnet's own systems are ESPnet's.
        new_padding = train_iter_factory.new_padding if isinstance(train_iter_factory, BatchFactory) else None
        cls.progress = TrainingProgress(options.max_epoch, new_padding, schedules)
        cls.options = options
        for leftover in Path(options.output_dir).glob(".*.pth.*.pth"):  # from a killed run
            leftover.unlink(missing_ok=True)
        keep_freed_memory()
        with (
            replaced(torch, "save", _atomic_save),
            replaced(espnet_trainer, "average_nbest_models", average_best),
            compiled_layers(model, options.compile_layers),
        ):
            if options.recompute_layers:
                recompute_layers(model)
            try:
                super().run(
                    model=model,
                    schedulers=schedulers,
                    train_iter_factory=train_iter_factory,
                    trainer_options=options,
                    distributed_option=distributed_option,
                    **others,
                )
            except StoppedEarlyError as error:
                if _is_first(distributed_option):
                    nbest = options.keep_nbest_models
                    average_best(error.reporter, options.output_dir, options.best_model_criterion, nbest)

    @classmethod
    def resume(cls, checkpoint: str | Path, model: torch.nn.Module, reporter: Reporter, **others: object) -> None:
        """Load ``checkpoint.pth``, and write the weights of its epoch if a kill had prevented that.

        Args:
            checkpoint: the file.
            model: takes the weights.
            reporter: takes the figures of the epochs.
            others: ESPnet's other arguments, passed on.

        Raises:
            CheckpointError: the file is damaged or belongs to another model.
            StoppedEarlyError: the training had ended by ``patience``, and this ESPnet would train one more epoch.
        """
        load = functools.partial(compat.load_checkpoint, torch.load)
        try:
            with replaced(torch, "load", load):
                espnet_trainer.Trainer.resume(checkpoint=checkpoint, model=model, reporter=reporter, **others)
        except UserError:
            raise
        except Exception as error:  # torch and ESPnet raise any kind for a file of other content
            if of_machine(error):
                raise
            raise CheckpointError(
                f"{checkpoint} cannot be resumed ({_first_line(error)}): it is truncated or of another model; "
                "remove it to start again, or remove the whole directory"
            ) from error
        for schedule in cls.progress.schedules:
            if (change := schedule.change()) is not None:
                print(change)
        epoch_file = Path(checkpoint).parent / f"{reporter.get_epoch()}epoch.pth"
        if not epoch_file.exists():
            _atomic_save(model.state_dict(), epoch_file)
        patience, criterion = cls.options.patience, cls.options.early_stopping_criterion
        if patience is not None and reporter.check_early_stopping(patience, *criterion):
            print(f"epoch {reporter.get_epoch()}: the training had stopped early (patience {patience})")
            if not compat.resumes_what_had_stopped():
                raise StoppedEarlyError(reporter)

    @classmethod
    def train_one_epoch(
        cls,
        *,
        iterator: Batches[Loaded],
        optimizers: Sequence[torch.optim.Optimizer],
        reporter: SubReporter,
        distributed_option: DistributedOption,
        **others: object,
    ) -> bool:
        """Train one epoch with progress lines (rank 0); return ESPnet's "no step was valid", always False here.

        Args:
            iterator: the batches of the epoch.
            optimizers: their gradients begin at zero.
            reporter: takes the figures of the epoch.
            distributed_option: which of the processes this is.
            others: ESPnet's other arguments, passed on.

        Raises:
            UserError: no batch changed the weights.
        """
        for optimizer in optimizers:
            optimizer.zero_grad()
        watched = cls.progress.watch(iterator, reporter) if _is_first(distributed_option) else iterator
        no_valid_step = super().train_one_epoch(
            iterator=watched, optimizers=optimizers, reporter=reporter, distributed_option=distributed_option, **others
        )
        if no_valid_step:
            raise UserError(
                f"epoch {reporter.epoch}: none of its {len(iterator)} batches changed the weights: gradients were not "
                f"finite (lower the learning rate), or accum_grad {cls.options.accum_grad} is larger than their number"
            )
        cls.progress.trained(reporter)
        return no_valid_step

    @classmethod
    def validate_one_epoch(
        cls, *, reporter: SubReporter, distributed_option: DistributedOption, **others: object
    ) -> None:
        """Validate, then print the figures of the epoch and the time left in one line (rank 0).

        Args:
            reporter: takes the figures of the validation.
            distributed_option: which of the processes this is.
            others: ESPnet's other arguments, passed on.

        Raises:
            UserError: the validation has no figure of a criterion's name.
        """
        super().validate_one_epoch(reporter=reporter, distributed_option=distributed_option, **others)
        for phase, name, _ in cls.options.best_model_criterion:
            if phase == "valid" and name not in reporter.stats:
                known = ", ".join(sorted(reporter.stats))
                raise UserError(f"best_model_criterion: the validation has no '{name}'; it has: {known}")
        if _is_first(distributed_option):
            cls.progress.validated(reporter)


def _is_first(distributed_option: DistributedOption) -> bool:
    """Tell whether this process is the first of the training, or its only one."""
    return not distributed_option.distributed or distributed_option.dist_rank == 0


class TrainingProgress:
    """Progress on standard output: a line an epoch, and a line a minute within a long epoch.

    Args:
        max_epoch: the last epoch.
        new_padding: makes a counter of padding, for an epoch; None: padding is not shown.
        schedules: learning rate schedules to show.
    """

    def __init__(
        self, max_epoch: int, new_padding: Callable[[], Padding] | None, schedules: Sequence[LinearShares] = ()
    ) -> None:
        self.max_epoch, self.new_padding, self.schedules = max_epoch, new_padding, schedules
        self.padding: Padding | None = None  # of the epoch
        self.start = time.monotonic()
        self.done = 0  # epochs of this run
        self.train_loss = float("nan")

    def watch(self, batches: Batches[Loaded], reporter: SubReporter) -> Iterator[Loaded]:
        """Yield the batches of an epoch, and count their padding; print once a minute how many are done."""
        self.padding = self.new_padding() if self.new_padding is not None else None
        start = printed = time.monotonic()
        for count, batch in enumerate(batches, 1):
            if self.padding is not None:
                self.padding.add(batch[1])
            yield batch
            if time.monotonic() - printed >= 60:
                printed = time.monotonic()
                left = (printed - start) / count * (len(batches) - count)
                print(
                    f"epoch {reporter.epoch}/{self.max_epoch}: batch {count}/{len(batches)}, "
                    f"{left / 60:.0f} min to the end of the epoch",
                    flush=True,
                )

    def trained(self, reporter: SubReporter) -> None:
        """Keep the training loss of the epoch."""
        self.train_loss = float(aggregate(reporter.stats["loss"]))

    def validated(self, reporter: SubReporter) -> None:
        """Print the line of the epoch."""
        self.done += 1
        elapsed = time.monotonic() - self.start
        left = elapsed / self.done * (self.max_epoch - reporter.epoch)
        stats = {name: float(aggregate(reporter.stats[name])) for name in SHOWN if name in reporter.stats}
        # ESPnet's models without a decoder report NaN as accuracy.
        shown = [name for name, value in stats.items() if name == "loss" or not math.isnan(value)]
        valid = ", ".join(f"{name} {stats[name]:.3f}" for name in shown)
        place = "".join(
            f"learning rate {schedule.rate(schedule.steps):.2g} at {schedule.share:.0%} of its schedule; "
            for schedule in self.schedules
        )
        padding = ""
        if self.padding is not None:
            frames, inputs = self.padding.shares
            padding = f"padding {frames:.1%} of the frames, {inputs:.1%} with the tokens; "
        print(
            f"epoch {reporter.epoch}/{self.max_epoch}: train loss {self.train_loss:.3f}; valid {valid}; {place}"
            f"{padding}{elapsed / self.done:.0f} s an epoch, {left / 60:.0f} min left",
            flush=True,
        )


def average_best(
    reporter: Reporter,
    output_dir: Path | str,
    best_model_criterion: Criteria,
    nbest: int | Sequence[int],
    suffix: str | None = None,
    use_deepspeed: bool = False,
) -> None:
    """Average the n best epochs of each criterion into ``<phase>.<name>.ave.pth`` (all epochs when fewer).

    Replaces ESPnet's ``average_nbest_models``.  Integer tensors are taken from the best epoch.

    Args:
        reporter: has the figures of the epochs.
        output_dir: directory of the experiment.
        best_model_criterion: the criteria.
        nbest: n; of several numbers the greatest.
        suffix: stands before ``.pth``; None: the training has ended, and the links and the old epochs are tidied.
        use_deepspeed: ignored.
    """
    count = max([nbest] if isinstance(nbest, int) else nbest)
    for phase, name, mode in best_model_criterion:
        if not reporter.has(phase, name):
            continue
        # An earlier run with a smaller keep_nbest_models has removed the others.
        ranked = _ranked(reporter, phase, name, mode)
        epochs = [epoch for epoch in ranked if (Path(output_dir) / f"{epoch}epoch.pth").exists()][:count]
        states = [torch.load(Path(output_dir) / f"{epoch}epoch.pth", map_location="cpu") for epoch in epochs]
        mean = {
            key: sum(state[key].double() for state in states).div(len(states)).to(first.dtype)
            if first.is_floating_point()
            else first
            for key, first in states[0].items()
        }
        _atomic_save(mean, Path(output_dir) / average_name(phase, name, suffix))
    if suffix is None:
        _tidy(reporter, Path(output_dir), best_model_criterion, count)


def _ranked(reporter: Reporter, phase: str, name: str, mode: str) -> list[int]:
    """Rank the epochs, best first, NaN last; ESPnet's ``sort_epochs`` sorts wrongly with NaN among the values."""
    sign = -1 if mode == "max" else 1
    values = {epoch: reporter.get_value(phase, name, epoch) for epoch in sorted(reporter.stats)}
    return sorted(values, key=lambda epoch: (math.isnan(values[epoch]), sign * values[epoch]))


def _tidy(reporter: Reporter, directory: Path, criteria: Criteria, count: int) -> None:
    """Link the latest and the best epochs and remove all but the latest and the ``count`` best.

    ESPnet does so after each checkpoint, but a kill may have prevented it.
    """
    links, kept = {"latest": reporter.get_epoch()}, {reporter.get_epoch()}
    for phase, name, mode in criteria:
        if reporter.has(phase, name):
            best = _ranked(reporter, phase, name, mode)[:count]
            links[f"{phase}.{name}.best"] = best[0]
            kept.update(best)
    for name, epoch in links.items():
        link, target = directory / f"{name}.pth", f"{epoch}epoch.pth"
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    for epoch in set(reporter.stats) - kept:
        (directory / f"{epoch}epoch.pth").unlink(missing_ok=True)


def load_part(
    init_param: str, model: torch.nn.Module, ignore_init_mismatch: bool, map_location: str | torch.device = "cpu"
) -> None:
    """Load a part of the model (ESPnet's ``--init_param``), or raise an error if a weight would stay unloaded.

    Args:
        init_param: ``FILE:SOURCE:TARGET[:EXCLUDED]``.
        model: takes the weights.
        ignore_init_mismatch: load the weights that fit, one at least, and leave the others.
        map_location: device that the weights are loaded to.

    Raises:
        CheckpointError: the file is missing or damaged, or its names or shapes are not the model's.
    """
    path, source, target, excluded = parse_init_param(init_param)
    try:
        state = read_weights(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"init_param {path} does not exist: train that model first") from error
    except DamagedWeights as error:
        raise CheckpointError(f"init_param {path} does not load ({error}): train it again") from error
    prefix = f"{source}." if source else ""
    given = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    try:
        part = model.get_submodule(target)
    except AttributeError as error:
        parts = ", ".join(name for name, _ in model.named_children())
        raise CheckpointError(f"init_param {init_param}: the model has no '{target}'; it has: {parts}") from error
    left_out = tuple(filter(None, excluded.split(",")))
    needed = {name for name in part.state_dict() if not (left_out and (prefix + name).startswith(left_out))}
    if not given or (needed - given and not ignore_init_mismatch):
        lacking = sorted(needed - given)
        raise CheckpointError(
            f"init_param {init_param}: the file lacks {len(lacking)} of {len(needed)} parts of "
            f"'{target or 'the model'}', first '{lacking[0]}': give encoder_conf as that model had it, "
            "or --ignore_init_mismatch true"
        )
    shapes = {name: value.shape for name, value in part.named_parameters()}
    fits = any(state.get(prefix + name, torch.empty(0)).shape == shape for name, shape in shapes.items())
    if ignore_init_mismatch and not fits:
        raise CheckpointError(
            f"init_param {init_param}: none of its weights has the shape of the model's: give encoder_conf as that "
            "model had it, or start without it"
        )
    try:
        _load_pretrained_model(init_param, model, ignore_init_mismatch, map_location)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"init_param {init_param} does not fit ({detail}): give encoder_conf as that model had it, "
            "or --ignore_init_mismatch true"
        ) from error


def keep_settings(directory: Path, settings: Mapping[str, object], resume: bool) -> None:
    """Write ``settings.json`` when a training begins; raise an error if it is resumed with other settings.

    ESPnet would mix the two: the optimizer and its schedule come from the checkpoint, all else from the new settings.
    If the epochs are done, it would do nothing at all.

    Args:
        directory: the experiment's.
        settings: the present settings, ``{name: value}``.
        resume: False begins anew, even if there is a checkpoint.

    Raises:
        CheckpointError: there is a checkpoint, and some settings differ; the message names the first.
    """
    file = directory / "settings.json"
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if not resume or not (directory / CHECKPOINT).exists() or not file.exists():
        with atomic_write(file) as stream:
            json.dump(settings, stream, indent=1)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    # A setting that is newer than the training has no value to compare with.
    changed = [name for name, value in settings.items() if before.get(name, value) != value]
    if changed:
        name = changed[0]
        values = "" if name == "token_list" else f" (was {before[name]}, is {settings[name]})"
        more = f" and {len(changed) - 1} more settings" if len(changed) > 1 else ""
        raise CheckpointError(
            f"{directory} was trained with another {name}{values}{more}: give this training a name of its own "
            f"(run.sh --tag or --aligner-tag), or remove {directory} to train again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_torch_save: Callable[..., None] = torch.save


def _atomic_save(
    value: object, target: str | os.PathLike | IO[bytes], *arguments: object, **options: object
) -> None:
    """Save as ``torch.save`` does, but leave the old file or the new one, never a part.

    Args:
        value: what is saved.
        target: file name or stream.
        arguments: other arguments of ``torch.save``.
        options: its keyword arguments.
    """
    if not isinstance(target, (str, os.PathLike)):
        _torch_save(value, target, *arguments, **options)
        return
    # Into a stream: torch writes the name of a path into the file, and equal weights would make unequal files.
    with atomic_write(target, "wb") as stream:
        _torch_save(value, stream, *arguments, **options)


def keep_freed_memory() -> None:
    """Keep the memory that a training step frees for the next step instead of returning it to the system (glibc only).

    The system would clear all of it again in every step: a tenth of a step's time on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (its greatest value) of malloc.h.
        for option, size in ((-1, 2**31 - 1), (-2, 64 * 2**20), (-3, 32 * 2**20)):
            mallopt(option, size)


@contextlib.contextmanager
def matmul_precision(name: str, on_cpu: bool) -> Iterator[None]:
    """Set ``torch.set_float32_matmul_precision(name)`` within the block.

    ``medium`` allows bfloat16 inside; on a CPU torch 2.11 then takes oneDNN's products instead of MKL's.  On one core
    of an AMD Zen 5 oneDNN's are twice as fast and as exact.  But torch's fused attention gets three times slower, so
    attention is made of plain products there; a training step then takes three quarters of the time.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        with sdpa_kernel(SDPBackend.MATH) if on_cpu and name == "medium" else contextlib.nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a module within the block.

    Args:
        module: the module.
        name: name of the attribute.
        value: takes its place.
    """
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
