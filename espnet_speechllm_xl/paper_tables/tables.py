"""TABLES.md: the paper's tables with our rows beside the paper's, intervals, sizes, speed, and a plot for each.

``plan.py`` and its YAML declare the tables; their numbers come from ``comparisons.py``.  Sets that are not decoded yet
are shown as missing.  Rows without a training are named below their table.
"""

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from espnet_speechllm_xl.corpus.kaldi import joined
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import decoded_sets, markdown, plots, significance
from espnet_speechllm_xl.evaluation.markdown import markdown_table, speed_cells
from espnet_speechllm_xl.evaluation.train_log import training_summary
from espnet_speechllm_xl.files import copy_file
from espnet_speechllm_xl.paper_tables.comparisons import FEWEST_SEEDS, Difference, Results, is_finding
from espnet_speechllm_xl.paper_tables.plan import Plan, Table, TableRow
from espnet_speechllm_xl.paper_tables.records import Record, Records

OTHER_CORPUS = """
The corpus here is not the paper's: the paper has LibriSpeech, whose figures (clean/other) stand beside ours for
their order and their ratios, not for their size. Models, batches and hours of speech are smaller here as well.
"""
INTRODUCTION = """
Error rates in percent with 95 % intervals in brackets, from {draws} bootstrap draws of the test set: of speakers where
a set has at least {speakers}, else of utterances, and of utterances in joined recordings (2x, 10x), which have several
speakers. Differences are paired: both systems are scored on the same draw. The intervals are about the choice of
the test set; what the seed of a training does is shown as the WER of each seed, whose mean the tables have. **Bold**
differences are findings: the interval excludes 0, both systems were trained with at least {seeds} seeds, and no
seed of one is within the range of the other's. All others show no order; two systems are tied where the interval
holds 0. Each term has one meaning: docs/glossary.md.

parameters: those of the whole model. segment, look-ahead: of the encoder. algorithmic latency:
max(segment, chunk) + look-ahead + label delay; of ESPnet's blockwise encoders the first block, whole. RTF: decoding
time / duration of the audio, on the first test column; RTFx: 1 / RTF.
"""

RATES = {"words": "WER", "characters": "CER"}


def rate_table(results: Results, table: Table, unit: str) -> list[str]:
    """Return the paper's WER and our rate for every row and set, and the progress of the row's trainings.

    Args:
        results: of the corpus.
        table: of the paper.
        unit: of the errors.
    """
    plan = results.plan
    head = [f"system ({RATES[unit]})"]
    for column in table.sets:
        head += [f"paper, {column.replace('valid', 'dev')}", f"{plan.corpus.set_name(column)}"]
    rows = []
    for row in table.rows:
        cells = [row.name]
        for column, paper in zip(table.sets, row.paper or [None] * len(table.sets), strict=True):
            cell = results.cell(row, column, unit)
            cells += [paper or "-", cell.interval.text() if cell else "missing"]
        rows.append([*cells, _progress(results, row)])
    return markdown_table([*head, "state"], rows)


def _progress(results: Results, row: TableRow) -> str:
    """Say ``decoded``, or how far the trainings of a row and its decodings are."""
    texts = []
    for seed in results.records.seeds(row.system) or [1]:
        try:
            texts.append((seed, str(results.records.progress(row.system, seed, row.search))))
        except UserError:  # Records.update names an unreadable config.yaml
            texts.append((seed, "unreadable"))
    if len({text for _, text in texts}) == 1:
        return texts[0][1]
    return "; ".join(f"seed {seed}: {text}" for seed, text in texts)


def difference_table(results: Results, table: Table, unit: str) -> list[str]:
    """Return the paired differences of all rows to the table's reference row; no lines without any.

    Args:
        results: of the corpus.
        table: of the paper.
        unit: of the errors.
    """
    rows, reference = [], table.row(table.reference)
    for row in (row for row in table.rows if row is not reference):
        found = [results.difference(row, reference, column, unit) for column in table.sets]
        rows.append([row.name, *map(_marked, found)])
    if all(cell == "missing" for row in rows for cell in row[1:]):
        return []
    head = [f"{RATES[unit]} minus {reference.name}", *(results.plan.corpus.set_name(column) for column in table.sets)]
    return markdown_table(head, rows)


