"""``speechllm-xl score``: WER, CER, TER and speed of one decoded set, or of all sets of a recipe.

With ``--normaliser`` also the WER after it.  Where the references have punctuation or capitals, their precision, recall
and F1.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_speechllm_xl.bin.options import HYPOTHESES_HELP, REFERENCE_HELP, add_scoring_arguments
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import normalisers

if TYPE_CHECKING:
    from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored

ONE = ("ref", "hyp", "out")
FURTHER = ("utt2spk", "segments", "token_ref", "token_hyp")
ALL = ("exp", "dump", "results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    one = parser.add_argument_group("one set")
    one.add_argument("--ref", metavar="PATH", help=REFERENCE_HELP)
    one.add_argument("--hyp", metavar="PATH", help=HYPOTHESES_HELP)
    add_scoring_arguments(parser, one)
    one.add_argument("--token-ref", metavar="FILE", help="reference tokens, for the TER (with --token-hyp)")
    one.add_argument("--token-hyp", metavar="FILE", help="hypothesis tokens")
    one.add_argument("--out", metavar="DIR", help="where score_wer, score_cer, ... are written")
    every = parser.add_argument_group("all sets of a recipe")
    every.add_argument("--exp", metavar="DIR", help="holds <model>/decode_*/<set>/text")
    every.add_argument("--dump", metavar="DIR", help="holds raw/<set>/{text,utt2spk}")
    every.add_argument("--results", metavar="FILE", help="RESULTS.md to write; images/ beside it takes the figures")
    every.add_argument("--command", dest="made_by", metavar="TEXT", help="how the results were made, for RESULTS.md")


def _wrong_use(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the options."""
    one = [name for name in (*ONE, *FURTHER) if getattr(args, name) is not None]
    every = [name for name in (*ALL, "made_by") if getattr(args, name) is not None]
    if bool(one) == bool(every):
        return "give either --ref --hyp --out (one set) or --exp --dump --results (all sets)"
    lacking = [f"--{name}" for name in (ONE if one else ALL) if getattr(args, name) is None]
    if lacking:
        return f"{' '.join(lacking)} must be given too"
    if (args.token_ref is None) != (args.token_hyp is None):
        return "--token-ref and --token-hyp go together: give both or none"
    paths = [name for name in ("ref", "hyp", *FURTHER) if getattr(args, name) is not None]
    for name in paths:
        path = Path(getattr(args, name))
        if not path.is_file() and not (name in ("ref", "hyp") and path.is_dir()):
            return f"--{name.replace('_', '-')} {getattr(args, name)}: no such file"
    for name in ("exp", "dump") if every else ():
        if not Path(getattr(args, name)).is_dir():
            return f"--{name} {getattr(args, name)}: no such directory"
    return None


def _ignored(args: argparse.Namespace) -> "Ignored":
    from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored

    return Ignored(args.ignore_tags, args.ignore_case)


def _score_one(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.corpus.kaldi import read_table
    from espnet_speechllm_xl.evaluation.letter_case import WITHOUT_CASE, ignoring, is_of_small_letters
    from espnet_speechllm_xl.evaluation.results_report import mark_table, score_table
    from espnet_speechllm_xl.evaluation.score_directories import NORMALISED, score_set
    from espnet_speechllm_xl.evaluation.scoring_inputs import read_hypotheses, read_reference
    from espnet_speechllm_xl.evaluation.written_marks import mark_rows

    reference, small = read_reference(args.ref, args.utt2spk, args.segments), is_of_small_letters(args.hyp)
    ignored = ignoring(small, _ignored(args))
    hypotheses = read_hypotheses(args.hyp, reference)
    texts = reference.against(hypotheses, ignored)
    tokens = [read_table(path, empty_values=True) if path else None for path in (args.token_ref, args.token_hyp)]
    token_ref, token_hyp = tokens
    scores = score_set(
        texts, hypotheses, reference.speakers, args.out, token_ref, token_hyp, title=args.out, ignored=ignored,
        normaliser=args.normaliser,
    )  # fmt: skip
    names = {NORMALISED: f"normalised WER ({args.normaliser})"}
    print("\n".join(score_table([(names.get(kind, kind.upper()), item.total) for kind, item in scores.items()])))
    if small:
        print(f"\n{WITHOUT_CASE}")
    if marks := mark_rows(texts, ignored.left_of_all(hypotheses), reference.speakers):
        print("\n".join(["", *mark_table([("punctuation and capitals", row) for row in marks])]))
    return 0


def _score_all(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.evaluation import results_report
    from espnet_speechllm_xl.evaluation.score_directories import NORMALISED

    found = results_report.score_experiment(
        args.exp, args.dump, args.results, args.made_by, ignored=_ignored(args), normaliser=args.normaliser
    )
    decoded, unfinished, untranscribed, failed = found
    rows = [(f"{item.model}/{item.name}", item.scores["wer"].total) for item in decoded]
    print("\n".join(results_report.score_table(rows)))
    if args.normaliser != normalisers.NONE:
        rows = [(name, item.scores[NORMALISED].total) for (name, _), item in zip(rows, decoded, strict=True)]
        print("\n".join([f"\nnormalised WER ({args.normaliser})", *results_report.score_table(rows)]))
    counts = {
        "scored": len(decoded),
        "unfinished": len(unfinished),
        "failed": len(failed),
        "without text": len(untranscribed),
    }
    print(f"sets found: {sum(counts.values())}, " + ", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"written: {args.results}")
    return 1 if failed else 0


def main(args: argparse.Namespace) -> int:
    """Score; returns 0, or 1 when some sets could not be scored.

    Standard error names them, and also sets that are not decoded to their end or have no text, which are no failure.

    Raises:
        UserError: wrong use of the options, or a file that cannot be used.
    """
    if wrong := _wrong_use(args):
        raise UserError(f"score: {wrong}")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    return _score_one(args) if args.ref else _score_all(args)
