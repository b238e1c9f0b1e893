"""Loading models: what must be equal, what is refused and how; options; audio in any form."""

import math
import os
import resource
import shutil
import zipfile

import numpy as np
import pytest
import soundfile
import tiny
import torch
import yaml
from limits import longest_file

from espnet_speechllm_xl import Speech2Text, experiment, trained_model
from espnet_speechllm_xl.corpus.audio import AudioError
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.inference import _warn_once
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.tokenization import TokenizerError
from espnet_speechllm_xl.trained_model import LATER_SECTIONS, ModelError, load_model, pack

WEIGHTS = "valid.acc_text.ave.pth"


@pytest.fixture(scope="module")
def packed(tiny_model_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model.zip"
    pack(tiny_model_dir, path)
    return path


@pytest.fixture
def model_copy(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def load(path, **options):
    return Speech2Text.from_pretrained(path, **options)


def refused(kind, path, **options):
    """The message of the exception, which is exactly of ``kind``, one line, and asks for no traceback."""
    with pytest.raises(UserError) as caught:
        load(path, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_directory_and_packed_file_give_the_same(tiny_model_dir, packed):
    audio = tiny.speech(3, 60000)
    for search in ("greedy", "chunk_sync", "alsd"):
        one, other = (load(path, search=search, nbest=3)(audio) for path in (tiny_model_dir, packed))
        assert one == other and one[0].text
    assert sorted(zipfile.ZipFile(packed).namelist()) == ["config.yaml", "model.pth", "tokenizer.model"]


def test_packed_file_alone_is_enough(tiny_model_dir, packed, tmp_path, monkeypatch):
    expected = load(tiny_model_dir, search="greedy")(tiny.speech(4, 40000))
    moved = shutil.copy(packed, tmp_path / "elsewhere.zip")
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((tiny_model_dir / "config.yaml").read_text())
    monkeypatch.setattr("espnet_speechllm_xl.experiment.find_tokenizer", _no_fallback(values["tokenizer"]))
    assert load(moved, search="greedy")(tiny.speech(4, 40000)) == expected
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(moved).extractall(unpacked)
    assert load(unpacked, search="greedy")(tiny.speech(4, 40000)) == expected


def _no_fallback(training_file):

    find = experiment.find_tokenizer

    def checked(directory, args):
        found = find(directory, args)
        assert str(found) != training_file
        return found

    return checked


@pytest.mark.parametrize("section", LATER_SECTIONS)
def test_a_model_of_before_a_section_was_added(tiny_model_dir, model_copy, section):
    values = yaml.safe_load((model_copy / "config.yaml").read_text())
    del values[section]
    (model_copy / "config.yaml").write_text(yaml.safe_dump(values))
    audio = tiny.speech(4, 40000)
    assert load(model_copy, search="greedy")(audio) == load(tiny_model_dir, search="greedy")(audio)


def test_defaults_are_the_configuration(tiny_model_dir):
    speech2text = load(tiny_model_dir)
    assert (speech2text.search_config.method, speech2text.search_config.beam_size) == ("alsd", 4)
    assert speech2text.search_config.max_tokens_per_chunk == 12
    assert (speech2text.chunking.chunk, speech2text.chunking.context) == (16, 2)
    assert speech2text.sample_rate == 16000
    audio = tiny.speech(5, 48000)
    assert speech2text(audio) == load(tiny_model_dir, search="alsd", chunk_size=0.64, context=1.28)(audio)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"chunk_size": 0.32}, (8, 4)),
        ({"chunk_size": 0.16, "context": 0.48}, (4, 3)),
        ({"chunk_size": 1.28, "context": 0}, (32, 0)),
        ({"context": 0.64}, (16, 1)),
        ({"context": math.inf}, (16, None)),
        ({"chunk_size": math.inf}, (None, None)),
        ({"chunk_size": math.inf, "context": math.inf}, (None, None)),
    ],
)
def test_chunk_size_and_context_in_seconds(tiny_model_dir, options, expected):
    speech2text = load(tiny_model_dir, search="greedy", **options)
    assert (speech2text.chunking.chunk, speech2text.chunking.context) == expected
    # The configuration says the same as the option does.
    values = {"chunk": expected[0], "context": expected[1]}
    directory = _with(tiny_model_dir, chunking_conf={**values, "delay": 0})
    try:
        assert load(directory, search="greedy")(tiny.speech(6, 40000)) == speech2text(tiny.speech(6, 40000))
    finally:
        shutil.rmtree(directory)


