"""How late a stream's words come: emission times, delays against reference word ends, compute time.

A word is *emitted* when it becomes settled (streams.py): from then on the stream does not take it back.

    audio clock   the audio pushed by then: the cost of chunks, look-ahead and search on any machine
    wall clock    the same if the audio arrives in real time: a push begins when its block has arrived and the push
                  before it has ended, and takes its measured time; a machine too slow falls behind
    delay         emission - end of the word in the reference

Delays are measured for correct words only; :class:`Comparison` counts all others, each with its reason.

TTFS is the time from the end of speech to the final text where the client flushes the stream at the end of speech
(:class:`Flushed`).  The audio clock stands still meanwhile, so TTFS is compute alone: the rest of the pushes that are
not done when the speech ends, and the flush.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from espnet_speechllm_xl.corpus.ctm import Word, matching, parted
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.evaluation.letter_case import compared
from espnet_speechllm_xl.evaluation.scoring_inputs import NOTHING_IGNORED, Ignored
from espnet_speechllm_xl.tokenization import words_of


@dataclass(frozen=True)
class Emission:
    """A word that a stream settled; all times in seconds from the start of the audio."""

    text: str
    start: float  # of the word, as the stream reports it
    end: float
    audio: float  # audio clock of its emission
    wall: float  # wall clock of its emission


@dataclass(frozen=True)
class Run:
    """One recording, streamed."""

    words: tuple[Emission, ...]
    audio_seconds: float
    seconds: float  # compute time of all pushes
    chunk_seconds: tuple[float, ...]  # compute time of the push that completed each chunk
    capped: int  # chunks that reached max_tokens_per_chunk

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Run":
        """Return the run that ``dataclasses.asdict`` turned into ``values``."""
        words, chunks = tuple(Emission(**word) for word in values["words"]), tuple(values["chunk_seconds"])
        return cls(**{**values, "words": words, "chunk_seconds": chunks})


@dataclass(frozen=True)
class Flushed:
    """One recording, streamed to the end of speech and flushed there."""

    run: Run  # of the audio up to there
    ttfs: float  # seconds from the end of speech to the final text, wall clock

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Flushed":
        """Return what ``dataclasses.asdict`` turned into ``values``."""
        return cls(Run.from_json(values["run"]), values["ttfs"])


@dataclass(frozen=True)
class Match:
    """A correct word; differences in seconds."""

    first: bool  # of its utterance in the reference
    last: bool
    audio: float  # emission delay, audio clock
    wall: float  # emission delay, wall clock
    end: float | None  # its end by the stream, minus that in the reference; None without reference times


@dataclass(frozen=True)
class Comparison:
    """Streamed words against the reference; each of its words is in ``matches`` or counted in ``left_out``."""

    scored: metrics.ScoredSet
    matches: list[Match]
    left_out: Counter[str]  # words of the reference by reason


def compare(
    runs: Mapping[str, Run],
    texts: Mapping[str, str],
    times: Mapping[str, Sequence[Word]] | None = None,
    ignored: Ignored = NOTHING_IGNORED,
) -> Comparison:
    """Compare streamed utterances with their reference.

    Args:
        runs: by utterance; an utterance of ``texts`` without a run could not be read.
        texts: ``{utterance: text}``, the transcripts.
        times: ``{utterance: words}``, with the ends of the words; None: the ends that the stream itself reports.
        ignored: parts of the texts that are not scored: case.

    Raises:
        UserError: an utterance of ``runs`` has no transcript, or all are in another case.
    """
    said = {utterance: " ".join(word.text for word in run.words) for utterance, run in runs.items()}
    texts, _ = compared(texts, said, ignored, "streamed utterances")
    references = {utterance: words_of(text) for utterance, text in texts.items()}
    settled = {utterance: parted(run.words) for utterance, run in runs.items()}
    hypotheses = {utterance: [ignored.left_of(word.text) for word in words] for utterance, words in settled.items()}
    scored = metrics.score(references, hypotheses, "streamed utterances")
    result = Comparison(scored, [], Counter())
    for utterance, item in scored.utterances.items():
        ends, reason = _reference_ends(item.reference, times, utterance)
        emissions, index = iter(settled.get(utterance, ())), 0
        for kind, wanted, _ in item.pairs:
            emission = next(emissions) if kind != "D" else None
            if emission is not None and kind == "C" and reason is None:
                end = ends[index] if ends else emission.end
                result.matches.append(_match(emission, end, index, len(item.reference), ends is not None))
            elif wanted is not None:
                result.left_out[_why(kind, reason, utterance in runs)] += 1
            index += wanted is not None
    return result


def _reference_ends(
    words: Sequence[str], times: Mapping[str, Sequence[Word]] | None, utterance: str
) -> tuple[list[float] | None, str | None]:
    """Return the ends of the reference's words and None, or None and the reason why there are none."""
    if times is None:
        return None, None
    timed = times.get(utterance)
    if timed is None:
        return None, "correct, but without reference time"
    matched = matching(parted(timed), [*words])
    if matched is None:
        return None, "correct, but other words in the reference times"
    return [word.end for word in matched], None


