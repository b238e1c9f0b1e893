"""Processes that work on batches.  When one dies natively, what it had in hand is named, and the rest is done."""

import collections
import contextlib
import multiprocessing.connection
import multiprocessing.pool
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import orderly_end

MOST_DEATHS = 3  # before anything was done; after one more it is not the input
_STOPPED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGXCPU)
# What happened and what to do, by the signal.
_CAUSES = {
    **dict.fromkeys(_STOPPED, ("was stopped from outside", "run the same command again; it goes on from there")),
    signal.SIGKILL: ("was killed, most often because memory ran out", "give a smaller --nj, or smaller batches"),
    signal.SIGBUS: ("crashed", "a file was cut while it was read, or the disk or /dev/shm is full: mend that"),
    signal.SIGILL: ("crashed", "a library was built for another processor: install one for this"),
}
_CRASH = "crashed", "look at this input, or leave it out"
_NOT_THE_INPUT = "a library of the environment fails, whatever the input: --nj 1 shows what it says"


def over_processes(
    batches: list[list], make_worker: Callable, settings: Any, nj: int, crashed: Callable[[Any, str], Any]
) -> Iterator[tuple[int, list]]:
    """Yield (index, ``make_worker(settings)(batch)``) for every batch, in any order, from up to ``nj`` processes.

    A worker gives one result for each item of its batch.  When its process dies, each item of the batch is tried
    again, alone and after all others; that of which a process dies then gets the result ``crashed(item, reason)``.
    The processes end when this one does, even if it is killed.

    Raises:
        UserError: processes die before they begin, or whatever they work on, or are stopped from outside.
        Exception: what a worker raises, with its traceback.
    """
    todo = collections.deque((index, list(range(len(batch)))) for index, batch in enumerate(batches))
    results = [{} for _ in batches]  # of each batch: {place in it: result}
    processes, deaths, done = [], 0, False
    try:
        while todo or any(process.task for process in processes):
            busy = sum(process.task is not None for process in processes)
            while len(processes) < min(nj, len(todo) + busy):
                processes.append(_Process(make_worker, settings))
            for process in processes:
                if todo and process.begun and process.task is None:
                    process.give(batches, todo.popleft())
            for process in _answering(processes):
                task, items = process.task, process.items
                message = process.receive()
                if message is None:
                    processes.remove(process)
                    deaths += 1
                    reason = process.cause_of_death(always=deaths > MOST_DEATHS and not done)
                    if len(items) > 1:
                        todo.extend((task[0], [place]) for place in task[1])
                        continue
                    answer = [crashed(items[0], reason)]
                else:
                    answer = process.answer(*message)
                    if task is None:  # it has begun
                        continue
                    done = True
                found = results[task[0]]
                found.update(zip(task[1], answer, strict=True))
                if len(found) == len(batches[task[0]]):
                    yield task[0], [found[place] for place in range(len(found))]
    finally:
        for process in processes:
            process.end()


def _answering(processes):
    """Wait; returns the processes that answered or died."""
    answers = multiprocessing.connection.wait([process.pipe for process in processes])
    return [process for process in processes if process.pipe in answers]


class _Process:
    """A process that works.

    Attributes:
        pipe: its answers.
        begun: whether its worker is made.
        task: what it works on, (index of the batch, places in it), or None; ``items`` stand there.
    """

    def __init__(self, make_worker, settings):
        # spawn: no thread or lock of the parent is inherited in a bad state; a fork after torch's threads can hang
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, make_worker, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.begun, self.task, self.items = False, None, []

    def give(self, batches, task):
        """Let it work on a task."""
        self.task, self.items = task, [batches[task[0]][place] for place in task[1]]
        with contextlib.suppress(OSError):  # dead: found when its answer is read
            self.pipe.send(self.items)

    def receive(self):
        """Its message; None when it is dead."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            return None

    def answer(self, answer, error, trace):
        """The results in a message, None when it has begun; raises what the worker raised."""
        if error is not None:
            raise error from multiprocessing.pool.RemoteTraceback(trace)
        self.begun, self.task, self.items = True, None, []
        return answer

    def cause_of_death(self, always):
        """Say why it died and what it had; returns the reason.

        Raises UserError where that is not due to the items: it had none, ``always``, or it was stopped.
        """
        self._process.join()
        status = self._process.exitcode
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

    def end(self):
        """End it; what it was writing is removed."""
        self.pipe.close()
        if self.task is not None or not self.begun:
            self._process.terminate()
        self._process.join(timeout=10)  # native code may take long to notice
        self._process.kill()
        self._process.join()


def _serve(pipe, make_worker, settings):
    """What a process does: it sends (results, exception, its traceback) when it begins, and for each batch."""

    def attempt(function, argument):
        try:
            return function(argument), None, None
        except Exception as error:
            return None, _portable(error), traceback.format_exc()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its own
    _end_with_parent()
    with orderly_end(), contextlib.suppress(EOFError, OSError):  # the pipe ends where the parent wants no more
        worker, *failure = attempt(make_worker, settings)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        pipe.send((None, *failure))
        while True:
            pipe.send(attempt(worker, pipe.recv()))


def _portable(error):
    """``error`` itself where it can be sent, else one that says the same."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent():
    """Without this, a process whose parent was killed works on, for nobody."""

    def wait():
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(1)  # native code may take long to notice

    threading.Thread(target=wait, daemon=True).start()
