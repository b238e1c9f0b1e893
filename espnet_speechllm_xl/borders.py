"""Where the errors of a decoded set lie with respect to the borders of chunks, by reference word times.

A word near a border may be lost, when both chunks leave it to the other, or come twice.
"""

from collections import Counter
from dataclasses import dataclass

from . import metrics, timeline
from .ctm import Word, matching, parted
from .errors import UserError
from .text import words_of

ACROSS, BEFORE, AFTER, ELSEWHERE = PLACES = (
    "lies across a boundary",
    "ends just before one",
    "starts just after one",
    "elsewhere",
)


def place(word, chunk, near):
    """Which of ``PLACES`` a :class:`~espnet_speechllm_xl.ctm.Word` has; ``chunk`` and ``near`` in frames."""
    first, last = timeline.frame_from(word.start), timeline.frame_at(word.end)
    if timeline.chunk_of_frame(first, chunk) != timeline.chunk_of_frame(last, chunk):
        return ACROSS
    if timeline.place_in_chunk(last, chunk) >= chunk - near:
        return BEFORE
    return AFTER if timeline.place_in_chunk(first, chunk) < near else ELSEWHERE


def usable(timed: list[Word] | None, words: list[str]) -> tuple[list[Word] | None, str | None]:
    """The reference times of the ``words`` of an utterance and None; or None and the reason why there are none."""
    if not timed:
        return None, "no reference times"
    matched = matching(parted(timed), words)
    return matched, None if matched is not None else "other words than its reference times"


@dataclass(frozen=True)
class BorderErrors:
    """``counts``: ``{place: metrics.Counts}`` of the reference's words; ``insertions`` have no place.

    ``left_out``: ``{utterance: reason}`` of those that are not counted.
    """

    counts: dict
    insertions: int
    left_out: dict


def border_errors(references, hypotheses, times, chunk, near):
    """The :class:`BorderErrors` of a set.

    Args:
        references, hypotheses: ``{utterance: text}``.
        times: ``{utterance: [ctm.Word]}`` of the reference.
        chunk: frames of a chunk.
        near: frames from a border that are just before or just after it.

    Raises:
        UserError: a hypothesis has no reference, or ``near`` is not below half a chunk.
    """
    if not 0 < 2 * near < chunk:
        raise UserError(f"{near} frames near a boundary do not fit into a chunk of {chunk}: give fewer, at least 1")
    split = ({name: words_of(text) for name, text in side.items()} for side in (references, hypotheses))
    kinds, insertions, left_out = {name: Counter() for name in PLACES}, 0, {}
    for utterance, scored in metrics.score(*split).utterances.items():
        timed, reason = usable(times.get(utterance), scored.reference)
        if reason:
            left_out[utterance] = reason
            continue
        words = iter(timed)
        for kind, wanted, _ in scored.pairs:
            if wanted is not None:
                kinds[place(next(words), chunk, near)][kind] += 1
        insertions += scored.counts.insertions
    counts = {
        name: metrics.Counts(words=found.total(), correct=found["C"], substitutions=found["S"], deletions=found["D"])
        for name, found in kinds.items()
    }
    return BorderErrors(counts, insertions, left_out)
