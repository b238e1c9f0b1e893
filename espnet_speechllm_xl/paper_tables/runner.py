"""Run the trainings and decodings that the tables lack."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_speechllm_xl.errors import UserError

if TYPE_CHECKING:
    from espnet_speechllm_xl.paper_tables.plan import Plan
    from espnet_speechllm_xl.paper_tables.records import Records
    from espnet_speechllm_xl.paper_tables.trainings import Trainings

Training = tuple[str, int]  # system and seed


def select(plan: Plan, tables: Collection[str] | None = None, rows: Collection[str] | None = None) -> list[str]:
    """Return the names of the systems that tables and rows need, in order.

    Args:
        plan: of the corpus.
        tables: numbers of the tables; None: all.
        rows: names of rows or systems; None: all.

    Raises:
        UserError: the corpus does not have a table or row.
    """
    for number in tables or ():
        if number not in plan.tables:
            raise UserError(f"--table {number}: {plan.name} has the tables {', '.join(plan.tables)}")
    chosen = [row for number, table in plan.tables.items() if number in (tables or plan.tables) for row in table.rows]
    names = {name for row in chosen for name in (row.name, row.system)}
    for name in rows or ():
        if name not in names:
            raise UserError(f"--row '{name}' is none of them; --list shows the rows and the systems")
    wanted = [row.system for row in chosen if not rows or {row.name, row.system} & set(rows)]
    return list(dict.fromkeys(wanted))


def listing(records: Records, tables: Collection[str] | None, todo: Iterable[Training]) -> list[str]:
    """Return lines of table, row, system, search, directory and progress of trainings.

    Args:
        records: of the corpus.
        tables: numbers of the tables; None: all.
        todo: the trainings.
    """
    plan, lines = records.plan, [("table", "row", "system", "search", "training", "state")]
    for number, table in plan.tables.items():
        for row in table.rows if number in (tables or plan.tables) else ():
            for system, seed in todo:
                if system == row.system:
                    training = f"{plan.expdir}/{plan.tag(system, seed)}"
                    progress = str(records.progress(system, seed, row.search))
                    lines.append((number, row.name, system, row.search, training, progress))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def run(
    records: Records, todo: Iterable[Training], extra: Sequence[str] = (), dry_run: bool = False, jobs: int = 1
) -> list[str]:
    """Train and decode all trainings that are not done, and record them.

    Args:
        records: of the corpus.
        todo: the trainings.
        extra: more options for the recipe's scripts.
        dry_run: only show the commands.
        jobs: trainings side by side.

    Returns:
        A message for each training that failed; it does not stop the others.

    Raises:
        UserError: the recipe is not there.
    """
    plan: Plan = records.plan
    left: list[Training] = []
    for system, seed in todo:
        progress = records.progress(system, seed)
        print(f"{system}, seed {seed}: {progress}", flush=True)
        if not progress.done:
            left.append((system, seed))
    if not left:
        return []
    left = with_needed(records.trainings, left)
    if not dry_run and not plan.directory.is_dir():
        raise UserError(f"{plan.directory} does not exist: give the recipe's directory by --directory")
    incomplete: list[str] = []
    message = _call(_Call("data and alignments", plan.preparation(extra), plan.directory, dry_run), None, incomplete)
    if message:
        return [f"{message}; the rows need it"]
    failed: list[str | None] = [*incomplete]
    if dry_run:
        jobs = 1
    # Each training gets its share of the threads that path.sh allows.
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    shared = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads // jobs))}
    stopped = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        running: dict[Future[str | None], Training] = {}
        for system, seed in left:
            needed = next((done for done, pair in running.items() if pair == (plan.systems[system].after, 1)), None)
            log = plan.exp / "log" / f"{plan.tag(system, seed)}.log" if jobs > 1 else None
            command = plan.command(system, seed, extra)
            call = _Call(f"{system}, seed {seed}", command, plan.directory, dry_run, log, shared)
            running[pool.submit(_call_after, needed, call, stopped)] = system, seed
        try:
            for done in as_completed(running):
                failed.append(done.result())
                if not dry_run:
                    records.update(*running[done])
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return [message for message in failed if message]


def with_needed(trainings: Trainings, todo: Sequence[Training]) -> list[Training]:
    """Return the trainings ``todo``, and before them the trainings whose weights they begin with."""
    others = [trainings.plan.systems[system].after for system, _ in todo]
    needed: dict[Training, None] = dict.fromkeys((system, 1) for system in others if system)
    first = [pair for pair in needed if pair in todo or not trainings.progress(*pair).trained]
    return first + [pair for pair in todo if pair not in first]


@dataclass(frozen=True)
class _Call:
    """A command of the recipe; its output goes into the file ``log`` if given."""

    name: str
    command: list[str]
    directory: Path
    dry_run: bool = False
    log: Path | None = None
    environment: dict[str, str] | None = None


def _call_after(needed: Future[str | None] | None, call: _Call, stopped: threading.Event) -> str | None:
    """Run a command when the training ``needed`` (or None) is done well; nothing once ``stopped`` was set."""
    failed = needed is not None and needed.result()
    if stopped.is_set():
        return None
    return f"{call.name} was not begun: it begins with what failed" if failed else _call(call, stopped)


def _call(call: _Call, stopped: threading.Event | None = None, incomplete: list[str] | None = None) -> str | None:
    """Run one command; return a message when it fails, else None.

    Args:
        call: the command.
        stopped: is set when Ctrl-C ends the command, which it reaches before this program's main thread.
        incomplete: gets the message when only some inputs failed (status 1), which then is not returned.
    """
    name, log = call.name, call.log
    print(f"== {name}: {shlex.join(call.command)}{f' (output: {log})' if log else ''}", flush=True)
    if call.dry_run:
        return None
    with contextlib.ExitStack() as stack:
        output = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(open(log, "w", encoding="utf-8"))
        try:
            status = subprocess.run(
                call.command,
                cwd=call.directory,
                env=call.environment,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
            ).returncode
        except OSError as error:
            return f"{name} failed: {call.directory / call.command[0]}: {error.strerror}"
    if stopped is not None and status in (-signal.SIGINT, 130):
        stopped.set()
    if log is not None:
        print(f"== {name}: {f'failed with status {status}' if status else 'done'}", flush=True)
    where = f"in {log}" if log else "above"
    if status == 1 and incomplete is not None:
        incomplete.append(f"{name}: some inputs failed, they are named {where}; the rows were made without them")
        return None
    return f"{name} failed with status {status}: mend what stands {where}, and run this again" if status else None
