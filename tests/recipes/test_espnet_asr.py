"""ESPnet's own tasks as baselines: the transducer loss they import, their decoding's output, all stages of a CTC."""

import fcntl
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import training
import yaml
from slow import lattice_loss

from espnet_speechllm_xl.corpus.kaldi import read_table, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.training import compat

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """local/espnet can be imported from, and ESPnet's own tasks."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "local/espnet"), *sys.path])
    for name in ("warprnnt_pytorch", "asr_collect"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with compat.without_g2p():
        yield


# warprnnt_pytorch


@pytest.fixture
def lattice():
    """Scores (2, 5, 4, 6), labels with padding that must not count, lengths, and the loss of each."""
    joint = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    labels, frames, counts = torch.tensor([[1, 4, 4], [5, 0, 0]]), torch.tensor([5, 3]), torch.tensor([3, 1])
    losses = [
        lattice_loss(joint[i, : frames[i], : counts[i] + 1].log_softmax(-1), labels[i, : counts[i]].tolist())
        for i in range(2)
    ]
    return (joint, labels, frames, counts), losses


def test_the_loss_is_that_of_the_lattice(lattice):
    from warprnnt_pytorch import RNNTLoss

    inputs, losses = lattice
    assert RNNTLoss(reduction="none")(*inputs).tolist() == pytest.approx(losses, rel=1e-5)
    assert float(RNNTLoss(reduction="sum")(*inputs)) == pytest.approx(sum(losses), rel=1e-5)
    assert float(RNNTLoss(blank=0, fastemit_lambda=0.0)(*inputs)) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_another_blank_is_another_order_of_the_classes(lattice):
    from warprnnt_pytorch import RNNTLoss

    (joint, labels, *lengths), losses = lattice
    turned = joint.roll(-1, dims=-1)  # class k becomes k - 1, the blank the last
    assert RNNTLoss(blank=5, reduction="none")(turned, labels - 1, *lengths).tolist() == pytest.approx(losses, rel=1e-5)


def test_the_gradient_is_that_of_differences(lattice):
    from warprnnt_pytorch import RNNTLoss

    (joint, *rest), _ = lattice
    joint = joint.requires_grad_()
    RNNTLoss()(joint, *rest).backward()
    step = torch.zeros_like(joint)
    step[0, 2, 1, 4] = 0.05
    with torch.no_grad():
        slope = (RNNTLoss()(joint + step, *rest) - RNNTLoss()(joint - step, *rest)) / 0.1
    assert float(joint.grad[0, 2, 1, 4]) == pytest.approx(float(slope), abs=1e-3) and abs(float(slope)) > 0.01


def test_half_precision_is_summed_in_float32(lattice):
    from warprnnt_pytorch import RNNTLoss

    (joint, *rest), _ = lattice
    half = joint.bfloat16()
    assert torch.equal(RNNTLoss()(half, *rest), RNNTLoss()(half.float(), *rest))


def test_what_torchaudio_lacks_is_refused():
    from warprnnt_pytorch import RNNTLoss

    with pytest.raises(ValueError, match="fastemit_lambda 0.1: .* give 0"):
        RNNTLoss(fastemit_lambda=0.1)


# Joining what the jobs wrote


@pytest.fixture
def jobs(tmp_path):
    """A set of three utterances, decoded by two jobs; one text is empty."""
    write_table(tmp_path / "dump/wav.scp", {name: f"{name}.flac" for name in "abc"})
    for job, texts, speed in (("1", {"c": "d a", "a": "b"}, (0.5, 32000)), ("2", {"b": ""}, (0.25, 16000))):
        out = tmp_path / "parts" / job
        for name in ("text", "token", "token_int", "score"):
            write_table(
                out / "1best_recog" / name, {key: text if name == "text" else name for key, text in texts.items()}
            )
        (out / "speed.json").write_text(json.dumps(dict(zip(("seconds", "samples"), speed, strict=True))))
    (tmp_path / "parts/keys.1").write_text("c\na\n")
    return tmp_path


def test_jobs_are_joined(jobs, capsys):
    import asr_collect

    paths = [*("--parts", jobs / "parts"), *("--dump", jobs / "dump"), *("--out", jobs / "out")]
    options = [*("--device", "cuda"), *("--config", "conf/decode_asr_x_beam.yaml"), *("--sample-rate", "8000")]
    assert asr_collect.main([*map(str, paths), *options]) == 0
    assert (jobs / "out/text").read_text() == "a b\nb\nc d a\n"
    assert (jobs / "out/token_int").read_text() == "a token_int\nb token_int\nc token_int\n"
    summary = json.loads((jobs / "out/decode.json").read_text())
    settings = {"device": "cuda", "config": "decode_asr_x_beam.yaml"}
    assert summary == {
        "utterances": 3, "failed": 0, "audio_seconds": 6.0, "seconds": 0.75, "device": "cuda", "settings": settings,
    }  # fmt: skip
    assert capsys.readouterr().out.endswith("3 utterances decoded; RTF 0.125, RTFx 8.0\n")


def test_an_utterance_that_no_job_wrote_is_named(jobs):
    import asr_collect

    with open(jobs / "dump/wav.scp", "a", encoding="utf-8") as stream:
        stream.write("d d.flac\n")
    with pytest.raises(UserError, match="1 utterances were not decoded, first d$"):
        asr_collect.collect(jobs / "parts", jobs / "dump", jobs / "out", {"device": "cpu"}, 16000)
    assert not (jobs / "out").exists()


# All stages


@pytest.fixture(scope="module")
def recipe(toy_data, tmp_path_factory):
    """A recipe's directory with a dump of two sets, and the options of its driver."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "dump").mkdir()
    (folder / "dump/raw").symlink_to(toy_data.train.parent)
    (folder / "conf/espnet").mkdir(parents=True)
    (folder / "conf/espnet/decode_asr_ctc_greedy.yaml").write_text("beam_size: 1\nctc_weight: 1.0\nnum_workers: 0\n")
    options = [
        *("--train-set", "train", "--valid-set", "valid", "--test-sets", "", "--token-type", "char", "--"),
        "--nj",
        "1",
    ]
    options += ["--dumpdir", "dump", "--system", "espnet_ctc"]
    return folder, [*options, "--train-config", ROOT / "tests/conf/train_asr_ctc_micro.yaml", "--searches", "greedy"]


