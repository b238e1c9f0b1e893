"""Figures: learning curve, delay histogram, one utterance with tokens and chunks, error rates.

Each function writes one PNG, whole or not at all, and returns its path.  matplotlib is loaded when a figure is drawn.
"""

import itertools
import math
import warnings
from pathlib import Path

from .errors import UserError
from .io import atomic_write
from .timeline import chunk_seconds

# A colour-blind safe order (Okabe and Ito 2008).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vP*X"
INCHES_PER_SECOND = 2.0
LOGARITHMIC_FROM = 20  # greatest error rate / least


def _figure(width, height, rows=1, **kwargs):
    # Figure without pyplot: no window system, no global state, and the Agg renderer for PNG.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False, **kwargs)[:, 0]


def _save(figure, path):
    with atomic_write(path, "wb") as stream, warnings.catch_warnings():
        # A script that the font lacks shows as boxes; one warning per letter would flood the log.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(stream, dpi=110, format="png")
    return Path(path)


def plot_learning_curve(epochs, path, title="", keys=("loss", "acc")):
    """Training and validation values over epochs, one panel for each of ``keys`` that the log has.

    ``epochs``: ``{epoch: {"train": {key: value}, "valid": {...}}}`` as ``train_log.read_train_log`` gives.
    Raises UserError when none of the keys is there.
    """
    present = [key for key in keys if any(key in values for part in epochs.values() for values in part.values())]
    if not present:
        raise UserError(f"{title or path}: the training log has none of {', '.join(keys)}: nothing to plot")
    figure, panels = _figure(7, 3.4 * len(present), len(present), sharex=True)
    for panel, key in zip(panels, present, strict=True):
        _draw_curves(panel, epochs, key)
        panel.set_ylabel(key)
        panel.legend()
    panels[-1].set_xlabel("epoch")
    panels[0].set_title(title, parse_math=False)
    return _save(figure, path)


