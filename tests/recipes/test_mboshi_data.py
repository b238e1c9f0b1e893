"""Kaldi directories of the Mboshi pack, from a pack of six utterances whose word times are known."""

import importlib.util
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_speechllm_xl.corpus.ctm import Word, read_ctm
from espnet_speechllm_xl.corpus.directories import check_dir
from espnet_speechllm_xl.corpus.kaldi import read_table

SCRIPT = Path(__file__).parents[2] / "egs2/mboshi/speechllm_xl1/local/data.py"
TEXT = {
    "train": {"a_1": "wa ámitúúngá", "a_2": "ngá", "b_1": "wa ámitúúngá", "b_2": "twεrε ya"},
    "dev": {"a_3": "wó twεrε", "b_3": "ya poo"},
}
TIMES = {
    # The first word keeps its start, unless the next one would then begin before it; a_2 is too long to be true.
    "train": {"a_1": (0.50, 0.90, 1.40), "a_2": (0.20, 1.90), "b_1": (0.50, 0.53, 1.40), "b_2": (0.10, 0.40, 0.80)},
    "dev": {"a_3": (0.50, 0.90, 1.40), "b_3": (0.40, 0.70, 1.20)},
}


@pytest.fixture(scope="module")
def mboshi():
    spec = importlib.util.spec_from_file_location("mboshi_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(times, text):
    rows = ["utt_id\tstart_s\tend_s\tword\n"]
    for utterance, borders in times.items():
        spans = zip(text[utterance].split(), borders[:-1], borders[1:], strict=True)
        rows += [f"{utterance}\t{start:.3f}\t{end:.3f}\t{word}\n" for word, start, end in spans]
    return "".join(rows)


@pytest.fixture
def pack(tmp_path):
    pack = tmp_path / "pack"
    (pack / "ref_alignments").mkdir(parents=True)
    soundfile.write(tmp_path / "one.flac", np.zeros(32000), 16000)
    with tarfile.open(pack / "mboshi.tar", "w") as tar:
        for part, text in TEXT.items():
            data = pack / "data" / part
            data.mkdir(parents=True)
            (data / "text").write_text("".join(f"{key} {words}\n" for key, words in text.items()), "utf-8")
            (data / "utt2spk").write_text("".join(f"{key} {key[0]}\n" for key in text))
            (data / "audio.tsv").write_text("".join(f"{key}\taudio/{key}.ogg\n" for key in text))
            (pack / f"ref_alignments/words_{part}.tsv").write_text(table(TIMES[part], text), "utf-8")
            for key in text:
                tar.add(tmp_path / "one.flac", f"audio/{key}.ogg")
    (pack / "ref_alignments/words_dev_limsi.tsv").write_text(table({"a_3": (0.4, 0.8, 1.2)}, TEXT["dev"]), "utf-8")
    return pack


def test_directories_and_word_times(mboshi, pack, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mboshi, "VALID_SHARE", 2)
    out = tmp_path / "data"
    for _ in range(2):  # the second time over what is there
        assert mboshi.main(["--downloads", str(pack), "--out", str(out)]) == 0
    for name in ("train", "valid", "dev"):
        assert check_dir(out / name) == []
        assert all(Path(path).is_file() for path in read_table(out / name / "wav.scp").values())
    train, valid = (read_table(out / name / "text") for name in ("train", "valid"))
    assert {**train, **valid} == TEXT["train"] and not set(train.values()) & set(valid.values())
    words = {**read_ctm(out / "train/ref.ctm"), **read_ctm(out / "valid/ref.ctm")}
    assert words == {
        "a_1": [Word("wa", 0.5, 0.84), Word("ámitúúngá", 0.84, 1.34)],
        "b_1": [Word("wa", 0.47, 0.47), Word("ámitúúngá", 0.47, 1.34)],
        "b_2": [Word("twεrε", 0.1, 0.34), Word("ya", 0.34, 0.74)],
    }
    assert read_ctm(out / "dev/ref.ctm") == {"a_3": [Word("wó", 0.4, 0.8), Word("twεrε", 0.8, 1.2)]}
    assert read_ctm(out / "dev/shifted.ctm")["b_3"] == [Word("ya", 0.4, 0.64), Word("poo", 0.64, 1.14)]
    assert f"{out / 'dev'}: 2 utterances, word times of 1 in ref.ctm, 2 in shifted.ctm" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["mboshi.tar", "ref_alignments/words_dev_limsi.tsv", "data/dev/text"])
def test_an_incomplete_pack_is_one_line(mboshi, pack, tmp_path, lost, capsys):
    (pack / lost).unlink()
    assert mboshi.main(["--downloads", str(pack), "--out", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mboshi data: {pack / lost} does not exist") and error.count("\n") == 1
