"""Aligning a dump set: the frames of every character, by the CTC aligner or from reference word times.

The aligned set gets Kaldi tables of the utterances that could be aligned, ``char_ends``, ``words.ctm``, ``failed``
(utterance and reason) and ``report.json``.  Where a set has ``text_spoken``, the aligner hears that, and the alignment
is moved to ``text``; ``read_otherwise`` lists the words that are not written as they are read.

Shape legend: ``T`` frames, ``V`` vocabulary.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_speechllm_xl import experiment
from espnet_speechllm_xl.corpus.ctm import folded, read_ctm, spoken, write_ctm
from espnet_speechllm_xl.corpus.kaldi import READ_OTHERWISE, SPOKEN, kind_of_reason, read_table, spk2utt, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.sets import batch_jobs
from espnet_speechllm_xl.sets.audio import SetAudio, sample_counts
from espnet_speechllm_xl.tokenization import normalise, words_of

if TYPE_CHECKING:
    import torch

    from espnet_speechllm_xl.corpus.ctm import Word
    from espnet_speechllm_xl.tokenization import Tokenizer

UNUSABLE = "unusable audio"  # a reason that may be gone the next time
WRITTEN = ("text", "spk2utt", "char_ends", "words.ctm", "failed", SPOKEN, READ_OTHERWISE, "report.json")
COPIED = ("wav.scp", "utt2spk", "utt2num_samples")  # from the dump into the aligned set

# Start frames and end frames of the characters of an utterance, or the reason why there are none.
Alignment = list[list[int]] | str


@dataclass(frozen=True)
class Aligner:
    """A trained aligner: its directory, the file of its weights (None: the averaged best), and "cpu" or "cuda"."""

    model: str
    weights: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class AlignedSet:
    """The outcome of aligning a set.

    Attributes:
        aligned: utterances that were aligned.
        total: all utterances.
        reasons: how many of the others were left out, by reason.
        done_before: an earlier run had aligned all by the same weights.
        words: words of the aligned utterances.
        read_otherwise: how often each word that is not written as it is read was found among them; None: the aligner
            heard ``text`` itself.
    """

    aligned: int
    total: int
    reasons: Counter[str]
    done_before: bool = False
    words: int = 0
    read_otherwise: Counter[str] | None = None

    @property
    def unusable(self) -> int:
        """Count the utterances whose audio could not be used."""
        return self.reasons[UNUSABLE]


def align_by_model(
    dump: Path,
    out: Path,
    aligner: Aligner,
    other_text: str | None = None,
    batch_size: int = 16,
    nj: int = 1,
    shard: tuple[int, int] | None = None,
) -> AlignedSet | None:
    """Align a dump set by a trained aligner and write the aligned set; None of a shard, which writes no set.

    Args:
        dump: the set.
        out: directory for the aligned set.
        aligner: what aligns it.
        other_text: Kaldi text with the same words in another spelling, to which the alignment is moved.
        batch_size: utterances computed at once.
        nj: processes.
        shard: (i, n): do the i-th (from 1) of n parts of the work only.

    Raises:
        UserError: the set or the model is missing or damaged, or no utterance could be aligned.
    """
    samples, text, spoken = sample_counts(dump), read_table(dump / "text"), read_spoken(dump)
    lengths = {utterance: samples.get(utterance, 0) for utterance in text}
    batches = batch_jobs.batches_by_length(lengths, batch_size)
    settings = {
        "model": aligner.model,
        "weights": aligner.weights,
        "device": aligner.device,
        "dump": str(dump),
        "stamp": experiment.stamp(
            aligner.model, dump / "text", dump / "progress.jsonl", dump / "wav.scp", dump / SPOKEN
        ),
    }
    task = {"settings": settings, "batches": batches, "text": other_text and read_table(other_text)}
    before = batch_jobs.summary_of(out / "report.json", task)
    if before and not before.get("unusable", before["failed"]):
        return AlignedSet(before["aligned"], before["total"], Counter(), done_before=True)

    def remove_others() -> None:
        for name in () if before else (*WRITTEN, *COPIED):  # lest a training takes the tables of another aligner
            (out / name).unlink(missing_ok=True)

    results = batch_jobs.run_batches(
        batches, make_worker, settings, out / ".parts", nj, f"align {dump.name}", shard, remove_others, is_unusable,
        crashed,
    )  # fmt: skip
    return None if shard else _write_set(dump, out, dict(results), text, other_text, task, spoken)


def align_by_word_times(
    dump: Path,
    out: Path,
    ctm: str,
    silences: Collection[str],
    unknown_words: Collection[str],
    other_text: str | None = None,
) -> AlignedSet:
    """Align a dump set by reference word times and write the aligned set; print its entries that are no words.

    Args:
        dump: the set.
        out: directory for the aligned set.
        ctm: file of the word times.
        silences: entries of the CTM to pass over where the transcript has no such word.
        unknown_words: entries of the CTM that stand for words that its aligner did not know.
        other_text: Kaldi text with the same words in another spelling, to which the alignment is moved.

    Raises:
        UserError: the set or the CTM is missing or damaged, or no utterance could be aligned.
    """
    text = read_table(dump / "text")
    aligned, remarks = alignments_from_ctm(ctm, text, silences, unknown_words)
    for line in remarks:
        print(line)
    return _write_set(dump, out, aligned, text, other_text, None)


def _write_set(
    dump: Path,
    out: Path,
    aligned: dict[str, Alignment],
    text: dict[str, str],
    other_text: str | None,
    task: dict[str, Any] | None,
    spoken: dict[str, str] | None = None,
) -> AlignedSet:
    """Write the aligned set; see :func:`align_by_model`.

    Args:
        dump: the set.
        out: directory for the aligned set.
        aligned: ``{utterance: alignment}``, moved to other texts in place.
        text: ``{utterance: transcript}``.
        other_text: Kaldi text to which the alignment is moved; None: ``text``.
        task: names the work for the next run.
        spoken: ``{utterance: transcript}`` that was aligned; None: ``text``.
    """
    source, text = text, read_table(other_text) if other_text else text
    otherwise: dict[str, list[str]] | None = None
    if spoken is not None:
        otherwise = move_to_written_texts(aligned, spoken, text)
    elif other_text:
        move_alignments(aligned, source, text)
    for name in COPIED:
        usable = {utterance for utterance, result in aligned.items() if not isinstance(result, str)}
        absent = usable - read_table(dump / name).keys()
        aligned.update(dict.fromkeys(absent, f"not in {name}"))
    failed = {utterance: result for utterance, result in sorted(aligned.items()) if isinstance(result, str)}
    good = {utterance: result for utterance, result in sorted(aligned.items()) if not isinstance(result, str)}
    if not good:
        reason = next(iter(failed.values()), "no utterances")
        raise UserError(f"{dump}: no utterance could be aligned, the first because: {reason}")
    found = AlignedSet(
        len(good),
        len(aligned),
        Counter(map(kind_of_reason, failed.values())),
        words=sum(len(words_of(normalise(text[utterance]))) for utterance in good),
        read_otherwise=None if otherwise is None else Counter(word for name in good for word in otherwise[name]),
    )
    if spoken is None or otherwise is None:
        for name in (SPOKEN, READ_OTHERWISE):  # of an earlier run
            (out / name).unlink(missing_ok=True)
    else:
        write_table(out / SPOKEN, {name: normalise(spoken[name]) for name in good})
        write_table(out / READ_OTHERWISE, {name: " ".join(otherwise[name]) for name in good if otherwise[name]})
    _write_tables(dump, out, text, good, failed)
    report = {"aligned": len(good), "failed": len(failed), "total": len(aligned), "unusable": found.unusable}
    with atomic_write(out / "report.json") as stream:
        json.dump({**report, "task": task and batch_jobs.digest(task)}, stream)
    if not found.unusable:  # else the next run takes over the finished batches
        batch_jobs.finish(out / ".parts")
    return found


def _write_tables(
    dump: Path, out: Path, text: dict[str, str], good: dict[str, list[list[int]]], failed: dict[str, str]
) -> None:
    from espnet_speechllm_xl.model.alignment import format_char_ends, word_times

    texts = {utterance: normalise(text[utterance]) for utterance in good}
    write_table(out / "text", texts)
    for name in COPIED:
        table = read_table(dump / name)
        write_table(out / name, {utterance: table[utterance] for utterance in good})
    write_table(out / "spk2utt", spk2utt(read_table(out / "utt2spk")))
    write_table(out / "char_ends", {utterance: format_char_ends(ends) for utterance, (_, ends) in good.items()})
    write_ctm(out / "words.ctm", {utterance: word_times(texts[utterance], *times) for utterance, times in good.items()})
    write_table(out / "failed", failed)


def read_spoken(dump: Path) -> dict[str, str] | None:
    """Read what the aligner hears in place of ``text``; None where a set has no such table.

    Raises:
        UserError: an utterance of ``text`` is not in it.
    """
    if not (dump / SPOKEN).is_file():
        return None
    spoken = read_table(dump / SPOKEN, empty_values=True)
    if absent := sorted(read_table(dump / "text").keys() - spoken.keys()):
        raise UserError(f"{dump / SPOKEN} lacks '{absent[0]}' ({len(absent)} in all): run the format stage again")
    return spoken


# By the aligner


def crashed(utterance: str, reason: str) -> list:
    """Return the result of an utterance whose process died."""
    return [utterance, f"{UNUSABLE}: {reason}"]


def is_unusable(item: list) -> bool:
    """Tell from a worker's ``[utterance, alignment]`` whether the audio could not be used."""
    _, alignment = item
    return isinstance(alignment, str) and kind_of_reason(alignment) == UNUSABLE


