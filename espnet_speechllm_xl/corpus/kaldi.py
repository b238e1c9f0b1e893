"""Kaldi data directories: their tables, read and written.

A directory holds ``wav.scp`` (recording -> audio), optionally ``segments`` (utterance -> part of a
recording), ``text``, ``utt2spk`` and optionally ``spk2utt``, ``utt2dur`` and ``ref.ctm`` (reference word
times in seconds).  Two files are ours: ``utt2speed`` (playback speed that ``format`` applies) and
``utt2parts`` (what a long utterance was joined from).  ESPnet's dumps are such directories too.

Everything is UTF-8 and sorted as ``LC_ALL=C sort`` does; that is the order of code points, hence of
Python strings.  Nothing here touches audio.
"""

import math
import re
import shlex
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from espnet_speechllm_xl.corpus.ctm import read_ctm
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

TABLES = ("wav.scp", "segments", "text", "utt2spk", "utt2dur", "utt2num_samples", "utt2speed", "utt2parts")

LENGTHS = ("utt2dur", "utt2num_samples")

BLANKS = " \t"

OTHER_END = re.compile(r"([\r\v\f\x1c-\x1e\x85\u2028\u2029])[ \t]*(\S+)")  # of a line, and the word behind it

# Defects that our own reader can do with.
UNSORTED = "ids not sorted as LC_ALL=C sort does"
CUT_ID = "id holds a blank of Unicode, at which ESPnet would cut it"
CONTROL = "control character within the line, where some readers end it"
BYTES = "bytes that are no UTF-8"

WRITE_TEXT = "write it; a set that is only to be decoded needs none (--no-text-ok; of run.sh: --test-sets)"


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
        for number, line in text_lines(path):
            line = line.strip(BLANKS)
            cut = min((line.find(blank) for blank in BLANKS if blank in line), default=len(line))
            value = line[cut:].strip(BLANKS)
            yield number, line[:cut], value if value.strip() else ""  # of nothing but other blanks of Unicode
    except FileNotFoundError:
        raise KaldiError(f"{path} does not exist: give a Kaldi data directory") from None
    except OSError as error:
        raise KaldiError(f"{path} cannot be read: {error.strerror}") from None


def scan_table(path, empty_values=False):
    """Read a table leniently: (first value of every key, list of problems)."""
    table, found, previous, name = {}, {}, "", str(path)

    def note(what, first):
        found.setdefault(what, [0, first])[0] += 1

    kind = FIELDS.get(path.name)
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
        if kind and not fits(kind, value):
            note(f"not {kind.what}", f"'{key}', line {number}")
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
    """Return what can be typed, anywhere, to have the defects of a data directory mended; it may have no texts."""
    options = [] if need_text and (Path(directory) / "text").is_file() else ["--no-text-ok"]
    script = Path(__file__).resolve().parents[2] / "local" / "run.sh"
    start = [str(script)] if script.is_file() else []  # not of an installed package
    command = [*start, "python3", "-m", "espnet_speechllm_xl", "data", "check"]
    return shlex.join([*command, str(Path(directory).absolute()), "--fix", *options])


def write_table(path, table):
    """Write a dict as ``key value`` lines in C order, whole or not at all."""
    with atomic_write(path) as stream:
        for key in sorted(table):
            stream.write(f"{key} {table[key]}".rstrip(BLANKS) + "\n")


def without_controls(text: str) -> str:
    """``text`` in which control characters that stand for a blank or an end of line are blanks, others are gone.

    Those that stand for something in another encoding are left.
    """

    def other(found):
        return found[0] if OF_ANOTHER_ENCODING.match(found[0]) else " " if found[0].isspace() else ""

    return CONTROL_CHARACTER.sub(other, text).strip(BLANKS)


