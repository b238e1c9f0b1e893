"""Audio of any kind of ``wav.scp`` entry, or of a user's file, as mono float32 at the wanted rate.

An entry is a file that libsndfile opens (WAV, FLAC, SPHERE, Ogg, MP3, ...) or PyAV (containers.py), a command that
writes such a file (``sph2pipe -f wav x.sph |``), or an offset into a Kaldi archive (``x.ark:123``), perhaps with a
range of samples (``x.ark:123[0:15999]``, both ends inclusive).  Whatever is wrong with it is an :class:`AudioError`:
one line that names the entry and the next action.

Remarks (resampled, channels averaged, those of audio_remarks.py) are logged, or go into a dictionary ``{kind: text}``.
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

import numpy as np
import soundfile
import soxr

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.corpus import containers, kaldi_archives
from espnet_speechllm_xl.corpus.audio_remarks import Meter
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import atomic_write

LOUDEST = 32.0  # 30 dB above full scale: no float recording is that loud, 16-bit values soon are
# In libsndfile's log: the bytes that the header of WAV, AIFF, 8SVX and AU promises, and those there are; RF64's frames.
BYTES = re.compile(r"^ *(?:data|SSND|BODY|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
FRAMES = re.compile(r"Calculated frame count \d+ does not match value from 'ds64' chunk of (\d+)")
# W64's: of the whole file, and of the samples with the 24 bytes before them.
W64_BYTES = re.compile(r"^riff : (\d+) \(should be (\d+)\).*^ *data : (\d+)", re.MULTILINE | re.DOTALL)
# Of VOC and MATLAB's it has words only; it has them for whole GSM 6.10 in WAV, too.
TRUNCATED = re.compile(r"seems to be (?:a )?truncated", re.IGNORECASE)
NO_END_OF_OGG = re.compile(r"^Ogg ?: Last page lacks an end-of-stream bit", re.MULTILINE)
BLOCK = 1 << 20
MP3_FRAME = 1152  # samples
MP3_LEAD = 10 * MP3_FRAME  # samples: the frames in which those of a later one may stand
MOST_RATE = 96000  # Hz, rate times channels up to which `most_seconds` may be used up
HEAD = 16 * 1024  # bytes that tell the kind of a file: two frames of AAC at the most
FOREIGN_CODING = (4, 18)  # libsndfile's codes for a coding that it does not read; of FLAC, for anything else, too


class AudioError(UserError):
    """Audio that cannot be used.  ``reason`` is a short code for counting; ``str()`` is the whole line.

    Reasons: missing, unreadable, command-failed, cut-short, empty, not-finite, range, sample-rate, channel, segment,
    too-long.
    """

    def __init__(self, reason, message):
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self):
        return self.args[1]


def read_audio(
    entry, sample_rate=16000, *, start=0.0, end=None, speed=1.0, channel=None, resample=True, notes=None, cache=None
):
    """Read an entry, or its part from ``start`` to ``end`` seconds.

    Args:
        entry: path, ``command |`` or ``archive:offset``; relative paths start at the working directory.
        sample_rate: wanted rate in Hz; other rates are resampled (soxr), or refused with ``resample=False``.
        speed: playback speed; 0.9 makes the audio 1/0.9 times as long.
        channel: which channel (0-based) of several; None averages them.
        notes: dictionary that takes the remarks, the first of each kind; None: they are logged.  (Nobody reads those of
            a dump that is aligned or measured: they were made when it was formatted, and are again when it is decoded.)
        cache: dict that keeps the last command's or archive's content, for several segments of one recording.
    Returns:
        float32 array (samples,), at least one sample.
    Raises:
        AudioError: see its reasons.
    """
    entry = os.fspath(entry).strip()
    content = _fetch(entry, cache, notes)
    if isinstance(content, tuple):
        rate, samples = content
        first, count = _span(entry, start, end, rate, len(samples), notes)
        samples = samples[first : first + count]
    else:
        samples, rate = _decode(entry, content, start, end, notes)
    return conform(samples, rate, sample_rate, speed=speed, channel=channel, resample=resample, name=entry, notes=notes)


def read_file(path, sample_rate=16000, *, channel=None, notes=None):
    """A user's audio file, whole, as :func:`read_audio` gives it; no name is run as a command, whatever it looks like.

    Raises AudioError.
    """
    samples, rate = _decode_file(path, notes)
    return conform(samples, rate, sample_rate, channel=channel, name=os.fspath(path), notes=notes)


def read_channels(
    path: str | os.PathLike, sample_rate: int = 16000, *, notes: dict | None = None
) -> Iterator[np.ndarray]:
    """Yield the channels of a user's audio file, each as :func:`read_file` gives it.  Raises AudioError."""
    samples, rate = _decode_file(path, notes)
    for channel in range(samples.shape[1]):
        yield conform(samples, rate, sample_rate, channel=channel, name=os.fspath(path), notes=notes)


