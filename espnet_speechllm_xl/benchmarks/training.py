"""Training: forward and backward pass for a second of audio, and the peak of memory, by the length of utterances."""

from espnet_speechllm_xl.benchmarks import length
from espnet_speechllm_xl.benchmarks.plan import Part, Plan, crew
from espnet_speechllm_xl.benchmarks.rounds import Figure
from espnet_speechllm_xl.evaluation.markdown import markdown_table

NAME, CONFIG, VOCABULARY, ROUNDS = "training", "train_small.yaml", 1000, 3
BATCH_SECONDS = 120  # of audio in a batch, at least one utterance


def run(plan: Plan) -> Part:
    """Measure batches of utterances of several lengths in turn, each in a process of its own because of its peak."""
    settings = plan.configuration(CONFIG, VOCABULARY, trained=False)
    part = Part(NAME, settings)
    batches = {seconds: max(1, round(BATCH_SECONDS / seconds)) for seconds in plan.utterances}
    with crew(plan, part) as workers:
        subjects = {
            f"{name} {seconds}": subject
            for seconds, batch in batches.items()
            for name, subject in workers.both(
                "training", {**settings, "seconds": seconds, "batch": batch}, fresh=True
            ).items()
        }
        # They are warm from a short utterance; long ones take long.
        figures = workers.interleave("batches", subjects, ROUNDS, warm_up=0)
    for seconds, batch in batches.items():
        found = {name: figures[key] for name in plan.checkouts if (key := f"{name} {seconds}") in figures}
        costs = {
            name: Figure.of([taken / (batch * seconds) for taken in one["seconds"].samples])
            for name, one in found.items()
        }
        peaks = {name: max(one["peak_bytes"].samples) for name, one in found.items()}
        growths = {name: peaks[name] - min(one["bytes_before"].samples) for name, one in found.items()}
        part.rows.append({"seconds": seconds, "batch": batch, "costs": costs, "peaks": peaks, "growths": growths})
    part.lines = [*length.table(plan, part, "utterance, s"), "", *_memory(plan, part), "", *_legend(part)]
    return part


def _memory(plan: Plan, part: Part) -> list[str]:
    """Return the table of memory."""
    head, names = ["utterance, s", "batch"], [name for name in plan.checkouts if name in part.rows[0]["peaks"]]
    for name in names:
        before = f"{plan.checkouts[name].commit}, " if plan.other else ""
        head += [f"{before}peak, MB", "above the model, MB", "for a second, MB"]
    rows = []
    for row in part.rows:
        cells = [f"{row['seconds']:g}", str(row["batch"])]
        for name in names:
            peak, growth = (row[kind][name] / 1e6 for kind in ("peaks", "growths"))
            cells += [f"{peak:.0f}", f"{growth:.0f}", f"{growth / (row['seconds'] * row['batch']):.1f}"]
        rows.append(cells)
    return markdown_table(head, rows)


def _legend(part: Part) -> list[str]:
    sizes = ", ".join(f"{row['batch']} of {row['seconds']:g} s" for row in part.rows)
    return [
        f"Utterances in a batch: {sizes}. Milliseconds for a second of audio: lower quartile (median); no optimiser. "
        "Memory is the process's largest (RSS); above the model: less what it had before the passes."
    ]