def growth_table(results: Results, table: Table, unit: str) -> list[str]:
    """Return the paired differences of rates, joined recordings minus their utterances alone; no lines without any.

    Args:
        results: of the corpus.
        table: of the paper.
        unit: of the errors.
    """
    columns = [column for column in table.sets if joined(column)]
    if not columns:
        return []
    found = {row.name: [results.growth(row, column, unit) for column in columns] for row in table.rows}
    if not any(difference for differences in found.values() for difference in differences):
        return []
    rows = [[name, *map(_marked, differences)] for name, differences in found.items()]
    names = [results.plan.corpus.set_name(column) for column in columns]
    return markdown_table([f"{RATES[unit]} minus the same system's on the utterances alone", *names], rows)


def _marked(difference: Difference | None) -> str:
    """Write a difference with its interval, bold when it is a finding."""
    if difference is None:
        return "missing"
    text = difference.interval.text("{:+.1f}")
    return f"**{text}**" if is_finding(*difference) else text


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if math.isfinite(value) else "all"


def _time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _test_column(table: Table) -> str:
    return next(column for column in table.sets if column.startswith("test"))


def system_table(results: Results, table: Table) -> list[str]:
    """Return sizes, times and speed of the rows, beside the paper's where it has them."""
    head = ["system", "parameters (M)", "segment (s)", "look-ahead (s)", "chunk (s)", "context (s)"]
    head += ["algorithmic latency (s)", "RTF", "RTFx", "epochs", "training time"]
    head.append(f"{RATES[results.plan.corpus.units[0]]} of each seed")
    with_paper = any(row.paper_system for row in table.rows)
    if with_paper:
        head += ["paper: parameters (M)", "look-ahead (s)", "chunk (s)"]
    rows = []
    for row in table.rows:
        cells = [row.name, *_size_cells(results, row), *_run_cells(results, row, _test_column(table))]
        if with_paper:
            cells += [str(row.paper_system.get(name, "-")) for name in ("parameters", "look_ahead", "chunk")]
        rows.append(cells)
    return markdown_table(head, rows)


def _size_cells(results: Results, row: TableRow) -> list[str]:
    """Return parameters, segment, look-ahead, chunk, context and latency of a row."""
    times, count = results.model(row)
    cells = ["-" if count is None else f"{count / 1e6:.2f}"]
    if times is None:
        return cells + ["-"] * 5
    return cells + [_seconds(getattr(times, name)) for name in ("segment", "look_ahead", "chunk", "context", "latency")]


def _run_cells(results: Results, row: TableRow, column: str) -> list[str]:
    """Return RTF, RTFx, epochs, training time (mean of the seeds) and WER by seed of a row; RTF and WER on a column."""
    cell = results.cell(row, column)
    found = [decoded_sets.real_time_factor(info) for info in cell.infos] if cell else []
    factors = [factor for factor in found if factor is not None]
    logs = [record.epochs for record in results.records_of(row.system).values()]
    summaries = [training_summary(log) for log in logs if log]
    epochs = sorted({str(summary.epochs) for summary in summaries}, key=int)
    seconds = sum(summary.seconds for summary in summaries) / len(summaries) if summaries else None
    return [
        *speed_cells(sum(factors) / len(factors) if factors else None),
        ", ".join(epochs) or "-",
        "-" if seconds is None else _time(seconds),
        " ".join(f"{rate:.1f}" for rate in cell.rates.values()) if cell else "-",
    ]


