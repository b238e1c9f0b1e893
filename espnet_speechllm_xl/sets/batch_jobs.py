"""Work on many utterances: batches over processes and machines, with progress; a killed run is resumed by batches."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from espnet_speechllm_xl.errors import UserError, is_of_memory
from espnet_speechllm_xl.files import atomic_write, without_empty_folders
from espnet_speechllm_xl.workers import over_processes

MOST_SAMPLES = 2**25  # of a batch: 35 minutes at 16 kHz, so that long recordings are not computed 16 at once

Item = TypeVar("Item")
Result = TypeVar("Result")
MakeWorker = Callable[[Any], Callable[[list], list]]


def not_done(item: object, reason: str) -> NoReturn:
    """Raise UserError: a process died of ``item``, without which the whole is of no use."""
    raise UserError(f"{getattr(item, 'utterance', item)}: {reason}")


def as_memory_allows(
    function: Callable[[list[Item]], list[Result]], items: list[Item]
) -> list[tuple[Result | None, str | None]]:
    """Return pairs (result, None) of ``function(items)``, which has one result for each item.

    Where memory does not hold the items at once they are done one by one; an item that it does not hold alone gives
    (None, reason).
    """
    try:
        return [(result, None) for result in function(items)]
    except Exception as error:  # torch has no class for a lack of memory on the CPU; others are raised again
        if not is_of_memory(error):
            raise
    if len(items) == 1:
        return [(None, "memory does not hold it: cut it into shorter ones, or give a smaller --nj or a larger machine")]
    return [pair for item in items for pair in as_memory_allows(function, [item])]


def run_batches(
    batches: list[list[Item]],
    make_worker: MakeWorker,
    settings: object,
    parts: Path,
    nj: int,
    title: str,
    shard: tuple[int, int] | None = None,
    on_first_result: Callable[[], None] | None = None,
    must_repeat: Callable[[Result], bool] | None = None,
    crashed: Callable[[Item, str], Result] = not_done,
) -> list[Result]:
    """Return the results of ``worker(batch)`` for every batch, in order; [] of a shard, which is not the whole.

    Args:
        batches: lists of JSON values.
        make_worker: ``settings -> (batch -> list of JSON values, one for each item)``; called once in each process.
        settings: JSON value; results of other settings or batches are not taken over.
        parts: directory for the results of finished batches; remove it (:func:`finish`) when all is written.  Machines
            that share it may work on shards at the same time.
        nj: processes; 1 works in this one.
        title: of the progress bar.
        shard: (i, n): do the i-th (from 1) of n parts of the batches only.
        on_first_result: called when the first batch is done: by then settings and model are known to be good.
        must_repeat: tells of a result that the next run has to compute it again; its batch is not kept.
        crashed: (item, reason) -> the result of an item whose process died.
    """
    own = digest({"settings": settings, "batches": batches})[:16]
    if shard is None:
        _remove_others(parts, own)
    parts = parts / own
    wanted = range(len(batches))[shard[0] - 1 :: shard[1]] if shard else range(len(batches))
    todo = [index for index in wanted if not (parts / f"{index}.json").exists()]
    results: dict[int, list[Result]] = {}  # of batches that are not kept
    bar = tqdm(
        total=len(wanted),
        initial=len(wanted) - len(todo),
        desc=title,
        file=sys.stdout,
        mininterval=0.5 if sys.stdout.isatty() else 30,
        delay=0 if sys.stdout.isatty() else 30,
    )
    with without_empty_folders(parts), bar:
        tasks = [(index, batches[index]) for index in todo]
        for index, result in _results(tasks, make_worker, settings, parts, nj, crashed):
            if on_first_result is not None:
                on_first_result()
                on_first_result = None
            if must_repeat is not None and any(map(must_repeat, result)):
                results[index] = result
            else:
                with atomic_write(parts / f"{index}.json") as stream:
                    json.dump(result, stream)
            bar.update()
    if shard is not None:
        return []
    for index in range(len(batches)):
        if index not in results:
            results[index] = json.loads((parts / f"{index}.json").read_text("utf-8"))
    return [item for index in range(len(batches)) for item in results[index]]


def finish(parts: Path) -> None:
    """Remove the partial results."""
    shutil.rmtree(parts, ignore_errors=True)


def digest(task: object) -> str:
    """Name a task (JSON value): results of another name are not taken over."""
    return hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()


def summary_of(path: Path, task: object) -> dict[str, Any] | None:
    """Return the summary in the JSON file ``path`` when it was written for this ``task``, else None."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary.get("task") == digest(task) else None


def batches_by_length(lengths: Mapping[str, int], most: int, most_samples: int = MOST_SAMPLES) -> list[list[str]]:
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
    batches: list[list[str]] = [[]]
    for utterance in sorted(lengths, key=lambda utterance: (lengths[utterance], utterance)):
        size = len(batches[-1])
        if size == most or (size and (size + 1) * lengths[utterance] > most_samples):
            batches.append([])
        batches[-1].append(utterance)
    return batches if lengths else []


def _remove_others(parts: Path, own: str) -> None:
    """Remove the results of other tasks."""
    for path in parts.glob("*"):
        if path.is_dir() and path.name != own:
            finish(path)


def _results(
    tasks: list[tuple[int, list[Item]]],
    make_worker: MakeWorker,
    settings: object,
    parts: Path,
    nj: int,
    crashed: Callable[[Item, str], Result],
) -> Iterator[tuple[int, list[Result]]]:
    """Yield (index, results) of ``tasks``, pairs (index, batch), in any order; see :func:`workers.over_processes`."""
    # What this process had in hand when it died is done by another, whose death it survives.
    apart = [nj > 1 or _mark(parts, index).exists() for index, _ in tasks]
    here = [task for task, isolated in zip(tasks, apart, strict=True) if not isolated]
    if here:
        worker = make_worker(settings)
    for index, batch in here:
        parts.mkdir(parents=True, exist_ok=True)
        _mark(parts, index).touch()
        try:
            results = worker(batch)
        finally:
            _mark(parts, index).unlink(missing_ok=True)
        yield index, results
    others = [task for task, isolated in zip(tasks, apart, strict=True) if isolated]
    for place, results in over_processes([batch for _, batch in others], make_worker, settings, nj, crashed):
        yield others[place][0], results


def _mark(parts: Path, index: int) -> Path:
    """Name the file that stands while this process works on a batch."""
    return parts / f"{index}.begun"
