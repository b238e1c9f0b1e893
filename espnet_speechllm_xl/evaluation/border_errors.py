"""Errors of a decoded set by their place with respect to the borders of chunks, from reference word times.

A word near a border may be lost, when each of the two chunks leaves it to the other, or come twice.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_speechllm_xl import experiment, timeline
from espnet_speechllm_xl.corpus.ctm import Word, matching, parted
from espnet_speechllm_xl.corpus.kaldi import read_text
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.evaluation.decoded_sets import read_hypotheses, read_info, training_directory
from espnet_speechllm_xl.evaluation.letter_case import WITHOUT_CASE, compared, ignoring, is_of_small_letters
from espnet_speechllm_xl.evaluation.markdown import markdown_table
from espnet_speechllm_xl.evaluation.scoring_inputs import Ignored
from espnet_speechllm_xl.tokenization import words_of

ACROSS, BEFORE, AFTER, ELSEWHERE = PLACES = (
    "lies across a boundary",
    "ends just before one",
    "starts just after one",
    "elsewhere",
)


def place(word: Word, chunk_size: int, near: int) -> str:
    """Return one of ``PLACES``.

    Args:
        word: with its times.
        chunk_size: frames of a chunk.
        near: frames from a border that are just before or just after it.
    """
    first, last = timeline.frame_from(word.start), timeline.frame_at(word.end)
    if timeline.chunk_of_frame(first, chunk_size) != timeline.chunk_of_frame(last, chunk_size):
        return ACROSS
    if timeline.place_in_chunk(last, chunk_size) >= chunk_size - near:
        return BEFORE
    return AFTER if timeline.place_in_chunk(first, chunk_size) < near else ELSEWHERE


def usable(timed: Sequence[Word] | None, words: list[str]) -> tuple[list[Word] | None, str | None]:
    """Return the reference times of an utterance's ``words`` and None, or None and the reason why there are none."""
    if not timed:
        return None, "no reference times"
    matched = matching(parted(timed), words)
    return matched, None if matched is not None else "other words than its reference times"


@dataclass(frozen=True)
class BorderErrors:
    """Errors of a set by place.

    Attributes:
        counts: ``{place: counts}`` of the reference's words.
        insertions: of all places, as they have none.
        left_out: ``{utterance: reason}`` of utterances that are not counted.
    """

    counts: dict[str, metrics.Counts]
    insertions: int
    left_out: dict[str, str]


def border_errors(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    times: Mapping[str, Sequence[Word]],
    chunk_size: int,
    near: int,
) -> BorderErrors:
    """Count the errors of a set by place.

    Args:
        references: ``{utterance: text}``.
        hypotheses: ``{utterance: text}``.
        times: ``{utterance: words}`` of the reference.
        chunk_size: frames of a chunk.
        near: frames from a border that are just before or just after it.

    Raises:
        UserError: a hypothesis has no reference, or ``near`` is not below half a chunk.
    """
    if not 0 < 2 * near < chunk_size:
        raise UserError(
            f"{near} frames near a boundary do not fit into a chunk of {chunk_size}: give fewer, at least 1"
        )
    left, right = ({name: words_of(text) for name, text in side.items()} for side in (references, hypotheses))
    kinds: dict[str, Counter[str]] = {name: Counter() for name in PLACES}
    insertions, left_out = 0, {}
    for utterance, scored in metrics.score(left, right).utterances.items():
        timed, reason = usable(times.get(utterance), scored.reference)
        if timed is None:
            left_out[utterance] = reason or ""
            continue
        words = iter(timed)
        for kind, wanted, _ in scored.pairs:
            if wanted is not None:
                kinds[place(next(words), chunk_size, near)][kind] += 1
        insertions += scored.counts.insertions
    counts = {
        name: metrics.Counts(words=found.total(), correct=found["C"], substitutions=found["S"], deletions=found["D"])
        for name, found in kinds.items()
    }
    return BorderErrors(counts, insertions, left_out)


def report(
    decoded: Path,
    dump: Path,
    times: Mapping[str, Sequence[Word]],
    chunk_size: int | None,
    near: int,
    ignore_case: bool = False,
) -> tuple[list[str], int]:
    """Return lines of Markdown about a decoded set, and the number of utterances counted.

    Args:
        decoded: directory of the decoded set.
        dump: directory of the same set in the dump.
        times: ``{utterance: words}`` of the reference.
        chunk_size: frames of a chunk; None: as the set was decoded.
        near: frames from a border that are just before or just after it.
        ignore_case: compare without regard to case, whatever the model writes.

    Raises:
        UserError: a file is damaged, the set was decoded without chunks, or its texts are in another case throughout.
        OSError: a file cannot be read.
    """
    size = chunk_size_of_decoded(decoded) if chunk_size is None else chunk_size
    small = is_of_small_letters(decoded)
    ignored = ignoring(small, Ignored(case=ignore_case))
    references, hypotheses = compared(read_text(dump / "text"), read_hypotheses(decoded), ignored, str(decoded))
    found = border_errors(references, hypotheses, times, size, near)
    rows = []
    for name, counts in [*found.counts.items(), ("all", sum(found.counts.values(), start=metrics.Counts()))]:
        shares = (f"{counts.percent(part):.2f}" for part in (counts.deletions, counts.substitutions))
        rows.append([name, str(counts.words), *shares])
    lines = [
        *markdown_table(["word", "words", "deleted (%)", "substituted (%)"], rows),
        "",
        f"Chunks of {timeline.chunk_seconds(size):.2f} s; 'just' is within {timeline.chunk_seconds(near):.2f} s. "
        f"Insertions: {found.insertions}. {count_rows(references, found.left_out)}",
    ]
    lines += [WITHOUT_CASE] if small else []
    return lines + reason_rows(found.left_out), len(references) - len(found.left_out)


def count_rows(utterances: Collection[str], left_out: Collection[str]) -> str:
    """Say how many of all utterances are counted."""
    counted = len(utterances) - len(left_out)
    return f"Utterances: {len(utterances)}, counted: {counted}, left out: {len(left_out)}."


def reason_rows(left_out: Mapping[str, str]) -> list[str]:
    """Name the utterances that are not counted, a line for each reason; ``left_out``: ``{utterance: reason}``."""
    reasons = sorted(set(left_out.values()))
    named = {
        reason: metrics.some_names([name for name, why in left_out.items() if why == reason]) for reason in reasons
    }
    return [f"Left out, {reason}: {names}." for reason, names in named.items()]


def chunk_size_of_decoded(decoded: Path) -> int:
    """Return the frames of the chunks of a decoding, or else of its model; raise UserError when there are none."""
    seconds = read_info(decoded).get("settings", {}).get("chunk_size")
    if seconds is not None:
        size = timeline.frames_from_seconds(seconds, "chunk size")
    else:
        size = experiment.chunk_size(experiment.read_config(training_directory(decoded)))
    if size is None:
        raise UserError(f"{decoded} was decoded without chunks, or its model is not above it: give --chunk FRAMES")
    return size
