"""The decoder's text in CTC's characters: real tokenizers of every kind against the aligner's own encoding."""

import copy

import pytest
from made_tokenizers import KINDS, save_hugging_face

from espnet_speechllm_xl.model.ctc_spelling import Spelled, Spelling, Written, make_spelling
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.tokenization import load_tokenizer, plain_text

OTHERS = ["caf\u00e9 cr\u00e8me", "\u4eca\u5929\u5929\u6c14", "\u043c\u0438\u0440"]


@pytest.fixture(scope="module")
def characters(tmp_path_factory, sentences):
    """The tokenizer of an aligner: small letters, an apostrophe, and letters of several bytes."""
    from espnet_speechllm_xl.bin import cli

    out = tmp_path_factory.mktemp("characters")
    (out / "text").write_text("".join(f"u{i} {line}\n" for i, line in enumerate([*sentences, *OTHERS])), "utf-8")
    assert cli.main(["tokens", "--text", str(out / "text"), "--out", str(out), "--type", "char"]) == 0
    return load_tokenizer(out / "tokenizer.model")


ALL_TEXT = ["bytes", "gpt2"]  # they write any text


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_is_what_the_aligner_makes_of_it(tokenizers, characters, sentences, kind):
    tokenizer = tokenizers[kind]
    spelling = Spelling(tokenizer, characters)
    for text in sentences[:60]:
        tokens = tokenizer.encode(text)[0]
        assert spelling.spell(tokens) == characters.encode(text)[0]
    joined = [token for text in sentences[:3] for token in tokenizer.encode(text)[0]]
    assert spelling.spell(joined) == characters.encode(" ".join(sentences[:3]))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_is_the_whole(tokenizers, characters, sentences, kind):
    """After every token the characters so far are written, but for a space at the end."""
    tokenizer = tokenizers[kind]
    spelling = Spelling(tokenizer, characters)
    tokens = tokenizer.encode(sentences[5])[0]
    written, found = Written(), []
    for count, token in enumerate(tokens, 1):
        written, spelled = spelling.advance(written, token)
        found += spelled.ids
        assert found == characters.encode(tokenizer.decode(tokens[:count]).strip())[0]
        assert spelled.silent == (tokenizer.pieces[token].strip("\u2581\u0120") == "")


@pytest.mark.parametrize("kind", ALL_TEXT)
@pytest.mark.parametrize(
    "text, plain",
    [
        ("Ada sees \u201cThe Old Piano\u201d, doesn't she?", "ada sees the old piano doesn't she"),
        ("\u201cAda\u201d \u2013 (Ben)", "ada ben"),
        ("red-green, e.g. far", "red green e g far"),
        ("It isn\u2019t far", "it isn't far"),
        ("in 1998, a boat", "in a boat"),
        ("route66b", "route b"),
        ("Caf\u00e9 CR\u00c8ME", "caf\u00e9 cr\u00e8me"),
        ("na\u00efve \U0001f3b9 piano", "nave piano"),
        ("\u4eca\u5929\u3002\u5929\u6c14 \u041c\u0418\u0420", "\u4eca\u5929 \u5929\u6c14 \u043c\u0438\u0440"),
        ("... ! 7", ""),
        ("", ""),
    ],
)
def test_written_text(tokenizers, characters, kind, text, plain):
    tokenizer = tokenizers[kind]
    assert Spelling(tokenizer, characters).spell(tokenizer.encode(text)[0]) == characters.encode(plain)[0]


@pytest.mark.parametrize("kind", ALL_TEXT)
@pytest.mark.parametrize(
    "text",
    [
        "Ada sees \u201cThe Old Piano\u201d, doesn't she?",
        "red-green; e.g. far & near \u2013 (Ben) \u2026 at %? No: *never*/ever",
        "It ISN\u2019T far, caf\u00e9 CR\u00c8ME!",
        "\u4eca\u5929\u3002\u5929\u6c14 \u041c\u0418\u0420",
        "co\u00adoperate",
    ],
)
def test_written_text_without_numbers_is_plain_text(tokenizers, characters, kind, text):
    """An aligner hears the plain text of a recipe with ``--text written``; CTC's head starts from the aligner's."""
    found = Spelling(tokenizers[kind], characters).spell(tokenizers[kind].encode(text)[0])
    assert found == characters.encode(plain_text(text))[0]


@pytest.mark.parametrize("kind", ALL_TEXT)
def test_an_apostrophe_at_the_edge_of_a_word_is_written(tokenizers, characters, kind):
    text = "the others' rest 'tis"
    assert plain_text(text) == "the others rest tis"
    assert Spelling(tokenizers[kind], characters).spell(tokenizers[kind].encode(text)[0]) == characters.encode(text)[0]


