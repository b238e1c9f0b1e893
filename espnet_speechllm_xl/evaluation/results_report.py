"""RESULTS.md: the results of all decodings and trainings of a recipe, in ESPnet's form.

|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|
"""

import datetime
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from espnet_speechllm_xl.corpus.kaldi import Joined, joined
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import normalisers, plots
from espnet_speechllm_xl.evaluation.decoded_sets import (
    Decoded,
    NoTextError,
    UnfinishedError,
    decoded_sets,
    natural_order,
    read_decoded,
    read_tokens,
    real_time_factor,
    training_directory,
)
from espnet_speechllm_xl.evaluation.letter_case import WITHOUT_CASE, ignoring
from espnet_speechllm_xl.evaluation.markdown import made_lines, markdown_table, shown, speed_cells, write_between_marks
from espnet_speechllm_xl.evaluation.metrics import Counts
from espnet_speechllm_xl.evaluation.score_directories import KINDS, NORMALISED, score_set
from espnet_speechllm_xl.evaluation.scoring_inputs import NOTHING_IGNORED, Ignored
from espnet_speechllm_xl.evaluation.train_log import Epochs, read_train_log, training_summary
from espnet_speechllm_xl.evaluation.written_marks import MarkRow, mark_rows
from espnet_speechllm_xl.experiment import own_tokenizer
from espnet_speechllm_xl.tokenization import Tokenizer, load_tokenizer, normalise, word_edges

log = logging.getLogger(__name__)


def score_table(rows: Iterable[tuple[str, Counts]]) -> list[str]:
    """Return the lines of ESPnet's table; ``rows``: (dataset, its counts) pairs."""
    head = ["dataset", "Snt", "Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err"]
    return markdown_table(
        head,
        (
            [name, str(counts.sentences), str(counts.words), *(f"{rate:.1f}" for rate in counts.rates())]
            for name, counts in rows
        ),
    )


def mark_table(rows: Iterable[tuple[str, MarkRow]]) -> list[str]:
    """Return the table of punctuation and capitals; ``rows``: (dataset, its row) pairs."""
    head = ["dataset", "mark", "in reference", "precision", "recall", "F1 [95 % interval]"]
    found = []
    for name, row in rows:
        mark = row.name if len(row.name) > 1 else f"`{row.name}`"
        shares = [shown(share, "{:.1f}") for share in (row.total.precision, row.total.recall)]
        found.append([name, mark, str(row.total.hits + row.total.missed), *shares, row.f1.text()])
    return markdown_table(head, found)


