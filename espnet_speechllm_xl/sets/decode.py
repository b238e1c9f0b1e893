"""Decoding a dump set into ESPnet's layout."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl import experiment
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import decoded_sets
from espnet_speechllm_xl.evaluation.scoring_inputs import read_segments
from espnet_speechllm_xl.sets import batch_jobs
from espnet_speechllm_xl.sets.audio import SetAudio, remark_on_length, sample_counts
from espnet_speechllm_xl.sets.phrases import check_phrases, phrases_of_set
from espnet_speechllm_xl.sets.prompts import check_prompts, prompts_of_set

if TYPE_CHECKING:
    from espnet_speechllm_xl.decoding.results import Transcript
    from espnet_speechllm_xl.evaluation.scoring_inputs import RecordingSpan


@dataclass(frozen=True)
class DecodedSet:
    """The outcome of decoding a set.

    Attributes:
        texts: ``{utterance: text}``, the best hypotheses.
        failed: ``{utterance: reason}`` of those whose audio could not be used.
        summary: contents of ``decode.json``.
        done_before: an earlier run had decoded all by the same weights and settings.
    """

    texts: dict[str, str]
    failed: dict[str, str]
    summary: dict[str, Any]
    done_before: bool = False


def decode_set(
    dump: Path,
    out: Path,
    load: dict[str, Any],
    segments: str | None = None,
    batch_size: int = 8,
    nj: int = 1,
    shard: tuple[int, int] | None = None,
    prompt: str = "",
    prompts: str | None = None,
    phrases: str | None = None,
    utterance_phrases: str | None = None,
) -> DecodedSet | None:
    """Decode a dump set and write its hypotheses; None of a shard, which writes none.

    Args:
        dump: the set.
        out: directory for the files of :mod:`~espnet_speechllm_xl.evaluation.decoded_sets`.
        load: keyword arguments of ``Speech2Text.from_pretrained``.
        segments: Kaldi file of segments, to write the words by recording too.
        batch_size: utterances decoded together.
        nj: processes.
        shard: (i, n): do the i-th (from 1) of n parts of the work only.
        prompt: text that the decoder reads before each utterance; "": none.
        prompts: table of the prompts of utterances, in place of ``prompt``.
        phrases: file of phrases that are expected in all utterances; None: none.
        utterance_phrases: table of the phrases of utterances, in place of ``phrases``.

    Raises:
        UserError: the set, the segments, the prompts, the phrases or the model cannot be used.
    """
    samples = {**dict.fromkeys(read_table(dump / "wav.scp"), 0), **sample_counts(dump)}
    if not samples:
        raise UserError(f"{dump}: wav.scp is empty: run the format stage")
    spans = read_segments(segments, samples) if segments else None
    batches = batch_jobs.batches_by_length(samples, batch_size)
    stamp = experiment.stamp(load["path"], dump / "progress.jsonl", dump / "wav.scp")
    settings = {"load": load, "dump": str(dump), "stamp": stamp}
    if prompt_of := prompts_of_set(dump, samples, prompt, prompts):
        settings["prompts"] = prompt_of
    expected = phrases_of_set(dump, samples, _lines(phrases), utterance_phrases)
    if expected:
        settings["phrases"] = dataclasses.asdict(expected)
    task = {"settings": settings, "batches": batches}
    before = batch_jobs.summary_of(out / decoded_sets.INFO, task)
    if before and not before["failed"]:
        decoded_sets.write_recordings(out, spans)
        texts = decoded_sets.read_hypotheses(out) if decoded_sets.finished_ns(out) else {}
        return DecodedSet(texts, {}, before, done_before=True)

    def remove_others() -> None:
        if not before:
            decoded_sets.remove_files(out)

    results = batch_jobs.run_batches(
        batches, make_worker, settings, out / ".parts", nj, f"decode {dump.name}", shard, remove_others, has_failed,
        crashed,
    )  # fmt: skip
    if shard:
        return None
    given: dict[str, str] = {}
    if prompt_of:
        given.update({"prompt": prompt} if prompts is None else {"prompts": prompts})
    if expected:
        given.update({"phrases": phrases} if phrases else {"utterance_phrases": str(utterance_phrases)})
    return _write_set(out, results, task, spans, given)


def _lines(phrases: str | None) -> list[str] | None:
    if phrases is None:
        return None
    from espnet_speechllm_xl.decoding.phrases import read_phrases

    return read_phrases(phrases)


def _write_set(
    out: Path,
    results: list[dict[str, Any]],
    task: dict[str, Any],
    spans: "dict[str, RecordingSpan] | None",
    given: dict[str, str],
) -> DecodedSet:
    """Write the results of a set and return them.

    Args:
        out: see :func:`decode_set`.
        results: of the worker, one for each utterance.
        task: for JSON; its name tells later runs what was done.
        spans: of the utterances in their recordings; None: not asked for.
        given: the options that gave prompts and phrases, and their values.
    """
    done = {item["utterance"]: item for item in sorted(results, key=lambda item: item["utterance"])}
    failed = {utterance: item["failed"] for utterance, item in done.items() if has_failed(item)}
    good = {utterance: item for utterance, item in done.items() if not has_failed(item)}
    load, prompts = task["settings"]["load"], task["settings"].get("prompts", {})
    expected = task["settings"].get("phrases", {"of": {}})["of"]
    decoded_sets.write_texts(out, good)
    decoded_sets.write_prompts(out, prompts)
    decoded_sets.write_recordings(out, spans)
    decoded_sets.write_failures(out, failed)
    summary = {
        "utterances": len(good),
        "failed": len(failed),
        "capped": _sum_of_measured(item["nbest"][0]["capped"] for item in good.values()),
        "audio_seconds": sum(item["audio_seconds"] for item in good.values()),
        "seconds": sum(item["seconds"] for item in good.values()),
        "device": load["device"],
        "settings": {**load, **given},
        "prompted": len(good.keys() & prompts.keys()),
        "with_phrases": len(good.keys() & expected.keys()),
        "task": batch_jobs.digest(task),
        "remarks": _remarks_on_audio(good),
    }
    if any(item.get(decoded_sets.SMALL_LETTERS) for item in good.values()):
        summary[decoded_sets.SMALL_LETTERS] = True
    decoded_sets.write_info(out, summary)
    if not failed:  # else the next run takes over the finished batches
        batch_jobs.finish(out / ".parts")
    return DecodedSet({utterance: item["nbest"][0]["text"] for utterance, item in good.items()}, failed, summary)


def _remarks_on_audio(good: dict[str, dict[str, Any]]) -> dict[str, list]:
    """Return for each kind of remark (audio.py): how many utterances have it, the first of them and its text."""
    found: dict[str, list] = {}
    for utterance, item in good.items():
        for kind, text in item.get("remarks", {}).items():
            found.setdefault(kind, [0, utterance, text])[0] += 1
    return found


def _sum_of_measured(counts: Iterable[int | None]) -> int | None:
    """Sum the counts; None where nothing was counted: CTC and transducer have no chunks of text."""
    measured = [count for count in counts if count is not None]
    return sum(measured) if measured else None


def crashed(utterance: str, reason: str) -> dict[str, Any]:
    """Return the result of an utterance whose process died."""
    return {"utterance": utterance, "failed": reason}


def has_failed(item: dict[str, Any]) -> bool:
    """Tell from a worker's result whether the utterance could not be decoded."""
    return "failed" in item


