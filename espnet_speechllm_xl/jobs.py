"""Work on many utterances: batches over processes and machines, with progress, resumed batch by batch after a kill."""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.io import atomic_write

MOST_SAMPLES = 2**25  # of a batch: 35 minutes at 16 kHz, so that long recordings are not computed 16 at once

_work = None  # the function of this worker process


def run_batches(batches, make_worker, settings, parts, nj, title, shard=None, begun=None, again=None):
    """Results of ``worker(batch)`` for every batch, in order; of a shard None.

    Args:
        batches: list of JSON values.
        make_worker: ``settings -> (batch -> list of JSON values)``; called once in each process.
        settings: JSON value; results of other settings or batches are not taken over.
        parts: directory for the results of finished batches; remove it (:func:`finish`) when all is written.  Machines
            that share it may work on shards at the same time.
        nj: processes; 1 works in this one.
        title: of the progress bar.
        shard: (i, n): do the i-th (from 1) of n parts of the batches only.
        begun: called when the first batch is done: by then settings and model are known to be good.
        again: predicate of an item; a batch with one that it is true of is not kept, but done again by the next run.
    """
    own = digest({"settings": settings, "batches": batches})[:16]
    if shard is None:
        _remove_others(Path(parts), own)
    parts = Path(parts) / own
    wanted = range(len(batches))[shard[0] - 1 :: shard[1]] if shard else range(len(batches))
    todo = [index for index in wanted if not (parts / f"{index}.json").exists()]
    results = {}  # of batches that are not kept
    bar = tqdm(
        total=len(wanted),
        initial=len(wanted) - len(todo),
        desc=title,
        file=sys.stdout,
        mininterval=0.5 if sys.stdout.isatty() else 30,
        delay=0 if sys.stdout.isatty() else 30,
    )
    with bar:
        for index, result in _results([(index, batches[index]) for index in todo], make_worker, settings, nj):
            if begun is not None:
                begun()
                begun = None
            if again is not None and any(map(again, result)):
                results[index] = result
            else:
                with atomic_write(parts / f"{index}.json") as stream:
                    json.dump(result, stream)
            bar.update()
    if shard is not None:
        return None
    for index in range(len(batches)):
        if index not in results:
            results[index] = json.loads((parts / f"{index}.json").read_text("utf-8"))
    return [item for index in range(len(batches)) for item in results[index]]


def finish(parts):
    """Remove the partial results."""
    shutil.rmtree(parts, ignore_errors=True)


def digest(task):
    """Names a task (JSON value): results of another name are not taken over."""
    return hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()


def stamp(model, *files):
    """Changes when the weights (a directory's, or a packed file) or one of ``files`` do."""
    model = Path(model)
    weights = sorted(model.glob("[!.]*.pth")) if model.is_dir() else [model]
    return [[str(file), file.stat().st_mtime_ns] for file in [*weights, *map(Path, files)] if file.exists()]


def summary_of(path, task):
    """The summary (dict) in the JSON file ``path`` when it was written for this ``task``, else None."""
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary.get("task") == digest(task) else None


def batches_by_length(lengths: dict, most: int, most_samples: int = MOST_SAMPLES) -> list:
    """Put utterances of similar length together.

    Args:
        lengths: utterance id -> samples.
        most: utterances in a batch.
        most_samples: of a batch of several, padding counted.

    Returns:
        Lists of ids, the shortest utterances first.
    """
    if most < 1:
        raise UserError(f"batch size {most}: give at least 1")
    batches = [[]]
    for utterance in sorted(lengths, key=lambda utterance: (lengths[utterance], utterance)):
        size = len(batches[-1])
        if size == most or (size and (size + 1) * lengths[utterance] > most_samples):
            batches.append([])
        batches[-1].append(utterance)
    return batches if lengths else []


def _remove_others(parts, own):
    """Remove what was left of other tasks."""
    for path in parts.glob("*"):
        if path.is_dir() and path.name != own:
            finish(path)


def _results(tasks, make_worker, settings, nj):
    """Yield (index, result), in any order.  Raises UserError when a process dies, and what a worker raises."""
    if nj <= 1 or len(tasks) <= 1:
        worker = make_worker(settings) if tasks else None
        for index, batch in tasks:
            yield index, worker(batch)
        return
    yield from over_processes(_run, [(*task, make_worker, settings) for task in tasks], nj)


def over_processes(function, calls, nj):
    """Yield ``function(*call)`` for every one of ``calls`` (a list), in any order, from up to ``nj`` processes.

    They end when this process does, even if it is killed.  Raises UserError when one of them dies, and what
    ``function`` raises.
    """
    # spawn: no thread or lock of the parent is inherited in a bad state; a fork after torch's threads can hang
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(nj, len(calls)), spawn, initializer=_end_with_parent)
    try:
        for future in as_completed([pool.submit(function, *call) for call in calls]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (memory?): run the same command again, with a smaller --nj; it goes on from there"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent():
    """Without this, the processes of a pool whose parent was killed go on, and then wait for ever."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _run(index, batch, make_worker, settings):
    global _work
    if _work is None:
        # Not in the pool's initializer: what that raises never reaches the user.
        _work = make_worker(settings)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
    return index, _work(batch)