def plot_learning_curves(trainings, path, columns=4):
    """The losses of several trainings over their epochs, a small panel each.

    ``trainings``: ``{name: epochs}``, epochs as in :func:`plot_learning_curve`.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(trainings) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, epochs) in zip(panels, trainings.items(), strict=False):
        _draw_curves(panel, epochs, "loss")
        panel.set_title(name, fontsize=7, parse_math=False)
        panel.tick_params(labelsize=7)
    for panel in panels[len(trainings) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=7)
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("loss", fontsize=8)
    return _save(figure, path)


def _draw_curves(panel, epochs, key):
    """Training and validation values of ``key`` over the epochs."""
    for part, colour in zip(("train", "valid"), COLOURS, strict=False):
        values = [(epoch, epochs[epoch].get(part, {}).get(key, math.nan)) for epoch in sorted(epochs)]
        points = [point for point in values if math.isfinite(point[1])]
        if points:
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=part)
    panel.grid(alpha=0.3)
    panel.xaxis.get_major_locator().set_params(integer=True)


def plot_delay_histogram(non_final, final, path, title="", limit=0.4):
    """Histogram of word-end differences in seconds (drawn in ms), final words of utterances apart.

    Differences beyond ``limit`` seconds are drawn in the outermost bars, so that all of them are seen.
    """
    figure, (panel,) = _figure(7, 3.8)
    edges = [1000 * limit * (step / 20 - 1) for step in range(41)]
    series = [(values, label) for values, label in ((non_final, "other words"), (final, "last words")) if values]
    clipped = [[1000 * min(max(value, -limit), limit) for value in values] for values, _ in series]
    labels = [f"{label} ({len(values)})" for values, label in series]
    if series:
        panel.hist(clipped, bins=edges, stacked=True, color=COLOURS[: len(series)], label=labels)
        everything = [*non_final, *final]
        mean = 1000 * sum(everything) / len(everything)
        panel.axvline(min(max(mean, edges[0]), edges[-1]), color="black", linestyle="--", label=f"mean {mean:.1f} ms")
        panel.legend()
    panel.axvline(0, color="grey", linewidth=0.8)
    panel.set_xlabel(f"word end minus reference, ms (outermost bars: and beyond {1000 * limit:.0f} ms)")
    panel.set_ylabel("words")
    panel.set_title(title, parse_math=False)
    return _save(figure, path)


def _draw_tokens(figure_panel, tokens, shown):
    for end, text in ((end, text) for text, end in tokens if end <= shown):
        figure_panel.axvline(end, color=COLOURS[1], linewidth=0.9)
        figure_panel.text(
            end, 0.04, f"{text} ", rotation=90, ha="right", va="bottom", fontsize=9, color="black", parse_math=False
        )
    figure_panel.set_ylim(0, 1)
    figure_panel.set_yticks([])
    figure_panel.set_ylabel("tokens")


def plot_utterance(path, samples, sample_rate, tokens, chunk, reference=(), title="", max_seconds=20.0):
    """Audio of one utterance with its token ends and chunk borders.

    ``samples``: (N,) floats in -1 .. 1 at ``sample_rate`` Hz; ``tokens``: (text, end in seconds) pairs; ``chunk``:
    frames, or None for one chunk; ``reference``: words (``ctm.Word``) whose spans are drawn in a row of their own.
    At most the first ``max_seconds`` are drawn, and the title says so.
    """
    total = len(samples) / sample_rate
    shown = min(total, max_seconds)
    if shown <= 0:
        raise UserError(f"{title or path}: the audio is empty: nothing to plot")
    samples = samples[: math.ceil(shown * sample_rate)]
    ratios = [2, 2, 1.2] + ([0.7] if reference else [])
    figure, panels = _figure(
        max(6.0, INCHES_PER_SECOND * shown), 6, len(ratios), sharex=True, gridspec_kw={"height_ratios": ratios}
    )
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
    step = chunk_seconds(chunk)
    borders = [] if math.isinf(step) else [index * step for index in range(1, math.ceil(shown / step - 1e-6))]
    for panel in panels:
        for border in borders:
            panel.axvline(border, color="black", linestyle="--", linewidth=1.4)
    for _, end in tokens:
        if end <= shown:
            panels[0].axvline(end, color=COLOURS[1], linewidth=0.9)
    panels[-1].set_xlim(0, shown)
    panels[-1].set_xlabel(f"seconds (solid: token ends; dashed: chunk borders, {step:g} s)")
    cut = f" (first {shown:g} s of {total:.1f} s)" if shown < total else ""
    panels[0].set_title(f"{title}{cut}", parse_math=False)
    return _save(figure, path)


def _draw_words(panel, words, shown):
    for index, word in enumerate(words):
        if word.start >= shown:
            break
        end = min(word.end, shown)
        panel.axvspan(word.start, end, color=COLOURS[2 + index % 2], alpha=0.35, linewidth=0)
        panel.text((word.start + end) / 2, 0.5, word.text, ha="center", va="center", fontsize=9, parse_math=False)
    panel.set_yticks([])
    panel.set_ylabel("ref.")


def plot_length_bars(path, lengths, series, title="", ylabel="WER (%)"):
    """Bars of an error rate over lengths.

    ``lengths``: labels such as ``1x``, ``10x``; ``series``: ``{name: [percent or None, ...]}``, one value a length.
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
    panel.set_ylabel(ylabel)
    panel.margins(y=0.12)
    panel.grid(axis="y", alpha=0.3)
    panel.set_axisbelow(True)
    if series:
        _without_math(figure.legend(loc="outside lower center", ncols=min(3, len(series)), fontsize=8))
    panel.set_title(title, parse_math=False)
    return _save(figure, path)


def plot_latency(path, points, title=""):
    """The accuracy-latency curve: WER over emission delay, a whisker from the median to the 90th percentile.

    ``points``: (label, WER in percent, P50 in seconds, P90 in seconds), one for each chunk size; they are joined in
    their order.  Raises UserError when there is none.
    """
    if not points:
        raise UserError(f"{title or path}: no word to measure the delay of: nothing to plot")
    labels, rates, medians, tails = zip(*points, strict=True)
    figure, (panel,) = _figure(7, 4.2)
    whiskers = [[0] * len(points), [max(0, tail - median) for median, tail in zip(medians, tails, strict=True)]]
    panel.errorbar(medians, rates, xerr=whiskers, color=COLOURS[0], ecolor=COLOURS[5], marker="o", capsize=4)
    for label, rate, median in zip(labels, rates, medians, strict=True):
        panel.annotate(label, (median, rate), (-7, 5), textcoords="offset points", ha="right", parse_math=False)
    panel.set_xlabel("emission delay, s (dot: median, whisker: to the 90th percentile)")
    panel.set_ylabel("WER (%)")
    panel.set_ylim(0, 1.15 * max(rates) or 1)
    panel.margins(x=0.12)
    panel.grid(alpha=0.3)
    panel.set_title(title, parse_math=False)
    return _save(figure, path)


