"""Emformer (Shi et al. 2021), linear in length: ``(features, state) -> (frames, state)``.

Shape legend: ``B`` batch, ``F`` feature frames (100 Hz), ``T`` frames (25 Hz), ``N`` segments, ``S`` frames of a
segment, ``L`` left context, ``R`` right context (look-ahead), ``M`` mel bands, ``D`` model dimension, ``K`` convolution
kernel, ``C`` any feature size.

R is a setting of each call; the configuration has its default.  No weight and no state depends on it, because a right
context is computed for its own segment only.  A stream keeps its R.

Every segment attends to itself, its own copy of the R frames after it, and the keys and values of the L frames before.
A block is any number of segments.  They are computed in parallel, and the block hands its last L keys and values to
the next one.  One query's row of the mask, for S = 4, L = 6, R = 2, in the third and first segment of a stream:

    [left context | segment | right context]     [1 1 1 1 1 1 | 1 1 1 1 | 1 1]     [0 0 0 0 0 0 | 1 1 1 1 | 1 1]

With ``segment`` None an utterance is one segment (full context): nothing streams, and a batch is masked by length.

Parameters are named as in :class:`torchaudio.models.Emformer` (``max_memory_size=0``): its weights load, with the same
outputs.
"""

import abc
import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import EncoderConfig
from espnet_speechllm_xl.model.dropout import Dropout
from espnet_speechllm_xl.model.features import stack_frames
from espnet_speechllm_xl.model.stream_encoder import StreamEncoder
from espnet_speechllm_xl.model.stream_state import BufferingStreams, Streams
from espnet_speechllm_xl.settings import from_dict, signature

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class LayerState(Streams):
    """State of a layer, made of the segments before."""

    key_value: Tensor  # (B, L, 2 D) keys and values, side by side; slots older than the stream hold zeros
    conv: Tensor  # (B, max(K - 1, 0), D) input of the depthwise convolution

    @property
    def batch(self) -> int:
        """Return the number of streams."""
        return self.key_value.shape[0]


@dataclass(frozen=True)
class EmformerState(Streams):
    """State of all layers, and the age of each stream."""

    layers: tuple[LayerState, ...]
    past: Tensor  # (B,) long, frames so far

    @property
    def batch(self) -> int:
        """Return the number of streams."""
        return self.past.shape[0]


def _windows(stream: Tensor, history: int, count: int, tail: Tensor) -> Tensor:
    """Cut a stream into one window a segment.

    Window i is the ``history`` frames before segment i, the segment, and its own right context ``tail[:, i]``.

    Args:
        stream: (B, history + N S, C)
        history: frames before each segment.
        count: segments N.
        tail: (B, N, R, C)

    Returns:
        (B, N, history + S + R, C)
    """
    # Slices and one cat: the backward of torch.Tensor.unfold is several times slower.
    size = (stream.shape[1] - history) // count
    whole, rest = history // size, history % size  # torch.compile knows no divmod
    parts = [stream[:, : count * size].unflatten(1, (count, size))[:, :, :rest]] if rest else []
    for k in range(whole + 1):
        begin = rest + k * size
        parts.append(stream[:, begin : begin + count * size].unflatten(1, (count, size)))
    return torch.cat([*parts, tail], dim=2)


def _last(stream: Tensor, count: int) -> Tensor:
    """Return a copy of the last ``count`` frames, which does not hold the memory of the others."""
    return stream[:, stream.shape[1] - count :].clone()


