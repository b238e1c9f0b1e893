"""The paper's tables: the plan in conf/, the runs row by row, and TABLES.md from planted decodings."""

import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from made_tokenizers import save_hugging_face
from test_readme import driver_options
from tokenizers import normalizers

from espnet_speechllm_xl import experiment
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.config import ChunkingConfig, EncoderConfig, LossConfig
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics, plots
from espnet_speechllm_xl.evaluation.significance import Interval
from espnet_speechllm_xl.paper_tables import comparisons, records
from espnet_speechllm_xl.paper_tables.plan import PLAN as PLAN_FILE
from espnet_speechllm_xl.paper_tables.plan import Plan, check_extra
from espnet_speechllm_xl.paper_tables.trainings import Trainings
from espnet_speechllm_xl.settings import from_dict
from espnet_speechllm_xl.systems import find_task

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"

EMFORMER = {"encoder": "emformer", "encoder_conf": {"segment": 16, "left_context": 32, "right_context": 6}}
PLAN = """
corpora:
  toy:
    directory: {directory}
    size: tiny
    valid: dev
    test: eval
    tables: [I, III, IV, V]
    options: [--nj, "3"]
    aligner_args: --max_epoch 1
    train_args: --max_epoch 2
    system_args: {{ctc: --patience 5}}
systems:
  xl: {{tag: "xl_{{size}}"}}
  small: {{tag: "xl_{{size}}_c16", train_args: --chunking_conf chunk=16}}
  ctc: {{system: ctc, tag: "ctc_{{size}}", options: [--aligner-tag, "aligner_{{size}}"]}}
tables:
  I:
    title: chunk size
    plot: rows
    axis: chunk size
    sets: [valid, test]
    reference: 1.28 s
    rows:
      - {{name: 1.28 s, system: xl, search: alsd, paper: [2.5/6.9, 2.7/6.7]}}
      - {{name: 0.64 s, system: small, search: alsd}}
  III:
    title: alignment
    plot: alignment
    sets: [test]
    reference: CTC
    rows: [{{name: CTC, system: xl, search: alsd, aligned: aligner, paper_alignment: {{delay: -52, delta: 63}}}}]
  IV:
    title: length
    plot: rows
    sets: [test, test_2x]
    reference: XL
    rows: [{{name: XL, system: xl, search: alsd}}]
  V:
    title: systems
    plot: latency
    sets: [test]
    reference: XL
    rows:
      - {{name: XL, system: xl, search: greedy, paper_system: {{parameters: 199, look_ahead: 0.24, chunk: 1.28}}}}
      - {{name: CTC, system: ctc, search: greedy, paper: [3.6/8.8]}}
"""
# nan: as ESPnet logs what it does not measure
EPOCH = "{}epoch results: [train] loss=1.0, time=40 seconds, [valid] loss=1.0, wer=nan, time=10 seconds\n"

