"""Whole Kaldi data directories: check, mend, cut, perturb.  Nothing here touches audio."""

import contextlib
import itertools
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeAlias

from espnet_speechllm_xl.corpus.ctm import NotText, Unordered, WordTimes, scan_ctm, write_ctm
from espnet_speechllm_xl.corpus.kaldi import (
    BAD_SPEED,
    BYTES,
    CONTROL,
    CUT_ID,
    FIELDS,
    LENGTHS,
    TABLES,
    WRITE_TEXT,
    KaldiError,
    Problem,
    Table,
    fits,
    fix_command,
    parse_segment,
    read_reference_times,
    read_table,
    refuse_hidden_lines,
    scan_table,
    spk2utt,
    without_controls,
    write_table,
)
from espnet_speechllm_xl.files import CONVERT, atomic_write

Tables: TypeAlias = dict[str, Table]  # of a directory, by the names of their files


def _entries_without_file(path: Path, tables: Tables) -> list[Problem]:
    if "segments" in tables:
        return [Problem(str(path / "segments"), "utterances are parts of recordings", 1, "")]
    absent = [f"'{name}': {entry}" for name, entry in tables["wav.scp"].items() if not Path(entry).is_file()]
    return [Problem(str(path / "wav.scp"), "entry is no file", len(absent), absent[0])] if absent else []


def _problem_of_ids(file: Path, what: str, ids: Iterable[str]) -> list[Problem]:
    """Return the problem that a file has with these ids, none where there are none."""
    ids = sorted(ids)
    return [Problem(str(file), what, len(ids), f"'{ids[0]}'")] if ids else []


def _mismatches(path: Path, tables: Tables, need_text: bool) -> list[Problem]:
    """Compare the files of a directory with one another; ``need_text``: missing and empty texts are problems."""
    problems = _lost_recordings(path, tables)
    audio = "segments" if "segments" in tables else "wav.scp"
    with_audio = tables[audio].keys()
    for name in ("text", "utt2spk"):
        if name in tables:
            ids, file = tables[name].keys(), path / name
            if need_text or name != "text":
                problems += _problem_of_ids(file, f"utterance of {audio} is not here", with_audio - ids)
            problems += _problem_of_ids(file, f"utterance is not in {audio}", ids - with_audio)
    if need_text:
        empty = [utterance for utterance, text in tables.get("text", {}).items() if not text]
        problems += _problem_of_ids(path / "text", "empty text", empty)
    return problems + _problems_of_speakers(path, tables)


def _lost_recordings(path: Path, tables: Tables) -> list[Problem]:
    """Find segments whose recording has no audio."""
    lost = []
    for utterance, value in tables.get("segments", {}).items():
        with contextlib.suppress(ValueError):  # a bad line, which is a problem of its own
            if parse_segment(value).recording not in tables["wav.scp"]:
                lost.append(utterance)
    return _problem_of_ids(path / "segments", "recording is not in wav.scp", lost)


def _problems_of_speakers(path: Path, tables: Tables) -> list[Problem]:
    """Find names of several words, and speakers whose utterances differ between ``utt2spk`` and ``spk2utt``."""
    several = [utterance for utterance, speaker in tables.get("utt2spk", {}).items() if len(speaker.split()) > 1]
    problems = _problem_of_ids(path / "utt2spk", "a speaker holds a blank", several)
    if "utt2spk" in tables and "spk2utt" in tables:
        true, given = spk2utt(tables["utt2spk"]), tables["spk2utt"]
        wrong = [speaker for speaker in true.keys() | given.keys() if true.get(speaker) != given.get(speaker)]
        problems += _problem_of_ids(path / "spk2utt", "speaker's utterances are not those of utt2spk", wrong)
    return problems


