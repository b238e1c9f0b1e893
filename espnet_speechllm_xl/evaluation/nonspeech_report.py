"""NONSPEECH.md: what streams write where there is no speech, and whether they end sentences on time."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from espnet_speechllm_xl.evaluation.endpoints import Endpoints
from espnet_speechllm_xl.evaluation.markdown import made_lines, markdown_table, shown
from espnet_speechllm_xl.files import atomic_write

_ENDPOINT_HEAD = ["pauses", "sentences", "on time (%)", "late (%)", "cut (%)", "silent (%)"]
_ENDPOINT_HEAD += ["endpoint behind the last word, P50 (s)", "words in pauses"]


def words_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of words in audio without speech, as lines; rows as ``measure_nonspeech`` gives them."""
    head = ["audio", "minutes", "words", "words a minute"]
    cells = [[row["audio"], f"{row['minutes']:g}", str(row["words"]), f"{row['words_a_minute']:.1f}"] for row in rows]
    return markdown_table(head, cells)


def endpoint_figures(found: Endpoints) -> dict[str, Any]:
    """Return the counts of sentences, and the median of the seconds to the endpoints that were on time."""
    counts = {name: value for name, value in dataclasses.asdict(found).items() if name != "delays"}
    p50 = median(found.delays) if found.delays else None
    return {"sentences": found.sentences, "on_time": len(found.delays), **counts, "p50_seconds": p50}


def endpoints_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of endpoints, as lines.

    Args:
        rows: the ``audio`` of the pauses, and :func:`endpoint_figures`.
    """

    def cells(row: Mapping[str, Any]) -> list[str]:
        shares = [f"{100 * row[name] / row['sentences']:.1f}" for name in ("on_time", "late", "cut", "silent")]
        return [row["audio"], str(row["sentences"]), *shares, shown(row["p50_seconds"], "{:.2f}"), str(row["stray"])]

    return markdown_table(_ENDPOINT_HEAD, map(cells, rows))


def write_report(
    out: Path,
    setup: Mapping[str, Any],
    words: Sequence[Mapping[str, Any]],
    endpoints: Sequence[Mapping[str, Any]],
    command: str,
) -> None:
    """Write ``NONSPEECH.md`` and ``nonspeech.json`` into a directory.

    Args:
        out: the directory.
        setup: settings of the measurement, for JSON; ``model`` gives the title.
        words: rows of :func:`words_table`.
        endpoints: rows of :func:`endpoints_table`; empty: they were not measured.
        command: as a user would type it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "nonspeech.json") as stream:
        json.dump({**setup, "words": words, "endpoints": endpoints}, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
    lines = [f"# Audio without speech: {Path(setup['model']).name}", "", *words_table(words)]
    if endpoints:
        lines += ["", "## Endpoints", "", *endpoints_table(endpoints)]
    lines += [*made_lines(command), *(f"- {name}: `{value}`" for name, value in setup.items())]
    with atomic_write(out / "NONSPEECH.md") as stream:
        stream.write("\n".join(lines) + "\n")
