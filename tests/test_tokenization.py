"""Tokenizers: offsets, unknown symbols, decoding, words of tokens; real models trained on two hundred sentences."""

import itertools
import json
import random
import unicodedata

import pytest
from made_tokenizers import KINDS, save_hugging_face
from tokenizers import normalizers

from espnet_speechllm_xl.corpus.ctm import joined_text
from espnet_speechllm_xl.decoding.results import timed_words
from espnet_speechllm_xl.model.alignment import token_ends, whole_word_ends
from espnet_speechllm_xl.tokenization import (
    WORD_START,
    TokenizerError,
    bytes_begin_word,
    load_tokenizer,
    normalise,
    pieces_of,
    plain_text,
    word_spans,
    words_of,
)


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

        def marks_space(self, token):
            return token == 0

        starts_word = marks_space

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


# --- scripts without spaces ---

UNSPACED = [
    "今天天气很好我们去公园散步吧", "我 用 iPhone 给朋友打电话。", "今天 天气 很 好", "二〇二四年",
    "きょうはいい天気ですね", "ラーメンを食べに行こう", "時々雨が降る", "東京タワーで会った",
    "วันนี้อากาศดีมาก", "เราไปเดินเล่น ในสวนกันเถอะ", "นี่คือน้ำ", "ສະບາຍດີ", "ខ្ញុំស្រលាញ់ភាសាខ្មែរ", "မြန်မာစာ",
    "မန္တလေး အင်္ဂလိပ်", "เล่น ไหม", "ໄປເມືອງ",
    "call 小明 at nine", "今天 meeting 几点开始",
]  # fmt: skip


@pytest.mark.parametrize(
    "text, words",
    [
        ("今天天气", "今|天|天|气"),
        ("我 用 iPhone 手机。", "我|用|iPhone|手|机。"),
        ("用iPhone打", "用iPhone|打"),
        ("二〇二四年", "二|〇|二|四|年"),
        ("第12号", "第12|号"),
        ("ラーメン時々", "ラー|メ|ン|時々"),
        ("きょうはちょっとｼｬﾂ", "きょ|う|は|ちょっ|と|ｼｬ|ﾂ"),
        ("นี่คือน้ำ มาก", "นี่|คื|อ|น้ำ|มา|ก"),
        ("เราไปเดินเล่น", "เรา|ไป|เดิ|น|เล่|น"),  # vowels written before their consonant
        ("ฯลฯ แม่น้ำ", "ฯ|ลฯ|แม่|น้ำ"),
        ("เเม่", "เเม่"),  # two for one
        ("ໄປເມືອງລາວ ບຽ", "ໄປ|ເມື|ອ|ງ|ລາ|ວ|ບຽ"),
        ("ᦶᦎᦺᦑ ᦀᦱᧃ", "ᦶᦎ|ᦺᦑ|ᦀᦱᧃ"),  # New Tai Lue
        ("ꪵꪀ ꪼꪕ ꪀꪱ", "ꪵꪀ|ꪼꪕ|ꪀꪱ"),  # Tai Viet
        ("ᥖᥭᥰ ᥘᥫᥴ", "ᥖᥭᥰ|ᥘᥫᥴ"),  # Tai Le
        ("ខ្ញុំស្រី សាស្ត្រា", "ខ្ញុំ|ស្រី|សា|ស្ត្រា"),  # letters below others
        ("မန္တလေး အင်္ဂလိပ် မြန်မာ", "မ|န္တ|လေး|အ|င်္ဂ|လိ|ပ်|မြ|န်|မာ"),  # a killed one (asat) is not below another
        ("ᨧᩥ᩠᩵ᨦ ᨠ᩠᩶ᩃ", "ᨧᩥ᩠᩵ᨦ|ᨠ᩠᩶ᩃ"),  # a tone mark between, where canonical order puts it
        ("ᬓᬸᬢ᭄ᬓ ꦏꦸꦠ꧀ꦏ", "ᬓᬸ|ᬢ᭄ᬓ|ꦏꦸ|ꦠ꧀ꦏ"),
        ("ꦠ꧀\u200cꦏ", "ꦠ꧀\u200c|ꦏ"),  # the non-joiner parts
        ("東\u2060京 ក\u200dខ 葛󠄀城", "東\u2060京|ក\u200dខ|葛󠄀|城"),
        ("한국 사람", "한국|사람"),
        ("नमस्ते दुनिया", "नमस्ते|दुनिया"),
        ("it's well-known, no?", "it's|well-known,|no?"),
        ("  a \t b ", "a|b"),
        ("", ""),
    ],
)
def test_words_of_the_writing_system(text, words):
    assert words_of(text) == list(filter(None, words.split("|")))