# A recipe that "trains" two epochs at once, and decodes what is asked for; fail_TAG makes it stop in between.
SCRIPT = """#!/usr/bin/env bash
set -eu
trap 'exit 130' INT  # also when it comes between two short commands, of which none dies of it
printf '%s\\n' "$0 $*" >>calls
echo "$OMP_NUM_THREADS" >>threads
while [ $# -gt 0 ]; do
  name=${1#--}; declare "${name//-/_}=$2"; shift 2
done
[ "$stop_stage" != align ] || exit 0
model=$expdir/$tag
mkdir -p "$model"
echo 'max_epoch: 2' >"$model/config.yaml"
cp log1 "$model/train.log"
while [ -e "hold_$tag" ]; do sleep 0.05; done
[ ! -e "fail_$tag" ] || exit 3
cp log2 "$model/train.log"
sets='dev eval'
[ "$stop_stage" != longform ] || sets+=' eval_2x'
for search in $searches; do
  for set in $sets; do
    out=$model/decode_$search/$set
    mkdir -p "$out"
    cp "dump/raw/$set/text" "$out/text"
    echo '{"audio_seconds": 8, "seconds": 2, "failed": 0}' >"$out/decode.json"
  done
done
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path):
    """A recipe with a fake script, a dump of 40 utterances of 10 words, of 20 speakers, and its plan."""
    lines = [f"u{index:02d} {'a ' * 10}".rstrip() + "\n" for index in range(40)]
    for name in ("dev", "eval", "eval_2x"):
        write(tmp_path / "recipe/dump/raw" / name / "text", "".join(lines))
        write(
            tmp_path / "recipe/dump/raw" / name / "utt2spk",
            "".join(f"u{index:02d} s{index % (20 if name != 'dev' else 2)}\n" for index in range(40)),
        )
    write(tmp_path / "recipe/run.sh", SCRIPT).chmod(0o755)
    write(tmp_path / "recipe/log1", EPOCH.format(1))
    write(tmp_path / "recipe/log2", EPOCH.format(1) + EPOCH.format(2))
    write(tmp_path / "plan.yaml", PLAN.format(directory=tmp_path / "recipe"))
    return tmp_path / "recipe"


def command(recipe, *options):
    return cli.main(["tables", "--corpus", "toy", "--plan", str(recipe.parent / "plan.yaml"), *options])


def plant(recipe, tag, search, dataset, wrong, config=None, epochs=2):
    """A training whose decoding has ``wrong(utterance number)`` of the 10 words substituted."""
    texts = [f"u{index:02d} " + " ".join(["b"] * wrong(index) + ["a"] * (10 - wrong(index))) for index in range(40)]
    out = recipe / "exp" / tag / f"decode_{search}" / dataset
    write(out / "text", "\n".join(texts) + "\n")
    write(out / "decode.json", json.dumps({"audio_seconds": 100.0, "seconds": 5.0, "failed": 0}))
    write(recipe / "exp" / tag / "config.yaml", yaml.safe_dump({"max_epoch": 2, **(config or EMFORMER)}))
    write(recipe / "exp" / tag / "train.log", "".join(EPOCH.format(number + 1) for number in range(epochs)))


def rows_of(text, title):
    """``{first cell: other cells}`` of all tables below a heading of a Markdown text."""
    part = text.split(f"## Table {title}:")[1].split("\n## ")[0]
    cells = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    found = {}
    for name, *others in cells:
        found.setdefault(name, []).append(others)
    return found


# The plan of the repository


CORPORA = [*yaml.safe_load(PLAN_FILE.read_text(encoding="utf-8"))["corpora"]]


@pytest.mark.parametrize("corpus", CORPORA)
def test_plan_of_the_repository(corpus):
    plan = Plan(corpus)
    known = driver_options()
    there = (ROOT / "egs2/TEMPLATE/speechllm_xl1/systems.sh").read_text(encoding="utf-8")
    tags = [plan.tag(system) for system in plan.systems]
    assert len(set(tags)) == len(tags)
    for system, one in plan.systems.items():
        options = {name.removeprefix("--") for name in plan.command(system)[1::2]}
        assert options <= known and f"\nsystem_{one.system}() {{" in there, system
        assert "{" not in " ".join(plan.command(system))
    assert f" --size {plan.corpus.size} " in (plan.directory / "run.sh").read_text(encoding="utf-8")


def test_systems_of_the_repository_are_what_their_rows_say():
    plan = Plan("mini_espeak")

    def chunking(row):
        text = plan.systems[row.system].train_args
        values = {"segment": 32, "chunk": 32, "context": 4}  # of conf/train_tiny.yaml
        values.update({name: yaml.safe_load(value) for name, value in re.findall(r"_conf (\w+)=(\S+)", text)})
        return values

    for row in (row for row in plan.tables["I"].rows if plan.systems[row.system].is_ours):
        values = chunking(row)
        assert values["chunk"] == values["segment"] == float(row.name.split()[0]) / 0.04
        assert values["chunk"] * values["context"] == 5.12 / 0.04
    for row in plan.tables["II"].rows:
        seconds = None if row.name == "infinite" else float(row.name.split()[0])
        assert chunking(row) == {"segment": 32, "chunk": 32, "context": seconds if seconds is None else seconds / 1.28}


# Of SpeechLLM-XL, by options that systems.sh adds to its configuration.
VARIANTS = ("fixed_chunk", "nonstreaming", "nonstreaming_full", "reallm")


@pytest.mark.parametrize("corpus", CORPORA)
def test_trainings_of_the_repository_take_their_options(corpus):
    plan, tried = Plan(corpus), 0
    for system, one in plan.systems.items():
        if one.system.startswith("espnet_"):
            continue
        task = "speechllm_xl" if one.system in VARIANTS else one.system
        name = f"train_{plan.corpus.size}.yaml" if task == "speechllm_xl" else f"train_{task}_{plan.corpus.size}.yaml"
        (config,) = [folder / "conf" / name for folder in (plan.directory, ROOT) if (folder / "conf" / name).is_file()]
        options = plan.command(system, 3)
        options = shlex.split(options[options.index("--train-args") + 1])
        args = find_task(task).get_parser().parse_args(["--config", str(config), *options])
        assert args.seed == 3
        encoder = from_dict(EncoderConfig, args.encoder_conf)
        if hasattr(args, "chunking_conf"):
            from_dict(ChunkingConfig, args.chunking_conf).check_against(encoder)
        if any("_ctc" in search for search in plan.searches(system)):  # needs its loss in training
            assert from_dict(LossConfig, args.loss_conf).ctc_weight > 0, system
        assert args.scheduler == "linearshares", "another number of epochs must not need another schedule"
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("reference: 1.28 s", "reference: 9 s", "table I has no row '9 s', its reference"),
        ("name: 0.64 s", "name: 1.28 s", "two rows of the same name"),
        ("plot: rows", "plot: pie", "plot 'pie' is unknown"),
        ("sets: [test]", "sets: [tset]", "set 'tset': give valid or test"),
        ("paper: [3.6/8.8]", "paper: [3.6/8.8, 1/1]", "row CTC: paper wants one entry for each of"),
        ("{ctc: --patience", "{las: --patience", "no 'las' in systems; there are: xl, small, ctc"),
        ("system: small", "system: large", "no 'large' in systems; there are: xl, small, ctc"),
        ("search: greedy, paper:", "serach: greedy, paper:", "row CTC lacks search"),
        ("system: ctc, tag", "script: run_ctc.sh, tag", "has no setting 'script'"),
        ("system: ctc, tag", "system: ctc, only: [toi], tag", "no 'toi' in corpora; there are: toy"),
        ("size: tiny", "without: [xl]\n    size: tiny", "table I is left without its reference, '1.28 s'"),
        ("axis: chunk", "axes: chunk", "tables I has no setting 'axes'; did you mean 'axis'?"),
        ("size: tiny", "without_searches: [alds]\n    size: tiny", "no row has the search 'alds' of without_searches"),
        ("tables: [I, III, IV, V]", "tables: [VI]", "no 'VI' in tables; there are: I, III, IV, V"),
        ("systems:\n", "sistems:\n", "has no section systems"),
        ("corpora:", "corpora: [", "not readable YAML"),
    ],
)
def test_mistakes_in_a_plan_are_named(recipe, capsys, old, new, message):
    path = recipe.parent / "plan.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert command(recipe, "--list") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_rows_of_another_corpus_are_left_out(recipe):
    path = recipe.parent / "plan.yaml"
    text = path.read_text(encoding="utf-8").replace("system: ctc, tag", "system: ctc, only: [other], tag")
    toy = yaml.safe_load(text)["corpora"]["toy"]
    path.write_text(text.replace("systems:\n", f"  other: {json.dumps(toy)}\nsystems:\n", 1), encoding="utf-8")
    assert [row.name for row in Plan("toy", path).tables["V"].rows] == ["XL"]
    assert [row.name for row in Plan("other", path).tables["V"].rows] == ["XL", "CTC"]


# Running rows


def test_runs_row_by_row_and_goes_on(recipe, capsys):
    (recipe / "fail_xl_tiny_c16").touch()
    assert command(recipe, "--list") == 0
    assert capsys.readouterr().out.count("missing") == 6
    assert command(recipe, "--", "--downloads", "D") == 1
    printed = capsys.readouterr()
    assert "small, seed 1 failed with status 3" in printed.err and printed.err.count("\n") == 1
    calls = (recipe / "calls").read_text(encoding="utf-8").splitlines()
    common = f"--nj 3 --downloads {os.path.abspath('D')}"  # run.sh runs elsewhere
    assert calls == [
        "./run.sh --system fixed_chunk --stop-stage align --expdir exp --align-sets eval "
        f"--aligner-args --max_epoch 1 {common}",
        "./run.sh --system fixed_chunk --stage train --stop-stage longform --tag xl_tiny --expdir exp "
        f"--searches alsd greedy --train-args --max_epoch 2 --seed 1 {common}",
        "./run.sh --system fixed_chunk --stage train --stop-stage decode --tag xl_tiny_c16 --expdir exp "
        f"--searches alsd --train-args --max_epoch 2 --chunking_conf chunk=16 --seed 1 {common}",
        "./run.sh --system ctc --stage train --stop-stage decode --tag ctc_tiny --expdir exp --searches greedy "
        f"--train-args --max_epoch 2 --patience 5 --seed 1 --aligner-tag aligner_tiny {common}",
    ]
    assert "# The paper's tables on toy" in (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    assert command(recipe, "--list") == 0
    states = capsys.readouterr().out
    assert re.search(r"I +0.64 s +small +alsd +exp/xl_tiny_c16 +training, epoch 1/2\n", states)
    assert states.count("  decoded\n") == 5
    # Only what is left.
    (recipe / "fail_xl_tiny_c16").unlink()
    assert command(recipe) == 0
    again = (recipe / "calls").read_text(encoding="utf-8").splitlines()[len(calls) :]
    assert [re.findall(r"--tag (\S+)", call) for call in again] == [[], ["xl_tiny_c16"]]
    (recipe / "calls").unlink()
    assert command(recipe) == 0
    assert not (recipe / "calls").exists()


def test_a_training_that_patience_ended_is_done(recipe, capsys):
    write(recipe / "log2", EPOCH.format(1) + "[Early stopping] valid.loss has not been improved 5 epochs\n")
    assert command(recipe) == 0
    (recipe / "calls").unlink()
    for forgotten in ("exp/ctc_tiny", "exp/xl_tiny"):  # of which the records are left
        assert command(recipe) == 0 and command(recipe, "--list") == 0
        assert capsys.readouterr().out.count("  decoded\n") == 6
        shutil.rmtree(recipe / forgotten)
    assert command(recipe) == 0 and not (recipe / "calls").exists()


def test_one_row_several_seeds_and_a_dry_run(recipe, capsys):
    options = ("--table", "V", "--row", "CTC", "--seeds", "1 3")
    assert command(recipe, *options, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "--tag ctc_tiny --expdir" in printed and "--tag ctc_tiny_s3 --expdir" in printed
    assert "--seed 3" in printed and "xl_tiny" not in printed
    assert not (recipe / "calls").exists() and not (recipe / "exp/TABLES.md").exists()
    assert command(recipe, *options) == 0
    made = {path.name for path in (recipe / "exp").iterdir()}
    assert made == {"ctc_tiny", "ctc_tiny_s3", "records", "TABLES.md", "images"}
    assert not (recipe / "TABLES.md").exists()  # that of the recipe's own records is left alone
    made = (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    assert list(rows_of(made, "I")) == ["system (WER)", "---", "1.28 s", "system"]  # the reference
    assert "\nNot trained: 0.64 s.\n" in made
    plan = Plan("toy", recipe.parent / "plan.yaml")
    there = Trainings(plan)
    assert there.seeds_in("ctc", there.names()) == [1, 3] and there.seeds_in("xl", there.names()) == []


def test_trainings_side_by_side(recipe, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    (recipe / "fail_xl_tiny_c16").touch()
    assert command(recipe, "--jobs", "2") == 1
    printed = capsys.readouterr()
    assert (recipe / "threads").read_text(encoding="utf-8").split() == ["5", "2", "2", "2"]  # alignments come first
    assert "== xl, seed 1: done" in printed.out and "== small, seed 1: failed with status 3" in printed.out
    assert "mend what stands in" in printed.err and printed.err.count("\n") == 1
    assert sorted(path.name for path in (recipe / "exp/log").iterdir()) == [
        "ctc_tiny.log", "xl_tiny.log", "xl_tiny_c16.log",
    ]  # fmt: skip
    assert sorted(path.name for path in (recipe / "exp/records").iterdir()) == [
        "ctc_tiny.json", "xl_tiny.json", "xl_tiny_c16.json",
    ]  # fmt: skip
    rows = rows_of((recipe / "exp/TABLES.md").read_text(encoding="utf-8"), "V")
    assert rows["XL"][0][2] == rows["CTC"][0][2] == "decoded"


def test_what_others_begin_with_comes_first(recipe, capsys):
    path = recipe.parent / "plan.yaml"
    text = path.read_text(encoding="utf-8").replace('tag: "xl_{size}_c16"', "after: ctc, {}")
    path.write_text(
        text.replace("after: ctc, {}", 'after: ctc, tag: "xl_{size}_c16"'), encoding="utf-8"
    )

    def called(*options):
        (recipe / "calls").unlink(missing_ok=True)
        assert command(recipe, "--row", "small", "--records", "kept", *options) == 0
        calls = (recipe / "calls").read_text(encoding="utf-8").splitlines()
        return [tag for call in calls for tag in re.findall(r"--tag (\S+)", call)]

    assert called() == ["ctc_tiny", "xl_tiny_c16"]
    # Its record does not give its weights back.
    (recipe / "exp").rename(recipe / "gone")
    (recipe / "kept/xl_tiny_c16.json").unlink()
    hold, begun = recipe / "hold_ctc_tiny", []

    def let_go():
        deadline = time.monotonic() + 60
        while not (recipe / "exp/ctc_tiny/train.log").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # in which the second job would begin
        begun.append((recipe / "exp/xl_tiny_c16").exists())
        hold.unlink()

    hold.touch()
    holder = threading.Thread(target=let_go)
    holder.start()
    assert called("--jobs", "2") == ["ctc_tiny", "xl_tiny_c16"]
    holder.join()
    assert begun == [False]
    # What it begins with may have been trained before, with older weights: they are not taken.
    shutil.rmtree(recipe / "exp")
    (recipe / "kept/xl_tiny_c16.json").unlink()
    (recipe / "fail_ctc_tiny").touch()
    (recipe / "calls").unlink()
    capsys.readouterr()
    assert command(recipe, "--row", "small", "--records", "kept") == 1
    assert "--tag xl_tiny_c16" not in (recipe / "calls").read_text(encoding="utf-8")
    assert "small, seed 1 was not begun: it begins with what failed" in capsys.readouterr().err


def test_ctrl_c_starts_nothing_more(recipe):
    (recipe / "hold_xl_tiny").touch()
    script = [sys.executable, "-m", "espnet_speechllm_xl", "tables", "--corpus", "toy"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [*script, "--plan", str(recipe.parent / "plan.yaml")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's may be ignored
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (recipe / "exp/xl_tiny/train.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "speechllm-xl tables: stopped; the same command goes on where it was\n"
    assert (recipe / "calls").read_text(encoding="utf-8").count("\n") == 2  # align and the first training


def test_failures_of_the_runs_are_named(recipe, capsys):
    (recipe / "run.sh").rename(recipe / "gone.sh")
    assert command(recipe, "--table", "V") == 1
    error = capsys.readouterr().err
    assert "run.sh: No such file or directory" in error and error.count("\n") == 1
    write(recipe / "run.sh", "#!/bin/sh\nexit 4\n").chmod(0o755)
    assert command(recipe, "--row", "small") == 1
    assert "data and alignments failed with status 4" in capsys.readouterr().err


def test_inputs_that_failed_are_named_and_the_rows_made(recipe, capsys):
    write(recipe / "run.sh", SCRIPT.replace("align ] || exit 0", "align ] || exit 1"))
    assert command(recipe, "--table", "III") == 1
    error = capsys.readouterr().err
    assert "data and alignments: some inputs failed, they are named above" in error and error.count("\n") == 1
    assert list(recipe.glob("exp/*/decode_alsd/eval/text"))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--table", "II"], "--table II: toy has the tables I, III, IV, V"),
        (["--row", "2.56 s"], "--row '2.56 s' is none of them"),
        (["--seeds", "one"], "--seeds 'one': give whole numbers"),
        (["--seeds", "0"], "--seeds '0'"),
        (["4"], "'4' is no option"),
        (["--", "--train-args", "--seed 5"], "--train-args is set by the rows"),
        (["--", "--downloads", "D", "--decode_tag", "_x"], "--decode_tag is set by the rows"),
        (["--", "--system", "ctc"], "--system is set by the rows"),
        (["--", "--dumpdir", "dump"], "--dumpdir: the tables are scored against the recipe's own dump"),
        (["--directory", "/none/there"], "/none/there does not exist"),
    ],
)
def test_wrong_use(recipe, capsys, options, message):
    assert command(recipe, *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_shell_script(recipe):
    script = [str(ROOT / "local/paper_tables.sh"), "--corpus", "an4", "--directory", str(recipe), "--table", "V"]
    done = subprocess.run([*script, "--list"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["table", "row", "system", "search", "training", "state"]
    assert len(rows) == 1 + len(Plan("an4").tables["V"].rows)
    assert all(row.endswith("missing") for row in rows[1:])
    wrong = subprocess.run([*script, "--row", "none"], capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, wrong.stdout) == (2, "")


# TABLES.md


def test_tables(recipe, capsys):
    config = {**EMFORMER, "chunking_conf": {"chunk": 32, "context": 4}}
    for seed in ("", "_s2", "_s3"):
        plant(recipe, f"xl_tiny{seed}", "alsd", "eval", lambda index: index % 2, config)  # 5 %
        # One error more in every utterance: 15 %.
        plant(recipe, f"xl_tiny_c16{seed}", "alsd", "eval", lambda index: index % 2 + 1, config)
    plant(recipe, "xl_tiny", "alsd", "dev", lambda index: 1, config)
    plant(recipe, "xl_tiny", "greedy", "eval", lambda index: index % 2, config)
    plant(recipe, "xl_tiny", "alsd", "eval_2x", lambda index: 2 * (index % 2), config)
    plant(recipe, "ctc_tiny", "greedy", "eval", lambda index: 2 * (index % 2), epochs=1)
    delays = {"delay_ms": -3.25, "delta_ms": 20.0, "words": 77}
    write(recipe / "exp/aligner/aligned/eval/report/delay.json", json.dumps(delays))
    (recipe / "exp/aligner/aligned/eval/report/delay.png").write_bytes(PNG + b"histogram")
    assert command(recipe, "--report") == 0
    assert capsys.readouterr().err == ""
    text = (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    first = rows_of(text, "I")
    rates, sizes = first["1.28 s"]
    assert rates[:3] == ["2.5/6.9", "10.0 [10.0, 10.0]", "2.7/6.7"]
    assert rates[3] == "5.0 [3.0, 7.0]"  # half of 20 speakers at 0, half at 10: a standard error of 1.1
    assert sizes[1:10] == ["0.64", "0.24", "1.28", "5.12", "1.52", "0.050", "20.0", "2", "0:01:40"]
    assert sizes[10] == "5.0 5.0 5.0"
    ours, difference, _ = first["0.64 s"]
    assert ours[:3] == ["-", "missing", "-"] and ours[3].startswith("15.0 [")
    # Paired: the difference is the same in every utterance.
    assert difference == ["missing", "**+10.0 [+10.0, +10.0]**"]
    assert "Blocks of the intervals: dev 400 words in 40 utterances; eval 400 words in 20 speakers." in text
    assert rows_of(text, "III")["CTC"][1] == ["-52", "-3.2", "63", "20.0", "77"]
    assert (recipe / "exp/images/tables_III.png").read_bytes() == PNG + b"histogram"
    fourth = rows_of(text, "IV")
    assert fourth["XL"][0][3].startswith("10.0 [")
    assert "eval_2x 400 words in 40 utterances" in text  # joined from several speakers
    fifth = rows_of(text, "V")
    assert fifth["CTC"][0][0] == "3.6/8.8" and fifth["CTC"][0][2] == "epoch 1/2, decoded 1 of 1 sets"
    assert fifth["CTC"][1][0].startswith("+5.0 [") and "**" not in fifth["CTC"][1][0]  # one seed is no finding
    assert fifth["CTC"][2][1:6] == ["0.64", "0.24", "-", "-", "0.88"]
    assert fifth["XL"][1][-3:] == ["199", "0.24", "1.28"]
    # A row's state is that of its own search: the sets which lack are the other row's.
    states = "seed 1: decoded; seed 2: epoch 2/2, decoded {0} sets; seed 3: epoch 2/2, decoded {0} sets"
    assert fifth["XL"][0][2] == states.format("0 of 1") and rates[4] == states.format("1 of 3")
    for number in ("I", "IV", "V"):
        assert (recipe / f"exp/images/tables_{number}.png").read_bytes().startswith(PNG)
        assert f"(images/tables_{number}.png)" in text


def test_what_joining_does_to_a_system(recipe, capsys):
    """Ten words each; a joined recording holds the utterance beside its namesake, so that pairing shows."""
    for seed in ("", "_s2", "_s3"):
        plant(recipe, f"xl_tiny{seed}", "alsd", "eval", lambda index: index % 2)
        plant(recipe, f"xl_tiny{seed}", "alsd", "eval_2x", lambda index: 2 - index % 2)
    title = "WER minus the same system's on the utterances alone"
    assert command(recipe, "--report") == 0
    assert title not in rows_of((recipe / "exp/TABLES.md").read_text(encoding="utf-8"), "IV")
    parts = recipe / "dump/raw/eval_2x/utt2parts"
    write(parts, "".join(f"u{index:02d} u{index ^ 1:02d}\n" for index in range(40)))
    assert command(recipe, "--records", "kept", "--report") == 0
    parts.unlink()  # what is recorded outlives the dump
    assert command(recipe, "--records", "kept", "--report") == 0
    found = rows_of((recipe / "TABLES.md").read_text(encoding="utf-8"), "IV")
    assert found[title] == [["eval_2x"]] and found["XL"][1] == ["**+10.0 [+10.0, +10.0]**"]
    write(recipe / "kept/eval_2x_utt2parts", "u00 u01 u99\n")
    assert command(recipe, "--records", "kept", "--report") == 1
    assert "xl, eval_2x against eval: joined recordings hold u99" in capsys.readouterr().err


def test_a_report_of_nothing_overwrites_nothing(recipe, capsys):
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 1)
    assert command(recipe, "--records", "kept", "--report") == 0
    before = (recipe / "TABLES.md").read_text(encoding="utf-8")
    assert command(recipe, "--records", "kept", "--list") == 0
    shutil.rmtree(recipe / "exp")
    assert command(recipe, "--records", "kpet", "--report") == 2
    error = capsys.readouterr().err
    assert f"--records kpet: no record in {recipe / 'kpet'}, and no training" in error and error.count("\n") == 1
    assert (recipe / "TABLES.md").read_text(encoding="utf-8") == before


def test_a_list_is_of_all_seeds(recipe, capsys):
    for seed in ("", "_s2"):
        plant(recipe, f"xl_tiny{seed}", "alsd", "eval", lambda index: 1)
    assert command(recipe, "--list", "--row", "1.28 s") == 0
    assert "exp/xl_tiny_s2 " in capsys.readouterr().out
    assert command(recipe, "--list", "--row", "1.28 s", "--seeds", "1") == 0
    assert "exp/xl_tiny_s2 " not in capsys.readouterr().out


def test_what_people_write_is_kept(recipe):
    assert command(recipe, "--report") == 0
    path = recipe / "exp/TABLES.md"
    first = path.read_text(encoding="utf-8")
    path.write_text(first.replace("# The paper's tables on toy\n", "# Our tables\n\nFound out: nothing.\n"), "utf-8")
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 1)
    assert command(recipe, "--report") == 0
    again = path.read_text(encoding="utf-8")
    assert again.startswith(
        "# Our tables\n\nFound out: nothing.\n\n<!-- tables: begin (written by `local/paper_tables.sh`"
    )
    assert rows_of(again, "I")["1.28 s"][0][3] == "10.0 [10.0, 10.0]"
    assert again.count("## Table I:") == 1


def test_tables_of_nothing(recipe):
    assert command(recipe, "--report") == 0
    text = (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    assert rows_of(text, "I")["1.28 s"][0] == ["2.5/6.9", "missing", "2.7/6.7", "missing", "missing"]
    assert rows_of(text, "III")["CTC"][1] == ["-52", "missing", "63", "missing", "-"]
    assert text.count("No plot yet") == 4
    path = recipe.parent / "plan.yaml"
    path.write_text(path.read_text("utf-8").replace("size: tiny", "size: tiny\n    is_the_papers: true"), "utf-8")
    assert command(recipe, "--report") == 0
    assert "The corpus here" in text and "The corpus here" not in (recipe / "exp/TABLES.md").read_text("utf-8")
    assert not (recipe / "exp/images").exists()


def test_records_outlive_the_trainings(recipe, capsys):
    """Rows from two machines: the first one's are there as records only, and nothing of them is trained again."""
    config = {**EMFORMER, "chunking_conf": {"chunk": 32, "context": 4}}
    for tag, wrong in (("xl_tiny", 1), ("xl_tiny_c16", 2)):
        for dataset in ("dev", "eval", "eval_2x"):
            plant(recipe, tag, "alsd", dataset, lambda index, wrong=wrong: wrong, config)
    plant(recipe, "xl_tiny", "greedy", "eval", lambda index: 1, config)
    delays = recipe / "exp/aligner/aligned/eval/report"
    write(delays / "delay.json", json.dumps({"delay_ms": 1.0, "delta_ms": 2.0, "words": 3}))
    (delays / "delay.png").write_bytes(PNG)
    assert command(recipe, "--records", "kept", "--report") == 0
    before = (recipe / "TABLES.md").read_text(encoding="utf-8")
    (recipe / "exp").rename(recipe.parent / "gone")
    assert command(recipe, "--records", "kept", "--report") == 0
    after = (recipe / "TABLES.md").read_text(encoding="utf-8")
    assert [line for line in after.splitlines() if not line.startswith("- date")] == [
        line for line in before.splitlines() if not line.startswith("- date")
    ]
    assert rows_of(after, "I")["0.64 s"][0] == [
        "-", "20.0 [20.0, 20.0]", "-", "20.0 [20.0, 20.0]", "decoded",
    ]  # fmt: skip
    assert re.search(r"\|xl_tiny_c16\|20\d\d-\d\d-\d\d\|\w{7,10}\|2/2\|1\|1.000\|0:01:40\|", after)
    assert command(recipe, "--records", "kept") == 0
    calls = (recipe / "calls").read_text(encoding="utf-8").splitlines()
    assert [re.findall(r"--tag (\S+)", call) for call in calls] == [[], ["ctc_tiny"]]
    capsys.readouterr()
    assert command(recipe, "--records", "kept", "--list") == 0
    assert capsys.readouterr().out.count("  decoded\n") == 6
    # Without them, all is to be made.
    assert command(recipe, "--list") == 0
    assert capsys.readouterr().out.count("missing") == 5


