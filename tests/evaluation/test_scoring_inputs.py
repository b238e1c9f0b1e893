"""Sets of other toolkits, scored and compared: Kaldi text, trn, STM, CTM; without tags and case."""

import shutil
import subprocess
from pathlib import Path

import pytest

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.ctm import read_ctm
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics, scoring_inputs
from espnet_speechllm_xl.evaluation.scoring_inputs import (
    Ignored,
    read_hypotheses,
    read_reference,
    read_trn,
    speaker_of,
    trn_line,
)

SCLITE = shutil.which("sclite", path="/usr/lib/sctk/bin") or shutil.which("sclite")

# Two speakers in one recording; utterance by utterance: right; "off" lost, "please" put in; "noon" -> "moon".
TEXT = "s1-u1 turn on the lights\ns1-u2 turn off the radio\ns2-u3 meet me at noon\n"
FILES = {
    "text": TEXT,
    "utt2spk": "s1-u1 s1\ns1-u2 s1\ns2-u3 s2\n",
    "segments": "s1-u1 rec 0.5 2.5\ns1-u2 rec 3.0 5.0\ns2-u3 rec 5.0 -1\n",
    "ref.trn": "turn on the lights (s1-s1-u1)\nturn off the radio (s1-s1-u2)\nmeet me at noon (s2-s2-u3)\n",
    "ref.stm": ';; CATEGORY "0" "" ""\nrec 1 s1 0.5 2.5 <o,f0,male> turn on the lights\n'
    "rec 1 s1 3.00 5.00 <o,f0,male> turn off the radio\nrec 1 s2 5.00 9.00 <o,f0,female> meet me at noon\n",
    "ref.ctm": "".join(
        f"{name} 1 {index / 2} 0.4 {word}\n"
        for name, *words in map(str.split, TEXT.splitlines())
        for index, word in enumerate(words)
    ),
    "hyp": "s1-u1 turn on the lights\ns1-u2 turn the radio please\ns2-u3 meet me at moon\n",
    "hyp.trn": "turn on the lights\t(s1-s1-u1)\nturn the radio please\t(s1-s1-u2)\nmeet me at moon\t(s2-s2-u3)\n",
    "hyp.stm": "rec 1 s1 0.501 2.5 turn on the lights\nrec 1 s1 3.00 5.00 turn the radio please\n"
    "rec 1 s2 5.00 9.00 meet me at moon\n",
    "hyp.ctm": "s1-u1 1 0.1 0.2 turn\ns1-u1 1 0.3 0.2 on\ns1-u1 1 0.5 0.2 the\ns1-u1 1 0.9 0.5 lights 0.93\n"
    "s1-u2 1 0 0.1 <eps>\ns1-u2 1 0.1 0.2 turn\ns1-u2 1 0.4 0.2 the\ns1-u2 1 0.9 0.5 radio\ns1-u2 1 1.5 0.4 please\n"
    "s2-u3 1 0.1 0.2 meet\ns2-u3 1 0.3 0.2 me\ns2-u3 1 0.5 0.2 at\ns2-u3 1 0.9 0.5 moon\n",
    # "lights" and "turn" reach over an end of their segments; "moon" comes after the STM's last.
    "recordings.ctm": "rec A 0.6 0.2 turn\nrec A 0.9 0.2 on\nrec A 1.2 0.2 the\nrec A 2.3 0.3 lights\n"
    "rec A 2.9 0.3 turn\nrec A 3.4 0.2 the\nrec A 3.9 0.5 radio\nrec A 4.5 0.4 please\n"
    "rec A 5.1 0.2 meet\nrec A 5.3 0.2 me\nrec A 5.5 0.2 at\nrec A 9.9 0.5 moon\n",
}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "set").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("text", "utt2spk", "segments"):
        (tmp_path / "set" / name).write_text(FILES[name], encoding="utf-8")
    return tmp_path


def row(output, name="WER"):
    """The cells of a table's row behind its name."""
    *_, line = [line for line in output.splitlines() if line.startswith(f"|{name}|")]
    return line.strip("|").split("|")[1:]


