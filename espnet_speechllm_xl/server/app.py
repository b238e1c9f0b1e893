"""Which address does what; runs the server and stops it without losing what was sent."""

import asyncio
import contextlib
import functools
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from espnet_speechllm_xl.errors import UserError, one_line
from espnet_speechllm_xl.server.protocol import MOST_HEADER_BYTES, HttpProtocol, WebSocketProtocol
from espnet_speechllm_xl.server.refusal import Refusal
from espnet_speechllm_xl.server.session import Session
from espnet_speechllm_xl.server.transcription import transcribe

PAGE = Path(__file__).parent / "page"
SEND_BUFFER = 64 * 1024  # bytes that the kernel keeps for a client that reads slowly
FAREWELL_SECONDS = 1  # for closing connections after everything was sent


def make_app(service):
    """The ASGI application of a :class:`~espnet_speechllm_xl.server.service.Service`."""

    async def stream(socket):
        await Session(service, socket).run()

    async def transcriptions(request):
        response = None
        try:
            response = await transcribe(service, request)
        except Refusal as refusal:
            response = _refused(refusal)
        finally:
            service.metrics.files.labels(response.status_code if response else 500).inc()
        return response

    async def models(request):
        service.authorise(request)
        return JSONResponse({"object": "list", "data": [service.describe()]})

    async def model(request):
        service.authorise(request)
        name = request.path_params["name"]
        if name != service.name:
            message = f"there is no model '{name}' here: it is called '{service.name}'"
            return _error(404, message, "model_not_found")
        return JSONResponse(service.describe())

    async def health(_request):
        alive = service.engine.alive
        stopping = service.stopping.is_set()
        state = {
            "status": "failed" if not alive else "stopping" if stopping else "ok",
            "model": service.name,
            "streams": service.served("stream"),
            "max_streams": service.config.max_streams,
        }
        return JSONResponse(state, 503 if stopping or not alive else 200)

    async def metrics(request):
        service.authorise(request)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def index(_request):
        return FileResponse(PAGE / "index.html")

    app = Starlette(
        routes=[
            WebSocketRoute("/v1/stream", stream),
            Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name}", model),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/", index),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        exception_handlers={Refusal: _refuse, HTTPException: _http_error, Exception: _fail},
    )
    origins = service.config.allow_origin
    return _open_to(app, origins) if origins else app


def _open_to(app: Starlette, origins: tuple) -> CORSMiddleware:
    """The application for pages of other origins, too: browsers ask first, and show a page only what is meant for it.

    It stands around all else, so that errors, too, can be read by those pages.
    """
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),  # OpenAI's client sends some of its own
        expose_headers=("retry-after", "x-ignored-fields", "x-remarks"),
        allow_private_network=True,
    )


HEADERS = {"full": {"retry-after": "1"}, "unauthorized": {"www-authenticate": "Bearer"}}


def _error(status, message, code, headers=None):
    """An error in OpenAI's form; the message is one line."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": one_line(message), "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers)


def _refused(refusal):
    return _error(refusal.status, str(refusal), refusal.code, HEADERS.get(refusal.code))


async def _refuse(_request, refusal):
    return _refused(refusal)


async def _http_error(request, error):
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _error(error.status_code, message, error.detail.lower().replace(" ", "-"), error.headers)  # 405: Allow


async def _fail(_request, _error_of_ours):
    return _error(500, "the server failed on this request: its log says more", "failed")


class Server(uvicorn.Server):
    """uvicorn's, which closes all connections when it is told to stop; here what was sent is finished first."""

    def __init__(self, service):
        self._service = service
        super().__init__(
            uvicorn.Config(
                make_app(service),
                http=functools.partial(HttpProtocol, handshake_seconds=service.config.handshake_seconds),
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
                ws=WebSocketProtocol,
                ws_max_size=2 * service.config.max_message_bytes,  # up to it a client is told what was wrong
                ws_per_message_deflate=False,  # PCM hardly shrinks
                # A pong waits behind the audio of a client that is held back; dead ones end by the limits on silence.
                ws_ping_timeout=None,
                timeout_graceful_shutdown=FAREWELL_SECONDS,
                lifespan="off",
                log_config=None,  # remarks look like those of the commands
                access_log=False,  # a line would hold the token of `?token=`
                log_level="warning",
                proxy_headers=False,
                server_header=False,
            )
        )

    async def shutdown(self, sockets=None):
        """Admit nobody, finish the streams and files that are served, then close; at once at a second signal."""
        draining = asyncio.ensure_future(self._service.drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait({draining}, timeout=0.1)
        await super().shutdown(sockets)


def bind(config):
    """The listening socket, taken before the model is loaded; raises UserError, also for a name of no address."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    # A session gives up after send_seconds.  Its connection is then closed politely, which waits until the client has
    # read everything: the kernel has to cut it off.
    milliseconds = min(2000 * config.send_seconds, 2**31 - 1)  # the most that the kernel takes: 25 days
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(milliseconds))
    try:
        listener.bind((config.host, config.port))
        listener.listen()
    except (OSError, ValueError) as error:  # the latter for what cannot be a name
        listener.close()
        raise UserError(
            f"cannot listen on {config.host} port {config.port} ({getattr(error, 'strerror', None) or error}): "
            "choose another --port, or an address of this machine as --host"
        ) from error
    return listener


def serve(service, listener):
    """Run until SIGTERM or SIGINT."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"speechllm-xl serve: http://{host}:{port}", file=sys.stderr, flush=True)
    with contextlib.closing(service):
        Server(service).run(sockets=[listener])