def test_a_record_is_not_replaced_by_less(recipe, capsys):
    for dataset in ("dev", "eval", "eval_2x"):
        plant(recipe, "xl_tiny", "alsd", dataset, lambda index: 1)
    plant(recipe, "xl_tiny", "greedy", "eval", lambda index: 1)
    assert command(recipe, "--report") == 0
    kept = recipe / "exp/records/xl_tiny.json"
    before = kept.read_bytes()
    other = {"encoder": "emformer", "encoder_conf": {**EMFORMER["encoder_conf"], "segment": 32}}
    shutil.rmtree(recipe / "exp/xl_tiny")
    plant(recipe, "xl_tiny", "greedy", "eval", lambda index: 3, other, epochs=1)
    capsys.readouterr()
    assert command(recipe, "--report") == 1
    assert f"{kept} is kept: {recipe / 'exp/xl_tiny'} is another training, and not done" in capsys.readouterr().err
    assert kept.read_bytes() == before
    for dataset in ("dev", "eval", "eval_2x"):
        plant(recipe, "xl_tiny", "alsd", dataset, lambda index: 3, other)
    plant(recipe, "xl_tiny", "greedy", "eval", lambda index: 3, other)
    assert command(recipe, "--report") == 0
    assert f"replaced: {kept}, which was of another training than the one in" in capsys.readouterr().out
    assert kept.read_bytes() != before


