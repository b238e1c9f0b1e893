"""``decode``: transcribe a dump set into ESPnet's layout."""

from pathlib import Path

from espnet_speechllm_xl.bin import doubts
from espnet_speechllm_xl.bin.options import add_jobs_arguments, add_model_arguments, at_least, load_settings
from espnet_speechllm_xl.evaluation import decoded_sets
from espnet_speechllm_xl.sets.decode import (
    crashed,
    has_failed,
    make_worker,
    print_summary,
    remarks_on_audio,
    sum_of_measured,
)


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("--dump", required=True, help="dump set to decode (dump/raw/SET)")
    parser.add_argument("--out", required=True, help="directory for text, token, token_int, score, words.ctm, ...")
    parser.add_argument("--segments", metavar="FILE", help="Kaldi's: also write recordings.ctm, words by recording")
    parser.add_argument(
        "--batch-size", type=at_least(int, 1), default=8, help="utterances decoded together (default %(default)s)"
    )
    add_jobs_arguments(parser)
    add_model_arguments(parser)


def main(args):
    """Decode; returns the exit code, 1 when some audio could not be read."""
    from espnet_speechllm_xl import experiment
    from espnet_speechllm_xl.corpus.kaldi import read_table
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.evaluation.scoring_inputs import read_segments
    from espnet_speechllm_xl.sets import batch_jobs
    from espnet_speechllm_xl.sets.audio import sample_counts

    dump, out = Path(args.dump), Path(args.out)
    counts = sample_counts(dump)
    samples = {**dict.fromkeys(read_table(dump / "wav.scp"), 0), **counts}
    if not samples:
        raise UserError(f"{dump}: wav.scp is empty: run the format stage")
    spans = read_segments(args.segments, samples) if args.segments else None
    batches = batch_jobs.batches_by_length(samples, args.batch_size)
    stamp = experiment.stamp(args.model, dump / "progress.jsonl", dump / "wav.scp")
    settings = {"load": load_settings(args), "dump": str(dump), "stamp": stamp}
    task = {"settings": settings, "batches": batches}
    before = batch_jobs.summary_of(out / decoded_sets.INFO, task)
    if before and not before["failed"]:
        print(f"{out}: {before['utterances']} utterances were decoded before by the same weights and settings")
        decoded_sets.write_recordings(out, spans)
        texts = decoded_sets.read_hypotheses(out) if decoded_sets.finished_ns(out) else {}
        doubts.say(doubts.of_hypotheses(texts, str(out)))
        return 0

    def begun():
        if not before:
            decoded_sets.remove_files(out)

    results = batch_jobs.run_batches(
        batches, make_worker, settings, out / ".parts", args.nj, f"decode {dump.name}", args.shard, begun, has_failed,
        crashed,
    )  # fmt: skip
    if args.shard:
        return 0
    done = {item["utterance"]: item for item in sorted(results, key=lambda item: item["utterance"])}
    failed = {utterance: item["failed"] for utterance, item in done.items() if has_failed(item)}
    good = {utterance: item for utterance, item in done.items() if not has_failed(item)}
    decoded_sets.write_texts(out, good)
    decoded_sets.write_recordings(out, spans)
    decoded_sets.write_failures(out, failed)
    summary = {
        "utterances": len(good),
        "failed": len(failed),
        "capped": sum_of_measured(item["nbest"][0]["capped"] for item in good.values()),
        "audio_seconds": sum(item["audio_seconds"] for item in good.values()),
        "seconds": sum(item["seconds"] for item in good.values()),
        "device": args.device,
        "settings": settings["load"],
        "task": batch_jobs.digest(task),
        "remarks": remarks_on_audio(good),
    }
    decoded_sets.write_info(out, summary)
    if not failed:  # else the next run has to do less
        batch_jobs.finish(out / ".parts")
    print_summary(out, summary, failed)
    texts = {utterance: item["nbest"][0]["text"] for utterance, item in good.items()}
    doubts.say(doubts.of_hypotheses(texts, str(out)))
    return 1 if failed else 0
