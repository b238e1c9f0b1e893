"""Many streams, one model: whatever they want at a moment is computed as one batch of each kind.

Streams and searches never call the model.  They are generators that yield requests (``EncodeRequest`` of
acoustic_encoder.py, ``Request`` of decoder_steps.py) and are sent the answers; a round answers all of one kind
together: encoder (those of
streams in step with one another), decoder prefill, decoder token.  Generators may join between any two rounds
(continuous batching).
"""

import queue
import threading
import time
from collections import Counter, deque
from concurrent.futures import CancelledError, Future


class Rounds:
    """Generators that run side by side.

    ``answer(requests)`` is given requests of one kind, from all generators, and returns as many results, in order.
    When it raises, each generator's requests are answered by themselves, and those end that cannot be answered so.
    """

    def __init__(self, answer):
        self._answer = answer
        self._generators = {}  # key -> (generator, what it is sent next)

    def __len__(self):
        return len(self._generators)

    def add(self, key, generator):
        """Let a generator take part from the next round on."""
        self._generators[key] = generator, None

    def drop(self, key):
        """End a generator, if it takes part."""
        generator, _ = self._generators.pop(key, (None, None))
        if generator is not None:
            generator.close()

    def step(self):
        """One round; returns ``[(key, returned value or None, exception or None)]`` of the generators that ended."""
        wanted, ended = {}, []
        for key, (generator, answers) in self._generators.items():
            try:
                wanted[key] = generator.send(answers)
            except StopIteration as stop:
                ended.append((key, stop.value, None))
            except Exception as error:  # this generator's alone
                ended.append((key, None, error))
        answers, failed = self._answer_all(wanted)
        self._generators = {key: (self._generators[key][0], answers[key]) for key in wanted if key not in failed}
        return ended + [(key, None, error) for key, error in failed.items()]

    def _answer_all(self, wanted):
        """``({key: answers}, {key: exception})`` of ``{key: requests}``."""
        answers, failed = {key: [None] * len(requests) for key, requests in wanted.items()}, {}
        kinds = {}
        for key, requests in wanted.items():
            for place, request in enumerate(requests):
                kinds.setdefault(request.kind, []).append((key, place, request))
        for places in kinds.values():
            self._answer_places(places, answers, failed)
        return answers, failed

    def _answer_places(self, places, answers, failed):
        """Answer ``[(key, place, request)]`` of one kind as one batch; should that fail, key by key."""
        try:
            results = self._answer([request for _, _, request in places])
            if len(results) != len(places):
                raise ValueError(f"the model gave {len(results)} results for {len(places)} requests")
        except Exception as error:  # of the model, any kind: it is thrown into the generators whose requests failed
            keys = list(dict.fromkeys(key for key, _, _ in places))
            if len(keys) == 1:
                failed[keys[0]] = error
                return
            for alone in keys:
                self._answer_places([place for place in places if place[0] == alone], answers, failed)
            return
        for (key, place, _), result in zip(places, results, strict=True):
            answers[key][place] = result


def run(generators, answer):
    """Drive generators together to their ends; returns what they returned, in order, or raises the first error."""
    rounds, returned = Rounds(answer), []
    for index, generator in enumerate(generators):
        rounds.add(index, generator)
        returned.append(None)
    while len(rounds):
        for index, value, error in rounds.step():
            if error is not None:
                raise error
            returned[index] = value
    return returned


def answer(model):
    """The function of :class:`Rounds` for a :class:`~espnet_speechllm_xl.systems.base_model.ChunkwiseModel`."""

    def of_one_kind(requests):
        part = model.acoustic.encode if requests[0].kind == "encode" else model.decoder.extend
        return part(requests)

    return of_one_kind


class Engine:
    """A thread that serves the streams of many users on one model.

    >>> with Engine(speech2text.model) as engine:
    ...     update = engine.submit(stream, stream.consume(samples)).result()

    Attributes:
        calls, requests: model calls and the requests they answered so far, by kind ("encode", "prefill", "token").
        seconds: how long the thread has computed so far.
    """

    def __init__(self, model):
        self.calls, self.requests, self.seconds = Counter(), Counter(), 0.0
        self._answer = answer(model)
        self._rounds = Rounds(self._counted)
        self._inbox = queue.SimpleQueue()
        self._jobs = {}  # owner -> deque of (generator, future); the first one runs
        self._lock, self._stopped = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def submit(self, owner, generator):
        """Run a generator of requests; returns a :class:`concurrent.futures.Future` of what it returns or raises.

        The generators of one owner (any hashable) run one after the other, those of different ones side by side.
        A future that is cancelled before its generator runs is skipped; to end one that runs, see :meth:`cancel`.

        Raises:
            RuntimeError: the engine was stopped.
        """
        future = Future()
        with self._lock:
            if self._stopped:
                raise RuntimeError("the engine was stopped and takes nothing more: make another one")
            self._inbox.put((owner, generator, future))
        return future

    def cancel(self, owner):
        """Drop an owner's generators; their futures raise CancelledError."""
        self._inbox.put((owner, None, None))

    def stop(self):
        """Finish what was submitted, then end the thread.  Nothing may be submitted afterwards."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._inbox.put(None)
        self._thread.join()

    @property
    def alive(self):
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self):
        stopping = False
        while not stopping or self._jobs:
            stopping = self._receive(stopping)
            begin = time.perf_counter()
            for owner, value, error in self._rounds.step():
                self._end(owner, value, error)
            self.seconds += time.perf_counter() - begin

    def _receive(self, stopping):
        """Take what has arrived, waiting for something while there is nothing to do."""
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

    def _begin(self, owner):
        """Let the owner's next generator take part."""
        jobs = self._jobs[owner]
        while jobs and not jobs[0][1].set_running_or_notify_cancel():
            jobs.popleft()
        if jobs:
            self._rounds.add(owner, jobs[0][0])
        else:
            del self._jobs[owner]

    def _end(self, owner, value, error):
        """Hand over what the owner's generator returned or raised, and begin the next."""
        _, future = self._jobs[owner].popleft()
        self._begin(owner)
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _cancel(self, owner):
        self._rounds.drop(owner)
        for _, future in self._jobs.pop(owner, ()):
            if not future.cancel():
                future.set_exception(CancelledError())

    def _counted(self, requests):
        self.calls[requests[0].kind] += 1
        self.requests[requests[0].kind] += len(requests)
        return self._answer(requests)
