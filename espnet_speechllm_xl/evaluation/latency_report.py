"""LATENCY.md: when the words of streams were emitted, and their compute time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_speechllm_xl.evaluation import metrics, plots
from espnet_speechllm_xl.evaluation.alignment_report import DELAY_HEAD, delay_row
from espnet_speechllm_xl.evaluation.markdown import made_lines, markdown_table, shown, speed_cells
from espnet_speechllm_xl.files import atomic_write

_GROUPS = {"all": "all", "first": "first of the utterance", "not_last": "not last", "last": "last of the utterance"}
_NOTES = """
A word is emitted when it is settled: never taken back from then on. emission delay: emission minus the word's end in
the reference, of correct words. Audio clock: the audio pushed by then. Wall clock: compute time added, as if the audio
arrived in real time; it holds for this machine and what else ran on it. algorithmic latency: the longest wait for
chunk, segment and look-ahead. The end of a recording settles all that is open then: on the audio clock the last
words are delayed by no more than the silence after them, tail_seconds included. TTFS: from the end of speech to the
final text where the stream is flushed there (below).
"""
_FLUSH_NOTES = """
Each recording was streamed once more, up to the end of speech, and flushed there. That is the end of the last word in
the reference, or, without a reference, the end that the stream itself reports. Silence stands for the missing
look-ahead, so the audio clock adds nothing. TTFS is what the wall clock adds: the compute time of the flush, and of the
pushes that are not done when the speech ends. A client needs time to hear that the speech has ended: it is not in TTFS.
"""

Figures = Mapping[str, Any]  # of one chunk size: of stream_latency.summary, and its settings (latency_report)


def latency_report(
    out_dir: str | Path,
    setup: Mapping[str, Any],
    sizes: Sequence[Figures],
    command: str | None = None,
) -> list[str]:
    """Write ``LATENCY.md``, ``latency.json`` and the accuracy-latency curve ``latency.png`` into ``out_dir``.

    Args:
        out_dir: directory.
        setup: settings of the measurement, for JSON: ``model`` and ``set`` (the title), ``reference`` (a CTM or None)
            and others.
        sizes: figures of each chunk size: of ``stream_latency.summary`` and ``stream_latency.flush_summary``, with
            ``chunk_seconds``, ``context_seconds`` and ``algorithmic_seconds`` (None: infinite).
        command: how the report was made, as a user would type it.

    Returns the table of the chunk sizes, as lines.
    """
    out_dir = Path(out_dir)
    with atomic_write(out_dir / "latency.json") as stream:
        json.dump({**setup, "chunk_sizes": sizes}, stream, ensure_ascii=False, indent=1, allow_nan=False)
        stream.write("\n")
    title = f"Latency of {Path(setup['model']).name} on {Path(setup['set']).name}"
    points = []
    for size in sizes:
        delay, label = size["delay_ms"]["all"], f"{_seconds(size['chunk_seconds'])} s"
        if delay["count"]:
            points.append((label, size["wer"], delay["p50"] / 1000, delay["p90"] / 1000))
    table = latency_table(sizes)
    plot = out_dir / "latency.png"
    plot.unlink(missing_ok=True)  # of an earlier run that had a reference
    drawn = [f"![accuracy and latency]({plots.plot_latency(plot, points, title).name})", ""] if points else []
    lines = [f"# {title}", "", *table, "", *drawn, *_NOTES.strip().splitlines()]
    lines += ["", "## Emission delay, ms", "", *emission_table(sizes)]
    if setup["reference"] is None:
        lines += [
            "",
            "There is no reference: emission delays are against the word ends that the stream itself reports.",
        ]
    else:
        lines += ["", "## Word ends of the stream against the reference, ms", "", *word_end_table(sizes)]
    lines += ["", "## Flushed at the end of speech", "", *flush_table(sizes), "", *_FLUSH_NOTES.strip().splitlines()]
    lines += ["", "## Words", "", *counts_table(sizes)]
    lines += [*made_lines(command), *(f"- {name}: `{value}`" for name, value in setup.items())]
    with atomic_write(out_dir / "LATENCY.md") as stream:
        stream.write("\n".join(lines) + "\n")
    return table


def _seconds(value: float | None) -> str:
    return "inf" if value is None else f"{value:g}"


def latency_table(sizes: Sequence[Figures]) -> list[str]:
    """Return the table of accuracy, delay of all words and speed, a row for each chunk size."""
    head = ["chunk (s)", "context (s)", "algorithmic latency (s)", "WER (%)"]
    head += ["emission delay P50 (ms)", "P90 (ms)", "TTFS P50 (ms)", "P95 (ms)", "P99 (ms)"]
    head += ["compute at a chunk's end P50 (ms)", "P99 (ms)", "RTF", "RTFx", "capped"]
    rows = []
    for size in sizes:
        times = (_seconds(size[f"{name}_seconds"]) for name in ("chunk", "context", "algorithmic"))
        delay, compute = size["delay_ms"]["all"], size["compute_ms_per_chunk"]
        values = [(size["wer"], "{:.1f}"), (delay["p50"], "{:.0f}"), (delay["p90"], "{:.0f}")]
        values += [(size["ttfs_ms"][name], "{:.1f}") for name in ("p50", "p95", "p99")]
        values += [(compute["p50"], "{:.1f}"), (compute["p99"], "{:.1f}")]
        cells = [shown(*value) for value in values]
        rows.append([*times, *cells, *speed_cells(size["rtf"]), str(size["capped"])])
    return markdown_table(head, rows)


def emission_table(sizes: Sequence[Figures]) -> list[str]:
    """Return the table of emission delays by the word's place in the utterance, on both clocks, in ms."""
    names = ("mean", "P50", "P90", "P99")
    rows = []
    for size in sizes:
        for group, label in _GROUPS.items():
            both = [size[clock][group] for clock in ("delay_ms", "wall_delay_ms")]
            cells = [shown(item[name.lower()], "{:.0f}") for item in both for name in names]
            rows.append([_seconds(size["chunk_seconds"]), label, str(both[0]["count"]), *cells])
    return markdown_table(["chunk (s)", "words", "number", *names, *(f"wall {name}" for name in names)], rows)


