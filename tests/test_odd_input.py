"""Files of random shapes: every command ends with 0, 1 or 2, and says why in one line."""

import contextlib
import io
import logging
import shutil
import zipfile

import pytest
import soundfile
import tiny
import training
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.trained_model import pack

QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,  # the same examples on every machine
    phases=(Phase.explicit, Phase.generate),  # to shrink takes minutes here
    suppress_health_check=list(HealthCheck),
)
# What a setting may hold; whole numbers stay small, for a model of them is really made.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["1e-3", "inf", ""]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=4,
)


def run(argv):
    """``(exit code, standard error)`` of a command."""
    out, err = io.StringIO(), io.StringIO()
    logging.getLogger().handlers.clear()  # ESPnet's training puts its own there
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(map(str, argv)))
        except SystemExit as end:
            code = end.code
    return code, err.getvalue()


def assert_one_line(code, error):
    assert code in (0, 1, 2) and "Traceback" not in error, error
    lines = error.splitlines()
    assert code == 0 or (lines[-1].startswith("speechllm-xl") and len(lines[-1]) < 1000), error
    assert code != 2 or sum("error: " in line for line in lines) == 1, error


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a sound, ``a.wav``."""
    path = tmp_path_factory.mktemp("odd")
    soundfile.write(path / "a.wav", tiny.speech(1, 12000), 16000)
    return path


@pytest.fixture(scope="module")
def model(tiny_model_dir, place):
    return shutil.copytree(tiny_model_dir, place / "model")


def settings_of(model):
    return yaml.safe_load((model / "config.yaml").read_text())


def transcribe(model, place):
    return run(["transcribe", place / "a.wav", "--model", model, "--search", "greedy"])


def test_config_yaml(model, place, tiny_model_dir):
    original = settings_of(tiny_model_dir)
    used = ["task", "token_list", "tokenizer", "normalize", "encoder", "decoder", "search"]
    sections = [name for name in original if name.endswith("_conf") and original[name]]
    fields = st.sampled_from([(name, field) for name in sections for field in original[name]])

    @QUICK
    @given(st.one_of(st.sampled_from([*used, *sections]).map(lambda name: (name,)), fields), VALUES)
    @example(("task",), ["ctc"])
    @example(("token_list",), 3)
    @example(("token_list",), [None] * 40)
    @example(("tokenizer",), [1])
    @example(("encoder",), 3)
    @example(("decoder",), "lstm")
    @example(("search",), {"a": 1})
    @example(("search_conf",), [1])
    @example(("search_conf",), {1: 2})
    @example(("encoder_conf",), "dim")
    @example(("features_conf",), {None: 1})
    @example(("decoder_conf", "dim"), 1 << 40)
    @example(("features_conf", "n_mels"), 1 << 62)
    @example(("features_conf", "floor"), float("nan"))
    def odd(path, value):
        values = settings_of(tiny_model_dir)
        holder = values
        for name in path[:-1]:
            holder = holder[name]
        holder[path[-1]] = value
        (model / "config.yaml").write_text(yaml.safe_dump(values))
        assert_one_line(*transcribe(model, place))

    odd()


@QUICK
@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode), VALUES.map(yaml.safe_dump).map(str.encode))
)
def test_config_yaml_that_is_something_else(model, place, content):
    (model / "config.yaml").write_bytes(content)
    code, error = transcribe(model, place)
    assert_one_line(code, error)
    assert code == 2


@pytest.mark.parametrize("name", ["ctc", "speechllm_xl", "transducer"])
def test_settings_of_a_training(name, toy_data, toy_stats, place):
    """``--dry_run`` makes the model, the optimiser and the schedule."""
    arguments = training.command(name, toy_data, place / name, toy_stats, ["--dry_run", "true"])
    file = place / f"{name}.yaml"
    original = yaml.safe_load(file.read_text())
    options = sorted(
        {*original, "optim", "optim_conf", "scheduler", "scheduler_conf", "ngpu", "seed", "init_param", "resume"}
        | {"best_model_criterion", "freeze_param", "accum_grad", "train_dtype", "log_level", "num_workers"}
    )

    @QUICK
    @given(st.sampled_from(options), VALUES)
    @example("encoder_conf", 3)
    @example("encoder_conf", [1])
    @example("encoder", 3)
    @example("optim", "none_such")
    @example("optim_conf", {"lr": "1e-3"})
    @example("optim_conf", {"lr": -1})
    @example("optim_conf", {"rate": 1})
    @example("scheduler", "none_such")
    @example("batch_bins", "many")
    @example("batch_bins", [1])
    @example("search_conf", "x")
    @example("keep_nbest_models", None)
    @example("best_model_criterion", 3)
    def odd(option, value):
        if option in ("max_epoch", "num_workers", "seed", "ngpu") and isinstance(value, int):
            return  # that is their type; what they do is not tried here
        file.write_text(yaml.safe_dump({**original, option: value}))
        shutil.rmtree(place / name, ignore_errors=True)
        command = "train-aligner" if name == "ctc" else "train"
        task = ["--task", name] if name == "transducer" else []
        assert_one_line(*run([command, *task, *arguments]))

    odd()


@QUICK
@given(st.sampled_from(["encoder_conf", "optim_conf", "search_conf"]), st.text(max_size=12))
@example("encoder_conf", "dim=[")
@example("encoder_conf", "dim=!!timestamp x")
@example("optim_conf", "lr")
@example("encoder_conf", "1=2")
def test_yaml_of_an_option(toy_data, toy_stats, place, option, text):
    arguments = training.command("ctc", toy_data, place / "options", toy_stats, ["--dry_run", "true"])
    assert_one_line(*run(["train-aligner", *arguments, f"--{option}={text}"]))


@QUICK
@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8), st.booleans())
def test_packed_models_with_other_bytes(tiny_model_dir, place, where, content, cut):
    path = place / "packed.zip"
    if not path.exists():
        pack(tiny_model_dir, path)
    data = path.read_bytes()
    where %= len(data)
    (place / "odd.zip").write_bytes(data[:where] + content + (b"" if cut else data[where + len(content) :]))
    assert_one_line(*transcribe(place / "odd.zip", place))


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(["config.yaml", "tokenizer.model", "model.pth", "tokenizer/x"]), st.binary(), max_size=4
    )
)
def test_archives_of_other_files(place, files):
    with zipfile.ZipFile(place / "other.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    code, error = transcribe(place / "other.zip", place)
    assert_one_line(code, error)
    assert code == 2


LINES = st.lists(st.text("ab1 \t\r\x00\u0301", max_size=9).map(str.encode) | st.sampled_from([b"a", b"a b", b"\xff"]))


@QUICK
@given(st.lists(LINES.map(b"\n".join), min_size=3, max_size=3))
def test_tables_to_score(place, tables):
    for name, content in zip(("ref", "hyp", "utt2spk"), tables, strict=True):
        (place / name).write_bytes(content)
    files = [argument for name in ("ref", "hyp", "utt2spk") for argument in (f"--{name}", place / name)]
    assert_one_line(*run(["score", *files, "--out", place / "score"]))
