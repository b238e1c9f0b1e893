"""The only arithmetic between samples, feature frames, encoder frames, decoder inputs, chunks and seconds.

Feature frame ``i`` starts at ``10 i`` ms and covers 25 ms.  Encoder frame ``t`` ("frame") is feature
frames ``4t .. 4t+3``; by convention it *ends* at ``40 (t+1)`` ms, and every reported time uses that.

    samples  --10 ms hop-->  feature frames (100 Hz)  --stack 4-->  frames (25 Hz)  --c-->  chunks

The decoder gets one input for each ``reduction`` r frames of a chunk.  Chunks and alignments stay in
frames.  A chunk of c frames has ceil(c / r) inputs, and no input holds frames of two chunks.  With c = 6,
r = 4, and a last chunk of 5 frames::

    frames   0 1 2 3 4 5   6 7 8 9 10 11   12 13 14 15 16
    inputs   0 0 0 0 1 1   2 2 2 2  3  3    4  4  4  4  5
"""

import math
from typing import TYPE_CHECKING, TypeVar

from espnet_speechllm_xl.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and the commands that ask for no model need none
    from torch import Tensor

    from espnet_speechllm_xl.config import ChunkingConfig, EncoderTiming

Count = TypeVar("Count", int, "Tensor")  # a number, or an integer tensor of any shape

HOP_MS = 10
WINDOW_MS = 25
STACK = 4
FRAME_SECONDS = HOP_MS * STACK / 1000
LONGEST_SECONDS = 1e8  # three years: no time in a table or an option is beyond
OVERSHOOT_SECONDS = 0.5  # what ends by so much after its recording ends with it (Kaldi's extract-segments)


def parse_seconds(text: str) -> float:
    """Return seconds written as a plain number in 0 .. :data:`LONGEST_SECONDS`; raise ValueError for anything else."""
    seconds = float(text)
    if not (text.isascii() and "_" not in text and 0 <= seconds <= LONGEST_SECONDS):
        raise ValueError(f"'{text}' is no number of seconds in 0 .. {LONGEST_SECONDS:.0f}")
    return seconds


def hop_samples(sample_rate: int) -> int:
    """Return the samples between the starts of two feature frames."""
    return sample_rate * HOP_MS // 1000


def window_samples(sample_rate: int) -> int:
    """Return the samples that one feature frame covers."""
    return sample_rate * WINDOW_MS // 1000


def feature_frames(samples: Count, sample_rate: int) -> Count:
    """Count the complete feature frames in a number of samples."""
    count = (samples - window_samples(sample_rate)) // hop_samples(sample_rate) + 1
    return count * (count > 0)


def frames(samples: Count, sample_rate: int) -> Count:
    """Count the complete encoder frames in a number of samples; 0 for audio without one."""
    return feature_frames(samples, sample_rate) // STACK


def samples_for_frames(count: int, sample_rate: int) -> int:
    """Return the fewest samples that hold ``count`` complete encoder frames."""
    if count <= 0:
        return 0
    return (count * STACK - 1) * hop_samples(sample_rate) + window_samples(sample_rate)


def samples_of_frames(count: int, sample_rate: int) -> int:
    """Return the samples between the starts of two encoder frames that are ``count`` apart."""
    return count * STACK * hop_samples(sample_rate)


def frame_of_sample(sample: int, sample_rate: int) -> float:
    """Return the time at which a sample (0-based) begins, in frames; a fraction lies inside a frame."""
    return sample / samples_of_frames(1, sample_rate)


def frame_end_seconds(frame: float) -> float:
    """Return the end of encoder frame ``frame`` (0-based), in seconds."""
    return (frame + 1) * FRAME_SECONDS


def frame_start_seconds(frame: float) -> float:
    """Return the start of encoder frame ``frame`` (0-based; a fraction lies inside it), in seconds."""
    return frame * FRAME_SECONDS


def duration_frames(seconds: float) -> float:
    """Return a duration in frames: whole for durations on the grid, infinite for infinity."""
    return round(seconds / FRAME_SECONDS, 6)


def frame_at(seconds: float) -> int:
    """Return the encoder frame whose span ``(40 t, 40 (t+1)]`` ms holds the time ``seconds``; 0 at least."""
    return max(0, math.ceil(duration_frames(seconds)) - 1)


def frame_from(seconds: float) -> int:
    """Return the encoder frame whose span ``[40 t, 40 (t+1))`` ms holds the time at which a word begins."""
    return max(0, math.floor(duration_frames(seconds)))


def gap_frames(seconds: float) -> int:
    """Return the number of encoder frames nearest to a duration."""
    return round(seconds / FRAME_SECONDS)


