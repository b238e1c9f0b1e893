"""Settings: unknown names, checks between fields, what ESPnet shows of them, the YAML files in conf/."""

import dataclasses
import inspect
import math
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from espnet_speechllm_xl import config, settings
from espnet_speechllm_xl.config import (
    AugmentConfig,
    ChunkingConfig,
    ConcatConfig,
    CTCConfig,
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    LossConfig,
    ProjectionConfig,
    SearchConfig,
    SpecAugmentConfig,
    StreamConfig,
    TextPromptConfig,
)
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.settings import ConfigError, from_dict, read_yaml
from espnet_speechllm_xl.systems.chunked_aed import LabelDecoderConfig

ROOT = Path(__file__).parent.parent
CONFIGS = sorted([*ROOT.glob("conf/train_*.yaml"), *ROOT.glob("egs2/*/*/conf/train_*.yaml")])
ALL = [c for c in vars(config).values() if dataclasses.is_dataclass(c) and isinstance(c, type)]


def test_defaults_are_the_papers():
    features, encoder, chunking, decoder = FeatureConfig(), EncoderConfig(), ChunkingConfig(), DecoderConfig()
    assert (features.sample_rate, features.n_mels) == (16000, 80)
    assert (encoder.layers, encoder.right_context, encoder.frontend, encoder.conv_kernel) == (20, 6, "stack", 0)
    assert (chunking.chunk, chunking.context, chunking.delay) == (32, 4, 0)
    assert (decoder.layers, decoder.lora_rank, decoder.pretrained) == (12, 0, None)
    assert SearchConfig().method == "alsd"


def test_from_dict():
    assert from_dict(ChunkingConfig, {"chunk": None, "context": 0}) == ChunkingConfig(chunk=None, context=0)
    assert from_dict(ChunkingConfig, {}) == from_dict(ChunkingConfig, None) == ChunkingConfig()


@pytest.mark.parametrize(
    "cls, values, says",
    [
        (ChunkingConfig, {"context": "inf"}, "chunking_conf context: 'inf' is not a whole number or null"),
        (ChunkingConfig, {"chunk": 8.0}, "chunk: 8.0 is not a whole number or null"),
        (ChunkingConfig, {"train_chunks": 8}, "train_chunks: 8 is not a list or null"),
        (SearchConfig, {"beam_size": "8"}, "beam_size: '8' is not a whole number"),
        (SearchConfig, {"recombine": 1}, "recombine: 1 is not true or false"),
        (LossConfig, {"ctc_weight": "0.3"}, "ctc_weight: '0.3' is not a number"),
        (LossConfig, {"ctc_weight": True}, "ctc_weight: True is not a number"),
        (FeatureConfig, {"sample_rate": None}, "sample_rate: None is not a whole number"),
        (DecoderConfig, {"pretrained": 3}, "pretrained: 3 is not text or null"),
    ],
)
def test_values_of_another_type_are_named(cls, values, says):
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, values, "chunking_conf")
    assert str(caught.value).startswith("chunking_conf ") and str(caught.value).endswith(says)


def test_infinity_is_allowed_where_it_means_never():
    assert from_dict(StreamConfig, {"settle_seconds": math.inf}).settle_seconds == math.inf


@pytest.mark.parametrize("value", [3, 1.5, "x", [], [1], True, {1: 2}, {None: 2}, ""])
def test_a_section_of_another_type_is_named(value):
    with pytest.raises(ConfigError, match="^encoder_conf: .* is (not a mapping of settings|no name of a setting)"):
        from_dict(EncoderConfig, value, "encoder_conf")


