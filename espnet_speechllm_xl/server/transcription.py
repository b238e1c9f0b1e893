"""One whole file: the request and the answers of OpenAI's ``/v1/audio/transcriptions``.

The file stays in memory.  It is decoded by the engine beside the live streams, a short block of audio at a time.
"""

import asyncio
import logging
import math
from collections.abc import Coroutine
from dataclasses import dataclass

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import MIX, parse_channel
from espnet_speechllm_xl.corpus.audio import AudioError, read_bytes
from espnet_speechllm_xl.corpus.ctm import joined_text
from espnet_speechllm_xl.decoding.output_formats import FORMATS, captions
from espnet_speechllm_xl.decoding.streams import decode
from espnet_speechllm_xl.errors import one_line
from espnet_speechllm_xl.server.refusal import Refusal
from espnet_speechllm_xl.server.service import LAST_WORDS, Service

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = ("segment", "word")
FIELDS = 64  # most fields of a form beside the file
FIELD_BYTES = 64 * 1024  # longest of them
OVERHEAD = FIELDS * FIELD_BYTES  # bytes of a form beside the file
BLOCK_SECONDS = 2.0  # of audio that one encoder call takes of a file: live streams wait for no longer one


@dataclass(frozen=True)
class Form:
    """A request, as far as this server can follow it."""

    name: str  # of the file
    content: bytes
    response_format: str
    granularities: tuple
    language: str  # repeated in the answer: the model knows one language
    channel: int | None  # that is heard; None: their average
    ignored: tuple  # names of the fields that change nothing


class _MemoryParser(MultiPartParser):
    spool_max_size = 0  # never to disk


async def transcribe(service, request):
    """Answer a starlette request; raises Refusal."""
    try:
        service.authorise(request)
        with service.place("file"):
            form = await _read_form(request, service)
            notes = {}
            samples = await asyncio.to_thread(_read_audio, form, service, notes)
            nbest = await _decode(service, request, samples)
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody reads
    seconds = len(samples) / service.sample_rate
    service.metrics.audio.labels("file").inc(seconds)
    response = _response(form, nbest, seconds)
    if form.ignored:
        response.headers["x-ignored-fields"] = ", ".join(form.ignored)
    if notes:
        response.headers["x-remarks"] = "; ".join(notes.values())
    return response


async def _read_form(request, service):
    config = service.config
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal("bad-message", "the request is no multipart/form-data: send the audio as its field 'file'")
    stream = _bounded(request, config.max_file_bytes)
    parser = _MemoryParser(request.headers, stream, max_files=1, max_fields=FIELDS, max_part_size=FIELD_BYTES)
    try:
        fields = await _uploaded(parser.parse(), service)
    except (MultiPartException, UnicodeError) as error:  # the latter by the character set that the client names
        reason = getattr(error, "message", "it is not in the character set that it names")
        raise Refusal("bad-message", f"the form cannot be read ({reason}): send one file and its settings") from error
    file = fields.get("file")
    if file is None or isinstance(file, str):
        raise Refusal("bad-message", "the form has no file: send the audio as its field 'file'")
    content = await file.read()
    if len(content) > config.max_file_bytes:
        raise _too_big(config.max_file_bytes)
    return _form(fields, file.filename or "file", content)


