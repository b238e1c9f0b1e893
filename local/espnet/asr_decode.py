"""ESPnet's ``asr_inference`` or ``asr_inference_streaming``, timed.

    python asr_decode.py {asr_inference,asr_inference_streaming} OPTIONS OF THAT COMMAND

``speed.json`` beside its output says how long the calls of its ``Speech2Text`` took and how much audio they got.
"""

import functools
import importlib
import json
import sys
import time
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.files import DamagedWeights, atomic_write, naming, read_weights
from espnet_speechllm_xl.training import compat

CLASSES = {"asr_inference": "Speech2Text", "asr_inference_streaming": "Speech2TextStreaming"}


class Stopwatch:
    """Seconds spent in, and samples given to, the calls of the methods that it wraps."""

    def __init__(self):
        self.seconds = 0.0
        self.samples = 0

    def wrap(self, call):
        """A method (self, speech (n,), ...) that does what ``call`` does and is timed."""

        @functools.wraps(call)
        def timed(speech2text, speech, *args, **kwargs):
            start = time.perf_counter()
            try:
                return call(speech2text, speech, *args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self.samples += len(speech)

        return timed


def main(argv):
    """Decode; ``argv`` is the command's name and its options."""
    if not argv or argv[0] not in CLASSES:
        sys.exit(f"asr_decode: name one of {', '.join(CLASSES)} first")
    with compat.without_g2p():
        command = importlib.import_module(f"espnet2.bin.{argv[0]}")
    args = command.get_parser().parse_args(argv[1:])
    try:
        read_weights(args.asr_model_file)  # of a damaged file ESPnet would ask whether to load it unsafely
    except DamagedWeights as error:
        sys.exit(f"asr_decode: error: {args.asr_model_file} does not load ({error}): run the train stage again")
    out = Path(args.output_dir)
    watch, decoder = Stopwatch(), getattr(command, CLASSES[argv[0]])
    decoder.__call__ = watch.wrap(decoder.__call__)
    with naming(out):  # ESPnet's own files there
        command.main(argv[1:])
    with atomic_write(out / "speed.json") as stream:
        json.dump({"seconds": watch.seconds, "samples": watch.samples}, stream)


if __name__ == "__main__":
    sys.exit(guard.run(lambda: main(sys.argv[1:]), "asr_decode: error", bad_input=1))