def test_values_in_messages_are_cut_to_a_line():
    endless = []
    for _ in range(40):
        endless = [endless] * 10  # what YAML's references make of ten lines
    values = (endless, {"a\nb": "c" * 10**6}, "x\n" * 1000, 16**6000, -(2**63) - 1, [16**6000], b"\x00" * 5000)
    for value in values:
        with pytest.raises(ConfigError) as caught:
            from_dict(SearchConfig, {"beam_size": value}, "search_conf")
        message = str(caught.value)
        assert message.startswith("search_conf beam_size: ") and message.endswith(" is not a whole number")
        assert len(message) < 200 and message.isprintable()
    long = str(UserError(f"{'a' * 10000}\r\n\tb\x1b[0m\ud800: copy it again"))
    assert len(long) < 800 and long.isprintable() and long.endswith(" b\\x1b[0m\\ud800: copy it again")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"a: [1", "config.yaml, line 1 is not readable YAML ("),
        (b"a: 1\nb: :\n  - x", "config.yaml, line 2 is not readable"),
        (b"a: \xff", "config.yaml, line 1: bytes that are no UTF-8: convert the file (iconv"),
        (b"a: 1\r\nb: x\x1by", "config.yaml, line 2 is not readable YAML (character U+001B, which"),
        (b"a: 2020-13-45", "config.yaml is not readable YAML (ValueError: "),
        (b"a: !!timestamp x", "config.yaml is not readable YAML ("),
        (b"a: !!python/name:os.system x", "config.yaml, line 1 is not readable YAML (could not determine"),
        (b"[" * 10000, "config.yaml is not readable YAML (RecursionError"),
        (b"", "config.yaml: None is not a mapping of settings to values: mend it"),
        (b"- a", "config.yaml: ['a'] is not a mapping"),
        (b"1: a", "config.yaml: 1 is no name of a setting"),
    ],
)
def test_a_file_that_is_no_settings_is_one_line(tmp_path, content, says):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        settings.read_yaml(tmp_path / "config.yaml")
    assert says in str(caught.value) and str(caught.value).isprintable()


def test_whole_numbers_are_numbers_and_tuples_lists():
    assert from_dict(LossConfig, {"ctc_weight": 0}).ctc_weight == 0
    assert from_dict(ChunkingConfig, {"train_chunks": (8, 16)}).train_chunks
    assert from_dict(SearchConfig, {"beam_size": np.int64(4)}).beam_size == 4


@pytest.mark.parametrize(
    "cls, section, name, hint",
    [
        (ChunkingConfig, "chunking_conf", "chunks", "did you mean 'chunk'?"),
        (EncoderConfig, "encoder_conf", "rigth_context", "did you mean 'right_context'?"),
        (SearchConfig, "search_conf", "beamsize", "did you mean 'beam_size'?"),
        (CTCConfig, "ctc_conf", "zzz", "known: dropout"),
    ],
)
def test_unknown_names_give_a_hint(cls, section, name, hint):
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, {name: 1}, section)
    assert str(caught.value) == f"{section} has no setting '{name}'; {hint}"
    with pytest.raises(ConfigError, match=f"^{cls.__name__} has no setting '{name}'"):
        from_dict(cls, {name: 1})