def speed_table(rows: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return the table of decoding speed; ``rows``: (dataset, contents of its ``decode.json``) pairs."""
    head = ["dataset", "Utt", "audio (s)", "decoding (s)", "RTF", "RTFx", "device", "capped", "failed"]
    found = []
    for name, info in rows:
        seconds = [shown(info.get(key), "{:.1f}") for key in ("audio_seconds", "seconds")]
        others = [shown(info.get(key)) for key in ("device", "capped", "failed")]
        found.append([name, shown(info.get("utterances")), *seconds, *speed_cells(real_time_factor(info)), *others])
    return markdown_table(head, found)


def training_table(rows: Iterable[tuple[str, Epochs]]) -> list[str]:
    """Return the table of trainings; ``rows``: (model, its epochs as ``read_train_log`` gives them) pairs."""
    found = []
    for name, epochs in rows:
        summary = training_summary(epochs)
        time = datetime.timedelta(seconds=round(summary.seconds))
        found.append([name, str(summary.epochs), shown(summary.best_epoch), shown(summary.loss, "{:.3f}"), str(time)])
    return markdown_table(["model", "epochs", "best epoch", "valid loss", "training time"], found)


def score_decoded(
    directory: str | Path,
    dump: str | Path,
    ignored: Ignored = NOTHING_IGNORED,
    normaliser: str = normalisers.NONE,
) -> Decoded:
    """Score the set in ``<exp>/<model>/decode_*/<set>``, its tokens too where the model's tokenizer is there.

    Args:
        directory: of the decoded set.
        dump: holds the references.
        ignored: parts of the texts that are not scored.
        normaliser: of :data:`~espnet_speechllm_xl.evaluation.normalisers.NAMES`.

    Raises:
        UserError: the set cannot be scored.
        OSError: a file cannot be read.
    """
    directory = Path(directory)
    tables = read_decoded(directory, dump)
    token_references = token_hypotheses = None
    ignored = ignoring(tables.small_letters, ignored)
    if path := own_tokenizer(training_directory(directory)):
        tokenizer = load_tokenizer(path)
        token_references = _tokens_of(tables.references, tokenizer)
        token_hypotheses = read_tokens(directory)
        if token_hypotheses is None:
            token_hypotheses = _tokens_of(tables.hypotheses, tokenizer)
    scores = score_set(
        tables.references,
        tables.hypotheses,
        tables.speakers,
        directory,
        token_references,
        token_hypotheses,
        title="/".join(directory.parts[-3:]),
        ignored=ignored,
        normaliser=normaliser,
    )
    model, decode, dataset = directory.parts[-3:]
    texts = [ignored.left_of_all(side) for side in (tables.references, tables.hypotheses)]
    marks = mark_rows(texts[0], texts[1], tables.speakers, dataset)
    return Decoded(model, decode, dataset, scores, tables.info, marks, tables.small_letters)


def _tokens_of(texts: dict[str, str], tokenizer: Tokenizer) -> dict[str, str]:
    """Split texts into tokens with spaces between them."""
    return {name: " ".join(tokenizer.split(normalise(text))) for name, text in texts.items()}


Rates = dict[str, list[float | None]]  # of each decoding, in percent: one for each length


def length_series(decoded: Iterable[Decoded]) -> dict[str, tuple[list[str], Rates]]:
    """Group the WER of sets that differ in length only (``test``, ``test_2x``, ``test_10x``), for bars.

    Returns ``{set: (["1x", "2x", ...], {decoding: [percent or None, ...]})}``, sets with two lengths or more.  Sets
    that were joined in another way than the usual one are named after it: ``test_shuffled``.
    """
    found: dict[tuple[str, str], dict[tuple[int, str], float]] = {}
    for item in decoded:
        name = joined(item.dataset) or Joined(item.dataset, 1)
        rate = item.scores["wer"].total.error_rate
        found.setdefault((name.base, name.way), {})[name.factor, item.decode] = rate
    result = {}
    for (base, way), rates in found.items():
        alone = {key: rate for key, rate in found.get((base, ""), {}).items() if key[0] == 1}
        rates = {**alone, **rates}
        factors = sorted({factor for factor, _ in rates})
        if len(factors) > 1:
            decodes = sorted({decode for _, decode in rates}, key=natural_order)
            series = {decode: [rates.get((factor, decode)) for factor in factors] for decode in decodes}
            result["_".join(filter(None, (base, way)))] = ([f"{factor}x" for factor in factors], series)
    return result


def _without_spaces(decoded: Sequence[Decoded]) -> bool:
    """Tell whether most words of the references follow the one before without a space; what words are is not known."""
    texts = [" ".join(item.reference) for one in decoded for item in one.scores["wer"].utterances.values()]
    joined = [is_joined for text in texts for _, _, is_joined in word_edges(text)]
    return sum(joined) > len(joined) / 2


def _model_lines(model: str, decoded: Sequence[Decoded], images: Path, normaliser: str) -> list[str]:
    lines = ["", f"## {model}"]
    if any(item.in_small_letters for item in decoded):
        lines += ["", WITHOUT_CASE]
    for kind in ("cer", "wer", "ter") if _without_spaces(decoded) else KINDS:
        rows = [(item.name, item.scores[kind].total) for item in decoded if kind in item.scores]
        if rows:
            lines += ["", f"### {kind.upper()}", "", *score_table(rows)]
    if normaliser != normalisers.NONE:
        rows = [(item.name, item.scores[NORMALISED].total) for item in decoded]
        lines += ["", f"### Normalised WER ({normaliser})", "", f"Words after {normalisers.described(normaliser)}.", ""]
        lines += score_table(rows)
    if marks := [(item.name, row) for item in decoded for row in item.marks]:
        lines += ["", "### Punctuation and capitals", "", *mark_table(marks)]
    missing = [(item.name, item.scores["wer"].missing) for item in decoded if item.scores["wer"].missing]
    lines += [f"\n{name}: {len(ids)} utterances without hypothesis count as deletions." for name, ids in missing]
    lines += ["", "### Speed", "", *speed_table([(item.name, item.info) for item in decoded])]
    for base, (lengths, series) in length_series(decoded).items():
        path = plots.plot_length_bars(images / f"{model}_{base}_length.png", lengths, series, f"{model}, {base}")
        lines += ["", f"![WER of {base} by length]({images.name}/{path.name})"]
    return lines


def _training_lines(exp: str | Path, images: Path) -> list[str]:
    logs = {path.name: read_train_log(path) for path in sorted(Path(exp).iterdir()) if path.is_dir()}
    logs = {name: epochs for name, epochs in logs.items() if epochs}
    if not logs:
        return []
    lines = ["", "## Training", "", *training_table(logs.items())]
    for name, epochs in logs.items():
        try:
            path = plots.plot_learning_curve(epochs, images / f"{name}_learning_curve.png", name)
        except UserError as error:
            log.warning(f"{error}")
            continue
        lines += ["", f"![learning curve of {name}]({images.name}/{path.name})"]
    return lines


class ScoredSets(NamedTuple):
    """All sets of a recipe: each is scored, or named with a message (``{directory: message}``)."""

    decoded: list[Decoded]
    unfinished: dict[str, str]  # not decoded to their end, as while another training decodes: no error
    untranscribed: dict[str, str]  # without transcripts to score with: no error
    failed: dict[str, str]


def score_experiment(
    exp: str | Path,
    dump: str | Path,
    results: str | Path,
    command: str | None = None,
    date: str | None = None,
    ignored: Ignored = NOTHING_IGNORED,
    normaliser: str = normalisers.NONE,
) -> ScoredSets:
    """Score every decoded set below ``exp``; write RESULTS.md, and its figures into ``images/`` beside it.

    Sets without scores stand in RESULTS.md too, with the reason.

    Args:
        exp: holds the directories of the trainings.
        dump: holds the references.
        results: the file to write.
        command: how the results were made, as a user would type it.
        date: of the results; None: now.
        ignored: parts of the texts that are not scored.
        normaliser: of :data:`~espnet_speechllm_xl.evaluation.normalisers.NAMES`; the WER after it is a table of its
            own.

    Raises:
        UserError: nothing is decoded.
    """
    directories = decoded_sets(exp, dump)
    if not directories:
        raise UserError(f"{exp}: no <model>/decode_*/<set>/text below it: run the decode stage, or mend --exp")
    found = ScoredSets([], {}, {}, {})
    for directory in directories:
        try:
            found.decoded.append(score_decoded(directory, dump, ignored, normaliser))
        except (UserError, OSError) as error:
            kinds: dict[type, dict[str, str]] = {UnfinishedError: found.unfinished, NoTextError: found.untranscribed}
            kinds.get(type(error), found.failed)[str(directory)] = str(error)
            log.warning(f"not scored: {error}")
    images = Path(results).parent / "images"
    lines = made_lines(command, date)
    lines += ["", f"WER and CER{ignored}."] if str(ignored) else []
    for model in sorted({item.model for item in found.decoded}, key=natural_order):
        lines += _model_lines(model, [item for item in found.decoded if item.model == model], images, normaliser)
    lines += _training_lines(exp, images)
    if unscored := {**found.unfinished, **found.untranscribed, **found.failed}:
        lines += ["", f"## Not scored: {len(unscored)} of {len(directories)} sets", ""]
        lines += [f"- {message}" for message in unscored.values()]
    write_between_marks(results, [*lines, ""], "scores", "speechllm-xl score", "# RESULTS")
    return found
