"""TABLES.md: the paper's tables with our rows beside the paper's, intervals, sizes, speed, and a plot for each.

What the tables are stands in ``paper.py`` and its YAML, what is in ``exp/`` is read here and not changed.  What is
not decoded yet is shown as missing; rows of which there is no training are named below their table.
"""

import datetime
import math
from dataclasses import dataclass, replace
from pathlib import Path

from . import plots, report, significance
from .errors import UserError
from .io import copy_file
from .kaldi import joined
from .records import timing
from .significance import Interval
from .train_log import training_summary

FEWEST_SEEDS = 3

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
seed of one is within the range of the other's. All others show no order.

parameters: those of the whole model. segment, look-ahead: of the encoder. latency: worst case of the algorithm,
max(segment, chunk) + look-ahead + label delay; of ESPnet's blockwise encoders the first block, whole. RTF: decoding
time / duration of the audio, on the first test column.
"""


@dataclass
class Cell:
    """One row on one set: ``rates`` by seed (percent), ``blocks`` and ``interval`` of their mean, ``infos`` of
    ``decode.json``, ``missing`` utterances without hypothesis (of all seeds together)."""

    rates: dict
    blocks: significance.Blocks
    interval: Interval
    infos: list
    missing: int


class Results:
    """The cells of a plan's tables, each made once.

    Args:
        plan: :class:`~espnet_speechllm_xl.paper.Plan`.
        records: :class:`~espnet_speechllm_xl.records.Records`.

    ``problems`` are messages about sets that could not be compared.
    """

    def __init__(self, plan, records):
        self.plan, self.records = plan, records
        self.problems = []
        self._cells, self._references = {}, {}

    def cell(self, row, column, unit=None):
        """The :class:`Cell` of a row and a column of its table, None where no seed is decoded or readable.

        ``unit``: that errors are counted in; None: the corpus's first.
        """
        unit = unit or self.plan.corpus.units[0]
        key = row.system, row.search, self.plan.corpus.set_name(column), unit
        if key not in self._cells:
            try:
                self._cells[key] = self._averaged(*key, by_speaker=joined(column) is None)
            except UserError as error:
                self._cells[key] = None
                self.problems.append(f"{row.system}, {key[2]}: {error}")
        return self._cells[key]

    def _compared(self, row, reference, column, unit):
        """The :class:`Cell` of each of two rows, None where one is missing; of one system only the seeds of both."""
        ours, theirs = cells = [self.cell(one, column, unit) for one in (row, reference)]
        if None in cells or row.system != reference.system or ours.rates.keys() == theirs.rates.keys():
            return cells
        seeds, dataset = ours.rates.keys() & theirs.rates.keys(), self.plan.corpus.set_name(column)
        alone = joined(column) is None
        return [self._averaged(one.system, one.search, dataset, unit, alone, seeds) for one in (row, reference)]

    def _averaged(self, system, search, dataset, unit, by_speaker, seeds=None):
        trainings = {seed: one for seed, one in self.trainings(system).items() if seeds is None or seed in seeds}
        found = {seed: self._decoded(system, seed, search, dataset, unit) for seed in trainings}
        found = {seed: decoded for seed, decoded in found.items() if decoded is not None}
        if not found:
            return None
        blocks = significance.blocks([decoded.counts[unit] for decoded in found.values()], by_speaker)
        rates = {seed: decoded.rate(unit) for seed, decoded in found.items()}
        missing = sum(decoded.missing for decoded in found.values())
        infos = [decoded.info for decoded in found.values()]
        return Cell(rates, blocks, significance.error_rate(blocks), infos, missing)

    def _decoded(self, system, seed, search, dataset, unit):
        """The decoded set in the record of a training, None without (in that unit); all of a set have one reference."""
        decoded = self.records.get(system, seed).decoded.get(f"{search}/{dataset}")
        if decoded is None or unit not in decoded.counts:
            return None
        first, digest = self._references.setdefault(dataset, (self.records.path(system, seed), decoded.references))
        if decoded.references != digest:
            raise UserError(
                f"{self.records.path(system, seed).name} was scored on other references than {first.name}: decode both "
                "on the same data, or remove the older one"
            )
        return decoded

    def difference(self, row, reference, column, unit):
        """``(Interval, rates, rates)`` of a row minus another on a column, None where one is missing."""
        try:
            ours, theirs = self._compared(row, reference, column, unit)
            if ours is None or theirs is None:
                return None
            return significance.difference(ours.blocks, theirs.blocks), ours.rates, theirs.rates
        except UserError as error:
            self.problems.append(f"{row.name} against {reference.name}, {column}: {error}")
            return None

    def growth(self, row, column, unit):
        """What joining does: ``(Interval, rates joined, rates alone)`` of a row on a joined column, None without both.

        The interval is of the rate of the joined recordings minus that of the utterances they hold, paired.
        """
        whole = self.plan.corpus.set_name(column)
        alone = joined(whole).base
        found = {}
        try:
            for seed in self.trainings(row.system):
                pair = [self._decoded(row.system, seed, row.search, name, unit) for name in (whole, alone)]
                if all(pair):
                    found[seed] = pair
            parts = self.records.parts(whole)
            if not parts or not found:
                return None
            sides = [[pair[side].counts[unit] for pair in found.values()] for side in (0, 1)]
            between = int(unit == "characters")
            sides[1] = [significance.regrouped(counts, parts, between) for counts in sides[1]]
            long, short = (significance.blocks(side, by_speaker=False) for side in sides)
            rates = [{seed: pair[side].rate(unit) for seed, pair in found.items()} for side in (0, 1)]
            return significance.difference(long, short), *rates
        except UserError as error:
            self.problems.append(f"{row.system}, {whole} against {alone}: {error}")
            return None

    def trainings(self, system):
        """``{seed: Record}`` of a system."""
        return {seed: self.records.get(system, seed) for seed in self.records.seeds(system)}

    def model(self, row):
        """(:class:`Timing`, number of parameters) of a row's system, of the first seed that has them, else Nones."""
        for seed, record in self.trainings(row.system).items():
            if record.config:
                try:
                    return timing(record.config), record.parameters
                except UserError as error:
                    self.problems.append(f"{self.records.path(row.system, seed).name}: {error}")
                    return None, record.parameters
        return None, None


