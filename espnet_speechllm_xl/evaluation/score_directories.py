"""ESPnet's score directories: the comparison of one decoded set with its references, for people and for ``sclite``.

<decode>/<set>/score_{wer,cer,ter}/{ref.trn,hyp.trn,result.txt}     trn lines: scoring_inputs.py
"""

import logging
import unicodedata
from pathlib import Path

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.evaluation.metrics import Counts
from espnet_speechllm_xl.evaluation.scoring_inputs import NOTHING_IGNORED, trn_line
from espnet_speechllm_xl.files import atomic_write

KINDS = {"wer": "words", "cer": "characters", "ter": "tokens"}

log = logging.getLogger(__name__)


def _width(text):
    """Columns that a text takes in a terminal: combining marks none, wide letters two."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _cell(symbol, filler):
    if symbol is None:
        return filler
    # A lone combining mark gets something to sit on (for show only; trn files hold the bare mark).
    return "\u25cc" + symbol if unicodedata.combining(symbol[0]) else symbol


def alignment_text(pairs, columns=110):
    """REF, HYP and Eval lines of one alignment, errors in upper-case kinds (S, D, I), wrapped at ``columns``."""
    blocks, block, used = [], [], 0
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


def _score_line(name, counts, width):
    rates = " ".join(f"{rate:6.1f}" for rate in counts.rates())
    return f"| {name:<{width}} | {counts.sentences:6d} {counts.words:7d} | {rates} |"


def result_text(scored, speakers, title, unit):
    """The text of ``result.txt``: sum, table of speakers, alignments of the utterances with errors."""
    by_speaker = {}
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


def write_score_dir(directory, scored, speakers, title, unit):
    """Write ``ref.trn``, ``hyp.trn`` and ``result.txt`` of one comparison (:class:`metrics.ScoredSet`)."""
    directory = Path(directory)
    for name, side in (("ref.trn", "reference"), ("hyp.trn", "hypothesis")):
        with atomic_write(directory / name) as stream:
            for utterance, item in scored.utterances.items():
                stream.write(trn_line(getattr(item, side), speakers[utterance], utterance))
    with atomic_write(directory / "result.txt") as stream:
        stream.write(result_text(scored, speakers, title, unit))


def score_set(
    references,
    hypotheses,
    speakers,
    out,
    token_references=None,
    token_hypotheses=None,
    title=None,
    ignored=NOTHING_IGNORED,
):
    """Score one set and write ``score_wer``, ``score_cer`` and (with tokens) ``score_ter`` below ``out``.

    ``references`` and ``hypotheses``: ``{utterance: text}``; ``speakers``: ``{utterance: speaker}``; tokens are texts
    of pieces with spaces between; ``ignored``: what is not scored of the texts (of tokens, all is).  Returns
    ``{"wer": ScoredSet, "cer": ..., "ter": ...}``.  A reference without hypothesis counts as deletions and is named in
    a warning.  Raises UserError naming the utterances for a hypothesis without reference, and for a reference without
    speaker.
    """
    title = title or str(out)
    if not references:
        raise UserError(f"{title}: the references are empty: give a text file with at least one utterance")
    metrics.check_speakers(references, speakers, title)
    references, hypotheses = map(ignored.left_of_all, (references, hypotheses))

    def compare(left, right, split):
        left, right = ({name: split(text) for name, text in side.items()} for side in (left, right))
        return metrics.score(left, right, f"{title}: hypotheses")

    scores = {kind: compare(references, hypotheses, getattr(metrics, KINDS[kind])) for kind in ("wer", "cer")}
    if token_references is not None and token_hypotheses is not None:
        scores["ter"] = compare(token_references, token_hypotheses, metrics.words)
        absent = sorted(set(references) ^ set(token_references))
        if absent:
            raise UserError(f"{title}: text and token references differ in {metrics.some_names(absent)}: remake them")
    missing = scores["wer"].missing
    if missing:
        log.warning(
            f"{title}: {len(missing)} of {len(references)} utterances have no hypothesis and count as deletions: "
            f"{metrics.some_names(missing)}"
        )
    for kind, scored in scores.items():
        name = f"{kind.upper()} of {title}{'' if kind == 'ter' else ignored}"
        write_score_dir(Path(out) / f"score_{kind}", scored, speakers, name, KINDS[kind])
    return scores
