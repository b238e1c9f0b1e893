"""Listed words: hits, false and missed ones by a planted answer; intervals; the table of ``compare --words``."""

import random
import re

import pytest

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.evaluation import metrics, significance
from espnet_speechllm_xl.evaluation.listed_words import (
    Part,
    count_listed,
    error_table,
    parts_of,
    read_words,
    recall_blocks,
)
from espnet_speechllm_xl.evaluation.written_marks import Hits

NAMES = {"anna", "karlsson", "uppsala"}


def hits_of(reference, hypothesis, listed=NAMES):
    scored = metrics.score({"u": reference.split()}, {"u": hypothesis.split()})
    return count_listed(scored, listed)["u"]


@pytest.mark.parametrize(
    "reference, hypothesis, expected",
    [
        ("call anna karlsson now", "call anna karlsson now", Hits(2, 0, 0)),
        ("call anna karlsson now", "call anna carlson now", Hits(1, 0, 1)),
        ("call anna now", "call now", Hits(0, 0, 1)),  # deleted
        ("call him now", "call anna now", Hits(0, 1, 0)),  # in the place of another word
        ("call now", "call anna now", Hits(0, 1, 0)),  # inserted
        ("call anna now", "call karlsson now", Hits(0, 1, 1)),  # one name for another
        ("from uppsala to uppsala", "from uppsala to", Hits(1, 0, 1)),  # each occurrence counts
        ("karlsson saw anna", "anna saw karlsson", Hits(0, 2, 2)),  # in the wrong places
        ("nobody is here", "nobody was here", Hits()),
        ("", "anna", Hits(0, 1, 0)),
    ],
)
def test_planted_hits(reference, hypothesis, expected):
    assert hits_of(reference, hypothesis) == expected


def test_all_words_listed_is_the_wer():
    """Then the missed ones are substitutions and deletions, the false ones substitutions and insertions."""
    rng = random.Random(0)
    words = ["anna", "karlsson", "uppsala", "other"]
    sides = [{f"u{i}": rng.choices(words, k=rng.randint(0, 8)) for i in range(50)} for _ in range(2)]
    scored = metrics.score(*sides)
    total, counts = sum(count_listed(scored, words).values(), Hits()), scored.total
    assert (total.hits, total.missed) == (counts.correct, counts.substitutions + counts.deletions)
    assert total.false == counts.substitutions + counts.insertions and counts.errors > 50


@pytest.mark.parametrize(
    "reference, hypothesis, listed, others",
    [
        ("call anna karlsson now", "call anna karlsson now", Part(0, 2), Part(0, 2)),
        ("call anna now", "call hanna now", Part(1, 1), Part(0, 2)),  # the reference's word counts
        ("call him now", "call anna now", Part(0, 0), Part(1, 3)),
        ("call anna now", "call now", Part(1, 1), Part(0, 2)),
        ("call now", "call anna now please", Part(1, 0), Part(1, 2)),  # insertions by themselves
        ("", "anna", Part(1, 0), Part(0, 0)),
    ],
)
def test_planted_errors_of_the_two_parts(reference, hypothesis, listed, others):
    scored = metrics.score({"u": reference.split()}, {"u": hypothesis.split()})
    assert parts_of(scored, NAMES)["u"] == (listed, others)


def test_the_two_parts_are_the_wer():
    rng = random.Random(1)
    words = ["anna", "karlsson", "him", "now", "call"]
    sides = [{f"u{i}": rng.choices(words, k=rng.randint(0, 8)) for i in range(50)} for _ in range(2)]
    scored = metrics.score(*sides)
    parts = [part for both in parts_of(scored, NAMES).values() for part in both]
    assert sum(part.errors for part in parts) == scored.total.errors > 50
    assert sum(part.words for part in parts) == scored.total.words


def test_the_table_of_both_parts():
    """In 30 utterances a name, of which the second set has the half; in 10 of the 30 others it writes one."""
    names = [f"u{index:02d}" for index in range(60)]
    texts = {name: "call anna now" if index < 30 else "call him now" for index, name in enumerate(names)}
    without = {name: text.replace("anna", "hanna") for name, text in texts.items()}
    phrases = {
        name: "call anna now" if index < 15 or 30 <= index < 40 else without[name] for index, name in enumerate(names)
    }
    scored = [
        metrics.score(
            {name: text.split() for name, text in texts.items()}, {name: text.split() for name, text in one.items()}
        )
        for one in (without, phrases)
    ]
    speakers = dict.fromkeys(names, "s")
    head, _, first, second = error_table(["a", "b"], [parts_of(one, NAMES) for one in scored], speakers, True)
    assert head.startswith("|decoded|B-WER (%)|minus the first|U-WER (%)|minus the first|WER without listed words (%)|")
    assert first == "|a|100.0 [100.0, 100.0]|-|0.0 [0.0, 0.0]|-|0.0 [0.0, 0.0]|-|"
    rates = [float(cell.split()[0]) for cell in second.strip("|").split("|")[1:]]
    assert rates == pytest.approx([50.0, -50.0, 6.7, 6.7, 11.1, 11.1])
    scored = [metrics.score({"u": ["anna"]}, {"u": ["anna"]})]
    assert error_table(["a"], [parts_of(scored[0], NAMES)], {"u": "s"}, True)[-1] == "|a|0.0|-|-|-|-|-|"


