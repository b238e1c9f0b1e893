"""A process that measures one checkout of this repository on request.

    PYTHONPATH=CHECKOUT OMP_NUM_THREADS=1 python worker.py wall

The script belongs to the command that starts it; the package that it imports is the checkout's, which may be older.  It
uses public names only.  Requests and answers are lines of JSON on standard input and output:

    {"open": "step", "settings": {...}}    ->  {"value": {"subject": 0, ...facts}}
    {"measure": 0}                         ->  {"value": {"token": [0.031, ...], ...}}
    {"close": 0}                           ->  {"value": null}
    any that fails                         ->  {"error": "ImportError: ...", "trace": "...", "of_user": false}

Shape legend: ``B`` batch, ``N`` samples, ``T`` frames, ``M`` mel bands, ``D`` decoder dimension.
"""

import abc
import ctypes
import functools
import gc
import io
import json
import math
import os
import re
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

if __name__ == "__main__" and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # the files beside this one are modules of the package, not of everyone

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES_PER_SECOND = 25
FEATURE_FRAMES_PER_SECOND = 100
MEL_BANDS = 80
TOKENS_PER_SECOND = 3.5  # of the training's texts, as in LibriSpeech
MOST_AUDIO = 120  # seconds of made audio; it is looped

# Names of torch's operations in a profile.
PRODUCTS = re.compile(r"::(\w*_)?(add|b|badd)?b?mm\w*$|linear\w*$")
ATTENTION = re.compile(r"attention\w*$")

Settings = Mapping[str, Any]
Measured = dict[str, list[float]]


class Subject(abc.ABC):
    """Something that can be measured again and again.

    Attributes:
        facts: what is known about it before it is measured.
    """

    facts: dict[str, Any]

    @abc.abstractmethod
    def __init__(self, settings: Settings) -> None:
        """Make it ready, and warm."""

    @abc.abstractmethod
    def measure(self) -> Measured:
        """Do the work once; return quantities by name, seconds unless a name says otherwise."""


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = CLOCKS["wall"]


def choose_clock(name: str) -> None:
    """Measure by one of the ``CLOCKS`` from now on."""
    global _clock
    _clock = CLOCKS[name]


def now() -> float:
    """Return the time by the chosen clock, in seconds from some moment."""
    return _clock()


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Return how long a piece of work takes, which is called with some arguments."""
    begin = now()
    work(*arguments)
    return now() - begin


def float_type(settings: Settings) -> torch.dtype:
    """Return the floating-point type of a run's activations; integer weights have float32 ones."""
    dtype = getattr(torch, settings["dtype"], torch.float32)
    return dtype if dtype.is_floating_point else torch.float32


# Models and audio