@pytest.mark.parametrize(
    "cls, values, message",
    [
        (FeatureConfig, {"sample_rate": 22050}, "sample_rate 22050 is not a multiple of 1000"),
        (FeatureConfig, {"sample_rate": 8000}, "f_max 7600.0 do not fit 0 .. 4000 Hz: set features_conf f_max"),
        (FeatureConfig, {"f_min": 7600.0}, "do not fit"),
        (FeatureConfig, {"floor": 0.0}, "floor 0.0 must be positive"),
        (SpecAugmentConfig, {"time_width": -1}, "specaug_conf: give numbers >= 0"),
        (SpecAugmentConfig, {"time_masks_per_second": math.nan}, "per_second: nan is no number within"),
        (SpecAugmentConfig, {"time_width": 10**12}, "time_width: 10+ is no number within"),
        (ConcatConfig, {"max_gap_seconds": 1e300}, "max_gap_seconds: 1e[+]300 is no number within"),
        (ChunkingConfig, {"train_chunks": [32, 2**31]}, "train_chunks: .* is no number within"),
        (StreamConfig, {"settle_seconds": -math.inf}, "settle_seconds: -inf is no number within"),
        (LossConfig, {"ctc_weight": math.inf}, "ctc_weight inf must not be negative, nor infinite"),
        (FeatureConfig, {"floor": math.inf}, "floor inf must be positive and finite"),
        (FeatureConfig, {"level_seconds": 0.0}, "level_seconds 0.0 must be positive and finite, or null"),
        (FeatureConfig, {"n_mels": 0}, "n_mels 0 must be at least 1"),
        (EncoderConfig, {"dim": 0}, "encoder dim must be at least 1"),
        (EncoderConfig, {"ffn_dim": -4}, "encoder ffn_dim must be at least 1"),
        (EncoderConfig, {"frontend": "vgg"}, "encoder frontend 'vgg': use 'stack' or 'conv'"),
        (EncoderConfig, {"dim": 100, "heads": 8}, "encoder dim 100 is not a multiple of heads 8"),
        (EncoderConfig, {"activation": "tanh"}, "encoder activation 'tanh'"),
        (EncoderConfig, {"segment": 0}, "encoder segment must be at least 1"),
        (EncoderConfig, {"layers": 0}, "encoder layers must be at least 1"),
        (EncoderConfig, {"right_context": -1}, "encoder right_context must not be negative"),
        (ChunkingConfig, {"chunk": 0}, "chunk 0: give frames >= 1, or null for infinity"),
        (ChunkingConfig, {"context": -1}, "context -1: give chunks >= 0, or null"),
        (ChunkingConfig, {"delay": -1}, "delay -1 must not be negative"),
        (ChunkingConfig, {"train_chunks": [None, 32]}, "give a list of frames >= 1, or null"),
        (ChunkingConfig, {"train_chunks": [12.5]}, "give a list of frames >= 1, or null"),
        (ChunkingConfig, {"unit": "phone"}, "chunking unit 'phone': use 'token' or 'word'"),
        (DecoderConfig, {"dim": 100}, "decoder dim 100 is not a multiple of heads 12"),
        (DecoderConfig, {"dim": 36, "heads": 12}, "must be even for rotary positions"),
        (DecoderConfig, {"dim": 0}, "decoder dim must be at least 1"),
        (DecoderConfig, {"rope_theta": 0}, "decoder rope_theta 0 must be positive"),
        (DecoderConfig, {"lora_rank": -1, "pretrained": "x"}, "lora_rank -1 must not be negative"),
        (LabelDecoderConfig, {"ffn_dim": 0}, "decoder ffn_dim must be at least 1"),
        (LossConfig, 5, "LossConfig: 5 is not a mapping of settings to values"),
        (DecoderConfig, {"lora_rank": 4}, "lora_rank > 0 needs decoder_conf pretrained"),
        (ProjectionConfig, {"reduction": 3}, "projection reduction 3: use 1, 2, 4 or 8 frames"),
        (ProjectionConfig, {"hidden_dim": -1}, "projection hidden_dim -1 must not be negative"),
        (TextPromptConfig, {"probability": 1.5}, r"prompt probability 1.5 is not in \[0, 1\]"),
        (TextPromptConfig, {"words": 0}, "prompt words 0 must be at least 1"),
        (TextPromptConfig, {"words": 3}, r"prompt own_words 4 is not in 0 .. 3 \(words\)"),
        (TextPromptConfig, {"distance": 0}, "prompt distance 0 must be at least 1"),
        (DecoderConfig, {"freeze": True}, "freeze needs decoder_conf pretrained"),
        (DecoderConfig, {"freeze": True, "lora_rank": 4, "pretrained": "x"}, "leave out one of them"),
        (DecoderConfig, {"use_dora": True, "pretrained": "x"}, "use_dora is of adapters: give lora_rank, too"),
        (DecoderConfig, {"lora_dropout": 0.1, "pretrained": "x"}, "lora_dropout is of adapters"),
        (DecoderConfig, {"lora_dropout": 1.0, "lora_rank": 4, "pretrained": "x"}, "lora_dropout 1.0 is not in"),
        (DecoderConfig, {"lora_targets": [], "lora_rank": 4, "pretrained": "x"}, r"lora_targets \[\]: give a list"),
        (DecoderConfig, {"lora_targets": [3], "lora_rank": 4, "pretrained": "x"}, r"lora_targets \[3\]: give a list"),
        (DecoderConfig, {"train_table": True, "pretrained": "x"}, "train_table is of an LLM whose weights are frozen"),
        (DecoderConfig, {"frozen_dtype": "bfloat16", "pretrained": "x"}, "frozen_dtype is of an LLM whose weights"),
        (DecoderConfig, {"frozen_dtype": "half", "freeze": True, "pretrained": "x"}, "use 'float32' or 'bfloat16'"),
        (LossConfig, {"label_smoothing": 1.0}, r"label_smoothing 1.0 is not in \[0, 1\)"),
        (LossConfig, {"ctc_weight": -0.1}, "ctc_weight -0.1 must not be negative"),
        (ConcatConfig, {"probability": 1.5}, r"concat probability 1.5 is not in \[0, 1\]"),
        (ConcatConfig, {"across_speakers": -0.5}, r"concat across_speakers -0.5 is not in \[0, 1\]"),
        (
            AugmentConfig,
            {"min_gain_db": 3.0},
            "min_gain_db 3.0, max_gain_db 0.0: give two levels in dB, the lower one first",
        ),
        (AugmentConfig, {"max_gain_db": math.inf}, "give two levels in dB"),
        (AugmentConfig, {"cut_probability": 1.5}, r"cut_probability 1.5 is not in \[0, 1\]"),
        (AugmentConfig, {"cut_frames": -1}, "cut_frames -1 must not be negative"),
        (ConcatConfig, {"max_gap_seconds": -1.0}, "concat_conf: give seconds >= 0"),
        (ConcatConfig, {"max_lead_seconds": math.inf}, "concat_conf: give seconds >= 0"),
        (SearchConfig, {"beam_size": 0}, "search beam_size must be at least 1"),
        (SearchConfig, {"nbest": 0}, "search nbest must be at least 1"),
        (SearchConfig, {"max_tokens_per_chunk": 0}, "search max_tokens_per_chunk must be at least 1"),
    ],
)
def test_unusable_values(cls, values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(cls, values)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "chunk, segment, fits", [(32, 32, 1), (64, 32, 1), (8, 32, 1), (None, 32, 1), (48, 32, 0), (3, 4, 0)]
)
def test_chunk_and_segment_divide_one_another(chunk, segment, fits):
    chunking, encoder = ChunkingConfig(chunk=chunk), EncoderConfig(segment=segment)
    if fits:
        chunking.check_against(encoder)
    else:
        with pytest.raises(ConfigError, match=f"chunk {chunk} and encoder segment {segment} do not divide one another"):
            chunking.check_against(encoder)


