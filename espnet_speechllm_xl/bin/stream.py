"""``stream``: live text from a file, from PCM on standard input, or from a microphone."""

import contextlib
import json
import math
import queue
import signal
import sys
import time

from espnet_speechllm_xl.bin.options import (
    add_channel_argument,
    add_config_arguments,
    add_model_arguments,
    load_settings,
    stream_settings,
)
from espnet_speechllm_xl.config import StreamConfig
from espnet_speechllm_xl.errors import UserError

BLOCK_SECONDS = 0.1  # pushed at a time


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="audio file, - for raw PCM on standard input, or microphone")
    parser.add_argument("--format", default="terminal", choices=sorted(WRITERS), help="default %(default)s")
    parser.add_argument("--realtime", action="store_true", help="hear a file at the pace at which it was spoken")
    parser.add_argument("--rate", type=int, metavar="HZ", help="of raw PCM (default: the model's)")
    parser.add_argument("--encoding", choices=["s16", "f32"], help="of raw PCM, mono (default s16)")
    add_channel_argument(parser)
    parser.add_argument("--microphone-device", metavar="NAME", help="as sounddevice lists them (default: the system's)")
    add_config_arguments(parser, StreamConfig)
    add_model_arguments(parser)


def main(args):
    """Stream to the end of the audio or to Ctrl-C; returns 0, or 1 when it breaks: what came before is written."""
    from espnet_speechllm_xl.corpus.audio import AudioError
    from espnet_speechllm_xl.inference import Speech2Text

    settings = stream_settings(args)
    if args.source != "-" and (args.rate, args.encoding) != (None, None):
        raise UserError("--rate and --encoding are of raw PCM on standard input (-): a file says its own")
    if args.source in ("-", "microphone") and args.channel is not None:
        raise UserError(f"--channel is of a file: {args.source} is mono")
    if math.isinf(settings["endpoint_length"]) and math.isinf(settings["endpoint_silence"]):
        raise UserError("--endpoint-silence and --endpoint-length are both inf: one must end the lines of the output")
    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    stream = speech2text.stream(**settings)
    heard, broken, remarks = False, None, {}
    with _Interrupt() as interrupt, contextlib.closing(_blocks(args, speech2text.sample_rate, remarks)) as blocks:
        with WRITERS[args.format]() as writer:
            try:
                while (block := interrupt.wait_for(blocks)) is not None:
                    writer.write(stream.push(block), stream.seconds)
                    heard = True
            except AudioError as error:
                if not heard:
                    raise
                broken = error
            writer.write(stream.close(), stream.seconds)
    if stream.capped:
        print(f"speechllm-xl stream: {stream.capped} chunks hit the token cap", file=sys.stderr)
    for text in remarks.values():
        _remark(text)
    if broken:
        print(f"speechllm-xl stream: after {stream.seconds:.2f} s: {broken}", file=sys.stderr)
    return 1 if broken else 0


class _Interrupt:
    """Ctrl-C and SIGTERM end the audio: at once while waiting for it, after the chunk while decoding one."""

    def __init__(self):
        self._waiting = self._stopped = False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait_for(self, blocks):
        """The next block, or None at the end of the audio."""
        try:
            self._waiting = True
            return None if self._stopped else next(blocks, None)
        except KeyboardInterrupt:
            return None
        finally:
            self._waiting = False

    def _handle(self, *_):
        if self._waiting or self._stopped:  # the second one while decoding: leave at once
            raise KeyboardInterrupt
        self._stopped = True


def _remark(text: str) -> None:
    print(f"speechllm-xl stream: {text}", file=sys.stderr)


# Sources: generators of blocks (n,) of samples at the model's rate.  When they have ended, what there is to say of the
# audio is in `remarks`, {kind: text}.


def _blocks(args, sample_rate, remarks):
    if args.source == "microphone":
        return _microphone(args.microphone_device, sample_rate, remarks)
    if args.source == "-":
        rate = sample_rate if args.rate is None else args.rate
        return _standard_input(args.encoding or "s16", rate, sample_rate, remarks)
    return _file(args, sample_rate, remarks)


