"""Prompts of a decoded set: one for all, a table, joined recordings; what is recorded; streams of `latency`."""

import json
import shutil

import pytest
import soundfile
import tiny

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.dump import format_dir
from espnet_speechllm_xl.corpus.kaldi import read_table, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.sets import decode
from espnet_speechllm_xl.sets.prompts import prompts_of_set

SAMPLES = {"a-1": 40000, "a-2": 30001, "b-1": 21000, "b-2": 25000}
TABLE = {"a-1": "call anna", "a-2": "no rain", "b-2": "no rain"}


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """A set of 4 utterances of 2 speakers."""
    root = tmp_path_factory.mktemp("recipe")
    data = root / "data"
    (data / "wav").mkdir(parents=True)
    for seed, (utterance, samples) in enumerate(SAMPLES.items(), start=60):
        soundfile.write(data / "wav" / f"{utterance}.wav", tiny.speech(seed, samples), 16000)
    write_table(data / "wav.scp", {utterance: data / "wav" / f"{utterance}.wav" for utterance in SAMPLES})
    write_table(data / "text", dict.fromkeys(SAMPLES, "no rain today"))
    write_table(data / "utt2spk", {utterance: utterance[0] for utterance in SAMPLES})
    format_dir(data, root / "dump" / "raw" / "test")
    return root / "dump" / "raw" / "test"


@pytest.fixture
def table(tmp_path):
    write_table(tmp_path / "prompts.txt", {**TABLE, "b-1": "", "z-9": "of another set"})
    return tmp_path / "prompts.txt"


OPTIONS = ("--search", "greedy", "--dtype", "float64", "--max-tokens-per-chunk", "8")


def run(capsys, command, dump, model, out, *options):
    """Return the exit code, standard output and standard error of a command."""
    base = ("--dump", dump, "--model", model, "--out", out, *OPTIONS)
    code = cli.main([str(word) for word in (command, *base, *options)])
    return code, *capsys.readouterr()


def expected(model, dump, prompts):
    """Return the scores of the utterances, each decoded alone with its prompt."""
    speech2text = Speech2Text.from_pretrained(model, search="greedy", dtype="float64", max_tokens_per_chunk=8)
    files = read_table(dump / "wav.scp")
    return {name: speech2text(file, prompt=prompts.get(name, ""))[0].score for name, file in files.items()}


def scores(out):
    return {name: float(value) for name, value in read_table(out / "score").items()}


def test_a_prompt_for_all_and_a_table_are_what_each_has_alone(capsys, dump, prompted_model_dir, table, tmp_path):
    everyone = dict.fromkeys(SAMPLES, "call anna")
    found = {}
    for name, options, prompts in [
        ("without", (), {}),
        ("all", ("--prompt", " call  anna"), everyone),
        ("table", ("--prompts", table), TABLE),
        ("two", ("--prompts", table, "--nj", "2"), TABLE),
    ]:
        code, printed, error = run(capsys, "decode", dump, prompted_model_dir, tmp_path / name, *options)
        assert code == 0, error
        found[name] = scores(tmp_path / name)
        assert found[name] == pytest.approx(expected(prompted_model_dir, dump, prompts), abs=1e-9)
        said = f"4 utterances, {len(prompts)} of them with a prompt, decoded" if prompts else "4 utterances decoded"
        assert said in printed
        assert error == ("" if "--prompts" not in options else f"{table}: 1 ids are not in {dump}: z-9\n")
        info = json.loads((tmp_path / name / "decode.json").read_text())
        assert info["prompted"] == len(prompts)
        given = {key: info["settings"][key] for key in ("prompt", "prompts") if key in info["settings"]}
        assert given == ({options[0][2:]: str(options[1])} if options else {})
        kept = tmp_path / name / "prompts"
        assert (read_table(kept) if kept.exists() else {}) == prompts
    assert len({str(one) for one in found.values()}) == 3  # the decoder reads them; two processes are as one


def test_other_prompts_are_decoded_anew(capsys, monkeypatch, dump, prompted_model_dir, table, tmp_path):
    out, calls, make_worker = tmp_path / "out", [], decode.make_worker

    def counting(settings):
        worker = make_worker(settings)
        return lambda batch: calls.append(batch) or worker(batch)

    monkeypatch.setattr(decode, "make_worker", counting)
    for options, fresh in [
        ((), True),
        (("--prompt", ""), False),
        (("--prompts", table), True),
        (("--prompts", shutil.copy(table, tmp_path / "moved")), False),  # the same prompts
        (("--prompt", "call anna"), True),
        (("--prompt", " call  anna "), False),
        (("--prompt", "call ann"), True),
        ((), True),
    ]:
        calls.clear()
        code, printed, error = run(capsys, "decode", dump, prompted_model_dir, out, *options)
        assert code == 0 and bool(calls) == fresh, (options, error)
        assert ("were decoded before by the same weights and settings" in printed) == (not fresh)
    assert not (out / "prompts").exists()


