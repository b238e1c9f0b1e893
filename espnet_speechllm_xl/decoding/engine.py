"""Many streams, one model: whatever they want at a moment is computed as one batch of each kind.

Streams and searches never call the model.  They are generators (:data:`Steps`): they yield requests (``EncodeRequest``
of audio_to_frames.py, ``Request`` of decoder_steps.py) and are sent the results.  A round computes all requests of one
kind together: encoder (of streams in step with one another), decoder prefill, decoder token.  Generators may join
between any two rounds (continuous batching).
"""

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from espnet_speechllm_xl.model.audio_to_frames import EncodeRequest
from espnet_speechllm_xl.model.chunk_model import ChunkModel
from espnet_speechllm_xl.model.decoder_steps import Request

R = TypeVar("R")
AnyRequest = EncodeRequest | Request
Calls = Callable[[Sequence[Any]], list]  # requests of one kind -> as many results, in order
Steps = Generator[list[Any], Any, R]  # yields requests, is sent their results (at first None), returns an R


class _Place(NamedTuple):
    """A request with its place in a round."""

    key: Hashable  # of the generator
    number: int  # among the generator's requests
    request: AnyRequest


class Rounds:
    """Generators that run side by side.

    When ``calls`` raises, each generator's requests are computed by themselves, and those generators end for which that
    fails, too.

    Args:
        calls: is given requests of one kind, from all generators, and returns as many results, in order.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._generators: dict[Hashable, tuple[Steps, list | None]] = {}  # with what it is sent next

    def __len__(self) -> int:
        return len(self._generators)

    def add(self, key: Hashable, generator: Steps) -> None:
        """Let a generator take part from the next round on."""
        self._generators[key] = generator, None

    def drop(self, key: Hashable) -> None:
        """End a generator, if it takes part."""
        generator, _ = self._generators.pop(key, (None, None))
        if generator is not None:
            generator.close()

    def step(self) -> list[tuple[Hashable, Any, Exception | None]]:
        """Run one round.

        Returns:
            ``(key, returned value or None, exception or None)`` of each generator that ended.
        """
        wanted: dict[Hashable, list[AnyRequest]] = {}
        ended: list[tuple[Hashable, Any, Exception | None]] = []
        for key, (generator, results) in self._generators.items():
            try:
                wanted[key] = generator.send(results)
            except StopIteration as stop:
                ended.append((key, stop.value, None))
            except Exception as error:  # this generator's alone
                ended.append((key, None, error))
        found, failed = self._compute(wanted)
        self._generators = {key: (self._generators[key][0], found[key]) for key in wanted if key not in failed}
        return ended + [(key, None, error) for key, error in failed.items()]

    def _compute(
        self, wanted: dict[Hashable, list[AnyRequest]]
    ) -> tuple[dict[Hashable, list], dict[Hashable, Exception]]:
        """Return the results of each generator's requests, and the exceptions of the generators that failed."""
        found: dict[Hashable, list] = {key: [None] * len(requests) for key, requests in wanted.items()}
        failed: dict[Hashable, Exception] = {}
        kinds: dict[str, list[_Place]] = {}
        for key, requests in wanted.items():
            for number, request in enumerate(requests):
                kinds.setdefault(request.kind, []).append(_Place(key, number, request))
        for places in kinds.values():
            self._compute_batch(places, found, failed)
        return found, failed

    def _compute_batch(
        self, places: list[_Place], found: dict[Hashable, list], failed: dict[Hashable, Exception]
    ) -> None:
        """Compute requests of one kind as one batch; should that fail, generator by generator."""
        try:
            results = self._calls([place.request for place in places])
            if len(results) != len(places):
                raise ValueError(f"the model gave {len(results)} results for {len(places)} requests")
        except Exception as error:  # of the model, any kind: it is thrown into the generators whose requests failed
            keys = list(dict.fromkeys(place.key for place in places))
            if len(keys) == 1:
                failed[keys[0]] = error
                return
            for alone in keys:
                self._compute_batch([place for place in places if place.key == alone], found, failed)
            return
        for place, result in zip(places, results, strict=True):
            found[place.key][place.number] = result