def refuse_hidden_lines(path: Path, texts: dict, heard: dict) -> None:
    """Raise KaldiError where another end of line has the line of one more utterance behind it.

    Mended as a blank, it would give the words of one utterance to another.
    """
    for utterance, value in texts.items():
        for found in OTHER_END.finditer(value):
            if found[2] in heard and found[2] not in texts:
                how = "tr '\\r' '\\n'" if found[1] == "\r" else "to line feeds"
                raise KaldiError(
                    f"{path}: U+{ord(found[1]):04X} ends the line of '{utterance}', and that of '{found[2]}' follows: "
                    f"convert the ends of its lines ({how})"
                )


def normalise_text(text):
    """Text exactly as given but for control characters, in Unicode NFC, so that equal words are equal strings."""
    return unicodedata.normalize("NFC", without_controls(text))


def read_text(path):
    """:func:`read_table` of texts, in Unicode NFC as hypotheses are; in a foreign dump marks may stand apart."""
    return {utterance: normalise_text(text) for utterance, text in read_table(path, empty_values=True).items()}


def spk2utt(utt2spk):
    """``{speaker: "utt1 utt2 ..."}`` with the utterances in C order."""
    speakers = {}
    for utterance in sorted(utt2spk):
        speakers.setdefault(utt2spk[utterance], []).append(utterance)
    return {speaker: " ".join(utterances) for speaker, utterances in speakers.items()}


def read_reference_times(directory):
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


def parse_segment(value):
    """``recording start end [channel]`` -> (recording, start, end, channel); ValueError if bad.

    Kaldi writes the end -1 for "to the end".
    """
    recording, start, end, *channel = value.split()
    start, end = parse_seconds(start), None if float(end) == -1 else parse_seconds(end)
    if not start < (math.inf if end is None else end) or len(channel) > 1:
        raise ValueError
    if channel and not re.fullmatch(r"[0-9]{1,5}", channel[0]):
        raise ValueError
    return recording, start, end, int(channel[0]) if channel else None


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
    """What the values of a table are: a function that raises ValueError for others, and words for it."""

    parse: Callable
    what: str


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
    """Whether a value is one of that table."""
    try:
        field.parse(value)
    except ValueError:
        return False
    return True


def _optional(path):
    return read_table(path) if path.exists() else None


def _sources(recordings, segments):
    if segments is None:
        return {utterance: Source(entry) for utterance, entry in recordings.items()}
    sources = {}
    for utterance, value in segments.items():
        recording, *part = parse_segment(value)
        if recording in recordings:
            sources[utterance] = Source(recordings[recording], *part)
    return sources


def read_speeds(path):
    """Read ``utt2speed``: playback factors, positive numbers.  Raises KaldiError otherwise; {} if missing."""
    return {utterance: float(value) for utterance, value in (_optional(Path(path)) or {}).items()}


def read_data_dir(path):
    """Read a Kaldi directory or an ESPnet dump; files need not be sorted nor agree with each other.

    Raises:
        KaldiError: no ``wav.scp``, or a damaged table (see :func:`read_table`, :func:`refuse_hidden_lines`).
    """
    path = Path(path)
    recordings, segments = read_table(path / "wav.scp"), _optional(path / "segments")
    text, utt2spk = _optional(path / "text"), _optional(path / "utt2spk")
    heard = recordings if segments is None else segments
    refuse_hidden_lines(path / "text", text or {}, heard)
    named = set(heard) | set(text or ()) | set(utt2spk or ())
    return DataDir(
        path=path,
        sources=_sources(recordings, segments),
        text=None if text is None else {key: normalise_text(value) for key, value in text.items()},
        utt2spk=utt2spk,
        speed=read_speeds(path / "utt2speed"),
        ctm=read_reference_times(path),
        utterances=sorted(named),
    )


def read_list(path):
    """Ids listed in a file, the first word of each line, each once.  Raises KaldiError if there are none."""
    table, problems = scan_table(Path(path), empty_values=True)
    for problem in problems:
        if problem.what == BYTES:
            raise KaldiError(f"{problem}: {CONVERT}")
    if not table:
        raise KaldiError(f"{path} lists no utterance: give one id per line")
    return sorted(table)


def kind_of_reason(reason):
    """The reason without its figures and symbols, for counting."""
    return reason.split(" (")[0].split(":")[0]
