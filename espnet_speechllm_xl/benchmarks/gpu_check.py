"""Whether and how fast this package runs on a GPU, in at most eight minutes: ``local/gpu_check.sh``.

    python -m espnet_speechllm_xl.benchmarks.gpu_check                     on the first GPU
    python -m espnet_speechllm_xl.benchmarks.gpu_check --device cpu --tiny whether the check itself runs

The parts run in a process of their own, one after the other.  One that fails or takes too long ends the process, and
the next part begins in another.  What a part had found until then stays in the report, a file of Markdown.
"""

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl.benchmarks.gpu_report import PartFailed, Report, Setting

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

ROOM = "espnet_speechllm_xl.benchmarks"
CONFIG = Path(__file__).parents[2] / "conf/train_paper.yaml"
GOALS = {
    "MFU": ("of training, bfloat16", 0.40, "{:.1%}"),
    "streams at 1.28 s": ("99th percentile below a chunk", 2400, "{:.0f}"),
    "streams at 0.32 s": ("99th percentile below a chunk", 240, "{:.0f}"),
    "offline RTFx": ("seconds of audio a second", 5000, "{:.0f}"),
}  # figure: (what it is, goal on one H200, format)
STARTING = 120.0  # seconds for a process to start


@dataclass(frozen=True)
class Part:
    """A part of the check: its title, and the most seconds that it may take."""

    title: str
    seconds: float
    function: str  # module:name, called with the setting, a report and the options
    options: dict[str, Any] = field(default_factory=dict)


PARTS = {
    "environment": Part("The machine", 40, f"{ROOM}.gpu_checks:environment"),
    "trains": Part("A tiny model trains", 70, f"{ROOM}.gpu_checks:trains"),
    "alike": Part("GPU and CPU decode and align alike", 70, f"{ROOM}.gpu_checks:alike"),
    "training": Part("Training at the paper's size", 60, f"{ROOM}.gpu_speed:training"),
    "steps": Part("Steps of the decoder", 55, f"{ROOM}.gpu_speed:steps"),
    "launches": Part("Launches", 25, f"{ROOM}.gpu_speed:launches"),
    "offline": Part("Whole recordings", 40, f"{ROOM}.gpu_speed:offline"),
    "streams": Part("Streams of 1.28 s chunks", 90, f"{ROOM}.gpu_streams:streams", {"chunk_seconds": 1.28}),
    "short": Part("Streams of 0.32 s chunks", 45, f"{ROOM}.gpu_streams:streams", {"chunk_seconds": 0.32}),
}


@dataclass
class Outcome:
    """What a part has reported."""

    part: Part
    seconds: float = 0.0
    error: str | None = None  # why it ended before its end
    blocks: list[str] = field(default_factory=list)  # paragraphs and tables of its section
    failures: list[str] = field(default_factory=list)  # checks that did not hold

    @property
    def verdict(self) -> str:
        """Return the outcome in a few words."""
        if self.error is not None:
            return self.error.splitlines()[0]
        return f"{len(self.failures)} checks failed" if self.failures else "done"

    @property
    def passed(self) -> bool:
        """Tell whether the part ended by itself and all its checks hold."""
        return self.error is None and not self.failures

    def take(self, kind: str, text: str) -> None:
        """Add a message of the part; see :class:`~espnet_speechllm_xl.benchmarks.gpu_report.Report`."""
        if kind == "row":
            self.blocks[-1] += f"\n{text}"
        else:
            self.blocks.append(text)
        if kind == "failed":
            self.failures.append(text)


