"""Phrases: their worth against a slow reference over the text, in every tokenizer and search; streams; refusals."""

import codecs
import math
import random
import re

import pytest
import tiny
import torch
from made_tokenizers import KINDS, save_hugging_face
from test_joint_ctc import Heard, Texts, random_log_probs
from test_searches import SLOW, RunOn, Toy, all_paths, assert_nbest, best_per_text, config, decode, text_of

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.decoding.engine import Engine, model_calls, run
from espnet_speechllm_xl.decoding.joint_ctc import joint_decoder
from espnet_speechllm_xl.decoding.phrases import PhraseTree, make_tree, read_phrases, spaced, weights_of
from espnet_speechllm_xl.decoding.searches import ChunkSync, make_search
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.tokenization import UNKNOWN, Tokenizer, load_tokenizer, parts_words

CPU = torch.device("cpu")
# In the words of these tests: Han letters, letters and digits, marks.
WORDS = re.compile("[\u4e00-\u9fff]|[^\\W_\u4e00-\u9fff]+|\\S")
PHRASES = {"ada": 1.0, "ada ben": 1.0, "ben ada": 2.0, "it isn't": 1.0, "isn": 0.5, "far": 1.0, "a quiet street": 1.0}
HAN = {"\u5317\u4eac": 1.0, "\u4eac\u90fd \u5317": 1.0, "caf\u00e9 \u5317": 2.0, "\u00e5sa": 1.0, "a,b": 1.0}


def slow_spaced(text):
    return " ".join(WORDS.findall(text)) + " " * (text[-1:].isspace() and text.strip() != "")


def slow_worth(text, phrases, boost=1.0, ended=False):
    """The most that phrases without overlap are worth, the last perhaps cut off by the end; ``ended``: none is."""
    text = slow_spaced(text)
    found = {spaced(phrase): boost * weight for phrase, weight in phrases.items()}

    def count(part):
        return len(part.replace(" ", ""))

    def best(begin):
        """From a place where a word begins, or behind the text."""
        rest = text[begin:]
        options = [0.0]
        for phrase, weight in found.items():
            if (rest + " ").startswith(phrase + " "):
                options.append(weight * count(phrase) + best(begin + len(phrase) + 1))
            elif phrase.startswith(rest) and not ended:
                options.append(weight * count(rest))
        if " " in rest:
            options.append(best(begin + rest.index(" ") + 1))
        return max(options)

    return best(0)


@pytest.mark.parametrize(
    "text, expected, ended",
    [
        ("", 0, 0),
        ("ad", 2, 0),
        ("ada", 3, 3),
        ("ada ", 3, 3),
        ("adab", 0, 0),
        ("bada", 0, 0),
        ("ada,", 3, 3),
        ("ada ben", 9, 6),  # "ada", and a part of "ben ada" at 2 each
        ("ada ben ad", 13, 6),
        ("ada be", 7, 3),
        ("ada ada b", 8, 6),
        ("ben ada", 12, 12),
        ("ben ada x", 12, 12),
        ("ben adam", 0, 0),
        ("ben x", 0, 0),
        ("it isn", 5, 1.5),
        ("it isn'", 6, 1.5),
        ("it isn't", 7, 7),
    ],
)
def test_the_reference_by_planted_answers(text, expected, ended):
    phrases = {name: PHRASES[name] for name in ("ada", "ada ben", "ben ada", "it isn't", "isn")}
    assert slow_worth(text, phrases) == expected
    assert slow_worth(text, phrases, ended=True) == ended


def test_words_are_parted_by_the_last_character_alone():
    """Of all scripts, with letters that take the next with them, marks, and what is none: as with all of the text."""
    rng = random.Random(0)
    letters = "ab1\u00e9'-., \u3000\u5317\u4eac\u30a2\u30a1\u0e40\u0e01\u0e31\u0301\u1039\u1000\u200d\u0915\u094d\u2060"
    parted = 0
    for _ in range(3000):
        text = "".join(rng.choice(letters) for _ in range(rng.randint(0, 9)))
        slow = ""
        for place, character in enumerate(text):
            if character.isspace():
                slow += " "
                continue
            before = text[:place]
            slow += " " * bool(before and not before[-1].isspace() and parts_words(before, character)) + character
        slow = re.sub(" +", " ", slow).removeprefix(" ")
        assert spaced(text) == slow, ascii(text)
        parted += len(slow.split()) - len(text.split())
    assert parted > 3000
    assert spaced("call anna's \u5317\u4eac") == "call anna ' s \u5317 \u4eac"


