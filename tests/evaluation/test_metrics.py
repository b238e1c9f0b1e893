import math
import random
import subprocess
import sys

import pytest
from slow import slow_errors

from espnet_speechllm_xl.corpus.ctm import Word, matching, read_ctm, spoken, write_ctm
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.evaluation.metrics import Counts


def test_planted_counts():
    references = {
        "a": "the cat sat on the mat".split(),  # sat -> sit: S; one "the": D
        "b": "go home".split(),  # "now" inserted
        "c": "fine".split(),
        "d": [],  # nothing said, nothing heard
        "e": [],  # nothing said, two words heard
        "f": "lost words here".split(),  # nothing heard
    }
    hypotheses = {
        "a": "the cat sit on mat".split(),
        "b": "go home now".split(),
        "c": ["fine"],
        "d": [],
        "e": "uh huh".split(),
        "f": [],
    }
    scored = metrics.score(references, hypotheses)
    assert scored.utterances["a"].counts == Counts(1, 6, 4, 1, 1, 0, 1)
    assert scored.utterances["b"].counts == Counts(1, 2, 2, 0, 0, 1, 1)
    assert scored.utterances["c"].counts == Counts(1, 1, 1, 0, 0, 0, 0)
    assert scored.utterances["d"].counts == Counts(1, 0, 0, 0, 0, 0, 0)
    assert scored.utterances["e"].counts == Counts(1, 0, 0, 0, 0, 2, 1)
    assert scored.utterances["f"].counts == Counts(1, 3, 0, 0, 3, 0, 1)
    assert scored.total == Counts(6, 12, 7, 1, 4, 3, 4)
    assert scored.total.errors == 8
    assert scored.total.rates() == pytest.approx((58.3333, 8.3333, 33.3333, 25.0, 66.6667, 66.6667), abs=1e-3)
    assert scored.missing == []
    assert scored.utterances["a"].pairs == [
        ("C", "the", "the"),
        ("C", "cat", "cat"),
        ("S", "sat", "sit"),
        ("C", "on", "on"),
        ("D", "the", None),
        ("C", "mat", "mat"),
    ]


def test_against_slow_levenshtein():
    rng = random.Random(7)
    draw = lambda: [rng.choice("abcd ") for _ in range(rng.randrange(9))]  # noqa: E731
    references, hypotheses = ({str(i): draw() for i in range(300)} for _ in range(2))
    scored = metrics.score(references, hypotheses)
    for name, item in scored.utterances.items():
        assert item.counts.errors == slow_errors(references[name], hypotheses[name])
        assert [left for _, left, _ in item.pairs if left is not None] == references[name]
        assert [right for _, _, right in item.pairs if right is not None] == hypotheses[name]
        assert item.counts.words == len(references[name])
    assert scored.total == sum((item.counts for item in scored.utterances.values()), Counts())
    assert scored.total.errors > 0


def test_symbols_are_taken_as_they_are():
    # jiwer's own transforms would strip, split and join these.
    scored = metrics.score({"a": [" ", "x y", "\u3000"]}, {"a": [" ", "x y", "\u3000"]})
    assert scored.total == Counts(1, 3, 3, 0, 0, 0, 0)


def test_missing_and_extra():
    scored = metrics.score({"a": ["x", "y"], "b": ["z"]}, {"b": ["z"]})
    assert scored.missing == ["a"]
    assert scored.total == Counts(2, 3, 1, 0, 2, 0, 1)
    with pytest.raises(ValueError, match=r"^hyp: u3, u4 not in the references \(2 in all\)"):
        metrics.score({"a": ["x"]}, {"a": ["x"], "u4": [], "u3": []}, "hyp")


def test_empty_set_and_no_words():
    assert metrics.score({}, {}).total == Counts()
    assert Counts().rates() == (0.0,) * 6
    only_insertions = metrics.score({"a": []}, {"a": ["x"]}).total
    assert math.isinf(only_insertions.error_rate)
    assert only_insertions.rates()[5] == 100.0


def test_characters():
    assert metrics.characters("ab  c ") == ["a", "b", "<space>", "c"]
    assert metrics.characters("") == []
    # U+0301 is a character of its own, and no normalisation makes é of e and it.
    assert metrics.characters("e\u0301a") == ["e", "\u0301", "a"]
    assert metrics.score({"a": metrics.characters("e\u0301")}, {"a": metrics.characters("\u00e9")}).total.errors == 2
    lost = metrics.score({"a": metrics.characters("bo\u0301 ra")}, {"a": metrics.characters("bo ra")})
    assert lost.total == Counts(1, 6, 5, 0, 1, 0, 1)
    assert ("D", "\u0301", None) in lost.utterances["a"].pairs


