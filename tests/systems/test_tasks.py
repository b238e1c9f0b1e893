"""The ESPnet tasks, by real trainings of a micro model."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import training
import yaml
from espnet2.train import distributed_utils
from espnet2.utils.build_dataclass import build_dataclass

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import FeatureConfig
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.model.features import LogMel
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.systems import find_task
from espnet_speechllm_xl.trained_model import ModelError, load_model
from espnet_speechllm_xl.training.trainer import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


def table(path):
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines())


def losses(directory, part="train", name="loss"):
    return [stats[part][name] for _, stats in sorted(training.history(directory).items())]


@pytest.fixture(scope="module")
def aligner(toy_data, toy_stats, tmp_path_factory):
    return training.train("ctc", toy_data, tmp_path_factory.mktemp("ctc") / "exp", toy_stats, max_epoch=6)


@pytest.fixture(scope="module")
def recogniser(toy_data, toy_stats, aligner, tmp_path_factory):
    out = tmp_path_factory.mktemp("xl") / "exp"
    return training.train("speechllm_xl", toy_data, out, toy_stats, begin_with(aligner), max_epoch=6)


def begin_with(aligner):
    return ["--init_param", f"{aligner}/valid.ter.ave.pth:acoustic:acoustic"]


def test_statistics_stage(toy_data, toy_stats):
    for part in ("train", "valid"):
        folder = getattr(toy_data, part)
        assert table(toy_stats / part / "speech_shape") == table(folder / "utt2num_samples")
        lengths = {name: len(text) + 1 for name, text in table(folder / "text").items()}  # sentencepiece's first blank
        assert {name: int(count) for name, count in table(toy_stats / part / "text_shape").items()} == lengths
    log_mel, features = LogMel(FeatureConfig()), []
    for path in table(toy_data.train / "wav.scp").values():
        speech = torch.tensor(soundfile.read(path, dtype="float32")[0])[None]
        frames, count = log_mel(speech, torch.tensor([speech.shape[1]]))
        features.append(frames[0, : int(count[0])])
    stacked = torch.cat(features).double().numpy()
    with np.load(toy_stats / "train" / "feats_stats.npz") as stats:
        assert stats["count"] == len(stacked)
        np.testing.assert_allclose(stats["sum"] / stats["count"], stacked.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(stats["sum_square"] / stats["count"], (stacked**2).mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["aligner", "recogniser"])
def test_loss_falls_and_files_are_there(name, request):
    directory = request.getfixturevalue(name)
    for part, share in (("train", 0.8), ("valid", 0.9)):  # 12 utterances teach little about 4 others
        values = losses(directory, part)
        assert len(values) == 6
        assert values[-1] < share * values[0]
    criterion = {"aligner": "valid.ter", "recogniser": "valid.acc_text"}[name]
    for file in ("checkpoint", "6epoch", "latest", f"{criterion}.best", f"{criterion}.ave"):
        assert (directory / f"{file}.pth").stat().st_size
    events = [*directory.glob("tensorboard/train/events.*"), *directory.glob("tensorboard/valid/events.*")]
    assert len(events) == 2 and all(event.stat().st_size for event in events)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"chunking_conf": {"unit": "word"}},
            "another chunking_conf unit \\(was token, is word\\): give this training",
        ),
        ({"decoder_conf": {"dropout": 0.3}}, "another decoder_conf dropout \\(was 0.1, is 0.3\\)"),
        ({"encoder_conf": {"activation": "relu"}}, "another encoder_conf activation \\(was gelu, is relu\\)"),
        ({"grad_clip_type": 1.0}, "another grad_clip_type \\(was 2.0, is 1.0\\)"),
        ({"optim_conf": {"lr": 0.1}, "seed": 4}, "another seed \\(was 3, is 4\\) and 1 more settings"),
    ],
)
def test_other_settings_are_not_taken_for_the_same_training(
    toy_data, toy_stats, recogniser, aligner, tmp_path, change, message
):
    """Neither ignored, when all epochs are done, nor mixed with the old ones."""
    copy = tmp_path / "copy"
    shutil.copytree(recogniser, copy, symlinks=True)
    files = {name: (copy / name).read_bytes() for name in ("config.yaml", "settings.json")}
    with pytest.raises(CheckpointError, match=f"{copy} was trained with {message}"):
        training.train("speechllm_xl", toy_data, copy, toy_stats, begin_with(aligner), **{"max_epoch": 6, **change})
    assert {name: (copy / name).read_bytes() for name in files} == files


def test_other_weights_to_begin_with_are_not_the_same_training(toy_data, toy_stats, recogniser, tmp_path):
    copy = shutil.copytree(recogniser, tmp_path / "copy")
    with pytest.raises(CheckpointError, match="was trained with another init_param"):
        training.train("speechllm_xl", toy_data, copy, toy_stats, max_epoch=7)


def test_what_may_change_in_a_training(toy_data, toy_stats, recogniser, aligner, tmp_path):
    """More epochs, and how the model is decoded later."""
    copy = tmp_path / "copy"
    shutil.copytree(recogniser, copy, symlinks=True)
    more = {"max_epoch": 7, "search_conf": {"beam_size": 3}}
    training.train("speechllm_xl", toy_data, copy, toy_stats, begin_with(aligner), **more)
    assert (copy / "7epoch.pth").exists()


def test_config_is_self_contained(toy_data, recogniser, tmp_path):
    values = yaml.safe_load((recogniser / "config.yaml").read_text())
    assert values["token_list"] == toy_data.tokens.read_text().rstrip("\n").split("\n")
    assert values["task"] == "speechllm_xl"
    defaults = {"delay": 0, "unit": "token", "train_chunks": None, "look_ahead": None, "train_look_aheads": None}
    assert values["chunking_conf"] == {"chunk": 8, "context": 2, **defaults}
    moved = tmp_path / "moved"
    moved.mkdir()
    for file, target in (
        (recogniser / "config.yaml", "config.yaml"),
        (recogniser / "valid.acc_text.ave.pth", "valid.acc_text.ave.pth"),
        (toy_data.tokenizer, "tokenizer.model"),
    ):
        (moved / target).write_bytes(file.read_bytes())
    values["token_list_file"] = values["stats_file"] = values["tokenizer"] = "/no/such/file"
    (moved / "config.yaml").write_text(yaml.safe_dump(values))
    audio = next(iter(table(toy_data.valid / "wav.scp").values()))
    found = Speech2Text.from_pretrained(moved, search="greedy")(audio)
    assert found == Speech2Text.from_pretrained(recogniser, search="greedy")(audio)


def test_init_param_copies_the_acoustic_part(toy_data, toy_stats, aligner, tmp_path):
    start = ["--init_param", f"{aligner}/valid.ter.ave.pth:acoustic:acoustic"]
    still = {"max_epoch": 1, "optim_conf": {"lr": 0.0}}
    out = training.train("speechllm_xl", toy_data, tmp_path / "exp", toy_stats, start, **still)
    copied = training.weights(out / "1epoch.pth")
    source = training.weights(aligner / "valid.ter.ave.pth")
    names = [name for name in copied if name.startswith("acoustic.")]
    assert {name for name in source if name.startswith("acoustic.")} == set(names)
    assert len(names) > 10
    assert all(copied[name].equal(source[name]) for name in names)
    out = training.train("speechllm_xl", toy_data, tmp_path / "fresh", toy_stats, **still)
    fresh = training.weights(out / "1epoch.pth")
    assert any(not fresh[name].equal(source[name]) for name in names)


def test_init_param_leaves_nothing_unloaded(toy_data, toy_stats, aligner, tmp_path):
    def start(value, **changes):
        options = ["--init_param", value]
        training.train("speechllm_xl", toy_data, tmp_path / "exp", toy_stats, options, max_epoch=1, **changes)

    file = aligner / "valid.ter.ave.pth"
    with pytest.raises(CheckpointError, match=r"no_such\.pth does not exist"):
        start("no_such.pth:acoustic:acoustic")
    with pytest.raises(CheckpointError, match="the file lacks .* parts of 'acoustic'"):
        start(f"{file}:acoustik:acoustic")
    with pytest.raises(CheckpointError, match="the model has no 'acoustik'; it has: acoustic, "):
        start(f"{file}:acoustic:acoustik")
    with pytest.raises(
        ConfigError, match=r"another features_conf f_max \(was 7600.0, is 3000.0\): begin with a model of"
    ):
        start(f"{file}:acoustic:acoustic", features_conf={"f_max": 3000.0})
    with pytest.raises(CheckpointError, match="size mismatch"):
        start(f"{file}:acoustic:acoustic", encoder_conf={"dim": 32})
    with pytest.raises(CheckpointError, match="lacks .* parts of 'acoustic', first 'encoder"):
        start(f"{file}:acoustic:acoustic", encoder_conf={"layers": 2})
    cut = tmp_path / "cut.pth"
    cut.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"cut\.pth does not load"):
        start(f"{cut}:acoustic:acoustic")
    with pytest.raises(CheckpointError, match="none of its weights has the shape"):
        start(f"{file}:acoustic:acoustic", encoder_conf={"dim": 24, "ffn_dim": 40}, ignore_init_mismatch=True)
    start(f"{file}:acoustic:acoustic", encoder_conf={"layers": 2}, ignore_init_mismatch=True)


def test_an_encoder_conf_left_out_is_that_of_the_start(toy_data, toy_stats, aligner, tmp_path):
    def start(name, options=(), **changes):
        changes = {"max_epoch": 1, "encoder_conf": None, **changes}
        return training.train(
            "speechllm_xl", toy_data, tmp_path / name, toy_stats, [*begin_with(aligner), *options], **changes
        )

    def saved(directory):
        return yaml.safe_load((directory / "config.yaml").read_text())["encoder_conf"]

    before = saved(aligner)
    out = start("exp")
    assert saved(out) == before and before["dim"] == 16 and "conv_kernel" in before
    assert load_model(out)[0].acoustic.encoder.config.dim == 16
    # Single settings of the command line come on top; another size than that of the weights is the error it was.
    assert saved(start("segment", ["--encoder_conf", "segment=4"])) == {**before, "segment": 4}
    with pytest.raises(CheckpointError, match="size mismatch"):
        start("dim", ["--encoder_conf", "dim=32"])
    with pytest.raises(CheckpointError, match="size mismatch"):
        start("own", encoder_conf={"ffn_dim": 48})
    # It goes on, and not when the model that it began with has become another.
    assert saved(start("exp", max_epoch=2)) == before
    other = shutil.copytree(aligner, tmp_path / "other")
    settings = yaml.safe_load((other / "config.yaml").read_text())
    settings["encoder_conf"]["left_context"] = 16
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(CheckpointError, match="another (encoder_conf left_context|init_param)"):
        training.train("speechllm_xl", toy_data, out, toy_stats, begin_with(other), max_epoch=3, encoder_conf=None)


def test_utterance_mvn_is_refused_with_the_reason(toy_data, toy_stats, tmp_path):
    with pytest.raises(ConfigError, match="a stream cannot know the mean"):
        training.train("ctc", toy_data, tmp_path / "exp", toy_stats, normalize="utterance_mvn")


def test_wrong_settings_are_one_line(toy_data, toy_stats, tmp_path):
    def start(name="ctc", options=(), **changes):
        training.train(name, toy_data, tmp_path / "exp", toy_stats, options, **changes)

    with pytest.raises(ConfigError, match="did you mean 'freq_width'"):
        start(specaug_conf={"freq_widht": 3})
    with pytest.raises(ConfigError, match="ctc_conf has no setting 'droput'; did you mean 'dropout'"):
        start(ctc_conf={"droput": 0.3})
    with pytest.raises(
        ConfigError, match="joint_network_conf has no setting 'joint_size'; did you mean 'joint_space_s"
    ):
        start("transducer", joint_network_conf={"joint_size": 3})
    with pytest.raises(ConfigError, match="chunk 12 and encoder segment 8 do not divide one another"):
        start("speechllm_xl", chunking_conf={"chunk": 12})
    with pytest.raises(ConfigError, match="unrecognized arguments: projection_conf"):  # its prompts are single frames
        start("ctc_prompt_lm", projection_conf={"reduction": 2})
    for name in ("ctc", "ctc_prompt_lm", "chunked_aed", "transducer"):
        with pytest.raises(ConfigError, match="unrecognized arguments: text_prompt_conf"):
            start(name, text_prompt_conf={"probability": 0.5})
    with pytest.raises(ConfigError, match="give two shape files"):
        start(options=["--valid_shape_file", f"{toy_stats}/valid/speech_shape"])
    with pytest.raises(ConfigError, match="num_iters_per_epoch is not supported"):
        start(num_iters_per_epoch=2)
    with pytest.raises(ConfigError, match="batch_size has no effect here: batches are made by batch_bins"):
        start(batch_size=2)
    with pytest.raises(ConfigError, match="search_conf has no setting 'beam_sise'; did you mean 'beam_size'"):
        start(search_conf={"beam_sise": 4})
    with pytest.raises(ConfigError, match="search_conf method: give --search"):
        start(search_conf={"method": "greedy"})
    with pytest.raises(ConfigError, match="search_conf ctc_weight: this model does not write chunk by chunk"):
        start(search_conf={"ctc_weight": 0.3})
    with pytest.raises(ConfigError, match="search_conf ctc_weight: this model has no CTC head"):
        start("speechllm_xl", search_conf={"ctc_weight": 0.3}, loss_conf={"ctc_weight": 0})
    for options in ([], ["--init_param", "model.pth:decoder:decoder"]):  # which brings no normaliser
        with pytest.raises(ConfigError, match="no --stats_file: give feats_stats.npz"):
            start(options=["--stats_file", "", *options])
    with pytest.raises(ConfigError, match="drop_last_iter has no effect here"):
        start(drop_last_iter=True)
    with pytest.raises(ConfigError, match="keep_nbest_models 0: .* give 1 or more"):
        start(keep_nbest_models=0)
    for name, value in {"seed": -1, "accum_grad": 0, "max_epoch": 0, "ngpu": -1, "num_workers": -2}.items():
        with pytest.raises(ConfigError, match=f"{name} {value}: give a whole number from [01] to 4294967295"):
            start(**{name: value})
    for criterion in (["valid", "ter", "up"], ["ter"]):
        with pytest.raises(ConfigError, match="criterion .*'ter'.*: give three texts, the last of them min or max"):
            start(early_stopping_criterion=criterion)
    with pytest.raises(ConfigError, match="task: chunked_aed: this trains ctc: give --task chunked_aed"):
        start(task="chunked_aed")
    with pytest.raises(
        ConfigError, match="freeze_param acoustic.encodr: the model has no such part; its first is acous"
    ):
        start(freeze_param=["acoustic.encodr"])
    with pytest.raises(ConfigError, match="did you mean 'freq_width'"):
        start(specaug_conf={"freq_widht": 3}, features_conf=None, search_conf=None)  # sections without entries
    with pytest.raises(ConfigError, match=r"token_list .*nowhere\.txt does not exist: run the tokens stage"):
        start(options=["--token_list", str(tmp_path / "nowhere.txt")])


@pytest.mark.parametrize(
    "names, message",
    [
        (["speech"], "--train_data_path_and_name_and_type FILE,NAME,TYPE lacks text, alignment: a recipe's run.sh"),
        ([], "--train_data_path_and_name_and_type FILE,NAME,TYPE lacks speech, text, alignment: "),
        (["speech", "text", "alignment", "speach"], "'speach' is none of speech, text, alignment, spk"),
        (["speech", "text", "alignment", "spk"], "--valid_data_path_and_name_and_type FILE,NAME,TYPE lacks speech"),
    ],
)
def test_data_of_a_training(names, message):
    data = [("file", name, "text") for name in names]
    args = argparse.Namespace(
        train_data_path_and_name_and_type=data, valid_data_path_and_name_and_type=[], allow_variable_data_keys=False
    )
    with pytest.raises(ConfigError, match=message):
        training.task_of("speechllm_xl").check_data(args)


def test_statistics_of_other_features_are_refused(toy_data, tmp_path):
    stats = training.train("ctc", toy_data, tmp_path / "stats")
    (tmp_path / "stats/features.json").write_text('{"sample_rate": 16000, "n_mels": 80, "f_max": 7000.0}')
    with pytest.raises(ConfigError, match=r"another features_conf f_max \(was 7000.0, is .*\): remove .*stats and run"):
        training.train("ctc", toy_data, tmp_path / "exp", stats, max_epoch=1)
    # Of before there were levels.
    (tmp_path / "stats/features.json").write_text('{"sample_rate": 16000, "n_mels": 80, "f_max": 7600.0}')
    with pytest.raises(ConfigError, match=r"another features_conf level_seconds \(was None, is 10\): remove"):
        training.train("ctc", toy_data, tmp_path / "exp", stats, max_epoch=1, features_conf={"level_seconds": 10})
    training.train("ctc", toy_data, tmp_path / "exp", stats, max_epoch=1, features_conf={"tail_frames": 2})


def test_a_dump_at_another_rate_is_refused(toy_data, toy_stats, tmp_path):
    with pytest.raises(ConfigError, match="audio at 16000 Hz, but features_conf sample_rate is 8000: give run.sh"):
        features = {"sample_rate": 8000, "f_max": 3900.0}
        training.train("ctc", toy_data, tmp_path / "stats", features_conf=features)


def test_alignment_of_other_text_or_audio_stops_the_training(toy_data, toy_stats, tmp_path):
    from dataclasses import replace

    other = tmp_path / "train"
    other.mkdir()
    for file in ("wav.scp", "text", "utt2spk", "char_ends"):
        (other / file).write_text((toy_data.train / file).read_text())
    data = replace(toy_data, train=other)
    rows = [line.split() for line in (other / "char_ends").read_text().splitlines()]
    (other / "char_ends").write_text("".join(f"{' '.join(row[:-1])}\n" for row in rows))
    with pytest.raises(ValueError, match="the transcript changed after the alignment"):
        training.train("speechllm_xl", data, tmp_path / "exp", toy_stats, max_epoch=1)
    (other / "char_ends").write_text("".join(f"{' '.join([*row[:-1], '9999'])}\n" for row in rows))
    with pytest.raises(ValueError, match="the alignment belongs to other audio"):
        training.train("speechllm_xl", data, tmp_path / "exp", toy_stats, max_epoch=1)


def test_strict_loading(recogniser, aligner, toy_data, tmp_path):
    (tmp_path / "config.yaml").write_bytes((recogniser / "config.yaml").read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(toy_data.tokenizer.read_bytes())
    state = training.weights(recogniser / "valid.acc_text.ave.pth")
    torch.save(state, tmp_path / "model.pth")
    model, _, _ = load_model(tmp_path)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    torch.save({**state, "surplus": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(ModelError, match=r"model\.pth does not load"):
        load_model(tmp_path)
    state.pop("projection.bias")
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ModelError, match=r"model\.pth does not load"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="of task 'ctc', not speechllm_xl:"):
        load_model(aligner, "speechllm_xl")


def test_alignment_of_the_trained_aligner_is_near_the_truth(aligner, toy_data, tmp_path):
    """Not a test of quality: that text, frames and audio of an utterance belong together all the way."""
    from espnet_speechllm_xl.sets.align import make_worker

    settings = {"model": str(aligner), "weights": None, "device": "cpu", "dump": str(toy_data.valid)}
    (aligner / "tokenizer.model").write_bytes(toy_data.tokenizer.read_bytes())
    samples = {name: int(count) for name, count in table(toy_data.valid / "utt2num_samples").items()}
    for name, (starts, ends) in make_worker(settings)(list(samples)):
        assert len(starts) == len(ends) == len(table(toy_data.valid / "text")[name])
        assert ends == sorted(ends)
        assert 0 <= ends[-1] < timeline.frames(samples[name], training.RATE)


def test_several_machines_as_in_the_documentation(monkeypatch):
    """ESPnet's launcher takes the options, and puts the second of two machines with four GPUs each behind the first."""
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    command = re.search(r"train \.\.\. (--ngpu .*?)\n```", page, re.S)[1]
    options = shlex.split(command.replace("\\\n", " ").replace("$first", "gpu-node01"))
    config = ["--config", str(ROOT / "tests/conf/train_micro.yaml")]
    args = find_task("speechllm_xl").get_parser().parse_args([*config, *options])
    slurm = {"STEP_NUM_NODES": 2, "NTASKS": 2, "NODEID": 1, "PROCID": 1, "STEP_NODELIST": "gpu-node[01-02]"}
    for name, value in {**slurm, "JOB_ID": 1, "STEP_ID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    distributed_utils.resolve_distributed_mode(args)
    assert args.distributed and args.multiprocessing_distributed
    # As ESPnet's main() does in the process of each GPU.
    args.dist_rank = args.ngpu * distributed_utils.get_node_rank(None, args.dist_launcher) + 3
    args.dist_world_size, args.local_rank = args.ngpu * distributed_utils.get_num_nodes(None, args.dist_launcher), 3
    machines = build_dataclass(distributed_utils.DistributedOption, args)
    machines.ngpu = 1
    machines.init_options()
    assert machines.dist_init_method == "tcp://gpu-node01:29500"
    assert (machines.dist_rank, machines.dist_world_size, machines.local_rank) == (7, 8, 3)


@pytest.mark.parametrize("name", ["speechllm_xl", "transducer"])
def test_throughput_of_a_training(name):
    """local/training_throughput.py makes real steps, and its figures fit together."""
    file = {"speechllm_xl": "train_micro.yaml", "transducer": "train_transducer_micro.yaml"}[name]
    script = [sys.executable, str(ROOT / "local/training_throughput.py"), "--config", str(ROOT / "tests/conf" / file)]
    done = subprocess.run(
        [*script, "--task", name, "--vocab-size", "30", "--steps", "3", "--hours", "10", "--speeds", "1"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rate = float(re.search(r"([\d.]+) s of audio a second", done.stdout)[1])
    one, eight = map(float, re.findall(r"on \d of it: ([\d.]+) h", done.stdout))
    assert one == pytest.approx(10 / rate, abs=0.06) and eight == pytest.approx(10 / rate / 8, abs=0.06)
    assert re.search(r"memory: [\d.]+ GiB", done.stdout)
    assert re.search(r"AdamW's state, [\d.]+ GiB for the activations of \d+ s of audio", done.stdout)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"encoder_conf": 3}, "encoder_conf: 3 is not a mapping of settings to values"),
        ({"optim_conf": {"lr": "1e-3"}}, "optim_conf {'lr': '1e-3'}: optim adam does not take it ("),
        ({"optim_conf": {"rate": 1}}, "optim_conf {'rate': 1}: optim adam does not take it ("),
        (
            {"scheduler": "warmuplr", "scheduler_conf": {"warm": 1}},
            "scheduler_conf {'warm': 1}: scheduler warmuplr does",
        ),
        ({"optim": "adem"}, "optim: 'adem' is not one of adam, adamw"),
        ({"encoder": 3}, "encoder: 3 is not one of emformer"),
        ({"batch_bins": [1]}, "batch_bins: [1] is not a whole number"),
        ({"grad_clip": True}, "grad_clip: True is not a number"),
        ({"use_amp": 3}, "use_amp: 3 is not true or false"),
        (
            {"best_model_criterion": [["valid", "loss"]]},
            "best_model_criterion: [['valid', 'loss']] is not a list of three",
        ),
        ({"train_shape_file": 3}, "train_shape_file: 3 is not text"),  # which the command line gives, too
        ({"batch_bin": 3}, "unrecognized arguments: batch_bin (from "),
    ],
)
def test_values_of_another_type_are_one_line(toy_data, toy_stats, tmp_path, changes, says):
    """ESPnet takes what is in the file as it is, and breaks somewhere later."""
    arguments = training.command("ctc", toy_data, tmp_path / "exp", toy_stats)
    file = tmp_path / "exp.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    with pytest.raises(ConfigError) as caught:
        training.task_of("ctc").main(cmd=arguments)
    assert str(caught.value).startswith(says)
    assert not (tmp_path / "exp").exists()


def test_a_training_without_its_files_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^--output_dir, --token_list, --tokenizer must be given: a recipe's run.sh"):
        training.task_of("ctc").main(cmd=["--max_epoch", "3"])
