"""Data of one's own: a Kaldi directory (--kaldi-data) and an ESPnet dump (--dumpdir) feed the same model inputs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import training
import yaml
from espnet2.train.dataset import ESPnetDataset

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.config import FeatureConfig
from espnet_speechllm_xl.corpus.kaldi import read_table, write_table
from espnet_speechllm_xl.evaluation.train_log import read_train_log
from espnet_speechllm_xl.model.features import LogMel
from espnet_speechllm_xl.tokenization import load_tokenizer
from espnet_speechllm_xl.training.batches import Preprocessor, collate

ROOT = Path(__file__).resolve().parents[2]


def loaded(folder, tokenizer):
    """The collated batch of a set as training reads it."""
    streams = [(f"{folder}/{file}", name, kind) for file, name, kind in
               (("wav.scp", "speech", "sound"), ("text", "text", "text"), ("utt2spk", "spk", "text"))]  # fmt: skip
    dataset = ESPnetDataset(streams, preprocess=Preprocessor(load_tokenizer(tokenizer), training.RATE))
    return collate([dataset[name] for name in sorted(read_table(folder / "text"))])


def recordings(toy_data, names, folder):
    """``{name of a recording: (file, its utterances, their lengths in samples)}``: two utterances each."""
    audio, made = read_table(toy_data.train / "wav.scp"), {}
    for recording, pair in (("r1", names[:2]), ("r2", names[2:])):
        pieces = [soundfile.read(audio[name], dtype="int16")[0] for name in pair]
        soundfile.write(folder / f"{recording}.wav", np.concatenate(pieces), training.RATE)
        made[recording] = folder / f"{recording}.wav", pair, [*map(len, pieces)]
    return made


def segmented(toy_data, names, folder):
    """``wav.scp`` with a path and a command, and ``segments``."""
    entries, segments = {}, {}
    for recording, (file, (first, second), (edge, rest)) in recordings(toy_data, names, folder).items():
        entries[recording] = f"cat {file} |" if recording == "r1" else str(file)
        ends = edge / training.RATE, (edge + rest) / training.RATE
        segments[first] = f"{recording} 0 {ends[0]:.7f}"
        segments[second] = f"{recording} {ends[0]:.7f} {ends[1]:.7f}"
    return {"wav.scp": entries, "segments": segments}


def piped(toy_data, names, folder):
    """``wav.scp`` of commands."""
    audio = read_table(toy_data.train / "wav.scp")
    return {"wav.scp": {name: f"cat {audio[name]} |" for name in names}}


def archived(toy_data, names, folder):
    """``wav.scp`` of offsets into an archive."""
    audio = read_table(toy_data.train / "wav.scp")
    arrays = {name: (training.RATE, soundfile.read(audio[name], dtype="int16")[0]) for name in names}
    kaldiio.save_ark(str(folder / "audio.ark"), arrays, scp=str(folder / "ark.scp"))
    return {"wav.scp": read_table(folder / "ark.scp")}


def write_kaldi_dir(make, toy_data, folder):
    """A Kaldi directory, below ``folder``, of four utterances, with what ``make`` gives."""
    names = sorted(read_table(toy_data.train / "text"))[:4]
    folder.mkdir(exist_ok=True)
    tables = {file: read_table(toy_data.train / file) for file in ("text", "utt2spk")}
    tables = {file: {name: table[name] for name in names} for file, table in tables.items()}
    for file, table in {**tables, **make(toy_data, names, folder)}.items():
        write_table(folder / "set" / file, table)
    assert cli.main(["data", "check", str(folder / "set"), "--fix"]) == 0
    return folder / "set"


@pytest.fixture
def kaldi_dir(toy_data, tmp_path):
    return write_kaldi_dir(segmented, toy_data, tmp_path / "kaldi")


@pytest.fixture
def espnet_dump(toy_data, tmp_path):
    """The same four utterances as ESPnet's format_wav_scp.py leaves them."""
    folder = tmp_path / "espnet" / "raw" / "train"
    names = sorted(read_table(toy_data.train / "text"))[:4]
    for file in ("wav.scp", "text", "utt2spk", "utt2num_samples"):
        table = read_table(toy_data.train / file)
        write_table(folder / file, {name: table[name] for name in names})
    (folder / "feats_type").write_text("raw\n")
    return folder