def flush_table(sizes: Sequence[Figures]) -> list[str]:
    """Return the table of utterances that were flushed at the end of speech."""
    head = ["chunk (s)", "utterances", "+ without an end of speech", "TTFS mean (ms)", "WER of the final texts (%)"]
    rows = []
    for size in sizes:
        flushed = size["flushed"]
        counts = map(str, (flushed["utterances"], flushed["without_end_of_speech"]))
        cells = shown(size["ttfs_ms"]["mean"], "{:.1f}"), shown(flushed["wer"], "{:.1f}")
        rows.append([_seconds(size["chunk_seconds"]), *counts, *cells])
    return markdown_table(head, rows)


def word_end_table(sizes: Sequence[Figures]) -> list[str]:
    """Return paper Table III for the word times of streams, in ms."""
    rows = []
    for size in sizes:
        for group, item in size["word_ends_ms"].items():
            rows.append([_seconds(size["chunk_seconds"]), *delay_row(_GROUPS[group], metrics.Delay(**item))])
    return markdown_table(["chunk (s)", *DELAY_HEAD], rows)


def counts_table(sizes: Sequence[Figures]) -> list[str]:
    """Return the table of the reference's words: measured, or not, with the reason."""
    reasons = sorted({reason for size in sizes for reason in size["words"]["left_out"]})
    head = ["chunk (s)", "in the reference", "= measured", *(f"+ {reason}" for reason in reasons), "inserted besides"]
    rows = []
    for size in sizes:
        words = size["words"]
        counts = (words["reference"], words["measured"], *(words["left_out"].get(each, 0) for each in reasons))
        rows.append([_seconds(size["chunk_seconds"]), *map(str, (*counts, words["inserted"]))])
    return markdown_table(head, rows)
