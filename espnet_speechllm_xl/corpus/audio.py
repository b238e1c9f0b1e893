"""Audio of any kind of ``wav.scp`` entry, or of a user's file, as mono float32 at the wanted rate.

An entry is a file that libsndfile opens (WAV, FLAC, SPHERE, Ogg, MP3, ...) or PyAV (containers.py), a command that
writes such a file (``sph2pipe -f wav x.sph |``), or an offset into a Kaldi archive (``x.ark:123``), perhaps with a
range of samples (``x.ark:123[0:15999]``, both ends inclusive).  Every fault of an entry is an :class:`AudioError`: one
line that names the entry and the next action.

Remarks (resampled, channels averaged, and the remarks of audio_remarks.py) are logged, or go into a dictionary
``{kind: text}``.
"""

import functools
import io
import logging
import math
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus import containers, kaldi_archives
from espnet_speechllm_xl.corpus.audio_remarks import Meter
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import atomic_write

Notes: TypeAlias = dict[str, str]  # remarks by kind; the first of each kind stays


class Signal(NamedTuple):
    """Samples of a recording as its file has them: float32 (samples, channels), at ``rate`` Hz."""

    samples: NDArray
    rate: int


Cache: TypeAlias = dict[str, "bytes | Signal"]  # the content of the last command or archive, by its entry