def make_worker(settings: dict[str, Any]) -> Callable[[list[str]], list[list]]:
    """Return a worker of :func:`~espnet_speechllm_xl.sets.batch_jobs.run_batches`.

    It gives ``[utterance, alignment]`` for each utterance id.
    """
    import torch

    from espnet_speechllm_xl.trained_model import load_model

    model, tokenizer, _ = load_model(settings["model"], "ctc", settings["weights"], settings["device"])
    dump = Path(settings["dump"])
    text = read_spoken(dump) or read_table(dump / "text")
    audio = SetAudio(dump, model.acoustic.config.sample_rate)

    def work(utterances: list[str]) -> list[list]:
        recordings, reasons = audio.usable(utterances)
        results: dict[str, Alignment] = {name: f"{UNUSABLE}: {reason}" for name, reason in reasons.items()}
        if recordings:
            speech = [(name, torch.as_tensor(recording.samples)) for name, recording in recordings.items()]
            pairs = batch_jobs.as_memory_allows(align, speech)
            for name, (alignment, reason) in zip(recordings, pairs, strict=True):
                results[name] = f"{UNUSABLE}: {reason}" if alignment is None else alignment
        return [[utterance, results[utterance]] for utterance in utterances]

    def align(speech: list[tuple[str, torch.Tensor]]) -> list[Alignment]:
        utterances, recordings = [name for name, _ in speech], [samples for _, samples in speech]
        lengths = torch.tensor([len(samples) for samples in recordings])
        padded = torch.nn.utils.rnn.pad_sequence(recordings, batch_first=True)
        with torch.no_grad():
            log_probs, counts = model.log_probs(padded.to(settings["device"]), lengths.to(settings["device"]))
        rows = zip(utterances, log_probs.cpu(), model.acoustic.audio_frames(counts).tolist(), strict=True)
        return [_align_one(row[:count], text[utterance], tokenizer, model.ctc.blank) for utterance, row, count in rows]

    return work


