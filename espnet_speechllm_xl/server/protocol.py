"""uvicorn's protocols, mended: no bytes of a client end in a traceback, or without an answer."""

import asyncio
import http

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

MOST_HEADER_BYTES = 64 * 1024  # of a request, its line included; of a WebSocket's, websockets takes less


class HttpProtocol(H11Protocol):
    """uvicorn's, for requests that go wrong in the middle, such as a bad chunk of an upload, or never become whole.

    Args:
        handshake_seconds: time for the line and the headers of a request, also of a WebSocket's.
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: of the application's lifespan.
        _loop: the event loop; None: the current one.
    """

    def __init__(
        self,
        *,
        handshake_seconds: float,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._handshake_seconds = handshake_seconds
        self._handshake_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        super().connection_made(transport)  # type: ignore[arg-type]  # asyncio hands it a Transport
        self._await_request()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._await_request()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection on."""
        self._stop_waiting()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer, unless the application has begun to; from now on the client is gone to it."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if len(self.conn.trailing_data[0]) > MOST_HEADER_BYTES:
            self._answer(431, f"The headers are longer than {MOST_HEADER_BYTES} bytes.")
        else:
            self._answer(400, msg)

    def _await_request(self) -> None:
        self._stop_waiting()
        self._handshake_timer = self.loop.call_later(self._handshake_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()

    def _give_up(self) -> None:
        """Close the connection unless a request is served; if one has begun, say why."""
        if self.cycle is None or self.cycle.response_complete:
            if self.conn.trailing_data[0]:
                self._answer(408, f"The headers took longer than {self._handshake_seconds} s.")
            self.transport.close()

    def _answer(self, status: int, message: str) -> None:
        """Send an error as text if no other answer was begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body, reason = message.encode(), http.HTTPStatus(status).phrase
            headers = {"content-type": "text/plain; charset=utf-8", "content-length": len(body), "connection": "close"}
            lines = [(name, str(value)) for name, value in headers.items()]
            head = h11.Response(status_code=status, headers=lines, reason=reason)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, which answers a handshake that websockets refuses to read, and hands on text that is not UTF-8.

    The session sees marks in such text, and refuses it as any other unknown text.
    """

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        super().data_received(data)
        # websockets ends its reading at a line or a number of headers beyond its limits, or at a body: uvicorn sees
        # no request then, and would neither answer nor close.
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.close_sent:
            self.handshake_complete = self.close_sent = True
            self.transport.write(b"".join(self.conn.data_to_send()) or self._refusal())
            self.transport.close()

    def _refusal(self) -> bytes:
        """Return the answer to a request for which websockets has none."""
        error = self.conn.handshake_exc
        reason = error and error.__cause__ or error
        text = f"The handshake cannot be read: {reason}.\n"
        return self.conn.reject(http.HTTPStatus.BAD_REQUEST, text).serialize()

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message on."""
        if self.curr_msg_data_type == "text":
            self.frames = [b"".join(self.frames).decode(errors="replace").encode()]
        super().send_receive_event_to_app()
