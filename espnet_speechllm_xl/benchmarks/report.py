"""What a run leaves: a record in JSON, tables in Markdown, plots."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet_speechllm_xl.benchmarks.plan import OTHER, THIS, Part, Plan
from espnet_speechllm_xl.benchmarks.rounds import Figure, Figures
from espnet_speechllm_xl.evaluation.markdown import environment, write_between_marks
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.workers import usable_cores

PROGRAM = "speechllm-xl bench"


def machine() -> dict[str, Any]:
    """Return what is known about this machine."""
    model, memory = platform.processor() or platform.machine(), None
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, StopIteration):  # another system
        pass
    return {"cpu": model, "cores": usable_cores(), "memory_bytes": memory, "system": platform.platform()}


def record(plan: Plan, parts: Sequence[Part], command: str) -> dict[str, Any]:
    """Return everything about a run, for JSON.

    Args:
        plan: of the run.
        parts: their outcomes.
        command: as the user typed it.
    """
    return {
        "command": command,
        "machine": machine(),
        "versions": environment(),
        "checkouts": {name: {"folder": str(one.folder), "commit": one.commit} for name, one in plan.checkouts.items()},
        "threads": plan.threads,
        "clock": plan.clock,
        "dtype": plan.dtype,
        "parts": {
            part.name: {"settings": part.settings, "failed": part.failed, "rows": plain(part.rows)} for part in parts
        },
    }


def plain(value: Any) -> Any:  # noqa: ANN401  # anything that JSON can hold, and dataclasses
    """Return a value with its dataclasses as dictionaries, and floats of a length that tells enough."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_json(path: str | Path, run: dict[str, Any]) -> None:
    """Write the record of a run."""
    with atomic_write(path) as stream:
        json.dump(run, stream, indent=1)
        stream.write("\n")


def block(plan: Plan, part: Part, run: dict[str, Any]) -> list[str]:
    """Return the Markdown of a part: when, where and how it was measured, then its tables.

    Args:
        plan: of the run.
        part: its outcome.
        run: its record.
    """
    versions, where = run["versions"], run["machine"]
    memory = f", {where['memory_bytes'] / 2**30:.0f} GiB" if where["memory_bytes"] else ""
    conditions = [
        versions["date"][:10],
        f"{where['cpu']}, {where['cores']} cores{memory}",
        f"{plan.threads} thread{'s' * (plan.threads > 1)}, {plan.dtype}{', CPU time' * (plan.clock == 'cpu')}",
        f"Python {versions['python version']}, torch {versions['pytorch version']}, "
        f"transformers {versions['transformers version']}",
        f"commit {plan.this.commit}" + (f", other: {plan.other.commit}" if plan.other else ""),
    ]
    lines = [f"`{run['command']}`", "", f"{'; '.join(conditions)}."]
    if part.failed:
        lines.append(f"The other checkout cannot run this: {part.failed}")
    return [*lines, "", *part.lines]


def write_markdown(path: str | Path, plan: Plan, parts: Sequence[Part], run: dict[str, Any]) -> None:
    """Put the tables of each part between its marks in a Markdown file.

    Args:
        path: of the file; other text in it is kept.
        plan: of the run.
        parts: their outcomes.
        run: its record.
    """
    for part in parts:
        name = f"bench {part.name}"
        write_between_marks(path, block(plan, part, run), name, f"{PROGRAM} {part.name}", "# Benchmarks")


def write_plots(folder: str | Path, parts: Sequence[Part]) -> list[Path]:
    """Write ``bench_streams.png`` and ``bench_length.png``, as far as their parts were run; return their paths."""
    from espnet_speechllm_xl.evaluation import plots

    Path(folder).mkdir(parents=True, exist_ok=True)
    labels = {
        "streams": ("streams", "seconds of audio a second"),
        "length": ("recording, s", "ms for a second of audio"),
    }
    return [
        plots.plot_curves(Path(folder) / f"bench_{part.name}.png", part.curves, *labels[part.name])
        for part in parts
        if part.name in labels
    ]


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds, with three digits where there are as many."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def against(figures: Figures, quantity: str) -> float | None:
    """Return how many times as fast as the other checkout this one is, by lower quartiles; None without another.

    Args:
        figures: of both.
        quantity: the time that is compared.
    """
    if OTHER not in figures:
        return None
    return figures[OTHER][quantity].lower_quartile / figures[THIS][quantity].lower_quartile


def both(figure: Figure) -> str:
    """Write the lower quartile and the median of seconds, in milliseconds."""
    return f"{milliseconds(figure.lower_quartile)} ({milliseconds(figure.median)})"
