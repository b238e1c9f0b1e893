"""Parts of the GPU check: how fast it trains and decodes, beside what its data sheet allows.

A part is a function of a :class:`Setting` and a :class:`Report`.  It looks at the time that it has left.
"""

import functools
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.benchmarks import made_up
from espnet_speechllm_xl.benchmarks.gpu_figures import Shape, count_launches, data_sheet
from espnet_speechllm_xl.benchmarks.gpu_models import (
    TINY_OPTIONS,
    load_narrow,
    load_random,
    measured_bandwidth,
    measured_rate,
    seconds_of,
    shape_of,
    wait,
)
from espnet_speechllm_xl.benchmarks.gpu_report import Report, Setting
from espnet_speechllm_xl.decoding.engine import Calls, model_calls, run
from espnet_speechllm_xl.decoding.streams import decode
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.model.decoder_steps import ChunkDecoder, Past, Request
from espnet_speechllm_xl.systems import find_task
from espnet_speechllm_xl.training.trainer import matmul_precision

# Training


def training(setting: Setting, report: Report) -> None:
    """Measure training at the paper's size with bfloat16 autocast: audio a second, and the model's FLOP a second."""
    task = find_task("speechllm_xl")
    options = task.get_parser().parse_args(TINY_OPTIONS if setting.tiny else ["--config", str(setting.config)])
    vocab_size = 200 if setting.tiny else 5000
    options.token_list, options.stats_file = [str(number) for number in range(vocab_size)], None
    model: Any = task.build_model(options).to(setting.device).train()
    shape = Shape(
        model.acoustic.encoder.config,
        model.decoder.config,
        model.chunking,
        model.acoustic.config.n_mels,
        vocab_size,
        model.projection_config,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rng = np.random.default_rng(0)
    bins = 600 if setting.tiny else options.batch_bins // 8
    report.text(f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M weights, {bins} inputs a batch.")

    def step(batch: dict[str, torch.Tensor]) -> None:
        optimizer.zero_grad()
        with torch.autocast(torch.device(setting.device).type, torch.bfloat16, enabled=setting.on_gpu):
            loss, _, _ = model(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    audio, spent, flop = [], [], []
    with matmul_precision(options.matmul_precision, on_cpu=not setting.on_gpu):
        for count in itertools.count():
            batch, seconds = made_up.draw_batch(rng, bins, vocab_size, setting.device)
            (size, samples), tokens = batch["speech"].shape, batch["text"].shape[1]
            frames = int(timeline.frames(samples, made_up.RATE))
            took = seconds_of(setting, functools.partial(step, batch))
            if count >= (1 if setting.tiny else 4):
                spent.append(took)
                audio.append(seconds)
                flop.append(3 * size * sum(shape.forward_flop(frames, tokens).values()))  # backward is twice forward
                report.say(f"step {len(spent)}: {audio[-1] / took:.0f} s of audio a second")
            if len(spent) >= (2 if setting.tiny else 40) or (report.seconds_left < 20 and len(spent) > 2):
                break
    rate, speed = sum(audio) / sum(spent), sum(flop) / sum(spent)
    report.head("what", "value")
    report.row("audio a second", f"{rate:.0f} s")
    report.row("a step", f"{statistics.median(spent):.3f} s for {statistics.median(audio):.0f} s of audio (medians)")
    report.row("960 h, an epoch", f"{960 / rate:.2f} h")
    report.row("the model's FLOP", f"{sum(flop) / sum(audio) / 1e9:.1f} GFLOP a second of audio, 3 x forward")
    if setting.on_gpu:
        report.row("memory", f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    peak, source = _peak(setting)
    report.row("FLOP a second", f"{speed / 1e12:.2f} TFLOP/s, {speed / peak:.1%} of {peak / 1e12:.1f} ({source})")
    report.figure("MFU", speed / peak)
    report.head("forward, 15 s of audio with 52 tokens", "GFLOP a second of audio")
    for name, value in shape.forward_flop(375, 52).items():
        report.row(name, f"{value / 15e9:.3f}")


def _peak(setting: Setting) -> tuple[float, str]:
    """Return the greatest FLOP a second that the device has, and where the figure comes from."""
    sheet = data_sheet(torch.cuda.get_device_name(0)) if setting.on_gpu else None
    if sheet is not None:
        return sheet.teraflops * 1e12, "data sheet, dense bfloat16"
    size, dtype = (8192, torch.bfloat16) if setting.on_gpu else (256, torch.float32)
    return measured_rate(setting, size, dtype), "measured"


# Decoder steps

BATCHES = (1, 4, 16, 64, 256, 1024, 2048, 4096)


@torch.no_grad()
def steps(setting: Setting, report: Report) -> None:
    """Time token steps of many hypotheses with a full window, beside the bytes that they have to move."""
    speech2text = load_random(setting)
    shape = shape_of(speech2text)
    bandwidth, source = _bandwidth(setting)
    number_bytes = 2 if setting.on_gpu else 4
    report.text(
        f"A step advances each hypothesis by one token; it sees about 180 inputs.  The floor is the bytes of weights, "
        f"visible keys and values, and logits over {bandwidth / 1e12:.3f} TB/s ({source})."
    )
    report.head("hypotheses", "prefill of 32 frames", "step", "CPU's part", "floor", "step / floor", "tokens a second")
    taken = 0.0
    for batch in BATCHES[:3] if setting.tiny else BATCHES:
        if report.seconds_left < 5 * taken:  # the next is up to four times as large
            report.text(f"No time was left for {batch} hypotheses and more.")
            return
        begin = time.perf_counter()
        try:
            prefill, inputs, step, enqueued = _time_steps(setting, speech2text, batch)
        except torch.OutOfMemoryError:
            report.row(batch, "out of memory", "", "", "", "", "")
            return
        floor = shape.step_bytes(batch, inputs, number_bytes) / bandwidth
        report.row(
            batch,
            *(f"{1000 * seconds:.2f} ms" for seconds in (prefill, step, enqueued)),
            f"{1000 * floor:.3f} ms",
            f"{step / floor:.1f}",
            f"{batch / step:.0f}",
        )
        report.figure(f"step of {batch} / floor", step / floor)
        taken = time.perf_counter() - begin


def _full_windows(speech2text: Speech2Text, batch: int) -> list[Past]:
    """Return hypotheses that have read as many chunks of frames and tokens as their window holds."""
    decoder, chunking = speech2text.model.decoder, speech2text.chunking
    assert chunking is not None and chunking.context is not None
    frames, pasts = _frames(speech2text), [decoder.initial_past(chunking.context)] * batch
    for chunk_id in range(chunking.context + 1):
        pasts = _pasts(decoder, [Request(past, chunk_id, frames=frames) for past in pasts])
        for _ in range(5 if chunk_id < chunking.context else 0):
            pasts = _step(decoder, pasts, chunk_id)
    return pasts


def _frames(speech2text: Speech2Text) -> torch.Tensor:
    """Return decoder inputs (c, D) of a chunk."""
    weight = next(speech2text.model.parameters())
    assert speech2text.chunking is not None and speech2text.chunking.chunk is not None
    return torch.randn(speech2text.chunking.chunk, speech2text.model.decoder.dim).to(weight)


def _pasts(decoder: ChunkDecoder, requests: Sequence[Request]) -> list[Past]:
    return [result.past for result in decoder.extend(requests)]


def _step(decoder: ChunkDecoder, pasts: Sequence[Past], chunk_id: int = 4) -> list[Past]:
    """Advance hypotheses by one token each.

    Args:
        decoder: of the hypotheses.
        pasts: where they stand.
        chunk_id: their chunk.
    """
    return _pasts(decoder, [Request(past, chunk_id, token=1 + index % 7) for index, past in enumerate(pasts)])


def _time_steps(setting: Setting, speech2text: Speech2Text, batch: int) -> tuple[float, int, float, float]:
    """Return the seconds of a prefill, the inputs that are seen, the seconds of a step, and of them the CPU's.

    Args:
        setting: says where.
        speech2text: the model.
        batch: hypotheses.
    """
    decoder = speech2text.model.decoder
    pasts = _full_windows(speech2text, batch)
    steps, enqueued = [], []
    for _ in range(3 if setting.tiny else 8):
        wait(setting)
        begin = time.perf_counter()
        pasts = _step(decoder, pasts)
        enqueued.append(time.perf_counter() - begin)
        wait(setting)
        steps.append(time.perf_counter() - begin)
    frames, last = _frames(speech2text), speech2text.chunking.context or 0  # type: ignore[union-attr]
    requests = [Request(past, last + 1, frames=frames) for past in pasts]
    prefill = min(seconds_of(setting, lambda: decoder.extend(requests)) for _ in range(2))
    inputs = 5 * len(frames) + 4 * 5 + len(steps) // 2
    return prefill, inputs, statistics.median(steps), statistics.median(enqueued)


def _bandwidth(setting: Setting) -> tuple[float, str]:
    """Return the bytes a second of the memory, and where the figure comes from."""
    sheet = data_sheet(torch.cuda.get_device_name(0)) if setting.on_gpu else None
    if sheet is not None:
        return sheet.terabytes * 1e12, "data sheet"
    return measured_bandwidth(setting), "measured by copying"


# Launches


def launches(setting: Setting, report: Report) -> None:
    """Count the kernels that one chunk of some streams launches, by what launches them."""
    speech2text = load_random(setting) if setting.on_gpu or setting.tiny else load_narrow(setting)
    kinds = ("encode", "prefill", "token")
    report.text(
        "Kernels and copies for one chunk of streams in step, five tokens each"
        + (", counted by CUPTI." if setting.on_gpu else "; operations of torch on the CPU stand for them.")
    )
    report.head("streams", *(f"{kind}, a call" for kind in kinds), "the rest, a stream", "all")
    for count in (1, 3) if setting.tiny else (1, 4, 16):
        found, calls, total = _count_in_chunk(setting, speech2text, count)
        rest = (total - found.total()) / count
        report.row(count, *(f"{found[kind] / calls[kind]:.0f}" for kind in kinds), f"{rest:.0f}", total)


def _count_in_chunk(
    setting: Setting, speech2text: Speech2Text, count: int
) -> tuple[Counter[str], Counter[str], int]:
    """Return the launches of the model's calls by kind, the calls by kind, and all launches of a chunk.

    Args:
        setting: says where.
        speech2text: the model.
        count: streams.
    """
    streams = [speech2text.stream("greedy") for _ in range(count)]
    encoder, compute = speech2text.model.acoustic.encoder.config, model_calls(speech2text.model)
    first = timeline.samples_for_frames(encoder.segment + encoder.right_context, made_up.RATE)
    noise = made_up.make_noise(0, 20.0)
    run([stream.consume(noise[:first]) for stream in streams], compute)
    samples = timeline.samples_of_frames(encoder.segment, made_up.RATE)

    def next_chunk(compute: Calls) -> None:
        nonlocal first
        run([stream.consume(noise[first : first + samples]) for stream in streams], compute)
        first += samples

    for _ in range(5):
        next_chunk(compute)
    found, calls = Counter[str](), Counter[str]()

    def counted(requests: Sequence[Any]) -> list:
        results: list = []
        found[requests[0].kind] += count_launches(lambda: results.extend(compute(requests)), setting.device)
        calls[requests[0].kind] += 1
        return results

    next_chunk(counted)
    return found, calls, count_launches(lambda: next_chunk(compute), setting.device)


# Whole recordings


def offline(setting: Setting, report: Report) -> None:
    """Decode many recordings at once: seconds of audio a second, and where the time goes."""
    speech2text, seconds = load_random(setting), 3.0 if setting.tiny else 15.0
    sound = [made_up.make_noise(seed, seconds) for seed in range(8)]
    report.text(f"Recordings of {seconds:g} s, greedy search, five tokens a chunk.")
    kinds = ("encode", "prefill", "token")
    report.head("recordings", "audio a second", *(f"{kind}, calls" for kind in kinds), "the rest of the time")
    best = 0.0
    for count in (2, 4) if setting.tiny else (8, 64, 256, 1024, 4096):
        begin = time.perf_counter()
        try:
            times, calls = _decode_together(setting, speech2text, [sound[index % len(sound)] for index in range(count)])
        except torch.OutOfMemoryError:
            report.row(count, "out of memory", "", "", "", "")
            break
        spent = time.perf_counter() - begin
        parts = [f"{times[kind] / spent:.0%}, {calls[kind]}" for kind in kinds]
        report.row(count, f"{count * seconds / spent:.0f} s", *parts, f"{1 - times.total() / spent:.0%}")
        if count > 8 or setting.tiny:  # the first warms up
            best = max(best, count * seconds / spent)
        if 5 * spent > report.seconds_left:
            break
    report.figure("offline RTFx", best)


def _decode_together(
    setting: Setting, speech2text: Speech2Text, recordings: Sequence[Any]
) -> tuple[Counter[str], Counter[str]]:
    """Decode recordings as one batch; return the seconds and the number of the model's calls, by kind.

    Args:
        setting: says where.
        speech2text: the model.
        recordings: samples (n,) of each.
    """
    compute, seconds, calls = model_calls(speech2text.model), Counter[str](), Counter[str]()

    def watched(requests: Sequence[Any]) -> list:
        begin = time.perf_counter()
        results = compute(requests)
        wait(setting)
        seconds[requests[0].kind] += time.perf_counter() - begin  # type: ignore[assignment]  # a Counter of seconds
        calls[requests[0].kind] += 1
        return results

    assert speech2text.chunking is not None
    settings = speech2text.model, speech2text.tokenizer, speech2text.chunking, speech2text.search_config
    run([decode(*settings, recording) for recording in recordings], watched)
    return seconds, calls
