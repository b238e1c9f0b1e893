"""Every setting of the model and of decoding, declared once.

These frozen dataclasses *are* the ``*_conf`` sections of the ESPnet YAML: ``encoder_conf``
is :class:`EncoderConfig`, ``chunking_conf`` is :class:`ChunkingConfig`, and so on.  A name without
a field is an error, which lists the fields.  Checks between fields stand here only.

Units: *samples* at ``sample_rate``; *feature frames* at 100 Hz; *frames* (encoder frames) at
25 Hz, 40 ms each; *chunks* of ``chunk`` frames; *inputs* of the decoder, each of ``reduction``
frames or one token; seconds where a name ends in ``_seconds``.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.settings import has_kind, is_amount, option, require, require_share


@dataclass(frozen=True)
class FeatureConfig:
    """Log-mel features (paper: 80 bands, 25 ms window, 10 ms shift; times are in timeline.py)."""

    sample_rate: int = 16000  # Hz, of the dump; decoding resamples its audio to it
    n_mels: int = 80  # mel bands
    f_min: float = 20.0  # Hz, lower edge of the first band
    f_max: float = 7600.0  # Hz, upper edge of the last band
    floor: float = 1e-8  # mel energies below it are raised to it before the log
    level_seconds: float | None = None  # energies are relative to the level of so many last seconds; null: as recorded
    tail_frames: int = 0  # frames of silence put after every recording, in training and decoding

    def __post_init__(self) -> None:
        require(self.sample_rate % 1000 == 0, f"sample_rate {self.sample_rate} is not a multiple of 1000 Hz")
        require(self.sample_rate <= 1000000, f"sample_rate {self.sample_rate} is over 1000000 Hz")
        require(
            0 <= self.f_min < self.f_max <= self.sample_rate / 2,
            f"f_min {self.f_min}, f_max {self.f_max} do not fit 0 .. {self.sample_rate // 2} Hz: "
            "set features_conf f_max to at most half of the sample rate",
        )
        require(self.n_mels >= 1, f"n_mels {self.n_mels} must be at least 1")
        require(self.n_mels <= 1000, f"n_mels {self.n_mels} is over 1000")
        require(
            0 < self.floor < math.inf,
            f"floor {self.floor} must be positive and finite: it keeps digital silence finite",
        )
        require(
            self.level_seconds is None or 0 < self.level_seconds < math.inf,
            f"level_seconds {self.level_seconds} must be positive and finite, or null",
        )
        require(0 <= self.tail_frames <= 25, f"tail_frames {self.tail_frames} is not in 0 .. 25, which is 1 s")


@dataclass(frozen=True)
class SpecAugmentConfig:
    """SpecAugment (Park et al. 2019) on the normalised features, training only."""

    freq_masks: int = 2  # masks over mel bands per utterance
    freq_width: int = 27  # mel bands, largest width of one mask
    time_masks_per_second: float = 0.5  # masks over time per second of audio
    time_width: int = 30  # feature frames, largest width of one mask

    def __post_init__(self) -> None:
        require(all(is_amount(value) for value in dataclasses.astuple(self)), "specaug_conf: give numbers >= 0")


class EncoderTiming(Protocol):
    """The settings that streams and reports of latency need of an encoder; its settings are a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def segment(self) -> int | None:
        """Return the frames that come out together; None: the encoder takes whole utterances only."""

    @property
    def right_context(self) -> int:
        """Return the frames of look-ahead."""

    @property
    def block_segments(self) -> int:
        """Return the segments that one call computes at most."""


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
    conv_kernel: int = 0  # frames, kernel of a causal convolution module in every layer; 0: no module (paper)
    dropout: float = 0.1  # probability
    activation: str = "gelu"  # of the feed-forward layers: "gelu", "relu" or "silu"
    block_segments: int = 64  # segments computed at once: bounds memory, changes no result

    def __post_init__(self) -> None:
        require(self.frontend in ("stack", "conv"), f"encoder frontend '{self.frontend}': use 'stack' or 'conv'")
        for name in ("heads", "dim", "ffn_dim"):
            require(getattr(self, name) >= 1, f"encoder {name} must be at least 1")
        require(self.dim % self.heads == 0, f"encoder dim {self.dim} is not a multiple of heads {self.heads}")
        require(self.activation in ("gelu", "relu", "silu"), f"encoder activation '{self.activation}' is unknown")
        for name in ("segment", "layers", "block_segments"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, f"encoder {name} must be at least 1")
        require(
            self.segment is not None or self.left_context == self.right_context == 0,
            "encoder segment null sees the whole utterance: set left_context and right_context to 0",
        )
        for name in ("left_context", "right_context", "conv_kernel"):
            require(getattr(self, name) >= 0, f"encoder {name} must not be negative")
        require_share("encoder", self, "dropout")


