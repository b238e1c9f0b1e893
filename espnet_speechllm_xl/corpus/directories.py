"""Whole Kaldi data directories: check, mend, cut, perturb.  Nothing here touches audio."""

import contextlib
import itertools
import math
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from espnet_speechllm_xl.corpus.ctm import NotText, Unordered, scan_ctm, write_ctm
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


def _without_file(path, tables):
    if "segments" in tables:
        return [Problem(str(path / "segments"), "utterances are parts of recordings", 1, "")]
    absent = [f"'{name}': {entry}" for name, entry in tables["wav.scp"].items() if not Path(entry).is_file()]
    return [Problem(str(path / "wav.scp"), "entry is no file", len(absent), absent[0])] if absent else []


def _mismatches(path, tables, need_text):
    """Problems between the files of a directory; texts may be missing or empty unless ``need_text``."""

    def missing(name, what, ids):
        ids = sorted(ids)
        return [Problem(str(path / name), what, len(ids), f"'{ids[0]}'")] if ids else []

    problems, segments = [], tables.get("segments")
    heard = tables["wav.scp"] if segments is None else segments
    audio = "wav.scp" if segments is None else "segments"
    lost = []
    for utterance, value in (segments or {}).items():
        with contextlib.suppress(ValueError):  # of the line itself: said before
            if parse_segment(value)[0] not in tables["wav.scp"]:
                lost.append(utterance)
    problems += missing("segments", "recording is not in wav.scp", lost)
    for name in ("text", "utt2spk"):
        if name in tables:
            if need_text or name != "text":
                problems += missing(name, f"utterance of {audio} is not here", heard.keys() - tables[name].keys())
            problems += missing(name, f"utterance is not in {audio}", tables[name].keys() - heard.keys())
    if need_text:
        problems += missing("text", "empty text", [key for key, value in tables.get("text", {}).items() if not value])
    several = [key for key, value in tables.get("utt2spk", {}).items() if len(value.split()) > 1]
    problems += missing("utt2spk", "a speaker holds a blank", several)
    if "utt2spk" in tables and "spk2utt" in tables:
        true, given = spk2utt(tables["utt2spk"]), tables["spk2utt"]
        wrong = [speaker for speaker in true.keys() | given.keys() if true.get(speaker) != given.get(speaker)]
        problems += missing("spk2utt", "speaker's utterances are not those of utt2spk", wrong)
    return problems


def check_dir(path, need_text=True, need_files=False):
    """Every defect of a data directory, as a list of :class:`Problem`; [] for a good one.

    ``need_text`` False allows a directory without ``text`` and empty texts (test sets without reference).
    ``need_files``: a dump, whose utterances are files of their own, no commands, archive offsets or segments, and of
    known lengths.

    Raises:
        KaldiError: no such directory, or a file cannot be read.
    """
    path, tables, problems = Path(path), {}, []
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
            problems += _without_file(path, tables)
    known = tables.get("text", tables.get("utt2spk", {}))
    return problems + _problems_of_times(path, known)


def _problems_of_times(path: Path, known: dict) -> list[Problem]:
    """Problems of ``ref.ctm``: its lines, and utterances that are not ``known``."""
    if not (path / "ref.ctm").exists():
        return []
    problems, (words, defects) = [], scan_ctm(path / "ref.ctm")
    if defects:
        first = str(defects[0].error).removeprefix(f"{path / 'ref.ctm'}:")
        problems.append(Problem(str(path / "ref.ctm"), "not words with their times", len(defects), f"line {first}"))
    strange = sorted(words.keys() - known.keys())
    if strange:
        problems.append(Problem(str(path / "ref.ctm"), "unknown utterance", len(strange), f"'{strange[0]}'"))
    return problems


def _speakers(tables, utterances):
    """utt2spk: as given, else from spk2utt, else every utterance is its own speaker.  Also says which."""
    if "utt2spk" in tables:
        return tables["utt2spk"], None
    if "spk2utt" in tables:
        pairs = ((utterance, speaker) for speaker, value in tables["spk2utt"].items() for utterance in value.split())
        return dict(pairs), "utt2spk rebuilt from spk2utt"
    return {utterance: utterance for utterance in utterances}, "no utt2spk: every utterance became its own speaker"