def plot_intervals(path, ticks, series, xlabel, title="", joined=False, ylabel="WER (%)"):
    """Values with their intervals over named places.

    ``ticks``: names of the places; ``series``: ``{label: [Interval or None, ...]}``, one a place
    (``significance.Interval``, percent); ``joined``: the places are in an order, so draw a line through each series.
    """
    figure, (panel,) = _figure(max(5.5, 1.15 * len(ticks)), 4.2)
    step = min(0.16, 0.8 / max(1, len(series)))
    for row, (label, values) in enumerate(series.items()):
        shift = step * (row - (len(series) - 1) / 2)
        points = [(index + shift, value) for index, value in enumerate(values) if value is not None]
        _draw_intervals(panel, points, label, row, "-" if joined else "none")
    panel.set_xticks(range(len(ticks)), ticks)
    for text in panel.get_xticklabels():
        text.set_parse_math(False)
        if len(ticks) > 4:
            text.set(rotation=20, ha="right")
    panel.set_xlim(-0.5, len(ticks) - 0.5)
    panel.set_xlabel(xlabel, parse_math=False)
    rates = [value.value for values in series.values() for value in values if value is not None]
    _finish_rates(panel, title, ylabel, rates)
    if series:
        columns = 2 if max(map(len, series)) < 30 else 1  # of the figure's width
        _without_math(figure.legend(loc="outside lower center", ncols=columns, fontsize=8))
    return _save(figure, path)


def plot_systems(path, points, title="", ylabel="WER (%)"):
    """Error rate of systems in the order of their latency, those of equal latency together.

    ``points``: (label, worst-case algorithmic latency in seconds, ``significance.Interval``); systems that cannot
    stream have an infinite latency and stand at the right.
    """
    figure, (panel,) = _figure(max(5.5, 0.5 * len(points)), 5.5)
    ticks, place = [], 0
    for row, (latency, group) in enumerate(by_latency(points)):
        if place:
            panel.axvline(place - 1, color="grey", linestyle=":")
        drawn = [(place + beside, label, value) for beside, (label, _, value) in enumerate(group)]
        _draw_intervals(panel, [(x, value) for x, _, value in drawn], None, row, "none")
        ticks += [(x, label) for x, label, _ in drawn]
        text = f"{latency:.2f} s" if math.isfinite(latency) else "all audio"
        middle = place + (len(drawn) - 1) / 2
        panel.annotate(text, (middle, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9)
        place += len(drawn) + 1
    panel.set_xticks(*zip(*ticks, strict=True), rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    panel.set_xlim(-1, place - 1)
    panel.set_xlabel("system; above: worst-case algorithmic latency")
    _finish_rates(panel, title, ylabel, [value.value for _, _, value in points], pad=20)
    return _save(figure, path)


def by_latency(points):
    """``[(latency in seconds, points)]`` in order, of the points of :func:`plot_systems`."""

    def latency(point):
        return round(point[1], 2)

    return [(value, list(group)) for value, group in itertools.groupby(sorted(points, key=latency), latency)]


def _draw_intervals(panel, points, label, row, line):
    """Points (x, Interval) of one series; borders that are None are not drawn."""
    if not points:
        return
    places, values = zip(*points, strict=True)
    below = [value.value - (value.value if value.low is None else value.low) for value in values]
    above = [(value.value if value.high is None else value.high) - value.value for value in values]
    panel.errorbar(
        places,
        [value.value for value in values],
        yerr=[[max(0, size) for size in below], [max(0, size) for size in above]],
        color=COLOURS[row % len(COLOURS)],
        marker=MARKERS[row % len(MARKERS)],
        linestyle=line,
        capsize=4,
        label=label,
    )


def _finish_rates(panel, title, ylabel, rates, pad=None):
    """Labels, and a logarithmic axis where the greatest rate would make the others look alike."""
    panel.set_ylabel(ylabel)
    if rates and 0 < LOGARITHMIC_FROM * min(rates) < max(rates):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
    else:
        panel.set_ylim(bottom=0)
    panel.grid(axis="y", alpha=0.3)
    panel.set_title(title, parse_math=False, pad=pad)


def _without_math(legend):
    for text in legend.get_texts():
        text.set_parse_math(False)
