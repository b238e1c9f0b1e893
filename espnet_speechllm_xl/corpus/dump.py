"""Dumps: one 16-bit FLAC file per utterance at the model's rate, with Kaldi tables beside.

    dump/raw/<set>/{wav.scp,text,utt2spk,spk2utt,utt2num_samples,feats_type[,text_spoken][,ref.ctm]}
                   audio/<2 hex digits>/<utterance>.flac
                   skipped           utterance, reason, message for every utterance that was left out
                   remarks           utterance, remarks on its audio (audio.py)
                   progress.jsonl    the utterances done, so that a killed run goes on where it stopped

A job makes an utterance of one part (``format``), or of several with pauses between them (``longform``).
``feats_type`` is written last: where it exists, the dump is complete.
"""

import contextlib
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypedDict
from urllib.parse import quote

import numpy as np
import soundfile

from espnet_speechllm_xl.corpus.audio import (
    AudioError,
    Cache,
    Notes,
    backing_files,
    read_audio,
    to_int16,
    unreadable,
    write_flac,
)
from espnet_speechllm_xl.corpus.ctm import Word, WordTimes, write_ctm
from espnet_speechllm_xl.corpus.kaldi import (
    SPOKEN,
    WRITE_TEXT,
    DataDir,
    KaldiError,
    Problem,
    Source,
    Table,
    read_data_dir,
    read_table,
    spk2utt,
    write_table,
)
from espnet_speechllm_xl.errors import beside
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.tokenization import plain_text
from espnet_speechllm_xl.workers import over_processes

BATCH = 8  # jobs handed to a process at once

TimesOf: TypeAlias = Callable[[str, list[int]], list[Word] | None]  # (utterance, samples of its parts) -> its words
OnProgress: TypeAlias = Callable[[int, int], object]  # (utterances done, all of them), called now and then


@dataclass(frozen=True)
class Settings:
    """The form in which audio is written.  Limits are inclusive and hold for the written (speed-changed) audio."""

    sample_rate: int = 16000  # Hz
    min_seconds: float = 0.0
    max_seconds: float = float("inf")
    channel: int | None = None  # 0-based; None averages channels
    resample: bool = True  # False refuses other rates
    gap_seconds: float = 0.0  # silence between the parts of a job

    @property
    def gap(self) -> int:
        """Return the pause between two parts in samples."""
        return round(self.gap_seconds * self.sample_rate)


class Job(NamedTuple):
    """An utterance to write."""

    utterance: str
    parts: tuple[Source, ...]
    speed: float = 1.0  # playback speed of the parts


class Reason(NamedTuple):
    """Why an utterance is left out."""

    code: str  # for counting
    message: str


class Line(TypedDict, total=False):
    """A line of the journal: an utterance that was written, with ``samples``, or one that failed, with ``reason``."""

    utt: str
    key: str  # see `_fingerprint`
    samples: int
    parts: list[int]  # samples of each
    notes: Notes
    reason: str
    message: str


@dataclass
class Report:
    """Counts of a run: ``total == written + sum(skipped.values())``."""

    total: int = 0
    written: int = 0
    reused: int = 0  # utterances that an earlier run had done
    seconds: float = 0.0  # of the audio written
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    notes: Counter[str] = field(default_factory=Counter)  # by kind

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        line = f"{self.total} in = {self.written} written + {sum(self.skipped.values())} skipped"
        line += f" ({reasons})" if reasons else ""
        line += f"; {self.seconds / 3600:.3f} h"
        line += f"; {self.reused} were done before" if self.reused else ""
        notes = ", ".join(f"{count} {note}" for note, count in sorted(self.notes.items()))
        return line + (f"; notes: {notes}" if notes else "")


def audio_path(out: str | PathLike, utterance: str) -> Path:
    """Return the path of an utterance's file in a dump; any id gives a valid, distinct name."""
    digest = hashlib.sha1(utterance.encode()).hexdigest()
    name = quote(utterance, safe="")
    if len(name) > 200:
        name = f"{name[:150]}-{digest}"
    return Path(out) / "audio" / digest[:2] / f"{name}.flac"


