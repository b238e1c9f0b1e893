"""Report on an alignment: its delays against a reference (paper Table III), with plots."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

from espnet_speechllm_xl.corpus.ctm import read_ctm
from espnet_speechllm_xl.corpus.kaldi import kind_of_reason
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics, plots
from espnet_speechllm_xl.evaluation.markdown import shown
from espnet_speechllm_xl.files import atomic_write


def delay_row(label, item):
    cells = (shown(getattr(item, name), "{:.1f}") for name in ("delay", "delta", "median", "p95"))
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
        "Word ends against the reference, in ms (negative: earlier than the reference). word-end delay: mean;",
        "word-end delta: mean of the absolute differences; median: of the signed ones; p95: 95 % of the absolute",
        "differences are within it.",
        "",
        "|words|number|word-end delay|word-end delta|median|p95|",
        "|---|---|---|---|---|---|",
        delay_row("all", groups["all"]),
        delay_row("not last of the utterance", groups["non_final"]),
        delay_row("last of the utterance", groups["final"]),
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


def write_report(aligned, dump, chunk=32, plots=3):
    """Write ``aligned/report/``; returns the line to print and the list of plots that failed, each with the reason.

    Args:
        aligned: directory made by ``speechllm-xl align``.
        dump: the set that was aligned.
        chunk: frames between the borders drawn.
        plots: utterances drawn, evenly spaced in the list; at most all.

    Raises:
        UserError: a file is missing or damaged, or the two directories are not of the same utterances.
    """
    from espnet_speechllm_xl.corpus.ctm import read_ctm
    from espnet_speechllm_xl.corpus.kaldi import read_table

    audio = read_table(aligned / "wav.scp")
    failed = read_table(aligned / "failed")
    everything = read_table(dump / "text")
    if {*audio, *failed} != set(everything):
        raise UserError(
            f"{aligned} ({len(audio)} aligned, {len(failed)} failed) is not of {dump} ({len(everything)} utterances): "
            "run the align stage again"
        )
    words = read_ctm(aligned / "words.ctm")
    out, reference = aligned / "report", dump / "ref.ctm"
    left_out = {utterance: "no words" for utterance in audio if utterance not in words}
    left_out.update((utterance, kind_of_reason(reason)) for utterance, reason in failed.items())
    if reference.is_file():
        line, theirs = _compare(aligned, reference, out, left_out), read_ctm(reference)
    else:
        line, theirs = _without(reference, out, audio, left_out), {}
    chosen = _spread(sorted(words), plots)
    drawn, failures = _draw(chosen, audio, words, theirs, chunk, out)
    _list_plots(out / "report.md", drawn)
    return f"{aligned}: {line}; {len(drawn)} plots; see {out / 'report.md'}", failures


def _listed(reasons):
    """``3 not (2 too few frames, 1 empty text)`` of a Counter; ``0 not`` when it is empty."""
    names = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"{sum(reasons.values())} not" + (f" ({names})" if names else "")


def _compare(aligned, reference, out, left_out):
    content = alignment_report(aligned / "words.ctm", reference, out, left_out, f"Alignment of {aligned.name}")
    utterances = content["utterances"]
    unmatched = _listed(utterances["unmatched"])
    counts = f"{utterances['matched']} of {utterances['total']} utterances compared, {unmatched}"
    if not content["words"]:
        return f"no word to compare with {reference}; {counts}"
    delay, delta = (f"word-end {name} {content[f'{name}_ms']:.1f} ms" for name in ("delay", "delta"))
    return f"{delay}, {delta} over {content['words']} words; {counts}"


def _without(reference, out, audio, left_out):
    from espnet_speechllm_xl.files import atomic_write

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


def _spread(names, count):
    """``count`` of ``names`` (all of them when fewer), evenly spaced."""
    count = min(count, len(names))
    return [names[index * len(names) // count] for index in range(count)]


def _draw(chosen, audio, words, reference, chunk, out):
    """Draw each chosen utterance; returns ``[(utterance, file)]`` and the failures."""
    from espnet_speechllm_xl.corpus.audio import AudioError, read_audio
    from espnet_speechllm_xl.corpus.ctm import spoken
    from espnet_speechllm_xl.evaluation.plots import plot_utterance

    drawn, failures, rate = [], [], 16000
    for number, utterance in enumerate(chosen, 1):
        try:
            samples = read_audio(audio[utterance], rate, notes={})
        except AudioError as error:
            failures.append(f"{utterance}: {error}")
            continue
        ends = [(word.text, word.end) for word in words[utterance]]
        path = out / f"utterance_{number}.png"
        theirs = spoken(reference.get(utterance, ()), [text for text, _ in ends]).words
        plot_utterance(path, samples, rate, ends, chunk, theirs, title=utterance)
        drawn.append((utterance, path))
    kept = {path for _, path in drawn}
    for path in out.glob("utterance_*.png"):
        if path not in kept:
            path.unlink()
    return drawn, failures


def _list_plots(report, drawn):
    from espnet_speechllm_xl.files import atomic_write

    text = report.read_text(encoding="utf-8")
    with atomic_write(report) as stream:
        stream.write(text)
        stream.writelines(f"\n`{utterance}`\n\n![{path.stem}]({path.name})\n" for utterance, path in drawn)