@pytest.mark.parametrize("kind", ALL_TEXT)
def test_bytes_wait_until_their_character_is_whole(tokenizers, characters, kind):
    tokenizer = tokenizers[kind]
    spelling, mark = Spelling(tokenizer, characters), characters.pieces.index("\u2581")
    tokens = tokenizer.encode("\u6c14")[0]
    assert len(tokens) >= 3
    spelled = spelling.each(tokens)
    assert [each.ids for each in spelled[:-1]] == [()] * (len(tokens) - 1)
    assert spelled[-1].ids == (mark, characters.pieces.index("\u6c14"))
    assert all(each.opens for each in spelled[:-1]) and not spelled[-1].opens
    # The character is cut off: what follows is written all the same.
    broken = [*tokens[:-1], *tokenizer.encode("ada")[0]]
    assert spelling.spell(broken) == characters.encode("ada")[0]


def test_tokens_without_a_sound(tokenizers, characters):
    tokenizer = tokenizers["gpt2"]
    spelling = Spelling(tokenizer, characters)
    by_piece = {piece: token for token, piece in enumerate(tokenizer.pieces)}
    after_word = spelling.advance(Written(), by_piece["a"])[0]
    assert after_word == Written(b"", False)
    for piece, opens, silent in [("!", False, True), ("7", False, False), ("\u0120", True, True)]:
        written, spelled = spelling.advance(after_word, by_piece[piece])
        assert (spelled, written) == (Spelled((), opens, silent), Written(b"", True))
    assert spelling.space == characters.pieces.index("\u2581")


def written_like(tokenizer, text):
    """The tokenizer, as the tokens stage leaves it behind a training text."""
    known = copy.copy(tokenizer)
    known.characters = frozenset(text)
    return known


@pytest.mark.parametrize(
    "text, allowed, refused",
    [
        # CTC has the small letters and the apostrophe, of the others the training text must have all.
        ("ada sees", ["a", "A", "\u0120a", "'", "\u0120"], ["!", "7", "\u00c2", "\u010a", "\u00e2\u0138"]),
        ("Ada, 7!", ["a", "!", "7", ","], ["?", "8", "\u010a"]),
        ("5 \u20ac", ["5", "\u00e2", "\u0124", "\u00ac"], ["\u0138", "6"]),  # the bytes E2 82 AC, and 96
    ],
)
def test_a_search_may_write_what_ctc_or_the_training_text_has(tokenizers, sentences, tmp_path, text, allowed, refused):
    made = load_tokenizer(save_hugging_face(tmp_path / "gpt2", [*sentences, "\u2588\u2588 \u2589"], byte_level=True))
    plain = Spelling(made, tokenizers["char"])
    assert plain.refused == []  # not known what the training text has
    pieces = {made.pieces[token] for token in Spelling(written_like(made, text), tokenizers["char"]).refused}
    assert not pieces.intersection(allowed)
    assert pieces >= set(refused) & set(made.pieces) and pieces & set(refused)


def test_tokens_for_no_text_are_refused(tokenizers):
    """Of the special tokens only those remain that are one token of CTC, too."""
    spelling = Spelling(written_like(tokenizers["metaspace"], "ada"), tokenizers["char"])
    assert tokenizers["metaspace"].pieces.index("<unk>") in spelling.refused


def test_symbols_are_one_token_in_both(sentencepiece_model, sentences):
    symbol = {"user_defined_symbols": "<noise>"}
    letters = load_tokenizer(sentencepiece_model("char", 60, **symbol))
    pieces = load_tokenizer(sentencepiece_model("bpe", 70, **symbol))
    for text in ("ada <noise> sees", "<noise>", "the boat <noise>"):
        found = Spelling(pieces, letters).spell(pieces.encode(text)[0])
        assert found == letters.encode(text)[0] and letters.pieces.index("<noise>") in found


def test_the_same_tokens_need_no_spelling(tokenizers):
    assert make_spelling(tokenizers["bpe"], tokenizers["bpe"]) is None
    assert make_spelling(tokenizers["bpe"], tokenizers["char"]) is not None


def test_what_are_no_characters_is_refused(tokenizers, sentencepiece_model):
    with pytest.raises(ConfigError, match=r"it has tokens of several letters \('.+'\): give one of"):
        make_spelling(tokenizers["gpt2"], tokenizers["bpe"])
    bare = load_tokenizer(sentencepiece_model("char", 60, add_dummy_prefix=False))
    with pytest.raises(ConfigError, match="its first word begins otherwise than the next: give one of characters"):
        make_spelling(tokenizers["gpt2"], bare)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_tokens_are_their_text(tokenizers, sentences, kind):
    tokenizer = tokenizers[kind]
    for text in sentences[:40]:
        content = b"".join(map(tokenizer.bytes_of, tokenizer.encode(text)[0]))
        assert content.decode() == f" {text}"
