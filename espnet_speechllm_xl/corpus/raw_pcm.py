"""Raw PCM as it arrives (pipe, microphone, socket), converted to samples at the model's rate."""

import numpy as np
import soxr
from numpy.typing import NDArray

from espnet_speechllm_xl.corpus import containers
from espnet_speechllm_xl.corpus.audio import AudioError, check_scale
from espnet_speechllm_xl.corpus.audio_remarks import Meter

FORMATS: dict[str, np.dtype] = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}  # little endian
RATES = range(8000, 192001)  # Hz


class Pcm:
    """Mono PCM of one stream.

    Args:
        encoding: "s16" or "f32" (in [-1, 1]; greater samples are clipped).
        rate: of the PCM, in Hz.
        sample_rate: wanted rate in Hz, to which soxr resamples piece by piece.

    Raises:
        AudioError: unknown encoding or rate.
    """

    def __init__(self, encoding: str, rate: int, sample_rate: int) -> None:
        if encoding not in FORMATS:
            raise AudioError("format", f"PCM format '{encoding}': use one of {', '.join(FORMATS)}")
        if rate not in RATES:
            raise AudioError("rate", f"rate {rate}: give whole Hz from {RATES[0]} to {RATES[-1]}")
        self.rate, self._type = rate, FORMATS[encoding]
        self._resampler = soxr.ResampleStream(rate, sample_rate, 1) if rate != sample_rate else None
        self._meter = Meter(rate)
        self._is_pcm = False  # whether the first bytes are known to begin no other kind of file
        self._held = b""  # bytes that are no samples yet

    @property
    def bytes_left(self) -> bytes:
        """Return the first bytes of a sample whose last bytes have not come yet."""
        return self._held[len(self._held) - len(self._held) % self._type.itemsize :]

    @property
    def bytes_per_second(self) -> int:
        """Return the bytes that a second of the PCM has."""
        return self.rate * self._type.itemsize

    def samples(self, data: bytes) -> NDArray[np.float32]:
        """Return the float32 samples (n,), n >= 0, that more bytes, cut anywhere, complete.

        Raises:
            AudioError: the bytes begin an audio file, or hold samples that are no audio.
        """
        self._held += data
        if not self._is_pcm:
            if kind := containers.kind_of(self._held):
                self._held = b""
                raise AudioError(
                    "format",
                    f"an audio file with a header ({kind.name}), not raw PCM: transcribe the file, or decode it first",
                )
            if not containers.is_decided(self._held):  # it may be MP3: a second frame will tell
                return np.zeros(0, np.float32)
            self._is_pcm = True
        return self._resample(self._whole_samples(), last=False)

    def rest(self) -> NDArray[np.float32]:
        """Return the samples (n,) that are held back until the end; what follows is resampled as another recording.

        Raises:
            AudioError: as :meth:`samples`.
        """
        samples = self._resample(self._whole_samples(), last=True)
        if self._resampler is not None:
            self._resampler.clear()
        return samples

    def remarks(self) -> dict[str, str]:
        """Return the remarks on the PCM so far, ``{kind: text}``: see audio_remarks.py."""
        return self._meter.remarks()

    def _whole_samples(self) -> NDArray:
        """Take the whole float32 samples (n,) from the bytes held, at the rate of the PCM."""
        whole = len(self._held) - len(self.bytes_left)
        samples, self._held = np.frombuffer(self._held[:whole], self._type), self._held[whole:]
        if self._type.kind == "i":
            samples = samples.astype(np.float32) / 32768
        elif not np.isfinite(samples).all():
            raise AudioError("not-finite", "PCM with NaN or infinite samples: mend the source of the audio")
        else:
            check_scale(float(np.abs(samples).max(initial=0)), "PCM")
            samples = samples.astype(np.float32).clip(-1, 1)
        self._meter.add(samples)
        return samples

    def _resample(self, samples: NDArray, last: bool) -> NDArray:
        return samples if self._resampler is None else self._resampler.resample_chunk(samples, last=last)
