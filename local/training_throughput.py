#!/usr/bin/env python3
"""How fast a configuration trains on this machine, how much memory it takes, and what that means for a corpus.

    local/run.sh python3 local/training_throughput.py --config conf/train_paper.yaml --device cuda
    local/run.sh python3 local/training_throughput.py --config conf/train_ctc_paper.yaml --task ctc --batch-bins 2000

Real steps (forward, backward, optimizer) on batches of noise with lengths as in LibriSpeech: 60 % of the utterances
have 14 to 16 s, the others 2 to 14 s (mean 12.2 s), 3.5 tokens a second.  Reading audio is left out.  The time of an
epoch on several devices is that of one divided by their number: what they say to one another is left out too.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.bin.options import at_least
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.model.sequence import sequence_length
from espnet_speechllm_xl.systems import TASKS, find_task
from espnet_speechllm_xl.training.trainer import keep_freed_memory, matmul_precision

RATE = 16000  # Hz
TOKENS_PER_SECOND = 3.5
DEVICES = 8  # that batch_bins of the YAML are for


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML of a training")
    parser.add_argument("--task", default="speechllm_xl", choices=sorted(TASKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vocab-size", type=int, default=5000)
    parser.add_argument(
        "--batch-bins", type=at_least(int, 1), help=f"of one device (default: that of the YAML / {DEVICES})"
    )
    parser.add_argument("--steps", type=at_least(int, 1), default=5, help="that are timed, after two that are not")
    parser.add_argument("--hours", type=float, default=960, help="of the corpus (default %(default)s)")
    parser.add_argument("--speeds", type=int, default=3, help="copies of it at other speeds (default %(default)s)")
    parser.add_argument(
        "--devices",
        type=at_least(int, 1),
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="to tell the time for (default 1 8)",
    )
    return parser.parse_args(argv)


def build(args):
    """The model of a configuration in training, and its YAML as ESPnet's arguments."""
    task = find_task(args.task)
    options = task.get_parser().parse_args(["--config", str(args.config)])
    options.token_list, options.stats_file = [str(number) for number in range(args.vocab_size)], None
    return task.build_model(options).to(args.device).train(), options


def draw_batch(rng, bins, vocab_size, device):
    """Utterances of one length until ``bins`` frames and tokens are full; the tensors of a model's ``forward``."""
    seconds = rng.uniform(14, 16) if rng.random() < 0.6 else rng.uniform(2, 14)
    samples, tokens = round(RATE * seconds), max(1, round(TOKENS_PER_SECOND * seconds))
    frames = int(timeline.frames(samples, RATE))
    size = max(1, bins // sequence_length(frames, tokens))
    batch = {
        "speech": torch.randn(size, samples), "speech_lengths": torch.full((size,), samples),
        "text": torch.randint(0, vocab_size, (size, tokens)), "text_lengths": torch.full((size,), tokens),
        "ends": torch.randint(0, frames, (size, tokens)).sort(1).values,
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in batch.items()}, seconds * size


def measure(args, model, options):
    """(seconds of audio and seconds of computing of each step, FLOP and bytes of activations a second of audio)."""
    bins, on_gpu = args.batch_bins or options.batch_bins // DEVICES, torch.device(args.device).type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rng, spoken, spent = np.random.default_rng(0), [], []

    def step(batch):
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
            spoken.append(seconds)
            spent.append(time.perf_counter() - begin)
        print(f"step {count + 1} of {args.steps + 2}: {time.perf_counter() - begin:.2f} s", file=sys.stderr, flush=True)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    # What two utterances keep more than one: copies of the weights in half precision do not grow with the batch.
    one, two = ({name: tensor[:1].repeat_interleave(n, 0) for name, tensor in batch.items()} for n in (1, 2))
    kept = count_kept(model, two, options.use_amp) - count_kept(model, one, options.use_amp)
    return spoken, spent, counter.get_total_flops() / seconds, kept * len(batch["speech"]) / seconds


def count_kept(model, batch, amp):
    """Bytes that a forward pass keeps for the backward pass, also on a CPU in the precision of a GPU (``amp``)."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # the graph holds it: no address is used twice before the loss is gone

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(batch["speech"].device.type, torch.bfloat16, enabled=amp),
    ):
        loss, _, _ = model(**batch)
    del loss
    return sum(kept.values())


def report(args, model, options, spoken, spent, flop, kept):
    """Lines of what was measured, and what follows from it."""
    rate = statistics.median(audio / seconds for audio, seconds in zip(spoken, spent, strict=True))
    hours = args.hours * args.speeds / rate
    where = torch.cuda.get_device_name(args.device) if torch.device(args.device).type == "cuda" else "CPU"
    lines = [
        f"{args.config.name}: {sum(value.numel() for value in model.parameters()) / 1e6:.1f} M parameters",
        f"device: {where}, {torch.get_num_threads()} threads on the CPU",
        f"{statistics.median(spoken):.0f} s of audio a step in {1000 * statistics.median(spent):.0f} ms (medians of "
        f"{len(spent)}): {rate:.1f} s of audio a second",
        f"{flop / 1e9:.1f} GFLOP a second of audio, {flop * rate / 1e12:.2f} TFLOP/s",
    ]
    if where == "CPU":
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        memory = torch.cuda.max_memory_allocated(args.device)
    weights = 16 * sum(value.numel() for value in model.parameters())
    bins = options.batch_bins // DEVICES
    seconds = 100 * bins / sequence_length(int(timeline.frames(100 * RATE, RATE)), round(100 * TOKENS_PER_SECOND))
    lines.append(f"memory: {memory / 2**30:.1f} GiB at most in these steps")
    lines.append(
        f"memory of a device with batch_bins {bins}: {weights / 2**30:.1f} GiB for weights, gradients and AdamW's "
        f"state, {kept * seconds / 2**30:.1f} GiB for the activations of {seconds:.0f} s of audio"
    )
    for count in args.devices:
        lines.append(
            f"an epoch of {args.hours:g} h at {args.speeds} speeds on {count} of it: {hours / count:.1f} h of computing"
        )
    return lines


def main(argv=None):
    """Returns 0, or 2 with one line on stderr."""
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
    print("\n".join(report(args, model, options, *figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
