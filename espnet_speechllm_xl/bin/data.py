"""``data``: check, perturb, format, subset and longform, on Kaldi directories and dumps."""

import argparse
import sys
import time
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_channel_argument, add_rare_argument, at_least, pause
from espnet_speechllm_xl.workers import usable_cores


class ProgressLine:
    """A line on stderr every ``every`` seconds, and one at the end if there was any before."""

    def __init__(self, what: str, every: float = 10.0) -> None:
        self.what, self.every = what, every
        self.begin = self.last = time.monotonic()
        self.shown = False

    def __call__(self, done: int, total: int) -> None:
        """Say that so many utterances of ``total`` are done, where it is time to."""
        now = time.monotonic()
        if now - self.last < self.every and not (self.shown and done == total):
            return
        self.last, self.shown = now, True
        left = (now - self.begin) / max(1, done) * (total - done)
        print(f"{self.what}: {done}/{total} utterances, about {left:.0f} s left", file=sys.stderr, flush=True)


def _check(args: argparse.Namespace) -> int:
    """Check the directories, one after the other, and say what stands out in their texts."""
    from espnet_speechllm_xl.corpus.kaldi import scan_table
    from espnet_speechllm_xl.corpus.transcripts import case_differences, remarks

    worst, texts = 0, {}
    for directory in args.directories:
        worst = max(worst, _check_one(directory, args))
        file = Path(directory) / "text"
        if file.exists() and args.rare:
            texts[str(file)] = scan_table(file)[0]
            print("".join(f"{line}\n" for line in remarks(str(file), texts[str(file)], args.rare)), end="")
    print("".join(f"{line}\n" for line in case_differences(texts)) if len(texts) > 1 else "", end="")
    return worst