@pytest.mark.parametrize("cls", ALL)
def test_every_field_is_frozen_and_explained(cls):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), dataclasses.fields(cls)[0].name, 1)
    source = inspect.getsource(cls)
    assert cls.__doc__
    for field in dataclasses.fields(cls):
        assert f"    {field.name}: " in source


# --- YAML ---


ODD = """\
numbers: [1_000, 0x1F, 010, 1e-5, 1.0e-5, .inf, -.INF, 1:30]
words: [yes, Off, ~, null, "null", 2026-11-30, ! x, é, "\\u00e9"]
merged: {<<: &base {a: 1, b: 2}, b: 3}
again: *base
block: |
  one
    two
folded: >-
  one
  two
"""


@pytest.mark.parametrize("path", [None, *CONFIGS], ids=lambda path: path and f"{path.parents[1].name}-{path.stem}")
def test_yaml_means_what_pyyaml_says(path, tmp_path):
    if path is None:
        (path := tmp_path / "odd.yaml").write_text(ODD, "utf-8")
    assert repr(read_yaml(path)) == repr(yaml.safe_load(path.read_text("utf-8")))


@pytest.mark.parametrize("text", ["a: " + "[" * 200000, "- " * 200000, "{a: " * 200000], ids=lambda text: text[:4])
def test_yaml_too_deep_is_an_error_not_a_crash(text, tmp_path):
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(ConfigError, match="not readable YAML"):
        read_yaml(tmp_path / "deep.yaml")


def test_yaml_of_many_tokens_is_read_fast(tmp_path):
    file, text = tmp_path / "config.yaml", "token_list:\n" + "".join(f"- token{index}\n" for index in range(10000))
    file.write_text(text)
    slow, fast = [], []
    for _ in range(3):  # the best of each: a collection of garbage may fall into any
        begin = time.process_time()
        expected = yaml.safe_load(text)
        middle = time.process_time()
        assert read_yaml(file) == expected
        slow.append(middle - begin)
        fast.append(time.process_time() - middle)
    assert min(fast) < min(slow) / 2