def test_look_ahead_in_seconds(tiny_model_dir):
    audio = tiny.speech(6, 40000)
    found = load(tiny_model_dir, search="greedy", look_ahead=0.2)
    assert found.chunking.look_ahead == 5
    conf = yaml.safe_load((tiny_model_dir / "config.yaml").read_text())["encoder_conf"]
    directory = _with(tiny_model_dir, encoder_conf={**conf, "right_context": 5})
    try:
        assert load(directory, search="greedy")(audio) == found(audio) != load(tiny_model_dir, search="greedy")(audio)
    finally:
        shutil.rmtree(directory)


def test_sizes_that_were_not_trained_are_named_once(tiny_model_dir, caplog):
    _warn_once.cache_clear()
    chunk = "chunk size 0.32 s: the model was trained with 0.64 s, not with this one: there may be more errors"
    ahead = "look-ahead 0 s: the model was trained with 0.08 s, not with this one: there may be more errors"
    context = "context 0.64 s: the model was trained with 1.28 s, not with this one: there may be more errors"
    speech2text = load(tiny_model_dir, search="greedy", chunk_size=0.64, context=1.28, look_ahead=0.08)
    assert speech2text.stream().remarks == [] == caplog.messages
    streams = [speech2text.stream(chunk_size=0.32, look_ahead=ahead) for ahead in (None, 0, 0)]
    assert [stream.remarks for stream in streams] == [[chunk], [chunk, ahead], [chunk, ahead]]
    assert caplog.messages == [chunk, ahead]
    assert load(tiny_model_dir, look_ahead=0).stream().remarks == [ahead] and caplog.messages == [chunk, ahead]
    assert load(tiny_model_dir, chunk_size=math.inf) and caplog.messages[2:] == [chunk.replace("0.32", "inf")]
    assert speech2text.stream(context=0.64).remarks == [context]
    assert speech2text.stream(chunk_size=0.32, context=0.64).remarks == [chunk, context]
    assert speech2text.stream(chunk_size=0.32, context=math.inf).remarks == [chunk, context.replace("0.64", "inf")]


def test_drawn_sizes_were_trained(tiny_model_dir, caplog):
    _warn_once.cache_clear()
    conf = {"chunk": 16, "context": 2, "train_chunks": [8, 16], "look_ahead": 6, "train_look_aheads": [0, 2, 6]}
    directory = _with(tiny_model_dir, chunking_conf=conf)
    try:
        speech2text = load(directory, search="greedy")
        assert speech2text.chunking.right_context(speech2text.model.acoustic.encoder.config) == 6
        for size, ahead in ((0.32, 0), (0.64, 0.08), (0.32, 0.24)):
            assert speech2text.stream(chunk_size=size, look_ahead=ahead).remarks == [] == caplog.messages
        assert speech2text.stream(chunk_size=1.28, look_ahead=0.12).remarks == [
            "chunk size 1.28 s: the model was trained with 0.32 s, 0.64 s, not with this one: there may be more errors",
            "look-ahead 0.12 s: the model was trained with 0 s, 0.08 s, 0.24 s, not with this one: there may be more "
            "errors",
        ]
    finally:
        shutil.rmtree(directory)


