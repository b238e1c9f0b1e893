"""RESULTS.md: what all decodings and trainings of a recipe came to, in ESPnet's form.

|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|
"""

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

from . import metrics, plots
from .errors import UserError
from .io import atomic_write
from .kaldi import Joined, joined, read_table, read_text
from .score_dirs import KINDS, score_set
from .scoring_inputs import NOTHING_IGNORED
from .text import normalise
from .train_log import read_train_log, training_summary

# Between the first and the second stands what a program writes into a Markdown file; the rest of it is kept.
MARKS = "<!-- {name}: begin (written by `{program}`; text outside these two marks is kept) -->", "<!-- {name}: end -->"

log = logging.getLogger(__name__)


def _git(*arguments):
    """Output of a git command on this package's own repository; None when it has none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment(date=None):
    """``{name: value}``: date, versions of Python and the libraries, commit of this package."""

    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    date = date or datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    found = {"date": date, "python version": sys.version.split()[0]}
    for label, name in (("espnet", "espnet"), ("pytorch", "torch"), ("transformers", "transformers")):
        found[f"{label} version"] = version(name)
    # A package inside some other repository's ignored folder (a venv) must not show that repository's commit.
    commit = _git("log", "-1", "--format=%H %ci") if _git("ls-files", Path(__file__).name) else None
    made = ("RESULTS.md", "TABLES.md", "images/*.png", "records/*")
    others = (":/", *(f":(exclude,top,glob)**/{name}" for name in made))
    changed = bool(_git("status", "--porcelain", "--untracked-files=no", "--", *others))
    commit, _, when = (commit or "unknown").partition(" ")
    found["git hash"] = commit + (" and changes not committed" if changed and when else "")
    return {**found, "commit date": when} if when else found


def made_lines(command=None, date=None):
    """The section that says where and how the figures of a report were made; ``command`` as it could be typed."""
    values = {**environment(date), **({"command": command} if command else {})}
    return ["", "## Environments", "", *(f"- {name}: `{value}`" for name, value in values.items())]


def score_table(rows):
    """ESPnet's table; ``rows``: (dataset, :class:`Counts`) pairs."""
    lines = ["|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|", "|---|---|---|---|---|---|---|---|---|"]
    for name, counts in rows:
        rates = "|".join(f"{rate:.1f}" for rate in counts.rates())
        lines.append(f"|{name}|{counts.sentences}|{counts.words}|{rates}|")
    return lines


def shown(value, form="{}"):
    """``value`` in a table, ``-`` for None."""
    return "-" if value is None else form.format(value)


def real_time_factor(info):
    """Decoding time / duration of the audio, from the contents of ``decode.json``; None where they lack it."""
    audio, seconds = info.get("audio_seconds"), info.get("seconds")
    return None if audio is None or seconds is None else metrics.real_time_factor(seconds, audio)


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


def write_between_marks(path, lines, name, program, heading):
    """Put ``lines`` between the marks of a Markdown file; what people wrote before and after them is kept.

    A file without marks keeps its text and gets the block at its end; a new one begins with ``heading``.  ``name`` and
    ``program`` stand in the marks.  Raises UserError when only one mark is left.
    """
    path, (begin, end) = Path(path), (mark.format(name=name, program=program) for mark in MARKS)
    old = path.read_text(encoding="utf-8") if path.exists() else f"{heading}\n"
    if (begin in old) != (end in old) or old.count(begin) > 1 or old.find(end) < old.find(begin):
        raise UserError(f"{path}: the marks '{begin}' and '{end}' are not one pair: mend or remove them")
    block = "\n".join([begin, *lines, end])
    if begin in old:
        new = old[: old.index(begin)] + block + old[old.index(end) + len(end) :]
    else:
        new = old.rstrip("\n") + "\n\n" + block + "\n"
    with atomic_write(path) as stream:
        stream.write(new)


# All decodings of a recipe


@dataclasses.dataclass
class Decoded:
    """One decoded and scored set: ``scores`` as :func:`score_set` returns, ``info`` from ``decode.json``."""

    model: str
    decode: str
    dataset: str
    scores: dict
    info: dict

    @property
    def name(self):
        """The row's name in tables."""
        return f"{self.decode}/{self.dataset}"


class UnfinishedError(UserError):
    """A set has no hypotheses yet."""


class NoTextError(UserError):
    """A set has no transcripts to score its hypotheses with."""


def _natural(text):
    """Sorting key that puts ``2x`` before ``10x``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text)]


def _reference_dir(dump, dataset):
    dump = Path(dump)
    for path in (dump / "raw" / dataset, dump / dataset):
        if (path / "text").is_file() or (path / "wav.scp").is_file():
            return path
    return None


def decoded_sets(exp, dump):
    """The directories ``<exp>/<model>/decode_*/<set>/`` to score, in natural order.

    A directory counts when it holds ``text`` or bears the name of a set in ``dump``.
    """
    found = [path for path in Path(exp).glob("*/decode_*/*/") if path.is_dir()]
    found = [path for path in found if (path / "text").exists() or _reference_dir(dump, path.name)]
    return sorted(found, key=lambda path: _natural(path.as_posix()))


def read_info(path):
    """The contents of a ``decode.json``, {} with a warning where there is none; raises UserError."""
    if not path.exists():
        log.warning(f"{path}: not there, so no RTF: run the decode stage again to have it")
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}): run the decode stage again") from error
    if not isinstance(info, dict):
        raise UserError(f"{path}: holds no JSON object: run the decode stage again")
    return info


def _tokenize(model, table):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return {name: " ".join(processor.encode(normalise(text), out_type=str)) for name, text in table.items()}


def read_decoded(directory, dump):
    """What ``<exp>/<model>/decode_*/<set>`` is scored with.

    Returns (references, hypotheses, speakers, info): tables by utterance, the first and the third of the set in
    ``dump``, and the contents of ``decode.json``.  Raises UserError (UnfinishedError without hypotheses, NoTextError
    without references) or OSError.
    """
    directory = Path(directory)
    if not (directory / "text").is_file():
        raise UnfinishedError(f"{directory}: no text file: the set is being decoded, or run the decode stage again")
    source = _reference_dir(dump, directory.name)
    if source is None:
        raise UserError(f"{directory}: {dump}/raw/{directory.name}/text is not there: run the format stage")
    if not (source / "text").is_file():
        raise NoTextError(f"{directory}: decoded, but {source} has no text to score it with")
    info, references = read_info(directory / "decode.json"), read_text(source / "text")
    counted = info["utterances"] + info.get("failed", 0) if "utterances" in info else len(references)
    if counted != len(references):
        raise UserError(
            f"{directory}: {counted} utterances were decoded, {source} has {len(references)}: "
            "the data was made anew since; run the decode stage again, or remove the directory"
        )
    return references, read_text(directory / "text"), read_table(source / "utt2spk"), info


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
            decodes = sorted({decode for _, decode in rates}, key=_natural)
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
    for model in sorted({item.model for item in decoded}, key=_natural):
        lines += _model_lines(model, [item for item in decoded if item.model == model], images)
    lines += _training_lines(exp, images)
    if unscored := {**unfinished, **untranscribed, **failed}:
        lines += ["", f"## Not scored: {len(unscored)} of {len(directories)} sets", ""]
        lines += [f"- {message}" for message in unscored.values()]
    write_between_marks(results, [*lines, ""], "scores", "speechllm-xl score", "# RESULTS")
    return decoded, unfinished, untranscribed, failed