# Markdown


def markdown(head, rows):
    """The lines of a Markdown table of texts."""
    return [f"|{'|'.join(head)}|", "|---" * len(head) + "|", *(f"|{'|'.join(row)}|" for row in rows)]


RATES = {"words": "WER", "characters": "CER"}


def rate_table(results, table, unit):
    """The paper's WER and our rate for every row and set; last, how far the trainings of the row are."""
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
        rows.append([*cells, _states(results, row)])
    return markdown([*head, "state"], rows)


def _states(results, row):
    """``decoded``, or what is left to do for a row: its trainings, and its search."""
    texts = []
    for seed in results.records.seeds(row.system) or [1]:
        try:
            texts.append((seed, str(results.records.state(row.system, seed, row.search))))
        except UserError:  # an unreadable config.yaml is named by Records.update
            texts.append((seed, "unreadable"))
    if len({text for _, text in texts}) == 1:
        return texts[0][1]
    return "; ".join(f"seed {seed}: {text}" for seed, text in texts)


def is_finding(difference, rates, reference):
    """Whether a difference may be called one; ``rates`` and ``reference``: WER by seed of the two systems."""
    if not difference.excludes_zero or min(len(rates), len(reference)) < FEWEST_SEEDS:
        return False
    low, high = sorted((rates.values(), reference.values()), key=max)
    return max(low) < min(high)


def difference_table(results, table, unit):
    """Rate minus that of the table's reference row, paired, for every other row and set; no lines without any."""
    rows, reference = [], table.row(table.reference)
    for row in (row for row in table.rows if row is not reference):
        found = [results.difference(row, reference, column, unit) for column in table.sets]
        rows.append([row.name, *("missing" if one is None else _marked(*one) for one in found)])
    if all(cell == "missing" for row in rows for cell in row[1:]):
        return []
    head = [f"{RATES[unit]} minus {reference.name}", *(results.plan.corpus.set_name(column) for column in table.sets)]
    return markdown(head, rows)


