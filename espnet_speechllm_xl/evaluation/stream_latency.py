"""How late a stream's words come: emission times, delays against reference word ends, compute time.

A word is *emitted* when it becomes settled (streams.py): never taken back from then on.

    audio clock   the audio that had been pushed by then: what chunks, look-ahead and search cost on any machine
    wall clock    the same if the audio arrives in real time: a push begins when its block has arrived and the push
                  before it has ended, and lasts as long as it was measured to; a machine too slow falls behind
    delay         emission - end of the word in the reference

Delays are of correct words only; :class:`Comparison` counts all others, each with its reason.
"""

import functools
import time
from collections import Counter
from dataclasses import asdict, dataclass

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus.ctm import matching, parted
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.tokenization import words_of


@dataclass(frozen=True)
class Emission:
    """A word that a stream settled; all times in seconds from the start of the audio."""

    text: str
    start: float  # when it was said, as the stream reports it
    end: float
    audio: float  # audio clock of its emission
    wall: float  # wall clock of its emission


@dataclass(frozen=True)
class Run:
    """One recording, streamed."""

    words: tuple  # of Emission
    audio_seconds: float
    seconds: float  # compute time of all pushes
    chunk_seconds: tuple  # compute time of the push that completed each chunk
    capped: int  # chunks that reached max_tokens_per_chunk

    @classmethod
    def from_json(cls, values):
        """The run of which ``dataclasses.asdict`` made ``values``."""
        words, chunks = tuple(Emission(**word) for word in values["words"]), tuple(values["chunk_seconds"])
        return cls(**{**values, "words": words, "chunk_seconds": chunks})


def stream_through(stream, samples, sample_rate, block, clock=time.perf_counter):
    """Push ``samples`` (n,) in blocks of ``block`` samples through an open stream and close it; a :class:`Run`.

    The audio is pushed as fast as it goes.  What is left at the end is settled by ``close``, at once after the last
    block.  A push that completes n chunks counts as n pushes of equal compute time.
    """
    blocks = [samples[start : start + block] for start in range(0, len(samples), block)]
    steps = [*(functools.partial(stream.push, samples) for samples in blocks), stream.close]
    words, per_chunk, total, finish, received, chunks = [], [], 0.0, 0.0, 0, 0
    for step, new in zip(steps, [*map(len, blocks), 0], strict=True):
        begin = clock()
        update = step()
        seconds = clock() - begin
        received += new
        arrived = received / sample_rate
        finish = max(finish, arrived) + seconds
        total += seconds
        words += [Emission(word.text, word.start, word.end, arrived, finish) for word in update.words]
        new_chunks, chunks = _chunks(stream) - chunks, _chunks(stream)
        per_chunk += [seconds / max(1, new_chunks)] * new_chunks
    return Run(tuple(words), len(samples) / sample_rate, total, tuple(per_chunk), stream.capped)


def _chunks(stream):
    """Chunks that the stream has decoded so far."""
    return timeline.num_chunks(timeline.gap_frames(stream.seconds), stream.chunking.chunk)


@dataclass(frozen=True)
class Match:
    """A correct word; ``first`` and ``last`` of its utterance in the reference.  Differences in seconds."""

    first: bool
    last: bool
    audio: float  # emission delay, audio clock
    wall: float  # emission delay, wall clock
    end: float | None  # end as the stream reports it, minus the reference's; None without reference times


@dataclass(frozen=True)
class Comparison:
    """Streamed words against the reference, each of whose words is in ``matches`` or counted in ``left_out``."""

    scored: metrics.ScoredSet
    matches: list
    left_out: Counter  # words of the reference by reason


def compare(runs, texts, times=None):
    """The :class:`Comparison` of streamed utterances with their reference.

    Args:
        runs: ``{utterance: Run}``; an utterance of ``texts`` that is not there could not be read.
        texts: ``{utterance: text}``, the transcripts.
        times: ``{utterance: [ctm.Word]}``, when those words ended; None: as the stream itself reports.

    Raises:
        UserError: an utterance of ``runs`` has no transcript.
    """
    references = {utterance: words_of(text) for utterance, text in texts.items()}
    settled = {utterance: parted(run.words) for utterance, run in runs.items()}
    hypotheses = {utterance: [word.text for word in words] for utterance, words in settled.items()}
    scored = metrics.score(references, hypotheses, "streamed utterances")
    result = Comparison(scored, [], Counter())
    for utterance, item in scored.utterances.items():
        ends, reason = _reference_ends(item.reference, times, utterance)
        emissions, index = iter(settled.get(utterance, ())), 0
        for kind, wanted, _ in item.pairs:
            emission = next(emissions) if kind != "D" else None
            if kind == "C" and reason is None:
                end = ends[index] if ends else emission.end
                result.matches.append(_match(emission, end, index, len(item.reference), ends is not None))
            elif wanted is not None:
                result.left_out[_why(kind, reason, utterance in runs)] += 1
            index += wanted is not None
    return result


def _reference_ends(words, times, utterance):
    """Ends of the reference's words and None, or None and the reason why there are none."""
    if times is None:
        return None, None
    timed = times.get(utterance)
    if timed is None:
        return None, "correct, but without reference time"
    matched = matching(parted(timed), words)
    if matched is None:
        return None, "correct, but other words in the reference times"
    return [word.end for word in matched], None


def _match(emission, end, index, count, timed):
    return Match(
        first=index == 0,
        last=index == count - 1,
        audio=emission.audio - end,
        wall=emission.wall - end,
        end=emission.end - end if timed else None,
    )


def _why(kind, reason, read):
    if not read:
        return "audio not read"
    return {"S": "substituted", "D": "deleted", "C": reason}[kind]


def summary(runs, comparison):
    """Figures of one chunk size for JSON: numbers with their unit in the name, None where nothing was measured.

    ``runs``: ``{utterance: Run}``; ``comparison``: theirs.
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


def _milliseconds(seconds):
    return asdict(metrics.spread([1000 * value for value in seconds]))
