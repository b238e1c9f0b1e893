"""Kaldi data directories: read, check, mend, cut, perturb.

A directory holds ``wav.scp`` (recording -> audio), optionally ``segments`` (utterance -> part of a
recording), ``text``, ``utt2spk`` and optionally ``spk2utt``, ``utt2dur`` and ``ref.ctm`` (reference word
times in seconds).  Two files are ours: ``utt2speed`` (playback speed that ``format`` applies) and
``utt2parts`` (what a long utterance was joined from).  ESPnet's dumps are such directories too.

Everything is UTF-8 and sorted as ``LC_ALL=C sort`` does; that is the order of code points, hence of
Python strings.  Nothing here touches audio.
"""

import itertools
import math
import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from espnet_speechllm_xl.ctm import read_ctm, write_ctm
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.io import atomic_write

TABLES = ("wav.scp", "segments", "text", "utt2spk", "utt2dur", "utt2num_samples", "utt2speed", "utt2parts")
BLANKS = " \t"

# Defects that our own reader can do with.
UNSORTED = "ids not sorted as LC_ALL=C sort does"
CUT_ID = "id holds a blank of Unicode, at which ESPnet would cut it"


class KaldiError(UserError):
    """A data directory is unusable; the message names the file and what to do."""


class Source(NamedTuple):
    """Where the audio of an utterance is: a ``wav.scp`` entry, and seconds of it (``end`` None: to the end)."""

    entry: str
    start: float = 0.0
    end: float | None = None
    channel: int | None = None  # 0-based


class Problem(NamedTuple):
    """One kind of defect in one file: how often it occurs, and where first."""

    file: str
    what: str
    count: int
    first: str

    def __str__(self):
        times = f" ({self.count} times, first: {self.first})" if self.count > 1 else f" ({self.first})"
        return f"{self.file}: {self.what}{times if self.first else ''}"


class Joined(NamedTuple):
    """A set of joined recordings: ``factor`` utterances of ``base`` in each; ``way`` as in ``local/longform.sh``."""

    base: str
    factor: int
    way: str = ""


def joined(name):
    """The :class:`Joined` that a set's name says (``test_10x``, ``test_2x_shuffled``), or None."""
    match = re.fullmatch(r"(.+)_(\d+)x(?:_(speaker|shuffled))?", name)
    return Joined(match[1], int(match[2]), match[3] or "") if match else None


