"""Errors by the place of words with respect to chunk borders, on planted words."""

import json
import math

import pytest
import yaml

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.border_errors import ACROSS, AFTER, BEFORE, ELSEWHERE, border_errors, place
from espnet_speechllm_xl.evaluation.metrics import Counts


@pytest.mark.parametrize(
    "start, end, expected",
    [  # chunks of 8 frames (0.32 s), two frames near a border
        (0.08, 0.24, ELSEWHERE),  # frames 2 to 5
        (0.08, 0.25, BEFORE),  # its end lies in frame 6
        (0.08, 0.32, BEFORE),  # a frame's span holds its end
        (0.08, 0.33, ACROSS),
        (0.30, 0.70, ACROSS),
        (0.32, 0.50, AFTER),
        (0.39, 0.50, AFTER),
        (0.40, 0.50, ELSEWHERE),
        (0.32, 0.64, BEFORE),  # a word that fills its chunk ends before a border
    ],
)
def test_place_of_a_word(start, end, expected):
    assert place(Word("a", start, end), 8, 2) == expected


TIMES = {"u1": [Word("one", 0.08, 0.2), Word("two", 0.21, 0.31), Word("three", 0.33, 0.5), Word("four", 0.5, 0.7)]}


def test_errors_are_counted_by_place():
    references = {"u1": "one two three four", "u2": "no times", "u3": "other"}
    hypotheses = {"u1": "one tree well four", "u2": "no", "u3": "other"}
    times = {**TIMES, "u3": [Word("words", 0, 1)]}
    found = border_errors(references, hypotheses, times, 8, 2)
    assert found.counts == {
        ELSEWHERE: Counts(words=1, correct=1),
        BEFORE: Counts(words=1, substitutions=1),
        AFTER: Counts(words=1, substitutions=1),
        ACROSS: Counts(words=1, correct=1),
    }
    assert found.insertions == 0
    assert found.left_out == {"u2": "no reference times", "u3": "other words than its reference times"}
    found = border_errors({"u1": references["u1"]}, {"u1": "one one three four"}, times, 8, 2)
    assert found.counts[BEFORE] == Counts(words=1, substitutions=1)
    found = border_errors({"u1": references["u1"]}, {"u1": "one three four more"}, times, 8, 2)
    assert found.counts[BEFORE] == Counts(words=1, deletions=1) and found.insertions == 1
    # What has no hypothesis was deleted.
    assert border_errors({"u1": references["u1"]}, {}, times, 8, 2).counts[ACROSS] == Counts(words=1, deletions=1)


def test_errors_of_a_text_without_spaces():
    times = {"u1": [Word("今天", 0.08, 0.2), Word("好", 0.33, 0.5)]}
    found = border_errors({"u1": "今天好"}, {"u1": "今好"}, times, 8, 2)
    assert found.counts[ELSEWHERE] == Counts(words=2, correct=1, deletions=1)
    assert found.counts[AFTER] == Counts(words=1, correct=1) and not found.left_out


@pytest.mark.parametrize("near", [0, 4])
def test_near_must_fit_into_a_chunk(near):
    with pytest.raises(UserError, match=f"{near} frames near a boundary do not fit"):
        border_errors({}, {}, {}, 8, near)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_report(tmp_path, capsys):
    decoded, dump = tmp_path / "exp/xl/decode_greedy/test", tmp_path / "dump/raw/test"
    write(decoded / "text", "u1 one three four more\nu2 no\n")
    write(dump / "text", "u1 one two three four\nu2 no times\n")
    write_ctm(dump / "ref.ctm", TIMES)
    options = ["--decoded", str(decoded), "--dump", str(dump), "--near", "2"]
    assert cli.main(["border-report", *options]) == 1
    assert "give --chunk FRAMES" in capsys.readouterr().err
    write(tmp_path / "exp/xl/config.yaml", yaml.safe_dump({"chunking_conf": {"chunk": 8}}))
    assert cli.main(["border-report", *options]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "|ends just before one|1|100.00|0.00|" in out and "|all|4|25.00|0.00|" in out
    assert "Insertions: 1. Utterances: 2, counted: 1, left out: 1." in out[-2]
    assert out[-1] == "Left out, no reference times: u2."
    assert cli.main(["border-report", *options, "--chunk", "16"]) == 0
    assert "Chunks of 0.64 s; 'just' is within 0.08 s." in capsys.readouterr().out
    write(decoded / "decode.json", json.dumps({"settings": {"chunk_size": 0.64}}))  # not the model's own
    assert cli.main(["border-report", *options]) == 0
    assert "Chunks of 0.64 s" in capsys.readouterr().out
    write(decoded / "decode.json", json.dumps({"settings": {"chunk_size": math.inf}}))
    assert cli.main(["border-report", *options]) == 1
    assert "was decoded without chunks" in capsys.readouterr().err
    write(decoded / "decode.json", json.dumps({"settings": {"chunk_size": 0.64}}))
    for path in (decoded / "text", dump / "text", dump / "ref.ctm"):
        path.write_text(path.read_text().replace("four", "fou\u0301r" if path.parent == dump else "fo\u00far"))
    assert cli.main(["border-report", *options]) == 0  # composed or not
    assert "|all|4|25.00|0.00|" in capsys.readouterr().out
    (dump / "ref.ctm").unlink()
    assert cli.main(["border-report", *options]) == 1
    assert "ref.ctm" in capsys.readouterr().err
