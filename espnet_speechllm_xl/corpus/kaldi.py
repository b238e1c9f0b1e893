"""Kaldi data directories: their tables, read and written.

A directory holds ``wav.scp`` (recording -> audio), optionally ``segments`` (utterance -> part of a
recording), ``text``, ``utt2spk`` and optionally ``spk2utt``, ``utt2dur`` and ``ref.ctm`` (reference word
times in seconds).  Three files are ours: ``text_spoken`` (what is said, word for word, where ``text`` is as people
write it), ``utt2speed`` (playback speed that ``format`` applies) and ``utt2parts`` (the utterances in a joined
one).  ESPnet's dumps are such directories, too.

All files are UTF-8, sorted as ``LC_ALL=C sort`` does: by code points, as Python sorts strings.
Nothing here touches audio.
"""

import math
import re
import shlex
import unicodedata
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeAlias

from espnet_speechllm_xl.corpus.ctm import WordTimes, read_ctm
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import (
    CONTROL_CHARACTER,
    CONVERT,
    NOT_UTF8,
    OF_ANOTHER_ENCODING,
    atomic_write,
    text_lines,
)
from espnet_speechllm_xl.timeline import parse_seconds

SPOKEN = "text_spoken"
READ_OTHERWISE = "read_otherwise"  # of an aligned set: the words of ``text`` that are not written as they are read
TABLES = ("wav.scp", "segments", "text", SPOKEN, "utt2spk", "utt2dur", "utt2num_samples", "utt2speed", "utt2parts")

LENGTHS = ("utt2dur", "utt2num_samples")

Table: TypeAlias = dict[str, str]  # the lines ``key value`` of a file, in its order

BLANKS = " \t"

# An end of line other than the line feed, and the word behind it.
OTHER_END = re.compile(r"([\r\v\f\x1c-\x1e\x85\u2028\u2029])[ \t]*(\S+)")

# Defects that our own reader accepts.
UNSORTED = "ids not sorted as LC_ALL=C sort does"
CUT_ID = "id holds a blank of Unicode, at which ESPnet would cut it"
CONTROL = "control character within the line, where some readers end it"
BYTES = "bytes that are no UTF-8"

WRITE_TEXT = "write it; a set that is only to be decoded needs none (--no-text-ok; of run.sh: --test-sets)"


class KaldiError(UserError):
    """A data directory is unusable; the message names the file and what to do."""


class Source(NamedTuple):
    """The place of an utterance's audio."""

    entry: str  # of wav.scp
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: to the end
    channel: int | None = None  # from 0; None: all


class KaldiSegment(NamedTuple):
    """A part of a recording, as a line of ``segments`` has it."""

    recording: str
    start: float  # seconds
    end: float | None  # seconds; None: to the end
    channel: int | None  # from 0; None: all


class Problem(NamedTuple):
    """One kind of defect in one file."""

    file: str
    what: str
    times: int  # how often it occurs
    first: str  # where it occurs first; "": nowhere in particular

    def __str__(self) -> str:
        where = f" ({self.times} times, first: {self.first})" if self.times > 1 else f" ({self.first})"
        return f"{self.file}: {self.what}{where if self.first else ''}"


class Joined(NamedTuple):
    """A set of joined recordings."""

    base: str  # name of the set whose utterances are joined
    factor: int  # how many are in each recording
    way: str = ""  # as in local/longform.sh: "" (consecutive), "speaker" or "shuffled"


