"""Forced alignment against planted and enumerated paths; times moved between transcripts and tokenizers."""

import dataclasses
import itertools
import random
import tracemalloc
import unicodedata

import pytest
import torch

from espnet_speechllm_xl.corpus.ctm import Word
from espnet_speechllm_xl.model import alignment
from espnet_speechllm_xl.model.alignment import (
    AlignmentError,
    TokenSpan,
    char_times,
    format_char_ends,
    from_word_times,
    move_to_written,
    parse_char_ends,
    same_words,
    token_ends,
    transfer,
    viterbi,
    viterbi_in_blocks,
    whole_word_ends,
    word_times,
)
from espnet_speechllm_xl.systems.ctc import collapse
from espnet_speechllm_xl.tokenization import load_tokenizer

BLANK = 6


def plant(rng, tokens, noise=1.0):
    """Posteriors whose best path holds ``tokens`` at known spans; a repeat has a blank before it."""
    path, spans = [BLANK] * rng.randint(0, 3), []
    for index, token in enumerate(tokens):
        repeat = index > 0 and tokens[index - 1] == token
        path += [BLANK] * rng.randint(1 if repeat else 0, 3)
        spans.append(TokenSpan(len(path), len(path) + rng.randint(0, 3)))
        path += [token] * (spans[-1].end - spans[-1].start + 1)
    path += [BLANK] * rng.randint(0, 3)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    logits = torch.randn(len(path), BLANK + 1, generator=generator) * noise
    logits[torch.arange(len(path)), torch.tensor(path)] += 30
    return logits.log_softmax(-1), spans


def test_planted_spans_are_recovered():
    rng = random.Random(0)
    for count in [1, 2, 3, *range(5, 60)]:
        tokens = [rng.randrange(BLANK if count % 3 else 2) for _ in range(count)]  # two symbols: many repeats
        log_probs, spans = plant(rng, tokens)
        assert viterbi(log_probs, tokens, BLANK) == spans


def test_the_best_of_all_paths():
    """Flat posteriors: against every path of 6 frames over 3 symbols and blank."""
    rng = random.Random(1)
    for _ in range(25):
        tokens = [rng.randrange(3) for _ in range(rng.randint(1, 3))]
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        log_probs = torch.randn(6, 4, generator=generator).log_softmax(-1)
        best, best_score = None, -float("inf")
        for path in itertools.product(range(4), repeat=6):
            if collapse(list(path), 3) == tokens:
                score = sum(log_probs[t, symbol].item() for t, symbol in enumerate(path))
                if score > best_score:
                    best, best_score = path, score
        spans = [(symbol, list(group)) for symbol, group in itertools.groupby(range(6), key=lambda t: best[t])]
        expected = [TokenSpan(frames[0], frames[-1]) for symbol, frames in spans if symbol != 3]
        assert viterbi(log_probs, tokens, blank=3) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_posteriors_of_other_types(dtype):
    log_probs, spans = plant(random.Random(2), [1, 2, 2, 3], noise=0.1)
    assert viterbi(log_probs.to(dtype), [1, 2, 2, 3], BLANK) == spans


@pytest.mark.parametrize("tokens, repeats", [([1], 0), ([1, 2, 3], 0), ([1, 1], 1), ([2, 2, 2, 1, 1], 3)])
def test_too_few_frames(tokens, repeats):
    log_probs = torch.zeros(len(tokens) + repeats, BLANK + 1).log_softmax(-1)
    spans = viterbi(log_probs, tokens, BLANK)  # exactly enough
    assert [span.end for span in spans] == sorted({span.end for span in spans})
    message = rf"too few frames \({len(tokens) + repeats - 1}\) for {len(tokens)} tokens and {repeats} repeats"
    with pytest.raises(AlignmentError, match=message):
        viterbi(log_probs[1:], tokens, BLANK)


def test_empty_text():
    with pytest.raises(AlignmentError, match="empty text"):
        viterbi(torch.zeros(9, BLANK + 1), [], BLANK)