def _fingerprint(job: Job, settings: Settings) -> str:
    """Return a digest that changes when the result would: by another source, segment, speed or rate."""
    files = [[path.stat() for path in backing_files(part.entry)] for part in job.parts]
    stats = [[number for stat in group for number in (stat.st_size, stat.st_mtime_ns)] or None for group in files]
    parts = [part if part.channel is not None else part[:3] for part in job.parts]
    how = [settings.sample_rate, settings.channel, settings.resample, settings.gap if len(job.parts) > 1 else 0]
    return hashlib.sha1(json.dumps([parts, job.speed, how, stats]).encode()).hexdigest()


def _length_reason(samples: int, settings: Settings) -> Reason | None:
    """Return why an utterance of so many samples is left out; None: it is not."""
    seconds = samples / settings.sample_rate
    if seconds < settings.min_seconds:
        shown, limit = beside(seconds, settings.min_seconds), settings.min_seconds
        return Reason("too-short", f"{shown} s is less than {limit} s (--min-seconds; of run.sh: --min-wav-duration)")
    if seconds > settings.max_seconds:
        shown, limit = beside(seconds, settings.max_seconds), settings.max_seconds
        return Reason("too-long", f"{shown} s is more than {limit} s (--max-seconds; of run.sh: --max-wav-duration)")
    return None


def _make(job: Job, settings: Settings, out: Path, cache: Cache) -> Line:
    """Read, join and write an utterance; return its line of the journal."""
    notes: Notes = {}
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
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


def _make_worker(shared: tuple[Settings, Path]) -> Callable[[list[Job]], list[Line]]:
    """Return the worker (jobs -> lines of the journal) for the settings and the directory of a dump."""
    settings, out = shared

    def work(batch: list[Job]) -> list[Line]:
        cache: Cache = {}
        lines: list[Line] = []
        for job in batch:
            key = _fingerprint(job, settings)
            lines.append({**_make(job, settings, out, cache), "key": key})
        return lines

    return work


def _read_journal(path: Path) -> dict[str, Line]:
    """Return the lines of an earlier run by utterance, without a line that a kill cut."""
    done: dict[str, Line] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                item = json.loads(line)
                done[item["utt"]] = item
            except (ValueError, TypeError, KeyError):
                continue
    return done


def _usable(line: Line | None, job: Job, settings: Settings, out: Path) -> bool:
    """Tell whether an earlier run's line still holds; failed utterances are always tried again."""
    if not line or "samples" not in line or line["key"] != _fingerprint(job, settings):
        return False
    path = audio_path(out, job.utterance)
    return _length_reason(line["samples"], settings) is not None or (path.exists() and path.stat().st_size > 0)


def _failed_before(line: Line | None, job: Job, settings: Settings) -> bool:
    """Tell whether an earlier run's line says that this very audio is unusable."""
    return line is not None and "reason" in line and line["key"] == _fingerprint(job, settings)


def _add_to_journal(out: Path, lines: list[Line]) -> None:
    """Add new lines to the journal, and unfinish the dump; without any, a finished dump stays finished."""
    if not lines:
        return
    out.mkdir(parents=True, exist_ok=True)
    _unfinish(out)
    texts = [json.dumps(line, ensure_ascii=False) for line in lines]
    with open(out / "progress.jsonl", "a", encoding="utf-8") as stream:
        stream.write("\n".join(["", *texts, ""]))  # the first line feed ends a line that a kill cut


def _journal_lines(jobs: list[Job], settings: Settings, out: Path, nj: int) -> Iterator[list[Line]]:
    """Do jobs; yield lists of their lines, in any order.  See :func:`~espnet_speechllm_xl.workers.over_processes`."""
    jobs = sorted(jobs, key=lambda job: (job.parts[0].entry, job.utterance))
    batches = [jobs[i : i + BATCH] for i in range(0, len(jobs), BATCH)]
    if nj == 0:
        yield from map(_make_worker((settings, out)), batches)
        return

    def crashed(job: Job, reason: str) -> Line:
        return {"utt": job.utterance, "reason": "crashed", "message": reason, "key": _fingerprint(job, settings)}

    yield from (lines for _, lines in over_processes(batches, _make_worker, (settings, out), nj, crashed))