def texts_to_spell(rng, phrases, sentences):
    """A text of words of phrases, of sentences, and of phrases whole, some with marks, some run together."""
    words = [word for phrase in phrases for word in phrase.split()] + list(phrases)
    words += [word for sentence in sentences[:20] for word in sentence.split()]
    words += [word[: rng.randint(1, 4)] for word in words] + list(phrases) * 20
    return "".join(rng.choice(words) + rng.choice(["", " ", " ", " ", ",", "'"]) for _ in range(rng.randint(1, 7)))


def spelled_somehow(rng, contents, text):
    """Tokens that give a text, in any segmentation, now and then a wrong one."""
    left, tokens = b" " + text.encode(), []
    while left:
        fitting = [token for token, content in enumerate(contents) if left.startswith(content)]
        if not fitting and left.startswith(b" "):  # the first word, or one behind a comma, may have no space
            left = left[1:]
            continue
        if not fitting or rng.random() < 0.02:
            tokens.append(rng.randrange(len(contents)))
            left = left[1:]
            continue
        tokens.append(rng.choice(fitting))
        left = left[len(contents[tokens[-1]]) :]
    return tokens


@pytest.mark.parametrize("kind, han", [*((kind, False) for kind in KINDS), ("bytes", True), ("gpt2", True)])
def test_what_a_token_adds_is_the_worth_of_the_text_less_that_before(kind, han, tokenizers, sentences):
    """Along texts in all segmentations, of every token at every place; and the vector of all outputs is the same."""
    tokenizer = tokenizers[kind]
    phrases, boost, rng = HAN if han else PHRASES, 0.7, random.Random(f"{kind} {han}")
    if tokenizer.unknown("'"):
        phrases = {phrase: weight for phrase, weight in phrases.items() if "'" not in phrase}
    tree = make_tree(tokenizer, [f"{phrase} :{weight}" for phrase, weight in phrases.items()], boost)
    contents = [tokenizer.bytes_of(token) or UNKNOWN.encode() for token in range(len(tokenizer.pieces))]

    def worth(content, ended=False):
        whole = codecs.getincrementaldecoder("utf-8")("replace").decode(content)  # of characters that are whole
        return slow_worth(whole, phrases, boost, ended)

    most = 0.0
    for _ in range(10):
        place, content = tree.start, b""
        for token in spelled_somehow(rng, contents, texts_to_spell(rng, phrases, sentences)):
            before = worth(content)
            added = tree.added([place], CPU)[0]
            assert added.dtype == torch.float64 and len(added) == len(contents) + 1 and added[-1] == 0
            for other in rng.sample(range(len(contents)), 8):
                assert tree.advance(place, other)[1] == pytest.approx(worth(content + contents[other]) - before)
            alone = [tree.advance(place, other)[1] for other in range(len(contents))]
            assert torch.allclose(added[:-1], torch.tensor(alone, dtype=torch.float64), atol=1e-9)
            assert tree.end(place) == pytest.approx(worth(content, ended=True) - before)
            place, more = tree.advance(place, token)
            content += contents[token]
            assert more == pytest.approx(worth(content) - before)
            most = max(most, worth(content, ended=True))
    assert most > 1.9


# Searches


class Letters(Tokenizer):
    """Tokens that are written as they are; "_" is a space."""

    unknown_id = None

    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def encode(self, text):
        letters = [self.pieces.index(letter) for letter in text.replace(" ", "_")]
        return letters, list(range(1, len(letters) + 1))

    def decode(self, ids):
        return "".join(self.pieces[token] for token in ids).replace("_", " ").strip()

    def bytes_of(self, token):
        return self.pieces[token].replace("_", " ").encode()

    def marks_space(self, token):
        return self.pieces[token].startswith("_")

    def starts_word(self, token):
        return self.marks_space(token)


LETTERS, LISTED = Letters("a", "b", "_"), {"ab": 1.0, "a ba": 2.0, "b": 1.0}
TREE = PhraseTree(LETTERS, LISTED, 0.8)


class Swayed(Toy):
    """The toy, whose next outputs add what the text becomes worth: a search without phrases finds the same with it."""

    tree, phrases = TREE, LISTED

    def log_probs(self, history):
        words = [x for x in history if not isinstance(x, tuple)]
        text = "".join(map(self.words.__getitem__, words))
        now = [slow_worth(text + word, self.phrases, self.boost) for word in self.words]
        before, own = slow_worth(text, self.phrases, self.boost), super().log_probs(history)
        return [one + worth - before for one, worth in zip(own[:-1], now, strict=True)] + own[-1:]

    words, boost = ("a", "b", " "), 0.8


