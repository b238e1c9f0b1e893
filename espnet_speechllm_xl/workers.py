"""Processes that work on batches.  When one dies natively, its items are named, and the rest is done."""

import collections
import contextlib
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import orderly_end

Settings = TypeVar("Settings")
Item = TypeVar("Item")
Result = TypeVar("Result")
Worker: TypeAlias = Callable[[list[Item]], list[Result]]  # one result for each item
MakeWorker: TypeAlias = Callable[[Settings], Worker[Item, Result]]  # called once in each process

MOST_DEATHS = 3  # before anything was done; after one more it is not the input
_STOPPED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGXCPU)
# Signal -> what happened, and what to do.
_CAUSES: dict[int, tuple[str, str]] = {
    **dict.fromkeys(_STOPPED, ("was stopped from outside", "run the same command again; it goes on from there")),
    signal.SIGKILL: ("was killed, most often because memory ran out", "give a smaller --nj, or smaller batches"),
    signal.SIGBUS: ("crashed", "a file was cut while it was read, or the disk or /dev/shm is full: mend that"),
    signal.SIGILL: ("crashed", "a library was built for another processor: install one for this"),
}
_CRASH = "crashed", "look at this input, or leave it out"
_NOT_THE_INPUT = "a library of the environment fails, whatever the input: --nj 1 shows what it says"


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Task(NamedTuple):
    """Some items of a batch: the index of the batch, and the places of the items in it."""

    batch: int
    places: list[int]


class _RemoteTraceback(Exception):
    """The traceback of a worker's error in the worker's process."""


class _Message(NamedTuple):
    """The message of a process when its worker is made (``results`` None), and for each task."""

    results: list | None
    error: Exception | None
    trace: str | None  # of the error


def over_processes(
    batches: list[list[Item]],
    make_worker: MakeWorker[Settings, Item, Result],
    settings: Settings,
    nj: int,
    crashed: Callable[[Item, str], Result],
) -> Iterator[tuple[int, list[Result]]]:
    """Yield (index, ``make_worker(settings)(batch)``) for every batch, in any order, from several processes.

    When a process dies, each item of its batch is tried again, alone and after all others.  An item whose process dies
    again gets the result ``crashed(item, reason)``.  The processes end when this one does, even if it is killed.

    Args:
        batches: lists of items, which are sent to the processes.
        make_worker: function of a module, called in each process; the worker gives one result for each item.
        settings: its argument.
        nj: how many processes at the most.
        crashed: (item, reason) -> result of an item whose process died.

    Raises:
        UserError: processes die before they begin, or whatever they work on, or are stopped from outside.
        Exception: any error of a worker, with its traceback.
    """
    todo = collections.deque(_Task(index, list(range(len(batch)))) for index, batch in enumerate(batches))
    results: list[dict[int, Result]] = [{} for _ in batches]  # of each batch: {place in it: result}
    processes: list[_Process[Item, Result]] = []
    deaths, done = 0, False
    try:
        while todo or any(process.task for process in processes):
            busy = sum(process.task is not None for process in processes)
            while len(processes) < min(nj, len(todo) + busy):
                processes.append(_Process(make_worker, settings))
            for process in processes:
                if todo and process.ready and process.task is None:
                    process.give(batches, todo.popleft())
            for process in _reporting(processes):
                task, items = process.task, process.items
                message = process.receive()
                if message is None:
                    processes.remove(process)
                    deaths += 1
                    reason = process.cause_of_death(always=deaths > MOST_DEATHS and not done)
                    if task and len(items) > 1:
                        todo.extend(_Task(task.batch, [place]) for place in task.places)
                        continue
                    new = [crashed(items[0], reason)]
                else:
                    new = process.accept(message)
                    done = done or task is not None
                if task is None:  # the process is ready for one
                    continue
                found = results[task.batch]
                found.update(zip(task.places, new, strict=True))
                if len(found) == len(batches[task.batch]):
                    yield task.batch, [found[place] for place in range(len(found))]
    finally:
        for process in processes:
            process.end()


