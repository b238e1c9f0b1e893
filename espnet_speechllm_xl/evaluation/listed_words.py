"""Listed words, such as names that a prompt gives: how many of them are right, and how many were not said.

The words of reference and hypothesis are aligned as for the WER.  A listed word of the hypothesis is a *hit* when the
aligned word of the reference is the same, else it is *false*.  Listed words of the reference without a hit are
*missed*.

recall = hits / (hits + missed), precision = hits / (hits + false).
"""

from collections.abc import Collection, Mapping, Sequence
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
    for name, hits, recall in zip(names, systems, recalls, strict=True):
        total, first = sum(hits.values(), Hits()), recall is recalls[0]
        minus = "-" if first else significance.difference(recall, recalls[0], same_words).text("{:+.1f}")
        found = [str(total.hits + total.missed), significance.error_rate(recall).text("{:.1f}"), minus]
        rows.append([name, *found, str(total.false), shown(total.precision, "{:.1f}")])
    head = ["decoded", "listed words", "recall (%)", "minus the first", "false", "precision (%)"]
    return [*markdown_table(head, rows), f"95 % intervals; blocks: {recalls[0].described('listed words')}"]
