"""Tokenizers: offsets, unknown symbols, decoding, words of tokens; real models trained on two hundred sentences."""

import pytest

from espnet_speechllm_xl.text import WORD_START, TokenizerError, load_tokenizer, normalise, word_spans


def save_hugging_face(path, sentences, byte_level):
    """A small fast tokenizer (byte-level BPE as GPT-2's, or BPE with metaspace and an unknown token) in ``path``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        options = {}
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False)
        options = {"unk_token": "<unk>"}
    tokenizer.train_from_iterator(sentences, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, sentences, sentencepiece_model):
    return {
        "bpe": load_tokenizer(sentencepiece_model("bpe", 60)),
        "unigram": load_tokenizer(sentencepiece_model("unigram", 60)),
        "char": load_tokenizer(sentencepiece_model("char", 60)),
        "bytes": load_tokenizer(sentencepiece_model("bpe", 320, byte_fallback=True)),
        "gpt2": load_tokenizer(save_hugging_face(tmp_path_factory.mktemp("gpt2"), sentences, True)),
        "metaspace": load_tokenizer(save_hugging_face(tmp_path_factory.mktemp("metaspace"), sentences, False)),
    }


KINDS = ["bpe", "unigram", "char", "bytes", "gpt2", "metaspace"]


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_where_the_decoded_text_stands(tokenizers, sentences, kind):
    tokenizer = tokenizers[kind]
    for text in sentences[:50]:
        ids, ends = tokenizer.encode(text)
        assert len(ids) == len(ends) and ends[-1] == len(text) and ends == sorted(ends)
        assert tokenizer.decode(ids) == text
        for count in range(1, len(ids) + 1):
            # A lone word mark at the very start belongs to the character after it.
            if tokenizer.decode(ids[:count]) or count > 1:
                assert text[: ends[count - 1]].strip() == tokenizer.decode(ids[:count]).strip()
        assert all(0 <= token < len(tokenizer.pieces) for token in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_tokens(tokenizers, sentences, kind):
    tokenizer = tokenizers[kind]
    for text in sentences[:50]:
        ids, ends = tokenizer.encode(text)
        spans = word_spans(tokenizer, ids)
        assert [word for word, _, _ in spans] == text.split()
        position = 0
        for word, first, last in spans:
            position = text.index(word, position) + len(word)
            assert ends[last] == position and tokenizer.decode(ids[first : last + 1]).strip() == word
        assert [first for _, first, _ in spans][1:] == [last + 1 for _, _, last in spans][:-1]
        assert spans[-1][2] == len(ids) - 1


def test_words_are_composed_as_the_text_is():
    class Letters:
        """Tokens are characters; a combining mark is one of its own."""

        pieces = ("\u2581", "b", "e", "\u0301")

        def decode(self, ids):
            return "".join(self.pieces[one] for one in ids).replace("\u2581", " ")

        def starts_word(self, token):
            return token == 0

    assert word_spans(Letters(), [0, 1, 2, 3, 0, 1]) == [("b\u00e9", 0, 3), ("b", 4, 5)]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_text(tokenizers, kind):
    tokenizer = tokenizers[kind]
    assert tuple(map(list, tokenizer.encode(""))) == ([], [])
    assert tokenizer.decode([]) == "" and tokenizer.unknown("") == "" and word_spans(tokenizer, []) == []


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_two_texts_are_those_of_both(tokenizers, sentences, kind):
    """Training joins utterances: the space between them must not get lost."""
    tokenizer = tokenizers[kind]
    for first, second in zip(sentences[:20], sentences[20:40], strict=True):
        (one, _), (other, _) = map(tokenizer.encode, (first, second))
        assert tokenizer.decode([*one, *other]) == f"{first} {second}"
        assert tokenizer.encode(f"{first} {second}")[0] == [*one, *other]
        assert tokenizer.starts_word(one[0]) and tokenizer.starts_word(other[0])


def test_white_space_inside_a_token_parts_words(tmp_path, sentences):
    """Byte-level tokens as a pretrained model may write them."""
    save_hugging_face(tmp_path, sentences, True)
    tokenizer = load_tokenizer(tmp_path)
    ada, line, letter = tokenizer.encode("ada")[0], tokenizer.pieces.index("Ċ"), tokenizer.pieces.index("s")
    tokens = [*ada, line, letter]
    assert tokenizer.decode(tokens) == "ada\ns"
    assert word_spans(tokenizer, tokens) == [("ada", 0, len(ada) + 1), ("s", 0, len(ada) + 1)]


def test_words_that_begin_in_the_middle(tokenizers):
    """A hypothesis need not begin with a word mark."""
    tokenizer = tokenizers["char"]
    ids, _ = tokenizer.encode("ada sees")
    assert [span[0] for span in word_spans(tokenizer, ids[2:])] == ["da", "sees"]
    lonely = ids[:1]
    assert tokenizer.starts_word(lonely[0]) and word_spans(tokenizer, lonely) == []


@pytest.mark.parametrize("kind, unknown", [("bpe", "ßQ"), ("unigram", "ßQ"), ("char", "ßQ"), ("metaspace", "ßQ")])
def test_unknown_symbols_are_named(tokenizers, kind, unknown):
    tokenizer = tokenizers[kind]
    assert sorted(tokenizer.unknown("ada ß sees Q")) == sorted(unknown)
    assert tokenizer.unknown("ada sees the old piano") == ""


@pytest.mark.parametrize("kind", ["bytes", "gpt2"])
@pytest.mark.parametrize("text", ["ada sees €", "€uro sees", "ada 漢字 sees ß", "e😀e"])
def test_bytes_inside_a_character_end_with_it(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    ids, ends = tokenizer.encode(text)
    assert tokenizer.unknown(text) == "" and tokenizer.decode(ids) == text
    assert ends == sorted(ends) and ends[-1] == len(text)
    # A lone word mark at the very start shares the first character's end.
    ends = [end for token, end in zip(ids, ends, strict=True) if tokenizer.pieces[token] not in (WORD_START, "Ġ")]
    for index, character in enumerate(text):
        if ord(character) > 127:
            assert ends.count(index + 1) == len(character.encode()), "one token a byte, all with the character's end"


def test_normalise():
    assert normalise("  cafe\u0301 \t a\u00a0b \n") == "caf\u00e9 a b"
    assert normalise("") == "" and normalise(" \t") == ""


def test_missing_and_damaged_tokenizers(tmp_path):
    with pytest.raises(TokenizerError, match="absent.model does not exist: run the tokens stage"):
        load_tokenizer(tmp_path / "absent.model")
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match="broken.model is not a sentencepiece model"):
        load_tokenizer(tmp_path / "broken.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match="empty.model is not a sentencepiece model"):
        load_tokenizer(tmp_path / "empty.model")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(TokenizerError, match="nothing holds no Hugging Face tokenizer: .+"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text('{"version": "1.0", "trunca')
    with pytest.raises(TokenizerError, match="damaged holds no Hugging Face tokenizer"):
        load_tokenizer(tmp_path / "damaged")


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"null", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b'{"added_tokens": 3}']
)
def test_hugging_face_tokenizers_that_are_none(tmp_path, content):
    """The libraries raise errors of many kinds for them."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and str(caught.value).isprintable()