def _clean(out: Path, wanted: set[str]) -> None:
    """Remove audio that the dump does not list, leftovers of killed runs, and folders left empty."""
    for folder, _, names in os.walk(out / "audio", topdown=False):
        for name in names:
            if os.path.join(folder, name) not in wanted:
                os.unlink(os.path.join(folder, name))
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(folder)


def _unfinish(out: Path) -> None:
    """Remove ``feats_type`` and ``wav.scp``, so that nobody uses a dump in the making."""
    (out / "feats_type").unlink(missing_ok=True)
    (out / "wav.scp").unlink(missing_ok=True)


def make_dump(
    out: str | PathLike,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    utt2spk: Table,
    text: Table | None = None,
    times_of: TimesOf | None = None,
    skipped: Mapping[str, Reason] | None = None,
    nj: int = 0,
    progress: OnProgress | None = None,
    extra: Mapping[str, Table] | None = None,
) -> Report:
    """Write a dump; run again after a kill it goes on, and the result is the same.

    Args:
        out: the directory ``dump/raw/<set>``.
        jobs: the utterances; their ids are distinct.
        settings: how audio is written.
        utt2spk: speaker of each utterance.
        text: text of each utterance; None writes no ``text``.
        times_of: gives the words of ``ref.ctm``, None for an utterance without times; None writes no ``ref.ctm``.
        skipped: utterances that were left out before.
        nj: processes; 0 works in this one, which dies of an input that crashes a library.
        progress: called now and then.
        extra: ``{file name: table}`` of more tables; the rows of the written utterances are written.

    Raises:
        UserError: nothing could be written, or worker processes die whatever they work on.
    """
    out = Path(out)
    if (out / "wav.scp").exists() and not (out / "progress.jsonl").exists():
        raise KaldiError(f"{out} was not made by formatting: rename it, or remove it, to have a dump written there")
    done, reused = _do(jobs, settings, out, nj, progress)
    reasons = {job.utterance: _reason_to_skip(done[job.utterance], settings) for job in jobs}
    lengths = {utterance: done[utterance]["samples"] for utterance, reason in reasons.items() if reason is None}
    left_out = {**(skipped or {}), **{utterance: reason for utterance, reason in reasons.items() if reason}}
    report = Report(
        total=len(jobs) + len(skipped or {}),
        written=len(lengths),
        reused=reused,
        seconds=sum(lengths.values()) / settings.sample_rate,
        skipped=Counter(reason.code for reason in left_out.values()),
        notes=Counter(kind for utterance in lengths for kind in done[utterance]["notes"]),
    )
    _write_remarks(out, left_out, lengths, done)
    if not lengths:
        _unfinish(out)
        raise KaldiError(f"{out}: no utterance could be written: {report}; see {out / 'skipped'}")
    tables = {"utt2spk": utt2spk, **({} if text is None else {"text": text}), **(extra or {})}
    _write_tables(out, tables, lengths, done, times_of)
    with atomic_write(out / "progress.jsonl") as stream:
        stream.writelines(json.dumps(done[key], ensure_ascii=False) + "\n" for key in sorted(done))
    with atomic_write(out / "feats_type") as stream:
        stream.write("raw\n")
    return report