def _align_one(log_probs: "torch.Tensor", transcript: str, tokenizer: "Tokenizer", blank: int) -> Alignment:
    """Align the transcript of one utterance with its log-probabilities (T, V), whose token ``blank`` is CTC's."""
    from espnet_speechllm_xl.model.alignment import AlignmentError, char_times, viterbi

    transcript = normalise(transcript)
    unknown = tokenizer.unknown(transcript)
    if unknown:
        return f"unknown symbols: {''.join(sorted(set(unknown)))}"
    tokens, token_char_ends = tokenizer.encode(transcript)
    try:
        spans = viterbi(log_probs, tokens, blank)
    except AlignmentError as error:
        return str(error)
    return char_times(spans, token_char_ends, len(transcript))


# From word times


def alignments_from_ctm(
    ctm: str, text: dict[str, str], silences: Collection[str], unknown_words: Collection[str]
) -> tuple[dict[str, Alignment], list[str]]:
    """Take the alignments from word times; returns them and lines on entries that were passed over or replaced.

    Args:
        ctm: file of the word times.
        text: ``{utterance: transcript}``.
        silences: entries to pass over where the transcript has no such word.
        unknown_words: entries that stand for words that the CTM's aligner did not know.

    Raises:
        UserError: the CTM is missing or damaged.
    """
    from espnet_speechllm_xl.model.alignment import AlignmentError, from_word_times

    if not Path(ctm).is_file():
        raise UserError(f"{ctm} does not exist: give the CTM file with the word times of the set")
    words = read_ctm(ctm)
    results: dict[str, Alignment] = {}
    passed_over: Counter[str] = Counter()
    replaced: Counter[str] = Counter()
    for utterance, transcript in text.items():
        transcript = normalise(transcript)
        found = spoken(words.get(utterance, ()), transcript.split(), silences, unknown_words)
        try:
            if utterance not in words:
                raise AlignmentError("not in the CTM")
            results[utterance] = from_word_times(transcript, found.words)
            passed_over += found.passed_over
            replaced += found.replaced
        except AlignmentError as error:
            results[utterance] = _foreign_entries(found.words, transcript) or str(error)
    kinds = ((passed_over, "passed over as silence"), (replaced, "taken as the words of the transcript"))
    return results, [
        f"{ctm}: {what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}"
        for counts, what in kinds
        if counts
    ]


