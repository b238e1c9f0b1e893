"""SpeechLLM-XL (arXiv 2410.03752): the recogniser, and its ESPnet task."""

from espnet2.train.class_choices import ClassChoices
from torch import Tensor

from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.model.sequence import build_sequence, gather_inputs
from espnet_speechllm_xl.systems.base_model import ChunkwiseModel
from espnet_speechllm_xl.systems.base_task import ChunkwiseTask


class SpeechLLMXL(ChunkwiseModel):
    """SpeechLLM-XL (arXiv 2410.03752); its decoder is a :class:`~espnet_speechllm_xl.model.llm.Decoder`."""

    loss_name = "loss_llm"
    decoder: Decoder

    def decode_aligned(
        self,
        frames: Tensor,
        counts: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        ends: Tensor,
        chunking: ChunkingConfig,
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states and targets; see :class:`ChunkwiseModel`; ``$`` is a target only."""
        sequence = build_sequence(counts, tokens, token_lengths, ends, chunking, self.decoder.eoc)
        inputs = gather_inputs(sequence, self.projection(frames), self.decoder.embed(tokens))
        return self.decoder(inputs, sequence.position, sequence.chunk_id, chunking.context), sequence.target


class SpeechLLMXLTask(ChunkwiseTask):
    """SpeechLLM-XL (arXiv 2410.03752)."""

    name = "speechllm_xl"
    model_class = SpeechLLMXL
    decoder_choices = ClassChoices("decoder", classes={"llm": Decoder}, default="llm")


if __name__ == "__main__":
    SpeechLLMXLTask.main()
