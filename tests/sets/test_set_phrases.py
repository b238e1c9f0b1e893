"""Phrases of a decoded set: one list for all, a table, joined recordings; what is recorded; the other commands."""

import json
import shutil

import pytest
import tiny
from test_set_prompts import SAMPLES, dump, run  # noqa: F401  # dump is a fixture

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.kaldi import read_table, write_table
from espnet_speechllm_xl.decoding.phrases import read_phrases
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.sets import decode
from espnet_speechllm_xl.sets.phrases import SetPhrases, phrases_of_set

LISTED = ["anna", "the other office :2", "seven"]
OF = {"a-1": ["anna", "seven :2"], "a-2": ["on then"], "b-2": ["anna", "seven :2"]}
TABLE = [(name, phrase) for name, phrases in OF.items() for phrase in phrases]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "list").write_text("\n".join(LISTED), encoding="utf-8")
    lines = [f"{name} {phrase}\n" for name, phrase in [*TABLE, ("b-1", ""), ("z-9", "of another set")]]
    (tmp_path / "table").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def expected(model, dump, phrases, **options):  # noqa: F811
    """Return the scores of the utterances, each decoded alone with its phrases."""
    settings = {"search": "greedy", "dtype": "float64", "max_tokens_per_chunk": 8, **options}
    speech2text = Speech2Text.from_pretrained(model, **settings)
    found = read_table(dump / "wav.scp")
    return {name: speech2text(file, phrases=phrases.get(name))[0].score for name, file in found.items()}


def scores(out):
    return {name: float(value) for name, value in read_table(out / "score").items()}


def test_a_list_and_a_table_are_what_each_has_alone(capsys, dump, tiny_model_dir, files):  # noqa: F811
    found = {}
    for name, options, phrases, boost in [
        ("without", (), {}, None),
        ("all", ("--phrases", files / "list"), dict.fromkeys(SAMPLES, LISTED), None),
        ("less", ("--phrases", files / "list", "--phrase-boost", "0.25"), dict.fromkeys(SAMPLES, LISTED), 0.25),
        ("table", ("--utterance-phrases", files / "table"), OF, None),
        ("two", ("--utterance-phrases", files / "table", "--nj", "2"), OF, None),
    ]:
        code, printed, error = run(capsys, "decode", dump, tiny_model_dir, files / f"out_{name}", *options)
        assert code == 0, error
        found[name] = scores(files / f"out_{name}")
        given = {} if boost is None else {"phrase_boost": boost}
        assert found[name] == pytest.approx(expected(tiny_model_dir, dump, phrases, **given), abs=1e-9)
        said = f"4 utterances, {len(phrases)} of them with phrases, decoded" if phrases else "4 utterances decoded"
        assert said in printed
        of_table = f"{files / 'table'}: 1 ids are not in {dump}: z-9\n"
        assert error == (of_table if "--utterance-phrases" in options else "")
        info = json.loads((files / f"out_{name}" / "decode.json").read_text())
        assert info["with_phrases"] == len(phrases)
        kept = {key: info["settings"][key] for key in ("phrases", "utterance_phrases") if key in info["settings"]}
        assert kept == ({options[0][2:].replace("-", "_"): str(options[1])} if options else {})
    assert len({str(one) for one in found.values()}) == 4  # two processes are as one


def test_other_phrases_are_decoded_anew(capsys, monkeypatch, dump, tiny_model_dir, files):  # noqa: F811
    out, calls, make_worker = files / "out", [], decode.make_worker

    def counting(settings):
        worker = make_worker(settings)
        return lambda batch: calls.append(batch) or worker(batch)

    monkeypatch.setattr(decode, "make_worker", counting)
    (files / "other").write_text("anna\n")
    for options, fresh in [
        ((), True),
        (("--phrases", files / "list"), True),
        (("--phrases", shutil.copy(files / "list", files / "moved")), False),  # the same phrases
        (("--phrases", files / "other"), True),
        (("--phrases", files / "other", "--phrase-boost", "2"), True),
        (("--utterance-phrases", files / "table"), True),
        ((), True),
    ]:
        calls.clear()
        code, printed, error = run(capsys, "decode", dump, tiny_model_dir, out, *options)
        assert code == 0 and bool(calls) == fresh, (options, error)
        assert ("were decoded before by the same weights and settings" in printed) == (not fresh)


