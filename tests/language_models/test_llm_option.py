"""Every command that loads a trained model takes the directory of its language model, wherever that is now."""

import argparse
import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import tiny

import espnet_speechllm_xl
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.bin.options import add_llm_argument
from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
from espnet_speechllm_xl.corpus.kaldi import write_table

PACKAGE = Path(espnet_speechllm_xl.__file__).parent
# Options of these names are of a trained model; why some commands have no language model to load:
MODEL = ("model", "models")
NEED_NONE = {
    "align": "an aligner is a CTC model",
    "doubts": "reads the log of a training",
}
# The same of calls, by the file's place in the package.
LOADERS = ("Speech2Text.from_pretrained", "load_model")
CALLS_WITHOUT = {
    "sets/align.py": "an aligner is a CTC model",
    "benchmarks/gpu_checks.py": "loads models that the check itself makes",
}


def parsers(command):
    """``{name: parser}`` of a command, or of its actions."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"espnet_speechllm_xl.bin.{command.replace('-', '_')}").add_arguments(parser)
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {f"{command} {name}": sub for each in actions for name, sub in each.choices.items()} or {command: parser}


# The options of `train` are ESPnet's: it takes weights from files, and a language model by decoder_conf.
PARSERS = {
    name: parser
    for command in cli.COMMANDS
    if command not in ("train", "train-aligner")
    for name, parser in parsers(command).items()
}
LOADING = sorted(name for name, parser in PARSERS.items() if {action.dest for action in parser._actions} & {*MODEL})
NEEDING = [name for name in LOADING if name not in NEED_NONE]


def option(parser):
    """The option ``--llm`` of a parser, as far as users see it; None: it has none."""
    found = next((action for action in parser._actions if "--llm" in action.option_strings), None)
    return found and (found.option_strings, found.dest, found.metavar, found.help, found.default)


def test_every_command_that_loads_a_model_has_the_option_from_one_place():
    assert set(NEED_NONE) < set(LOADING)
    expected = argparse.ArgumentParser()
    add_llm_argument(expected)
    found = {name: option(parser) for name, parser in PARSERS.items()}
    assert found == {name: option(expected) if name in NEEDING else None for name in PARSERS}


def test_no_call_that_loads_a_model_forgets_it():
    forgetting, calls = set(), 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in LOADERS:
                continue
            calls += 1
            given = {keyword.arg for keyword in node.keywords} | {ast.unparse(argument) for argument in node.args}
            if not given & {None, "llm", "settings"}:  # None: all of a dictionary
                forgetting.add(path.relative_to(PACKAGE).as_posix())
    assert forgetting == set(CALLS_WITHOUT) and calls > 15


@pytest.fixture
def moved(trained, copies, tmp_path):
    """A training's directory, and its LLM's, which has moved."""
    directory, llm = copies(*trained("lora_rank=4"))
    return directory, llm.rename(tmp_path / "elsewhere")


@pytest.fixture
def dump(tmp_path):
    """A set of one recording."""
    folder = tmp_path / "dump"
    folder.mkdir()
    samples = tiny.speech(7, 40000)
    soundfile.write(folder / "u1.flac", samples, 16000)
    tables = {"wav.scp": folder / "u1.flac", "text": "call anna at nine", "utt2spk": "s", "utt2num_samples": 40000}
    for name, value in tables.items():
        write_table(folder / name, {"u1": str(value)})
    ends = (0.3, 0.6, 1.2, 2.0)
    words = [Word(word, end - 0.1, end) for word, end in zip("call anna at nine".split(), ends, strict=True)]
    write_ctm(folder / "ref.ctm", {"u1": words})
    return folder


SEARCH = ["--search", "greedy", "--max-tokens-per-chunk", "4"]
# How each command is called, with files of the folder "dump" and of a new one, "out"; what it then prints.
CALLS = {
    "transcribe": (["dump/u1.flac", *SEARCH], ""),
    "stream": (["dump/u1.flac", "--format", "json", *SEARCH], "{"),
    "decode": (["--dump", "dump", "--out", "out", *SEARCH], "1 utterances decoded, 0 failed"),
    "latency": (["--dump", "dump", "--out", "out", "--chunk-sizes", "0.64", *SEARCH], "1 utterances streamed"),
    "robustness": (["--dump", "dump", "--levels", "-5", *SEARCH], "as it is"),
    "endless": (["dump/u1.flac", "--hours", "0.002", "--silence", "1", *SEARCH], "| hour |"),
    "nonspeech": (["--kinds", "silence", "--minutes", "0.02", *SEARCH], "|silence|"),
    "load-test": (
        ["--audio", "dump/u1.flac", "--streams", "1", "--no-maximum", "--warm-up", "0.5", "--seconds", "4", *SEARCH],
        "|streams|",
    ),
    "border-report": (["--dump", "dump", "--chunk", "16"], "counted: 1"),
    "bench": (["streams", "--streams", "1", "--rounds", "1", "--no-peers"], "## streams"),
    "pack": (["--out", "out"], "MB; speechllm-xl transcribe"),
    "llm merge": (["--out", "out"], "MB; speechllm-xl transcribe"),
}


def test_all_of_them_are_called_here():
    assert {*CALLS, "serve"} == set(NEEDING)


@pytest.mark.parametrize("command", CALLS)
def test_a_language_model_that_was_moved_is_named(command, moved, dump, capfd, monkeypatch):
    (directory, llm), (options, says) = moved, CALLS[command]
    monkeypatch.chdir(dump.parent)
    model = [str(directory)] if command == "llm merge" else ["--model", str(directory)]
    argv = [*command.split(), *model, *options]
    assert cli.main(argv) in (1, 2)
    assert "--llm DIR" in capfd.readouterr().err
    code = cli.main([*command.split(), "--llm", "elsewhere", *model, *options])
    found = capfd.readouterr()
    assert says in found.out and "--llm" not in found.err, found.err
    assert code == 0 or command == "endless"  # an untrained model may write in silence
    assert llm.is_dir()


def test_the_server_takes_it(moved):
    directory, llm = moved
    command = [sys.executable, "-m", "espnet_speechllm_xl", "serve", "--model", directory, "--port", "0", "--llm", llm]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline().endswith("loading " + str(directory) + " ...\n")
            assert "http://127.0.0.1:" in process.stderr.readline()
        finally:
            process.kill()