def _do(
    jobs: Sequence[Job], settings: Settings, out: Path, nj: int, progress: OnProgress | None
) -> tuple[dict[str, Line], int]:
    """Do the jobs that an earlier run has not done; return the lines of all, and how many were done before."""
    before = _read_journal(out / "progress.jsonl")
    done = {
        job.utterance: before[job.utterance] for job in jobs if _usable(before.get(job.utterance), job, settings, out)
    }
    reused = len(done)
    todo = [job for job in jobs if job.utterance not in done]
    if not all(_failed_before(before.get(job.utterance), job, settings) for job in todo):
        _unfinish(out)
    for lines in _journal_lines(todo, settings, out, nj) if todo else ():
        done.update((line["utt"], line) for line in lines)
        _add_to_journal(out, [line for line in lines if line != before.get(line["utt"])])
        if progress:
            progress(len(done), len(jobs))
    return done, reused


def _reason_to_skip(line: Line, settings: Settings) -> Reason | None:
    if "reason" in line:
        return Reason(line["reason"], line["message"])
    return _length_reason(line["samples"], settings)


def _write_remarks(
    out: Path, left_out: Mapping[str, Reason], lengths: Mapping[str, int], done: Mapping[str, Line]
) -> None:
    """Write the tables ``skipped``, ``failed`` (of unusable audio only) and ``remarks``."""
    write_table(out / "skipped", {utterance: " ".join(reason) for utterance, reason in left_out.items()})
    failed = {key: f"{line['reason']} {line['message']}" for key, line in done.items() if "reason" in line}
    write_table(out / "failed", failed)
    notes = {utterance: done[utterance]["notes"] for utterance in lengths if done[utterance]["notes"]}
    texts = {key: "; ".join(f"{kind}: {text}" for kind, text in notes[key].items()) for key in notes}
    write_table(out / "remarks", texts)


def _write_tables(
    out: Path,
    tables: Mapping[str, Table],
    lengths: Mapping[str, int],
    done: Mapping[str, Line],
    times_of: TimesOf | None,
) -> None:
    """Write the tables of the written utterances, ``wav.scp`` last; remove other tables of an earlier run."""
    made = {*tables, "ref.ctm"} if times_of is not None else {*tables}
    for name in {"text", SPOKEN, "ref.ctm", "utt2parts"} - made:
        (out / name).unlink(missing_ok=True)
    for name, table in tables.items():
        write_table(out / name, {utterance: table.get(utterance, "") for utterance in lengths})
    write_table(out / "spk2utt", spk2utt({utterance: tables["utt2spk"][utterance] for utterance in lengths}))
    write_table(out / "utt2num_samples", lengths)
    if times_of is not None:
        words = {utterance: times_of(utterance, done[utterance]["parts"]) for utterance in lengths}
        write_ctm(out / "ref.ctm", {utterance: items for utterance, items in words.items() if items})
    paths = {utterance: str(audio_path(out, utterance)) for utterance in lengths}
    _clean(out, set(paths.values()))
    write_table(out / "wav.scp", paths)


