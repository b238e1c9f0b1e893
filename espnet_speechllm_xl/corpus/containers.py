"""Kinds of sound files by their first bytes; a reader, by PyAV, of the kinds that libsndfile lacks.

PyAV (``pip install av``) is optional; its wheels hold FFmpeg's decoders.  It gets an open file and the one demuxer that
the first bytes call for.  FFmpeg must not choose: it also reads playlists, which may name any file or address.
"""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.container import InputContainer


TRACK_SECONDS = re.compile(r"(\d+):(\d+):(\d+\.?\d*)")
FRAME_HEADER = 7  # bytes; MPEG's has 4, ADTS's 7


class Kind(NamedTuple):
    """A kind of sound file."""

    name: str  # as a user calls it
    demuxer: str | None = None  # FFmpeg's, where only PyAV reads the kind


WAV, FLAC, MP3, AVI, AAC = Kind("WAV"), Kind("FLAC"), Kind("MP3"), Kind("AVI", "avi"), Kind("AAC", "aac")
OGG, AU, W64, MP4 = Kind("Ogg"), Kind("AU"), Kind("W64"), Kind("MP4 (m4a, mp4, mov, 3gp)", "mov")
# (offset, bytes, kind): the first that fits counts
MARKS = (
    (0, b"RIFF", WAV),
    (0, b"RF64", WAV),
    (0, b"fLaC", FLAC),
    (0, b"OggS", OGG),
    (0, b"ID3", MP3),
    (0, b"FORM", Kind("AIFF")),
    (0, b"NIST_1A", Kind("SPHERE")),
    (0, b".snd", AU),
    (0, b"caff", Kind("CAF")),
    (0, b"riff", W64),
    *((4, mark, MP4) for mark in (b"ftyp", b"moov", b"mdat", b"wide", b"free")),  # old QuickTime has no ftyp
    (0, b"\x1aE\xdf\xa3", Kind("WebM or Matroska", "matroska")),
    (0, b"#!AMR", Kind("AMR", "amr")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("WMA", "asf")),
)
# kbit/s by the index in the header: MPEG-1 layer II, MPEG-1 layer III, MPEG-2 and 2.5
BITRATES = {
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by the bits of the version
# What libsndfile reads, by the number in the header: PCM, ADPCM, float, A-law, mu-law, GSM, MP3, extensible of WAV (of
# G.726 only some); PCM, ADPCM, float, mu-law, A-law of AU.  Of others it says that the header is malformed.
WAV_CODINGS = (0x1, 0x2, 0x3, 0x6, 0x7, 0x11, 0x31, 0x38, 0x55, 0xFFFE)
AU_CODINGS = (1, 2, 3, 4, 5, 6, 7, 23, 25, 26, 27)
OGG_CODINGS = re.compile(rb"\x7fFLAC|Speex   |\x80theora|fishead")  # it reads none or only some files of these
READ = "WAV, FLAC, Ogg, MP3, AIFF, AU, CAF, SPHERE and, with PyAV (`pip install av`), m4a, mp4, webm, aac, amr"


def kind_of(head: bytes) -> Kind | None:
    """Return the kind of the file that ``head`` begins; None: an unknown kind, or too few bytes to tell.

    MP3 and AAC without a tag begin with a frame, whose header may also be PCM.  Two frames in a row are no PCM.
    """
    for offset, mark, kind in MARKS:
        if head[offset : offset + len(mark)] == mark:
            return AVI if kind is WAV and head[8:12] == b"AVI " else kind
    first = _frame(head)
    second = _frame(head[first.length :]) if first else None
    return first.kind if first and second and second[1:] == first[1:] else None


def tag_bytes(head: bytes) -> int:
    """Return the length of the ID3 tag that begins ``head``; MP3 or AAC stands behind it.  0: there is no tag."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))


def is_foreign(kind: Kind, head: bytes) -> bool:
    """Tell whether the header names a coding that libsndfile does not read."""
    if kind is WAV and head[12:16] == b"fmt " and len(head) > 22:
        return int.from_bytes(head[20:22], "little") not in WAV_CODINGS
    if kind is W64 and head[40:44] == b"fmt " and len(head) > 66:
        return int.from_bytes(head[64:66], "little") not in WAV_CODINGS
    if kind is AU and len(head) >= 16:
        return int.from_bytes(head[12:16], "big") not in AU_CODINGS
    return kind is OGG and bool(OGG_CODINGS.search(head[:512]))


def is_decided(head: bytes) -> bool:
    """Tell whether no further bytes could change the answer of :func:`kind_of`."""
    if first := _frame(head):
        return len(head) >= first.length + FRAME_HEADER
    possible = [mark for offset, mark, _ in MARKS if len(head) < offset + len(mark) and mark.startswith(head[offset:])]
    return not possible and not (head[:1] == b"\xff" and len(head) < FRAME_HEADER)


class _Frame(NamedTuple):
    length: int  # bytes
    kind: Kind
    shared: tuple[int, ...]  # fields of the header that all frames of a file share


def _frame(head: bytes) -> _Frame | None:
    """Read the header of a frame of MPEG audio (layer II or III) or of AAC (ADTS); None for any other bytes."""
    if len(head) < FRAME_HEADER or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    if version >= 2 and layer == 4:
        return _adts_frame(head)
    index, rate_index = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer not in (2, 3) or not 0 < index < 15 or rate_index == 3:
        return None
    rate = RATES[version][rate_index]
    samples = 576 if layer == 3 and version != 3 else 1152
    length = samples // 8 * 1000 * BITRATES[version == 3, layer][index - 1] // rate + (head[2] >> 1 & 1)
    return _Frame(length, MP3, (version, layer, rate))


def _adts_frame(head: bytes) -> _Frame | None:
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    if (head[2] >> 2 & 15) > 12 or length <= FRAME_HEADER:
        return None
    return _Frame(length, AAC, (head[1], head[2] & 0xFC))


def is_installed() -> bool:
    """Tell whether PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


class Sound(NamedTuple):
    """Decoded sound."""

    samples: NDArray[np.float32]  # (n, channels)
    rate: int  # Hz
    promised: float | None  # seconds that the file's index promises


def read(stream: BinaryIO, kind: Kind, most: Callable[[int, int], float]) -> Sound:
    """Decode the first sound of an open container; a film without sound gives no samples.

    Args:
        stream: the open file.
        kind: of the file, with a demuxer.
        most: (rate in Hz, channels) -> samples after which decoding stops.

    Raises:
        ValueError: the file is damaged; the message is the reason.
    """
    import av

    pieces, rate, count = [np.zeros((0, 1), np.float32)], 1, 0
    try:
        with av.open(stream, "r", format=kind.demuxer) as container:
            if not container.streams:
                raise ValueError("its index is missing or cut off")
            for rate, piece in _pieces(container):
                pieces.append(piece)
                count += len(piece)
                if count > most(rate, piece.shape[1]):
                    break
            promised = _promised(container, kind)
    except av.FFmpegError as error:
        raise ValueError(error.strerror) from None
    return Sound(np.concatenate(pieces[1:] or pieces), rate, promised)


def _pieces(container: "InputContainer") -> Iterator[tuple[int, np.ndarray]]:
    """Yield rate (Hz) and samples (n, channels) of the first sound of a container, frame by frame."""
    import av

    resampler, rate = None, 0
    for frame in container.decode(audio=0) if container.streams.audio else ():
        if resampler is None:  # the frames say the rate more surely than the header does
            rate = frame.sample_rate
            resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
        for piece in resampler.resample(frame):
            yield rate, piece.to_ndarray().T


def _promised(container: "InputContainer", kind: Kind) -> float | None:
    """Return the seconds of sound by the container's index; None without one (FFmpeg only estimates AAC and AMR)."""
    import av

    if kind.name in ("AAC", "AMR") or not container.streams.audio:
        return None
    track = container.streams.audio[0]
    if track.duration and track.time_base:
        return float(track.duration * track.time_base)
    if tag := TRACK_SECONDS.fullmatch(track.metadata.get("DURATION", "")):  # the only one in films of Matroska
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    return container.duration / av.time_base if container.duration and len(container.streams) == 1 else None