def growth_table(results, table, unit):
    """Rate of joined recordings minus that of the same utterances alone; no lines without any."""
    columns = [column for column in table.sets if joined(column)]
    if not columns:
        return []
    found = {row.name: [results.growth(row, column, unit) for column in columns] for row in table.rows}
    if not any(cell for cells in found.values() for cell in cells):
        return []
    rows = [[name, *("missing" if cell is None else _marked(*cell) for cell in cells)] for name, cells in found.items()]
    names = [results.plan.corpus.set_name(column) for column in columns]
    return markdown([f"{RATES[unit]} minus the same system's on the utterances alone", *names], rows)


def _marked(difference, rates, reference):
    """A difference with its interval, bold when it is a finding."""
    text = difference.text("{:+.1f}")
    return f"**{text}**" if is_finding(difference, rates, reference) else text


def _seconds(value):
    if value is None:
        return "-"
    return f"{value:.2f}" if math.isfinite(value) else "all"


def _time(seconds):
    return str(datetime.timedelta(seconds=round(seconds)))


def _test_column(table):
    return next(column for column in table.sets if column.startswith("test"))


def system_table(results, table):
    """Sizes, times and speed of the rows, and what the paper says about them."""
    head = ["system", "parameters (M)", "segment (s)", "look-ahead (s)", "chunk (s)", "context (s)", "latency (s)"]
    head += ["RTF", "epochs", "training time", f"{RATES[results.plan.corpus.units[0]]} of each seed"]
    with_paper = any(row.paper_system for row in table.rows)
    if with_paper:
        head += ["paper: parameters (M)", "look-ahead (s)", "chunk (s)"]
    rows = []
    for row in table.rows:
        cells = [row.name, *_size_cells(results, row), *_run_cells(results, row, _test_column(table))]
        if with_paper:
            cells += [str(row.paper_system.get(name, "-")) for name in ("parameters", "look_ahead", "chunk")]
        rows.append(cells)
    return markdown(head, rows)


def _size_cells(results, row):
    times, count = results.model(row)
    cells = ["-" if count is None else f"{count / 1e6:.2f}"]
    if times is None:
        return cells + ["-"] * 5
    return cells + [_seconds(getattr(times, name)) for name in ("segment", "look_ahead", "chunk", "context", "latency")]


def _run_cells(results, row, column):
    """RTF, epochs, training time (mean of the seeds), WER by seed."""
    cell = results.cell(row, column)
    factors = [report.real_time_factor(info) for info in cell.infos] if cell else []
    factors = [factor for factor in factors if factor is not None]
    logs = [record.epochs for record in results.trainings(row.system).values()]
    summaries = [training_summary(log) for log in logs if log]
    epochs = sorted({str(summary[0]) for summary in summaries}, key=int)
    seconds = sum(summary[3] for summary in summaries) / len(summaries) if summaries else None
    return [
        f"{sum(factors) / len(factors):.3f}" if factors else "-",
        ", ".join(epochs) or "-",
        "-" if seconds is None else _time(seconds),
        " ".join(f"{rate:.1f}" for rate in cell.rates.values()) if cell else "-",
    ]


def alignment_table(results, table):
    """Paper Table III: word ends of the alignments against the reference, on the test set."""
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
    head = ["alignment", "paper, delay (ms)", "delay (ms)", "paper, delta (ms)", "delta (ms)", "words"]
    note = "delay: mean difference of word ends to the reference (negative: earlier); delta: mean absolute difference."
    return [*markdown(head, rows), "", note]


def _notes(results, table):
    """What the intervals are made of, and what is doubtful about the sets."""
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
    return ([f"Blocks of the intervals: {'; '.join(parts)}."] if parts else []) + lines


# Plots


def _plot(results, table, path, title):
    """Draw a table's plot; None where nothing can be drawn yet."""
    cells = {column: [results.cell(row, column) for row in table.rows] for column in table.sets}
    if table.plot == "alignment":
        return _copied_histogram(results, table, path)
    if not any(cell for column in cells.values() for cell in column):
        return None
    rate = f"{RATES[results.plan.corpus.units[0]]} (%)"
    names, sets = [row.name for row in table.rows], [results.plan.corpus.set_name(column) for column in table.sets]
    intervals = [[cell and cell.interval for cell in column] for column in cells.values()]
    if table.plot == "rows":
        return plots.plot_intervals(
            path, names, dict(zip(sets, intervals, strict=True)), table.axis, title, ylabel=rate
        )
    if table.plot == "lengths":
        by_row = dict(zip(names, zip(*intervals, strict=True), strict=True))
        return plots.plot_intervals(path, sets, by_row, "set", title, joined=True, ylabel=rate)
    column = _test_column(table)
    found = [(row, results.cell(row, column), results.model(row)[0]) for row in table.rows]
    points = [(row.name, times.latency, cell.interval) for row, cell, times in found if cell and times]
    title = f"{title}, {results.plan.corpus.set_name(column)}"
    return plots.plot_systems(path, points, title, ylabel=rate) if points else None