async def _uploaded(parsing: Coroutine, service: Service) -> FormData:
    """The result of ``parsing`` a body; raises Refusal when it takes too long, or misses a part at the stop."""
    upload, stop = asyncio.ensure_future(parsing), asyncio.ensure_future(service.stopping.wait())
    seconds = service.config.upload_seconds
    try:
        await asyncio.wait({upload, stop}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            await asyncio.wait({upload}, timeout=LAST_WORDS)
        if upload.done():
            return upload.result()
        if stop.done():
            raise Refusal(
                "stopping", "the server is stopping and will not wait for the rest of the file: send it again later"
            )
        raise Refusal("idle", f"the upload took longer than {seconds} s: send a smaller file")
    finally:
        upload.cancel()
        stop.cancel()


async def _bounded(request, most):
    """The body's pieces; raises Refusal when they are more than a file of ``most`` bytes and a form."""
    length = request.headers.get("content-length", "0")
    left = most + OVERHEAD
    if length.isdecimal() and int(length) > left:
        raise _too_big(most)
    async for piece in request.stream():
        left -= len(piece)
        if left < 0:
            raise _too_big(most)
        yield piece


def _too_big(most):
    return Refusal("too-big", f"the file is larger than {most} bytes: compress it (FLAC, MP3), or cut it")


def _form(fields, name, content):
    """The :class:`Form` of a form's fields; raises Refusal for what would give another answer than was asked for."""
    form = fields.get("response_format") or "json"
    if form not in RESPONSE_FORMATS:
        raise Refusal("bad-setting", f"response_format '{form}': use one of {', '.join(RESPONSE_FORMATS)}")
    names = ("timestamp_granularities[]", "timestamp_granularities")
    granularities = tuple(value for name in names for value in fields.getlist(name))
    for value in granularities:
        if value not in GRANULARITIES:
            raise Refusal("bad-setting", f"timestamp_granularities '{value}': use one of {', '.join(GRANULARITIES)}")
    if granularities and form != "verbose_json":
        raise Refusal("bad-setting", "timestamp_granularities need response_format verbose_json")
    if (fields.get("stream") or "false").lower() not in ("false", "0"):
        raise Refusal("bad-setting", "stream: files are answered whole; for results as they come use /v1/stream")
    try:
        channel = parse_channel(fields.get("channel") or MIX)
    except ValueError as error:
        raise Refusal("bad-setting", f"channel {error}; for each of them send a request of its own") from None
    used = {"file", "model", "response_format", "stream", "channel", *names}
    ignored = tuple(sorted({key for key in fields if key not in used and key.isascii() and key.isprintable()}))
    language = one_line(fields.get("language") or "")
    return Form(name, content, form, granularities or ("segment",), language, channel, ignored)


def _read_audio(form, service, notes):
    most = service.config.max_file_seconds
    try:
        return read_bytes(
            form.content, service.sample_rate, name=form.name, channel=form.channel, most_seconds=most, notes=notes
        )
    except AudioError as error:
        raise Refusal("too-long" if error.reason == "too-long" else "bad-audio", str(error)) from error


async def _decode(service, request, samples):
    """The n-best list of samples (n,); ends when the client is gone (ClientDisconnect)."""
    speech2text = service.speech2text
    model, owner = speech2text.model, object()
    segment = timeline.frame_start_seconds(model.acoustic.encoder.config.segment)
    most = max(1, math.floor(BLOCK_SECONDS / segment))
    work = decode(model, speech2text.tokenizer, speech2text.chunking, speech2text.search, samples, most)
    decoded = asyncio.wrap_future(service.engine.submit(owner, work))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({decoded, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not decoded.done():
            raise ClientDisconnect
        return decoded.result()
    except (ClientDisconnect, asyncio.CancelledError):
        raise
    except Exception as error:  # of the model: logged, and the client must not be left without an answer
        logging.exception("a file failed")
        raise Refusal("failed", "the model failed on this file: the server's log says more") from error
    finally:
        gone.cancel()
        service.engine.cancel(owner)


async def _gone(request):
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(form, nbest, seconds):
    best = nbest[0]
    if form.response_format in ("text", "srt", "vtt"):
        return PlainTextResponse(FORMATS[form.response_format](form.name, nbest, False, None))
    answer = {"text": best.text, "usage": {"type": "duration", "seconds": math.ceil(seconds)}}
    if form.response_format == "verbose_json":
        answer |= {"task": "transcribe", "language": form.language, "duration": round(seconds, 3)}
        if "segment" in form.granularities:
            answer["segments"] = [
                {
                    "id": index,
                    "start": round(words[0].start, 3),
                    "end": round(words[-1].end, 3),
                    "text": joined_text(words),
                }
                for index, words in enumerate(captions(best.words))
            ]
        if "word" in form.granularities:
            answer["words"] = [
                {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in best.words
            ]
    return JSONResponse(answer)
