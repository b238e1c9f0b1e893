"""``align``: end frames of every character of a dump set, by the CTC aligner or from reference word times.

Where the set has ``text_spoken``, the aligner hears that, and the alignment is moved to ``text``.
"""

import argparse
from pathlib import Path

from espnet_speechllm_xl.bin.doubts import say
from espnet_speechllm_xl.bin.options import add_jobs_arguments, at_least
from espnet_speechllm_xl.corpus.ctm import SILENCES, UNKNOWN_WORDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--dump", required=True, help="dump set to align (dump/raw/SET)")
    parser.add_argument("--out", required=True, help="directory for the aligned set")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="directory of a trained aligner")
    source.add_argument("--ctm", help="word times to use instead of the aligner's")
    for name, default, text in (
        ("--silences", SILENCES, "entries of --ctm to pass over, where the transcript has no such word"),
        ("--unknown-words", UNKNOWN_WORDS, "entries of --ctm that stand for words that its aligner did not know"),
    ):
        parser.add_argument(
            name,
            type=_listed,
            default=default,
            metavar="A,B",
            help=f"{text}; in any case (default: {','.join(default)})",
        )
    parser.add_argument("--weights", help="file in the model directory (default: the averaged best)")
    parser.add_argument("--text", help="Kaldi text to move the alignment to: the same words, other spelling")
    parser.add_argument(
        "--batch-size", type=at_least(int, 1), default=16, help="utterances computed at once (default %(default)s)"
    )
    add_jobs_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Write the aligned set; returns the exit code, 1 when some audio could not be read."""
    from espnet_speechllm_xl.corpus.transcripts import read_otherwise
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.evaluation.doubts import of_training
    from espnet_speechllm_xl.sets import align

    dump, out = Path(args.dump), Path(args.out)
    if args.model:
        if not args.shard:  # else each of many would say it, and then the run that puts them together
            say(of_training(Path(args.model)))
        aligner = align.Aligner(args.model, args.weights, args.device)
        found = align.align_by_model(dump, out, aligner, args.text, args.batch_size, args.nj, args.shard)
    elif args.shard:
        raise UserError("--shard divides the work of a --model; word times of a --ctm are only copied")
    else:
        found = align.align_by_word_times(dump, out, args.ctm, args.silences, args.unknown_words, args.text)
    if found is None:
        return 0
    counts = f"{out}: {found.aligned} of {found.total} utterances"
    if found.done_before:
        print(f"{counts} were aligned before by the same weights")
        return 0
    listed = "".join(f", {count} left out: {reason}" for reason, count in sorted(found.reasons.items()))
    print(f"{counts} aligned{listed}")
    if found.read_otherwise is not None:
        print(f"{out}: {read_otherwise(found.read_otherwise, found.words)}")
    return 1 if found.unusable else 0


def _listed(text: str) -> list[str]:
    """Return the entries of a list that commas or blanks part."""
    return text.replace(",", " ").split()
