"""Streaming a dump set at several chunk sizes, to measure how late words come and what they cost."""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl import experiment, timeline
from espnet_speechllm_xl.config import SearchConfig
from espnet_speechllm_xl.corpus.ctm import read_ctm
from espnet_speechllm_xl.corpus.kaldi import read_table, read_text, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import stream_latency
from espnet_speechllm_xl.evaluation.letter_case import ignoring
from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.sets import batch_jobs
from espnet_speechllm_xl.sets.audio import SetAudio, sample_counts
from espnet_speechllm_xl.sets.decode import crashed

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.corpus.ctm import Word
    from espnet_speechllm_xl.decoding.results import Update
    from espnet_speechllm_xl.decoding.streams import Stream

BATCH = 8  # utterances after which a killed run goes on


@dataclass(frozen=True)
class Streaming:
    """The settings of streaming a set.

    Attributes:
        load: keyword arguments of ``Speech2Text.from_pretrained``; ``context`` is not used, as it belongs to the
            streams: it need not fit the chunks of training.
        options: keyword arguments of ``Speech2Text.stream`` beside ``chunk_size`` and ``context``.
        chunk_sizes: seconds; None: the sizes that the model was trained with.
        context: seconds; None: as many chunks as in training.
        block_seconds: audio pushed at a time.
        tail_seconds: silence pushed after each recording.
        nj: processes.
        ignore_case: compare without regard to case, whatever the model writes.
    """

    load: dict[str, Any]
    options: dict[str, Any]
    chunk_sizes: Sequence[float] | None = None
    context: float | None = None
    block_seconds: float = 0.04
    tail_seconds: float = 0.0
    nj: int = 1
    ignore_case: bool = False


@dataclass(frozen=True)
class Latency:
    """The measurements of a set.

    Attributes:
        setup: by name, how it was measured; see ``latency_report``.
        sizes: the figures of each chunk size; see ``latency_report``.
        failed: ``{utterance: reason}`` of those whose audio could not be used.
    """

    setup: dict[str, Any]
    sizes: list[dict[str, Any]]
    failed: dict[str, str]


def measure_latency(dump: Path, out: Path, streaming: Streaming, reference: str | None = None) -> Latency:
    """Stream a dump set at each chunk size and compare its words with the reference.

    Args:
        dump: the set, with texts.
        out: directory for ``streamed_<chunk size>.json``, with every word and push, for ``flushed_<chunk size>.json``,
            the same up to the end of speech, and for ``failed``.
        streaming: how it is streamed.
        reference: CTM that says when words ended; None: ``ref.ctm`` of the set, where it has one.

    Raises:
        UserError: the set, the reference, the model or a setting cannot be used.
    """
    texts, audio = read_text(dump / "text"), read_table(dump / "wav.scp")
    if not audio or not set(audio) <= set(texts):
        raise UserError(f"{dump}: wav.scp is empty or names utterances that text lacks: run the format stage")
    if not any(texts[utterance] for utterance in audio):
        raise UserError(f"{dump}: the texts hold no words: there is nothing to compare")
    ctm, times = _reference(reference, dump)
    load = {name: value for name, value in streaming.load.items() if name != "context"}
    chunkings, rate, search_config, small_letters = _chunkings(load, streaming)
    ignored = ignoring(small_letters, Ignored(case=streaming.ignore_case))
    batches = batch_jobs.batches_by_length({**dict.fromkeys(audio, 0), **sample_counts(dump)}, BATCH)
    shared = {
        "load": load,
        "search": dataclasses.asdict(search_config),
        "dump": str(dump),
        "stamp": experiment.stamp(load["path"], dump / "progress.jsonl", dump / "wav.scp"),
        "block": max(1, round(streaming.block_seconds * rate)),
        "tail": round(streaming.tail_seconds * rate),
        "nj": streaming.nj,
    }
    sizes, failed = [], {}
    for options, figures in chunkings:
        settings = {**shared, "stream": options}
        runs, failures = stream_set(settings, batches, out)
        flushed, more = flush_set(settings, batches, stream_latency.speech_ends(runs, times), out)
        failed.update({**failures, **more})
        summary = stream_latency.summary(runs, stream_latency.compare(runs, texts, times, ignored))
        sizes.append({**figures, **summary, **stream_latency.flush_summary(flushed, runs, texts, ignored)})
    write_table(out / "failed", failed)
    setup = {
        "model": load["path"],
        "set": str(dump),
        "reference": ctm and str(ctm),
        **{name: str(value) for name, value in streaming.options.items()},
        "search": search_config.method,
        "beam_size": search_config.beam_size,
        "ctc_weight": search_config.ctc_weight,
        "device": load["device"],
        "block_seconds": streaming.block_seconds,
        "tail_seconds": streaming.tail_seconds,
        "nj": streaming.nj,
        **({"compared": "without regard to case"} if ignored.case else {}),
        "failed": len(failed),
    }
    return Latency(setup, sizes, failed)


