"""Work on many utterances: batches over processes, with progress, resumed batch by batch after a kill."""

import hashlib
import json
import multiprocessing
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

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
    return [
        item for index in range(len(batches)) for item in json.loads((parts / f"{index}.json").read_text("utf-8"))
    ]


def finish(parts):
    """Remove the partial results."""
    shutil.rmtree(parts, ignore_errors=True)


def batches_by_length(lengths, most):
    """Utterances of similar length together: lists of at most ``most`` ids; ``lengths`` is id -> samples."""
    ordered = sorted(lengths, key=lambda utterance: (lengths[utterance], utterance))
    return [ordered[start : start + most] for start in range(0, len(ordered), most)]


def _claim(parts, task):
    """Empty ``parts`` unless it holds results of the same task."""
    digest = hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()
    marker = parts / "task"
    if not marker.exists() or marker.read_text() != digest:
        finish(parts)
        with atomic_write(marker) as stream:
            stream.write(digest)


def _results(tasks, make_worker, settings, nj):
    if nj <= 1 or len(tasks) <= 1:
        worker = make_worker(settings) if tasks else None
        for index, batch in tasks:
            yield index, worker(batch)
        return
    # spawn: a fork after torch has started threads can hang
    with multiprocessing.get_context("spawn").Pool(min(nj, len(tasks)), _start, (make_worker, settings)) as pool:
        yield from pool.imap_unordered(_run, tasks)


def _start(make_worker, settings):
    global _work
    import torch

    torch.set_num_threads(1)
    _work = make_worker(settings)


def _run(task):
    index, batch = task
    return index, _work(batch)
