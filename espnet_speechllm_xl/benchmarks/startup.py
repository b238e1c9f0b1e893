"""Start-up: ``transcribe`` of a short file as a whole process, beside the import of torch."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from espnet_speechllm_xl.benchmarks.checkouts import PACKAGE, WorkerError, environment
from espnet_speechllm_xl.benchmarks.plan import THIS, Part, Plan, crew
from espnet_speechllm_xl.benchmarks.rounds import Contestant, Figures
from espnet_speechllm_xl.evaluation.markdown import markdown_table

NAME, CONFIG, VOCABULARY, ROUNDS = "startup", "train_tiny.yaml", 500, 5
SECONDS = 5.0  # of the recording
FLOOR = "import torch"


class Command:
    """A command that is run as a process of its own.

    Args:
        arguments: of Python.
        folder: whose package Python imports.
        threads: of torch.
    """

    def __init__(self, arguments: list[str], folder: Path, threads: int) -> None:
        self._command = [sys.executable, *arguments]
        self._folder, self._environment = folder, environment(folder, threads)

    def measure(self) -> dict[str, list[float]]:
        """Return ``seconds``, ``cpu_seconds`` and ``peak_bytes`` (RSS) of a process; WorkerError where it fails."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            begin = time.perf_counter()
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self._environment,
                cwd=self._folder,  # from where `python -m` takes packages first
            )
            _, status, usage = os.wait4(process.pid, 0)
            taken = time.perf_counter() - begin
            process.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            if process.returncode:
                said = " ".join(log.read().splitlines()[-3:])
                message = f"{' '.join(self._command)} ended with {process.returncode}: {said}"
                raise WorkerError(message, self._folder)
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        return {
            "seconds": [taken],
            "cpu_seconds": [usage.ru_utime + usage.ru_stime],
            "peak_bytes": [float(unit * usage.ru_maxrss)],
        }


def run(plan: Plan) -> Part:
    """Measure fresh processes in turn; the files that they read are in the system's cache after the first round."""
    settings = plan.configuration(CONFIG, VOCABULARY)
    part = Part(NAME, settings)
    with crew(plan, part) as workers:
        files = workers.both("files", {**settings, "seconds": SECONDS})
        llm = ["--llm", str(settings["llm"])] if settings["llm"] else []
        commands: dict[str, Contestant] = {
            name: Command(
                ["-m", PACKAGE, "transcribe", one.facts["recording"], "--model", one.facts["model"], *llm],
                plan.checkouts[name].folder,
                plan.threads,
            )
            for name, one in files.items()
        }
        commands[FLOOR] = Command(["-c", FLOOR], plan.this.folder, plan.threads)
        figures = workers.interleave("processes", commands, ROUNDS)
    part.rows = [{"process": name, "figures": figures[name]} for name in figures]
    part.lines = [*_table(plan, figures), "", *LEGEND]
    return part


LEGEND = [
    f"Whole processes: `transcribe` of a file of {SECONDS:g} s. Lower quartiles, medians in brackets; memory is RSS."
]


def _table(plan: Plan, figures: Figures) -> list[str]:
    rows = []
    for name, figure in figures.items():
        process = f"`python -c '{name}'`" if name == FLOOR else f"`transcribe`, {plan.checkouts[name].commit}"
        cells = [process]
        for quantity, scale, form in (("seconds", 1, ".2f"), ("cpu_seconds", 1, ".2f"), ("peak_bytes", 1e-6, ".0f")):
            one = figure[quantity]
            cells.append(f"{scale * one.lower_quartile:{form}} ({scale * one.median:{form}})")
        quotient = figure["seconds"].lower_quartile / figures[THIS]["seconds"].lower_quartile
        rows.append([*cells, f"{quotient:.2f}"])
    return markdown_table(["process", "seconds", "CPU seconds", "peak memory, MB", "/ the first"], rows)
