"""One live stream: PCM messages in, results out.

    socket -> _read -> AudioQueue -> _decode -> socket

The queue is bounded: while it is full the socket is not read, and TCP holds the client back.  Audio goes to the engine
in pieces of one encoder segment, so that streams stay in step and none can ask for much at once.  Whatever ends the
audio, the audio before is decoded and its results are sent first.
"""

import asyncio
import dataclasses
import functools
import json
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

import numpy as np
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import StreamConfig
from espnet_speechllm_xl.corpus.audio import AudioError
from espnet_speechllm_xl.corpus.raw_pcm import Pcm
from espnet_speechllm_xl.decoding.engine import alone
from espnet_speechllm_xl.decoding.output_formats import LiveResults
from espnet_speechllm_xl.decoding.results import Update
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.server.refusal import Refusal
from espnet_speechllm_xl.server.service import LAST_WORDS, Service

RATE_DIGITS = 6  # no sample rate has more
FIELDS = {"phrases": {"type", "phrases"}, "flush": {"type"}, "end": {"type"}}  # of each text message


@dataclass(frozen=True)
class Ending:
    """Why the audio ended: the client ended it, the server refused it, or the server stops."""

    reason: str = "end"  # as the metrics count it
    close: int = 1000  # WebSocket close code
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Flush:
    """The client asks for the final text of the audio so far; more may follow."""


class SlowReader(Exception):
    """The client does not read its results."""