def text_worth(tokens, ended):
    return slow_worth("".join(Swayed.words[token] for token in tokens), LISTED, 0.8, ended)


def taken_back(found):
    """What a search gives, [(text, chunks, score)], when the text ends: parts of phrases are worth nothing."""
    found = [(text, chunks, score + text_worth(text, True) - text_worth(text, False)) for text, chunks, score in found]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))


@pytest.mark.parametrize("sizes, cap", [((4, 4), 2), ((3,), 4), ((4, 4, 1), 1)])
@pytest.mark.parametrize("seed", range(3))
def test_beam_as_large_as_the_space_is_exhaustive(sizes, cap, seed):
    """The score of each hypothesis is that of its tokens, and the worth of its text."""
    toy = Toy(seed, 3)
    scored = {
        (segments,): score + text_worth(text_of(segments), True)
        for segments, (score, _) in all_paths(toy, sizes, cap).items()
    }
    conf = config(beam=10 * len(scored), cap=cap, nbest=10**6)
    for search_class in (ChunkSync, RunOn):
        found = decode(search_class(conf, (), 3, phrases=TREE), toy, sizes)
        assert_nbest(found, best_per_text(scored))
        own = {segments: tokens for segments, (_, tokens) in all_paths(toy, sizes, cap).items()}
        for h in found:
            outputs = list(zip(h.tokens, h.chunk_ids, strict=True))
            segments = tuple(tuple(w for w, c in outputs if c == k) for k in range(len(sizes)))
            assert h.token_scores == pytest.approx(own[segments], abs=1e-12)  # the decoder's alone


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("margin", [math.inf, 2.0])
@pytest.mark.parametrize("merge", [False, True])
def test_small_beam_equals_the_slow_reference(beam, margin, merge):
    """Which knows no phrases, but a decoder whose outputs are worth more."""
    differing = 0
    for seed in range(15):
        sizes, cap = (4, 4, 4, 3)[seed % 3 :], 1 + seed % 4
        conf = config("chunk_sync", beam, cap, margin=margin, recombine=merge)
        found = decode(make_search(conf, (), 3, phrases=TREE), Toy(seed, 3), sizes)
        slow = SLOW["chunk_sync"](Swayed(seed, 3), sizes, beam, cap, merge=merge, margin=margin)
        expected = taken_back(best_per_text(slow))
        assert_nbest(found, expected)
        plain = decode(make_search(conf, (), 3), Toy(seed, 3), sizes)
        differing += found[0].tokens != plain[0].tokens
    assert differing > 3


class Shy(Toy):
    """Would rather write nothing; once it has begun with "a", it is sure of "ab"."""

    def log_probs(self, history):
        ways = {(): [-4.0, -9.0, -9.0, -1.0], (0,): [-9.0, -0.1, -9.0, -5.0]}
        return ways.get(tuple(x for x in history if not isinstance(x, tuple)), [-9.0, -9.0, -9.0, -0.1])


def test_alsd_goes_on_while_a_phrase_may_still_come():
    """Longer than a complete hypothesis is better, by what a phrase may be worth, but not for ever."""
    tree = PhraseTree(LETTERS, {"ab": 1.0}, 2.0)
    for margin, expected in [(math.inf, ((0, 1), -0.2)), (0.5, ((), -1.0)), (1.5, ((0, 1), -0.2))]:
        toy = Shy(0, 3)
        found = decode(make_search(config(beam=4, cap=4, margin=margin), (), 3, phrases=tree), toy, (4,))
        assert (found[0].tokens, pytest.approx(found[0].score)) == expected
    fewer = 0
    for seed in range(40):
        toys = [Toy(seed, 3, 1.0) for _ in range(2)]
        found = decode(make_search(config(beam=4, cap=4), (), 3, phrases=TREE), toys[0], (4, 4, 4))
        on = decode(RunOn(config(beam=4, cap=4), (), 3, phrases=TREE), toys[1], (4, 4, 4))
        assert found[0].score == pytest.approx(on[0].score)
        fewer += len(toys[0].calls) < len(toys[1].calls)
    assert fewer > 3


