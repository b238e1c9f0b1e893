"""TABLES.md: the paper's tables with our rows beside the paper's, intervals, sizes, speed, and a plot for each.

What the tables are stands in ``paper.py`` and its YAML, what is in ``exp/`` is read here and not changed.  A row
that is not there yet is shown as missing.
"""

import datetime
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import metrics, plots, report, significance, timeline
from .config import ChunkingConfig, EncoderConfig, from_dict
from .errors import UserError
from .io import DamagedWeights, atomic_path, atomic_write, read_weights
from .paper import is_joined, read_config
from .significance import Interval

FEWEST_BLOCKS = 20  # below, a bootstrap has little to draw from
FEWEST_SEEDS = 3

# Last parts of the names of tensors that are saved with the weights but not trained.
BUFFERS = {"mean", "std", "running_mean", "running_var", "num_batches_tracked", "inv_freq", "pe", "melmat"}

INTRODUCTION = """
The corpus here is not the paper's: the paper has LibriSpeech, whose figures (clean/other) stand beside ours for
their order and their ratios, not for their size. Models, batches and hours of speech are smaller here as well.

WER in percent with 95 % intervals in brackets, from {draws} bootstrap draws of the test set: of speakers where a set
has at least {speakers}, else of utterances, and of utterances in joined recordings (2x, 10x), which have several
speakers. Differences are paired: both systems are scored on the same draw. The intervals are about the choice of
the test set; what the seed of a training does is shown as the WER of each seed, whose mean the tables have. **Bold**
differences are findings: the interval is without 0, both systems were trained with at least {seeds} seeds, and no
seed of one is within the range of the other's. All others show no order.

parameters: those of the whole model. segment, look-ahead: of the encoder. latency: worst case of the algorithm,
max(segment, chunk) + look-ahead + label delay. RTF: decoding time / duration of the audio, on the first test column.
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
    """What is in ``exp/`` for a :class:`~espnet_speechllm_xl.paper.Plan`; every set is scored once.

    ``problems`` are messages about sets and models that could not be read.
    """

    def __init__(self, plan):
        self.plan = plan
        self.problems = []
        self._cells, self._models = {}, {}

    def cell(self, row, column):
        """The :class:`Cell` of a row and a column of its table, None where no seed is decoded or readable."""
        key = row.system, row.search, self.plan.corpus.set_name(column)
        if key not in self._cells:
            try:
                self._cells[key] = self._scored(*key, by_utterance=is_joined(column))
            except (UserError, OSError) as error:
                self._cells[key] = None
                self.problems.append(str(error))
        return self._cells[key]

    def _scored(self, system, search, dataset, by_utterance):
        trainings, infos, speakers = {}, [], None
        for seed in self.plan.seeds(system):
            directory = self.plan.decoded(system, search, dataset, seed)
            if directory is not None:
                *texts, speakers, info = report.read_decoded(directory, self.plan.dump)
                sides = ({name: metrics.words(text) for name, text in side.items()} for side in texts)
                trainings[seed] = metrics.score(*sides, f"{directory}: hypotheses")
                infos.append(info)
        if not trainings:
            return None
        blocks = significance.blocks([*trainings.values()], None if by_utterance else speakers)
        rates = {seed: scored.total.error_rate for seed, scored in trainings.items()}
        missing = sum(len(scored.missing) for scored in trainings.values())
        return Cell(rates, blocks, significance.error_rate(blocks), infos, missing)

    def model(self, row):
        """(:class:`Timing`, number of parameters) of a row's system, of its first seed that is readable, else Nones."""
        if row.system not in self._models:
            self._models[row.system] = self._read_model(row.system)
        return self._models[row.system]

    def _read_model(self, system):
        for seed in self.plan.seeds(system):
            directory = self.plan.model(system, seed)
            try:
                config = read_config(directory)
                if config:
                    return timing(config), count_parameters(directory)
            except UserError as error:
                self.problems.append(f"{directory.name}: {error}")
        return None, None


@dataclass(frozen=True)
class Timing:
    """What a system waits for, in seconds; infinite: all audio; None: the system has no such thing."""

    segment: float
    look_ahead: float
    chunk: float | None
    context: float | None
    latency: float


