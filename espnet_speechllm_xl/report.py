"""Scores, alignments and training written down: ESPnet's score directories, RESULTS.md, report.md.

<decode>/<set>/score_{wer,cer,ter}/{ref.trn,hyp.trn,result.txt}     trn lines: words<TAB>(speaker-utterance)
RESULTS.md                                                          |dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|
"""

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import math
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from . import metrics, plots
from .ctm import read_ctm
from .errors import UserError
from .io import atomic_write
from .kaldi import Joined, joined, read_table
from .metrics import Counts

KINDS = {"wer": "words", "cer": "characters", "ter": "tokens"}
# Between the first and the second stands what a program writes into a Markdown file; the rest of it is kept.
MARKS = "<!-- {name}: begin (written by `{program}`; text outside these two marks is kept) -->", "<!-- {name}: end -->"

log = logging.getLogger(__name__)


# Score directories


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
                stream.write(f"{' '.join(getattr(item, side))}\t({speakers[utterance]}-{utterance})\n")
    with atomic_write(directory / "result.txt") as stream:
        stream.write(result_text(scored, speakers, title, unit))


def score_set(references, hypotheses, speakers, out, token_references=None, token_hypotheses=None, title=None):
    """Score one set and write ``score_wer``, ``score_cer`` and (with tokens) ``score_ter`` below ``out``.

    ``references`` and ``hypotheses``: ``{utterance: text}``; ``speakers``: ``{utterance: speaker}``; tokens are texts
    of pieces with spaces between.  Returns ``{"wer": ScoredSet, "cer": ..., "ter": ...}``.  A reference without
    hypothesis counts as deletions and is named in a warning.  Raises UserError naming the utterances for a
    hypothesis without reference, and for a reference without speaker.
    """
    title = title or str(out)
    if not references:
        raise UserError(f"{title}: the references are empty: give a text file with at least one utterance")
    unknown = sorted(set(references) - set(speakers))
    if unknown:
        raise UserError(f"{title}: utt2spk lacks {metrics.some_names(unknown)} ({len(unknown)} in all): add them")

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
        write_score_dir(Path(out) / f"score_{kind}", scored, speakers, f"{kind.upper()} of {title}", KINDS[kind])
    return scores


# Training logs


_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "year": 31449600}
_TIMESPAN = re.compile(r"([\d.]+) (millisecond|second|minute|hour|day|week|year)s?")


def timespan_seconds(text):
    """Seconds of humanfriendly's ``1 hour, 2 minutes and 3.5 seconds``; None when the text is no such time."""
    parts = _TIMESPAN.findall(text)
    return sum(float(value) * _SECONDS.get(unit, 0.001) for value, unit in parts) if parts else None


def parse_epoch_line(line):
    """ESPnet's ``3epoch results: [train] loss=1.2, ..., time=5 minutes and 2.1 seconds, ..., [valid] ...``.

    Returns (epoch, ``{"train": {key: number}, ...}``), times in seconds, or None for any other line.
    """
    found = re.search(r"(\d+)\s*epoch results:\s*(\[.*)", line)
    if not found:
        return None
    parts = {}
    for section, body in re.findall(r"\[(\w+)\]\s*(.*?)(?=,\s*\[\w+\]|$)", found[2]):
        values = parts.setdefault(section, {})
        # A time holds commas too: a value ends where the next ``key=`` begins.
        for key, value in re.findall(r"([\w.]+)=(.*?)(?=,\s*[\w.]+=|$)", body):
            try:
                number = float(value)
            except ValueError:
                number = timespan_seconds(value)
            if number is not None:
                values[key] = number
    return int(found[1]), parts


def read_train_log(directory):
    """Epoch results of the training in ``directory``: ``{epoch: {"train": {...}, "valid": {...}}}``.

    Reads ``train.log`` and the older ``train.N.log`` that ESPnet's launcher leaves.  A run that starts again at
    epoch e replaces what earlier logs said from e on.  Empty when there is no log.
    """

    def age(path):
        number = re.fullmatch(r"train\.(\d+)\.log", path.name)
        return -int(number[1]) if number else 0

    epochs = {}
    logs = [path for path in Path(directory).glob("train*.log") if re.fullmatch(r"train(\.\d+)?\.log", path.name)]
    for path in sorted(logs, key=age):
        with open(path, encoding="utf-8", errors="replace") as stream:
            for found in filter(None, map(parse_epoch_line, stream)):
                epoch, parts = found
                epochs = {number: values for number, values in epochs.items() if number < epoch}
                epochs[epoch] = parts
    return epochs


