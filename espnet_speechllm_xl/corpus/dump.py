"""Dumps: one 16-bit FLAC file per utterance at the model's rate, with Kaldi tables beside.

    dump/raw/<set>/{wav.scp,text,utt2spk,spk2utt,utt2num_samples,feats_type[,ref.ctm]}
                   audio/<2 hex digits>/<utterance>.flac
                   skipped           utterance, reason, message of everything that was left out
                   remarks           utterance, what was noticed about its audio (audio.py)
                   progress.jsonl    what is done, so that a killed run goes on where it was

A job is one utterance made of one part (``format``) or of several with pauses between (``longform``).
``feats_type`` is written last: where it exists, the dump is complete.
"""

import contextlib
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import soundfile

from espnet_speechllm_xl.corpus.audio import AudioError, backing_files, read_audio, to_int16, unreadable, write_flac
from espnet_speechllm_xl.corpus.ctm import write_ctm
from espnet_speechllm_xl.corpus.kaldi import (
    WRITE_TEXT,
    DataDir,
    KaldiError,
    Problem,
    read_data_dir,
    read_table,
    spk2utt,
    write_table,
)
from espnet_speechllm_xl.errors import beside
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.workers import over_processes

BATCH = 8  # jobs handed to a process at once


@dataclass(frozen=True)
class Settings:
    """How audio is written.  Limits are inclusive and hold for the written (speed-changed) audio."""

    sample_rate: int = 16000  # Hz
    min_seconds: float = 0.0
    max_seconds: float = float("inf")
    channel: int | None = None  # 0-based; None averages channels
    resample: bool = True  # False refuses other rates
    gap_seconds: float = 0.0  # silence between the parts of a job

    @property
    def gap(self):
        """The pause between two parts in samples."""
        return round(self.gap_seconds * self.sample_rate)


class Job(NamedTuple):
    """An utterance to write: its id, its :class:`kaldi.Source` parts, and their playback speed."""

    utterance: str
    parts: tuple
    speed: float = 1.0


@dataclass
class Report:
    """Counts of a run: ``total == written + sum(skipped.values())``; ``reused`` of them were done before."""

    total: int = 0
    written: int = 0
    reused: int = 0
    seconds: float = 0.0
    skipped: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)

    def __str__(self):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        line = f"{self.total} in = {self.written} written + {sum(self.skipped.values())} skipped"
        line += f" ({reasons})" if reasons else ""
        line += f"; {self.seconds / 3600:.3f} h"
        line += f"; {self.reused} were done before" if self.reused else ""
        notes = ", ".join(f"{count} {note}" for note, count in sorted(self.notes.items()))
        return line + (f"; notes: {notes}" if notes else "")


def audio_path(out, utterance):
    """File of an utterance under a dump; any id gives a valid, distinct name."""
    digest = hashlib.sha1(utterance.encode()).hexdigest()
    name = quote(utterance, safe="")
    if len(name) > 200:
        name = f"{name[:150]}-{digest}"
    return Path(out) / "audio" / digest[:2] / f"{name}.flac"


def _fingerprint(job, settings):
    """Changes when the result would: other source, other segment, other speed, other rate."""
    files = [[path.stat() for path in backing_files(part.entry)] for part in job.parts]
    stats = [[number for stat in group for number in (stat.st_size, stat.st_mtime_ns)] or None for group in files]
    parts = [part if part.channel is not None else part[:3] for part in job.parts]
    how = [settings.sample_rate, settings.channel, settings.resample, settings.gap if len(job.parts) > 1 else 0]
    return hashlib.sha1(json.dumps([parts, job.speed, how, stats]).encode()).hexdigest()


def _length_reason(samples, settings):
    seconds = samples / settings.sample_rate
    if seconds < settings.min_seconds:
        shown, limit = beside(seconds, settings.min_seconds), settings.min_seconds
        return "too-short", f"{shown} s is less than {limit} s (--min-seconds; of run.sh: --min-wav-duration)"
    if seconds > settings.max_seconds:
        shown, limit = beside(seconds, settings.max_seconds), settings.max_seconds
        return "too-long", f"{shown} s is more than {limit} s (--max-seconds; of run.sh: --max-wav-duration)"
    return None


