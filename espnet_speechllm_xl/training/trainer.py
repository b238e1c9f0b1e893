"""What ESPnet's trainer needs from us: whole checkpoints, right averages, progress.  Its loops are its own.

Found in ESPnet 202511 to 202611: checkpoints are written in place, so a kill leaves a truncated one that resume cannot
read; with fewer epochs than n the n-best average is no average at all; gradients left over at the end of an epoch
(accumulation) leak into the next one, but not into a resumed one; ``--init_param`` loads nothing, silently, when no
name fits.  What only some of these releases need is in :mod:`~espnet_speechllm_xl.training.compat`.
"""

import contextlib
import ctypes
import functools
import json
import math
import os
import time
from pathlib import Path

import espnet2.train.trainer as espnet_trainer
import torch
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model as _load_pretrained_model
from espnet2.train.reporter import aggregate
from torch.nn.attention import SDPBackend, sdpa_kernel

from espnet_speechllm_xl.errors import UserError, of_machine
from espnet_speechllm_xl.experiment import CHECKPOINT, average_name
from espnet_speechllm_xl.files import DamagedWeights, atomic_write, read_weights
from espnet_speechllm_xl.training import compat
from espnet_speechllm_xl.training.schedule import LinearShares

SHOWN = ("loss", "acc", "ter", "cer_ctc")  # of the validation, in the line of an epoch


class CheckpointError(UserError):
    """Weights cannot be loaded; the message names the file and what to do."""


class StoppedEarlyError(Exception):
    """A training that is resumed had come to its end by ``patience``; ``reporter`` has its epochs."""

    def __init__(self, reporter):
        super().__init__()
        self.reporter = reporter