@pytest.mark.parametrize("make", [segmented, piped, archived])
def test_kaldi_and_dump_give_the_same_inputs(make, espnet_dump, toy_data, tmp_path):
    kaldi_dir = write_kaldi_dir(make, toy_data, tmp_path / "kaldi")
    formatted = tmp_path / "dump" / "raw" / "train"
    assert cli.main(["data", "format", "--data", str(kaldi_dir), "--dump", str(formatted), "--nj", "1"]) == 0
    (names, batch), (expected_names, expected) = (loaded(path, toy_data.tokenizer) for path in (formatted, espnet_dump))
    assert names == expected_names and len(names) == 4
    assert batch.keys() == expected.keys()
    for name in batch:
        assert batch[name].equal(expected[name]), name
    assert (formatted / "text").read_text() == (espnet_dump / "text").read_text()
    assert (formatted / "utt2num_samples").read_text() == (espnet_dump / "utt2num_samples").read_text()
    log_mel = LogMel(FeatureConfig())
    features = [log_mel(each["speech"], each["speech_lengths"]) for each in (batch, expected)]
    assert features[0][0].equal(features[1][0]) and features[0][1].equal(features[1][1])


def test_a_dump_formatted_again_is_the_same(espnet_dump, toy_data, tmp_path):
    again = tmp_path / "again"
    assert cli.main(["data", "format", "--data", str(espnet_dump), "--dump", str(again), "--nj", "1"]) == 0
    batch, expected = loaded(again, toy_data.tokenizer)[1], loaded(espnet_dump, toy_data.tokenizer)[1]
    assert all(batch[name].equal(expected[name]) for name in expected)


def test_formatted_again_keeps_the_files_as_they_are(kaldi_dir, tmp_path):
    """What has not changed keeps its time: later stages compare times."""
    out = tmp_path / "dump"
    times = []
    for _ in range(2):
        assert cli.main(["data", "format", "--data", str(kaldi_dir), "--dump", str(out), "--nj", "1"]) == 0
        times.append({path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()})
    assert times[0] == times[1]
    text = read_table(kaldi_dir / "text")
    write_table(kaldi_dir / "text", {**text, next(iter(text)): "d d d"})
    assert cli.main(["data", "format", "--data", str(kaldi_dir), "--dump", str(out), "--nj", "1"]) == 0
    changed = {path.name for path, time in times[0].items() if path.stat().st_mtime_ns != time}
    assert "text" in changed and "wav.scp" not in changed


def test_driver_takes_both(run_driver, kaldi_dir, espnet_dump, tmp_path):
    common = ["--train-set", "train", "--valid-set", "train", "--test-sets", "train", "--token-type", "char", "--nj", 1]
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "train").symlink_to(kaldi_dir)
    kaldi = run_driver(
        "speechllm_xl.sh", tmp_path / "one", "--kaldi-data", tmp_path / "sets", "--stop-stage", "tokens", *common
    )
    assert kaldi.returncode == 0, kaldi.stderr
    assert "stage 2: perturb: nothing to do (no --speed-perturb)" in kaldi.stdout
    dump = run_driver(
        "speechllm_xl.sh", tmp_path / "two", "--dumpdir", espnet_dump.parents[1], "--stop-stage", "tokens", *common
    )
    assert dump.returncode == 0, dump.stderr
    assert "stage 3: format: nothing to do (--dumpdir" in dump.stdout
    files = [path / "data/tokens_train_char/tokens.txt" for path in (tmp_path / "one", tmp_path / "two")]
    assert files[0].read_text() == files[1].read_text() != ""


