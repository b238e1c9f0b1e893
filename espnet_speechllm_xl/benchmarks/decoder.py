"""A decoder step: beside its weight products alone, its floors, and a plain Hugging Face Llama."""

from espnet_speechllm_xl.benchmarks.floors import DecoderShape, Machine, StepFloor, step_floor
from espnet_speechllm_xl.benchmarks.plan import OTHER, THIS, TOKENS, Crew, Part, Plan, crew
from espnet_speechllm_xl.benchmarks.report import against, both, milliseconds
from espnet_speechllm_xl.benchmarks.rounds import Figures
from espnet_speechllm_xl.evaluation.markdown import markdown_table, shown

NAME, CONFIG, VOCABULARY, ROUNDS = "decoder", "train_paper.yaml", 5000, 5
PROBE = {"megabytes": 400, "size": 2048}  # more than a cache holds; products that reach the full rate
KINDS = {"token": "token", "prefill": "prefill"}


def run(plan: Plan) -> Part:
    """Measure the steps of a random model's decoder, at each batch size."""
    settings = plan.configuration(CONFIG, VOCABULARY, trained=False)
    part = Part(NAME, settings)
    with crew(plan, part) as workers:
        for batch in plan.batches:
            part.rows.append(_measure(plan, workers, {**settings, "batch": batch}))
    for kind in KINDS:
        part.lines += [*_table(plan, part, kind), ""]
    part.lines += _legend(part)
    return part


def _measure(plan: Plan, workers: Crew, settings: dict[str, object]) -> dict[str, object]:
    """Return the row of a batch size: figures, floors."""
    batch = int(str(settings["batch"]))
    steps = workers.both("step", settings)
    facts = steps[THIS].facts
    new, context, shape = facts["inputs"], facts["context"], DecoderShape(**facts["shape"])
    cached = context * (new + TOKENS) + new  # before the first token of a chunk
    products = {**settings, **facts["shape"]}
    prefill = {"rows": batch * new, "repeats": 3 if batch < 8 else 1}
    bare = {
        "token products": workers.ours("bare", {**products, "rows": batch, "repeats": 3}),
        "prefill products": workers.ours("bare", {**products, **prefill}),
    }
    probe = workers.ours("probe", {**settings, **PROBE})
    peers = {"Hugging Face": workers.ours("hugging_face", {**products, "cached": cached})} if plan.peers else {}
    itemsize = bare["token products"].facts["itemsize"]
    num_bytes, operations = probe.facts["bytes"], probe.facts["operations"]
    figures = workers.interleave(f"batch {batch}", {**steps, **bare, **peers, "probe": probe}, ROUNDS)
    machine = Machine.of(figures["probe"], num_bytes, operations)
    inputs = {"token": (1, cached + (TOKENS + 1) / 2), "prefill": (new, cached)}  # new; visible at the end, mean
    floors = {
        kind: step_floor(
            shape, machine, figures[f"{kind} products"]["products"].lower_quartile, batch, *inputs[kind], itemsize
        )
        for kind in KINDS
    }
    counted = {"batch": batch, "cached": cached, "frames": facts["frames"]}
    return {**counted, "machine": machine, "floors": floors, "figures": figures}


def _table(plan: Plan, part: Part, kind: str) -> list[str]:
    """Return the table of token or prefill steps."""
    peer = plan.peers and kind == "token"
    head = ["batch", f"{kind} step, ms", "its products alone, ms"]
    head += ["floor, ms", "bytes alone, ms", "operations alone, ms"]
    head += ["step / products", "step / floor", *(["Hugging Face, ms", "Hugging Face / floor"] if peer else [])]
    others = plan.other if not part.failed else None
    head += [f"{others.commit}, ms", "times as fast"] if others else []
    return markdown_table(head, [_cells(row, kind, others is not None) for row in part.rows])


def _cells(row: dict, kind: str, others: bool) -> list[str]:
    figures: Figures = row["figures"]
    floor: StepFloor = row["floors"][kind]
    step, products = figures[THIS][kind], figures[f"{kind} products"]["products"]
    cells = [
        str(row["batch"]),
        both(step),
        both(products),
        *(milliseconds(seconds) for seconds in (floor.products_and_cache, floor.bytes, floor.operations)),
        f"{step.lower_quartile / products.lower_quartile:.2f}",
        f"{step.lower_quartile / floor.products_and_cache:.2f}",
    ]
    if kind == "token" and "Hugging Face" in figures:
        peer = figures["Hugging Face"]["token"]
        cells += [both(peer), f"{peer.lower_quartile / floor.products_and_cache:.2f}"]
    if others:
        cells += [both(figures[OTHER][kind]), shown(against(figures, kind), "{:.2f}")]
    return cells


def _legend(part: Part) -> list[str]:
    row = part.rows[0]
    machines: list[Machine] = [one["machine"] for one in part.rows]
    bandwidths, rates = ([getattr(one, name) / 1e9 for one in machines] for name in ("bandwidth", "rate"))
    return [
        f"Lower quartiles, medians in brackets. A prefill reads {row['frames']} frames; the {TOKENS} tokens behind it "
        f"find {row['cached']} to {row['cached'] + TOKENS - 1} inputs cached. Measured bandwidth "
        f"{min(bandwidths):.1f} to {max(bandwidths):.1f} GB/s, rate of products {min(rates):.0f} to {max(rates):.0f} "
        "GFLOP/s.",
    ]