# --- long recordings ---


@pytest.mark.parametrize("seed", range(40))
def test_in_blocks_as_in_one_piece(monkeypatch, seed):
    """Flat posteriors, so that the path hangs on every frame; many repeats, few frames to spare."""
    rng = random.Random(seed)
    tokens = [rng.randrange(rng.choice([1, 2, BLANK])) for _ in range(rng.randint(1, 40))]
    repeats = sum(map(int.__eq__, tokens, tokens[1:]))
    frames = len(tokens) + repeats + rng.choice([0, 1, 7, 90])
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(frames, BLANK + 1, generator=generator).log_softmax(-1)
    whole = viterbi(log_probs, tokens, BLANK)
    for block in (1, 2, 7, frames - 1, frames, frames + 1):
        assert viterbi_in_blocks(log_probs.double().numpy(), tokens, BLANK, max(1, block)) == whole
    monkeypatch.setattr(alignment, "NATIVE_CELLS", 0)
    monkeypatch.setattr(alignment, "_viterbi_by_torchaudio", None)  # is not asked
    assert viterbi(log_probs, tokens, BLANK) == whole


def test_a_size_at_which_the_native_aligner_ends_the_process():
    """Every eighth token is held for a second frame; nearly no frame to spare, so that few states can be reached."""
    tokens = [count % BLANK for count in range(31_000)]
    path = [token for count, token in enumerate(tokens) for _ in range(1 + (count % 8 == 0))]
    log_probs = torch.full((len(path), BLANK + 1), -9.0, dtype=torch.float64)
    log_probs[torch.arange(len(path)), torch.tensor(path)] = -0.1
    assert len(log_probs) * alignment.num_states(tokens) > 2**31
    tracemalloc.start()
    found = viterbi(log_probs, tokens, BLANK)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ends = list(itertools.accumulate(1 + (count % 8 == 0) for count in range(len(tokens))))
    assert found == [TokenSpan(end - 1 - (count % 8 == 0), end - 1) for count, end in enumerate(ends)]
    assert peak < 2**27  # in one piece it would be 2 ** 31


# --- characters ---


def test_characters_have_the_times_of_their_token():
    spans = [TokenSpan(2, 5), TokenSpan(6, 6), TokenSpan(9, 12)]
    starts, ends = char_times(spans, [2, 4, 5], num_chars=6)  # "he", "ll", "o" and one more character
    assert starts == [2, 2, 6, 6, 9, 9]
    assert ends == [5, 5, 6, 6, 12, 12]


def test_byte_tokens_extend_their_character():
    """Three byte tokens of one character: it starts with the first; its tokens all end with it."""
    spans = [TokenSpan(0, 1), TokenSpan(3, 4), TokenSpan(5, 5), TokenSpan(6, 7), TokenSpan(8, 9)]
    starts, ends = char_times(spans, [1, 2, 2, 2, 3], 3)
    assert starts == [0, 3, 8]
    assert ends == [1, 7, 9], "the character ends with its last byte"
    assert token_ends(ends, [1, 2, 2, 2, 3]) == [1, 7, 7, 7, 9]
    # A piece that is only a word mark lies before the first character.
    assert char_times([TokenSpan(0, 0), TokenSpan(4, 5)], [1, 1], 1) == [[0], [5]]


def test_token_ends_never_decrease():
    assert token_ends([3, 8, 5, 5, 9], [1, 2, 3, 4, 5]) == [3, 8, 8, 8, 9]
    assert token_ends([3, 8, 9], [0, 0, 2, 3]) == [0, 0, 8, 9]
    assert token_ends([], []) == []
    rng = random.Random(3)
    for _ in range(50):
        ends = [rng.randrange(99) for _ in range(30)]
        places = sorted(rng.randint(1, 30) for _ in range(12))
        got = token_ends(ends, places)
        assert got == [max(ends[place - 1] for place in places[: index + 1]) for index in range(12)]