@pytest.mark.parametrize("hyp", ["hyp", "hyp.trn", "hyp.stm", "hyp.ctm", "recordings.ctm"])
@pytest.mark.parametrize("ref", ["set", "text", "ref.trn", "ref.stm", "ref.ctm"])
def test_every_kind_against_every_other(place, capsys, ref, hyp):
    options = ["--ref", place / ref, "--utt2spk", place / "utt2spk", "--segments", place / "segments"]
    assert cli.main(["score", *map(str, options), "--hyp", str(place / hyp), "--out", str(place / "out")]) == 0
    # 12 words, 10 right; one substituted, one deleted, one inserted.
    assert row(capsys.readouterr().out) == ["3", "12", "83.3", "8.3", "8.3", "8.3", "25.0", "66.7"]
    assert "(s2-s2-u3)" in (place / "out/score_wer/hyp.trn").read_text(encoding="utf-8")
    assert cli.main(["compare", *map(str, options), str(place / "hyp"), "--hyp", str(place / hyp)]) == 0
    rate, *kinds, difference = row(capsys.readouterr().out, place / hyp)
    assert rate.startswith("25.0 [") and kinds == ["8.3", "8.3", "8.3"] and difference == "+0.0 [+0.0, +0.0]"


@pytest.mark.parametrize(
    "ref, hyp",
    [
        ("set", "hyp.trn"), ("set", "recordings.ctm"), ("ref.trn", "hyp"), ("ref.trn", "hyp.trn"),
        ("ref.trn", "hyp.ctm"), ("ref.stm", "hyp.stm"), ("ref.stm", "recordings.ctm"),
    ],
)  # fmt: skip
def test_what_files_say_themselves_need_not_be_given(place, capsys, ref, hyp):
    command = ["score", "--ref", place / ref, "--hyp", place / hyp, "--out", place / "out"]
    assert cli.main([*map(str, command)]) == 0
    assert row(capsys.readouterr().out)[1:7] == ["12", "83.3", "8.3", "8.3", "8.3", "25.0"]
    result = (place / "out/score_wer/result.txt").read_text(encoding="utf-8")
    assert [line.split()[1] for line in result.splitlines() if line.startswith("| s")] == ["s1", "s2"]