def run(generators: Sequence[Steps[R]], calls: Calls) -> list[R]:
    """Drive generators together to their ends; return what they returned, in order, or raise the first error.

    Args:
        generators: of requests.
        calls: see :class:`Rounds`.
    """
    rounds, returned = Rounds(calls), dict[Hashable, R]()
    for index, generator in enumerate(generators):
        rounds.add(index, generator)
    while len(rounds):
        for key, value, error in rounds.step():
            if error is not None:
                raise error
            returned[key] = value
    return [returned[index] for index in range(len(generators))]


def alone(function: Callable[[], R]) -> Steps[R]:
    """Return a generator without requests: an engine calls the function between two rounds, in its own thread.

    Args:
        function: may compute with the model.
    """
    return function()
    yield []  # never reached: it makes this a generator


def model_calls(model: ChunkModel) -> Calls:
    """Return the function for :class:`Rounds` that computes requests with ``model``."""

    def compute(requests: Sequence[Any]) -> list:
        part = model.acoustic.encode if requests[0].kind == EncodeRequest.kind else model.decoder.extend
        return part(requests)

    return compute


class Engine:
    """A thread that serves the streams of many users on one model.

    >>> with Engine(speech2text.model) as engine:
    ...     update = engine.submit(stream, stream.consume(samples)).result()

    Attributes:
        calls: model calls so far, by kind ("encode", "prefill", "token").
        requests: requests that the calls computed so far, by kind.
        seconds: how long the thread has computed so far.
    """

    def __init__(self, model: ChunkModel) -> None:
        self.calls: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.seconds = 0.0
        self._model_calls = model_calls(model)
        self._rounds = Rounds(self._counted)
        # (owner, generator, future) of a job; (owner, None, None) to drop the owner's; None to stop
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs: dict[Hashable, deque[tuple[Steps, Future]]] = {}  # by owner; the first job of each runs
        self._lock, self._stopped = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def submit(self, owner: Hashable, generator: Steps[R]) -> "Future[R]":
        """Run a generator of requests.

        The generators of one owner run one after the other, generators of several owners side by side.  A future that
        is cancelled before its generator runs is skipped; to end one that runs, see :meth:`cancel`.

        Returns:
            The future of what the generator returns or raises.

        Raises:
            RuntimeError: the engine was stopped.
        """
        future: Future[R] = Future()
        with self._lock:
            if self._stopped:
                raise RuntimeError("the engine was stopped and takes nothing more: make another one")
            self._inbox.put((owner, generator, future))
        return future

    def cancel(self, owner: Hashable) -> None:
        """Drop an owner's generators; their futures raise CancelledError."""
        self._inbox.put((owner, None, None))

    def stop(self) -> None:
        """Finish what was submitted, then end the thread.  Nothing may be submitted afterwards."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._inbox.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        stopping = False
        while not stopping or self._jobs:
            stopping = self._receive(stopping)
            begin = time.perf_counter()
            for owner, value, error in self._rounds.step():
                self._end(owner, value, error)
            self.seconds += time.perf_counter() - begin

    def _receive(self, stopping: bool) -> bool:
        """Take what has arrived, waiting while there is nothing to do; return whether the engine is to stop."""
        while not self._inbox.empty() or not (self._jobs or stopping):
            message = self._inbox.get()
            if message is None:
                stopping = True
                continue
            owner, generator, future = message
            if generator is None:
                self._cancel(owner)
                continue
            jobs = self._jobs.setdefault(owner, deque())
            jobs.append((generator, future))
            if len(jobs) == 1:
                self._begin(owner)
        return stopping

    def _begin(self, owner: Hashable) -> None:
        """Let the owner's next generator take part."""
        jobs = self._jobs[owner]
        while jobs and not jobs[0][1].set_running_or_notify_cancel():
            jobs.popleft()
        if jobs:
            self._rounds.add(owner, jobs[0][0])
        else:
            del self._jobs[owner]

    def _end(self, owner: Hashable, value: object, error: Exception | None) -> None:
        """Hand over what the owner's generator returned or raised, and begin the next."""
        _, future = self._jobs[owner].popleft()
        self._begin(owner)
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _cancel(self, owner: Hashable) -> None:
        self._rounds.drop(owner)
        for _, future in self._jobs.pop(owner, ()):
            if not future.cancel():
                future.set_exception(CancelledError())

    def _counted(self, requests: Sequence[AnyRequest]) -> list:
        self.calls[requests[0].kind] += 1
        self.requests[requests[0].kind] += len(requests)
        return self._model_calls(requests)
