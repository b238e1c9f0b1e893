"""Precision, recall and F1 of punctuation and capitals, counted by hand; WER after a normaliser."""

import pytest

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import normalisers
from espnet_speechllm_xl.evaluation.written_marks import Hits, mark_rows, written_words

REFERENCES = {
    "a": "Hello, Anna. Is it 3.5%?",
    "b": '"No," she said (quietly).',
    "c": "Well.",
    "d": "yes",
}
HYPOTHESES = {"a": "hello, Anna is it 3.5%?", "b": "No, she sad quietly!", "d": "Yes - so."}
SPEAKERS = {"a": "s1", "b": "s1", "c": "s2", "d": "s2"}


@pytest.mark.parametrize(
    "text, expected",
    [
        ('"Well, done!"', [("Well", 'b"', "a,"), ("done", "a!", 'a"')]),
        ("3.5 twenty-one don't debtors' 5%", [("3.5",), ("twenty-one",), ("don't",), ("debtors'",), ("5%",)]),
        ("(laughs) <noise> [um] (so it", [("(laughs)",), ("<noise>",), ("[um]",), ("so", "b("), ("it",)]),
        ("-- so -- it", [("so", "b-", "b-", "a-", "a-"), ("it",)]),
        ("\u4f60\u597d\u3002", [("\u4f60",), ("\u597d", "a\u3002")]),
        ("?!", []),
        ("", []),
    ],
)
def test_marks_stand_at_the_borders_of_words(text, expected):
    found = []
    for word in written_words(text):
        found.append((word.text, *sorted(side[0] + mark for side, mark in word.marks.elements())))
    assert found == [(word, *sorted(marks)) for word, *marks in expected]


def test_hits_are_those_counted_by_hand():
    rows = {row.name: row for row in mark_rows(REFERENCES, HYPOTHESES, SPEAKERS)}
    assert {name: row.total for name, row in rows.items()} == {
        ".": Hits(0, 1, 3),
        '"': Hits(0, 0, 2),
        ",": Hits(2, 0, 0),
        "(": Hits(0, 0, 1),
        ")": Hits(0, 0, 1),
        "?": Hits(1, 0, 0),
        "!": Hits(0, 1, 0),
        "-": Hits(0, 1, 0),
        "all marks": Hits(3, 3, 7),
        # Anna and No; Yes is false, Hello and Is are missed; Well was not recognised.
        "capitals": Hits(2, 1, 2),
    }
    assert list(rows) == [".", '"', ",", "(", ")", "?", "!", "-", "all marks", "capitals"], "the frequent ones first"
    every, capitals = rows["all marks"], rows["capitals"]
    assert (every.total.precision, every.total.recall) == (50.0, 30.0)
    assert every.f1.value == pytest.approx(37.5) and capitals.f1.value == pytest.approx(100 * 4 / 7)
    assert every.f1.low < every.f1.value < every.f1.high
    assert (rows[","].f1.value, rows["."].f1.value) == (100, 0)
    assert rows["!"].total.precision == 0 and rows["!"].total.recall is None


def test_only_what_the_references_are_written_with_is_counted():
    plain = {"a": "the cat's here", "b": "go home"}
    marked = {"a": "The cat's, here.", "b": "go home!"}
    speakers = {"a": "s", "b": "s"}
    assert mark_rows(plain, marked, speakers) == []
    capitals = {name: text.upper() for name, text in plain.items()}
    assert mark_rows(capitals, marked, speakers) == []
    assert [row.name for row in mark_rows({"a": "go!", "b": "so"}, {}, speakers)] == ["!", "all marks"]
    (row,) = mark_rows({"a": "Go", "b": "so"}, {"a": "Go", "b": "So"}, speakers)
    assert (row.name, row.total) == ("capitals", Hits(1, 1, 0))


def test_normalisers_bring_ways_of_writing_together():
    texts = {"a": "In nineteen ninety eight, Dr. Smith PAID five dollars (hm)!", "b": "\u00c9t\u00e9,  2.5"}
    assert normalisers.normalised("none", texts) == texts
    assert normalisers.normalised("english", texts)["a"] == "in 1998 doctor smith paid $5"
    assert normalisers.normalised("basic", texts) == {
        "a": "in nineteen ninety eight dr smith paid five dollars",
        "b": "\u00e9t\u00e9 2 5",
    }


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "whisper_normalizer.basic", None)
    normalisers._load.cache_clear()
    with pytest.raises(UserError, match=r"--normaliser basic .*: pip install whisper-normalizer"):
        normalisers.normalised("basic", {"a": "x"})
    assert normalisers.normalised("none", {"a": "x"}) == {"a": "x"}


def test_one_set(tmp_path, capsys):
    (tmp_path / "ref").write_text("a In nineteen ninety eight, Dr. Smith paid five dollars.\n", "utf-8")
    (tmp_path / "hyp").write_text("a In 1998, Doctor smith paid $5.\n", "utf-8")
    (tmp_path / "spk").write_text("a s\n", "utf-8")
    files = ["--ref", tmp_path / "ref", "--hyp", tmp_path / "hyp", "--utt2spk", tmp_path / "spk"]
    options = [*map(str, files), "--out", str(tmp_path / "out")]
    assert cli.main(["score", *options, "--normaliser", "english"]) == 0
    printed = capsys.readouterr().out
    # In and paid are right; the other 7 are not.
    assert "|WER|1|9|22.2|" in printed
    assert "|normalised WER (english)|1|6|100.0|0.0|0.0|0.0|0.0|0.0|" in printed
    assert "|punctuation and capitals|`,`|1|" in printed and "|punctuation and capitals|capitals|" in printed
    result = (tmp_path / "out/score_wer_english/result.txt").read_text("utf-8")
    assert "after EnglishTextNormalizer of whisper-normalizer 0." in result
    assert cli.main(["score", *options]) == 0
    assert "normalised" not in capsys.readouterr().out
    compared = ["compare", str(tmp_path / "hyp"), "--ref", str(tmp_path / "ref"), "--utt2spk", str(tmp_path / "spk")]
    assert cli.main([*compared, "--normaliser", "english"]) == 0
    printed = capsys.readouterr().out
    assert f"|{tmp_path / 'hyp'}|0.0|0.0|0.0|0.0|-|" in printed and "after EnglishTextNormalizer" in printed
