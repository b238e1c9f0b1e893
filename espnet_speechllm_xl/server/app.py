"""The addresses of the server; it starts, and it stops without losing audio that was sent."""

import asyncio
import contextlib
import functools
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from espnet_speechllm_xl.errors import UserError, one_line
from espnet_speechllm_xl.server.limits import ServerConfig
from espnet_speechllm_xl.server.protocol import MOST_HEADER_BYTES, HttpProtocol, WebSocketProtocol
from espnet_speechllm_xl.server.refusal import Refusal
from espnet_speechllm_xl.server.service import Service
from espnet_speechllm_xl.server.session import Session
from espnet_speechllm_xl.server.transcription import transcribe

PAGE = Path(__file__).parent / "page"
SEND_BUFFER = 64 * 1024  # bytes that the kernel keeps for a client that reads slowly
FAREWELL_SECONDS = 1  # time to close the connections after everything was sent


def make_app(service: Service) -> ASGIApp:
    """Build the ASGI application."""

    async def stream(socket: WebSocket) -> None:
        await Session(service, socket).run()

    async def transcriptions(request: Request) -> Response:
        response = None
        try:
            response = await transcribe(service, request)
        except Refusal as refusal:
            response = _refused(refusal)
        finally:
            service.metrics.files.labels(response.status_code if response else 500).inc()
        return response

    async def models(request: Request) -> Response:
        service.authorise(request)
        return JSONResponse({"object": "list", "data": [service.describe()]})

    async def model(request: Request) -> Response:
        service.authorise(request)
        name = request.path_params["name"]
        if name != service.name:
            message = f"there is no model '{name}' here: it is called '{service.name}'"
            return _error(404, message, "model_not_found")
        return JSONResponse(service.describe())

    async def health(_request: Request) -> Response:
        alive = service.engine.alive
        stopping = service.stopping.is_set()
        state = {
            "status": "failed" if not alive else "stopping" if stopping else "ok",
            "model": service.name,
            "streams": service.served("stream"),
            "max_streams": service.config.max_streams,
        }
        return JSONResponse(state, 503 if stopping or not alive else 200)

    async def metrics(request: Request) -> Response:
        service.authorise(request)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def index(_request: Request) -> Response:
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


def _open_to(app: Starlette, origins: Sequence[str]) -> CORSMiddleware:
    """Let pages of other origins use the application.

    The middleware stands around everything, so that these pages can read errors, too.
    """
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),  # OpenAI's client sends some of its own
        expose_headers=("retry-after", "x-ignored-fields", "x-remarks"),
        allow_private_network=True,
    )


# Code of a refusal -> headers of its response.
HEADERS = {"full": {"retry-after": "1"}, "unauthorized": {"www-authenticate": "Bearer"}}


def _error(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error in OpenAI's form, its message as one line."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": one_line(message), "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers)


def _refused(refusal: Refusal) -> JSONResponse:
    return _error(refusal.status, str(refusal), refusal.code, HEADERS.get(refusal.code))


# starlette's handlers are typed for any exception; it calls each with the class that it was registered for.


async def _refuse(_request: Request, refusal: Exception) -> Response:
    return _refused(cast(Refusal, refusal))


async def _http_error(request: Request, error: Exception) -> Response:
    error = cast(HTTPException, error)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _error(error.status_code, message, error.detail.lower().replace(" ", "-"), error.headers)  # 405: Allow


async def _fail(_request: Request, _own_error: Exception) -> Response:
    return _error(500, "the server failed on this request: its log says more", "failed")


class Server(uvicorn.Server):
    """uvicorn's server; before it closes the connections, it decodes all audio that was sent."""

    def __init__(self, service: Service) -> None:
        self._service = service
        http = functools.partial(HttpProtocol, handshake_seconds=service.config.handshake_seconds)
        super().__init__(
            uvicorn.Config(
                make_app(service),
                http=cast("type[asyncio.Protocol]", http),
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
                ws=WebSocketProtocol,
                ws_max_size=2 * service.config.max_message_bytes,  # twice: the session says what is wrong, up to here
                ws_per_message_deflate=False,  # PCM hardly shrinks
                # The pong of a client that is held back waits behind its audio.  The limits on silence end dead ones.
                ws_ping_timeout=None,
                timeout_graceful_shutdown=FAREWELL_SECONDS,
                lifespan="off",
                log_config=None,  # remarks look as in the other commands
                access_log=False,  # its lines would show the token of `?token=`
                log_level="warning",
                proxy_headers=False,
                server_header=False,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Admit nobody, finish the streams and files that are served, then close; close at once at a second signal."""
        draining = asyncio.ensure_future(self._service.drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait({draining}, timeout=0.1)
        await super().shutdown(sockets)


def bind(config: ServerConfig) -> socket.socket:
    """Open the listening socket; done before the model is loaded, since it may fail.

    Raises:
        UserError: the port is taken, or the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    # A session gives up after send_seconds.  But uvicorn then closes the connection politely, which waits until the
    # client has read everything: the kernel has to cut it off.
    milliseconds = min(2000 * config.send_seconds, 2**31 - 1)  # the kernel takes no more: 25 days
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(milliseconds))
    try:
        listener.bind((config.host, config.port))
        listener.listen()
    except (OSError, ValueError) as error:  # ValueError: the host cannot be a name
        listener.close()
        raise UserError(
            f"cannot listen on {config.host} port {config.port} ({getattr(error, 'strerror', None) or error}): "
            "choose another --port, or an address of this machine as --host"
        ) from error
    return listener


def serve(service: Service, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"speechllm-xl serve: http://{host}:{port}", file=sys.stderr, flush=True)
    with contextlib.closing(service):
        Server(service).run(sockets=[listener])