def test_a_record_of_any_id_is_read_again(recipe):
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 1)
    assert command(recipe, "--report") == 0
    kept = recipe / "exp/records/xl_tiny.json"
    record = records.read_record(kept)
    (one,) = record.decoded.values()
    odd = dataclasses.replace(one, counts={"words": {"a],b": [1, 10, "s],"], **one.counts["words"]}})
    changed = dataclasses.replace(record, decoded={"alsd/eval": odd})
    records.write_record(kept, changed)
    assert records.read_record(kept) == changed


def test_a_set_is_scored_anew_when_it_was_decoded_anew(recipe, monkeypatch):
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 1)
    assert command(recipe, "--report") == 0
    kept = recipe / "exp/records/xl_tiny.json"
    first = kept.read_bytes()
    monkeypatch.setattr(metrics, "score", None)
    monkeypatch.setattr(records, "write_record", None)
    assert command(recipe, "--report") == 0
    assert kept.read_bytes() == first
    monkeypatch.undo()
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 2)
    write(recipe / "exp/xl_tiny/decode_alsd/eval/decode.json", '{"audio_seconds": 100.0, "seconds": 6.0}')
    assert command(recipe, "--report") == 0
    assert records.read_record(kept).decoded["alsd/eval"].rate() == 20.0


def test_a_training_of_the_same_name_replaces_the_recorded_one(recipe):
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 1)
    assert command(recipe, "--report") == 0
    kept = recipe / "exp/records/xl_tiny.json"
    log = recipe / "exp/xl_tiny/train.log"
    text, decoded = log.read_text(encoding="utf-8"), recipe / "exp/xl_tiny/decode_alsd"
    assert "alsd/eval" in records.read_record(kept).decoded
    decoded.rename(recipe / "gone")
    assert command(recipe, "--report") == 0
    assert "alsd/eval" in records.read_record(kept).decoded  # the same training, cleaned up
    log.write_text(text.replace("loss=1.0", "loss=1.5"), encoding="utf-8")
    assert command(recipe, "--report") == 1  # another training, of which not all is decoded
    assert "alsd/eval" in records.read_record(kept).decoded
    for search, dataset in (("alsd", "dev"), ("alsd", "eval"), ("alsd", "eval_2x"), ("greedy", "eval")):
        plant(recipe, "xl_tiny", search, dataset, lambda index: 2)
    log.write_text(text.replace("loss=1.0", "loss=1.5"), encoding="utf-8")
    assert command(recipe, "--report") == 0
    assert len(records.read_record(kept).decoded) == 4


