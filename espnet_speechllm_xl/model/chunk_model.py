"""The contracts between decoding and a model that writes text chunk by chunk.

Shape legend: ``B`` batch, ``T`` frames, ``U`` tokens, ``L`` decoder sequence, ``c`` frames of a chunk, ``E`` size of an
encoder frame, ``D`` size of a decoder input.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor, nn

from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.decoder_steps import ChunkDecoder, TextDecoder


class ChunkModel(Protocol):
    """The contract of decoding with a model: SpeechLLM-XL, baselines that write chunk by chunk, joint CTC scoring."""

    @property
    def acoustic(self) -> Acoustic:
        """Return the acoustic front, from samples to encoder frames."""

    @property
    def chunking(self) -> ChunkingConfig:
        """Return the chunks of training, which are the default of decoding."""

    @property
    def projection(self) -> Callable[[Tensor], Tensor]:
        """Return the function from the encoder frames (c, E) of a chunk to decoder inputs (q, D); q is c or less."""

    @property
    def decoder(self) -> ChunkDecoder:
        """Return the decoder that computes the requests of a search."""

    @property
    def ctc(self) -> CTCHead | None:
        """Return the CTC head that tells when tokens were said; None where training had none."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights; the first tells device and type."""


class AlignedModel(ChunkModel, Protocol):
    """A model that can be given its text: its decoder reads aligned tokens as in training."""

    @property
    def decoder(self) -> TextDecoder:
        """Return the decoder, which can also be trained."""

    def decode_aligned(
        self,
        frames: Tensor,
        counts: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        ends: Tensor,
        chunking: ChunkingConfig,
    ) -> tuple[Tensor, Tensor]:
        """Return the decoder's hidden states (B, L, D) and targets (B, L) of aligned text; ``IGNORE``: no target.

        Args:
            frames: (B, T, E)
            counts: (B,) frames.
            tokens: (B, U) token ids, any padding.
            token_lengths: (B,)
            ends: (B, U) last aligned frame of each token.
            chunking: of this batch.
        """
