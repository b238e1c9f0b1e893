"""``robustness``: how a model stands quiet and loud recordings, and audio that is cut where its last word ends."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from espnet_speechllm_xl.bin.options import add_model_arguments, at_least, load_settings

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.evaluation.significance import Blocks
    from espnet_speechllm_xl.inference import Speech2Text


PADDING_SECONDS = 0.1  # of zeros, behind cut audio: what users did who missed the last word


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--dump", required=True, metavar="DIR", help="formatted set with text (dump/raw/SET)")
    parser.add_argument(
        "--levels", type=_decibels, nargs="*", default=[10, -10, -20, -30, -40], metavar="DB",
        help="changes of the level, rounded and clipped as 16 bits do (default: 10 -10 -20 -30 -40)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=at_least(int, 1), default=8, help="utterances (default %(default)s)")
    add_model_arguments(parser)


def _decibels(text: str) -> float:
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text} is no number of decibels")
    return float(text)


class Utterance(NamedTuple):
    """What is decoded: samples (n,), the text, the sample at which the last word ends (None: not known)."""

    samples: "np.ndarray"
    text: str
    end: int | None


def main(args: argparse.Namespace) -> int:
    """Print a table with a row for each way in which the audio was changed; returns 0.

    Raises UserError for a set without text or audio, and for a model that is none.
    """
    from espnet_speechllm_xl.evaluation import significance
    from espnet_speechllm_xl.evaluation.markdown import markdown_table
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    utterances, speakers = _read(Path(args.dump), speech2text)
    timed = {name: each for name, each in utterances.items() if each.end is not None}
    rows, base = [], {}
    for title, change, cut in _changes(args.levels, speech2text.sample_rate):
        chosen = timed if cut else utterances
        if not chosen:
            continue
        print(f"{title}: {len(chosen)} utterances", file=sys.stderr, flush=True)
        hypotheses = _decode(speech2text, {name: change(each) for name, each in chosen.items()}, args.batch_size)
        found = _counted({name: each.text for name, each in chosen.items()}, hypotheses, speakers)
        first = base.setdefault(cut, found)
        minus = "-" if found is first else significance.difference(found, first).text("{:+.1f}")
        rate = significance.error_rate(found).text("{:.1f}")
        rows.append([title, rate, minus, f"{_last_words(chosen, hypotheses)} of {len(chosen)}"])
    print("\n".join(markdown_table(["audio", "WER (%)", "minus the first of its kind", "last word right"], rows)))
    print(f"search {speech2text.search.method}; 95 % intervals; blocks: {base[False].described()}")
    if len(timed) < len(utterances):
        print(f"not cut: {len(utterances) - len(timed)} utterances whose words have no times (ref.ctm)")
    return 0


def _changes(levels: list[float], rate: int) -> list[tuple[str, Callable[[Utterance], "np.ndarray"], bool]]:
    """(what the table calls it, the samples (n,) that are decoded of an utterance, whether it is cut)."""
    import numpy as np

    from espnet_speechllm_xl.corpus.audio import with_gain

    padding = np.zeros(round(PADDING_SECONDS * rate), np.float32)
    return [
        ("as it is", lambda each: each.samples, False),
        *((f"{gain:+g} dB", lambda each, gain=gain: with_gain(each.samples, gain), False) for gain in levels),
        ("cut where the last word ends", lambda each: each.samples[: each.end], True),
        (
            f"the same, {PADDING_SECONDS:g} s of zeros behind",
            lambda each: np.concatenate([each.samples[: each.end], padding]),
            True,
        ),
    ]


def _read(dump: Path, speech2text: "Speech2Text") -> tuple[dict[str, Utterance], dict[str, str]]:
    """``{utterance: Utterance}`` of a set and ``{utterance: speaker}``."""
    from espnet_speechllm_xl.corpus.kaldi import KaldiError, read_reference_times, read_table, read_text
    from espnet_speechllm_xl.evaluation.metrics import some_names
    from espnet_speechllm_xl.sets.audio import sample_counts

    sample_counts(dump)
    if not (dump / "text").exists():
        raise KaldiError(f"{dump} has no text: there is nothing to compare with; give a set that has one")
    audio, times = read_table(dump / "wav.scp"), read_reference_times(dump) or {}
    texts, utterances = read_text(dump / "text"), {}
    if lacking := sorted(texts.keys() - audio.keys()):
        raise KaldiError(f"{dump / 'wav.scp'} lacks {some_names(lacking)}, which are in text: format the set again")
    for name, text in texts.items():
        words, end = times.get(name), None
        samples = speech2text.load(audio[name], notes={})
        if words and text.split():
            end = round(words[-1].end * speech2text.sample_rate)
        utterances[name] = Utterance(samples, text, end)
    return utterances, read_table(dump / "utt2spk")


def _decode(speech2text: "Speech2Text", audio: dict[str, "np.ndarray"], batch_size: int) -> dict[str, str]:
    """``{utterance: text}`` of ``{utterance: samples}``; those of similar length together."""
    from espnet_speechllm_xl.sets.batch_jobs import batches_by_length

    texts = {}
    for part in batches_by_length({name: len(samples) for name, samples in audio.items()}, batch_size):
        nbest = speech2text.transcribe_batch([audio[name] for name in part])
        texts.update({name: best[0].text for name, best in zip(part, nbest, strict=True)})
    return texts


def _counted(references: dict[str, str], hypotheses: dict[str, str], speakers: dict[str, str]) -> "Blocks":
    from espnet_speechllm_xl.evaluation import significance

    of_these = {name: speakers[name] for name in references if name in speakers}
    rows, _ = significance.counted(references, hypotheses, of_these, "words", "hypotheses")
    return significance.blocks([rows])


def _last_words(utterances: dict[str, Utterance], hypotheses: dict[str, str]) -> int:
    return sum(hypotheses[name].split()[-1:] == each.text.split()[-1:] for name, each in utterances.items())
