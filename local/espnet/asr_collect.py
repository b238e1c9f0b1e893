"""Puts what ESPnet's decoding jobs wrote where ``speechllm-xl score`` finds it.

<parts>/<job>/{1best_recog/{text,token,token_int,score},speed.json}  ->  <out>/{text,token,token_int,score,decode.json}
"""

import argparse
import json
import sys
from pathlib import Path

from espnet_speechllm_xl.bin import doubts, guard
from espnet_speechllm_xl.corpus.kaldi import read_table, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import decoded_sets
from espnet_speechllm_xl.evaluation.doubts import of_hypotheses
from espnet_speechllm_xl.evaluation.markdown import speed_text
from espnet_speechllm_xl.evaluation.metrics import some_names

TABLES = (decoded_sets.TEXT, decoded_sets.TOKENS, decoded_sets.TOKEN_IDS, decoded_sets.SCORES)  # ESPnet's names


def collect(parts, dump, out, settings, sample_rate):
    """Join the jobs below ``parts``; returns the contents of ``decode.json``.

    Args:
        parts: directory of the jobs.
        dump: the set that was decoded; every utterance of its ``wav.scp`` must be there.
        out: where the tables and ``decode.json`` are written, the latter last.
        settings: JSON object for ``decode.json``, ``device`` in it.
        sample_rate: of the dump, Hz.

    Raises:
        UserError: an utterance was not decoded, or a job left no files.
    """
    jobs = sorted(path for path in Path(parts).iterdir() if path.is_dir())
    tables = {name: {} for name in TABLES}
    for job in jobs:
        for name, table in tables.items():
            table.update(read_table(job / "1best_recog" / name, empty_values=True))
    speeds = [json.loads((job / "speed.json").read_text(encoding="utf-8")) for job in jobs]
    lacking = sorted(set(read_table(Path(dump) / "wav.scp")) - set(tables["text"]))
    if lacking:
        raise UserError(f"{parts}: {len(lacking)} utterances were not decoded, first {some_names(lacking)}")
    for name, table in tables.items():
        write_table(Path(out) / name, table)
    summary = {
        "utterances": len(tables["text"]),
        "failed": 0,  # ESPnet stops at the first audio that it cannot read
        "audio_seconds": sum(speed["samples"] for speed in speeds) / sample_rate,
        "seconds": sum(speed["seconds"] for speed in speeds),
        "device": settings["device"],
        "settings": settings,
    }
    decoded_sets.write_info(Path(out), summary)
    return summary


def main(argv=None):
    """Run :func:`collect`; returns the exit code."""
    parser = argparse.ArgumentParser(description="Join the output of ESPnet's decoding jobs.")
    parser.add_argument("--parts", required=True, help="directory of the jobs' output")
    parser.add_argument("--dump", required=True, help="dump set that was decoded (dump/raw/SET)")
    parser.add_argument("--out", required=True, help="directory for text, token, token_int, score, decode.json")
    parser.add_argument("--device", default="cpu", help="for decode.json")
    parser.add_argument("--config", required=True, help="decoding options, for decode.json")
    parser.add_argument("--sample-rate", type=int, required=True, help="Hz, of the dump")
    args = parser.parse_args(argv)
    return guard.run(lambda: _collect(args), "asr_collect: error", bad_input=1)


def _collect(args):
    settings = {"device": args.device, "config": Path(args.config).name}
    summary = collect(args.parts, args.dump, args.out, settings, args.sample_rate)
    speed = speed_text(decoded_sets.real_time_factor(summary))
    print(f"{args.out}: {summary['utterances']} utterances decoded; {speed}")
    doubts.say(of_hypotheses(decoded_sets.read_hypotheses(Path(args.out)), args.out))


if __name__ == "__main__":
    sys.exit(main())
