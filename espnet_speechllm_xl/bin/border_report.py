"""``python3 -m espnet_speechllm_xl.bin.border_report``: what goes wrong at the borders of chunks.

Of a decoded set, how many errors lie there; of a model, whether a chunk takes up a word that the one before left out.
"""

import argparse
import sys
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.bin.options import at_least
from espnet_speechllm_xl.errors import UserError

PROGRAM = "border_report"


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python3 -m espnet_speechllm_xl.bin.{PROGRAM}",
        description="Print the errors of a decoded set by the place of the words with respect to the chunk boundaries, "
        "or what a model thinks of the words that end just before one.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--decoded", metavar="DIR", help="exp/<model>/decode_*/<set>")
    what.add_argument("--model", help="model directory, or a file made by speechllm-xl pack")
    parser.add_argument("--dump", required=True, metavar="DIR", help="dump/raw/<set>")
    parser.add_argument("--reference", metavar="CTM", help="times of the words (default: ref.ctm in the dump)")
    parser.add_argument(
        "--chunk", type=at_least(int, 1), metavar="FRAMES", help="of 40 ms (default: that of the model)"
    )
    parser.add_argument("--device", default="cpu", help="of --model: cpu or cuda (default %(default)s)")
    parser.add_argument(
        "--near",
        type=at_least(int, 0),
        default=3,
        metavar="FRAMES",
        help="from a boundary that are near it (default %(default)s)",
    )
    return parser


def main(argv=None):
    """Print the report; returns 0, 1 when a file is missing or damaged or nothing could be counted."""
    args = get_parser().parse_args(argv)
    return guard.run(lambda: _main(args), PROGRAM, bad_input=1)


def _main(args):
    from espnet_speechllm_xl.ctm import read_ctm

    try:
        dump = Path(args.dump)
        settings = dump, read_ctm(args.reference or dump / "ref.ctm"), args.chunk, args.near
        if args.model:
            lines, counted = model_report(args.model, *settings, args.device)
        else:
            lines, counted = report(Path(args.decoded), *settings)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} is not there: give --dump a formatted set (word times: its ref.ctm, or --reference), "
            "--decoded a set of a decode_* directory"
        ) from error
    print("\n".join(lines))
    return 0 if counted else 1


def report(decoded, dump, times, chunk, near):
    """Lines of Markdown about a decoded set, and the number of utterances counted; raises UserError or OSError."""
    from espnet_speechllm_xl import metrics
    from espnet_speechllm_xl.borders import border_errors
    from espnet_speechllm_xl.kaldi import read_text
    from espnet_speechllm_xl.timeline import chunk_seconds

    chunk = chunk_of_decoded(decoded) if chunk is None else chunk
    references = read_text(dump / "text")
    found = border_errors(references, read_text(decoded / "text"), times, chunk, near)
    lines = ["|word|words|deleted (%)|substituted (%)|", "|---|---|---|---|"]
    for name, counts in [*found.counts.items(), ("all", sum(found.counts.values(), start=metrics.Counts()))]:
        shares = (f"{counts.percent(part):.2f}" for part in (counts.deletions, counts.substitutions))
        lines.append(f"|{name}|{counts.words}|{'|'.join(shares)}|")
    lines += [
        "",
        f"Chunks of {chunk_seconds(chunk):.2f} s; 'just' is within {chunk_seconds(near):.2f} s. "
        f"Insertions: {found.insertions}. {_counts(references, found.left_out)}",
    ]
    return lines + _reasons(found.left_out), len(references) - len(found.left_out)


def model_report(model, dump, times, chunk, near, device):
    """Lines of Markdown about a model, and the number of utterances counted; raises UserError or OSError."""
    from tqdm import tqdm

    from espnet_speechllm_xl.audio import read_audio
    from espnet_speechllm_xl.borders import usable
    from espnet_speechllm_xl.held_back import border_words
    from espnet_speechllm_xl.inference import Speech2Text
    from espnet_speechllm_xl.kaldi import read_table, read_text
    from espnet_speechllm_xl.text import words_of
    from espnet_speechllm_xl.timeline import chunk_seconds

    speech2text = Speech2Text.from_pretrained(model, device, ctc_weight=0.0)
    chunking = speech2text.chunking
    if chunking is None or (chunk or chunking.chunk) is None or not hasattr(speech2text.model, "decode_aligned"):
        raise UserError(f"{model} does not write chunk by chunk: give a SpeechLLM-XL, ReaLLM or chunked AED")
    chunking = chunking if chunk is None else chunking.resized(chunk)
    if not 0 < near < chunking.chunk:
        raise UserError(f"{near} frames near a boundary do not fit into a chunk of {chunking.chunk}: give fewer")
    texts, audio = read_text(dump / "text"), read_table(dump / "wav.scp")
    found, left_out = [], {}
    for utterance, text in tqdm(texts.items(), desc=dump.name, disable=None):
        timed, reason = usable(times.get(utterance), words_of(text))
        reason = reason if utterance in audio else "not in wav.scp"
        try:
            if reason is None:
                speech = read_audio(audio[utterance], speech2text.sample_rate, notes={})
                found += border_words(speech2text.model, speech2text.tokenizer, chunking, speech, text, timed, near)
        except UserError as error:
            reason = str(error)
        if reason is not None:
            left_out[utterance] = reason
    lines = [
        *_table(found, near),
        "",
        f"frames: from the word's last to the last of its chunk of {chunk_seconds(chunking.chunk):.2f} s; the rest are "
        f"mean probabilities. {_counts(texts, left_out)}",
    ]
    return lines + _reasons(left_out), len(texts) - len(left_out)


def _table(found, near):
    lines = ["|frames|words|written|`$` instead|taken up, if left out|lost|", "|---" * 6 + "|"]
    for distance in [*range(near), "all"]:
        chosen = [word for word in found if distance in ("all", word.distance)]
        columns = ([getattr(word, name) for word in chosen] for name in ("written", "ended", "taken_up", "lost"))
        shares = (f"{sum(column) / len(column):.3f}" if column else "-" for column in columns)
        lines.append(f"|{distance}|{len(chosen)}|{'|'.join(shares)}|")
    return lines


def _counts(utterances, left_out):
    counted = len(utterances) - len(left_out)
    return f"Utterances: {len(utterances)}, counted: {counted}, left out: {len(left_out)}."


def _reasons(left_out):
    from espnet_speechllm_xl.metrics import some_names

    reasons = sorted(set(left_out.values()))
    named = {reason: some_names([name for name, why in left_out.items() if why == reason]) for reason in reasons}
    return [f"Left out, {reason}: {names}." for reason, names in named.items()]


def chunk_of_decoded(decoded):
    """Frames of the chunks that a set was decoded with, or its model's; raises UserError when there are none."""
    from espnet_speechllm_xl.paper import read_config
    from espnet_speechllm_xl.report import read_info
    from espnet_speechllm_xl.timeline import frames_from_seconds

    seconds = read_info(decoded / "decode.json").get("settings", {}).get("chunk_size")
    if seconds is not None:
        chunk = frames_from_seconds(seconds, "chunk size")
    else:
        chunk = ((read_config(decoded.parent.parent) or {}).get("chunking_conf") or {}).get("chunk")
    if chunk is None:
        raise UserError(f"{decoded} was decoded without chunks, or its model is not above it: give --chunk FRAMES")
    return chunk


if __name__ == "__main__":
    sys.exit(main())