@pytest.fixture(scope="module")
def unspaced_tokenizers(tmp_path_factory):
    from espnet_speechllm_xl.bin import cli

    out, made = tmp_path_factory.mktemp("unspaced"), {}
    lines = [f"{index} {text}\n" for index, text in enumerate(UNSPACED)]
    (out / "text").write_text("".join(lines), encoding="utf-8")
    for kind, size in (("char", 1), ("bpe", 200)):
        options = ["--text", str(out / "text"), "--out", str(out / kind), "--type", kind, "--vocab-size", str(size)]
        assert cli.main(["tokens", *options]) == 0
        made[kind] = load_tokenizer(out / kind / "tokenizer.model")
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(UNSPACED[:8]),  # the letters of the others are written as bytes
        model_prefix=str(out / "bytes"),
        model_type="bpe",
        vocab_size=330,
        normalization_rule_name="identity",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    made["bytes"] = load_tokenizer(out / "bytes.model")
    made["gpt2"] = load_tokenizer(save_hugging_face(out / "gpt2", UNSPACED, True))
    made["metaspace"] = load_tokenizer(save_hugging_face(out / "metaspace", UNSPACED * 3, False))
    return made


ALL = ["char", "bpe", "bytes", "gpt2", "metaspace"]


@pytest.mark.parametrize("kind", ALL)
def test_words_of_tokens_without_spaces(unspaced_tokenizers, kind):
    """Joined, they give the text; of characters they are those of the text, of longer tokens fewer."""
    tokenizer = unspaced_tokenizers[kind]
    for text in filter(lambda text: not tokenizer.unknown(text), UNSPACED):
        tokens, _ = tokenizer.encode(text)
        words = timed_words(tokenizer, tokens, [0.0] * len(tokens), [(0, 1)] * len(tokens))
        assert joined_text(words) == tokenizer.decode(tokens) == text
        spans = [(first, last) for _, first, last in word_spans(tokenizer, tokens)]
        assert spans[0][0] == 0 and spans[-1][1] == len(tokens) - 1
        assert all(first == before + 1 for (_, before), (first, _) in itertools.pairwise(spans))
        if kind == "char":
            assert [word.text for word in words] == words_of(text)
        elif kind != "bytes" or text in UNSPACED[:8]:  # a single byte does not tell Thai from Hindi
            assert len(words) >= len(words_of(text)) / 6, "not one word for all"


@pytest.mark.parametrize("kind", ALL)
def test_whole_words_in_chunks_begin_as_words_do(unspaced_tokenizers, kind):
    """Wherever the chunks end, the search may write what training puts first into one."""
    tokenizer, rng, firsts = unspaced_tokenizers[kind], random.Random(0), 0
    for text in UNSPACED * 5:
        tokens, places = tokenizer.encode(text)
        ends = token_ends(sorted(rng.randrange(100) for _ in text), places)
        whole = whole_word_ends(ends, tokens, tokenizer)
        assert all(late >= early for early, late in zip(ends, whole, strict=True)) and whole[-1] == ends[-1]
        first = [token for token, (a, b) in zip(tokens[1:], itertools.pairwise(whole), strict=True) if b > a]
        assert all(map(tokenizer.starts_word, first))
        firsts += len(first)
    assert firsts > 100


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_latin_letters_begin_with_a_space(tokenizers, sentences, kind):
    tokenizer = tokenizers[kind]
    for token in {token for text in [*sentences, "ça été", "où?"] for token in tokenizer.encode(text)[0]}:
        assert tokenizer.starts_word(token) == tokenizer.pieces[token].startswith((WORD_START, "Ġ", " "))


@pytest.mark.parametrize(
    "start, begins",
    [
        ("e4", True),  # Han, whatever follows
        ("e38182", True),
        ("e3", True),
        ("e0b8", True),  # Thai
        ("e0b8b1", False),  # a Thai mark
        ("e0", False),  # Thai or Hindi
        ("f0a0", True),
        ("f09f98", False),  # a face
        ("c3a9", False),
        ("61", False),
        ("b8", False),  # goes on
        ("ff", False),
    ],
)
def test_parts_of_characters(start, begins):
    assert bytes_begin_word(bytes.fromhex(start)) == begins