def test_only_openers_begin_a_chunk_with_phrases_too():
    toy, sizes, openers = Toy(1, 3), (4, 4, 3), (True, False, True)
    scored = {
        (segments,): score + text_worth(text_of(segments), True)
        for segments, (score, _) in all_paths(toy, sizes, 1).items()
        if all(openers[words[0]] for words in [words for words in segments if words][1:])
    }
    conf = config("chunk_sync", beam=10**4, cap=1, nbest=10**6)
    found = decode(make_search(conf, (), 3, torch.tensor(openers), TREE), toy, sizes)
    assert_nbest(found, best_per_text(scored))


@pytest.mark.parametrize("method", ["greedy", "chunk_sync", "alsd"])
def test_without_any_weight_all_is_as_before(method):
    assert make_tree(LETTERS, [], 1.0) is None and make_tree(LETTERS, ["ab :0", " "], 1.0) is None
    assert make_tree(LETTERS, ["ab"], 0.0) is None
    for seed in range(5):
        conf = config(method, 3, 3)
        tiny_boost = PhraseTree(LETTERS, LISTED, 1e-12)
        plain, swayed = (
            decode(make_search(conf, (), 3, phrases=phrases), Toy(seed, 3), (4, 4, 2)) for phrases in (None, tiny_boost)
        )
        assert [(h.tokens, h.chunk_ids) for h in plain] == [(h.tokens, h.chunk_ids) for h in swayed]


def test_settled_text_that_is_forgotten_still_begins_a_phrase():
    for seed in range(8):
        kept, dropped = (ChunkSync(config("chunk_sync", 2, 3, margin=1.0), (), 3, phrases=TREE) for _ in range(2))
        toys = Toy(seed, 3), Toy(seed, 3)
        for size in (4, 4, 4, 4):
            run([kept.advance(torch.zeros(size, 2))], toys[0].extend)
            run([dropped.advance(torch.zeros(size, 2))], toys[1].extend)
            for search in (kept, dropped):
                search.commit(len(search.best().tokens))
            dropped.forget(len(dropped.best().tokens))
            assert dropped.best().score == pytest.approx(kept.best().score)
            assert kept.best().score == pytest.approx(slow_score(toys[0], kept.best()))


def slow_score(toy, hypothesis):
    """Of a hypothesis that has ended its chunks, with the worth of what it may still become."""
    history, score = (), 0.0
    outputs = list(zip(hypothesis.tokens, hypothesis.chunk_ids, strict=True))
    for chunk in range(hypothesis._chunk_id):
        history += (("f", chunk, 4),)
        for token in [w for w, c in outputs if c == chunk]:
            score += toy.log_probs(history)[token]
            history += (token,)
        score += toy.log_probs(history)[3]
    return score + text_worth(hypothesis.tokens, False)


def test_phrases_come_before_the_first_chunk():
    search = ChunkSync(config("greedy"), (), 3)
    search.expect(TREE)
    toy = Toy(4, 3)
    assert run([search.advance(torch.zeros(4, 2))], toy.extend) == [None]
    assert search.phrases is TREE
    with pytest.raises(ValueError, match="before the first chunk"):
        search.expect(None)


# With CTC


@pytest.mark.parametrize("method", ["alsd", "chunk_sync"])
@pytest.mark.parametrize("texts, refused", [(None, []), ([(0,), (1, 0), ()], []), ([(0,), (1, 0), ()], [1])])
def test_joint_beam_as_large_as_the_space_is_exhaustive(method, texts, refused):
    """As the test of test_joint_ctc.py, with the worth of the text."""
    spelling, weight, log_probs = None if texts is None else Texts(texts, refused=refused), 0.4, None
    for seed in range(2):
        sizes, size = [2, 3, 1], 3
        log_probs = random_log_probs(sum(sizes), 4 if texts is None else 3, seed)
        scores = {}
        for phrases in (None, TREE):
            decoder = joint_decoder(Heard(Toy(seed, size), spelling=spelling), weight)
            conf = config("chunk_sync" if phrases is None else method, beam=9999, cap=2)
            search = make_search(conf, decoder.initial_past(None), size, phrases=phrases)
            chunks = log_probs.split(sizes)
            for number, frames in enumerate(chunks, 1):
                run([search.advance(frames, last=number == len(chunks))], decoder.extend)
            scores[phrases] = {h.tokens: h.score for h in run([search.finish()], decoder.extend)[0]}
        expected = {tokens: score + text_worth(tokens, True) for tokens, score in scores[None].items()}
        found = scores[TREE]
        if method == "chunk_sync":
            assert found == pytest.approx(expected, abs=1e-9)
        best = max(expected, key=expected.get)
        assert next(iter(found)) == best and found[best] == pytest.approx(expected[best], abs=1e-9)


