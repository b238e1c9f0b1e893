"""One live stream: PCM messages in, results out.

    socket -> _read -> AudioQueue -> _decode -> socket

The queue is bounded: while it is full the socket is not read, and TCP holds the client back.  Audio goes to the engine
in pieces of one encoder segment, so that streams stay in step and none can ask for much at once.  Whatever ends the
audio, what was sent before is decoded and its results are sent first.
"""

import asyncio
import dataclasses
import json
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass

import numpy as np
from starlette.websockets import WebSocketDisconnect

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import StreamConfig
from espnet_speechllm_xl.corpus.audio import AudioError
from espnet_speechllm_xl.corpus.raw_pcm import Pcm
from espnet_speechllm_xl.decoding.output_formats import LiveResults
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.server.refusal import Refusal
from espnet_speechllm_xl.server.service import LAST_WORDS

RATE_DIGITS = 6  # more are no sample rate


@dataclass(frozen=True)
class Ending:
    """Why the audio ended: the client said so, or ``refusal``, or the server stops."""

    reason: str = "end"
    close: int = 1000
    refusal: Refusal | None = None


class SlowReader(Exception):
    """The client does not take its results."""


class AudioQueue:
    """Samples that wait to be decoded, each message with the time when it arrived."""

    def __init__(self, most):
        self.count = 0  # samples
        self.ending = None
        self._most = most
        self._pieces = deque()  # (samples, arrival)
        self._arrival = 0.0  # of the last samples taken
        self._changed = asyncio.Condition()

    async def put(self, samples):
        """Add samples (n,), then wait until there is room again; returns whether that took time."""
        async with self._changed:
            if len(samples):  # messages without audio would pile up
                self._pieces.append((samples, time.monotonic()))
            self.count += len(samples)
            self._changed.notify_all()
            full = self.count > self._most
            await self._changed.wait_for(lambda: self.count <= self._most)
            return full

    async def end(self, samples, ending):
        """Add the last samples (n,)."""
        async with self._changed:
            self._pieces.append((samples, time.monotonic()))
            self.count += len(samples)
            self.ending = ending
            self._changed.notify_all()

    async def take(self, wanted):
        """Wait for ``wanted`` samples or the end: ``(samples (n,), arrival of the last, whether that is the end)``."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.count >= wanted or self.ending is not None)
            taken, missing = [np.zeros(0, np.float32)], wanted
            while self._pieces and missing > 0:
                samples, self._arrival = self._pieces.popleft()
                if len(samples) > missing:
                    self._pieces.appendleft((samples[missing:], self._arrival))
                taken.append(samples[:missing])
                missing -= len(taken[-1])
            self.count -= wanted - missing
            self._changed.notify_all()
            return np.concatenate(taken), self._arrival, self.ending is not None and not self._pieces


class Session:
    """The connection of one client; ``await Session(service, socket).run()``."""

    def __init__(self, service, socket):
        self._service, self._socket, self._config = service, socket, service.config

    async def run(self):
        """Serve the stream to its end, whatever that is; counts it."""
        reason = "disconnected"
        try:
            await self._tell(self._socket.accept())
            try:
                self._service.authorise(self._socket)
                with self._service.place("stream"):
                    ending = await self._serve()
            except Refusal as refusal:
                ending = _refused(refusal)
            except (SlowReader, WebSocketDisconnect):
                raise
            except Exception:  # of the model or of ours: the client must not be left without an answer
                logging.exception("a stream failed")
                message = "the model failed on this stream: connect again; the server's log says more"
                ending = _refused(Refusal("failed", message))
            if ending.refusal:
                await self._send({"type": "error", "code": ending.reason, "message": str(ending.refusal)})
            await self._tell(self._socket.close(ending.close, ending.reason))
            reason = ending.reason
        except SlowReader:
            reason = "slow-reader"
        except WebSocketDisconnect:
            pass
        finally:
            self._service.metrics.ended.labels(reason).inc()

    async def _serve(self):
        """Decode the stream and send all results; returns its :class:`Ending`, or raises."""
        self._open()
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

    def _open(self):
        """Make the stream that the query asks for; raises Refusal."""
        try:
            rate, form, settings = _settings(self._socket.query_params, self._service.sample_rate)
            self._pcm = Pcm(form, rate, self._service.sample_rate)
            self._stream = self._service.open_stream(**settings)
        except Refusal:
            raise
        except AudioError as error:
            raise Refusal("bad-rate" if error.reason == "rate" else "bad-setting", str(error)) from error
        except UserError as error:
            raise Refusal("bad-setting", str(error)) from error
        rate_of_model = self._service.sample_rate
        self._queue = AudioQueue(max(self._stream.wanted, self._config.max_queue_seconds * rate_of_model))
        self._most = self._config.max_stream_seconds * rate_of_model  # samples
        self._began = self._heard = time.monotonic()
        self._resumed = 0.0  # when reading went on after the queue had been full

    async def _greet(self):
        encoder, chunking = self._stream.model.acoustic.encoder.config, self._stream.chunking
        await self._send(
            {
                "type": "ready",
                "sample_rate": self._service.sample_rate,
                "chunk_seconds": None if chunking.chunk is None else timeline.chunk_seconds(chunking.chunk),
                "lookahead_seconds": timeline.frame_start_seconds(encoder.right_context),
                "model": self._service.name,
                "settings": self._service.settings(self._stream),
            }
        )

    async def _send(self, message):
        try:
            await asyncio.wait_for(self._tell(self._socket.send_json(message)), self._config.send_seconds)
        except asyncio.TimeoutError:
            raise SlowReader from None

    @staticmethod
    async def _tell(sending: Awaitable[None]) -> None:
        """Await what goes to the client; a connection that the protocol has closed meanwhile is a client that is gone.

        Raises WebSocketDisconnect.
        """
        try:
            await sending
        except (
            RuntimeError,
            OSError,
        ) as error:  # uvicorn's names for "closed": after a frame that broke the rules, too
            raise WebSocketDisconnect(1006) from error

    # Reading

    async def _read(self):
        """Take messages until the client is gone; after the end of the audio they are ignored."""
        while (message := await self._message())["type"] != "websocket.disconnect":
            if self._queue.ending is None:
                try:
                    await self._take(message)
                except Refusal as refusal:
                    await self._end(_refused(refusal))

    async def _message(self):
        """The next message; while there is none, limits may end the audio."""
        receive = asyncio.ensure_future(self._socket.receive())
        try:
            while True:
                left, ending = self._limit()
                if left <= 0:
                    await self._end(ending)
                elif receive.done():
                    return receive.result()
                waits = {receive} if self._stopping.done() else {receive, self._stopping}
                timeout = left if 0 < left < math.inf else None
                await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            receive.cancel()

    def _limit(self):
        """Seconds until the audio ends if nothing happens, and the :class:`Ending` that it then has."""
        if self._queue.ending is not None:
            return math.inf, None
        idle, most = self._config.idle_seconds, self._config.max_stream_seconds
        advice = 'send audio, or {"type": "end"} after the last'
        limits = [
            (self._heard + idle, _refused(Refusal("idle", f"no audio for {idle} s: {advice}"))),
            (self._began + most, _refused(_too_long(most))),
            (max(self._service.stopped, self._resumed) + LAST_WORDS, Ending("stopping", 1001)),
        ]
        when, ending = min(limits, key=lambda limit: limit[0])
        return when - time.monotonic(), ending

    async def _take(self, message):
        """Queue the audio of a message, or end it; raises Refusal."""
        data = message.get("bytes")
        if data is None:
            return await self._command(message["text"])
        if len(data) > self._config.max_message_bytes:
            most = self._config.max_message_bytes
            raise Refusal("too-big", f"a message of {len(data)} bytes: send at most {most} bytes at a time")
        samples = self._samples(data)
        if len(samples) > self._most:
            await self._queue.put(samples[: int(self._most)])
            raise _too_long(self._config.max_stream_seconds)
        self._most -= len(samples)
        if await self._queue.put(samples):
            self._resumed = time.monotonic()
        if data:
            self._heard = time.monotonic()

    def _samples(self, data):
        try:
            samples = self._pcm.samples(data)
        except AudioError as error:
            raise Refusal("bad-audio", str(error)) from error
        if self._pcm.bytes_left:
            raise Refusal("bad-message", f"a message of {len(data)} bytes holds half a sample: send whole ones")
        return samples

    async def _command(self, text):
        if len(text) > self._config.max_message_bytes:
            raise Refusal("too-big", f"a text message of {len(text)} characters: audio is binary")
        try:
            command = json.loads(text)
        except (ValueError, RecursionError):
            command = None
        if not isinstance(command, dict) or command.get("type") != "end":
            raise Refusal(
                "bad-message", f'text message {text[:50]!r}: only {{"type": "end"}} is known; audio is binary'
            )
        await self._end(Ending())

    async def _end(self, ending):
        try:
            samples = self._pcm.rest()
        except AudioError as error:
            samples, ending = np.zeros(0, np.float32), _refused(Refusal("bad-audio", str(error)))
        await self._queue.end(samples, ending)

    # Decoding

    async def _decode(self):
        """Decode what is queued and send the results, to the end of the audio; returns its :class:`Ending`."""
        results, final, seconds = LiveResults(), False, 0.0
        while not final:
            samples, arrival, final = await self._queue.take(self._stream.wanted)
            taken = time.monotonic()
            update = await self._advance(samples, final)
            before, seconds = seconds, self._stream.seconds
            self._service.metrics.audio.labels("stream").inc(seconds - before)
            news = results.of(update, seconds)
            for result in news:
                await self._send_result(result, arrival, taken)
            if seconds > before and not news:
                await self._send({"type": "progress", "time": seconds})
        if self._queue.ending.refusal is None:
            remarks = list(self._pcm.remarks().values())
            await self._send({"type": "end", "time": seconds, **({"remarks": remarks} if remarks else {})})
        return self._queue.ending

    async def _advance(self, samples, final):
        return await asyncio.wrap_future(
            self._service.engine.submit(self._stream, self._stream.consume(samples, final))
        )

    async def _send_result(self, result, arrival, taken):
        """``arrival`` of the audio that completed the chunk, and when it was ``taken`` from the queue (monotonic)."""
        latency = time.monotonic() - arrival
        self._service.metrics.latency.observe(latency)
        times = {"latency": round(latency, 4), "queued": round(taken - arrival, 4)}
        await self._send({"type": "result", **result, **times})


def _refused(refusal):
    return Ending(refusal.code, refusal.close, refusal)


def _too_long(seconds):
    return Refusal("too-long", f"a stream may last {seconds} s: open another one")


def _settings(query, sample_rate):
    """``(rate in Hz, format, keyword arguments of Service.open_stream)`` of a query; raises Refusal."""
    known = ["search", "chunk_size", "context", *(field.name for field in dataclasses.fields(StreamConfig))]
    for name in query:
        if name not in ("rate", "format", "token", *known):
            raise Refusal(
                "bad-setting", f"'{name}' is no setting of a stream: known are rate, format, {', '.join(known)}"
            )
    rate, form = query.get("rate", str(sample_rate)), query.get("format", "s16")
    if not rate.isdecimal() or len(rate) > RATE_DIGITS:
        raise Refusal("bad-rate", f"rate {rate[:50]}: give whole Hz")
    settings = {name: query[name] for name in known if query.get(name)}
    for name in settings.keys() - {"search"}:
        try:
            settings[name] = float(settings[name])
        except ValueError:
            raise Refusal("bad-setting", f"{name} '{settings[name]}' is no number: give seconds") from None
    return int(rate), form, settings
