"""Report on an alignment: its delays against a reference (paper Table III), with plots."""

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from espnet_speechllm_xl import experiment
from espnet_speechllm_xl.corpus.audio import AudioError, read_audio
from espnet_speechllm_xl.corpus.ctm import Word, read_ctm, spoken
from espnet_speechllm_xl.corpus.kaldi import READ_OTHERWISE, kind_of_reason, read_table
from espnet_speechllm_xl.corpus.transcripts import read_otherwise
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics, plots
from espnet_speechllm_xl.evaluation.markdown import markdown_table, shown
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.tokenization import words_of

DELAY_HEAD = ("words", "number", "word-end delay", "word-end delta", "median", "p95")
DRAWN_RATE = 16000  # Hz of the audio in the plots


def delay_row(label: str, item: metrics.Delay) -> list[str]:
    """Return a row of a table with ``DELAY_HEAD``, in ms."""
    figures = (getattr(item, name) for name in ("delay", "delta", "median", "p95"))
    return [label, str(item.words), *(shown(figure, "{:.1f}") for figure in figures)]


def alignment_report(
    words_ctm: str | Path,
    ref_ctm: str | Path,
    out_dir: str | Path,
    left_out: Mapping[str, str] | None = None,
    title: str = "Alignment",
) -> dict[str, Any]:
    """Compare word ends with a reference and write ``report.md``, ``delay.json`` and ``delay.png``.

    Args:
        words_ctm: CTM of the alignment.
        ref_ctm: CTM of the reference.
        out_dir: directory to write into.
        left_out: ``{utterance: reason}`` of utterances that could not be aligned.
        title: of the report.

    Returns:
        The contents of the JSON file: ``delay_ms`` (mean signed difference of word ends, negative: early), ``delta_ms``
        (mean absolute difference), the same for ``non_final`` and ``final`` words, and the utterances: matched +
        unmatched (by reason) = total.

    Raises:
        UserError: a CTM file cannot be read; the message names the line.
    """
    out_dir = Path(out_dir)
    compared = metrics.end_differences(read_ctm(words_ctm), read_ctm(ref_ctm), left_out)
    groups = {
        "all": metrics.delay(compared.non_final + compared.final),
        "non_final": metrics.delay(compared.non_final),
        "final": metrics.delay(compared.final),
    }
    reasons = dict(sorted(Counter(compared.unmatched.values()).items()))
    figures = {
        name: {f"{key}_ms" if key != "words" else key: value for key, value in dataclasses.asdict(item).items()}
        for name, item in groups.items()
    }
    total = len(compared.matched) + len(compared.unmatched)
    utterances = {"total": total, "matched": len(compared.matched), "unmatched": reasons}
    content = {**figures.pop("all"), **figures, "utterances": utterances, "unmatched": compared.unmatched}
    with atomic_write(out_dir / "delay.json") as stream:
        json.dump(content, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
    lines = _report_lines(title, groups, len(compared.matched), reasons)
    if compared.matched:
        plots.plot_delay_histogram(compared.non_final, compared.final, out_dir / "delay.png", title)
        lines += ["", "![delay](delay.png)"]
    with atomic_write(out_dir / "report.md") as stream:
        stream.write("\n".join(lines) + "\n")
    return content


def _report_lines(
    title: str, groups: Mapping[str, metrics.Delay], matched: int, reasons: Mapping[str, int]
) -> list[str]:
    """Return the text of ``report.md`` on an alignment with a reference.

    Args:
        title: of the report.
        groups: delays of ``all``, ``non_final`` and ``final`` words.
        matched: utterances that were compared.
        reasons: counts of the others by reason.
    """
    rows = [
        delay_row("all", groups["all"]),
        delay_row("not last of the utterance", groups["non_final"]),
        delay_row("last of the utterance", groups["final"]),
    ]
    others = sum(reasons.values())
    return [
        f"# {title}",
        "",
        "Word ends against the reference, in ms (negative: earlier than the reference). word-end delay: mean;",
        "word-end delta: mean of the absolute differences; median: of the signed ones; p95: 95 % of the absolute",
        "differences are within it.",
        "",
        *markdown_table(DELAY_HEAD, rows),
        "",
        f"Utterances: {matched + others}, of them compared: {matched}, not compared: {others}.",
        *(f"- {reason}: {count}" for reason, count in reasons.items()),
    ]


class _Picture(NamedTuple):
    utterance: str
    path: Path


def write_report(aligned: Path, dump: Path, chunk_size: int | None = None, num_plots: int = 3) -> tuple[str, list[str]]:
    """Write ``report/`` in the directory of an aligned set.

    Args:
        aligned: directory made by ``speechllm-xl align``, ``exp/<tag>/aligned/<set>``.
        dump: the set that was aligned.
        chunk_size: frames between the boundaries drawn; None: as the training ``exp/<tag>`` has them, none where
            it has no chunks.
        num_plots: utterances drawn, evenly spaced in the list; at most all.

    Returns:
        The line to print, and the plots that failed, each with the reason.

    Raises:
        UserError: a file is missing or damaged, or the two directories do not have the same utterances.
    """
    audio = read_table(aligned / "wav.scp")
    failed = read_table(aligned / "failed")
    everything = read_table(dump / "text")
    if {*audio, *failed} != set(everything):
        raise UserError(
            f"{aligned} ({len(audio)} aligned, {len(failed)} failed) is not of {dump} ({len(everything)} utterances): "
            "run the align stage again"
        )
    if chunk_size is None:
        chunk_size = experiment.chunk_size(experiment.read_config(aligned.resolve().parent.parent))
    words = read_ctm(aligned / "words.ctm")
    out, reference = aligned / "report", dump / "ref.ctm"
    left_out = {utterance: "no words" for utterance in audio if utterance not in words}
    left_out.update((utterance, kind_of_reason(reason)) for utterance, reason in failed.items())
    reference_words: Mapping[str, Sequence[Word]] = {}
    if reference.is_file():
        line, reference_words = _compare(aligned, reference, out, left_out), read_ctm(reference)
    else:
        line = _without_reference(reference, out, audio, left_out)
    pictures, failures = [], []
    for number, utterance in enumerate(_spread(sorted(words), num_plots), 1):
        path = out / f"utterance_{number}.png"
        try:
            _draw(path, utterance, audio[utterance], words[utterance], reference_words.get(utterance, ()), chunk_size)
            pictures.append(_Picture(utterance, path))
        except AudioError as error:
            failures.append(f"{utterance}: {error}")
    for path in {*out.glob("utterance_*.png")}.difference(picture.path for picture in pictures):
        path.unlink()  # of an earlier run
    added = [f"`{picture.utterance}`\n\n![{picture.path.stem}]({picture.path.name})" for picture in pictures]
    if (aligned / READ_OTHERWISE).is_file():
        counts = Counter(" ".join(read_table(aligned / READ_OTHERWISE).values()).split())
        num_words = sum(len(words_of(text)) for text in read_table(aligned / "text").values())
        said = read_otherwise(counts, num_words)
        added.insert(0, f"Written text: {said}.")
        line += f"; {sum(counts.values())} words not written as they are read"
    _add(out / "report.md", added)
    return f"{aligned}: {line}; {len(pictures)} plots; see {out / 'report.md'}", failures


def _listed(reasons: Mapping[str, int]) -> str:
    """Write counts by reason: ``3 not (2 too few frames, 1 empty text)``; ``0 not`` when there are none."""
    names = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"{sum(reasons.values())} not" + (f" ({names})" if names else "")


def _compare(aligned: Path, reference: Path, out: Path, left_out: Mapping[str, str]) -> str:
    """Write the report on an alignment with a reference; return the line to print."""
    content = alignment_report(aligned / "words.ctm", reference, out, left_out, f"Alignment of {aligned.name}")
    utterances = content["utterances"]
    unmatched = _listed(utterances["unmatched"])
    counts = f"{utterances['matched']} of {utterances['total']} utterances compared, {unmatched}"
    if not content["words"]:
        return f"no word to compare with {reference}; {counts}"
    delay, delta = (f"word-end {name} {content[f'{name}_ms']:.1f} ms" for name in ("delay", "delta"))
    return f"{delay}, {delta} over {content['words']} words; {counts}"


def _without_reference(reference: Path, out: Path, audio: Collection[str], left_out: Mapping[str, str]) -> str:
    """Write the report on an alignment without a reference; return the line to print."""
    for name in ("delay.json", "delay.png"):  # of an earlier run that had a reference
        (out / name).unlink(missing_ok=True)
    with_words = len(audio) - sum(utterance in left_out for utterance in audio)
    unmatched = _listed(Counter(left_out.values()))
    counts = f"{with_words} of {with_words + len(left_out)} utterances aligned, {unmatched}"
    with atomic_write(out / "report.md") as stream:
        stream.write(
            f"# Alignment of {out.parent.name}\n\nThere is no reference ({reference}).\n\nUtterances: {counts}.\n"
        )
    return f"no reference ({reference}), so no word-end delay; {counts}"


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Return ``count`` of ``names`` (all of them when fewer), evenly spaced."""
    count = min(count, len(names))
    return [names[index * len(names) // count] for index in range(count)]


def _draw(
    path: Path,
    utterance: str,
    audio: str,
    words: Sequence[Word],
    reference: Sequence[Word],
    chunk_size: int | None,
) -> None:
    """Draw an utterance with the ends of its words.

    Args:
        path: of the picture.
        utterance: its id, the title.
        audio: file of the utterance.
        words: of the alignment.
        reference: the words with their times in the reference; may be empty.
        chunk_size: frames between the boundaries drawn; None: no boundaries.

    Raises:
        AudioError: the audio cannot be read.
    """
    samples = read_audio(audio, DRAWN_RATE, notes={})
    ends = [(word.text, word.end) for word in words]
    theirs = spoken(reference, [word.text for word in words]).words
    plots.plot_utterance(path, samples, DRAWN_RATE, ends, chunk_size, theirs, title=utterance)


def _add(report: Path, paragraphs: Sequence[str]) -> None:
    """Add paragraphs to a report."""
    text = report.read_text(encoding="utf-8")
    with atomic_write(report) as stream:
        stream.write(text)
        stream.writelines(f"\n{paragraph}\n" for paragraph in paragraphs)