@pytest.mark.parametrize(
    "ref, hyp, message",
    [
        ("text", "hyp", "text says no speakers: give --utt2spk FILE, or a directory that holds text and utt2spk"),
        ("ref.stm", "hyp", "are none of .*ref.stm's .*: give hypotheses of the same set, or give --segments FILE"),
        ("ref.trn", "recordings.ctm", "are none of .*, or give --segments FILE, which says where in recordings"),
        ("ref.stm", "hyp.ctm", r"hyp.ctm: s1-u1, s1-u2, s2-u3 not in .*ref.stm \(3 in all\): .* or --segments FILE"),
        ("set", "other.ctm", r"other.ctm: tape not in .*set \(1 in all\): give a CTM of the same recordings"),
        ("set", "two.ctm", "two.ctm: channel A of rec is not in .*set: leave it out"),
        ("set", "no.trn", r"no.trn:2: a line of a trn file ends with \(speaker-utterance\): mend it"),
        ("set", "twice.trn", "twice.trn:2: 's1-u1' comes a second time: remove one of the two lines"),
        ("bad.stm", "hyp", r"bad.stm:1: a line of an STM file is `recording channel .*: mend the line"),
        ("set", "words", "words: duplicate id .*; if it is ctm, let its name end with .ctm"),
        ("set", "lines.txt", "lines.txt: its ids .*; if it is trn, let its name end with .trn"),
        ("set", "turns", "turns: duplicate id .*; if it is stm, let its name end with .stm"),
        ("set", "both.trn", "both.trn: several texts for s1-u1: give one for each utterance"),
        ("both.trn", "hyp", None),
        ("bad", "hyp", "bad/segments.*mend"),
        ("set", "choice.ctm", r"choice.ctm:1: alternatives \(<ALT_BEGIN>\) are not read: keep those of one"),
    ],
)
def test_what_does_not_fit_is_one_line(place, capsys, ref, hyp, message):
    (place / "other.ctm").write_text("tape 1 0 1 a\n")
    (place / "two.ctm").write_text("rec A 0 1 a\nrec B 0 1 a\n")
    (place / "choice.ctm").write_text("rec A * * <ALT_BEGIN>\nrec A 0 1 a\nrec A * * <ALT>\nrec A * * <ALT_END>\n")
    (place / "no.trn").write_text("a (s1-u1)\nb\n")
    (place / "words").write_text("rec A 0 1 a\nrec A 1 1.5 b 0.99\n")
    (place / "lines.txt").write_text("a (s1-u1)\n(s1-u2)\n")
    (place / "turns").write_text("rec A s 0 1 <o> a\nrec A s 1 1.5 b 0.99\nrec A s 2 3\n")
    (place / "twice.trn").write_text("a (s1-u1)\nb (s1-u1)\n")
    (place / "both.trn").write_text("a (s1-u1)\nb (s1-s1-u1)\n")
    shutil.copytree(place / "set", place / "bad")
    (place / "bad/segments").write_text("s1-u1 rec 2.0 1.0\n")
    (place / "bad.stm").write_text("rec 1 s1 2.0 1.0 a\n")
    assert cli.main(["score", "--ref", f"{place / ref}", "--hyp", f"{place / hyp}", "--out", f"{place / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("speechllm-xl: error: ") and error.count("\n") == 1
    utt2spk = None if message else place / "utt2spk"  # which tells that both ids are of one utterance
    with pytest.raises(UserError, match=message or "both.trn: several texts for s1-u1: give one"):
        read_hypotheses(place / hyp, read_reference(place / ref, utt2spk))
    assert not (place / "out").exists()


def test_compare_without_hypotheses(place, capsys):
    assert cli.main(["compare", "--ref", str(place / "set")]) == 2
    assert "compare: no hypotheses" in capsys.readouterr().err


def test_words_of_a_recording_belong_to_utterances_as_in_sclite(tmp_path, caplog):
    (tmp_path / "ref.stm").write_text(
        "rec 1 s1 1.0 2.0 <o,f0,male> a b\nrec 1 s2 2.0 3.0 c d\n"
        "rec 1 s2 4.0 5.0 Ignore_Time_Segment_In_Scoring\nrec 1 s1 6.0 7.0 <noise> e\n"
    )
    times = {"pre": 0.2, "a": 1.1, "b": 1.85, "c": 1.95, "d": 2.4, "gap": 3.4, "ign": 4.4, "e": 6.1, "post": 8.4}
    lines = (f"rec 1 {start} 0.2 {word}\n" for word, start in times.items())
    (tmp_path / "hyp.ctm").write_text("".join(lines))
    reference = read_reference(tmp_path / "ref.stm")
    assert list(reference.texts.values()) == ["a b", "c d", "e"]  # what looks like a label is one
    hypotheses = read_hypotheses(tmp_path / "hyp.ctm", reference)
    assert list(hypotheses.values()) == ["pre a b", "c d", "e post"]
    assert list(hypotheses) == list(reference.texts)


def test_channels_of_a_recording(tmp_path):
    (tmp_path / "set").mkdir()
    for name, text in {
        "text": "a hello\nb bye\n",
        "utt2spk": "a a\nb b\n",
        "segments": "a r 0 2 0\nb r 0 2 1\n",
    }.items():
        (tmp_path / "set" / name).write_text(text)
    (tmp_path / "hyp.ctm").write_text("r A 0.5 0.5 hello\nr B 0.1 0.5 bye\n")
    reference = read_reference(tmp_path / "set")
    assert read_hypotheses(tmp_path / "hyp.ctm", reference) == {"a": "hello", "b": "bye"}


@pytest.mark.parametrize("behind", ["NA", "-", "0.9 lex", "NA lex unknown"])
def test_a_ctm_with_the_columns_of_other_toolkits(tmp_path, behind):
    (tmp_path / "hyp.ctm").write_text(f"u 1 0 1 one {behind}\nu 1 1 1 two {behind}\n")
    reference = scoring_inputs.Reference("ref", {"u": "one two"}, {"u": "s"})
    word, _ = read_ctm(tmp_path / "hyp.ctm")["u"]
    assert (word.text, word.confidence) == ("one", 0.9 if behind[0] == "0" else None)
    assert read_hypotheses(tmp_path / "hyp.ctm", reference) == {"u": "one two"}


def test_silences_of_a_ctm_are_no_words(tmp_path, caplog):
    (tmp_path / "hyp.ctm").write_text("u 1 0 1 <eps>\nu 1 1 1 SIL\nu 1 2 1 sil\nu 1 3 1 <unk>\nv 1 0 1 sp\n")
    speakers = {"u": "u", "v": "v"}
    reference = scoring_inputs.Reference("ref", {"u": "sil x", "v": "y"}, speakers)
    # The reference has the word "sil"; <unk> is something that was heard.
    assert read_hypotheses(tmp_path / "hyp.ctm", reference) == {"u": "SIL sil <unk>", "v": ""}
    assert "hyp.ctm: entries that are no words are passed over: <eps> 1, sp 1" in caplog.text


@pytest.mark.parametrize(
    "name, speaker",
    [("s1-s1-u1", "s1"), ("s1-s1_u1", "s1"), ("a-1-a-1-u", "a-1"), ("19-198-19-198-0000", "19-198"), ("s1-u1", "s1"),
     ("s1", "s1"), ("ab-abc-1", "ab"), ("s-s", "s")],
)  # fmt: skip
def test_speaker_of_a_trn_line(name, speaker):
    assert speaker_of(name) == speaker


@pytest.mark.parametrize(
    "text, heard, chosen",
    [
        ("i { um / uh } see", "i uh see", "i uh see"),
        ("i { um / @ } see", "i see", "i see"),
        ("i { um / @ } see", "i um see", "i um see"),
        ("{ going to / gonna } go", "gonna go", "gonna go"),
        ("{ a / b { c / d } }", "b d", "b d"),
        ("{ a / b } { a / b } x", "b x", "b b x"),  # a substitution's word is either: b is heard
        ("a { b / c d e }", "", "a b"),
        ("a {b/c d} {e / @}and/or", "a c d e and/or", "a c d e and/or"),  # without blanks
        ("{laughs} { breath } {speaker coughs} { a / b }", "b", "{laughs} {breath} {speaker coughs} b"),  # no choice
        ("{ { a / b } }", "b", "b"),
        ("f{x}", "f{x}", "f{x}"),
        ("{ a / b", "b", "{ a / b"),  # never closed
        ("1 / 2 @ } c", "1", "1 / 2 @ } c"),
    ],
)
def test_nearest_alternative(text, heard, chosen):
    found = scoring_inputs.nearest(text, heard)
    assert len(found.split()) == len(chosen.split())
    errors = [metrics.score({"u": one.split()}, {"u": heard.split()}).total.errors for one in (found, chosen)]
    assert errors[0] == errors[1] and (errors[0] or found == chosen)


def test_alternatives_of_a_reference_are_scored_for_each_hypothesis(tmp_path, capsys):
    (tmp_path / "ref.trn").write_text("I { um / @ } see { the <noise> / a } dog (s-u)\nyes (s-v)\n")
    for name, text in {"one": "i see a dog", "two": "i um see the cat"}.items():
        (tmp_path / f"{name}.trn").write_text(f"{text} (s-u)\nyes (s-v)\n")
    options = ["--ref", f"{tmp_path / 'ref.trn'}", "--ignore-case", "--ignore-tags"]
    wanted = {"one": ["2", "5", "0.0"], "two": ["2", "6", "16.7"]}
    for name, numbers in wanted.items():
        assert cli.main(["score", *options, "--hyp", f"{tmp_path / name}.trn", "--out", f"{tmp_path / name}"]) == 0
        printed = capsys.readouterr().out
        assert [*row(printed)[:2], row(printed)[6]] == numbers
    assert (tmp_path / "one/score_wer/ref.trn").read_text().startswith("i see a dog\t(")
    assert cli.main(["compare", *options, *(f"{tmp_path / name}.trn" for name in wanted)]) == 0
    table = capsys.readouterr().out
    second = row(table, tmp_path / "two.trn")
    assert second[0].split()[0] == "16.7" and second[-1].startswith("+16.7")
    # In a Kaldi text braces are words.
    (tmp_path / "text").write_text("u { a / b }\n")
    (tmp_path / "utt2spk").write_text("u u\n")
    assert read_reference(tmp_path).against({"u": "b"}) == {"u": "{ a / b }"}


@pytest.mark.parametrize(
    "written, text",
    [
        ("he { laughs } so", "he {laughs} so"),
        ("{ speaker coughs } {laughs } {laughs} a", "{speaker coughs} {laughs} {laughs} a"),
        ("a { @ } { } b", "a   b"),
        ("{ a / b } f{ x } { { c } / d }", "{ a / b } f{ x } { {c} / d }"),
        ("{ a", "{ a"),
        ("%7B a %7D", "{ a }"),  # words, of a file that was written here
    ],
)
def test_braces_without_a_choice_are_no_words(tmp_path, written, text):
    (tmp_path / "a.trn").write_text(f"{written} (s-u)\n")
    assert read_trn(tmp_path / "a.trn") == {"s-u": text}
    (tmp_path / "a.stm").write_text(f"tape 1 s 0.0 1.0 <o> {written}\n")
    (turn,) = scoring_inputs.read_stm(tmp_path / "a.stm")
    assert turn.text == (text if "%" not in written else written)


# Tags and case

CASE = {
    "ref": "s1-u1 <NOISE> turn on the lights\ns1-u2 turn off the radio <NOISE>\ns2-u3 <NOISE>\ns2-u4 Meet me at Noon\n",
    "hyp": "s1-u1 turn on the lights\ns1-u2 <NOISE> turn off the radio\ns2-u3\ns2-u4 meet me at noon\n",
    "utt2spk": "s1-u1 s1\ns1-u2 s1\ns2-u3 s2\ns2-u4 s2\n",
}


@pytest.mark.parametrize(
    "options, wanted",
    [
        ([], ["4", "15", "40.0"]),
        (["--ignore-case"], ["4", "15", "26.7"]),
        (["--ignore-tags"], ["4", "12", "16.7"]),
        (["--ignore-tags", "--ignore-case"], ["4", "12", "0.0"]),
    ],
)
def test_scoring_without_tags_and_case(tmp_path, capsys, options, wanted):
    for name, text in CASE.items():
        (tmp_path / name).write_text(text)
    common = ["--ref", f"{tmp_path / 'ref'}", "--utt2spk", f"{tmp_path / 'utt2spk'}", *options]
    assert cli.main(["score", *common, "--hyp", f"{tmp_path / 'hyp'}", "--out", f"{tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert [*row(printed)[:2], row(printed)[6]] == wanted
    assert (row(printed, "CER")[6] == "0.0") == (len(options) == 2)
    title = (tmp_path / "out/score_cer/result.txt").read_text().splitlines()[0]
    said = {0: "", 1: f", without {options[0][9:] if options else ''}", 2: ", without tags and case"}[len(options)]
    assert title == f"CER of {tmp_path / 'out'}{said} (characters; Corr to S.Err in percent)"
    assert cli.main(["compare", *common, f"{tmp_path / 'hyp'}"]) == 0
    printed = capsys.readouterr().out
    assert row(printed, tmp_path / "hyp")[0].split()[0] == wanted[2] and printed.splitlines()[-1].endswith(
        f"{wanted[1]} words in 4 utterances (fewer than 20: do not rely on it){said}"
    )


@pytest.mark.parametrize(
    "text, left",
    [
        ("<noise> a [laughter] b (speaker coughs) c {breath}", "a b c"),
        ("<background noise> a <b> <c>", "a"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("word(s) f(x) a<b", "word(s) f(x) a<b"),  # within words
        ("{ a / b } c", "{ a / b } c"),  # alternatives of sclite
        ("[um]", ""),
        ("é É", "é É"),
    ],
)
def test_tags(text, left):
    assert Ignored(tags=True).left_of(text) == left
    assert Ignored(case=True).left_of("STRASSE Straße É") == "strasse strasse é"
    assert (str(Ignored()), str(Ignored(True, True))) == ("", ", without tags and case")


# trn files

MARKUP = ["(b)", "(", ")", "{", "}", "{b", "/", ";", ";;", ";b", "b;c", "*", "@", "a@b", "\\", "a\\b", "<b>", "%28",
          "%2528", "100%", "%zz", "((b))", "b-", "é"]  # fmt: skip


@pytest.mark.parametrize("word", MARKUP)
def test_markup_of_trn_files_comes_back(tmp_path, word):
    for words in ([word, "x"], ["x", word], [word], ["x", word, "/", word]):
        (tmp_path / "a.trn").write_text(trn_line(words, "s(1)", "u;1"), encoding="utf-8")
        assert read_trn(tmp_path / "a.trn") == {"s(1)-u;1": " ".join(words)}
    assert not set("(){};*\\") & set(trn_line([word, "x"], "s", "u").split("\t")[0])


def test_score_directories_are_read_again(tmp_path, capsys):
    names = [f"u{index:02d}" for index in range(len(MARKUP))]
    (tmp_path / "ref").write_text("".join(f"{n} x {word} y\n" for n, word in zip(names, MARKUP, strict=True)))
    (tmp_path / "hyp").write_text("".join(f"{n} x y {word}\n" for n, word in zip(names, MARKUP, strict=True)))
    (tmp_path / "utt2spk").write_text("".join(f"{n} s\n" for n in names))
    command = ["score", "--utt2spk", tmp_path / "utt2spk", "--ref", tmp_path / "ref", "--hyp", tmp_path / "hyp"]
    assert cli.main([*map(str, command), "--out", str(tmp_path / "out")]) == 0
    first = row(capsys.readouterr().out)
    command = ["score", *(f"--{side}={tmp_path}/out/score_wer/{side}.trn" for side in ("ref", "hyp"))]
    assert cli.main([*command, "--out", str(tmp_path / "again")]) == 0
    assert row(capsys.readouterr().out) == first and first[:2] == [str(len(MARKUP)), str(3 * len(MARKUP))]


@pytest.mark.skipif(not SCLITE, reason="no sclite (Debian: sctk)")
@pytest.mark.parametrize("word", MARKUP)
def test_sclite_counts_as_we_do(tmp_path, word):
    """Of a word that is left out, taken for another, and right: in words and in characters."""
    for split in (str.split, list):
        pairs = {"u1": (f"x {word} y", "x y"), "u2": (f"x {word} y", "x Q y"), "u3": (f"{word} x", f"{word} x")}
        for index, side in enumerate(("ref", "hyp")):
            lines = (trn_line([s for s in split(pair[index]) if s != " "], "s", name) for name, pair in pairs.items())
            (tmp_path / f"{side}.trn").write_text("".join(lines), encoding="utf-8")
        words = [len([s for s in split(pair[0]) if s != " "]) for pair in pairs.values()]
        command = [SCLITE, "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn", "-i", "rm", "-e", "utf-8", "-s"]
        done = subprocess.run([*command, "-o", "sum", "stdout"], cwd=tmp_path, capture_output=True, text=True)
        (line,) = [line for line in done.stdout.splitlines() if "Sum/Avg" in line]
        length = words[0] - 2
        errors = length + max(length, 1)  # all deleted, and all replaced by one
        found = [float(value) for value in line.replace("|", " ").split()[1:]]
        assert found[:2] == [3, sum(words)]
        assert found[6] == pytest.approx(100 * errors / sum(words), abs=0.06)


@pytest.mark.skipif(not SCLITE, reason="no sclite (Debian: sctk)")
def test_sclite_agrees_about_ctm_and_stm(place, capsys):
    command = [SCLITE, "-r", "ref.stm", "stm", "-h", "recordings.ctm", "ctm", "-o", "sum", "stdout"]
    recordings = (place / "recordings.ctm").read_text().replace("rec A", "rec 1")
    Path(place / "recordings.ctm").write_text(recordings)
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if "Sum/Avg" in line]
    command = ["score", "--ref", place / "ref.stm", "--hyp", place / "recordings.ctm", "--out", place / "out"]
    assert cli.main([*map(str, command)]) == 0
    assert line.replace("|", " ").split()[1:] == row(capsys.readouterr().out)