def timing(config):
    """:class:`Timing` of a ``config.yaml`` (dict), ours or stock ESPnet's."""
    conf = config.get("encoder_conf") or {}
    if config.get("encoder") == "emformer":
        encoder = from_dict(EncoderConfig, conf, "encoder_conf")
    elif str(config.get("encoder")).startswith("contextual_block_"):
        # ESPnet's count frames behind their subsampling to 25 Hz; defaults of its ContextualBlock encoders.
        size, hop, ahead = (conf.get(name, default) for name, default in
                            (("block_size", 40), ("hop_size", 16), ("look_ahead", 16)))  # fmt: skip
        encoder = EncoderConfig(segment=hop, left_context=size - hop - ahead, right_context=ahead)
    else:
        encoder = EncoderConfig(segment=None, left_context=0, right_context=0)
    segment, ahead = timeline.chunk_seconds(encoder.segment), encoder.right_context * timeline.FRAME_SECONDS
    if "chunking_conf" not in config:
        # Without chunks a system waits for the encoder alone.
        waiting = ChunkingConfig(chunk=encoder.segment)
        return Timing(segment, ahead, None, None, timeline.latency_seconds(encoder, waiting))
    chunking = from_dict(ChunkingConfig, config["chunking_conf"], "chunking_conf")
    chunk, context = timeline.chunk_seconds(chunking.chunk), timeline.context_seconds(chunking)
    return Timing(segment, ahead, chunk, context, timeline.latency_seconds(encoder, chunking))


def count_parameters(directory):
    """Number of trained values in the weights of an experiment directory; None where there are none.

    Weights that two modules share count once: they are matrices that are equal in every value.  Raises UserError
    for a file that does not load.
    """
    import torch

    found = [path for path in sorted(Path(directory).glob("*.pth")) if path.name != "checkpoint.pth" and path.exists()]
    if not found:
        return None
    try:
        state = read_weights(found[0])
    except DamagedWeights as error:
        raise UserError(f"{found[0]} does not load ({error}): it is truncated; copy it again or train again") from error
    trained = [value for name, value in state.items() if name.rpartition(".")[2] not in BUFFERS]
    trained = [value for value in trained if value.is_floating_point()]
    matrices = {}
    for value in trained:
        alike = matrices.setdefault(tuple(value.shape), [])
        if value.dim() < 2 or not any(torch.equal(value, other) for other in alike):
            alike.append(value)
    return sum(value.numel() for alike in matrices.values() for value in alike)


# Markdown


def _markdown(head, rows):
    return [f"|{'|'.join(head)}|", "|---" * len(head) + "|", *(f"|{'|'.join(row)}|" for row in rows)]


def _with_borders(interval, form):
    value = form.format(interval.value)
    return value if interval.low is None else f"{value} [{form.format(interval.low)}, {form.format(interval.high)}]"


def rate_table(results, table):
    """The paper's WER and ours for every row and set; last, how far the trainings of the row are."""
    plan = results.plan
    head = ["system"]
    for column in table.sets:
        head += [f"paper, {column.replace('valid', 'dev')}", f"{plan.corpus.set_name(column)}"]
    rows = []
    for row in table.rows:
        cells = [row.name]
        for column, paper in zip(table.sets, row.paper or [None] * len(table.sets), strict=True):
            cell = results.cell(row, column)
            cells += [paper or "-", _with_borders(cell.interval, "{:.1f}") if cell else "missing"]
        rows.append([*cells, _states(results, row)])
    return _markdown([*head, "state"], rows)


def _states(results, row):
    """``decoded``, or what is left to do for the trainings of a row."""
    plan, texts = results.plan, []
    for seed in plan.seeds(row.system) or [1]:
        try:
            texts.append((seed, str(plan.state(row.system, seed))))
        except UserError:  # an unreadable config.yaml is named by Results.model
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


