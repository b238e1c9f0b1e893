"""``tables`` (local/paper_tables.sh): train and decode what the paper's tables need, and write TABLES.md."""

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_speechllm_xl.bin.guard import INTERRUPTED
from espnet_speechllm_xl.bin.options import at_least
from espnet_speechllm_xl.errors import UserError

if TYPE_CHECKING:
    from espnet_speechllm_xl.paper_tables.records import Records

PATHS = ("--downloads", "--kaldi-data", "--hf-tokenizer")  # options of the recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Train and decode what the paper's tables I-V need on a corpus, row by row, and write TABLES.md."
    )
    parser.epilog = (
        "Options after -- go to the recipe's scripts, e.g. -- --downloads DIR --nj 4. Run again, it goes on "
        "where it was; what is done is left out."
    )
    parser.add_argument("--corpus", required=True, metavar="NAME", help="in conf/paper_tables.yaml, e.g. an4")
    parser.add_argument("--table", action="append", metavar="NUMBER", help="only this table, I to V; may be repeated")
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row or system; may be repeated")
    parser.add_argument(
        "--seeds", metavar='"1 2 3"', help="seeds of the trainings (default 1; of --list all that there are)"
    )
    parser.add_argument(
        "--jobs", type=at_least(int, 1), default=1, metavar="N", help="trainings side by side, on this machine"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="show the rows and how far they are, and do nothing")
    mode.add_argument("--dry-run", action="store_true", help="show the commands that would be run, and do nothing")
    mode.add_argument("--report", action="store_true", help="only write TABLES.md of what is there")
    parser.add_argument("--plan", metavar="YAML", help="what the tables hold (default: conf/paper_tables.yaml)")
    parser.add_argument("--directory", metavar="DIR", help="the recipe (default: the corpus's in the plan)")
    parser.add_argument("--exp", metavar="DIR", help="the trainings, in the recipe (default: the corpus's in the plan)")
    parser.add_argument(
        "--records",
        metavar="DIR",
        help="where the figures of each training are kept, in the recipe (default: records/ beside the models); what "
        "is recorded there is not trained again",
    )
    parser.add_argument("--out", metavar="FILE", help="default: TABLES.md, or as the plan names it, beside the records")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> int:
    """Make the tables; returns 0, 1 when a row failed or could not be read (named on stderr), 130 after Ctrl-C."""
    try:
        return _make(args, command=shlex.join(["local/paper_tables.sh", *args.argv[1:]]))
    except KeyboardInterrupt:
        _say("stopped; the same command goes on where it was")
        return INTERRUPTED


def _say(text: str) -> None:
    print(f"speechllm-xl tables: {text}", file=sys.stderr)


def _make(args: argparse.Namespace, command: str) -> int:
    from espnet_speechllm_xl.paper_tables import runner
    from espnet_speechllm_xl.paper_tables.plan import PLAN, Plan, check_extra
    from espnet_speechllm_xl.paper_tables.records import Records

    if args.report and (args.table or args.row or args.seeds):
        raise UserError("--report is of all rows and seeds that are recorded: leave out --table, --row and --seeds")
    check_extra(args.options)
    plan = Plan(args.corpus, args.plan or PLAN, args.directory, args.exp)
    records = Records(plan, plan.directory / args.records if args.records else plan.exp / "records")
    if args.report and args.records and not any(map(records.seeds, plan.systems)):
        raise UserError(f"--records {args.records}: no record in {records.directory}, and no training in {plan.exp}")
    todo = []
    for system in runner.select(plan, args.table, args.row):
        recorded = records.seeds(system) if args.list else []
        todo += [(system, seed) for seed in (_seeds(args.seeds) if args.seeds else recorded or [1])]
    if args.list:
        print("\n".join(runner.listing(records, args.table, todo)))
        return 0
    failed = [] if args.report else runner.run(records, todo, _absolute(args.options), args.dry_run, args.jobs)
    if args.dry_run:
        return 0
    return _report(records, Path(args.out or records.directory.parent / plan.corpus.report), command, failed)


def _absolute(options: Sequence[str]) -> list[str]:
    """Return options for the recipes' scripts, which run elsewhere: relative paths begin where this program started."""
    pairs = itertools.pairwise(["", *options])
    return [os.path.abspath(value) if option.replace("_", "-") in PATHS else value for option, value in pairs]


def _report(records: "Records", out: Path, command: str, failed: Sequence[str]) -> int:
    from espnet_speechllm_xl.paper_tables.tables import write_tables

    for system in records.plan.systems:
        for seed in records.seeds(system):
            records.update(system, seed)
    for path in records.replaced:
        print(f"replaced: {path}, which was of another training than the one in {records.plan.exp}")
    problems = write_tables(records.plan, records, out, command)
    print(f"written: {out}")
    for message in dict.fromkeys([*failed, *problems]):
        _say(message)
    return 1 if failed or problems else 0


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 1:
        raise UserError(f"--seeds '{text}': give whole numbers from 1, e.g. \"1 2 3\"")
    return list(dict.fromkeys(seeds))
