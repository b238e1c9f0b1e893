"""Captions: where they end, how their lines break; planted words."""

import random

import pytest

from espnet_speechllm_xl.corpus.ctm import Word, joined_text
from espnet_speechllm_xl.decoding.output_formats import (
    COLUMNS,
    MOST_SECONDS,
    PAUSE_SECONDS,
    Captions,
    captions,
    lines_of,
)


def words_at(text, each=0.3, gaps=None, joined=False):
    """Words one behind the other; ``gaps``: ``{index: seconds without a word before it}``."""
    words, now = [], 0.0
    for index, word in enumerate(text if joined else text.split()):
        now += (gaps or {}).get(index, 0.0)
        words.append(Word(word, now, now + each, 1.0, joined and index > 0))
        now += each
    return words


def texts(words):
    return [joined_text(caption) for caption in captions(words)]


def test_short_words_share_a_caption_however_many():
    text = "a b c d e f g h i j k l m n o"
    assert texts(words_at(text, each=0.2)) == [text]
    assert Captions("srt").all(words_at(text, each=0.2)) == f"1\n00:00:00,000 --> 00:00:03,000\n{text}\n\n"


def test_a_pause_ends_a_caption():
    words = words_at("one two three four five", gaps={2: PAUSE_SECONDS, 4: PAUSE_SECONDS - 0.01})
    assert texts(words) == ["one two", "three four five"]
    assert texts(words_at("one two", gaps={1: 3600})) == ["one", "two"]


def test_a_long_caption_ends_at_the_longest_gap_of_its_second_half():
    words = words_at("abcd " * 30, each=0.1, gaps={3: 0.5, 12: 0.1, 13: 0.2, 14: 0.1})
    first, *_ = captions(words)
    assert len(first) == 13
    first, *_ = captions(words_at("abcd " * 30, each=0.1))
    assert len(first) == 16 and list(map(len, lines_of(first))) == [39, 39]  # as full as it can be


def test_two_lines_are_about_as_long():
    lines = lines_of(words_at("the quick brown fox jumps over the lazy dog and goes"))
    assert lines == ["the quick brown fox jumps", "over the lazy dog and goes"]
    assert lines_of(words_at("the quick brown fox")) == ["the quick brown fox"]


def test_a_caption_is_not_shown_for_longer_than_one_reads():
    found = list(captions(words_at("a b c d", each=3.0)))
    assert [len(caption) for caption in found] == [2, 2]
    assert texts(words_at("a b c", each=9.0)) == ["a", "b", "c"]


def test_letters_of_full_width_take_two_columns():
    found = list(captions(words_at("今天天气很好我们去公园散步吧" * 5, each=0.1, joined=True)))
    assert [lines_of(caption) for caption in found[:1]] == [
        ["今天天气很好我们去公园散步吧今天天气很好我"[:21], "们去公园散步吧今天天气很好我们去公园散步吧"]
    ]
    thai = "น้ำ"  # with marks that take no column
    assert lines_of([Word(thai, index, index + 0.1, joined=index > 0) for index in range(21)]) == [thai * 21]


def test_a_word_longer_than_a_line_stands_alone():
    long = "x" * 60
    assert texts(words_at(f"a {long} b")) == ["a", long, "b"]


@pytest.mark.parametrize("seed", range(20))
def test_every_word_comes_once_and_lines_are_readable(seed):
    rng = random.Random(seed)
    text = " ".join("x" * rng.choice([1, 2, 5, 9, 20, 41, 42]) for _ in range(200))
    gaps = {index: rng.choice([0, 0.1, 0.5, 2]) for index in range(200)}
    words = words_at(text, each=rng.choice([0.1, 0.5, 2.0]), gaps=gaps)
    found = list(captions(words))
    assert [word for caption in found for word in caption] == words
    for caption in found:
        lines = lines_of(caption)
        assert len(lines) <= 2 and max(map(len, lines)) <= COLUMNS
        assert " ".join(lines) == joined_text(caption)
        assert caption[-1].end - caption[0].start <= MOST_SECONDS
        pauses = [late.start - early.end for early, late in zip(caption, caption[1:], strict=False)]
        assert max(pauses, default=0) < PAUSE_SECONDS


def test_no_words_no_captions():
    assert list(captions([])) == [] and Captions("vtt").all([]) == "WEBVTT\n\n"