def _with(model_dir, **changes):
    """A copy of a model directory with other values in config.yaml."""
    copy = model_dir.parent / "changed"
    shutil.copytree(model_dir, copy)
    values = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return copy


@pytest.mark.parametrize(
    "options, says",
    [
        ({"chunk_size": 0.65}, "chunk size 0.65 s is not a multiple of 0.04 s: give"),
        ({"chunk_size": -0.64}, "chunk size -0.64 s is not a multiple"),
        ({"chunk_size": math.nan}, "chunk size nan s is not a multiple"),
        ({"chunk_size": -math.inf}, "chunk size -inf s is not a multiple"),
        ({"context": 1.0}, "context 1.0 s is not a multiple of the chunk size 0.64 s: give"),
        ({"context": -1.28}, "context -1.28 s is not a multiple"),
        ({"look_ahead": 0.1}, "look-ahead 0.1 s is not a multiple of 0.04 s: give"),
        ({"look_ahead": -0.04}, "look-ahead -0.04 s is not a multiple"),
        ({"look_ahead": math.inf}, "look-ahead inf s: give a finite duration"),
    ],
)
def test_durations_off_the_grid_are_refused(tiny_model_dir, options, says):
    assert refused(UserError, tiny_model_dir, **options).startswith(says)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"chunk_size": 0.0}, "chunk 0: give frames >= 1"),
        ({"chunk_size": 0.48}, "chunk 12 and encoder segment 8 do not divide one another: choose"),
        ({"search": "best"}, "search 'best': a model of task 'speechllm_xl' has greedy, chunk_sync, alsd"),
        ({"beam_size": 0}, "search beam_size must be at least 1"),
        ({"beam": 4}, "search_conf has no setting 'beam'; did you mean 'beam_size'?"),
        ({"dtype": "float12"}, "dtype 'float12' is unknown: use float32"),
        ({"dtype": "int32"}, "dtype 'int32' is unknown"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is unknown"),
        ({"method": "greedy"}, "method 'greedy': give search instead"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
    ],
)
def test_settings_that_do_not_fit(tiny_model_dir, options, says):
    assert refused(ConfigError, tiny_model_dir, **options).startswith(says)


def test_nbest_texts_are_distinct_and_ordered(tiny_model_dir):
    audio = tiny.speech(2, 60000)
    several = 0
    for method in ("chunk_sync", "alsd"):
        nbest = load(tiny_model_dir, search=method, beam_size=8, nbest=5)(audio)
        texts, scores = [one.text for one in nbest], [one.score for one in nbest]
        assert len(set(texts)) == len(texts) <= 5 and scores == sorted(scores, reverse=True)
        (best,) = load(tiny_model_dir, search=method, beam_size=8)(audio)
        assert best == nbest[0]
        several += len(texts) > 1
    assert several
    assert len(load(tiny_model_dir, search="greedy", nbest=5)(audio)) == 1


def test_two_spellings_of_one_text_are_one(tiny_model_dir):
    """The same text by other pieces is no further entry of the n-best list."""
    from espnet_speechllm_xl.decoding.results import distinct_texts
    from espnet_speechllm_xl.decoding.searches import Hypothesis

    tokenizer = load(tiny_model_dir).tokenizer
    hypotheses = []
    for rank, words in enumerate([("▁the",), ("▁t", "he"), ("▁a",), ("▁on",)]):
        tokens = tuple(map(tokenizer.pieces.index, words))
        hypotheses.append(Hypothesis(tokens, (0,) * len(words), (-1.0,) * len(words), -float(rank)))
    texts = distinct_texts(tokenizer, hypotheses)
    assert [(text, one.score) for text, one in texts.items()] == [("the", 0.0), ("a", -2.0), ("on", -3.0)]


