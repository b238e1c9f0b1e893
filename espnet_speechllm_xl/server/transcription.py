"""One whole file: requests and responses of OpenAI's ``/v1/audio/transcriptions``.

The file stays in memory.  The engine decodes it beside the live streams, a short block of audio at a time.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import MIX, parse_channel
from espnet_speechllm_xl.corpus.audio import AudioError, read_bytes
from espnet_speechllm_xl.corpus.ctm import joined_text
from espnet_speechllm_xl.decoding.output_formats import FORMATS, captions
from espnet_speechllm_xl.decoding.phrases import PhraseTree
from espnet_speechllm_xl.decoding.results import Transcript
from espnet_speechllm_xl.decoding.streams import decode
from espnet_speechllm_xl.errors import one_line
from espnet_speechllm_xl.server.refusal import Refusal
from espnet_speechllm_xl.server.service import LAST_WORDS, Service

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = ("segment", "word")
MAX_FIELDS = 64  # of a form, beside the file
MAX_FIELD_BYTES = 64 * 1024
MAX_FORM_BYTES = MAX_FIELDS * MAX_FIELD_BYTES  # of a form, beside the file
BLOCK_SECONDS = 2.0  # audio of a file in one encoder call: the longest call that live streams have to wait for


@dataclass(frozen=True)
class Form:
    """The settings of a request that this server follows."""

    name: str  # file name
    content: bytes
    response_format: str
    granularities: tuple[str, ...]
    language: str  # repeated in the response: the model knows one language
    channel: int | None  # 0-based; None: the average of all channels
    prompt: str  # empty for a model without prompts: clients send one whatever the model
    phrases: tuple[str, ...]  # that are expected
    ignored: tuple[str, ...]  # names of fields without effect


class _MemoryParser(MultiPartParser):
    spool_max_size = 0  # uploads stay in memory, never on disk


async def transcribe(service: Service, request: Request) -> Response:
    """Return the response to a request; raise Refusal if it cannot be followed."""
    try:
        service.authorise(request)
        with service.place("file"):
            form = await _read_form(request, service)
            model = service.prompted(form.prompt)
            phrases = await asyncio.to_thread(service.phrase_tree, form.phrases)
            notes: dict[str, str] = {}
            samples = await asyncio.to_thread(_read_audio, form, service, notes)
            nbest = await _decode(service, request, model, phrases, samples)
    except ClientDisconnect:
        return Response(status_code=400)  # for the metrics; nobody reads it
    seconds = len(samples) / service.sample_rate
    service.metrics.audio.labels("file").inc(seconds)
    response = _response(form, nbest, seconds)
    if form.ignored:
        response.headers["x-ignored-fields"] = ", ".join(form.ignored)
    if notes:
        response.headers["x-remarks"] = "; ".join(notes.values())
    return response


async def _read_form(request: Request, service: Service) -> Form:
    """Receive a request's form; raise Refusal if it is too large, too slow, or unreadable."""
    config = service.config
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal("bad-message", "the request is no multipart/form-data: send the audio as its field 'file'")
    body = _bounded_body(request, config.max_file_bytes)
    parser = _MemoryParser(request.headers, body, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    try:
        fields = await _uploaded(parser.parse(), service)
    except (MultiPartException, UnicodeError) as error:  # UnicodeError: not in the character set that the client names
        reason = getattr(error, "message", "it is not in the character set that it names")
        raise Refusal("bad-message", f"the form cannot be read ({reason}): send one file and its settings") from error
    file = fields.get("file")
    if file is None or isinstance(file, str):
        raise Refusal("bad-message", "the form has no file: send the audio as its field 'file'")
    content = await file.read()
    if len(content) > config.max_file_bytes:
        raise _too_big(config.max_file_bytes)
    return _form(fields, file.filename or "file", content, service.takes_prompts)


async def _uploaded(parsing: Coroutine[None, None, FormData], service: Service) -> FormData:
    """Wait until a form is parsed; raise Refusal if that takes too long, or if the server stops before."""
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


async def _bounded_body(request: Request, max_file_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body's pieces; raise Refusal when they exceed ``max_file_bytes`` and the size of a form."""
    length = request.headers.get("content-length", "0")
    left = max_file_bytes + MAX_FORM_BYTES
    if length.isdecimal() and int(length) > left:
        raise _too_big(max_file_bytes)
    async for piece in request.stream():
        left -= len(piece)
        if left < 0:
            raise _too_big(max_file_bytes)
        yield piece


def _too_big(max_file_bytes: int) -> Refusal:
    return Refusal("too-big", f"the file is larger than {max_file_bytes} bytes: compress it (FLAC, MP3), or cut it")


def _form(fields: FormData, name: str, content: bytes, takes_prompts: bool) -> Form:
    """Check a form's fields; raise Refusal where the response could not be what they ask for.

    Args:
        fields: fields of the form.
        name: name of the file.
        content: content of the file.
        takes_prompts: whether the model does; if not, a prompt is without effect.
    """
    response_format = _text(fields, "response_format") or "json"
    if response_format not in RESPONSE_FORMATS:
        raise Refusal("bad-setting", f"response_format '{response_format}': use one of {', '.join(RESPONSE_FORMATS)}")
    names = ("timestamp_granularities[]", "timestamp_granularities")
    granularities = tuple(str(value) for name in names for value in fields.getlist(name))
    for value in granularities:
        if value not in GRANULARITIES:
            raise Refusal("bad-setting", f"timestamp_granularities '{value}': use one of {', '.join(GRANULARITIES)}")
    if granularities and response_format != "verbose_json":
        raise Refusal("bad-setting", "timestamp_granularities need response_format verbose_json")
    if (_text(fields, "stream") or "false").lower() not in ("false", "0"):
        raise Refusal("bad-setting", "stream: files are answered whole; for results as they come use /v1/stream")
    try:
        channel = parse_channel(_text(fields, "channel") or MIX)
    except ValueError as error:
        raise Refusal("bad-setting", f"channel {error}; for each of them send a request of its own") from None
    assert not isinstance(channel, str), "no words are given that stand for channels"
    used = {"file", "model", "response_format", "stream", "channel", "phrases", *names}
    used |= {"prompt"} if takes_prompts else set()
    ignored = tuple(sorted({key for key in fields if key not in used and key.isascii() and key.isprintable()}))
    language, prompt = one_line(_text(fields, "language")), _text(fields, "prompt") if takes_prompts else ""
    lines = "\n".join(value for value in fields.getlist("phrases") if isinstance(value, str)).splitlines()
    phrases = tuple(filter(str.strip, lines))
    granularities = granularities or ("segment",)
    return Form(name, content, response_format, granularities, language, channel, prompt, phrases, ignored)


def _text(fields: FormData, name: str) -> str:
    """Return a field's text; empty without that field."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _read_audio(form: Form, service: Service, notes: dict[str, str]) -> np.ndarray:
    """Unpack a file to samples (n,) at the model's rate; raise Refusal for bad or too long audio.

    Args:
        form: the request.
        service: has the model and the limits.
        notes: takes the remarks on the audio.
    """
    longest = service.config.max_file_seconds
    try:
        return read_bytes(
            form.content, service.sample_rate, name=form.name, channel=form.channel, most_seconds=longest, notes=notes
        )
    except AudioError as error:
        raise Refusal("too-long" if error.reason == "too-long" else "bad-audio", str(error)) from error


async def _decode(
    service: Service,
    request: Request,
    model: Any,  # noqa: ANN401  # as Service.prompted
    phrases: PhraseTree | None,
    samples: np.ndarray,
) -> list[Transcript]:
    """Decode samples to their n-best list, best first; raise ClientDisconnect as soon as the client is gone.

    Args:
        service: decodes.
        request: of the client.
        model: the service's, with the prompt of the request.
        phrases: of the request; None: none.
        samples: (n,) audio.
    """
    speech2text, owner = service.speech2text, object()
    segment_seconds = timeline.frame_start_seconds(model.acoustic.encoder.config.segment)
    block_segments = max(1, math.floor(BLOCK_SECONDS / segment_seconds))
    assert speech2text.chunking is not None  # Service refuses models without chunks
    parts = (model, speech2text.tokenizer, speech2text.chunking, speech2text.search_config)
    work = decode(*parts, samples, block_segments, phrases)
    decoded = asyncio.wrap_future(service.engine.submit(owner, work))
    disconnected = asyncio.create_task(_disconnected(request))
    waits: set[asyncio.Future] = {decoded, disconnected}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not decoded.done():
            raise ClientDisconnect
        return decoded.result()
    except (ClientDisconnect, asyncio.CancelledError):
        raise
    except Exception as error:  # the model failed: the client must get an answer
        logging.exception("a file failed")
        raise Refusal("failed", "the model failed on this file: the server's log says more") from error
    finally:
        disconnected.cancel()
        service.engine.cancel(owner)


async def _disconnected(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(form: Form, nbest: Sequence[Transcript], seconds: float) -> Response:
    """Write the best transcript in the format that the form asks for.

    Args:
        form: the request.
        nbest: transcripts, best first.
        seconds: duration of the audio.
    """
    best = nbest[0]
    if form.response_format in ("text", "srt", "vtt"):
        return PlainTextResponse(FORMATS[form.response_format](form.name, nbest, False, None))
    body: dict[str, object] = {"text": best.text, "usage": {"type": "duration", "seconds": math.ceil(seconds)}}
    if form.response_format == "verbose_json":
        body |= {"task": "transcribe", "language": form.language, "duration": round(seconds, 3)}
        if "segment" in form.granularities:
            body["segments"] = [
                {
                    "id": index,
                    "start": round(words[0].start, 3),
                    "end": round(words[-1].end, 3),
                    "text": joined_text(words),
                }
                for index, words in enumerate(captions(best.words))
            ]
        if "word" in form.granularities:
            body["words"] = [
                {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in best.words
            ]
    return JSONResponse(body)