def _reference(path: str | None, dump: Path) -> "tuple[Path | None, dict[str, list[Word]] | None]":
    """Return the CTM file and its words by utterance; None and None where there is none and none was asked for."""
    file = Path(path or dump / "ref.ctm")
    if file.is_file():
        return file, read_ctm(file)
    if path:
        raise UserError(f"--reference {path}: no such file: give a CTM with the word times of {dump}")
    return None, None


def _chunkings(
    load: dict[str, Any], streaming: Streaming
) -> tuple[list[tuple[dict[str, Any], dict[str, float | None]]], int, SearchConfig, bool]:
    """Return the options of streams and the figures of each chunk size, the sample rate, and the streams' search.

    Behind them: whether the model writes small letters only.

    Raises:
        UserError: before any work, for a model or a setting that cannot be used.
    """
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(**load)
    encoder, found = speech2text.model.acoustic.encoder.config, []
    trained = speech2text.stream().chunking  # raises for a model that cannot stream
    sizes: list[int | None] = list(trained.train_chunks or [])
    known = [timeline.chunk_seconds(chunk_size) for chunk_size in sizes or [trained.chunk]]
    for seconds in streaming.chunk_sizes or known:
        options = {**streaming.options, "chunk_size": seconds, "context": streaming.context}
        stream = speech2text.stream(**options)
        chunking, search_config = stream.chunking, stream.search.config
        options["search"] = search_config.method
        values = {
            "chunk_seconds": seconds,
            "context_seconds": timeline.context_seconds(chunking),
            "algorithmic_seconds": timeline.latency_seconds(encoder, chunking),
        }
        figures = {name: round(value, 3) if value < math.inf else None for name, value in values.items()}
        found.append((options, figures))
    return found, speech2text.sample_rate, search_config, speech2text.tokenizer.lower_case


def stream_set(
    settings: dict[str, Any], batches: list[list[str]], out: Path
) -> tuple[dict[str, stream_latency.Run], dict[str, str]]:
    """Stream a set, or take what an earlier run has streamed by the same weights and settings.

    Args:
        settings: JSON value of the worker, see :func:`make_worker`.
        batches: lists of utterance ids.
        out: directory for ``streamed_<chunk size>.json``.

    Returns:
        ``{utterance: Run}`` and ``{utterance: reason}`` of those whose audio could not be used.
    """
    content = _over_set(settings, batches, out, "streamed")
    runs = {utterance: stream_latency.Run.from_json(each) for utterance, each in content["runs"].items()}
    return runs, content["failed"]


def flush_set(
    settings: dict[str, Any], batches: list[list[str]], ends: dict[str, float], out: Path
) -> tuple[dict[str, stream_latency.Flushed], dict[str, str]]:
    """Stream a set to the end of speech and flush it there, or take what an earlier run has found in the same way.

    Args:
        settings: see :func:`stream_set`.
        batches: lists of utterance ids.
        ends: end of speech in seconds; utterances without one are left out.
        out: directory for ``flushed_<chunk size>.json``.

    Returns:
        ``{utterance: Flushed}`` and ``{utterance: reason}`` of those whose audio could not be used.
    """
    spoken = [[utterance for utterance in batch if utterance in ends] for batch in batches]
    content = _over_set({**settings, "ends": ends}, [batch for batch in spoken if batch], out, "flushed")
    found = {utterance: stream_latency.Flushed.from_json(each) for utterance, each in content["runs"].items()}
    return found, content["failed"]


def _over_set(settings: dict[str, Any], batches: list[list[str]], out: Path, how: str) -> dict[str, Any]:
    """Return the ``runs`` and the ``failed`` of a set, by utterance, as ``<how>_<chunk size>.json`` has them."""
    task = {"settings": settings, "batches": batches}
    size = f"{settings['stream']['chunk_size']:g}"
    path, parts, name = out / f"{how}_{size}.json", out / f".parts_{how}_{size}", Path(settings["dump"]).name
    content = batch_jobs.summary_of(path, task)
    if content is None or content["failed"]:
        title = f"{how} {name}, chunks of {size} s"
        items = batch_jobs.run_batches(batches, make_worker, settings, parts, settings["nj"], title, crashed=crashed)
        items = sorted(items, key=lambda item: item["utterance"])
        content = {
            "task": batch_jobs.digest(task),
            "runs": {item["utterance"]: item["run"] for item in items if "run" in item},
            "failed": {item["utterance"]: item["failed"] for item in items if "failed" in item},
        }
        with atomic_write(path) as stream:
            json.dump(content, stream, ensure_ascii=False)
        batch_jobs.finish(parts)
        print(f"{path}: {len(content['runs'])} utterances {how}, {len(content['failed'])} failed", flush=True)
    else:
        print(f"{path}: {len(content['runs'])} utterances were {how} before by the same weights and settings")
    return content