def test_driver_cleans_texts_and_has_tokens_of_symbols(run_driver, kaldi_dir, tmp_path):
    (tmp_path / "my sets").mkdir()
    (tmp_path / "my sets/train").symlink_to(kaldi_dir)
    text = read_table(kaldi_dir / "text")
    write_table(kaldi_dir / "text", {name: f"{line.upper()} <NOISE> E\u00c9" for name, line in text.items()})
    (tmp_path / "nlsyms").write_text("<NOISE>\n")
    sets = ["--train-set", "train", "--valid-set", "train", "--test-sets", "train", "--token-type", "char", "--nj", 1]
    options = ["--cleaner", "lower", "--nlsyms", tmp_path / "nlsyms", "--stop-stage", "tokens", *sets]
    done = run_driver("speechllm_xl.sh", tmp_path / "one", "--kaldi-data", tmp_path / "my sets", *options)
    assert done.returncode == 0, done.stderr
    cleaned = {name: f"{line} <NOISE> e\u00e9" for name, line in text.items()}
    assert read_table(tmp_path / "one/dump/raw/train/text") == cleaned
    tokens = (tmp_path / "one/data/tokens_train_char/tokens.txt").read_text().split("\n")
    assert "<NOISE>" in tokens and "N" not in tokens
    # Nothing is formatted of a dump that is taken as it is: the option would be without effect.
    done = run_driver("speechllm_xl.sh", tmp_path / "one", "--dumpdir", "dump", *options)
    assert done.returncode == 2 and "--cleaner lower: the texts of --dumpdir dump are taken as they are" in done.stderr


@pytest.mark.parametrize("make, what", [(piped, "entry is no file"), (segmented, "are parts of recordings")])
def test_a_dump_that_cannot_be_taken_as_it_is(make, what, run_driver, toy_data, tmp_path):
    write_kaldi_dir(make, toy_data, tmp_path / "raw").rename(tmp_path / "raw/train")
    sets = ["--train-set", "train", "--valid-set", "train", "--test-sets", "train"]
    done = run_driver("speechllm_xl.sh", tmp_path / "one", "--dumpdir", tmp_path, "--stop-stage", "data", *sets)
    assert done.returncode == 1
    assert what in done.stderr and "give --kaldi-data" in done.stderr


def test_one_run_names_all_sets_that_are_wrong(run_driver, kaldi_dir, tmp_path):
    """Names that are none, by their options; defects, with a command that mends them or the reason why none does."""
    for name in ("train", "valid", "good", "unsorted"):
        shutil.copytree(kaldi_dir, tmp_path / "my sets" / name)
    train, unsorted = tmp_path / "my sets/train", tmp_path / "my sets/unsorted"
    (train / "text").unlink()
    lines = (unsorted / "text").read_text().splitlines(keepends=True)
    (unsorted / "text").write_text("".join(reversed(lines)))
    run = ("speechllm_xl.sh", tmp_path / "one", "--kaldi-data", tmp_path / "my sets", "--stop-stage", "data")
    done = run_driver(*run, "--test-sets", "unsorted tset good")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    there = f"there is no {tmp_path}/my sets/{{}}; {tmp_path}/my sets has: good train unsorted valid"
    for option, name in (("--valid-set", "dev"), ("--test-sets", "tset")):
        assert f"error: {option} {name}: {there.format(name)}" in done.stderr
    assert f"{train}/text: file is missing" in done.stderr and f"cannot mend them: {train}/text does not" in done.stderr
    (command,) = re.findall(r"unsorted: 1 problem; this mends them: (.*)", done.stderr)
    subprocess.run(command, shell=True, cwd=tmp_path, env={**os.environ, "VIRTUAL_ENV": sys.prefix}, check=True)
    done = run_driver(*run, "--train-set", "good", "--valid-set", "valid", "--test-sets", "unsorted")
    assert done.returncode == 0, done.stderr


