"""Every setting of the model and of decoding, declared once.

These frozen dataclasses *are* the ``*_conf`` sections of the ESPnet YAML: ``encoder_conf``
is :class:`EncoderConfig`, ``chunking_conf`` is :class:`ChunkingConfig`, and so on.  A name that
no field has is an error that lists the fields, and checks between fields live here only.

Units: *samples* at ``sample_rate``; *feature frames* at 100 Hz; *frames* (encoder frames) at
25 Hz, 40 ms each; *chunks* of ``chunk`` frames; seconds where a name ends in ``_seconds``.
"""

import dataclasses
import difflib
import inspect
import math
import numbers
import re
import reprlib
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.io import CONVERT


class ConfigError(UserError):
    """A setting has an unusable value; the message names it and what to do."""


def from_dict(cls, values, section=None):
    """Make the dataclass ``cls`` from a YAML section; unknown names and values of other types raise ConfigError."""
    section, kinds = section or cls.__name__, typing.get_type_hints(cls)
    values = check_mapping({} if values is None else values, section)
    check_names(values, list(kinds), section)
    for name, value in values.items():
        wanted = typing.get_args(kinds[name]) or (kinds[name],)
        if not any(_is_a(value, kind) for kind in wanted):
            words = " or ".join(KINDS[kind][1] for kind in wanted)
            raise ConfigError(f"{section} {name}: {shown(value)} is not {words}")
        if not all(map(_is_in_range, value if isinstance(value, (list, tuple)) else [value])):
            raise ConfigError(f"{section} {name}: {shown(value)} is no number within +-{MOST}")
    return cls(**values)


MOST = 2**31 - 1  # beyond it sums and products of lengths do not fit


def _is_in_range(value: object) -> bool:
    """False for numbers that are none, or so large that computing with them fails; a section may allow infinity."""
    return not isinstance(value, numbers.Real) or abs(value) <= MOST or value == math.inf


def read_yaml(path: Path | str, advice: str = "mend it") -> dict:
    """The settings of a YAML file by their names; raises ConfigError with the place of the fault and ``advice``."""
    content = Path(path).read_bytes()
    try:
        values = yaml.safe_load(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: bytes that are no UTF-8: {CONVERT}") from error
    except Exception as error:  # besides YAMLError whatever Python raises for a date, a number, too deep a nesting
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        reason = getattr(error, "problem", None) or f"{type(error).__name__}: {error}"
        if isinstance(error, yaml.reader.ReaderError):  # of control characters
            line = content.decode("utf-8-sig").count("\n", 0, error.position) + 1
            reason = f"character U+{error.character:04X}, which YAML does not allow"
        where = f", line {line}" if line else ""
        raise ConfigError(f"{path}{where} is not readable YAML ({reason}): {advice}") from error
    try:
        return check_mapping(values, str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}: {advice}") from error


def check_mapping(values: object, what: str) -> dict:
    """``values``, which must be a mapping of names; raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{what}: {shown(values)} is not a mapping of settings to values")
    for name in values:
        if not isinstance(name, str):
            raise ConfigError(f"{what}: {shown(name)} is no name of a setting: names are text")
    return values


def shown(value: object) -> str:
    """A value in a message: as Python writes it, as far as it fits on a line."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # of whole numbers of thousands of digits
        return f"a {type(value).__name__}"


_SHORT = reprlib.Repr()  # no value is endless, not even one that YAML's references make so
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 2, 3, 4, 60, 60


# type of a field: (what a value may be, in words)
KINDS = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    list: ((list, tuple), "a list"),
    dict: (dict, "a mapping"),
    type(None): (type(None), "null"),
}


def _is_a(value, kind):
    if isinstance(value, numbers.Integral) and not -(2**63) <= value < 2**63:
        return False  # no tensor has such a size, and Python does not even write it
    return isinstance(value, KINDS[kind][0]) and (kind is bool or not isinstance(value, bool))