def check_dir(path: str | PathLike, need_text: bool = True, need_files: bool = False) -> list[Problem]:
    """Find every defect of a data directory.

    Args:
        path: of the directory.
        need_text: whether a missing ``text`` and empty texts are defects; a set that is only decoded needs no text.
        need_files: whether it must be a dump: each utterance is a file, not a command, an archive offset or a segment,
            and its length is known.

    Returns:
        The problems, [] for a good directory.

    Raises:
        KaldiError: no such directory, or a file cannot be read.
    """
    path = Path(path)
    tables: Tables = {}
    problems: list[Problem] = []
    if not path.is_dir():
        raise KaldiError(f"{path} does not exist: give a Kaldi data directory")
    required = ["wav.scp", "utt2spk", *(["text"] if need_text else []), *(["utt2num_samples"] if need_files else [])]
    for name in (*TABLES, "spk2utt"):
        if (path / name).exists():
            tables[name], found = scan_table(path / name)
            problems += found
            if not tables[name]:
                problems.append(Problem(str(path / name), "file is empty", 1, ""))
        elif name in required:
            problems.append(Problem(str(path / name), "file is missing", 1, ""))
    if "wav.scp" in tables:
        problems += _mismatches(path, tables, need_text)
        if need_files:
            problems += _entries_without_file(path, tables)
    known = tables.get("text", tables.get("utt2spk", {}))
    return problems + _problems_of_times(path, known)


def _problems_of_times(path: Path, known: Table) -> list[Problem]:
    """Find bad lines of ``ref.ctm``, and its utterances that are not ``known``."""
    file = path / "ref.ctm"
    if not file.exists():
        return []
    problems, (words, defects) = [], scan_ctm(file)
    if defects:
        first = str(defects[0].error).removeprefix(f"{file}:")
        problems.append(Problem(str(file), "not words with their times", len(defects), f"line {first}"))
    return problems + _problem_of_ids(file, "unknown utterance", words.keys() - known.keys())


def _speakers(tables: Tables, utterances: Iterable[str]) -> tuple[Table, str | None]:
    """Return the speakers of utterances, and a remark where ``utt2spk`` does not give them.

    ``spk2utt`` gives them then; without it every utterance is its own speaker.
    """
    if "utt2spk" in tables:
        return tables["utt2spk"], None
    if "spk2utt" in tables:
        pairs = ((utterance, speaker) for speaker, value in tables["spk2utt"].items() for utterance in value.split())
        return dict(pairs), "utt2spk rebuilt from spk2utt"
    return {utterance: utterance for utterance in utterances}, "no utt2spk: every utterance became its own speaker"


def _with_audio_entry(tables: Tables) -> set[str]:
    """Return the utterances that have an entry in ``wav.scp``, directly or by ``segments``."""
    if "segments" not in tables:
        return set(tables["wav.scp"])
    good = set()
    for utterance, value in tables["segments"].items():
        with contextlib.suppress(ValueError):
            if parse_segment(value).recording in tables["wav.scp"]:
                good.add(utterance)
    return good


def _mended_tables(path: Path) -> tuple[Tables, list[str]]:
    """Return the tables of a directory without the defects of their lines, and a remark on each kind of defect.

    Ids, control characters outside of texts, and utterances with a bad segment or speed stay as they are.  Lengths
    that are no numbers are left out, because nothing depends on them.

    Raises:
        KaldiError: bytes that are no UTF-8; only the user knows their encoding.
    """
    tables: Tables = {}
    remarks: list[str] = []
    for name in (*TABLES, "spk2utt"):
        if not (path / name).exists() and name != "wav.scp":
            continue
        table, found = scan_table(path / name)
        for problem in found:
            if problem.what == BYTES:
                raise KaldiError(f"{problem}: {CONVERT}; the directory was left as it is")
        if name == "text":
            refuse_hidden_lines(path / name, table, tables.get("segments", tables["wav.scp"]))
            table = {key: without_controls(value) for key, value in table.items()}
        if name in LENGTHS:
            table = {key: value for key, value in table.items() if fits(FIELDS[name], value)}
        left = [CUT_ID, *([] if name == "text" else [CONTROL]), BAD_SPEED]
        done = {**dict.fromkeys(left, "left"), f"not {FIELDS['segments'].what}": "utterance dropped"}
        remarks += [f"{item} -> {done.get(item.what, 'mended')}" for item in found]
        tables[name] = table
    return tables, remarks


def _mended_times(path: Path) -> tuple[WordTimes | None, list[str]]:
    """Return the words of ``ref.ctm`` in the order of their times, and remarks.

    An utterance with a bad line has no times.

    Raises:
        KaldiError: bytes that are no UTF-8.
    """
    if not (path / "ref.ctm").exists():
        return None, []
    words, defects = scan_ctm(path / "ref.ctm")
    unusable: dict[str, Exception] = {}
    for defect in defects:
        if isinstance(defect.error, NotText):
            raise KaldiError(f"{defect.error}; the directory was left as it is")
        if not isinstance(defect.error, Unordered):
            unusable.setdefault(defect.utterance, defect.error)
    remarks = [f"{error} -> '{utterance}' has no reference times" for utterance, error in unusable.items()]
    if any(isinstance(defect.error, Unordered) for defect in defects):
        remarks.append(f"{path / 'ref.ctm'}: words not in the order of their times -> mended")
    good = {key: sorted(value, key=lambda word: word.start) for key, value in words.items() if key not in unusable}
    return good, remarks


