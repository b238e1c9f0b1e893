"""Listed words, such as names in prompts and phrases: how many of them are right, and how many were not said.

The words of reference and hypothesis are aligned as for the WER.  A listed word of the hypothesis is a *hit* when the
aligned word of the reference is the same, else it is *false*.  Listed words of the reference without a hit are
*missed*.

recall = hits / (hits + missed), precision = hits / (hits + false).

The WER has two parts (Le et al., arXiv 2104.02194): the B-WER of the words in the list, the biased ones, and the U-WER
of all others.  An error belongs to the word of the reference, an insertion to the inserted word:

B-WER = errors at listed words / listed words of the reference, U-WER = other errors / other words of the reference.
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_speechllm_xl.corpus.ctm import nist_lines
from espnet_speechllm_xl.corpus.kaldi import normalise_text
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import significance
from espnet_speechllm_xl.evaluation.markdown import markdown_table, shown
from espnet_speechllm_xl.evaluation.metrics import ScoredSet
from espnet_speechllm_xl.evaluation.written_marks import Hits


def read_words(path: str | Path) -> str:
    """Read a list of words, with blanks or ends of lines between them, as one text.

    Raises:
        UserError: the file holds no words, or is no text.
        FileNotFoundError: there is no such file.
    """
    text = normalise_text(" ".join(line for _, line in nist_lines(path)))
    if not text:
        raise UserError(f"{path} holds no words: write some, with blanks or ends of lines between them")
    return text


def count_listed(scored: ScoredSet, listed: Collection[str]) -> dict[str, Hits]:
    """Count the hits of each utterance.

    Args:
        scored: the words of a set, compared.
        listed: the words that count.
    """
    found = {}
    for utterance, item in scored.utterances.items():
        total = Hits()
        for kind, wanted, given in item.pairs:
            if kind == "C":
                total += Hits(hits=int(wanted in listed))
            else:
                total += Hits(false=int(given in listed), missed=int(wanted in listed))
        found[utterance] = total
    return found


@dataclass(frozen=True)
class Part:
    """A part of an utterance's words: its errors, and its words in the reference."""

    errors: int = 0
    words: int = 0


def parts_of(scored: ScoredSet, listed: Collection[str]) -> dict[str, tuple[Part, Part]]:
    """Return the listed words of each utterance with their errors, and all others with theirs.

    Args:
        scored: see :func:`count_listed`.
        listed: see :func:`count_listed`.
    """
    found = {}
    for utterance, item in scored.utterances.items():
        sides = []
        for side in (True, False):
            own = [kind for kind, wanted, given in item.pairs if ((wanted or given) in listed) is side]
            sides.append(Part(sum(kind != "C" for kind in own), sum(kind != "I" for kind in own)))
        found[utterance] = sides[0], sides[1]
    return found


def recall_blocks(
    systems: Sequence[Mapping[str, Hits]], speakers: Mapping[str, str], by_speaker: bool
) -> list[significance.Blocks]:
    """Return the blocks of each system, whose *error rate* is its recall, for intervals.

    Utterances without a listed word in the reference are left out, so that no draw is without any.

    Args:
        systems: ``{utterance: Hits}`` of each, of the same utterances.
        speakers: ``{utterance: speaker}``.
        by_speaker: see :func:`significance.blocks`.

    Raises:
        UserError: no reference holds a listed word.
    """
    wanted = {name for hits in systems for name, one in hits.items() if one.hits + one.missed}
    if not wanted:
        raise UserError(
            "the references hold none of the listed words: write these as the references are written, or compare with "
            "--ignore-case"
        )
    return [
        significance.blocks(
            [{name: (hits[name].hits, hits[name].hits + hits[name].missed, speakers[name]) for name in wanted}],
            by_speaker,
        )
        for hits in systems
    ]


def listed_table(
    names: Sequence[str],
    systems: Sequence[Mapping[str, Hits]],
    speakers: Mapping[str, str],
    by_speaker: bool,
    same_words: bool = True,
) -> list[str]:
    """Return the lines of a table with a row for each decoded set, and a line that says how many words there are.

    Args:
        names: of the sets; the others are compared with the first.
        systems: see :func:`recall_blocks`.
        speakers: ``{utterance: speaker}``.
        by_speaker: see :func:`significance.blocks`.
        same_words: see :func:`significance.difference`.

    Raises:
        UserError: see :func:`recall_blocks`.
    """
    recalls = recall_blocks(systems, speakers, by_speaker)
    rows = []
    for name, hits, cells in zip(names, systems, _rates(recalls, same_words), strict=True):
        total = sum(hits.values(), Hits())
        wanted = str(total.hits + total.missed)
        rows.append([name, wanted, *cells, str(total.false), shown(total.precision, "{:.1f}")])
    head = ["decoded", "listed words", "recall (%)", "minus the first", "false", "precision (%)"]
    return [*markdown_table(head, rows), f"95 % intervals; blocks: {recalls[0].described('listed words')}"]


def _rates(systems: Sequence[significance.Blocks], same_words: bool) -> list[list[str]]:
    """Return two cells for each system: its rate, and that minus the rate of the first."""
    first, *others = systems
    minus = ["-", *(significance.difference(one, first, same_words).text("{:+.1f}") for one in others)]
    rates = [significance.error_rate(one).text("{:.1f}") for one in systems]
    return [list(cells) for cells in zip(rates, minus, strict=True)]


def _all_of_free(parts: tuple[Part, Part]) -> Part:
    """Return all words of an utterance whose reference has none of the listed words; else nothing."""
    listed, others = parts
    return Part() if listed.words else Part(listed.errors + others.errors, others.words)


ERROR_RATES: dict[str, Callable[[tuple[Part, Part]], Part]] = {
    "B-WER (%)": operator.itemgetter(0),
    "U-WER (%)": operator.itemgetter(1),
    "WER without listed words (%)": _all_of_free,
}


def error_table(
    names: Sequence[str],
    systems: Sequence[Mapping[str, tuple[Part, Part]]],
    speakers: Mapping[str, str],
    by_speaker: bool,
    same_words: bool = True,
) -> list[str]:
    """Return the lines of a table with a row for each decoded set and the columns of :data:`ERROR_RATES`.

    Args:
        names: of the sets; the others are compared with the first.
        systems: of each what :func:`parts_of` returns, of the same utterances.
        speakers: ``{utterance: speaker}``.
        by_speaker: see :func:`significance.blocks`.
        same_words: see :func:`significance.difference`.
    """
    columns = []
    for chosen in ERROR_RATES.values():
        rows = [{name: chosen(parts) for name, parts in one.items()} for one in systems]
        if not all(any(part.words for part in one.values()) for one in rows):
            columns.append([["-", "-"]] * len(systems))
            continue
        counted = [{name: (part.errors, part.words, speakers[name]) for name, part in one.items()} for one in rows]
        columns.append(_rates([significance.blocks([one], by_speaker) for one in counted], same_words))
    head = ["decoded", *(title for name in ERROR_RATES for title in (name, "minus the first"))]
    return markdown_table(head, ([name, *sum(row, [])] for name, *row in zip(names, *columns, strict=True)))
