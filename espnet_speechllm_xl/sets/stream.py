"""Streaming a dump set."""

import json
from pathlib import Path

BATCH = 8  # utterances after which a killed run goes on


def stream_set(settings, batches, out):
    """``{utterance: Run}`` and ``{utterance: why its audio was not read}``, from an earlier run where there is one."""
    from espnet_speechllm_xl.evaluation.stream_latency import Run
    from espnet_speechllm_xl.files import atomic_write
    from espnet_speechllm_xl.sets import batch_jobs
    from espnet_speechllm_xl.sets.decode import crashed

    task = {"settings": settings, "batches": batches}
    size = f"{settings['stream']['chunk_size']:g}"
    path, parts, name = out / f"streamed_{size}.json", out / f".parts_{size}", Path(settings["dump"]).name
    content = batch_jobs.summary_of(path, task)
    if content is None or content["failed"]:
        title = f"stream {name}, chunks of {size} s"
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
        print(f"{path}: {len(content['runs'])} utterances streamed, {len(content['failed'])} failed", flush=True)
    else:
        print(f"{path}: {len(content['runs'])} utterances were streamed before by the same weights and settings")
    return {utterance: Run.from_json(values) for utterance, values in content["runs"].items()}, content["failed"]


def make_worker(settings):
    """Worker of :func:`~espnet_speechllm_xl.sets.batch_jobs.run_batches`: utterance ids -> one JSON object each."""
    from dataclasses import asdict

    import numpy as np

    from espnet_speechllm_xl.corpus.audio import AudioError, read_audio
    from espnet_speechllm_xl.corpus.kaldi import read_table
    from espnet_speechllm_xl.evaluation.stream_latency import stream_through
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(**settings["load"])
    audio, rate = read_table(Path(settings["dump"]) / "wav.scp"), speech2text.sample_rate
    tail = np.zeros(settings["tail"], np.float32)

    def measured(samples):
        samples = np.concatenate([samples, tail])
        return stream_through(speech2text.stream(**settings["stream"]), samples, rate, settings["block"])

    measured(np.zeros(3 * rate, np.float32))  # the first calls of a process are slow

    def work(utterances):
        items = [{"utterance": utterance} for utterance in utterances]
        for item in items:
            try:
                if item["utterance"] not in audio:
                    raise AudioError("missing", "not in wav.scp")
                item["run"] = asdict(measured(read_audio(audio[item["utterance"]], rate, notes={})))
            except AudioError as error:
                item["failed"] = str(error)
        return items

    return work
