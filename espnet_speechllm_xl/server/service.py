"""The shared part of all connections: the model and its engine, the limits, the streams and files being served."""

import asyncio
import contextlib
import dataclasses
import hmac
import ipaddress
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from starlette.requests import HTTPConnection

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import StreamConfig
from espnet_speechllm_xl.decoding.engine import Engine
from espnet_speechllm_xl.decoding.phrases import PhraseTree
from espnet_speechllm_xl.decoding.prompts import prompt_tokens
from espnet_speechllm_xl.decoding.streams import Stream
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.server.limits import LOOPBACK, ServerConfig
from espnet_speechllm_xl.server.metrics import Metrics
from espnet_speechllm_xl.server.refusal import Refusal

if TYPE_CHECKING:
    from espnet_speechllm_xl.inference import Speech2Text

LAST_WORDS = 0.25  # seconds that a stopping server reads on: whatever was sent before has arrived by then

Kind = Literal["stream", "file"]  # what a client may have decoded


class Service:
    """One model for many connections.

    Args:
        speech2text: the loaded model.  Files are decoded with its search, and so are streams unless the search needs
            all audio before the first word.
        config: the limits.
        name: name of the model for clients.

    Attributes:
        stopping: set when the server shuts down.  Then nobody is admitted any more and streams come to their end.
        stopped_at: time of that (``time.monotonic()``); infinity before.
    """

    def __init__(self, speech2text: "Speech2Text", config: ServerConfig, name: str) -> None:
        self.speech2text, self.config, self.name = speech2text, config, name
        self.engine = Engine(speech2text.model)
        self.metrics = Metrics(self.engine)
        self.stopping, self.stopped_at = asyncio.Event(), math.inf
        self._served: dict[Kind, set[asyncio.Task]] = {"stream": set(), "file": set()}
        self.metrics.streams.set_function(lambda: self.served("stream"))

    @property
    def sample_rate(self) -> int:
        """Return the sample rate of the model in Hz."""
        return self.speech2text.sample_rate

    def served(self, kind: Kind) -> int:
        """Count the streams or the files that are being decoded."""
        return len(self._served[kind])

    def describe(self) -> dict[str, object]:
        """Describe the model in OpenAI's form; ``settings`` are the defaults of a stream."""
        openai = {"id": self.name, "object": "model", "created": 0, "owned_by": "user"}
        return {**openai, "settings": self.settings(self.open_stream()), "takes_prompts": self.takes_prompts}

    @property
    def takes_prompts(self) -> bool:
        """Tell whether the model was trained with prompts."""
        return self.speech2text.model.decoder.most_prompt_tokens > 0

    def prompted(self, prompt: str) -> Any:  # noqa: ANN401  # as Speech2Text.prompted
        """Return the model for audio with a prompt; the model itself where the prompt is empty.

        Raises:
            Refusal: the prompt is too long, or the model takes none.
        """
        limit, tokens = self.config.max_prompt_tokens, prompt_tokens(self.speech2text.tokenizer, prompt)
        if self.takes_prompts and len(tokens) > limit:
            raise Refusal("bad-setting", f"the prompt has {len(tokens)} tokens: give at most {limit}")
        try:
            return self.speech2text.prompted(prompt)
        except UserError as error:
            raise Refusal("bad-setting", str(error)) from error

    def phrase_tree(self, lines: Sequence[str]) -> PhraseTree | None:
        """Return phrases as a stream or file takes them; None where there are none.  It may take a while.

        Args:
            lines: see :meth:`Speech2Text.phrase_tree`.

        Raises:
            Refusal: there are too many, or some are bad.
        """
        limit = self.config.max_phrases
        if len(lines) > limit:
            raise Refusal("bad-setting", f"there are {len(lines)} phrases: give at most {limit}")
        try:
            return self.speech2text.phrase_tree(lines)
        except UserError as error:
            raise Refusal("bad-setting", str(error)) from error

    @staticmethod
    def settings(stream: Stream) -> dict[str, object]:
        """Return a stream's settings by their names in a query, with its beam and the weight of CTC.

        Durations are in seconds; None is infinity.
        """
        chunking, search_config = stream.chunking, stream.search.config
        seconds = {
            "chunk_size": timeline.chunk_seconds(chunking.chunk),
            "context": math.inf if chunking.chunk is None else timeline.context_seconds(chunking),
            "look_ahead": timeline.frame_start_seconds(chunking.right_context(stream.model.acoustic.encoder.config)),
            **dataclasses.asdict(stream.config),
        }
        finite = {name: round(value, 3) if value < math.inf else None for name, value in seconds.items()}
        return {
            "search": search_config.method,
            "beam_size": search_config.beam_size,
            "ctc_weight": search_config.ctc_weight,
            **finite,
        }

    def open_stream(
        self,
        search: str | None = None,
        chunk_size: float | None = None,
        context: float | None = None,
        look_ahead: float | None = None,
        prompt: str = "",
        **stream_conf: float,
    ) -> Stream:
        """Open a stream that is bounded in memory.

        Its window, its segments and the text on which its hypotheses differ last ``max_span_seconds`` at most.

        Args:
            search: name of the search; None: the model's.
            chunk_size: seconds; None: the model's.
            context: seconds of the chunks before the current one; None: the model's.
            look_ahead: seconds; None: the model's.
            prompt: text that the decoder reads first; "": none.
            stream_conf: fields of :class:`~espnet_speechllm_xl.config.StreamConfig`.

        Raises:
            UserError: the settings do not fit one another, the model or the limits.
        """
        limit = self.config.max_span_seconds
        stream_conf.setdefault("endpoint_length", min(StreamConfig.endpoint_length, limit))
        self.prompted(prompt)  # refuses a bad one before anything is computed
        stream = self.speech2text.stream(search, chunk_size, context, look_ahead, prompt, None, **stream_conf)
        chunk_size_frames, num_context = stream.chunking.chunk, stream.chunking.context
        window = math.inf if num_context is None else timeline.chunk_seconds(chunk_size_frames) * (1 + num_context)
        if window > limit:
            raise Refusal(
                "bad-setting", f"chunk and context are {window} s: give a chunk_size and a context within {limit} s"
            )
        if look_ahead is not None and look_ahead > limit:
            raise Refusal("bad-setting", f"look_ahead {look_ahead} s is too long: give at most {limit} s")
        if not stream.config.has_endpoints:
            raise Refusal("bad-setting", "endpoint_length and endpoint_silence are both inf: give one of them")
        for name in ("endpoint_length", "settle_seconds"):
            seconds = getattr(stream.config, name)
            if seconds > limit:
                raise Refusal("bad-setting", f"{name} {seconds} s is too long: give at most {limit} s")
        return stream

    def warm(self) -> None:
        """Decode a moment of silence: a model's first steps are slow, and no client shall wait for them."""
        stream = self.open_stream()
        silence = np.zeros(2 * stream.wanted, np.float32)
        self.engine.submit(stream, stream.consume(silence, final=True)).result()

    def authorise(self, connection: HTTPConnection) -> None:
        """Raise Refusal unless the client may use the model."""
        headers, token = connection.headers, self.config.token
        if token:
            scheme, _, credentials = headers.get("authorization", "").partition(" ")
            sent = credentials.encode("latin-1")  # the encoding of headers
            if scheme.lower() != "bearer":
                sent = connection.query_params.get("token", "").encode()
            if not hmac.compare_digest(sent, token.encode()):
                raise Refusal(
                    "unauthorized", "wrong or missing token: send 'Authorization: Bearer TOKEN' or '?token=TOKEN'"
                )
            return
        # Without a token, any web page that a user of this machine opens could reach the server on its loopback.
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._is_own_name(host):
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

    def _is_own_name(self, host: str) -> bool:
        """Tell whether the header ``Host`` names this server.

        Any address will do, but not any name: the owner of a name can make it mean 127.0.0.1.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in (*LOOPBACK, self.config.host.lower()) or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    @contextlib.contextmanager
    def place(self, kind: Kind) -> Iterator[None]:
        """Count the current task among the served streams or files within the block; raise Refusal if all are taken."""
        limit = self.config.max_streams if kind == "stream" else self.config.max_files
        if self.stopping.is_set():
            raise Refusal("stopping", "the server is stopping: connect again later")
        if self.served(kind) >= limit:
            raise Refusal("full", f"the server is full, {limit} {kind}s are being decoded: try again later")
        task = asyncio.current_task()
        assert task is not None, "a connection is served by a task"
        self._served[kind].add(task)
        try:
            yield
        finally:
            self._served[kind].discard(task)

    async def drain(self) -> None:
        """Admit nobody any more; wait until everything is served, ``shutdown_seconds`` at most."""
        self.stopped_at = time.monotonic()
        self.stopping.set()
        served = self._served["stream"] | self._served["file"]
        if served:
            await asyncio.wait(served, timeout=self.config.shutdown_seconds)

    def close(self) -> None:
        """End the engine."""
        self.engine.stop()
