"""Parts of Markdown reports: tables, the environment, a block between two marks."""

import datetime
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.metrics import rtfx
from espnet_speechllm_xl.files import atomic_write

# A program writes into a Markdown file between these two; it keeps the rest.
MARKS = "<!-- {name}: begin (written by `{program}`; text outside these two marks is kept) -->", "<!-- {name}: end -->"


def _git(*arguments: str) -> str | None:
    """Return the output of a git command on this package's own repository; None when it has none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment(date: str | None = None) -> dict[str, str]:
    """Return ``{name: value}``: date (by default now), versions of Python and the libraries, commit of this package."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    date = date or datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    found = {"date": date, "python version": sys.version.split()[0]}
    for label, name in (("espnet", "espnet"), ("pytorch", "torch"), ("transformers", "transformers")):
        found[f"{label} version"] = version(name)
    # A package inside some other repository's ignored folder (a venv) must not show that repository's commit.
    last = _git("log", "-1", "--format=%H %ci") if _git("ls-files", Path(__file__).name) else None
    made = ("RESULTS.md", "TABLES.md", "images/*.png", "records/*")
    others = (":/", *(f":(exclude,top,glob)**/{name}" for name in made))
    changed = bool(_git("status", "--porcelain", "--untracked-files=no", "--", *others))
    commit, _, when = (last or "unknown").partition(" ")
    found["git hash"] = commit + (" and changes not committed" if changed and when else "")
    return {**found, "commit date": when} if when else found


def made_lines(command: str | None = None, date: str | None = None) -> list[str]:
    """Return the section on where and how a report was made.

    Args:
        command: as a user would type it; None: not known.
        date: of the report; None: now.
    """
    values = {**environment(date), **({"command": command} if command else {})}
    return ["", "## Environments", "", *(f"- {name}: `{value}`" for name, value in values.items())]


def shown(value: object, form: str = "{}") -> str:
    """Write a value by ``form`` for a table, ``-`` for None."""
    return "-" if value is None else form.format(value)


def speed_cells(factor: float | None) -> list[str]:
    """Write a real-time factor and its RTFx, two cells of a table; ``-`` for None."""
    return [shown(factor, "{:.3f}"), shown(rtfx(factor), "{:.1f}")]


def speed_text(factor: float | None) -> str:
    """Write a real-time factor and its RTFx for a message."""
    return "RTF {}, RTFx {}".format(*speed_cells(factor))


def write_between_marks(path: str | Path, lines: Iterable[str], name: str, program: str, heading: str) -> None:
    """Put lines between the marks of a Markdown file; keep the text before and after them.

    Args:
        path: of the file.  Without marks it keeps its text and gets the block at its end.
        lines: of the block.
        name: of the block, in the marks.
        program: that writes it, in the marks.
        heading: first line of a new file.

    Raises:
        UserError: only one mark is left.
    """
    path, (begin, end) = Path(path), (mark.format(name=name, program=program) for mark in MARKS)
    old = path.read_text(encoding="utf-8") if path.exists() else f"{heading}\n"
    if (begin in old) != (end in old) or old.count(begin) > 1 or old.find(end) < old.find(begin):
        raise UserError(f"{path}: the marks '{begin}' and '{end}' are not one pair: mend or remove them")
    block = "\n".join([begin, *lines, end])
    if begin in old:
        new = old[: old.index(begin)] + block + old[old.index(end) + len(end) :]
    else:
        new = old.rstrip("\n") + "\n\n" + block + "\n"
    with atomic_write(path) as stream:
        stream.write(new)


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table of texts."""
    return [f"|{'|'.join(head)}|", "|---" * len(head) + "|", *(f"|{'|'.join(row)}|" for row in rows)]