def check_names(values, names, section):
    """Raise :class:`ConfigError` for the first of ``values`` that is not in the list ``names``."""
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(names)
            raise ConfigError(f"{section} has no setting '{name}'; {hint}")


def signature(cls, *first):
    """A call signature: the parameters ``first``, then the fields of ``cls`` with their defaults.

    A class that takes its section as ``**conf`` shows it as ``__signature__``; ESPnet's ``--print_config`` and
    config.yaml then hold every field.
    """
    return inspect.Signature([*first, *inspect.signature(cls).parameters.values()])


def _require(condition, message):
    if not condition:
        raise ConfigError(message)


def _is_amount(value):
    return 0 <= value < math.inf  # and no NaN


def _require_share(section, conf, *names):
    for name in names:
        _require(0 <= getattr(conf, name) < 1, f"{section} {name} {getattr(conf, name)} is not in [0, 1)")


@dataclass(frozen=True)
class FeatureConfig:
    """Log-mel features (paper: 80 bands, 25 ms window, 10 ms shift; times are in timeline.py)."""

    sample_rate: int = 16000  # Hz, of the dump; what is decoded is resampled to it
    n_mels: int = 80  # mel bands
    f_min: float = 20.0  # Hz, lower edge of the first band
    f_max: float = 7600.0  # Hz, upper edge of the last band
    floor: float = 1e-8  # mel energies below it are raised to it before the log
    level_seconds: float | None = None  # energies relative to the level of so many seconds before; null: as recorded
    tail_frames: int = 0  # frames of silence that every recording ends with, in training and decoding

    def __post_init__(self):
        _require(self.sample_rate % 1000 == 0, f"sample_rate {self.sample_rate} is not a multiple of 1000 Hz")
        _require(self.sample_rate <= 1000000, f"sample_rate {self.sample_rate} is over 1000000 Hz")
        _require(
            0 <= self.f_min < self.f_max <= self.sample_rate / 2,
            f"f_min {self.f_min}, f_max {self.f_max} do not fit 0 .. {self.sample_rate // 2} Hz: "
            "set features_conf f_max to at most half of the sample rate",
        )
        _require(self.n_mels >= 1, f"n_mels {self.n_mels} must be at least 1")
        _require(self.n_mels <= 1000, f"n_mels {self.n_mels} is over 1000")
        _require(
            0 < self.floor < math.inf,
            f"floor {self.floor} must be positive and finite: it keeps digital silence finite",
        )
        _require(
            self.level_seconds is None or 0 < self.level_seconds < math.inf,
            f"level_seconds {self.level_seconds} must be positive and finite, or null",
        )
        _require(0 <= self.tail_frames <= 25, f"tail_frames {self.tail_frames} is not in 0 .. 25, which is 1 s")


@dataclass(frozen=True)
class SpecAugmentConfig:
    """SpecAugment (Park et al. 2019) on the normalised features, training only."""

    freq_masks: int = 2  # masks over mel bands per utterance
    freq_width: int = 27  # mel bands, largest width of one mask
    time_masks_per_second: float = 0.5  # masks over time per second of audio
    time_width: int = 30  # feature frames, largest width of one mask

    def __post_init__(self):
        _require(all(_is_amount(value) for value in dataclasses.astuple(self)), "specaug_conf: give numbers >= 0")