def test_delay_and_delta():
    # -80, -40, +40 ms: mean -26.67, mean absolute 53.33, median -40, 95 % within 80.
    item = metrics.delay([-0.08, 0.04, -0.04])
    assert item.words == 3
    assert item.delay == pytest.approx(-80 / 3)
    assert item.delta == pytest.approx(160 / 3)
    assert (item.median, item.p95) == (-40.0, 80.0)
    assert metrics.delay([0.01, 0.02]).median == 15.0
    # 20 values 1 .. 20 ms: 19 of them (95 %) do not exceed 19 ms.
    assert metrics.delay([value / 1000 for value in range(1, 21)]).p95 == 19.0
    assert metrics.delay([]) == metrics.Delay(0)


def test_end_differences():
    ours = {
        "u1": [Word("Hello", 0.1, 0.40), Word("there", 0.5, 0.92)],
        "u2": [Word("one", 0.0, 0.36)],
        "u3": [Word("two", 0.0, 0.2)],
        "u4": [Word("left", 0.0, 0.2)],
    }
    reference = {
        "u1": [Word("hello", 0.1, 0.45), Word("there", 0.5, 0.90)],
        "u2": [Word("one", 0.0, 0.40)],
        "u3": [Word("too", 0.0, 0.2)],
        "u5": [Word("short", 0.0, 0.2)],
        "u6": [Word("gone", 0.0, 0.2)],
    }
    found = metrics.end_differences(ours, reference, {"u5": "too few frames", "u7": "empty text"})
    assert found.non_final == pytest.approx([-0.05])
    assert found.final == pytest.approx([0.02, -0.04])
    assert found.matched == ["u1", "u2"]
    assert found.unmatched == {
        "u3": "other words than the reference",
        "u4": "not in the reference",
        "u5": "too few frames",
        "u6": "not in the alignment",
        "u7": "empty text",
    }


def test_end_differences_of_a_text_without_spaces():
    """Letters against the words of a dictionary: the letters of a word end with it."""
    ours = {"u": [Word("今", 0, 0.2), Word("天", 0.2, 0.4), Word("好", 0.4, 0.7)]}
    found = metrics.end_differences(ours, {"u": [Word("今天", 0, 0.5), Word("好", 0.5, 0.6)]})
    assert found.matched == ["u"]
    assert (found.non_final, found.final) == (pytest.approx([-0.3, -0.1]), pytest.approx([0.1]))
    assert metrics.end_differences(ours, {"u": [Word("今天", 0, 0.5)]}).matched == []


def test_real_time_factor():
    assert metrics.real_time_factor(5.0, 20.0) == 0.25
    assert metrics.real_time_factor(5.0, 0) is None


def test_rtfx():
    assert metrics.rtfx(0.25) == 4.0
    assert metrics.rtfx(None) is metrics.rtfx(0.0) is None


