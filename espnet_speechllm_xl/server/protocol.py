"""uvicorn's protocols, where what a client sends must not end in a traceback."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class HttpProtocol(H11Protocol):
    """uvicorn's, for requests that go wrong in the middle, such as a bad chunk of an upload."""

    def send_400_response(self, msg: str) -> None:
        """Answer, unless the application has begun to; from now on the client is gone to it."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, for text that is not UTF-8: the session sees marks in it, and refuses it as any other unknown text."""

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message on."""
        if self.curr_msg_data_type == "text":
            self.frames = [b"".join(self.frames).decode(errors="replace").encode()]
        super().send_receive_event_to_app()
