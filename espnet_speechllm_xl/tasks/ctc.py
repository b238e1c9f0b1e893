"""Task of the CTC model: the aligner, and a baseline."""

import argparse

from espnet2.train.class_choices import ClassChoices
from espnet2.utils.nested_dict_action import NestedDictAction

from espnet_speechllm_xl.baselines.ctc_search import SEARCHES, transcribe
from espnet_speechllm_xl.ctc import CTCModel
from espnet_speechllm_xl.tasks.common import SpeechTask


class CTCTask(SpeechTask):
    """Encoder and CTC head."""

    name = "ctc"
    criterion = ("valid", "ter", "min")
    search_choices = ClassChoices("search", SEARCHES, default="greedy")
    transcribe = staticmethod(transcribe)

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        super().add_task_arguments(parser)
        parser.add_argument("--ctc_conf", action=NestedDictAction, default={"dropout": 0.1}, help="CTC head: dropout")

    @classmethod
    def training_settings(cls, args):
        """With those of the CTC head."""
        return {**super().training_settings(args), "ctc_conf": args.ctc_conf}

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> CTCModel:
        """The model of ``args``."""
        acoustic = cls.build_acoustic(args)
        return CTCModel(acoustic, len(args.token_list), **args.ctc_conf)


if __name__ == "__main__":
    CTCTask.main()
