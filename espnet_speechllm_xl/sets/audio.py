"""Recordings of a dump set: how long each is, its samples, or the reason why it cannot be used.

Shape legend: ``N`` samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.inference import Speech2Text

LONG_SECONDS = 3600  # a recording that lasts as long gets a remark on what it costs


def sample_counts(dump: Path) -> dict[str, int]:
    """Read ``utt2num_samples`` of a dump set: ``{utterance: samples}``.

    Raises:
        KaldiError: the directory is no dump set, or the file is damaged.
    """
    from espnet_speechllm_xl.corpus.kaldi import KaldiError, read_table

    if not (dump / "utt2num_samples").exists():
        raise KaldiError(f"{dump} is no formatted set, it has no utt2num_samples: give one (dump/raw/SET)")
    return {utterance: int(value) for utterance, value in read_table(dump / "utt2num_samples").items()}


@dataclass(frozen=True)
class Recording:
    """The audio of an utterance.

    Attributes:
        file: its entry in ``wav.scp``.
        samples: (N,) at the rate that was asked for.
        remarks: ``{kind: text}``, what stands out in the audio.
    """

    file: str
    samples: "np.ndarray"
    remarks: dict[str, str] = field(default_factory=dict)


class SetAudio:
    """The recordings of a dump set.

    Args:
        dump: the set, with a ``wav.scp``.
        sample_rate: Hz at which recordings are read.

    Raises:
        KaldiError: ``wav.scp`` is missing or damaged.
    """

    def __init__(self, dump: Path, sample_rate: int) -> None:
        from espnet_speechllm_xl.corpus.kaldi import read_table

        self.sample_rate = sample_rate
        self._files = read_table(dump / "wav.scp")

    def why_unlisted(self, utterance: str) -> str | None:
        """Return the reason when the set has no audio for the utterance."""
        return None if utterance in self._files else "not in wav.scp"

    def read(self, utterance: str) -> Recording:
        """Read the recording of an utterance.

        Raises:
            AudioError: it is missing or cannot be used.
        """
        from espnet_speechllm_xl.corpus.audio import AudioError, read_audio

        if reason := self.why_unlisted(utterance):
            raise AudioError("missing", reason)
        file = self._files[utterance]
        remarks: dict[str, str] = {}
        return Recording(file, read_audio(file, self.sample_rate, notes=remarks), remarks)

    def usable(self, utterances: Iterable[str]) -> tuple[dict[str, Recording], dict[str, str]]:
        """Read the recordings of a batch; returns the usable ones, and for each other utterance the reason."""
        from espnet_speechllm_xl.corpus.audio import AudioError

        recordings, reasons = {}, {}
        for utterance in utterances:
            try:
                recordings[utterance] = self.read(utterance)
            except AudioError as error:
                reasons[utterance] = str(error)
        return recordings, reasons


def remark_on_length(speech2text: "Speech2Text", file: str, samples: "np.ndarray") -> str | None:
    """Return what a long recording costs and what there is instead; None for others and models without chunks.

    Args:
        speech2text: recogniser that is to decode it.
        file: its name.
        samples: (N,) at the recogniser's rate.
    """
    seconds = len(samples) / speech2text.sample_rate
    if seconds < LONG_SECONDS or speech2text.chunking is None:
        return None
    return (
        f"{file} lasts {seconds / 3600:.1f} h: it is held in memory whole, and its text comes at the end; "
        f"`speechllm-xl stream {file} --search chunk_sync` writes as it goes, in bounded memory"
    )