def test_audio_in_any_form(tiny_model_dir, tmp_path):
    speech2text = load(tiny_model_dir, search="greedy")
    audio = np.round(tiny.speech(8, 48000) * 32767) / 32768
    expected = speech2text(audio)
    assert expected[0].text
    assert speech2text(audio.tolist()) == expected
    assert speech2text((audio * 32768).astype(np.int16)) == expected
    assert speech2text(np.stack([audio, audio], axis=1)) == expected
    for name, options in (("a.wav", {}), ("b.flac", {}), ("c.wav", {"subtype": "FLOAT"})):
        soundfile.write(tmp_path / name, audio, 16000, **options)
        assert speech2text(tmp_path / name) == expected == speech2text(str(tmp_path / name))


def test_a_file_name_is_never_a_command(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    speech2text, audio = load(tiny_model_dir, search="greedy"), tiny.speech(8, 48000)
    soundfile.write("touch ran |", audio, 16000, format="WAV", subtype="FLOAT")
    assert speech2text("touch ran |") == speech2text(audio.astype(np.float32))
    with pytest.raises(AudioError, match="touch other . does not exist"):
        speech2text("touch other |")
    assert sorted(os.listdir()) == ["touch ran |"]


def test_other_sample_rates_are_converted(tiny_model_dir, tmp_path):
    import soxr

    speech2text = load(tiny_model_dir, search="greedy")
    audio = tiny.speech(8, 44100 * 3)
    expected = speech2text(soxr.resample(audio, 44100, 16000).astype(np.float32))
    soundfile.write(tmp_path / "a.wav", audio, 44100, subtype="FLOAT")
    assert speech2text(audio, sample_rate=44100) == expected == speech2text(tmp_path / "a.wav")
    assert expected[0].words[-1].end <= 3.0
    assert speech2text(audio, sample_rate=16000) != expected


@pytest.mark.parametrize("bad", [np.zeros(0), np.array([0, np.nan]), np.zeros((2, 2, 2)), np.array(["a"])])
def test_arrays_that_are_no_audio(tiny_model_dir, bad):
    from espnet_speechllm_xl.corpus.audio import AudioError

    with pytest.raises(AudioError) as caught:
        load(tiny_model_dir)(bad)
    assert isinstance(caught.value, UserError) and "audio array" in str(caught.value)


def test_arrays_that_are_taken_wrongly_are_refused(tiny_model_dir):
    speech2text, audio = load(tiny_model_dir, search="greedy"), tiny.speech(8, 16000).astype(np.float32)
    with pytest.raises(UserError, match=r"audio array of \(1, 16000\): give \(samples,\) or its transpose"):
        speech2text(audio[None])  # as torchaudio loads it
    for rate in (0, -1):
        with pytest.raises(UserError, match=f"audio array at {rate} Hz: give the rate"):
            speech2text(audio, sample_rate=rate)


def test_one_sample_of_any_stride(tiny_model_dir):
    speech2text = load(tiny_model_dir, search="greedy")
    backwards = np.ones(1, np.float32)[::-1]
    assert backwards.strides == (-4,) and speech2text(backwards)[0].text == ""
    stream = speech2text.stream("greedy")
    stream.push(backwards)
    stream.push(np.ones(9, ">f8")[::-3])
    assert stream.close().text == ""


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int8"])
def test_other_number_types(tiny_model_dir, dtype):
    audio = tiny.speech(8, 48000)
    (transcript,) = load(tiny_model_dir, search="greedy", dtype=dtype)(audio)
    assert math.isfinite(transcript.score) and transcript.score < 0
    if dtype == "float64":
        (single,) = load(tiny_model_dir, search="greedy")(audio)
        assert transcript.text == single.text and transcript.score == pytest.approx(single.score, rel=1e-4)


def test_weights_of_8_bits(tiny_model_dir, monkeypatch):
    """They stand in all layers but CTC's, and change scores a little; a GPU is refused."""
    rounded, whole = (load(tiny_model_dir, search="greedy", dtype=dtype) for dtype in ("int8", "float32"))
    frames = torch.randn(1, 200, 80)
    given, wanted = (
        one.model.acoustic.encoder(frames, torch.tensor([200]))[0] for one in (rounded, whole)
    )
    assert 1e-4 < (given - wanted).norm() / wanted.norm() < 0.1
    linear = [module for module in rounded.model.modules() if type(module) is torch.nn.Linear]
    assert all(module is rounded.model.ctc.output for module in linear)
    monkeypatch.setattr(trained_model, "_device", lambda name: torch.device("cuda"))
    with pytest.raises(ConfigError, match="dtype 'int8' is for a CPU"):
        load(tiny_model_dir, dtype="int8", device="cuda")


# Bad models


def test_missing_directory(tmp_path):
    message = refused(ModelError, tmp_path / "absent")
    assert message == f"{tmp_path / 'absent'} does not exist: give a model directory or a packed file"


def test_missing_config(model_copy):
    (model_copy / "config.yaml").unlink()
    assert refused(ModelError, model_copy).startswith(f"{model_copy} holds no config.yaml: give")


def test_every_truncation_of_the_config_is_noticed(model_copy):
    path = model_copy / "config.yaml"
    content = path.read_bytes()
    for size in [0, 1, 100, len(content) // 2, *range(len(content) - 1300, len(content) - 20, 61), len(content) - 20]:
        path.write_bytes(content[:size])
        message = refused(ModelError, model_copy)
        assert message.startswith(str(path)) and ("truncated" in message or "is of task" in message), message


def test_config_with_a_wrong_setting(tiny_model_dir):
    values = yaml.safe_load((tiny_model_dir / "config.yaml").read_text())
    directory = _with(tiny_model_dir, decoder_conf={**values["decoder_conf"], "depth": 3})
    try:
        message = refused(ConfigError, directory)
    finally:
        shutil.rmtree(directory)
    assert message.startswith(f"{directory / 'config.yaml'}: decoder_conf has no setting 'depth'; known: dim")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_weights(model_copy, share):
    path = model_copy / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = refused(ModelError, model_copy)
    assert message.startswith(f"{path} does not load (") and "it is truncated or of another configuration" in message


def test_missing_weights(model_copy):
    (model_copy / WEIGHTS).rename(model_copy / "kept")
    assert "does not exist: finish the training, or name the weights" in refused(ModelError, model_copy)
    assert not list(model_copy.glob("valid.*.ave.pth"))
    shutil.copy(model_copy / "kept", model_copy / "valid.loss.ave.pth")  # of another best_model_criterion
    assert load(model_copy)(tiny.speech(8, 16000))
    message = refused(ModelError, model_copy, weights="7epoch.pth")
    assert message.startswith(f"{model_copy / '7epoch.pth'} does not exist")


@pytest.mark.parametrize("section, value", [("encoder_conf", {"dim": 32}), ("decoder_conf", {"layers": 3})])
def test_weights_of_another_configuration(tiny_model_dir, section, value):
    values = yaml.safe_load((tiny_model_dir / "config.yaml").read_text())
    directory = _with(tiny_model_dir, **{section: {**values[section], **value}})
    try:
        message = refused(ModelError, directory)
    finally:
        shutil.rmtree(directory)
    assert message.startswith(f"{directory / WEIGHTS} does not load (Error(s) in loading state_dict")
    assert "size mismatch" in message or "Missing key" in message


def test_directory_of_the_other_task(tiny_model_dir, tiny_aligner_dir):
    with pytest.raises(ModelError, match="is of task 'speechllm_xl', not ctc: give the directory of such a model"):
        load_model(tiny_model_dir, "ctc")
    directory = _with(tiny_model_dir, task="mt")
    try:
        message = refused(ModelError, directory)
    finally:
        shutil.rmtree(directory)
    assert message.startswith(f"{directory / 'config.yaml'} is of task 'mt', not one of speechllm_xl, ctc")


def test_tokenizer_of_another_size(model_copy, sentencepiece_model):
    shutil.copy(sentencepiece_model("bpe", 60), model_copy / "tokenizer.model")
    message = refused(ModelError, model_copy)
    assert message.startswith(f"{model_copy}: the tokenizer has 60 tokens, config.yaml 40: ")


def test_truncated_tokenizer(model_copy):
    path = model_copy / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:200])
    assert refused(TokenizerError, model_copy).startswith(f"{path} is not a sentencepiece model (")