def _rows(path):
    """Yield (line number, key, value) of a table; the value is '' where the line has only a key."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:  # editors of Windows begin it with a mark
            for number, line in enumerate(stream, 1):
                line = line.rstrip("\r\n").strip(BLANKS)
                cut = min((line.find(blank) for blank in BLANKS if blank in line), default=len(line))
                value = line[cut:].strip(BLANKS)
                yield number, line[:cut], value if value.strip() else ""  # of nothing but other blanks of Unicode
    except FileNotFoundError:
        raise KaldiError(f"{path} does not exist: give a Kaldi data directory") from None
    except UnicodeDecodeError as error:
        raise KaldiError(f"{path} is not UTF-8 ({error.reason}): convert it with iconv") from None
    except OSError as error:
        raise KaldiError(f"{path} cannot be read: {error.strerror}") from None


def _scan(path, empty_values=False):
    """Read a table leniently: (first value of every key, list of problems)."""
    table, found, previous, name = {}, {}, "", str(path)

    def note(what, first):
        found.setdefault(what, [0, first])[0] += 1

    for number, key, value in _rows(path):
        if not key:
            note("blank line", f"line {number}")
            continue
        if len(key.split()) > 1:
            note(CUT_ID, f"'{key}', line {number}")
        if key in table:
            note(
                "duplicate id" if table[key] == value else "duplicate id with another value", f"'{key}', line {number}"
            )
            continue
        if not value and not empty_values and path.name != "text":
            note("line without a value", f"'{key}', line {number}")
            continue
        if key < previous:
            note(UNSORTED, f"'{key}' after '{previous}', line {number}")
        table[key], previous = value, key
    return table, [Problem(name, what, *rest) for what, rest in found.items()]


def read_table(path, empty_values=False):
    """Read ``key value`` lines into a dict, in the file's order.

    Args:
        empty_values: lines may lack the value, as those of a file named ``text`` always may (empty hypotheses).

    Raises:
        KaldiError: missing file, not UTF-8, blank line, duplicate key, or missing value.
    """
    table, problems = _scan(Path(path), empty_values)
    for problem in problems:
        if problem.what not in (UNSORTED, CUT_ID):
            raise KaldiError(f"{problem}: mend it, or run `espnet_speechllm_xl.bin.data check --fix` on the directory")
    return table


def write_table(path, table):
    """Write a dict as ``key value`` lines in C order, whole or not at all."""
    with atomic_write(path) as stream:
        for key in sorted(table):
            stream.write(f"{key} {table[key]}".rstrip(BLANKS) + "\n")


def normalise_text(text):
    """Text exactly as given, in Unicode NFC, so that equal words are equal strings."""
    return unicodedata.normalize("NFC", text)


def read_text(path):
    """:func:`read_table` of texts, in Unicode NFC as hypotheses are; in a foreign dump marks may stand apart."""
    return {utterance: normalise_text(text) for utterance, text in read_table(path, empty_values=True).items()}


def spk2utt(utt2spk):
    """``{speaker: "utt1 utt2 ..."}`` with the utterances in C order."""
    speakers = {}
    for utterance in sorted(utt2spk):
        speakers.setdefault(utt2spk[utterance], []).append(utterance)
    return {speaker: " ".join(utterances) for speaker, utterances in speakers.items()}


def _read_ctm(directory):
    """``ref.ctm`` of a directory as :func:`ctm.read_ctm` gives it; None if there is none."""
    path = directory / "ref.ctm"
    try:
        return read_ctm(path) if path.exists() else None
    except ValueError as error:
        raise KaldiError(str(error)) from None


@dataclass
class DataDir:
    """A data directory in memory.  ``None`` stands for a file that the directory lacks.

    ``sources`` has the utterances whose audio is known; ``utterances`` has every id that any file names.
    """

    path: Path
    sources: dict
    text: dict | None = None
    utt2spk: dict | None = None
    speed: dict = field(default_factory=dict)
    ctm: dict | None = None
    utterances: list = field(default_factory=list)


SEGMENT = "`utterance recording start end [channel]` with 0 <= start < end and a channel counted from 0"


def _parse_segment(value):
    """``recording start end [channel]`` -> (recording, start, end, channel); ValueError if bad.

    Kaldi writes the end -1 for "to the end".
    """
    recording, start, end, *channel = value.split()
    start, end = float(start), None if float(end) == -1 else float(end)
    if not 0 <= start < (math.inf if end is None else end) or end == math.inf or len(channel) > 1:
        raise ValueError
    if channel and not re.fullmatch(r"[0-9]+", channel[0]):
        raise ValueError
    return recording, start, end, int(channel[0]) if channel else None


def _segment(path, utterance, value):
    try:
        return _parse_segment(value)
    except ValueError:
        raise KaldiError(f"{path}: '{utterance} {value}' is not {SEGMENT}: mend the line") from None


def _without_file(path, tables):
    if "segments" in tables:
        return [Problem(str(path / "segments"), "utterances are parts of recordings", 1, "")]
    absent = [f"'{name}': {entry}" for name, entry in tables["wav.scp"].items() if not Path(entry).is_file()]
    return [Problem(str(path / "wav.scp"), "entry is no file", len(absent), absent[0])] if absent else []


def _optional(path):
    return read_table(path) if path.exists() else None


def _sources(path, recordings, segments):
    if segments is None:
        return {utterance: Source(entry) for utterance, entry in recordings.items()}
    sources = {}
    for utterance, value in segments.items():
        recording, *part = _segment(path / "segments", utterance, value)
        if recording in recordings:
            sources[utterance] = Source(recordings[recording], *part)
    return sources


def read_speeds(path):
    """Read ``utt2speed``: playback factors, positive numbers.  Raises KaldiError otherwise; {} if missing."""
    speeds = {}
    for utterance, value in (_optional(Path(path)) or {}).items():
        try:
            speeds[utterance] = float(value)
        except ValueError:
            speeds[utterance] = math.nan
        if not 0.1 <= speeds[utterance] <= 10:
            raise KaldiError(f"{path}: speed '{value}' of '{utterance}' is not a number in 0.1 .. 10")
    return speeds


def read_data_dir(path):
    """Read a Kaldi directory or an ESPnet dump; files need not be sorted nor agree with each other.

    Raises:
        KaldiError: no ``wav.scp``, or a damaged table (see :func:`read_table`).
    """
    path = Path(path)
    recordings, segments = read_table(path / "wav.scp"), _optional(path / "segments")
    text, utt2spk = _optional(path / "text"), _optional(path / "utt2spk")
    named = set(recordings if segments is None else segments) | set(text or ()) | set(utt2spk or ())
    return DataDir(
        path=path,
        sources=_sources(path, recordings, segments),
        text=None if text is None else {key: normalise_text(value) for key, value in text.items()},
        utt2spk=utt2spk,
        speed=read_speeds(path / "utt2speed"),
        ctm=_read_ctm(path),
        utterances=sorted(named),
    )


def _mismatches(path, tables, need_text):
    """Problems between the files of a directory; texts may be missing or empty unless ``need_text``."""

    def missing(name, what, ids):
        ids = sorted(ids)
        return [Problem(str(path / name), what, len(ids), f"'{ids[0]}'")] if ids else []

    problems, segments = [], tables.get("segments")
    heard = tables["wav.scp"] if segments is None else segments
    audio = "wav.scp" if segments is None else "segments"
    bad_segments, lost = [], []
    for utterance, value in (segments or {}).items():
        try:
            if _parse_segment(value)[0] not in tables["wav.scp"]:
                lost.append(utterance)
        except ValueError:
            bad_segments.append(utterance)
    problems += missing("segments", f"not {SEGMENT}", bad_segments)
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
        KaldiError: a file is not UTF-8, cannot be read, or holds a damaged ``ref.ctm``.
    """
    path, tables, problems = Path(path), {}, []
    if not path.is_dir():
        raise KaldiError(f"{path} does not exist: give a Kaldi data directory")
    required = ["wav.scp", "utt2spk", *(["text"] if need_text else []), *(["utt2num_samples"] if need_files else [])]
    for name in (*TABLES, "spk2utt"):
        if (path / name).exists():
            tables[name], found = _scan(path / name)
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
    strange = sorted((_read_ctm(path) or {}).keys() - known.keys())
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
            if _parse_segment(value)[0] in tables["wav.scp"]:
                good.add(utterance)
        except ValueError:
            continue
    return good


