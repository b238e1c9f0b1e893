"""The command: workers of two checkouts side by side, what is written, what another checkout lacks."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import espnet_speechllm_xl
from espnet_speechllm_xl.benchmarks import decoder, pipeline, startup, streams, training
from espnet_speechllm_xl.benchmarks.checkouts import Checkout, Worker, WorkerError, find_checkout, own_checkout
from espnet_speechllm_xl.benchmarks.plan import Crew, Part, Plan
from espnet_speechllm_xl.benchmarks.startup import Command
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.errors import UserError

REPO = Path(espnet_speechllm_xl.__file__).parents[1]
MICRO = ["--config", str(REPO / "tests/conf/train_micro.yaml"), "--vocab-size", "30", "--rounds", "2"]
PAUSE = 0.02  # seconds that each model call of the slow checkout sleeps
SLOWER = f"""
_quick = model_calls


def model_calls(model):
    calls = _quick(model)

    def slow(requests):
        time.sleep({PAUSE})
        return calls(requests)

    return slow
"""


@pytest.fixture
def slow_checkout(tmp_path):
    """A copy of this checkout whose model calls sleep."""
    folder = tmp_path / "slow"
    package = folder / "espnet_speechllm_xl"
    shutil.copytree(REPO / "espnet_speechllm_xl", package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(package / "decoding/engine.py", "a", encoding="utf-8") as stream:
        stream.write(SLOWER)
    return folder


@pytest.fixture
def foreign_checkout(tmp_path):
    """A checkout that has nothing of what is measured."""
    folder = tmp_path / "foreign"
    (folder / "espnet_speechllm_xl").mkdir(parents=True)
    (folder / "espnet_speechllm_xl/__init__.py").write_text("", "utf-8")
    return folder


def bench(capfd, *options):
    code = cli.main(["bench", *options])
    return code, *capfd.readouterr()


def table(text):
    """The rows of the first table of a text, as ``{head: cell}``."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    ends = [index for index, cells in enumerate(lines) if set(cells) == {"---"}][1:2]
    return [dict(zip(lines[0], cells, strict=True)) for cells in lines[2 : ends[0] - 1 if ends else None]]