def _make(job, settings, out, cache):
    """Read, join, write one utterance.  Returns its line of the journal."""
    notes, pieces, lengths = {}, [], []
    try:
        for part in job.parts:
            samples = read_audio(
                part.entry, settings.sample_rate, start=part.start, end=part.end, speed=job.speed,
                channel=settings.channel if part.channel is None else part.channel, resample=settings.resample,
                notes=notes, cache=cache,
            )  # fmt: skip
            samples, clipped = to_int16(samples)
            if clipped:
                notes.setdefault("clipped", f"{clipped} samples beyond full scale clipped")
            pieces += [np.zeros(settings.gap, np.int16), samples] if pieces else [samples]
            lengths.append(len(samples))
    except AudioError as error:
        return {"utt": job.utterance, "reason": error.reason, "message": str(error)}
    samples = np.concatenate(pieces)
    if _length_reason(len(samples), settings) is None:
        write_flac(audio_path(out, job.utterance), samples, settings.sample_rate)
    return {
        "utt": job.utterance, "samples": len(samples), "parts": lengths, "notes": dict(sorted(notes.items())),
    }  # fmt: skip


def _make_worker(shared):
    """Worker of :func:`~espnet_speechllm_xl.workers.over_processes`: jobs -> their lines of the journal.

    ``shared``: :class:`Settings` and the directory of the dump.
    """
    settings, out = shared

    def work(batch):
        cache, lines = {}, []
        for job in batch:
            key = _fingerprint(job, settings)
            lines.append({**_make(job, settings, out, cache), "key": key})
        return lines

    return work


def _read_journal(path):
    """Lines of an earlier run by utterance; a line cut by a kill is ignored."""
    done = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                item = json.loads(line)
                done[item["utt"]] = item
            except (ValueError, TypeError, KeyError):
                continue
    return done


def _usable(item, job, settings, out):
    """Whether an earlier run's line still holds; failed utterances are always tried again."""
    if not item or "samples" not in item or item["key"] != _fingerprint(job, settings):
        return False
    path = audio_path(out, job.utterance)
    return _length_reason(item["samples"], settings) is not None or (path.exists() and path.stat().st_size > 0)


def _failed_before(item, job, settings):
    """Whether an earlier run's line says that this very audio is unusable."""
    return bool(item) and "reason" in item and item["key"] == _fingerprint(job, settings)


def _note_changes(out, journal, items):
    """Add lines to the journal.  A dump whose failed utterances only failed again stays as it is, in use or not."""
    if not items:
        return
    out.mkdir(parents=True, exist_ok=True)
    _unfinish(out)
    lines = [json.dumps(item, ensure_ascii=False) for item in items]
    with open(journal, "a", encoding="utf-8") as stream:
        stream.write("\n".join(["", *lines, ""]))  # the first end is of a line that a kill cut


def _results(jobs, settings, out, nj):
    """Yield lists of journal lines, in any order; see :func:`~espnet_speechllm_xl.workers.over_processes`."""
    jobs = sorted(jobs, key=lambda job: (job.parts[0].entry, job.utterance))
    batches = [jobs[i : i + BATCH] for i in range(0, len(jobs), BATCH)]
    if nj == 0:
        yield from map(_make_worker((settings, out)), batches)
        return

    def crashed(job, reason):
        return {"utt": job.utterance, "reason": "crashed", "message": reason, "key": _fingerprint(job, settings)}

    yield from (lines for _, lines in over_processes(batches, _make_worker, (settings, out), nj, crashed))


def _clean(out, wanted):
    """Remove audio that the dump does not list, leftovers of killed runs, and the folders that are empty then."""
    for folder, _, names in os.walk(out / "audio", topdown=False):
        for name in names:
            if os.path.join(folder, name) not in wanted:
                os.unlink(os.path.join(folder, name))
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(folder)


