"""``speechllm-xl COMMAND``: finds the command; nothing heavy is imported before its arguments are known."""

import argparse
import importlib
import logging
import os
import sys

from espnet_speechllm_xl import __version__

COMMANDS = {
    "train": "train SpeechLLM-XL (ESPnet options)",
    "train-aligner": "train the CTC aligner (ESPnet options)",
    "align": "force-align a dump set, or take word times from a CTM",
    "decode": "decode a dump set",
    "transcribe": "transcribe audio files",
    "stream": "live text from a file, a pipe or a microphone",
    "latency": "emission delay, speed and accuracy of streams, by chunk size",
    "serve": "live streams over WebSocket, whole files over HTTP",
    "score": "WER, CER, TER and RESULTS.md",
    "compare": "error rates of decoded sets with confidence intervals, and their differences",
    "robustness": "WER at other levels, and of audio that is cut where its last word ends",
    "endless": "run one stream for hours: memory, time and text must stay the same",
    "pack": "make one file of a trained model",
}


def main(argv=None):
    """Run a command; returns its exit code: 0 done, 1 some inputs failed, 2 wrong use or a full disk, 3 a bug."""
    argv = sys.argv[1:] if argv is None else argv
    # Before torch loads.  Threads wait for one another by spinning: for ever, two jobs on the same cores run ten times
    # slower; not at all, two threads train no faster than one.  About 0.1 ms keeps nearly all of the speed.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # A beam's caches are copied every step: with huge pages decoding is up to 1.6 times faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    name = argv[0] if argv else None
    if name in ("train", "train-aligner"):
        from espnet_speechllm_xl.bin import train

        return _run(lambda: train.main(name, argv[1:]), tidy=False)
    parser = argparse.ArgumentParser(
        prog="speechllm-xl", description="Streaming decoder-only speech recognition (SpeechLLM-XL)."
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module = None
    for command, text in COMMANDS.items():
        subparser = subparsers.add_parser(command, help=text, description=text)
        if command == name:
            module = importlib.import_module(f"espnet_speechllm_xl.bin.{command}")
            module.add_arguments(subparser)
    args = parser.parse_args(argv)
    args.argv = argv  # as typed, for reports
    logging.basicConfig(format=f"speechllm-xl {name}: %(message)s")  # remarks look like what the commands say
    return _run(lambda: module.main(args))


def _run(command, tidy=True):
    from espnet_speechllm_xl.bin import guard

    def checked():
        from espnet_speechllm_xl.training.compat import check_stack

        check_stack()
        return command()

    return guard.run(checked, "speechllm-xl: error", tidy=tidy)


if __name__ == "__main__":
    sys.exit(main())
