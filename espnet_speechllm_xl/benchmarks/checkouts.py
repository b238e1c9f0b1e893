"""Checkouts of this repository, and the worker processes that measure them (worker.py)."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import espnet_speechllm_xl
from espnet_speechllm_xl.errors import UserError

SCRIPT = Path(__file__).with_name("worker.py")
PACKAGE = espnet_speechllm_xl.__name__
LAST_LINES = 3  # of what a dead worker wrote


class WorkerError(Exception):
    """A worker could not do something.

    Args:
        message: its error.
        folder: of the checkout.
        of_user: the user can mend it.
    """

    def __init__(self, message: str, folder: Path, of_user: bool = False) -> None:
        super().__init__(message)
        self.folder, self.of_user = folder, of_user


class Checkout(NamedTuple):
    """A folder with the package in it."""

    folder: Path
    commit: str  # shortened, or the name of a folder without one


def own_checkout() -> Checkout:
    """Return the checkout that this program runs from."""
    return _checkout(Path(espnet_speechllm_xl.__file__).resolve().parents[1])


def find_checkout(folder: str | Path) -> Checkout:
    """Return the checkout in a folder; raise UserError where it holds none."""
    folder = Path(folder).resolve()
    if not (folder / PACKAGE / "__init__.py").is_file():
        raise UserError(f"--against {folder}: there is no {PACKAGE}/ in it: give a checkout of this repository")
    return _checkout(folder)


def _checkout(folder: Path) -> Checkout:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # A package inside some other repository's ignored folder (a venv) has no commit.
        known = git("ls-files", f"{PACKAGE}/__init__.py")
        commit = git("rev-parse", "--short", "HEAD") if known else ""
        changed = bool(commit and git("status", "--porcelain", "--untracked-files=no", "--", PACKAGE))
    except (OSError, subprocess.SubprocessError):
        commit, changed = "", False
    return Checkout(folder, f"{commit} and changes" if changed else commit or folder.name)


def environment(folder: Path, threads: int) -> dict[str, str]:
    """Return the environment of a process that runs the package in ``folder`` on some threads."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class Worker:
    """A process that measures a checkout; it ends with the block.

    Args:
        checkout: to measure.
        threads: of torch.
        clock: "wall", or "cpu": the process's CPU time.

    Raises:
        UserError: Python loads the package from somewhere else.
        WorkerError: the process does not even begin.
    """

    def __init__(self, checkout: Checkout, threads: int, clock: str = "wall") -> None:
        self.checkout = checkout
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # ends with it
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(checkout.folder, threads),
            text=True,
            encoding="utf-8",
        )
        try:
            package = Path(self._receive()["package"])
            if package.parent != checkout.folder:
                raise UserError(f"{checkout.folder}: Python loads {package} instead: uninstall that")
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, **request: object) -> Any:  # noqa: ANN401  # whatever the request is for
        """Send a request and return the value of its answer.

        Raises:
            WorkerError: it fails, or the process dies.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:  # dead: found when its answer is read
            pass
        return self._receive()

    def _receive(self) -> Any:  # noqa: ANN401
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            said = " ".join(self._log.read().splitlines()[-LAST_LINES:])
            killed = " (memory may have run out)" if status == -9 else ""
            message = f"the process ended with status {status}{killed}: {said}"
            raise WorkerError(message, self.checkout.folder)
        answer = json.loads(line)
        if "error" in answer:
            error = WorkerError(answer["error"], self.checkout.folder, answer["of_user"])
            raise error from _RemoteError(answer["trace"])
        return answer["value"]

    def open(self, kind: str, settings: Mapping[str, object]) -> "RemoteSubject":
        """Make a subject of a kind (``Server.kinds`` of worker.py) in the process; raises WorkerError."""
        return RemoteSubject(self, self.ask(open=kind, settings=dict(settings)))


class _RemoteError(Exception):
    """The traceback of an error in the worker's process."""


class RemoteSubject:
    """A subject in a worker's process.

    Attributes:
        facts: what is known about it before it is measured.
    """

    def __init__(self, worker: Worker, facts: dict[str, Any]) -> None:
        self._worker, self._number = worker, facts.pop("subject")
        self.facts = facts

    def measure(self) -> dict[str, list[float]]:
        """Do the work once; return quantities by name."""
        return self._worker.ask(measure=self._number)

    def close(self) -> None:
        """Give up what it holds."""
        self._worker.ask(close=self._number)
