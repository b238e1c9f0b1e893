"""Task of the recogniser."""

from espnet2.train.class_choices import ClassChoices

from espnet_speechllm_xl.llm import Decoder
from espnet_speechllm_xl.model import SpeechLLMXL
from espnet_speechllm_xl.tasks.chunkwise import ChunkwiseTask


class SpeechLLMXLTask(ChunkwiseTask):
    """SpeechLLM-XL (arXiv 2410.03752)."""

    name = "speechllm_xl"
    model_class = SpeechLLMXL
    decoder_choices = ClassChoices("decoder", classes={"llm": Decoder}, default="llm")


if __name__ == "__main__":
    SpeechLLMXLTask.main()
