"""What all connections share: the model and its engine, the limits, who is served at the moment."""

import asyncio
import contextlib
import dataclasses
import hmac
import ipaddress
import math
import time
from urllib.parse import urlsplit

import numpy as np

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import StreamConfig
from espnet_speechllm_xl.decoding.engine import Engine
from espnet_speechllm_xl.server.limits import LOOPBACK
from espnet_speechllm_xl.server.metrics import Metrics
from espnet_speechllm_xl.server.refusal import Refusal

LAST_WORDS = 0.25  # seconds that a stopping server goes on reading: what was sent has arrived by then


class Service:
    """One model for many connections.

    Args:
        speech2text: :class:`~espnet_speechllm_xl.inference.Speech2Text`; its search is that of files, and of streams
            unless it needs all audio before the first word.
        config: :class:`~espnet_speechllm_xl.server.limits.ServerConfig`.
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

    def describe(self) -> dict:
        """The model in OpenAI's form; ``settings`` are those of a stream whose query says no others."""
        settings = self.settings(self.open_stream())
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "user", "settings": settings}

    @staticmethod
    def settings(stream) -> dict:
        """A stream's settings by their names in its query, its beam and CTC's weight; seconds, None for infinity."""
        chunking, search = stream.chunking, stream.search.config
        seconds = {
            "chunk_size": timeline.chunk_seconds(chunking.chunk),
            "context": math.inf if chunking.chunk is None else timeline.context_seconds(chunking),
            **dataclasses.asdict(stream.config),
        }
        finite = {name: round(value, 3) if value < math.inf else None for name, value in seconds.items()}
        return {"search": search.method, "beam_size": search.beam_size, "ctc_weight": search.ctc_weight, **finite}

    def open_stream(self, search=None, chunk_size=None, context=None, **stream_conf):
        """A :class:`~espnet_speechllm_xl.decoding.streams.Stream`; raises UserError for settings that do not fit.

        A stream must be bounded to be served: its window, its segments and what the beam disputes may last
        ``max_span_seconds`` at most.
        """
        most = self.config.max_span_seconds
        stream_conf.setdefault("endpoint_length", min(StreamConfig.endpoint_length, most))
        stream = self.speech2text.stream(search, chunk_size, context, **stream_conf)
        chunk, contexts = stream.chunking.chunk, stream.chunking.context
        window = math.inf if contexts is None else timeline.chunk_seconds(chunk) * (1 + contexts)
        if window > most:
            raise Refusal(
                "bad-setting", f"chunk and context are {window} s: give a chunk_size and a context within {most} s"
            )
        if not stream.config.has_endpoints:
            raise Refusal("bad-setting", "endpoint_length and endpoint_silence are both inf: give one of them")
        for name in ("endpoint_length", "settle_seconds"):
            seconds = getattr(stream.config, name)
            if seconds > most:
                raise Refusal("bad-setting", f"{name} {seconds} s is too long: give at most {most} s")
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
            scheme, _, given = headers.get("authorization", "").partition(" ")
            given = given.encode("latin-1")  # what headers are
            if scheme.lower() != "bearer":
                given = connection.query_params.get("token", "").encode()
            if not hmac.compare_digest(given, token.encode()):
                raise Refusal(
                    "unauthorized", "wrong or missing token: send 'Authorization: Bearer TOKEN' or '?token=TOKEN'"
                )
            return
        # Without a token, any page that a user of this machine visits could reach a server on its loopback.
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._is_called(host):
            raise Refusal(
                "unknown-host",
                f"this server is not known as {host}: call it localhost, by its IP address or as --host "
                "has it, or serve with --token",
            )
        if origin not in (None, f"http://{host}", f"https://{host}", *self.config.allow_origin):
            raise Refusal(
                "foreign-origin",
                f"pages of {origin} may not use this server: open its own page under the name localhost or "
                "that of --host, or serve with --allow-origin or --token",
            )

    def _is_called(self, host):
        """Whether ``Host`` names this server: whoever owns a name can let it mean 127.0.0.1, but not an address."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in (*LOOPBACK, self.config.host.lower()) or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

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
