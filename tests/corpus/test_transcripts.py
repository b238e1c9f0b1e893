"""Transcripts: what is said of them, cleaners, non-linguistic symbols; the same text in every stage."""

import pytest
from made_tokenizers import save_hugging_face
from test_kaldi import make
from tokenizers import normalizers

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus import kaldi, transcripts
from espnet_speechllm_xl.corpus.ctm import read_ctm
from espnet_speechllm_xl.corpus.dump import format_dir
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.model.alignment import from_word_times
from espnet_speechllm_xl.tokenization import load_tokenizer, normalise, word_spans

TEXTS = {
    "u1": "ada <noise> sees bob",
    "u2": "bob (laughs) sees 2 boats <noise>",
    "u3": "Ada sees [breath] ada",
    "u4": "ADA",
    "u5": "a\u0301 \u200bbob",
    "u6": "",
}


def test_what_stands_out_is_listed():
    tags, digits, cases, seldom = transcripts.remarks("text", TEXTS, rare=3)
    assert tags.startswith("text: tags in 3 of 6 utterances (first 'u1'): <noise> 2, (laughs) 1, [breath] 1; --nlsyms")
    assert digits.startswith("text: digits in 1 of 6 utterances (first 'u2'); ")
    listed = "lower case 3 (first 'u1'), UPPER CASE 1 (first 'u4'), Both Cases 1 (first 'u3')"
    assert cases == f"text: utterances in several cases: {listed}"
    # The letters of tags do not count; the accent is part of its letter.
    few = "'2' 1, 'D' 1, 't' 1, 'á' 1, U+200B 1"
    assert seldom == f"text: 5 of 12 symbols occur fewer than 3 times: {few}"


def test_nothing_is_said_of_a_plain_set():
    assert transcripts.remarks("text", {f"u{i}": "it's a plain set" for i in range(9)}) == []
    assert transcripts.remarks("text", {f"u{i}": "漢字" for i in range(9)}) == []
    assert transcripts.remarks("text", {}) == []


def test_symbols_of_ones_own_are_no_finding():
    (line,) = transcripts.remarks("text", {"u1": "a <noise> (laughs)", "u2": "a <noise>"}, 1, ["<noise>"])
    assert "tags in 1 of 2 utterances (first 'u1'): (laughs) 1;" in line


def test_long_lists_are_cut():
    (line,) = transcripts.remarks("text", {"u": "".join(map(chr, range(0x4E00, 0x4E00 + 500)))})
    assert "500 of 500 symbols" in line and line.endswith("'\u4e09' 1 and 490 more")


@pytest.mark.parametrize(
    "first, second, differ",
    [
        ("ada sees", "ADA SEES", True),
        ("Ada sees", "ada sees", True),
        ("ada sees <NOISE>", "bob <noise>", False),
        ("ada", "42", False),
        ("漢字", "ADA", False),
    ],
)
def test_another_case_than_that_of_the_first_set(first, second, differ):
    said = transcripts.case_differences({"train": {"u": first}, "dev": {"v": second}, "test": {"w": first}})
    assert [line.split(" is in ")[0] for line in said] == ["dev"] * differ


# ---- cleaners


def test_cleaners_are_applied_one_after_the_other_and_leave_symbols_alone():
    clean = transcripts.cleaner("upper lower", ["<Noise>", "(Laughs)"])
    assert clean("Ada <Noise>  SEES(Laughs) <Other>") == "ada <Noise> sees (Laughs) <other>"
    assert transcripts.cleaner("", [])(" as  it is ") == transcripts.cleaner("none", [])(" as  it is ") == " as  it is "


def test_espnets_cleaners():
    pytest.importorskip("tacotron_cleaner")
    clean = transcripts.cleaner("tacotron", ["<noise>"])
    assert clean("Dr. Ada paid $5 <noise> twice") == "DOCTOR ADA PAID FIVE DOLLARS <noise> TWICE"
    assert transcripts.cleaner("tacotron lower", [])("$5") == "five dollars"


@pytest.mark.parametrize("name", ["lowr", "vietnamese"])
def test_a_cleaner_that_is_not_there_is_one_line(name):
    with pytest.raises(UserError, match=f"^--cleaner {name}: .* give lower, upper, or one of ESPnet's") as caught:
        transcripts.cleaner(name, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "is no file"),
        (b"\n\n", "holds no symbol"),
        (b"<noise>\nbig noise\n", "line 2: 'big noise' holds a blank"),
        (b"<noise>\n\xe9\n", "line 2: bytes that are no UTF-8"),
    ],
)
def test_bad_files_of_symbols(tmp_path, content, says):
    if content is not None:
        (tmp_path / "nlsyms").write_bytes(content)
    with pytest.raises(UserError, match=says):
        transcripts.read_symbols(str(tmp_path / "nlsyms"))


# ---- the commands


def table(path, texts):
    kaldi.write_table(path, texts)
    return str(path)