def test_weights_of_more_epochs_are_decoded_anew(recipe, capsys):
    for dataset in ("dev", "eval", "eval_2x"):
        plant(recipe, "xl_tiny", "alsd", dataset, lambda index: 1)
    weights = recipe / "exp/xl_tiny/valid.acc.ave.pth"
    torch.save({"weight": torch.ones(2)}, weights)
    made = (recipe / "exp/xl_tiny/decode_alsd/dev/decode.json").stat().st_mtime_ns
    os.utime(weights, ns=(made, made))
    assert command(recipe, "--report") == 0
    assert command(recipe, "--list", "--row", "1.28 s") == 0
    assert "  decoded\n" in capsys.readouterr().out
    # Three epochs, and nothing decoded since: neither the sets nor their record are the model's any more.
    plant(recipe, "xl_tiny", "alsd", "dev", lambda index: 2, {**EMFORMER, "max_epoch": 3}, epochs=3)
    summary = write(recipe / "exp/xl_tiny/decode_alsd/dev/decode.json", '{"audio_seconds": 100.0, "seconds": 6.0}')
    later = summary.stat().st_mtime_ns
    os.utime(weights, ns=(later, later))
    for dataset in ("eval", "eval_2x"):
        os.utime(recipe / "exp/xl_tiny/decode_alsd" / dataset / "decode.json", ns=(made, made))
    assert command(recipe, "--list", "--row", "1.28 s") == 0
    assert "epoch 3/3, decoded 1 of 3 sets" in capsys.readouterr().out
    assert command(recipe, "--report") == 0
    decoded = records.read_record(recipe / "exp/records/xl_tiny.json").decoded
    assert list(decoded) == ["alsd/dev"] and decoded["alsd/dev"].rate() == 20.0


