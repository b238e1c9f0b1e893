#!/usr/bin/env python3
"""How many live streams a server keeps up with: N at a time at real time, one row of a Markdown table per N.

    speechllm-xl serve --model MODEL --max-streams 16 &
    local/run.sh python3 local/load_test.py dump/raw/test/wav.scp --streams 1,2,4,8,16,20

Each stream sends audio (the files one after the other) as a microphone would, a message every 0.1 s, the streams at
different moments.  Columns:

    response latency  what the server says: from the arrival of the message that completes a chunk
              to sending its result
    client delay  what a client sees: from sending the audio that a result's `time` ends at, to receiving the result;
              it holds the look-ahead and the way back, but not the chunk, which has to be spoken first
    behind    from sending the end to receiving the last result, 99th percentile: it grows when the server falls behind
    RTF       time that the engine computed, for one second of audio; with it, the load is its product with N
"""

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from espnet_speechllm_xl.corpus.audio import read_audio, to_int16
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.errors import UserError

RATE = 16000  # Hz, of the audio that is sent
HEADER = "| streams | refused | failed | response latency P50 | P99 | client delay P50 | P99 | behind | RTF | batch |"


@dataclass
class Level:
    """What the clients of one N saw."""

    latencies: list = field(default_factory=list)  # seconds
    delays: list = field(default_factory=list)
    behind: list = field(default_factory=list)
    refused: int = 0  # because the server was full
    failed: int = 0
    messages: set = field(default_factory=set)  # of the server, why


def find_files(path):
    """Audio files of a ``wav.scp``, of a directory, or the file itself; raises UserError."""
    path = Path(path)
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


def load_audio(files, seconds, seed):
    """``seconds`` of int16 samples (n,): the files in an order of their own for each ``seed``."""
    order, pieces, missing = np.random.default_rng(seed).permutation(len(files)), [], int(seconds * RATE)
    while missing > 0:
        for index in order:
            samples, _ = to_int16(read_audio(files[index], RATE))
            pieces.append(samples[:missing])
            missing -= len(pieces[-1])
            if missing <= 0:
                break
    return np.concatenate(pieces)


async def client(url, headers, audio, message_seconds, level, wait):
    """One stream at real time; its measurements go to ``level``."""
    await asyncio.sleep(wait)
    try:
        async with connect(url, additional_headers=headers, compression=None, open_timeout=30) as socket:
            ready = json.loads(await socket.recv())
            if ready["type"] == "error":
                level.refused += ready["code"] == "full"
                level.failed += ready["code"] != "full"
                level.messages.add(ready["message"])
                return
            clock = {"begin": time.monotonic(), "end": None}
            sender = asyncio.create_task(send(socket, audio, message_seconds, clock))
            try:
                ended = await listen(socket, clock, level)
            finally:
                sender.cancel()
            level.failed += not ended
    except (OSError, InvalidHandshake, ConnectionClosed):
        level.failed += 1


async def send(socket, audio, message_seconds, clock):
    """Send messages when their audio would have been spoken."""
    size = int(message_seconds * RATE)
    for begin in range(0, len(audio), size):
        piece = audio[begin : begin + size]
        await asyncio.sleep(clock["begin"] + (begin + len(piece)) / RATE - time.monotonic())
        await socket.send(piece.tobytes())
    clock["end"] = time.monotonic()
    await socket.send('{"type": "end"}')


async def listen(socket, clock, level):
    """Take results until the server closes; whether the stream came to its end."""
    last = None
    async for text in socket:
        message = json.loads(text)
        last = message["type"]
        if last == "result" and clock["end"] is None:
            level.latencies.append(message["latency"])
            level.delays.append(time.monotonic() - clock["begin"] - message["time"])
        elif last == "end" and clock["end"] is not None:
            level.behind.append(time.monotonic() - clock["end"])
    return last == "end" and clock["end"] is not None  # or the server was stopped


def counters(url, headers):
    """(engine seconds, audio seconds, decoder calls, decoder requests) that the server has counted so far."""
    with urlopen(Request(f"{url}/metrics", headers=headers), timeout=30) as answer:
        text = answer.read().decode()
    names = ["engine_busy_seconds_total", 'audio_seconds_total{source="stream"}']
    names += [f'engine_{what}_total{{kind="token"}}' for what in ("calls", "requests")]
    values = dict(re.findall(r"^speechllm_xl_(\S+) (\S+)$", text, re.M))
    return np.array([float(values.get(name, 0)) for name in names])


async def measure(args, headers, audio, count):
    """Run ``count`` streams; returns the row of the table."""
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
    busy, heard, calls, requests = await asyncio.to_thread(counters, args.url, headers) - before
    cells = [count, level.refused, level.failed]
    cells += [seconds(level.latencies, p) for p in (50, 99)] + [seconds(level.delays, p) for p in (50, 99)]
    cells += [seconds(level.behind, 99), f"{busy / max(heard, 1e-9):.3f}", f"{requests / max(calls, 1):.1f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def seconds(values, percent):
    """A percentile in seconds, or "-"."""
    return f"{np.percentile(values, percent):.2f}" if values else "-"


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", help="a file, a directory of files, or a wav.scp")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default %(default)s)")
    parser.add_argument("--token", default="", help="of the server")
    parser.add_argument("--streams", default="1,2,4,8", help="numbers of streams to try (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="audio of each stream (default %(default)s)")
    parser.add_argument(
        "--message", type=float, default=0.1, help="seconds of audio in a message (default %(default)s)"
    )
    parser.add_argument("--query", default="", help="settings of the streams: search=greedy&chunk_size=0.64&...")
    return parser.parse_args(argv)


def main(argv=None):
    """Print the table, row by row; returns 0, or 1 when the server is not there or streams failed."""
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
