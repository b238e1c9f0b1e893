"""The corpus without spaces: written with digits and punctuation, heard as it is read."""

import importlib.util
import re
from pathlib import Path

import pytest
import soundfile

from espnet_speechllm_xl.corpus.directories import check_dir
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.model.alignment import move_to_written

pytest.importorskip("espeakng_loader")
RECIPE = Path(__file__).resolve().parents[2] / "egs2/mini_mandarin/speechllm_xl1"


@pytest.fixture(scope="module")
def data():
    spec = importlib.util.spec_from_file_location("mandarin_data", RECIPE / "local/data.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.path", [*__import__("sys").path])  # the script puts that of mini_espeak before it
        spec.loader.exec_module(module)
        patch.setattr(module, "SIZES", {"tiny": {"train": 4, "dev": 2, "test": 2}})
        yield module


def test_numbers_are_read(data):
    numbers = {3: "三", 10: "十", 12: "十二", 20: "二十", 99: "九十九"}
    assert {number: data.read(number) for number in numbers} == numbers


def test_sets(data, tmp_path, capsys):
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        data.build(folder, "tiny", 1)
        texts = {}
        for name in ("train", "dev", "test"):
            assert check_dir(folder / name) == []
            text, spoken, audio = (read_table(folder / name / file) for file in ("text", "text_spoken", "wav.scp"))
            assert not any(re.search("[0-9。，A-Z]", line) for line in spoken.values())
            samples = {key: soundfile.read(path, dtype="int16") for key, path in audio.items()}
            assert all(rate == 16000 and 0.8 < len(sound) / rate < 10 for sound, rate in samples.values())
            texts[name] = text, spoken, {key: sound.tobytes() for key, (sound, _) in samples.items()}
        found.append(texts)
    assert found[0] == found[1], "it depends on the seed alone"
    said = [{*text.values()} for text, _, _ in found[0].values()]
    assert not (said[0] & said[1] or said[0] & said[2] or said[1] & said[2])
    assert "train: 4 utterances of 2 speakers" in capsys.readouterr().out


def test_every_character_has_its_own_time(data):
    """But for numbers, whose characters have the time of their reading."""
    spoken, written = "三月十五日天气很好吗", "3月15日，天气很好吗？"
    times = [*range(len(spoken))]
    moved = move_to_written(spoken, [times, times], written)
    assert moved.ends == [0, 1, 3, 3, 4, 4, 5, 6, 7, 8, 9, 9]
    assert moved.starts[2] == 2, "where the number begins"
    assert len(moved.read_otherwise) == 2
