"""The command that measures a model on audio of other levels, and cut at its last word."""

import random
import re

import melodies
import numpy as np
import pytest
import soundfile
import training

from espnet_speechllm_xl.bin.cli import main
from espnet_speechllm_xl.corpus.kaldi import write_table


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Melodies with the times of their last letters; one has none."""
    folder, rng = tmp_path_factory.mktemp("dump"), random.Random(9)
    tables, lines = {name: {} for name in ("wav.scp", "text", "utt2spk", "utt2num_samples")}, []
    for index in range(6):
        name, (text, samples, ends) = f"s-{index}", melodies.melody(rng)
        soundfile.write(folder / f"{name}.flac", samples, training.RATE)
        for table, value in zip(tables.values(), (folder / f"{name}.flac", text, "s", len(samples)), strict=True):
            table[name] = str(value)
        if index:
            words = text.split()
            starts = np.array(ends[::2]) * 0.04 - 0.2
            times = zip(starts, [*(end * 0.04 + 0.04 for end in ends[::2])], words, strict=True)
            lines += [f"{name} 1 {start:.2f} {end - start:.2f} {word}\n" for start, end, word in times]
    for name, table in tables.items():
        write_table(folder / name, table)
    (folder / "ref.ctm").write_text("".join(lines))
    return folder


def rows(said):
    return [line.strip("|").split("|") for line in said.splitlines() if line.startswith("|")][2:]


def test_levels_and_cuts(capsys, dump, melody_model):
    options = ["--search", "greedy", "--levels", "-20", "-100"]
    assert main(["robustness", "--dump", str(dump), "--model", str(melody_model), *options]) == 0
    said = capsys.readouterr().out
    table = rows(said)
    titles = ["as it is", "-20 dB", "-100 dB", "cut where the last word ends", "the same, 0.1 s of zeros behind"]
    assert [row[0] for row in table] == titles
    assert [row[3].split(" of ")[1] for row in table] == ["6", "6", "6", "5", "5"]
    as_it_is, quieter, gone, cut, padded = table
    assert as_it_is[1] == quieter[1] and quieter[2].startswith("+0.0") and as_it_is[2] == cut[2] == "-"
    assert float(gone[1].split()[0]) >= 75 and re.match("[012] of 6", gone[3]), "digital silence holds no word of these"
    assert float(as_it_is[1].split()[0]) <= 20 and re.match("[345] of 5", cut[3]) and padded[2] != "-"
    assert "search greedy; 95 % intervals; blocks: " in said
    assert "not cut: 1 utterances whose words have no times (ref.ctm)" in said


def test_a_set_that_is_none_is_refused(capsys, dump, melody_model, tmp_path):
    assert main(["robustness", "--dump", str(tmp_path), "--model", str(melody_model)]) == 2
    assert "is no formatted set" in capsys.readouterr().err
    write_table(tmp_path / "utt2num_samples", {"s-1": "5"})
    assert main(["robustness", "--dump", str(tmp_path), "--model", str(melody_model)]) == 2
    assert "has no text: there is nothing to compare with" in capsys.readouterr().err
    (tmp_path / "text").write_text("s-1 a b\ns-2 c\n")
    (tmp_path / "wav.scp").write_text("s-2 none.flac\n")
    assert main(["robustness", "--dump", str(tmp_path), "--model", str(melody_model)]) == 2
    assert "wav.scp lacks s-1, which are in text: format the set again" in capsys.readouterr().err
