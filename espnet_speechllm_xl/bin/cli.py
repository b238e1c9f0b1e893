"""``speechllm-xl COMMAND``: finds the command and runs it; nothing heavy is imported before its arguments are known."""

import argparse
import atexit
import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from espnet_speechllm_xl import __version__
from espnet_speechllm_xl.bin import guard

COMMANDS = {
    "data": "check, format and join Kaldi directories and dumps",
    "tokens": "train a sentencepiece tokenizer, or take a Hugging Face one",
    "train": "train SpeechLLM-XL (ESPnet options)",
    "train-aligner": "train the CTC aligner (ESPnet options)",
    "doubts": "name signs that what follows from a training is in vain",
    "align": "force-align a dump set, or take word times from a CTM",
    "align-report": "compare an aligned set with reference word times, and plot a few utterances",
    "decode": "decode a dump set",
    "transcribe": "transcribe audio files",
    "stream": "live text from a file, a pipe or a microphone",
    "latency": "emission delay, TTFS, speed and accuracy of streams, by chunk size",
    "serve": "live streams over WebSocket, whole files over HTTP",
    "load-test": "how many live streams a server keeps up with, and how late their text is",
    "score": "WER, CER, TER and RESULTS.md",
    "compare": "error rates of decoded sets with confidence intervals, and their differences",
    "border-report": "errors at the boundaries of chunks, or what a model thinks of the words there",
    "robustness": "WER at other levels, and of audio that is cut where its last word ends",
    "nonspeech": "words that streams write where there is no speech, and endpoints that cut sentences or come late",
    "endless": "run one stream for hours: memory, time and text must stay the same",
    "bench": "times of the recogniser's parts, beside floors, peers and another checkout",
    "tables": "train and decode what the paper's tables need on a corpus, and write TABLES.md",
    "pack": "make one file of a trained model",
    "llm": "fetch, convert, describe and merge pretrained language models",
}
JUDGES_OF_DATA = ("data", "align-report", "border-report")  # unusable data is a failed input, not wrong use
UNTIDY = ("train", "train-aligner", "tables")  # the processes that they start have to end by themselves


def run() -> NoReturn:
    """Run the command line of this process, and end the process with the exit code."""
    code = main()
    busy = any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate())
    if busy or sys.argv[1] in UNTIDY:
        sys.exit(code)
    # After these functions Python would free every object, and torch's libraries theirs: half a second, for nothing.
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # the command has its exit code already
        sys.stdout.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, see ``guard.EXIT_CODES``.

    Raises:
        SystemExit: the arguments are wrong (2), or only ask for help (0).
    """
    argv = sys.argv[1:] if argv is None else argv
    # Before torch loads.  Threads wait for one another by spinning: for ever, two jobs on the same cores run ten times
    # slower; not at all, two threads train no faster than one.  About 0.1 ms keeps nearly all of the speed.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # A beam's caches are copied every step: with huge pages decoding is up to 1.6 times faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    name = next((word for word in argv if not word.startswith("-")), "")
    if argv and argv[0] in ("train", "train-aligner"):  # their options are ESPnet's
        from espnet_speechllm_xl.bin import train

        return _run(lambda: train.main(name, list(argv[1:])), name)
    parser = argparse.ArgumentParser(
        prog="speechllm-xl",
        description="Streaming decoder-only speech recognition (SpeechLLM-XL).",
        epilog=guard.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module = None
    for command, text in COMMANDS.items():
        subparser = subparsers.add_parser(command, help=text, description=text)
        if command == name:
            module = importlib.import_module(f"espnet_speechllm_xl.bin.{command.replace('-', '_')}")
            module.add_arguments(subparser)
    args = parser.parse_args(argv)
    args.argv = argv  # as typed, for reports
    assert module is not None, "the parser knows no other command"
    logging.basicConfig(format=f"speechllm-xl {name}: %(message)s")  # remarks look like the lines of the commands
    return _run(lambda: module.main(args), name)


def _run(command: Callable[[], int | None], name: str) -> int:
    def checked() -> int | None:
        from espnet_speechllm_xl.training.compat import check_stack

        check_stack()
        return command()

    bad_input = guard.SOME_FAILED if name in JUDGES_OF_DATA else guard.WRONG_USE
    return guard.run(checked, "speechllm-xl: error", bad_input, tidy=name not in UNTIDY)


if __name__ == "__main__":
    run()