def num_chunks(num_frames: Count, chunk_size: int | None) -> Count:
    """Return K = ceil(T / c); one chunk for c = None (infinity); 0 without frames."""
    return (num_frames > 0) * 1 if chunk_size is None else -(-num_frames // chunk_size)


def chunk_of_frame(frame: Count, chunk_size: int | None) -> Count:
    """Return the id of the chunk that holds ``frame``."""
    return frame * 0 if chunk_size is None else frame // chunk_size


def place_in_chunk(frame: Count, chunk_size: int | None) -> Count:
    """Return the place of ``frame`` within its chunk, from 0."""
    return frame if chunk_size is None else frame % chunk_size


def inputs_of_chunk(chunk_size: int | None, reduction: int) -> int | None:
    """Return the decoder inputs of a whole chunk of audio, ceil(c / r).

    Args:
        chunk_size: frames c of a chunk; None: infinity.
        reduction: frames r of an input.
    """
    return None if chunk_size is None else -(-chunk_size // reduction)


def audio_inputs(num_frames: Count, chunk_size: int | None, reduction: int) -> Count:
    """Count the decoder inputs of audio: those of its whole chunks, and of a last, shorter one.

    Args:
        num_frames: of the audio.
        chunk_size: frames c of a chunk; None: infinity.
        reduction: frames r of an input.
    """
    if chunk_size is None:
        return -(-num_frames // reduction)
    whole, rest = num_frames // chunk_size, num_frames % chunk_size
    return whole * -(-chunk_size // reduction) + -(-rest // reduction)


def chunk_of_token(end: "Tensor", chunk_size: int | None, delay: int, num_chunks: "Tensor") -> "Tensor":
    """Return the chunk id of each token: min(floor((e + d) / c), K - 1).

    With the cap a token never lands in a chunk that ends before it, because its own chunk exists.

    Args:
        end: (..., U) integers e, last frame of each token.
        chunk_size: frames c of a chunk; None: infinity.
        delay: label delay d in frames.
        num_chunks: K of each utterance; broadcasts to ``end``.
    """
    return chunk_of_frame(end + delay, chunk_size).minimum(num_chunks - 1)


def chunk_seconds(chunk_size: int | None) -> float:
    """Return the duration of a chunk of so many frames in seconds; infinity for None."""
    return math.inf if chunk_size is None else chunk_size * FRAME_SECONDS


def context_seconds(chunking: "ChunkingConfig") -> float:
    """Return how far back the chunks before the current one reach, in seconds; may be infinite."""
    return math.inf if chunking.context is None else chunking.context * chunk_seconds(chunking.chunk)


def latency_seconds(encoder: "EncoderTiming", chunking: "ChunkingConfig") -> float:
    """Return the worst-case algorithmic latency in seconds: max(segment, c) + look-ahead + delay; may be infinite."""
    if chunking.chunk is None or encoder.segment is None:
        return math.inf
    return (max(encoder.segment, chunking.chunk) + chunking.right_context(encoder) + chunking.delay) * FRAME_SECONDS


def frames_from_seconds(seconds: float, what: str) -> int | None:
    """Return a user's duration (``--chunk-size 1.28``) as whole frames; None for infinity.

    Args:
        seconds: the duration.
        what: its name, for the message.

    Raises:
        UserError: the duration is negative or off the grid of 40 ms.
    """
    if seconds == math.inf:
        return None
    count = round(seconds / FRAME_SECONDS) if abs(seconds) <= LONGEST_SECONDS else -1
    if count < 0 or abs(count * FRAME_SECONDS - seconds) > 1e-6:
        raise UserError(
            f"{what} {seconds} s is not a multiple of {FRAME_SECONDS} s: give a duration >= 0 on that grid, or inf"
        )
    return count


def chunk_span_frames(chunk_id: int, chunk_size: int | None, num_frames: int) -> tuple[int, int]:
    """Return the first frame of a chunk and the frame after its last.

    Args:
        chunk_id: of the chunk.
        chunk_size: frames of a chunk; None: one chunk holds all.
        num_frames: of the audio, in which the last chunk may be shorter.
    """
    if chunk_size is None:
        return 0, num_frames
    return min(chunk_id * chunk_size, num_frames), min((chunk_id + 1) * chunk_size, num_frames)


def chunks_from_seconds(seconds: float, chunk_size: int | None) -> int | None:
    """Return a user's context (``--context 5.12``) as whole chunks of ``chunk_size`` frames; None for infinity.

    Raises:
        UserError: the context is no number of whole chunks.
    """
    if chunk_size is None:
        return None
    count = frames_from_seconds(seconds, "context")
    if count is None:
        return None
    if count % chunk_size:
        raise UserError(
            f"context {seconds} s is not a multiple of the chunk size {chunk_seconds(chunk_size)} s: "
            "give a multiple, 0 or inf"
        )
    return count // chunk_size


def same_context(chunk_size: int | None, context: int | None, other_size: int | None) -> int | None:
    """Return the fewest chunks of another size that see as far back; None: all chunks.

    Args:
        chunk_size: frames of a chunk; None: infinity.
        context: previous chunks of that size in sight; None: all.
        other_size: frames of a chunk of the other size; None: infinity.
    """
    if context == 0:
        return 0
    if chunk_size is None or context is None or other_size is None:
        return None
    return -(-chunk_size * context // other_size)
