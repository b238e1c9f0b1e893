"""How well a model hears quiet and loud recordings of a dump set, and audio that is cut where its last word ends.

Shape legend: ``N`` samples.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from espnet_speechllm_xl.corpus.kaldi import KaldiError, read_reference_times, read_table, read_text
from espnet_speechllm_xl.evaluation import significance
from espnet_speechllm_xl.evaluation.letter_case import compared
from espnet_speechllm_xl.evaluation.metrics import some_names
from espnet_speechllm_xl.evaluation.scoring_inputs import NOTHING_IGNORED, Ignored
from espnet_speechllm_xl.sets.audio import SetAudio, sample_counts
from espnet_speechllm_xl.sets.batch_jobs import batches_by_length

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.inference import Speech2Text

PADDING_SECONDS = 0.1  # of zeros behind cut audio: users who missed the last word have added them


class Utterance(NamedTuple):
    """A recording to decode: samples (N,), the text, the sample at which the last word ends (None: not known)."""

    samples: "np.ndarray"
    text: str
    end: int | None


class Change(NamedTuple):
    """A way to change the audio of utterances.

    Attributes:
        title: what tables call it.
        samples: utterance -> the samples (N,) that are decoded.
        is_cut: whether it needs to know where the last word ends.
    """

    title: str
    samples: "Callable[[Utterance], np.ndarray]"
    is_cut: bool = False


class Row(NamedTuple):
    """The result of a change, its figures in % with their intervals.

    Attributes:
        title: the change.
        error_rate: WER.
        difference: WER minus the WER of the first change of its kind (cut or not); "-" for the first itself.
        last_words: utterances whose last word is right.
        utterances: all that were decoded.
    """

    title: str
    error_rate: str
    difference: str
    last_words: int
    utterances: int


@dataclass(frozen=True)
class Robustness:
    """The rows of the table, what their intervals are made of, and how many utterances could not be cut."""

    rows: list[Row]
    blocks: str
    not_cut: int


def measure_robustness(
    speech2text: "Speech2Text",
    dump: Path,
    levels: Sequence[float],
    batch_size: int = 8,
    ignored: Ignored = NOTHING_IGNORED,
) -> Robustness:
    """Decode a dump set as it is and with every change of its audio; says on standard error how far it is.

    Args:
        speech2text: recogniser.
        dump: the set, with texts.
        levels: changes of the level in dB.
        batch_size: utterances decoded together.
        ignored: parts of the texts that are not scored.

    Raises:
        UserError: the set has no text, text in another case than the model's throughout, or audio that is missing or
            cannot be used.
    """
    utterances, speakers = _read(dump, speech2text.sample_rate)
    timed = {name: each for name, each in utterances.items() if each.end is not None}
    rows, bases = [], dict[bool, significance.Blocks]()
    for title, samples, is_cut in _changes(levels, speech2text.sample_rate):
        chosen = timed if is_cut else utterances
        if not chosen:
            continue
        print(f"{title}: {len(chosen)} utterances", file=sys.stderr, flush=True)
        hypotheses = _decode(speech2text, {name: samples(each) for name, each in chosen.items()}, batch_size)
        texts = {name: each.text for name, each in chosen.items()}
        texts, hypotheses = compared(texts, hypotheses, ignored, str(dump))
        found = _counted(texts, hypotheses, speakers)
        base = bases.setdefault(is_cut, found)
        difference = "-" if found is base else significance.difference(found, base).text("{:+.1f}")
        rate = significance.error_rate(found).text("{:.1f}")
        rows.append(Row(title, rate, difference, _last_words(texts, hypotheses), len(chosen)))
    return Robustness(rows, bases[False].described(), len(utterances) - len(timed))


def _changes(levels: Sequence[float], sample_rate: int) -> list[Change]:
    import numpy as np

    from espnet_speechllm_xl.corpus.audio import with_gain

    padding = np.zeros(round(PADDING_SECONDS * sample_rate), np.float32)

    def at_level(gain_db: float) -> Change:
        return Change(f"{gain_db:+g} dB", lambda each: with_gain(each.samples, gain_db))

    return [
        Change("as it is", lambda each: each.samples),
        *map(at_level, levels),
        Change("cut where the last word ends", lambda each: each.samples[: each.end], is_cut=True),
        Change(
            f"the same, {PADDING_SECONDS:g} s of zeros behind",
            lambda each: np.concatenate([each.samples[: each.end], padding]),
            is_cut=True,
        ),
    ]


def _read(dump: Path, sample_rate: int) -> tuple[dict[str, Utterance], dict[str, str]]:
    """Return ``{utterance: Utterance}`` of a set and ``{utterance: speaker}``."""
    sample_counts(dump)
    if not (dump / "text").exists():
        raise KaldiError(f"{dump} has no text: there is nothing to compare with; give a set that has one")
    audio, times = SetAudio(dump, sample_rate), read_reference_times(dump) or {}
    texts, utterances = read_text(dump / "text"), {}
    if lacking := sorted(filter(audio.why_unlisted, texts)):
        raise KaldiError(f"{dump / 'wav.scp'} lacks {some_names(lacking)}, which are in text: format the set again")
    for name, text in texts.items():
        words, end = times.get(name), None
        if words and text.split():
            end = round(words[-1].end * sample_rate)
        utterances[name] = Utterance(audio.read(name).samples, text, end)
    return utterances, read_table(dump / "utt2spk")


def _decode(speech2text: "Speech2Text", audio: "Mapping[str, np.ndarray]", batch_size: int) -> dict[str, str]:
    """Return ``{utterance: text}`` of ``{utterance: samples}``; recordings of similar length are decoded together."""
    texts = {}
    for part in batches_by_length({name: len(samples) for name, samples in audio.items()}, batch_size):
        nbest = speech2text.transcribe_batch([audio[name] for name in part])
        texts.update({name: best[0].text for name, best in zip(part, nbest, strict=True)})
    return texts


def _counted(
    references: Mapping[str, str], hypotheses: Mapping[str, str], speakers: Mapping[str, str]
) -> significance.Blocks:
    known = {name: speakers[name] for name in references if name in speakers}
    rows, _ = significance.counted(references, hypotheses, known, "words", "hypotheses")
    return significance.blocks([rows])


def _last_words(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> int:
    """Count the utterances whose last word is right."""
    return sum(hypotheses[name].split()[-1:] == text.split()[-1:] for name, text in references.items())
