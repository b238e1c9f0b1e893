"""``align``: end frames of every character of a dump set, by the CTC aligner or from reference word times."""

import json
from collections import Counter
from pathlib import Path

from espnet_speechllm_xl.bin import doubts
from espnet_speechllm_xl.bin.options import add_jobs_arguments, at_least
from espnet_speechllm_xl.corpus.ctm import SILENCES, UNKNOWN_WORDS
from espnet_speechllm_xl.corpus.kaldi import kind_of_reason
from espnet_speechllm_xl.sets.align import (
    COPIED,
    UNUSABLE,
    WRITTEN,
    alignments_from_ctm,
    crashed,
    is_unusable,
    make_worker,
    move_alignments,
    write_alignments,
)


def add_arguments(parser):
    """Options of the command."""
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


def main(args):
    """Write the aligned set: Kaldi tables of the utterances that could be aligned, ``char_ends``, ``words.ctm``,
    ``failed`` (utterance and reason), ``report.json``; returns the exit code, 1 when some audio could not be read."""
    from espnet_speechllm_xl import experiment
    from espnet_speechllm_xl.corpus.kaldi import read_table
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.files import atomic_write
    from espnet_speechllm_xl.sets import batch_jobs
    from espnet_speechllm_xl.sets.audio import sample_counts

    dump, out = Path(args.dump), Path(args.out)
    samples = sample_counts(dump) if args.model else {}
    text, task = read_table(dump / "text"), None
    if args.model:
        batches = batch_jobs.batches_by_length(
            {utterance: samples.get(utterance, 0) for utterance in text}, args.batch_size
        )
        settings = {
            "model": args.model,
            "weights": args.weights,
            "device": args.device,
            "dump": str(dump),
            "stamp": experiment.stamp(args.model, dump / "text", dump / "progress.jsonl", dump / "wav.scp"),
        }
        task = {"settings": settings, "batches": batches, "text": args.text and read_table(args.text)}
        if not args.shard:  # else each of many would say it, and then the run that puts them together
            doubts.say(doubts.of_training(Path(args.model)))
        before = batch_jobs.summary_of(out / "report.json", task)
        if before and not before.get("unusable", before["failed"]):
            print(f"{out}: {before['aligned']} of {before['total']} utterances were aligned before by the same weights")
            return 0

        def begun():
            for name in () if before else (*WRITTEN, *COPIED):  # lest a training takes another aligner's
                (out / name).unlink(missing_ok=True)

        title = f"align {dump.name}"
        results = batch_jobs.run_batches(
            batches, make_worker, settings, out / ".parts", args.nj, title, args.shard, begun, is_unusable, crashed
        )
        if args.shard:
            return 0
        aligned = dict(results)
    elif args.shard:
        raise UserError("--shard divides the work of a --model; word times of a --ctm are only copied")
    else:
        aligned = alignments_from_ctm(args.ctm, text, args.silences, args.unknown_words)
    if args.text:
        move_alignments(aligned, text, read_table(args.text))
        text = read_table(args.text)
    for name in COPIED:
        usable = {utterance for utterance, result in aligned.items() if not isinstance(result, str)}
        absent = usable - read_table(dump / name).keys()
        aligned.update(dict.fromkeys(absent, f"not in {name}"))
    failed = {utterance: result for utterance, result in sorted(aligned.items()) if isinstance(result, str)}
    good = {utterance: result for utterance, result in sorted(aligned.items()) if not isinstance(result, str)}
    if not good:
        reason = next(iter(failed.values()), "no utterances")
        raise UserError(f"{dump}: no utterance could be aligned, the first because: {reason}")
    reasons = Counter(map(kind_of_reason, failed.values()))
    write_alignments(dump, out, text, good, failed)
    report = {"aligned": len(good), "failed": len(failed), "total": len(aligned), "unusable": reasons[UNUSABLE]}
    with atomic_write(out / "report.json") as stream:
        json.dump({**report, "task": task and batch_jobs.digest(task)}, stream)
    if not reasons[UNUSABLE]:  # else the next run has to do less
        batch_jobs.finish(out / ".parts")
    listed = "".join(f", {count} left out: {reason}" for reason, count in sorted(reasons.items()))
    print(f"{out}: {len(good)} of {len(aligned)} utterances aligned{listed}")
    return 1 if reasons[UNUSABLE] else 0


def _listed(text: str) -> list[str]:
    """The entries of a list, parted by commas or blanks."""
    return text.replace(",", " ").split()