def _decode_file(path: str | os.PathLike, notes: dict | None) -> tuple[np.ndarray, int]:
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise AudioError("unreadable", f"{name!a}: the name is not UTF-8: rename the file") from None
    if not os.path.isfile(name):
        raise _missing(name)
    return _decode(name, _nonempty(name), 0.0, None, notes)


def read_bytes(content, sample_rate=16000, *, name="audio", channel=None, most_seconds=math.inf, notes=None):
    """The audio of a file that is in memory (bytes), as :func:`read_audio` gives it; nothing is written to disk.

    Raises AudioError, with reason "too-long" for more than ``most_seconds``; no more than that is ever unpacked.
    """
    if not content:
        raise AudioError("empty", f"{name} is an empty file: send it again")
    samples, rate = _decode(name, content, 0.0, None, notes, most_seconds)
    return conform(samples, rate, sample_rate, channel=channel, name=name, notes=notes)


def conform(
    samples, rate, sample_rate=16000, *, speed=1.0, channel=None, resample=True, name="audio array", notes=None
):
    """Bring an array (samples,) or (samples, channels) to mono float32 at ``sample_rate`` Hz.

    Integer arrays are scaled by their type's full range, so that 16-bit audio lies in [-1, 1).  Arguments
    as in :func:`read_audio`; raises AudioError (empty, not-finite, range, channel, sample-rate, unreadable).
    """
    samples = np.asarray(samples)
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
    samples = _chosen(samples, channel, name)
    remark(samples, rate, name, notes)
    samples = _to_mono(samples, name, notes)
    if rate != sample_rate:
        if not resample:
            raise AudioError(
                "sample-rate",
                f"{name} is at {rate} Hz, {sample_rate} Hz are wanted: convert it "
                f"(`sox IN -r {sample_rate} OUT`), or allow resampling",
            )
        _note(notes, "resampled", name, f"resampled from {rate} to {sample_rate} Hz")
    if rate * speed != sample_rate:
        faster = soxr.resample(samples, rate * speed, sample_rate).astype(np.float32, copy=False)
        samples = faster if len(faster) else samples[:1]
    # Of a single sample numpy calls any stride contiguous, torch none but its own.
    return samples if samples.strides == (samples.itemsize,) else samples.copy()


def with_gain(samples: np.ndarray, gain_db: float) -> np.ndarray:
    """Return samples (n,) at another level, rounded and clipped as in a file of 16 bits."""
    louder = np.round(samples * np.float32(10 ** (gain_db / 20) * 32768))
    return (np.clip(louder, -32768, 32767) / 32768).astype(np.float32)


def remark(samples: np.ndarray, rate: int, name: str, notes: dict | None) -> None:
    """Note what audio_remarks.py finds in float samples (n, channels)."""
    meter = Meter(rate, samples.shape[1])
    meter.add(samples)
    for kind, text in meter.remarks().items():
        _note(notes, kind, name, text)


def check_scale(peak, name):
    """Raises AudioError (range) when the largest magnitude of float samples is none of audio in [-1, 1]."""
    if peak > LOUDEST:
        raise AudioError("range", f"{name}: a sample of {peak:.0f}, but full scale is 1: divide 16-bit values by 32768")


def resample(samples, rate, sample_rate):
    """An array (samples,) or (samples, channels) at ``rate`` Hz as mono float32 at ``sample_rate`` Hz; see conform."""
    return conform(samples, rate, sample_rate)