def format_dir(
    data: str | PathLike,
    out: str | PathLike,
    settings: Settings | None = None,
    *,
    text_optional: bool = False,
    nj: int = 0,
    progress: OnProgress | None = None,
    clean: Callable[[str], str] | None = None,
    style: Literal["as-is", "written", "plain"] = "as-is",
) -> Report:
    """Make a dump from a Kaldi directory or an ESPnet dump.

    An utterance is left out, listed in ``skipped`` and counted when it has no audio entry, no speaker, no text or an
    empty one (unless ``text_optional``), unusable audio, or a length outside of the limits.  Utterances with unusable
    audio are listed in ``failed``, too.  Without ``utt2spk`` every utterance is its own speaker.  Texts stay exactly as
    they are, but in Unicode NFC and without control characters.

    Args:
        data: the directory.
        out: the directory ``dump/raw/<set>``.
        settings: how audio is written; None: the defaults.
        text_optional: whether utterances need no text.
        nj: processes; 0 works in this one.
        progress: called now and then.
        clean: applied to the texts and to the reference words, so that the cleaned text is tokenised, aligned and
            scored.
        style: "as-is"; "written": the dump also gets ``text_spoken``, the text in small letters without punctuation
            and signs (``plain_text``), made of the ``text_spoken`` of the directory where there is one; "plain": that
            is the dump's ``text``.

    Raises:
        KaldiError: a damaged directory, or nothing could be written.
    """
    directory, settings = read_data_dir(data), settings or Settings()
    if clean:
        _clean_texts(directory, clean)
    if style == "as-is":
        directory.spoken = None
    else:
        directory.spoken = _spoken_texts(directory)
    if style == "plain":
        _clean_texts(directory, plain_text)
        directory.text, directory.spoken = directory.spoken, None
    if Path(out).resolve() == directory.path.resolve():
        raise KaldiError(f"{out}: dump and data are the same directory; choose another --dump (of run.sh: --dumpdir)")
    if directory.text is None and not text_optional:
        raise KaldiError(f"{directory.path / 'text'} does not exist: {WRITE_TEXT}")
    utt2spk = directory.utt2spk
    if utt2spk is None:
        utt2spk = {utterance: utterance for utterance in directory.utterances}
    text, jobs = directory.text or {}, []
    skipped: dict[str, Reason] = {}
    for utterance in directory.utterances:
        if utterance not in directory.sources:
            skipped[utterance] = Reason("no-audio-entry", "not in wav.scp (or segments), or its recording is not")
        elif utterance not in utt2spk:
            skipped[utterance] = Reason("no-speaker", "not in utt2spk")
        elif not text_optional and utterance not in text:
            skipped[utterance] = Reason("no-text", "not in text")
        elif not text_optional and not text[utterance]:
            skipped[utterance] = Reason("empty-text", "text is empty")
        elif not text_optional and directory.spoken is not None and not directory.spoken[utterance]:
            skipped[utterance] = Reason("empty-text", "nothing of the text is spoken")
        else:
            jobs.append(Job(utterance, (directory.sources[utterance],), directory.speed.get(utterance, 1.0)))
    return make_dump(
        out, jobs, settings, utt2spk=utt2spk, text=directory.text, times_of=_times_as_read(directory.ctm),
        skipped=skipped, nj=nj, progress=progress, extra=_only_there(SPOKEN, directory.spoken),
    )  # fmt: skip


def _only_there(name: str, table: Table | None) -> dict[str, Table]:
    """Return ``{name: table}``, {} where there is no table."""
    return {} if table is None else {name: table}


def _spoken_texts(directory: DataDir) -> Table | None:
    """Return what is spoken as plain text: of ``text_spoken``, or of ``text`` where there is no such file.

    Raises:
        KaldiError: ``text_spoken`` lacks an utterance of ``text``.
    """
    texts = directory.text if directory.spoken is None else directory.spoken
    absent = sorted((directory.text or {}).keys() - (texts or {}).keys())
    if absent:
        raise KaldiError(
            f"{directory.path / SPOKEN} lacks '{absent[0]}' ({len(absent)} in all): write there what is said, or "
            "remove the file"
        )
    return None if texts is None else {utterance: plain_text(text) for utterance, text in texts.items()}


def _times_as_read(words: WordTimes | None) -> TimesOf | None:
    return None if words is None else lambda utterance, _: words.get(utterance)


def _clean_texts(directory: DataDir, clean: Callable[[str], str]) -> None:
    """Clean the texts and the reference words of a directory, in place; the words made of one keep its times."""
    if directory.text is not None:
        directory.text = {utterance: clean(text) for utterance, text in directory.text.items()}
    if directory.ctm is not None:
        directory.ctm = {
            utterance: [replace(word, text=part) for word in words for part in clean(word.text).split()]
            for utterance, words in directory.ctm.items()
        }


def foreign_audio(dump: str | PathLike, sample_rate: int) -> list[Problem]:
    """Find the files of a dump whose headers do not say mono audio at ``sample_rate`` Hz; return [] or one problem."""
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


