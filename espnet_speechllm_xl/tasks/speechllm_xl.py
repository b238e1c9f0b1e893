"""Task of the recogniser."""

import argparse
import dataclasses

from espnet2.train.class_choices import ClassChoices

from espnet_speechllm_xl.config import ChunkingConfig, LossConfig, SearchConfig
from espnet_speechllm_xl.llm import Decoder
from espnet_speechllm_xl.model import SpeechLLMXL
from espnet_speechllm_xl.search import AlignmentSync, ChunkSync
from espnet_speechllm_xl.tasks.common import SpeechTask, encoder_choices

decoder_choices = ClassChoices("decoder", classes={"llm": Decoder}, default="llm")
search_choices = ClassChoices(
    "search", classes={"greedy": ChunkSync, "chunk_sync": ChunkSync, "alsd": AlignmentSync}, default="alsd"
)


class SpeechLLMXLTask(SpeechTask):
    """SpeechLLM-XL (arXiv 2410.03752)."""

    name = "speechllm_xl"
    criterion = ("valid", "acc_text", "max")
    sections = {**SpeechTask.sections, "chunking_conf": ChunkingConfig, "loss_conf": LossConfig}
    class_choices_list = [encoder_choices, decoder_choices, search_choices]

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        super().add_task_arguments(parser)
        search = dataclasses.asdict(SearchConfig())
        del search["method"]  # that is --search
        parser.set_defaults(search_conf=search)

    @classmethod
    def required_data_names(cls, train=True, inference=False):
        """Training needs the alignment."""
        return ("speech",) if inference else ("speech", "text", "alignment")

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> SpeechLLMXL:
        """The model of ``args``."""
        acoustic = cls.build_acoustic(args)
        decoder = decoder_choices.get_class(args.decoder)(len(args.token_list), **args.decoder_conf)
        args.decoder_conf = dataclasses.asdict(decoder.config)
        return SpeechLLMXL(acoustic, decoder, cls.section(args, "chunking_conf"), cls.section(args, "loss_conf"))


if __name__ == "__main__":
    SpeechLLMXLTask.main()
