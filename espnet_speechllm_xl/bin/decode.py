"""``decode``: transcribe a dump set into ESPnet's layout."""

import json
import time
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_jobs_arguments, add_model_arguments, load_settings

WRITTEN = ("text", "token", "token_int", "score", "nbest.jsonl", "failed", "decode.json")


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("--dump", required=True, help="dump set to decode (dump/raw/SET)")
    parser.add_argument("--out", required=True, help="directory for text, token, token_int, score, decode.json")
    parser.add_argument("--batch-size", type=int, default=8, help="utterances decoded together (default %(default)s)")
    add_jobs_arguments(parser)
    add_model_arguments(parser)


def main(args):
    """Decode; returns the exit code, 1 when some audio could not be read."""
    from espnet_speechllm_xl import jobs
    from espnet_speechllm_xl.bin.options import sample_counts
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.io import atomic_write
    from espnet_speechllm_xl.kaldi import read_table, write_table

    dump, out = Path(args.dump), Path(args.out)
    counts = sample_counts(dump)
    samples = {**dict.fromkeys(read_table(dump / "wav.scp"), 0), **counts}
    if not samples:
        raise UserError(f"{dump}: wav.scp is empty: run the format stage")
    batches = jobs.batches_by_length(samples, args.batch_size)
    stamp = jobs.stamp(args.model, dump / "progress.jsonl", dump / "wav.scp")
    settings = {"load": load_settings(args), "dump": str(dump), "stamp": stamp}
    task = {"settings": settings, "batches": batches}
    before = jobs.summary_of(out / "decode.json", task)
    if before and not before["failed"]:
        print(f"{out}: {before['utterances']} utterances were decoded before by the same weights and settings")
        return 0

    def begun():
        for name in () if before else WRITTEN:  # lest hypotheses of other weights are scored before the end
            (out / name).unlink(missing_ok=True)

    results = jobs.run_batches(
        batches, make_worker, settings, out / ".parts", args.nj, f"decode {dump.name}", args.shard, begun, _has_failed,
        crashed,
    )  # fmt: skip
    if args.shard:
        return 0
    done = {item["utterance"]: item for item in sorted(results, key=lambda item: item["utterance"])}
    failed = {utterance: item["failed"] for utterance, item in done.items() if _has_failed(item)}
    good = {utterance: item for utterance, item in done.items() if not _has_failed(item)}
    _write_texts(out, good)
    write_table(out / "failed", failed)
    summary = {
        "utterances": len(good),
        "failed": len(failed),
        "capped": _sum_of_measured(item["nbest"][0]["capped"] for item in good.values()),
        "audio_seconds": sum(item["audio_seconds"] for item in good.values()),
        "seconds": sum(item["seconds"] for item in good.values()),
        "device": args.device,
        "settings": settings["load"],
        "task": jobs.digest(task),
    }
    with atomic_write(out / "decode.json") as stream:
        json.dump(summary, stream, indent=2)
    if not failed:  # else the next run has to do less
        jobs.finish(out / ".parts")
    _print_summary(out, summary, failed)
    return 1 if failed else 0


def crashed(utterance: str, reason: str) -> dict:
    """The result of an utterance that a process died of."""
    return {"utterance": utterance, "failed": reason}


def _has_failed(item):
    return "failed" in item


def _sum_of_measured(counts):
    """None where nothing was counted: CTC and transducer have no chunks of text."""
    measured = [count for count in counts if count is not None]
    return sum(measured) if measured else None


def _write_texts(out, good):
    """``text``, ``token``, ``token_int`` and ``score`` of the best, and ``nbest.jsonl`` where an utterance has more."""
    from espnet_speechllm_xl.io import atomic_write
    from espnet_speechllm_xl.kaldi import write_table

    best = {utterance: item["nbest"][0] for utterance, item in good.items()}
    columns = {
        "text": lambda one: one["text"],
        "token": lambda one: " ".join(one["tokens"]),
        "token_int": lambda one: " ".join(map(str, one["token_ids"])),
        "score": lambda one: str(one["score"]),
    }
    (out / "nbest.jsonl").unlink(missing_ok=True)
    for name, value in columns.items():
        write_table(out / name, {utterance: value(one) for utterance, one in best.items()})
    if any(len(item["nbest"]) > 1 for item in good.values()):
        with atomic_write(out / "nbest.jsonl") as stream:
            for utterance, item in good.items():
                stream.write(json.dumps({"utterance": utterance, "nbest": item["nbest"]}) + "\n")


def make_worker(settings):
    """Worker of :func:`~espnet_speechllm_xl.jobs.run_batches`: utterance ids -> one JSON object each."""
    from espnet_speechllm_xl.audio import AudioError, read_audio
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.kaldi import read_table

    speech2text = Speech2Text.from_pretrained(**settings["load"])
    audio = read_table(Path(settings["dump"]) / "wav.scp")

    def work(utterances):
        items, recordings = [{"utterance": utterance} for utterance in utterances], []
        for item in items:
            try:
                if item["utterance"] not in audio:
                    raise AudioError("missing", "not in wav.scp")
                recordings.append((item, read_audio(audio[item["utterance"]], speech2text.sample_rate)))
            except AudioError as error:
                item["failed"] = str(error)
        start = time.perf_counter()
        decoded = speech2text.transcribe_batch([samples for _, samples in recordings])
        # Decoded together, so each gets its share of the time by its length.
        total = max(1, sum(len(samples) for _, samples in recordings))
        per_sample = (time.perf_counter() - start) / total
        for (item, samples), nbest in zip(recordings, decoded, strict=True):
            item["nbest"] = [
                {
                    "text": transcript.text,
                    "score": transcript.score,
                    "tokens": transcript.tokens,
                    "token_ids": transcript.token_ids,
                    "capped": transcript.capped,
                }
                for transcript in nbest
            ]
            item["audio_seconds"] = len(samples) / speech2text.sample_rate
            item["seconds"] = per_sample * len(samples)
        return items

    return work


def _print_summary(out, summary, failed):
    rtf = summary["seconds"] / max(summary["audio_seconds"], 1e-9)
    capped = "" if summary["capped"] is None else f"{summary['capped']} chunks hit the token cap; "
    print(f"{out}: {summary['utterances']} utterances decoded, {len(failed)} failed; {capped}RTF {rtf:.3f}")
    for utterance, reason in failed.items():
        print(f"  failed: {utterance}: {reason}")