def _match(emission: Emission, end: float, index: int, count: int, timed: bool) -> Match:
    """Return the match of word ``index`` of ``count``, which ends at ``end``; ``timed``: by the reference."""
    return Match(
        first=index == 0,
        last=index == count - 1,
        audio=emission.audio - end,
        wall=emission.wall - end,
        end=emission.end - end if timed else None,
    )


def _why(kind: str, reason: str | None, read: bool) -> str:
    """Say why a word of the reference is not measured."""
    if not read:
        return "audio not read"
    return {"S": "substituted", "D": "deleted", "C": reason or ""}[kind]


def summary(runs: Mapping[str, Run], comparison: Comparison) -> dict[str, Any]:
    """Return the figures of one chunk size for JSON: units in their names, None where nothing was measured.

    ``runs`` by utterance, and their ``comparison`` with the reference.
    """
    matches, counts = comparison.matches, comparison.scored.total
    groups = {
        "all": matches,
        "first": [match for match in matches if match.first],
        "last": [match for match in matches if match.last],
        "not_last": [match for match in matches if not match.last],
    }
    audio, seconds = (sum(getattr(run, name) for run in runs.values()) for name in ("audio_seconds", "seconds"))
    return {
        "wer": counts.error_rate,
        "words": {
            "reference": counts.words,
            "measured": len(matches),
            "left_out": dict(sorted(comparison.left_out.items())),
            "inserted": counts.insertions,
        },
        "delay_ms": {name: _milliseconds(match.audio for match in group) for name, group in groups.items()},
        "wall_delay_ms": {name: _milliseconds(match.wall for match in group) for name, group in groups.items()},
        "word_ends_ms": {
            name: asdict(metrics.delay([match.end for match in groups[name] if match.end is not None]))
            for name in ("all", "not_last", "last")
        },
        "compute_ms_per_chunk": _milliseconds(value for run in runs.values() for value in run.chunk_seconds),
        "rtf": metrics.real_time_factor(seconds, audio),
        "utterances": len(runs),
        "audio_seconds": audio,
        "compute_seconds": seconds,
        "capped": sum(run.capped for run in runs.values()),
    }


def speech_ends(runs: Mapping[str, Run], times: Mapping[str, Sequence[Word]] | None = None) -> dict[str, float]:
    """Return when speech ended, seconds from the start of the audio, by utterance; without words it has no end.

    Args:
        runs: by utterance.
        times: ``{utterance: words}``, with the ends of the words; None: the ends that the stream itself reports.
    """
    ends = {}
    for utterance, run in runs.items():
        words = run.words if times is None else times.get(utterance, ())
        if words:
            ends[utterance] = min(max(word.end for word in words), run.audio_seconds)
    return ends


def flush_summary(
    flushed: Mapping[str, Flushed],
    runs: Mapping[str, Run],
    texts: Mapping[str, str],
    ignored: Ignored = NOTHING_IGNORED,
) -> dict[str, Any]:
    """Return the figures of flushed utterances for JSON: units in their names, None where nothing was measured.

    Args:
        flushed: by utterance.
        runs: of all utterances that could be read.
        texts: see :func:`compare`.
        ignored: see :func:`compare`.
    """
    heard = {utterance: item.run for utterance, item in flushed.items()}
    wer = None
    if any(texts[utterance] for utterance in heard):
        own = {utterance: texts[utterance] for utterance in heard}
        wer = compare(heard, own, ignored=ignored).scored.total.error_rate
    return {
        "ttfs_ms": _milliseconds(item.ttfs for item in flushed.values()),
        "flushed": {
            "utterances": len(flushed),
            "without_end_of_speech": len(runs) - len(flushed),
            "wer": wer,
        },
    }


def _milliseconds(seconds: Iterable[float]) -> dict[str, Any]:
    return asdict(metrics.spread([1000 * value for value in seconds]))