def difference_table(results, table):
    """WER minus that of the table's reference row, paired, for every other row and set; no lines without any."""
    rows, reference = [], table.row(table.reference)
    for row in (row for row in table.rows if row is not reference):
        cells = []
        for column in table.sets:
            ours, theirs = results.cell(row, column), results.cell(reference, column)
            if ours is None or theirs is None:
                cells.append("missing")
                continue
            found = significance.difference(ours.blocks, theirs.blocks)
            text = _with_borders(found, "{:+.1f}")
            cells.append(f"**{text}**" if is_finding(found, ours.rates, theirs.rates) else text)
        rows.append([row.name, *cells])
    if all(cell == "missing" for row in rows for cell in row[1:]):
        return []
    head = [f"minus {reference.name}", *(results.plan.corpus.set_name(column) for column in table.sets)]
    return _markdown(head, rows)


def _seconds(value):
    if value is None:
        return "-"
    return f"{value:.2f}" if math.isfinite(value) else "all"


def _test_column(table):
    return next(column for column in table.sets if column.startswith("test"))


def system_table(results, table):
    """Sizes, times and speed of the rows, and what the paper says about them."""
    head = ["system", "parameters (M)", "segment (s)", "look-ahead (s)", "chunk (s)", "context (s)", "latency (s)"]
    head += ["RTF", "epochs", "training time", "WER of each seed"]
    with_paper = any(row.paper_system for row in table.rows)
    if with_paper:
        head += ["paper: parameters (M)", "look-ahead (s)", "chunk (s)"]
    rows = []
    for row in table.rows:
        cells = [row.name, *_size_cells(results, row), *_run_cells(results, row, _test_column(table))]
        if with_paper:
            cells += [str(row.paper_system.get(name, "-")) for name in ("parameters", "look_ahead", "chunk")]
        rows.append(cells)
    return _markdown(head, rows)


def _size_cells(results, row):
    times, count = results.model(row)
    cells = ["-" if count is None else f"{count / 1e6:.2f}"]
    if times is None:
        return cells + ["-"] * 5
    return cells + [_seconds(getattr(times, name)) for name in ("segment", "look_ahead", "chunk", "context", "latency")]


def _run_cells(results, row, column):
    """RTF, epochs, training time (mean of the seeds), WER by seed."""
    plan, cell = results.plan, results.cell(row, column)
    factors = [report.real_time_factor(info) for info in cell.infos] if cell else []
    factors = [factor for factor in factors if factor is not None]
    logs = [report.read_train_log(plan.model(row.system, seed)) for seed in plan.seeds(row.system)]
    summaries = [report.training_summary(log) for log in logs if log]
    epochs = sorted({str(summary[0]) for summary in summaries}, key=int)
    seconds = sum(summary[3] for summary in summaries) / len(summaries) if summaries else None
    return [
        f"{sum(factors) / len(factors):.3f}" if factors else "-",
        ", ".join(epochs) or "-",
        "-" if seconds is None else str(datetime.timedelta(seconds=round(seconds))),
        " ".join(f"{rate:.1f}" for rate in cell.rates.values()) if cell else "-",
    ]


def alignment_table(results, table):
    """Paper Table III: word ends of the alignments against the reference, on the test set."""
    rows = []
    for row in (row for row in table.rows if row.aligned):
        found, paper = _delays(results, row), row.paper_alignment or {}
        cells = [row.name]
        for name in ("delay", "delta"):
            ours = found.get(f"{name}_ms")
            cells += [str(paper.get(name, "-")), "missing" if ours is None else f"{ours:.1f}"]
        rows.append([*cells, str(found.get("words", "-"))])
    if not rows:
        return []
    head = ["alignment", "paper, delay (ms)", "delay (ms)", "paper, delta (ms)", "delta (ms)", "words"]
    note = "delay: mean difference of word ends to the reference (negative: earlier); delta: mean absolute difference."
    return [*_markdown(head, rows), "", note]


def _alignment_report(results, row):
    return results.plan.exp / row.aligned / "aligned" / results.plan.corpus.test / "report"


def _delays(results, row):
    path = _alignment_report(results, row) / "delay.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        results.problems.append(f"{path} is not readable as JSON: run the align stage again")
        return {}