def test_one_run_names_all_sets_that_cannot_be_formatted(run_driver, kaldi_dir, tmp_path):
    for name in ("train", "dev", "test"):
        shutil.copytree(kaldi_dir, tmp_path / "sets" / name)
    for name in ("dev", "test"):
        audio = read_table(kaldi_dir / "wav.scp")
        write_table(tmp_path / "sets" / name / "wav.scp", dict.fromkeys(audio, f"{name}.wav"))
    done = run_driver(
        "speechllm_xl.sh", tmp_path / "one", "--kaldi-data", tmp_path / "sets", "--stop-stage", "tokens", "--nj", 1
    )
    assert done.returncode == 1 and done.stderr.count("no utterance could be written") == 2
    assert "stage 4" not in done.stdout


@pytest.mark.parametrize("system", ["speechllm_xl", "espnet_ctc"])
def test_where_the_data_is_must_be_said(run_driver, kaldi_dir, tmp_path, system):
    run = ("speechllm_xl.sh", tmp_path / "one", "--system", system)
    done = run_driver(*run)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "no local/data.py here to make the data: give --kaldi-data DIR" in done.stderr
    done = run_driver(*run, "--dumpdir", tmp_path / "none")
    assert done.returncode == 2 and f"--dumpdir {tmp_path}/none: no such directory" in done.stderr
    done = run_driver(*run, "--kaldi-data", kaldi_dir)
    assert done.returncode == 2 and f"{kaldi_dir} is itself a set: give the directory" in done.stderr


def test_links_to_the_scripts_work(tmp_path):
    """As ESPnet tells its users: a recipe's directory of their own, with links to the template's driver."""
    targets = [ROOT / "egs2/TEMPLATE/speechllm_xl1/speechllm_xl.sh"]
    targets += [ROOT / "local" / f"{name}.sh" for name in ("run", "longform", "paper_tables", "path", "cmd")]
    (tmp_path / "egs2/mine/asr1").mkdir(parents=True)
    for target in targets:
        (tmp_path / "egs2/mine/asr1" / target.name).symlink_to(target)
    (tmp_path / "twice.sh").symlink_to("egs2/mine/asr1/run.sh")

    def run(*command):
        environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    mine = "egs2/mine/asr1"
    for name in ("speechllm_xl", "longform", "paper_tables"):
        assert "usage" in run(f"{mine}/{name}.sh", "--help") or name == "longform"
    for name in (f"{mine}/run.sh", "./twice.sh"):
        assert run(name, "printenv", "SPEECHLLM_XL_ROOT") == f"{ROOT}\n"
    sourced = run("bash", "-ec", f'. {mine}/path.sh; . {mine}/cmd.sh; realpath "$SPEECHLLM_XL_ROOT" "$slurm_conf"')
    assert sourced.split() == [str(ROOT), str(ROOT / "conf/slurm.conf")]
    assert f"usage: {mine}/speechllm_xl.sh [" in run(f"{mine}/speechllm_xl.sh", "--help")  # what can be typed
    for script in sorted(ROOT.glob("egs2/*/speechllm_xl1/run.sh")):
        (tmp_path / script.parts[-3]).mkdir(exist_ok=True)
        (tmp_path / script.parts[-3] / script.name).symlink_to(script)
        assert "--train-set" in run(f"{script.parts[-3]}/{script.name}", "--help")


MULTICHUNK = "speechllm_xl_tiny_multichunk"


@pytest.mark.parametrize(
    "given, other, tags",
    [
        ([], [], (MULTICHUNK, "aligner_multichunk")),
        (["--vocab-size", 60], [], (MULTICHUNK, "aligner_multichunk")),
        (["--vocab-size", 60], ["--vocab-size", 70], (f"{MULTICHUNK}_bpe70", "aligner_multichunk")),
        (["--vocab-size", 60], ["--token-type", "char"], (f"{MULTICHUNK}_char", "aligner_multichunk")),
        (
            ["--system", "fixed_chunk"],
            ["--token-type", "hf", "--hf-tokenizer", "models/some-llm"],
            ("speechllm_xl_tiny_hf_some-llm", "aligner"),
        ),
        ([], ["--aligner-token-type", "bpe"], (MULTICHUNK, "aligner_multichunk_bpe100")),
        ([], ["--vocab-size", 70, "--tag", "mine"], ("mine", "aligner_multichunk")),
    ],
)
def test_experiments_are_named_after_tokens_that_are_not_the_recipes(run_driver, tmp_path, given, other, tags):
    # Both stages fail for want of data, in the directories where they would have worked.
    for stage in ("align", "decode"):
        run_driver("speechllm_xl.sh", tmp_path, *given, "--", *other, "--stage", stage, "--stop-stage", stage)
    assert {path.name for path in (tmp_path / "exp").iterdir()} == {*tags}


