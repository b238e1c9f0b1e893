"""Raw PCM as it arrives (pipe, microphone, socket), to samples at the model's rate."""

import numpy as np
import soxr

from espnet_speechllm_xl.audio import AudioError, check_scale

FORMATS = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}  # little endian
RATES = range(8000, 192001)  # Hz
# What audio files begin with: WAV, FLAC, Ogg, MP3, AIFF, WebM (of a browser's MediaRecorder).  MP4 has its name after a
# length.  An MP3 file without a tag begins with two bytes that may as well be a sample.
HEADERS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b"\x1aE\xdf\xa3")
MP4 = b"ftyp"


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
        self._begun = False
        self.bytes_left = b""  # of a sample whose other bytes have not come yet

    @property
    def bytes_per_second(self):
        """Of the PCM."""
        return self.rate * self._type.itemsize

    def samples(self, data):
        """Float32 samples (n,), n >= 0, that ``data`` (bytes, cut anywhere) completes; AudioError for no such PCM."""
        if not self._begun and (data.startswith(HEADERS) or data[4:8] == MP4):
            raise AudioError(
                "format", "an audio file with a header, not raw PCM: transcribe the file, or decode it first"
            )
        self._begun = True
        data = self.bytes_left + data
        whole = len(data) - len(data) % self._type.itemsize
        self.bytes_left = data[whole:]
        samples = np.frombuffer(data[:whole], self._type)
        if self._type.kind == "i":
            samples = samples.astype(np.float32) / 32768
        elif not np.isfinite(samples).all():
            raise AudioError("not-finite", "PCM with NaN or infinite samples: mend the source of the audio")
        else:
            check_scale(float(np.abs(samples).max(initial=0)), "PCM")
            samples = samples.astype(np.float32).clip(-1, 1)
        return self._resample(samples, last=False)

    def rest(self):
        """Samples (n,) that the resampler holds back until the end."""
        return self._resample(np.zeros(0, np.float32), last=True)

    def _resample(self, samples, last):
        return samples if self._resampler is None else self._resampler.resample_chunk(samples, last=last)