class _Attention(nn.Module):
    """Attention of each segment to its left context, itself and its right context."""

    def __init__(self, config: EncoderConfig, gain: float) -> None:
        super().__init__()
        self.heads = config.heads
        self.emb_to_key_value = nn.Linear(config.dim, 2 * config.dim)
        self.emb_to_query = nn.Linear(config.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)
        nn.init.xavier_uniform_(self.emb_to_key_value.weight, gain=gain)
        nn.init.xavier_uniform_(self.emb_to_query.weight, gain=gain)

    def forward(self, x: Tensor, left: Tensor, mask: Tensor, right: int) -> tuple[Tensor, Tensor]:
        """Attend; return (B, N, S + R, D) and the next ``left``.

        Args:
            x: (B, N, S + R, D) segments with their right contexts.
            left: (B, L, 2 D) keys and values of the left context.
            mask: (B N, 1, 1, L + S + R) bool, True where a key is visible.
            right: frames R.
        """
        batch, count, width, dim = x.shape
        key_value = self.emb_to_key_value(x)
        segment, tail = key_value.split([width - right, right], dim=2)
        stream = torch.cat([left.to(key_value), segment.flatten(1, 2)], dim=1)
        window = _windows(stream, left.shape[1], count, tail)
        key, value = window.view(batch * count, -1, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query = self.emb_to_query(x).view(batch * count, width, self.heads, -1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(batch, count, width, dim)
        return self.out_proj(mixed), _last(stream, left.shape[1])


class _Convolution(nn.Module):
    """Convolution module of the Conformer (Gulati et al. 2020), causal over the stream of segments.

    The right context of segment i continues from the end of segment i.  LayerNorm stands in place of BatchNorm, whose
    statistics would mix times and utterances.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_input = nn.LayerNorm(config.dim)
        self.expand = nn.Linear(config.dim, 2 * config.dim)
        self.depthwise = nn.Conv1d(config.dim, config.dim, config.conv_kernel, groups=config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.project = nn.Linear(config.dim, config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, history: Tensor, right: int) -> tuple[Tensor, Tensor]:
        """Convolve; return the shape of ``x`` and the next history.

        Args:
            x: (B, N, S + R, D) segments with their right contexts.
            history: (B, K - 1, D) inputs before them.
            right: frames R.
        """
        batch, count, width, dim = x.shape
        gated = F.glu(self.expand(self.norm_input(x)))
        segment, tail = gated.split([width - right, right], dim=2)
        stream = torch.cat([history.to(gated), segment.flatten(1, 2)], dim=1)
        window = _windows(stream, history.shape[1], count, tail)
        mixed = self.depthwise(window.flatten(0, 1).transpose(1, 2)).transpose(1, 2)  # (B N, S + R, D)
        mixed = self.project(F.silu(self.norm(mixed))).view(batch, count, width, dim)
        return self.dropout(mixed), _last(stream, history.shape[1])


class _Layer(nn.Module):
    """Attention, the optional convolution, and the feed-forward layers, each with a residual branch."""

    def __init__(self, config: EncoderConfig, gain: float) -> None:
        super().__init__()
        self.attention = _Attention(config, gain)
        self.conv = _Convolution(config) if config.conv_kernel else None
        self.dropout = Dropout(config.dropout)
        self.pos_ff = nn.Sequential(
            nn.LayerNorm(config.dim),
            nn.Linear(config.dim, config.ffn_dim),
            ACTIVATIONS[config.activation](),
            Dropout(config.dropout),
            nn.Linear(config.ffn_dim, config.dim),
            Dropout(config.dropout),
        )
        self.layer_norm_input = nn.LayerNorm(config.dim)
        self.layer_norm_output = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, state: LayerState, mask: Tensor, right: int) -> tuple[Tensor, LayerState]:
        """Return the layer's output, of the shape of ``x``, and its next state.

        Args:
            x: (B, N, S + R, D) segments with their right contexts.
            state: of the B streams.
            mask: see :class:`_Attention`.
            right: frames R.
        """
        attended, key_value = self.attention(self.layer_norm_input(x), state.key_value, mask, right)
        x = self.dropout(attended) + x
        history = state.conv
        if self.conv is not None:
            convolved, history = self.conv(x, history, right)
            x = x + convolved
        return self.layer_norm_output(self.pos_ff(x) + x), LayerState(key_value, history)


class Emformer(nn.Module):
    """Layers of the encoder.

    With ``conv_kernel`` 0 they compute what torchaudio's Emformer without memory computes, and its state dict loads.

    Queries and keys start with torchaudio's gain 1 / sqrt(layer) ("depthwise").
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        gains = [1 / math.sqrt(i + 1) for i in range(config.layers)]
        self.emformer_layers = nn.ModuleList(_Layer(config, gain) for gain in gains)

    def initial_state(self, batch: int = 1) -> EmformerState:
        """Return the state of ``batch`` streams before their first frame, in the parameters' type, on their device."""
        config, like = self.config, self.emformer_layers[0].get_parameter("layer_norm_input.weight")
        layer = LayerState(
            like.new_zeros(batch, config.left_context, 2 * config.dim),
            like.new_zeros(batch, max(config.conv_kernel - 1, 0), config.dim),
        )
        return EmformerState((layer,) * config.layers, torch.zeros(batch, dtype=torch.long, device=like.device))

    def forward(
        self,
        x: Tensor,
        state: EmformerState | None = None,
        lengths: Tensor | None = None,
        right_context: int | None = None,
    ) -> tuple[Tensor, EmformerState]:
        """Return the output (B, N S, D) of N >= 1 whole segments, and the next state.

        The next call begins with the last R frames of ``x`` again, as frames of its first segment.

        Args:
            x: (B, N S + R, D) segments and the right context of the last.
            state: of the B streams; None where they begin.
            lengths: (B,) frames of each utterance where a segment is a whole utterance, else None.
            right_context: frames R; None: the configuration's.

        Raises:
            ValueError: the number of frames is another.
        """
        batch, frames, dim = x.shape
        right = self.config.right_context if right_context is None else right_context
        segment = self.config.segment or frames
        count = (frames - right) // segment
        if count < 1 or frames != count * segment + right:
            raise ValueError(f"{frames} frames are not a number of segments of {segment} and {right} of look-ahead")
        state = self.initial_state(batch) if state is None else state
        mask = self._visible(state.past, count, segment, right) if lengths is None else _within(lengths, frames)
        x = _segments(x, count, segment, right)
        layers = []
        for layer, layer_state in zip(self.emformer_layers, state.layers, strict=True):
            x, layer_state = layer(x, layer_state, mask, right)
            layers.append(layer_state)
        y = x[:, :, :segment].reshape(batch, count * segment, dim)
        return y, EmformerState(tuple(layers), state.past + count * segment)

    def _visible(self, past: Tensor, count: int, segment: int, right: int) -> Tensor:
        """Return a mask (B N, 1, 1, L + S + R), False at the left slots from before a stream began.

        Args:
            past: (B,) frames before the first segment.
            count: segments N.
            segment: frames S of one.
            right: frames R after each.
        """
        left = self.config.left_context
        starts = past[:, None, None] + torch.arange(count, device=past.device)[:, None] * segment
        slots = torch.arange(-left, segment + right, device=past.device)
        return (starts + slots >= 0).view(-1, 1, 1, left + segment + right)


def _within(lengths: Tensor, frames: int) -> Tensor:
    """Return a mask (B, 1, 1, frames), False at the padding behind ``lengths`` (B,).

    An empty utterance keeps a frame, lest its outputs be NaN.
    """
    return (torch.arange(frames, device=lengths.device) < lengths.clamp(min=1)[:, None])[:, None, None]


def _segments(x: Tensor, count: int, segment: int, right: int) -> Tensor:
    """Give each segment its own copy of the frames after it.

    Args:
        x: (B, N S + R, D)
        count: segments N.
        segment: frames S of one.
        right: frames R after each.

    Returns:
        (B, N, S + R, D)
    """
    parts, begin = [], 0
    while begin < segment + right:
        # R > S: a right context reaches over several segments.
        width = min(segment, segment + right - begin)
        part = x[:, begin : begin + (count - 1) * segment + width]
        part = F.pad(part, (0, 0, 0, segment - width)).unflatten(1, (count, segment))[:, :, :width]
        parts.append(part)
        begin += width
    return torch.cat(parts, dim=2)


class Frontend(nn.Module, abc.ABC):
    """Contract of a front end: stacked feature frames to the frames that the layers take, one for one.

    Its state is a tensor (B, ...) made of the feature frames before.
    """

    @abc.abstractmethod
    def initial_state(self, batch: int) -> Tensor:
        """Return the state (B, ...) of ``batch`` streams before their first frame."""

    @abc.abstractmethod
    def forward(self, stacked: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames (B, T, D) of ``stacked`` (B, T, 4 M), and the next state."""


class StackFrontend(Frontend):
    """Front end of the paper: 4 feature frames, one linear layer."""

    def __init__(self, input_size: int, dim: int) -> None:
        super().__init__()
        linear = nn.Linear(timeline.STACK * input_size, dim)
        self.weight, self.bias = linear.weight, linear.bias

    def initial_state(self, batch: int) -> Tensor:
        """Return nothing: (B, 0)."""
        return self.weight.new_zeros(batch, 0)

    def forward(self, stacked: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames (B, T, D) of ``stacked`` (B, T, 4 M), and the next state."""
        return F.linear(stacked, self.weight, self.bias), state


class ConvFrontend(Frontend):
    """Front end of two causal 3x3 convolutions of stride 2 over time and bands.

    Frame t sees feature frames 4t - 3 .. 4t + 3.  With the 3 feature frames before a block (zeros at the start) there
    are 4T + 3; strides of 2 make 2T + 1, then T.
    """

    channels = (32, 64)

    def __init__(self, input_size: int, dim: int) -> None:
        super().__init__()
        self.input_size = input_size
        first, second = self.channels
        self.conv1 = nn.Conv2d(1, first, 3, stride=2, padding=(0, 1))
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=(0, 1))
        bands = -(-input_size // 4)  # each stride rounds up
        self.linear = nn.Linear(second * bands, dim)
        # Without it frames start out ten times smaller than the other front end makes them.  The layers add averages
        # over time at first, which drown such frames.
        self.norm = nn.LayerNorm(dim)

    def initial_state(self, batch: int) -> Tensor:
        """Return the 3 feature frames before the first, (B, 3, M): zeros."""
        return self.conv1.weight.new_zeros(batch, timeline.STACK - 1, self.input_size)

    def forward(self, stacked: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames (B, T, D) of ``stacked`` (B, T, 4 M), and the next state."""
        batch, count = stacked.shape[:2]
        if count == 0:
            return stacked.new_zeros(batch, 0, self.linear.out_features), state
        features = torch.cat([state.to(stacked), stacked.reshape(batch, -1, self.input_size)], dim=1)
        x = F.silu(self.conv2(F.silu(self.conv1(features[:, None]))))  # (B, C, T, bands)
        return self.norm(self.linear(x.transpose(1, 2).flatten(2))), _last(features, state.shape[1])


# by name: (mel bands M, model dimension D) -> front end
FRONTENDS: dict[str, Callable[[int, int], Frontend]] = {"stack": StackFrontend, "conv": ConvFrontend}


@dataclass(frozen=True)
class Quietest(Streams):
    """The quietest feature frame that streams have had; it stands for their silence."""

    frame: Tensor  # (B, M)
    level: Tensor  # (B,) mean of its bands; infinity before the first frame

    @property
    def batch(self) -> int:
        """Return the number of streams."""
        return self.level.shape[0]

    def after(self, features: Tensor, levels: Tensor | None = None) -> "Quietest":
        """Return the quietest of these frames and of ``features``.

        Args:
            features: (B, f, M), f >= 0.
            levels: (B, f) level of each feature frame; None: the means of their bands.
        """
        if features.shape[1] == 0:
            return self
        level, place = (features.mean(2) if levels is None else levels).min(1)
        frame = features.gather(1, place[:, None, None].expand(-1, 1, features.shape[2]))[:, 0]
        quieter = level < self.level
        return Quietest(torch.where(quieter[:, None], frame, self.frame), torch.where(quieter, level, self.level))


@dataclass(frozen=True)
class EncoderState(BufferingStreams):
    """State of encoder streams between two pushes."""

    features: Tensor  # (B, < 4, M) feature frames that complete no frame yet
    quietest: Quietest  # of the frames so far
    frontend: Tensor  # (B, ...) state of the front end
    frames: Tensor  # (B, < S + R, D) output of the front end that completes no segment with its right context yet
    emformer: EmformerState

    @property
    def batch(self) -> int:
        """Return the number of streams."""
        return self.features.shape[0]

    @property
    def buffered(self) -> tuple[int, ...]:
        """Return how many feature frames and frames each stream has buffered."""
        return self.features.shape[1], self.frames.shape[1]


class EmformerEncoder(StreamEncoder[EncoderState]):
    """Normalised log-mel features to frames: 4x stacking, front end, Emformer.

    In every path, utterances are padded to whole segments plus right context before the front end.  The padding is
    their own quietest feature frame: zeros, the mean of all speech, would sound as if the last word went on.
    :meth:`forward` is :meth:`push` of all at once, so batch, alone and stream agree.

    Args:
        input_size: mel bands M.
        conf: fields of :class:`~espnet_speechllm_xl.config.EncoderConfig`.

    Raises:
        ConfigError: a field is unknown or unusable.
    """

    # ESPnet reads the defaults of encoder_conf from the signature: they are declared once, in EncoderConfig.
    __signature__: ClassVar[inspect.Signature] = signature(
        EncoderConfig, inspect.Parameter("input_size", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=int)
    )

    config: EncoderConfig

    def __init__(self, input_size: int, **conf: Any) -> None:  # as EncoderConfig has them
        super().__init__()
        config = from_dict(EncoderConfig, conf, "encoder_conf")
        self.config = config
        self.input_size = input_size
        self.frontend = FRONTENDS[config.frontend](input_size, config.dim)
        self.emformer = Emformer(config)

    def output_size(self) -> int:
        """Return the size D of a frame."""
        return self.config.dim

    def forward(
        self,
        xs_pad: Tensor,
        ilens: Tensor,
        prev_states: None = None,
        tail: int = 0,
        right_context: int | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        """Encode whole utterances in blocks of ``block_segments`` segments; see :class:`StreamEncoder`."""
        if prev_states is not None:
            raise ValueError("EmformerEncoder.forward takes whole utterances: continue a stream with push()")
        olens = torch.div(ilens, timeline.STACK, rounding_mode="floor")
        own = torch.where(olens > 0, ilens, 0) if tail else olens * timeline.STACK  # feature frames before the silence
        olens = torch.where(olens > 0, olens + tail, 0)
        longest = int(olens.max()) * timeline.STACK
        places = torch.arange(longest, device=xs_pad.device)
        ended = places >= own.to(xs_pad.device)[:, None]
        features = F.pad(xs_pad, (0, 0, 0, max(0, longest - xs_pad.shape[1])))[:, :longest]
        features = features.masked_fill(ended[:, :, None], 0.0)
        state = self.initial_state(len(features))
        quietest = state.quietest.after(features, features.mean(2).masked_fill(ended, math.inf))
        features = torch.where(ended[:, :, None], quietest.frame[:, None], features)
        if self.config.segment is None:
            return self._whole(features, olens.to(xs_pad.device)), olens, None
        ys, _ = self.push(features, state, final=True, right_context=right_context)
        return ys, olens, None

    def _whole(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the frames (B, T, D) of whole utterances (B, 4 T, M) of ``lengths`` (B,) frames, by default T."""
        frames, _ = self.frontend(stack_frames(features), self.frontend.initial_state(len(features)))
        if frames.shape[1] == 0:
            return frames
        lengths = torch.full_like(frames[:, 0, 0], frames.shape[1], dtype=torch.long) if lengths is None else lengths
        return self.emformer(frames, lengths=lengths)[0]

    def initial_state(self, batch: int = 1) -> EncoderState:
        """Return the state of ``batch`` streams before their first feature frame."""
        emformer = self.emformer.initial_state(batch)
        like = emformer.layers[0].key_value
        return EncoderState(
            features=like.new_zeros(batch, 0, self.input_size),
            quietest=Quietest(like.new_zeros(batch, self.input_size), like.new_full((batch,), math.inf)),
            frontend=self.frontend.initial_state(batch),
            frames=like.new_zeros(batch, 0, self.config.dim),
            emformer=emformer,
        )

    def push(
        self,
        features: Tensor,
        state: EncoderState,
        final: bool = False,
        tail: int = 0,
        right_context: int | None = None,
    ) -> tuple[Tensor, EncoderState]:
        """Continue B streams; see :class:`StreamEncoder`.  Silence repeats the stream's quietest feature frame."""
        segment = self.config.segment
        if segment is None:
            if not final:
                raise ValueError("an encoder with segment null takes whole utterances: push all of it, final")
            features, _ = self._ended(features, state, tail)
            return self._whole(features), self.initial_state(state.batch)
        right = self.config.right_context if right_context is None else right_context
        count = None  # frames that come out: all that are ready
        if final:
            features, silence = self._ended(features, state, tail)
            state = dataclasses.replace(state, features=features[:, :0])
            count = state.frames.shape[1] + features.shape[1] // timeline.STACK
            wanted = -(-count // segment) * segment + right
            features = torch.cat([features, silence.expand(-1, timeline.STACK * (wanted - count), -1)], dim=1)
        outputs = []
        for part in features.split(self.config.block_segments * segment * timeline.STACK, dim=1):
            ys, state = self._push_block(part, state, segment, right)
            outputs.append(ys)
        return torch.cat(outputs, dim=1)[:, :count], self.initial_state(state.batch) if final else state

    @staticmethod
    def _ended(features: Tensor, state: EncoderState, tail: int) -> tuple[Tensor, Tensor]:
        """Return the feature frames (B, 4 t, M) that streams end with, and their silence (B, 1, M).

        Args:
            features: (B, f, M), f >= 0, the last ones.
            state: of the B streams.
            tail: frames of silence that follow.
        """
        features = torch.cat([state.features.to(features), features], dim=1)
        whole = features.shape[1] // timeline.STACK * timeline.STACK
        features = features[:, : None if tail else whole]
        silence = state.quietest.after(features).frame[:, None].to(features)
        missing = whole + timeline.STACK * tail - features.shape[1]
        return torch.cat([features, silence.expand(-1, missing, -1)], dim=1), silence

    def _push_block(
        self, features: Tensor, state: EncoderState, segment: int, right: int
    ) -> tuple[Tensor, EncoderState]:
        """Continue B streams by one block; return its frames (B, t, D) and the next state.

        Args:
            features: (B, f, M), f >= 0.
            state: of the B streams.
            segment: frames S of a segment.
            right: frames R after each.
        """
        features = torch.cat([state.features.to(features), features], dim=1)
        stacked = stack_frames(features)
        used = stacked.shape[1] * timeline.STACK
        frames, frontend = self.frontend(stacked, state.frontend)
        frames = torch.cat([state.frames.to(frames), frames], dim=1)
        ready = (frames.shape[1] - right) // segment * segment
        emformer, ys = state.emformer, frames[:, :0]
        if ready > 0:
            ys, emformer = self.emformer(frames[:, : ready + right], emformer, right_context=right)
        return ys, EncoderState(
            features=_last(features, features.shape[1] - used),
            quietest=state.quietest.after(features[:, :used]),
            frontend=frontend,
            frames=_last(frames, frames.shape[1] - max(ready, 0)),
            emformer=emformer,
        )
