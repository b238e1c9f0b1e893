"""Sound in Kaldi archives: entries ``FILE:OFFSET`` or ``FILE:OFFSET[RANGE]``, and the bytes at their place."""

import re
from typing import BinaryIO, NamedTuple

MOST_CHUNKS = 100  # of a RIFF file before its samples
UNKNOWN_BYTES = 0x7FFF0000  # writers to a pipe do not know the length: sox puts 0x7ffff000 there, ffmpeg 0xffffffff
WAV = re.compile(rb"RIFF.{4}WAVE", re.S)
ANOTHER = re.compile(rb"RIFF.{4}WAVE|fLaC\0\0\0\x22", re.S)


class Place(NamedTuple):
    """A place in an archive."""

    archive: str  # path
    offset: int  # bytes
    part: str | None  # such as "[0:5]", see `ranges`; None: all


def parse_entry(entry: str) -> Place | None:
    """Read an entry such as ``x.ark:123[0:5]``; None for any other kind of entry."""
    match = re.fullmatch(r"(.+):(\d+)(\[[\d:, ]*\])?", entry)
    return Place(match[1], int(match[2]), match[3]) if match else None


def ranges(text: str) -> list[tuple[int, int | None]]:
    """Read ranges of rows and columns: ``[0:51,3]`` gives [(0, 52), (3, 4)].

    Kaldi's last number is inclusive, ours is exclusive as in Python; None: to the end.

    Raises:
        ValueError: more than rows and columns, steps, or a range that ends before it begins.
    """
    found = []
    for part in text.strip("[]").split(","):
        first, colon, last = part.strip().partition(":")
        last = last if colon else first
        found.append((int(first or 0), int(last) + 1 if last else None))
    if len(found) > 2 or any(end is not None and end <= first for first, end in found):
        raise ValueError
    return found


def sound_at(stream: BinaryIO, offset: int) -> bytes | None:
    """Return the bytes of the sound file (RIFF, FLAC, or wrapped by kaldiio) at ``offset``; None: there is none."""
    stream.seek(offset)
    head = stream.read(8)
    size = None
    if head[:4] in (b"RIFF", b"RF64"):
        size = _riff_bytes(stream, offset)
    elif head[:4] == b"fLaC":
        size = _most_flac_bytes(stream, offset)
    elif head[:5] == b"AUDIO" and len(head) > 5:  # followed by: how many bytes the length has, the length, the file
        stream.seek(offset + 6)
        size = int.from_bytes(stream.read(head[5]), "little")
        offset = stream.tell()
    if size is None:
        return None
    stream.seek(offset)
    return stream.read(size)


def _riff_bytes(stream: BinaryIO, offset: int) -> int:
    """Return the length of the RIFF file at ``offset``; -1: it does not say.

    Both the file and its samples have a length in the header.  A writer that ends too soon, or cannot go back, leaves
    one of them out.  The length of the samples counts where there is one, as in other files.
    """
    stream.seek(offset + 4)
    whole = int.from_bytes(stream.read(4), "little")
    whole = -1 if whole >= UNKNOWN_BYTES else whole + 8
    position = offset + 12
    for _ in range(MOST_CHUNKS):
        stream.seek(position)
        head = stream.read(8)
        begin, size = position + 8, int.from_bytes(head[4:], "little")
        if len(head) < 8:
            break
        if head[:4] == b"data":
            if size < UNKNOWN_BYTES:
                return max(whole, begin + size - offset)
            return whole if offset + whole > begin else -1
        position = begin + size + size % 2
    return whole


def holds_another(content: bytes) -> bool:
    """Tell whether another WAV file begins inside the one that ``content`` is: it has less than its header promises."""
    return content[:4] in (b"RIFF", b"RF64") and WAV.search(content, 12) is not None


def is_endless(content: bytes) -> bool:
    """Tell whether the first sound of ``content`` has no length in its header, although other sounds follow it.

    Its end is then unknown, and the others would be read as a part of it.
    """
    data = content.find(b"data", 12, 4096)
    if content[:4] == b"RIFF":
        unknown = int.from_bytes(content[data + 4 : data + 8], "little") >= UNKNOWN_BYTES if data > 0 else False
    else:
        unknown = content[:4] == b"fLaC" and not int.from_bytes(content[18:26], "big") & (1 << 36) - 1
    return unknown and ANOTHER.search(content, 12) is not None


def is_matrix_at(stream: BinaryIO, offset: int) -> bool:
    """Tell whether features (Kaldi's binary matrix, numpy's array) stand at ``offset``."""
    stream.seek(offset)
    return stream.read(3).startswith((b"\0B", b"NPY"))


def _most_flac_bytes(stream: BinaryIO, offset: int) -> int:
    """Return the most bytes that the FLAC stream at ``offset`` can have (RFC 9639: metadata blocks); -1: unknown."""
    stream.seek(offset + 8)
    info = stream.read(18)
    shortest, numbers = int.from_bytes(info[:2], "big"), int.from_bytes(info[10:], "big")
    channels, bits, samples = (numbers >> 41 & 7) + 1, (numbers >> 36 & 31) + 1, numbers & (1 << 36) - 1
    if not samples or not shortest:
        return -1
    position, more = offset + 4, True
    while more:
        stream.seek(position)
        header = stream.read(4)
        if len(header) < 4:
            return -1
        more = header[0] < 128
        position += 4 + int.from_bytes(header[1:], "big")
    frames = samples // shortest + 1
    # Uncompressed; a difference of two channels has a bit more.  Frames have headers, one for each channel, too.
    return position - offset + samples * channels * (bits + 1) // 8 + frames * (32 + 8 * channels)
