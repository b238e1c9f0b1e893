"""What the tasks share whose models write text chunk by chunk: aligned data, chunks, searches, streams."""

import argparse
import dataclasses

from espnet2.train.class_choices import ClassChoices

from espnet_speechllm_xl.config import ChunkingConfig, LossConfig
from espnet_speechllm_xl.search import SEARCHES
from espnet_speechllm_xl.streaming import transcribe
from espnet_speechllm_xl.tasks.common import SpeechTask, encoder_choices


class ChunkwiseTask(SpeechTask):
    """Base of these tasks; a subclass names itself, its model and the decoders that this can have."""

    criterion = ("valid", "acc_text", "max")
    sections = {**SpeechTask.sections, "chunking_conf": ChunkingConfig, "loss_conf": LossConfig}
    search_choices = ClassChoices("search", classes=SEARCHES, default="alsd")
    transcribe = staticmethod(transcribe)
    model_class = None  # called with acoustic front, decoder and these sections
    model_sections = ("chunking_conf", "loss_conf")
    decoder_choices = None  # ClassChoices

    def __init_subclass__(cls):
        cls.class_choices_list = [encoder_choices, cls.decoder_choices]

    @classmethod
    def required_data_names(cls, train=True, inference=False):
        """Training needs the alignment."""
        return ("speech",) if inference else ("speech", "text", "alignment")

    @classmethod
    def build_model(cls, args: argparse.Namespace):
        """The model of ``args``."""
        acoustic = cls.build_acoustic(args)
        decoder = cls.decoder_choices.get_class(args.decoder)(len(args.token_list), **args.decoder_conf)
        args.decoder_conf = dataclasses.asdict(decoder.config)
        return cls.model_class(acoustic, decoder, *(cls.section(args, name) for name in cls.model_sections))
