"""``latency``: stream a dump set at several chunk sizes; how late words come, how right they are, what it computes.

OUT gets ``LATENCY.md``, ``latency.json``, ``latency.png``, and ``streamed_<chunk size>.json`` with every word and push:
a chunk size that was streamed before by the same weights and settings is only compared again.
"""

import dataclasses
import math
import shlex
import sys
from pathlib import Path

from espnet_speechllm_xl.bin.options import (
    add_config_arguments,
    add_model_arguments,
    at_least,
    duration,
    load_settings,
    pause,
    stream_settings,
)
from espnet_speechllm_xl.config import StreamConfig
from espnet_speechllm_xl.sets.stream import BATCH, stream_set


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("--dump", required=True, metavar="DIR", help="dump set to stream (dump/raw/SET)")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory for LATENCY.md, its figures and its plot"
    )
    parser.add_argument("--reference", metavar="CTM", help="when words ended (default: ref.ctm of the set, if there)")
    parser.add_argument(
        "--chunk-sizes",
        type=_chunk_sizes,
        metavar="SECONDS,...",
        help="default: those that the model was trained with; inf is allowed",
    )
    parser.add_argument(
        "--block", type=duration, default=0.04, metavar="SECONDS", help="audio pushed at a time (default %(default)s)"
    )
    parser.add_argument(
        "--tail",
        type=pause,
        default=0.0,
        metavar="SECONDS",
        help="silence pushed after each recording, as if the microphone stayed open (default %(default)s)",
    )
    parser.add_argument(
        "--nj",
        type=at_least(int, 1),
        default=1,
        help="processes (default %(default)s; more disturb one another's compute times)",
    )
    add_model_arguments(parser, chunk_size=False)
    add_config_arguments(parser, StreamConfig)
    parser.set_defaults(endpoint_silence=math.inf, endpoint_length=math.inf)


def _chunk_sizes(text):
    return list(dict.fromkeys(float(part) for part in text.split(",")))


_chunk_sizes.__name__ = "list of seconds"  # for argparse's message


def main(args):
    """Measure and report; returns the exit code, 1 when some audio could not be read."""
    from espnet_speechllm_xl import experiment
    from espnet_speechllm_xl.corpus.kaldi import read_table, read_text, write_table
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.evaluation import latency_report, stream_latency
    from espnet_speechllm_xl.sets import batch_jobs
    from espnet_speechllm_xl.sets.audio import sample_counts

    dump, out = Path(args.dump), Path(args.out)
    texts, audio = read_text(dump / "text"), read_table(dump / "wav.scp")
    if not audio or not set(audio) <= set(texts):
        raise UserError(f"{dump}: wav.scp is empty or names utterances that text lacks: run the format stage")
    if not any(texts[utterance] for utterance in audio):
        raise UserError(f"{dump}: the texts hold no words: there is nothing to compare")
    reference, times = _reference(args.reference, dump)
    chunkings, rate, search = _chunkings(args)
    batches = batch_jobs.batches_by_length({**dict.fromkeys(audio, 0), **sample_counts(dump)}, BATCH)
    shared = {
        "load": _load(args),
        "search": dataclasses.asdict(search),
        "dump": str(dump),
        "stamp": experiment.stamp(args.model, dump / "progress.jsonl", dump / "wav.scp"),
        "block": max(1, round(args.block * rate)),
        "tail": round(args.tail * rate),
        "nj": args.nj,
    }
    sizes, failed = [], {}
    for chunking in chunkings:
        runs, failures = stream_set({**shared, "stream": chunking["stream"]}, batches, out)
        failed.update(failures)
        figures = stream_latency.summary(runs, stream_latency.compare(runs, texts, times))
        sizes.append({**chunking["figures"], **figures})
    setup = {
        "model": args.model,
        "set": str(dump),
        "reference": reference and str(reference),
        **{name: str(value) for name, value in stream_settings(args).items()},
        "search": search.method,
        "beam_size": search.beam_size,
        "ctc_weight": search.ctc_weight,
        "device": args.device,
        "block_seconds": args.block,
        "tail_seconds": args.tail,
        "nj": args.nj,
        "failed": len(failed),
    }
    print("\n".join(latency_report.latency_report(out, setup, sizes, shlex.join(["speechllm-xl", *args.argv]))))
    write_table(out / "failed", failed)
    print(f"written: {out / 'LATENCY.md'}")
    for utterance, reason in failed.items():
        print(f"speechllm-xl latency: failed: {utterance}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _reference(path, dump):
    """The CTM file and its words by utterance; None and None where there is none and none was asked for."""
    from espnet_speechllm_xl.corpus.ctm import read_ctm
    from espnet_speechllm_xl.errors import UserError

    file = Path(path or dump / "ref.ctm")
    if file.is_file():
        return file, read_ctm(file)
    if path:
        raise UserError(f"--reference {path}: no such file: give a CTM with the word times of {dump}")
    return None, None


def _load(args):
    """The context belongs to the streams: it need not fit the chunks of training."""
    return {name: value for name, value in load_settings(args).items() if name != "context"}


def _chunkings(args):
    """Stream options and figures of each chunk size, the sample rate, the search; raises UserError before any work."""
    from espnet_speechllm_xl import timeline
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(**_load(args))
    encoder, found = speech2text.model.acoustic.encoder.config, []
    trained = speech2text.stream().chunking  # raises for a model that cannot stream
    known = [timeline.chunk_seconds(chunk) for chunk in trained.train_chunks or [trained.chunk]]
    for seconds in args.chunk_sizes or known:
        options = {**stream_settings(args), "chunk_size": seconds, "context": args.context}
        stream = speech2text.stream(**options)
        chunking, search = stream.chunking, stream.search.config
        options["search"] = search.method
        values = {
            "chunk_seconds": seconds,
            "context_seconds": timeline.context_seconds(chunking),
            "algorithmic_seconds": timeline.latency_seconds(encoder, chunking),
        }
        figures = {name: round(value, 3) if value < math.inf else None for name, value in values.items()}
        found.append({"stream": options, "figures": figures})
    return found, speech2text.sample_rate, search