@dataclass(frozen=True)
class EncoderConfig:
    """Streaming Emformer (Shi et al. 2021); all lengths in frames of 40 ms."""

    frontend: str = "stack"  # "stack": 4 feature frames -> linear (paper); "conv": causal 2-D convolution
    dim: int = 512  # model dimension
    layers: int = 20
    heads: int = 8
    ffn_dim: int = 4096  # hidden units of the feed-forward layers
    segment: int | None = 32  # frames, hop of the encoder; None: the whole utterance at once (cannot stream)
    left_context: int = 32  # frames of keys and values before the segment
    right_context: int = 6  # frames of look-ahead
    conv_kernel: int = 0  # frames, causal convolution module in every layer; 0: none (paper)
    dropout: float = 0.1  # probability
    activation: str = "gelu"  # of the feed-forward layers: "gelu", "relu" or "silu"
    block_segments: int = 64  # segments computed at once: bounds memory, changes no result

    def __post_init__(self):
        _require(self.frontend in ("stack", "conv"), f"encoder frontend '{self.frontend}': use 'stack' or 'conv'")
        for name in ("heads", "dim", "ffn_dim"):
            _require(getattr(self, name) >= 1, f"encoder {name} must be at least 1")
        _require(self.dim % self.heads == 0, f"encoder dim {self.dim} is not a multiple of heads {self.heads}")
        _require(self.activation in ("gelu", "relu", "silu"), f"encoder activation '{self.activation}' is unknown")
        for name in ("segment", "layers", "block_segments"):
            _require(getattr(self, name) is None or getattr(self, name) >= 1, f"encoder {name} must be at least 1")
        _require(
            self.segment is not None or self.left_context == self.right_context == 0,
            "encoder segment null sees the whole utterance: set left_context and right_context to 0",
        )
        for name in ("left_context", "right_context", "conv_kernel"):
            _require(getattr(self, name) >= 0, f"encoder {name} must not be negative")
        _require_share("encoder", self, "dropout")