def test_char_ends_lines():
    assert parse_char_ends("utt", format_char_ends([3, 3, 14]), "abc") == [3, 3, 14]
    assert format_char_ends([]) == "-" and parse_char_ends("utt", "-", "") == []
    with pytest.raises(AlignmentError, match="utt: 2 aligned characters for a transcript of 3: .*align stage again"):
        parse_char_ends("utt", "1 2", "abc")
    with pytest.raises(AlignmentError, match="utt: 0 aligned characters for a transcript of 3"):
        parse_char_ends("utt", "-", "abc")
    with pytest.raises(AlignmentError, match="utt: alignment is not a list of frames .*'x'.*: run the align stage"):
        parse_char_ends("utt", "1 x 3", "abc")


def test_words_of_characters():
    text = "go  a go"
    starts = [0, 2, 4, 4, 5, 8, 9, 11]
    ends = [1, 3, 4, 4, 7, 8, 10, 12]
    words = word_times(text, starts, ends)
    assert [word.text for word in words] == ["go", "a", "go"]
    assert [word.start for word in words] == pytest.approx([0, 0.2, 0.36])
    assert [word.end for word in words] == pytest.approx([0.16, 0.32, 0.52])
    assert word_times("", [], []) == []


# --- other spellings ---


@pytest.mark.parametrize(
    "source, target, expected",
    [
        ("HELLO BOB", "hello bob", "0123 4 5678"),
        ("hello bob", "Hello, Bob!", "01234 4 5 678 8"),  # marks take the character before
        ("hello, bob.", "hello bob", "01234 6 789"),
        ("don't go", "dont go", "012 4 567"),
        ("dont go", "don't go", "012 2 3 456"),
        ("don’t", "don't", "012 2 4"),  # another apostrophe: a mark that the source lacks
        ("ab", '"ab"', "0 0 1 1"),  # before the first character nothing has ended yet
        ("well known", "well-known", "0123 3 56789"),
        ("well-known", "well known", "0123 3 56789"),
        ("it s", "its", "01 3"),
        ("its", "it s", "01 1 2"),
        ("क\u093eम", "क\u093eम", "012"),  # a combining vowel sign is its own character
        ("कम", "क\u093eम", "0 0 1"),
        ("x\u0323y", "xy", "0 2"),
        ("", "", ""),
        ("", "?!", "00"),
    ],
)
def test_spellings(source, target, expected):
    ends = transfer(source, [10 * index for index in range(len(source))], target)
    assert ends == [10 * int(digit) for digit in expected.replace(" ", "")]


def test_transfer_never_decreases():
    assert transfer("abcd", [5, 3, 9, 1], "a.bcd") == [5, 5, 5, 9, 9]


@pytest.mark.parametrize(
    "source, target, message",
    [
        ("hello bob", "hello rob", "'r' of the transcript is not in the aligned text at 'bob'"),
        ("hello", "hello bob", "'b' of the transcript is not in the aligned text at ''"),
        ("hello bob", "hello", "the aligned text goes on with ' bob' where the transcript ends"),
        ("two", "2", "'2' of the transcript is not in the aligned text at 'two'"),
        ("", "a", "'a' of the transcript is not in the aligned text at ''"),
        ("a", "...", "the aligned text goes on with 'a' where the transcript ends"),
    ],
)
def test_texts_that_differ(source, target, message):
    with pytest.raises(AlignmentError, match=message):
        transfer(source, list(range(len(source))), target)


def test_word_times_give_every_character_its_words_end():
    text = "Hello, don't STOP the café!"
    words = [
        Word("HELLO", 0.04, 0.40),
        Word("DON'T", 0.50, 0.81),
        Word("STOP", 0.90, 1.20),
        Word("THE", 1.20, 1.28),
        Word("CAFÉ", 1.30, 2.0),
    ]
    starts, ends = from_word_times(text, words)
    apart = [dataclasses.replace(word, text=unicodedata.normalize("NFD", word.text)) for word in words]
    assert from_word_times(text, apart) == [starts, ends]
    assert len(starts) == len(ends) == len(text)
    #        Hello ,   don't  STOP  the  café !   with the space before a word its own
    last = [9] * 6 + [20] * 6 + [29] * 5 + [31] * 4 + [49] * 6
    assert ends == last
    assert all(start <= end for start, end in zip(starts, ends, strict=True))
    back = word_times(text, starts, ends)
    assert [word.text for word in back] == text.split()
    for word, truth in zip(back, words, strict=True):
        assert 0 <= word.end - truth.end < 0.04 + 1e-9, "rounded up to the frame that holds it"
        assert abs(word.start - truth.start) < 0.04 + 1e-9


