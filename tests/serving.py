"""A real server on a free port, and clients of it."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from espnet_speechllm_xl.server.app import Server, bind
from espnet_speechllm_xl.server.limits import ServerConfig
from espnet_speechllm_xl.server.service import Service

if TYPE_CHECKING:
    from espnet_speechllm_xl.inference import Speech2Text

TIMEOUT = 60  # seconds; everything here should take a moment


class Running:
    """A server in a thread of this process."""

    def __init__(self, speech2text: "Speech2Text", **config: Any) -> None:
        self.config = ServerConfig(port=0, **config)
        self.listener = bind(self.config)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.http = f"http://{self.address}"
        self.service = Service(speech2text, self.config, "tiny")
        self.server = Server(self.service)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def __enter__(self) -> "Running":
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()
        self.service.close()

    def stop(self) -> None:
        """Stop the server as SIGTERM does."""
        self.server.should_exit = True

    def join(self) -> None:
        """Wait until the server has stopped."""
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()

    def stream(self, query: str = "", **options: Any) -> ClientConnection:
        """Connect websockets' synchronous client to a stream; ``options`` go to ``connect``."""
        return connect(f"ws://{self.address}/v1/stream{query}", open_timeout=TIMEOUT, compression=None, **options)

    def ended(self, reason: str) -> float:
        """Count the streams that ended for this reason so far."""
        return (
            self.service.metrics.registry.get_sample_value("speechllm_xl_streams_ended_total", {"reason": reason}) or 0
        )


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def pcm(samples: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Turn float samples (n,) into the bytes of 16-bit PCM; return also the samples that the server reads in them."""
    integers = np.rint(samples * 32767).astype("<i2")
    return integers.tobytes(), integers.astype(np.float32) / 32768


def send(socket: ClientConnection, data: bytes, size: int = 6400, end: bool = True, pause: float = 0.0) -> None:
    """Send PCM in messages of ``size`` bytes with ``pause`` seconds between them, then its end if ``end``."""
    with contextlib.suppress(ConnectionClosed):
        for begin in range(0, len(data), size):
            socket.send(data[begin : begin + size])
            if pause:
                time.sleep(pause)
        if end:
            socket.send('{"type": "end"}')


def receive(socket: ClientConnection) -> tuple[list[dict], int | None]:
    """Return ``(messages, close code)`` when the server has closed the connection."""
    messages: list[dict] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(json.loads(socket.recv(TIMEOUT)))
    return messages, socket.close_code


def play(server: Running, data: bytes, query: str = "", **options: object) -> tuple[list[dict], int | None]:
    """Return ``(messages, close code)`` of a stream of all ``data``; ``options`` go to :func:`send`."""
    with server.stream(query) as socket:
        sender = threading.Thread(target=send, args=(socket, data), kwargs=options)
        sender.start()
        received = receive(socket)
        sender.join(TIMEOUT)
        return received


def finals(messages: list[dict]) -> list[dict]:
    """Return the final results of the segments."""
    return [message for message in messages if message["type"] == "result" and message["is_final"]]


def text(messages: list[dict]) -> str:
    """Return the text of a stream: its segments, joined by spaces."""
    return " ".join(message["text"] for message in finals(messages))