@dataclass(frozen=True)
class ChunkingConfig:
    """Chunks of the decoder: training masks *and* run time; a user may change them when decoding."""

    chunk: int | None = 32  # frames; None: one chunk holds all audio (non-streaming)
    context: int | None = 4  # previous chunks that stay visible; None: all
    delay: int = 0  # label delay: frames added to a token's end before its chunk is chosen
    unit: str = "token"  # what training puts into a chunk by its end: each "token" (paper), or a whole "word"
    train_chunks: list | None = None  # frames, chunk sizes of which training draws one a batch; null: ``chunk`` only

    def __post_init__(self):
        _require(
            self.train_chunks is None
            or (self.train_chunks and all(_is_a(c, int) and c >= 1 for c in self.train_chunks)),
            f"train_chunks {self.train_chunks}: give a list of frames >= 1, or null",
        )
        _require(self.chunk is None or self.chunk >= 1, f"chunk {self.chunk}: give frames >= 1, or null for infinity")
        _require(self.context is None or self.context >= 0, f"context {self.context}: give chunks >= 0, or null")
        _require(self.delay >= 0, f"delay {self.delay} must not be negative")
        _require(self.unit in ("token", "word"), f"chunking unit '{self.unit}': use 'token' or 'word'")

    def check_against(self, encoder):
        """Segment divides chunk or chunk divides segment (design rule; :class:`EncoderConfig`)."""
        s = encoder.segment
        for c in (self.chunk, *(self.train_chunks or ())):
            _require(
                c is None or s is None or c % s == 0 or s % c == 0,
                f"chunk {c} and encoder segment {s} do not divide one another: choose a chunk of "
                f"{s} * n frames or a divisor of {s}",
            )

    def resized(self, chunk):
        """With chunks of ``chunk`` frames (None: infinite) that see as far back as these, at least."""
        other = dataclasses.replace(self, chunk=chunk)
        return dataclasses.replace(other, context=timeline.same_context(self.chunk, self.context, chunk))


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder-only language model: Llama shape built here, or a local pretrained checkpoint."""

    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn_dim: int = 2048
    rope_theta: float = 10000.0  # base of the rotary positions
    dropout: float = 0.0  # probability, on each residual branch
    embed_dropout: float = 0.0  # probability that a text token's embedding is zeroed in training
    tie_embeddings: bool = False  # share input and output embeddings
    pretrained: str | None = None  # directory of a Hugging Face causal LM, from which all above but the dropouts comes
    lora_rank: int = 0  # 0: all weights train; r > 0: LoRA adapters of rank r (peft), embeddings, output
    lora_alpha: int = 32  # LoRA scale numerator

    def __post_init__(self):
        for name in ("layers", "heads", "dim", "ffn_dim"):
            _require(getattr(self, name) >= 1, f"decoder {name} must be at least 1")
        _require(0 < self.rope_theta < math.inf, f"decoder rope_theta {self.rope_theta} must be positive")
        _require(self.lora_rank >= 0, f"lora_rank {self.lora_rank} must not be negative")
        _require_share("decoder", self, "dropout", "embed_dropout")
        _require(self.dim % self.heads == 0, f"decoder dim {self.dim} is not a multiple of heads {self.heads}")
        _require((self.dim // self.heads) % 2 == 0, "decoder dim / heads must be even for rotary positions")
        _require(
            self.lora_rank == 0 or self.pretrained,
            "lora_rank > 0 needs decoder_conf pretrained: adapters on random weights learn little",
        )


@dataclass(frozen=True)
class LabelDecoderConfig:
    """The decoder of the chunked AED: LSTM over labels, blocks of cross-attention to the chunk and feed-forward."""

    dim: int = 768
    lstm_layers: int = 2
    blocks: int = 6
    heads: int = 12  # of the cross-attention
    ffn_dim: int = 3072  # hidden units of the feed-forward layers
    dropout: float = 0.1  # probability, on the LSTM's output and on each residual branch
    embed_dropout: float = 0.0  # probability that a text token's embedding is zeroed in training

    def __post_init__(self):
        for name in ("lstm_layers", "blocks", "heads", "dim", "ffn_dim"):
            _require(getattr(self, name) >= 1, f"decoder {name} must be at least 1")
        _require_share("decoder", self, "dropout", "embed_dropout")
        _require(self.dim % self.heads == 0, f"decoder dim {self.dim} is not a multiple of heads {self.heads}")
        _require(self.dim % 2 == 0, f"decoder dim {self.dim} must be even: frames are numbered by sines and cosines")


@dataclass(frozen=True)
class CTCConfig:
    """Head of the CTC model, which aligns."""

    dropout: float = 0.1  # probability, before the output layer

    def __post_init__(self):
        _require_share("ctc_conf", self, "dropout")


@dataclass(frozen=True)
class LossConfig:
    """Training loss (paper section 2: cross-entropy over text and `$` targets)."""

    label_smoothing: float = 0.0  # probability mass spread over the vocabulary
    ctc_weight: float = 0.0  # weight of an auxiliary CTC loss on the encoder

    def __post_init__(self):
        _require(0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing} is not in [0, 1)")
        _require(_is_amount(self.ctc_weight), f"ctc_weight {self.ctc_weight} must not be negative, nor infinite")


@dataclass(frozen=True)
class PromptConfig:
    """CTC-prompt-LM (Tsunoo et al. 2024, a baseline): prefix prompts in training, the end of a chunk in decoding."""

    layout: str = "prompts_first"  # of LM inputs: "prompts_first", then all text; or "interleaved" chunk by chunk
    prefix_probability: float = 0.5  # share of the training prompts that are cut after a random chunk
    prefixes: int = 1  # prompts that training cuts of each utterance in a batch, each with its text
    end_ctc_weight: float = 0.3  # CTC's share in the log-probability that a chunk's text ends; 0: the LM alone

    def __post_init__(self):
        _require(
            self.layout in ("prompts_first", "interleaved"),
            f"prompt layout '{self.layout}': use 'prompts_first' or 'interleaved'",
        )
        for name in ("prefix_probability", "end_ctc_weight"):
            share = getattr(self, name)
            _require(0 <= share <= 1, f"prompt {name} {share} is not in [0, 1]")
        _require(self.prefixes >= 1, f"prompt prefixes {self.prefixes} must be at least 1")

    def check_against(self, chunking, loss):
        """What :class:`ChunkingConfig` and :class:`LossConfig` must be like for this model."""
        _require(loss.ctc_weight > 0, "loss_conf ctc_weight: the prompts are found by CTC: set it above 0")
        _require(
            chunking.context is None or self.layout == "interleaved",
            f"chunking_conf context {chunking.context}: the prompts of all chunks stay visible: set it to null, or "
            "prompt_conf layout to interleaved",
        )
        _require(chunking.train_chunks is None, "chunking_conf train_chunks: chunks have one size: leave it at null")
        _require(
            chunking.unit == "token" or self.end_ctc_weight == 0,
            "prompt_conf end_ctc_weight: CTC wants the first half of a word in the chunk where it was said: set it "
            "to 0, or chunking_conf unit to token",
        )
        _require(
            chunking.delay == 0 or self.end_ctc_weight == 0,
            "prompt_conf end_ctc_weight: CTC wants a token in the chunk where it was said, chunking_conf delay in a "
            "later one: set one of them to 0",
        )


@dataclass(frozen=True)
class ConcatConfig:
    """Concatenation of training utterances: short corpora never fill the decoder's window otherwise."""

    max_seconds: float = 0.0  # longest concatenation; 0: off
    probability: float = 0.67  # share of the training examples that are joined up to a length drawn from 0..max_seconds
    max_gap_seconds: float = 0.5  # longest random pause put between two utterances
    max_lead_seconds: float = 0.0  # longest random pause put before the first: its words fall anywhere in a chunk
    across_speakers: float = 0.0  # share of the utterances that are joined with any others, not with their speaker's

    def __post_init__(self):
        for name in ("probability", "across_speakers"):
            share = getattr(self, name)
            _require(0 <= share <= 1, f"concat {name} {share} is not in [0, 1]")
        seconds = self.max_seconds, self.max_gap_seconds, self.max_lead_seconds
        _require(all(map(_is_amount, seconds)), "concat_conf: give seconds >= 0")


