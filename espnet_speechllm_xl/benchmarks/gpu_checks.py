"""Parts of the GPU check: the machine, a training, and whether the GPU computes what the CPU computes.

A part is a function of a :class:`Setting` and a :class:`Report`.  It raises an error where it cannot go on.
"""

import dataclasses
import itertools
import platform
import random
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_speechllm_xl.benchmarks import made_up
from espnet_speechllm_xl.benchmarks.gpu_figures import data_sheet
from espnet_speechllm_xl.benchmarks.gpu_models import (
    capped,
    measured_bandwidth,
    measured_rate,
    random_model,
    wait,
)
from espnet_speechllm_xl.benchmarks.gpu_report import PartFailed, Report, Setting
from espnet_speechllm_xl.decoding.engine import model_calls, run
from espnet_speechllm_xl.decoding.streams import decode
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.model.alignment import viterbi
from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.model.visibility import PADDING, attention_mask
from espnet_speechllm_xl.systems import find_task
from espnet_speechllm_xl.training.compat import load_checkpoint
from espnet_speechllm_xl.training.tokenizer import TokenizerRecipe, make_tokenizer, write_token_list

CLEAR_MARGIN = 1e-3  # nats; two devices may rank outputs differently that are no further apart


# 1. The machine


def environment(setting: Setting, report: Report) -> None:
    """Describe the machine and the versions, and measure what its products and its memory give."""
    root = Path(__file__).parents[2]
    commit = _output_of("git", "-C", str(root), "log", "-1", "--format=%h %cs %s")
    changes = _output_of("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    report.head("what", "value")
    report.row("commit", f"{commit or 'unknown'}{', with changes' if changes else ''}")
    report.row("CPU", f"{_cpu_name()}, {torch.get_num_threads()} threads")
    packages = ("torch", "torchaudio", "transformers", "espnet", "numpy")
    report.row("versions", ", ".join([f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in packages)]))
    if setting.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        report.row("GPU", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        report.row("CUDA", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        fields = "driver_version,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,utilization.gpu"
        report.row(fields, _output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"))
        if sheet := data_sheet(properties.name):
            report.row("data sheet", f"{sheet.teraflops:.0f} TFLOP/s dense bfloat16, {sheet.terabytes} TB/s")
    size = 256 if setting.tiny else 8192 if setting.on_gpu else 1024
    for dtype in (torch.float32, torch.bfloat16):
        rate = measured_rate(setting, size, dtype)
        report.row(f"products of {size} x {size}, {str(dtype).removeprefix('torch.')}", f"{rate / 1e12:.2f} TFLOP/s")
    report.row("copying in memory", f"{measured_bandwidth(setting) / 1e12:.3f} TB/s")
    report.row("starting a small operation", f"{1e6 * _seconds_to_start(setting):.1f} us of the CPU")


def _seconds_to_start(setting: Setting) -> float:
    """Return the CPU's time for an operation on a few numbers, of many in a row."""
    numbers, count = torch.zeros(8, device=setting.device), 2000
    wait(setting)
    begin = time.perf_counter()
    for _ in range(count):
        numbers.add_(1)
    spent = time.perf_counter() - begin
    wait(setting)
    return spent / count


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


# 2. Training


def trains(setting: Setting, report: Report) -> None:
    """Train an aligner and a recogniser of a tiny size on tones, by ESPnet's trainer with mixed precision."""
    from espnet2.train import trainer

    folder = setting.folder / "tones"
    for name, count, seed in (("train", 16 if setting.tiny else 400, 1), ("valid", 4, 2)):
        made_up.write_tones(folder / name, count, seed)
    tokens = folder / "tokens"
    tokens.mkdir()
    write_token_list(tokens / "tokens.txt", make_tokenizer(str(folder / "train/text"), tokens, TokenizerRecipe("char")))
    stats = _train(setting, "ctc", None, 1)
    epochs = 2 if setting.tiny else 6
    report.say("the statistics are there")
    for task_name in ("ctc", "speechllm_xl"):
        begin = time.perf_counter()
        directory = _train(setting, task_name, stats, epochs)
        losses = _losses(directory)
        report.text(
            f"`{task_name}`: {epochs} epochs in {time.perf_counter() - begin:.1f} s, losses "
            + ", ".join(f"{loss:.3f}" for loss in losses)
        )
        report.check(all(np.isfinite(losses)) and losses[-1] < losses[0], f"the loss of `{task_name}` falls")
    kind = trainer.autocast_args.get("dtype", torch.float16 if setting.on_gpu else None)
    report.text(f"Mixed precision in {str(kind).removeprefix('torch.')}." if setting.on_gpu else "In float32.")


def _train(setting: Setting, task_name: str, stats: Path | None, epochs: int) -> Path:
    """Train a tiny model on the tones, or make their statistics; return the directory.

    Args:
        setting: says where.
        task_name: of systems/.
        stats: directory of the statistics; None: make them.
        epochs: of the training.
    """
    folder = setting.folder / "tones"
    out = folder / (task_name if stats else "stats")
    streams = ["wav.scp,speech,sound", "text,text,text", "utt2spk,spk,text"]
    streams += ["char_ends,alignment,text"] if task_name == "speechllm_xl" else []
    options = [
        *("--output_dir", out, "--token_list", folder / "tokens/tokens.txt", "--ngpu", int(setting.on_gpu)),
        *("--tokenizer", folder / "tokens/tokenizer.model", "--batch_bins", 1600, "--max_epoch", epochs),
        *("--optim", "adam", "--optim_conf", "lr=0.003", "--grad_clip", 5.0, "--seed", 3),
        *("--use_amp", setting.on_gpu, "--specaug_conf", "freq_masks=0", "--features_conf", "tail_frames=3"),
    ]
    sizes = ["dim=16" if setting.tiny else "dim=64", "layers=2", "heads=2", "ffn_dim=64", "segment=8"]
    for field in [*sizes, "left_context=16", "right_context=4"]:
        options += ["--encoder_conf", field]
    for part in ("train", "valid"):
        for stream in streams:
            options += [f"--{part}_data_path_and_name_and_type", folder / part / stream]
        for shape in ("speech_shape", "text_shape") if stats else ():
            options += [f"--{part}_shape_file", f"{stats}/{part}/{shape}"]
    options += ["--stats_file", f"{stats}/train/feats_stats.npz"] if stats else ["--collect_stats", "true"]
    if task_name == "speechllm_xl":
        for field in ("dim=16" if setting.tiny else "dim=64", "layers=2", "heads=2", "ffn_dim=64"):
            options += ["--decoder_conf", field]
        options += ["--chunking_conf", "chunk=16", "--chunking_conf", "context=2", "--loss_conf", "ctc_weight=0.3"]
    find_task(task_name).main(cmd=[str(option) for option in options])
    return out


def _losses(directory: Path) -> list[float]:
    """Return the training loss of each epoch."""
    epochs = load_checkpoint(torch.load, directory / "checkpoint.pth", weights_only=True)["reporter"]["stats"]
    return [float(epochs[epoch]["train"]["loss"]) for epoch in sorted(epochs)]


# 3. GPU and CPU alike


@dataclasses.dataclass
class Steps:
    """What a search saw of the decoder, step by step: its best output and how far the second best was."""

    outputs: list[int]
    margins: list[float]
    best: list[float]  # log-probability of the best output


def alike(setting: Setting, report: Report) -> None:
    """Decode and align on both devices: the same in float32 wherever the best two outputs are clearly apart."""
    folder = setting.folder / "tones"
    trained = folder / "speechllm_xl"
    if not trained.exists():
        raise PartFailed("needs the models that the part before trains")
    torch.set_float32_matmul_precision("highest")  # as in a process that has trained nothing
    count = 2 if setting.tiny else 12
    tones = [made_up.spell_tones(random.Random(1000 + seed))[1] / np.float32(32768) for seed in range(count)]
    noise = [made_up.make_noise(seed, 3.0 if setting.tiny else 8.0) for seed in range(2)]
    report.head("model", "search", "recordings", "outputs", "recordings that differ", "margins there", "largest error")
    _compare_greedy(setting, report, "trained on tones", trained, tones, {})
    _compare_greedy(setting, report, "random, the paper's size", random_model(setting), noise, capped(1.28))
    for search, ctc_weight in itertools.product(("chunk_sync", "alsd"), (0.0, 0.3)):
        options: dict[str, Any] = {"search": search, "ctc_weight": ctc_weight, "beam_size": 4}
        found = [_texts(trained, device, tones, options) for device in ("cpu", setting.device)]
        differ = sum(one != other for one, other in zip(*found, strict=True))
        name = f"{search}, beam 4" + (f", CTC {ctc_weight}" if ctc_weight else "")
        report.row("trained on tones", name, len(tones), "", differ, "", "")
    half = _texts(trained, setting.device, tones, {"search": "greedy", "dtype": "bfloat16"})
    whole = _texts(trained, setting.device, tones, {"search": "greedy"})
    differ = sum(one != other for one, other in zip(half, whole, strict=True))
    report.text(f"In bfloat16 {differ} of {len(tones)} texts are others than in float32.")
    _compare_alignments(setting, report, folder / "ctc", tones)
    _check_padding(setting, report)


def _compare_greedy(
    setting: Setting, report: Report, name: str, directory: Path, recordings: Sequence[Any], options: dict[str, Any]
) -> None:
    """Compare greedy search on both devices output by output, up to the first that differs.

    Args:
        setting: names the other device.
        report: takes a row.
        name: of the model.
        directory: of the model.
        recordings: samples (n,) of each.
        options: of the search.
    """
    steps = [_greedy_steps(directory, device, recordings, options) for device in ("cpu", setting.device)]
    margins, errors, outputs = [], [0.0], 0
    for one, other in zip(*steps, strict=True):
        pairs = enumerate(zip(one.outputs, other.outputs, strict=False))
        count = next((index for index, pair in pairs if pair[0] != pair[1]), None)
        outputs += len(one.outputs)
        if count is not None:
            margins.append(one.margins[count])
        errors += [abs(a - b) for a, b in zip(one.best[:count], other.best[:count], strict=False)]
    shown = ", ".join(f"{margin:.1e}" for margin in sorted(margins)) or "-"
    report.row(name, "greedy", len(recordings), outputs, len(margins), shown, f"{max(errors):.1e}")
    if any(margin > CLEAR_MARGIN for margin in margins):
        report.check(False, f"greedy search differs only where the margin is below {CLEAR_MARGIN} ({name})")


def _greedy_steps(directory: Path, device: str, recordings: Sequence[Any], options: dict[str, Any]) -> list[Steps]:
    """Return what greedy search saw in each recording.

    Args:
        directory: of the model.
        device: where it computes.
        recordings: samples (n,) of each.
        options: of the search.
    """
    speech2text = Speech2Text.from_pretrained(directory, device=device, **{**options, "search": "greedy"})
    calls, found = model_calls(speech2text.model), []
    assert speech2text.chunking is not None
    for recording in recordings:
        steps = Steps([], [], [])

        def watched(requests: Sequence[Any], steps: Steps = steps) -> list:
            results = calls(requests)
            if isinstance(requests[0], Request):
                best, second = results[0].log_probs.double().cpu().topk(2).values.tolist()
                steps.outputs.append(int(results[0].log_probs.argmax()))
                steps.margins.append(best - second)
                steps.best.append(best)
            return results

        args = speech2text.model, speech2text.tokenizer, speech2text.chunking, speech2text.search_config
        run([decode(*args, recording)], watched)
        found.append(steps)
    return found


def _texts(directory: Path, device: str, recordings: Sequence[Any], options: dict[str, Any]) -> list[Any]:
    """Return texts and word times of recordings (n,), decoded as one batch."""
    found = Speech2Text.from_pretrained(directory, device=device, **options).transcribe_batch(recordings)
    return [(nbest[0].token_ids, [(word.start, word.end) for word in nbest[0].words]) for nbest in found]


def _compare_alignments(setting: Setting, report: Report, directory: Path, recordings: Sequence[Any]) -> None:
    """Align the same texts on both devices."""
    spans = []
    for device in ("cpu", setting.device):
        speech2text = Speech2Text.from_pretrained(directory, device=device)
        model = speech2text.model
        tokens = speech2text.tokenizer.encode("ab cd")[0]
        with torch.no_grad():
            for recording in recordings:
                speech = torch.as_tensor(recording, device=device)[None]
                log_probs, _ = model.log_probs(speech, torch.tensor([speech.shape[1]], device=device))
                spans.append(viterbi(log_probs[0], tokens, model.ctc.blank))
    half = len(spans) // 2
    same = sum(one == other for one, other in zip(spans[:half], spans[half:], strict=True))
    report.check(same == half, f"the alignments of {half} recordings are the same on both devices ({same} are)")


def _check_padding(setting: Setting, report: Report) -> None:
    """Check that padding, which sees nothing, stays finite where mixed precision makes infinity of the mask."""
    place = torch.arange(6, device=setting.device)[None]
    chunk_id = torch.where(place < 4, 0, PADDING)
    mask = attention_mask(place, chunk_id, place, chunk_id, None, torch.float32)
    factors = torch.randn(3, 1, 2, 6, 8, device=setting.device, requires_grad=True)
    query, key, value = factors
    with torch.autocast(torch.device(setting.device).type, torch.bfloat16):
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    mixed.float().square().sum().backward()
    assert factors.grad is not None
    finite = bool(mixed.isfinite().all() and factors.grad.isfinite().all())
    report.check(finite, "attention of padding and its gradient are finite in mixed precision")