def test_a_training_of_these_tokens_keeps_its_name(run_driver, tmp_path):
    model = tmp_path / "exp/speechllm_xl_tiny_multichunk"
    model.mkdir(parents=True)
    (model / "config.yaml").write_text("max_epoch: 2\ntokenizer: data/tokens_train_bpe70/tokenizer.model\n")
    for size, name in ((70, "speechllm_xl_tiny_multichunk"), (80, "speechllm_xl_tiny_multichunk_bpe80")):
        run_driver("speechllm_xl.sh", tmp_path, "--stage", "decode", "--stop-stage", "decode", "--vocab-size", size)
        assert (tmp_path / "exp" / name / "decode_greedy").is_dir()
    assert len([*(tmp_path / "exp").iterdir()]) == 2


@pytest.mark.parametrize(
    "options, says",
    [
        (["--searches", "greedy alds"], "--searches: speechllm_xl has greedy alsd"),
        (["--system", "ctc", "--searches", "alsd"], "--searches: ctc has greedy prefix_beam, not 'alsd'"),
        (["--alignment", "ctmref"], "--alignment ctmref: give ctc, ctm:DIR or ctm:ref"),
        (["--train-config", "my.yaml"], "no configuration train_aligner_my.yaml here, in conf/ or in "),
        (["--test-sets", "a,b"], "--test-sets 'a,b': ESPnet cuts paths at commas: give a name without one"),
        (["--expdir", "exp/a,b"], "--expdir 'exp/a,b': ESPnet cuts paths at commas"),
        (["--tag", "a:b"], "--tag 'a:b': ESPnet cuts paths at colons"),
    ],
)
def test_mistakes_are_said_before_any_work(run_driver, tmp_path, options, says):
    (tmp_path / "one/conf").mkdir(parents=True)
    shutil.copy(ROOT / "conf/train_tiny.yaml", tmp_path / "one/conf/my.yaml")
    done = run_driver("speechllm_xl.sh", tmp_path / "one", "--kaldi-data", tmp_path, *options)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_what_needs_no_aligner_needs_no_configuration_of_one(run_driver, tmp_path):
    (tmp_path / "one/conf").mkdir(parents=True)
    shutil.copy(ROOT / "conf/train_ctc_tiny.yaml", tmp_path / "one/conf/train_ctc_my.yaml")
    options = ["--system", "ctc", "--init", "none", "--train-config", "train_ctc_my.yaml", "--kaldi-data", tmp_path]
    done = run_driver("speechllm_xl.sh", tmp_path / "one", *options)
    assert "--train-set train: there is no" in done.stderr and "has: no set" in done.stderr


def test_the_driver_knows_the_searches_of_the_tasks(run_driver, tmp_path):
    from espnet_speechllm_xl.systems import SYSTEMS, find_system

    for task in SYSTEMS:
        done = run_driver("speechllm_xl.sh", tmp_path, "--system", task, "--searches", "none", "--stage", "score")
        known = re.search(rf"--searches: {task} has (.*), not 'none'", done.stderr)[1]
        assert {*known.split()} == {*find_system(task).search_choices.classes}


