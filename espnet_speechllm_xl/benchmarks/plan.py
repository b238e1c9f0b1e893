"""What a run of benchmarks is about: its settings, the workers of a part, and what a part leaves."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_speechllm_xl.benchmarks.checkouts import Checkout, RemoteSubject, Worker, WorkerError
from espnet_speechllm_xl.benchmarks.rounds import Contestant, Figures, interleave
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import temporary_folder

THIS, OTHER = "this", "other"  # names of the checkouts among the contestants
TOKENS = 5  # that a model of random weights writes in a chunk
BEAM = 8
Settings = Mapping[str, object]  # of a subject


@dataclass(frozen=True)
class Plan:
    """The settings of a run."""

    this: Checkout
    other: Checkout | None = None
    config: str | None = None  # YAML of a training in place of each part's own
    vocab_size: int | None = None  # tokens of a model of random weights; None: each part's own
    model: str | None = None  # trained; None: random weights
    llm: str | None = None  # directory of its language model; None: where it was in training
    audio: str | None = None  # file; None: noise and tones
    dtype: str = "float32"
    threads: int = 1
    clock: str = "wall"  # of the workers; "cpu": CPU time
    rounds: int | None = None  # None: each part's own
    batches: tuple[int, ...] = (1, 8, 32, 64)  # hypotheses of a decoder step
    streams: tuple[int, ...] = (1, 8, 32, 64)
    lengths: tuple[float, ...] = (10, 30, 60, 120, 240)  # seconds of a recording
    utterances: tuple[float, ...] = (12, 120, 480)  # seconds of an utterance in training
    peers: bool = True

    @property
    def checkouts(self) -> dict[str, Checkout]:
        """Return the checkouts by name, this one first."""
        return {THIS: self.this, **({OTHER: self.other} if self.other else {})}

    def configuration(self, name: str, vocab_size: int, trained: bool = True) -> dict[str, object]:
        """Return the settings of a model for a worker.

        Args:
            name: of the YAML in conf/, where the user gives none.
            vocab_size: its tokens, where the user says nothing.
            trained: take the user's trained model, if there is one.

        Raises:
            UserError: there is no such YAML.
        """
        model = self.model if trained else None
        config = Path(self.config) if self.config else self.this.folder / "conf" / name
        if not model and not config.is_file():
            raise UserError(f"{config} does not exist: give the YAML of a training with --config")
        return {
            "model": model and str(Path(model).resolve()),
            "llm": model and self.llm and str(Path(self.llm).resolve()),
            "config": str(config.resolve()),
            "vocab_size": self.vocab_size or vocab_size,
            "audio": self.audio and str(Path(self.audio).resolve()),
            "dtype": self.dtype,
            "tokens": TOKENS,
            "beam_size": BEAM,
        }


def say(text: str) -> None:
    """Tell the user how far the run is."""
    print(f"speechllm-xl bench: {text}", file=sys.stderr, flush=True)


@dataclass
class Part:
    """The outcome of one part of a run."""

    name: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)  # every figure, for JSON
    lines: list[str] = field(default_factory=list)  # of Markdown
    failed: str | None = None  # why the other checkout was left out
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # of its plot: name: points


class Crew:
    """The workers of a part, one for each checkout, and the subjects that they measure together.

    Args:
        plan: of the run.
        part: whose name stands in messages; takes the reason why the other checkout was left out.
        folder: for files of the workers.
    """

    def __init__(self, plan: Plan, part: Part, folder: Path) -> None:
        self._plan, self._part, self._folder = plan, part, folder
        self._stack = contextlib.ExitStack()
        self._workers: dict[str, Worker] = {}

    def both(self, kind: str, settings: Settings, fresh: bool = False) -> dict[str, RemoteSubject]:
        """Make a subject in each checkout, and return them by the checkouts' names.

        Args:
            kind: see :meth:`ours`.
            settings: see :meth:`ours`.
            fresh: see :meth:`ours`.
        """
        subjects = {THIS: self.ours(kind, settings, fresh)}
        if self._plan.other is not None and self._part.failed is None:
            try:
                subjects[OTHER] = self._open(OTHER, kind, settings, fresh)
            except (WorkerError, UserError) as error:
                self._fail(error)
        return subjects

    def _fail(self, error: Exception) -> None:
        """Leave out the other checkout from now on."""
        assert self._plan.other is not None
        self._part.failed = str(error)
        say(f"{self._part.name}: {self._plan.other.folder} cannot run this: {error}")

    def ours(self, kind: str, settings: Settings, fresh: bool = False) -> RemoteSubject:
        """Make a subject in this checkout.

        Args:
            kind: of worker.py.
            settings: of the subject.
            fresh: in a process of its own.

        Raises:
            UserError: the user's settings are wrong.
            WorkerError: a bug.
        """
        try:
            return self._open(THIS, kind, settings, fresh)
        except WorkerError as error:
            if error.of_user:
                raise UserError(str(error)) from error
            raise

    def _open(self, name: str, kind: str, settings: Settings, fresh: bool) -> RemoteSubject:
        if fresh or name not in self._workers:
            worker = Worker(self._plan.checkouts[name], self._plan.threads, self._plan.clock)
            self._workers[name] = self._stack.enter_context(worker)
        return self._workers[name].open(kind, {**settings, "folder": str(self._folder)})

    def interleave(self, what: str, subjects: Mapping[str, Contestant], rounds: int, warm_up: int = 1) -> Figures:
        """Measure subjects in turn, and give them up.

        Args:
            what: of the part is measured, for messages.
            subjects: by name; the names of the other checkout's begin with ``OTHER``.
            rounds: where the user says nothing.
            warm_up: rounds that do not count.
        """
        if self._part.failed:  # with some of its subjects only
            subjects = {name: subject for name, subject in subjects.items() if name.split()[0] != OTHER}
        rounds = self._plan.rounds or rounds
        try:
            figures = interleave(subjects, rounds, warm_up, lambda text: say(f"{self._part.name}, {what}: {text}"))
        except WorkerError as error:
            if self._plan.other is None or error.folder != self._plan.other.folder or self._part.failed:
                raise
            self._fail(error)
            return self.interleave(what, subjects, rounds, warm_up)
        for subject in subjects.values():
            if isinstance(subject, RemoteSubject):
                subject.close()
        return figures

    def end(self) -> None:
        """End the workers."""
        self._stack.close()


@contextlib.contextmanager
def crew(plan: Plan, part: Part) -> Iterator[Crew]:
    """Yield the workers of a part, which end with the block, as do their files."""
    with temporary_folder("speechllm_xl_bench.") as folder:
        made = Crew(plan, part, folder)
        try:
            yield made
        finally:
            made.end()