def stream_through(
    stream: "Stream",
    samples: "np.ndarray",
    sample_rate: int,
    block: int,
    clock: Callable[[], float] = time.perf_counter,
) -> stream_latency.Run:
    """Push audio through an open stream in blocks, as fast as it goes, and close it.

    ``close`` comes at once after the last block.  A push that completes n chunks counts as n pushes of equal compute
    time.

    Args:
        stream: without audio so far.
        samples: (n,) audio.
        sample_rate: of the audio in Hz.
        block: samples of a push.
        clock: tells the time in seconds.
    """
    return _played(stream, samples, sample_rate, block, stream.close, clock)[0]


def flush_at_the_end(
    stream: "Stream",
    samples: "np.ndarray",
    sample_rate: int,
    block: int,
    clock: Callable[[], float] = time.perf_counter,
) -> stream_latency.Flushed:
    """Push audio that ends with the speech through an open stream in blocks, and flush it; see :func:`stream_through`.

    ``flush`` comes when the last block has arrived and was pushed.
    """
    run, finish = _played(stream, samples, sample_rate, block, stream.flush, clock)
    return stream_latency.Flushed(run, finish - len(samples) / sample_rate)


def _played(
    stream: "Stream",
    samples: "np.ndarray",
    sample_rate: int,
    block: int,
    last: "Callable[[], Update]",
    clock: Callable[[], float],
) -> tuple[stream_latency.Run, float]:
    """Push audio in blocks, then call ``last``; return the run and the wall clock at its end, in seconds."""
    blocks = [samples[start : start + block] for start in range(0, len(samples), block)]
    steps: list[Callable[[], Update]] = [functools.partial(stream.push, samples) for samples in blocks]
    steps.append(last)
    words: list[stream_latency.Emission] = []
    per_chunk: list[float] = []
    total, finish, received, chunks = 0.0, 0.0, 0, 0
    for step, new in zip(steps, [*map(len, blocks), 0], strict=True):
        begin = clock()
        update = step()
        seconds = clock() - begin
        received += new
        arrived = received / sample_rate
        finish = max(finish, arrived) + seconds
        total += seconds
        words += [stream_latency.Emission(word.text, word.start, word.end, arrived, finish) for word in update.words]
        new_chunks, chunks = _chunks(stream) - chunks, _chunks(stream)
        per_chunk += [seconds / max(1, new_chunks)] * new_chunks
    run = stream_latency.Run(tuple(words), len(samples) / sample_rate, total, tuple(per_chunk), stream.capped)
    return run, finish


def _chunks(stream: "Stream") -> int:
    """Count the chunks that the stream has decoded so far."""
    return timeline.num_chunks(timeline.gap_frames(stream.seconds), stream.chunking.chunk)


def make_worker(settings: dict[str, Any]) -> Callable[[list[str]], list[dict[str, Any]]]:
    """Return a worker of :func:`~espnet_speechllm_xl.sets.batch_jobs.run_batches`: utterance ids -> one object each."""
    import numpy as np

    from espnet_speechllm_xl.corpus.audio import AudioError
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(**settings["load"])
    rate = speech2text.sample_rate
    audio, tail = SetAudio(Path(settings["dump"]), rate), np.zeros(settings["tail"], np.float32)

    ends = settings.get("ends")  # of speech; None: recordings are streamed whole

    def measured(samples: "np.ndarray", end: float | None = None) -> dict[str, Any]:
        samples, stream = np.concatenate([samples, tail]), speech2text.stream(**settings["stream"])
        if end is None:
            return dataclasses.asdict(stream_through(stream, samples, rate, settings["block"]))
        return dataclasses.asdict(flush_at_the_end(stream, samples[: round(end * rate)], rate, settings["block"]))

    measured(np.zeros(3 * rate, np.float32))  # the first calls of a process are slow

    def work(utterances: list[str]) -> list[dict[str, Any]]:
        items = []
        for utterance in utterances:
            try:
                end = ends and ends[utterance]
                items.append({"utterance": utterance, "run": measured(audio.read(utterance).samples, end)})
            except AudioError as error:
                items.append(crashed(utterance, str(error)))
        return items

    return work