def test_recall_has_an_interval_of_the_utterances_with_listed_words():
    hits = {f"u{i:02d}": Hits(int(i % 4 > 0), 0, int(i % 4 == 0)) for i in range(40)}
    others = {f"v{i:02d}": Hits(0, i % 2, 0) for i in range(60)}  # no listed word in the reference
    speakers = {name: "s" for name in (*hits, *others)}
    (blocks,) = recall_blocks([{**hits, **others}], speakers, True)
    assert len(blocks.names) == 40 and blocks.unit == "utterance"
    found = significance.error_rate(blocks)
    assert found.value == 75.0
    assert 57 < found.low < 66 and 84 < found.high < 92  # 75 +- 1.96 * 6.8


@pytest.fixture
def decoded(tmp_path):
    """30 utterances with a name; one system never has it, one in 24 of them, one writes it everywhere."""
    names = [f"u{index:02d}" for index in range(60)]
    texts = {name: "call Anna now" if index < 30 else "call him now" for index, name in enumerate(names)}
    systems = {
        "ref": texts,
        "without": {name: "call hanna now" if index < 30 else texts[name] for index, name in enumerate(names)},
        "prompt": {name: texts[name] if index % 5 else "call hanna now" for index, name in enumerate(names)},
        "copies": dict.fromkeys(names, "call Anna now"),
    }
    for system, lines in systems.items():
        (tmp_path / system).mkdir()
        (tmp_path / system / "text").write_text("".join(f"{name} {line}\n" for name, line in lines.items()))
    (tmp_path / "ref" / "utt2spk").write_text("".join(f"{name} s\n" for name in names))
    (tmp_path / "names.txt").write_text("Anna\nKarlsson\n\n", encoding="utf-8")
    return tmp_path


def compare(place, capsys, *options, systems=("without", "prompt", "copies")):
    paths = [place / system for system in systems]
    code = cli.main([str(word) for word in ("compare", *paths, "--ref", place / "ref", *options)])
    return code, *capsys.readouterr()


def test_compare_has_recall_and_precision(decoded, capsys):
    code, printed, _ = compare(decoded, capsys, "--words", decoded / "names.txt")
    wer, listed, errors = printed.split("\n\n")
    assert [line.split("|")[1] for line in errors.splitlines()[2:]] == [
        row.split("|")[1] for row in wer.splitlines()[2:5]
    ]
    assert "|0.0 [0.0, 0.0]|-|" in errors.splitlines()[2]
    assert code == 0 and printed.startswith(compare(decoded, capsys)[1]) and wer.startswith("|decoded|WER (%)|")
    head, _, *rows, last = listed.splitlines()
    assert head == "|decoded|listed words|recall (%)|minus the first|false|precision (%)|"
    without, prompt, copies = (row.strip("|").split("|") for row in rows)
    assert without[1:] == ["30", "0.0 [0.0, 0.0]", "-", "0", "-"]
    assert prompt[1] == "30" and prompt[4:] == ["0", "100.0"]
    low, high = map(float, re.fullmatch(r"80\.0 \[(.*), (.*)\]", prompt[2]).groups())
    assert 60 < low < 72 and 88 < high < 98
    assert prompt[3] == f"+80.0 [+{low}, +{high}]"
    assert copies[1:] == ["30", "100.0 [100.0, 100.0]", "+100.0 [+100.0, +100.0]", "30", "50.0"]
    assert last == "95 % intervals; blocks: 30 listed words in 30 utterances"


def test_listed_words_are_read_as_the_texts_are(decoded, capsys):
    (decoded / "small").write_text("anna")
    code, _, error = compare(decoded, capsys, "--words", decoded / "small")
    assert code == 2 and "the references hold none of the listed words: write these as the references are" in error
    for options in (["--ignore-case"], ["--normaliser", "basic"], ["--ignore-case", "--unit", "characters"]):
        code, printed, _ = compare(decoded, capsys, "--words", decoded / "small", *options)
        assert code == 0 and "|30|80.0 [" in printed and "|30|50.0|" in printed, options


def test_a_list_that_is_none(decoded, capsys, tmp_path):
    (tmp_path / "empty").write_text("\n \n;; a comment\n")
    (tmp_path / "bytes").write_bytes(b"caf\xe9\n")
    for name, says in [("empty", "holds no words"), ("bytes", "no UTF-8"), ("gone", "gone")]:
        code, _, error = compare(decoded, capsys, "--words", tmp_path / name)
        assert code == 2 and says in error and len(error.splitlines()) == 1
    (tmp_path / "names").write_text("\N{LATIN SMALL LETTER E}\N{COMBINING ACUTE ACCENT} b\nc\n", encoding="utf-8")
    assert read_words(tmp_path / "names") == "\N{LATIN SMALL LETTER E WITH ACUTE} b c"
