"""``train`` and ``train-aligner``: ESPnet's training with our tasks."""

import argparse

HELP = """\
usage: speechllm-xl {name} --config FILE --output_dir DIR --train_data_path_and_name_and_type ... [options]

{what}
Options are ESPnet's and the sections of espnet_speechllm_xl/config.py:
  speechllm-xl {name} --print_config        every option with its value, as YAML
  speechllm-xl {name} --espnet-help         every option with its description
A recipe's run.sh calls this with the right files: ./run.sh --stage {stage} --stop-stage {stage}
"""
ABOUT = {
    "train": ("Trains SpeechLLM-XL on aligned speech (the align stage makes it), or --task {tasks}.", "train"),
    "train-aligner": ("Trains the CTC model that aligns transcripts with speech.", "aligner"),
}


def main(name: str, argv: list[str]) -> int:
    """Train by the command ``name`` with its options ``argv``; returns the exit code.

    Raises:
        UserError: an option, a file or a setting cannot be used.
    """
    from espnet_speechllm_xl.systems import SYSTEMS, find_task

    if not argv or argv[0] in ("-h", "--help"):
        what, stage = ABOUT[name]
        print(HELP.format(name=name, what=what.format(tasks=", ".join(list(SYSTEMS)[1:])), stage=stage))
        return 0 if argv else 2
    argv = ["--help" if argument == "--espnet-help" else argument for argument in argv]
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.files import naming

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default="ctc" if name == "train-aligner" else "speechllm_xl")
    parser.add_argument("--output_dir", default="--output_dir")
    known = parser.parse_known_args(argv)[0]
    if known.task not in SYSTEMS:
        raise UserError(f"--task {known.task}: there are {', '.join(SYSTEMS)}")
    with naming(known.output_dir):  # ESPnet's own files there
        find_task(known.task).main(cmd=argv)
    return 0