@dataclass(frozen=True)
class AugmentConfig:
    """What training does to an example's samples, so that decoding meets nothing new."""

    min_gain_db: float = 0.0  # the level of an example is changed by a random gain between these two, in dB, and the
    max_gain_db: float = 0.0  # samples are rounded and clipped as 16 bits would; 0 and 0: off
    cut_probability: float = 0.0  # share of the aligned examples that end where their last word does
    cut_frames: int = 3  # such an example keeps up to so many frames more, or loses one, at random

    def __post_init__(self):
        gains = self.min_gain_db, self.max_gain_db
        _require(
            all(math.isfinite(gain) for gain in gains) and gains[0] <= gains[1],
            f"augment min_gain_db {gains[0]}, max_gain_db {gains[1]}: give two levels in dB, the lower one first",
        )
        _require(0 <= self.cut_probability <= 1, f"augment cut_probability {self.cut_probability} is not in [0, 1]")
        _require(self.cut_frames >= 0, f"augment cut_frames {self.cut_frames} must not be negative")


def _option(default, text):
    """A field that is a command-line option as well, with its help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class StreamConfig:
    """When a live stream settles text and ends stream segments; see streaming.py.  All in seconds."""

    settle_seconds: float = _option(1.28, "age at which text that the beam still disputes is settled; inf: never")
    endpoint_silence: float = _option(1.5, "time without text after which a stream segment ends; inf: never")
    endpoint_length: float = _option(20.0, "length at which a stream segment ends at its last settled word; inf: none")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _require(getattr(self, field.name) > 0, f"stream {field.name} must be positive (inf: never)")

    @property
    def has_endpoints(self):
        """Whether stream segments ever end before the stream does."""
        return min(self.endpoint_silence, self.endpoint_length) < math.inf


@dataclass(frozen=True)
class SearchConfig:
    """Decoding; see search.py for what each method is.  The commands' options are made from these fields.

    Each task of tasks/ has methods of its own.
    """

    method: str = _option("alsd", "the option --search")
    beam_size: int = _option(8, "hypotheses; greedy has 1")
    nbest: int = _option(1, "distinct texts returned at most")
    max_tokens_per_chunk: int = _option(40, "cap: then only the end of the chunk is allowed; reported when hit")
    recombine: bool = _option(False, "merge hypotheses of equal text in the same chunk (approximation)")
    ctc_weight: float = _option(0.0, "share of CTC in the scores, below 1; 0 as in the paper (joint.py)")

    def __post_init__(self):
        for name in ("beam_size", "nbest", "max_tokens_per_chunk"):
            _require(getattr(self, name) >= 1, f"search {name} must be at least 1")
        _require(0 <= self.ctc_weight < 1, f"search ctc_weight {self.ctc_weight} is not in 0 .. 1, 1 excluded")


MIX, EACH = "mix", "each"  # channels of a recording: their average, or every one for itself


def parse_channel(text: str, *words: str) -> int | str | None:
    """Return a channel, counted from 0, None for "mix", or one of ``words``.  Raises ValueError."""
    if text == MIX:
        return None
    if text in words:
        return text
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"'{text[:50]}' is no channel: give its number, from 0 on, or {', '.join([MIX, *words])}")
    return int(text)


LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}  # which browsers leave out


def _origin(text: str) -> str:
    """An origin as browsers write it; raises ConfigError for what is none."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^\s/?#@]+)/?", text.strip().lower())
    _require(
        match or text.strip() == "*",
        f"allow_origin '{text}' is no origin: give scheme://name[:port], such as https://a.example",
    )
    if not match:
        return "*"
    scheme, place = match.groups()
    return f"{scheme}://{place.removesuffix(DEFAULT_PORTS.get(scheme, '/'))}"