def _unfinish(out):
    """A dump in the making has no ``feats_type`` and no ``wav.scp``, so that nobody uses it."""
    (out / "feats_type").unlink(missing_ok=True)
    (out / "wav.scp").unlink(missing_ok=True)


def make_dump(out, jobs, settings, *, utt2spk, text=None, ctm=None, skipped=None, nj=0, progress=None, extra=None):
    """Write a dump; run again after a kill it goes on, and the result is the same.

    Args:
        out: the directory ``dump/raw/<set>``.
        jobs: list of :class:`Job`, ids distinct.
        utt2spk, text: tables by utterance; ``text`` None writes no ``text``.
        ctm: None, or function (utterance, part lengths in samples) -> [ctm.Word] or None for none.
        skipped: ``{utterance: (reason, message)}`` of what was left out before.
        nj: processes; 0 works in this one, which dies with an input of which a library crashes.
        progress: function (done, total), called now and then.
        extra: ``{file name: table}`` written along, restricted to the utterances written.
    Returns:
        :class:`Report`.
    Raises:
        UserError: nothing could be written, or worker processes die whatever they work on.
    """
    out = Path(out)
    if (out / "wav.scp").exists() and not (out / "progress.jsonl").exists():
        raise KaldiError(f"{out} was not made by formatting: rename it, or remove it, to have a dump written there")
    journal, before = out / "progress.jsonl", _read_journal(out / "progress.jsonl")
    done = {
        one.utterance: before[one.utterance] for one in jobs if _usable(before.get(one.utterance), one, settings, out)
    }
    todo = [job for job in jobs if job.utterance not in done]
    report = Report(total=len(jobs) + len(skipped or {}), reused=len(done))
    if not all(_failed_before(before.get(job.utterance), job, settings) for job in todo):
        _unfinish(out)
    for lines in _results(todo, settings, out, nj) if todo else ():
        done.update((item["utt"], item) for item in lines)
        _note_changes(out, journal, [item for item in lines if item != before.get(item["utt"])])
        if progress:
            progress(len(done), len(jobs))
    skipped, lengths, failed = dict(skipped or {}), {}, {}
    for job in jobs:
        item = done[job.utterance]
        if "reason" in item:
            failed[job.utterance] = f"{item['reason']} {item['message']}"
        reason = (item["reason"], item["message"]) if "reason" in item else _length_reason(item["samples"], settings)
        if reason:
            skipped[job.utterance] = reason
            continue
        lengths[job.utterance] = item["samples"]
        report.notes.update(item["notes"].keys())
    report.skipped.update(reason for reason, _ in skipped.values())
    report.written, report.seconds = len(lengths), sum(lengths.values()) / settings.sample_rate
    write_table(out / "skipped", {utterance: " ".join(why) for utterance, why in skipped.items()})
    write_table(out / "failed", failed)
    remarks = {utterance: done[utterance]["notes"].items() for utterance in lengths if done[utterance]["notes"]}
    write_table(out / "remarks", {key: "; ".join(f"{kind}: {text}" for kind, text in remarks[key]) for key in remarks})
    if not lengths:
        _unfinish(out)
        raise KaldiError(f"{out}: no utterance could be written: {report}; see {out / 'skipped'}")
    tables = {"utt2spk": utt2spk, **({} if text is None else {"text": text}), **(extra or {})}
    _finish(out, tables, lengths, done, ctm)
    with atomic_write(journal) as stream:
        stream.writelines(json.dumps(done[key], ensure_ascii=False) + "\n" for key in sorted(done))
    with atomic_write(out / "feats_type") as stream:
        stream.write("raw\n")
    return report


