#!/usr/bin/env python3
"""Measure how many live streams a server keeps up with: N at a time at real time, one row of a Markdown table per N.

    speechllm-xl serve --model MODEL --max-streams 16 &
    local/run.sh python3 local/load_test.py dump/raw/test/wav.scp --streams 1,2,4,8,16,20

Each stream sends audio (the files one after the other) as a microphone would, a message every 0.1 s, the streams at
different moments.  Columns:

    response latency  as the server reports it: from the arrival of the message that completes a chunk
              to sending its result
    client delay  as a client sees it: from sending the audio up to a result's `time`, to receiving the result;
              it includes the look-ahead and the way back, but not the chunk, which has to be spoken first
    behind    from sending the end to receiving the last result, 99th percentile: it grows when the server falls behind
    RTF       seconds that the engine computes for one second of audio; times N, it is the load
    batch     requests that one call of the decoder answers, on average
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from espnet_speechllm_xl.corpus.audio import read_audio, to_int16
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.errors import UserError

RATE = 16000  # Hz of the audio that is sent
HEADER = "| streams | refused | failed | response latency P50 | P99 | client delay P50 | P99 | behind | RTF | batch |"


@dataclass
class Level:
    """Measurements of the clients of one N; times in seconds."""

    latencies: list[float] = field(default_factory=list)  # of each result, as the server reports it
    delays: list[float] = field(default_factory=list)  # of each result, as the client sees it
    behind: list[float] = field(default_factory=list)  # of each stream, from its end to its last result
    refused: int = 0  # streams for which the server was full
    failed: int = 0  # other streams without an end
    messages: set[str] = field(default_factory=set)  # the server's reasons


@dataclass
class Clock:
    """Monotonic times of a stream."""

    begin: float
    end: float | None = None  # when the end was sent


def find_files(name: str) -> list[str]:
    """List the audio files of a ``wav.scp`` or a directory, or the file itself; raise UserError if there are none."""
    path = Path(name)
    if path.is_dir():
        files = sorted(
            str(file) for file in path.rglob("*") if file.suffix.lower() in (".wav", ".flac", ".ogg", ".mp3")
        )
    elif path.suffix == ".scp":
        files = list(read_table(path).values())
    else:
        files = [str(path)]
    if not files:
        raise UserError(f"{path} holds no audio: give a file, a directory of WAV or FLAC files, or a wav.scp")
    return files


def load_audio(files: Sequence[str], seconds: float, seed: int) -> np.ndarray:
    """Join files to int16 samples (n,).

    Args:
        files: their names; they are repeated until there is enough audio.
        seconds: duration of the result.
        seed: of the order of the files.
    """
    order, pieces, missing = np.random.default_rng(seed).permutation(len(files)), [], int(seconds * RATE)
    while missing > 0:
        for index in order:
            samples, _ = to_int16(read_audio(files[index], RATE))
            pieces.append(samples[:missing])
            missing -= len(pieces[-1])
            if missing <= 0:
                break
    return np.concatenate(pieces)


async def client(
    url: str, headers: Mapping[str, str], audio: np.ndarray, message_seconds: float, level: Level, wait: float
) -> None:
    """Play one stream at real time.

    Args:
        url: address of the stream, with its settings.
        headers: HTTP headers of the request.
        audio: int16 samples (n,).
        message_seconds: audio in a message.
        level: takes the measurements.
        wait: seconds before the stream begins.
    """
    await asyncio.sleep(wait)
    try:
        async with connect(url, additional_headers=headers, compression=None, open_timeout=30) as socket:
            ready = json.loads(await socket.recv())
            if ready["type"] == "error":
                level.refused += ready["code"] == "full"
                level.failed += ready["code"] != "full"
                level.messages.add(ready["message"])
                return
            clock = Clock(time.monotonic())
            sender = asyncio.create_task(send(socket, audio, message_seconds, clock))
            try:
                ended = await listen(socket, clock, level)
            finally:
                sender.cancel()
            level.failed += not ended
    except (OSError, InvalidHandshake, ConnectionClosed):
        level.failed += 1


async def send(socket: ClientConnection, audio: np.ndarray, message_seconds: float, clock: Clock) -> None:
    """Send each message when its audio would have been spoken.

    Args:
        socket: the connection.
        audio: int16 samples (n,).
        message_seconds: audio in a message.
        clock: has the begin of the stream and takes its end.
    """
    size = int(message_seconds * RATE)
    for begin in range(0, len(audio), size):
        piece = audio[begin : begin + size]
        await asyncio.sleep(clock.begin + (begin + len(piece)) / RATE - time.monotonic())
        await socket.send(piece.tobytes())
    clock.end = time.monotonic()
    await socket.send('{"type": "end"}')


async def listen(socket: ClientConnection, clock: Clock, level: Level) -> bool:
    """Take results until the server closes; tell whether the stream came to its end.

    Args:
        socket: the connection.
        clock: times of the stream.
        level: takes the measurements.
    """
    last = None
    async for text in socket:
        message = json.loads(text)
        last = message["type"]
        if last == "result" and clock.end is None:
            level.latencies.append(message["latency"])
            level.delays.append(time.monotonic() - clock.begin - message["time"])
        elif last == "end" and clock.end is not None:
            level.behind.append(time.monotonic() - clock.end)
    return last == "end" and clock.end is not None  # a server that stops ends streams early


def counters(url: str, headers: Mapping[str, str]) -> np.ndarray:
    """Read the server's counters so far: (engine seconds, audio seconds, decoder calls, decoder requests)."""
    with urlopen(Request(f"{url}/metrics", headers=dict(headers)), timeout=30) as response:
        text = response.read().decode()
    names = ["engine_busy_seconds_total", 'audio_seconds_total{source="stream"}']
    names += [f'engine_{counter}_total{{kind="token"}}' for counter in ("calls", "requests")]
    values = dict(re.findall(r"^speechllm_xl_(\S+) (\S+)$", text, re.M))
    return np.array([float(values.get(name, 0)) for name in names])


