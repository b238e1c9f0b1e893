"""Task of the CTC-prompt-LM, a baseline."""

from espnet_speechllm_xl.baselines.ctc_prompt_lm import CTCPromptLM
from espnet_speechllm_xl.config import PromptConfig
from espnet_speechllm_xl.tasks.chunkwise import ChunkwiseTask
from espnet_speechllm_xl.tasks.speechllm_xl import SpeechLLMXLTask


class CTCPromptLMTask(ChunkwiseTask):
    """Encoder, CTC prompts, LM (arXiv 2406.16107); data, LM and searches are those of the recogniser."""

    name = "ctc_prompt_lm"
    sections = {**ChunkwiseTask.sections, "prompt_conf": PromptConfig}
    model_class = CTCPromptLM
    model_sections = (*ChunkwiseTask.model_sections, "prompt_conf")
    decoder_choices = SpeechLLMXLTask.decoder_choices


if __name__ == "__main__":
    CTCPromptLMTask.main()