def _finish(out, tables, lengths, done, ctm):
    made = {*tables, "ref.ctm"} if ctm is not None else {*tables}
    for name in {"text", "ref.ctm", "utt2parts"} - made:
        (out / name).unlink(missing_ok=True)
    for name, table in tables.items():
        write_table(out / name, {utterance: table.get(utterance, "") for utterance in lengths})
    write_table(out / "spk2utt", spk2utt({utterance: tables["utt2spk"][utterance] for utterance in lengths}))
    write_table(out / "utt2num_samples", lengths)
    if ctm is not None:
        words = {utterance: ctm(utterance, done[utterance]["parts"]) for utterance in lengths}
        write_ctm(out / "ref.ctm", {utterance: items for utterance, items in words.items() if items})
    paths = {utterance: str(audio_path(out, utterance)) for utterance in lengths}
    _clean(out, set(paths.values()))
    write_table(out / "wav.scp", paths)


def format_dir(data, out, settings=None, *, text_optional=False, nj=0, progress=None, clean=None):
    """Make a dump from a Kaldi directory or an ESPnet dump.

    Utterances are left out, listed in ``skipped`` and counted when they have no audio entry, no speaker,
    no or empty text (unless ``text_optional``), unusable audio, or a length outside of the limits; those of unusable
    audio are in ``failed``, too.
    Without ``utt2spk`` every utterance is its own speaker.  Text is kept exactly, in Unicode NFC, but for control
    characters; ``clean``, a function of a text, is applied to it and to the reference words: what is tokenised, aligned
    and scored is the dump's text.

    Returns:
        :class:`Report`.  Raises KaldiError (damaged directory, nothing written).
    """
    directory, settings = read_data_dir(data), settings or Settings()
    if clean:
        _clean_texts(directory, clean)
    if Path(out).resolve() == directory.path.resolve():
        raise KaldiError(f"{out}: dump and data are the same directory; choose another --dump (of run.sh: --dumpdir)")
    if directory.text is None and not text_optional:
        raise KaldiError(f"{directory.path / 'text'} does not exist: {WRITE_TEXT}")
    utt2spk = directory.utt2spk
    if utt2spk is None:
        utt2spk = {utterance: utterance for utterance in directory.utterances}
    text, skipped, jobs = directory.text or {}, {}, []
    for utterance in directory.utterances:
        if utterance not in directory.sources:
            skipped[utterance] = "no-audio-entry", "not in wav.scp (or segments), or its recording is not"
        elif utterance not in utt2spk:
            skipped[utterance] = "no-speaker", "not in utt2spk"
        elif not text_optional and utterance not in text:
            skipped[utterance] = "no-text", "not in text"
        elif not text_optional and not text[utterance]:
            skipped[utterance] = "empty-text", "text is empty"
        else:
            jobs.append(Job(utterance, (directory.sources[utterance],), directory.speed.get(utterance, 1.0)))
    ctm = None if directory.ctm is None else lambda utterance, _: directory.ctm.get(utterance)
    return make_dump(
        out, jobs, settings, utt2spk=utt2spk, text=directory.text, ctm=ctm, skipped=skipped, nj=nj, progress=progress
    )


def _clean_texts(directory: DataDir, clean: Callable[[str], str]) -> None:
    """Clean the texts and the reference words of a directory, in place; what a word becomes has the word's times."""
    if directory.text is not None:
        directory.text = {utterance: clean(text) for utterance, text in directory.text.items()}
    if directory.ctm is not None:
        directory.ctm = {
            utterance: [replace(word, text=part) for word in words for part in clean(word.text).split()]
            for utterance, words in directory.ctm.items()
        }


def foreign_audio(dump, sample_rate):
    """A list of :class:`Problem`: files of a dump that are not mono audio at ``sample_rate`` Hz, by their headers."""
    foreign = []
    for utterance, path in read_table(Path(dump) / "wav.scp").items():
        try:
            found = soundfile.info(path)
        except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
            foreign.append(f"'{utterance}': {unreadable(path, Path(path), error)}")
            continue
        if (found.channels, found.samplerate) != (1, sample_rate):
            foreign.append(f"'{utterance}': {found.channels} channels, {found.samplerate} Hz")
    what = f"entry is not mono audio at {sample_rate} Hz"
    return [Problem(str(Path(dump) / "wav.scp"), what, len(foreign), foreign[0])] if foreign else []


