"""The trainings of a plan in ``exp/``: where they lie, and how far they are."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from espnet_speechllm_xl.evaluation import decoded_sets
from espnet_speechllm_xl.evaluation.train_log import read_train_log, stopped_early
from espnet_speechllm_xl.experiment import averaged_weights, read_config
from espnet_speechllm_xl.paper_tables.plan import Plan


@dataclass(frozen=True)
class Progress:
    """Progress of a training and its decodings; ``max_epoch`` is None before the training."""

    epochs: int
    max_epoch: int | None
    decoded: int
    wanted: int
    stopped_early: bool = False  # by --patience

    @property
    def trained(self) -> bool:
        """Tell whether all epochs were made, or as many as ``--patience`` allowed."""
        return self.max_epoch is not None and (self.stopped_early or self.epochs >= self.max_epoch)

    @property
    def done(self) -> bool:
        """Tell whether nothing is left to do."""
        return self.trained and self.decoded == self.wanted

    def __str__(self) -> str:
        if self.max_epoch is None and not self.decoded:
            return "missing"
        if not self.trained and not self.decoded:
            return f"training, epoch {self.epochs}/{self.max_epoch}"
        if self.done:
            return "decoded"
        return f"epoch {self.epochs}/{self.max_epoch or '?'}, decoded {self.decoded} of {self.wanted} sets"


class Trainings:
    """The trainings of a plan, in its ``exp/``."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def directory(self, system: str, seed: int = 1) -> Path:
        """Return the directory of a training."""
        return self.plan.exp / self.plan.tag(system, seed)

    def names(self) -> list[str]:
        """List the names of the directories in ``exp/``."""
        return [path.name for path in self.plan.exp.glob("*/")]

    def seeds_in(self, system: str, names: Iterable[str]) -> list[int]:
        """Return the seeds of a system, in order, whose directories are among ``names``."""
        form = re.compile(re.escape(self.plan.systems[system].tag) + r"(?:_s(\d+))?")
        return sorted({int(match[1] or 1) for match in map(form.fullmatch, names) if match})

    def decoded(self, system: str, search: str, dataset: str, seed: int = 1) -> Path | None:
        """Return the directory of a decoded set.

        None where it is not there, not whole, or was decoded with older weights before the training went on.

        Args:
            system: name of the system.
            search: that decoded it.
            dataset: name of the set.
            seed: of the training.
        """
        model = self.directory(system, seed)
        directory = decoded_sets.set_directory(model, search, dataset)
        finished = decoded_sets.finished_ns(directory)
        if finished is None or any(path.stat().st_mtime_ns > finished for path in averaged_weights(model)):
            return None
        return directory

    def progress(self, system: str, seed: int = 1, search: str | None = None) -> Progress:
        """Return how far a training is.

        Args:
            system: name of the system.
            seed: of the training.
            search: whose decodings count; None: all.

        Raises:
            UserError: its config.yaml cannot be read.
        """
        directory = self.directory(system, seed)
        pairs = self.plan.decodings(system, search)
        decoded = sum(self.decoded(system, *pair, seed) is not None for pair in pairs)
        config = read_config(directory)
        epochs = self.max_epoch(system, config.get("max_epoch")) if config else None
        return Progress(len(read_train_log(directory)), epochs, decoded, len(pairs), stopped_early(directory))

    def max_epoch(self, system: str, trained_for: int | None) -> int | None:
        """Return how many epochs a training is to have: ``trained_for``, or more if the YAML has more now."""
        named = re.findall(r"--max_epoch[ =](\d+)", self.plan.train_args(system))
        return max([*filter(None, [trained_for]), *map(int, named[-1:])], default=None)