def test_phrases_that_the_model_cannot_write_end_it_before_any_work(
    capsys,
    dump,  # noqa: F811
    tiny_model_dir,
    tiny_aligner_dir,
    files,
):
    (files / "bad").write_text("anna\nBj\u00f8rk\n", encoding="utf-8")
    (files / "bad_table").write_text("a-2 anna\nb-2 Bj\u00f8rk\n", encoding="utf-8")
    for model, options, says in [
        (
            tiny_model_dir,
            ("--phrases", files / "bad"),
            "lacks characters of phrases, 'Bj\u00f8rk' (B, j, \u00f8, k): leave these out",
        ),
        (tiny_model_dir, ("--utterance-phrases", files / "bad_table"), "phrases of b-2: the model's tokenizer lacks"),
        (tiny_aligner_dir, ("--phrases", files / "list"), "a model of task 'ctc' takes no phrases: leave them out"),
        (tiny_model_dir, ("--phrases", files / "list", "--phrase-boost", "-1"), "search phrase_boost -1.0 must not be"),
        (tiny_model_dir, ("--phrases", files / "gone"), "gone"),
    ]:
        code, _, error = run(capsys, "decode", dump, model, files / "out", *options)
        assert code == 2 and says in error and len(error.splitlines()) == 1, error
        assert not (files / "out").exists()
    with pytest.raises(SystemExit) as stopped:
        options = ("--phrases", files / "list", "--utterance-phrases", files / "table")
        run(capsys, "decode", dump, tiny_model_dir, files / "out", *options)
    assert stopped.value.code == 2 and "not allowed with argument --phrases" in capsys.readouterr().err


def test_tables(dump, tmp_path):  # noqa: F811
    path = tmp_path / "phrases"
    for text, says in [
        ("x-1 anna\nx-2 ben\n", r"its ids \(x-1, x-2\) are none of .*: give phrases of the same set"),
        ("a-1\n\nb-1 \n", "phrases holds no phrases: write lines `utterance phrase`"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            phrases_of_set(dump, SAMPLES, None, str(path))
    with pytest.raises(UserError, match="/gone is no file: give one with lines `utterance phrase`"):
        phrases_of_set(dump, SAMPLES, None, str(tmp_path / "gone"))
    assert phrases_of_set(dump, SAMPLES, None, None) is None
    assert phrases_of_set(dump, ["a", "b"], ["anna"], None) == SetPhrases([["anna"]], {"a": 0, "b": 0})


def test_a_joined_recording_has_the_phrases_of_its_utterances(tmp_path):
    write_table(tmp_path / "utt2parts", {"a-1-x3": "a-1 a-2 a-3", "b-1-x2": "b-1 b-2", "c-1-x2": "c-1 c-2"})
    lines = ["a-1 anna", "a-1 ben :2", "a-2 cleo", "a-3 anna", "c-1-x2 its own", "c-1 other", "d-1 ben :2"]
    (tmp_path / "table").write_text("\n".join(lines))
    found = phrases_of_set(tmp_path, ["a-1-x3", "b-1-x2", "c-1-x2", "d-1"], None, str(tmp_path / "table"))
    named = {name: found.lists[number] for name, number in found.of.items()}
    assert named == {"a-1-x3": ["anna", "ben :2", "cleo"], "c-1-x2": ["its own"], "d-1": ["ben :2"]}


def test_transcribe_and_stream(capsys, dump, tiny_model_dir, tiny_aligner_dir, files):  # noqa: F811
    audio = read_table(dump / "wav.scp")["a-1"]
    settings = {"search": "greedy", "max_tokens_per_chunk": 8, "phrase_boost": 1.5}
    speech2text = Speech2Text.from_pretrained(tiny_model_dir, **settings)
    lines = read_phrases(files / "list")
    options = ["--model", str(tiny_model_dir), "--search", "greedy", "--max-tokens-per-chunk", "8"]
    options += ["--phrase-boost", "1.5"]
    texts = []
    for phrases, more in [(None, []), (lines, ["--phrases", str(files / "list")])]:
        texts.append(speech2text(audio, phrases=phrases)[0].text)
        assert cli.main(["transcribe", audio, *options, *more]) == 0
        assert capsys.readouterr().out == texts[-1] + "\n"
        assert cli.main(["stream", audio, *options, *more, "--format", "text", "--endpoint-length", "60"]) == 0
        assert capsys.readouterr().out.split() == texts[-1].split()
    assert texts[0] != texts[1]
    for command in ("transcribe", "stream"):
        assert cli.main([command, audio, *options, "--phrases", str(files / "gone")]) == 2
        assert "gone" in capsys.readouterr().err
    model = ["--model", str(tiny_aligner_dir), "--phrases", str(files / "list")]
    assert cli.main(["transcribe", audio, *model]) == 2
    assert "takes no phrases" in capsys.readouterr().err


def test_the_weight_of_a_model_is_in_its_search_settings(tiny_model_dir, tmp_path):
    """`search_conf: phrase_boost` of the training, chosen on a development set, is the default."""
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    text = (model / "config.yaml").read_text()
    assert "    phrase_boost: 0.5\n" in text
    (model / "config.yaml").write_text(text.replace("phrase_boost: 0.5", "phrase_boost: 2.5"))
    audio = tiny.speech(60, 40000)
    own, given = Speech2Text.from_pretrained(model), Speech2Text.from_pretrained(tiny_model_dir, phrase_boost=2.5)
    assert own.search_config.phrase_boost == 2.5
    assert own(audio, phrases=LISTED)[0] == given(audio, phrases=LISTED)[0]
    assert own(audio, phrases=LISTED)[0] != Speech2Text.from_pretrained(tiny_model_dir)(audio, phrases=LISTED)[0]