def _good_sources(tables):
    """Utterances whose audio entry exists."""
    if "segments" not in tables:
        return set(tables["wav.scp"])
    good = set()
    for utterance, value in tables["segments"].items():
        try:
            if parse_segment(value)[0] in tables["wav.scp"]:
                good.add(utterance)
        except ValueError:
            continue
    return good


def _mended_tables(path: Path) -> tuple[dict, list[str]]:
    """The tables of a directory without the defects of their lines, and a remark on each kind of them.

    Left as they are: ids, control characters in what is no text, and utterances with a bad segment or speed.  Lengths
    that are no numbers are left out; nothing stands on them.

    Raises:
        KaldiError: bytes that are no UTF-8.  In which encoding they are is for the user to say.
    """
    tables, remarks = {}, []
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


def _mended_times(path: Path) -> tuple[dict | None, list[str]]:
    """The words of ``ref.ctm`` in the order of their times, and remarks; an utterance with a bad line has no times.

    Raises:
        KaldiError: bytes that are no UTF-8.
    """
    if not (path / "ref.ctm").exists():
        return None, []
    words, defects = scan_ctm(path / "ref.ctm")
    unusable = {}
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


def fix_dir(path, need_text=True):
    """Sort, drop what is unmatched, rebuild ``spk2utt``, mend what lines hold where that is safe.

    Of a duplicated id the first line stays.  The old files go to ``DIR/.backup``, the next time to ``DIR/.backup.2``.

    Returns:
        (utterances kept, Counter of dropped utterances by reason, list of remarks, directory of the old files).
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
    good = _good_sources(tables)
    speakers, remark = _speakers(tables, good)
    remarks += [*of_times, *([remark] if remark else [])]
    text, dropped, kept = tables.get("text", {}), Counter(), []
    for utterance in sorted(_named(tables) | speakers.keys()):
        if utterance not in good:
            dropped["no-audio-entry"] += 1
        elif need_text and utterance not in text:
            dropped["no-text"] += 1
        elif need_text and not text[utterance]:
            dropped["empty-text"] += 1
        elif len(speakers.get(utterance, "").split()) != 1:
            dropped["no-speaker"] += 1
        else:
            kept.append(utterance)
    if not kept:
        raise KaldiError(f"{path}: no utterance is in all files ({_counts(dropped)}); the directory was left as it is")
    backup = _keep(path, [*tables, "ref.ctm"])
    tables["utt2spk"] = speakers
    _write_selected(path, tables, kept, ctm)
    return kept, dropped, remarks, backup


def left_by_fix(path: str | Path, need_text: bool = True) -> list[Problem]:
    """Return the problems that :func:`fix_dir` would leave in a directory, which is not touched.

    Raises:
        KaldiError: it would refuse; the message says why.
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


def _keep(path, names):
    """Copy files to a new directory below ``path``, which is returned."""
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


def _named(tables):
    audio = tables["segments"] if "segments" in tables else tables["wav.scp"]
    return set(audio) | set(tables.get("text", ()))


def _counts(counter):
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counter.items())) or "0"


def _write_selected(out, tables, utterances, ctm):
    """Write the rows of ``utterances`` of all tables, and the recordings that they need."""
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


def _load(path):
    tables = {name: read_table(path / name) for name in TABLES if (path / name).exists()}
    for name in ("wav.scp", "utt2spk"):
        if name not in tables:
            todo = f"run {fix_command(path)}" if name == "utt2spk" else "give a Kaldi data directory"
            raise KaldiError(f"{path / name} does not exist: {todo}")
    ctm = read_reference_times(path)
    return tables, ctm


def _fresh(out, source, mark=None):
    """Refuse to write over the source, and over a directory without the file ``mark``, which this command would have
    written there; drop tables of an earlier run that this one may not write."""
    if out.resolve() == source.resolve():
        raise KaldiError(f"{out}: output and input are the same directory; choose another output")
    if mark and (out / "wav.scp").exists() and not (out / mark).exists():
        raise KaldiError(f"{out} was not made by this command: rename it, or remove it, to have it made")
    for name in (*TABLES, "spk2utt", "ref.ctm", "feats_type"):
        (out / name).unlink(missing_ok=True)


