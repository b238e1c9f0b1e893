"""The clients of a load test: many streams that are played at real time to a server, over WebSocket.

A place plays one recording after the other, each as a stream of its own.  N places are N streams at a time.

Shape legend: ``n`` samples.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from espnet_speechllm_xl.benchmarks.load_figures import Answer, Played, Window
from espnet_speechllm_xl.errors import UserError

CONNECT_SECONDS = 30  # a connection and its greeting may take so long
FINAL_SECONDS = 120  # the final text may come so long after the end of the speech
PAUSE_SECONDS = 1.0  # of a place whose stream failed


@dataclass(frozen=True)
class Address:
    """Where the server is, and what every stream asks it for.

    Attributes:
        url: of the server: http://host:port.
        token: secret of the server; None: it has none.
        query: settings of the streams: search=greedy&chunk_size=0.64.
    """

    url: str
    token: str | None = None
    query: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """Return the HTTP headers of every request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def stream(self) -> str:
        """Return the address of a stream."""
        server = urlsplit(self.url)
        scheme = "wss" if server.scheme == "https" else "ws"
        query = f"?{self.query}" if self.query else ""
        return f"{scheme}://{server.netloc}{server.path.rstrip('/')}/v1/stream{query}"


class StreamFailed(Exception):
    """A stream did not come to its end; the message is the reason."""


def _connect(address: Address) -> connect:
    # Without pings: a server that holds its clients back answers them behind their audio.
    return connect(
        address.stream,
        additional_headers=address.headers,
        compression=None,
        open_timeout=CONNECT_SECONDS,
        ping_interval=None,
    )


async def _greeting(socket: ClientConnection) -> dict[str, Any]:
    """Return the server's first message; raise StreamFailed for a refusal."""
    message = json.loads(await asyncio.wait_for(socket.recv(), CONNECT_SECONDS))
    if message["type"] != "ready":
        raise StreamFailed(message.get("message", f"the server began with '{message['type']}'"))
    return message


async def ask_for_final(socket: ClientConnection) -> None:
    """Ask for the final text of what was sent; the answer whose type is "end" says that it is there."""
    await socket.send('{"type": "end"}')


async def greet(address: Address) -> dict[str, Any]:
    """Open a stream without audio, to see whether it is taken; return the server's greeting.

    Raises:
        UserError: there is no such server, or it takes no such stream.
    """
    try:
        async with _connect(address) as socket:
            ready = await _greeting(socket)
            await ask_for_final(socket)
            await asyncio.wait_for(socket.wait_closed(), CONNECT_SECONDS)
            return ready
    except StreamFailed as error:
        raise UserError(f"{address.url} refuses a stream: {error}") from error
    except (InvalidHandshake, InvalidURI, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{address.url} is no server of `speechllm-xl serve` ({error}): give the address that it writes"
        ) from error
    except (OSError, asyncio.TimeoutError, ConnectionClosed) as error:
        raise UserError(
            f"{address.url}: no server answers ({error or 'it took too long'}): start one with `speechllm-xl serve`, "
            "correct --url, or leave it out and give a --model"
        ) from error


@dataclass(frozen=True)
class Pace:
    """How recordings are sent.

    Attributes:
        rate: Hz.
        message: seconds of audio in a message.
        stop: monotonic time when all streams are cut off.
    """

    rate: int
    message: float
    stop: float


async def play(address: Address, recording: NDArray[np.int16], pace: Pace) -> Played:
    """Play one recording as a microphone would, and return what came back, or why it failed.

    Args:
        address: of the server.
        recording: int16 samples (n,).
        pace: how it is sent.
    """
    played = Played(time.monotonic(), 0.0, pace.message, whole=False)
    try:
        async with _connect(address) as socket:
            await _greeting(socket)
            played.begin = time.monotonic()
            sending = asyncio.create_task(_send(socket, recording, pace, played))
            longest = min(len(recording) / pace.rate, pace.stop - played.begin) + FINAL_SECONDS
            try:
                await asyncio.wait_for(_listen(socket, played), longest)
            except asyncio.TimeoutError:
                raise StreamFailed(f"no final text {FINAL_SECONDS} s after the end of the speech") from None
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except StreamFailed as error:
        played.error = str(error)
    except (OSError, asyncio.TimeoutError, InvalidHandshake, ConnectionClosed) as error:
        played.error = f"{type(error).__name__}: {error}"
    played.whole = played.whole and played.error is None
    return played


