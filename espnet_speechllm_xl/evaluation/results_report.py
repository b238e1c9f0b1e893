"""RESULTS.md: what all decodings and trainings of a recipe came to, in ESPnet's form.

|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|
"""

import datetime
import logging
from pathlib import Path

from espnet_speechllm_xl.corpus.kaldi import Joined, joined, read_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import plots
from espnet_speechllm_xl.evaluation.decoded_sets import (
    Decoded,
    NoTextError,
    UnfinishedError,
    decoded_sets,
    natural_order,
    read_decoded,
    real_time_factor,
)
from espnet_speechllm_xl.evaluation.markdown import made_lines, shown, write_between_marks
from espnet_speechllm_xl.evaluation.score_directories import KINDS, score_set
from espnet_speechllm_xl.evaluation.scoring_inputs import NOTHING_IGNORED
from espnet_speechllm_xl.evaluation.train_log import read_train_log, training_summary
from espnet_speechllm_xl.tokenization import normalise

log = logging.getLogger(__name__)


def score_table(rows):
    """ESPnet's table; ``rows``: (dataset, :class:`Counts`) pairs."""
    lines = ["|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|", "|---|---|---|---|---|---|---|---|---|"]
    for name, counts in rows:
        rates = "|".join(f"{rate:.1f}" for rate in counts.rates())
        lines.append(f"|{name}|{counts.sentences}|{counts.words}|{rates}|")
    return lines


def speed_table(rows):
    """Table of decoding speed; ``rows``: (dataset, contents of its ``decode.json``) pairs."""
    lines = ["|dataset|Utt|audio (s)|decoding (s)|RTF|device|capped|failed|", "|---|---|---|---|---|---|---|---|"]
    for name, info in rows:
        times = (shown(info.get("audio_seconds"), "{:.1f}"), shown(info.get("seconds"), "{:.1f}"))
        times += (shown(real_time_factor(info), "{:.3f}"),)
        cells = [shown(info.get("utterances")), *times]
        cells += [shown(info.get(key)) for key in ("device", "capped", "failed")]
        lines.append(f"|{name}|{'|'.join(cells)}|")
    return lines


def training_table(rows):
    """Table of trainings; ``rows``: (model, epochs of :func:`read_train_log`) pairs."""
    lines = ["|model|epochs|best epoch|valid loss|training time|", "|---|---|---|---|---|"]
    for name, epochs in rows:
        count, best, loss, seconds = training_summary(epochs)
        time = datetime.timedelta(seconds=round(seconds))
        lines.append(f"|{name}|{count}|{shown(best)}|{shown(loss, '{:.3f}')}|{time}|")
    return lines


def _tokenize(model, table):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return {name: " ".join(processor.encode(normalise(text), out_type=str)) for name, text in table.items()}


def score_decoded(directory, dump, ignored=NOTHING_IGNORED):
    """Score one ``<exp>/<model>/decode_*/<set>`` directory; returns :class:`Decoded`, raises UserError or OSError."""
    directory = Path(directory)
    references, hypotheses, speakers, info = read_decoded(directory, dump)
    model = directory.parent.parent / "tokenizer.model"
    tokens = (None, None)
    if model.is_file():
        emitted = directory / "token"
        token_hypotheses = read_table(emitted, empty_values=True) if emitted.is_file() else _tokenize(model, hypotheses)
        tokens = (_tokenize(model, references), token_hypotheses)
    title = "/".join(directory.parts[-3:])
    scores = score_set(references, hypotheses, speakers, directory, *tokens, title=title, ignored=ignored)
    return Decoded(*directory.parts[-3:], scores, info)


def length_series(decoded):
    """WER of sets that differ in length only (``test``, ``test_2x``, ``test_10x``), for bars.

    Returns ``{set: (["1x", "2x", ...], {decoding: [percent or None, ...]})}``, sets with two lengths or more; what
    was joined in another way than the usual one is named ``test_shuffled``.
    """
    found = {}
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


def _model_lines(model, decoded, images):
    lines = ["", f"## {model}"]
    for kind in KINDS:
        rows = [(item.name, item.scores[kind].total) for item in decoded if kind in item.scores]
        if rows:
            lines += ["", f"### {kind.upper()}", "", *score_table(rows)]
    missing = [(item.name, item.scores["wer"].missing) for item in decoded if item.scores["wer"].missing]
    lines += [f"\n{name}: {len(ids)} utterances without hypothesis count as deletions." for name, ids in missing]
    lines += ["", "### Speed", "", *speed_table([(item.name, item.info) for item in decoded])]
    for base, (lengths, series) in length_series(decoded).items():
        path = plots.plot_length_bars(images / f"{model}_{base}_length.png", lengths, series, f"{model}, {base}")
        lines += ["", f"![WER of {base} by length]({images.name}/{path.name})"]
    return lines


def _training_lines(exp, images):
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


def score_experiment(exp, dump, results, command=None, date=None, ignored=NOTHING_IGNORED):
    """Score every decoded set below ``exp`` and write ``results`` (RESULTS.md), figures in ``images/`` beside it.

    Returns (list of :class:`Decoded`, unfinished, untranscribed, failed), the latter three ``{directory: message}`` of
    the sets that are not decoded to their end, which is no error while another training of ``exp`` decodes, of those
    that have no transcripts, and of those that could not be scored; together they are all sets found, and those without
    scores stand in RESULTS.md too.  ``command``: how the results were made; ``ignored``: what is not scored.  Raises
    UserError when nothing is decoded.
    """
    directories = decoded_sets(exp, dump)
    if not directories:
        raise UserError(f"{exp}: no <model>/decode_*/<set>/text below it: run the decode stage, or mend --exp")
    decoded, unfinished, untranscribed, failed = [], {}, {}, {}
    for directory in directories:
        try:
            decoded.append(score_decoded(directory, dump, ignored))
        except (UserError, OSError) as error:
            kinds = {UnfinishedError: unfinished, NoTextError: untranscribed}
            kinds.get(type(error), failed)[str(directory)] = str(error)
            log.warning(f"not scored: {error}")
    images = Path(results).parent / "images"
    lines = made_lines(command, date)
    lines += ["", f"WER and CER{ignored}."] if str(ignored) else []
    for model in sorted({item.model for item in decoded}, key=natural_order):
        lines += _model_lines(model, [item for item in decoded if item.model == model], images)
    lines += _training_lines(exp, images)
    if unscored := {**unfinished, **untranscribed, **failed}:
        lines += ["", f"## Not scored: {len(unscored)} of {len(directories)} sets", ""]
        lines += [f"- {message}" for message in unscored.values()]
    write_between_marks(results, [*lines, ""], "scores", "speechllm-xl score", "# RESULTS")
    return decoded, unfinished, untranscribed, failed