def _notes(results, table):
    """What the intervals are made of, and what is doubtful about the sets."""
    lines, parts = [], []
    for column in table.sets:
        cells = [cell for cell in (results.cell(row, column) for row in table.rows) if cell]
        name = results.plan.corpus.set_name(column)
        if cells:
            count, unit = len(cells[0].blocks.names), cells[0].blocks.unit
            few = f" (fewer than {FEWEST_BLOCKS}: do not rely on it)" if count < FEWEST_BLOCKS else ""
            parts.append(f"{name} {int(cells[0].blocks.words.sum())} words in {count} {unit}s{few}")
        missing = sum(cell.missing for cell in cells)
        if missing:
            lines.append(f"{name}: {missing} utterances without hypothesis count as deletions.")
    return ([f"Blocks of the intervals: {'; '.join(parts)}."] if parts else []) + lines


# Plots


def _plot(results, table, path, title):
    """Draw a table's plot; None where nothing can be drawn yet."""
    cells = {column: [results.cell(row, column) for row in table.rows] for column in table.sets}
    if table.plot == "alignment":
        return _copied_histogram(results, table, path)
    if not any(cell for column in cells.values() for cell in column):
        return None
    names, sets = [row.name for row in table.rows], [results.plan.corpus.set_name(column) for column in table.sets]
    intervals = [[cell and cell.interval for cell in column] for column in cells.values()]
    if table.plot == "rows":
        return plots.plot_intervals(path, names, dict(zip(sets, intervals, strict=True)), table.axis, title)
    if table.plot == "lengths":
        by_row = dict(zip(names, zip(*intervals, strict=True), strict=True))
        return plots.plot_intervals(path, sets, by_row, "set", title, joined=True)
    column = _test_column(table)
    found = [(row, results.cell(row, column), results.model(row)[0]) for row in table.rows]
    points = [(row.name, times.latency, cell.interval) for row, cell, times in found if cell and times]
    return plots.plot_systems(path, points, f"{title}, {results.plan.corpus.set_name(column)}") if points else None


def _copied_histogram(results, table, path):
    for row in table.rows:
        drawn = _alignment_report(results, row) / "delay.png" if row.aligned else None
        if drawn and drawn.is_file():
            with atomic_path(path) as temporary:
                shutil.copyfile(drawn, temporary)
            return path
    return None


def _table_lines(results, number, images):
    plan, table = results.plan, results.plan.tables[number]
    title = f"Table {number}: {table.title}"
    lines = ["", f"## {title}", "", f"`local/paper_tables.sh --corpus {plan.name} --table {number}`", ""]
    lines += rate_table(results, table)
    parts = [_notes(results, table), difference_table(results, table), system_table(results, table)]
    if table.plot == "alignment":
        parts.insert(0, alignment_table(results, table))
    for part in filter(None, parts):
        lines += ["", *part]
    drawn = _plot(results, table, images / f"paper_{number}.png", f"{title} ({plan.name})")
    return lines + ["", f"![{title}]({images.name}/{drawn.name})" if drawn else "No plot yet: nothing is decoded."]


def write_tables(plan, out, command=None, date=None):
    """Write ``out`` (TABLES.md) and its plots, ``images/paper_<number>.png`` beside it.

    Args:
        plan: :class:`~espnet_speechllm_xl.paper.Plan`.
        out: file.
        command, date: how and when it was made (``report.made_lines``).

    Returns the messages about what could not be read; they stand at the end of ``out`` too.
    """
    out, results = Path(out), Results(plan)
    introduction = INTRODUCTION.format(
        draws=significance.DRAWS, speakers=significance.FEWEST_SPEAKERS, seeds=FEWEST_SEEDS
    )
    lines = [f"# The paper's tables on {plan.name}", introduction.rstrip(), *report.made_lines(command, date)]
    for number in plan.tables:
        lines += _table_lines(results, number, out.parent / "images")
    if results.problems:
        lines += ["", "## Not read", "", *(f"- {problem}" for problem in results.problems)]
    with atomic_write(out) as stream:
        stream.write("\n".join(lines) + "\n")
    return results.problems