def test_ctm_round_trip(tmp_path):
    path = tmp_path / "a.ctm"
    words = {
        "utt-b": [Word("b\u03c9\u0301", 0.0, 0.3), Word("$5", 0.3, 0.3)],
        "utt-a": [Word("a\u00a0b", 1.2344, 2.0006, 0.5)],
    }
    write_ctm(path, words)
    assert path.read_text(encoding="utf-8") == (
        "utt-a 1 1.234 0.767 a\u00a0b 0.5000\nutt-b 1 0.000 0.300 b\u03c9\u0301\nutt-b 1 0.300 0.000 $5\n"
    )
    assert read_ctm(path) == {"utt-a": [Word("a\u00a0b", 1.234, 2.001, 0.5)], "utt-b": words["utt-b"]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ctm"]


def test_ctm_ends_do_not_drift(tmp_path):
    rng = random.Random(3)
    times = sorted(round(rng.uniform(0, 5000), 3) for _ in range(400))
    words = [Word("x", start, end) for start, end in zip(times, times[1:], strict=False)]
    write_ctm(tmp_path / "a.ctm", {"u": words})
    assert read_ctm(tmp_path / "a.ctm")["u"] == words


def test_ctm_reads_comments_tabs_and_interleaved_utterances(tmp_path):
    path = tmp_path / "a.ctm"
    path.write_bytes(b"\xef\xbb\xbf;; note\nu1 A 0.1 0.2 one\nu2\t1\t0\t1\ttwo\r\n\nu1 A 0.3 0.1 three 0.9\n")
    assert read_ctm(path) == {
        "u1": [Word("one", 0.1, 0.3), Word("three", 0.3, 0.4, 0.9)],
        "u2": [Word("two", 0.0, 1.0)],
    }


@pytest.mark.parametrize(
    "line, message",
    [
        ("u 1 0.5 0.1", "4 fields"),
        ("u 1 0.5 0.1 a 0.9 lex ann more", "9 fields"),
        ("u 1 x 0.1 a", "start 'x'"),
        ("u 1 0.5 -0.1 a", "duration '-0.1'"),
        ("u 1 nan 0.1 a", "start 'nan'"),
        ("u 1 0.05 0.1 a", "'a' starts at 0.05 s, before 'ok'"),
    ],
)
def test_ctm_errors_name_the_line(tmp_path, line, message):
    path = tmp_path / "bad.ctm"
    path.write_text(f"u 1 0.1 0.2 ok\n{line}\n")
    with pytest.raises(ValueError) as caught:
        read_ctm(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ctm_not_utf8(tmp_path):
    (tmp_path / "bad.ctm").write_bytes(b"u 1 0.1 0.2 \xe9\n")
    with pytest.raises(ValueError, match=r"bad\.ctm:1: bytes that are no UTF-8: convert"):
        read_ctm(tmp_path / "bad.ctm")


@pytest.mark.parametrize("word", [Word("a b", 0, 1), Word("", 0, 1), Word("a", 1, 0.5), Word("a", 0, math.inf)])
def test_ctm_refuses_to_write(tmp_path, word):
    with pytest.raises(ValueError, match="^u7: "):
        write_ctm(tmp_path / "a.ctm", {"u7": [word]})
    assert list(tmp_path.iterdir()) == []


def entries(text):
    """CTM entries of half a second each."""
    return [Word(word, index / 2, (index + 1) / 2) for index, word in enumerate(text.split())]


@pytest.mark.parametrize(
    "ctm, text, places, passed_over, replaced",
    [
        ("<eps> turn on SIL the lights <eps>", "turn on the lights", [1, 2, 4, 5], {"<eps>": 2, "SIL": 1}, {}),
        ("what is it", "what is it", [0, 1, 2], {}, {}),
        ("the <UNK> is q", "the code is q", [0, 1, 2, 3], {}, {"<UNK>": 1}),  # a word that the aligner did not know
        ("<unk> the code <unk>", "the code", [1, 2], {"<unk>": 2}, {}),  # a cough
        ("sil [noise] <noise> sp", "sil <NOISE>", [0, 2], {"[noise]": 1, "sp": 1}, {}),  # the transcript's own
        ("a SIL <unk> <unk> b", "a x y b", [0, 2, 3, 4], {"SIL": 1}, {"<unk>": 2}),
        ("SIL", "", [], {"SIL": 1}, {}),
    ],
)
def test_entries_of_a_ctm_that_stand_for_the_words(ctm, text, places, passed_over, replaced):
    found = spoken(entries(ctm), text.split())
    times = [(place / 2, (place + 1) / 2) for place in places]
    assert [(word.start, word.end) for word in found.words] == times
    assert [word.text.lower() for word in found.words] == text.lower().split()
    assert (found.passed_over, found.replaced) == (passed_over, replaced)
    assert matching(entries(ctm), text.split()) == found.words


def test_entries_of_a_ctm_that_are_other_words():
    assert matching(entries("the <UNK> q"), "the code is q".split()) is None  # for one word, not for two
    assert matching(entries("the PAU code"), ["the", "code"]) is None  # not in the list
    assert spoken(entries("the PAU code"), ["the", "code"], silences=["pau"]).words == matching(
        [word for word in entries("the PAU code") if word.text != "PAU"], ["the", "code"]
    )


def test_silences_of_a_reference_are_no_other_words():
    ours = {"u": [Word("turn", 0.5, 0.9), Word("on", 1.0, 1.4)]}
    found = metrics.end_differences(ours, {"u": entries("<eps> turn on SIL")})
    assert (found.matched, found.unmatched) == (["u"], {})
    assert found.non_final + found.final == pytest.approx([-0.1, -0.1])


def test_imports_are_light():
    code = (
        "import sys, espnet_speechllm_xl.evaluation.results_report, espnet_speechllm_xl.bin.score;"
        "print([m for m in ('torch', 'matplotlib', 'numpy', 'jiwer', 'sentencepiece', 'espnet2') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