@pytest.mark.parametrize(
    "options, says",
    [
        (("--prompt", "a b " * 60), "prompt of a-1: the prompt has "),
        (("--prompts", "TABLE"), "prompt of b-2: the prompt has "),
    ],
)
def test_a_prompt_that_the_model_cannot_read_ends_it_before_any_work(
    capsys, dump, prompted_model_dir, tmp_path, options, says
):
    write_table(tmp_path / "long", {"a-1": "no rain", "b-2": "a b " * 60})
    options = [str(tmp_path / "long") if word == "TABLE" else word for word in options]
    code, _, error = run(capsys, "decode", dump, prompted_model_dir, tmp_path / "out", *options)
    assert code == 2 and says in error and "shorten the prompt" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_who_takes_no_prompt_says_so(capsys, dump, tiny_model_dir, tiny_aligner_dir, tmp_path):
    for model, says in [
        (tiny_model_dir, "trained without prompts"),
        (tiny_aligner_dir, "of task 'ctc' takes no prompt"),
    ]:
        code, _, error = run(capsys, "decode", dump, model, tmp_path / "out", "--prompt", "anna")
        assert code == 2 and error.startswith("speechllm-xl: error: prompt of ") and says in error


def test_only_one_of_the_two(capsys, dump, prompted_model_dir, table, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "decode", dump, prompted_model_dir, tmp_path / "out", "--prompts", table, "--prompt", "a")
    assert stopped.value.code == 2 and "not allowed with argument --prompts" in capsys.readouterr().err


def test_a_table_of_another_set(dump, tmp_path):
    write_table(tmp_path / "prompts", {"x-1": "anna", "x-2": "ben", "x-3": "cleo"})
    with pytest.raises(
        UserError, match=r"its ids \(x-1, x-2 and 1 more\) are none of .*test's \(a-1, a-2 and 2 more\)"
    ):
        prompts_of_set(dump, SAMPLES, "", str(tmp_path / "prompts"))
    with pytest.raises(UserError, match="/gone is no file: give one with lines `utterance prompt`"):
        prompts_of_set(dump, SAMPLES, "", str(tmp_path / "gone"))
    (tmp_path / "prompts").write_text("a-1 anna\na-1 ben\n")
    with pytest.raises(UserError, match="duplicate id with another value"):
        prompts_of_set(dump, SAMPLES, "", str(tmp_path / "prompts"))


def test_a_joined_recording_has_the_prompts_of_its_utterances(tmp_path):
    write_table(tmp_path / "utt2parts", {"a-1-x3": "a-1 a-2 a-3", "b-1-x2": "b-1 b-2", "c-1-x2": "c-1 c-2"})
    write_table(tmp_path / "table", {"a-1": "anna", "a-2": "ben  cleo", "a-3": "anna", "b-1": "", "c-1-x2": "its own"})
    found = prompts_of_set(tmp_path, ["a-1-x3", "b-1-x2", "c-1-x2"], "", str(tmp_path / "table"))
    assert found == {"a-1-x3": "anna ben cleo", "c-1-x2": "its own"}


def test_streams_of_a_set_have_a_prompt(capsys, dump, prompted_model_dir, tmp_path):
    heard = {}
    for prompt in ("", "call anna"):
        out = tmp_path / f"latency {prompt}"
        options = ("--chunk-sizes", "0.64", "--block", "0.64", "--prompt", prompt)
        code, _, error = run(capsys, "latency", dump, prompted_model_dir, out, *options)
        assert code == 0, error
        streamed = json.loads((out / "streamed_0.64.json").read_text())["runs"]
        heard[prompt] = {name: [word["text"] for word in run["words"]] for name, run in streamed.items()}
        assert json.loads((out / "latency.json").read_text()).get("prompt", "") == prompt
        assert ("- prompt: `call anna`" in (out / "LATENCY.md").read_text()) == bool(prompt)
    assert heard[""] != heard["call anna"]
    code, _, error = run(capsys, "latency", dump, prompted_model_dir, tmp_path / "x", "--prompt", "a b " * 60)
    assert code == 2 and "shorten the prompt" in error