def _check_one(directory: str, args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.corpus.directories import advice_for, check_dir, fix_dir
    from espnet_speechllm_xl.corpus.dump import foreign_audio

    need_text = not args.no_text_ok
    if args.fix and check_dir(directory, need_text):
        kept, dropped, remarks, backup = fix_dir(directory, need_text)
        for remark in remarks:
            print(remark)
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        total = sum(dropped.values())
        print(
            f"{directory}: {len(kept) + total} in = {len(kept)} kept + {total} dropped"
            f"{f' ({reasons})' if reasons else ''}; old files in {backup}"
        )
    problems = check_dir(directory, need_text, need_files=args.dump)
    if args.dump and not problems:
        problems = foreign_audio(directory, args.sample_rate)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        advice = advice_for(directory, need_text, args.dump)
        print(f"{directory}: {len(problems)} problem{'s' * (len(problems) > 1)}; {advice}", file=sys.stderr)
        return 1
    print(f"{directory}: good")
    return 0


def _perturb(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.corpus.directories import perturb_dir

    read, written = perturb_dir(args.data, args.out, args.factors)
    print(f"{args.out}: {read} utterances of {args.data} -> {written} at speeds {args.factors}")
    return 0


def _subset(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.corpus.directories import subset_dir
    from espnet_speechllm_xl.corpus.kaldi import read_list

    listed = None if args.utt_list is None else read_list(args.utt_list)
    chosen, absent = subset_dir(args.data, args.out, args.first, args.last, listed)
    line = f"{args.out}: {len(chosen)} utterances of {args.data}"
    if listed is not None:
        line += f"; {len(listed)} listed = {len(chosen)} written + {len(absent)} not in {args.data}"
        line += f" (first '{absent[0]}')" if absent else ""
    print(line)
    return 0


def _format(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.corpus.dump import Settings, format_dir
    from espnet_speechllm_xl.corpus.transcripts import cleaner, read_symbols

    settings = Settings(
        args.sample_rate, min_seconds=args.min_seconds, max_seconds=args.max_seconds, channel=args.channel,
        resample=not args.no_resample,
    )  # fmt: skip
    report = format_dir(
        args.data, args.dump, settings, text_optional=args.no_text_ok, nj=args.nj, progress=ProgressLine(args.dump),
        clean=cleaner(args.cleaner, read_symbols(args.nlsyms)), style=args.text,
    )  # fmt: skip
    print(f"{args.data} -> {args.dump}: {report}")
    if report.skipped:
        print(f"skipped utterances and reasons: {Path(args.dump) / 'skipped'}")
    if report.notes:
        print(f"notes by utterance: {Path(args.dump) / 'remarks'}")
    return 0


def _longform(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.corpus.dump import Settings, longform_dir

    report = longform_dir(
        args.dump, args.out, args.factor, order=args.order, across_speakers=args.across_speakers, seed=args.seed,
        settings=Settings(args.sample_rate, gap_seconds=args.gap_seconds), nj=args.nj, progress=ProgressLine(args.out),
    )  # fmt: skip
    print(f"{args.dump} -> {args.out}, {args.factor} at a time: {report}")
    return 0


def _writers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sample-rate", type=at_least(int, 1000), default=16000, help="Hz (default 16000)")
    parser.add_argument("--nj", type=at_least(int, 1), default=min(4, usable_cores()), help="processes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    commands = parser.add_subparsers(dest="action", required=True)

    check = commands.add_parser(
        "check", help="find, and with --fix mend, defects of Kaldi directories; say what stands out in their texts"
    )
    check.add_argument("directories", nargs="+", metavar="DIR", help="of several, the texts are compared, too")
    check.add_argument("--fix", action="store_true", help="sort, drop unmatched utterances, rebuild spk2utt")
    check.add_argument(
        "--dump", action="store_true",
        help="of a dump: so are commands, archive offsets, segments, missing lengths, and audio of another rate",
    )  # fmt: skip
    check.add_argument("--sample-rate", type=at_least(int, 1000), default=16000, help="with --dump, Hz")
    add_rare_argument(check)
    check.add_argument("--no-text-ok", action="store_true", help="missing and empty texts are no defect")
    check.set_defaults(run=_check)

    perturb = commands.add_parser("perturb", help="copy a directory once per playback speed (utt2speed, no audio)")
    perturb.add_argument("--data", required=True, help="Kaldi directory")
    perturb.add_argument("--out", required=True)
    perturb.add_argument("--factors", default="0.9 1.0 1.1", help='default "0.9 1.0 1.1"')
    perturb.set_defaults(run=_perturb)

    form = commands.add_parser("format", help="write a dump: 16-bit FLAC, mono, one file per utterance")
    form.add_argument("--data", required=True, help="Kaldi directory or ESPnet dump")
    form.add_argument("--dump", required=True, help="directory to write, dump/raw/<set>")
    form.add_argument("--min-seconds", type=at_least(float, 0), default=0.0, help="shorter ones are skipped")
    form.add_argument("--max-seconds", type=at_least(float, 0), default=float("inf"), help="longer ones are skipped")
    add_channel_argument(form)
    form.add_argument("--no-resample", action="store_true", help="skip audio of another rate")
    form.add_argument(
        "--cleaner", default="none", metavar="NAMES",
        help="of texts: lower, upper, or ESPnet's tacotron, jaconv, ... (default %(default)s)",
    )  # fmt: skip
    form.add_argument(
        "--nlsyms", default="none", metavar="FILE", help="symbols, one a line, that the cleaner leaves alone"
    )
    form.add_argument(
        "--text", default="as-is", choices=("as-is", "written", "plain"),
        help="written: also write text_spoken, what an aligner of plain characters hears; plain: take that as the text "
        "(default %(default)s)",
    )  # fmt: skip
    form.add_argument("--no-text-ok", action="store_true", help="keep utterances without text (test sets)")
    _writers(form)
    form.set_defaults(run=_format)

    subset = commands.add_parser("subset", help="part of a Kaldi directory or dump, audio not copied")
    subset.add_argument("--data", required=True)
    subset.add_argument("--out", required=True)
    which = subset.add_mutually_exclusive_group(required=True)
    which.add_argument("--first", type=at_least(int, 1), metavar="N", help="the first N utterances in C order")
    which.add_argument("--last", type=at_least(int, 1), metavar="N", help="the last N utterances in C order")
    which.add_argument("--utt-list", metavar="FILE", help="utterance ids, first word of each line")
    subset.set_defaults(run=_subset)

    long = commands.add_parser("longform", help="join consecutive utterances")
    long.add_argument("--dump", required=True, help="dump to read")
    long.add_argument("--out", required=True, help="dump to write")
    long.add_argument("--factor", type=at_least(int, 1), required=True, help="utterances per long one, e.g. 2 or 10")
    long.add_argument("--order", choices=("consecutive", "shuffled"), default="consecutive")
    long.add_argument("--across-speakers", action="store_true", help="fill groups with the next speaker's utterances")
    long.add_argument("--gap-seconds", type=pause, default=0.0, help="silence between utterances")
    long.add_argument("--seed", type=int, default=0, help="for --order shuffled")
    _writers(long)
    long.set_defaults(run=_longform)


def main(args: argparse.Namespace) -> int:
    """Run an action; returns 0, or 1 when a checked directory has problems."""
    return args.run(args)
