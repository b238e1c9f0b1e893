"""Recordings of a set: each is read, or has the reason why it cannot be used."""

import numpy as np
import pytest
import soundfile
import tiny

from espnet_speechllm_xl.corpus.audio import AudioError
from espnet_speechllm_xl.corpus.kaldi import KaldiError, write_table
from espnet_speechllm_xl.sets.audio import SetAudio, sample_counts


@pytest.fixture
def dump(tmp_path):
    speech = tiny.speech(3, 16000)
    soundfile.write(tmp_path / "good.wav", speech, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "quiet.wav", speech * 1e-4, 8000, subtype="FLOAT")
    (tmp_path / "empty.wav").touch()
    files = {name: tmp_path / f"{name}.wav" for name in ("good", "quiet", "empty", "gone")}
    write_table(tmp_path / "wav.scp", files)
    return tmp_path, files, speech


def test_what_can_be_used_and_why_the_rest_cannot(dump):
    folder, files, speech = dump
    recordings, reasons = SetAudio(folder, 16000).usable(["unlisted", "empty", "good", "gone", "quiet"])
    assert list(recordings) == ["good", "quiet"] and list(reasons) == ["unlisted", "empty", "gone"]
    np.testing.assert_array_equal(recordings["good"].samples, speech)
    assert recordings["good"].file == str(files["good"]) and recordings["good"].remarks == {}
    assert len(recordings["quiet"].samples) == 32000, "at the rate that was asked for"
    assert {"resampled", "nearly-silent"} <= recordings["quiet"].remarks.keys()
    assert reasons["unlisted"] == "not in wav.scp"
    assert "empty.wav is an empty file" in reasons["empty"] and "gone.wav does not exist" in reasons["gone"]


def test_one_at_a_time(dump):
    audio = SetAudio(dump[0], 16000)
    assert audio.why_unlisted("good") is None and len(audio.read("good").samples) == 16000
    with pytest.raises(AudioError, match="not in wav.scp") as error:
        audio.read("unlisted")
    assert error.value.reason == "missing"


def test_lengths_are_those_of_a_formatted_set(dump):
    folder = dump[0]
    with pytest.raises(KaldiError, match="is no formatted set, it has no utt2num_samples"):
        sample_counts(folder)
    write_table(folder / "utt2num_samples", {"good": 16000, "quiet": 32000})
    assert sample_counts(folder) == {"good": 16000, "quiet": 32000}
