"""``load-test``: how many live streams a server keeps up with, and how late their text is."""

import argparse
import contextlib
import re
import shlex
from pathlib import Path
from urllib.parse import parse_qs

from espnet_speechllm_xl.bin.options import add_config_arguments, add_model_arguments, at_least, duration, pause
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.server.limits import ServerConfig

MOST_STREAMS = 100_000  # of a server that is started for the test: it shall not refuse any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command; those of the server only count where it starts one."""
    _add_own_arguments(parser)
    server = parser.add_argument_group("of the server that it starts, as of serve")
    add_model_arguments(server, required=False)
    add_config_arguments(server, ServerConfig)
    parser.set_defaults(port=0, max_streams=MOST_STREAMS)


def _add_own_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="server that runs already; else give the --model of one that is started")
    audio = parser.add_mutually_exclusive_group()
    audio.add_argument("--dump", type=Path, metavar="DIR", help="set whose recordings are played: dump/raw/SET")
    audio.add_argument("--audio", nargs="+", default=(), metavar="FILE", help="recordings that are played")
    parser.add_argument(
        "--streams", type=at_least(int, 1), nargs="+", default=(), metavar="N", help="numbers that get a row each"
    )
    parser.add_argument("--no-maximum", action="store_true", help="only these: do not look for the largest number")
    parser.add_argument(
        "--warm-up", type=pause, default=5.0, metavar="SECONDS",
        help="all streams play so long before anything counts (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds",
        type=duration,
        default=30.0,
        metavar="SECONDS",
        help="that count, of each run (default %(default)s)",
    )
    parser.add_argument(
        "--message", type=duration, default=0.1, metavar="SECONDS", help="audio in a message (default %(default)s)"
    )
    parser.add_argument("--query", default="", help="settings of the streams: search=greedy&chunk_size=0.64&...")
    parser.add_argument(
        "--seed", type=at_least(int, 0), default=0, metavar="N",
        help="of the order of the recordings and of the moments at which streams begin (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--hardware",
        metavar="TEXT",
        help="what the server computes on, for the title (default: this machine, where it is started here)",
    )
    parser.add_argument(
        "--precision",
        metavar="TEXT",
        help="number type of its model, for the title (default: --dtype, where it is started here)",
    )
    parser.add_argument("--json", metavar="FILE", help="write every figure of every run")
    parser.add_argument("--markdown", metavar="FILE", help="put the table between its marks in this file")


def main(args: argparse.Namespace) -> int:
    """Print the table and the largest number; returns 0, or 1 when streams of a number that was asked for failed."""
    options = _server_options(args)
    _check(args, options)
    from espnet_speechllm_xl.benchmarks import load_report, report
    from espnet_speechllm_xl.benchmarks.load_clients import Address
    from espnet_speechllm_xl.benchmarks.load_server import Server, started
    from espnet_speechllm_xl.benchmarks.load_test import LoadPlan, run

    plan = LoadPlan(
        dump=args.dump,
        files=tuple(args.audio),
        streams=tuple(args.streams),
        maximum=not args.no_maximum,
        warm_up=args.warm_up,
        seconds=args.seconds,
        message=args.message,
        seed=args.seed,
    )
    serving = (
        contextlib.nullcontext(Server(Address(args.url, args.token, args.query)))
        if args.url
        else started(
            ["--port", str(args.port), "--max-streams", str(args.max_streams), *options], args.token, args.query
        )
    )
    with serving as server:
        outcome = run(plan, server)
    hardware = args.hardware or (
        "hardware not named" if args.url else load_report.hardware_of_this_machine(args.device)
    )
    precision = args.precision or ("precision not named" if args.url else args.dtype)
    words = [word.replace(args.token, "TOKEN") if args.token else word for word in args.argv]  # reports are shown
    command = shlex.join(["speechllm-xl", *words])
    found = load_report.record(plan, server, outcome, hardware, precision, command)
    print("\n".join(load_report.block(outcome, found)))
    if args.json:
        report.write_json(args.json, found)
    if args.markdown:
        load_report.write_markdown(args.markdown, outcome, found)
    return int(any(run.errors for count in plan.streams for run in outcome.runs[count]))


def _server_options(args: argparse.Namespace) -> list[str]:
    """Return what was typed for the server."""
    own = argparse.ArgumentParser()
    _add_own_arguments(own)
    return own.parse_known_args(args.argv[1:])[1]


def _check(args: argparse.Namespace, server_options: list[str]) -> None:
    """Raise UserError for options that do not fit one another."""
    if bool(args.url) == bool(args.model):
        raise UserError("give the --url of a server that runs, or the --model of one that is to be started")
    if args.url and not re.match(r"https?://[^/]", args.url):
        raise UserError(f"--url {args.url}: give http://host:port, as `speechllm-xl serve` writes it")
    if args.dump is None and not args.audio:
        raise UserError("there is nothing to play: give a set with --dump, or files with --audio")
    strange = [name for name in server_options if name.startswith("--") and name.split("=")[0] != "--token"]
    if args.url and strange:
        raise UserError(
            f"{strange[0]} is an option of a server that is started, not of --url: leave it out, or use --query"
        )
    if args.no_maximum and not args.streams:
        raise UserError("--no-maximum: give numbers with --streams, or there is nothing to measure")
    taken = {"rate", "format", "token"} & set(parse_qs(args.query, keep_blank_values=True))
    if taken:
        raise UserError(f"--query {min(taken)}: the clients choose it themselves: leave it out")
