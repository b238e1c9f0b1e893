"""``decode``: transcribe a dump set into ESPnet's layout."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl.bin.doubts import say
from espnet_speechllm_xl.bin.options import (
    add_jobs_arguments,
    add_model_arguments,
    add_phrases_argument,
    add_prompt_argument,
    at_least,
    load_settings,
)

if TYPE_CHECKING:
    from espnet_speechllm_xl.sets.decode import DecodedSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--dump", required=True, help="dump set to decode (dump/raw/SET)")
    parser.add_argument("--out", required=True, help="directory for text, token, token_int, score, words.ctm, ...")
    parser.add_argument("--segments", metavar="FILE", help="Kaldi's: also write recordings.ctm, words by recording")
    prompts = parser.add_mutually_exclusive_group()
    add_prompt_argument(prompts)
    text = "lines `utterance prompt`, as in Kaldi's text; an utterance without a line has none"
    prompts.add_argument("--prompts", metavar="FILE", help=text)
    phrases = parser.add_mutually_exclusive_group()
    add_phrases_argument(phrases)
    text = "lines `utterance phrase`, any number for each: phrases that are expected in this utterance only"
    phrases.add_argument("--utterance-phrases", metavar="FILE", help=text)
    parser.add_argument(
        "--batch-size", type=at_least(int, 1), default=8, help="utterances decoded together (default %(default)s)"
    )
    add_jobs_arguments(parser)
    add_model_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Decode; returns the exit code, 1 when some audio could not be read."""
    from espnet_speechllm_xl.evaluation.doubts import of_hypotheses
    from espnet_speechllm_xl.sets.decode import decode_set

    out = Path(args.out)
    places = Path(args.dump), out, load_settings(args), args.segments
    given = args.prompt, args.prompts, args.phrases, args.utterance_phrases
    found = decode_set(*places, args.batch_size, args.nj, args.shard, *given)
    if found is None:
        return 0
    if found.done_before:
        print(f"{out}: {_counted(found.summary)} were decoded before by the same weights and settings")
    else:
        _print_summary(out, found)
    say(of_hypotheses(found.texts, str(out)))
    return 1 if found.failed else 0


def _counted(summary: dict[str, Any]) -> str:
    counts = {"a prompt": summary.get("prompted"), "phrases": summary.get("with_phrases")}
    given = "".join(f", {count} of them with {what}" for what, count in counts.items() if count)
    return f"{summary['utterances']} utterances{given}{',' if given else ''}"


def _print_summary(out: Path, found: "DecodedSet") -> None:
    from espnet_speechllm_xl.evaluation.decoded_sets import real_time_factor
    from espnet_speechllm_xl.evaluation.markdown import speed_text

    summary = found.summary
    capped = "" if summary["capped"] is None else f"{summary['capped']} chunks hit the token cap; "
    print(
        f"{out}: {_counted(summary)} decoded, {len(found.failed)} failed; {capped}"
        f"{speed_text(real_time_factor(summary))}"
    )
    for kind, (count, utterance, text) in summary["remarks"].items():
        print(f"  remark: {count} {kind}, the first: {utterance}: {text}")
    for utterance, reason in found.failed.items():
        print(f"  failed: {utterance}: {reason}")