def test_all_stages(run_driver, recipe):
    folder, options = recipe
    done = run_driver("speechllm_xl.sh", folder, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    model = folder / "exp/asr_ctc_micro"
    pieces = (folder / "data/tokens_train_char/tokens.txt").read_text().split()
    assert (model / "tokens.txt").read_text().split() == ["<blank>", *pieces, "<sos/eos>"]
    epochs = training.history(model)
    assert len(epochs) == 3 and epochs[3]["train"]["loss"] < epochs[1]["train"]["loss"]
    for line in ("epoch 3/3: train loss", "Total Number of model parameters:"):
        assert line in done.stdout
    out = model / "decode_greedy/valid"
    assert read_table(out / "text").keys() == read_table(folder / "dump/raw/valid/text").keys()
    summary = json.loads((out / "decode.json").read_text())
    samples = sum(map(int, read_table(folder / "dump/raw/valid/utt2num_samples").values()))
    assert summary["utterances"] == 4 and summary["audio_seconds"] == samples / training.RATE
    assert 0 < summary["seconds"] < 60
    assert all((out / f"score_{kind}/result.txt").is_file() for kind in ("wer", "cer", "ter"))
    results = (folder / "exp/RESULTS.md").read_text()
    assert results.count("|decode_greedy/valid|4|") == 4  # three rates and the speed
    assert "command: `speechllm_xl.sh --train-set train" in results

    text = (out / "text").stat().st_mtime_ns
    again = run_driver("speechllm_xl.sh", folder, *options, "--stage", "decode", "--stop-stage", "decode")
    assert again.returncode == 0 and "was decoded before by the same weights" in again.stdout, again.stderr
    assert (out / "text").stat().st_mtime_ns == text

    changed = ["--stage", "train", "--train-args", "--seed 4 --max_epoch 9"]
    other = run_driver("speechllm_xl.sh", folder, *options, *changed)
    assert other.returncode != 0 and "was trained with another seed (was 3, is 4)" in other.stderr
    assert len(training.history(model)) == 3


@pytest.mark.parametrize("system", ["transducer", "las", "contextual_block_conformer"])
def test_the_other_systems_are_trained_and_decoded_with_their_searches(run_driver, recipe, system):
    folder, options = recipe
    options = [*options, "--system", f"espnet_{system}", "--searches", ""]
    options += ["--train-config", ROOT / f"tests/conf/train_asr_{system}_micro.yaml"]
    options += ["--decode-args", "--num_workers 0 --beam_size 3", "--stop-stage", "decode"]
    done = run_driver("speechllm_xl.sh", folder, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    model, wanted = folder / f"exp/asr_{system}_micro", read_table(folder / "dump/raw/valid/text").keys()
    searches = sorted(path.stem for path in (ROOT / "conf/espnet").glob(f"decode_asr_{system}_*.yaml"))
    decoded = sorted(path.name for path in model.glob("decode_*"))
    assert decoded == [name.replace(f"asr_{system}_", "") for name in searches] and decoded
    for name in decoded:
        assert read_table(model / name / "valid/text", empty_values=True).keys() == wanted
    (log,) = (model / decoded[0] / "valid/log").glob("decode.1.log")
    assert ("asr_inference_streaming" in log.read_text()) == (system == "contextual_block_conformer")


@pytest.fixture(scope="module")
def trained(run_driver, recipe):
    """The recipe with a trained model, by whichever test is the first to want it."""
    folder, options = recipe
    done = run_driver("speechllm_xl.sh", folder, *options, "--stop-stage", "train")
    assert done.returncode == 0, done.stderr
    return recipe


@pytest.mark.parametrize(
    ("stage", "file", "message"),
    [
        ("train", "checkpoint.pth", "checkpoint.pth cannot be resumed ("),
        ("decode", "valid.cer_ctc.ave.pth", "valid.cer_ctc.ave.pth does not load ("),
    ],
)
def test_damaged_weights_ask_no_question_at_a_terminal(run_driver, trained, tmp_path, stage, file, message):
    """ESPnet from 202609 on would ask whether to load them unsafely."""
    folder, options = trained
    copy = shutil.copytree(folder, tmp_path / "recipe", symlinks=True)
    (copy / "exp/asr_ctc_micro" / file).write_bytes(b"not weights\n" * 9)
    done = run_driver("speechllm_xl.sh", copy, *options, "--stage", stage, "--stop-stage", stage, terminal=True)
    assert done.returncode != 0 and message in done.stdout, done.stdout
    assert "Traceback" not in done.stdout and "Type exactly" not in done.stdout


@pytest.mark.skipif(not shutil.which("flock"), reason="without flock nobody waits")
def test_one_decoding_at_a_time(run_driver, trained):
    folder, options = trained
    lock = folder / "exp/asr_ctc_micro/decode_greedy/.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool, open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        command = ["speechllm_xl.sh", folder, *options, "--stage", "decode", "--stop-stage", "decode"]
        second, begin = pool.submit(run_driver, *command), time.monotonic()
        # The kernel lists who waits for the lock; where it does not, the time must do.
        waits, locks = re.compile(rf"-> FLOCK .*:{lock.stat().st_ino} "), Path("/proc/locks")
        while not (locks.exists() and waits.search(locks.read_text())) and time.monotonic() - begin < 30:
            time.sleep(0.1)
        fcntl.flock(held, fcntl.LOCK_UN)
        done = second.result()
    assert done.returncode == 0, done.stderr
    assert "another process works on exp/asr_ctc_micro/decode_greedy: waiting" in done.stdout


def test_a_dump_at_another_rate_is_refused(run_driver, recipe):
    folder, options = recipe
    wrong = ["--tag", "narrow", "--train-args", "--frontend_conf fs=8k", "--stop-stage", "train"]
    done = run_driver("speechllm_xl.sh", folder, *options, *wrong)
    assert done.returncode != 0
    assert (
        "audio at 16000 Hz, but frontend_conf fs is 8000: give run.sh --sample-rate 8000" in done.stderr + done.stdout
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--stage", "decode", "--valid-set", "none"], "run the stages before this one"),
        (["--stage", "decode", "--tag", "none"], "exp/none holds no valid.*.ave.pth: run the train stage"),
        (
            ["--stage", "train", "--token-type", "bpe", "--vocab-size", "7"],
            "data/tokens_train_bpe7/tokenizer.model is not there: run the stages before this one",
        ),
        (["--token-type", "hf"], "give bpe, unigram or char"),
        (["--train-config", "nothing.yaml"], "no configuration nothing.yaml here"),
        (["--asr-args", "--max_epoch 2"], "unknown option --asr-args; "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run_driver, trained, wrong, message):
    folder, options = trained
    (folder / "data/tokens_train_char").mkdir(parents=True, exist_ok=True)
    (folder / "data/tokens_train_char/tokenizer.model").touch()
    done = run_driver("speechllm_xl.sh", folder, *options, *wrong)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("corpus", ["an4", "fsdd", "librispeech", "ljspeech", "mboshi", "mini_espeak", "mini_mandarin"])
def test_recipes_give_options_that_the_driver_has(corpus):
    # The recipe's own options are read before --help.
    done = subprocess.run([ROOT / f"egs2/{corpus}/speechllm_xl1/run.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: ./run.sh" in done.stdout and "--train-set" in done.stdout, done.stderr


def test_every_system_has_searches_and_all_sizes():
    shared, own = ROOT / "conf/espnet", ROOT / "egs2/an4/speechllm_xl1/conf/espnet"
    sizes = {"tiny": shared, "paper": shared, "an4": own}
    found = {
        size: {path.stem[: -len(size) - 1].removeprefix("train_") for path in folder.glob(f"train_*_{size}.yaml")}
        for size, folder in sizes.items()
    }
    assert found["tiny"] == found["paper"] == found["an4"] and len(found["tiny"]) == 4
    for system in found["tiny"]:
        assert list(shared.glob(f"decode_{system}_*.yaml")), system
    for path in (*shared.glob("train_*.yaml"), *own.glob("train_*.yaml")):
        # Averages of several criteria or sizes would leave it open which weights are decoded.
        settings = yaml.safe_load(path.read_text())
        assert len(settings["best_model_criterion"]) == 1 and isinstance(settings["keep_nbest_models"], int), path
        assert settings["scheduler"] in ("linearshares", "reducelronplateau"), path


def built(path, pieces, folder):
    """The number of parameters of a configuration's model."""
    from espnet2.tasks.asr import ASRTask

    (folder / "tokens.txt").write_text("\n".join(["<blank>", "<unk>", *map(str, range(pieces)), "<sos/eos>"]))
    args = ASRTask.get_parser().parse_args(["--config", str(path), "--token_list", str(folder / "tokens.txt")])
    return sum(weight.numel() for weight in ASRTask.build_model(args).parameters())


@pytest.mark.parametrize("path", sorted(ROOT.glob("conf/espnet/train_*_paper.yaml")), ids=lambda path: path.stem)
def test_models_for_librispeech_have_the_parameters_that_they_name(path, tmp_path):
    (millions,) = re.findall(r"(\d+) M parameters", path.read_text())
    assert round(built(path, 4999, tmp_path) / 1e6) == int(millions)


SMALL = [*ROOT.glob("conf/espnet/train_*_tiny.yaml"), *ROOT.glob("egs2/an4/*/conf/espnet/train_*.yaml")]


@pytest.mark.parametrize("path", sorted(SMALL), ids=lambda path: path.stem)
def test_small_models_are_about_as_large_as_speechllm_xl(path, tmp_path):
    # 2.5 M of size tiny, 4.1 M of AN4's; LAS, whose size is in its LSTMs, up to a third less or more
    size = 4.1e6 if path.stem.endswith("_an4") else 2.5e6
    assert built(path, 30, tmp_path) == pytest.approx(size, rel=0.34 if "_las_" in path.stem else 0.12)


def test_trainings_of_the_tables_take_their_options():
    from espnet2.tasks.asr import ASRTask

    from espnet_speechllm_xl.paper_tables.plan import PLAN, Plan

    parser, tried = ASRTask.get_parser(), 0
    for corpus in yaml.safe_load(PLAN.read_text())["corpora"]:
        plan = Plan(corpus)
        for system in plan.systems:
            options = dict(itertools.pairwise(plan.command(system, 3)))
            if not options["--system"].startswith("espnet_"):
                continue
            task = "asr_" + options["--system"].removeprefix("espnet_")
            folders = (plan.directory / "conf/espnet", ROOT / "conf/espnet")
            config = f"train_{task}_{plan.corpus.size}.yaml"
            path = next(found for folder in folders if (found := folder / config).is_file())
            args = parser.parse_args(["--config", str(path), *shlex.split(options["--train-args"])])
            assert args.seed == 3
            for name in options["--searches"].split():
                assert any((folder / f"decode_{task}_{name}.yaml").is_file() for folder in folders), name
            tried += 1
    assert tried >= 16
