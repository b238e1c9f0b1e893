#!/usr/bin/env python3
"""Measure how fast a configuration trains on this machine, and how long a corpus and how much memory would take.

    local/run.sh python3 local/training_throughput.py --config conf/train_paper.yaml --device cuda
    local/run.sh python3 local/training_throughput.py --config conf/train_ctc_paper.yaml --task ctc --batch-bins 2000

Real steps (forward, backward, optimizer) on batches of noise with lengths as in LibriSpeech: 60 % of the utterances
have 14 to 16 s, the others 2 to 14 s (mean 12.2 s), 3.5 tokens a second.  The time to read audio is left out.  The
time of an epoch is divided by the number of devices: their communication is left out, too.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.benchmarks.made_up import RATE, READ_TOKENS_PER_SECOND, draw_batch
from espnet_speechllm_xl.bin.options import at_least
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.model.sequence import sequence_length
from espnet_speechllm_xl.systems import SYSTEMS, find_task
from espnet_speechllm_xl.training.trainer import keep_freed_memory, matmul_precision

DEVICES = 8  # devices that share the batch_bins of the YAML


@dataclass(frozen=True)
class Figures:
    """Measurements of the timed steps."""

    audio_seconds: list[float]  # of each step's batch
    step_seconds: list[float]  # computing time of each step
    flop: float  # FLOP for one second of audio
    activation_bytes: float  # memory for one second of audio


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML of a training")
    parser.add_argument("--task", default="speechllm_xl", choices=sorted(SYSTEMS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vocab-size", type=int, default=5000)
    parser.add_argument(
        "--batch-bins",
        type=at_least(int, 1),
        metavar="N",
        help=f"frames and tokens in a batch of one device (default: batch_bins of the YAML / {DEVICES})",
    )
    parser.add_argument(
        "--steps", type=at_least(int, 1), default=5, help="timed steps, after two untimed ones (default %(default)s)"
    )
    parser.add_argument("--hours", type=float, default=960, help="hours of the corpus (default %(default)s)")
    parser.add_argument(
        "--speeds", type=int, default=3, help="speeds at which the corpus is used (default %(default)s)"
    )
    parser.add_argument(
        "--devices",
        type=at_least(int, 1),
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="numbers of devices to estimate the time for (default 1 8)",
    )
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> tuple[torch.nn.Module, argparse.Namespace]:
    """Build the model of a configuration in training mode; return it with the configuration as ESPnet's arguments."""
    task = find_task(args.task)
    options = task.get_parser().parse_args(["--config", str(args.config)])
    options.token_list, options.stats_file = [str(number) for number in range(args.vocab_size)], None
    return task.build_model(options).to(args.device).train(), options


def measure(args: argparse.Namespace, model: torch.nn.Module, options: argparse.Namespace) -> Figures:
    """Time training steps.

    Args:
        args: the command line.
        model: trained on the way.
        options: ESPnet's arguments.
    """
    bins, on_gpu = args.batch_bins or options.batch_bins // DEVICES, torch.device(args.device).type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rng = np.random.default_rng(0)
    audio_seconds: list[float] = []
    step_seconds: list[float] = []

    def step(batch: Mapping[str, torch.Tensor]) -> None:
        optimizer.zero_grad()
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=on_gpu and options.use_amp):
            loss, _, _ = model(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.grad_clip)
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    for count in range(args.steps + 2):
        batch, seconds = draw_batch(rng, bins, args.vocab_size, args.device)
        begin = time.perf_counter()
        step(batch)
        if count >= 2:
            audio_seconds.append(seconds)
            step_seconds.append(time.perf_counter() - begin)
        print(f"step {count + 1} of {args.steps + 2}: {time.perf_counter() - begin:.2f} s", file=sys.stderr, flush=True)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    # The difference of two utterances and one: copies of the weights in half precision do not grow with the batch.
    one, two = ({name: tensor[:1].repeat_interleave(n, 0) for name, tensor in batch.items()} for n in (1, 2))
    kept = count_kept_bytes(model, two, options.use_amp) - count_kept_bytes(model, one, options.use_amp)
    flop, activation_bytes = counter.get_total_flops() / seconds, kept * len(batch["speech"]) / seconds
    return Figures(audio_seconds, step_seconds, flop, activation_bytes)


def count_kept_bytes(model: torch.nn.Module, batch: Mapping[str, torch.Tensor], amp: bool) -> int:
    """Count the bytes that a forward pass keeps for the backward pass.

    Args:
        model: in training mode.
        batch: arguments of its ``forward``.
        amp: compute as mixed precision does on a GPU, also on a CPU.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # the graph holds the tensor: no address is used twice before the loss is gone

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(batch["speech"].device.type, torch.bfloat16, enabled=amp),
    ):
        loss, _, _ = model(**batch)
    del loss
    return sum(kept.values())


def report(
    args: argparse.Namespace, model: torch.nn.Module, options: argparse.Namespace, figures: Figures
) -> list[str]:
    """Describe the measurements and the estimates from them, a line each.

    Args:
        args: the command line.
        model: the measured model.
        options: ESPnet's arguments.
        figures: the measurements.
    """
    spoken, spent = figures.audio_seconds, figures.step_seconds
    rate = statistics.median(audio / seconds for audio, seconds in zip(spoken, spent, strict=True))
    hours = args.hours * args.speeds / rate
    where = torch.cuda.get_device_name(args.device) if torch.device(args.device).type == "cuda" else "CPU"
    lines = [
        f"{args.config.name}: {sum(value.numel() for value in model.parameters()) / 1e6:.1f} M parameters",
        f"device: {where}, {torch.get_num_threads()} threads on the CPU",
        f"{statistics.median(spoken):.0f} s of audio a step in {1000 * statistics.median(spent):.0f} ms (medians of "
        f"{len(spent)}): {rate:.1f} s of audio a second",
        f"{figures.flop / 1e9:.1f} GFLOP a second of audio, {figures.flop * rate / 1e12:.2f} TFLOP/s",
    ]
    if where == "CPU":
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        memory = torch.cuda.max_memory_allocated(args.device)
    weights = 16 * sum(value.numel() for value in model.parameters())
    bins = options.batch_bins // DEVICES
    seconds = 100 * bins / sequence_length(int(timeline.frames(100 * RATE, RATE)), round(100 * READ_TOKENS_PER_SECOND))
    lines.append(f"memory: {memory / 2**30:.1f} GiB at most in these steps")
    lines.append(
        f"memory of a device with batch_bins {bins}: {weights / 2**30:.1f} GiB for weights, gradients and AdamW's "
        f"state, {figures.activation_bytes * seconds / 2**30:.1f} GiB for the activations of {seconds:.0f} s of audio"
    )
    for count in args.devices:
        lines.append(
            f"an epoch of {args.hours:g} h at {args.speeds} speeds on {count} of it: {hours / count:.1f} h of computing"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; return 0, or 2 with one line on stderr."""
    args = parse(argv)
    try:
        if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"--device {args.device}: torch sees no GPU here; give cpu")
        model, options = build(args)
        keep_freed_memory()
        with matmul_precision(options.matmul_precision, on_cpu=torch.device(args.device).type == "cpu"):
            figures = measure(args, model, options)
    except UserError as error:
        print(f"training_throughput.py: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(args, model, options, figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
