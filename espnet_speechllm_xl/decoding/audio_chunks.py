"""Audio as it arrives, cut into pieces for the encoder and chunks for the decoder."""

import math
import sys
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.corpus.audio import AudioError, check_scale
from espnet_speechllm_xl.model.audio_to_frames import Acoustic, AcousticState, EncodeRequest
from espnet_speechllm_xl.model.chunk_model import ChunkModel


class AudioChunks:
    """Samples of one recording in, encoder frames out, cut into chunks.

    Args:
        acoustic: the model's; its state of the recording is kept here.
        chunking: of the decoding.
        most_segments: encoder segments that one request asks for at most; None: as the encoder's configuration says.

    Attributes:
        total: samples taken so far.
    """

    def __init__(self, acoustic: Acoustic, chunking: ChunkingConfig, most_segments: int | None = None) -> None:
        encoder = acoustic.encoder.config
        chunking.check_against(encoder)
        self._rate = rate = acoustic.config.sample_rate
        self._right_context = right = chunking.right_context(encoder)
        # With look-ahead or a tail the last frames come when the recording ends, and only then.
        self._ends_known = encoder.segment is None or right > 0 or acoustic.config.tail_frames > 0
        self._chunk_size = chunking.chunk or math.inf
        # Samples that complete a segment: what is encoded in whole segments only keeps many streams in step.
        first = self._hop = sys.maxsize  # an encoder of whole utterances waits for the end
        if encoder.segment is not None:
            first = timeline.samples_for_frames(encoder.segment + right, rate)
            self._hop = timeline.samples_of_frames(encoder.segment, rate)
        self._most = most_segments or encoder.block_segments
        self._state: AcousticState = acoustic.initial_state()
        self.total = 0
        self._samples: list[Tensor] = []  # not encoded yet
        self._count = 0  # of those
        self._needed = first  # to encode the next segment
        self._frames: list[Tensor] = []  # (t, D) that complete no chunk yet

    @property
    def wanted(self) -> int:
        """Return how many samples complete the next encoder segment."""
        return self._needed - self._count

    @property
    def frames(self) -> int:
        """Return the number of complete frames of the audio so far, without the silence behind its end."""
        return timeline.frames(self.total, self._rate)

    def open_chunk(self, step: int) -> Tensor:
        """Return the frames (t, D), t >= 0, that complete no chunk yet, as many as are a multiple of ``step``."""
        frames = torch.cat(self._frames) if self._frames else torch.zeros(0, 0)
        return frames[: len(frames) // step * step]

    def take(
        self, samples: Tensor, final: bool
    ) -> Generator[list[EncodeRequest], list[Any], list[tuple[Tensor, bool]]]:
        """Take samples (n,), n >= 0; a generator of encoder requests.

        Args:
            samples: at the model's rate.
            final: no audio follows.

        Returns:
            The chunks that became complete, when final also the last, short one, each as ``(frames (c, E), last)``;
            ``last``: it is known to be the last, however the samples were pushed.
        """
        self._samples.append(samples)
        self._count += len(samples)
        self.total += len(samples)
        if final or self._count >= self._needed:
            # A whole recording is not copied once more.
            samples = self._samples[0] if len(self._samples) == 1 else torch.cat(self._samples)
            for request in self._requests(samples, final):
                ((frames, self._state),) = yield [EncodeRequest(*request, self._state, self._right_context)]
                self._frames.append(frames)
        return self._cut(final)

    def _requests(self, samples: Tensor, final: bool) -> Iterator[tuple[Tensor, bool]]:
        """Yield ``(samples, final)`` of each encoder call; keep the rest of ``samples``."""
        while len(samples) >= self._needed:
            segments = min(self._most, 1 + (len(samples) - self._needed) // self._hop)
            count = self._needed + (segments - 1) * self._hop
            yield samples[:count], False
            samples, self._needed = samples[count:], self._hop
        self._samples, self._count = [samples.clone()], len(samples)
        if final and self.frames:  # of less than a frame nothing is written, not of silence behind it either
            yield samples, True

    def _cut(self, final: bool) -> list[tuple[Tensor, bool]]:
        count = sum(map(len, self._frames))
        if not count or not (final or count >= self._chunk_size):
            return []
        waiting = torch.cat(self._frames)
        chunks = list(waiting.split(int(min(self._chunk_size, count))))
        # A short one waits for more; cloned, as it would keep the others alive.
        self._frames = [] if final or len(chunks[-1]) == self._chunk_size else [chunks.pop().clone()]
        return [(chunk, final and self._ends_known and chunk is chunks[-1]) for chunk in chunks]


def checked_samples(samples: npt.ArrayLike | Tensor, model: ChunkModel | torch.nn.Module) -> Tensor:
    """Copy samples (n,) to where the model is.

    Raises:
        AudioError: they are not (n,) floats, NaN or infinite, or far beyond [-1, 1].
    """
    like = next(model.parameters())
    try:
        # Copied because they are kept, and the caller may fill the same buffer again.
        tensor = samples.clone() if isinstance(samples, torch.Tensor) else torch.from_numpy(_native(samples))
    except (TypeError, ValueError) as error:  # not numbers
        raise AudioError("unreadable", f"stream: {error}: push (n,) floats in [-1, 1]") from None
    if tensor.dim() != 1 or not (tensor.is_floating_point() or len(tensor) == 0):
        raise AudioError(
            "unreadable",
            f"stream: samples of shape {tuple(tensor.shape)} and type {tensor.dtype}: push (n,) floats in [-1, 1]",
        )
    if not torch.isfinite(tensor).all():
        raise AudioError("not-finite", "stream: NaN or infinite samples: mend the source of the audio")
    if len(tensor):
        check_scale(float(tensor.abs().max()), "stream")
    return tensor.to(like.device, torch.promote_types(like.dtype, torch.float32))


def _native(samples: npt.ArrayLike) -> np.ndarray:
    """Copy an array as torch wants it: in this machine's byte order, with positive strides, also of one sample."""
    array = np.asarray(samples)
    return np.array(array, array.dtype.newbyteorder("="), order="C", copy=True)