def alignment_table(results: Results, table: Table) -> list[str]:
    """Return paper Table III: word ends of the alignments against the reference, on the test set."""
    rows = []
    for row in (row for row in table.rows if row.aligned):
        (found, _), paper = results.records.delays(row.aligned), row.paper_alignment or {}
        cells = [row.name]
        for name in ("delay", "delta"):
            ours = found.get(f"{name}_ms")
            cells += [str(paper.get(name, "-")), "missing" if ours is None else f"{ours:.1f}"]
        rows.append([*cells, str(found.get("words", "-"))])
    if not rows:
        return []
    head = ["alignment", "paper, delay (ms)", "word-end delay (ms)", "paper, delta (ms)", "word-end delta (ms)"]
    head.append("words")
    note = "word-end delay: mean difference to the reference (negative: earlier); word-end delta: mean absolute one."
    return [*markdown_table(head, rows), "", note]


def _notes(results: Results, table: Table) -> list[str]:
    """Describe the blocks of the intervals, name utterances without hypothesis, and rows without regard to case."""
    lines, parts = [], []
    for column in table.sets:
        found = {row.name: results.cell(row, column) for row in table.rows}
        cells = [cell for cell in found.values() if cell]
        name = results.plan.corpus.set_name(column)
        if cells:
            parts.append(f"{name} {cells[0].blocks.described(results.plan.corpus.units[0])}")
        for row, cell in found.items():
            if cell and cell.missing:
                lines.append(f"{name}, {row}: {cell.missing} utterances without hypothesis count as deletions.")
    every = [(row.name, results.cell(row, column)) for row in table.rows for column in table.sets]
    if small := dict.fromkeys(row for row, cell in every if cell and cell.without_case):
        lines.append(f"Compared without regard to case, as the model writes small letters: {', '.join(small)}.")
    return ([f"Blocks of the intervals: {'; '.join(parts)}."] if parts else []) + lines


# Plots


def _plot(results: Results, table: Table, path: Path, title: str) -> Path | None:
    """Draw a table's plot; None where nothing can be drawn yet.

    Args:
        results: of the corpus.
        table: of the paper.
        path: of the picture.
        title: of the picture.
    """
    if table.plot == "alignment":
        return _copied_histogram(results, table, path)
    columns = [_test_column(table)] if table.plot == "latency" else table.sets
    rows = [_dot_row(results, row, columns) for row in table.rows]
    if not any(one for row in rows for one in row.rates):
        return None
    rate, sets = RATES[results.plan.corpus.units[0]], [results.plan.corpus.set_name(column) for column in columns]
    notes = "algorithmic latency" if table.plot == "latency" else ""
    return plots.save(plots.dots(rows, sets, title, rate, table.reference, notes, table.axis or "system"), path)


def _dot_row(results: Results, row: TableRow, columns: Sequence[str]) -> plots.DotRow:
    """Return a row of the plot; its note is the worst-case algorithmic latency."""
    cells, times = [results.cell(row, column) for column in columns], results.model(row)[0]
    note = "-" if times is None else "all audio" if math.isinf(times.latency) else f"{times.latency:.2f} s"
    ours = results.plan.systems[row.system].is_ours
    return plots.DotRow(row.name, [cell.interval if cell else None for cell in cells], ours, note)


def _copied_histogram(results: Results, table: Table, path: Path) -> Path | None:
    drawn = [results.records.delays(row.aligned)[1] for row in table.rows if row.aligned]
    return next((copy_file(source, path) for source in drawn if source), None)


def _table_lines(results: Results, number: str, images: Path) -> list[str]:
    """Return the section of a table; its pictures' names begin with ``images``."""
    plan, table = results.plan, results.plan.tables[number]
    trained = [row for row in table.rows if row.name == table.reference or results.records_of(row.system)]
    absent = [row.name for row in table.rows if row not in trained]
    table = replace(table, rows=trained)
    title = f"Table {number}: {table.title}"
    lines = ["", f"## {title}", "", f"`local/paper_tables.sh --corpus {plan.name} --table {number}`"]
    made = rate_table, difference_table, growth_table
    parts = [part(results, table, unit) for unit in plan.corpus.units for part in made]
    if table.plot == "alignment":
        parts.append(alignment_table(results, table))
    parts.append([f"Not trained: {'; '.join(absent)}."] if absent else [])
    parts += [_notes(results, table), system_table(results, table)]
    for part in filter(None, parts):
        lines += ["", *part]
    drawn = _plot(results, table, images.parent / f"{images.name}_{number}.png", f"{title} ({plan.name})")
    picture = f"![{title}]({drawn.parent.name}/{drawn.name})" if drawn else "No plot yet: nothing is decoded."
    return [*lines, "", picture]