class AudioQueue:
    """Samples that wait to be decoded and flushes between them, each message with its time of arrival.

    Args:
        max_samples: with more samples than that the queue is full, a flush counted as one; the last message may exceed
            it.
    """

    def __init__(self, max_samples: float) -> None:
        self.count = 0  # samples
        self.ending: Ending | None = None
        self._max_samples = max_samples
        self._flushes = 0  # that wait
        self._pieces: deque[tuple[np.ndarray | Flush, float]] = deque()  # (samples, arrival)
        self._arrival = 0.0  # monotonic time when the samples taken last arrived
        self._changed = asyncio.Condition()

    async def put(self, samples: np.ndarray) -> bool:
        """Add samples (n,), then wait until the queue is not full; return whether it was full."""
        async with self._changed:
            if len(samples):  # messages without audio would pile up
                self._pieces.append((samples, time.monotonic()))
            self.count += len(samples)
            return await self._hold_back()

    async def flush(self) -> bool:
        """Add a flush, then wait until the queue is not full; return whether it was full."""
        async with self._changed:
            self._pieces.append((Flush(), time.monotonic()))
            self._flushes += 1
            return await self._hold_back()

    async def _hold_back(self) -> bool:
        """Tell the taker of what was added, then wait until the queue is not full; return whether it was full."""
        self._changed.notify_all()
        full = self._is_full()
        await self._changed.wait_for(lambda: not self._is_full())
        return full

    def _is_full(self) -> bool:
        return self.count + self._flushes > self._max_samples

    async def end(self, samples: np.ndarray, ending: Ending) -> None:
        """Add the last samples (n,)."""
        async with self._changed:
            self._pieces.append((samples, time.monotonic()))
            self.count += len(samples)
            self.ending = ending
            self._changed.notify_all()

    async def take(self, wanted: int) -> tuple[np.ndarray, float, Ending | Flush | None]:
        """Wait for ``wanted`` samples, a flush or the end of the audio.

        Returns:
            The samples (n,), the monotonic time when the last of them, or the flush, arrived, and what stands behind
            them: a flush, or the ending if no more will come.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self.count >= wanted or self._flushes or self.ending is not None)
            taken, missing = [np.zeros(0, np.float32)], wanted
            flush: Flush | None = None
            while self._pieces and missing > 0 and flush is None:
                piece, self._arrival = self._pieces.popleft()
                if isinstance(piece, Flush):
                    flush = piece
                    self._flushes -= 1
                    continue
                if len(piece) > missing:
                    self._pieces.appendleft((piece[missing:], self._arrival))
                taken.append(piece[:missing])
                missing -= len(taken[-1])
            self.count -= wanted - missing
            self._changed.notify_all()
            return np.concatenate(taken), self._arrival, flush or (None if self._pieces else self.ending)


class Session:
    """The connection of one client; ``await Session(service, socket).run()``."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service, self._socket, self._config = service, socket, service.config

    async def run(self) -> None:
        """Serve the stream to its end and count it by the reason of its end."""
        reason = "disconnected"
        try:
            await self._deliver(self._socket.accept())
            try:
                self._service.authorise(self._socket)
                with self._service.place("stream"):
                    ending = await self._serve()
            except Refusal as refusal:
                ending = _refused(refusal)
            except (SlowReader, WebSocketDisconnect):
                raise
            except Exception:  # whatever failed, the client must get an answer
                logging.exception("a stream failed")
                message = "the model failed on this stream: connect again; the server's log says more"
                ending = _refused(Refusal("failed", message))
            if ending.refusal:
                await self._send({"type": "error", "code": ending.reason, "message": str(ending.refusal)})
            await self._deliver(self._socket.close(ending.close, ending.reason))
            reason = ending.reason
        except SlowReader:
            reason = "slow-reader"
        except WebSocketDisconnect:
            pass
        finally:
            self._service.metrics.ended.labels(reason).inc()

    async def _serve(self) -> Ending:
        """Decode the stream, send all results and return its ending."""
        await self._open()
        await self._greet()
        reader, decoder = asyncio.create_task(self._read()), asyncio.create_task(self._decode())
        self._stopping = asyncio.create_task(self._service.stopping.wait())
        try:
            await asyncio.wait({reader, decoder}, return_when=asyncio.FIRST_COMPLETED)
            if not decoder.done():
                reader.result()
                raise WebSocketDisconnect
            return decoder.result()
        finally:
            for task in (reader, decoder, self._stopping):
                task.cancel()
            await asyncio.gather(reader, decoder, self._stopping, return_exceptions=True)
            self._service.engine.cancel(self._stream)

    async def _open(self) -> None:
        """Open the stream that the query asks for; raise Refusal if that cannot be."""
        try:
            settings = _parse_query(self._socket.query_params, self._service.sample_rate)
            self._pcm = Pcm(settings.pcm_format, settings.rate, self._service.sample_rate)
            opening = functools.partial(
                self._service.open_stream, settings.search, prompt=settings.prompt, **settings.seconds
            )
            # The decoder reads the prompt, which takes a while: in the engine's thread, so that others are served.
            self._stream = await asyncio.wrap_future(self._service.engine.submit(self, alone(opening)))
        except Refusal:
            raise
        except AudioError as error:
            raise Refusal("bad-rate" if error.reason == "rate" else "bad-setting", str(error)) from error
        except UserError as error:
            raise Refusal("bad-setting", str(error)) from error
        rate_of_model = self._service.sample_rate
        self._queue = AudioQueue(max(self._stream.wanted, self._config.max_queue_seconds * rate_of_model))
        self._any_audio = False
        self._samples_left = self._config.max_stream_seconds * rate_of_model
        self._opened_at = self._last_audio_at = time.monotonic()
        self._resumed_at = 0.0  # when reading went on after the queue had been full

    async def _greet(self) -> None:
        encoder, chunking = self._stream.model.acoustic.encoder.config, self._stream.chunking
        remarks = self._stream.remarks
        await self._send(
            {
                "type": "ready",
                "sample_rate": self._service.sample_rate,
                "chunk_seconds": None if chunking.chunk is None else timeline.chunk_seconds(chunking.chunk),
                "lookahead_seconds": timeline.frame_start_seconds(chunking.right_context(encoder)),
                "model": self._service.name,
                "settings": self._service.settings(self._stream),
                **({"remarks": remarks} if remarks else {}),
            }
        )

    async def _send(self, message: Mapping[str, object]) -> None:
        """Send a message as JSON; raise SlowReader when that takes longer than ``send_seconds``."""
        try:
            await asyncio.wait_for(self._deliver(self._socket.send_json(message)), self._config.send_seconds)
        except asyncio.TimeoutError:
            raise SlowReader from None

    @staticmethod
    async def _deliver(sending: Awaitable[None]) -> None:
        """Await a send to the client; raise WebSocketDisconnect if the protocol has closed the connection meanwhile."""
        try:
            await sending
        except (RuntimeError, OSError) as error:  # uvicorn's words for "closed", also after a frame against the rules
            raise WebSocketDisconnect(1006) from error

    # Reading

    async def _read(self) -> None:
        """Take messages until the client is gone; ignore them after the end of the audio."""
        while (message := await self._message())["type"] != "websocket.disconnect":
            if self._queue.ending is None:
                try:
                    await self._take(message)
                except Refusal as refusal:
                    await self._end(_refused(refusal))

    async def _message(self) -> Message:
        """Wait for the next message; end the audio when a limit is reached before."""
        receive = asyncio.ensure_future(self._socket.receive())
        try:
            while True:
                left, ending = self._limit()
                if left <= 0:
                    await self._end(ending)
                elif receive.done():
                    return receive.result()
                waits: set[asyncio.Future] = {receive} if self._stopping.done() else {receive, self._stopping}
                timeout = left if 0 < left < math.inf else None
                await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            receive.cancel()

    def _limit(self) -> tuple[float, Ending]:
        """Return the seconds until the audio ends if nothing happens, and the ending that it then has."""
        if self._queue.ending is not None:
            return math.inf, self._queue.ending
        idle, longest = self._config.idle_seconds, self._config.max_stream_seconds
        advice = 'send audio, or {"type": "end"} after the last'
        limits = [
            (self._last_audio_at + idle, _refused(Refusal("idle", f"no audio for {idle} s: {advice}"))),
            (self._opened_at + longest, _refused(_too_long(longest))),
            (max(self._service.stopped_at, self._resumed_at) + LAST_WORDS, Ending("stopping", 1001)),
        ]
        when, ending = min(limits, key=lambda limit: limit[0])
        return when - time.monotonic(), ending

    async def _take(self, message: Message) -> None:
        """Queue the audio of a message, or obey its command; raise Refusal for anything else."""
        data = message.get("bytes")
        if data is None:
            return await self._obey(message["text"])
        if len(data) > self._config.max_message_bytes:
            limit = self._config.max_message_bytes
            raise Refusal("too-big", f"a message of {len(data)} bytes: send at most {limit} bytes at a time")
        self._any_audio = True
        await self._put(self._samples(data))
        if data:
            self._last_audio_at = time.monotonic()

    async def _put(self, samples: np.ndarray) -> None:
        """Queue samples (n,); raise Refusal when the stream gets too long."""
        if len(samples) > self._samples_left:
            await self._queue.put(samples[: int(self._samples_left)])
            raise _too_long(self._config.max_stream_seconds)
        self._samples_left -= len(samples)
        if await self._queue.put(samples):
            self._resumed_at = time.monotonic()

    def _samples(self, data: bytes) -> np.ndarray:
        """Turn a message of PCM into samples (n,) at the model's rate; raise Refusal if it ends inside a sample."""
        try:
            samples = self._pcm.samples(data)
        except AudioError as error:
            raise Refusal("bad-audio", str(error)) from error
        if self._pcm.bytes_left:
            raise Refusal("bad-message", f"a message of {len(data)} bytes holds half a sample: send whole ones")
        return samples

    async def _obey(self, text: str) -> None:
        """Expect phrases, flush or end the audio, as the message says; raise Refusal for any other text."""
        if len(text) > self._config.max_message_bytes:
            raise Refusal("too-big", f"a text message of {len(text)} characters: audio is binary")
        try:
            command = json.loads(text)
        except (ValueError, RecursionError):
            command = None
        kind = command.get("type") if isinstance(command, dict) else None
        if not isinstance(kind, str) or not set(command) <= FIELDS.get(kind, set()):
            known = '{"type": "end"}, {"type": "flush"} and {"type": "phrases", "phrases": [...]} are known'
            raise Refusal("bad-message", f"text message {text[:50]!r}: only {known}; audio is binary")
        if kind == "phrases":
            await self._expect(command.get("phrases"))
        elif kind == "flush":
            await self._flush()
        else:
            await self._end(Ending())

    async def _expect(self, lines: object) -> None:
        """Let the stream expect phrases; raise Refusal where they are no list of texts, come too late or are bad."""
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise Refusal("bad-message", "phrases are no list of texts: send one text for each phrase")
        if self._any_audio:
            raise Refusal("bad-message", "phrases came behind audio: send them before the first")
        # Of thousands of phrases the tree takes a while to build.  Nothing is decoded before audio has come.
        self._stream.search.expect(await asyncio.to_thread(self._service.phrase_tree, lines))

    async def _flush(self) -> None:
        """Queue the samples that the resampler still holds, and a flush; raise Refusal if they are no audio."""
        try:
            samples = self._pcm.rest()
        except AudioError as error:
            raise Refusal("bad-audio", str(error)) from error
        await self._put(samples)
        if await self._queue.flush():
            self._resumed_at = time.monotonic()

    async def _end(self, ending: Ending) -> None:
        """Queue the samples that the resampler still holds, and the ending."""
        try:
            samples = self._pcm.rest()
        except AudioError as error:
            samples, ending = np.zeros(0, np.float32), _refused(Refusal("bad-audio", str(error)))
        await self._queue.end(samples, ending)

    # Decoding

    async def _decode(self) -> Ending:
        """Decode the queued audio to its end, send the results and return the ending."""
        live_results, seconds = LiveResults(), 0.0
        behind: Ending | Flush | None = None
        while not isinstance(behind, Ending):
            samples, arrival, behind = await self._queue.take(self._stream.wanted)
            taken = time.monotonic()
            update = await self._advance(samples, behind)
            before, seconds = seconds, self._stream.seconds
            self._service.metrics.audio.labels("stream").inc(seconds - before)
            results = live_results.of(update, seconds)
            for result in results:
                await self._send_result(result, arrival, taken)
            if isinstance(behind, Flush):
                await self._send({"type": "flushed", "time": seconds})
            elif seconds > before and not results:
                await self._send({"type": "progress", "time": seconds})
        if behind.refusal is None:
            remarks = list(self._pcm.remarks().values())
            await self._send({"type": "end", "time": seconds, **({"remarks": remarks} if remarks else {})})
        return behind

    async def _advance(self, samples: np.ndarray, behind: Ending | Flush | None) -> Update:
        """Decode samples (n,), and what stands behind them, in the engine."""
        final, flush = isinstance(behind, Ending), isinstance(behind, Flush)
        return await asyncio.wrap_future(
            self._service.engine.submit(self._stream, self._stream.consume(samples, final, flush))
        )

    async def _send_result(self, result: Mapping[str, object], arrival: float, taken: float) -> None:
        """Send a result with its latency.

        Args:
            result: JSON object of the result.
            arrival: monotonic time when the audio that completed the chunk arrived.
            taken: monotonic time when that audio was taken from the queue.
        """
        latency = time.monotonic() - arrival
        self._service.metrics.latency.observe(latency)
        times = {"latency": round(latency, 4), "queued": round(taken - arrival, 4)}
        await self._send({"type": "result", **result, **times})


