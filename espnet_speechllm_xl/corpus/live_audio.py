"""Audio as it arrives: from a file, from raw PCM on standard input, from a microphone.

Each source yields blocks (N,) of samples.  When a source has ended, ``remarks`` ({kind: text}) holds what stands out in
its audio.
"""

import io
import queue
import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, cast

from espnet_speechllm_xl.errors import UserError

if TYPE_CHECKING:
    import numpy as np

BLOCK_SECONDS = 0.1  # of audio in a block
CUT_SAMPLE = "cut-sample"  # a kind of remark


def of_file(
    path: str, sample_rate: int, remarks: dict[str, str], channel: int | None = None, realtime: bool = False
) -> "Generator[np.ndarray, None, None]":
    """Yield the audio of a file.

    Args:
        path: name of the file.
        sample_rate: Hz of the blocks.
        remarks: takes what stands out in the audio.
        channel: which one (0-based) of several; None averages them.
        realtime: yield the audio at the pace at which it was spoken.

    Raises:
        AudioError: the file is missing or cannot be used.
    """
    from espnet_speechllm_xl.corpus.audio import read_file

    samples = read_file(path, sample_rate, channel=channel, notes=remarks)
    begin, size = time.monotonic(), round(BLOCK_SECONDS * sample_rate)
    for first in range(0, len(samples), size):
        block = samples[first : first + size]
        if realtime:
            time.sleep(max(0.0, begin + (first + len(block)) / sample_rate - time.monotonic()))
        yield block


def of_standard_input(
    encoding: str, rate: int, sample_rate: int, remarks: dict[str, str]
) -> "Generator[np.ndarray, None, None]":
    """Yield raw PCM, mono, from standard input.

    Args:
        encoding: "s16" or "f32".
        rate: Hz of the PCM.
        sample_rate: Hz of the blocks.
        remarks: takes what stands out in the audio.

    Raises:
        AudioError: the input is no PCM of this kind.
    """
    from espnet_speechllm_xl.corpus.raw_pcm import Pcm

    pcm = Pcm(encoding, rate, sample_rate)
    stdin, size = cast(io.BufferedReader, sys.stdin.buffer), round(BLOCK_SECONDS * pcm.bytes_per_second)
    try:
        while data := stdin.read1(size):
            yield pcm.samples(data)
        if pcm.bytes_left:
            remarks[CUT_SAMPLE] = "the last sample is cut and left out"
        yield pcm.rest()
    finally:
        remarks.update(pcm.remarks())


def of_microphone(device: str | None, sample_rate: int, remarks: dict[str, str]) -> "Generator[np.ndarray, None, None]":
    """Yield what a microphone hears, until the caller stops.

    Args:
        device: its name, as sounddevice lists it; None: the system's.
        sample_rate: Hz of the blocks.
        remarks: takes what stands out in the audio.

    Raises:
        UserError: there is no such microphone, or no sounddevice.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: no PortAudio
        raise UserError(f"no microphone ({error}): pip install sounddevice, and PortAudio (libportaudio2)") from error
    from espnet_speechllm_xl.corpus.raw_pcm import Pcm

    blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    try:
        rate = int(sounddevice.query_devices(device, "input")["default_samplerate"])
        pcm = Pcm("s16", rate, sample_rate)
        recorder = sounddevice.RawInputStream(
            rate, device=device, channels=1, dtype="int16", callback=lambda data, *_: blocks.put(bytes(data))
        )
        with recorder:
            try:
                while True:
                    yield pcm.samples(blocks.get())
            finally:
                remarks.update(pcm.remarks())
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UserError(f"no microphone ({error}): connect one, or name another with --microphone-device") from error