@pytest.mark.parametrize("recombine", [False, True])
def test_ctc_with_tokens_of_its_own_that_are_the_decoders_changes_nothing(recombine):
    """The scores of all tokens, and of those that can be among the best, lead to the same."""
    for seed in range(6):
        log_probs, found = random_log_probs(9, 4, seed), []
        for spelling in (None, Texts([(token,) for token in range(3)])):
            decoder = joint_decoder(Heard(Toy(seed, 3), spelling=spelling), 0.4)
            conf = config("chunk_sync", 3, 3, recombine=recombine, margin=4.0)
            search = make_search(conf, decoder.initial_past(None), 3, phrases=PhraseTree(LETTERS, LISTED, 2.0))
            for frames in log_probs.split([3, 4, 2]):
                run([search.advance(frames)], decoder.extend)
            found.append(run([search.finish()], decoder.extend)[0])
        assert [h.tokens for h in found[0]] == [h.tokens for h in found[1]]
        assert [h.score for h in found[0]] == pytest.approx([h.score for h in found[1]], abs=1e-9)


# Models and streams

NAMES = ["anna", "the other office :2", "it's late", "cat", "noise on", "seven"]


def load(directory, **options):
    return Speech2Text.from_pretrained(directory, **{"dtype": "float64", "max_tokens_per_chunk": 8, **options})


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
@pytest.mark.parametrize("search", ["greedy", "chunk_sync", "alsd"])
def test_batch_and_alone_and_streams_agree(search, ctc_weight, tiny_model_dir):
    speech2text = load(tiny_model_dir, search=search, ctc_weight=ctc_weight, beam_size=3, phrase_boost=1.5)
    recordings = [tiny.speech(seed, size) for seed, size in ((51, 60000), (52, 25000), (53, 40000))]
    plain = [speech2text(one)[0] for one in recordings]
    alone = [speech2text(one, phrases=NAMES)[0] for one in recordings]
    assert sum(one.text != other.text for one, other in zip(plain, alone, strict=True)) > 0
    tree = speech2text.phrase_tree(NAMES)
    together = speech2text.transcribe_batch(recordings * 2, phrases=[tree] * 3 + [None] * 3)
    for (found, *_), expected in zip(together, alone + plain, strict=True):
        assert found.token_ids == expected.token_ids and found.score == pytest.approx(expected.score, abs=1e-9)
    for_all = speech2text.transcribe_batch(recordings, phrases=tree)
    assert [nbest[0].token_ids for nbest in for_all] == [one.token_ids for one in alone]
    for none in (None, [], "", " \n", ["anna :0"]):
        assert speech2text(recordings[0], phrases=none)[0] == plain[0]
    assert (
        load(tiny_model_dir, search=search, ctc_weight=ctc_weight, beam_size=3, phrase_boost=0.0)(
            recordings[0], phrases=NAMES
        )[0]
        == plain[0]
    )
    if search != "alsd":
        rng = random.Random(3)
        for recording, expected in zip(recordings, alone, strict=True):
            for _ in range(2):
                stream = speech2text.stream(search, phrases="\n".join(NAMES), endpoint_silence=9, settle_seconds=99)
                assert tiny.said(tiny.play(stream, tiny.cuts(recording, rng, 9000))) == expected.text


@pytest.mark.parametrize("search", ["greedy", "chunk_sync"])
def test_a_stream_that_settles_early_is_as_good(search, tiny_model_dir):
    """Settled text is dropped; what it has begun goes on.  Streams with and without phrases share an engine."""
    speech2text = load(tiny_model_dir, search=search, beam_size=3, phrase_boost=1.5)
    recording, lists, calls = tiny.speech(54, 120000), [NAMES, None, ["on then :2"]], model_calls(speech2text.model)
    settings = {"settle_seconds": 0.64, "partial_seconds": 0.32, "endpoint_length": 3.0}

    def streamed(stream, push):
        pieces = [recording[begin : begin + 7000] for begin in range(0, len(recording), 7000)]
        return [push(stream, piece, number == len(pieces)) for number, piece in enumerate(pieces, 1)]

    expected = []
    for phrases in lists:
        stream = speech2text.stream(search, phrases=phrases, **settings)
        updates = streamed(stream, lambda stream, piece, last: run([stream.consume(piece, last)], calls)[0])
        expected.append([(update.text, update.partial) for update in updates])
    assert len({str(one) for one in expected}) == 3
    with Engine(speech2text.model) as engine:
        streams = [speech2text.stream(search, phrases=phrases, **settings) for phrases in lists]
        futures = [
            streamed(stream, lambda stream, piece, last: engine.submit(stream, stream.consume(piece, last)))
            for stream in streams
        ]
        found = [[future.result(60) for future in each] for each in futures]
    assert [[(update.text, update.partial) for update in updates] for updates in found] == expected