def test_word_times_that_overlap_or_run_backwards():
    words = [Word("a", 0.0, 1.0), Word("b", 0.5, 0.6), Word("c", 0.7, 2.0)]
    starts, ends = from_word_times("a b c", words)
    assert ends == [24, 24, 24, 49, 49]
    assert all(start <= end for start, end in zip(starts, ends, strict=True))


@pytest.mark.parametrize("words", [["hello"], ["hello", "there", "bob"], ["hello", "rob"], []])
def test_word_times_of_another_text(words):
    with pytest.raises(AlignmentError, match="of the transcript is not in|goes on with"):
        from_word_times("hello bob", [Word(word, index, index + 0.5) for index, word in enumerate(words)])


def test_word_times_of_an_empty_text():
    assert from_word_times("", []) == [[], []]


# --- written text, heard as it is read ---


def moved(spoken, written):
    """The written text with what its characters end with: the index of the spoken character, every word once."""
    ends = [10 * index + 9 for index in range(len(spoken))]
    found = move_to_written(spoken, [[10 * index for index in range(len(spoken))], ends], written)
    assert len(found.starts) == len(found.ends) == len(written)
    assert found.ends == sorted(found.ends)
    assert all(start <= end for start, end in zip(found.starts, found.ends, strict=True))
    return found, [end // 10 for end in found.ends]


def test_numbers_and_abbreviations_take_what_stands_between_their_neighbours():
    spoken = "in nineteen ninety eight doctor smith paid five dollars"
    written = "In 1998, Dr. Smith paid $5."
    found, ends = moved(spoken, written)
    last = {word: spoken.index(word) + len(word) - 1 for word in spoken.split()}
    assert found.read_otherwise == ["1998,", "Dr.", "$5."]
    place = written.index
    assert ends[:2] == [0, 1]  # In, character by character
    assert ends[place("1") : place("1998,") + 5] == [last["eight"]] * 5
    assert found.starts[place("1")] == 10 * spoken.index("nineteen")
    assert ends[place("Dr.") : place("Dr.") + 3] == [last["doctor"]] * 3
    first = spoken.index("smith")
    assert ends[place("Smith") : place("Smith") + 5] == [*range(first, first + 5)]
    assert ends[place("$5.") :] == [last["dollars"]] * 3, "the sign before the number waits for it"
    assert found.starts[place("$")] == 10 * spoken.index("five")


@pytest.mark.parametrize(
    "spoken, written, expected, otherwise",
    [
        ("hello bob", "Hello, Bob!", "01234 4 4 678 8", []),
        ("hello bob", '"Hello," (Bob)', "0 01234 44 4 6 678 8", []),
        ("well known", "well-known", "0123 3 56789", []),
        ("don't go", "Don\u2019t go", "01234 4 67", []),
        ("one one", "1 one", "2 2 456", ["1"]),
        ("one two", "1 2", "2 2 6", ["1", "2"]),  # as many of both: one each
        ("a x y z", "A 1 23", "0 0 6 6 66", ["1", "23"]),
        ("uh go now", "Go [sic] now", "34 4 44444 4 678", ["[sic]"]),
        ("go now", "Ah, go now", "00 0 0 01 1 345", ["Ah,"]),
        ("go now", "go now, then", "01 1 345 5 5 5555", ["then"]),
        ("a b", "- a -- b ...", "0 0 0 0 00 0 2 2 222", []),
        ("1 go", "1 go", "0 0 23", []),
        ("\u6709\u4e94\u4e2a", "\u67095\u4e2a\u3002", "0 1 2 2", ["\u67095"]),
        ("strasse", "Stra\u00dfe", "666666", []),
        ("mister x", "?!", "00", []),
        ("", "", "", []),
    ],
)
def test_written_forms(spoken, written, expected, otherwise):
    found, ends = moved(spoken, written)
    assert "".join(map(str, ends)) == expected.replace(" ", "")
    assert found.read_otherwise == otherwise


def test_equal_words_match_as_often_as_possible():
    assert same_words("the 5 the end".split(), "the five the end".split()) == [(0, 0), (2, 2), (3, 3)]
    assert same_words("b c d".split(), "a b x c d d".split()) == [(0, 1), (1, 3), (2, 4)]
    assert same_words("dr x".split(), "doctor draws x".split()) == [(0, 0), (1, 2)]
    # A match counts more than any number of abbreviations.
    assert same_words("st dr x".split(), "x saint doctor".split()) in ([(2, 0)], [(0, 1), (1, 2)])
    assert same_words([], ["a"]) == same_words(["a"], []) == []
    rng = random.Random(5)
    for _ in range(200):
        left, right = ([rng.choice("abc1") for _ in range(rng.randint(0, 6))] for _ in range(2))
        pairs = same_words(left, right)
        assert all(left[index] == right[place] for index, place in pairs)
        assert all(a < b for column in zip(*pairs, strict=True) for a, b in itertools.pairwise(column))
        longest = max(
            len(part)
            for count in range(len(left) + 1)
            for part in itertools.combinations(left, count)
            if is_part(part, right)
        )
        assert len(pairs) == longest


def is_part(part, whole):
    """Whether the items of ``part`` stand in ``whole``, in their order."""
    rest = iter(whole)
    return all(item in rest for item in part)


def test_other_text_is_refused():
    with pytest.raises(AlignmentError, match="no word of the text is spoken: 'good morning to you'"):
        moved("quite another thing", "good morning to you")


def test_written_text_falls_into_the_chunks_in_which_it_is_spoken(sentencepiece_model):
    """Tokens of the written text, of any tokenizer, end in order; the number's when it has been read."""
    tokenizer = load_tokenizer(sentencepiece_model("bpe", 320, byte_fallback=True))
    spoken, written = "ada sees nineteen ninety eight old pianos", "Ada sees 1998 old pianos."
    found, _ = moved(spoken, written)
    ids, places = tokenizer.encode(written)
    ends = token_ends(found.ends, places)
    assert ends == sorted(ends) and len(ends) == len(ids)
    after = [end for end, place in zip(ends, places, strict=True) if place > written.index("1")]
    assert after[0] == 10 * (spoken.index("eight") + 4) + 9


# --- other tokenizers ---


def test_moving_to_another_tokenizer(sentencepiece_model, sentences):
    """Letters aligned; the pieces of every tokenizer end with the last letter they hold."""
    letters = load_tokenizer(sentencepiece_model("char", 60))
    blank = len(letters.pieces)
    targets = [load_tokenizer(sentencepiece_model(kind, 60)) for kind in ("bpe", "unigram")]
    targets.append(load_tokenizer(sentencepiece_model("bpe", 320, byte_fallback=True)))
    rng = random.Random(4)
    for text in sentences[:20]:
        ids, places = letters.encode(text)
        path, truth = [], []
        for token in ids:
            path += [blank] * rng.randint(1, 3) + [token] * rng.randint(1, 2)
            truth.append(len(path) - 1)
        log_probs = torch.full((len(path), blank + 1), -20.0)
        log_probs[torch.arange(len(path)), torch.tensor(path)] = 0
        spans = viterbi(log_probs, ids, blank)
        assert [span.end for span in spans] == truth
        _, ends = char_times(spans, places, len(text))
        assert token_ends(ends, places) == [truth[1], *truth[1:]], "back to its own tokens"
        for tokenizer in targets:
            _, other = tokenizer.encode(text)
            # Letters have a mark before the first character, so character i is piece i + 1.
            assert token_ends(ends, other) == [truth[place] for place in other]


def test_whole_word_ends(sentencepiece_model):
    """Every token of a word, and the mark of the space before it, ends where the word ends."""
    tokenizer = load_tokenizer(sentencepiece_model("char", 60))
    tokens, _ = tokenizer.encode("no i do")
    assert len(tokens) == 8  # a mark of space before each word
    assert whole_word_ends([0, 1, 2, 3, 4, 5, 6, 7], tokens, tokenizer) == [2, 2, 2, 4, 4, 7, 7, 7]
    assert whole_word_ends([], [], tokenizer) == []
    assert whole_word_ends([4], tokens[:1], tokenizer) == [4]


@pytest.mark.parametrize(
    "text, expected",
    [("今天天气", "11234"), ("我 用ab。", "1166666"), ("น้ำมา", "333355")],
)
def test_whole_word_ends_of_scripts_without_spaces(tmp_path, text, expected):
    """Not all of a sentence ends where the sentence ends."""
    from espnet_speechllm_xl.bin import cli

    (tmp_path / "text").write_text(f"u {text}\n", "utf-8")
    assert cli.main(["tokens", "--text", str(tmp_path / "text"), "--out", str(tmp_path), "--type", "char"]) == 0
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    ids, _ = tokenizer.encode(text)
    assert whole_word_ends(range(len(ids)), ids, tokenizer) == [int(digit) for digit in expected]


def test_word_times_of_scripts_without_spaces():
    words = word_times("我 用ab手", [0, 0, 2, 3, 4, 5], [0, 2, 2, 3, 4, 9])
    assert [(word.text, word.joined) for word in words] == [("我", False), ("用ab", False), ("手", True)]
    assert [(word.start, round(word.end, 6)) for word in words] == [(0, 0.04), (0.08, 0.2), (0.2, 0.4)]
    starts, ends = from_word_times("我 用ab手", words)  # as it comes back from a CTM, which knows no joined words
    assert (starts, ends) == ([0, 2, 2, 2, 2, 5], [0, 4, 4, 4, 4, 9])


@pytest.mark.parametrize("kind, size", [("char", 60), ("bpe", 60), ("unigram", 80)])
def test_whole_words_give_what_a_word_level_ctm_gives(sentencepiece_model, kind, size):
    """With the unit word an alignment of characters falls into the chunks of a CTM that has its words' ends."""
    tokenizer = load_tokenizer(sentencepiece_model(kind, size))
    text = "ada sees the old piano"
    ends = [2 * index for index in range(len(text))]
    words = word_times(text, ends, ends)
    _, by_word = from_word_times(text, words)
    ids, places = tokenizer.encode(text)
    assert whole_word_ends(token_ends(ends, places), ids, tokenizer) == token_ends(by_word, places)


def test_punctuated_target_with_byte_pieces(sentencepiece_model):
    """An aligner of bare lower-case letters, a recogniser that writes marks, capitals and bytes of rare characters."""
    tokenizer = load_tokenizer(sentencepiece_model("bpe", 320, byte_fallback=True))
    source = "ada sees the old piano"
    ends = [3 * index for index in range(len(source))]
    target = "Ada sees… the old 🎹 piano!"
    moved = transfer(source, ends, target)
    assert moved[target.index("…")] == moved[target.index("…") - 1] == ends[7]
    # The space after "old" is matched; the keyboard and the space behind it take its end.
    keyboard = target.index("🎹")
    assert moved[keyboard - 1] == moved[keyboard] == moved[keyboard + 1] == ends[16]
    assert moved[-1] == moved[-2] == ends[-1]
    ids, places = tokenizer.encode(target)
    assert tokenizer.unknown(target) == ""
    got = token_ends(moved, places)
    assert got == sorted(got) and len(got) == len(ids)
    assert [end for end, place in zip(got, places, strict=True) if place == keyboard + 1] == [ends[16]] * 4
