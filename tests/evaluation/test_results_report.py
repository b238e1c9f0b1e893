import json
import math
import shutil

import numpy as np
import pytest
from made_tokenizers import save_hugging_face
from tokenizers import normalizers

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.ctm import Word
from espnet_speechllm_xl.evaluation import decoded_sets, plots, results_report, score_directories
from espnet_speechllm_xl.evaluation.metrics import Counts
from espnet_speechllm_xl.tokenization import load_tokenizer

PNG = b"\x89PNG\r\n\x1a\n"

REF = "s1-a the cat sat\ns1-b go home\ns2-c b\u0254\u0301 ra\ns2-d\n"
HYP = "s1-a the cat sit\ns1-b go home now\ns2-c b\u0254 ra\ns2-d\n"
SPK = "s1-a s1\ns1-b s1\ns2-c s2\ns2-d s2\n"


def run(*arguments):
    return cli.main(["score", *map(str, arguments)])


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def one_set(tmp_path, ref=REF, hyp=HYP, spk=SPK):
    files = [write(tmp_path / name, text) for name, text in (("ref", ref), ("hyp", hyp), ("utt2spk", spk))]
    return ["--ref", files[0], "--hyp", files[1], "--utt2spk", files[2], "--out", tmp_path / "out"]


def avg(path):
    """Numbers of the Sum/Avg line of a result.txt."""
    (line,) = [line for line in path.read_text(encoding="utf-8").splitlines() if "Sum/Avg" in line]
    return [float(value) for value in line.replace("|", " ").split()[1:]]


def test_one_set(tmp_path, capsys):
    assert run(*one_set(tmp_path)) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["score_cer", "score_wer"]
    assert (out / "score_wer/ref.trn").read_text(encoding="utf-8") == (
        "the cat sat\t(s1-s1-a)\ngo home\t(s1-s1-b)\nb\u0254\u0301 ra\t(s2-s2-c)\n\t(s2-s2-d)\n"
    )
    # Combining mark: a character of its own, bare in the trn file.
    assert "b \u0254 \u0301 <space> r a\t(s2-s2-c)" in (out / "score_cer/ref.trn").read_text(encoding="utf-8")
    assert "b \u0254 <space> r a\t(s2-s2-c)" in (out / "score_cer/hyp.trn").read_text(encoding="utf-8")
    # Words: 7; sat -> sit and bɔ́ -> bɔ substituted, "now" inserted; 5 correct; 3 of 4 sentences wrong.
    assert avg(out / "score_wer/result.txt") == [4, 7, 71.4, 28.6, 0.0, 14.3, 42.9, 75.0]
    # Characters: 11 + 7 + 6 = 24; a -> i substituted; the mark deleted; " now" inserted (4).
    assert avg(out / "score_cer/result.txt") == [4, 24, 91.7, 4.2, 4.2, 16.7, 25.0, 75.0]
    printed = capsys.readouterr().out
    assert "|WER|4|7|71.4|28.6|0.0|14.3|42.9|75.0|" in printed
    assert "|CER|4|24|91.7|4.2|4.2|16.7|25.0|75.0|" in printed


def test_result_text_speakers_and_alignment(tmp_path):
    run(*one_set(tmp_path))
    text = (tmp_path / "out/score_wer/result.txt").read_text(encoding="utf-8")
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("| s")}
    assert rows["s1"][3:5] == ["2", "5"]
    assert rows["s1"][6:12] == ["80.0", "20.0", "0.0", "20.0", "40.0", "100.0"]
    assert rows["s2"][6:12] == ["50.0", "50.0", "0.0", "0.0", "50.0", "50.0"]
    assert "4 utterances, 3 with errors; 7 words: 5 correct, 2 substituted, 0 deleted; 1 inserted" in text
    assert (
        "id: (s1-s1-b)\nScores: (#C #S #D #I) 2 0 0 1\nREF:  go home *\nHYP:  go home now\nEval:         I\n"
    ) in text
    assert "s2-d" not in text  # no error, no alignment


def test_alignment_text_width_and_wrap():
    pairs = [("S", "\u6f22\u5b57", "ab"), ("D", "\u0301", None), ("C", "x", "x")]
    assert score_directories.alignment_text(pairs) == "REF:  \u6f22\u5b57 \u25cc\u0301 x\nHYP:  ab   * x\nEval: S    D"
    wrapped = score_directories.alignment_text([("C", "word", "word")] * 5, columns=20).splitlines()
    assert wrapped == ["REF:  word word", "HYP:  word word", "Eval:"] * 2 + ["REF:  word", "HYP:  word", "Eval:"]
    assert score_directories.alignment_text([]) == "REF:\nHYP:\nEval:"