def training_summary(epochs):
    """(number of epochs, best epoch, its validation loss, seconds of training and validation) of a training log."""
    losses = {epoch: parts.get("valid", {}).get("loss", math.nan) for epoch, parts in epochs.items()}
    finite = [(loss, epoch) for epoch, loss in losses.items() if math.isfinite(loss)]
    loss, best = min(finite) if finite else (None, None)
    seconds = sum(values.get("time", 0.0) for parts in epochs.values() for values in parts.values())
    return len(epochs), best, loss, seconds


# RESULTS.md


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


def _shown(value, form="{}"):
    return "-" if value is None else form.format(value)


def real_time_factor(info):
    """Decoding time / duration of the audio, from the contents of ``decode.json``; None where they lack it."""
    audio, seconds = info.get("audio_seconds"), info.get("seconds")
    return None if audio is None or seconds is None else metrics.real_time_factor(seconds, audio)


def speed_table(rows):
    """Table of decoding speed; ``rows``: (dataset, contents of its ``decode.json``) pairs."""
    lines = ["|dataset|Utt|audio (s)|decoding (s)|RTF|device|capped|failed|", "|---|---|---|---|---|---|---|---|"]
    for name, info in rows:
        times = (_shown(info.get("audio_seconds"), "{:.1f}"), _shown(info.get("seconds"), "{:.1f}"))
        times += (_shown(real_time_factor(info), "{:.3f}"),)
        cells = [_shown(info.get("utterances")), *times]
        cells += [_shown(info.get(key)) for key in ("device", "capped", "failed")]
        lines.append(f"|{name}|{'|'.join(cells)}|")
    return lines


def training_table(rows):
    """Table of trainings; ``rows``: (model, epochs of :func:`read_train_log`) pairs."""
    lines = ["|model|epochs|best epoch|valid loss|training time|", "|---|---|---|---|---|"]
    for name, epochs in rows:
        count, best, loss, seconds = training_summary(epochs)
        time = datetime.timedelta(seconds=round(seconds))
        lines.append(f"|{name}|{count}|{_shown(best)}|{_shown(loss, '{:.3f}')}|{time}|")
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


