"""What streams write where nobody says anything to them, and whether they end sentences on time.

Shape legend: ``N`` samples.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus.ctm import Word, WordTimes, read_ctm
from espnet_speechllm_xl.corpus.kaldi import read_reference_times
from espnet_speechllm_xl.corpus.noises import BABBLE, NOISES, endless, make_babble, make_noise
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.endpoints import EndedSegment, Endpoints, Sentence, judge_endpoints
from espnet_speechllm_xl.sets.audio import SetAudio, sample_counts

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.decoding.results import Update
    from espnet_speechllm_xl.decoding.streams import Stream
    from espnet_speechllm_xl.inference import Speech2Text

PAUSES = "pauses"  # of recordings: what they hold before, between and behind their words
KINDS = (*NOISES, BABBLE, PAUSES)
OF_A_SET = (BABBLE, PAUSES)
LEVEL_LESS = ("silence", PAUSES)
TALKERS = 16  # of babble
MARGIN_SECONDS = 0.1  # around words that is not taken for a pause
SHORTEST_SECONDS = 0.1  # a pause without its margins
FADE_SECONDS = 0.01  # in which one pause passes into the next
BLOCK_SECONDS = 0.04  # of audio pushed at a time
TIMES_SECONDS = 0.2  # by which the ends of words may differ between a stream and its reference


class Noise(NamedTuple):
    """A kind of audio without speech, and its level in dB of full scale; None: as it is."""

    kind: str
    level_db: float | None = None

    @property
    def title(self) -> str:
        """Return what tables call it."""
        return self.kind if self.level_db is None else f"{self.kind}, {self.level_db:g} dB"


def parse_noise(text: str) -> Noise:
    """Read ``KIND@DB``, or the KIND alone where it has no level.

    Raises:
        ValueError: it is none; the message says what is.
    """
    kind, at, level = text.partition("@")
    if kind not in KINDS:
        raise ValueError(f"'{kind[:50]}' is no kind of audio: give one of {', '.join(KINDS)}")
    if kind in LEVEL_LESS:
        if at:
            raise ValueError(f"{kind} has no level: leave '@{level[:50]}' out")
        return Noise(kind)
    try:
        level_db = float(level)
    except ValueError:
        level_db = math.nan
    if not -120 <= level_db <= 0:
        raise ValueError(f"'{text[:50]}': give a level in -120 .. 0 dB of full scale, such as {kind}@-25")
    return Noise(kind, level_db)


@dataclass(frozen=True)
class Utterance:
    """A recording of a set: its samples (N,), and its words with their times, in seconds; None: not known."""

    samples: "np.ndarray"
    words: Sequence[Word] | None

    def sentence(self, offset: float, sample_rate: int) -> Sentence:
        """Return when it is said in audio where it begins at ``offset`` seconds; without times, from end to end."""
        if self.words:
            return Sentence(offset + self.words[0].start, offset + self.words[-1].end)
        return Sentence(offset, offset + len(self.samples) / sample_rate)


def read_utterances(dump: Path, sample_rate: int, reference: str | None = None) -> list[Utterance]:
    """Read the recordings of a dump set.

    Args:
        dump: the set.
        sample_rate: Hz of the samples.
        reference: CTM with the times of their words; None: ``ref.ctm`` of the set, where it has one.

    Raises:
        UserError: the set or the CTM cannot be used.
    """
    times: WordTimes = _read_ctm(reference) if reference else read_reference_times(dump) or {}
    names, audio = sorted(sample_counts(dump)), SetAudio(dump, sample_rate)
    found = [Utterance(audio.read(name).samples, times.get(name)) for name in names]
    if not found:
        raise UserError(f"{dump} has no utterances: give a formatted set (dump/raw/SET)")
    return found


def _read_ctm(reference: str) -> WordTimes:
    if not Path(reference).is_file():
        raise UserError(f"--reference {reference}: no such file: give a CTM with the word times of the set")
    return read_ctm(reference)


def pauses_of(utterance: Utterance, sample_rate: int) -> "Iterator[np.ndarray]":
    """Yield what a recording holds before, between and behind its words, (N,) each; nothing where they have no times.

    Args:
        utterance: the recording.
        sample_rate: Hz.
    """
    if not utterance.words:
        return
    total = len(utterance.samples) / sample_rate
    said = [(-MARGIN_SECONDS, -MARGIN_SECONDS), *((word.start, word.end) for word in utterance.words)]
    said.append((total + MARGIN_SECONDS, total + MARGIN_SECONDS))
    for (_, end), (start, _) in zip(said, said[1:], strict=False):
        begin, stop = end + MARGIN_SECONDS, start - MARGIN_SECONDS
        if stop - begin >= SHORTEST_SECONDS:
            yield utterance.samples[round(begin * sample_rate) : round(stop * sample_rate)]


class Audio:
    """Audio without speech, always the same of one seed.

    Args:
        sample_rate: Hz.
        utterances: of a set, for the kinds that are made of one; empty: there is none.
        seed: of the random numbers.
    """

    def __init__(self, sample_rate: int, utterances: Sequence[Utterance] = (), seed: int = 0) -> None:
        self.sample_rate, self._utterances, self._seed = sample_rate, utterances, seed

    def make(self, noise: Noise, seconds: float) -> "np.ndarray":
        """Return noise (N,) that lasts so many seconds.

        Raises:
            UserError: the kind needs a set, or word times, and there are none.
        """
        import numpy as np

        rng = np.random.default_rng([self._seed, KINDS.index(noise.kind)])
        count, level_db = round(seconds * self.sample_rate), noise.level_db or 0.0
        if noise.kind in OF_A_SET and not self._utterances:
            raise UserError(f"{noise.kind} is made of the recordings of a set: give one (--dump)")
        if noise.kind == BABBLE:
            return make_babble([each.samples for each in self._utterances], rng, count, TALKERS, level_db)
        if noise.kind == PAUSES:
            pauses = [pause for each in self._utterances for pause in pauses_of(each, self.sample_rate)]
            if not pauses:
                raise UserError(
                    "pauses need the times of the words (ref.ctm of the set, or --reference): there are none"
                )
            return endless(pauses, rng, count, round(FADE_SECONDS * self.sample_rate)).astype(np.float32)
        return make_noise(noise.kind, rng, count, self.sample_rate, level_db)


def pushed(stream: "Stream", samples: "np.ndarray", sample_rate: int) -> "Iterator[tuple[Update, float]]":
    """Push audio (N,) through a new stream and close it; yield each update, and the seconds of audio pushed by then."""
    block = round(BLOCK_SECONDS * sample_rate)
    for start in range(0, len(samples), block):
        yield stream.push(samples[start : start + block]), min(start + block, len(samples)) / sample_rate
    yield stream.close(), len(samples) / sample_rate


def measure_nonspeech(
    speech2text: "Speech2Text", options: Mapping[str, Any], audio: Audio, noises: Sequence[Noise], minutes: float
) -> list[dict[str, Any]]:
    """Stream each kind of audio and count the words; says on standard error how far it is.

    Args:
        speech2text: recogniser.
        options: keyword arguments of ``Speech2Text.stream``.
        audio: makes the audio.
        noises: the kinds.
        minutes: of each.
    """
    rows = []
    for noise in noises:
        print(f"{noise.title}: {minutes:g} minutes", file=sys.stderr, flush=True)
        stream = speech2text.stream(**options)
        updates = pushed(stream, audio.make(noise, 60 * minutes), audio.sample_rate)
        words = sum(len(update.words) for update, _ in updates)
        rows.append({"audio": noise.title, "minutes": minutes, "words": words, "words_a_minute": words / minutes})
    return rows


def join_sentences(
    utterances: Sequence[Utterance], pauses: "np.ndarray", pause_samples: int, sample_rate: int
) -> "tuple[np.ndarray, list[Sentence]]":
    """Join recordings, a pause before each and behind the last; returns the samples (N,) and when each is said.

    Args:
        utterances: the recordings.
        pauses: samples (M,) of all pauses, (len(utterances) + 1) * pause_samples at least.
        pause_samples: length of a pause.
        sample_rate: Hz.
    """
    import numpy as np

    parts, sentences, length = [], [], 0
    for number, utterance in enumerate(utterances):
        pause = pauses[number * pause_samples : (number + 1) * pause_samples]
        length += len(pause)
        sentences.append(utterance.sentence(length / sample_rate, sample_rate))
        parts += [pause, utterance.samples]
        length += len(utterance.samples)
    last = pauses[len(utterances) * pause_samples : (len(utterances) + 1) * pause_samples]
    return np.concatenate([*parts, last]), sentences


def late_after(stream: "Stream") -> float:
    """Return after how many seconds an endpoint is late: its silence, the latency, and what word times differ by."""
    latency = timeline.latency_seconds(stream.model.acoustic.encoder.config, stream.chunking)
    return stream.config.endpoint_silence + latency + TIMES_SECONDS


def measure_endpoints(
    speech2text: "Speech2Text",
    options: Mapping[str, Any],
    audio: Audio,
    utterances: Sequence[Utterance],
    noises: Sequence[Noise],
    pause_seconds: float,
    limit: float,
) -> list[tuple[Noise, Endpoints]]:
    """Stream the recordings of a set with pauses between them, and judge the endpoints, for each filling of the pauses.

    Args:
        speech2text: recogniser.
        options: keyword arguments of ``Speech2Text.stream``.
        audio: makes what is in the pauses.
        utterances: the recordings.
        noises: kinds of audio in the pauses.
        pause_seconds: length of a pause.
        limit: seconds behind the last word after which an endpoint is late.
    """
    rate, rows = audio.sample_rate, []
    size = round(pause_seconds * rate)
    for noise in noises:
        print(f"{len(utterances)} sentences, pauses of {noise.title}", file=sys.stderr, flush=True)
        filling = audio.make(noise, (len(utterances) + 1) * size / rate)
        samples, sentences = join_sentences(utterances, filling, size, rate)
        updates = pushed(speech2text.stream(**options), samples, rate)
        segments = [EndedSegment(each.words, ended) for update, ended in updates for each in update.segments]
        rows.append((noise, judge_endpoints(sentences, segments, limit)))
    return rows
