"""``speechllm-xl score``: WER, CER, TER and speed of one decoded set, or of all sets of a recipe."""

import logging
import sys
from pathlib import Path

ONE = ("ref", "hyp", "utt2spk", "out")
ALL = ("exp", "dump", "results")


def add_arguments(parser):
    """Declare the options of the command."""
    one = parser.add_argument_group("one set")
    one.add_argument("--ref", metavar="TEXT", help="references, Kaldi text: utterance and words")
    one.add_argument("--hyp", metavar="TEXT", help="hypotheses, Kaldi text")
    one.add_argument("--utt2spk", metavar="FILE", help="speaker of every utterance")
    one.add_argument("--token-ref", metavar="FILE", help="reference tokens, for the TER (with --token-hyp)")
    one.add_argument("--token-hyp", metavar="FILE", help="hypothesis tokens")
    one.add_argument("--out", metavar="DIR", help="where score_wer, score_cer and score_ter are written")
    every = parser.add_argument_group("all sets of a recipe")
    every.add_argument("--exp", metavar="DIR", help="holds <model>/decode_*/<set>/text")
    every.add_argument("--dump", metavar="DIR", help="holds raw/<set>/{text,utt2spk}")
    every.add_argument("--results", metavar="FILE", help="RESULTS.md to write; images/ beside it takes the figures")
    every.add_argument("--command", dest="made_by", metavar="TEXT", help="how the results were made, for RESULTS.md")


def _wrong_use(args):
    """What is wrong with the options, or None."""
    one = [name for name in (*ONE, "token_ref", "token_hyp") if getattr(args, name) is not None]
    every = [name for name in (*ALL, "made_by") if getattr(args, name) is not None]
    if bool(one) == bool(every):
        return "give either --ref --hyp --utt2spk --out (one set) or --exp --dump --results (all sets)"
    lacking = [f"--{name}" for name in (ONE if one else ALL) if getattr(args, name) is None]
    if lacking:
        return f"{' '.join(lacking)} must be given too"
    if (args.token_ref is None) != (args.token_hyp is None):
        return "--token-ref and --token-hyp go together: give both or none"
    paths = [name for name in ("ref", "hyp", "utt2spk", "token_ref", "token_hyp") if getattr(args, name) is not None]
    for name in paths:
        if not Path(getattr(args, name)).is_file():
            return f"--{name.replace('_', '-')} {getattr(args, name)}: no such file"
    for name in ("exp", "dump") if every else ():
        if not Path(getattr(args, name)).is_dir():
            return f"--{name} {getattr(args, name)}: no such directory"
    return None


def _score_one(args):
    from espnet_speechllm_xl.kaldi import read_table, read_text
    from espnet_speechllm_xl.report import score_table
    from espnet_speechllm_xl.score_dirs import score_set

    tables = [read_text(args.ref), read_text(args.hyp), read_table(args.utt2spk, empty_values=True)]
    tokens = [read_table(path, empty_values=True) if path else None for path in (args.token_ref, args.token_hyp)]
    scores = score_set(*tables, args.out, *tokens, title=args.out)
    print("\n".join(score_table([(kind.upper(), scored.total) for kind, scored in scores.items()])))
    return 0


def _score_all(args):
    from espnet_speechllm_xl import report

    found = report.score_experiment(args.exp, args.dump, args.results, args.made_by)
    decoded, unfinished, untranscribed, failed = found
    print("\n".join(report.score_table([(f"{item.model}/{item.name}", item.scores["wer"].total) for item in decoded])))
    counts = {"scored": decoded, "unfinished": unfinished, "failed": failed, "without text": untranscribed}
    counts = {name: len(sets) for name, sets in counts.items()}
    print(f"sets found: {sum(counts.values())}, " + ", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"written: {args.results}")
    return 1 if failed else 0


def main(args):
    """Run the command; returns 0 done, 1 some sets could not be scored, 2 wrong use.

    Those are named on stderr, and so are sets that are not decoded to their end or have no text, which are no failure.
    """
    wrong = _wrong_use(args)
    if wrong:
        print(f"speechllm-xl score: {wrong}", file=sys.stderr)
        return 2
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    return _score_one(args) if args.ref else _score_all(args)
