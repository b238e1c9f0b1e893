"""The cost of a second of audio against the length of the recording."""

from espnet_speechllm_xl.benchmarks.plan import OTHER, THIS, Part, Plan, crew
from espnet_speechllm_xl.benchmarks.report import both
from espnet_speechllm_xl.benchmarks.rounds import Figure
from espnet_speechllm_xl.evaluation.markdown import markdown_table

NAME, CONFIG, VOCABULARY, ROUNDS = "length", "train_tiny.yaml", 500, 3
LEGEND = "Milliseconds for a second of audio: lower quartile (median)."


def run(plan: Plan) -> Part:
    """Measure greedy transcriptions of recordings of several lengths, all in turn."""
    settings = plan.configuration(CONFIG, VOCABULARY)
    part = Part(NAME, settings)
    with crew(plan, part) as workers:
        subjects = {
            (name, length): subject
            for length in plan.lengths
            for name, subject in workers.both("recording", {**settings, "seconds": length}).items()
        }
        figures = workers.interleave(
            "recordings", {f"{name} {length}": one for (name, length), one in subjects.items()}, ROUNDS
        )
    for length in plan.lengths:
        found = {
            name: Figure.of([seconds / length for seconds in figures[f"{name} {length}"]["seconds"].samples])
            for name in plan.checkouts
            if f"{name} {length}" in figures
        }
        part.rows.append({"seconds": length, "costs": found})
    part.lines = [*table(plan, part, "recording, s"), "", LEGEND]
    for name, checkout in plan.checkouts.items():
        costs = {float(row["seconds"]): row["costs"][name] for row in part.rows if name in row["costs"]}
        if costs:
            label = checkout.commit if plan.other else "greedy"
            part.curves[label] = [(seconds, 1000 * cost.lower_quartile) for seconds, cost in costs.items()]
    return part


def table(plan: Plan, part: Part, unit: str) -> list[str]:
    """Return the table of costs by length.

    Args:
        plan: of the run.
        part: with rows that have ``seconds`` and ``costs``, seconds for a second of audio by checkout.
        unit: head of the first column.
    """
    head, rows = [unit, "ms for a second", "/ the first"], []
    others = plan.other if any(OTHER in row["costs"] for row in part.rows) else None
    head += [f"{others.commit}, ms for a second", "/ the first", "times as fast"] if others else []
    for row in part.rows:
        cells = [f"{row['seconds']:g}"]
        for name in (THIS, OTHER) if others else (THIS,):
            cost, first = row["costs"].get(name), part.rows[0]["costs"].get(name)
            cells += [both(cost), f"{cost.lower_quartile / first.lower_quartile:.2f}"] if cost and first else ["-", "-"]
        if others:
            costs = row["costs"]
            quotient = costs[OTHER].lower_quartile / costs[THIS].lower_quartile if OTHER in costs else None
            cells.append(f"{quotient:.2f}" if quotient else "-")
        rows.append(cells)
    return markdown_table(head, rows)
