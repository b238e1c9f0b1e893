"""Recordings of a dump set."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.inference import Speech2Text


def sample_counts(dump):
    """``utt2num_samples`` of a dump set: ``{utterance: samples}``; raises KaldiError."""
    from espnet_speechllm_xl.corpus.kaldi import KaldiError, read_table

    if not (dump / "utt2num_samples").exists():
        raise KaldiError(f"{dump} is no formatted set, it has no utt2num_samples: give one (dump/raw/SET)")
    return {utterance: int(value) for utterance, value in read_table(dump / "utt2num_samples").items()}


LONG_SECONDS = 3600  # of a recording, from which on a remark says what it costs


def of_length(speech2text: "Speech2Text", file: str, samples: "np.ndarray") -> str | None:
    """Say what a long recording costs, and what is there for it; None of others, and where there is nothing else."""
    seconds = len(samples) / speech2text.sample_rate
    if seconds < LONG_SECONDS or speech2text.chunking is None:
        return None
    return (
        f"{file} lasts {seconds / 3600:.1f} h: it is held in memory whole, and its text comes at the end; "
        f"`speechllm-xl stream {file} --search chunk_sync` writes as it goes, in bounded memory"
    )
