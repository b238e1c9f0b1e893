"""``bench``: times of the recogniser's parts, beside floors, peers and another checkout."""

import argparse
import importlib
import shlex
import sys

from espnet_speechllm_xl.bin.options import add_llm_argument, at_least, duration

PARTS = ("decoder", "streams", "pipeline", "length", "training", "startup")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--against", metavar="DIR", help="another checkout of this repository, measured side by side")
    parser.add_argument("--model", help="trained model, but for decoder and training (default: random weights)")
    add_llm_argument(parser)
    parser.add_argument("--config", metavar="FILE", help="YAML of a training, for all parts (default: each part's own)")
    parser.add_argument(
        "--vocab-size", type=at_least(int, 10), metavar="N", help="tokens of a random model (default: each part's own)"
    )
    parser.add_argument("--audio", metavar="FILE", help="what streams and recordings hear (default: noise and tones)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, ... (default %(default)s)")
    parser.add_argument("--threads", type=at_least(int, 1), default=1, help="of torch (default %(default)s)")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"],
        help="cpu: CPU time, which waiting for a busy core does not lengthen (default %(default)s; startup has both)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=at_least(int, 1), metavar="N", help="in which all are measured once (default: each part's own)"
    )
    for name, text, kind, default in (
        ("batches", "decoder: hypotheses of a step", at_least(int, 1), (1, 8, 32, 64)),
        ("streams", "streams: numbers of them", at_least(int, 1), (1, 8, 32, 64)),
        ("lengths", "length: seconds of a recording", duration, (10.0, 30.0, 60.0, 120.0, 240.0)),
        ("utterances", "training: seconds of an utterance", duration, (12.0, 120.0, 480.0)),
    ):
        written = " ".join(f"{value:g}" for value in default)
        parser.add_argument(
            f"--{name}", type=kind, nargs="+", default=default, metavar="N", help=f"{text} (default {written})"
        )
    parser.add_argument("--no-peers", action="store_true", help="leave out Hugging Face, torchaudio and ESPnet")
    parser.add_argument("--json", metavar="FILE", help="write every figure, with the machine and the versions")
    parser.add_argument("--markdown", metavar="FILE", help="put the tables between their marks in this file")
    parser.add_argument("--plots", metavar="DIR", help="write bench_streams.png and bench_length.png")


def main(args: argparse.Namespace) -> int:
    """Run the parts and print their tables; returns 0, or 1 where the other checkout could not run a part."""
    from espnet_speechllm_xl.benchmarks import report
    from espnet_speechllm_xl.benchmarks.checkouts import find_checkout, own_checkout
    from espnet_speechllm_xl.benchmarks.plan import Plan
    from espnet_speechllm_xl.errors import UserError

    strange = [name for name in args.parts if name not in PARTS]
    if strange:
        raise UserError(f"part '{strange[0]}' is none of {', '.join(PARTS)}: give one of them, or none for all")
    if args.llm and not args.model:
        raise UserError("--llm is where the language model of a --model is: give that, too")
    this, other = own_checkout(), find_checkout(args.against) if args.against else None
    if other and other.commit == this.commit:  # both are names in the tables
        other = other._replace(commit=f"{other.commit}, {other.folder.name}")
    plan = Plan(
        this=this,
        other=other,
        config=args.config,
        vocab_size=args.vocab_size,
        model=args.model,
        llm=args.llm,
        audio=args.audio,
        dtype=args.dtype,
        threads=args.threads,
        clock=args.clock,
        rounds=args.rounds,
        batches=tuple(args.batches),
        streams=tuple(args.streams),
        lengths=tuple(args.lengths),
        utterances=tuple(args.utterances),
        peers=not args.no_peers,
    )
    command, parts = shlex.join(["speechllm-xl", *args.argv]), []
    for name in args.parts or PARTS:
        part = importlib.import_module(f"espnet_speechllm_xl.benchmarks.{name}").run(plan)
        parts.append(part)
        run = report.record(plan, parts, command)
        print("\n".join([f"## {name}", "", *report.block(plan, part, run), ""]), flush=True)
        # After each part: what was measured is not lost when a later one fails.
        if args.json:
            report.write_json(args.json, run)
        if args.markdown:
            report.write_markdown(args.markdown, plan, [part], run)
        if args.plots:
            report.write_plots(args.plots, [part])
    failed = [part.name for part in parts if part.failed]
    if failed:
        print(f"speechllm-xl bench: {args.against} could not run {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
