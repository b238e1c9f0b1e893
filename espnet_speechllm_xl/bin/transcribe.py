"""``transcribe``: audio files to text, JSON, CTM or subtitles on standard output."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from espnet_speechllm_xl.bin.options import (
    add_channel_argument,
    add_model_arguments,
    add_phrases_argument,
    add_prompt_argument,
    load_settings,
)
from espnet_speechllm_xl.config import EACH
from espnet_speechllm_xl.decoding.output_formats import FORMATS, TIMED, recording_id
from espnet_speechllm_xl.sets.audio import remark_on_length

if TYPE_CHECKING:
    import numpy as np

    from espnet_speechllm_xl.decoding.phrases import PhraseTree
    from espnet_speechllm_xl.inference import Speech2Text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="audio files (WAV, FLAC, Ogg, MP3, ...; with PyAV m4a, webm, ...); for standard input or a microphone see "
        "`stream`",
    )  # fmt: skip
    parser.add_argument("--format", default="text", choices=sorted(FORMATS), help="default %(default)s")
    add_channel_argument(parser, EACH)
    add_prompt_argument(parser)
    add_phrases_argument(parser)
    add_model_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Transcribe every file; returns 0, or 1 when some failed (each named on standard error)."""
    from espnet_speechllm_xl.corpus.audio import AudioError
    from espnet_speechllm_xl.decoding.phrases import read_phrases
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.inference import Speech2Text

    if args.format in ("srt", "vtt") and len(args.files) > 1:
        raise UserError(f"--format {args.format} takes one FILE: subtitles of several would be one mixed track")
    if args.format in ("srt", "vtt") and args.channel == EACH:
        raise UserError(f"--format {args.format}: subtitles of all channels would be one mixed track: give one")
    name, count = Counter(map(recording_id, args.files)).most_common(1)[0]
    if args.format == "ctm" and count > 1:
        raise UserError(f"--format ctm: {count} files would be the recording '{name}': transcribe them one by one")
    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    if args.format in TIMED and not speech2text.system.word_times:
        name = speech2text.system.name
        raise UserError(f"--format {args.format}: a model of task '{name}' gives no word times: use text or json")
    phrases = speech2text.phrase_tree(read_phrases(args.phrases) if args.phrases else None)
    failed = 0
    for file in args.files:
        try:
            for channel, samples in _recordings(speech2text, file, args.channel):
                _transcribe(speech2text, file, channel, samples, phrases, args)
        except AudioError as error:
            _say(str(error))
            failed += 1
    if failed:
        _say(f"{len(args.files) - failed} of {len(args.files)} files done")
    return 1 if failed else 0


def _say(text: str) -> None:
    print(f"speechllm-xl transcribe: {text}", file=sys.stderr)


def _recordings(
    speech2text: "Speech2Text", file: str, channel: int | str | None
) -> Iterator[tuple[int | None, "np.ndarray"]]:
    """Yield the recordings of a file: the channel, where each is heard for itself, and samples (N,).

    Remarks are printed.

    Raises:
        AudioError: the file is missing or cannot be used.
    """
    from espnet_speechllm_xl.corpus.audio import read_channels

    notes: dict[str, str] = {}
    recordings: Iterable[tuple[int | None, np.ndarray]]
    if isinstance(channel, str):  # EACH
        recordings = enumerate(read_channels(file, speech2text.sample_rate, notes=notes))
    else:
        recordings = [(None, speech2text.load(file, channel=channel, notes=notes))]
    for index, samples in recordings:
        for text in notes.values():
            _say(f"{file}: {text}" if index is None else f"{file}: channel {index}: {text}")
        notes.clear()
        yield index, samples


def _transcribe(
    speech2text: "Speech2Text",
    file: str,
    channel: int | None,
    samples: "np.ndarray",
    phrases: "PhraseTree | None",
    args: argparse.Namespace,
) -> None:
    if remark := remark_on_length(speech2text, file, samples):
        _say(remark)
    (nbest,) = speech2text.transcribe_batch([samples], args.prompt, phrases)
    if nbest[0].capped:
        _say(f"{file}: {nbest[0].capped} chunks hit the token cap")
    sys.stdout.write(FORMATS[args.format](file, nbest, len(args.files) > 1, channel))
    sys.stdout.flush()  # finished text is not lost when a later file fails