def test_check_lists_what_stands_out_and_compares_the_sets(tmp_path, capsys):
    train, dev = make(tmp_path / "train", {f"a-{i}": 0.2 for i in range(3)}), make(tmp_path / "dev", {"b-1": 0.2})
    kaldi.write_table(dev / "text", {"b-1": "word 1 <sil>"})
    assert cli.main(["data", "check", str(train), str(dev)]) == 0
    out = capsys.readouterr().out
    assert f"{train}: good\n{train}/text: digits in 3 of 3 utterances (first 'a-0')" in out
    assert f"{dev}: good\n{dev}/text: tags in 1 of 1 utterances (first 'b-1'): <sil> 1;" in out
    assert out.splitlines()[-1].startswith(f"{dev}/text is in lower case, {train}/text in UPPER CASE: ")
    assert cli.main(["data", "check", str(train), str(dev), "--rare", "0"]) == 0
    assert capsys.readouterr().out == f"{train}: good\n{dev}: good\n"
    (dev / "utt2spk").unlink()
    assert cli.main(["data", "check", str(dev), str(train)]) == 1  # the last one is good


def test_tokens_say_what_the_other_sets_lack(tmp_path, capsys):
    train = table(tmp_path / "train", {f"u{i}": "ada sees bob" for i in range(9)})
    dev = table(tmp_path / "dev", {"v1": "ADA sees \u00df", "v2": "ada"})
    options = ["--text", train, "--out", str(tmp_path / "out"), "--type", "char", "--others", dev, str(tmp_path / "no")]
    assert cli.main(["tokens", *options]) == 0
    _, said = capsys.readouterr().out.splitlines()
    assert said == (
        f"{dev}: the tokenizer has no token for 'A' 2, 'D' 1, '\u00df' 1, in 1 of 2 utterances (first 'v1')"
    )