LOUDEST = 32.0  # 30 dB above full scale: no float recording is that loud, 16-bit values soon are
# In libsndfile's log: the bytes that the header of WAV, AIFF, 8SVX and AU promises, and those found; RF64's frames.
BYTES = re.compile(r"^ *(?:data|SSND|BODY|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
FRAMES = re.compile(r"Calculated frame count \d+ does not match value from 'ds64' chunk of (\d+)")
# W64's: of the whole file, and of the samples with the 24 bytes before them.
W64_BYTES = re.compile(r"^riff : (\d+) \(should be (\d+)\).*^ *data : (\d+)", re.MULTILINE | re.DOTALL)
# Of VOC and MATLAB's it has words only; it has them for whole GSM 6.10 in WAV, too.
TRUNCATED = re.compile(r"seems to be (?:a )?truncated", re.IGNORECASE)
NO_END_OF_OGG = re.compile(r"^Ogg ?: Last page lacks an end-of-stream bit", re.MULTILINE)
BLOCK = 1 << 20
MP3_FRAME = 1152  # samples
MP3_LEAD = 10 * MP3_FRAME  # samples: so many frames before a frame may hold bits of it
MOST_RATE = 96000  # Hz, rate times channels up to which `most_seconds` may be used up
HEAD = 16 * 1024  # bytes that tell the kind of a file: two frames of AAC at the most
FOREIGN_CODING = (4, 18)  # libsndfile's codes for a coding that it does not read; for FLAC they mean any fault


class AudioError(UserError):
    """Audio that cannot be used; ``str()`` is the whole line.

    Attributes:
        reason: a short code for counting: missing, unreadable, command-failed, cut-short, empty, not-finite, range,
            sample-rate, channel, segment, too-long.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


def read_audio(
    entry: str | os.PathLike,
    sample_rate: int = 16000,
    *,
    start: float = 0.0,
    end: float | None = None,
    speed: float = 1.0,
    channel: int | None = None,
    resample: bool = True,
    notes: Notes | None = None,
    cache: Cache | None = None,
) -> NDArray:
    """Read an entry, or a part of it.

    Args:
        entry: path, ``command |`` or ``archive:offset``; relative paths start at the working directory.
        sample_rate: wanted rate in Hz.
        start: seconds, where the part begins.
        end: seconds, where it ends; None: with the recording.
        speed: playback speed; 0.9 makes the audio 1/0.9 times as long.
        channel: which channel (0-based) of several; None averages them.
        resample: whether another rate is resampled (soxr); otherwise it is refused.
        notes: dictionary that takes the remarks, the first of each kind; None: they are logged.  (A command that aligns
            or measures a dump ignores them: formatting has shown them, and decoding shows them again.)
        cache: dict that keeps the last command's or archive's content, for several segments of one recording.

    Returns:
        float32 array (samples,), at least one sample.

    Raises:
        AudioError: see its reasons.
    """
    entry = os.fspath(entry).strip()
    content = _fetch(entry, cache, notes)
    if isinstance(content, Signal):
        signal = content
        first, count = _span(entry, start, end, signal.rate, len(signal.samples), notes)
        signal = signal._replace(samples=signal.samples[first : first + count])
    else:
        signal = _decode(entry, content, start, end, notes)
    return conform(*signal, sample_rate, speed=speed, channel=channel, resample=resample, name=entry, notes=notes)


def read_file(
    path: str | os.PathLike, sample_rate: int = 16000, *, channel: int | None = None, notes: Notes | None = None
) -> NDArray:
    """Read a user's whole audio file; no name is run as a command, whatever it looks like.

    Args:
        path: of the file.
        sample_rate: wanted rate in Hz.
        channel: which channel (0-based) of several; None averages them.
        notes: as in :func:`read_audio`.

    Returns:
        float32 array (samples,), at least one sample.

    Raises:
        AudioError: see its reasons.
    """
    return conform(*_decode_file(path, notes), sample_rate, channel=channel, name=os.fspath(path), notes=notes)


def read_channels(
    path: str | os.PathLike, sample_rate: int = 16000, *, notes: Notes | None = None
) -> Iterator[NDArray]:
    """Yield the channels of a user's audio file.

    Args:
        path: of the file.
        sample_rate: wanted rate in Hz.
        notes: as in :func:`read_audio`.

    Yields:
        float32 array (samples,) of each channel.

    Raises:
        AudioError: see its reasons.
    """
    signal = _decode_file(path, notes)
    for channel in range(signal.samples.shape[1]):
        yield conform(*signal, sample_rate, channel=channel, name=os.fspath(path), notes=notes)


def _decode_file(path: str | os.PathLike, notes: Notes | None) -> Signal:
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise AudioError("unreadable", f"{name!a}: the name is not UTF-8: rename the file") from None
    if not os.path.isfile(name):
        raise _missing(name)
    return _decode(name, _nonempty(name), 0.0, None, notes)


def read_bytes(
    content: bytes,
    sample_rate: int = 16000,
    *,
    name: str = "audio",
    channel: int | None = None,
    most_seconds: float = math.inf,
    notes: Notes | None = None,
) -> NDArray:
    """Read an audio file that is in memory; nothing is written to disk.

    Args:
        content: the bytes of the file.
        sample_rate: wanted rate in Hz.
        name: of the file, for messages.
        channel: which channel (0-based) of several; None averages them.
        most_seconds: longest audio; no more than that is ever unpacked.
        notes: as in :func:`read_audio`.

    Returns:
        float32 array (samples,), at least one sample.

    Raises:
        AudioError: see its reasons; "too-long" for more than ``most_seconds``.
    """
    if not content:
        raise AudioError("empty", f"{name} is an empty file: send it again")
    signal = _decode(name, content, 0.0, None, notes, most_seconds)
    return conform(*signal, sample_rate, channel=channel, name=name, notes=notes)


def conform(
    samples: ArrayLike,
    rate: int,
    sample_rate: int = 16000,
    *,
    speed: float = 1.0,
    channel: int | None = None,
    resample: bool = True,
    name: str = "audio array",
    notes: Notes | None = None,
) -> NDArray:
    """Bring an array to mono float32 at the wanted rate.

    Args:
        samples: (samples,) or (samples, channels), of floats, or of integers, which are scaled by the full range of
            their type: 16-bit audio then lies in [-1, 1).
        rate: of the array, in Hz.
        sample_rate: wanted rate in Hz.
        speed: playback speed; 0.9 makes the audio 1/0.9 times as long.
        channel: which channel (0-based) of several; None averages them.
        resample: whether another rate is resampled (soxr); otherwise it is refused.
        name: of the audio, for messages.
        notes: as in :func:`read_audio`.

    Returns:
        float32 array (samples,), at least one sample.

    Raises:
        AudioError: empty, not-finite, range, channel, sample-rate, unreadable.
    """
    audio = _chosen(_checked(np.asarray(samples), name), channel, name)
    remark(audio, rate, name, notes)
    audio = _to_mono(audio, name, notes)
    if rate != sample_rate:
        if not resample:
            raise AudioError(
                "sample-rate",
                f"{name} is at {rate} Hz, {sample_rate} Hz are wanted: convert it "
                f"(`sox IN -r {sample_rate} OUT`), or allow resampling",
            )
        _note(notes, "resampled", name, f"resampled from {rate} to {sample_rate} Hz")
    if rate * speed != sample_rate:
        resampled = soxr.resample(audio, rate * speed, sample_rate).astype(np.float32, copy=False)
        audio = resampled if len(resampled) else audio[:1]
    # numpy calls a single sample with any stride contiguous, torch does not.
    return audio if audio.strides == (audio.itemsize,) else audio.copy()


def _checked(samples: NDArray, name: str) -> NDArray:
    """Return an array as float32 in [-1, 1], or raise AudioError for what is no audio."""
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise AudioError(
            "unreadable",
            f"{name}: an array of shape {samples.shape} and type {samples.dtype} is no audio; "
            "give numbers of shape (samples,) or (samples, channels)",
        )
    if samples.size == 0:
        raise _no_samples(name)
    samples = _to_float(samples)
    bad = int(np.count_nonzero(~np.isfinite(samples)))
    if bad:
        raise AudioError(
            "not-finite", f"{name} holds {bad} NaN or infinite samples: make the file again from its source"
        )
    check_scale(float(np.abs(samples).max()), name)
    return samples


def with_gain(samples: NDArray, gain_db: float) -> NDArray:
    """Return samples (n,) at another level, rounded and clipped as in a file of 16 bits."""
    louder = np.round(samples * np.float32(10 ** (gain_db / 20) * 32768))
    return (np.clip(louder, -32768, 32767) / 32768).astype(np.float32)


def remark(samples: NDArray, rate: int, name: str, notes: Notes | None) -> None:
    """Note the remarks of audio_remarks.py on a recording.

    Args:
        samples: float (n, channels).
        rate: in Hz.
        name: of the recording, for the log.
        notes: dictionary that takes the remarks; None: they are logged.
    """
    meter = Meter(rate, samples.shape[1])
    meter.add(samples)
    for kind, text in meter.remarks().items():
        _note(notes, kind, name, text)


def check_scale(peak: float, name: str) -> None:
    """Raise AudioError (range) when the largest magnitude of float samples shows that full scale is not 1."""
    if peak > LOUDEST:
        raise AudioError("range", f"{name}: a sample of {peak:.0f}, but full scale is 1: divide 16-bit values by 32768")


def resample(samples: ArrayLike, rate: int, sample_rate: int) -> NDArray:
    """Return an array as mono float32 (samples,) at another rate.

    Args:
        samples: (samples,) or (samples, channels), as :func:`conform` takes them.
        rate: of the array, in Hz.
        sample_rate: wanted rate in Hz.
    """
    return conform(samples, rate, sample_rate)


def to_int16(samples: ArrayLike) -> tuple[NDArray[np.int16], int]:
    """Return float samples (samples,) as int16, and how many were clipped; undoes 16-bit reading exactly."""
    scaled = np.rint(np.asarray(samples, np.float64) * 32768)
    clipped = int(np.count_nonzero((scaled < -32768) | (scaled > 32767)))
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


def write_flac(path: str | os.PathLike, samples: NDArray[np.int16], sample_rate: int) -> None:
    """Write 16-bit FLAC, whole or not at all.

    Args:
        path: of the file.
        samples: int16 (samples,).
        sample_rate: Hz.
    """
    # In memory first: when the disk is full soundfile says nothing but "System error".
    content = io.BytesIO()
    soundfile.write(content, samples, sample_rate, format="FLAC", subtype="PCM_16")
    with atomic_write(path, "wb") as stream:
        stream.write(content.getbuffer())


def backing_files(entry: str | os.PathLike) -> list[Path]:
    """Return the existing files that an entry reads: a path, an archive, or the files that a command names."""
    entry = os.fspath(entry).strip()
    if entry.endswith("|"):
        words = shlex.shlex(entry[:-1], posix=True, punctuation_chars=True)
        words.whitespace_split = True
        try:
            names = list(words)
        except ValueError:  # a quotation mark without its other one: the shell will say so
            names = []
    elif os.path.isfile(entry) or not (place := kaldi_archives.parse_entry(entry)):
        names = [entry]
    else:
        names = [place.archive]
    return [Path(name) for name in names if os.path.isfile(name)]


def _note(notes: Notes | None, kind: str, name: str, text: str) -> None:
    if notes is None:
        logging.warning(f"{name}: {text}")
    else:
        notes.setdefault(kind, text)


def _fetch(entry: str, cache: Cache | None, notes: Notes | None = None) -> Path | bytes | Signal:
    """Return the file that an entry names, the bytes of an audio file, or a range of a sound in an archive."""
    if cache is not None and entry in cache:
        return cache[entry]
    place = kaldi_archives.parse_entry(entry)
    content: bytes | Signal
    try:
        if entry.endswith("|"):
            content = _run(entry)
        elif os.path.isfile(entry):
            return _nonempty(entry)
        elif place and os.path.isfile(place.archive):
            content = _load_archive(entry, place, notes)
        else:
            raise _missing(entry)
    except OSError as error:
        raise _closed(entry, error) from None
    if cache is not None:
        cache.clear()
        cache[entry] = content
    return content


def _closed(entry: str, error: OSError) -> AudioError:
    return AudioError("unreadable", f"{entry} cannot be read: {error.strerror or error}")


def _missing(entry: str) -> AudioError:
    try:
        os.stat(entry)
    except (FileNotFoundError, ValueError):  # ValueError: no file can have such a name
        pass
    except OSError as error:  # the file may exist, in a folder that is closed to us
        return _closed(entry, error)
    if os.path.isdir(entry):
        return AudioError("missing", f"{entry} is a directory: give the audio files in it")
    if entry == "-" or os.path.exists(entry):
        return AudioError(
            "missing", f"{entry} is no file, but a pipe: save it first; live PCM: `speechllm-xl stream -`"
        )
    return AudioError(
        "missing",
        f"{entry} does not exist: correct the path; "
        f"relative ones, in wav.scp too, start at the working directory, {os.getcwd()}",
    )


def _nonempty(file: str) -> Path:
    if os.path.getsize(file) == 0:
        raise AudioError("empty", f"{file} is an empty file: copy it again, or remove it from the list")
    return Path(file)


def _run(entry: str) -> bytes:
    done = subprocess.run(entry[:-1], shell=True, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise AudioError(
            "command-failed",
            f"`{entry}` failed with exit code {done.returncode}{': ' + said[-1] if said else ''}; "
            "run it by hand, install the program or correct wav.scp",
        )
    if not done.stdout:
        raise AudioError("empty", f"`{entry}` wrote no audio: run it by hand and correct wav.scp")
    return done.stdout


def _load_archive(entry: str, place: kaldi_archives.Place, notes: Notes | None) -> bytes | Signal:
    """Return the bytes of a sound in an archive, or a range of it, decoded."""
    content = _sound_at(entry, place)
    if place.part is None:
        return content
    try:
        (first, end), *columns = kaldi_archives.ranges(place.part)
    except ValueError:
        raise AudioError("segment", f"{entry}: give the range as [FIRST:LAST] or [FIRST:LAST,CHANNEL]") from None
    samples, rate = _decode(entry, content, 0.0, None, notes)
    first, count = _span(entry, first / rate, end and end / rate, rate, len(samples), notes)
    for begin, stop in columns:
        if begin >= samples.shape[1]:
            raise _no_channel(entry, begin, samples.shape[1])
        samples = samples[:, begin:stop]
    return Signal(samples[first : first + count], rate)


def _sound_at(entry: str, place: kaldi_archives.Place) -> bytes:
    """Return the bytes of the sound at a place of an archive, perhaps with others behind it; raise AudioError."""
    offset = min(place.offset, os.path.getsize(place.archive))  # seeking fails at a number beyond any file
    with open(place.archive, "rb") as stream:
        content, matrix = kaldi_archives.sound_at(stream, offset), kaldi_archives.is_matrix_at(stream, offset)
    if content is None and matrix:
        raise AudioError("unreadable", f"{entry} is a matrix of features, not audio: give the wav.scp of the audio")
    if content is None and (kind := containers.kind_of(_head(Path(place.archive), HEAD, offset))):
        # Most kinds do not say where they end; the rest of the archive would be read with them.
        raise AudioError(
            "unreadable",
            f"{entry}: {kind.name} begins there, but of archives WAV and FLAC are read: convert it before it goes into "
            "the archive, or give it as a file of its own in wav.scp",
        )
    if content is None:
        raise AudioError(
            "unreadable", f"{entry}: no sound (RIFF, FLAC) begins there: make the archive again and its scp with it"
        )
    if kaldi_archives.is_endless(content):
        raise AudioError(
            "unreadable",
            f"{entry}: its header says no length, because it was written to a pipe, and other sounds follow it: make "
            "the archive of files (`sox IN OUT.wav`, not `sox IN -t wav -`)",
        )
    if kaldi_archives.holds_another(content):
        raise AudioError(
            "cut-short",
            f"{entry} is cut short: its header promises more samples than are there before the next sound begins; make "
            "the archive again",
        )
    return content


def _decode(
    entry: str,
    content: bytes | Path,
    start: float,
    end: float | None,
    notes: Notes | None,
    most_seconds: float = math.inf,
) -> Signal:
    """Decode a path or bytes, from ``start`` to ``end`` seconds; raise AudioError."""
    try:
        kind = _kind(content)
    except OSError as error:
        raise _closed(entry, error) from None
    if kind and kind.demuxer:
        return _decode_container(entry, content, kind, start, end, notes, most_seconds)
    try:
        with soundfile.SoundFile(_open(content)) as audio:
            # FLAC written to a pipe has no length; libsndfile then says a number beyond any file.
            most = _most_samples(most_seconds, audio.samplerate, audio.channels)
            if audio.frames >= 1 << 40:
                samples = _read_blocks(content, most)
                if len(samples) > most:
                    raise _too_long(entry, f"{most_seconds} s")
                first, count = _span(entry, start, end, audio.samplerate, len(samples), notes)
                return Signal(samples[first : first + count], audio.samplerate)
            if audio.frames > most:
                raise _too_long(entry, f"{most_seconds} s")
            _check_length(entry, audio, content, notes)
            first, count = _span(entry, start, end, audio.samplerate, audio.frames, notes)
            # A frame of MP3 needs bits of the frames before it, so decoding begins some frames earlier.
            mp3 = audio.subtype.startswith("MPEG")  # also within WAV
            lead = min(first, MP3_LEAD) if mp3 else 0
            if first:
                audio.seek(first - lead)
            samples = audio.read(lead + count, dtype="float32", always_2d=True)[lead:]
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise unreadable(entry, content, error) from None
    except MemoryError:
        raise _too_long(entry, "the memory holds") from None
    # Headers of MP3 may only estimate the length, hence 1 %; those within WAV also count frames that decoding drops at
    # both ends.
    if len(samples) < 0.99 * count - (2 * MP3_FRAME if mp3 else 0):
        raise _cut_short(entry, count, len(samples))
    return Signal(samples, audio.samplerate)


def _decode_container(
    entry: str,
    content: bytes | Path,
    kind: containers.Kind,
    start: float,
    end: float | None,
    notes: Notes | None,
    most_seconds: float,
) -> Signal:
    """Decode as :func:`_decode` does, but by PyAV."""
    if not containers.is_installed():
        raise AudioError(
            "unreadable",
            f"{entry} is {kind.name}, which PyAV reads: `pip install av`; or convert it: `ffmpeg -i IN OUT.wav`",
        )
    most = functools.partial(_most_samples, most_seconds)
    try:
        with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as stream:
            samples, rate, promised = containers.read(stream, kind, most)
    except ValueError as error:
        raise AudioError("unreadable", f"{entry} ({kind.name}) is damaged ({error}): copy it again") from None
    except MemoryError:
        raise _too_long(entry, "the memory holds") from None
    if len(samples) > most(rate, samples.shape[1]):
        raise _too_long(entry, f"{most_seconds} s")
    if promised and len(samples) < (0.99 * promised - 0.1) * rate:  # encoders round to whole frames
        raise _cut_short(entry, round(promised * rate), len(samples))
    first, count = _span(entry, start, end, rate, len(samples), notes)
    return Signal(samples[first : first + count], rate)


def _most_samples(most_seconds: float, rate: int, channels: int) -> float:
    return min(most_seconds * rate, most_seconds * MOST_RATE / channels)


def unreadable(entry: str, content: bytes | Path, error: Exception) -> AudioError:
    """Explain why libsndfile refused a file: it is damaged, or in a format that is not read.

    Args:
        entry: its name, for the message.
        content: its path or bytes.
        error: of soundfile.

    Returns:
        The error to raise.
    """
    try:
        head = _head(content, HEAD)
    except OSError as refused:
        return _closed(entry, refused)
    kind = containers.kind_of(head)
    reason = re.sub(r"^Error opening <?.*?>?: ", "", " ".join(str(error).split())).rstrip(". :")
    foreign = getattr(error, "code", None) in FOREIGN_CODING and kind is not containers.FLAC
    if isinstance(error, TypeError):  # soundfile asks for the rate
        says = "is PCM without a header: `sox -t raw -r RATE -e signed -b 16 FILE OUT.wav` gives it one"
        says = f"is no PCM, as its name says, but {kind.name}: rename it" if kind else says
    elif kind is None:
        says = f"is no sound file of a known format: {containers.READ} are read; `ffmpeg -i IN OUT.wav` converts others"
    elif kind.name == "SPHERE" and b"shorten" in head[:1024]:
        says = "is compressed SPHERE: convert it by `sph2pipe -f wav FILE`; wav.scp may hold that with ` |` behind it"
    elif foreign or containers.is_foreign(kind, head):
        says = f"is {kind.name} in a coding that is not read: convert it: `ffmpeg -i IN OUT.wav`"
    else:
        says = f"({kind.name}) is damaged ({reason}): copy it again"
    return AudioError("unreadable", f"{entry} {says}")


def _kind(content: bytes | Path) -> containers.Kind | None:
    """Find the kind of a path or of bytes, perhaps behind a tag."""
    head = _head(content, HEAD)
    tag = containers.tag_bytes(head)
    return (tag and containers.kind_of(_head(content, HEAD, tag))) or containers.kind_of(head)


def _head(content: bytes | Path, size: int, first: int = 0) -> bytes:
    """Read bytes of a path or of bytes, from the beginning or the ``first`` on."""
    if isinstance(content, bytes):
        return content[first : first + size]
    with open(content, "rb") as stream:
        stream.seek(first)
        return stream.read(size)


def _open(content: bytes | Path) -> io.BytesIO | Path:
    return io.BytesIO(content) if isinstance(content, bytes) else content


class _Sequential(soundfile.SoundFile):
    """A file without seeking: soundfile seeks after every read, which fails at the end of FLAC without a length."""

    def seekable(self) -> bool:
        return False


def _read_blocks(content: bytes | Path, most: float) -> NDArray:
    """Read float32 (samples, channels); stop soon after ``most`` samples."""
    blocks: list[NDArray] = []
    with _Sequential(_open(content)) as audio:
        while not blocks or (len(blocks[-1]) == BLOCK and len(blocks) * BLOCK <= most):
            blocks.append(audio.read(BLOCK, dtype="float32", always_2d=True))
    return np.concatenate(blocks)


def _cut_short(entry: str, promised: int, found: int) -> AudioError:
    return AudioError(
        "cut-short", f"{entry} is cut short: its header promises {promised} samples, {found} are there; copy it again"
    )


def _no_samples(name: str) -> AudioError:
    return AudioError("empty", f"{name} holds no samples: record or copy it again, or remove it from the list")


def _too_long(entry: str, most: str) -> AudioError:
    return AudioError(
        "too-long", f"{entry} is longer than {most}, or has too many channels for its length: cut it, make it mono"
    )


def _check_length(entry: str, audio: soundfile.SoundFile, content: bytes | Path, notes: Notes | None) -> None:
    """Raise AudioError where bytes are missing: libsndfile then shortens most formats, and only its log tells."""
    promised = None
    if audio.format == "NIST":
        header = re.search(rb"sample_count -i (\d+)", _head(content, 1024))
        promised = int(header[1]) if header else None
    elif match := FRAMES.search(audio.extra_info):
        promised = int(match[1])
    elif match := BYTES.search(audio.extra_info):
        if int(match[2]) < int(match[1]) < kaldi_archives.UNKNOWN_BYTES:
            promised = int(match[1]) * audio.frames // max(1, int(match[2]))
    elif audio.format == "W64" and (match := W64_BYTES.search(audio.extra_info)):
        missing, total = int(match[1]) - int(match[2]), int(match[3]) - 24
        if 0 < missing < total < 1 << 40:
            promised = total * audio.frames // (total - missing)
    elif audio.format in ("VOC", "MAT4", "MAT5") and TRUNCATED.search(audio.extra_info):
        raise AudioError("cut-short", f"{entry} is cut short: its end is missing; copy it again")
    elif NO_END_OF_OGG.search(audio.extra_info):  # some recorders never write it
        _note(notes, "no-end", entry, "the Ogg file has no end mark: it may be cut short")
    if promised is not None and promised > audio.frames:
        raise _cut_short(entry, promised, audio.frames)


def _span(
    entry: str, start: float, end: float | None, rate: int, total: int, notes: Notes | None
) -> tuple[int, int]:
    """Return the first sample and the number of samples, at least one, of a segment; raise AudioError.

    ``start`` and ``end`` are seconds, ``total`` is the samples of the recording.
    """
    if start == 0 and end is None:
        return 0, total
    if total == 0:
        raise _no_samples(entry)
    first, last = round(start * rate), total if end is None else round(end * rate)
    if first >= total or last - total > timeline.OVERSHOOT_SECONDS * rate:
        raise AudioError(
            "segment",
            f"{entry}: segment {start} .. {'end' if end is None else end} s is outside of the recording "
            f"({total / rate:.3f} s): correct segments",
        )
    if first == last:
        raise AudioError("segment", f"{entry}: segment {start} .. {end} s holds no sample: correct segments")
    if last > total:
        _note(notes, "segment-end-cut", entry, f"segment end {end} s cut to the recording's {total / rate:.3f} s")
    return first, min(last, total) - first


def _to_float(samples: NDArray) -> NDArray:
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    info = np.iinfo(samples.dtype)
    full = (info.max - info.min + 1) // 2
    middle = full if samples.dtype.kind == "u" else 0
    return ((samples.astype(np.float64) - middle) / full).astype(np.float32)


def _chosen(samples: NDArray, channel: int | None, name: str) -> NDArray:
    """Return the wanted channels, (samples, channels)."""
    samples = samples.reshape(len(samples), -1)
    channels = samples.shape[1]
    if channel is None:
        return samples
    if not 0 <= channel < channels:
        raise _no_channel(name, channel, channels)
    return samples[:, channel : channel + 1]


def _no_channel(name: str, channel: int, channels: int) -> AudioError:
    return AudioError("channel", f"{name} has no channel {channel}: it has {channels}, counted from 0")


def _to_mono(samples: NDArray, name: str, notes: Notes | None) -> NDArray:
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    advice = "choose one of them, from 0 on (`channel`, --channel)"
    _note(notes, "channels-averaged", name, f"{channels} channels averaged; {advice}")
    return samples.mean(axis=1, dtype=np.float64).astype(np.float32)
