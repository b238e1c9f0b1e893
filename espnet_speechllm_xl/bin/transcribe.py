"""``transcribe``: audio files to text, JSON, CTM or subtitles on standard output."""

import sys
from collections import Counter

from espnet_speechllm_xl.bin.options import add_model_arguments, load_settings
from espnet_speechllm_xl.formats import FORMATS, TIMED, recording_id

LONG_SECONDS = 3600  # of a recording, from which on a remark says what it costs


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="audio files (WAV, FLAC, Ogg, MP3, ...); for standard input or a microphone see `stream`",
    )  # fmt: skip
    parser.add_argument("--format", default="text", choices=sorted(FORMATS), help="default %(default)s")
    add_model_arguments(parser)


def main(args):
    """Transcribe every file; returns 0, or 1 when some failed (each named on standard error)."""
    from espnet_speechllm_xl.audio import AudioError
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.inference import Speech2Text

    if args.format in ("srt", "vtt") and len(args.files) > 1:
        raise UserError(f"--format {args.format} takes one FILE: subtitles of several would be one mixed track")
    name, count = Counter(map(recording_id, args.files)).most_common(1)[0]
    if args.format == "ctm" and count > 1:
        raise UserError(f"--format ctm: {count} files would be the recording '{name}': transcribe them one by one")
    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    if args.format in TIMED and not speech2text.task.word_times:
        name = speech2text.task.name
        raise UserError(f"--format {args.format}: a model of task '{name}' gives no word times: use text or json")
    failed = 0
    for file in args.files:
        try:
            samples = speech2text.load(file)
            if len(samples) >= LONG_SECONDS * speech2text.sample_rate and speech2text.chunking is not None:
                print(_remark(file, len(samples) / speech2text.sample_rate), file=sys.stderr)
            (nbest,) = speech2text.transcribe_batch([samples])
        except AudioError as error:
            print(f"speechllm-xl transcribe: {error}", file=sys.stderr)
            failed += 1
            continue
        if nbest[0].capped:
            print(f"speechllm-xl transcribe: {file}: {nbest[0].capped} chunks hit the token cap", file=sys.stderr)
        sys.stdout.write(FORMATS[args.format](file, nbest, len(args.files) > 1))
        sys.stdout.flush()  # what is done is not lost with the rest
    if failed:
        print(f"speechllm-xl transcribe: {len(args.files) - failed} of {len(args.files)} files done", file=sys.stderr)
    return 1 if failed else 0


def _remark(file: str, seconds: float) -> str:
    return (
        f"speechllm-xl transcribe: {file} lasts {seconds / 3600:.1f} h: it is held in memory whole, and its text comes "
        f"at the end; `speechllm-xl stream {file} --search chunk_sync` writes as it goes, in bounded memory"
    )