def write_tokenizer(path: Path, size: int) -> list[str]:
    """Write a sentencepiece model of ``size`` tokens, each a made-up word; return the tokens."""
    import sentencepiece

    letters = "abcdefghijklmnopqrst"
    words = ["".join(letters[number // 20**place % 20] for place in range(4)) for number in range(size)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, model_type="word", vocab_size=size, minloglevel=2
    )
    path.write_bytes(model.getvalue())
    loaded = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [loaded.id_to_piece(number) for number in range(len(loaded))]


def task_options(config: str, tokens: list[str]) -> tuple[Any, Any]:
    """Return the task of a training's YAML, and ESPnet's options."""
    import yaml

    from espnet_speechllm_xl.systems import find_task

    name = yaml.safe_load(Path(config).read_text(encoding="utf-8")).get("task", "speechllm_xl")
    task = find_task(name)
    options = task.get_parser().parse_args(["--config", config])
    options.token_list, options.stats_file, options.task = tokens, None, name
    return task, options


@functools.lru_cache(maxsize=2)
def random_model(config: str, vocab_size: int, folder: str) -> str:
    """Make a model of a YAML with random weights in ``folder``, as training leaves one; return its directory.

    The end of a chunk is so unlikely that a chunk gets as many tokens as the search allows.
    """
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    directory = Path(folder) / f"{Path(config).stem}_{os.getpid()}"
    directory.mkdir()
    tokens = write_tokenizer(directory / "tokenizer.model", vocab_size)
    task, options = task_options(config, tokens)
    options.tokenizer, options.output_dir = str(directory / "tokenizer.model"), str(directory)
    torch.manual_seed(0)
    model = task.build_model(options)
    weights = model.state_dict()
    outputs = [name for name in weights if name.endswith("lm_head.weight")]
    outputs = outputs or [name for name in weights if name.endswith("embed_tokens.weight")]
    for name in outputs:
        weights[name][model.decoder.eoc] = 0  # logit 0, where the best of the others is far above
    torch.save(weights, directory / "model.pth")
    options.version, options.distributed = "bench", False
    with open(directory / "config.yaml", "w", encoding="utf-8") as stream:
        yaml_no_alias_safe_dump(vars(options), stream, indent=4, sort_keys=False)
    return str(directory)


def load_model(settings: Settings) -> Any:  # noqa: ANN401  # the checkout's Speech2Text
    """Return the Speech2Text of a run: of a trained model, or of a YAML with random weights."""
    path = settings["model"] or random_model(settings["config"], settings["vocab_size"], settings["folder"])
    # A trained model writes what it wants.
    more = {} if settings["model"] else {"max_tokens_per_chunk": settings["tokens"]}
    if settings["llm"]:  # older checkouts do not know it
        more["llm"] = settings["llm"]
    return _loaded(path, settings["dtype"], settings["beam_size"], tuple(more.items()))


@functools.lru_cache(maxsize=1)
def _loaded(path: str, dtype: str, beam_size: int, more: tuple) -> Any:  # noqa: ANN401
    from espnet_speechllm_xl import Speech2Text

    return Speech2Text.from_pretrained(
        path, dtype=dtype, search="greedy", beam_size=beam_size, ctc_weight=0.0, **dict(more)
    )


def count(model: nn.Module) -> int:
    """Return how many numbers the weights of a model are, and its few other tensors; shared ones count once."""
    return sum(weight.numel() for weight in _tensors(model))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()  # weights of 8 bits are such


def chunk_frames(chunking: Any) -> int:  # noqa: ANN401  # the checkout's ChunkingConfig
    """Return the frames of a chunk; raise ValueError where it or the context has no end."""
    if chunking.chunk is None or chunking.context is None:
        raise ValueError("the configuration has an infinite chunk or context: nothing would repeat")
    return int(chunking.chunk)


@torch.no_grad()
def chunk_inputs(model: Any, frames: int) -> int:  # noqa: ANN401  # the checkout's
    """Return the decoder inputs that the frames of a chunk become."""
    dtype = next(model.parameters()).dtype
    return len(model.projection(torch.zeros(frames, model.acoustic.encoder.output_size(), dtype=dtype)))


def noise_and_tones(samples: int, rate: int) -> np.ndarray:
    """Return float32 samples (N,) in [-1, 1]: noise and tones that change ten times a second."""
    rng = np.random.default_rng(0)
    step = rate // 10
    pieces = -(-samples // step)
    noise = rng.standard_normal((pieces, step)) * rng.choice([0.003, 0.03, 0.1], (pieces, 1))
    time_axis = np.arange(step) / rate
    tones = 0.1 * np.sin(2 * math.pi * rng.uniform(100, 3000, (pieces, 1)) * time_axis)
    return np.clip((noise + tones).reshape(-1)[:samples], -1, 1).astype(np.float32)


def audio(settings: Settings, speech2text: Any, wanted: float) -> np.ndarray:  # noqa: ANN401
    """Return ``wanted`` seconds of audio (N,) at the model's rate: of the user's file, looped, or made."""
    rate = speech2text.sample_rate
    samples = round(wanted * rate)
    if settings["audio"]:
        once = speech2text.load(settings["audio"])
    else:
        once = noise_and_tones(min(samples, MOST_AUDIO * rate), rate)
    return np.resize(once, samples)


# The machine, and the decoder with its floors and its peer


def decoder_shape(decoder: Any) -> dict[str, int]:  # noqa: ANN401  # the checkout's Decoder
    """Return the sizes of a decoder; raise ValueError where its weights are somebody else's, of another shape."""
    if decoder.config.pretrained:
        raise ValueError("the decoder is a pretrained checkpoint: floors are counted for decoder_conf's own sizes only")
    sizes = {name: getattr(decoder.config, name) for name in ("dim", "layers", "heads", "ffn_dim")}
    return {**sizes, "outputs": decoder.eoc + 1}


class Probe(Subject):
    """The machine: how fast it reads memory, in three ways, and multiplies matrices."""

    def __init__(self, settings: Settings) -> None:
        values = round(settings["megabytes"] * 1e6 / 4)
        self.values = torch.randn(values // 1024 * 1024)
        size = settings["size"]
        dtype = float_type(settings)
        self.rows, self.square = (torch.randn(*shape).to(dtype) for shape in ((size // 2, size), (size, size)))
        self.facts = {"bytes": 4 * self.values.numel(), "operations": 2 * size // 2 * size * size}

    def measure(self) -> Measured:
        """Return seconds by the way: ``sum``, ``mv``, ``attention`` read all bytes, ``products`` do all operations."""
        matrix = self.values.view(-1, 1024)
        vector = torch.ones(1024)
        keys, values = self.values.view(2, 1, -1, 1, 64).transpose(2, 3)
        query = torch.ones(1, 1, 1, 64)
        ways: dict[str, Callable[[], object]] = {
            "sum": self.values.sum,
            "mv": lambda: torch.mv(matrix, vector),
            "attention": lambda: F.scaled_dot_product_attention(query, keys, values),
            "products": lambda: F.linear(self.rows, self.square),
        }
        return {name: [seconds(work)] for name, work in ways.items()}


class Step(Subject):
    """The decoder: one chunk after the other for B hypotheses, a prefill and then tokens, as in greedy search."""

    def __init__(self, settings: Settings) -> None:
        speech2text = load_model(settings)
        self.decoder, self.batch, self.tokens = speech2text.model.decoder, settings["batch"], settings["tokens"]
        self.frames, context = chunk_frames(speech2text.chunking), speech2text.chunking.context
        inputs = chunk_inputs(speech2text.model, self.frames)
        self.inputs = torch.randn(self.batch, inputs, self.decoder.dim).to(float_type(settings))
        self.pasts = [self.decoder.initial_past(context) for _ in range(self.batch)]
        self.chunk_id = 0
        shape = decoder_shape(self.decoder)
        self.facts = {"shape": shape, "frames": self.frames, "inputs": inputs, "context": context}
        for _ in range(context + 1):
            self.measure()

    def measure(self) -> Measured:
        """Return the seconds of a ``prefill`` and of each ``token`` step."""
        from espnet_speechllm_xl.model.decoder_steps import Request

        def extend(inputs: list[dict[str, Any]]) -> None:
            requests = [Request(past, self.chunk_id, **one) for past, one in zip(self.pasts, inputs, strict=True)]
            self.pasts = [result.past for result in self.decoder.extend(requests)]

        prefill = seconds(extend, [{"frames": frames} for frames in self.inputs])
        tokens = []
        for number in range(self.tokens):
            written = [{"token": (row + number) % self.decoder.eoc} for row in range(self.batch)]
            tokens.append(seconds(extend, written))
        self.chunk_id += 1
        return {"prefill": [prefill], "token": tokens}


def product_shapes(settings: Settings) -> Iterator[tuple[int, int]]:
    """Yield the shapes (outputs, inputs) of a Llama's weights, layer by layer, the output layer last."""
    dim, ffn_dim = settings["dim"], settings["ffn_dim"]
    for _ in range(settings["layers"]):
        yield from [(dim, dim)] * 4 + [(ffn_dim, dim)] * 2 + [(dim, ffn_dim)]
    yield settings["outputs"], dim


@functools.lru_cache(maxsize=1)
def _weights(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> list[Tensor]:
    return [(torch.randn(*shape) / shape[1] ** 0.5).to(dtype) for shape in shapes]


class Bare(Subject):
    """The weight products of a decoder step and nothing else: ``F.linear`` over all weights."""

    def __init__(self, settings: Settings) -> None:
        dtype = float_type(settings)
        *self.layers, self.output = _weights(tuple(product_shapes(settings)), dtype)
        sizes = {settings["dim"], settings["ffn_dim"]}
        self.inputs = {size: torch.randn(settings["rows"], size).to(dtype) for size in sizes}
        self.last = torch.randn(settings["batch"], settings["dim"]).to(dtype)  # only last positions get logits
        weights = [*self.layers, self.output]
        self.facts = {"weights": sum(weight.numel() for weight in weights), "itemsize": self.output.itemsize}
        self.repeats = settings["repeats"]

    def measure(self) -> Measured:
        """Return the seconds of ``products``."""

        def products() -> None:
            for weight in self.layers:
                F.linear(self.inputs[weight.shape[1]], weight)
            F.linear(self.last, self.output)

        return {"products": [seconds(products) for _ in range(self.repeats)]}


@functools.lru_cache(maxsize=1)
def _llama(dim: int, layers: int, heads: int, ffn_dim: int, outputs: int, dtype: torch.dtype) -> Any:  # noqa: ANN401
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(  # type: ignore[call-arg]  # it takes more by **kwargs than its type says
        vocab_size=outputs, hidden_size=dim, intermediate_size=ffn_dim, num_hidden_layers=layers,
        num_attention_heads=heads, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().type(dtype)


class HuggingFace(Subject):
    """The peer of a decoder step: transformers' Llama of the same shape with its own cache, ``DynamicCache``."""

    def __init__(self, settings: Settings) -> None:
        import inspect

        from transformers import DynamicCache

        names = ("dim", "layers", "heads", "ffn_dim", "outputs")
        self.model = _llama(*(settings[name] for name in names), float_type(settings))
        self.cached, self.tokens, self.batch = settings["cached"], settings["tokens"], settings["batch"]
        # transformers 5.24 renamed the argument.
        known = inspect.signature(self.model.forward).parameters
        self.argument = "cache" if "cache" in known else "past_key_values"
        self.cache = DynamicCache()
        shape = (self.batch, settings["heads"], self.cached, settings["dim"] // settings["heads"])
        for layer in range(settings["layers"]):
            keys, values = torch.randn(2, *shape).to(float_type(settings))
            self.cache.update(keys, values, layer)
        self.facts = {}

    def measure(self) -> Measured:
        """Return the seconds of each ``token`` step."""

        def step(number: int) -> None:
            tokens = torch.full((self.batch, 1), number)
            self.model(input_ids=tokens, use_cache=True, **{self.argument: self.cache})

        with torch.no_grad():
            measured = [seconds(step, number) for number in range(self.tokens)]
        self.cache.crop(-self.tokens)  # so many are taken away
        return {"token": measured}


# Streams, recordings, the pipeline


class Streams(Subject):
    """Streams in step: each gets a chunk of audio, again and again."""

    def __init__(self, settings: Settings) -> None:
        from espnet_speechllm_xl.decoding.engine import model_calls

        speech2text = load_model(settings)
        chunking, rate = speech2text.chunking, speech2text.sample_rate
        self.chunk_seconds = chunk_frames(chunking) / FRAMES_PER_SECOND
        samples = round(self.chunk_seconds * rate)
        heard = audio(settings, speech2text, MOST_AUDIO)
        self.pieces = [heard[begin : begin + samples] for begin in range(0, len(heard) - samples + 1, samples)]
        self.streams = [speech2text.stream(search=settings["search"]) for _ in range(settings["streams"])]
        self.chunks, self.place = settings["chunks"], 0
        self.requests: Counter[str] = Counter()
        self._calls = model_calls(speech2text.model)
        for _ in range(chunking.context + 2):  # until the window is full
            self.push()
        self.facts = {"audio_seconds": self.chunks * self.chunk_seconds * len(self.streams)}

    def push(self) -> None:
        """Push one chunk to each stream; no two of them hear the same."""
        from espnet_speechllm_xl.decoding.engine import run

        pieces = [self.pieces[(self.place + 7 * row) % len(self.pieces)] for row in range(len(self.streams))]
        run([stream.consume(piece) for stream, piece in zip(self.streams, pieces, strict=True)], self.calls)
        self.place += 1

    def calls(self, requests: Sequence[Any]) -> list:
        """Compute and count requests."""
        self.requests[requests[0].kind] += len(requests)
        return self._calls(requests)

    def measure(self) -> Measured:
        """Return the ``seconds`` of some chunks, and the ``tokens_a_chunk`` that each stream wrote."""
        self.requests.clear()

        def work() -> None:
            for _ in range(self.chunks):
                self.push()

        taken = seconds(work)
        return {"seconds": [taken], "tokens_a_chunk": [self.requests["token"] / (self.chunks * len(self.streams))]}


class ProfiledStreams(Streams):
    """The same streams under torch's profiler."""

    def measure(self) -> Measured:
        """Return the ``seconds`` of some chunks, and the seconds within ``products`` and ``attention``."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            measured = super().measure()
        events = profiler.key_averages()
        for name, pattern in (("products", PRODUCTS), ("attention", ATTENTION)):
            own = sum(event.self_cpu_time_total for event in events if pattern.search(event.key))
            measured[name] = [own / 1e6]
        return measured


class Chunk(Subject):
    """The parts of the pipeline, one chunk after the other: encoder, prefill, tokens."""

    def __init__(self, settings: Settings) -> None:
        speech2text = load_model(settings)
        model, chunking = speech2text.model, speech2text.chunking
        self.model, self.tokens, self.frames = model, settings["tokens"], chunk_frames(chunking)
        self.seconds = self.frames / FRAMES_PER_SECOND
        samples = round(self.seconds * speech2text.sample_rate)
        heard = torch.from_numpy(audio(settings, speech2text, MOST_AUDIO))
        self.pieces = list(heard[: len(heard) // samples * samples].split(samples))
        self.state = model.acoustic.initial_state()
        self.past, self.chunk_id, self.place = model.decoder.initial_past(chunking.context), 0, 0
        encoder = model.acoustic.encoder
        self.facts = {
            "shape": decoder_shape(model.decoder),
            "frames": self.frames,
            "inputs": chunk_inputs(model, self.frames),
            "context": chunking.context,
            "chunk_seconds": self.seconds,
            "segment": encoder.config.segment,
            "look_ahead": encoder.config.right_context,
            "itemsize": float_type(settings).itemsize,
            "encoder_weights": sum(weight.numel() for weight in _tensors(encoder) if weight.dim() == 2),
            "encoder_parameters": count(encoder),
            "decoder_parameters": count(model.decoder),
            "parameters": count(model),
        }
        for _ in range(chunking.context + 2):
            self.measure()

    @torch.no_grad()
    def measure(self) -> Measured:
        """Return the seconds of a chunk's ``encoder``, ``prefill`` and ``tokens``."""
        from espnet_speechllm_xl.model.decoder_steps import Request

        begin = now()
        frames, self.state = self.model.acoustic.push(self.pieces[self.place % len(self.pieces)][None], self.state)
        encoded = now()
        self.place += 1
        if frames.shape[1] != self.frames:  # of the first chunk the look-ahead is still missing
            return {}
        inputs = self.model.projection(frames[0])
        (result,) = self.model.decoder.extend([Request(self.past, self.chunk_id, frames=inputs)])
        read = now()
        for token in range(self.tokens):
            (result,) = self.model.decoder.extend([Request(result.past, self.chunk_id, token=token)])
        written = now()
        self.past, self.chunk_id = result.past, self.chunk_id + 1
        return {"encoder": [encoded - begin], "prefill": [read - encoded], "tokens": [written - read]}


class TorchaudioEmformer(Subject):
    """A peer: the streaming encoder of torchaudio's Emformer RNN-T, whose base has 77 M parameters in all."""

    def __init__(self, settings: Settings) -> None:
        from torchaudio.models import emformer_rnnt_base
        from torchaudio.models.rnnt import emformer_rnnt_model

        if settings["shape"] is None:
            model, segment, look_ahead = emformer_rnnt_base(settings["outputs"]), 16, 4
        else:
            model = emformer_rnnt_model(num_symbols=settings["outputs"], **settings["shape"])
            segment, look_ahead = (settings["shape"][f"{name}_length"] for name in ("segment", "right_context"))
        self.encoder = model.transcriber.eval()
        self.features = torch.randn(1, segment + look_ahead, MEL_BANDS)
        self.calls = max(1, round(settings["chunk_seconds"] * FEATURE_FRAMES_PER_SECOND / segment))
        self.states: list[list[Tensor]] | None = None
        self.facts = {
            "parameters": count(model),
            "encoder_parameters": count(self.encoder),
            "audio_seconds": self.calls * segment / FEATURE_FRAMES_PER_SECOND,
        }

    def measure(self) -> Measured:
        """Return the ``seconds`` of about a chunk."""

        def encode() -> None:
            for _ in range(self.calls):
                length = torch.tensor([self.features.shape[1]])
                _, _, self.states = self.encoder.infer(self.features, length, self.states)

        with torch.no_grad():
            return {"seconds": [seconds(encode)]}


class ContextualBlockConformer(Subject):
    """A peer: ESPnet's streaming encoder, with the settings of a YAML."""

    def __init__(self, settings: Settings) -> None:
        from espnet2.asr.encoder.contextual_block_conformer_encoder import ContextualBlockConformerEncoder

        conf = settings["encoder_conf"]
        self.encoder = ContextualBlockConformerEncoder(MEL_BANDS, **conf).eval()
        self.features = torch.randn(1, 4 * conf["hop_size"], MEL_BANDS)
        self.states: Any = None
        self.facts = {
            "encoder_parameters": count(self.encoder),
            "audio_seconds": conf["hop_size"] / FRAMES_PER_SECOND,
        }
        for _ in range(-(-conf["block_size"] // conf["hop_size"]) + 1):
            self.measure()

    def measure(self) -> Measured:
        """Return the ``seconds`` of a block."""

        def encode() -> None:
            length = torch.tensor([self.features.shape[1]])
            _, _, self.states = self.encoder(self.features, length, self.states, is_final=False, infer_mode=True)

        with torch.no_grad():
            return {"seconds": [seconds(encode)]}


class Recording(Subject):
    """A recording that is transcribed as a whole."""

    def __init__(self, settings: Settings) -> None:
        self.speech2text = load_model(settings)
        self.samples = audio(settings, self.speech2text, settings["seconds"])
        self.facts = {"audio_seconds": len(self.samples) / self.speech2text.sample_rate}

    def measure(self) -> Measured:
        """Return the ``seconds`` of the transcription."""
        return {"seconds": [seconds(self.speech2text.transcribe_batch, [self.samples])]}


# Training, start-up


def peak_bytes() -> int:
    """Return the largest memory (RSS) of this process so far, since :func:`forget_peak` if the system can do that."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    """Give free memory back to the system, and begin a new peak."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # another system
        pass


class Training(Subject):
    """Forward and backward pass of a batch of utterances of one length."""

    def __init__(self, settings: Settings) -> None:
        vocab_size, size, length = settings["vocab_size"], settings["batch"], settings["seconds"]
        torch.manual_seed(0)
        task, options = task_options(settings["config"], [str(number) for number in range(vocab_size)])
        self.model: nn.Module = task.build_model(options).train()
        self.batch = self._draw(options, vocab_size, size, length)
        self._pass(self._draw(options, vocab_size, 1, min(length, 4.0)))
        self.facts = {"audio_seconds": size * length}

    @staticmethod
    def _draw(options: Any, vocab_size: int, size: int, length: float) -> dict[str, Tensor]:  # noqa: ANN401
        rate = options.features_conf["sample_rate"]
        samples, tokens = round(rate * length), max(1, round(TOKENS_PER_SECOND * length))
        frames = int(length * FRAMES_PER_SECOND) - 1
        return {
            "speech": 0.1 * torch.randn(size, samples), "speech_lengths": torch.full((size,), samples),
            "text": torch.randint(3, vocab_size, (size, tokens)), "text_lengths": torch.full((size,), tokens),
            "ends": torch.randint(0, frames, (size, tokens)).sort(1).values,
        }  # fmt: skip

    def _pass(self, batch: dict[str, Tensor]) -> None:
        loss, _, _ = self.model(**batch)
        loss.backward()

    def measure(self) -> Measured:
        """Return the ``seconds`` of the two passes, and the peak of memory and what stood before them, in bytes."""
        self.model.zero_grad(set_to_none=True)
        forget_peak()
        before = peak_bytes()
        taken = seconds(self._pass, self.batch)
        measured = {"seconds": [taken], "peak_bytes": [float(peak_bytes())], "bytes_before": [float(before)]}
        self.model.zero_grad(set_to_none=True)
        forget_peak()
        return measured


class Files(Subject):
    """A model and a recording on the disk, for whole processes; the processes are measured elsewhere."""

    def __init__(self, settings: Settings) -> None:
        import soundfile

        speech2text = load_model(settings)
        path = Path(settings["folder"]) / "recording.wav"
        soundfile.write(path, audio(settings, speech2text, settings["seconds"]), speech2text.sample_rate)
        model = settings["model"] or random_model(settings["config"], settings["vocab_size"], settings["folder"])
        self.facts = {"model": str(model), "recording": str(path)}

    def measure(self) -> Measured:
        """Return nothing."""
        return {}


class Server:
    """The requests of a worker's parent, answered one after the other."""

    kinds: ClassVar[dict[str, type[Subject]]] = {
        "probe": Probe,
        "step": Step,
        "bare": Bare,
        "hugging_face": HuggingFace,
        "streams": Streams,
        "profiled_streams": ProfiledStreams,
        "chunk": Chunk,
        "torchaudio_emformer": TorchaudioEmformer,
        "contextual_block_conformer": ContextualBlockConformer,
        "recording": Recording,
        "training": Training,
        "files": Files,
    }

    def __init__(self) -> None:
        self.subjects: dict[int, Subject] = {}
        self.opened = 0

    def answer(self, request: dict[str, Any]) -> object:
        """Return the value of a request; whatever goes wrong is raised."""
        if "open" in request:
            subject = self.kinds[request["open"]](request["settings"])
            number, self.opened = self.opened, self.opened + 1
            self.subjects[number] = subject
            return {"subject": number, **subject.facts}
        if "measure" in request:
            return self.subjects[request["measure"]].measure()
        del self.subjects[request["close"]]
        gc.collect()
        return None


def forget_installed(package: str) -> None:
    """Let no module of an installed package stand for one that the checkout lacks, as an editable installation does."""
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if f"editable___{package}" not in getattr(finder, "__module__", "")
    ]


def main() -> None:
    """Answer requests until there are no more; the argument is a clock."""
    choose_clock(sys.argv[1])
    forget_installed("espnet_speechllm_xl")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    import espnet_speechllm_xl

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    tell({"value": {"package": str(Path(espnet_speechllm_xl.__file__).parent)}})
    server = Server()
    for line in sys.stdin:
        try:
            tell({"value": server.answer(json.loads(line))})
        except Exception as error:  # of any kind: another checkout may lack anything
            of_user = any(kind.__name__ == "UserError" for kind in type(error).__mro__)
            text = str(error) if of_user else f"{type(error).__name__}: {error}"
            tell({"error": text, "trace": traceback.format_exc(), "of_user": of_user})


if __name__ == "__main__":
    main()