def test_missing_tokenizer(tiny_model_dir):
    directory = _with(tiny_model_dir, tokenizer="gone/tokenizer.model")
    try:
        (directory / "tokenizer.model").unlink()
        message = refused(TokenizerError, directory)
    finally:
        shutil.rmtree(directory)
    assert message.startswith("tokenizer gone/tokenizer.model does not exist: ")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_packed_file(packed, tmp_path, share):
    content = packed.read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(content[: int(len(content) * share)])
    message = refused(ModelError, path)
    assert message == f"{path} is not a packed model, or is truncated: pack or copy it again"


def test_damaged_packed_file(packed, tmp_path):
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "damaged.zip"
    path.write_bytes(content)
    assert refused(ModelError, path).startswith(f"{path} is not a packed model, or is truncated")


def test_another_file_as_the_packed_one(tiny_model_dir, tmp_path):
    """Weights of torch are a zip too, and the message names the user's file, not where it was unpacked."""
    message = refused(ModelError, tiny_model_dir / WEIGHTS)
    assert message.startswith(f"{tiny_model_dir / WEIGHTS} holds no config.yaml: give")
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert refused(ModelError, path).startswith(f"{path} is not a packed model")


def test_nothing_is_left_behind(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load(packed)
    refused(ModelError, packed, weights="absent.pth")
    assert list(tmp_path.iterdir()) == []


def test_no_broken_model_is_packed(model_copy, tmp_path):
    path = model_copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="does not load"):
        pack(model_copy, tmp_path / "out" / "model.zip")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "section, value, says",
    [
        ("encoder_conf", [1], "encoder_conf: [1] is not a mapping of settings to values"),
        ("search_conf", 3, "search_conf: 3 is not a mapping"),
        ("search_conf", {"beam_size": 0}, "search beam_size must be at least 1: restore it or train again"),
        ("search_conf", {"beam": 4}, "search_conf has no setting 'beam'; did you mean 'beam_size'?: restore"),
        ("decoder", "lstm", "decoder 'lstm': use one of llm"),
        ("encoder", {}, "encoder {}: use one of emformer"),
        ("search", None, "search None: use one of greedy, chunk_sync, alsd"),
        ("token_list", "tokens.txt", "token_list: 'tokens.txt' is not a list of tokens"),
        ("tokenizer", None, "tokenizer: None is not the name of a file"),
        ("loss_conf", {2: 0}, "loss_conf: 2 is no name of a setting"),
    ],
)
def test_config_with_a_value_of_another_type(tiny_model_dir, section, value, says):
    directory = _with(tiny_model_dir, **{section: value})
    try:
        message = refused(ConfigError, directory)
    finally:
        shutil.rmtree(directory)
    assert message.startswith(f"{directory / 'config.yaml'}: {says}")


