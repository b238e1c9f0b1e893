"""A real server on a free port, and clients of it."""

import contextlib
import json
import threading
import time

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from espnet_speechllm_xl.server.app import Server, bind
from espnet_speechllm_xl.server.limits import ServerConfig
from espnet_speechllm_xl.server.service import Service

TIMEOUT = 60  # seconds, for what should take a moment


class Running:
    """A server in a thread of this process."""

    def __init__(self, speech2text, **config):
        self.config = ServerConfig(port=0, **config)
        self.listener = bind(self.config)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.http = f"http://{self.address}"
        self.service = Service(speech2text, self.config, "tiny")
        self.server = Server(self.service)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def __enter__(self):
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_):
        self.stop()
        self.join()
        self.service.close()

    def stop(self):
        """What SIGTERM does."""
        self.server.should_exit = True

    def join(self):
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()

    def stream(self, query="", **options):
        """A connection of websockets' synchronous client."""
        return connect(f"ws://{self.address}/v1/stream{query}", open_timeout=TIMEOUT, compression=None, **options)

    def ended(self, reason):
        """Streams that ended for this reason so far."""
        return (
            self.service.metrics.registry.get_sample_value("speechllm_xl_streams_ended_total", {"reason": reason}) or 0
        )


def wait_until(holds):
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def pcm(samples):
    """float (n,) as the bytes of 16-bit samples, and what the server makes of them."""
    integers = np.rint(samples * 32767).astype("<i2")
    return integers.tobytes(), integers.astype(np.float32) / 32768


def send(socket, data, size=6400, end=True, pause=0.0):
    """Send PCM in messages of ``size`` bytes."""
    with contextlib.suppress(ConnectionClosed):
        for begin in range(0, len(data), size):
            socket.send(data[begin : begin + size])
            if pause:
                time.sleep(pause)
        if end:
            socket.send('{"type": "end"}')


def receive(socket):
    """``(messages, close code)`` until the server closes."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(json.loads(socket.recv(TIMEOUT)))
    return messages, socket.close_code


def play(server, data, query="", **options):
    """``(messages, close code)`` of a stream that sends all of ``data`` and its end."""
    with server.stream(query) as socket:
        sender = threading.Thread(target=send, args=(socket, data), kwargs=options)
        sender.start()
        answer = receive(socket)
        sender.join(TIMEOUT)
        return answer


def finals(messages):
    return [message for message in messages if message["type"] == "result" and message["is_final"]]


def text(messages):
    """The text of a stream: that of its segments."""
    return " ".join(message["text"] for message in finals(messages))