def _reporting(processes: "list[_Process[Item, Result]]") -> "list[_Process[Item, Result]]":
    """Wait for processes that sent a message or died, and return them."""
    pipes = multiprocessing.connection.wait([process.pipe for process in processes])
    return [process for process in processes if process.pipe in pipes]


class _Process(Generic[Item, Result]):
    """A process that works.

    Attributes:
        pipe: its messages.
        ready: whether its worker is made.
        task: the task that it works on, or None.
        items: the items of the task.
    """

    def __init__(self, make_worker: MakeWorker[Settings, Item, Result], settings: Settings) -> None:
        # spawn: no thread or lock of the parent is inherited in a bad state; a fork after torch's threads can hang
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, make_worker, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.ready = False
        self.task: _Task | None = None
        self.items: list[Item] = []

    def give(self, batches: list[list[Item]], task: _Task) -> None:
        """Let it work on a task."""
        self.task, self.items = task, [batches[task.batch][place] for place in task.places]
        with contextlib.suppress(OSError):  # dead: found when its message is read
            self.pipe.send(self.items)

    def receive(self) -> _Message | None:
        """Return its message; None when it is dead."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            return None

    def accept(self, message: _Message) -> list[Result]:
        """Return the results in a message, none when the worker is made; raise the worker's error."""
        if message.error is not None:
            raise message.error from _RemoteTraceback(message.trace)
        self.ready, self.task, self.items = True, None, []
        return message.results or []

    def cause_of_death(self, always: bool) -> str:
        """Print why it died and on which items it worked; return the reason.

        Args:
            always: processes have died whatever they worked on.

        Raises:
            UserError: no item is to blame: it had none, or it was stopped, or ``always``.
        """
        self._process.join()
        status = self._process.exitcode or 0
        number = -status if status < 0 else status - 128  # orderly_end gives 128 + the signal
        what, action = _CAUSES.get(number, _CRASH)
        known = number in {*signal.Signals}
        what += f" ({signal.Signals(number).name if known else f'status {status}'})"
        names = ", ".join(str(getattr(item, "utterance", item)) for item in self.items)
        if number in _STOPPED or not self.items or always:
            had = f" with {names}" if names else " before it began"
            others = f", as {MOST_DEATHS} others before anything was done" if always else ""
            advice = _NOT_THE_INPUT if number not in _CAUSES else action
            raise UserError(f"a worker process {what}{had}{others}: {advice}")
        print(f"a worker process {what}; it had: {names}", file=sys.stderr, flush=True)
        return f"the process that worked on it {what}: {action}"

    def end(self) -> None:
        """End it, so that it removes a file that it is writing."""
        self.pipe.close()
        if self.task is not None or not self.ready:
            self._process.terminate()
        self._process.join(timeout=10)  # native code may take long to notice
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, make_worker: MakeWorker[Settings, Item, Result], settings: Settings) -> None:
    """Work in a process: make the worker, then serve the tasks that come through the pipe."""

    def attempt(function: Callable, argument: object) -> tuple[Any, Exception | None, str | None]:
        try:
            return function(argument), None, None
        except Exception as error:
            return None, _portable(error), traceback.format_exc()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its own
    _end_with_parent()
    with orderly_end(), contextlib.suppress(EOFError, OSError):  # the pipe ends where the parent wants no more
        worker, error, trace = attempt(make_worker, settings)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        pipe.send(_Message(None, error, trace))
        while True:
            pipe.send(_Message(*attempt(worker, pipe.recv())))


def _portable(error: Exception) -> Exception:
    """Return ``error`` itself where it can be sent, else one that says the same."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """End this process when its parent is gone; it would work on, for nobody."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(1)  # native code may take long to notice

    threading.Thread(target=wait, daemon=True).start()