def test_a_slower_checkout_shows_as_slower(slow_checkout, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(streams, "STREAM_CHUNKS", 4)
    record = tmp_path / "bench.json"
    options = ["--streams", "2", "--against", str(slow_checkout), "--json", str(record)]
    code, out, err = bench(capfd, "streams", *MICRO, *options)
    assert code == 0
    (row,) = table(out)
    assert row["streams"] == "2" and row["tokens a chunk"] == "5.0"
    assert float(row["times as fast"]) > 1.5
    assert "streams, 2 streams: round 2 of 2" in err and "|" not in err

    saved = json.loads(record.read_text("utf-8"))
    assert saved["checkouts"]["other"] == {"folder": str(slow_checkout), "commit": "slow"}
    assert saved["machine"]["cpu"] and saved["machine"]["cores"] >= 1 and saved["threads"] == 1
    assert saved["versions"]["pytorch version"] and saved["command"].startswith("speechllm-xl bench streams --config")
    (measured,) = saved["parts"]["streams"]["rows"]
    figures = measured["figures"]
    assert set(figures) == {"this", "other", "this profiled", "other profiled"}
    assert all(len(figure["seconds"]["samples"]) == 2 for figure in figures.values())
    # 2 chunks of each stream, with a call for the encoder, the prefill, and five tokens.
    assert measured["audio_seconds"] == pytest.approx(2 * 2 * 0.64)
    assert figures["other"]["seconds"]["lower_quartile"] > 2 * 7 * PAUSE


def test_tables_and_plots_are_written(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(streams, "STREAM_CHUNKS", 2)
    record, page, plots = tmp_path / "bench.json", tmp_path / "page.md", tmp_path / "plots"
    page.write_text("# Mine\n\nBefore.\n", "utf-8")
    outputs = ["--json", str(record), "--markdown", str(page), "--plots", str(plots)]
    code, out, _ = bench(capfd, "streams", "length", *MICRO, "--streams", "1", "2", "--lengths", "1.5", "3", *outputs)
    assert code == 0
    parts = json.loads(record.read_text("utf-8"))["parts"]
    assert [row["streams"] for row in parts["streams"]["rows"]] == [1, 2]
    recordings = parts["length"]["rows"]
    assert [row["seconds"] for row in recordings] == [1.5, 3.0]
    assert all(len(row["costs"]["this"]["samples"]) == 2 for row in recordings)
    text = page.read_text("utf-8")
    assert text.startswith("# Mine\n\nBefore.\n") and text.count("<!-- bench ") == 4
    assert all(line in text for line in out.splitlines() if line.startswith("|"))
    assert sorted(path.name for path in plots.iterdir()) == ["bench_length.png", "bench_streams.png"]


def test_what_another_checkout_lacks_is_a_line(foreign_checkout, capfd, monkeypatch):
    monkeypatch.setattr(decoder, "PROBE", {"megabytes": 1, "size": 64})
    code, out, err = bench(capfd, "decoder", *MICRO, "--batches", "1", "2", "--against", str(foreign_checkout))
    assert code == 1
    reason = "ModuleNotFoundError: No module named 'espnet_speechllm_xl.systems'"
    assert f"{foreign_checkout} cannot run this: {reason}" in err and f"cannot run this: {reason}" in out
    assert err.splitlines()[-1].endswith(f"{foreign_checkout} could not run decoder")
    rows = table(out)
    assert [row["batch"] for row in rows] == ["1", "2"] and "times as fast" not in rows[0]
    # Chunks of 16 frames and 5 tokens, two of them before the current one.
    assert "find 58 to 62 inputs cached" in out
    for row in rows:
        step, products, floor = (
            float(row[name].split()[0]) for name in ("token step, ms", "its products alone, ms", "floor, ms")
        )
        assert step > floor >= products > 0
        assert float(row["Hugging Face / floor"]) > 1


def test_the_pipeline_without_peers(capfd, monkeypatch):
    monkeypatch.setattr(decoder, "PROBE", {"megabytes": 1, "size": 64})
    code, out, _ = bench(capfd, "pipeline", *MICRO, "--no-peers")
    rows = {row["work"]: row for row in table(out)}
    assert code == 0 and list(rows) == [*pipeline.PARTS, "sum", pipeline.GREEDY, pipeline.BEAM_SEARCH]
    parts = [float(rows[name]["RTF"]) for name in pipeline.PARTS]
    assert 0 < float(rows["sum"]["RTF"]) and max(parts) < float(rows["sum"]["RTF"])
    assert float(rows["sum"]["RTFx"]) == pytest.approx(1 / float(rows["sum"]["RTF"]), rel=0.1)
    assert rows["sum"]["RTF / torchaudio's"] == "-" and rows[pipeline.GREEDY]["floor"] == "-"
    assert re.search(r"Beam 8 / greedy: \d+\.\d\d\.", out)


def test_training_has_a_process_for_each_length(capfd, monkeypatch):
    monkeypatch.setattr(training, "BATCH_SECONDS", 4)
    code, out, _ = bench(capfd, "training", *MICRO, "--utterances", "2", "8")
    assert code == 0 and "Utterances in a batch: 2 of 2 s, 1 of 8 s." in out
    first, second = table(out)
    assert (first["utterance, s"], second["utterance, s"]) == ("2", "8") and first["/ the first"] == "1.00"
    assert "|above the model, MB|" in out


def test_startup_of_a_trained_model(tiny_model_dir, capfd):
    code, out, _ = bench(capfd, "startup", "--model", str(tiny_model_dir), "--rounds", "1")
    ours, floor = table(out)
    assert code == 0 and ours["process"].startswith("`transcribe`") and floor["process"].endswith("'import torch'`")
    for name in ("seconds", "CPU seconds", "peak memory, MB"):
        assert float(ours[name].split()[0]) > 0 and float(floor[name].split()[0]) > 0
    assert float(ours["peak memory, MB"].split()[0]) > 100


def test_a_process_is_measured_as_a_whole():
    program = "import time; held = bytearray(300_000_000); time.sleep(0.3); end = time.process_time() + 0.2\n"
    program += "while time.process_time() < end: pass"
    measured = Command(["-c", program], REPO, 1).measure()
    assert measured["seconds"][0] >= 0.5 and 0.2 <= measured["cpu_seconds"][0]
    assert measured["peak_bytes"][0] >= 300_000_000
    assert Command(["-c", "pass"], REPO, 1).measure()["cpu_seconds"][0] < measured["cpu_seconds"][0]


def test_a_process_runs_the_package_of_its_checkout(foreign_checkout, monkeypatch):
    (foreign_checkout / "espnet_speechllm_xl/__main__.py").write_text("raise SystemExit('foreign')\n", "utf-8")
    monkeypatch.chdir(REPO)
    with pytest.raises(WorkerError, match="ended with 1: foreign"):
        Command(["-m", "espnet_speechllm_xl"], foreign_checkout, 1).measure()


def test_a_process_that_fails_says_why():
    with pytest.raises(WorkerError, match="ended with 3: no such thing"):
        Command(["-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"], REPO, 1).measure()


def test_the_package_of_the_checkout_is_loaded(foreign_checkout, monkeypatch):
    with Worker(find_checkout(foreign_checkout), threads=2) as worker:
        assert worker.open("probe", {"megabytes": 1, "size": 64, "dtype": "float32"}).measure()["sum"]
        with pytest.raises(WorkerError, match="No module named 'espnet_speechllm_xl.systems'"):
            worker.open("training", {"config": MICRO[1], "vocab_size": 30, "batch": 1, "seconds": 1})
        worker.ask(measure=0)  # it lives on
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    with pytest.raises(UserError, match="Python loads .* instead"):
        Worker(Checkout(foreign_checkout / "elsewhere", ""), threads=1)


def test_a_worker_that_dies_is_told():
    with Worker(own_checkout(), threads=1, clock="cpu") as worker:
        worker._process.kill()
        with pytest.raises(WorkerError, match=r"ended with status -9 \(memory may have run out\)"):
            worker.ask(measure=0)


def test_another_checkout_that_fails_on_the_way_is_left_out(foreign_checkout, tmp_path, capsys):
    class Counting:
        def __init__(self):
            self.turns = 0

        def measure(self):
            self.turns += 1
            return {"seconds": [1.0]}

    ours = Counting()
    plan = Plan(own_checkout(), other=find_checkout(foreign_checkout))
    part = Part("made-up", {})
    failing = Command(["-c", "import sys; sys.exit('too old')"], foreign_checkout, 1)
    figures = Crew(plan, part, tmp_path).interleave("it", {"this": ours, "other": failing}, rounds=2)
    assert list(figures) == ["this"] and figures["this"]["seconds"].samples == [1.0, 1.0]
    assert ours.turns == 4  # one of them was in vain, one warms up
    assert part.failed.endswith("ended with 1: too old") and "cannot run this" in capsys.readouterr().err
    with pytest.raises(WorkerError, match="too old"):  # a fault of this checkout is one
        own = Command(["-c", "import sys; sys.exit('too old')"], own_checkout().folder, 1)
        Crew(plan, Part("made-up", {}), tmp_path).interleave("it", {"this": own}, rounds=1)


def test_a_commit_names_a_checkout(tmp_path):
    package = tmp_path / "espnet_speechllm_xl"
    package.mkdir()
    (package / "__init__.py").write_text("", "utf-8")
    assert find_checkout(tmp_path).commit == tmp_path.name

    def git(*words):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *settings, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "--short", "HEAD")
    assert find_checkout(tmp_path) == Checkout(tmp_path, commit)
    (package / "__init__.py").write_text("1\n", "utf-8")
    assert find_checkout(tmp_path).commit == f"{commit} and changes"


def refused(capfd, *options):
    code, _, err = bench(capfd, *options)
    assert code == 2
    return err


def test_wrong_use_is_one_line(tmp_path, capfd, monkeypatch):
    assert "part 'decode' is none of decoder, streams," in refused(capfd, "decode")
    assert f"--against {tmp_path}: there is no espnet_speechllm_xl/ in it" in refused(
        capfd, "streams", "--against", str(tmp_path)
    )
    assert "--llm is where the language model of a --model is" in refused(capfd, "streams", "--llm", str(tmp_path))
    missing = str(tmp_path / "none.yaml")
    assert f"{missing} does not exist: give the YAML" in refused(capfd, "streams", "--config", missing)
    assert "does not exist: give a model directory" in refused(capfd, "length", "--model", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "--rounds", "0"])
    assert caught.value.code == 2


def test_configurations_of_the_parts():
    plan = Plan(own_checkout(), model="exp/model", llm="llm", audio="a.wav", dtype="bfloat16")
    streams = plan.configuration("train_tiny.yaml", 500)
    assert streams["model"] == str(Path("exp/model").resolve()) and streams["audio"] == str(Path("a.wav").resolve())
    assert streams["llm"] == str(Path("llm").resolve())
    assert streams["config"] == str(REPO / "conf/train_tiny.yaml") and streams["dtype"] == "bfloat16"
    untrained = plan.configuration("train_paper.yaml", 5000, trained=False)
    assert (untrained["model"], untrained["llm"]) == (None, None)
    assert Plan(own_checkout(), vocab_size=60).configuration("train_tiny.yaml", 500)["vocab_size"] == 60
    assert startup.SECONDS == 5
