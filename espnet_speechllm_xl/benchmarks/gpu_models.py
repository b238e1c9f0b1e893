"""What the parts of the GPU check measure with: models of the paper's size and random weights, and a clock."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.benchmarks import made_up
from espnet_speechllm_xl.benchmarks.gpu_figures import Shape
from espnet_speechllm_xl.benchmarks.gpu_report import Setting
from espnet_speechllm_xl.inference import Speech2Text

# With a beam the paper's size writes what its weights make it write; random ones would never end a chunk, so that the
# cap on tokens ends it: five tokens in 1.28 s, as English has.
TOKENS_PER_SECOND = 5 / 1.28
# The sizes of a model whose parts are there, and no more.
TINY_ENCODER = ["dim=16", "layers=2", "heads=2", "ffn_dim=32", "segment=32", "left_context=32", "right_context=6"]
TINY_OPTIONS = [
    *(word for field in TINY_ENCODER for word in ("--encoder_conf", field)),
    *(word for field in ("dim=16", "layers=2", "heads=2", "ffn_dim=24") for word in ("--decoder_conf", field)),
    *("--loss_conf", "ctc_weight=0.1"),
]


def wait(setting: Setting) -> None:
    """Wait for the GPU to finish."""
    if setting.on_gpu:
        torch.cuda.synchronize()


def seconds_of(setting: Setting, function: Callable[[], object]) -> float:
    """Return how long a call takes, its kernels counted."""
    wait(setting)
    begin = time.perf_counter()
    function()
    wait(setting)
    return time.perf_counter() - begin


def measured_rate(setting: Setting, size: int, dtype: torch.dtype) -> float:
    """Return the FLOP a second of square products.

    Args:
        setting: says where.
        size: rows and columns.
        dtype: of the factors.
    """
    factor = torch.randn(size, size, device=setting.device, dtype=dtype)
    best = min(seconds_of(setting, lambda: factor @ factor) for _ in range(3 if setting.tiny else 8))
    return 2 * size**3 / best


def measured_bandwidth(setting: Setting) -> float:
    """Return the bytes a second that copying a large tensor reads and writes."""
    size = 2**22 if setting.tiny else 2**31 if setting.on_gpu else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return 2 * len(source) / min(seconds_of(setting, lambda: target.copy_(source)) for _ in range(5))


# Models of random weights


def random_model(setting: Setting) -> Path:
    """Return the directory of a model of the paper's size and of random weights; it is written once."""
    folder = setting.folder / "random"
    if not folder.exists():
        options = TINY_OPTIONS if setting.tiny else ["--config", str(setting.config)]
        made_up.write_model(folder, "speechllm_xl", options, 200 if setting.tiny else 5000)
    return folder


def random_model_of_chunk(setting: Setting, seconds: float) -> Path:
    """Return the same model with other chunks and encoder segments; its context stays as long.

    Args:
        setting: has the folder.
        seconds: duration of a chunk.
    """
    folder, source = setting.folder / f"random_{seconds}", random_model(setting)
    if not folder.exists():
        frames = round(timeline.duration_frames(seconds))
        chunking = {"chunk": frames, "context": round(5.12 / seconds)}
        made_up.copy_model(source, folder, {"encoder_conf": {"segment": frames}, "chunking_conf": chunking})
    return folder


def load_narrow(setting: Setting) -> Speech2Text:
    """Load a model of as many layers as the paper's, each of a few weights, in float32; it launches the same kernels.

    Args:
        setting: says where.
    """
    folder = setting.folder / "narrow"
    if not folder.exists():
        fields = ("dim=16", "heads=2", "ffn_dim=24")
        sizes = [word for part in ("encoder", "decoder") for field in fields for word in (f"--{part}_conf", field)]
        made_up.write_model(folder, "speechllm_xl", ["--config", str(setting.config), *sizes], 200)
    return Speech2Text.from_pretrained(folder, device=setting.device, **capped(1.28))


def capped(chunk_seconds: float) -> dict[str, Any]:
    """Return the settings of a greedy search that writes as many tokens as speech has, whatever the weights.

    Args:
        chunk_seconds: duration of a chunk.
    """
    return {"search": "greedy", "max_tokens_per_chunk": max(1, round(TOKENS_PER_SECOND * chunk_seconds))}


def shape_of(speech2text: Speech2Text) -> Shape:
    """Return the sizes of a SpeechLLM-XL."""
    model = speech2text.model
    assert speech2text.chunking is not None
    return Shape(
        model.acoustic.encoder.config,
        model.decoder.config,
        speech2text.chunking,
        model.acoustic.config.n_mels,
        model.decoder.eoc,
        model.projection_config,
    )


@functools.lru_cache(maxsize=2)  # several parts use it, and 200 M weights take a while
def load_random(setting: Setting, chunk_seconds: float = 1.28) -> Speech2Text:
    """Load the model of random weights for decoding, in bfloat16 on a GPU.

    Args:
        setting: says where.
        chunk_seconds: duration of a chunk.
    """
    folder = random_model(setting) if chunk_seconds == 1.28 else random_model_of_chunk(setting, chunk_seconds)
    dtype = "bfloat16" if setting.on_gpu else "float32"
    return Speech2Text.from_pretrained(folder, device=setting.device, dtype=dtype, **capped(chunk_seconds))
