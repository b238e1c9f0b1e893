"""Where the errors of a decoded set lie with respect to the borders of chunks, by reference word times.

A word near a border may be lost, when both chunks leave it to the other, or come twice.
"""

from collections import Counter
from dataclasses import dataclass

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus.ctm import Word, matching, parted
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.tokenization import words_of

ACROSS, BEFORE, AFTER, ELSEWHERE = PLACES = (
    "lies across a boundary",
    "ends just before one",
    "starts just after one",
    "elsewhere",
)


def place(word, chunk, near):
    """Which of ``PLACES`` a :class:`~espnet_speechllm_xl.corpus.ctm.Word` has; ``chunk`` and ``near`` in frames."""
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


def report(decoded, dump, times, chunk, near):
    """Lines of Markdown about a decoded set, and the number of utterances counted; raises UserError or OSError."""
    from espnet_speechllm_xl.corpus.kaldi import read_text
    from espnet_speechllm_xl.evaluation import metrics
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
        f"Insertions: {found.insertions}. {count_rows(references, found.left_out)}",
    ]
    return lines + reason_rows(found.left_out), len(references) - len(found.left_out)


def count_rows(utterances, left_out):
    counted = len(utterances) - len(left_out)
    return f"Utterances: {len(utterances)}, counted: {counted}, left out: {len(left_out)}."


def reason_rows(left_out):
    from espnet_speechllm_xl.evaluation.metrics import some_names

    reasons = sorted(set(left_out.values()))
    named = {reason: some_names([name for name, why in left_out.items() if why == reason]) for reason in reasons}
    return [f"Left out, {reason}: {names}." for reason, names in named.items()]


def chunk_of_decoded(decoded):
    """Frames of the chunks that a set was decoded with, or its model's; raises UserError when there are none."""
    from espnet_speechllm_xl.evaluation.decoded_sets import read_info
    from espnet_speechllm_xl.experiment import read_config
    from espnet_speechllm_xl.timeline import frames_from_seconds

    seconds = read_info(decoded / "decode.json").get("settings", {}).get("chunk_size")
    if seconds is not None:
        chunk = frames_from_seconds(seconds, "chunk size")
    else:
        chunk = ((read_config(decoded.parent.parent) or {}).get("chunking_conf") or {}).get("chunk")
    if chunk is None:
        raise UserError(f"{decoded} was decoded without chunks, or its model is not above it: give --chunk FRAMES")
    return chunk