def subset_dir(data, out, first=None, last=None, utterances=None):
    """Copy part of a directory (Kaldi or dump): the first or last N utterances in C order, or listed ones.

    The order is that of ``utt2spk``, like Kaldi's ``utils/subset_data_dir.sh --first``.

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
    absent = []
    if utterances is None:
        number = first if first is not None else last
        if not 1 <= number <= len(known):
            raise KaldiError(f"{data} has {len(known)} utterances, {number} were asked for: ask for 1 .. {len(known)}")
        chosen = known[:number] if first is not None else known[-number:]
    else:
        chosen = sorted(set(utterances) & set(known))
        absent = sorted(set(utterances) - set(known))
        if not chosen:
            raise KaldiError(f"{data} has none of the {len(absent)} listed utterances; check the list")
    _fresh(out, data)
    _write_selected(out, tables, chosen, ctm)
    if (data / "feats_type").exists():
        with atomic_write(out / "feats_type") as stream:
            stream.write((data / "feats_type").read_text(encoding="utf-8"))
    return chosen, absent


def parse_factors(text):
    """``"0.9 1.0 1.1"`` -> [(label, factor)]; labels as written.  Raises KaldiError for anything else."""
    factors = []
    for label in text.replace(",", " ").split():
        try:
            factor = float(label)
        except ValueError:
            factor = math.nan
        if not 0.1 <= factor <= 10:
            raise KaldiError(f"speed factor '{label}' is not a number in 0.1 .. 10: give e.g. \"0.9 1.0 1.1\"")
        factors.append((label, factor))
    if len({factor for _, factor in factors}) != len(factors) or not factors:
        raise KaldiError(f'speed factors "{text}": give each factor once, e.g. "0.9 1.0 1.1"')
    return factors


def perturb_dir(data, out, factors):
    """Speed perturbation as a directory: every utterance once per factor, with ``utt2speed`` and no new audio.

    Ids of utterances and speakers get the prefix ``sp<factor>-`` (none for factor 1); durations and the times of
    ``ref.ctm`` are divided by the factor.  ``format`` plays the audio at that speed (tempo and pitch change).

    Args:
        factors: a string such as ``"0.9 1.0 1.1"``.
    Returns:
        (utterances read, utterances written).
    Raises:
        KaldiError: bad factors, a damaged directory, or one that is perturbed already.
    """
    data, out = Path(data), Path(out)
    factors = parse_factors(factors)
    tables, ctm = _load(data)
    if "utt2speed" in tables:
        raise KaldiError(f"{data}/utt2speed exists: the directory is perturbed already; perturb the original instead")
    tables.pop("utt2num_samples", None)
    tables.pop("utt2parts", None)
    new = {name: {} for name in ("utt2speed", *tables)}  # the mark first: after a kill the command knows its own
    words = None if ctm is None else {}
    for label, factor in factors:
        prefix = "" if factor == 1 else f"sp{label}-"
        for name, table in tables.items():
            for key, value in table.items():
                if name == "wav.scp" and "segments" in tables:
                    new[name][key] = value
                    continue
                if name == "utt2spk":
                    value = prefix + value
                elif name == "utt2dur":
                    value = f"{float(value) / factor:.4f}"
                if prefix + key in new[name]:
                    raise KaldiError(f"{data}/{name}: id '{prefix + key}' exists already; rename that utterance")
                new[name][prefix + key] = value
        new["utt2speed"].update({prefix + key: label for key in tables["utt2spk"]})
        for key, items in (ctm or {}).items():
            words[prefix + key] = [replace(i, start=i.start / factor, end=i.end / factor) for i in items]
    _fresh(out, data, "utt2speed")
    for name, table in new.items():
        write_table(out / name, table)
    write_table(out / "spk2utt", spk2utt(new["utt2spk"]))
    if words is not None:
        write_ctm(out / "ref.ctm", words)
    return len(tables["utt2spk"]), len(new["utt2spk"])
