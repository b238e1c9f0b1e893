"""``stream``: live text from a file, from PCM on standard input, or from a microphone."""

import argparse
import contextlib
import math
import signal
import sys
import types
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from espnet_speechllm_xl.bin.options import (
    add_channel_argument,
    add_config_arguments,
    add_model_arguments,
    add_phrases_argument,
    add_prompt_argument,
    load_settings,
    stream_settings,
)
from espnet_speechllm_xl.config import StreamConfig
from espnet_speechllm_xl.decoding.live_output import WRITERS
from espnet_speechllm_xl.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="audio file, - for raw PCM on standard input, or microphone")
    parser.add_argument("--format", default="terminal", choices=sorted(WRITERS), help="default %(default)s")
    parser.add_argument("--realtime", action="store_true", help="hear a file at the pace at which it was spoken")
    parser.add_argument("--rate", type=int, metavar="HZ", help="of raw PCM (default: the model's)")
    parser.add_argument("--encoding", choices=["s16", "f32"], help="of raw PCM, mono (default s16)")
    add_channel_argument(parser)
    parser.add_argument("--microphone-device", metavar="NAME", help="as sounddevice lists them (default: the system's)")
    add_prompt_argument(parser)
    add_phrases_argument(parser)
    add_config_arguments(parser, StreamConfig)
    add_model_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Stream to the end of the audio or to Ctrl-C; returns 0, or 1 when it breaks: what came before is written."""
    from espnet_speechllm_xl.corpus.audio import AudioError
    from espnet_speechllm_xl.decoding.phrases import read_phrases
    from espnet_speechllm_xl.inference import Speech2Text

    settings = stream_settings(args)
    if args.source != "-" and (args.rate, args.encoding) != (None, None):
        raise UserError("--rate and --encoding are of raw PCM on standard input (-): a file says its own")
    if args.source in ("-", "microphone") and args.channel is not None:
        raise UserError(f"--channel is of a file: {args.source} is mono")
    if math.isinf(settings["endpoint_length"]) and math.isinf(settings["endpoint_silence"]):
        raise UserError("--endpoint-silence and --endpoint-length are both inf: one must end the lines of the output")
    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    phrases = read_phrases(args.phrases) if args.phrases else None
    stream = speech2text.stream(prompt=args.prompt, phrases=phrases, **settings)
    any_block, broken = False, None
    remarks: dict[str, str] = {}
    with _Interrupt() as interrupt, contextlib.closing(_blocks(args, speech2text.sample_rate, remarks)) as blocks:
        with WRITERS[args.format]() as writer:
            try:
                while (block := interrupt.wait_for(blocks)) is not None:
                    writer.write(stream.push(block), stream.seconds)
                    any_block = True
            except AudioError as error:
                if not any_block:
                    raise
                broken = error
            writer.write(stream.close(), stream.seconds)
    if stream.capped:
        _say(f"{stream.capped} chunks hit the token cap")
    for text in remarks.values():
        _say(text)
    if broken:
        _say(f"after {stream.seconds:.2f} s: {broken}")
    return 1 if broken else 0


def _say(text: str) -> None:
    print(f"speechllm-xl stream: {text}", file=sys.stderr)


def _blocks(
    args: argparse.Namespace, sample_rate: int, remarks: dict[str, str]
) -> "Generator[np.ndarray, None, None]":
    """Return the source of the audio: blocks (N,) of samples at the model's rate."""
    from espnet_speechllm_xl.corpus import live_audio

    if args.source == "microphone":
        return live_audio.of_microphone(args.microphone_device, sample_rate, remarks)
    if args.source == "-":
        rate = sample_rate if args.rate is None else args.rate
        return live_audio.of_standard_input(args.encoding or "s16", rate, sample_rate, remarks)
    return live_audio.of_file(args.source, sample_rate, remarks, args.channel, args.realtime)


class _Interrupt:
    """Ctrl-C and SIGTERM end the audio: at once while waiting for it, after the chunk while decoding one."""

    def __init__(self) -> None:
        self._waiting = self._stopped = False

    def __enter__(self) -> "_Interrupt":
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait_for(self, blocks: "Iterator[np.ndarray]") -> "np.ndarray | None":
        """Return the next block, or None at the end of the audio."""
        try:
            self._waiting = True
            return None if self._stopped else next(blocks, None)
        except KeyboardInterrupt:
            return None
        finally:
            self._waiting = False

    def _handle(self, _number: int, _frame: types.FrameType | None) -> None:
        if self._waiting or self._stopped:  # the second one while decoding: leave at once
            raise KeyboardInterrupt
        self._stopped = True
