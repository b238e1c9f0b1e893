"""The only arithmetic between samples, feature frames, encoder frames, chunks and seconds.

Feature frame ``i`` starts at ``10 i`` ms and covers 25 ms.  Encoder frame ``t`` ("frame") is feature
frames ``4t .. 4t+3``; by convention it *ends* at ``40 (t+1)`` ms, and every reported time uses that.

    samples  --10 ms hop-->  feature frames (100 Hz)  --stack 4-->  frames (25 Hz)  --c-->  chunks
"""

import math

from espnet_speechllm_xl.errors import UserError

HOP_MS = 10
WINDOW_MS = 25
STACK = 4
FRAME_SECONDS = HOP_MS * STACK / 1000
LONGEST_SECONDS = 1e8  # three years: no time in a table or an option is beyond
OVERSHOOT_SECONDS = 0.5  # what ends by so much after its recording ends with it (Kaldi's extract-segments)


def parse_seconds(text: str) -> float:
    """Seconds written as a plain number in 0 .. :data:`LONGEST_SECONDS`; raises ValueError for anything else."""
    seconds = float(text)
    if not (text.isascii() and "_" not in text and 0 <= seconds <= LONGEST_SECONDS):
        raise ValueError(f"'{text}' is no number of seconds in 0 .. {LONGEST_SECONDS:.0f}")
    return seconds


def hop_samples(sample_rate):
    """Samples between the starts of two feature frames."""
    return sample_rate * HOP_MS // 1000


def window_samples(sample_rate):
    """Samples that one feature frame covers."""
    return sample_rate * WINDOW_MS // 1000


def feature_frames(samples, sample_rate):
    """Complete feature frames in ``samples`` (int or integer tensor)."""
    count = (samples - window_samples(sample_rate)) // hop_samples(sample_rate) + 1
    return count * (count > 0)


def frames(samples, sample_rate):
    """Complete encoder frames in ``samples`` (int or integer tensor); 0 for audio without one."""
    return feature_frames(samples, sample_rate) // STACK


def samples_for_frames(count, sample_rate):
    """Fewest samples that hold ``count`` complete encoder frames."""
    if count <= 0:
        return 0
    return (count * STACK - 1) * hop_samples(sample_rate) + window_samples(sample_rate)


def samples_of_frames(count, sample_rate):
    """Samples between the starts of two encoder frames ``count`` apart."""
    return count * STACK * hop_samples(sample_rate)


def frame_end_seconds(frame):
    """End of encoder frame ``frame`` (0-based), in seconds."""
    return (frame + 1) * FRAME_SECONDS


def frame_start_seconds(frame):
    """Start of encoder frame ``frame`` (0-based; a fraction lies inside it), in seconds."""
    return frame * FRAME_SECONDS


def duration_frames(seconds):
    """A duration in frames: a float, whole for what lies on the grid, and infinite for infinity."""
    return round(seconds / FRAME_SECONDS, 6)


def frame_at(seconds):
    """The encoder frame whose span ``(40 t, 40 (t+1)]`` ms holds the time ``seconds``; 0 at least."""
    return max(0, math.ceil(duration_frames(seconds)) - 1)


def frame_from(seconds):
    """The encoder frame whose span ``[40 t, 40 (t+1))`` ms holds the time ``seconds``: where a word begins."""
    return max(0, math.floor(duration_frames(seconds)))


def gap_frames(seconds):
    """Whole encoder frames nearest to a duration."""
    return round(seconds / FRAME_SECONDS)


def num_chunks(num_frames, chunk):
    """K = ceil(T / c) (int or integer tensor); one chunk for c = None (infinity); 0 without frames."""
    return (num_frames > 0) * 1 if chunk is None else -(-num_frames // chunk)


def chunk_of_frame(frame, chunk):
    """Chunk that holds ``frame`` (int or integer tensor)."""
    return frame * 0 if chunk is None else frame // chunk


def place_in_chunk(frame, chunk):
    """Place of ``frame`` within its chunk, from 0 (int or integer tensor)."""
    return frame if chunk is None else frame % chunk


def chunk_of_token(end, chunk, delay, chunks):
    """Chunk of a token whose last frame is ``end``: min(floor((e + d) / c), K - 1).

    ``end`` (..., U) and ``chunks`` (K, broadcasting) are integer tensors: with the cap a token never lands in a
    chunk that ends before it, because its own chunk exists.
    """
    return chunk_of_frame(end + delay, chunk).minimum(chunks - 1)


def chunk_seconds(chunk):
    """Duration of a chunk in seconds (infinity for None)."""
    return math.inf if chunk is None else chunk * FRAME_SECONDS


def context_seconds(chunking):
    """How far back the chunks before the current one reach, in seconds; may be infinite."""
    return math.inf if chunking.context is None else chunking.context * chunk_seconds(chunking.chunk)


def latency_seconds(encoder, chunking):
    """Worst-case algorithmic latency: max(segment, c) + look-ahead + delay, in seconds; infinite when one is."""
    if chunking.chunk is None or encoder.segment is None:
        return math.inf
    return (max(encoder.segment, chunking.chunk) + encoder.right_context + chunking.delay) * FRAME_SECONDS


def frames_from_seconds(seconds, what):
    """A user's duration (``--chunk-size 1.28``) as whole frames; raises UserError off the 40 ms grid."""
    if seconds == math.inf:
        return None
    count = round(seconds / FRAME_SECONDS) if abs(seconds) <= LONGEST_SECONDS else -1
    if count < 0 or abs(count * FRAME_SECONDS - seconds) > 1e-6:
        raise UserError(
            f"{what} {seconds} s is not a multiple of {FRAME_SECONDS} s: give a duration >= 0 on that grid, or inf"
        )
    return count


def chunk_span_frames(index, chunk, num_frames):
    """First frame of chunk ``index`` and the frame after its last, in audio of ``num_frames`` frames."""
    if chunk is None:
        return 0, num_frames
    return min(index * chunk, num_frames), min((index + 1) * chunk, num_frames)


def chunks_from_seconds(seconds, chunk):
    """A user's context (``--context 5.12``) as whole chunks of ``chunk`` frames; raises UserError otherwise."""
    if seconds == math.inf or chunk is None:
        return None
    count = frames_from_seconds(seconds, "context")
    if count % chunk:
        raise UserError(
            f"context {seconds} s is not a multiple of the chunk size {chunk_seconds(chunk)} s: "
            "give a multiple, 0 or inf"
        )
    return count // chunk


def same_context(chunk, context, other):
    """The fewest chunks of ``other`` frames that see as far back as ``context`` ones of ``chunk``; None: all."""
    if context == 0:
        return 0
    return None if None in (chunk, context, other) else -(-chunk * context // other)
