"""``decode``: transcribe a dump set into ESPnet's layout."""

import json
import sys
import time
from pathlib import Path

from espnet_speechllm_xl.bin import doubts
from espnet_speechllm_xl.bin.options import add_jobs_arguments, add_model_arguments, at_least, load_settings

WRITTEN = ("text", "token", "token_int", "score", "nbest.jsonl", "failed", "decode.json", "words.ctm", "recordings.ctm")


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
    from espnet_speechllm_xl import jobs
    from espnet_speechllm_xl.bin.options import sample_counts
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.io import atomic_write
    from espnet_speechllm_xl.kaldi import read_table, write_table
    from espnet_speechllm_xl.scoring_inputs import read_segments

    dump, out = Path(args.dump), Path(args.out)
    counts = sample_counts(dump)
    samples = {**dict.fromkeys(read_table(dump / "wav.scp"), 0), **counts}
    if not samples:
        raise UserError(f"{dump}: wav.scp is empty: run the format stage")
    spans = read_segments(args.segments, samples) if args.segments else None
    batches = jobs.batches_by_length(samples, args.batch_size)
    stamp = jobs.stamp(args.model, dump / "progress.jsonl", dump / "wav.scp")
    settings = {"load": load_settings(args), "dump": str(dump), "stamp": stamp}
    task = {"settings": settings, "batches": batches}
    before = jobs.summary_of(out / "decode.json", task)
    if before and not before["failed"]:
        print(f"{out}: {before['utterances']} utterances were decoded before by the same weights and settings")
        _write_recordings(out, spans)
        texts = read_table(out / "text") if (out / "text").is_file() else {}
        doubts.say(doubts.of_hypotheses(texts, str(out)))
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
    _write_recordings(out, spans)
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
        "remarks": _remarks(good),
    }
    with atomic_write(out / "decode.json") as stream:
        json.dump(summary, stream, indent=2)
    if not failed:  # else the next run has to do less
        jobs.finish(out / ".parts")
    _print_summary(out, summary, failed)
    texts = {utterance: item["nbest"][0]["text"] for utterance, item in good.items()}
    doubts.say(doubts.of_hypotheses(texts, str(out)))
    return 1 if failed else 0


def crashed(utterance: str, reason: str) -> dict:
    """The result of an utterance that a process died of."""
    return {"utterance": utterance, "failed": reason}


def _has_failed(item):
    return "failed" in item


def _remarks(good: dict) -> dict[str, list]:
    """Of each kind of remark (audio.py): how many utterances have it, the first of them and its text."""
    found = {}
    for utterance, item in good.items():
        for kind, text in item.get("remarks", {}).items():
            found.setdefault(kind, [0, utterance, text])[0] += 1
    return found


def _sum_of_measured(counts):
    """None where nothing was counted: CTC and transducer have no chunks of text."""
    measured = [count for count in counts if count is not None]
    return sum(measured) if measured else None


def _write_texts(out, good):
    """``text``, ``token``, ``token_int`` and ``score`` of the best, ``words.ctm`` where the model gives word times, and
    ``nbest.jsonl`` where an utterance has more."""
    from espnet_speechllm_xl.ctm import Word, write_ctm
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
    timed = {utterance: [Word(*word) for word in item["words"]] for utterance, item in good.items() if "words" in item}
    if timed:
        write_ctm(out / "words.ctm", timed)
    if any(len(item["nbest"]) > 1 for item in good.values()):
        with atomic_write(out / "nbest.jsonl") as stream:
            for utterance, item in good.items():
                stream.write(json.dumps({"utterance": utterance, "nbest": item["nbest"]}) + "\n")


def _write_recordings(out: Path, spans: dict | None) -> None:
    """``recordings.ctm``: the words of ``words.ctm`` in the time of their recordings."""
    from espnet_speechllm_xl.ctm import read_ctm, write_ctm
    from espnet_speechllm_xl.scoring_inputs import by_recording

    if spans is None:
        return
    if not (out / "words.ctm").is_file():
        print(f"{out}: no recordings.ctm, because the model gives no word times (there is no words.ctm)")
        return
    write_ctm(out / "recordings.ctm", by_recording(read_ctm(out / "words.ctm"), spans))


def make_worker(settings):
    """Worker of :func:`~espnet_speechllm_xl.jobs.run_batches`: utterance ids -> one JSON object each."""
    from espnet_speechllm_xl.audio import AudioError, read_audio
    from espnet_speechllm_xl.bin.transcribe import of_length
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.jobs import as_memory_allows
    from espnet_speechllm_xl.kaldi import read_table

    speech2text = Speech2Text.from_pretrained(**settings["load"])
    audio = read_table(Path(settings["dump"]) / "wav.scp")
    long = []  # what was said of long recordings: of one by each process, as a set may be full of them

    def work(utterances):
        items, recordings = [{"utterance": utterance} for utterance in utterances], []
        for item in items:
            try:
                if item["utterance"] not in audio:
                    raise AudioError("missing", "not in wav.scp")
                item["remarks"] = {}
                samples = read_audio(audio[item["utterance"]], speech2text.sample_rate, notes=item["remarks"])
                recordings.append((item, samples))
                if not long and (remark := of_length(speech2text, audio[item["utterance"]], samples)):
                    long.append(remark)
                    print(f"{item['utterance']}: {remark}", file=sys.stderr, flush=True)
            except AudioError as error:
                item["failed"] = str(error)
        start = time.perf_counter()
        decoded = as_memory_allows(speech2text.transcribe_batch, [samples for _, samples in recordings])
        # Decoded together, so each gets its share of the time by its length.
        total = max(1, sum(len(samples) for _, samples in recordings))
        per_sample = (time.perf_counter() - start) / total
        for (item, samples), (nbest, reason) in zip(recordings, decoded, strict=True):
            if reason:
                item["failed"] = reason
                continue
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
            if speech2text.task.word_times:
                item["words"] = [[word.text, word.start, word.end, word.confidence] for word in nbest[0].words]
            item["audio_seconds"] = len(samples) / speech2text.sample_rate
            item["seconds"] = per_sample * len(samples)
        return items

    return work


def _print_summary(out, summary, failed):
    rtf = summary["seconds"] / max(summary["audio_seconds"], 1e-9)
    capped = "" if summary["capped"] is None else f"{summary['capped']} chunks hit the token cap; "
    print(f"{out}: {summary['utterances']} utterances decoded, {len(failed)} failed; {capped}RTF {rtf:.3f}")
    for kind, (count, utterance, text) in summary["remarks"].items():
        print(f"  remark: {count} {kind}, the first: {utterance}: {text}")
    for utterance, reason in failed.items():
        print(f"  failed: {utterance}: {reason}")
