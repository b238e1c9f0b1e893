"""Letter case in comparisons: which texts are refused, and what every command makes of a model of small letters."""

import itertools
import json
import re
import shutil
import string

import numpy as np
import pytest
import soundfile
import tiny
from made_tokenizers import save_hugging_face

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
from espnet_speechllm_xl.corpus.kaldi import read_text, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.letter_case import WITHOUT_CASE, compared, is_of_small_letters
from espnet_speechllm_xl.evaluation.scoring_inputs import NOTHING_IGNORED, Ignored

TEXTS = {
    "capitals": "ONE Ö 3",
    "small": "one ö 3",
    "both": "One ö",
    "none": "3 今",
    "empty": "",
    "tagged capitals": "ONE <noise> [um]",
}
# Of these no word can be right.
REFUSED = {frozenset(pair) for pair in itertools.product(["capitals", "tagged capitals"], ["small"])}


@pytest.mark.parametrize("hypothesis", TEXTS)
@pytest.mark.parametrize("reference", TEXTS)
def test_texts_that_differ_in_case_throughout_are_refused(reference, hypothesis):
    sides = [{"a": TEXTS[name], "b": "7"} for name in (reference, hypothesis)]
    assert compared(*sides, Ignored(case=True), "x") == tuple(Ignored(case=True).left_of_all(side) for side in sides)
    if {reference, hypothesis} not in REFUSED:
        assert compared(*sides, NOTHING_IGNORED, "x") == tuple(sides)
        return
    with pytest.raises(UserError, match="x: the references are in .*, the hypotheses in .* --ignore-case") as caught:
        compared(*sides, NOTHING_IGNORED, "x")
    kinds = ["small letters" if name == "small" else "capitals" for name in (reference, hypothesis)]
    assert re.findall("in (small letters|capitals)", str(caught.value)) == kinds


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SpeechLLM-XL of random weights whose tokenizer takes capitals as small letters."""
    from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLTask

    folder = tmp_path_factory.mktemp("small")
    save_hugging_face(folder / "hf", [*tiny.SENTENCES, string.ascii_lowercase], False)
    write_table(folder / "text", {f"u{index:02d}": text for index, text in enumerate(tiny.SENTENCES)})
    tokens = ["tokens", "--text", folder / "text", "--out", folder / "tokens", "--type", "hf", "--hf", folder / "hf"]
    assert cli.main([*map(str, tokens), "--lower-case"]) == 0
    sizes = [*tiny.conf("decoder_conf", tiny.DECODER), *tiny.conf("chunking_conf", ["chunk=16", "context=2"])]
    weights = "valid.acc_text.ave.pth"
    return tiny.write_model(
        folder / "exp", SpeechLLMXLTask, folder / "tokens", weights, sizes, seed=3, change=tiny.talkative
    )


SEARCH = ["--search", "greedy", "--max-tokens-per-chunk", "6"]


@pytest.fixture(scope="module")
def sets(model, tmp_path_factory):
    """Recordings, with what the model says of them as references, in capitals and in small letters."""
    from espnet_speechllm_xl.inference import Speech2Text

    speech2text = Speech2Text.from_pretrained(model, search="greedy", max_tokens_per_chunk=6)
    place, tables, words = tmp_path_factory.mktemp("sets"), {}, {}
    for index in range(20):
        samples = np.round(tiny.speech(index, 30000) * 32767).astype(np.int16)
        soundfile.write(place / f"s{index}-a.flac", samples, 16000)
        stream = speech2text.stream()
        words[f"s{index}-a"] = [*stream.push(samples / np.float32(32768)).words, *stream.close().words]
    texts = {name: " ".join(word.text for word in of_one) for name, of_one in words.items()}
    assert all(text == text.lower() for text in texts.values()) and sum(map(len, words.values())) > 20
    tables = {
        "wav.scp": {name: str(place / f"{name}.flac") for name in words},
        "utt2spk": {name: name.split("-")[0] for name in words},
        "utt2num_samples": dict.fromkeys(words, "30000"),
    }
    for case in (str.upper, str.lower):
        folder = place / case.__name__ / "raw/test"
        folder.mkdir(parents=True)
        for name, table in {**tables, "text": {name: case(text) for name, text in texts.items()}}.items():
            write_table(folder / name, table)
        times = {name: [Word(case(word.text), word.start, word.end) for word in words[name]] for name in words}
        write_ctm(folder / "ref.ctm", times)
    return place / "upper/raw/test", place / "lower/raw/test"


@pytest.fixture(scope="module")
def decoded(model, sets, tmp_path_factory):
    """The set as the model decodes it, far from the model's directory."""
    out = tmp_path_factory.mktemp("decoded") / "somewhere"
    assert cli.main(["decode", "--dump", str(sets[0]), "--model", str(model), "--out", str(out), *SEARCH]) == 0
    return out


def said_of_both(capsys, sets, *argv):
    """Exit code and output of a command for both sets, which take the place of None."""
    found = []
    for dump in sets:
        capsys.readouterr()
        code = cli.main([str(dump if word is None else word) for word in argv])
        found.append((code, capsys.readouterr().out.replace(str(dump), "DUMP")))
    return found


def test_what_was_decoded_says_that_its_model_writes_small_letters(decoded, tmp_path):
    assert json.loads((decoded / "decode.json").read_text("utf-8"))["small_letters"] is True
    assert is_of_small_letters(decoded) and is_of_small_letters(decoded / "text")
    other = shutil.copytree(decoded, tmp_path / "other")
    (other / "decode.json").unlink()
    assert not is_of_small_letters(other), "nothing is known of it"