class Mended(NamedTuple):
    """The result of :func:`fix_dir`."""

    kept: list[str]  # utterances
    dropped: Counter[str]  # how many utterances, by reason
    remarks: list[str]
    backup: Path  # directory of the old files


def fix_dir(path: str | PathLike, need_text: bool = True) -> Mended:
    """Sort the files of a directory, drop unmatched utterances, rebuild ``spk2utt``, mend lines where that is safe.

    The first line of a duplicated id stays.  The old files go to ``DIR/.backup``, the next time to ``DIR/.backup.2``.

    Raises:
        KaldiError: no usable ``wav.scp``, no ``text`` although needed, bytes that are no UTF-8, or nothing would be
            left.
    """
    path = Path(path)
    if need_text and not (path / "text").exists():
        raise KaldiError(f"{path / 'text'} does not exist: {WRITE_TEXT}")
    tables, remarks = _mended_tables(path)
    if need_text and not any(tables["text"].values()):
        raise KaldiError(f"{path / 'text'} holds no words: remove it, or {WRITE_TEXT}")
    ctm, of_times = _mended_times(path)
    with_audio = _with_audio_entry(tables)
    tables["utt2spk"], remark = _speakers(tables, with_audio)
    remarks += [*of_times, *([remark] if remark else [])]
    reasons = {key: _reason_to_drop(key, tables, with_audio, need_text) for key in sorted(_all_ids(tables))}
    kept = [utterance for utterance, reason in reasons.items() if reason is None]
    dropped = Counter(reason for reason in reasons.values() if reason is not None)
    if not kept:
        raise KaldiError(f"{path}: no utterance is in all files ({_counts(dropped)}); the directory was left as it is")
    backup = _keep(path, [*tables, "ref.ctm"])
    _write_selected(path, tables, kept, ctm)
    return Mended(kept, dropped, remarks, backup)


def _all_ids(tables: Tables) -> set[str]:
    audio = tables["segments"] if "segments" in tables else tables["wav.scp"]
    return audio.keys() | tables.get("text", {}).keys() | tables["utt2spk"].keys()


def _reason_to_drop(utterance: str, tables: Tables, with_audio: set[str], need_text: bool) -> str | None:
    """Return why an utterance cannot stay, as a short code for counting; None: it can."""
    text = tables.get("text", {})
    if utterance not in with_audio:
        return "no-audio-entry"
    if need_text and utterance not in text:
        return "no-text"
    if need_text and not text[utterance]:
        return "empty-text"
    return "no-speaker" if len(tables["utt2spk"].get(utterance, "").split()) != 1 else None


