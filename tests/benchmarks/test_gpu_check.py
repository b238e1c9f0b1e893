"""The GPU check: it runs to its end on a CPU and on a pretended GPU, survives its parts, and counts right."""

import dataclasses
import random
import types

import pytest
import tiny
import torch
from pretend_gpu import pretend_gpu
from torch.utils.flop_counter import FlopCounterMode

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.benchmarks import gpu_check, gpu_checks, gpu_streams, made_up
from espnet_speechllm_xl.benchmarks.gpu_check import PARTS, Check, Part
from espnet_speechllm_xl.benchmarks.gpu_figures import LaunchCounter, Shape, count_launches, data_sheet
from espnet_speechllm_xl.benchmarks.gpu_report import Report, Setting
from espnet_speechllm_xl.benchmarks.gpu_streams import PacedStreams, Trial, search_most
from espnet_speechllm_xl.config import ChunkingConfig, DecoderConfig, EncoderConfig, ProjectionConfig
from espnet_speechllm_xl.decoding.engine import Engine
from espnet_speechllm_xl.model.visibility import visible


def test_all_of_it_on_the_cpu(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_check.main(["--device", "cpu", "--tiny"]) == 0
    report = (tmp_path / "gpu_check.md").read_text()
    sections = report.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == [part.title for part in PARTS.values()]
    assert report.count("| done |") == len(PARTS) and "does not hold" not in report and "Traceback" not in report
    for name in gpu_check.GOALS:
        (row,) = (line for line in report.splitlines() if line.startswith(f"| {name},"))
        assert not row.endswith("| - |")
    assert "Steps of the decoder: done" in capfd.readouterr().out


def test_all_of_it_on_a_pretended_gpu(tmp_path, monkeypatch):
    """The branches that only a GPU takes: no mix of devices, no wrong name."""
    gpu = types.SimpleNamespace(name="NVIDIA H200", total_memory=2**37)
    for name, value in {
        "synchronize": None, "get_device_properties": gpu, "get_device_name": gpu.name, "max_memory_allocated": 2**30
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 0)
    setting, sent = Setting("cuda", True, gpu_check.CONFIG, tmp_path), []
    with pretend_gpu():
        for part in PARTS.values():
            module, name = part.function.split(":")
            run = getattr(__import__(module, fromlist=[name]), name)
            run(setting, Report(sent.append, 100), **part.options)
    assert {value[0] for kind, value in sent if kind == "figure"} >= set(gpu_check.GOALS)
    assert not [value for kind, value in sent if kind == "failed"]
    assert any("989" in str(value) for _, value in sent)


# Parts that go wrong


def outcomes(tmp_path, *names, seconds=60, part_seconds=30):
    shown = []
    parts = [Part(name, part_seconds, f"broken_parts:{name}") for name in names]
    setting = Setting("cpu", True, gpu_check.CONFIG, tmp_path)
    check = Check(setting, parts, seconds, shown.append)
    found = check.run()
    return found, gpu_check.render(found, check.figures, setting, 1.0)


def test_a_part_that_goes_wrong_ends_no_other(tmp_path):
    found, report = outcomes(tmp_path, "raises", "dies", "differs", "fine")
    assert [outcome.passed for outcome in found] == [False, False, False, True]
    assert [outcome.verdict for outcome in found] == [
        "failed: ValueError: no such kernel", "its process died (exit code 77)", "1 checks failed", "done"
    ]  # fmt: skip
    assert "| one | two |\n|---|---|\n| 1 | 2 |\n" in report  # what it had found until then
    assert "holds: one is one\n" in report and "**does not hold**: one is two\n" in report
    assert "| MFU, of training, bfloat16 | 40.0% | 50.0% |" in report and 'raise ValueError("no such kernel")' in report


def test_a_part_is_cut_off_in_time(tmp_path):
    found, report = outcomes(tmp_path, "hangs", "fine", part_seconds=3)
    assert [outcome.verdict for outcome in found] == ["cut off after 3 s", "done"]
    assert "1 s left" in report


def test_no_part_begins_when_the_time_is_over(tmp_path):
    found, _ = outcomes(tmp_path, "fine", "hangs", "fine", seconds=8)
    assert [outcome.passed for outcome in found] == [True, False, False]
    assert found[1].seconds < 8 and found[2].verdict == "no time was left for it"


def test_wrong_use(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2 and "torch sees no GPU here" in capsys.readouterr().err
    assert gpu_check.main(["--device", "cpu", "--config", str(tmp_path / "no.yaml")]) == 2
    with pytest.raises(SystemExit):
        gpu_check.main(["--parts", "streams", "nothing"])


# What differs between the devices


def compared(monkeypatch, on_cpu, on_gpu):
    """The row of a comparison of these steps, and the checks that failed."""
    steps = {"cpu": [gpu_checks.Steps(*on_cpu)], "cuda": [gpu_checks.Steps(*on_gpu)]}
    monkeypatch.setattr(gpu_checks, "_greedy_steps", lambda directory, device, recordings, options: steps[device])
    sent, setting = [], Setting("cuda", True, gpu_check.CONFIG, None)
    gpu_checks._compare_greedy(setting, Report(sent.append, 9), "model", None, [0], {})
    return sent[0][1].split(" | ")[2:], [text for kind, text in sent if kind == "failed"]


def test_a_difference_is_judged_by_its_margin(monkeypatch):
    one = ([3, 1, 4], [0.5, 1e-4, 0.7], [-1.0, -2.0, -3.0])
    assert compared(monkeypatch, one, ([3, 1, 4], [0.5, 2e-4, 0.7], [-1.0, -2.25, -3.0])) == (
        ["1", "3", "0", "-", "2.5e-01 |"], []
    )  # fmt: skip
    row, failed = compared(monkeypatch, one, ([3, 9, 9, 9], [0.5, 1e-5, 1, 1], [-1.0, -2.0, -9.0, -9.0]))
    assert row == ["1", "3", "1", "1.0e-04", "0.0e+00 |"] and not failed
    row, failed = compared(monkeypatch, one, ([8, 1, 4], *one[1:]))
    assert row[2:4] == ["1", "5.0e-01"] and len(failed) == 1 and "margin is below 0.001" in failed[0]


def test_other_alignments_make_the_check_fail(tiny_aligner_dir, monkeypatch):
    def wrong(log_probs, tokens, blank):
        return next(paths)

    for values, holds in (([1, 2, 1, 2], True), ([1, 2, 1, 3], False)):
        paths, sent = iter(values), []
        monkeypatch.setattr(gpu_checks, "viterbi", wrong)
        setting = Setting("cpu", True, gpu_check.CONFIG, None)
        gpu_checks._compare_alignments(setting, Report(sent.append, 9), tiny_aligner_dir, [tiny.speech(1, 9000)] * 2)
        assert [kind for kind, _ in sent] == ["text" if holds else "failed"]


# Streams


@pytest.mark.parametrize("limit", [0, 7, 299, 300, 2400, 5000])
def test_the_search_finds_the_limit(limit):
    tried = []

    def try_out(count):
        tried.append(count)
        return Trial(1.0, latencies=[0.1 if count <= limit else 2.0], busy=min(1.0, count / max(limit, 1)))

    found = search_most(try_out, 300, lambda: True, 9)
    assert found == max([count for count in tried if count <= limit], default=0)
    assert 0.9 * limit - 1 <= found <= limit and len(tried) <= 9


def test_the_search_stops_when_the_time_is_over():
    tried = []

    def try_out(count):
        tried.append(count)
        return Trial(1.0, latencies=[0.1], busy=0.01)

    assert search_most(try_out, 10, lambda: len(tried) < 3, 9) == 160 and tried == [10, 40, 160]


def test_percentiles():
    trial = Trial(1.0, latencies=[index / 100 for index in random.Random(0).sample(range(1, 101), 100)])
    assert [trial.percentile(percent) for percent in (1, 50, 99, 100)] == [0.01, 0.5, 0.99, 1.0] and trial.kept_up
    assert not Trial(0.98, trial.latencies).kept_up and not Trial(1.0, []).kept_up
    assert not Trial(1.0, trial.latencies, failed=True).kept_up


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_paced_streams_keep_up_or_fall_behind(delay, tiny_model_dir, monkeypatch):
    """Four streams with chunks of 0.64 s, on an encoder that takes no time, or 0.4 s for each."""
    import time

    speech2text = Speech2Text.from_pretrained(tiny_model_dir, search="greedy", context=0.64)
    encode = speech2text.model.acoustic.encode

    def slow(requests):
        time.sleep(delay * len(requests))
        return encode(requests)

    monkeypatch.setattr(speech2text.model.acoustic, "encode", slow)
    with Engine(speech2text.model) as engine:
        trial = PacedStreams(speech2text, engine, 0.64, rounds=2).trial(4, 60)
    assert trial.kept_up == (delay == 0) and (delay == 0 or trial.busy > 0.5)
    if delay == 0:
        assert len(trial.latencies) == 8 and 0 < trial.tokens_per_second and trial.percentile(99) > 0


# Models


def test_random_models_write_the_tokens_that_they_should(tmp_path):
    setting = Setting("cpu", True, gpu_check.CONFIG, tmp_path)
    from espnet_speechllm_xl.benchmarks.gpu_models import load_random

    for chunk_seconds, wanted, seconds in ((1.28, 5, 5.12), (0.32, 1, 1.28)):
        speech2text = load_random(setting, chunk_seconds)
        chunking, encoder = speech2text.chunking, speech2text.model.acoustic.encoder.config
        assert chunking.chunk == encoder.segment == round(chunk_seconds / 0.04)
        assert chunking.chunk * chunking.context == 128 and len(speech2text.tokenizer.pieces) == 200
        (transcript,) = speech2text(made_up.make_noise(1, seconds))
        assert len(transcript.token_ids) >= 4 * wanted and transcript.text
    assert gpu_streams.FIRST.keys() == {1.28, 0.32}


def test_tones_end_where_their_characters_end():
    text, samples, ends = made_up.spell_tones(random.Random(3))
    assert len(text) == len(ends) and samples.dtype == "int16"
    for character, begin, end in zip(text, [-1, *ends], ends, strict=False):
        part = samples[640 * (begin + 1) : 640 * (end + 1)] / 32768
        assert (abs(part).mean() > 0.1) == (character != " ")
    assert len(set(made_up.make_words(5000))) == 5000


# Counting

SHAPE = Shape(
    EncoderConfig(dim=16, layers=2, heads=2, ffn_dim=32, segment=8, left_context=16, right_context=2),
    DecoderConfig(dim=24, layers=3, heads=3, ffn_dim=40),
    ChunkingConfig(8, 1),
    n_mels=80,
    vocab_size=39,
)


@pytest.mark.parametrize("projection", [ProjectionConfig(), ProjectionConfig(4), ProjectionConfig(2, hidden_dim=12)])
def test_flop_are_those_that_torch_counts(tiny_tokens, tmp_path, projection):
    """Of the products with weights; torch counts attention with its mask, as if all were visible."""
    from espnet_speechllm_xl.systems import find_task

    task = find_task("speechllm_xl")
    options = [*("--token_list", str(tiny_tokens / "tokens.txt"), "--tokenizer", str(tiny_tokens / "tokenizer.model"))]
    for section, config in (("encoder_conf", SHAPE.encoder), ("decoder_conf", SHAPE.decoder)):
        for name in ("dim", "layers", "heads", "ffn_dim", "segment", "left_context", "right_context"):
            if hasattr(config, name):
                options += [f"--{section}", f"{name}={getattr(config, name)}"]
    options += [*tiny.conf("chunking_conf", ["chunk=8", "context=1"]), "--output_dir", str(tmp_path)]
    fields = [f"{name}={value}" for name, value in dataclasses.asdict(projection).items()]
    options += tiny.conf("projection_conf", fields)
    model = task.build_model(task.get_parser().parse_args(options)).eval()
    vocab_size = model.decoder.eoc
    frames, tokens = 20, 7
    batch = {
        "speech": torch.randn(2, 640 * frames + 240), "speech_lengths": torch.full((2,), 640 * frames + 240),
        "text": torch.ones(2, tokens, dtype=torch.long), "text_lengths": torch.full((2,), tokens),
        "ends": torch.arange(0, 3 * tokens, 3).clamp(max=frames - 1).repeat(2, 1),
    }  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    shape = Shape(SHAPE.encoder, SHAPE.decoder, SHAPE.chunking, 80, vocab_size, projection)
    counted = shape.forward_flop(frames, tokens)
    own = 2 * sum(value for name, value in counted.items() if "attention" not in name)
    torchs = counter.get_flop_counts()["Global"]
    products = sum(value for kind, value in torchs.items() if str(kind) in ("aten.mm", "aten.addmm"))
    # torch computes the front end of the padding of the last segment, too, and mel bands as products of their own.
    padding = 2 * 2 * (24 + 2 - frames) * 320 * 16
    if projection.reduction > 1:  # and the inputs of the padding of the last chunk
        weights = sum(weight.numel() for weight in model.projection.parameters() if weight.ndim == 2)
        padding += 2 * 2 * (24 - frames) // projection.reduction * weights
    mel = 2 * 2 * (4 * frames) * 257 * 80
    assert products - own in (padding, padding + mel)


@pytest.mark.parametrize("reduction", [1, 4])
@pytest.mark.parametrize("frames, tokens", [(8, 0), (20, 7), (33, 30)])
@pytest.mark.parametrize("chunking", [ChunkingConfig(8, 1), ChunkingConfig(8, None), ChunkingConfig(None, None)])
def test_visible_keys_are_those_of_the_predicate(chunking, frames, tokens, reduction):
    chunk_ids = []
    size = chunking.chunk or frames
    for begin in range(0, frames, size):
        stop = min(begin + size, frames)
        count = -(-(stop - begin) // reduction) + tokens * stop // frames - tokens * begin // frames
        chunk_ids += [begin // size] * count
    place, chunk_id = torch.arange(len(chunk_ids)), torch.tensor(chunk_ids)
    seen = visible(place[:, None], chunk_id[:, None], place[None], chunk_id[None], chunking.context)
    shape = Shape(SHAPE.encoder, SHAPE.decoder, chunking, 80, 39, ProjectionConfig(reduction))
    assert shape.forward_flop(frames, tokens)["decoder, attention"] == 4 * 3 * 24 * int(seen.sum())


def test_bytes_of_a_step(tmp_path):
    from espnet_speechllm_xl.model.llm import Decoder

    decoder = Decoder(39, dim=24, layers=3, heads=3, ffn_dim=40)
    read = [weight for name, weight in decoder.named_parameters() if weight.ndim == 2 and "embed" not in name]
    weights = sum(weight.numel() for weight in read)
    assert SHAPE.step_bytes(0, 0, 2) == 2 * weights
    assert SHAPE.step_bytes(5, 10, 4) == 4 * weights + 5 * 10 * 2 * 3 * 24 * 4 + 2 * 5 * 40 * 4


def test_views_launch_nothing():
    numbers, linear = torch.randn(4, 4), torch.nn.Linear(4, 4)
    with LaunchCounter() as counter:
        numbers.T[1:].reshape(2, 6)  # a copy
        numbers.view(16)[3:].unsqueeze(0).expand(3, -1).detach()
        torch.empty(5), numbers.add_(1)
        linear(numbers)
    assert counter.operations == {"clone": 1, "add_": 1, "addmm": 1} and counter.total == 3
    assert count_launches(lambda: torch.cat([numbers, numbers]) + 1, "cpu") == 2


def test_data_sheets():
    names = {
        "NVIDIA H200": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989, "NVIDIA GH200 480GB": 989,
        "NVIDIA A100-SXM4-80GB": 312, "NVIDIA GeForce RTX 4090": 165, "NVIDIA A10G": 70, "NVIDIA L40S": 362,
        "NVIDIA L4": 121,
    }  # fmt: skip
    assert {name: data_sheet(name).teraflops for name in names} == names
    assert data_sheet("NVIDIA A100-SXM4-40GB").terabytes == 1.555 and data_sheet("Tesla T4") is None