def _copied_histogram(results, table, path):
    drawn = [results.records.delays(row.aligned)[1] for row in table.rows if row.aligned]
    return next((copy_file(source, path) for source in drawn if source), None)


def _table_lines(results, number, images):
    plan, table = results.plan, results.plan.tables[number]
    begun = [row for row in table.rows if row.name == table.reference or results.trainings(row.system)]
    absent = [row.name for row in table.rows if row not in begun]
    table = replace(table, rows=begun)
    title = f"Table {number}: {table.title}"
    lines = ["", f"## {title}", "", f"`local/paper_tables.sh --corpus {plan.name} --table {number}`"]
    made = rate_table, difference_table, growth_table
    parts = [part(results, table, unit) for unit in plan.corpus.units for part in made]
    if table.plot == "alignment":
        parts.append(alignment_table(results, table))
    parts += [absent and [f"Not trained: {'; '.join(absent)}."], _notes(results, table), system_table(results, table)]
    for part in filter(None, parts):
        lines += ["", *part]
    drawn = _plot(results, table, images.parent / f"{images.name}_{number}.png", f"{title} ({plan.name})")
    drawn = f"![{title}]({drawn.parent.name}/{drawn.name})" if drawn else "No plot yet: nothing is decoded."
    return [*lines, "", drawn]


def _training_lines(results, path):
    """Every training: when it was made and from which commit, how it went; the learning curves in one figure."""
    found = {}
    for system in results.plan.systems:
        for seed, record in results.trainings(system).items():
            if record.epochs:
                found[results.plan.model(system, seed).name] = record
    if not found:
        return []
    rows = []
    for name, record in found.items():
        count, best, loss, seconds = training_summary(record.epochs)
        day, commit = record.made.get("date", "-")[:10], record.made.get("git hash", "-")
        loss = "-" if loss is None else f"{loss:.3f}"
        rows.append([name, day, commit[:10], f"{count}/{record.max_epoch}", str(best or "-"), loss, _time(seconds)])
    head = ["training", "recorded", "at commit", "epochs", "best epoch", "valid loss", "training time"]
    drawn = plots.plot_learning_curves({name: record.epochs for name, record in found.items()}, path)
    lines = ["", "## Trainings", "", *markdown(head, rows)]
    return [*lines, "", f"![learning curves of all trainings]({path.parent.name}/{drawn.name})"]


def write_tables(plan, records, out, command=None, date=None):
    """Write ``out`` (TABLES.md) and its plots, ``images/tables_<number>.png`` beside it; text of people's is kept.

    Args:
        plan: :class:`~espnet_speechllm_xl.paper.Plan`.
        records: :class:`~espnet_speechllm_xl.records.Records`.
        out: file.
        command, date: how and when it was made (``report.made_lines``).

    Returns the messages about what could not be read; they stand at the end of ``out`` too.
    """
    out, results = Path(out), Results(plan, records)
    images = out.parent / "images" / out.stem.lower()  # and what follows
    introduction = "" if plan.corpus.is_the_papers else OTHER_CORPUS
    introduction += INTRODUCTION.format(
        draws=significance.DRAWS, speakers=significance.FEWEST_SPEAKERS, seeds=FEWEST_SEEDS
    )
    lines = [introduction.rstrip(), *report.made_lines(command, date)]
    for number in sorted(plan.tables):  # I to V, in whatever order they are worked on
        lines += _table_lines(results, number, images)
    lines += _training_lines(results, images.with_name(f"{images.name}_learning_curves.png"))
    problems = [*records.problems, *results.problems]
    if problems:
        lines += ["", "## Not read", "", *(f"- {problem}" for problem in problems)]
    report.write_between_marks(
        out, [*lines, ""], "tables", "local/paper_tables.sh", f"# The paper's tables on {plan.name}"
    )
    return problems