def joined(name: str) -> Joined | None:
    """Read the name of a set of joined recordings (``test_10x``, ``test_2x_shuffled``); None for other names."""
    match = re.fullmatch(r"(.+)_(\d+)x(?:_(speaker|shuffled))?", name)
    return Joined(match[1], int(match[2]), match[3] or "") if match else None


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, key, value) of a table; the value is '' where the line has only a key."""
    try:
        for number, line in text_lines(path):
            line = line.strip(BLANKS)
            cut = min((line.find(blank) for blank in BLANKS if blank in line), default=len(line))
            value = line[cut:].strip(BLANKS)
            yield number, line[:cut], value if value.strip() else ""  # strip() sees Unicode's other blanks, too
    except FileNotFoundError:
        raise KaldiError(f"{path} does not exist: give a Kaldi data directory") from None
    except OSError as error:
        raise KaldiError(f"{path} cannot be read: {error.strerror}") from None


def scan_table(path: Path, empty_values: bool = False) -> tuple[Table, list[Problem]]:
    """Read a table leniently: the first value of every key, and the problems.

    Args:
        path: of the file.
        empty_values: lines may lack the value, as the lines of a file named ``text`` always may.

    Raises:
        KaldiError: the file cannot be read.
    """
    table: Table = {}
    found: dict[str, Problem] = {}
    previous = ""

    def note(what: str, first: str) -> None:
        before = found.get(what, Problem(str(path), what, 0, first))
        found[what] = before._replace(times=before.times + 1)

    values = FIELDS.get(path.name)
    for number, key, value in _rows(path):
        if not key:
            note("blank line", f"line {number}")
            continue
        if NOT_UTF8.search(key + value):
            note(BYTES, f"line {number}")
            key, value = NOT_UTF8.sub("\ufffd", key), NOT_UTF8.sub("\ufffd", value)
        control = CONTROL_CHARACTER.search(key + value)
        if control:
            note(CONTROL, f"U+{ord(control[0]):04X} of {key!a}, line {number}")
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
        if values and not fits(values, value):
            note(f"not {values.what}", f"'{key}', line {number}")
        if key < previous:
            note(UNSORTED, f"'{key}' after '{previous}', line {number}")
        table[key], previous = value, key
    return table, list(found.values())


def read_table(path: str | PathLike, empty_values: bool = False) -> Table:
    """Read ``key value`` lines into a dict, in the file's order.

    Args:
        path: of the file.
        empty_values: lines may lack the value, as the lines of a file named ``text`` always may (empty hypotheses).

    Raises:
        KaldiError: missing file, not UTF-8, blank line, duplicate key, or missing value.
    """
    table, problems = scan_table(Path(path), empty_values)
    for problem in problems:
        if problem.what == BYTES:
            raise KaldiError(f"{problem}: {CONVERT}")
        if problem.what not in (UNSORTED, CUT_ID, CONTROL):
            if problem.what == BAD_SPEED:
                raise KaldiError(f"{problem}: mend it: give the speed at which it is played, 1.0: as recorded")
            whole = Path(path).name in TABLES and (Path(path).parent / "wav.scp").is_file()
            raise KaldiError(f"{problem}: mend it" + (f", or run `{fix_command(Path(path).parent)}`" if whole else ""))
    return table


def fix_command(directory: str | Path, need_text: bool = True) -> str:
    """Return a command, good in any folder, that mends the defects of a data directory, with texts or without."""
    options = [] if need_text and (Path(directory) / "text").is_file() else ["--no-text-ok"]
    script = Path(__file__).resolve().parents[2] / "local" / "run.sh"
    start = [str(script)] if script.is_file() else []  # an installed package has no scripts
    command = [*start, "python3", "-m", "espnet_speechllm_xl", "data", "check"]
    return shlex.join([*command, str(Path(directory).absolute()), "--fix", *options])


def write_table(path: str | PathLike, table: Mapping[str, object]) -> None:
    """Write a dict as ``key value`` lines in C order, whole or not at all."""
    with atomic_write(path) as stream:
        for key in sorted(table):
            stream.write(f"{key} {table[key]}".rstrip(BLANKS) + "\n")


def without_controls(text: str) -> str:
    """Return ``text`` without control characters: blanks and ends of line become a blank, the others nothing.

    Characters that another encoding uses for signs stay.
    """

    def replacement(found: re.Match[str]) -> str:
        return found[0] if OF_ANOTHER_ENCODING.match(found[0]) else " " if found[0].isspace() else ""

    return CONTROL_CHARACTER.sub(replacement, text).strip(BLANKS)


def refuse_hidden_lines(path: Path, texts: Table, with_audio: Container[str]) -> None:
    """Refuse texts in which an end of line other than the line feed hides the line of another utterance.

    Mended as a blank, it would give the words of one utterance to another.

    Args:
        path: of the texts, for the message.
        texts: by utterance.
        with_audio: ids of the utterances that have audio.

    Raises:
        KaldiError: there is such a text.
    """
    for utterance, value in texts.items():
        for found in OTHER_END.finditer(value):
            if found[2] in with_audio and found[2] not in texts:
                how = "tr '\\r' '\\n'" if found[1] == "\r" else "to line feeds"
                raise KaldiError(
                    f"{path}: U+{ord(found[1]):04X} ends the line of '{utterance}', and that of '{found[2]}' follows: "
                    f"convert the ends of its lines ({how})"
                )


def normalise_text(text: str) -> str:
    """Return a text in Unicode NFC, so that equal words are equal strings, and without control characters."""
    return unicodedata.normalize("NFC", without_controls(text))


def read_text(path: str | PathLike) -> Table:
    """Read a table of texts, in Unicode NFC as hypotheses are: other programs may write accents as signs of their own.

    Raises:
        KaldiError: see :func:`read_table`; the text of a line may be empty.
    """
    return {utterance: normalise_text(text) for utterance, text in read_table(path, empty_values=True).items()}


def spk2utt(utt2spk: Table) -> Table:
    """Return ``{speaker: "utt1 utt2 ..."}`` with the utterances in C order."""
    speakers: dict[str, list[str]] = {}
    for utterance in sorted(utt2spk):
        speakers.setdefault(utt2spk[utterance], []).append(utterance)
    return {speaker: " ".join(utterances) for speaker, utterances in speakers.items()}


def read_reference_times(directory: Path) -> WordTimes | None:
    """Read ``ref.ctm`` of a directory; None if there is none.

    Raises:
        KaldiError: see :func:`ctm.read_ctm`.
    """
    path = directory / "ref.ctm"
    try:
        return read_ctm(path) if path.exists() else None
    except ValueError as error:
        raise KaldiError(str(error)) from None


@dataclass
class DataDir:
    """A data directory in memory.  None stands for a file that the directory lacks."""

    path: Path
    sources: dict[str, Source]  # of the utterances whose audio is known
    text: Table | None = None
    spoken: Table | None = None
    utt2spk: Table | None = None
    speed: dict[str, float] = field(default_factory=dict)
    ctm: WordTimes | None = None
    utterances: list[str] = field(default_factory=list)  # every id that any file names


def parse_segment(value: str) -> KaldiSegment:
    """Read ``recording start end [channel]``; Kaldi writes the end -1 for "to the end".

    Raises:
        ValueError: anything else.
    """
    recording, first, last, *channel = value.split()
    start, end = parse_seconds(first), None if float(last) == -1 else parse_seconds(last)
    if not start < (math.inf if end is None else end) or len(channel) > 1:
        raise ValueError
    if channel and not re.fullmatch(r"[0-9]{1,5}", channel[0]):
        raise ValueError
    return KaldiSegment(recording, start, end, int(channel[0]) if channel else None)


def _parse_samples(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", value):
        raise ValueError
    return int(value)


def _parse_speed(value: str) -> float:
    speed = parse_seconds(value)  # as plainly written as a time
    if not 0.1 <= speed <= 10:
        raise ValueError
    return speed


class Field(NamedTuple):
    """The form of a table's values."""

    parse: Callable[[str], object]  # raises ValueError for other values
    what: str  # for messages