def make_worker(settings: dict[str, Any]) -> Callable[[list[str]], list[dict[str, Any]]]:
    """Return a worker of :func:`~espnet_speechllm_xl.sets.batch_jobs.run_batches`: utterance ids -> one object each."""
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(**settings["load"])
    audio = SetAudio(Path(settings["dump"]), speech2text.sample_rate)
    prompts = settings.get("prompts", {})
    check_prompts(speech2text, prompts)
    phrases = settings.get("phrases", {"lists": [], "of": {}})
    check_phrases(speech2text, phrases)
    remarked: list[str] = []  # one long recording by each process, as a set may be full of them

    def work(utterances: list[str]) -> list[dict[str, Any]]:
        recordings, reasons = audio.usable(utterances)
        for utterance, recording in recordings.items():
            remark = None if remarked else remark_on_length(speech2text, recording.file, recording.samples)
            if remark:
                remarked.append(utterance)
                print(f"{utterance}: {remark}", file=sys.stderr, flush=True)
        begin = time.perf_counter()

        def transcribe(usable: list[str]) -> "list[list[Transcript]]":
            samples = [recordings[utterance].samples for utterance in usable]
            lists = (phrases["lists"][phrases["of"][name]] if name in phrases["of"] else None for name in usable)
            trees = [speech2text.phrase_tree(lines) for lines in lists]
            return speech2text.transcribe_batch(samples, [prompts.get(utterance, "") for utterance in usable], trees)

        decoded = batch_jobs.as_memory_allows(transcribe, list(recordings))
        # Decoded together, so each gets its share of the time by its length.
        total = max(1, sum(len(recording.samples) for recording in recordings.values()))
        per_sample = (time.perf_counter() - begin) / total
        items = {utterance: crashed(utterance, reason) for utterance, reason in reasons.items()}
        for (utterance, recording), (nbest, reason) in zip(recordings.items(), decoded, strict=True):
            if nbest is None:
                items[utterance] = crashed(utterance, reason or "")
                continue
            items[utterance] = {
                "utterance": utterance,
                "remarks": recording.remarks,
                "nbest": _as_json(nbest),
                decoded_sets.SMALL_LETTERS: speech2text.tokenizer.lower_case,
                "audio_seconds": len(recording.samples) / speech2text.sample_rate,
                "seconds": per_sample * len(recording.samples),
            }
            if speech2text.system.word_times:
                words = [[word.text, word.start, word.end, word.confidence] for word in nbest[0].words]
                items[utterance]["words"] = words
        return [items[utterance] for utterance in utterances]

    return work


def _as_json(nbest: "Sequence[Transcript]") -> list[dict[str, Any]]:
    return [
        {
            "text": transcript.text,
            "score": transcript.score,
            "tokens": transcript.tokens,
            "token_ids": transcript.token_ids,
            "capped": transcript.capped,
        }
        for transcript in nbest
    ]