def _file(args, sample_rate, remarks):
    from espnet_speechllm_xl.corpus.audio import read_file

    samples = read_file(args.source, sample_rate, channel=args.channel, notes=remarks)
    begin = time.monotonic()
    size = round(BLOCK_SECONDS * sample_rate)
    for first in range(0, len(samples), size):
        block = samples[first : first + size]
        if args.realtime:
            time.sleep(max(0.0, begin + (first + len(block)) / sample_rate - time.monotonic()))
        yield block


def _standard_input(encoding, rate, sample_rate, remarks):
    from espnet_speechllm_xl.corpus.raw_pcm import Pcm

    pcm = Pcm(encoding, rate, sample_rate)
    size = round(BLOCK_SECONDS * pcm.bytes_per_second)
    try:
        while data := sys.stdin.buffer.read1(size):
            yield pcm.samples(data)
        if pcm.bytes_left:
            _remark("the last sample is cut and left out")
        yield pcm.rest()
    finally:
        remarks.update(pcm.remarks())


def _microphone(device, sample_rate, remarks):
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: no PortAudio
        raise UserError(f"no microphone ({error}): pip install sounddevice, and PortAudio (libportaudio2)") from error
    from espnet_speechllm_xl.corpus.raw_pcm import Pcm

    blocks = queue.SimpleQueue()
    try:
        rate = int(sounddevice.query_devices(device, "input")["default_samplerate"])
        pcm = Pcm("s16", rate, sample_rate)
        recorder = sounddevice.RawInputStream(
            rate, device=device, channels=1, dtype="int16", callback=lambda data, *_: blocks.put(bytes(data))
        )
        with recorder:
            try:
                while True:
                    yield pcm.samples(blocks.get())
            finally:
                remarks.update(pcm.remarks())
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UserError(f"no microphone ({error}): connect one, or name another with --microphone-device") from error


# Writers: what is shown of each update


class _Writer(contextlib.AbstractContextManager):
    def __exit__(self, *_):
        pass

    def write(self, update, seconds):
        """Show what changed; ``seconds`` of audio are decoded."""
        for segment in update.segments:
            self.segment(segment)

    def _print(self, text):
        sys.stdout.write(text)
        sys.stdout.flush()


class _Text(_Writer):
    """A line for each segment."""

    def segment(self, segment):
        self._print(f"{segment.text}\n")


class _Json(_Writer):
    """A JSON object a line, whenever something changed."""

    def __init__(self):
        from espnet_speechllm_xl.decoding.output_formats import LiveResults

        self._results = LiveResults()

    def write(self, update, seconds):
        for result in self._results.of(update, seconds):
            self._print(json.dumps(result, ensure_ascii=False) + "\n")


class _Captions(_Writer):
    """SRT or WebVTT, segment by segment."""

    def __init__(self, kind):
        from espnet_speechllm_xl.decoding.output_formats import Captions

        self._captions = Captions(kind)
        self._print(self._captions.header)

    def segment(self, segment):
        self._print(self._captions.add(segment.words))


class _Terminal(_Writer):
    """The open segment in place, settled text solid and partial text dim; ended ones above it.

    Where standard output is no terminal: a line for each segment.
    """

    def __init__(self):
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._text, self._shown = Text, None
        self._live = Live(console=Console(highlight=False), auto_refresh=False, transient=True)

    def __enter__(self):
        self._live.start()
        return self

    def __exit__(self, *_):
        self._live.stop()

    def write(self, update, seconds):
        from espnet_speechllm_xl.decoding.output_formats import beside

        super().write(update, seconds)
        shown = self._text(update.segment.text)
        shown.append(beside(update.segment.text, update.partial, update.joined), style="dim italic")
        if shown != self._shown and self._live.console.is_terminal:
            self._live.update(shown, refresh=True)
            self._shown = shown

    def segment(self, segment):
        self._live.console.print(self._text(segment.text), soft_wrap=True)


WRITERS = {
    "terminal": _Terminal,
    "text": _Text,
    "json": _Json,
    "srt": lambda: _Captions("srt"),
    "vtt": lambda: _Captions("vtt"),
}
