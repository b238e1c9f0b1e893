"""Parts of Markdown reports: tables, the environment, what stands between two marks."""

import datetime
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import atomic_write

# Between the first and the second stands what a program writes into a Markdown file; the rest of it is kept.
MARKS = "<!-- {name}: begin (written by `{program}`; text outside these two marks is kept) -->", "<!-- {name}: end -->"


def _git(*arguments):
    """Output of a git command on this package's own repository; None when it has none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment(date=None):
    """``{name: value}``: date, versions of Python and the libraries, commit of this package."""

    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    date = date or datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    found = {"date": date, "python version": sys.version.split()[0]}
    for label, name in (("espnet", "espnet"), ("pytorch", "torch"), ("transformers", "transformers")):
        found[f"{label} version"] = version(name)
    # A package inside some other repository's ignored folder (a venv) must not show that repository's commit.
    commit = _git("log", "-1", "--format=%H %ci") if _git("ls-files", Path(__file__).name) else None
    made = ("RESULTS.md", "TABLES.md", "images/*.png", "records/*")
    others = (":/", *(f":(exclude,top,glob)**/{name}" for name in made))
    changed = bool(_git("status", "--porcelain", "--untracked-files=no", "--", *others))
    commit, _, when = (commit or "unknown").partition(" ")
    found["git hash"] = commit + (" and changes not committed" if changed and when else "")
    return {**found, "commit date": when} if when else found


def made_lines(command=None, date=None):
    """The section that says where and how the figures of a report were made; ``command`` as it could be typed."""
    values = {**environment(date), **({"command": command} if command else {})}
    return ["", "## Environments", "", *(f"- {name}: `{value}`" for name, value in values.items())]


def shown(value, form="{}"):
    """``value`` in a table, ``-`` for None."""
    return "-" if value is None else form.format(value)


def write_between_marks(path, lines, name, program, heading):
    """Put ``lines`` between the marks of a Markdown file; what people wrote before and after them is kept.

    A file without marks keeps its text and gets the block at its end; a new one begins with ``heading``.  ``name`` and
    ``program`` stand in the marks.  Raises UserError when only one mark is left.
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


def markdown_table(head, rows):
    """The lines of a Markdown table of texts."""
    return [f"|{'|'.join(head)}|", "|---" * len(head) + "|", *(f"|{'|'.join(row)}|" for row in rows)]