def group(utt2spk: Table, factor: int, order: str = "consecutive", seed: int = 0) -> list[list[str]]:
    """Group the utterances of each speaker; every utterance is in one group.

    Args:
        utt2spk: speaker of each utterance.
        factor: utterances of a group; a speaker's last group may have fewer.
        order: "consecutive" takes a speaker's utterances in C order, "shuffled" in a random order that depends on
            ``seed`` and the speaker alone.
        seed: of the random order.
    """
    groups: list[list[str]] = []
    for speaker, listed in sorted(spk2utt(utt2spk).items()):
        utterances = listed.split()
        if order == "shuffled":
            random.Random(f"{seed} {speaker}").shuffle(utterances)
        groups += [utterances[i : i + factor] for i in range(0, len(utterances), factor)]
    return groups


def join_ctm(
    words: WordTimes, utterances: Sequence[str], lengths: Sequence[int], gap: int, sample_rate: int
) -> list[Word]:
    """Return the words of utterances that follow one another, with times in the joined recording.

    Args:
        words: of each utterance, with times in it.
        utterances: the utterances to join, in order.
        lengths: samples of each.
        gap: samples between two.
        sample_rate: Hz.
    """
    joined: list[Word] = []
    offset = 0
    for utterance, length in zip(utterances, lengths, strict=True):
        shift = offset / sample_rate
        joined += [replace(word, start=word.start + shift, end=word.end + shift) for word in words.get(utterance, ())]
        offset += length + gap
    return joined


def longform_dir(
    source: str | PathLike,
    out: str | PathLike,
    factor: int,
    *,
    order: str = "consecutive",
    across_speakers: bool = False,
    seed: int = 0,
    settings: Settings | None = None,
    nj: int = 0,
    progress: OnProgress | None = None,
) -> Report:
    """Join utterances (paper, table IV) into a new dump.

    A long utterance is named ``<first utterance>-x<factor>``; ``utt2parts`` lists its utterances.  Texts are joined by
    a blank.  A long utterance has no reference times when one of its utterances has text but no words in ``ref.ctm``.

    Args:
        source: the dump that is read.
        out: the new dump.
        factor: utterances of a long one; a speaker's last long utterance may have fewer.
        order: "consecutive" or "shuffled", see :func:`group`.
        across_speakers: joins utterances of different speakers, too, and counts a long utterance as its first
            speaker's; only the last long utterance of the set may have fewer.
        seed: of the random order.
        settings: how audio is written; None: the defaults.
        nj: processes; 0 works in this one.
        progress: called now and then.

    Returns:
        Counts of long utterances.

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
    speed = next(iter(speeds), 1.0)
    jobs = [Job(name, tuple(directory.sources[i] for i in items), speed) for name, items in groups.items()]
    joined, spoken = (table if table is None else _joined_texts(table, groups) for table in (text, directory.spoken))
    report = make_dump(
        out, jobs, settings, utt2spk={name: utt2spk[items[0]] for name, items in groups.items()}, text=joined,
        times_of=_joined_times(directory, groups, settings), nj=nj, progress=progress,
        extra={"utt2parts": {key: " ".join(items) for key, items in groups.items()}, **_only_there(SPOKEN, spoken)},
    )  # fmt: skip
    if report.skipped:
        _unfinish(Path(out))
        raise KaldiError(f"{out}: {report}; every utterance must be in: mend what {Path(out) / 'skipped'} lists")
    return report


def _joined_texts(text: Table, groups: Mapping[str, list[str]]) -> Table:
    """Join the texts of each group by a blank."""
    return {name: " ".join(filter(None, (text.get(item, "") for item in items))) for name, items in groups.items()}


def _joined_times(directory: DataDir, groups: Mapping[str, list[str]], settings: Settings) -> TimesOf | None:
    """Return the function that gives the words of long utterances; None for a source without ``ref.ctm``."""
    words, text = directory.ctm, directory.text or {}
    if words is None:
        return None

    def times(name: str, lengths: list[int]) -> list[Word] | None:
        items = groups[name]
        if any(item not in words and text.get(item) for item in items):
            return None
        return join_ctm(words, items, lengths, settings.gap, settings.sample_rate)

    return times
