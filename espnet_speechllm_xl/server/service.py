"""What all connections share: the model and its engine, the limits, who is served at the moment."""

import asyncio
import contextlib
import hmac
import math
import time
from urllib.parse import urlsplit

import numpy as np

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.engine import Engine
from espnet_speechllm_xl.server.metrics import Metrics
from espnet_speechllm_xl.server.refusal import Refusal


class Service:
    """One model for many connections.

    Args:
        speech2text: :class:`~espnet_speechllm_xl.inference.Speech2Text`; its search is that of files, and of streams
            unless it needs all audio before the first word.
        config: :class:`~espnet_speechllm_xl.config.ServerConfig`.
        name: what clients are told the model is called.

    Attributes:
        stopping, stopped: set when the server shuts down, and when that was (``time.monotonic()``): nobody is admitted
            any more, streams come to their end.
    """

    def __init__(self, speech2text, config, name):
        self.speech2text, self.config, self.name = speech2text, config, name
        self.engine = Engine(speech2text.model)
        self.metrics = Metrics(self.engine)
        self.stopping, self.stopped = asyncio.Event(), math.inf
        self._served = {"stream": set(), "file": set()}  # tasks
        self.metrics.streams.set_function(lambda: self.served("stream"))

    @property
    def sample_rate(self):
        """Hz of the model."""
        return self.speech2text.sample_rate

    def served(self, kind):
        """How many streams ("stream") or files ("file") are being decoded."""
        return len(self._served[kind])

    def open_stream(self, search=None, chunk_size=None, context=None, **stream_conf):
        """A :class:`~espnet_speechllm_xl.streaming.Stream`; raises UserError for settings that do not fit.

        A stream must be bounded to be served: its window and its segments may last ``max_span_seconds`` at most.
        """
        stream = self.speech2text.stream(search, chunk_size, context, **stream_conf)
        chunk, contexts = stream.chunking.chunk, stream.chunking.context
        window = math.inf if contexts is None else timeline.chunk_seconds(chunk) * (1 + contexts)
        most = self.config.max_span_seconds
        if window > most:
            raise Refusal(
                "bad-setting", f"chunk and context are {window} s: give a chunk_size and a context within {most} s"
            )
        length = stream.config.endpoint_length
        if length > most:
            raise Refusal("bad-setting", f"endpoint_length {length} s is too long: give at most {most} s")
        return stream

    def warm(self):
        """Decode a moment of silence, so that the first client does not wait for the model's first steps."""
        stream = self.open_stream()
        silence = np.zeros(2 * stream.wanted, np.float32)
        self.engine.submit(stream, stream.consume(silence, final=True)).result()

    def authorise(self, connection):
        """Raises Refusal unless the client of a starlette connection may use the model."""
        headers, token = connection.headers, self.config.token
        if token:
            given = headers.get("authorization", "").removeprefix("Bearer ") or connection.query_params.get("token", "")
            if not hmac.compare_digest(given.encode(), token.encode()):
                raise Refusal(
                    "unauthorized", "wrong or missing token: send 'Authorization: Bearer TOKEN' or '?token=TOKEN'"
                )
        elif "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host"):
            # Without a token, any page that a user of this machine visits could reach a server on its loopback.
            raise Refusal(
                "foreign-origin",
                f"pages of {headers['origin']} may not use this server: open its own page, or serve with --token",
            )

    @contextlib.contextmanager
    def place(self, kind):
        """Among the streams or files that are served; raises Refusal when there is no place."""
        most = self.config.max_streams if kind == "stream" else self.config.max_files
        if self.stopping.is_set():
            raise Refusal("stopping", "the server is stopping: connect again later")
        if self.served(kind) >= most:
            raise Refusal("full", f"the server is full, {most} {kind}s are being decoded: try again later")
        task = asyncio.current_task()
        self._served[kind].add(task)
        try:
            yield
        finally:
            self._served[kind].discard(task)

    async def drain(self):
        """Admit nobody any more and wait, at most ``shutdown_seconds``, for the end of what is served."""
        self.stopped = time.monotonic()
        self.stopping.set()
        served = self._served["stream"] | self._served["file"]
        if served:
            await asyncio.wait(served, timeout=self.config.shutdown_seconds)

    def close(self):
        """End the engine."""
        self.engine.stop()