def _natural(text):
    """Sorting key that puts ``2x`` before ``10x``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text)]


def _reference_dir(dump, dataset):
    dump = Path(dump)
    for path in (dump / "raw" / dataset, dump / dataset):
        if (path / "text").is_file():
            return path
    return None


def decoded_sets(exp, dump):
    """The directories ``<exp>/<model>/decode_*/<set>/`` to score, in natural order.

    A directory counts when it holds ``text`` or bears the name of a set in ``dump``.
    """
    found = [path for path in Path(exp).glob("*/decode_*/*/") if path.is_dir()]
    found = [path for path in found if (path / "text").exists() or _reference_dir(dump, path.name)]
    return sorted(found, key=lambda path: _natural(path.as_posix()))


def _read_info(path):
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
    return {name: " ".join(processor.encode(text, out_type=str)) for name, text in table.items()}


def read_decoded(directory, dump):
    """What ``<exp>/<model>/decode_*/<set>`` is scored with.

    Returns (references, hypotheses, speakers, info): tables by utterance, the first and the third of the set in
    ``dump``, and the contents of ``decode.json``.  Raises UserError (UnfinishedError without hypotheses) or OSError.
    """
    directory = Path(directory)
    if not (directory / "text").is_file():
        raise UnfinishedError(f"{directory}: no text file: the set is being decoded, or run the decode stage again")
    source = _reference_dir(dump, directory.name)
    if source is None:
        raise UserError(f"{directory}: {dump}/raw/{directory.name}/text is not there: run the format stage")
    info = _read_info(directory / "decode.json")
    return read_table(source / "text"), read_table(directory / "text"), read_table(source / "utt2spk"), info


def score_decoded(directory, dump):
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
    scores = score_set(references, hypotheses, speakers, directory, *tokens, title=title)
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


def score_experiment(exp, dump, results, command=None, date=None):
    """Score every decoded set below ``exp`` and write ``results`` (RESULTS.md), figures in ``images/`` beside it.

    Returns (list of :class:`Decoded`, unfinished, failed), the latter two ``{directory: message}`` of the sets that
    are not decoded to their end, which is no error while another training of ``exp`` decodes, and of those that could
    not be scored; together they are all sets found, and those without scores stand in RESULTS.md too.  ``command``:
    how the results were made.  Raises FileNotFoundError when there is nothing to score.
    """
    directories = decoded_sets(exp, dump)
    if not directories:
        raise FileNotFoundError(f"{exp}: no <model>/decode_*/<set>/text below it: run the decode stage, or mend --exp")
    decoded, unfinished, failed = [], {}, {}
    for directory in directories:
        try:
            decoded.append(score_decoded(directory, dump))
        except (UserError, OSError) as error:
            (unfinished if isinstance(error, UnfinishedError) else failed)[str(directory)] = str(error)
            log.warning(f"not scored: {error}")
    images = Path(results).parent / "images"
    lines = made_lines(command, date)
    for model in sorted({item.model for item in decoded}, key=_natural):
        lines += _model_lines(model, [item for item in decoded if item.model == model], images)
    lines += _training_lines(exp, images)
    if unscored := {**unfinished, **failed}:
        lines += ["", f"## Not scored: {len(unscored)} of {len(directories)} sets", ""]
        lines += [f"- {message}" for message in unscored.values()]
    write_between_marks(results, [*lines, ""], "scores", "speechllm-xl score", "# RESULTS")
    return decoded, unfinished, failed


# Alignment report (paper Table III)


def _delay_row(label, item):
    cells = (_shown(getattr(item, name), "{:.1f}") for name in ("delay", "delta", "median", "p95"))
    return f"|{label}|{item.words}|{'|'.join(cells)}|"


def alignment_report(words_ctm, ref_ctm, out_dir, left_out=None, title="Alignment"):
    """Compare word ends with a reference and write ``report.md``, ``delay.json`` and ``delay.png`` into ``out_dir``.

    ``words_ctm`` and ``ref_ctm``: CTM files; ``left_out``: ``{utterance: reason}`` of those that could not be aligned.
    Returns the contents of the JSON file: ``delay_ms`` (mean signed difference of word ends, negative: early),
    ``delta_ms`` (mean absolute difference), the same for ``non_final`` and ``final`` words, and the utterances:
    matched + unmatched (by reason) = total.  Raises UserError naming the line of a CTM file that cannot be read.
    """
    out_dir = Path(out_dir)
    compared = metrics.end_differences(read_ctm(words_ctm), read_ctm(ref_ctm), left_out)
    groups = {
        "all": metrics.delay(compared.non_final + compared.final),
        "non_final": metrics.delay(compared.non_final),
        "final": metrics.delay(compared.final),
    }
    reasons = dict(sorted(Counter(compared.unmatched.values()).items()))
    content = {
        name: {f"{key}_ms" if key != "words" else key: value for key, value in dataclasses.asdict(item).items()}
        for name, item in groups.items()
    }
    total = len(compared.matched) + len(compared.unmatched)
    utterances = {"total": total, "matched": len(compared.matched), "unmatched": reasons}
    content = {**content.pop("all"), **content, "utterances": utterances, "unmatched": compared.unmatched}
    with atomic_write(out_dir / "delay.json") as stream:
        json.dump(content, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
    lines = [
        f"# {title}",
        "",
        "Word ends against the reference, in ms (negative: earlier than the reference). delay: mean; delta: mean of",
        "the absolute differences; median: of the signed ones; p95: 95 % of the absolute differences are within it.",
        "",
        "|words|number|delay|delta|median|p95|",
        "|---|---|---|---|---|---|",
        _delay_row("all", groups["all"]),
        _delay_row("not last of the utterance", groups["non_final"]),
        _delay_row("last of the utterance", groups["final"]),
        "",
        f"Utterances: {total}, of them compared: {len(compared.matched)}, not compared: {len(compared.unmatched)}.",
        *(f"- {reason}: {count}" for reason, count in reasons.items()),
    ]
    if compared.matched:
        plots.plot_delay_histogram(compared.non_final, compared.final, out_dir / "delay.png", title)
        lines += ["", "![delay](delay.png)"]
    with atomic_write(out_dir / "report.md") as stream:
        stream.write("\n".join(lines) + "\n")
    return content


# Latency report

_GROUPS = {"all": "all", "first": "first of the utterance", "not_last": "not last", "last": "last of the utterance"}
_NOTES = """
A word is emitted when it is settled: never taken back from then on. delay: emission minus the word's end in the
reference, of correct words. Audio clock: the audio pushed by then. Wall clock: compute time added, as if the audio
arrived in real time; it holds for this machine and what else ran on it. algorithmic: the longest wait for chunk,
encoder segment and look-ahead. The end of a recording settles all that is open then: on the audio clock the last
words are delayed by no more than the silence after them, tail_seconds included.
"""


def latency_report(out_dir, setup, sizes, command=None, date=None):
    """Write ``LATENCY.md``, ``latency.json`` and the accuracy-latency curve ``latency.png`` into ``out_dir``.

    Args:
        out_dir: directory.
        setup: dict of what was measured, for JSON: ``model`` and ``set`` (the title), ``reference`` (CTM or None), ...
        sizes: one dict for each chunk size: that of ``latency.summary`` with ``chunk_seconds``, ``context_seconds``
            and ``algorithmic_seconds`` (None: infinite).
        command: how it was made.

    Returns the table of the chunk sizes, as lines.
    """
    out_dir = Path(out_dir)
    with atomic_write(out_dir / "latency.json") as stream:
        json.dump({**setup, "chunk_sizes": sizes}, stream, ensure_ascii=False, indent=1, allow_nan=False)
        stream.write("\n")
    title = f"Latency of {Path(setup['model']).name} on {Path(setup['set']).name}"
    points = []
    for size in sizes:
        delay, label = size["delay_ms"]["all"], f"{_seconds(size['chunk_seconds'])} s"
        if delay["count"]:
            points.append((label, size["wer"], delay["p50"] / 1000, delay["p90"] / 1000))
    table = latency_table(sizes)
    lines = [f"# {title}", *made_lines(command, date), *(f"- {name}: `{value}`" for name, value in setup.items())]
    lines += ["", "## Chunk sizes", "", *table, _NOTES, "## Emission delay, ms", "", *emission_table(sizes)]
    if setup["reference"] is None:
        lines += ["", "There is no reference: delays are against the word ends that the stream itself reports."]
    else:
        lines += ["", "## Word ends of the stream against the reference, ms", "", *word_end_table(sizes)]
    lines += ["", "## Words", "", *counts_table(sizes)]
    plot = out_dir / "latency.png"
    plot.unlink(missing_ok=True)  # of an earlier run that had a reference
    if points:
        lines += ["", f"![accuracy and latency]({plots.plot_latency(plot, points, title).name})"]
    with atomic_write(out_dir / "LATENCY.md") as stream:
        stream.write("\n".join(lines) + "\n")
    return table


def _seconds(value):
    return "inf" if value is None else f"{value:g}"


def latency_table(sizes):
    """One row for each chunk size (``latency.summary`` with its settings): accuracy, delay of all words, speed."""
    head = ("chunk (s)", "context (s)", "algorithmic (s)", "WER (%)", "delay P50 (ms)", "delay P90 (ms)")
    head += ("compute a chunk P50 (ms)", "compute a chunk P99 (ms)", "RTF", "capped")
    lines = [f"|{'|'.join(head)}|", "|---" * len(head) + "|"]
    for size in sizes:
        times = (_seconds(size[f"{name}_seconds"]) for name in ("chunk", "context", "algorithmic"))
        delay, compute = size["delay_ms"]["all"], size["compute_ms_per_chunk"]
        values = [(size["wer"], "{:.1f}"), (delay["p50"], "{:.0f}"), (delay["p90"], "{:.0f}")]
        values += [(compute["p50"], "{:.1f}"), (compute["p99"], "{:.1f}"), (size["rtf"], "{:.3f}")]
        shown = (_shown(*value) for value in values)
        lines.append(f"|{'|'.join((*times, *shown, str(size['capped'])))}|")
    return lines


def emission_table(sizes):
    """Emission delays of each chunk size by the word's place in the utterance, on both clocks, in ms."""
    names = ("mean", "P50", "P90", "P99")
    head = ("chunk (s)", "words", "number", *names, *(f"wall {name}" for name in names))
    lines = [f"|{'|'.join(head)}|", "|---" * len(head) + "|"]
    for size in sizes:
        for group, label in _GROUPS.items():
            both = [size[clock][group] for clock in ("delay_ms", "wall_delay_ms")]
            cells = [_shown(item[name.lower()], "{:.0f}") for item in both for name in names]
            lines.append(f"|{'|'.join((_seconds(size['chunk_seconds']), label, str(both[0]['count']), *cells))}|")
    return lines


def word_end_table(sizes):
    """Paper Table III for the word times of streams, in ms."""
    lines = ["|chunk (s)|words|number|delay|delta|median|p95|", "|---|---|---|---|---|---|---|"]
    for size in sizes:
        for group, item in size["word_ends_ms"].items():
            lines.append(f"|{_seconds(size['chunk_seconds'])}{_delay_row(_GROUPS[group], metrics.Delay(**item))}")
    return lines


def counts_table(sizes):
    """Which words of the reference were measured, and why the others were not."""
    reasons = sorted({reason for size in sizes for reason in size["words"]["left_out"]})
    head = ("chunk (s)", "in the reference", "= measured", *(f"+ {reason}" for reason in reasons), "inserted besides")
    lines = [f"|{'|'.join(head)}|", "|---" * len(head) + "|"]
    for size in sizes:
        words = size["words"]
        counts = (words["reference"], words["measured"], *(words["left_out"].get(each, 0) for each in reasons))
        lines.append(f"|{'|'.join(map(str, (_seconds(size['chunk_seconds']), *counts, words['inserted'])))}|")
    return lines