class Trainer(espnet_trainer.Trainer):
    """ESPnet's trainer, mended."""

    @classmethod
    def run(cls, *args, trainer_options, **kwargs):
        """Train; see ESPnet.  Files appear whole, and ``<criterion>.ave.pth`` is the mean of the n best epochs."""
        options = trainer_options
        schedules = [each for each in kwargs["schedulers"] if isinstance(each, LinearShares)]
        if schedules:
            batches = len(kwargs["train_iter_factory"].build_iter(1))  # about as many as in any other epoch
            for schedule in schedules:
                schedule.begin(batches // options.accum_grad * options.max_epoch)
        cls.progress, cls.options = Progress(options.max_epoch, schedules), options
        for leftover in Path(options.output_dir).glob(".*.pth.*.pth"):  # of a killed run
            leftover.unlink(missing_ok=True)
        keep_freed_memory()
        with replaced(torch, "save", _atomic_save), replaced(espnet_trainer, "average_nbest_models", average_best):
            try:
                super().run(*args, trainer_options=options, **kwargs)
            except StoppedEarlyError as error:
                distributed = kwargs["distributed_option"]
                if not distributed.distributed or distributed.dist_rank == 0:
                    nbest = options.keep_nbest_models
                    average_best(error.reporter, options.output_dir, options.best_model_criterion, nbest)

    @classmethod
    def resume(cls, checkpoint, model, reporter, **kwargs):
        """Load ``checkpoint.pth``; the epoch's own file may be missing when the kill fell between the two.

        Raises:
            CheckpointError: the file is damaged, or of another model.
            StoppedEarlyError: ESPnet would train one epoch more before it counts its patience again.
        """
        load = functools.partial(compat.load_checkpoint, torch.load)
        try:
            with replaced(torch, "load", load):
                espnet_trainer.Trainer.resume(checkpoint=checkpoint, model=model, reporter=reporter, **kwargs)
        except UserError:
            raise
        except Exception as error:  # what torch and ESPnet raise for a file that holds something else: any kind
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
    def train_one_epoch(cls, *, iterator, optimizers, reporter, distributed_option, **kwargs):
        """One epoch with progress lines (rank 0)."""
        for optimizer in optimizers:
            optimizer.zero_grad()
        quiet = distributed_option.distributed and distributed_option.dist_rank != 0
        watched = iterator if quiet else cls.progress.watch(iterator, reporter)
        nothing_learnt = super().train_one_epoch(
            iterator=watched, optimizers=optimizers, reporter=reporter, distributed_option=distributed_option, **kwargs
        )
        if nothing_learnt:
            raise UserError(
                f"epoch {reporter.epoch}: none of its {len(iterator)} batches changed the weights: gradients were not "
                f"finite (lower the learning rate), or accum_grad {cls.options.accum_grad} is more than the batches"
            )
        cls.progress.trained(reporter)
        return nothing_learnt

    @classmethod
    def validate_one_epoch(cls, *, reporter, distributed_option, **kwargs):
        """Validation; then one line says how the epoch went and how long the rest takes (rank 0)."""
        super().validate_one_epoch(reporter=reporter, distributed_option=distributed_option, **kwargs)
        for phase, name, _ in cls.options.best_model_criterion:
            if phase == "valid" and name not in reporter.stats:
                known = ", ".join(sorted(reporter.stats))
                raise UserError(f"best_model_criterion: the validation has no '{name}'; it has: {known}")
        if not distributed_option.distributed or distributed_option.dist_rank == 0:
            cls.progress.validated(reporter)


class Progress:
    """One line an epoch on standard output, and one a minute within a long epoch."""

    def __init__(self, epochs, schedules=()):
        self.epochs, self.schedules = epochs, schedules
        self.start = time.monotonic()
        self.done = 0
        self.train_loss = float("nan")

    def watch(self, iterator, reporter):
        """Pass ``iterator`` on; in a long epoch a line a minute says how far it is."""
        start = said = time.monotonic()
        for count, item in enumerate(iterator, 1):
            yield item
            if time.monotonic() - said >= 60:
                said = time.monotonic()
                left = (said - start) / count * (len(iterator) - count)
                print(
                    f"epoch {reporter.epoch}/{self.epochs}: batch {count}/{len(iterator)}, "
                    f"{left / 60:.0f} min to the end of the epoch",
                    flush=True,
                )

    def trained(self, reporter):
        """Keep the training loss of the epoch."""
        self.train_loss = float(aggregate(reporter.stats["loss"]))

    def validated(self, reporter):
        """Print the line of the epoch."""
        self.done += 1
        elapsed = time.monotonic() - self.start
        left = elapsed / self.done * (self.epochs - reporter.epoch)
        stats = {name: float(aggregate(reporter.stats[name])) for name in SHOWN if name in reporter.stats}
        # ESPnet's models without a decoder report an accuracy of no value.
        shown = [name for name, value in stats.items() if name == "loss" or not math.isnan(value)]
        valid = ", ".join(f"{name} {stats[name]:.3f}" for name in shown)
        place = "".join(
            f"learning rate {schedule.rate(schedule.steps):.2g} at {schedule.share:.0%} of its schedule; "
            for schedule in self.schedules
        )
        print(
            f"epoch {reporter.epoch}/{self.epochs}: train loss {self.train_loss:.3f}; valid {valid}; {place}"
            f"{elapsed / self.done:.0f} s an epoch, {left / 60:.0f} min left",
            flush=True,
        )


def average_best(reporter, output_dir, best_model_criterion, nbest, suffix=None, **_):
    """Average the n best epochs of each criterion into ``<phase>.<name>.ave.pth`` (all epochs when fewer).

    Takes the place of ESPnet's function of the same arguments.  Integer tensors are taken from the best epoch.
    Without a suffix training has ended, and :func:`_tidy` mends what a kill after a checkpoint left undone.
    """
    count = max([nbest] if isinstance(nbest, int) else nbest)
    for phase, name, mode in best_model_criterion:
        if not reporter.has(phase, name):
            continue
        # An earlier run with a smaller keep_nbest_models has removed the others.
        there = [e for e in _ranked(reporter, phase, name, mode) if (Path(output_dir) / f"{e}epoch.pth").exists()]
        epochs = there[:count]
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


def _ranked(reporter, phase, name, mode):
    """The epochs, best first, those of no value last, which put ESPnet's ``sort_epochs`` out of order."""
    sign = -1 if mode == "max" else 1
    values = {epoch: reporter.get_value(phase, name, epoch) for epoch in sorted(reporter.stats)}
    return sorted(values, key=lambda epoch: (math.isnan(values[epoch]), sign * values[epoch]))


def _tidy(reporter, directory, criteria, count):
    """Link the latest and the best epochs, remove those that are neither latest nor among the n best."""
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


def load_part(init_param, model, ignore_init_mismatch, map_location="cpu"):
    """ESPnet's ``--init_param FILE:SOURCE:TARGET[:EXCLUDED]``, refused when it would leave anything unloaded.

    Raises:
        CheckpointError: the file is missing or damaged, or the names or shapes in it are not those of the model.
            ``--ignore_init_mismatch true`` loads what fits, and is refused where nothing does.
    """
    path, source, target, excluded = (init_param.split(":") + ["", "", ""])[:4]
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
    wanted = {name for name in part.state_dict() if not (left_out and (prefix + name).startswith(left_out))}
    if not given or (wanted - given and not ignore_init_mismatch):
        lacking = sorted(wanted - given)
        raise CheckpointError(
            f"init_param {init_param}: the file lacks {len(lacking)} of {len(wanted)} parts of "
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


def keep_settings(directory, settings, resume):
    """Write ``settings.json`` when a training begins; refuse to resume it with other settings.

    ESPnet would restore the optimizer and its schedule from the checkpoint, take the other settings as they are now,
    and do nothing at all when the epochs are done.

    Args:
        directory: of the experiment.
        settings: ``{name: value}``, as they are wanted now.
        resume: False begins anew, whatever there is.

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
    # What the program did not have when the training began cannot be compared.
    changed = [name for name, value in settings.items() if before.get(name, value) != value]
    if changed:
        name = changed[0]
        values = "" if name == "token_list" else f" (was {before[name]}, is {settings[name]})"
        more = f" and {len(changed) - 1} more settings" if len(changed) > 1 else ""
        raise CheckpointError(
            f"{directory} was trained with another {name}{values}{more}: give this training a name of its own "
            f"(run.sh --tag or --aligner-tag), or remove {directory} to train again"
        )


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_torch_save = torch.save


def _atomic_save(value, target, *args, **kwargs):
    """``torch.save`` that leaves the old file or the new one, never a part."""
    if not isinstance(target, (str, os.PathLike)):
        return _torch_save(value, target, *args, **kwargs)
    # Into a stream: given a path, torch writes its name into the file, and equal weights would make unequal files.
    with atomic_write(target, "wb") as stream:
        _torch_save(value, stream, *args, **kwargs)


def keep_freed_memory():
    """What tensors of a training step leave is kept for the next step, not given back to the system (glibc only).

    The system would clear all of it again in every step: a tenth of a step's time on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (its greatest value) of malloc.h.
        for option, size in ((-1, 2**31 - 1), (-2, 64 * 2**20), (-3, 32 * 2**20)):
            mallopt(option, size)


@contextlib.contextmanager
def matmul_precision(name, on_cpu):
    """Float32 matrix products within the block are as exact as ``torch.set_float32_matmul_precision(name)`` says.

    ``medium`` allows bfloat16 inside; on a CPU torch 2.11 then takes oneDNN's products instead of MKL's.  On one core
    of an AMD Zen 5 they are twice as fast and as exact, and a training step takes three quarters of the time, if
    attention is made of plain products: torch's fused one gets three times slower by it.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        with sdpa_kernel(SDPBackend.MATH) if on_cpu and name == "medium" else contextlib.nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def replaced(module, name, value):
    """``module.name`` is ``value`` within the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
