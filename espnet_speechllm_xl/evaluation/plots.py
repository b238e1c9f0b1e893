"""Figures: learning curve, delay histogram, one utterance with tokens and chunks, error rates.

Each function ``plot_...`` writes one PNG and returns its path; others return a figure for :func:`save`.  matplotlib is
loaded when a figure is drawn.  All axes are linear; a value that would squeeze the others is drawn beyond the axis, as
a triangle with its number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.timeline import chunk_seconds

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

    from espnet_speechllm_xl.corpus.ctm import Word
    from espnet_speechllm_xl.evaluation.significance import Interval
    from espnet_speechllm_xl.evaluation.train_log import Epochs


# A colour-blind safe order (Okabe and Ito 2008).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vP*X"
OURS, OTHERS = COLOURS[1], COLOURS[0]
INCHES_PER_SECOND = 2.0
SQUEEZE = 4  # a value this many times the next smaller one leaves the others too little of the axis
CURVES = ("loss", "acc")  # values of a training that learning curves show
WORST_DELAY = 0.4  # seconds; differences beyond it are drawn in the outermost bars, so that all of them are seen
MOST_SECONDS = 20.0  # of the audio of an utterance that is drawn
PANELS = 4  # of a picture of learning curves
HEADS = -0.9  # place of the heads of a dot plot's columns, in rows; the first row is 0


def _figure(width: float, height: float, ratios: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """Return a figure of a size in inches, and its panels below each other, one for each of the ``ratios`` of heights.

    Figure without pyplot: no window system, no global state, and the Agg renderer for PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": ratios})
    return figure, [*panels[:, 0]]


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all; return its path."""
    with atomic_write(path, "wb") as stream, warnings.catch_warnings():
        # A script that the font lacks shows as boxes; one warning per letter would flood the log.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(stream, dpi=110, format="png")
    return Path(path)


def plot_learning_curve(epochs: Epochs, path: str | Path, title: str = "") -> Path:
    """Draw training and validation values over epochs, one panel for each of :data:`CURVES` that the log has.

    Args:
        epochs: as ``train_log.read_train_log`` gives them.
        path: of the picture.
        title: of the picture.

    Raises:
        UserError: the log has none of the values.
    """
    present = [key for key in CURVES if any(key in values for part in epochs.values() for values in part.values())]
    if not present:
        raise UserError(f"{title or path}: the training log has none of {', '.join(CURVES)}: nothing to plot")
    figure, panels = _figure(7, 3.4 * len(present), [1] * len(present))
    for panel, key in zip(panels, present, strict=True):
        _draw_curves(panel, epochs, key)
        panel.set_ylabel(key)
        panel.legend()
    panels[-1].set_xlabel("epoch")
    panels[0].set_title(title, parse_math=False)
    return save(figure, path)


@dataclass(frozen=True)
class Curves:
    """The trainings of one system, for :func:`plot_learning_curves`."""

    name: str
    trainings: Sequence[Epochs]  # of each seed
    ours: bool = False  # is SpeechLLM-XL


def plot_learning_curves(systems: Sequence[Curves], path: str | Path) -> Path:
    """Draw the losses of at most ``PANELS`` systems over their epochs, a panel each, a line for each seed."""
    return save(learning_curves(systems), path)


def learning_curves(systems: Sequence[Curves]) -> Figure:
    """Return the figure of :func:`plot_learning_curves`; panels have one scale where their losses are of one size."""
    from matplotlib.figure import Figure

    columns = min(2, len(systems))
    rows = math.ceil(len(systems) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.0 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    ends = [axis_end(_losses(system)) for system in systems]
    beyond = False
    for panel, system, end in zip(panels, systems, ends, strict=False):
        # Losses of one kind are near each other; another system's may be per utterance.
        beyond |= _draw_system(panel, system, end, max(one for one in ends if one <= 2 * end))
    for panel in panels[len(systems) :]:
        panel.set_axis_off()
    title = "triangle: beyond the axis" if beyond else None
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, title=title)
    return figure


def _losses(system: Curves) -> list[float]:
    parts = (part for epochs in system.trainings for parts in epochs.values() for part in parts.values())
    return [part["loss"] for part in parts if math.isfinite(part.get("loss", math.nan))]


def _draw_system(panel: Axes, system: Curves, end: float, top: float) -> bool:
    """Draw one system and tell whether a loss lies beyond the axis: a triangle with its number.

    Args:
        panel: to draw into.
        system: its trainings.
        end: losses above it lie beyond the axis.
        top: greatest loss of the axis.
    """
    for epochs in system.trainings:
        _draw_curves(panel, epochs, "loss")
    panel.set_ylim(0, 1.12 * top or 1)
    beyond: dict[int, list[float]] = {}
    for epochs in system.trainings:
        for epoch, parts in epochs.items():
            values = [part["loss"] for part in parts.values() if end < part.get("loss", math.nan) < math.inf]
            beyond.setdefault(epoch, []).extend(values)
    beyond = {epoch: values for epoch, values in beyond.items() if values}
    for epoch, values in beyond.items():
        panel.plot(epoch, 0.97, "^", color="black", markersize=6, transform=panel.get_xaxis_transform())
        panel.annotate(_span(values), (epoch, 0.97), (7, 0), xycoords=("data", "axes fraction"),
                       textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    seeds = f", {len(system.trainings)} seeds" if len(system.trainings) > 1 else ""
    panel.set_title(f"{system.name}{seeds}", fontsize=9, parse_math=False, fontweight="bold" if system.ours else None)
    panel.set_xlabel("epoch", fontsize=8)
    panel.set_ylabel("loss", fontsize=8)
    panel.tick_params(labelsize=8)
    return bool(beyond)


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _draw_curves(panel: Axes, epochs: Epochs, key: str) -> None:
    """Draw training and validation values of ``key`` over the epochs."""
    for part, colour in zip(("train", "valid"), COLOURS, strict=False):
        values = [(epoch, epochs[epoch].get(part, {}).get(key, math.nan)) for epoch in sorted(epochs)]
        points = [point for point in values if math.isfinite(point[1])]
        if points:
            name = {"train": "training", "valid": "validation"}[part]
            label = name if name not in panel.get_legend_handles_labels()[1] else None
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=label)
    panel.grid(alpha=0.3)
    locator: Any = panel.xaxis.get_major_locator()  # a MaxNLocator
    locator.set_params(integer=True)


def plot_delay_histogram(non_final: Sequence[float], final: Sequence[float], path: str | Path, title: str = "") -> Path:
    """Draw the histogram of word-end differences, in ms, final words of utterances apart.

    Args:
        non_final: differences in seconds.
        final: differences of the last words, in seconds.
        path: of the picture.
        title: of the picture.
    """
    figure, (panel,) = _figure(7, 3.8)
    edges = [1000 * WORST_DELAY * (step / 20 - 1) for step in range(41)]
    series = [(values, label) for values, label in ((non_final, "other words"), (final, "last words")) if values]
    clipped = [[1000 * min(max(value, -WORST_DELAY), WORST_DELAY) for value in values] for values, _ in series]
    labels = [f"{label} ({len(values)})" for values, label in series]
    if series:
        panel.hist(clipped, bins=edges, stacked=True, color=COLOURS[: len(series)], label=labels)
        everything = [*non_final, *final]
        mean = 1000 * sum(everything) / len(everything)
        panel.axvline(min(max(mean, edges[0]), edges[-1]), color="black", linestyle="--", label=f"mean {mean:.1f} ms")
        panel.legend()
    panel.axvline(0, color="grey", linewidth=0.8)
    panel.set_xlabel(f"word end minus reference, ms (outermost bars: and beyond {1000 * WORST_DELAY:.0f} ms)")
    panel.set_ylabel("words")
    panel.set_title(title, parse_math=False)
    return save(figure, path)


def _draw_tokens(panel: Axes, tokens: Sequence[tuple[str, float]], shown: float) -> None:
    for end, text in ((end, text) for text, end in tokens if end <= shown):
        panel.axvline(end, color=COLOURS[1], linewidth=0.9)
        panel.text(
            end, 0.04, f"{text} ", rotation=90, ha="right", va="bottom", fontsize=9, color="black", parse_math=False
        )
    panel.set_ylim(0, 1)
    panel.set_yticks([])
    panel.set_ylabel("tokens")


def plot_utterance(
    path: str | Path,
    samples: npt.NDArray[np.float32],
    sample_rate: int,
    tokens: Sequence[tuple[str, float]],
    chunk_size: int | None,
    reference: Sequence[Word] = (),
    title: str = "",
) -> Path:
    """Draw the audio of one utterance, at most :data:`MOST_SECONDS` of it, with token ends and chunk boundaries.

    Args:
        path: of the picture.
        samples: (N,) floats in -1 .. 1.
        sample_rate: of the audio in Hz.
        tokens: (text, end in seconds) pairs.
        chunk_size: frames of a chunk; None: there are no boundaries.
        reference: words whose spans are drawn in a row of their own.
        title: of the picture; it says where not all of the audio is drawn.

    Raises:
        UserError: the audio is empty.
    """
    if not len(samples):
        raise UserError(f"{title or path}: the audio is empty: nothing to plot")
    total = len(samples) / sample_rate
    shown = min(total, MOST_SECONDS)
    samples = samples[: math.ceil(shown * sample_rate)]
    ratios = [2, 2, 1.2] + ([0.7] if reference else [])
    figure, panels = _figure(max(6.0, INCHES_PER_SECOND * shown), 6, ratios)
    panels[0].plot([index / sample_rate for index in range(len(samples))], samples, color=COLOURS[0], linewidth=0.4)
    panels[0].set_ylabel("amplitude")
    with warnings.catch_warnings():
        # Digital silence has power 0, whose logarithm is -inf: it is drawn in the lowest colour.  matplotlib also
        # complains about audio of one sample.
        warnings.filterwarnings("ignore", message="divide by zero|Only one segment|Attempting to set identical")
        window = min(512, len(samples))
        panels[1].specgram(samples, NFFT=window, Fs=sample_rate, noverlap=window // 2, vmin=-140, vmax=-30)
    panels[1].set_ylabel("Hz")
    _draw_tokens(panels[2], tokens, shown)
    if reference:
        _draw_words(panels[3], reference, shown)
    step = chunk_seconds(chunk_size)
    borders = [] if math.isinf(step) else [index * step for index in range(1, math.ceil(shown / step - 1e-6))]
    for panel in panels:
        for border in borders:
            panel.axvline(border, color="black", linestyle="--", linewidth=1.4)
    for _, end in tokens:
        if end <= shown:
            panels[0].axvline(end, color=COLOURS[1], linewidth=0.9)
    panels[-1].set_xlim(0, shown)
    dashed = f"; dashed: chunk boundaries, {step:g} s" if math.isfinite(step) else ""
    panels[-1].set_xlabel(f"seconds (solid: token ends{dashed})")
    cut = f" (first {shown:g} s of {total:.1f} s)" if shown < total else ""
    panels[0].set_title(f"{title}{cut}", parse_math=False)
    return save(figure, path)


def _draw_words(panel: Axes, words: Sequence[Word], shown: float) -> None:
    for index, word in enumerate(words):
        if word.start >= shown:
            break
        end = min(word.end, shown)
        panel.axvspan(word.start, end, color=COLOURS[2 + index % 2], alpha=0.35, linewidth=0)
        panel.text((word.start + end) / 2, 0.5, word.text, ha="center", va="center", fontsize=9, parse_math=False)
    panel.set_yticks([])
    panel.set_ylabel("ref.")


def plot_length_bars(
    path: str | Path,
    lengths: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    title: str = "",
) -> Path:
    """Draw bars of the WER over lengths.

    Args:
        path: of the picture.
        lengths: labels such as ``1x``, ``10x``.
        series: ``{name: [percent or None, ...]}``, one value for each length.
        title: of the picture.
    """
    figure, (panel,) = _figure(max(5.0, 1.2 * len(lengths) * max(1, len(series)) ** 0.7), 3.8)
    width = 0.8 / max(1, len(series))
    for row, (name, values) in enumerate(series.items()):
        left = [index - 0.4 + (row + 0.5) * width for index in range(len(lengths))]
        drawn = [(x, math.nan if value is None else value) for x, value in zip(left, values, strict=True)]
        drawn = [pair for pair in drawn if math.isfinite(pair[1])]
        heights = [value for _, value in drawn]
        bars = panel.bar([x for x, _ in drawn], heights, width * 0.92, color=COLOURS[row % len(COLOURS)], label=name)
        panel.bar_label(bars, labels=[f"{value:.1f}" for value in heights], fontsize=8)
    panel.set_xticks(range(len(lengths)), lengths)
    panel.set_xlabel("length of the utterances")
    panel.set_ylabel("WER (%)")
    panel.margins(y=0.12)
    panel.grid(axis="y", alpha=0.3)
    panel.set_axisbelow(True)
    if series:
        _without_math(figure.legend(loc="outside lower center", ncols=min(3, len(series)), fontsize=8))
    panel.set_title(title, parse_math=False)
    return save(figure, path)


def plot_curves(
    path: str | Path, series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, title: str = ""
) -> Path:
    """Draw lines through points, both axes from 0.

    Args:
        path: of the picture.
        series: ``{name: [(x, y), ...]}``.
        x_label: of the axis below.
        y_label: of the axis at the left.
        title: of the picture.

    Raises:
        UserError: there are no points.
    """
    if not any(series.values()):
        raise UserError(f"{title or path}: there are no points: nothing to plot")
    figure, (panel,) = _figure(6.4, 3.8)
    for row, (name, points) in enumerate(series.items()):
        panel.plot(*zip(*points, strict=True), color=COLOURS[row % len(COLOURS)], marker=MARKERS[row % len(MARKERS)],
                   label=name)  # fmt: skip
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)
    panel.grid(alpha=0.3)
    _without_math(panel.legend())
    panel.set_title(title, parse_math=False)
    return save(figure, path)


def plot_latency(path: str | Path, points: Sequence[tuple[str, float, float, float]], title: str = "") -> Path:
    """Draw the accuracy-latency curve: WER over emission delay, a whisker from the median to the 90th percentile.

    Args:
        path: of the picture.
        points: (label, WER in percent, P50 in seconds, P90 in seconds), one for each chunk size, joined in their order.
        title: of the picture.

    Raises:
        UserError: there are no points.
    """
    if not points:
        raise UserError(f"{title or path}: no word to measure the emission delay of: nothing to plot")
    return save(latency_curve(points, title), path)


def latency_curve(points: Sequence[tuple[str, float, float, float]], title: str = "") -> Figure:
    """Return the figure of :func:`plot_latency`."""
    figure, (panel,) = _figure(7, 4.2)
    _, rates, medians, tails = zip(*points, strict=True)
    panel.plot(medians, rates, color="grey", linewidth=1, zorder=1)
    for row, (label, rate, median, tail) in enumerate(points):
        panel.errorbar(
            median, rate, xerr=[[0.0], [max(0.0, tail - median)]], color=COLOURS[row % len(COLOURS)],
            marker=MARKERS[row % len(MARKERS)], linestyle="none", capsize=4, label=label,
        )  # fmt: skip
    panel.set_xlabel("emission delay, s (marker: median, whisker: to the 90th percentile)")
    panel.set_ylabel("WER (%)")
    panel.set_xlim(min(0, 1.06 * min(medians)), 1.06 * max(0, *medians, *tails) or 1)
    panel.set_ylim(0, 1.15 * max(rates) or 1)
    panel.grid(alpha=0.3)
    _without_math(panel.legend(title="chunk size", loc="center left", bbox_to_anchor=(1, 0.5)))
    panel.set_title(title, parse_math=False)
    return figure


def axis_end(values: Iterable[float]) -> float:
    """Return the greatest value that an axis from 0 has to reach, so that most values can be told apart.

    Values from ``SQUEEZE`` times the next smaller one on are left beyond it, as long as they are fewer than half.
    """
    ordered = sorted(values)
    for place in range(len(ordered) // 2 + 1, len(ordered)):
        if 0 < SQUEEZE * ordered[place - 1] < ordered[place]:
            return ordered[place - 1]
    return ordered[-1] if ordered else 0.0


@dataclass(frozen=True)
class DotRow:
    """A row of :func:`dots`: a system with its error rates in percent, one for each set."""

    name: str
    rates: Sequence[Interval | None]
    ours: bool = False  # is SpeechLLM-XL
    note: str = ""  # stands in a column of its own


def dots(
    rows: Sequence[DotRow],
    sets: Sequence[str],
    title: str = "",
    rate: str = "WER",
    reference: str | None = None,
    notes: str = "",
    names: str = "system",
) -> Figure:
    """Return a figure of error rates with their intervals, a line for each system, the best one at the top.

    Args:
        rows: of the picture, at least one of them with a rate.
        sets: names of the sets; the rows are sorted by the last.
        title: of the picture.
        rate: name of the rates, WER or CER.
        reference: name of the row that the others are compared with: a dotted line at its last rate.
        notes: head of the column of the rows' notes, "" for none.
        names: head of the column of the rows' names.
    """

    def by_rate(row: DotRow) -> tuple[bool, float]:
        last = row.rates[-1]
        return last is None, last.value if last else 0.0

    rows = sorted(rows, key=by_rate)
    columns = [*sets, *filter(None, [notes])]
    width = 4.2 + 0.085 * max(len(row.name) for row in rows) + 1.25 * len(columns)
    figure, (panel,) = _figure(width, 1.7 + len(rows) * (0.18 + 0.12 * len(sets)))
    end = axis_end(one.value for row in rows for one in row.rates if one)
    shown = [one for row in rows for one in row.rates if one and one.value <= end]
    right = 1.04 * max(filter(None, (value for one in shown for value in (one.value, one.high))), default=1.0)
    panel.set_xlim(-0.02 * right, right)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    for place, row in enumerate(rows):
        _draw_row(panel, place, row, end)
    _name_rows(panel, rows, names)
    _write_columns(panel, rows, columns)
    compared = next((row.rates[-1] for row in rows if row.name == reference), None)
    if compared and compared.value <= end:
        panel.axvline(compared.value, color="grey", linestyle=":", zorder=0)
    beyond = any(one.value > end for row in rows for one in row.rates if one)
    panel.set_xlabel(f"{rate} (%), 95 % intervals{'; triangle: beyond the axis, see its number' if beyond else ''}")
    panel.set_title(f"{title}\nsorted by {rate} on {sets[-1]}", parse_math=False, fontsize=10)
    _explain(figure, rows, sets, f"{reference} on {sets[-1]}" if compared and compared.value <= end else None)
    return figure


def _draw_row(panel: Axes, place: int, row: DotRow, end: float) -> None:
    """Draw the dots of one row, a set below the other; triangles at the edge for rates beyond ``end``.

    Args:
        panel: to draw into.
        place: of the row, from the top.
        row: its rates.
        end: greatest rate of the axis, in percent.
    """
    step = 0.8 / (len(row.rates) + 1)
    for index, one in enumerate(row.rates):
        if one is None:
            continue
        y = place + step * (index - (len(row.rates) - 1) / 2)
        colour = OURS if row.ours else OTHERS
        if one.value > end:
            panel.plot(0.985, y, ">", color=colour, transform=panel.get_yaxis_transform(), markersize=7, clip_on=False)
            continue
        low, high = (one.value if end_of is None else end_of for end_of in (one.low, one.high))
        panel.errorbar(
            one.value, y, xerr=[[max(0, one.value - low)], [max(0, high - one.value)]], color=colour,
            marker=MARKERS[index % len(MARKERS)], markersize=5, capsize=3, elinewidth=1.2,
        )  # fmt: skip


def _name_rows(panel: Axes, rows: Sequence[DotRow], head: str) -> None:
    panel.annotate(
        head, (0, HEADS), (-4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        va="center", fontsize=8, annotation_clip=False, parse_math=False, fontweight="bold",
    )  # fmt: skip
    panel.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9)
    for label, row in zip(panel.get_yticklabels(), rows, strict=True):
        label.set(parse_math=False, **({"color": OURS, "fontweight": "bold"} if row.ours else {}))
    panel.tick_params(axis="y", length=0)
    panel.grid(alpha=0.3)
    panel.set_axisbelow(True)


def _write_columns(panel: Axes, rows: Sequence[DotRow], columns: Sequence[str]) -> None:
    """Write the numbers at the right: a column for each set, and one for the notes if they have a head.

    Args:
        panel: to write beside.
        rows: of the picture.
        columns: heads of the columns.
    """
    for column, head in enumerate(columns):
        beside = (10 + 90 * column, 0)  # points

        def write(text: str, y: float, beside: tuple[int, int] = beside, weight: str = "normal") -> None:
            panel.annotate(
                text, (1, y), beside, xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", fontsize=8, annotation_clip=False, parse_math=False, fontweight=weight,
            )  # fmt: skip

        write(head, HEADS, weight="bold")
        for place, row in enumerate(rows):
            one = row.rates[column] if column < len(row.rates) else None
            write(row.note if column >= len(row.rates) else one.text() if one else "missing", place)


def _explain(figure: Figure, rows: Sequence[DotRow], sets: Sequence[str], reference: str | None) -> None:
    """Draw the legend: systems of the colours, sets of the markers, the dotted line.

    Args:
        figure: to draw into.
        rows: of the picture.
        sets: names of the sets.
        reference: name of the dotted line; None: there is none.
    """
    from matplotlib.lines import Line2D

    kinds = {row.ours for row in rows}
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="none", label=label)
        for ours, colour, label in ((True, OURS, "SpeechLLM-XL"), (False, OTHERS, "other systems"))
        if ours in kinds
    ]
    if len(sets) > 1:
        handles += [
            Line2D([], [], color="grey", marker=marker, linestyle="none", label=name)
            for marker, name in zip(MARKERS, sets, strict=False)
        ]
    if reference:
        handles.append(Line2D([], [], color="grey", linestyle=":", label=reference))
    _without_math(figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8))


def _without_math(legend: Legend) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)
