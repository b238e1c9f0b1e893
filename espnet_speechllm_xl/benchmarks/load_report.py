"""What a load test leaves: a table, the largest number of streams, and a record in JSON."""

import os
from pathlib import Path
from typing import Any

from espnet_speechllm_xl.benchmarks.load_figures import Figures, median_figures
from espnet_speechllm_xl.benchmarks.load_server import Server
from espnet_speechllm_xl.benchmarks.load_test import LoadPlan, Outcome
from espnet_speechllm_xl.benchmarks.report import machine, plain
from espnet_speechllm_xl.evaluation.markdown import environment, markdown_table, shown, write_between_marks

PROGRAM = "speechllm-xl load-test"
LATE_SECONDS = 0.05  # clients that are as late make all figures doubtful
CRITERION = "P99 of result latency under one chunk, 0 errors, median of three"


def hardware_of_this_machine(device: str) -> str:
    """Name what a server on this machine computes on.

    Args:
        device: "cpu", "cuda", ...
    """
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    threads = os.environ.get("OMP_NUM_THREADS")
    found = machine()
    return f"{found['cpu']}, {found['cores']} cores" + (
        f", {threads} thread{'s' * (threads != '1')}" if threads else ""
    )


def record(
    plan: LoadPlan, server: Server, outcome: Outcome, hardware: str, precision: str, command: str
) -> dict[str, Any]:
    """Return everything about a load test, for JSON; times in seconds.

    Args:
        plan: of the test.
        server: that was measured.
        outcome: what was found.
        hardware: that the server computes on.
        precision: number type of its model.
        command: as the user typed it.
    """
    rows = [
        {"streams": count, "runs": runs, "median": median_figures(runs)} for count, runs in sorted(outcome.runs.items())
    ]
    return {
        "command": command,
        "hardware": hardware,
        "precision": precision,
        "clients": machine(),
        "versions": environment(),
        "server": {
            "url": server.address.url,
            "query": server.address.query,
            "started": server.process is not None,
            "max_streams": outcome.most,
            **{name: outcome.ready[name] for name in ("model", "chunk_seconds", "lookahead_seconds", "settings")},
        },
        "recordings": outcome.recordings,
        **{name: getattr(plan, name) for name in ("warm_up", "seconds", "message", "seed")},
        "rows": plain(rows),
        "maximum": outcome.maximum,
    }


def title(found: dict[str, Any]) -> str:
    """Return what one table is about: hardware, precision, search, chunk."""
    settings = found["server"]["settings"]
    search = settings["search"]
    if search != "greedy":
        search += f", beam {settings['beam_size']}"
    if settings["ctc_weight"]:
        search += f", CTC {settings['ctc_weight']:g}"
    return f"{found['hardware']}; {found['precision']}; {search}; chunks of {found['server']['chunk_seconds']:g} s"


def block(outcome: Outcome, found: dict[str, Any]) -> list[str]:
    """Return the Markdown of a load test: title, command, table, largest number, remarks.

    Args:
        outcome: what was found.
        found: its record.
    """
    versions = found["versions"]
    conditions = f"{versions['date'][:10]}; torch {versions['pytorch version']}; commit {versions['git hash'][:10]}."
    return [
        f"**{title(found)}**",
        "",
        f"`{found['command']}`",
        "",
        conditions,
        "",
        *table(outcome),
        "",
        *([maximum_line(outcome), ""] if outcome.maximum is not None else []),
        " ".join(remarks(outcome, found)),
    ]


def table(outcome: Outcome) -> list[str]:
    """Return a row for each number of streams: medians where it was run several times."""
    rows = {count: (runs, median_figures(runs)) for count, runs in sorted(outcome.runs.items())}
    with_memory = any(figures.peak_bytes is not None for _, figures in rows.values())
    head = ["streams", "runs", "result latency P50 (ms)", "P90", "P95", "P99", "first partial P50 (ms)"]
    head += ["TTFS P50 (ms)", "P95", "P99", "partial churn (%)", "RTFx", "engine busy (%)", "batch", "errors"]
    head += ["peak memory (MB)"] if with_memory else []
    cells = []
    for count, (runs, figures) in rows.items():
        cells.append([str(count), str(len(runs)), *_cells(figures)])
        if with_memory:
            cells[-1].append(shown(figures.peak_bytes and figures.peak_bytes / 1e6, "{:.0f}"))
    return markdown_table(head, cells)


def _cells(figures: Figures) -> list[str]:
    latency, ttfs = figures.result_latency, figures.ttfs
    seconds = [latency.p50, latency.p90, latency.p95, latency.p99, figures.first_partial.p50]
    seconds += [ttfs.p50, ttfs.p95, ttfs.p99]
    shares = [shown(None if value is None else 100 * value, "{:.1f}") for value in (figures.churn, figures.busy)]
    return [
        *(shown(None if value is None else 1000 * value, "{:.0f}") for value in seconds),
        shares[0],
        f"{figures.rtfx:.1f}",
        shares[1],
        shown(figures.batch, "{:.1f}"),
        str(figures.errors),
    ]


def maximum_line(outcome: Outcome) -> str:
    """Return the largest number of streams with its criterion."""
    assert outcome.maximum is not None
    limit = f"a chunk lasts {1000 * outcome.chunk_seconds:.0f} ms"
    more = ""
    if outcome.maximum == outcome.most:
        more = " The server admits no more: more may be possible with a larger `--max-streams`."
    return f"**Maximum streams: {outcome.maximum}** ({CRITERION}; {limit}).{more}"


def remarks(outcome: Outcome, found: dict[str, Any]) -> list[str]:
    """Return how it was measured, and what a reader has to know of it."""
    counts = sorted(outcome.runs)
    said = [
        f"{found['warm_up']:g} s of warm-up, then {found['seconds']:g} s; messages of {found['message']:g} s; "
        f"{outcome.recordings} recordings in random order (seed {found['seed']})."
    ]
    if counts[-1] > outcome.recordings:
        said.append("More streams than recordings: several streams play the same one at a time.")
    if found["server"]["started"]:
        said.append("The clients ran on the server's machine. Memory: largest resident set of the server.")
    else:
        said.append("Peak memory was not measured: another program started the server.")
    lags = [figures.lag for runs in outcome.runs.values() for figures in runs if figures.lag is not None]
    if max(lags, default=0.0) >= LATE_SECONDS:
        said.append(
            f"The clients themselves were up to {1000 * max(lags):.0f} ms late (P99): true latencies are lower. Run "
            "them on another machine."
        )
    if all(median_figures(runs).ttfs.count == 0 for runs in outcome.runs.values()):
        said.append("No recording ended in time to have a TTFS: give more `--seconds`, or shorter recordings.")
    return said


def write_markdown(path: str | Path, outcome: Outcome, found: dict[str, Any]) -> None:
    """Put the table of a load test between its own marks in a Markdown file; other text in it is kept."""
    name = f"load-test, {title(found)}"
    write_between_marks(path, block(outcome, found), name, PROGRAM, "# Load")