async def measure(
    args: argparse.Namespace, headers: Mapping[str, str], audio: Sequence[np.ndarray], count: int
) -> str:
    """Run ``count`` streams at a time; return the row of the table.

    Args:
        args: the command line.
        headers: HTTP headers of each request.
        audio: int16 samples (n,) of each stream; used again when there are more streams.
        count: number of streams.
    """
    level, query = Level(), f"?rate={RATE}" + (f"&{args.query}" if args.query else "")
    server = urlsplit(args.url)
    scheme = "wss" if server.scheme == "https" else "ws"
    url = f"{scheme}://{server.netloc}{server.path.rstrip('/')}/v1/stream{query}"
    before = await asyncio.to_thread(counters, args.url, headers)
    waits = np.random.default_rng(count).uniform(0, 2, count)
    streams = [client(url, headers, audio[i % len(audio)], args.message, level, waits[i]) for i in range(count)]
    await asyncio.gather(*streams)
    for message in sorted(level.messages):
        print(f"load_test.py: {message}", file=sys.stderr)
    busy, decoded, calls, requests = await asyncio.to_thread(counters, args.url, headers) - before
    cells = [str(count), str(level.refused), str(level.failed)]
    cells += [percentile(level.latencies, p) for p in (50, 99)] + [percentile(level.delays, p) for p in (50, 99)]
    cells += [percentile(level.behind, 99), f"{busy / max(decoded, 1e-9):.3f}", f"{requests / max(calls, 1):.1f}"]
    return "| " + " | ".join(cells) + " |"


def percentile(seconds: Sequence[float], percent: float) -> str:
    """Format a percentile in seconds; "-" without values."""
    return f"{np.percentile(seconds, percent):.2f}" if seconds else "-"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", help="a file, a directory of files, or a wav.scp")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the server (default %(default)s)")
    parser.add_argument("--token", default="", help="secret of the server")
    parser.add_argument("--streams", default="1,2,4,8", help="numbers of streams to try (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="audio of each stream (default %(default)s)")
    parser.add_argument(
        "--message", type=float, default=0.1, help="seconds of audio in a message (default %(default)s)"
    )
    parser.add_argument("--query", default="", help="settings of the streams: search=greedy&chunk_size=0.64&...")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table row by row; return 0, or 1 when the server is not there or streams failed."""
    args = parse(argv)
    headers = {"Authorization": f"Bearer {args.token}"} if args.token else {}
    try:
        counts = [int(count) for count in args.streams.split(",")]
        files = find_files(args.audio)
        audio = [load_audio(files, args.seconds, seed) for seed in range(min(max(counts), 16))]
        counters(args.url, headers)
    except (UserError, OSError, ValueError) as error:
        print(f"load_test.py: {error}", file=sys.stderr)
        return 1
    print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|", flush=True)
    failed = False
    for count in counts:
        row = asyncio.run(measure(args, headers, audio, count))
        failed |= int(row.split("|")[3]) > 0
        print(row, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