# --- what ESPnet makes of them ---


@pytest.fixture(scope="module")
def tasks():
    from espnet_speechllm_xl.systems import SYSTEMS, find_task

    return {name: find_task(name) for name in SYSTEMS}


def test_signatures_hold_every_field_with_its_default():
    from espnet2.utils.get_default_kwargs import get_default_kwargs

    from espnet_speechllm_xl.model.emformer import EmformerEncoder
    from espnet_speechllm_xl.model.llm import Decoder

    assert get_default_kwargs(EmformerEncoder) == dataclasses.asdict(EncoderConfig())
    assert get_default_kwargs(Decoder) == dataclasses.asdict(DecoderConfig())
    assert list(inspect.signature(Decoder).parameters) == ["vocab_size", *dataclasses.asdict(DecoderConfig())]


def test_print_config_shows_every_setting(tasks):
    shown = tasks["speechllm_xl"].get_default_config()
    sections = {
        "features_conf": FeatureConfig,
        "specaug_conf": SpecAugmentConfig,
        "concat_conf": ConcatConfig,
        "augment_conf": AugmentConfig,
        "chunking_conf": ChunkingConfig,
        "loss_conf": LossConfig,
        "projection_conf": ProjectionConfig,
        "text_prompt_conf": TextPromptConfig,
        "encoder_conf": EncoderConfig,
        "decoder_conf": DecoderConfig,
    }
    for name, cls in sections.items():
        assert shown[name] == dataclasses.asdict(cls()), name
    search = dataclasses.asdict(SearchConfig())
    assert shown["search"] == search.pop("method") and shown["search_conf"] == search
    assert shown["task"] == "speechllm_xl" and list(shown["best_model_criterion"][0]) == ["valid", "acc_text", "max"]
    aligner = tasks["ctc"].get_default_config()
    assert aligner["encoder_conf"] == dataclasses.asdict(EncoderConfig()) and aligner["task"] == "ctc"
    for name in sections:
        assert yaml.safe_load(yaml.safe_dump(shown[name])) == shown[name]


def _task_name(stem, tasks):
    """Of train_<task>_<size>; train_aligner_<size> is CTC's, train_<variant>_<size> SpeechLLM-XL's."""
    named = [name for name in tasks if stem.startswith(f"train_{name}_")]
    return max(named, key=len) if named else "ctc" if stem.startswith("train_aligner_") else "speechllm_xl"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_shared_configurations_are_accepted(tasks, path):
    """ESPnet takes every option; the sections, and they together, pass their checks; optimiser and schedule exist."""
    import torch
    from espnet2.tasks.abs_task import optim_classes, scheduler_classes

    task = tasks[_task_name(path.stem, tasks)]
    options = ["--config", str(path), "--output_dir", "unused"]
    if path.stem.startswith("train_llm_"):
        options += ["--decoder_conf", "pretrained=LLM"]  # the recipe names the directory
    args = task.get_parser().parse_args(options)
    system = task.system
    for section in system.sections:
        system.section(args, section)
    encoder = from_dict(EncoderConfig, args.encoder_conf, "encoder_conf")
    if system.name == "speechllm_xl":
        from_dict(DecoderConfig, args.decoder_conf, "decoder_conf")
        from_dict(SearchConfig, {**args.search_conf, "method": args.search}, "search_conf")
        chunking = system.section(args, "chunking_conf")
        chunking.check_against(encoder)
        if None not in (chunking.context, chunking.chunk):
            window = (chunking.context + 1) * chunking.chunk * 0.04
            assert args.concat_conf["max_seconds"] == 0 or args.concat_conf["max_seconds"] >= window
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = optim_classes[args.optim]([weight], **args.optim_conf)
    schedule = scheduler_classes[args.scheduler](optimiser, **args.scheduler_conf)
    if hasattr(schedule, "begin"):
        schedule.begin(1000)
    rates = []
    for _ in range(50):
        optimiser.step()
        schedule.step()
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates == sorted(rates) and 0 < rates[0] < rates[-1] < 0.005, "warms up"
