"""SpeechLLM-XL (arXiv 2410.03752): the recogniser."""

from torch import Tensor

from espnet_speechllm_xl.config import ChunkingConfig, LossConfig, ProjectionConfig, TextPromptConfig
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.model.sequence import build_sequence, gather_inputs, with_prompts
from espnet_speechllm_xl.systems.base_model import ChunkwiseModel
from espnet_speechllm_xl.systems.base_system import Choices, ChunkwiseSystem


class SpeechLLMXL(ChunkwiseModel):
    """SpeechLLM-XL (arXiv 2410.03752); its decoder is a :class:`~espnet_speechllm_xl.model.llm.Decoder`.

    Args:
        acoustic: see :class:`ChunkwiseModel`.
        decoder: see :class:`ChunkwiseModel`.
        chunking: see :class:`ChunkwiseModel`.
        loss: see :class:`ChunkwiseModel`.
        projection: see :class:`ChunkwiseModel`.
        prompt: how far prompts reach; None: there are none.
    """

    loss_name = "loss_llm"
    decoder: Decoder

    def __init__(
        self,
        acoustic: Acoustic,
        decoder: Decoder,
        chunking: ChunkingConfig,
        loss: LossConfig,
        projection: ProjectionConfig | None = None,
        prompt: TextPromptConfig | None = None,
    ) -> None:
        super().__init__(acoustic, decoder, chunking, loss, projection)
        decoder.prompt_distance = prompt.distance if prompt is not None and prompt.probability else None

    def decode_aligned(
        self,
        frames: Tensor,
        counts: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        ends: Tensor,
        chunking: ChunkingConfig,
        prompts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states and targets; see :class:`ChunkwiseModel`; ``$`` is a target only."""
        eoc, reduction = self.decoder.eoc, self.projection_config.reduction
        sequence = build_sequence(counts, tokens, token_lengths, ends, chunking, eoc, reduction, prompts)
        if prompts is not None:
            tokens = with_prompts(prompts, tokens)
        inputs = gather_inputs(sequence, self.project(frames, counts, chunking.chunk), self.decoder.embed(tokens))
        return self.decoder(inputs, sequence.position, sequence.chunk_id, chunking.context), sequence.target


class SpeechLLMXLSystem(ChunkwiseSystem):
    """SpeechLLM-XL (arXiv 2410.03752)."""

    name = "speechllm_xl"
    sections = {
        **ChunkwiseSystem.sections,
        "projection_conf": ProjectionConfig,
        "text_prompt_conf": TextPromptConfig,
    }
    model_class = SpeechLLMXL
    model_sections = (*ChunkwiseSystem.model_sections, "projection_conf", "text_prompt_conf")
    decoder_choices = Choices("decoder", {"llm": Decoder}, default="llm")


__getattr__ = SpeechLLMXLSystem.task_by_name  # SpeechLLMXLTask

if __name__ == "__main__":
    SpeechLLMXLSystem.task().main()