@pytest.mark.parametrize(
    "normalizer, text, says",
    [
        (
            None,
            "Ada sees \u00df",
            "the tokenizer has no token for 'A' 1, '\u00df' 1, in 1 of 2 utterances (first 'u2')",
        ),
        (
            normalizers.Replace("thanks", "thanks thanks"),
            "ada thanks",
            "1 of 2 transcripts come back otherwise from their tokens, first 'u2': 'ada thanks' as "
            "'ada thanks thanks'; the difference counts as errors",
        ),
        (normalizers.Lowercase(), "Ada sees", None),  # score then compares without regard to case
    ],
    ids=["unknown", "changed", "lower"],
)
def test_tokens_say_what_a_hugging_face_tokenizer_loses(tmp_path, capsys, sentences, normalizer, text, says):
    save_hugging_face(tmp_path / "hf", sentences, False, unknown=None, normalizer=normalizer)
    train = table(tmp_path / "train", {"u1": "ada sees", "u2": text})
    options = ["--text", train, "--out", str(tmp_path / "out"), "--type", "hf", "--hf", str(tmp_path / "hf")]
    assert cli.main(["tokens", *options, "--rare", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ([f"{train}: {says}"] if says else [])


@pytest.mark.parametrize("kind", ["char", "bpe", "unigram"])
def test_symbols_are_one_token_each_also_those_of_no_training_text(tmp_path, sentences, kind):
    train = table(tmp_path / "train", {f"u{i}": f"{line} <noise> <unk>" for i, line in enumerate(sentences)})
    (tmp_path / "nlsyms").write_text("<noise>\n(laughs)\n<unk>\n")
    options = ["--text", train, "--out", str(tmp_path / "out"), "--type", kind, "--vocab-size", "40"]
    assert cli.main(["tokens", *options, "--nlsyms", str(tmp_path / "nlsyms")]) == 0
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer.model")
    text = "ada (laughs) <unk> sees <noise>"
    ids, ends = tokenizer.encode(text)
    assert [piece for piece in (tokenizer.pieces[one] for one in ids) if piece[0] in "<("] == [
        "(laughs)",
        "<unk>",
        "<noise>",
    ]
    assert tokenizer.decode(ids) == text and tokenizer.unknown(text) == "" and ends == sorted(ends)
    assert [word for word, _, _ in word_spans(tokenizer, ids)] == text.split()


def test_a_hugging_face_tokenizer_must_have_the_symbols(tmp_path, capsys, sentences):
    save_hugging_face(tmp_path / "hf", sentences, True)
    train = table(tmp_path / "train", {"u1": "ada sees"})
    (tmp_path / "nlsyms").write_text("<noise>\n")
    options = ["--text", train, "--out", str(tmp_path / "out"), "--type", "hf", "--hf", str(tmp_path / "hf")]
    assert cli.main(["tokens", *options, "--nlsyms", str(tmp_path / "nlsyms")]) == 2
    assert "has no token '<noise>' of --nlsyms: add it there" in capsys.readouterr().err


def test_the_dump_holds_the_cleaned_text_in_all_that_stages_read(tmp_path, capsys):
    """Tokens, alignment by word times, and references are of one text; what is cleaned away wholly is empty text."""
    source = make(tmp_path / "d", {"ann-1": 0.4, "ann-2": 0.4}, ctm=True)
    (tmp_path / "nlsyms").write_text("<NOISE>\n")
    kaldi.write_table(source / "text", {"ann-1": "WORD0 <NOISE> END", "ann-2": "WORD1 END"})
    words = read_ctm(source / "ref.ctm")
    (source / "ref.ctm").write_text(
        (source / "ref.ctm").read_text().replace("ann-1 1 0.250", "ann-1 1 0.200 0.050 <NOISE>\nann-1 1 0.250")
    )
    options = ["--data", str(source), "--dump", str(tmp_path / "o"), "--cleaner", "lower"]
    assert cli.main(["data", "format", *options, "--nlsyms", str(tmp_path / "nlsyms")]) == 0
    text = kaldi.read_table(tmp_path / "o/text")
    assert text == {"ann-1": "word0 <NOISE> end", "ann-2": "word1 end"}
    timed = read_ctm(tmp_path / "o/ref.ctm")
    assert [word.text for word in timed["ann-1"]] == text["ann-1"].split()
    assert [word.end for word in timed["ann-2"]] == [word.end for word in words["ann-2"]]
    assert all(len(from_word_times(normalise(text[name]), timed[name])[0]) == len(text[name]) for name in text)
    assert format_dir(source, tmp_path / "o").reused == 2  # other text, the same audio
    assert kaldi.read_table(tmp_path / "o/text")["ann-2"] == "WORD1 END"
    report = format_dir(source, tmp_path / "o", clean=lambda text: "" if "NOISE" in text else text)
    assert report.skipped == {"empty-text": 1}


def test_a_word_that_becomes_several_gives_each_its_times(tmp_path):
    source = make(tmp_path / "d", {"ann-1": 0.4}, ctm=True)
    format_dir(source, tmp_path / "o", clean=lambda text: text.replace("WORD0", "one two"))
    assert [(word.text, word.start, word.end) for word in read_ctm(tmp_path / "o/ref.ctm")["ann-1"]] == [
        ("one", 0.1, 0.2),
        ("two", 0.1, 0.2),
        ("END", 0.25, 0.3),
    ]


WRITTEN = {"ann-1": "It was 1998, Ann.", "ann-2": "Dr. Who?"}
READING = {"ann-1": "IT WAS NINETEEN NINETY EIGHT ANN", "ann-2": "doctor who"}


def formatted(source, out, *options):
    """The tables ``text`` and ``text_spoken`` of a dump; None for one that is not there."""
    assert cli.main(["data", "format", "--data", str(source), "--dump", str(out), "--nj", "1", *options]) == 0
    tables = (out / name for name in ("text", "text_spoken"))
    return [kaldi.read_table(path) if path.exists() else None for path in tables]


def test_written_text_and_what_is_spoken(tmp_path, capsys):
    source = make(tmp_path / "d", {"ann-1": 0.4, "ann-2": 0.5})
    kaldi.write_table(source / "text", WRITTEN)
    of_text = {"ann-1": "it was 1998 ann", "ann-2": "dr who"}
    of_reading = {name: text.lower() for name, text in READING.items()}
    out = tmp_path / "o"
    assert formatted(source, out, "--text", "written") == [WRITTEN, of_text]
    assert formatted(source, out) == [WRITTEN, None], "nothing of an earlier run stays"
    assert formatted(source, out, "--text", "plain") == [of_text, None]
    kaldi.write_table(source / "text_spoken", READING)
    assert cli.main(["data", "check", str(source)]) == 0
    assert formatted(source, out, "--text", "plain") == [of_reading, None]
    assert formatted(source, out) == [WRITTEN, None]
    assert formatted(source, out, "--text", "written") == [WRITTEN, of_reading]
    # It goes with its utterance.
    assert cli.main(["data", "perturb", "--data", str(source), "--out", str(tmp_path / "sp"), "--factors", "1.1"]) == 0
    assert kaldi.read_table(tmp_path / "sp/text_spoken")["sp1.1-ann-2"] == "doctor who"
    assert cli.main(["data", "subset", "--data", str(out), "--out", str(tmp_path / "first"), "--first", "1"]) == 0
    assert kaldi.read_table(tmp_path / "first/text_spoken") == {"ann-1": of_reading["ann-1"]}
    assert cli.main(["data", "longform", "--dump", str(out), "--out", str(tmp_path / "x2"), "--factor", "2"]) == 0
    assert kaldi.read_table(tmp_path / "x2/text_spoken") == {"ann-1-x2": " ".join(of_reading.values())}
    kaldi.write_table(source / "text_spoken", {**READING, "ann-2": "..."})
    assert formatted(source, out, "--text", "written")[1] == {"ann-1": of_reading["ann-1"]}
    assert kaldi.read_table(out / "skipped") == {"ann-2": "empty-text nothing of the text is spoken"}
    kaldi.write_table(source / "text_spoken", {"ann-1": READING["ann-1"]})
    capsys.readouterr()
    assert cli.main(["data", "format", "--data", str(source), "--dump", str(out), "--text", "written"]) == 1
    assert f"{source / 'text_spoken'} lacks 'ann-2' (1 in all): write there what is said" in capsys.readouterr().err