def test_a_plan_of_more_epochs_trains_on(recipe, capsys):
    for dataset in ("dev", "eval"):
        plant(recipe, "xl_tiny_c16", "alsd", dataset, lambda index: 1)
    assert command(recipe, "--report") == 0
    path = recipe.parent / "plan.yaml"
    path.write_text(path.read_text("utf-8").replace("train_args: --max_epoch 2", "train_args: --max_epoch 5"), "utf-8")
    assert command(recipe, "--list", "--row", "0.64 s") == 0
    (recipe / "exp/xl_tiny_c16").rename(recipe.parent / "gone")  # and of its record
    assert command(recipe, "--list", "--row", "0.64 s") == 0
    assert capsys.readouterr().out.count("epoch 2/5, decoded 2 of 2 sets") == 2


def test_searches_of_one_system_are_compared_on_the_same_trainings(recipe):
    plan = Plan("toy", recipe.parent / "plan.yaml")
    for seed, wrong in (("", 1), ("_s2", 2), ("_s3", 9)):
        plant(recipe, f"xl_tiny{seed}", "alsd", "eval", lambda index, wrong=wrong: wrong)
        if wrong < 9:  # the third has not been decoded by this search
            plant(recipe, f"xl_tiny{seed}", "greedy", "eval", lambda index, wrong=wrong: wrong + 1)
    kept = records.Records(plan, recipe / "records")
    for seed in (1, 2, 3):
        kept.update("xl", seed)
    results = comparisons.Results(plan, kept)
    beam = plan.tables["I"].row("1.28 s")
    greedy = dataclasses.replace(beam, search="greedy")
    found, _, theirs = results.difference(greedy, beam, "test", "words")
    assert found.value == pytest.approx(10) and {*theirs} == {1, 2}
    assert results.cell(beam, "test").blocks.rate == pytest.approx(40)


def test_rows_of_other_references_are_not_compared(recipe, capsys):
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 1)
    plant(recipe, "ctc_tiny", "greedy", "eval", lambda index: 2)
    assert command(recipe, "--report") == 0
    kept = recipe / "exp/records/ctc_tiny.json"
    record = records.read_record(kept)
    other = {name: dataclasses.replace(one, references="0123") for name, one in record.decoded.items()}
    shutil.rmtree(recipe / "exp/ctc_tiny")
    records.write_record(kept, dataclasses.replace(record, decoded=other))
    capsys.readouterr()
    assert command(recipe, "--report") == 1
    error = capsys.readouterr().err
    assert "ctc, eval: ctc_tiny.json was scored on other references than xl_tiny.json: decode both on the same" in error


