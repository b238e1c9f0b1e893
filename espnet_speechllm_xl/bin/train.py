"""``train`` and ``train-aligner``: ESPnet's training with our tasks."""

import sys

HELP = """\
usage: speechllm-xl {name} --config FILE --output_dir DIR --train_data_path_and_name_and_type ... [options]

{what}
Options are ESPnet's and the sections of espnet_speechllm_xl/config.py:
  speechllm-xl {name} --print_config        every option with its value, as YAML
  speechllm-xl {name} --espnet-help         every option with its description
A recipe's run.sh calls this with the right files: ./run.sh --stage {stage} --stop-stage {stage}
"""
ABOUT = {
    "train": ("Trains SpeechLLM-XL on aligned speech (the align stage makes it).", "7"),
    "train-aligner": ("Trains the CTC model that aligns transcripts with speech.", "5"),
}


def main(name, argv):
    """Train; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        what, stage = ABOUT[name]
        print(HELP.format(name=name, what=what, stage=stage))
        return 0 if argv else 2
    argv = ["--help" if argument == "--espnet-help" else argument for argument in argv]
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.tasks.ctc import CTCTask
    from espnet_speechllm_xl.tasks.speechllm_xl import SpeechLLMXLTask

    task = {"train": SpeechLLMXLTask, "train-aligner": CTCTask}[name]
    try:
        task.main(cmd=argv)
    except UserError as error:
        print(f"speechllm-xl {name}: error: {error}", file=sys.stderr)
        return 2
    return 0