# Name of a file -> its values.
FIELDS = {
    "segments": Field(
        parse_segment, "`utterance recording start end [channel]` with 0 <= start < end and a channel counted from 0"
    ),
    "utt2dur": Field(parse_seconds, "a number of seconds"),
    "utt2num_samples": Field(_parse_samples, "a number of samples"),
    "utt2speed": Field(_parse_speed, "a speed in 0.1 .. 10"),
}

BAD_SPEED = f"not {FIELDS['utt2speed'].what}"  # only the user knows what it was


def fits(field: Field, value: str) -> bool:
    """Tell whether a table of such values may hold this one."""
    try:
        field.parse(value)
    except ValueError:
        return False
    return True


def _optional(path: Path) -> Table | None:
    return read_table(path) if path.exists() else None


def _sources(recordings: Table, segments: Table | None) -> dict[str, Source]:
    if segments is None:
        return {utterance: Source(entry) for utterance, entry in recordings.items()}
    parts = {utterance: parse_segment(value) for utterance, value in segments.items()}
    return {
        utterance: Source(recordings[part.recording], part.start, part.end, part.channel)
        for utterance, part in parts.items()
        if part.recording in recordings
    }


def read_speeds(path: str | PathLike) -> dict[str, float]:
    """Read ``utt2speed``: playback factors, 1.0 as recorded; {} if there is no such file.

    Raises:
        KaldiError: one is no number in 0.1 .. 10.
    """
    return {utterance: float(value) for utterance, value in (_optional(Path(path)) or {}).items()}


def read_data_dir(path: str | PathLike) -> DataDir:
    """Read a Kaldi directory or an ESPnet dump; its files need not be sorted, nor agree with each other.

    Raises:
        KaldiError: no ``wav.scp``, or a damaged table (see :func:`read_table`, :func:`refuse_hidden_lines`).
    """
    path = Path(path)
    recordings, segments = read_table(path / "wav.scp"), _optional(path / "segments")
    text, spoken, utt2spk = (_optional(path / name) for name in ("text", SPOKEN, "utt2spk"))
    with_audio = recordings if segments is None else segments
    refuse_hidden_lines(path / "text", text or {}, with_audio)
    named = set(with_audio) | set(text or ()) | set(utt2spk or ())
    return DataDir(
        path=path,
        sources=_sources(recordings, segments),
        text=None if text is None else {key: normalise_text(value) for key, value in text.items()},
        spoken=None if spoken is None else {key: normalise_text(value) for key, value in spoken.items()},
        utt2spk=utt2spk,
        speed=read_speeds(path / "utt2speed"),
        ctm=read_reference_times(path),
        utterances=sorted(named),
    )


def read_list(path: str | PathLike) -> list[str]:
    """Read a list of ids: the first word of each line, each once, in C order.

    Raises:
        KaldiError: the list cannot be read, or is empty.
    """
    table, problems = scan_table(Path(path), empty_values=True)
    for problem in problems:
        if problem.what == BYTES:
            raise KaldiError(f"{problem}: {CONVERT}")
    if not table:
        raise KaldiError(f"{path} lists no utterance: give one id per line")
    return sorted(table)


def kind_of_reason(reason: str) -> str:
    """Return a reason without its figures and symbols, for counting."""
    return reason.split(" (")[0].split(":")[0]