def test_recordings_and_utterances_of_other_references_are_not_subtracted(recipe, capsys):
    for seed in ("", "_s2", "_s3"):
        plant(recipe, f"xl_tiny{seed}", "alsd", "eval", lambda index: 1)
        plant(recipe, f"xl_tiny{seed}", "alsd", "eval_2x", lambda index: 4)
    write(recipe / "dump/raw/eval_2x/utt2parts", "".join(f"u{index:02d} u{index:02d}\n" for index in range(40)))
    assert command(recipe, "--report") == 0
    assert "minus the same system's" in (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    capsys.readouterr()
    kept = recipe / "exp/records/xl_tiny_s2.json"
    record = records.read_record(kept)
    shutil.rmtree(recipe / "exp/xl_tiny_s2")
    other = {name: dataclasses.replace(one, references="0123") for name, one in record.decoded.items()}
    records.write_record(kept, dataclasses.replace(record, decoded=other))
    assert command(recipe, "--report") == 1
    text = (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    assert "minus the same system's" not in text
    assert "xl, eval_2x against eval: xl_tiny_s2.json was scored on other references" in capsys.readouterr().err


def test_one_odd_record_leaves_the_others_in_the_report(recipe, capsys):
    """Of words where the plan wants characters, too; of a setting that is not known; of another speaker."""
    plan, kept = recipe.parent / "plan.yaml", recipe / "exp/records"
    for name, wrong in (("xl_tiny", 1), ("xl_tiny_c16", 2), ("ctc_tiny", 3)):
        plant(recipe, name, "alsd" if name != "ctc_tiny" else "greedy", "eval", lambda index, wrong=wrong: wrong)
    assert command(recipe, "--report") == 0
    for name in ("xl_tiny_c16", "ctc_tiny"):
        shutil.rmtree(recipe / "exp" / name)
    odd = records.read_record(kept / "xl_tiny_c16.json")
    (one,) = odd.decoded.values()
    rows = {name: [*row[:2], "another"] for name, row in one.counts["words"].items()}
    decoded = {name: dataclasses.replace(one, counts={"words": rows}) for name in odd.decoded}
    config = {"encoder": "emformer", "encoder_conf": {"sgement": 16}}
    records.write_record(kept / "xl_tiny_c16.json", dataclasses.replace(odd, decoded=decoded, config=config))
    text = plan.read_text("utf-8")
    plan.write_text(text.replace("size: tiny", "size: tiny\n    units: [words, characters]"), "utf-8")
    capsys.readouterr()
    assert command(recipe, "--report") == 1
    error = capsys.readouterr().err
    assert "xl_tiny_c16.json: encoder_conf has no setting 'sgement'" in error
    assert "0.64 s against 1.28 s, test: the two were not scored on the same references and speakers" in error
    words, characters, size = rows_of((recipe / "exp/TABLES.md").read_text("utf-8"), "I")["0.64 s"]
    assert (words[3], characters[3], size[1]) == ("20.0 [20.0, 20.0]", "missing", "-")


def test_a_report_is_of_everything(recipe, capsys):
    assert command(recipe, "--report", "--row", "CTC") == 2
    assert "leave out --table, --row and --seeds" in capsys.readouterr().err


def test_characters_are_counted_too(recipe):
    plan = recipe.parent / "plan.yaml"
    plan.write_text(
        plan.read_text("utf-8").replace("size: tiny", "size: tiny\n    units: [words, characters]"), "utf-8"
    )
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 1)
    plant(recipe, "xl_tiny_c16", "alsd", "eval", lambda index: 2)
    assert command(recipe, "--report") == 0
    text = (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    words, differences, characters, more, _ = rows_of(text, "I")["0.64 s"]
    assert words[3] == "20.0 [20.0, 20.0]" and differences[1] == "+10.0 [+10.0, +10.0]"
    # 10 letters and 9 blanks.
    assert characters[3] == "10.5 [10.5, 10.5]" and more[1] == "+5.3 [+5.3, +5.3]"
    assert "|system (CER)|" in text and "|CER minus 1.28 s|" in text
    write(plan, plan.read_text(encoding="utf-8").replace("[words, characters]", "[letters]"))
    assert command(recipe, "--report") == 2


def test_a_model_that_writes_small_letters_is_compared_without_case(recipe, capsys):
    for tag, search in (("xl_tiny", "alsd"), ("xl_tiny_c16", "alsd"), ("ctc_tiny", "greedy")):
        plant(recipe, tag, search, "eval", lambda index: index % 2)
    text = recipe / "dump/raw/eval/text"
    text.write_text("".join(f"{line[:4]}{line[4:].upper()}" for line in text.read_text().splitlines(True)))
    decoded = recipe / "exp/ctc_tiny/decode_greedy/eval/text"
    decoded.write_text("".join(f"{line[:4]}{line[4:].upper()}" for line in decoded.read_text().splitlines(True)))
    save_hugging_face(recipe / "exp/xl_tiny/tokenizer", ["a b c"], True, normalizer=normalizers.Lowercase())
    assert command(recipe, "--report") == 1
    # Of the other training in small letters no word could be right.
    path = recipe / "exp/xl_tiny_c16/decode_alsd/eval"
    says = "the references are in capitals, the hypotheses in small letters: make texts of one case of them"
    assert f"{path}: hypotheses: {says}" in capsys.readouterr().err
    report = (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    assert [row[3].split()[0] for row in rows_of(report, "I")["1.28 s"] if len(row) == 5] == ["5.0"]
    assert rows_of(report, "I")["0.64 s"][0][3] == "missing"
    assert "Compared without regard to case, as the model writes small letters: 1.28 s." in report
    assert rows_of(report, "V")["CTC"][0][1].startswith("5.0 [")
    record = json.loads((recipe / "exp/records/xl_tiny.json").read_text(encoding="utf-8"))
    assert record["decoded"]["alsd/eval"]["without_case"] is True
    # A record of before is made anew.
    record["decoded"]["alsd/eval"]["without_case"] = False
    (recipe / "exp/records/xl_tiny.json").write_text(json.dumps(record), encoding="utf-8")
    assert command(recipe, "--report") == 1
    again = json.loads((recipe / "exp/records/xl_tiny.json").read_text(encoding="utf-8"))
    assert again["decoded"]["alsd/eval"]["without_case"] is True


def test_a_damaged_record_is_named(recipe, capsys):
    write(recipe / "exp/records/ctc_tiny.json", "{")
    assert command(recipe, "--report") == 1
    assert "ctc_tiny.json is no record of a training" in capsys.readouterr().err


def test_what_cannot_be_read_is_named(recipe, capsys):
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 1)
    with open(recipe / "exp/xl_tiny/decode_alsd/eval/text", "a", encoding="utf-8") as stream:
        stream.write("u99 a\n")
    plant(recipe, "ctc_tiny", "greedy", "eval", lambda index: 1)
    write(recipe / "exp/ctc_tiny/config.yaml", "a: [")
    write(recipe / "exp/xl_tiny/1epoch.pth", "no weights")
    plant(recipe, "xl_tiny_c16", "alsd", "eval", lambda index: 1, {**EMFORMER, "chunking_conf": {"size": 32}})
    write(recipe / "exp/aligner/aligned/eval/report/delay.json", "{")
    assert command(recipe, "--report") == 1
    text = (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    errors = capsys.readouterr().err.splitlines()
    for part in (
        "u99 not in the references",
        "ctc_tiny/config.yaml, line 1 is not readable YAML",
        "delay.json is not readable",
    ):
        assert sum(part in line for line in errors) == 1 and part in text.split("## Not read")[1]
    assert sum("1epoch.pth does not load" in line for line in errors) == 1
    assert sum("xl_tiny_c16: chunking_conf has no setting 'size'" in line for line in errors) == 1
    assert rows_of(text, "I")["0.64 s"][0][3].startswith("10.0 [")  # the rest of it is there all the same
    assert rows_of(text, "V")["CTC"][0][2] == "unreadable"


def test_missing_hypotheses_are_counted(recipe):
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: 0)
    path = recipe / "exp/xl_tiny/decode_alsd/eval/text"
    path.write_text(path.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")
    command(recipe, "--report")
    text = (recipe / "exp/TABLES.md").read_text(encoding="utf-8")
    assert rows_of(text, "I")["1.28 s"][0][3].startswith("2.5 [")
    assert "eval, 1.28 s: 1 utterances without hypothesis count as deletions." in text


def test_findings_want_three_seeds_and_seeds_apart():
    clear, unclear = Interval(1.0, 0.5, 1.5), Interval(1.0, -0.1, 2.0)
    low, high, between = {1: 4.0, 2: 4.2, 3: 4.1}, {1: 5.0, 2: 5.2, 3: 5.1}, {1: 5.0, 2: 5.1, 3: 4.15}
    assert comparisons.is_finding(clear, high, low) and comparisons.is_finding(clear, low, high)
    assert not comparisons.is_finding(unclear, high, low)
    assert not comparisons.is_finding(clear, between, low)
    assert not comparisons.is_finding(clear, {1: 5.0, 2: 5.1}, low)


@pytest.mark.parametrize(
    "config, expected",
    [
        (EMFORMER, (0.64, 0.24, None, None, 0.88)),
        ({**EMFORMER, "chunking_conf": {"chunk": 6, "context": None, "delay": 12}}, (0.64, 0.24, 0.24, math.inf, 1.36)),
        ({**EMFORMER, "chunking_conf": {"chunk": None, "context": None}}, (0.64, 0.24, math.inf, math.inf, math.inf)),
        (
            {"encoder": "contextual_block_conformer", "encoder_conf": {"look_ahead": 8}},
            (0.64, 0.32, None, None, 1.6),
        ),
        (
            {"encoder": "another", "encoder_conf": {"segment": 8, "right_context": 3, "blocks": 2}},
            (0.32, 0.12, None, None, 0.44),
        ),
        ({"encoder": "vgg_rnn", "encoder_conf": {}}, (math.inf, 0, None, None, math.inf)),
    ],
)
def test_timing(config, expected):
    found = records.timing(config)
    values = (found.segment, found.look_ahead, found.chunk, found.context, found.latency)
    assert values == tuple(value if value is None else pytest.approx(value) for value in expected)


def test_parameters_are_those_of_the_model(tiny_tokens, tiny_model_dir, tmp_path):
    from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLTask
    from espnet_speechllm_xl.trained_model import load_model

    extra = [
        *tiny.conf("decoder_conf", [*tiny.DECODER, "tie_embeddings=true"]),
        *tiny.conf("loss_conf", ["ctc_weight=1"]),
    ]
    tied = tiny.write_model(tmp_path / "tied", SpeechLLMXLTask, tiny_tokens, "valid.acc_text.ave.pth", extra)
    for directory in (tiny_model_dir, tied):
        model, _, _ = load_model(directory)
        assert experiment.count_parameters(directory) == sum(value.numel() for value in model.parameters())
    assert experiment.count_parameters(tmp_path) is None


# Plots


@pytest.mark.parametrize("corpus", CORPORA)
def test_pictures_of_the_repository_are_those_that_its_tables_show(corpus):
    directory = Plan(corpus).directory
    shown = [
        name
        for path in directory.glob("TABLES*.md")
        for name in re.findall(r"\((images/\S+\.png)\)", path.read_text("utf-8"))
    ]
    assert sorted(shown) == sorted(path.relative_to(directory).as_posix() for path in directory.glob("images/tables_*"))


def written(panel):
    """The texts that stand in a panel and beside it."""
    return [text.get_text() for text in panel.texts]


def dots_of(rates, **options):
    """The panel of a dot plot of systems with these rates, each with an interval from 1 below to 1 above."""
    rows = [
        plots.DotRow(name, [Interval(rate, max(0, rate - 1), rate + 1)], name == "XL", f"{rate} s")
        for name, rate in rates.items()
    ]
    return plots.dots(rows, ["test"], **options).axes[0]


def test_rows_of_a_plot_are_sorted_and_ours_is_marked():
    panel = dots_of({"CTC": 9.0, "XL": 3.0, "LAS": 5.0}, reference="XL", notes="latency")
    labels = panel.get_yticklabels()
    assert [label.get_text() for label in labels] == ["XL", "LAS", "CTC"]
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first is at the top
    assert [label.get_fontweight() for label in labels] == ["bold", "normal", "normal"]
    assert {label.get_rotation() for label in labels} == {0}
    (legend,) = panel.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["SpeechLLM-XL", "other systems", "XL on test"]
    assert written(panel) == [
        *("system", "test", "3.0 [2.0, 4.0]", "5.0 [4.0, 6.0]", "9.0 [8.0, 10.0]"),
        *("latency", "3.0 s", "5.0 s", "9.0 s"),
    ]


def test_intervals_of_a_plot_are_whole_and_its_axis_is_linear():
    panel = dots_of({"best": 0.1, "XL": 0.9, "CTC": 1.3, "LAS": 2.5})
    low, high = panel.get_xlim()
    assert low < 0 and high > 3.5 and panel.get_xscale() == "linear"
    assert "triangle" not in panel.get_xlabel()


def test_an_outlier_of_a_plot_is_broken_off_with_a_note():
    panel = dots_of({"XL": 0.9, "CTC": 0.5, "LAS": 16.3, "none": 71.7, "RNN": 0.7}, reference="LAS")
    assert panel.get_xlim()[1] < 2.5
    triangles = [line for line in panel.lines if line.get_marker() == ">"]
    assert [line.get_ydata()[0] for line in triangles] == [3, 4]
    assert "triangle: beyond the axis" in panel.get_xlabel() and "16.3 [15.3, 17.3]" in written(panel)


@pytest.mark.parametrize(
    "values, end",
    [
        ([], 0),
        ([3], 3),
        ([1, 50], 50),  # of two, neither is an outlier
        ([1, 2, 90], 2),
        ([1, 2, 7, 90], 7),
        ([1, 1, 50, 60], 60),  # half of them
        ([0, 0, 0, 5], 5),
        ([6.7, 7.5, 8, 10, 31.8], 31.8),
    ],
)
def test_where_an_axis_ends(values, end):
    assert plots.axis_end(reversed(values)) == end


def test_a_plot_of_several_sets_and_awkward_names(tmp_path):
    value, bare = Interval(5.0, 4.0, 7.0), Interval(3.0, None, None)
    rows = [plots.DotRow("$\\infty$", [value, None]), plots.DotRow("0.32 s", [None, value], True)]
    panel = plots.dots([*rows, plots.DotRow("0 s", [value, bare])], ["dev", "$t_est$"]).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["0 s", "0.32 s", "$\\infty$"]
    assert written(panel)[2:5] == ["5.0 [4.0, 7.0]", "missing", "5.0 [4.0, 7.0]"] and written(panel)[-3:] == [
        *("3.0", "5.0 [4.0, 7.0]", "missing"),
    ]
    path = plots.save(
        plots.dots(rows, ["dev", "$t_est$"], "title $x", "CER", "0.32 s", "n", "size"), tmp_path / "a.png"
    )
    assert path.read_bytes().startswith(PNG)


def curves(name, losses, ours=False):
    """A system of one training with these training losses, and half of them in validation."""
    epochs = {epoch: {"train": {"loss": loss}, "valid": {"loss": loss / 2}} for epoch, loss in enumerate(losses, 1)}
    return plots.Curves(name, [epochs], ours)


def test_learning_curves_have_a_legend_and_comparable_axes():
    systems = [curves("xl", [2.0, 1.0], True), curves("aed", [1.6, 0.9]), curves("ctc", [80.0, 30.0])]
    figure = plots.learning_curves(systems)
    panels = figure.axes[:3]
    assert [panel.get_title() for panel in panels] == ["xl", "aed", "ctc"]
    assert [panel.title.get_fontweight() for panel in panels] == ["bold", "normal", "normal"]
    tops = [panel.get_ylim()[1] for panel in panels]
    assert tops[0] == tops[1] < 3 and tops[2] > 80
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    assert not any(written(panel) for panel in panels)


def test_a_first_epoch_does_not_squeeze_the_others():
    figure = plots.learning_curves([curves("rnn", [80.0, 7.0, 4.0, 3.0])])
    panel = figure.axes[0]
    assert 7 < panel.get_ylim()[1] < 10 and written(panel) == ["40 to 80"]
    assert figure.legends[0].get_title().get_text() == "triangle: beyond the axis"


def test_learning_curves_of_a_table_stand_beside_its_reference(recipe):
    path = recipe.parent / "plan.yaml"
    systems = "".join(f'  s{index}: {{system: ctc, tag: "s{index}"}}\n' for index in range(5))
    rows = "".join(f"      - {{name: S{index}, system: s{index}, search: greedy}}\n" for index in range(5))
    text = PLAN.format(directory=recipe).replace("tables:\n  I:", f"{systems}tables:\n  I:") + rows
    # A row of table IV is one of V's, too, beside the same reference: it is drawn once.
    path.write_text(
        text.replace("  V:\n", f"{rows.splitlines()[0]}\n  V:\n").replace(
            "[{name: XL, system: xl, search: alsd}]\n", "\n      - {name: XL, system: xl, search: alsd}\n"
        ),
        "utf-8",
    )
    for index in range(5):
        plant(recipe, f"s{index}", "greedy", "eval", lambda index: 1)
    for seed in ("", "_s2"):
        plant(recipe, f"xl_tiny{seed}", "greedy", "eval", lambda index: 1)
    assert command(recipe, "--report") == 0
    text = (recipe / "exp/TABLES.md").read_text("utf-8")
    pictures = re.findall(r"!\[Table (\w+), learning curves: (.*)\]\(images/(.*)\)", text)
    assert pictures == [
        ("IV", "xl_tiny, s0", "tables_IV_curves_1.png"),
        ("V", "xl_tiny, s1, s2, s3", "tables_V_curves_1.png"),
        ("V", "xl_tiny, s4", "tables_V_curves_2.png"),
    ]
    assert all((recipe / "exp/images" / name).read_bytes().startswith(PNG) for *_, name in pictures)
    assert text.index("## Table I:") < text.index("## Trainings") < text.index("## Environments")


def test_counts_of_a_cell_are_those_of_metrics(recipe):
    plant(recipe, "xl_tiny", "alsd", "eval", lambda index: index % 3)
    plan = Plan("toy", recipe.parent / "plan.yaml")
    kept = records.Records(plan, recipe / "records")
    kept.update("xl", 1)
    results = comparisons.Results(plan, kept)
    row = results.plan.tables["I"].row("1.28 s")
    cell = results.cell(row, "test")
    assert cell.rates == {1: metrics.percent(sum(index % 3 for index in range(40)), 400)}
    assert results.cell(row, "test") is cell
    with pytest.raises(UserError, match="is set by the rows"):
        check_extra(["--stop_stage", "align"])
