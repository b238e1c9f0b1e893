"""The pipeline of one stream, part by part, beside streaming encoders of torchaudio and ESPnet."""

from typing import Any

from espnet_speechllm_xl.benchmarks import decoder
from espnet_speechllm_xl.benchmarks.checkouts import RemoteSubject
from espnet_speechllm_xl.benchmarks.floors import DecoderShape, Machine, least
from espnet_speechllm_xl.benchmarks.plan import BEAM, OTHER, THIS, TOKENS, Crew, Part, Plan, crew
from espnet_speechllm_xl.benchmarks.rounds import Figure, Figures
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.markdown import markdown_table, shown, speed_cells
from espnet_speechllm_xl.settings import read_yaml

NAME, CONFIG, VOCABULARY, ROUNDS = "pipeline", "train_paper.yaml", 5000, 9
PARTS = ("encoder", "prefill", "tokens")
GREEDY, BEAM_SEARCH = "greedy stream", f"stream of chunk_sync, beam {BEAM}"
BASE, LONG_SEGMENTS = "torchaudio's Emformer RNN-T, its encoder", "the same with segments of 1.28 s"
CONFORMER, CONFORMER_YAML = "ESPnet's contextual block Conformer, its encoder", (
    "conf/espnet/train_asr_contextual_block_conformer_paper.yaml"
)
# Arguments of torchaudio's emformer_rnnt_model; None: its base, whose segments are 0.16 s.
BASE_SHAPE: dict[str, Any] | None = None
LONG_SHAPE: dict[str, Any] = {
    "input_dim": 80, "encoding_dim": 1024, "segment_length": 128, "right_context_length": 24,
    "time_reduction_input_dim": 128, "time_reduction_stride": 4, "transformer_num_heads": 8,
    "transformer_ffn_dim": 2048, "transformer_num_layers": 20, "transformer_dropout": 0.1,
    "transformer_activation": "gelu", "transformer_left_context_length": 30, "transformer_max_memory_size": 0,
    "transformer_weight_init_scale_strategy": "depthwise", "transformer_tanh_on_mem": True,
    "symbol_embedding_dim": 512, "num_lstm_layers": 3, "lstm_layer_norm": True, "lstm_layer_norm_epsilon": 1e-3,
    "lstm_dropout": 0.3,
}  # fmt: skip


def run(plan: Plan) -> Part:
    """Measure parts, streams and peers, a chunk of audio at a time."""
    settings = plan.configuration(CONFIG, VOCABULARY)
    part = Part(NAME, settings)
    with crew(plan, part) as workers:
        chunks = workers.both("chunk", settings)
        facts = chunks[THIS].facts
        subjects = _subjects(plan, workers, settings, chunks)
        known = {name: subject.facts for name, subject in subjects.items()}
        figures = workers.interleave("a chunk", subjects, ROUNDS)
    probe = known["probe"]
    machine = Machine.of(figures["probe"], probe["bytes"], probe["operations"])
    floors = _floors(facts, machine)
    sizes = {"encoder": "encoder_parameters", **dict.fromkeys(("prefill", "tokens"), "decoder_parameters")}
    for work in (*PARTS, "sum", GREEDY, BEAM_SEARCH):
        known[work] = {"parameters": facts[sizes.get(work, "parameters")]}
    for work in (BASE, LONG_SEGMENTS, CONFORMER):
        if work in known:
            known[work]["parameters"] = known[work]["encoder_parameters"]
    for work in (*PARTS, "sum", GREEDY, BEAM_SEARCH, BASE, LONG_SEGMENTS, CONFORMER):
        part.rows += _row(work, figures, floors, facts["chunk_seconds"], known)
    part.rows[0]["machine"] = machine
    part.lines = [*_table(plan, part), "", *_legend(plan, part, figures, facts)]
    return part


def _subjects(
    plan: Plan, workers: Crew, settings: dict[str, object], chunks: dict[str, RemoteSubject]
) -> dict[str, RemoteSubject]:
    """Return all contestants by name."""
    subjects = dict(chunks)
    for work, search in ((GREEDY, "greedy"), (BEAM_SEARCH, "chunk_sync")):
        streams = workers.both("streams", {**settings, "streams": 1, "chunks": 1, "search": search})
        subjects |= {f"{name} {work}": stream for name, stream in streams.items()}
    if plan.peers:
        facts = chunks[THIS].facts
        peer = {"outputs": facts["shape"]["outputs"], "chunk_seconds": facts["chunk_seconds"]}
        conformer = plan.this.folder / CONFORMER_YAML
        if not conformer.is_file():
            raise UserError(f"{conformer} does not exist: run this in a checkout, or give --no-peers")
        subjects[BASE] = workers.ours("torchaudio_emformer", {**peer, "shape": BASE_SHAPE})
        subjects[LONG_SEGMENTS] = workers.ours("torchaudio_emformer", {**peer, "shape": LONG_SHAPE})
        encoder_conf = read_yaml(conformer)["encoder_conf"]
        subjects[CONFORMER] = workers.ours("contextual_block_conformer", {"encoder_conf": encoder_conf})
    subjects["probe"] = workers.ours("probe", {**settings, **decoder.PROBE})
    return subjects


