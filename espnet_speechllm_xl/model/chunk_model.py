"""The contract between a stream and a model that writes text chunk by chunk."""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor, nn

from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.model.acoustic_encoder import Acoustic
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.decoder_steps import ChunkDecoder


class ChunkModel(Protocol):
    """What decoding asks of a model: SpeechLLM-XL, the baselines that write chunk by chunk, joint CTC scoring.

    Shape legend: ``c`` frames of a chunk, ``E`` size of an encoder frame, ``D`` size of a decoder input.
    """

    @property
    def acoustic(self) -> Acoustic:
        """Return what turns samples into encoder frames."""

    @property
    def chunking(self) -> ChunkingConfig:
        """Return the chunks of training, which are the default of decoding."""

    @property
    def projection(self) -> Callable[[Tensor], Tensor]:
        """Return what turns the encoder frames (c, E) of a chunk into what the decoder takes (c, D)."""

    @property
    def decoder(self) -> ChunkDecoder:
        """Return what a search's requests go to."""

    @property
    def ctc(self) -> CTCHead | None:
        """Return the CTC head that tells when tokens were said; None where training had none."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights; the first tells device and type."""