def _training_lines(results: Results, images: Path) -> list[str]:
    """Return the section of all trainings and their learning curves; these pictures' names begin with ``images``."""
    found: dict[str, Record] = {}
    for system in results.plan.systems:
        for seed, record in results.records_of(system).items():
            if record.epochs:
                found[results.plan.tag(system, seed)] = record
    if not found:
        return []
    rows = []
    for name, record in found.items():
        count, best, loss, seconds = training_summary(record.epochs)
        day, commit = record.made.get("date", "-")[:10], record.made.get("git hash", "-")
        figures = [f"{count}/{record.max_epoch}", str(best or "-"), markdown.shown(loss, "{:.3f}"), _time(seconds)]
        rows.append([name, day, commit[:10], *figures])
    head = ["training", "recorded", "at commit", "epochs", "best epoch", "valid loss", "training time"]
    lines = ["", "## Trainings", "", *markdown_table(head, rows)]
    shown: set[tuple[str, str]] = set()
    for number in sorted(results.plan.tables):
        for place, systems in enumerate(_compared_curves(results, results.plan.tables[number], shown), 1):
            path = plots.plot_learning_curves(systems, images.parent / f"{images.name}_{number}_curves_{place}.png")
            names = ", ".join(system.name for system in systems)
            lines += ["", f"![Table {number}, learning curves: {names}]({images.parent.name}/{path.name})"]
    return lines


def _compared_curves(results: Results, table: Table, shown: set[tuple[str, str]]) -> list[list[plots.Curves]]:
    """Group the systems of a table, ``plots.PANELS`` to a picture, its reference the first in each.

    Args:
        results: of the corpus.
        table: of the paper.
        shown: pairs of a reference and a system that have a picture; the pairs of this table are added.
    """
    reference, others = table.row(table.reference).system, []
    for system in dict.fromkeys(row.system for row in table.rows):
        if system != reference and (reference, system) not in shown and _curves(results, system):
            shown.add((reference, system))
            others.append(system)
    step = plots.PANELS - 1
    groups = [[reference, *others[place : place + step]] for place in range(0, len(others), step)]
    return [[drawn for system in group if (drawn := _curves(results, system))] for group in groups]


def _curves(results: Results, system: str) -> plots.Curves | None:
    logs = [record.epochs for record in results.records_of(system).values() if record.epochs]
    plan = results.plan
    return plots.Curves(plan.tag(system), logs, plan.systems[system].is_ours) if logs else None


def write_tables(plan: Plan, records: Records, out: str | Path, command: str | None = None) -> list[str]:
    """Write TABLES.md and its plots, ``images/tables_<number>.png`` beside it; text that people wrote is kept.

    Args:
        plan: of the corpus.
        records: of its trainings.
        out: the file to write.
        command: how it was made, as a user would type it.

    Returns:
        Messages about files that could not be read; they stand at the end of the tables too.
    """
    out, results = Path(out), Results(plan, records)
    images = out.parent / "images" / out.stem.lower()  # the names of all pictures begin so
    introduction = "" if plan.corpus.is_the_papers else OTHER_CORPUS
    introduction += INTRODUCTION.format(
        draws=significance.DRAWS, speakers=significance.FEWEST_SPEAKERS, seeds=FEWEST_SEEDS
    )
    lines = [introduction.rstrip()]
    for number in sorted(plan.tables):  # I to V, in whatever order they are worked on
        lines += _table_lines(results, number, images)
    lines += [*_training_lines(results, images), *markdown.made_lines(command)]
    problems = [*records.problems, *results.problems]
    if problems:
        lines += ["", "## Not read", "", *(f"- {problem}" for problem in problems)]
    markdown.write_between_marks(
        out, [*lines, ""], "tables", "local/paper_tables.sh", f"# The paper's tables on {plan.name}"
    )
    return problems