def to_int16(samples):
    """float (samples,) -> (int16 (samples,), how many samples were clipped); undoes 16-bit reading exactly."""
    scaled = np.rint(np.asarray(samples, np.float64) * 32768)
    clipped = int(np.count_nonzero((scaled < -32768) | (scaled > 32767)))
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


def write_flac(path, samples, sample_rate):
    """Write int16 (samples,) as 16-bit FLAC, whole or not at all."""
    # In memory first: of a full disk soundfile says nothing but "System error".
    content = io.BytesIO()
    soundfile.write(content, samples, sample_rate, format="FLAC", subtype="PCM_16")
    with atomic_write(path, "wb") as stream:
        stream.write(content.getbuffer())


def backing_files(entry):
    """The files that an entry reads, as far as they are there: a path, an archive, those that a command names."""
    entry = os.fspath(entry).strip()
    if entry.endswith("|"):
        words = shlex.shlex(entry[:-1], posix=True, punctuation_chars=True)
        words.whitespace_split = True
        try:
            names = list(words)
        except ValueError:  # a quotation mark without its other one: the shell will say so
            names = []
    else:
        names = [entry] if os.path.isfile(entry) else [kaldi_archives.split(entry)[0]]
    return [Path(name) for name in names if name and os.path.isfile(name)]


def _note(notes, kind, name, text):
    if notes is None:
        logging.warning(f"{name}: {text}")
    else:
        notes.setdefault(kind, text)


def _fetch(entry, cache, notes=None):
    """A path, the bytes of an audio file, or (rate, samples)."""
    if cache is not None and entry in cache:
        return cache[entry]
    archive, offset, part = kaldi_archives.split(entry)
    try:
        if entry.endswith("|"):
            content = _run(entry)
        elif os.path.isfile(entry):
            return _nonempty(entry)
        elif archive and os.path.isfile(archive):
            content = _load_archive(entry, archive, offset, part, notes)
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


def _missing(entry):
    try:
        os.stat(entry)
    except (FileNotFoundError, ValueError):  # a name that no file can have
        pass
    except OSError as error:  # it may well be there: in a folder that is closed to us, say
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


def _nonempty(file):
    if os.path.getsize(file) == 0:
        raise AudioError("empty", f"{file} is an empty file: copy it again, or remove it from the list")
    return Path(file)


def _run(entry):
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


def _load_archive(entry, archive, offset, part, notes):
    """The bytes of a sound in an archive, or (rate, samples) of a part of it."""
    offset = min(offset, os.path.getsize(archive))  # no file is opened at a number that none can have
    with open(archive, "rb") as stream:
        content, matrix = kaldi_archives.sound_at(stream, offset), kaldi_archives.is_matrix_at(stream, offset)
    if content is None and matrix:
        raise AudioError("unreadable", f"{entry} is a matrix of features, not audio: give the wav.scp of the audio")
    if content is None and (kind := containers.kind_of(_head(Path(archive), HEAD, offset))):
        # Most kinds do not say where they end, and what follows in the archive would be read with them.
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
            f"{entry}: its header says no length, as of what was written to a pipe, and other sounds follow it: make "
            "the archive of files (`sox IN OUT.wav`, not `sox IN -t wav -`)",
        )
    if kaldi_archives.holds_another(content):
        raise AudioError(
            "cut-short",
            f"{entry} is cut short: its header promises more samples than are there before the next sound begins; make "
            "the archive again",
        )
    if part is None:
        return content
    try:
        (first, end), *columns = kaldi_archives.ranges(part)
    except ValueError:
        raise AudioError("segment", f"{entry}: give the range as [FIRST:LAST] or [FIRST:LAST,CHANNEL]") from None
    samples, rate = _decode(entry, content, 0.0, None, notes)
    first, count = _span(entry, first / rate, end and end / rate, rate, len(samples), notes)
    for begin, stop in columns:
        if begin >= samples.shape[1]:
            raise _no_channel(entry, begin, samples.shape[1])
        samples = samples[:, begin:stop]
    return rate, samples[first : first + count]