@dataclass(frozen=True)
class ChunkingConfig:
    """Chunks of the decoder and look-ahead of the encoder, for training *and* run time: decoding may have others."""

    chunk: int | None = 32  # frames; None: one chunk holds all audio (non-streaming)
    context: int | None = 4  # previous chunks that stay visible; None: all
    delay: int = 0  # label delay: frames added to a token's end before its chunk is chosen
    unit: str = "token"  # training puts each "token" (paper), or each whole "word", into the chunk in which it ends
    train_chunks: list[int] | None = None  # frames, chunk sizes; training draws one a batch; null: ``chunk`` only
    look_ahead: int | None = None  # frames; null: the encoder's right_context
    train_look_aheads: list[int] | None = None  # frames; training draws one a batch; null: ``look_ahead`` only

    def __post_init__(self) -> None:
        for name, least in (("train_chunks", 1), ("train_look_aheads", 0)):
            sizes = getattr(self, name)
            require(
                sizes is None or (sizes and all(has_kind(size, int) and size >= least for size in sizes)),
                f"{name} {sizes}: give a list of frames >= {least}, or null",
            )
        require(self.chunk is None or self.chunk >= 1, f"chunk {self.chunk}: give frames >= 1, or null for infinity")
        require(self.context is None or self.context >= 0, f"context {self.context}: give chunks >= 0, or null")
        require(self.delay >= 0, f"delay {self.delay} must not be negative")
        ahead = self.look_ahead
        require(ahead is None or ahead >= 0, f"look_ahead {ahead}: give frames >= 0, or null for the encoder's")
        require(self.unit in ("token", "word"), f"chunking unit '{self.unit}': use 'token' or 'word'")

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """Return the chunk sizes of training and evaluation, in frames; None: infinity."""
        return self.chunk, *(self.train_chunks or ())

    def check_against(self, encoder: EncoderTiming) -> None:
        """Raise ConfigError unless chunk sizes and look-aheads fit the encoder.

        Its segment divides every chunk size, or is divided by it.  An encoder of whole utterances has no look-ahead.
        """
        segment = encoder.segment
        for look_ahead in (self.look_ahead, *(self.train_look_aheads or ())):
            require(
                segment is not None or not look_ahead,
                f"look_ahead {look_ahead}: an encoder with segment null hears the whole utterance: leave it at null",
            )
        for chunk_size in self.sizes:
            require(
                chunk_size is None or segment is None or chunk_size % segment == 0 or segment % chunk_size == 0,
                f"chunk {chunk_size} and encoder segment {segment} do not divide one another: choose a chunk of "
                f"{segment} * n frames or a divisor of {segment}",
            )

    def resized(self, chunk_size: int | None) -> "ChunkingConfig":
        """Return these settings with chunks of ``chunk_size`` frames (None: infinite) that see at least as far back."""
        other = dataclasses.replace(self, chunk=chunk_size)  # refuses 0 frames
        return dataclasses.replace(other, context=timeline.same_context(self.chunk, self.context, chunk_size))

    def right_context(self, encoder: EncoderTiming) -> int:
        """Return the frames of look-ahead with this encoder."""
        return encoder.right_context if self.look_ahead is None else self.look_ahead

    def not_trained(self, trained: "ChunkingConfig", encoder: EncoderTiming) -> list[str]:
        """Return a line for each size that differs from all sizes of the training.

        Args:
            trained: the settings of the training.
            encoder: of the model.
        """
        seconds_of = timeline.chunk_seconds
        sizes = [*map(seconds_of, trained.train_chunks or ())] or [seconds_of(trained.chunk)]
        aheads = [*map(seconds_of, trained.train_look_aheads or ())] or [seconds_of(trained.right_context(encoder))]
        compared = [
            ("chunk size", seconds_of(self.chunk), sizes),
            ("look-ahead", seconds_of(self.right_context(encoder)), aheads),
        ]
        if self.chunk is not None:  # before the only chunk there is nothing
            own, others = map(timeline.context_seconds, (self, trained.resized(self.chunk)))
            compared.insert(1, ("context", own, [others]))
        return [
            f"{name} {seconds:g} s: the model was trained with {', '.join(f'{each:g} s' for each in known)}, "
            "not with this one: there may be more errors"
            for name, seconds, known in compared
            if seconds not in known
        ]


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
    pretrained: str | None = None  # directory of a Hugging Face causal LM; it sets all of the above but the dropouts
    freeze: bool = False  # true: the LLM's weights stay as they are; the row of `$` trains, and what feeds the LLM
    lora_rank: int = 0  # r > 0: the LLM's weights stay as they are, LoRA adapters of rank r train (peft); 0: none
    lora_alpha: int = 32  # LoRA scale numerator
    lora_dropout: float = 0.0  # probability, on what enters the adapters
    lora_targets: list[str] | None = None  # layers with adapters, such as [q_proj, v_proj]; null: all linear layers
    use_dora: bool = False  # adapters of DoRA (Liu et al. 2024): a trained length for each output beside LoRA
    train_table: bool = False  # with `freeze` or `lora_rank`: the table of embeddings and the output layer train, too
    frozen_dtype: str = "float32"  # of frozen weights in training, and of the LLM's products: "float32", "bfloat16"

    @property
    def is_base_frozen(self) -> bool:
        """Tell whether the weights of the pretrained checkpoint stay as they are."""
        return self.freeze or self.lora_rank > 0

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "dim", "ffn_dim"):
            require(getattr(self, name) >= 1, f"decoder {name} must be at least 1")
        require(0 < self.rope_theta < math.inf, f"decoder rope_theta {self.rope_theta} must be positive")
        require_share("decoder", self, "dropout", "embed_dropout", "lora_dropout")
        require(self.dim % self.heads == 0, f"decoder dim {self.dim} is not a multiple of heads {self.heads}")
        require((self.dim // self.heads) % 2 == 0, "decoder dim / heads must be even for rotary positions")
        self._check_what_trains()

    def _check_what_trains(self) -> None:
        """Raise ConfigError for settings of a pretrained checkpoint that do not fit one another."""
        require(self.lora_rank >= 0, f"lora_rank {self.lora_rank} must not be negative")
        require(
            self.lora_rank == 0 or self.pretrained,
            "lora_rank > 0 needs decoder_conf pretrained: adapters on random weights learn little",
        )
        require(not self.freeze or self.pretrained, "freeze needs decoder_conf pretrained: random weights must train")
        require(
            not (self.freeze and self.lora_rank),
            "freeze, and lora_rank > 0, whose adapters train: leave out one of them",
        )
        for name in ("lora_dropout", "lora_targets", "use_dora"):
            require(self.lora_rank or not getattr(self, name), f"{name} is of adapters: give lora_rank, too")
        targets = self.lora_targets
        require(
            targets is None or (targets and all(isinstance(name, str) for name in targets)),
            f"lora_targets {targets}: give a list of names such as [q_proj, v_proj], or null",
        )
        require(
            self.frozen_dtype in ("float32", "bfloat16"),
            f"frozen_dtype '{self.frozen_dtype}': use 'float32' or 'bfloat16'",
        )
        for name, default in (("train_table", False), ("frozen_dtype", "float32")):
            require(
                self.is_base_frozen or getattr(self, name) == default,
                f"{name} is of an LLM whose weights are frozen: give freeze or lora_rank, too",
            )


@dataclass(frozen=True)
class ProjectionConfig:
    """From encoder frames to decoder inputs (paper: one linear layer, one input for each frame)."""

    reduction: int = 1  # frames of a chunk that are stacked to one decoder input: 1, 2, 4 or 8
    hidden_dim: int = 0  # units of a hidden layer with GELU, which makes it an MLP of two layers; 0: one linear layer

    def __post_init__(self) -> None:
        require(self.reduction in (1, 2, 4, 8), f"projection reduction {self.reduction}: use 1, 2, 4 or 8 frames")
        require(self.hidden_dim >= 0, f"projection hidden_dim {self.hidden_dim} must not be negative")


@dataclass(frozen=True)
class CTCConfig:
    """Head of the CTC model, which aligns text and audio."""

    dropout: float = 0.1  # probability, before the output layer

    def __post_init__(self) -> None:
        require_share("ctc_conf", self, "dropout")


@dataclass(frozen=True)
class LossConfig:
    """Training loss (paper section 2: cross-entropy over text and `$` targets)."""

    label_smoothing: float = 0.0  # probability mass spread over the vocabulary
    ctc_weight: float = 0.0  # weight of an auxiliary CTC loss on the encoder
    ctc_tokenizer: str | None = None  # file with CTC's own tokens, characters as the aligner's; null: the decoder's

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing} is not in [0, 1)")
        require(is_amount(self.ctc_weight), f"ctc_weight {self.ctc_weight} must not be negative, nor infinite")


@dataclass(frozen=True)
class ConcatConfig:
    """Concatenation of training utterances, because short ones alone never fill the decoder's window."""

    max_seconds: float = 0.0  # longest concatenation; 0: off
    probability: float = 0.67  # share of the training examples that are joined up to a length drawn from 0..max_seconds
    max_gap_seconds: float = 0.5  # longest random pause put between two utterances
    max_lead_seconds: float = 0.0  # longest random pause put before the first, so that words fall anywhere in a chunk
    across_speakers: float = 0.0  # share of the utterances that are joined with any others, whoever speaks

    def __post_init__(self) -> None:
        for name in ("probability", "across_speakers"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"concat {name} {share} is not in [0, 1]")
        seconds = self.max_seconds, self.max_gap_seconds, self.max_lead_seconds
        require(all(map(is_amount, seconds)), "concat_conf: give seconds >= 0")


@dataclass(frozen=True)
class AugmentConfig:
    """Changes to the samples of training examples: levels and ends of recordings as decoding will meet them."""

    min_gain_db: float = 0.0  # the level of an example is changed by a random gain between these two, in dB, and the
    max_gain_db: float = 0.0  # samples are rounded and clipped as 16 bits would; 0 and 0: off
    cut_probability: float = 0.0  # share of the aligned examples that are cut where their last word ends
    cut_frames: int = 3  # at random, such an example keeps up to so many frames more, or loses one

    def __post_init__(self) -> None:
        gains = self.min_gain_db, self.max_gain_db
        require(
            all(math.isfinite(gain) for gain in gains) and gains[0] <= gains[1],
            f"augment min_gain_db {gains[0]}, max_gain_db {gains[1]}: give two levels in dB, the lower one first",
        )
        require(0 <= self.cut_probability <= 1, f"augment cut_probability {self.cut_probability} is not in [0, 1]")
        require(self.cut_frames >= 0, f"augment cut_frames {self.cut_frames} must not be negative")


@dataclass(frozen=True)
class TextPromptConfig:
    """Prompts of SpeechLLM-XL: text that every chunk sees; in training, words of an example among words of others."""

    probability: float = 0.0  # share of the training examples with a prompt; 0: none, and decoding takes none
    words: int = 20  # words of a prompt at most; training draws 1 to so many
    own_words: int = 4  # of them, at most so many are of the example's text, the others of all training texts
    distance: int = 2000  # decoder inputs; chunks begin no farther behind a prompt's start, in training and in streams

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, f"prompt probability {self.probability} is not in [0, 1]")
        require(self.words >= 1, f"prompt words {self.words} must be at least 1")
        require(
            0 <= self.own_words <= self.words, f"prompt own_words {self.own_words} is not in 0 .. {self.words} (words)"
        )
        require(self.distance >= 1, f"prompt distance {self.distance} must be at least 1")


