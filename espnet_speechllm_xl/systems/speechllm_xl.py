"""SpeechLLM-XL (arXiv 2410.03752): the recogniser."""

from torch import Tensor

from espnet_speechllm_xl.config import ChunkingConfig, ProjectionConfig
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.model.sequence import build_sequence, gather_inputs
from espnet_speechllm_xl.systems.base_model import ChunkwiseModel
from espnet_speechllm_xl.systems.base_system import Choices, ChunkwiseSystem


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
        reduction = self.projection_config.reduction
        sequence = build_sequence(counts, tokens, token_lengths, ends, chunking, self.decoder.eoc, reduction)
        inputs = gather_inputs(sequence, self.project(frames, counts, chunking.chunk), self.decoder.embed(tokens))
        return self.decoder(inputs, sequence.position, sequence.chunk_id, chunking.context), sequence.target


class SpeechLLMXLSystem(ChunkwiseSystem):
    """SpeechLLM-XL (arXiv 2410.03752)."""

    name = "speechllm_xl"
    sections = {**ChunkwiseSystem.sections, "projection_conf": ProjectionConfig}
    model_class = SpeechLLMXL
    model_sections = (*ChunkwiseSystem.model_sections, "projection_conf")
    decoder_choices = Choices("decoder", {"llm": Decoder}, default="llm")


__getattr__ = SpeechLLMXLSystem.task_by_name  # SpeechLLMXLTask

if __name__ == "__main__":
    SpeechLLMXLSystem.task().main()
