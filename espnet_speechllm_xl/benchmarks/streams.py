"""Streams in step: how much audio a second, and which share of the time is matrix products."""

from espnet_speechllm_xl.benchmarks.plan import OTHER, THIS, Part, Plan, crew
from espnet_speechllm_xl.benchmarks.report import against
from espnet_speechllm_xl.benchmarks.rounds import Figures
from espnet_speechllm_xl.evaluation.markdown import markdown_table, shown

NAME, CONFIG, VOCABULARY, ROUNDS = "streams", "train_tiny.yaml", 500, 7
STREAM_CHUNKS = 16  # chunks of a measurement, of all streams together, and at least one each
PROFILED = 8  # times fewer in a profile, whose events take long to count


def run(plan: Plan) -> Part:
    """Measure greedy streams, at each number of them; profile others of the same kind in between."""
    settings = plan.configuration(CONFIG, VOCABULARY)
    part = Part(NAME, settings)
    with crew(plan, part) as workers:
        for count in plan.streams:
            chunks = max(1, STREAM_CHUNKS // count)
            these = {**settings, "streams": count, "chunks": chunks, "search": "greedy"}
            plain = workers.both("streams", these)
            profiled = workers.both("profiled_streams", {**these, "chunks": max(1, chunks // PROFILED)})
            seconds, profiled_seconds = (one[THIS].facts["audio_seconds"] for one in (plain, profiled))
            subjects = {**plain, **{f"{name} profiled": subject for name, subject in profiled.items()}}
            figures = workers.interleave(f"{count} streams", subjects, ROUNDS)
            counted = {"streams": count, "audio_seconds": seconds, "profiled_audio_seconds": profiled_seconds}
            part.rows.append({**counted, "figures": figures})
    part.lines = [*_table(plan, part), "", *LEGEND]
    for name, checkout in plan.checkouts.items():
        points = [(row["streams"], speed) for row in part.rows if (speed := _speed(row, name))]
        if points:
            part.curves[checkout.commit if plan.other else "greedy"] = points
    return part


LEGEND = [
    "RTFx: seconds of audio a second. By the lower quartile of the times; by the median in brackets. "
    "Shares: seconds within matrix products and within attention, as the profiler counts them, of the "
    "seconds that the same work takes without the profiler."
]


def _speed(row: dict, name: str) -> float | None:
    figures: Figures = row["figures"]
    return row["audio_seconds"] / figures[name]["seconds"].lower_quartile if name in figures else None


def _table(plan: Plan, part: Part) -> list[str]:
    names = [name for name in plan.checkouts if name == THIS or not part.failed]
    head = ["streams", "RTFx", "matrix products", "attention", "tokens a chunk"]
    if OTHER in names:
        assert plan.other is not None
        head += [f"{plan.other.commit}, RTFx", "matrix products", "attention", "times as fast"]
    return markdown_table(head, [_cells(row, names) for row in part.rows])


def _cells(row: dict, names: list[str]) -> list[str]:
    figures: Figures = row["figures"]
    cells = [str(row["streams"])]
    for name in names:
        taken, profiled = figures[name]["seconds"], figures[f"{name} profiled"]
        speeds = [row["audio_seconds"] / seconds for seconds in (taken.lower_quartile, taken.median)]
        cells.append(f"{speeds[0]:.1f} ({speeds[1]:.1f})")
        whole = taken.lower_quartile * row["profiled_audio_seconds"] / row["audio_seconds"]
        cells += [f"{100 * profiled[kind].lower_quartile / whole:.0f} %" for kind in ("products", "attention")]
        if name == THIS:
            cells.append(f"{figures[name]['tokens_a_chunk'].median:.1f}")
    if OTHER in names:
        cells.append(shown(against(figures, "seconds"), "{:.2f}"))
    return cells