def test_audio_that_fails_is_named_at_the_end(run_driver, toy_data, tmp_path):
    audio = read_table(toy_data.valid / "wav.scp")
    for name in ("train", "dev"):
        shutil.copytree(toy_data.valid, tmp_path / "sets" / name)
    write_table(tmp_path / "sets/dev/wav.scp", {**audio, next(iter(audio)): "absent.wav"})
    sets = ["--test-sets", "", "--token-type", "char", "--nj", "1"]
    done = run_driver(
        "speechllm_xl.sh", tmp_path / "one", "--kaldi-data", tmp_path / "sets", "--stop-stage", "tokens", *sets
    )
    assert done.returncode == 1 and (tmp_path / "one/data/tokens_train_char/tokens.txt").is_file(), done.stderr
    failed = "dump/raw/dev/failed"
    (line,) = (tmp_path / "one" / failed).read_text().splitlines()
    assert line.startswith(f"{next(iter(audio))} missing ")
    assert done.stdout.endswith(f"some inputs failed:\n  format: {failed}\n    {line[:200]}\n")


def test_help_shows_the_values_of_the_recipe():
    for corpus, option, value in (("an4", "train-set", "train_nodev"), ("an4", "espnet-token-type", "char"),
                                  ("mboshi", "token-type", "char")):  # fmt: skip
        done = subprocess.run([ROOT / f"egs2/{corpus}/speechllm_xl1/run.sh", "--help"], capture_output=True, text=True)
        assert re.search(rf"^  --{option} {value} +# ", done.stdout, re.MULTILINE), done.stdout


def test_a_dump_of_an_espnet_recipe_is_copied_elsewhere(run_driver, toy_data, tmp_path):
    """ESPnet's archives are read where its paths begin, in its recipe's directory, which has a dump of its own."""
    (tmp_path / "espnet/dump").mkdir(parents=True)
    write_kaldi_dir(archived, toy_data, tmp_path / "espnet/dump/raw").rename(tmp_path / "espnet/dump/raw/train")
    sets = ["--train-set", "train", "--valid-set", "train", "--test-sets", "train", "--stop-stage", "format"]
    run = ("speechllm_xl.sh", tmp_path / "espnet", "--kaldi-data", "dump/raw", *sets)
    done = run_driver(*run)
    assert done.returncode == 1 and "dump and data are the same directory" in done.stderr
    done = run_driver(*run, "--dumpdir", "dump_files")
    assert done.returncode == 0, done.stderr
    assert len(read_table(tmp_path / "espnet/dump_files/raw/train/wav.scp")) == 4


