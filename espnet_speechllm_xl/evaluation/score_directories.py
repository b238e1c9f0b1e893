"""ESPnet's score directories: the comparison of one decoded set with its references, for people and for ``sclite``.

<decode>/<set>/score_{wer,cer,ter}/{ref.trn,hyp.trn,result.txt}     trn lines: scoring_inputs.py
<decode>/<set>/score_wer_{basic,english}/...                        words after a normaliser: normalisers.py
"""

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics, normalisers
from espnet_speechllm_xl.evaluation.letter_case import compared
from espnet_speechllm_xl.evaluation.metrics import Counts, Pair, ScoredSet
from espnet_speechllm_xl.evaluation.scoring_inputs import NOTHING_IGNORED, Ignored, trn_line
from espnet_speechllm_xl.files import atomic_write

KINDS = {"wer": "words", "cer": "characters", "ter": "tokens"}
NORMALISED = "normalised wer"  # words after a normaliser

log = logging.getLogger(__name__)


def _width(text: str) -> int:
    """Count the columns of a text in a terminal: combining marks take none, wide letters two."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _cell(symbol: str | None, filler: str) -> str:
    if symbol is None:
        return filler
    # A lone combining mark gets a circle to sit on (for show only; trn files hold the bare mark).
    return "\u25cc" + symbol if unicodedata.combining(symbol[0]) else symbol


def alignment_text(pairs: Sequence[Pair], columns: int = 110) -> str:
    """Write REF, HYP and Eval lines of one alignment, wrapped at ``columns``; Eval has S, D or I at each error."""
    blocks: list[list[list[str]]] = []
    block: list[list[str]] = []
    used = 0
    for kind, reference, hypothesis in pairs:
        cells = (_cell(reference, "*"), _cell(hypothesis, "*"), "" if kind == "C" else kind)
        width = max(_width(cell) for cell in cells)
        if block and used + width + 1 > columns - 6:
            blocks.append(block)
            block, used = [], 0
        block.append([cell + " " * (width - _width(cell)) for cell in cells])
        used += width + 1
    blocks.append(block)
    rows = [
        f"{head:<6}{' '.join(cells[row] for cells in block)}".rstrip()
        for block in blocks
        for row, head in enumerate(("REF:", "HYP:", "Eval:"))
    ]
    return "\n".join(rows)


def _score_line(name: str, counts: Counts, width: int) -> str:
    rates = " ".join(f"{rate:6.1f}" for rate in counts.rates())
    return f"| {name:<{width}} | {counts.sentences:6d} {counts.words:7d} | {rates} |"


def result_text(scored: ScoredSet, speakers: Mapping[str, str], title: str, unit: str) -> str:
    """Return the text of ``result.txt``: sum, table of speakers, alignments of the utterances with errors.

    Args:
        scored: the comparison.
        speakers: ``{utterance: speaker}``.
        title: first words of the text.
        unit: of the symbols: words, characters or tokens.
    """
    by_speaker: dict[str, Counts] = {}
    for utterance, item in scored.utterances.items():
        speaker = speakers[utterance]
        by_speaker[speaker] = by_speaker.get(speaker, Counts()) + item.counts
    width = max(len(name) for name in (*by_speaker, "Sum/Avg"))
    total = scored.total
    rule = "|" + "-" * (width + 2) + "|" + "-" * 16 + "|" + "-" * 43 + "|"
    head = " ".join(f"{name:>6}" for name in ("Corr", "Sub", "Del", "Ins", "Err", "S.Err"))
    lines = [
        f"{title} ({unit}; Corr to S.Err in percent)",
        "",
        f"{total.sentences} utterances, {total.wrong_sentences} with errors; {total.words} {unit}: {total.correct} "
        f"correct, {total.substitutions} substituted, {total.deletions} deleted; {total.insertions} inserted",
    ]
    if scored.missing:
        lines.append(f"{len(scored.missing)} without hypothesis, all deleted: {' '.join(scored.missing)}")
    lines += ["", f"| {'SPKR':<{width}} | {'# Snt':>6} {'# Wrd':>7} | {head} |", rule]
    lines += [_score_line(name, by_speaker[name], width) for name in sorted(by_speaker)]
    lines += [rule, _score_line("Sum/Avg", total, width), "", "Utterances with errors", ""]
    for utterance, item in scored.utterances.items():
        if item.counts.wrong_sentences:
            c = item.counts
            lines.append(f"id: ({speakers[utterance]}-{utterance})")
            lines.append(f"Scores: (#C #S #D #I) {c.correct} {c.substitutions} {c.deletions} {c.insertions}")
            lines += [alignment_text(item.pairs), ""]
    return "\n".join(lines).rstrip() + "\n"


def write_score_dir(
    directory: str | Path, scored: ScoredSet, speakers: Mapping[str, str], title: str, unit: str
) -> None:
    """Write ``ref.trn``, ``hyp.trn`` and ``result.txt`` of one comparison.

    Args:
        directory: to write into.
        scored: the comparison.
        speakers: ``{utterance: speaker}``.
        title: first words of ``result.txt``.
        unit: of the symbols: words, characters or tokens.
    """
    directory = Path(directory)
    for name, side in (("ref.trn", "reference"), ("hyp.trn", "hypothesis")):
        with atomic_write(directory / name) as stream:
            for utterance, item in scored.utterances.items():
                stream.write(trn_line(getattr(item, side), speakers[utterance], utterance))
    with atomic_write(directory / "result.txt") as stream:
        stream.write(result_text(scored, speakers, title, unit))


def score_set(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    speakers: Mapping[str, str],
    out: str | Path,
    token_references: Mapping[str, str] | None = None,
    token_hypotheses: Mapping[str, str] | None = None,
    title: str | None = None,
    ignored: Ignored = NOTHING_IGNORED,
    normaliser: str = normalisers.NONE,
) -> dict[str, ScoredSet]:
    """Score one set and write ``score_wer``, ``score_cer`` and (with tokens) ``score_ter`` below ``out``.

    With a normaliser, ``score_wer_<normaliser>`` has the words after it.

    A reference without hypothesis counts as deletions and is named in a warning.

    Args:
        references: ``{utterance: text}``.
        hypotheses: ``{utterance: text}``.
        speakers: ``{utterance: speaker}``.
        out: directory.
        token_references: ``{utterance: tokens with spaces between}``; None: tokens are not scored.
        token_hypotheses: the same of the hypotheses.
        title: names the set in messages and in ``result.txt``; None: ``out``.
        ignored: parts of the texts that are not scored; all tokens are.
        normaliser: of :data:`~espnet_speechllm_xl.evaluation.normalisers.NAMES`.

    Returns:
        ``{"wer": ScoredSet, "cer": ..., "ter": ..., NORMALISED: ...}``.

    Raises:
        UserError: a hypothesis has no reference, or a reference no speaker; the message names the utterances.  Or both
            sides differ in case throughout, or the normaliser is not installed.
    """
    title = title or str(out)
    if not references:
        raise UserError(f"{title}: the references are empty: give a text file with at least one utterance")
    metrics.check_speakers(references, speakers, title)
    references, hypotheses = compared(references, hypotheses, ignored, title)

    def compare(left: Mapping[str, str], right: Mapping[str, str], split: Callable[[str], list[str]]) -> ScoredSet:
        symbols = [{name: split(text) for name, text in side.items()} for side in (left, right)]
        return metrics.score(symbols[0], symbols[1], f"{title}: hypotheses")

    scores = {kind: compare(references, hypotheses, getattr(metrics, KINDS[kind])) for kind in ("wer", "cer")}
    if token_references is not None and token_hypotheses is not None:
        scores["ter"] = compare(token_references, token_hypotheses, metrics.words)
        absent = sorted(set(references) ^ set(token_references))
        if absent:
            raise UserError(f"{title}: text and token references differ in {metrics.some_names(absent)}: remake them")
    if normaliser != normalisers.NONE:
        left, right = (normalisers.normalised(normaliser, side) for side in (references, hypotheses))
        scores[NORMALISED] = compare(left, right, metrics.words)
    missing = scores["wer"].missing
    if missing:
        log.warning(
            f"{title}: {len(missing)} of {len(references)} utterances have no hypothesis and count as deletions: "
            f"{metrics.some_names(missing)}"
        )
    for kind, scored in scores.items():
        name = f"{kind.upper()} of {title}{'' if kind == 'ter' else ignored}"
        if kind == NORMALISED:
            name = f"WER of {title}{ignored}, after {normalisers.described(normaliser)}"
        folder = f"score_wer_{normaliser}" if kind == NORMALISED else f"score_{kind}"
        write_score_dir(Path(out) / folder, scored, speakers, name, KINDS.get(kind, "words"))
    return scores
