"""Runs the trainings and decodings that the tables lack."""

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

from espnet_speechllm_xl.errors import UserError


def select(plan, tables=None, rows=None):
    """Names of the systems that the chosen tables and rows (names of rows or systems; None: all) need, in order.

    Raises UserError naming a table or row that the corpus does not have.
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


def listing(records, tables, todo):
    """Lines: table, row, system, search, directory of the training, state; for each of the (system, seed) pairs."""
    plan, lines = records.plan, [("table", "row", "system", "search", "training", "state")]
    for number, table in plan.tables.items():
        for row in table.rows if number in (tables or plan.tables) else ():
            for system, seed in todo:
                if system == row.system:
                    training = f"{plan.expdir}/{plan.model(system, seed).name}"
                    state = str(records.state(system, seed, row.search))
                    lines.append((number, row.name, system, row.search, training, state))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def run(records, todo, extra=(), dry_run=False, jobs=1):
    """Train and decode the (system, seed) pairs that are not done, ``jobs`` side by side, and record them.

    Returns a message for each that failed; the others are not stopped by it.
    """
    plan, left = records.plan, []
    for system, seed in todo:
        state = records.state(system, seed)
        print(f"{system}, seed {seed}: {state}", flush=True)
        if not state.done:
            left.append((system, seed))
    if not left:
        return []
    left = with_needed(plan, left)
    if not dry_run and not plan.directory.is_dir():
        raise UserError(f"{plan.directory} does not exist: give the recipe's directory by --directory")
    failed = []
    message = _call(plan, "data and alignments", plan.preparation(extra), dry_run, incomplete=failed)
    if message:
        return [f"{message}; the rows need it"]
    if dry_run:
        jobs = 1
    # Each training gets its share of the threads that path.sh allows.
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    shared = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads // jobs))}
    stopped = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        running = {}
        for system, seed in left:
            needed = next((done for done, pair in running.items() if pair == (plan.systems[system].after, 1)), None)
            log = plan.exp / "log" / f"{plan.model(system, seed).name}.log" if jobs > 1 else None
            call = (f"{system}, seed {seed}", plan.command(system, seed, extra), dry_run, log, shared)
            running[pool.submit(_call_after, needed, stopped, plan, *call)] = system, seed
        try:
            for done in as_completed(running):
                failed.append(done.result())
                if not dry_run:
                    records.update(*running[done])
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return [message for message in failed if message]


def with_needed(plan, todo):
    """The (system, seed) pairs of ``todo``; first come those that others begin with, if only for their weights."""
    needed = dict.fromkeys((plan.systems[system].after, 1) for system, _ in todo if plan.systems[system].after)
    first = [pair for pair in needed if pair in todo or not plan.state(*pair).trained]
    return first + [pair for pair in todo if pair not in first]


def _call_after(needed, stopped, *call):
    """:func:`_call` when the future ``needed`` (or None) is done well; nothing once the event ``stopped`` was set."""
    failed = needed is not None and needed.result()
    if stopped.is_set():
        return None
    return f"{call[1]} was not begun: it begins with what failed" if failed else _call(*call, stopped=stopped)


def _call(plan, name, command, dry_run, log=None, environment=None, stopped=None, incomplete=None):
    """Run one command in the recipe, its output in the file ``log`` if given; returns what went wrong, or None.

    Ctrl-C reaches the command before this program's main thread: it sets the event ``stopped``.  That only some
    inputs failed (status 1) goes to the list ``incomplete`` if there is one, and is not returned.
    """
    print(f"== {name}: {shlex.join(command)}{f' (output: {log})' if log else ''}", flush=True)
    if dry_run:
        return None
    with contextlib.ExitStack() as stack:
        output = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(open(log, "w", encoding="utf-8"))
        try:
            status = subprocess.run(
                command, cwd=plan.directory, env=environment, stdout=output, stderr=output and subprocess.STDOUT
            ).returncode
        except OSError as error:
            return f"{name} failed: {plan.directory / command[0]}: {error.strerror}"
    if stopped is not None and status in (-signal.SIGINT, 130):
        stopped.set()
    if log is not None:
        print(f"== {name}: {f'failed with status {status}' if status else 'done'}", flush=True)
    where = f"in {log}" if log else "above"
    if status == 1 and incomplete is not None:
        incomplete.append(f"{name}: some inputs failed, they are named {where}; the rows were made without them")
        return None
    return f"{name} failed with status {status}: mend what stands {where}, and run this again" if status else None
