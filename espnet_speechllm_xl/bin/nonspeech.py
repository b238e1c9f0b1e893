"""``nonspeech``: what a stream writes where nobody says anything to it, and whether it ends sentences on time.

With ``--out`` there are ``NONSPEECH.md`` and ``nonspeech.json``.
"""

import argparse
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from espnet_speechllm_xl.errors import UserError

if TYPE_CHECKING:
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.sets.nonspeech import Audio, Noise, Utterance

GENERATED = "silence hum@-30 white@-25 white@-40 pink@-25 pink@-40 sweeps@-25 clicks@-10 chords@-25".split()
OF_A_SET = ["babble@-25"]
IN_PAUSES = ["silence", "pink@-50"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--dump", metavar="DIR", help="formatted set (dump/raw/SET): for babble, pauses and endpoints")
    parser.add_argument("--reference", metavar="CTM", help="word times of the set (default: its ref.ctm, if there)")
    parser.add_argument(
        "--kinds", nargs="*", type=_noise, metavar="KIND@DB",
        help="audio without speech, and its level in dB of full scale; silence and pauses have none (default: "
        f"{' '.join(GENERATED)}; with --dump also {' '.join(OF_A_SET)}, and pauses where word times are known)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=duration, default=10.0, help="of each kind (default %(default)s)")
    parser.add_argument("--seed", type=at_least(int, 0), default=0, help="of the audio (default %(default)s)")
    parser.add_argument(
        "--between", nargs="*", type=_noise, metavar="KIND@DB",
        help="what the pauses between sentences hold; endpoints are measured for each (default: "
        f"{' '.join(IN_PAUSES)})",
    )  # fmt: skip
    parser.add_argument(
        "--pause", type=pause, default=4.0, metavar="SECONDS", help="between two sentences (default %(default)s)"
    )
    parser.add_argument(
        "--late", type=duration, metavar="SECONDS",
        help="an endpoint that comes so much behind the last word is late (default: endpoint_silence, the algorithmic "
        "latency, and 0.2 s by which word times may differ)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="directory for NONSPEECH.md and nonspeech.json")
    add_config_arguments(parser, StreamConfig)
    add_model_arguments(parser)


def _noise(text: str) -> "Noise":
    from espnet_speechllm_xl.sets.nonspeech import parse_noise

    try:
        return parse_noise(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(args: argparse.Namespace) -> int:
    """Print the table of words and, with a set, that of endpoints; returns 0."""
    from espnet_speechllm_xl.evaluation.nonspeech_report import endpoints_table, words_table, write_report
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.sets.nonspeech import Audio, late_after, measure_nonspeech, read_utterances

    if args.between and args.dump is None:
        raise UserError("--between is of the pauses between sentences of a set: give one (--dump)")
    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    options, rate = stream_settings(args), speech2text.sample_rate
    stream = speech2text.stream(**options)
    limit = args.late or late_after(stream)
    if args.dump and args.between != [] and math.isinf(limit):
        raise UserError(
            "--endpoint-silence is inf: no endpoint can be on time; give --late, or --between without kinds"
        )
    utterances = read_utterances(Path(args.dump), rate, args.reference) if args.dump else []
    audio = Audio(rate, utterances, args.seed)
    words = measure_nonspeech(speech2text, options, audio, _kinds(args, utterances), args.minutes)
    print("\n".join(words_table(words)), flush=True)
    endpoints = _endpoints(args, speech2text, options, audio, utterances, limit) if utterances else []
    if endpoints:
        print("\n".join(["", *endpoints_table(endpoints), f"late: more than {limit:.2f} s behind the last word"]))
    config = stream.search.config
    print(f"search {config.method}, CTC {config.ctc_weight:g}")
    if args.out:
        setup = {"model": args.model, "set": args.dump, "seed": args.seed, "search": config.method,
                 "beam_size": config.beam_size, "ctc_weight": config.ctc_weight, "pause_seconds": args.pause,
                 "late_seconds": limit, **{name: str(value) for name, value in options.items()}}  # fmt: skip
        write_report(Path(args.out), setup, words, endpoints, shlex.join(["speechllm-xl", *args.argv]))
    return 0


def _kinds(args: argparse.Namespace, utterances: "list[Utterance]") -> "list[Noise]":
    """Return the kinds of audio that are measured."""
    if args.kinds is not None:
        return args.kinds
    of_a_set = [*OF_A_SET, *(["pauses"] if any(each.words for each in utterances) else [])] if utterances else []
    return [_noise(text) for text in [*GENERATED, *of_a_set]]


def _endpoints(
    args: argparse.Namespace,
    speech2text: "Speech2Text",
    options: dict[str, Any],
    audio: "Audio",
    utterances: "list[Utterance]",
    limit: float,
) -> list[dict[str, Any]]:
    """Return the rows of the table of endpoints."""
    from espnet_speechllm_xl.evaluation.nonspeech_report import endpoint_figures
    from espnet_speechllm_xl.sets.nonspeech import measure_endpoints

    noises = [_noise(text) for text in IN_PAUSES] if args.between is None else args.between
    found = measure_endpoints(speech2text, options, audio, utterances, noises, args.pause, limit)
    return [{"audio": noise.title, **endpoint_figures(each)} for noise, each in found]
