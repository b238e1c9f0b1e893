"""``transcribe``: audio files to text, JSON, CTM or subtitles on standard output."""

import json
import re
import sys
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_model_arguments, load_settings


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files (WAV, FLAC, Ogg, MP3, ...)")
    parser.add_argument("--format", default="text", choices=sorted(FORMATS), help="default %(default)s")
    add_model_arguments(parser)


def main(args):
    """Transcribe every file; returns 0, or 1 when some failed (each named on standard error)."""
    from espnet_speechllm_xl.audio import AudioError
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.inference import Speech2Text

    if args.format in ("srt", "vtt") and len(args.files) > 1:
        raise UserError(f"--format {args.format} takes one FILE: subtitles of several would be one mixed track")
    speech2text = Speech2Text.from_pretrained(**load_settings(args))
    failed = 0
    if args.format == "vtt":
        print("WEBVTT\n")
    for file in args.files:
        try:
            nbest = speech2text(file)
        except AudioError as error:
            print(f"speechllm-xl transcribe: {error}", file=sys.stderr)
            failed += 1
            continue
        if nbest[0].capped:
            print(f"speechllm-xl transcribe: {file}: {nbest[0].capped} chunks hit the token cap", file=sys.stderr)
        FORMATS[args.format](file, nbest, len(args.files) > 1)
    if failed:
        print(f"speechllm-xl transcribe: {len(args.files) - failed} of {len(args.files)} files done", file=sys.stderr)
    return 1 if failed else 0


def _text(file, nbest, several):
    print(f"{file}\t{nbest[0].text}" if several else nbest[0].text)


def _json(file, nbest, several):
    print(
        json.dumps(
            {
                "file": file,
                "text": nbest[0].text,
                "score": nbest[0].score,
                "words": [vars(word) for word in nbest[0].words],
                "nbest": [{"text": one.text, "score": one.score} for one in nbest],
            },
            ensure_ascii=False,
        )
    )


def _ctm(file, nbest, several):
    from espnet_speechllm_xl.ctm import format_word

    for word in nbest[0].words:
        print(format_word(re.sub(r"\s", "_", Path(file).stem), word))


def _captions(words, most_seconds=5.0, most_words=10):
    """Words cut into captions: ``(start, end, text)``."""
    caption = []
    for word in words:
        if caption and (len(caption) == most_words or word.end - caption[0].start > most_seconds):
            yield caption[0].start, caption[-1].end, " ".join(each.text for each in caption)
            caption = []
        caption.append(word)
    if caption:
        yield caption[0].start, caption[-1].end, " ".join(each.text for each in caption)


def _clock(seconds, separator):
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{separator}{rest % 1000:03d}"


def _srt(file, nbest, several):
    for number, (start, end, text) in enumerate(_captions(nbest[0].words), 1):
        print(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n")


def _vtt(file, nbest, several):
    for start, end, text in _captions(nbest[0].words):
        print(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n")


FORMATS = {"text": _text, "json": _json, "ctm": _ctm, "srt": _srt, "vtt": _vtt}
