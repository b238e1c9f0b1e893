"""``python3 -m espnet_speechllm_xl.bin.align_report``: how good an aligned set is, in figures and pictures.

``ALIGNED/report/`` gets ``report.md`` and ``utterance_N.png`` (audio, word ends, chunk borders); where the dump has
reference word times (``ref.ctm``) also ``delay.json`` and ``delay.png`` (paper Table III).
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.bin.align import kind_of_reason
from espnet_speechllm_xl.bin.options import at_least
from espnet_speechllm_xl.errors import UserError


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_speechllm_xl.bin.align_report",
        description="Compare an aligned set with reference word times, if any, and plot a few utterances.",
    )
    parser.add_argument("--aligned", required=True, metavar="DIR", help="made by speechllm-xl align")
    parser.add_argument("--dump", required=True, metavar="DIR", help="dump/raw/SET that was aligned")
    parser.add_argument(
        "--chunk", type=at_least(int, 1), default=32, help="frames (40 ms) between the boundaries drawn (default 32)"
    )
    parser.add_argument("--plots", type=at_least(int, 0), default=3, help="utterances to draw (default 3)")
    return parser


def main(argv=None):
    """Write the report; returns 0, 1 when a file is missing, damaged or cannot be drawn (one line on stderr)."""
    args = get_parser().parse_args(argv)
    return guard.run(lambda: _main(args), "align_report", bad_input=1)


def _main(args):
    summary, failures = write_report(Path(args.aligned), Path(args.dump), args.chunk, args.plots)
    print(summary)
    for failure in failures:
        print(f"align_report: not drawn: {failure}", file=sys.stderr)
    return 1 if failures else 0


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
    from espnet_speechllm_xl.ctm import read_ctm
    from espnet_speechllm_xl.kaldi import read_table

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
    from espnet_speechllm_xl.delay_reports import alignment_report

    content = alignment_report(aligned / "words.ctm", reference, out, left_out, f"Alignment of {aligned.name}")
    utterances = content["utterances"]
    unmatched = _listed(utterances["unmatched"])
    counts = f"{utterances['matched']} of {utterances['total']} utterances compared, {unmatched}"
    if not content["words"]:
        return f"no word to compare with {reference}; {counts}"
    delay, delta = (f"word-end {name} {content[f'{name}_ms']:.1f} ms" for name in ("delay", "delta"))
    return f"{delay}, {delta} over {content['words']} words; {counts}"


def _without(reference, out, audio, left_out):
    from espnet_speechllm_xl.io import atomic_write

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
    from espnet_speechllm_xl.audio import AudioError, read_audio
    from espnet_speechllm_xl.ctm import spoken
    from espnet_speechllm_xl.plots import plot_utterance

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
    from espnet_speechllm_xl.io import atomic_write

    text = report.read_text(encoding="utf-8")
    with atomic_write(report) as stream:
        stream.write(text)
        stream.writelines(f"\n`{utterance}`\n\n![{path.stem}]({path.name})\n" for utterance, path in drawn)


if __name__ == "__main__":
    sys.exit(main())
