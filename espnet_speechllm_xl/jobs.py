"""Work on many utterances: batches over processes, with progress, resumed batch by batch after a kill."""

import hashlib
import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.io import atomic_write

_work = None  # the function of this worker process


def run_batches(batches, make_worker, settings, parts, nj, title):
    """Results of ``worker(batch)`` for every batch, in order.

    Args:
        batches: list of JSON values.
        make_worker: ``settings -> (batch -> list of JSON values)``; called once in each process.
        settings: JSON value; results of other settings or batches are not taken over.
        parts: directory for the results of finished batches; remove it (:func:`finish`) when all is written.
        nj: processes; 1 works in this one.
        title: of the progress bar.
    """
    parts = Path(parts)
    _claim(parts, {"settings": settings, "batches": batches})
    todo = [index for index in range(len(batches)) if not (parts / f"{index}.json").exists()]
    bar = tqdm(
        total=len(batches),
        initial=len(batches) - len(todo),
        desc=title,
        file=sys.stdout,
        mininterval=0.5 if sys.stdout.isatty() else 30,
        delay=0 if sys.stdout.isatty() else 30,
    )
    with bar:
        for index, result in _results([(index, batches[index]) for index in todo], make_worker, settings, nj):
            with atomic_write(parts / f"{index}.json") as stream:
                json.dump(result, stream)
            bar.update()
    return [item for index in range(len(batches)) for item in json.loads((parts / f"{index}.json").read_text("utf-8"))]


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


def batches_by_length(lengths, most):
    """Utterances of similar length together: lists of at most ``most`` ids; ``lengths`` is id -> samples."""
    if most < 1:
        raise UserError(f"batch size {most}: give at least 1")
    ordered = sorted(lengths, key=lambda utterance: (lengths[utterance], utterance))
    return [ordered[start : start + most] for start in range(0, len(ordered), most)]


def _claim(parts, task):
    """Empty ``parts`` unless it holds results of the same task."""
    marker = parts / "task"
    if not marker.exists() or marker.read_text() != digest(task):
        finish(parts)
        with atomic_write(marker) as stream:
            stream.write(digest(task))


def _results(tasks, make_worker, settings, nj):
    """Yield (index, result), in any order.  Raises UserError when a process dies, and what a worker raises."""
    if nj <= 1 or len(tasks) <= 1:
        worker = make_worker(settings) if tasks else None
        for index, batch in tasks:
            yield index, worker(batch)
        return
    # spawn: a fork after torch has started threads can hang
    pool = ProcessPoolExecutor(min(nj, len(tasks)), multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_run, *task, make_worker, settings) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (memory?): run the same command again, with a smaller --nj; it goes on from there"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run(index, batch, make_worker, settings):
    global _work
    if _work is None:
        # Not in the pool's initializer: what that raises never reaches the user.
        _work = make_worker(settings)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
    return index, _work(batch)