def test_decoded_elsewhere_by_an_older_release_the_model_above_says_it(model, decoded, tmp_path):
    exp = shutil.copytree(model, tmp_path / "exp/llm")
    for name, known in (("decode_greedy", True), ("other", False)):
        place = shutil.copytree(decoded, exp / name / "test")
        (place / "decode.json").unlink()
        assert is_of_small_letters(place) == known


def test_score_and_compare(capsys, sets, decoded, tmp_path):
    score = ["score", "--ref", None, "--hyp", decoded, "--out", tmp_path / "out"]
    capitals, small = said_of_both(capsys, sets, *score)
    assert capitals == small and f"\n{WITHOUT_CASE}\n" in small[1]
    (errors,) = re.findall(r"\|WER\|20\|.*\|([\d.]+)\|[\d.]+\|\n", small[1])
    assert float(errors) < 20, "a stream settles nearly what is decoded at once"
    compare = ["compare", "--ref", None, decoded, decoded / "text"]
    capitals, small = said_of_both(capsys, sets, *compare)
    assert capitals == small and f"|{errors} [" in small[1] and ", without case" in small[1]
    assert f"{decoded}, {decoded / 'text'}: the model writes small letters, so all are compared" in small[1]


def test_texts_of_unknown_origin_are_refused_with_the_reason(capsys, sets, decoded, tmp_path):
    hypotheses = shutil.copy(decoded / "text", tmp_path / "text")
    says = "the references are in capitals, the hypotheses in small letters: compare them with --ignore-case"
    for argv in (
        ["score", "--ref", sets[0], "--hyp", hypotheses, "--out", tmp_path / "out"],
        ["compare", "--ref", sets[0], hypotheses],
    ):
        assert cli.main(list(map(str, argv))) == 2
        assert says in capsys.readouterr().err
        assert cli.main([*map(str, argv), "--ignore-case"]) == 0
        assert WITHOUT_CASE not in capsys.readouterr().out, "who knows"
    assert cli.main([*map(str, argv), "--normaliser", "basic"]) == 0, "which leaves no case"
    one = shutil.copytree(decoded, tmp_path / "one")
    (one / "decode.json").write_text("{}")
    report = ["border-report", "--decoded", one, "--dump", sets[0], "--chunk", "16"]
    assert cli.main(list(map(str, report))) == 1 and says in capsys.readouterr().err
    assert cli.main([*map(str, report), "--ignore-case"]) == 0


def test_one_of_several_makes_all_be_compared_without_case(capsys, sets, decoded, tmp_path):
    """Else the others would be worse off."""
    mixed, shouted = shutil.copytree(sets[0], tmp_path / "mixed"), tmp_path / "shouted"
    capitals = read_text(sets[0] / "text")
    write_table(mixed / "text", {name: text.capitalize() for name, text in capitals.items()})
    write_table(shouted, capitals)
    assert cli.main(["compare", "--ref", str(mixed), str(shouted), str(decoded)]) == 0
    assert "|0.0 [0.0, 0.0]|" in capsys.readouterr().out.splitlines()[2]
    assert cli.main(["compare", "--ref", str(mixed), str(shouted)]) == 0
    assert "|0.0 [" not in capsys.readouterr().out.splitlines()[2]


def test_border_report(capsys, sets, decoded):
    report = ["border-report", "--decoded", decoded, "--dump", None, "--chunk", "16"]
    capitals, small = said_of_both(capsys, sets, *report)
    assert capitals == small and WITHOUT_CASE in small[1]
    (deleted, substituted) = re.findall(r"\|all\|\d+\|([\d.]+)\|([\d.]+)\|", small[1])[0]
    assert float(deleted) + float(substituted) < 20 and "counted: 20" in small[1]


def test_robustness(capsys, sets, model):
    argv = ["robustness", "--dump", None, "--model", model, "--levels", "-5", *SEARCH]
    capitals, small = said_of_both(capsys, sets, *argv)
    assert capitals == small and small[1].endswith(f", without case\n{WITHOUT_CASE}\n")
    row = next(line for line in small[1].splitlines() if line.startswith("|as it is|"))
    assert float(re.match(r"\|as it is\|([\d.]+)", row)[1]) < 20 and int(row.split("|")[4].split(" of ")[0]) > 15


def test_latency(capsys, sets, model, tmp_path):
    argv = ["latency", "--dump", None, "--model", model, "--chunk-sizes", "0.64", *SEARCH]
    figures = []
    for dump in sets:
        out = tmp_path / dump.parents[1].name
        assert cli.main([*(str(dump if word is None else word) for word in argv), "--out", str(out)]) == 0
        content = json.loads((out / "latency.json").read_text("utf-8"))
        assert content["compared"] == "without regard to case"
        assert "- compared: `without regard to case`" in (out / "LATENCY.md").read_text("utf-8")
        (size,) = content["chunk_sizes"]
        figures.append([size["wer"], size["words"], size["delay_ms"]])
    assert figures[0] == figures[1] and figures[0][0] == 0
    assert figures[0][1]["measured"] == figures[0][1]["reference"] > 20


def test_another_model_is_refused_until_case_is_ignored(capsys, sets, tiny_model_dir, tmp_path):
    """One of small letters by the text of its training, not by its tokenizer."""
    says = "the references are in capitals, the hypotheses in small letters: compare them with --ignore-case"
    options = ["--model", str(tiny_model_dir), "--dump", str(sets[0]), *SEARCH]
    out = ["--chunk-sizes", "0.64", "--out", str(tmp_path / "out")]
    for argv in (["robustness", *options, "--levels", "-5"], ["latency", *options, *out]):
        assert cli.main(argv) == 2 and says in capsys.readouterr().err
        assert cli.main([*argv, "--ignore-case"]) == 0
        capsys.readouterr()
    content = json.loads((tmp_path / "out/latency.json").read_text("utf-8"))
    assert content["compared"] == "without regard to case"