def left_by_fix(path: str | PathLike, need_text: bool = True) -> list[Problem]:
    """Return the problems that :func:`fix_dir` would leave in a directory; the directory is not touched.

    Raises:
        KaldiError: :func:`fix_dir` would refuse the directory; the message says why.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        for name in (*TABLES, "spk2utt", "ref.ctm"):
            if (path / name).is_file():
                shutil.copyfile(path / name, Path(folder) / name)
        try:
            fix_dir(folder, need_text)
        except KaldiError as error:
            raise KaldiError(str(error).replace(folder, str(path))) from None
        return [item._replace(file=item.file.replace(folder, str(path))) for item in check_dir(folder, need_text)]


def advice_for(directory: str | Path, need_text: bool = True, is_dump: bool = False) -> str:
    """Return what helps with the problems of a directory: a command, if one does.

    Args:
        directory: it has problems.
        need_text: missing and empty texts are among them.
        is_dump: it was checked as a dump.
    """
    if is_dump and not check_dir(directory, need_text):
        return (
            "run it where the dump's paths begin, or give --kaldi-data DIR/raw, which makes a copy: in dump/, or, "
            "where that is the ESPnet dump itself, in another --dumpdir"
        )
    try:
        left = left_by_fix(directory, need_text)
    except KaldiError as error:
        return f"--fix cannot mend them: {error}"
    command = fix_command(directory, need_text)
    return f"this mends {f'what it can, not {left[0]}' if left else 'them'}: {command}"


def _keep(path: Path, names: Iterable[str]) -> Path:
    """Copy files of a directory to a new one below it; return the new one."""
    backups = (path / f".backup{suffix}" for suffix in itertools.chain([""], (f".{n}" for n in itertools.count(2))))
    backup = next(folder for folder in backups if not folder.exists())
    backup.mkdir()
    try:
        for name in names:
            if (path / name).exists():
                shutil.copy2(path / name, backup / name)
    except OSError:
        shutil.rmtree(backup, ignore_errors=True)  # half a copy would be taken for the old files
        raise
    return backup


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counter.items())) or "0"


def _write_selected(out: Path, tables: Tables, utterances: Iterable[str], ctm: WordTimes | None) -> None:
    """Write the rows of some utterances of all tables, and the recordings that these need."""
    chosen = set(utterances)
    for name in TABLES:
        if name not in tables:
            continue
        keys = chosen
        if name == "wav.scp" and "segments" in tables:
            keys = {tables["segments"][utterance].split()[0] for utterance in chosen}
        rows = {key: value for key, value in tables[name].items() if key in keys}
        if rows or name not in LENGTHS:
            write_table(out / name, rows)
        else:  # all were no numbers
            (out / name).unlink(missing_ok=True)
    write_table(out / "spk2utt", spk2utt({key: tables["utt2spk"][key] for key in chosen}))
    if ctm is not None:
        write_ctm(out / "ref.ctm", {key: value for key, value in ctm.items() if key in chosen})


def _load(path: Path) -> tuple[Tables, WordTimes | None]:
    tables = {name: read_table(path / name) for name in TABLES if (path / name).exists()}
    for name in ("wav.scp", "utt2spk"):
        if name not in tables:
            todo = f"run {fix_command(path)}" if name == "utt2spk" else "give a Kaldi data directory"
            raise KaldiError(f"{path / name} does not exist: {todo}")
    return tables, read_reference_times(path)


def _clear(out: Path, source: Path, mark: str | None = None) -> None:
    """Remove the tables of an earlier run from an output directory.

    Args:
        out: the directory.
        source: directory that is read.
        mark: name of a file that an earlier run of this command would have written; None: any directory may be cleared.

    Raises:
        KaldiError: ``out`` is the source, or another program wrote it.
    """
    if out.resolve() == source.resolve():
        raise KaldiError(f"{out}: output and input are the same directory; choose another output")
    if mark and (out / "wav.scp").exists() and not (out / mark).exists():
        raise KaldiError(f"{out} was not made by this command: rename it, or remove it, to have it made")
    for name in (*TABLES, "spk2utt", "ref.ctm", "feats_type"):
        (out / name).unlink(missing_ok=True)


def subset_dir(
    data: str | PathLike,
    out: str | PathLike,
    first: int | None = None,
    last: int | None = None,
    utterances: Sequence[str] | None = None,
) -> tuple[list[str], list[str]]:
    """Copy part of a directory (Kaldi or dump): the first utterances, the last ones, or listed ones.

    Args:
        data: the directory.
        out: the new one.
        first: how many, counted from the first in C order; like Kaldi's ``utils/subset_data_dir.sh --first``, the ids
            are those of ``utt2spk``.
        last: how many, counted from the last in C order; used when ``first`` is None.
        utterances: the listed ones; used instead of the numbers.

    Returns:
        (utterances written, listed utterances that ``data`` lacks).

    Raises:
        KaldiError: fewer utterances than asked for, none of the listed ones, or ``out`` equals ``data``.
    """
    data, out = Path(data), Path(out)
    tables, ctm = _load(data)
    known = sorted(tables["utt2spk"])
    audio = tables["segments"] if "segments" in tables else tables["wav.scp"]
    lost = [utterance for utterance in known if utterance not in audio]
    if lost:
        what = f"{len(lost)} utterances lack audio, first '{lost[0]}'"
        raise KaldiError(f"{data}/utt2spk: {what}: run {fix_command(data)}")
    absent: list[str] = []
    if utterances is None:
        number = first if first is not None else last
        if number is None or not 1 <= number <= len(known):
            raise KaldiError(f"{data} has {len(known)} utterances, {number} were asked for: ask for 1 .. {len(known)}")
        chosen = known[:number] if first is not None else known[-number:]
    else:
        chosen = sorted(set(utterances) & set(known))
        absent = sorted(set(utterances) - set(known))
        if not chosen:
            raise KaldiError(f"{data} has none of the {len(absent)} listed utterances; check the list")
    _clear(out, data)
    _write_selected(out, tables, chosen, ctm)
    if (data / "feats_type").exists():
        with atomic_write(out / "feats_type") as stream:
            stream.write((data / "feats_type").read_text(encoding="utf-8"))
    return chosen, absent


class Speed(NamedTuple):
    """A speed at which audio is played."""

    label: str  # as the user wrote it
    factor: float  # 1.0: as recorded

    @property
    def prefix(self) -> str:
        """Return the prefix of the ids of utterances and speakers at this speed."""
        return "" if self.factor == 1 else f"sp{self.label}-"


def parse_factors(text: str) -> list[Speed]:
    """Read speed factors such as ``"0.9 1.0 1.1"``.

    Raises:
        KaldiError: one is no number in 0.1 .. 10, or there twice, or there are none.
    """
    speeds = []
    for label in text.replace(",", " ").split():
        try:
            factor = float(label)
        except ValueError:
            factor = math.nan
        if not 0.1 <= factor <= 10:
            raise KaldiError(f"speed factor '{label}' is not a number in 0.1 .. 10: give e.g. \"0.9 1.0 1.1\"")
        speeds.append(Speed(label, factor))
    if len({speed.factor for speed in speeds}) != len(speeds) or not speeds:
        raise KaldiError(f'speed factors "{text}": give each factor once, e.g. "0.9 1.0 1.1"')
    return speeds


def perturb_dir(data: str | PathLike, out: str | PathLike, factors: str) -> tuple[int, int]:
    """Write a directory for speed perturbation: every utterance once per factor, with ``utt2speed``, no new audio.

    Ids of utterances and speakers get the prefix ``sp<factor>-`` (none for factor 1); durations and the times of
    ``ref.ctm`` are divided by the factor.  ``format`` plays the audio at that speed (tempo and pitch change).

    Args:
        data: the directory.
        out: the new one.
        factors: a string such as ``"0.9 1.0 1.1"``.

    Returns:
        (utterances read, utterances written).

    Raises:
        KaldiError: bad factors, a damaged directory, or one that is perturbed already.
    """
    data, out = Path(data), Path(out)
    speeds = parse_factors(factors)
    tables, ctm = _load(data)
    if "utt2speed" in tables:
        raise KaldiError(f"{data}/utt2speed exists: the directory is perturbed already; perturb the original instead")
    tables.pop("utt2num_samples", None)
    tables.pop("utt2parts", None)
    # `_clear`'s mark comes first: after a kill the command knows its own directory.
    new: Tables = {"utt2speed": {speed.prefix + key: speed.label for speed in speeds for key in tables["utt2spk"]}}
    for name, table in tables.items():
        is_of_recordings = name == "wav.scp" and "segments" in tables
        new[name] = table if is_of_recordings else _at_speeds(data / name, table, speeds)
    _clear(out, data, "utt2speed")
    for name, table in new.items():
        write_table(out / name, table)
    write_table(out / "spk2utt", spk2utt(new["utt2spk"]))
    if ctm is not None:
        write_ctm(out / "ref.ctm", _times_at_speeds(ctm, speeds))
    return len(tables["utt2spk"]), len(new["utt2spk"])


def _at_speeds(path: Path, table: Table, speeds: list[Speed]) -> Table:
    """Return a table of utterances with the rows of each speed; ``path``: its file."""
    new: Table = {}
    for speed in speeds:
        for key, value in table.items():
            if path.name == "utt2spk":
                value = speed.prefix + value
            elif path.name == "utt2dur":
                value = f"{float(value) / speed.factor:.4f}"
            if speed.prefix + key in new:
                raise KaldiError(f"{path}: id '{speed.prefix + key}' exists already; rename that utterance")
            new[speed.prefix + key] = value
    return new


def _times_at_speeds(words: WordTimes, speeds: list[Speed]) -> WordTimes:
    return {
        speed.prefix + utterance: [
            replace(item, start=item.start / speed.factor, end=item.end / speed.factor) for item in items
        ]
        for speed in speeds
        for utterance, items in words.items()
    }
