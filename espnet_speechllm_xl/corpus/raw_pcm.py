"""Raw PCM as it arrives (pipe, microphone, socket), to samples at the model's rate."""

import numpy as np
import soxr

from espnet_speechllm_xl.corpus import containers
from espnet_speechllm_xl.corpus.audio import AudioError, check_scale
from espnet_speechllm_xl.corpus.audio_remarks import Meter

FORMATS = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}  # little endian
RATES = range(8000, 192001)  # Hz


class Pcm:
    """Mono PCM of one stream.

    Args:
        form: "s16" or "f32" (in [-1, 1]; what exceeds it is clipped).
        rate: of the PCM, in Hz; resampled with soxr, in pieces, to ``sample_rate``.

    Raises:
        AudioError: unknown form or rate.
    """

    def __init__(self, form, rate, sample_rate):
        if form not in FORMATS:
            raise AudioError("format", f"PCM format '{form}': use one of {', '.join(FORMATS)}")
        if rate not in RATES:
            raise AudioError("rate", f"rate {rate}: give whole Hz from {RATES[0]} to {RATES[-1]}")
        self.rate, self._type = rate, FORMATS[form]
        self._resampler = soxr.ResampleStream(rate, sample_rate, 1) if rate != sample_rate else None
        self._meter = Meter(rate)
        self._begun = False
        self._held = b""  # bytes that are no samples yet

    @property
    def bytes_left(self):
        """Bytes of a sample whose others have not come yet."""
        return self._held[len(self._held) - len(self._held) % self._type.itemsize :]

    @property
    def bytes_per_second(self):
        """Of the PCM."""
        return self.rate * self._type.itemsize

    def samples(self, data):
        """Float32 samples (n,), n >= 0, that ``data`` (bytes, cut anywhere) completes; AudioError for no such PCM."""
        self._held += data
        if not self._begun:
            if kind := containers.kind_of(self._held):
                self._held = b""
                raise AudioError(
                    "format",
                    f"an audio file with a header ({kind.name}), not raw PCM: transcribe the file, or decode it first",
                )
            if not containers.is_decided(self._held):  # waits for the second frame of what may be MP3
                return np.zeros(0, np.float32)
            self._begun = True
        return self._resample(self._whole_samples(), last=False)

    def rest(self):
        """Samples (n,) that are held back until the end; AudioError as :meth:`samples`."""
        return self._resample(self._whole_samples(), last=True)

    def remarks(self):
        """What there is to say of the PCM so far, ``{kind: text}``: see audio_remarks.py."""
        return self._meter.remarks()

    def _whole_samples(self):
        """Take the whole samples (n,) of what is held, at the rate of the PCM."""
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

    def _resample(self, samples, last):
        return samples if self._resampler is None else self._resampler.resample_chunk(samples, last=last)