def test_a_phrase_is_written_that_would_not_be(tiny_model_dir):
    """A model of random weights writes what it is paid for; greedy, too."""
    for search in ("greedy", "chunk_sync", "alsd"):
        speech2text = load(tiny_model_dir, search=search, phrase_boost=30.0)
        audio = tiny.speech(51, 60000)
        assert "anna" not in speech2text(audio)[0].text.split()
        assert "anna" in speech2text(audio, phrases=["anna"])[0].text.split()


# What is refused


def test_lines_of_phrases(tmp_path):
    found = weights_of(
        ["Anna  Karlsson", "ben :2", "ben", "ben :0.5", " john 3:16 ", "a :b", ":3", "c:2", "", "cafe\u0301 :.5"]
    )
    assert found == {
        "Anna Karlsson": 1.0, "ben": 2.0, "john 3:16": 1.0, "a :b": 1.0, ":3": 1.0, "c:2": 1.0, "caf\u00e9": 0.5
    }  # fmt: skip
    (tmp_path / "names").write_text(";; names\nanna\n\n  ben :2\n", encoding="utf-8")
    assert weights_of(read_phrases(tmp_path / "names")) == {"anna": 1.0, "ben": 2.0}
    (tmp_path / "none").write_text(";; names\n\n")
    with pytest.raises(UserError, match="/none holds no phrases: write one on each line"):
        read_phrases(tmp_path / "none")
    with pytest.raises(UserError, match="phrase 'ben': its weight -1.0 is negative"):
        weights_of(["anna", "ben :-1"])
    with pytest.raises(UserError, match="phrase 'a a a .* has 299 characters: give at most 200"):
        weights_of(["a " * 150])


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char", "metaspace"])
def test_phrases_that_cannot_be_written_are_named(kind, tokenizers):
    lines = ["ada", "Bj\u00f8rk", "\u5317\u4eac ada", "x", *(f"ada{number}" for number in range(5))]
    with pytest.raises(UserError) as refused:
        make_tree(tokenizers[kind], lines, 1.0)
    said = str(refused.value)
    assert said.startswith("the model's tokenizer lacks characters of phrases, 'Bj\u00f8rk' (")
    assert (
        "'\u5317\u4eac ada' (\u5317, \u4eac)" in said and "'ada'" not in said and "and 3 more: leave these out" in said
    )


def spelled_worth(tokenizer, phrase, text):
    """What a text is worth when the tokenizer spells it."""
    tree = make_tree(tokenizer, [phrase], 1.0)
    place, total = tree.start, 0.0
    for token in tokenizer.encode(text)[0]:
        place, more = tree.advance(place, token)
        total += more
    return total


def test_case_is_as_in_the_tokenizer(tokenizers, sentences, tmp_path):
    """One that has one case only takes the other as it; a tokenizer of both tells them apart."""
    for phrase in ("ada ben", "ADA Ben"):
        assert spelled_worth(tokenizers["char"], phrase, "ada ben") == 6.0
        capitals = load_tokenizer(save_hugging_face(tmp_path / phrase, [text.upper() for text in sentences], False))
        assert spelled_worth(capitals, phrase, "ADA BEN") == 6.0
    both = tokenizers["gpt2"]
    assert [spelled_worth(both, phrase, "call ada") for phrase in ("ada", "Ada")] == [3.0, 0.0]
    folder = save_hugging_face(tmp_path / "small", sentences, True)
    load_tokenizer(folder).save_lower_case(folder / "tokenizer.json")
    small = load_tokenizer(folder)
    assert small.lower_case and spelled_worth(small, "Ada \u00c5sa", "call ADA \u00e5sa") == 6.0


def test_who_takes_no_phrases_says_so(tiny_aligner_dir):
    aligner = Speech2Text.from_pretrained(tiny_aligner_dir)
    with pytest.raises(UserError, match="a model of task 'ctc' takes no phrases: leave them out"):
        aligner(tiny.speech(1, 20000), phrases=["anna"])
    assert aligner(tiny.speech(1, 20000), phrases=[])[0] == aligner(tiny.speech(1, 20000))[0]