def fix_dir(path, need_text=True):
    """Sort, drop what is unmatched, rebuild ``spk2utt``.

    Of a duplicated id the first line stays.  The old files go to ``DIR/.backup``, the next time to ``DIR/.backup.2``.

    Returns:
        (utterances kept, Counter of dropped utterances by reason, list of remarks, directory of the old files).
    Raises:
        KaldiError: no usable ``wav.scp``, no ``text`` although needed, or nothing would be left.
    """
    path, tables, remarks = Path(path), {}, []
    if need_text and not (path / "text").exists():
        raise KaldiError(f"{path / 'text'} does not exist: write it, or pass --no-text-ok for a set without reference")
    for name in (*TABLES, "spk2utt"):
        if (path / name).exists() or name == "wav.scp":
            tables[name], found = _scan(path / name)
            remarks += [f"{item} -> mended" for item in found]
    good = _good_sources(tables)
    speakers, remark = _speakers(tables, good)
    remarks += [remark] if remark else []
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
    ctm, backup = _read_ctm(path), _keep(path, [*tables, "ref.ctm"])
    tables["utt2spk"] = speakers
    _write_selected(path, tables, kept, ctm)
    return kept, dropped, remarks, backup


def _keep(path, names):
    """Copy files to a new directory below ``path``, which is returned."""
    backups = (path / f".backup{suffix}" for suffix in itertools.chain([""], (f".{n}" for n in itertools.count(2))))
    backup = next(folder for folder in backups if not folder.exists())
    backup.mkdir()
    for name in names:
        if (path / name).exists():
            shutil.copy2(path / name, backup / name)
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
        write_table(out / name, {key: value for key, value in tables[name].items() if key in keys})
    write_table(out / "spk2utt", spk2utt({key: tables["utt2spk"][key] for key in chosen}))
    if ctm is not None:
        write_ctm(out / "ref.ctm", {key: value for key, value in ctm.items() if key in chosen})


def _load(path):
    tables = {name: read_table(path / name) for name in TABLES if (path / name).exists()}
    for name in ("wav.scp", "utt2spk"):
        if name not in tables:
            raise KaldiError(f"{path / name} does not exist: run `espnet_speechllm_xl.bin.data check` on the directory")
    ctm = _read_ctm(path)
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
        raise KaldiError(f"{data}/utt2spk: {len(lost)} utterances lack audio, first '{lost[0]}': run check --fix first")
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
    new = {name: {} for name in (*tables, "utt2speed")}
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
                    value = f"{_duration(data, key, value) / factor:.4f}"
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


def _duration(data, utterance, value):
    try:
        return float(value)
    except ValueError:
        raise KaldiError(f"{data}/utt2dur: duration '{value}' of '{utterance}' is not a number of seconds") from None


def read_list(path):
    """Ids listed in a file, the first word of each line, each once.  Raises KaldiError if there are none."""
    ids = sorted({key for _, key, _ in _rows(Path(path)) if key})
    if not ids:
        raise KaldiError(f"{path} lists no utterance: give one id per line")
    return ids