async def _send(socket: ClientConnection, recording: NDArray[np.int16], pace: Pace, played: Played) -> None:
    """Send each message when its audio would have been spoken, and ask for the final text."""
    size = max(1, round(pace.message * pace.rate))
    for begin in range(0, len(recording), size):
        piece = recording[begin : begin + size]
        due = played.begin + (begin + len(piece)) / pace.rate
        if due > pace.stop:
            break
        await asyncio.sleep(due - time.monotonic())
        await socket.send(piece.tobytes())
        played.seconds = (begin + len(piece)) / pace.rate
    played.whole = played.seconds == len(recording) / pace.rate
    await ask_for_final(socket)


async def _listen(socket: ClientConnection, played: Played) -> None:
    """Take what the server sends until it closes; raise StreamFailed if that is not the stream's end."""
    async for text in socket:
        at, message = time.monotonic(), json.loads(text)
        kind = message["type"]
        if kind == "error":
            raise StreamFailed(message["message"])
        answer = Answer(at, message["time"], kind)
        if kind == "result":
            answer = Answer(at, message["time"], kind, message["text"], message["settled"], message["is_final"])
        played.answers.append(answer)
    if not (played.answers and played.answers[-1].kind == "end"):
        raise StreamFailed(f"the server closed the stream before its end (code {socket.close_code})")
    if socket.close_code != 1000:
        raise StreamFailed(f"the server ended the stream itself (code {socket.close_code}): was it stopped?")


@dataclass(frozen=True)
class Schedule:
    """When the streams of a run begin and what of them counts.

    Attributes:
        spread: seconds over which the places begin, at random.
        warm_up: seconds that all places have played before what they send counts.
        seconds: how long it counts.
        tail: seconds that are played on behind that, so that the last chunks that count are answered under the load.
        message: seconds of audio in a message.
        seed: of the places' begins.
    """

    spread: float
    warm_up: float
    seconds: float
    tail: float
    message: float
    seed: int

    @property
    def lead(self) -> float:
        """Return the seconds of a run before anything counts."""
        return self.spread + self.warm_up

    def waits(self, count: int) -> list[float]:
        """Return the seconds that each of ``count`` places waits before it begins."""
        return np.random.default_rng([self.seed, count]).uniform(0, self.spread, count).tolist()

    def window(self, begin: float) -> Window:
        """Return what counts of a run that begins then."""
        return Window(begin + self.lead, begin + self.lead + self.seconds)


async def play_streams(
    address: Address,
    recordings: Sequence[NDArray[np.int16]],
    rate: int,
    count: int,
    schedule: Schedule,
    window: Window,
) -> list[Played]:
    """Play ``count`` streams at a time until the run is over; return all of them when their final texts are there.

    Args:
        address: of the server.
        recordings: int16 samples (n,) of each.
        rate: Hz.
        count: streams at a time.
        schedule: of the run.
        window: what counts of it.
    """
    pace = Pace(rate, schedule.message, window.end + schedule.tail)
    begin = window.begin - schedule.lead

    async def play_at(place: int, wait: float) -> list[Played]:
        played: list[Played] = []
        await asyncio.sleep(begin + wait - time.monotonic())
        while time.monotonic() < pace.stop - schedule.message:
            number = place + len(played) * count  # so that the places play different recordings
            played.append(await play(address, recordings[number % len(recordings)], pace))
            if played[-1].error:
                await asyncio.sleep(PAUSE_SECONDS)
        return played

    places = [play_at(place, wait) for place, wait in enumerate(schedule.waits(count))]
    return [one for played in await asyncio.gather(*places) for one in played]