def group(utt2spk, factor, order="consecutive", seed=0):
    """Lists of at most ``factor`` utterances of one speaker; every utterance once.

    Only a speaker's last list may be shorter.  ``order``: "consecutive" takes them in C order, "shuffled" in
    a random order that depends on ``seed`` and the speaker alone.
    """
    groups = []
    for speaker, utterances in sorted(spk2utt(utt2spk).items()):
        utterances = utterances.split()
        if order == "shuffled":
            random.Random(f"{seed} {speaker}").shuffle(utterances)
        groups += [utterances[i : i + factor] for i in range(0, len(utterances), factor)]
    return groups


def join_ctm(words, utterances, lengths, gap, sample_rate):
    """Words of utterances that follow one another, in the time of the whole.

    Args:
        words: ``{utterance: [ctm.Word]}``; lengths: samples of each; gap: samples between two.
    """
    joined, offset = [], 0
    for utterance, length in zip(utterances, lengths, strict=True):
        shift = offset / sample_rate
        joined += [replace(word, start=word.start + shift, end=word.end + shift) for word in words.get(utterance, ())]
        offset += length + gap
    return joined


def longform_dir(
    source, out, factor, *, order="consecutive", across_speakers=False, seed=0, settings=None, nj=0, progress=None
):
    """Join ``factor`` utterances at a time (paper, table IV) into a new dump.

    They are of one speaker, so that a speaker's last group is shorter; with ``across_speakers`` all groups but the
    last of the set are full, and a long utterance counts as its first speaker's.

    Long utterances are named ``<first utterance>-x<factor>``; ``utt2parts`` lists what they hold.  Texts are
    joined by a blank.  A long utterance with a part that has text but no ``ref.ctm`` words has no reference times.

    Returns:
        :class:`Report` that counts long utterances.
    Raises:
        KaldiError: bad factor, damaged dump, an utterance without audio or speaker, audio that cannot be read.
    """
    directory, settings = read_data_dir(source), settings or Settings()
    if factor < 1 or order not in ("consecutive", "shuffled"):
        raise KaldiError(f"factor {factor}, order '{order}': give a factor >= 1 and 'consecutive' or 'shuffled'")
    if Path(out).resolve() == directory.path.resolve():
        raise KaldiError(f"{out}: source and output are the same directory; choose another --out")
    utt2spk, text = directory.utt2spk or {}, directory.text
    bad = [item for item in directory.utterances if item not in directory.sources or item not in utt2spk]
    if bad:
        raise KaldiError(f"{source}: {len(bad)} utterances lack audio or speaker, first '{bad[0]}': format it again")
    together = dict.fromkeys(utt2spk, "all") if across_speakers else utt2spk
    groups = {f"{items[0]}-x{factor}": items for items in group(together, factor, order, seed)}
    speeds = {directory.speed.get(item, 1.0) for item in utt2spk}
    if len(speeds) > 1:
        raise KaldiError(f"{source} mixes speeds (utt2speed): run `format` first and join its dump")
    jobs = [Job(name, tuple(directory.sources[i] for i in items), *speeds) for name, items in groups.items()]
    ctm = None
    if directory.ctm is not None:

        def ctm(name, lengths):
            items = groups[name]
            if any(item not in directory.ctm and (text or {}).get(item) for item in items):
                return None
            return join_ctm(directory.ctm, items, lengths, settings.gap, settings.sample_rate)

    joined = None
    if text is not None:
        joined = {name: " ".join(filter(None, (text.get(i, "") for i in items))) for name, items in groups.items()}
    report = make_dump(
        out, jobs, settings, utt2spk={name: utt2spk[items[0]] for name, items in groups.items()}, text=joined,
        ctm=ctm, nj=nj, progress=progress, extra={"utt2parts": {n: " ".join(i) for n, i in groups.items()}},
    )  # fmt: skip
    if report.skipped:
        _unfinish(Path(out))
        raise KaldiError(f"{out}: {report}; every utterance must be in: mend what {Path(out) / 'skipped'} lists")
    return report