def test_a_hugging_face_tokenizer_without_tokens(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(TokenizerError, match="without tokens: run the tokens stage again"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_that_is_no_utf8(tmp_path, sentencepiece_model):
    content = sentencepiece_model("bpe", 60).read_bytes()
    assert content.count("\u2581the".encode()) >= 1
    (tmp_path / "odd.model").write_bytes(content.replace("\u2581the".encode(), b"\xff\xfe\xfdthe"))
    with pytest.raises(TokenizerError, match=r"odd.model is (damaged or no tokenizer|not a sentencepiece model) \("):
        load_tokenizer(tmp_path / "odd.model")


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_symbols_of_a_long_transcript_are_learnt(tmp_path, kind):
    from espnet_speechllm_xl.bin import tokens

    lines = [f"u{index} a b c ab bc abc\n" for index in range(20)]
    (tmp_path / "text").write_text("".join([*lines, f"v {'ab ' * 2000}\u00df\n"]), encoding="utf-8")
    options = ["--text", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--type", kind, "--vocab-size", "8"]
    assert tokens.main(options) == 0
    assert load_tokenizer(tmp_path / "out/tokenizer.model").unknown("a \u00df") == ""


def test_transcripts_of_a_digit_each(tmp_path):
    from espnet_speechllm_xl.bin import tokens

    (tmp_path / "text").write_text("u1 zero\nu2 one\n")
    assert tokens.main(["--text", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--type", "char"]) == 0
    assert load_tokenizer(tmp_path / "out/tokenizer.model").unknown("zero one") == ""


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_name_of_the_unknown_symbol_may_be_a_word(tmp_path, kind):
    from espnet_speechllm_xl.bin import tokens

    lines = [f"u{index} ab <unk> bc \u2047\n" for index in range(9)]
    (tmp_path / "text").write_text("".join(lines), encoding="utf-8")
    options = ["--text", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--type", kind, "--vocab-size", "14"]
    assert tokens.main(options) == 0
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer.model")
    ids, _ = tokenizer.encode("ab <unk> bc")
    assert tokenizer.unknown("ab <unk> bc \u2047") == "" and tokenizer.decode(ids) == "ab <unk> bc"


def test_a_hugging_face_tokenizer_is_copied(tmp_path, sentences):
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from espnet_speechllm_xl.bin import tokens
    from espnet_speechllm_xl.tasks.common import read_token_list

    tokenizer = AutoTokenizer.from_pretrained(save_hugging_face(tmp_path / "made", sentences, True))
    tokenizer.add_tokens([AddedToken("\n"), AddedToken("\r\n")])
    tokenizer.save_pretrained(tmp_path / "hf")
    for name in ("model-1.safetensors", "model.gguf", "original/consolidated.00.pth"):  # weights stay where they are
        (tmp_path / "hf" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "hf" / name).touch()
    (tmp_path / "text").write_text("u1 a\n")
    out = tmp_path / "out"
    for source in (tmp_path / "hf", out / "tokenizer"):  # the second is what the first left
        assert (
            tokens.main(["--text", str(tmp_path / "text"), "--out", str(out), "--type", "hf", "--hf", str(source)]) == 0
        )
        assert (
            len(read_token_list(out / "tokens.txt")) == len(tokenizer) == len(load_tokenizer(out / "tokenizer").pieces)
        )
    kept = sorted(path.name for path in (out / "tokenizer").iterdir())
    assert kept == sorted(path.name for path in (tmp_path / "hf").iterdir() if path.suffix in (".json", ".jinja"))
    options = ["--text", str(tmp_path / "text"), "--out", str(out), "--type", "hf", "--hf", str(tmp_path / "text")]
    assert tokens.main(options) == 2


def test_transcripts_that_cannot_be_read_are_one_line(tmp_path, capsys):
    from espnet_speechllm_xl.bin import tokens

    (tmp_path / "latin1").write_bytes("u1 caf\xe9\n".encode("latin-1"))
    (tmp_path / "empty").write_text("u1\n")
    for name, says in (
        ("absent", "absent does not exist"),
        ("latin1", "convert it with iconv"),
        ("empty", "no transcr"),
    ):
        assert tokens.main(["--text", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