def _decode(entry, content, start, end, notes, most_seconds=math.inf):
    """Samples (samples, channels) of float32 and their rate, from a path or from bytes."""
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
                return samples[first : first + count], audio.samplerate
            if audio.frames > most:
                raise _too_long(entry, f"{most_seconds} s")
            _check_length(entry, audio, content, notes)
            first, count = _span(entry, start, end, audio.samplerate, audio.frames, notes)
            # Where decoding begins in the middle of an MP3, its first frames lack bits that stand in those before.
            mp3 = audio.subtype.startswith("MPEG")  # also within WAV
            lead = min(first, MP3_LEAD) if mp3 else 0
            if first:
                audio.seek(first - lead)
            samples = audio.read(lead + count, dtype="float32", always_2d=True)[lead:]
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise unreadable(entry, content, error) from None
    except MemoryError:
        raise _too_long(entry, "the memory holds") from None
    # MP3 headers may only estimate the length, hence 1 %; in WAV they count what is not given back of both ends.
    if len(samples) < 0.99 * count - (2 * MP3_FRAME if mp3 else 0):
        raise _cut_short(entry, count, len(samples))
    return samples, audio.samplerate


def _decode_container(
    entry: str,
    content: bytes | Path,
    kind: containers.Kind,
    start: float,
    end: float | None,
    notes: dict | None,
    most_seconds: float,
) -> tuple[np.ndarray, int]:
    """As :func:`_decode`, by PyAV."""
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
    return samples[first : first + count], rate


def _most_samples(most_seconds: float, rate: int, channels: int) -> float:
    return min(most_seconds * rate, most_seconds * MOST_RATE / channels)


def unreadable(entry: str, content: bytes | Path, error: Exception) -> AudioError:
    """The :class:`AudioError` of what libsndfile refused: damaged, or another format than those that are read.

    Args:
        content: path or bytes; error: of soundfile.
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


def _open(content):
    return io.BytesIO(content) if isinstance(content, bytes) else content


class _Sequential(soundfile.SoundFile):
    """soundfile seeks after every read, which fails at the end of FLAC without a length."""

    def seekable(self):
        return False


def _read_blocks(content, most):
    """Samples (samples, channels); when there are more than ``most``, some more than that."""
    blocks = []
    with _Sequential(_open(content)) as audio:
        while not blocks or (len(blocks[-1]) == BLOCK and len(blocks) * BLOCK <= most):
            blocks.append(audio.read(BLOCK, dtype="float32", always_2d=True))
    return np.concatenate(blocks)


def _cut_short(entry, promised, found):
    return AudioError(
        "cut-short", f"{entry} is cut short: its header promises {promised} samples, {found} are there; copy it again"
    )


def _no_samples(name: str) -> AudioError:
    return AudioError("empty", f"{name} holds no samples: record or copy it again, or remove it from the list")


def _too_long(entry, most):
    return AudioError(
        "too-long", f"{entry} is longer than {most}, or has too many channels for its length: cut it, make it mono"
    )


def _check_length(entry, audio, content, notes):
    """libsndfile shortens files of most formats without a word, but in its log, when bytes are missing."""
    promised = None
    if audio.format == "NIST":
        match = re.search(rb"sample_count -i (\d+)", _head(content, 1024))
        promised = int(match[1]) if match else None
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


def _span(entry, start, end, rate, total, notes):
    """First sample and number of samples of a segment, at least one; raises AudioError."""
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


def _to_float(samples):
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    info = np.iinfo(samples.dtype)
    full = (info.max - info.min + 1) // 2
    middle = full if samples.dtype.kind == "u" else 0
    return ((samples.astype(np.float64) - middle) / full).astype(np.float32)


def _chosen(samples: np.ndarray, channel: int | None, name: str) -> np.ndarray:
    """The wanted channels, (samples, channels)."""
    samples = samples.reshape(len(samples), -1)
    channels = samples.shape[1]
    if channel is None:
        return samples
    if not 0 <= channel < channels:
        raise _no_channel(name, channel, channels)
    return samples[:, channel : channel + 1]


def _no_channel(name: str, channel: int, channels: int) -> AudioError:
    return AudioError("channel", f"{name} has no channel {channel}: it has {channels}, counted from 0")


def _to_mono(samples, name, notes):
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    _note(notes, "channels-averaged", name, f"{channels} channels averaged; choose one of them by `channel`, from 0 on")
    return samples.mean(axis=1, dtype=np.float64).astype(np.float32)