@dataclass(frozen=True)
class StreamConfig:
    """When a live stream settles text and ends stream segments, in seconds; see decoding/streams.py."""

    settle_seconds: float = option(1.28, "age at which text that the beam still disputes is settled; inf: never")
    endpoint_silence: float = option(1.5, "time without text after which a stream segment ends; inf: never")
    endpoint_length: float = option(20.0, "length at which a stream segment ends at its last settled word; inf: none")
    partial_seconds: float = option(math.inf, "audio of an open chunk after which its text is shown, too; inf: none")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require(getattr(self, field.name) > 0, f"stream {field.name} must be positive (inf: never)")

    @property
    def has_endpoints(self) -> bool:
        """Tell whether stream segments ever end before the stream does."""
        return min(self.endpoint_silence, self.endpoint_length) < math.inf


@dataclass(frozen=True)
class SearchConfig:
    """Decoding.  The options of the commands are made from these fields.

    decoding/searches.py describes the methods; each system of systems/ names its own.
    """

    method: str = option("alsd", "the option --search")
    beam_size: int = option(8, "hypotheses; greedy has 1")
    nbest: int = option(1, "distinct texts returned at most")
    max_tokens_per_chunk: int = option(40, "cap: then only the end of the chunk is allowed; reported when hit")
    margin: float = option(5.0, "hypotheses that score so much less than the best are dropped; inf: none")
    recombine: bool = option(False, "merge hypotheses of equal text in the same chunk (approximation)")
    ctc_weight: float = option(0.0, "share of CTC in the scores, below 1; 0 as in the paper (joint_ctc.py)")
    phrase_boost: float = option(0.5, "what each character of a phrase of weight 1 adds to the score (phrases.py)")

    def __post_init__(self) -> None:
        for name in ("beam_size", "nbest", "max_tokens_per_chunk"):
            require(getattr(self, name) >= 1, f"search {name} must be at least 1")
        require(self.margin > 0, f"search margin {self.margin} must be positive (inf: no hypothesis is dropped)")
        require(0 <= self.ctc_weight < 1, f"search ctc_weight {self.ctc_weight} is not in 0 .. 1, 1 excluded")
        require(
            is_amount(self.phrase_boost), f"search phrase_boost {self.phrase_boost} must not be negative, nor infinite"
        )


MIX, EACH = "mix", "each"  # channels of a recording: their average, or every one by itself


def parse_channel(text: str, *words: str) -> int | str | None:
    """Read the number of a channel, from 0, or a word.

    Args:
        text: from the user.
        words: other words that are allowed; they are returned as they are.

    Returns:
        The number; None for "mix"; or the word.

    Raises:
        ValueError: none of these; the message names them.
    """
    if text == MIX:
        return None
    if text in words:
        return text
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"'{text[:50]}' is no channel: give its number, from 0 on, or {', '.join([MIX, *words])}")
    return int(text)