@dataclass(frozen=True)
class ServerConfig:
    """What ``speechllm-xl serve`` allows; the command's options are made from these fields.  infinity: no limit."""

    host: str = _option("127.0.0.1", "address to listen on; any but this machine's own wants a --token")
    port: int = _option(8000, "0: any free one")
    token: str = _option(None, "what clients must send as 'Authorization: Bearer TOKEN' or '?token=TOKEN'")
    allow_origin: tuple = _option(
        (), "origin, scheme://name[:port], whose pages may use the server; may be given several times; '*': any"
    )
    max_streams: int = _option(32, "live streams at a time; more are refused")
    max_message_bytes: int = _option(1 << 20, "longest message of a stream")
    max_queue_seconds: float = _option(10.0, "audio of a stream that may wait to be decoded; then it is not read on")
    max_span_seconds: float = _option(
        60.0, "longest window (chunk and context), stream segment and settle_seconds of a stream"
    )
    idle_seconds: float = _option(30.0, "a stream without audio for so long is ended")
    max_stream_seconds: float = _option(14400.0, "a stream is ended after so much audio, or time")
    send_seconds: float = _option(10.0, "a client that takes no results for so long is dropped")
    max_files: int = _option(4, "whole files decoded at a time; more are refused")
    max_file_bytes: int = _option(25 << 20, "largest file; it is held in memory")
    max_file_seconds: float = _option(3600.0, "longest audio of a file")
    upload_seconds: float = _option(120.0, "a file's upload may take so long")
    shutdown_seconds: float = _option(30.0, "what was sent before SIGTERM may take so long to be decoded")

    def __post_init__(self):
        # A shell's variable that is not set must not open the server: "" would be every address, and no token.
        _require(self.host.strip(), "host is empty: give an address of this machine (0.0.0.0: all of them)")
        _require(self.token is None or self.token.strip(), "token is empty: give one, or leave --token out")
        _require(0 <= self.port <= 65535, f"port {self.port} is not in 0 .. 65535")
        object.__setattr__(self, "allow_origin", tuple(map(_origin, self.allow_origin)))
        _require(self.token or "*" not in self.allow_origin, "allow_origin '*': any page could listen: give a --token")
        for field in dataclasses.fields(self):
            if field.type not in (str, tuple) and field.name != "port":
                _require(getattr(self, field.name) > 0, f"server {field.name} must be positive")
