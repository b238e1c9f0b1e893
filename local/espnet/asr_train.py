"""ESPnet's ``asr_train`` with the mended trainer: models, losses, data and options are ESPnet's own.

Checkpoints appear whole, ``<criterion>.ave.pth`` is the mean of the n best epochs, a training is resumed only with the
settings that it began with, and an epoch is one line of output (``espnet_speechllm_xl.training.trainer``).
"""

import sys
from pathlib import Path

from espnet_speechllm_xl.training import compat

with compat.without_g2p():
    from espnet2.tasks.asr import ASRTask

from espnet2.utils.types import humanfriendly_parse_size_or_none

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.training.checks import TRAINING_SETTINGS, check_rate, read_token_list
from espnet_speechllm_xl.training.trainer import Trainer, keep_settings

SECTIONS = ("model_conf", "ctc_conf", "joint_net_conf", "preprocessor_conf")


class MendedASRTask(ASRTask):
    """ESPnet's task with our trainer."""

    trainer = Trainer

    @classmethod
    def main_worker(cls, args):
        """ESPnet's, but no training on audio at another rate, and no resuming with other settings."""
        rate = humanfriendly_parse_size_or_none(str((args.frontend_conf or {}).get("fs", "none")))
        if rate is not None:
            check_rate(args, rate, "frontend_conf fs")
        if not args.collect_stats:
            keep_settings(Path(args.output_dir), training_settings(args), args.resume)
        super().main_worker(args)


def training_settings(args):
    """What the weights after an epoch depend on: ``{name: value}``, a section being one value."""
    names = [*TRAINING_SETTINGS, *SECTIONS, "batch_type", "batch_size"]
    for choices in ASRTask.class_choices_list:
        names += [choices.name, f"{choices.name}_conf"]
    settings = {name: getattr(args, name) for name in names}
    return {**settings, "token_list": read_token_list(args.token_list)}


if __name__ == "__main__":
    sys.exit(guard.run(MendedASRTask.main, "asr_train: error", bad_input=1, tidy=False))