def _refused(refusal: Refusal) -> Ending:
    return Ending(refusal.code, refusal.close, refusal)


def _too_long(seconds: float) -> Refusal:
    return Refusal("too-long", f"a stream may last {seconds} s: open another one")


@dataclass(frozen=True)
class _StreamSettings:
    """The settings of a stream in its query."""

    rate: int  # Hz of the PCM
    pcm_format: str
    search: str | None  # name; None: the default
    prompt: str
    seconds: dict[str, float]  # the other arguments of Service.open_stream


def _parse_query(query: Mapping[str, str], sample_rate: int) -> _StreamSettings:
    """Read the settings in a query, whose default rate is ``sample_rate``; raise Refusal for a bad one."""
    durations = ["chunk_size", "context", "look_ahead", *(field.name for field in dataclasses.fields(StreamConfig))]
    known = ["rate", "format", "search", *durations, "prompt"]
    for name in query:
        if name not in ("token", *known):
            raise Refusal("bad-setting", f"'{name}' is no setting of a stream: known are {', '.join(known)}")
    rate = query.get("rate", str(sample_rate))
    if not rate.isdecimal() or len(rate) > RATE_DIGITS:
        raise Refusal("bad-rate", f"rate {rate[:50]}: give whole Hz")
    seconds = {}
    for name in durations:
        if query.get(name):
            try:
                seconds[name] = float(query[name])
            except ValueError:
                raise Refusal("bad-setting", f"{name} '{query[name]}' is no number: give seconds") from None
    pcm_format, search = query.get("format", "s16"), query.get("search") or None
    return _StreamSettings(int(rate), pcm_format, search, query.get("prompt", ""), seconds)