class Check:
    """One run of the check.

    Args:
        setting: of the parts.
        parts: in order.
        seconds: for all of them.
        show: prints a line of progress.
    """

    def __init__(
        self, setting: Setting, parts: Sequence[Part], seconds: float, show: Callable[[str], None]
    ) -> None:
        self._setting, self._parts, self._show = setting, list(parts), show
        self._end = time.monotonic() + seconds
        self.figures: dict[str, float] = {}

    def run(self) -> list[Outcome]:
        """Run the parts; return their outcomes."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(self._parts):
            outcomes += self._run_in_one_process(self._parts[len(outcomes) :])
        return outcomes

    def _run_in_one_process(self, parts: Sequence[Part]) -> list[Outcome]:
        """Run parts until one of them fails or takes too long; return the outcomes of one part at least."""
        context = multiprocessing.get_context("spawn")
        connection, other = context.Pipe()
        process = context.Process(target=work, args=(other, self._setting, parts))
        process.start()
        other.close()
        outcomes: list[Outcome] = []
        try:
            for part in parts:
                outcome = Outcome(part)
                outcomes.append(outcome)
                self._follow(connection, process, outcome, first=len(outcomes) == 1)
                self._show(f"{outcome.part.title}: {outcome.verdict} ({outcome.seconds:.0f} s)")
                if outcome.error is not None:
                    break
        finally:
            process.kill()
            process.join()
            connection.close()
        return outcomes

    def _follow(self, connection: Connection, process: "SpawnProcess", outcome: Outcome, first: bool) -> None:
        """Take the messages of a part until it ends, its process dies, or its time is over.

        Args:
            connection: to its process.
            process: the process.
            outcome: takes the messages.
            first: the process has to start before.
        """
        part, begin = outcome.part, time.monotonic()
        limit = min(self._end, begin + part.seconds + (STARTING if first else 0))
        if limit <= begin:
            outcome.error = "no time was left for it"
            return
        while connection.poll(max(0.0, limit - time.monotonic())):
            try:
                kind, value = connection.recv()
            except EOFError:
                process.join(10)
                outcome.error = f"its process died (exit code {process.exitcode})"
                break
            if kind == "begin":
                begin = time.monotonic()
                limit = min(self._end, begin + part.seconds)
                self._show(f"{part.title} ...")
                connection.send(limit - begin)
            elif kind == "end":
                outcome.error = value
                break
            elif kind == "progress":
                self._show(f"    {value}")
            elif kind == "figure":
                self.figures[value[0]] = value[1]
            else:
                self._show(f"    {value}")
                outcome.take(kind, value)
        else:
            outcome.error = f"cut off after {time.monotonic() - begin:.0f} s"
        outcome.seconds = time.monotonic() - begin


def work(connection: Connection, setting: Setting, parts: Sequence[Part]) -> None:
    """Run parts in this process, and report by a connection.

    Args:
        connection: takes the messages; is asked for the time of each part.
        setting: of the parts.
        parts: in order.
    """
    import importlib

    sys.stdout.flush()
    os.dup2(2, 1)  # what libraries print
    for part in parts:
        error = None
        try:
            module, _, function = part.function.partition(":")
            run = getattr(importlib.import_module(module), function)
            connection.send(("begin", None))
            # Two seconds for what a part does after it looked at its time.
            run(setting, Report(connection.send, connection.recv() - 2), **part.options)
            _free_memory(setting)
        except PartFailed as failure:
            error = f"failed: {failure}"
        except BaseException as failure:  # of any library, and exits of commands
            lines = " ".join(str(failure).split())[:300]
            error = f"failed: {type(failure).__name__}: {lines}\n\n{traceback.format_exc()}"
        connection.send(("end", error))
        if error is not None:
            return  # a GPU may be of no use to this process after an error


def _free_memory(setting: Setting) -> None:
    import gc

    gc.collect()
    if setting.on_gpu:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def render(outcomes: Sequence[Outcome], figures: dict[str, float], setting: Setting, seconds: float) -> str:
    """Return the report in Markdown.

    Args:
        outcomes: of the parts.
        figures: that they found, by name.
        setting: of the parts.
        seconds: that all of it took.
    """
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    remark = ".  Tiny models: the figures mean nothing" if setting.tiny else ""
    lines = ["# GPU check", "", f"{date}, device {setting.device}, {seconds:.0f} s{remark}.", ""]
    lines += ["| part | outcome | s |", "|---|---|---|"]
    lines += [f"| {each.part.title} | {each.verdict} | {each.seconds:.0f} |" for each in outcomes]
    lines += ["", "| figure | goal on one H200 | measured |", "|---|---|---|"]
    for name, (what, goal, shown) in GOALS.items():
        measured = shown.format(figures[name]) if name in figures else "-"
        lines.append(f"| {name}, {what} | {shown.format(goal)} | {measured} |")
    for outcome in outcomes:
        lines += ["", f"## {outcome.part.title}"]
        for block in outcome.blocks:
            lines += ["", block]
        if outcome.error is not None:
            lines += ["", "```", outcome.error, "```"]
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="gpu_check.sh", description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="where (default %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: whether it runs, not how fast")
    parser.add_argument("--out", type=Path, help="the report (default: gpu_check.md, in $OUT where that is set)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML of the training (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=7.8, help="for all parts (default %(default)s)")
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and write its report; return 0, 1 where a part failed, 2 for wrong use."""
    args = parse(argv)
    begin = time.monotonic()
    show = functools.partial(_show, begin)
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("gpu_check.sh: torch sees no GPU here; give --device cpu --tiny to try the check", file=sys.stderr)
            return 2
    if not args.config.exists():
        print(f"gpu_check.sh: --config {args.config} does not exist", file=sys.stderr)
        return 2
    out = args.out or Path(os.environ.get("OUT", "."), "gpu_check.md")
    with tempfile.TemporaryDirectory(prefix="gpu_check.") as folder:
        setting = Setting(args.device, args.tiny, args.config.resolve(), Path(folder))
        check = Check(setting, [PARTS[name] for name in args.parts], 60 * args.minutes, show)
        outcomes = check.run()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(outcomes, check.figures, setting, time.monotonic() - begin), encoding="utf-8")
    show(f"wrote {out}")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _show(begin: float, text: str) -> None:
    print(f"[{time.monotonic() - begin:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
