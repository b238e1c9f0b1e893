"""Decoding a dump set."""

import sys
import time
from pathlib import Path


def crashed(utterance: str, reason: str) -> dict:
    """The result of an utterance that a process died of."""
    return {"utterance": utterance, "failed": reason}


def has_failed(item):
    return "failed" in item


def remarks_on_audio(good: dict) -> dict[str, list]:
    """Of each kind of remark (audio.py): how many utterances have it, the first of them and its text."""
    found = {}
    for utterance, item in good.items():
        for kind, text in item.get("remarks", {}).items():
            found.setdefault(kind, [0, utterance, text])[0] += 1
    return found


def sum_of_measured(counts):
    """None where nothing was counted: CTC and transducer have no chunks of text."""
    measured = [count for count in counts if count is not None]
    return sum(measured) if measured else None


def make_worker(settings):
    """Worker of :func:`~espnet_speechllm_xl.sets.batch_jobs.run_batches`: utterance ids -> one JSON object each."""
    from espnet_speechllm_xl.corpus.audio import AudioError, read_audio
    from espnet_speechllm_xl.corpus.kaldi import read_table
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.sets.audio import of_length
    from espnet_speechllm_xl.sets.batch_jobs import as_memory_allows

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


def print_summary(out, summary, failed):
    rtf = summary["seconds"] / max(summary["audio_seconds"], 1e-9)
    capped = "" if summary["capped"] is None else f"{summary['capped']} chunks hit the token cap; "
    print(f"{out}: {summary['utterances']} utterances decoded, {len(failed)} failed; {capped}RTF {rtf:.3f}")
    for kind, (count, utterance, text) in summary["remarks"].items():
        print(f"  remark: {count} {kind}, the first: {utterance}: {text}")
    for utterance, reason in failed.items():
        print(f"  failed: {utterance}: {reason}")