def test_a_dump_at_another_rate(run_driver, kaldi_dir, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/train").symlink_to(kaldi_dir)
    sets = ["--train-set", "train", "--valid-set", "train", "--test-sets", "train", "--stop-stage", "format"]
    options = ("--kaldi-data", tmp_path / "sets", "--sample-rate", 8000)
    done = run_driver("speechllm_xl.sh", tmp_path / "one", *options, *sets)
    assert done.returncode == 0, done.stderr
    audio = read_table(tmp_path / "one/dump/raw/train/wav.scp")
    assert {soundfile.info(tmp_path / "one" / path).samplerate for path in audio.values()} == {8000}


def test_checksums_are_of_contents_alone(tmp_path):
    for name in ("a/tokenizer", "b/tokenizer"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "one").write_text("1")
        (tmp_path / name / "two").write_text("2")
    for name in ("a/x", "b/y"):
        (tmp_path / name).write_text("x")
    script = f'. "{ROOT}/egs2/TEMPLATE/speechllm_xl1/options.sh"; checksum a/tokenizer a/x; '
    script += 'checksum ./b/y "$PWD"/b/tokenizer; checksum b/tokenizer b/y; echo 3 >a/x; checksum a/tokenizer a/x'
    (tmp_path / "driver.sh").write_text(f"set -euo pipefail\n{script}\n")
    done = subprocess.run(["bash", "driver.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, other_order, same, changed = done.stdout.splitlines()
    assert first == same != changed and other_order != first


@pytest.mark.skipif(not shutil.which("flock"), reason="without flock nobody waits")
def test_of_two_drivers_one_waits_for_the_training_of_the_other(tmp_path):
    script = tmp_path / "driver.sh"
    script.write_text(
        f'set -euo pipefail\n. "{ROOT}/egs2/TEMPLATE/speechllm_xl1/options.sh"\n'
        'lock exp/model\necho "$1 begins" >>order\nsleep "$2"\necho "$1 ends" >>order\nunlock\n'
    )
    run = {"cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(["bash", script, "first", "2"], **run) as first:
        while not (tmp_path / "order").exists():
            time.sleep(0.05)
        second = subprocess.run(["bash", script, "second", "0"], **run, check=True)
        assert first.wait() == 0
    assert "another process works on exp/model: waiting for its end" in second.stdout
    assert (tmp_path / "order").read_text().split("\n")[:-1] == [
        "first begins", "first ends", "second begins", "second ends",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "folder, answer, status, says",
    [
        ("exp", "echo 'flock: 9: No locks available' >&2; exit 71", 0, "no lock can be had on exp (flock: 9: No locks"),
        ("file/exp", "exit 0", 2, "driver.sh: error: file/exp/.lock cannot be written: Not a directory: mend that"),
        ("/proc/exp", "exit 0", 2, "driver.sh: error: /proc/exp/.lock cannot be written: No such file or directory"),
    ],
)
def test_a_lock_that_cannot_be_had(tmp_path, folder, answer, status, says):
    (tmp_path / "file").touch()
    (tmp_path / "flock").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "flock").chmod(0o755)
    script = f'set -euo pipefail\n. "{ROOT}/egs2/TEMPLATE/speechllm_xl1/options.sh"\nlock {folder}\necho on\nunlock\n'
    (tmp_path / "driver.sh").write_text(script)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "driver.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == status and says in done.stdout + done.stderr
    assert done.stdout.endswith("on\n") is (status == 0)


@pytest.fixture(scope="module")
def whole(run_driver, toy_data, tmp_path_factory):
    """All stages with a micro model and a test set ``heard`` without text: the directory, standard output, errors."""
    tmp_path = tmp_path_factory.mktemp("whole")
    sets = tmp_path / "a, b"  # of which ESPnet sees nothing
    for name, source in (("train", toy_data.train), ("dev", toy_data.valid), ("test", toy_data.valid)):
        shutil.copytree(source, sets / name)
    (sets / "heard").mkdir()
    for name in ("wav.scp", "utt2spk"):
        shutil.copy(toy_data.valid / name, sets / "heard")
    lengths = sorted(int(count) / training.RATE for count in read_table(toy_data.train / "utt2num_samples").values())
    shortest, longest = lengths[0], lengths[-1]
    micro = ROOT / "tests/conf"
    options = {
        "kaldi-data": sets,
        "token-type": "char",
        "nj": 1,
        "min-wav-duration": f"{shortest + 0.001:.4f}",
        "max-wav-duration": f"{longest - 0.001:.4f}",
        "aligner-token-type": "bpe",
        "aligner-vocab-size": 12,
        "aligner-tag": "first",
        "aligner-config": micro / "train_aligner_micro.yaml",
        "corpus-aligner-args": "--seed 5 --max_epoch 1",
        "aligner-args": "--seed 6",
        "train-config": micro / "train_micro.yaml",
        "corpus-args": "--seed 7 --max_epoch 1",
        "train-args": "--seed 8",
        "searches": "alsd",
        "beam-size": 3,
        "decode-args": "--nbest 2",
        "longform-factors": 2,
        "align-sets": "heard",
    }
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    out, err = "", ""
    for more in (
        ["--test-sets", "test heard", "--stop-stage", "decode"],
        [
            "--test-sets",
            "test",
            "--longform-ways",
            "speaker shuffled",
            "--stage",
            "longform",
            "--stop-stage",
            "longform",
        ],
        ["--test-sets", "heard", "--stage", "longform", "--stop-stage", "latency"],
    ):
        done = run_driver("speechllm_xl.sh", tmp_path / "one", *given, *more)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        out, err = out + done.stdout, err + done.stderr
    return tmp_path / "one", out, err


def test_a_set_without_text_is_decoded_not_scored_and_so_is_said(whole):
    one, out, err = whole
    for line in (
        "/heard has no text: it is decoded, not scored",
        "dump/raw/heard has no text: it is not aligned",
        "dump/raw/heard has no text: its words have no latency",
        "sets found: 6, scored: 4, unfinished: 0, failed: 0, without text: 2",
    ):
        assert line in out, line
    model = one / "exp/speechllm_xl_micro_char"
    for name in ("heard", "heard_2x"):
        dump, decoded = one / "dump/raw" / name, model / "decode_alsd" / name
        assert not (dump / "text").exists()
        assert read_table(decoded / "text", empty_values=True).keys() == read_table(dump / "wav.scp").keys()
        assert f"decode_alsd/{name}: decoded, but dump/raw/{name} has no text to score it with" in err
        assert f"decode_alsd/{name}: decoded, but" in (one / "exp/RESULTS.md").read_text()
    assert not (model / "latency").exists()


def test_test_sets_are_not_aligned_unless_asked(whole):
    assert sorted(path.name for path in (whole[0] / "exp/first/aligned").glob("*/")) == ["dev", "train"]


def test_results_lie_beside_the_models(whole):
    one, *_ = whole
    assert {path.name for path in one.iterdir()} == {"data", "dump", "exp"}
    assert "|decode_alsd/test|" in (one / "exp/RESULTS.md").read_text()
    assert (one / "exp/images/speechllm_xl_micro_char_learning_curve.png").is_file()


def test_hopeless_models_are_said_before_what_follows(whole):
    """The micro models have an epoch: nothing is learnt."""
    one, _, err = whole
    rates = [parts["valid"]["ter"] for parts in read_train_log(one / "exp/first").values()]
    assert min(rates) > 0.3 and f"warning: exp/first: its token error rate is {min(rates):.2f} at best" in err
    decoded = one / "exp/speechllm_xl_micro_char/decode_alsd"
    for path in decoded.glob("*/text"):
        empty = not any(read_table(path, empty_values=True).values())
        said = f"warning: exp/speechllm_xl_micro_char/decode_alsd/{path.parent.name}: all "
        assert (said in err) == empty


def test_options_reach_what_they_are_of(whole):
    one, *_ = whole
    skipped = read_table(one / "dump/raw/train/skipped")
    assert sorted(why.split()[0] for why in skipped.values()) == ["too-long", "too-short"]
    assert len((one / "data/tokens_train_bpe12/tokens.txt").read_text().split()) == 12
    aligner, model = (
        yaml.safe_load((one / f"exp/{name}/config.yaml").read_text()) for name in ("first", "speechllm_xl_micro_char")
    )
    assert (aligner["seed"], aligner["max_epoch"], len(aligner["token_list"])) == (6, 1, 12)
    assert (model["seed"], model["max_epoch"]) == (8, 1) and "first" in model["init_param"][0]
    decoded = one / "exp/speechllm_xl_micro_char/decode_alsd"
    names = sorted(path.name for path in decoded.glob("*/") if not path.name.startswith("heard"))
    assert names == ["dev", "test", "test_2x_shuffled", "test_2x_speaker"]
    settings = json.loads((decoded / "test/decode.json").read_text())["settings"]
    assert (settings["nbest"], settings["beam_size"]) == (2, 3) and (decoded / "test/nbest.jsonl").is_file()


def test_no_stage_can_ask_a_question(run_driver, tmp_path):
    data = tmp_path / "recipe/local/data.py"
    data.parent.mkdir(parents=True)
    data.write_text('import sys\nprint("asks" if sys.stdin.isatty() else "asks nobody")\n')
    done = run_driver("speechllm_xl.sh", tmp_path / "recipe", "--stop-stage", "data", terminal=True)
    assert done.returncode == 0 and done.stdout.endswith("stage 1: data\nasks nobody\n"), done.stdout