@pytest.mark.parametrize(
    "section, field, value",
    [
        ("encoder_conf", "ffn_dim", 2_000_000),
        ("encoder_conf", "layers", 100_000),
        ("encoder_conf", "conv_kernel", 10_000_000),
        ("decoder_conf", "ffn_dim", 2_000_000),
        ("features_conf", "n_mels", 2_000_000),
        ("features_conf", "sample_rate", 100_000_000),
    ],
)
def test_sizes_far_beyond_the_weights_are_refused_before_memory_is_used(tiny_model_dir, section, field, value):
    values = yaml.safe_load((tiny_model_dir / "config.yaml").read_text())[section]
    directory = _with(tiny_model_dir, **{section: {**values, field: value}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        message = refused(ConfigError, directory)
    finally:
        shutil.rmtree(directory)
    says = f"{field} {value} is over " if section == "features_conf" else "a model of its sizes is far larger than its"
    assert message.startswith(f"{directory / 'config.yaml'}: {says}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_bad_setting_of_the_search_that_another_is_given_for(tiny_model_dir):
    directory = _with(tiny_model_dir, search_conf={"beam_size": 0, "nbest": 2})
    try:
        assert load(directory, beam_size=3).search_config.nbest == 2
        message = refused(ConfigError, directory, beam_size=-1)
    finally:
        shutil.rmtree(directory)
    assert message == "search beam_size must be at least 1"


@pytest.mark.parametrize("key", [3, None, ("a", 1), 2.5])
def test_weights_with_odd_names(model_copy, key):
    import torch

    torch.save({**torch.load(model_copy / WEIGHTS), key: torch.zeros(1)}, model_copy / WEIGHTS)
    assert "it holds other things than tensors by name" in refused(ModelError, model_copy)


def test_a_device_that_computes_nothing(tiny_model_dir):
    message = refused(ConfigError, tiny_model_dir, device="meta")
    assert message.startswith("device 'meta' cannot be used (") and message.endswith("where there is a GPU")


def test_a_disk_that_is_full_while_a_model_is_unpacked_or_packed(tiny_model_dir, packed, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with longest_file(10000):
        message = refused(ModelError, packed)
    assert message.startswith(f"{packed} cannot be unpacked into {tmp_path} (TMPDIR), where ")
    assert "MB: File too large: raise the limit" in message and not any(tmp_path.iterdir())
    with longest_file(10000), pytest.raises(OSError) as caught:
        pack(tiny_model_dir, tmp_path / "model.zip")
    assert caught.value.filename == str(tmp_path / "model.zip") and not any(tmp_path.iterdir())


def test_only_what_a_model_is_made_of_is_unpacked(packed, tmp_path, monkeypatch):
    more = tmp_path / "more.zip"
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(more, "w", zipfile.ZIP_DEFLATED) as packed_again:
        for name in archive.namelist():
            packed_again.writestr(name, archive.read(name))
        for name in ("../outside", "/outside", "tokenizer/../../outside", "notes.txt", "tokenizer/below/deep"):
            packed_again.writestr(name, bytes(1 << 26))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with trained_model.unpacked(more) as folder:
        there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        assert there == ["config.yaml", "model.pth", "tokenizer.model"] and len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["more.zip"]
    assert load(more, search="greedy")(tiny.speech(4, 40000)) == load(packed, search="greedy")(tiny.speech(4, 40000))


@pytest.mark.parametrize("member", ["model.pth", "tokenizer/a"])
def test_a_file_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch, member):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.yaml", "task: speechllm_xl")
        archive.writestr(member, bytes(1 << 25))
    message = refused(ModelError, tmp_path / "bomb.zip")
    assert message.startswith(
        f"{tmp_path / 'bomb.zip'} would be 34 MB when unpacked, over 20 times its size: that is no"
    )
    assert not any((tmp_path / "temporary").iterdir())


def test_what_zipfile_cannot_read_is_no_packed_model(packed, tmp_path):
    content = packed.read_bytes()
    cut = content.index(b"PK\x01\x02")  # of the directory: flags in bytes 8, 9; compression in 10, 11
    for name, place, value in (("locked", 8, 1), ("coded", 10, 99), ("crc", 16, 7)):
        changed = bytearray(content)
        changed[cut + place] = value
        (tmp_path / name).write_bytes(changed)
        message = refused(ModelError, tmp_path / name)
        assert message.startswith(f"{tmp_path / name} is not a packed model, or is truncated")