def _floors(facts: dict[str, Any], machine: Machine) -> dict[str, float]:
    """Return the least seconds of each part of a chunk: its operations or its bytes, whichever take longer."""
    itemsize, shape, new = facts["itemsize"], DecoderShape(**facts["shape"]), facts["inputs"]
    segments = facts["frames"] / facts["segment"]
    rows = facts["segment"] + facts["look_ahead"]  # frames that go through the encoder's weights, a segment
    weights = itemsize * facts["encoder_weights"]
    cached = facts["context"] * (new + TOKENS) + new
    prefill = least(2 * (new * shape.layer_weights + shape.outputs * shape.dim), itemsize * shape.weights, machine)
    step_bytes = itemsize * (shape.weights + shape.keys_and_values(cached))
    floors = {
        "encoder": segments * least(2 * facts["encoder_weights"] * rows, weights, machine),
        "prefill": prefill,
        "tokens": TOKENS * least(2 * shape.weights, step_bytes, machine),
    }
    return {**floors, "sum": sum(floors.values())}


def _figure(figures: Figures, name: str, work: str) -> Figure | None:
    """Return the seconds of a kind of work; None: it was not measured."""
    if work in PARTS:
        return figures[name].get(work) if name in figures else None
    if work == "sum":
        if name not in figures:
            return None
        samples = [sum(parts) for parts in zip(*(figures[name][one].samples for one in PARTS), strict=True)]
        return Figure.of(samples)
    key = work if work in figures else f"{name} {work}"
    return figures[key]["seconds"] if key in figures and (key != work or name == THIS) else None


def _row(
    work: str, figures: Figures, floors: dict[str, float], chunk_seconds: float, known: dict[str, dict]
) -> list[dict[str, Any]]:
    """Return the row of a kind of work as real-time factors, or none where it was not measured."""
    seconds = known.get(work, {}).get("audio_seconds", chunk_seconds)
    factors = {}
    for name in (THIS, OTHER):
        figure = _figure(figures, name, work)
        if figure is not None:
            factors[name] = Figure.of([sample / seconds for sample in figure.samples])
    floor = floors[work] / chunk_seconds if work in floors else None
    return [{"work": work, "factors": factors, "floor": floor, "facts": known.get(work, {})}] if factors else []


def _table(plan: Plan, part: Part) -> list[str]:
    base = next((row["factors"][THIS] for row in part.rows if row["work"] == BASE), None)
    others = any(OTHER in row["factors"] for row in part.rows)
    head = ["work", "parameters", "RTF", "RTFx", "median", "floor", "RTF / torchaudio's"]
    head += [f"{plan.other.commit}, RTF", "times as fast"] if plan.other and others else []
    rows = []
    for row in part.rows:
        factor, other = row["factors"][THIS], row["factors"].get(OTHER)
        size = row["facts"]["parameters"]
        cells = [row["work"], f"{size / 1e6:.0f} M", *speed_cells(factor.lower_quartile)]
        cells += [f"{factor.median:.3f}", shown(row["floor"], "{:.3f}")]
        cells.append(f"{factor.lower_quartile / base.lower_quartile:.2f}" if base else "-")
        if others:
            cells.append(f"{other.lower_quartile:.3f}" if other else "-")
            cells.append(f"{other.lower_quartile / factor.lower_quartile:.2f}" if other else "-")
        rows.append(cells)
    return markdown_table(head, rows)


def _legend(plan: Plan, part: Part, figures: Figures, facts: dict[str, Any]) -> list[str]:
    found = {row["work"]: row["factors"] for row in part.rows}
    ratios = [
        f"{found[BEAM_SEARCH][name].lower_quartile / found[GREEDY][name].lower_quartile:.2f}"
        + (f" ({plan.checkouts[name].commit})" if plan.other else "")
        for name in found[GREEDY]
    ]
    written = figures[f"{THIS} {GREEDY}"]["tokens_a_chunk"].median
    return [
        "Real-time factors (RTF; RTFx is 1 / RTF) by the lower quartile; chunks of "
        f"{facts['chunk_seconds']:g} s; {TOKENS} tokens a chunk, in the greedy stream {written:.1f}. "
        "Parameters: of what the row runs; the base of torchaudio's has segments of 0.16 s. The floor is the "
        "operations of the weight products over the measured rate, or the bytes over the measured bandwidth, whichever "
        "takes longer. "
        f"Beam {BEAM} / greedy: {', '.join(ratios)}."
    ]