def test_missing_hypothesis_counts_and_is_named(tmp_path, caplog):
    assert run(*one_set(tmp_path, hyp=HYP.replace("s1-a the cat sit\n", ""))) == 0
    assert avg(tmp_path / "out/score_wer/result.txt")[:5] == [4, 7, 42.9, 14.3, 42.9]
    assert "1 of 4 utterances have no hypothesis" in caplog.text
    assert "s1-a" in caplog.text
    result = (tmp_path / "out/score_wer/result.txt").read_text(encoding="utf-8")
    assert "1 without hypothesis, all deleted: s1-a" in result


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hyp": HYP + "s9-z hello\n"}, "s9-z not in the references (1 in all)"),
        ({"spk": SPK.replace("s2-c s2\n", "")}, "utt2spk lacks s2-c"),
        ({"hyp": HYP + "s2-d again\n"}, "duplicate id with another value ('s2-d', line 5)"),
        ({"ref": ""}, "the references are empty"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, change, message):
    assert run(*one_set(tmp_path, **change)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("speechllm-xl: error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_use(tmp_path, capsys):
    options = one_set(tmp_path)
    assert run() == 2
    assert run(*options, "--exp", tmp_path) == 2
    assert run(*options[2:]) == 2
    assert run("--exp", tmp_path / "none", "--dump", tmp_path, "--results", tmp_path / "R.md") == 2
    assert run(*options, "--token-ref", options[1]) == 2
    assert run("--ref", tmp_path / "none", *options[2:]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert "--ref must be given too" in lines[2]
    assert lines[5].endswith("--ref " + str(tmp_path / "none") + ": no such file")


def test_tokens_of_one_set(tmp_path, capsys):
    token_ref = write(tmp_path / "token_ref", "s1-a _the _cat _s at\ns1-b _go _home\ns2-c _b _ra\ns2-d\n")
    token_hyp = write(tmp_path / "token_hyp", "s1-a _the _cat _s it\ns1-b _go _home\ns2-c _ra\ns2-d\n")
    assert run(*one_set(tmp_path), "--token-ref", token_ref, "--token-hyp", token_hyp) == 0
    # 8 tokens: 1 substituted, 1 deleted.
    assert avg(tmp_path / "out/score_ter/result.txt") == [4, 8, 75.0, 12.5, 12.5, 0.0, 25.0, 50.0]
    assert "|TER|4|8|75.0|12.5|12.5|0.0|25.0|50.0|" in capsys.readouterr().out


LOG = (
    "[host] 2025-01-01 10:00:01,000 (trainer:394) INFO: 1epoch results: [train] loss=5.500, time=70.5 seconds, "
    "[valid] loss=4.500, acc=0.250, time=9.5 seconds\n"
    "[host] 2025-01-01 10:02:00,000 (trainer:394) INFO: 2epoch results: [train] loss=1.234e+03, time=1 hour, 2 minutes "
    "and 3 seconds, [valid] loss=nan, acc=0.500, time=7 seconds\n"
)


def recipe(tmp_path):
    """A recipe's directories: two decodings of a model, test at 1x and 10x, an aligner that only trained."""
    exp, dump = tmp_path / "exp", tmp_path / "dump"
    for name in ("test", "test_10x", "test_2x"):
        write(dump / "raw" / name / "text", REF)
        write(dump / "raw" / name / "utt2spk", SPK)
    for decode, hyp in (("decode_greedy", HYP), ("decode_alsd", REF)):
        for name in ("test", "test_10x", "test_2x"):
            directory = exp / "tiny" / decode / name
            write(directory / "text", hyp)
            info = {"audio_seconds": 20.0, "seconds": 5.0, "device": "cpu", "utterances": 4, "capped": 1, "failed": 0}
            write(directory / "decode.json", json.dumps(info))
    write(exp / "aligner" / "train.log", LOG)
    write(exp / "tiny" / "train.log", LOG)
    return exp, dump


def test_results(tmp_path, capsys):
    exp, dump = recipe(tmp_path)
    results = tmp_path / "RESULTS.md"
    assert run("--exp", exp, "--dump", dump, "--results", results, "--command", "./run.sh") == 0
    text = results.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "# RESULTS"
    assert "- command: `./run.sh`" in lines
    assert any(line.startswith("- espnet version: `20") for line in lines)
    start = lines.index("### WER")
    assert lines[start + 2] == "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|"
    assert lines[start + 4 : start + 10] == [
        "|decode_alsd/test|4|7|100.0|0.0|0.0|0.0|0.0|0.0|",
        "|decode_alsd/test_2x|4|7|100.0|0.0|0.0|0.0|0.0|0.0|",
        "|decode_alsd/test_10x|4|7|100.0|0.0|0.0|0.0|0.0|0.0|",
        "|decode_greedy/test|4|7|71.4|28.6|0.0|14.3|42.9|75.0|",
        "|decode_greedy/test_2x|4|7|71.4|28.6|0.0|14.3|42.9|75.0|",
        "|decode_greedy/test_10x|4|7|71.4|28.6|0.0|14.3|42.9|75.0|",
    ]
    assert "|decode_greedy/test|4|24|91.7|4.2|4.2|16.7|25.0|75.0|" in lines[lines.index("### CER") :]
    assert "|decode_greedy/test|4|20.0|5.0|0.250|4.0|cpu|1|0|" in lines
    assert "|tiny|2|1|4.500|1:03:30|" in lines
    assert "|aligner|2|1|4.500|1:03:30|" in lines
    assert "### TER" not in lines
    for image in ("tiny_test_length.png", "tiny_learning_curve.png", "aligner_learning_curve.png"):
        assert f"(images/{image})" in text
        assert (tmp_path / "images" / image).read_bytes().startswith(PNG)
    assert "sets found: 6, scored: 6, unfinished: 0, failed: 0" in capsys.readouterr().out


def test_results_without_tags_and_case(tmp_path):
    exp, dump = recipe(tmp_path)
    for path in (dump / "raw/test/text", exp / "tiny/decode_greedy/test/text"):
        text = path.read_text(encoding="utf-8").replace(
            "the cat", "<noise> The cat" if "raw" in path.parts else "the cat"
        )
        path.write_text(text, encoding="utf-8")
    options = ["--exp", exp, "--dump", dump, "--results", tmp_path / "RESULTS.md"]
    assert run(*options) == 0
    lines = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert "|decode_greedy/test|4|8|50.0|37.5|12.5|12.5|62.5|75.0|" in lines
    assert run(*options, "--ignore-tags", "--ignore-case") == 0
    lines = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert "|decode_greedy/test|4|7|71.4|28.6|0.0|14.3|42.9|75.0|" in lines
    assert "WER and CER, without tags and case." in lines


def test_a_model_that_writes_small_letters_is_compared_without_case(tmp_path):
    exp, dump = recipe(tmp_path)
    shutil.copytree(exp / "tiny", exp / "llm")
    save_hugging_face(exp / "llm/tokenizer", [REF], True, normalizer=normalizers.Lowercase())
    references = dump / "raw/test/text"
    references.write_text("".join(f"{line[:4]}{line[4:].upper()}" for line in REF.splitlines(True)), encoding="utf-8")
    results = tmp_path / "RESULTS.md"
    options = ["--exp", exp, "--dump", dump, "--results", results]
    assert run(*options) == 1
    llm, tiny, *_, unscored = results.read_text(encoding="utf-8").split("\n## ")[2:]
    said = "The model writes small letters: compared without regard to case."
    assert llm.startswith("llm\n") and said in llm and said not in tiny
    row = "|decode_alsd/test|4|7|{}|{}|0.0|0.0|{}|{}|"
    assert row.format("100.0", "0.0", "0.0", "0.0") in llm.split("### TER")[0]
    assert "alsd/test|" not in tiny and "test_2x|4|" in tiny, "of another model no word could be right"
    says = "tiny/decode_{}/test: the references are in capitals, the hypotheses in small letters: compare them with"
    assert all(f"- {says.format(search)} --ignore-case" in unscored for search in ("alsd", "greedy"))
    assert "|decode_alsd/test|4|" in llm.split("### TER")[1]
    assert [line.split("|")[8] for line in llm.split("### TER")[1].splitlines() if "alsd/test|4" in line][0] == "0.0"
    assert run(*options, "--ignore-case") == 0
    assert row.format("100.0", "0.0", "0.0", "0.0") in results.read_text(encoding="utf-8").split("\n## tiny")[1]


def test_results_of_written_text(tmp_path):
    exp, dump = recipe(tmp_path)
    results = tmp_path / "RESULTS.md"
    options = ["--exp", exp, "--dump", dump, "--results", results]
    assert run(*options, "--normaliser", "none") == 0
    plain = results.read_text(encoding="utf-8")
    assert "Normalised" not in plain and "Punctuation" not in plain
    for path, text in ((dump / "raw/test/text", "Twenty. Go!"), (exp / "tiny/decode_alsd/test/text", "20. go.")):
        path.write_text(path.read_text(encoding="utf-8").replace("go home", text), encoding="utf-8")
    assert run(*options, "--normaliser", "english") == 0
    lines = results.read_text(encoding="utf-8").splitlines()
    start = lines.index("### Normalised WER (english)")
    assert lines[start + 2].startswith("Words after EnglishTextNormalizer of whisper-normalizer 0.1.")
    assert "|decode_alsd/test|4|7|100.0|0.0|0.0|0.0|0.0|0.0|" in lines[start:]
    assert "|decode_alsd/test|4|7|71.4|28.6|0.0|0.0|28.6|25.0|" in lines[:start], "the raw one stays"
    rows = lines[lines.index("### Punctuation and capitals") :]
    assert "|decode_alsd/test|`.`|1|50.0|100.0|66.7|" in rows
    assert "|decode_alsd/test|capitals|1|-|0.0|0.0|" in rows
    assert not any(row.startswith("|decode_alsd/test_2x|`") for row in rows), "its references have no marks"
    assert (exp / "tiny/decode_alsd/test/score_wer_english/result.txt").is_file()


def test_in_scripts_without_spaces_characters_lead(tmp_path):
    exp, dump = recipe(tmp_path)
    for path in (*dump.glob("raw/*/text"), *exp.glob("tiny/*/*/text")):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("the cat sat", "今天天气很好").replace("go home", "我们去公园"), encoding="utf-8")
    results = tmp_path / "RESULTS.md"
    assert run("--exp", exp, "--dump", dump, "--results", results) == 0
    lines = results.read_text(encoding="utf-8").splitlines()
    assert lines.index("### CER") < lines.index("### WER")


def test_results_keep_what_people_wrote(tmp_path):
    exp, dump = recipe(tmp_path)
    results = write(tmp_path / "RESULTS.md", "# My results\n\nnotes before\n")
    results_report.score_experiment(exp, dump, results, date="today")
    first = results.read_text(encoding="utf-8")
    assert first.startswith("# My results\n\nnotes before\n\n<!-- scores: begin")
    results.write_text(first.replace("tiny|2|", "old|9|") + "\nnotes after\n", encoding="utf-8")
    results_report.score_experiment(exp, dump, results, date="today")
    assert results.read_text(encoding="utf-8") == first + "\nnotes after\n"
    results.write_text(first.replace("<!-- scores: end -->", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="not one pair"):
        results_report.score_experiment(exp, dump, results)


def test_results_name_what_failed(tmp_path, capsys):
    exp, dump = recipe(tmp_path)
    write(exp / "tiny/decode_greedy/test/text", HYP + "s9-z extra\n")
    (exp / "tiny/decode_greedy/test_2x/text").unlink()
    write(exp / "tiny/decode_greedy/other/text", HYP)
    write(exp / "tiny/decode_alsd/test/decode.json", "{broken")
    results = tmp_path / "RESULTS.md"
    assert run("--exp", exp, "--dump", dump, "--results", results) == 1
    assert "sets found: 7, scored: 3, unfinished: 1, failed: 3" in capsys.readouterr().out
    text = results.read_text(encoding="utf-8")
    failures = text[text.index("## Not scored: 4 of 7 sets") :]
    for reason in ("s9-z not in the references", "test_2x: no text file", "other/text is not", "json: not readable"):
        assert reason in failures
    assert "|decode_alsd/test_10x|" in text
    assert "|decode_greedy/test|" not in text


def test_a_set_that_another_training_decodes_is_no_failure(tmp_path, capsys):
    exp, dump = recipe(tmp_path)
    (exp / "tiny/decode_greedy/test_2x/text").unlink()
    results = tmp_path / "RESULTS.md"
    assert run("--exp", exp, "--dump", dump, "--results", results) == 0
    assert "sets found: 6, scored: 5, unfinished: 1, failed: 0" in capsys.readouterr().out
    assert "## Not scored: 1 of 6 sets" in results.read_text(encoding="utf-8")


def test_a_set_without_text_is_no_failure(tmp_path, capsys, caplog):
    exp, dump = recipe(tmp_path)
    write(dump / "raw/heard/wav.scp", "s1-a a.flac\n")
    write(exp / "tiny/decode_greedy/heard/text", "s1-a hello\n")
    results = tmp_path / "RESULTS.md"
    assert run("--exp", exp, "--dump", dump, "--results", results) == 0
    assert "sets found: 7, scored: 6, unfinished: 0, failed: 0, without text: 1" in capsys.readouterr().out
    message = f"{exp}/tiny/decode_greedy/heard: decoded, but {dump}/raw/heard has no text to score it with"
    assert f"not scored: {message}" in caplog.text
    assert f"## Not scored: 1 of 7 sets\n\n- {message}\n" in results.read_text("utf-8")
    assert not (exp / "tiny/decode_greedy/heard/score_wer").exists()


def test_nothing_to_score(tmp_path, capsys):
    (tmp_path / "exp").mkdir()
    assert run("--exp", tmp_path / "exp", "--dump", tmp_path, "--results", tmp_path / "RESULTS.md") == 2
    assert "run the decode stage" in capsys.readouterr().err
    assert not (tmp_path / "RESULTS.md").exists()


def test_ter_with_the_model_of_the_experiment(tmp_path):
    import sentencepiece

    exp, dump = recipe(tmp_path)
    sentences = ["the cat sat", "go home", "the cat sit", "go home now", "b\u0254 ra"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(exp / "tiny/tokenizer"), vocab_size=24,
        character_coverage=1.0, model_type="bpe", minloglevel=2, normalization_rule_name="identity",
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(exp / "tiny/tokenizer.model"))
    directory = exp / "tiny/decode_alsd/test"
    # One emitted piece too many in s1-b; the other utterances as the model splits them.
    lines = [line.partition(" ") for line in REF.splitlines()]
    pieces = {name: processor.encode(text, out_type=str) for name, _, text in lines}
    total = sum(map(len, pieces.values()))
    pieces["s1-b"].append("\u2581go")
    write(directory / "token", "".join(f"{name} {' '.join(values)}\n" for name, values in pieces.items()))
    decoded = results_report.score_decoded(directory, dump)
    assert (decoded.model, decoded.decode, decoded.dataset) == ("tiny", "decode_alsd", "test")
    assert decoded.scores["ter"].total == Counts(4, total, total, 0, 0, 1, 1)
    # Without a token file the text is split by the model: equal text, no error.
    assert results_report.score_decoded(exp / "tiny/decode_alsd/test_2x", dump).scores["ter"].total.errors == 0
    # Letters that the model does not know are compared as they stand, though all have one id.
    unknown = [REF.replace("home", letter) for letter in "\u6f22\u5b57"]
    write(dump / "raw/test_10x/text", unknown[0])
    write(exp / "tiny/decode_alsd/test_10x/text", unknown[1])
    assert results_report.score_decoded(exp / "tiny/decode_alsd/test_10x", dump).scores["ter"].total.errors == 1
    # Nor are other blanks between the words any.
    reference = next(path for path in (dump / "raw/test_2x/text", dump / "test_2x/text") if path.is_file())
    write(reference, reference.read_text("utf-8").replace("the cat ", "the\u00a0cat\t"))
    assert "\u00a0" in reference.read_text("utf-8")
    assert results_report.score_decoded(exp / "tiny/decode_alsd/test_2x", dump).scores["ter"].total.errors == 0


@pytest.mark.parametrize("byte_level", [True, False])
def test_ter_with_a_hugging_face_tokenizer(tmp_path, byte_level):
    exp, dump = recipe(tmp_path)
    sentences = ["the cat sat", "go home", "the cat sit", "go home now", "b\u0254\u0301 ra"] * 20
    tokenizer = load_tokenizer(save_hugging_face(exp / "tiny/tokenizer", sentences, byte_level))
    directory = exp / "tiny/decode_alsd/test"
    texts = [line.partition(" ")[::2] for line in REF.splitlines()]
    tokens = {name: [tokenizer.pieces[token] for token in tokenizer.encode(text)[0]] for name, text in texts}
    total = sum(map(len, tokens.values()))
    tokens["s1-b"] = tokens["s1-b"][:-1] + ["wrong"]
    tokens["s2-c"].append("more")
    write(directory / "token", "".join(f"{name} {' '.join(values)}\n" for name, values in tokens.items()))
    assert results_report.score_decoded(directory, dump).scores["ter"].total == Counts(4, total, total - 1, 1, 0, 1, 2)
    # Without a token file the text is split by the tokenizer.
    assert results_report.score_decoded(exp / "tiny/decode_alsd/test_2x", dump).scores["ter"].total.errors == 0
    assert run("--exp", exp, "--dump", dump, "--results", tmp_path / "RESULTS.md") == 0
    lines = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    rows = lines[lines.index("### TER") :]
    assert f"|decode_alsd/test_2x|4|{total}|100.0|0.0|0.0|0.0|0.0|0.0|" in rows


def test_a_damaged_tokenizer_is_named(tmp_path):
    exp, dump = recipe(tmp_path)
    write(exp / "tiny/tokenizer.model", "no model")
    found = results_report.score_experiment(exp, dump, tmp_path / "RESULTS.md")
    assert not found.decoded and len(found.failed) == 6
    assert all("tokenizer.model is not a sentencepiece model" in message for message in found.failed.values())


def test_speed_has_rtf_and_rtfx():
    known = {"utterances": 4, "audio_seconds": 100.0, "seconds": 12.5, "device": "cpu", "capped": 0, "failed": 1}
    head, _, row, unknown = results_report.speed_table([("a/test", known), ("b/test", {})])
    assert head == "|dataset|Utt|audio (s)|decoding (s)|RTF|RTFx|device|capped|failed|"
    assert row == "|a/test|4|100.0|12.5|0.125|8.0|cpu|0|1|" and unknown == "|b/test|-|-|-|-|-|-|-|-|"


def test_length_series():
    def item(decode, dataset, counts):
        from espnet_speechllm_xl.evaluation.metrics import ScoredSet

        return decoded_sets.Decoded("m", decode, dataset, {"wer": ScoredSet({}, counts)}, {})

    items = [
        item("d1", "test", Counts(1, 10, 9, 1, 0, 0, 1)),
        item("d1", "test_10x", Counts(1, 10, 8, 2, 0, 0, 1)),
        item("d2", "test_2x", Counts(1, 10, 7, 3, 0, 0, 1)),
        item("d1", "dev", Counts(1, 10, 9, 1, 0, 0, 1)),
        item("d2", "test_10x_shuffled", Counts(1, 10, 6, 4, 0, 0, 1)),
    ]
    assert results_report.length_series(items) == {
        "test": (["1x", "2x", "10x"], {"d1": [10.0, None, 20.0], "d2": [None, 30.0, None]}),
        "test_shuffled": (["1x", "10x"], {"d1": [10.0, None], "d2": [None, 40.0]}),
    }


def test_plots_with_awkward_text(tmp_path):
    # "$" would start mathematics and "_x" would be a subscript; digital silence has no logarithm.
    tokens = [("\u2581$5_x$", 0.4), ("b\u0254\u0301", 1.0), ("\u6f22", 1.5)]
    words = [Word("$5", 0.1, 0.4), Word("b\u0254\u0301", 0.6, 1.0)]
    path = plots.plot_utterance(tmp_path / "u.png", np.zeros(32000), 16000, tokens, 8, words, title="$u_1$")
    assert path.read_bytes().startswith(PNG)
    short = plots.plot_utterance(tmp_path / "short.png", np.ones(1), 16000, [], None)
    assert short.read_bytes().startswith(PNG)
    with pytest.raises(ValueError, match="^u9: the audio is empty"):
        plots.plot_utterance(tmp_path / "none.png", np.zeros(0), 16000, [], 8, title="u9")
    with pytest.raises(ValueError, match="^m: the training log has none of loss, acc"):
        plots.plot_learning_curve({1: {"train": {"x": 1.0}}}, tmp_path / "none.png", "m")
    plots.plot_length_bars(tmp_path / "bars.png", ["1x", "10x"], {"$a$": [math.inf, 3.0], "b": [None, 2.0]})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bars.png", "short.png", "u.png"]


def test_plots_are_the_same_every_time(tmp_path):
    first, second = (
        plots.plot_delay_histogram([0.01, -0.03], [0.9], tmp_path / f"{name}.png").read_bytes() for name in "ab"
    )
    assert first == second


def test_marks_apart_from_their_letters_are_no_errors(tmp_path):
    """A dump of others, taken as it is: what the recogniser writes is composed."""
    exp, dump = recipe(tmp_path)
    write(dump / "raw/test/text", REF.replace("go home", "cafe\u0301 home"))
    write(exp / "tiny/decode_alsd/test/text", REF.replace("go home", "caf\u00e9 home"))
    assert results_report.score_decoded(exp / "tiny/decode_alsd/test", dump).scores["wer"].total.errors == 0
