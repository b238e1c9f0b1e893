"""Task of the CTC model: the aligner, and a baseline."""

import argparse

from espnet2.train.class_choices import ClassChoices

from espnet_speechllm_xl.baselines.ctc_search import SEARCHES, transcribe
from espnet_speechllm_xl.config import CTCConfig
from espnet_speechllm_xl.ctc import CTCModel
from espnet_speechllm_xl.tasks.common import SpeechTask


class CTCTask(SpeechTask):
    """Encoder and CTC head."""

    name = "ctc"
    criterion = ("valid", "ter", "min")
    sections = {**SpeechTask.sections, "ctc_conf": CTCConfig}
    search_choices = ClassChoices("search", SEARCHES, default="greedy")
    transcribe = staticmethod(transcribe)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> CTCModel:
        """The model of ``args``."""
        acoustic = cls.build_acoustic(args)
        return CTCModel(acoustic, len(args.token_list), cls.section(args, "ctc_conf").dropout)


if __name__ == "__main__":
    CTCTask.main()