def _foreign_entries(entries: "list[Word]", transcript: str) -> str:
    """Return the reason that names the entries of a CTM that the transcript lacks; '' where it lacks none."""
    from espnet_speechllm_xl.evaluation.metrics import some_names

    known = set(folded(transcript).split())
    foreign = sorted({entry.text for entry in entries if folded(entry.text) not in known})
    advice = "entries that are no words are listed by --silences and --unknown-words"
    return f"entries of the CTM that the transcript lacks: {some_names(foreign)} ({advice})" if foreign else ""


def move_alignments(aligned: dict[str, Alignment], source: dict[str, str], target: dict[str, str]) -> None:
    """Move every alignment to another spelling, in place.

    Args:
        aligned: ``{utterance: alignment}``.
        source: ``{utterance: transcript}`` that was aligned.
        target: ``{utterance: transcript}`` with the same words in another spelling.
    """
    from espnet_speechllm_xl.model.alignment import AlignmentError, transfer

    for utterance, result in aligned.items():
        if isinstance(result, str):
            continue
        try:
            if utterance not in target:
                raise AlignmentError("not in the text to move to")
            texts = normalise(source[utterance]), normalise(target[utterance])
            aligned[utterance] = [transfer(texts[0], times, texts[1]) for times in result]
        except AlignmentError as error:
            aligned[utterance] = str(error)


def move_to_written_texts(
    aligned: dict[str, Alignment], spoken: dict[str, str], written: dict[str, str]
) -> dict[str, list[str]]:
    """Move every alignment from what is spoken to what is written, in place.

    Args:
        aligned: ``{utterance: alignment}``.
        spoken: ``{utterance: transcript}`` that was aligned.
        written: ``{utterance: transcript}`` as people write it.

    Returns:
        The words of each utterance that are not written as they are read.
    """
    from espnet_speechllm_xl.model.alignment import AlignmentError, move_to_written

    otherwise: dict[str, list[str]] = {}
    for utterance, result in aligned.items():
        if isinstance(result, str):
            continue
        try:
            if utterance not in written:
                raise AlignmentError("not in the text to move to")
            moved = move_to_written(normalise(spoken[utterance]), result, normalise(written[utterance]))
            aligned[utterance], otherwise[utterance] = [moved.starts, moved.ends], moved.read_otherwise
        except AlignmentError as error:
            aligned[utterance] = str(error)
    return otherwise