@pytest.mark.parametrize("kind, unknown", [("bpe", "ßQ"), ("unigram", "ßQ"), ("char", "ßQ"), ("metaspace", "ßQ")])
def test_unknown_symbols_are_named(tokenizers, kind, unknown):
    tokenizer = tokenizers[kind]
    assert sorted(tokenizer.unknown("ada ß sees Q")) == sorted(unknown)
    assert tokenizer.unknown("ada sees the old piano") == ""


@pytest.mark.parametrize(
    "unknown, normalizer, lost",
    [
        ("<unk>", None, "AßQQ"),
        (None, None, "AßQQ"),  # such a tokenizer leaves them out without a token in their place
        (None, normalizers.Lowercase(), "ß"),  # a small letter stands for the capital
    ],
    ids=["sign", "left out", "small"],
)
def test_what_a_tokenizer_leaves_out_is_unknown(tmp_path, sentences, unknown, normalizer, lost):
    tokenizer = load_tokenizer(save_hugging_face(tmp_path, sentences, False, unknown, normalizer))
    assert tokenizer.unknown("Ada ß sees Q aQ") == lost
    assert tokenizer.unknown("ada sees the old piano") == ""


def test_the_sign_of_an_unknown_token_may_itself_be_unknown(tokenizers):
    assert tokenizers["char"].unknown("ada \u2047 sees \u2047") == "\u2047\u2047"


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
    from espnet_speechllm_xl.bin import cli

    lines = [f"u{index} a b c ab bc abc\n" for index in range(20)]
    (tmp_path / "text").write_text("".join([*lines, f"v {'ab ' * 2000}\u00df\n"]), encoding="utf-8")
    options = ["--text", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--type", kind, "--vocab-size", "8"]
    assert cli.main(["tokens", *options]) == 0
    assert load_tokenizer(tmp_path / "out/tokenizer.model").unknown("a \u00df") == ""


def test_transcripts_of_a_digit_each(tmp_path):
    from espnet_speechllm_xl.bin import cli

    (tmp_path / "text").write_text("u1 zero\nu2 one\n")
    options = ["--text", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--type", "char"]
    assert cli.main(["tokens", *options]) == 0
    assert load_tokenizer(tmp_path / "out/tokenizer.model").unknown("zero one") == ""


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_name_of_the_unknown_symbol_may_be_a_word(tmp_path, kind):
    from espnet_speechllm_xl.bin import cli

    lines = [f"u{index} ab <unk> bc \u2047\n" for index in range(9)]
    (tmp_path / "text").write_text("".join(lines), encoding="utf-8")
    options = ["--text", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--type", kind, "--vocab-size", "14"]
    assert cli.main(["tokens", *options]) == 0
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer.model")
    ids, _ = tokenizer.encode("ab <unk> bc")
    assert tokenizer.unknown("ab <unk> bc \u2047") == "" and tokenizer.decode(ids) == "ab <unk> bc"


def test_a_hugging_face_tokenizer_is_copied(tmp_path, sentences):
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from espnet_speechllm_xl.bin import cli
    from espnet_speechllm_xl.training.checks import read_token_list

    tokenizer = AutoTokenizer.from_pretrained(save_hugging_face(tmp_path / "made", sentences, True))
    tokenizer.add_tokens([AddedToken("\n"), AddedToken("\r\n")])
    tokenizer.save_pretrained(tmp_path / "hf")
    for name in ("model-1.safetensors", "model.gguf", "original/consolidated.00.pth"):  # weights stay where they are
        (tmp_path / "hf" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "hf" / name).touch()
    (tmp_path / "text").write_text("u1 a\n")
    out = tmp_path / "out"
    for source in (tmp_path / "hf", out / "tokenizer"):  # the second is what the first left
        options = ["--text", str(tmp_path / "text"), "--out", str(out), "--type", "hf", "--hf", str(source)]
        assert cli.main(["tokens", *options]) == 0
        assert (
            len(read_token_list(out / "tokens.txt")) == len(tokenizer) == len(load_tokenizer(out / "tokenizer").pieces)
        )
    kept = sorted(path.name for path in (out / "tokenizer").iterdir())
    copied = [path.name for path in (tmp_path / "hf").iterdir() if path.suffix in (".json", ".jinja")]
    assert kept == sorted([*copied, "characters.txt"])
    assert load_tokenizer(out / "tokenizer").characters == {"a"} and load_tokenizer(tmp_path / "hf").characters is None
    options = ["--text", str(tmp_path / "text"), "--out", str(out), "--type", "hf", "--hf", str(tmp_path / "text")]
    assert cli.main(["tokens", *options]) == 2


@pytest.mark.parametrize("byte_level", [True, False])
def test_a_hugging_face_tokenizer_takes_capitals_as_small_letters(tmp_path, sentences, byte_level, capsys):
    from espnet_speechllm_xl.bin import cli

    source, out = save_hugging_face(tmp_path / "hf", sentences, byte_level), tmp_path / "out"
    settings = json.loads((source / "tokenizer_config.json").read_text())
    if byte_level:
        settings["tokenizer_class"] = "GPT2Tokenizer"  # which has no normaliser
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "text").write_text(f"u1 {sentences[0].upper()}\n")
    options = ["--text", str(tmp_path / "text"), "--out", str(out), "--type", "hf", "--lower-case"]
    for place in (source, out / "tokenizer"):  # the second is what the first left
        assert cli.main(["tokens", *options, "--hf", str(place)]) == 0
        plain, made = load_tokenizer(source), load_tokenizer(out / "tokenizer")
        assert (plain.lower_case, made.lower_case) == (False, True) and made.pieces == plain.pieces
        for text in sentences[:20]:
            assert made.encode(text.upper()) == made.encode(text) == plain.encode(text)
            assert made.decode(made.encode(text.upper())[0]) == text
        assert made.unknown(sentences[0].upper()) == "" and made.characters == set(sentences[0])
    said = capsys.readouterr()
    assert "come back otherwise" not in said.out and "no token for" not in said.out
    assert cli.main(["tokens", *options[:-3], "--type", "char", "--lower-case"]) == 2
    assert "--lower-case is of --type hf" in capsys.readouterr().err


def test_transcripts_that_cannot_be_read_are_one_line(tmp_path, capsys):
    from espnet_speechllm_xl.bin import cli

    (tmp_path / "latin1").write_bytes("u1 caf\xe9\n".encode("latin-1"))
    (tmp_path / "empty").write_text("u1\n")
    for name, says in (
        ("absent", "absent does not exist"),
        ("latin1", "latin1: bytes that are no UTF-8 (line 1): convert the file"),
        ("empty", "no transcr"),
    ):
        assert cli.main(["tokens", "--text", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "text, plain",
    [
        ("In 1998, Dr. Smith paid $5.", "in 1998 dr smith paid 5"),
        ("Don’t “stop” — the 'debtors' are twenty-one!", "don't stop the debtors are twenty one"),
        ("e.g. 1,000 O'Neil's", "e g 1 000 o'neil's"),
        ("ÉTÉ STRASSE Straße", "été strasse strasse"),
        ("हिन्दी में।", "हिन्दी में"),
        ("今天。我用5个PC", "今天 我用5个pc"),
        ("น้ำมา", "น้ำมา"),
        ("?! …", ""),
        ("", ""),
    ],
)
def test_plain_text(text, plain):
    assert plain_text(text) == plain
    assert plain_text(plain) == plain, "plain text stays as it is"


def test_pieces_have_their_places():
    assert pieces_of("“Don't,” 2nd") == [(1, 6, "don't"), (9, 12, "2nd")]
    assert pieces_of("我5个ab人") == [
        *[(0, 1, "我"), (1, 2, "5"), (2, 3, "个"), (3, 5, "ab"), (5, 6, "人")]
    ]
    assert pieces_of("きゃー") == [(0, 3, "きゃー")], "one syllable"


@pytest.mark.parametrize("text", UNSPACED)
def test_plain_text_of_scripts_without_spaces(text):
    """Nothing is lost but punctuation and signs."""
    kept = [c for c in text.casefold() if unicodedata.category(c)[0] in "LMN"]
    assert [c for c in plain_text(text) if unicodedata.category(c)[0] in "LMN"] == kept
