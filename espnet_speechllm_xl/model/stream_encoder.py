"""The contract of an encoder: feature frames (100 Hz) to frames (25 Hz), for whole utterances and for streams.

An encoder is a class in a file of this room, named in ``encoder_choices`` of systems/base_system.py.  Its settings are
in config.py.

Shape legend: ``B`` batch, ``F``, ``f`` feature frames, ``M`` mel bands, ``T``, ``t`` frames, ``D`` size of a frame.
"""

import abc
from typing import Generic, TypeVar

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor

from espnet_speechllm_xl.config import EncoderTiming
from espnet_speechllm_xl.model.stream_state import BufferingStreams

S = TypeVar("S", bound=BufferingStreams)


class StreamEncoder(AbsEncoder, Generic[S]):
    """An encoder whose batches, single utterances and streams give the same frames.

    Attributes:
        config: its settings, a dataclass, which becomes ``encoder_conf`` of config.yaml.
    """

    config: EncoderTiming

    @abc.abstractmethod
    def initial_state(self, batch: int = 1) -> S:
        """Return the state of ``batch`` streams before their first feature frame."""

    @abc.abstractmethod
    def push(
        self,
        features: Tensor,
        state: S,
        final: bool = False,
        tail: int = 0,
        right_context: int | None = None,
    ) -> tuple[Tensor, S]:
        """Continue B streams; return the frames (B, t, D), t >= 0, that became complete, and the next state.

        After ``final`` the next state is an initial state.

        Args:
            features: (B, f, M) normalised features, any f >= 0.
            state: of the B streams.
            final: the streams end here, and all remaining complete frames come out; without a tail an incomplete stack
                of 4 feature frames is dropped.
            tail: when final, frames of silence behind them.
            right_context: frames of look-ahead, in all calls of a stream the same; None: the configuration's.

        Raises:
            ValueError: the encoder takes whole utterances only, and ``final`` is False.
        """

    @abc.abstractmethod
    def forward(
        self,
        xs_pad: Tensor,
        ilens: Tensor,
        prev_states: None = None,
        tail: int = 0,
        right_context: int | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        """Encode whole utterances (ESPnet's interface).

        Args:
            xs_pad: (B, F, M) normalised features; the padding beyond an item's length has no influence.
            ilens: (B,) feature frames of each item.
            prev_states: None; a stream uses :meth:`push`.
            tail: frames of silence behind each item that has a frame, as in :meth:`push`.
            right_context: frames of look-ahead; None: the configuration's.

        Returns:
            ys: (B, T, D), T the frames of the longest item.  Frames beyond an item's own length are finite, without
                meaning.
            olens: (B,) frames, ``ilens // 4`` and the tail.
            None: in the place of ESPnet's states.
        """
