"""Task of the transducer, a baseline."""

import argparse

from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr.transducer.beam_search_transducer import BeamSearchTransducer
from espnet2.asr_transducer.joint_network import JointNetwork
from espnet2.train.class_choices import ClassChoices
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction

from espnet_speechllm_xl.baselines.transducer import TransducerModel, transcribe
from espnet_speechllm_xl.config import LossConfig, check_names
from espnet_speechllm_xl.tasks.common import SpeechTask, encoder_choices

decoder_choices = ClassChoices("decoder", classes={"transducer": TransducerDecoder}, default="transducer")
SEARCHES = ("greedy", "default", "alsd", "tsd", "nsc", "maes")  # ESPnet's


class TransducerTask(SpeechTask):
    """Encoder, label decoder, joint network."""

    name = "transducer"
    criterion = ("valid", "loss", "min")
    sections = {**SpeechTask.sections, "loss_conf": LossConfig}
    class_choices_list = [encoder_choices, decoder_choices]
    search_choices = ClassChoices("search", dict.fromkeys(SEARCHES, BeamSearchTransducer), default="default")
    transcribe = staticmethod(transcribe)
    word_times = False

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        super().add_task_arguments(parser)
        parser.add_argument(
            "--joint_network_conf",
            action=NestedDictAction,
            default=get_default_kwargs(JointNetwork),
            help="ESPnet's JointNetwork: joint_space_size, ...",
        )

    @classmethod
    def training_settings(cls, args):
        """With those of the joint network."""
        return {**super().training_settings(args), "joint_network_conf": args.joint_network_conf}

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> TransducerModel:
        """The model of ``args``."""
        acoustic = cls.build_acoustic(args)
        classes = len(args.token_list) + 1
        decoder_class = decoder_choices.get_class(args.decoder)
        for section, built in (("decoder_conf", decoder_class), ("joint_network_conf", JointNetwork)):
            check_names(getattr(args, section), list(get_default_kwargs(built)), section)
        decoder = decoder_class(classes, **args.decoder_conf)
        joint = JointNetwork(classes, acoustic.encoder.output_size(), decoder.dunits, **args.joint_network_conf)
        return TransducerModel(acoustic, decoder, joint, cls.section(args, "loss_conf"))


if __name__ == "__main__":
    TransducerTask.main()
