"""A real server on a free port gives the model's own results, whatever other clients do."""

import asyncio
import contextlib
import functools
import io
import json
import math
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import serving
import soundfile
import soxr
import tiny
from serving import Running, finals, pcm, play, receive, send, wait_until
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket
from websockets.client import ClientProtocol
from websockets.sync.client import connect
from websockets.uri import parse_uri

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.audio import AudioError, read_bytes
from espnet_speechllm_xl.corpus.raw_pcm import Pcm
from espnet_speechllm_xl.decoding.output_formats import LiveResults
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.server.app import bind
from espnet_speechllm_xl.server.limits import ServerConfig
from espnet_speechllm_xl.server.refusal import Refusal
from espnet_speechllm_xl.server.service import Service
from espnet_speechllm_xl.server.session import AudioQueue, Ending, Flush, Session
from espnet_speechllm_xl.settings import ConfigError

CHUNK = 10240  # samples


@pytest.fixture(scope="module")
def speech2text(tiny_model_dir):
    return Speech2Text.from_pretrained(tiny_model_dir, dtype="float64")


@pytest.fixture(scope="module")
def server(speech2text):
    with Running(speech2text, max_streams=6, max_message_bytes=40000) as running:
        yield running


def alone(speech2text, samples, *arguments, **settings):
    """Return the segments of a stream that nobody disturbs."""
    stream = speech2text.stream(*arguments, **settings)
    return [*stream.push(samples).segments, *stream.close().segments]


def same_segments(messages, segments):
    assert [message["text"] for message in finals(messages)] == [segment.text for segment in segments]
    for message, segment in zip(finals(messages), segments, strict=True):
        assert message["tokens"] == list(segment.tokens)
        assert [word["start"] for word in message["words"]] == pytest.approx([w.start for w in segment.words], abs=6e-4)
        assert message["confidence"] == pytest.approx(segment.confidence, abs=1e-9)


# Streams


@pytest.mark.parametrize(
    "query, settings",
    [
        ("", {"search": "chunk_sync"}),
        ("?search=greedy&chunk_size=0.32&context=0.96", {"search": "greedy", "chunk_size": 0.32, "context": 0.96}),
        ("?chunk_size=0.32&look_ahead=0.24", {"chunk_size": 0.32, "look_ahead": 0.24}),
        ("?partial_seconds=0.32", {}),  # only what is not settled yet differs
        ("?endpoint_length=2&endpoint_silence=inf", {"endpoint_length": 2.0, "endpoint_silence": np.inf}),
        ("?endpoint_silence=0.5&settle_seconds=1", {"endpoint_silence": 0.5, "settle_seconds": 1.0}),
    ],
)
def test_a_stream_is_what_the_model_says_alone(server, speech2text, query, settings):
    data, samples = pcm(tiny.speech(1, 130000))
    expected = alone(speech2text, samples, **settings)
    for size in (1000, 40000):
        messages, code = play(server, data, query, size=size)
        same_segments(messages, expected)
        assert code == 1000 and messages[-1] == {"type": "end", "time": pytest.approx(8.08)}  # 202 whole frames
        assert messages[0]["type"] == "ready" and {m["type"] for m in messages[1:-1]} <= {"result", "progress"}
        times = [message["time"] for message in messages[1:]]
        assert times == sorted(times)
    assert len(expected) > ("endpoint_length" in query)


def test_the_greeting_says_what_to_expect(server):
    with server.stream("?chunk_size=0.32") as client:
        ready = json.loads(client.recv(serving.TIMEOUT))
    chunk, lookahead = pytest.approx(0.32), pytest.approx(0.08)
    settings = {"search": "chunk_sync", "beam_size": 4, "ctc_weight": 0.0, "chunk_size": 0.32, "context": 1.28}
    settings |= {"look_ahead": 0.08, "settle_seconds": 1.28, "endpoint_silence": 1.5, "endpoint_length": 20.0}
    settings |= {"partial_seconds": None}
    remark = "chunk size 0.32 s: the model was trained with 0.64 s, not with this one: there may be more errors"
    assert ready == {
        **{"type": "ready", "sample_rate": 16000, "model": "tiny", "settings": settings, "remarks": [remark]},
        **{"chunk_seconds": chunk, "lookahead_seconds": lookahead},
    }
    with server.stream("?look_ahead=0.24") as client:
        other = json.loads(client.recv(serving.TIMEOUT))
    assert (other["lookahead_seconds"], other["settings"]["look_ahead"]) == (pytest.approx(0.24), 0.24)
    assert other["remarks"] == [remark.replace("chunk size 0.32 s", "look-ahead 0.24 s").replace("0.64", "0.08")]
    with server.stream() as client:
        assert "remarks" not in json.loads(client.recv(serving.TIMEOUT))


def test_latency_tells_what_waited_behind_earlier_audio(server):
    """A file sent at once waits in the stream's own queue; a microphone's audio does not."""
    data, _ = pcm(tiny.speech(1, 120000))
    with server.stream() as client:
        send(client, data, size=40000)
        messages, _ = receive(client)
    results = [message for message in messages if message["type"] == "result"]
    assert len(results) > 3 and all(0 <= message["queued"] <= message["latency"] for message in results)
    assert results[-1]["queued"] > max(message["latency"] - message["queued"] for message in results)
    with server.stream("?search=greedy") as client:
        client.recv(serving.TIMEOUT)
        client.send(data[: 2 * (CHUNK + 1520)])
        messages = [json.loads(client.recv(serving.TIMEOUT))]
    # Beside other work the engine's thread may start late, but not by as much as a chunk takes to be spoken.
    assert messages[0]["type"] in ("result", "progress") and messages[0].get("queued", 0) < CHUNK / 16000 / 4


def test_results_come_while_audio_is_sent(server, speech2text):
    """Each chunk's result comes as soon as the chunk is complete, with its latency."""
    data, samples = pcm(tiny.speech(2, 4 * CHUNK + 3000))
    reference = speech2text.stream()
    with server.stream() as client:
        assert json.loads(client.recv(serving.TIMEOUT))["type"] == "ready"
        for begin in range(0, 4 * CHUNK, CHUNK):
            piece = slice(begin, begin + CHUNK + (1520 if begin == 0 else 0))  # the look-ahead and a window's rest
            update = reference.push(samples[piece])
            before = time.monotonic()
            client.send(data[2 * piece.start : 2 * piece.stop])
            message = json.loads(client.recv(serving.TIMEOUT))
            waited = time.monotonic() - before
            assert message["time"] == pytest.approx(reference.seconds) and reference.seconds > begin / 16000
            if message["type"] == "result":
                assert message["partial"] == update.partial
                assert 0 < message["latency"] <= waited
        client.send('{"type": "end"}')
        messages, code = receive(client)
    assert (code, messages[-1]["type"]) == (1000, "end")


def test_audio_without_words_is_progress(server, monkeypatch):
    monkeypatch.setattr(LiveResults, "of", lambda *_: [])
    (ready, *quiet, end), _ = play(server, bytes(2 * 100000), "?search=greedy")
    times = [message["time"] for message in quiet]
    assert all(set(message) == {"type", "time"} and message["type"] == "progress" for message in quiet)
    assert len(times) >= 100000 // CHUNK and times == sorted(set(times)) and end["time"] == times[-1]


def test_floats_and_no_audio(server, speech2text):
    samples = tiny.speech(4, 50000)
    loud = samples * 8
    messages, _ = play(server, loud.astype("<f4").tobytes(), "?format=f32&rate=16000")
    same_segments(messages, alone(speech2text, loud.clip(-1, 1)))
    for data in (b"", bytes(200)):
        messages, code = play(server, data)
        assert code == 1000 and [m["type"] for m in messages] == ["ready", "end"] and messages[1]["time"] == 0


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_are_resampled_as_one_piece(server, speech2text, rate):
    data, samples = pcm(tiny.speech(5, 3 * rate))
    whole = soxr.resample(samples, rate, 16000)
    pieces = Pcm("s16", rate, 16000)
    streamed = np.concatenate([*(pieces.samples(data[i : i + 666]) for i in range(0, len(data), 666)), pieces.rest()])
    assert len(streamed) == len(whole) == 48000 and np.abs(streamed - whole).max() < 1e-4
    expected = alone(speech2text, streamed)
    messages, code = play(server, data, f"?rate={rate}", size=3000)
    assert code == 1000 and expected
    assert [message["text"] for message in finals(messages)] == [segment.text for segment in expected]


FLUSH, END = '{"type": "flush"}', '{"type": "end"}'


def utterances(messages):
    """The messages behind the greeting up to each ``flushed``, and behind the last."""
    found = [[]]
    for message in messages[1:]:
        found[-1].append(message)
        if message["type"] == "flushed":
            found.append([])
    return found


@pytest.mark.parametrize(
    "query", ["?search=greedy", "?chunk_size=0.32", "?rate=8000&endpoint_silence=0.3", "?rate=48000"]
)
def test_a_flush_is_ending_one_stream_and_opening_another(server, query):
    """The samples that a resampler holds back belong to what was said before."""
    rate = int((re.search(r"rate=(\d+)", query) or [0, 16000])[1])
    spoken = [pcm(tiny.speech(seed, size * rate // 16000))[0] for seed, size in ((11, 30000), (12, 21120), (13, 47840))]
    own = [play(server, data, query)[0] for data in spoken]
    with server.stream(query) as client, ThreadPoolExecutor(1) as pool:
        other = pool.submit(play, server, spoken[2], query)  # in the same batches
        for data in spoken[:-1]:
            send(client, data, size=3000, end=False)
            client.send(FLUSH)
        send(client, spoken[-1])
        messages, code = receive(client)
    assert code == 1000 and [message["text"] for message in finals(other.result()[0])] == [
        message["text"] for message in finals(own[2])
    ]
    begin, segments = 0.0, 0
    for data, found, expected in zip(spoken, utterances(messages), own, strict=True):
        assert finals(expected) and len(finals(found)) == len(finals(expected))
        for one, alone_ in zip(finals(found), finals(expected), strict=True):
            assert [one[name] for name in ("text", "tokens")] == [alone_[name] for name in ("text", "tokens")]
            assert one["timestamps"] == pytest.approx(alone_["timestamps"], abs=2e-3)
            assert one["segment"] == segments + alone_["segment"]
            for name in ("start", "end"):
                times = [begin + word[name] for word in alone_["words"]]
                assert [word[name] for word in one["words"]] == pytest.approx(times, abs=2e-3)
        begin, segments = begin + len(data) / 2 / rate, segments + len(finals(expected))
        if found[-1]["type"] == "flushed":
            assert found[-1] == {"type": "flushed", "time": pytest.approx(begin, abs=1e-3)}
            assert [message for message in found if message["type"] == "result"][-1]["is_final"]
    assert messages[-1]["type"] == "end"


def test_the_final_text_comes_before_more_audio(server, speech2text):
    data, samples = pcm(tiny.speech(14, 20000))  # a chunk and a part
    stream = speech2text.stream()
    expected = [*stream.push(samples).segments, *stream.flush().segments]
    with server.stream() as client:
        send(client, data, end=False)
        before = time.monotonic()
        client.send(FLUSH)
        messages = [json.loads(client.recv(serving.TIMEOUT))]
        while messages[-1]["type"] != "flushed":
            messages.append(json.loads(client.recv(serving.TIMEOUT)))
        waited = time.monotonic() - before
        same_segments(messages, expected)
        assert 0 < finals(messages)[-1]["latency"] <= waited  # since the flush
        client.send(END)
        assert [message["type"] for message in receive(client)[0]] == ["end"]


@pytest.mark.parametrize("length", [0, 300])
def test_each_flush_is_answered(server, length):
    """Of nothing, of less than a frame, twice, and directly before the end."""
    with server.stream() as client:
        for _ in range(2):
            send(client, bytes(2 * length), end=False)
            client.send(FLUSH)
            client.send(FLUSH)
        client.send(END)
        messages, code = receive(client)
    times = [length / 16000] * 2 + [2 * length / 16000] * 3
    assert code == 1000 and [message["time"] for message in messages[1:]] == pytest.approx(times)
    assert [message["type"] for message in messages] == ["ready", *["flushed"] * 4, "end"]


# Refusals


@pytest.mark.parametrize(
    "query, code, close, says",
    [
        ("?rate=7999", "bad-rate", 1003, "rate 7999: give whole Hz from 8000 to"),
        ("?rate=16k", "bad-rate", 1003, "rate 16k: give whole Hz"),
        ("?format=mp3", "bad-setting", 1008, "PCM format 'mp3': use one of s16, f32"),
        ("?speed=2", "bad-setting", 1008, "'speed' is no setting of a stream: known are rate, format, search"),
        ("?search=alsd", "bad-setting", 1008, "use 'greedy' or 'chunk_sync'"),
        ("?search=magic", "bad-setting", 1008, "search 'magic': use one of"),
        ("?chunk_size=0.65", "bad-setting", 1008, "chunk size 0.65 s is not a multiple of 0.04 s"),
        ("?look_ahead=0.05", "bad-setting", 1008, "look-ahead 0.05 s is not a multiple of 0.04 s"),
        ("?look_ahead=3600", "bad-setting", 1008, "look_ahead 3600.0 s is too long: give at most"),
        ("?chunk_size=much", "bad-setting", 1008, "chunk_size 'much' is no number: give seconds"),
        ("?chunk_size=1e308", "bad-setting", 1008, "chunk size 1e+308 s is not a multiple"),
        ("?rate=" + "1" * 5000, "bad-rate", 1003, "1111: give whole Hz"),
        ("?settle_seconds=61", "bad-setting", 1008, "settle_seconds 61.0 s is too long: give at most 60.0 s"),
        ("?chunk_size=nan", "bad-setting", 1008, "chunk size nan s is not a multiple"),
        ("?chunk_size=inf", "bad-setting", 1008, "chunk and context are inf s: give a chunk_size and a context within"),
        ("?context=inf", "bad-setting", 1008, "chunk and context are inf s"),
        ("?endpoint_length=61", "bad-setting", 1008, "endpoint_length 61.0 s is too long: give at most 60.0 s"),
        ("?settle_seconds=0", "bad-setting", 1008, "stream settle_seconds must be positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(server, query, code, close, says):
    with server.stream(query) as client:
        (error,), closed = receive(client)
    assert (error["type"], error["code"], closed) == ("error", code, close)
    assert says in error["message"] and "\n" not in error["message"]


BAD_MESSAGES = [
    (b"123", "", "bad-message", 1007, "a message of 3 bytes holds half a sample: send whole ones"),
    (bytes(6), "?format=f32", "bad-message", 1007, "a message of 6 bytes holds half a sample"),
    (struct.pack("<f", np.nan), "?format=f32", "bad-audio", 1007, "PCM with NaN or infinite samples"),
    (struct.pack("<f", np.inf), "?format=f32", "bad-audio", 1007, "PCM with NaN or infinite samples"),
    ("end", "", "bad-message", 1007, 'text message \'end\': only {"type": "end"}, {"type": "flush"} and {"type": "phr'),
    ('{"type": "flush", "now": 1}', "", "bad-message", 1007, 'text message \'{"type": "flush", "now": 1}\': only'),
    ('{"type": "end", "at": 1}', "", "bad-message", 1007, 'text message \'{"type": "end", "at": 1}\': only'),
    ('{"type": "phrases", "boost": 2}', "", "bad-message", 1007, 'message \'{"type": "phrases", "boost": 2}\': only'),
    ('{"type": ["end"]}', "", "bad-message", 1007, "only"),
    ("[1]", "", "bad-message", 1007, "only"),
    ("[" * 30000, "", "bad-message", 1007, "only"),
    ("x" * 40001, "", "too-big", 1009, "a text message of 40001 characters: audio is binary"),
    ('{"type": "start"}', "", "bad-message", 1007, "only"),
    (bytes(40002), "", "too-big", 1009, "a message of 40002 bytes: send at most 40000 bytes at a time"),
]


@pytest.mark.parametrize("bad, query, code, close, says", BAD_MESSAGES, ids=range(len(BAD_MESSAGES)))
def test_what_came_before_a_malformed_message_is_finished(server, speech2text, bad, query, code, close, says):
    samples = tiny.speech(7, 30000)
    data, samples = pcm(samples) if not query else (samples.astype("<f4").tobytes(), samples)
    with server.stream(query) as client:
        send(client, data, end=False)
        client.send(bad)
        messages, closed = receive(client)
    same_segments(messages[:-1], alone(speech2text, samples))
    assert (messages[-1]["type"], messages[-1]["code"], closed) == ("error", code, close)
    assert says in messages[-1]["message"]


def test_what_breaks_the_protocol_ends_with_its_code(server):
    with server.stream() as client:
        client.send(bytes(80001))  # twice the limit: not even taken in
        assert receive(client)[1] == 1009
    with server.stream() as client:
        client.send(b"\xff\xff", text=True)
        assert receive(client)[1] == 1007
    wait_until(lambda: server.service.served("stream") == 0)


FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
POST = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"


def form(kind, body=FORM):
    """Return the bytes of a request with this content type."""
    return POST + b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body)


RAW = {
    "a bad chunk": [CHUNKED, b"5\r\n--b\r\n\r\nzz\r\n"],
    "a bad chunk after the refusal": [CHUNKED.replace(b"multipart/form-data", b"text/plain"), b"zz\r\n"],
    "a bad chunk, and a request": [CHUNKED, b"zz\r\n" + CHUNKED],
    "a body cut short": [CHUNKED, b"5\r\n--b"],
    "a character set that cannot be": [form(b"multipart/form-data; boundary=b; charset=undefined")],
    "surrogates": [
        form(
            b"multipart/form-data; boundary=b; charset=unicode_escape",
            FORM.replace(b"a.wav", b"\\\\ud800\\\\n" + b"x" * 5000),
        )
    ],
    "no text": [form(b"multipart/form-data; boundary=b", FORM.replace(b"a.wav", b"\xff\xfe\x00"))],
    "a boundary that is none": [form(b"multipart/form-data; boundary=" + b"x" * 300)],
    "no path": [b"GET /page/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    "a long path": [b"GET /page/" + b"a/" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    "no host": [b"GET /v1/models HTTP/1.1\r\nHost: [\xff\r\n\r\n"],
    "no origin": [b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: \xff\xfe[\r\n\r\n"],
    "no model": [b"GET /v1/models/%ff%ed%a0%80 HTTP/1.1\r\nHost: localhost\r\n\r\n"],
}


def raw(server, pieces):
    """Send bytes with pauses and return the server's response."""
    response = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(server.listener.getsockname(), serving.TIMEOUT) as client,
    ):
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.05)
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(10000):
            response += part
    return response


def assert_no_traceback(caplog):
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


@pytest.mark.parametrize("pieces", RAW.values(), ids=RAW)
def test_no_request_puts_a_traceback_into_the_log(server, caplog, pieces):
    response = raw(server, pieces)
    assert response[9:10] in (b"4", b"") and b"500" not in response[:20]
    wait_until(lambda: server.service.served("file") == 0)
    assert_no_traceback(caplog)


UPGRADE = (
    b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
GET = b"GET /v1/stream HTTP/1.1\r\n"
UNREADABLE = {
    "a long line": (b"GET /v1/stream?token=" + b"x" * 9000 + b" HTTP/1.1\r\n" + UPGRADE + b"\r\n", 414, "8192 bytes"),
    "a long header": (GET + UPGRADE + b"Cookie: " + b"x" * 9000 + b"\r\n\r\n", 431, "8192 bytes"),
    "many headers": (GET + UPGRADE + b"".join(b"x-%d: y\r\n" % n for n in range(300)) + b"\r\n", 431, "128 headers"),
    "a body": (GET + UPGRADE + b"Content-Length: 2\r\n\r\nhi", 400, "unsupported request body"),
    "a body in chunks": (GET + UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n", 400, "transfer codings"),
    "long HTTP headers": (b"GET /health HTTP/1.1\r\nCookie: " + b"x" * 70000, 431, "65536 bytes"),
}


@pytest.mark.parametrize("request_bytes, status, says", UNREADABLE.values(), ids=UNREADABLE)
def test_a_handshake_that_cannot_be_read_is_answered(server, caplog, request_bytes, status, says):
    with socket.create_connection(server.listener.getsockname(), serving.TIMEOUT) as client:
        client.sendall(request_bytes)
        answer = b"".join(iter(lambda: client.recv(10000), b"")).decode()  # to the end: the server closes
    assert answer.startswith(f"HTTP/1.1 {status} ") and says in answer
    assert_no_traceback(caplog)


def test_a_handshake_that_is_never_completed_is_ended(speech2text, caplog):
    begun = {
        b"": b"",
        GET + b"Host: local": b"HTTP/1.1 408 ",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET + b"Host": b"HTTP/1.1 200 OK",  # the second of two
        # Answered without its body being read, which never comes whole:
        b"POST /other HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc": b"HTTP/1.1 404 ",
    }
    with Running(speech2text, handshake_seconds=0.4) as strict:
        with strict.stream() as stream:  # was completed: goes on
            for sent, answer in begun.items():
                with socket.create_connection(strict.listener.getsockname(), serving.TIMEOUT) as client:
                    client.sendall(sent)
                    received = b"".join(iter(functools.partial(client.recv, 10000), b""))
                assert received.startswith(answer) and bool(received) == bool(answer)
            send(stream, bytes(6400))
            assert receive(stream)[0][-1]["type"] == "end"
    assert_no_traceback(caplog)


def ended(server):
    return sum(map(server.ended, ("disconnected", "bad-setting", "bad-rate")))


def test_no_stream_puts_a_traceback_into_the_log(server, caplog, speech2text):
    """If the WebSocket layer closes while results or a refusal are on their way, the client counts as gone."""
    data, samples = pcm(tiny.speech(6, 40000))
    with server.stream() as client:
        send(client, data, end=False)
        client.send(b"\xff{}", text=True)
        messages, code = receive(client)
    same_segments(messages[:-1], alone(speech2text, samples))  # what came before it is finished
    assert (messages[-1]["code"], code) == ("bad-message", 1007)
    broken = [
        b"\x83\x80aaaa",
        b"\x82\xff" + bytes(7) + b"\x7f",
        b"\xf2\x80aaaa",
        b"\x88\x81aaaa0",
        b"\x88\x82aaaa\x62\x89",
    ]
    for frame in (*broken, b"\x88\x80aaaa"):  # no such opcode, far too long, reserved bits; closes, good and bad
        for query in ("", "?speed=2", "?rate=1"):
            before = ended(server)
            with server.stream(query) as client, contextlib.suppress(OSError):
                send(client, data, size=40000, end=False)
                client.socket.sendall(frame)
                client.socket.shutdown(socket.SHUT_WR)
                receive(client)
            wait_until(lambda before=before: ended(server) == before + 1)
    wait_until(lambda: server.service.served("stream") == 0)
    assert_no_traceback(caplog)


def test_a_full_server_refuses_and_has_room_again(server):
    before = server.ended("full")
    with contextlib.ExitStack() as clients:
        for _ in range(6):
            client = clients.enter_context(server.stream())
            assert json.loads(client.recv(serving.TIMEOUT))["type"] == "ready"
        assert httpx.get(f"{server.http}/health").json()["streams"] == 6
        with server.stream() as refused:
            (error,), close = receive(refused)
    assert (error["code"], close) == ("full", 1013) and "6 streams are being decoded: try again later" in error[
        "message"
    ]
    assert server.ended("full") == before + 1
    wait_until(lambda: server.service.served("stream") == 0)
    assert play(server, bytes(2000))[1] == 1000


def test_a_token(speech2text):
    with Running(speech2text, token="secret") as guarded:
        for query, headers in [("", {}), ("?token=secre", {}), ("", {"Authorization": "Bearer secrets"})]:
            with guarded.stream(query, additional_headers=headers) as client:
                (error,), close = receive(client)
            assert (error["code"], close) == ("unauthorized", 1008) and "wrong or missing token" in error["message"]
        for query, headers in [
            ("?token=secret", {}),
            ("", {"Authorization": "Bearer secret", "Origin": "http://x"}),
            ("", {"Authorization": "bearer secret"}),
            ("?token=secret", {"Authorization": "Basic eDp5"}),  # a proxy's own
        ]:
            with guarded.stream(query, additional_headers=headers) as client:
                assert json.loads(client.recv(serving.TIMEOUT))["type"] == "ready"
        for path in ("/v1/models", "/metrics"):
            assert httpx.get(guarded.http + path).status_code == 401
            assert httpx.get(guarded.http + path, headers={"Authorization": "Bearer secret"}).status_code == 200
        response = httpx.post(f"{guarded.http}/v1/audio/transcriptions", files={"file": b"x"})
        assert response.status_code == 401 and response.json()["error"]["code"] == "unauthorized"
        assert httpx.get(guarded.http).status_code == httpx.get(f"{guarded.http}/health").status_code == 200


def test_pages_of_other_servers_are_refused(server):
    """Without a token, any page could use a server on its user's loopback; browsers name the page in Origin."""
    with server.stream(origin="http://elsewhere.example") as client:
        (error,), close = receive(client)
    assert (error["code"], close) == ("foreign-origin", 1008)
    assert "open its own page under the name localhost or that of --host" in error["message"]
    # No address at all; and a name of the page's owner that means this machine.
    named = {"Origin": "http://evil.example:8000", "Host": "evil.example:8000"}
    for headers in ({"Origin": "http://["}, {"Origin": "null"}, {"Origin": "http://localhost:3000"}, named):
        assert httpx.get(f"{server.http}/v1/models", headers=headers).status_code == 403
    with server.stream(origin=server.http) as client:
        assert json.loads(client.recv(serving.TIMEOUT))["type"] == "ready"
    response = httpx.post(f"{server.http}/v1/audio/transcriptions", headers={"Origin": "http://elsewhere.example"})
    assert response.status_code == 403


@pytest.mark.parametrize(
    "host, known",
    [
        *(
            (host, True)
            for host in ("127.0.0.1:1", "localhost", "LOCALHOST:80", "[::1]:8000", "192.0.2.7:8000", "me.lan")
        ),
        *((host, False) for host in ("evil.example", "127.0.0.1.evil.example:8000", "", "[", "me.lan.evil.example")),
    ],
)
def test_names_that_a_client_may_call_the_server_by(server, host, known):
    """The owner of a page may make its name mean 127.0.0.1: then its browser sends no Origin, but a foreign Host."""
    service = Service(server.service.speech2text, ServerConfig(host="me.lan"), "tiny")
    with contextlib.closing(service):
        with contextlib.nullcontext() if known else pytest.raises(Refusal, match="not known as") as caught:
            service.authorise(HTTPConnection({"type": "http", "headers": [(b"host", host.encode())]}))
        assert known or (caught.value.code, caught.value.status) == ("unknown-host", 403)
        guarded = Service(server.service.speech2text, ServerConfig(token="secret"), "tiny")
        with contextlib.closing(guarded):  # whoever knows the token may come by any name
            headers = [(b"host", host.encode()), (b"authorization", b"Bearer secret")]
            guarded.authorise(HTTPConnection({"type": "http", "headers": headers, "query_string": b""}))


def test_a_foreign_name_is_refused_everywhere(server):
    for method, path in [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/audio/transcriptions")]:
        response = httpx.request(method, server.http + path, headers={"Host": "evil.example"})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "unknown-host")
    there = socket.create_connection(server.listener.getsockname(), serving.TIMEOUT)
    with connect("ws://evil.example/v1/stream", sock=there, open_timeout=serving.TIMEOUT) as client:
        (error,), close = receive(client)
    assert (error["code"], close) == ("unknown-host", 1008) and "serve with --token" in error["message"]


# Pages of other origins


@pytest.mark.parametrize("token", [None, "secret"])
def test_pages_of_origins_that_the_operator_names(speech2text, token):
    page = "http://localhost:3000"
    with Running(speech2text, token=token, allow_origin=["https://app.example/", page]) as server:
        secret = {"Authorization": f"Bearer {token}"} if token else {}
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, x-stainless-os",
        }
        for origin, status in [(page, 200), ("https://app.example", 200), ("https://app.example:444", 400)]:
            response = httpx.options(f"{server.http}/v1/audio/transcriptions", headers={"Origin": origin, **asked})
            assert response.status_code == status
            assert response.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
            assert status == 400 or "authorization" in response.headers["access-control-allow-headers"]
        response = httpx.get(f"{server.http}/v1/models", headers={"Origin": page, **secret})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, page)
        headers = {"Origin": page, **secret}
        refused = httpx.post(f"{server.http}/v1/audio/transcriptions", headers=headers, files={"audio": b""})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, page)  # it can be read
        stereo = {"file": wav(np.zeros((8000, 2), np.int16))}
        url = f"{server.http}/v1/audio/transcriptions"
        answer = httpx.post(url, headers=headers, files=stereo, data={"language": "en"}, timeout=serving.TIMEOUT)
        ours = {name for name in answer.headers if name.startswith("x-")}
        assert ours == {"x-ignored-fields", "x-remarks"}
        assert ours <= {*answer.headers["access-control-expose-headers"].split(", ")}  # what scripts may read
        with server.stream("" if token is None else "?token=secret", origin=page) as client:
            assert json.loads(client.recv(serving.TIMEOUT))["type"] == "ready"
        foreign = httpx.get(f"{server.http}/v1/models", headers={"Origin": "http://evil.example", **secret})
        assert "access-control-allow-origin" not in foreign.headers and foreign.status_code == (200 if token else 403)


@pytest.mark.parametrize(
    "given, origin",
    [
        ("https://App.example:443/", "https://app.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_origins_are_taken_as_browsers_write_them(given, origin):
    assert ServerConfig(allow_origin=[given]).allow_origin == (origin,)


def test_idle_and_long_streams_are_ended_with_their_results(speech2text):
    data, samples = pcm(tiny.speech(8, 40000))
    with Running(speech2text, idle_seconds=0.3, max_stream_seconds=2) as strict:
        with strict.stream() as client:
            send(client, data[:40000], end=False)
            client.send(b"")  # no audio
            messages, close = receive(client)
        same_segments(messages[:-1], alone(speech2text, samples[:20000]))
        assert (messages[-1]["code"], close) == ("idle", 1008) and "no audio for 0.3 s" in messages[-1]["message"]
        messages, close = play(strict, data)
        same_segments(messages[:-1], alone(speech2text, samples[:32000]))
        assert (messages[-1]["code"], close) == ("too-long", 1008) and "may last 2 s" in messages[-1]["message"]
        with strict.stream() as client:  # too little audio for too long a time
            threading.Thread(target=send, args=(client, bytes(4000), 20), kwargs={"pause": 0.05}).start()
            began = time.monotonic()
            messages, close = receive(client)
            assert messages[-1]["code"] == "too-long" and 1.9 < time.monotonic() - began < serving.TIMEOUT
        assert (strict.ended("idle"), strict.ended("too-long")) == (1, 2)


# Back-pressure


def test_messages_without_audio_do_not_pile_up():
    async def scenario():
        audio = AudioQueue(100)
        for _ in range(1000):
            await audio.put(np.zeros(0, np.float32))
        assert not audio._pieces
        await audio.put(np.ones(3, np.float32))
        assert (await audio.take(3))[0].tolist() == [1, 1, 1]

    asyncio.run(scenario())


def test_the_queue_is_bounded():
    async def scenario():
        audio = AudioQueue(100)
        for _ in range(4):
            await asyncio.wait_for(audio.put(np.ones(25, np.float32)), 1)
        full = asyncio.create_task(audio.put(np.full(60, 2, np.float32)))
        await asyncio.sleep(0)
        taken, first, final = await audio.take(30)
        assert not full.done() and not final
        assert (audio.count, len(taken)) == (130, 30)
        _, second, _ = await audio.take(30)
        await asyncio.wait_for(full, 1)
        assert second >= first
        await audio.end(np.full(3, 3, np.float32), Ending())
        rest, third, final = await audio.take(1000)
        assert final and third >= second and rest.tolist() == [1] * 40 + [2] * 60 + [3] * 3 and audio.count == 0

    asyncio.run(scenario())


def test_flushes_stay_between_the_samples_and_are_held_back():
    async def scenario():
        audio = AudioQueue(10)
        await audio.put(np.ones(4, np.float32))
        await audio.flush()
        await audio.flush()
        await audio.put(np.full(3, 2, np.float32))
        found = [await asyncio.wait_for(audio.take(wanted), 1) for wanted in (2, 2, 9, 9, 3)]
        assert [samples.tolist() for samples, *_ in found] == [[1, 1], [1, 1], [], [], [2, 2, 2]]
        assert [behind for *_, behind in found] == [None, None, Flush(), Flush(), None]
        arrivals = [arrival for _, arrival, _ in found]
        assert arrivals == sorted(arrivals) and audio.count == 0
        for _ in range(10):
            await asyncio.wait_for(audio.flush(), 1)
        full = asyncio.create_task(audio.flush())
        await asyncio.sleep(0)
        assert not full.done()
        assert (await audio.take(1))[2] == Flush()
        assert await asyncio.wait_for(full, 1)
        await audio.end(np.ones(0, np.float32), Ending())
        assert [(await audio.take(1))[2] for _ in range(11)] == [*[Flush()] * 10, Ending()]

    asyncio.run(scenario())


@pytest.mark.parametrize("rest", [0, 3])
def test_the_last_samples_may_be_just_what_is_wanted(rest):
    """The last samples of a resampler, or no samples, complete a segment."""

    async def scenario():
        audio = AudioQueue(100)
        await audio.put(np.ones(10, np.float32))
        await audio.end(np.full(rest, 2, np.float32), Ending())
        taken, arrival, final = await audio.take(10 + rest)
        if not final:
            none, last, final = await audio.take(10)
            assert (len(none), none.dtype) == (0, np.float32) and last >= arrival > 0
        assert taken.tolist() == [1] * 10 + [2] * rest and final

    asyncio.run(scenario())


def test_a_client_that_sends_too_fast_is_held_back(speech2text):
    """Half a minute at once: the server reads on as it decodes, and loses nothing."""
    data, samples = pcm(tiny.speech(9, 30 * 16000))
    most = []
    with Running(speech2text, max_queue_seconds=1, max_message_bytes=64000) as strict:
        take = AudioQueue.take

        async def watched(queue, wanted):
            most.append(queue.count)
            return await take(queue, wanted)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AudioQueue, "take", watched)
            messages, code = play(strict, data, "?search=greedy", size=64000)
    assert strict.server.config.ws_ping_timeout is None  # a held-back client's pongs wait behind its audio
    assert code == 1000 and messages[-1]["time"] == pytest.approx(30, abs=0.1)
    assert 16000 <= max(most) <= 16000 + 32000  # the limit and one message
    same_segments(messages, alone(speech2text, samples, "greedy"))


def slow_reader(server, data):
    """Return the socket of a client that sends ``data`` and reads next to nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", server.listener.getsockname()[1]))
    protocol = ClientProtocol(parse_uri(f"ws://{server.address}/v1/stream?search=greedy&chunk_size=0.32"))
    protocol.send_request(protocol.connect())
    client.sendall(b"".join(protocol.data_to_send()))
    protocol.receive_data(client.recv(1000))
    for begin in range(0, len(data), 32000):
        protocol.send_binary(data[begin : begin + 32000])
    threading.Thread(target=_send_all, args=(client, b"".join(protocol.data_to_send())), daemon=True).start()
    return client


def _send_all(client, data):
    with contextlib.suppress(OSError):
        client.sendall(data)


def test_a_client_that_does_not_read_is_cut_off(speech2text):
    data, samples = pcm(tiny.speech(10, 16000 * 20))
    with Running(speech2text, send_seconds=0.2) as strict, slow_reader(strict, data):
        wait_until(lambda: strict.service.served("stream") == 1)
        messages, code = play(strict, data, "?search=greedy")
        wait_until(lambda: not strict.server.server_state.connections)
        assert strict.ended("slow-reader") + strict.ended("disconnected") == 1
    assert code == 1000
    same_segments(messages, alone(speech2text, samples, "greedy"))


def test_a_session_does_not_wait_for_its_client_for_ever(server):
    """The same without a kernel in between: ASGI's send never returns."""
    accepted = []

    async def receive():
        await asyncio.sleep(0 if not accepted else serving.TIMEOUT)
        return {"type": "websocket.connect"}

    async def send(message):
        accepted.append(message["type"])
        if len(accepted) > 1:
            await asyncio.Event().wait()

    async def scenario():
        socket = WebSocket({"type": "websocket", "headers": [], "query_string": b""}, receive, send)
        await asyncio.wait_for(Session(service, socket).run(), 5)

    service = Service(server.service.speech2text, ServerConfig(send_seconds=0.1), "tiny")
    with contextlib.closing(service):
        asyncio.run(scenario())
        ended = service.metrics.registry.get_sample_value("speechllm_xl_streams_ended_total", {"reason": "slow-reader"})
    assert (ended, accepted) == (1, ["websocket.accept", "websocket.send"]) and service.served("stream") == 0


# Faults


def killed_client(server, data, query=""):
    """Reset a client's connection in the middle of its audio."""
    with server.stream(query) as client:
        send(client, data, end=False)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()


def broken_clients(server, data):
    """Send broken input by one client after the other: killed, garbage, huge, odd, not HTTP at all."""
    killed_client(server, data[:30000])
    for bad in (b"x", "nonsense", bytes(90000), struct.pack("<f", np.nan) * 1001):
        with server.stream("?search=greedy&format=" + ("f32" if len(bad) == 4004 else "s16")) as client:
            send(client, bytes(24000), end=False)
            client.send(bad)
            assert receive(client)[1] in (1007, 1009)
    killed_client(server, data[:50000], "?rate=44100")
    with contextlib.suppress(OSError), socket.create_connection(server.listener.getsockname(), serving.TIMEOUT) as raw:
        raw.sendall(np.random.default_rng(0).bytes(500) + b"\r\n\r\n")
        raw.recv(1000)


def test_whatever_the_others_do_a_stream_is_what_it_is_alone(speech2text):
    """Others are killed, send garbage or read slowly, a file runs, the server stops: the results stay the same."""
    audio = [pcm(tiny.speech(20 + seed, 90000 + 7000 * seed)) for seed in range(4)]
    queries = ["", "?search=greedy", "?chunk_size=0.32&context=0.96", "?endpoint_length=2"]  # 2 and 3 chunks back
    settings = [{}, {"search": "greedy"}, {"chunk_size": 0.32, "context": 0.96}, {"endpoint_length": 2.0}]
    expected = [alone(speech2text, samples, **s) for (_, samples), s in zip(audio, settings, strict=True)]
    with Running(speech2text, max_message_bytes=40000, send_seconds=1) as server, ThreadPoolExecutor(8) as pool:
        good = [
            pool.submit(play, server, data, query, size=3200, pause=0.02)
            for (data, _), query in zip(audio, queries, strict=True)
        ]
        wait_until(lambda: server.service.served("stream") == 4)
        with slow_reader(server, audio[0][0] * 2), server.stream() as unfinished:
            broken_clients(server, audio[1][0])
            send(unfinished, audio[2][0], end=False)
            answers = [future.result(serving.TIMEOUT) for future in good]
            server.stop()
            stopped = receive(unfinished)
    for (messages, code), segments in zip(answers, expected, strict=True):
        same_segments(messages, segments)
        assert code == 1000
    same_segments(stopped[0], alone(speech2text, audio[2][1]))
    assert stopped[1] == 1001 and stopped[0][-1]["type"] == "end"
    assert server.ended("disconnected") >= 2 and server.ended("bad-message") == 2 and server.ended("bad-audio") == 1


def test_stopping_finishes_what_was_sent(speech2text):
    """Streams and a file that are midway get all their results; nobody else is admitted."""
    audio = [pcm(tiny.speech(30 + seed, 70000 + 9000 * seed)) for seed in range(3)]
    with Running(speech2text) as server, ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.stream()) for _ in audio]
        for client, (data, _) in zip(clients, audio, strict=True):
            send(client, data, end=False)
        file = pool.submit(post, server, wav(tiny.speech(1, 300000)), response_format="text")
        wait_until(lambda: server.service.served("file") == 1)
        server.stop()
        for client, (_, samples) in zip(clients, audio, strict=True):
            messages, code = receive(client)
            same_segments(messages, alone(speech2text, samples))
            assert code == 1001 and messages[-1]["type"] == "end"
        assert file.result().text == speech2text(tiny.speech(1, 300000))[0].text + "\n"
        with pytest.raises(OSError):
            server.stream()


def test_stopping_reads_on_where_a_client_was_held_back(speech2text):
    """A client sends far more than may wait: the server still reads everything that was sent before it stopped."""
    data, samples = pcm(tiny.speech(8, 20 * 16000))
    with Running(speech2text, max_queue_seconds=0.5, max_message_bytes=16000) as server:
        with server.stream("?search=greedy") as client, ThreadPoolExecutor(1) as pool:
            sent = pool.submit(send, client, data, 16000)
            json.loads(client.recv(serving.TIMEOUT))
            json.loads(client.recv(serving.TIMEOUT))
            server.stop()
            while httpx.get(f"{server.http}/health").status_code == 200:
                time.sleep(0.01)
            messages, code = receive(client)
            sent.result()
    assert (code, messages[-1]["type"]) == (1000, "end") and messages[-1]["time"] == pytest.approx(20, abs=0.1)


def test_an_upload_is_told_that_the_server_stops(speech2text):
    """After half of a file nothing follows: the server neither waits for the rest nor hangs up without a response."""
    with Running(speech2text) as server:
        with socket.create_connection(server.listener.getsockname(), serving.TIMEOUT) as half:
            head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            half.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b".encode())
            wait_until(lambda: server.service.served("file") == 1)
            began = time.monotonic()
            server.stop()
            response = b"".join(iter(lambda: half.recv(10000), b""))  # to the end: the body may come by itself
            assert response.startswith(b"HTTP/1.1 503")
            assert b"the server is stopping" in response and b'"stopping"' in response
            server.join()
            assert time.monotonic() - began < 3


def test_a_second_signal_stops_at_once(speech2text):
    data, _ = pcm(tiny.speech(1, 16000 * 60))
    with Running(speech2text, max_message_bytes=len(data)) as server:
        with server.stream("?chunk_size=0.32") as client:
            client.send(data)
            json.loads(client.recv(serving.TIMEOUT))
            began = time.monotonic()
            server.stop()
            time.sleep(0.3)
            server.server.force_exit = True  # what uvicorn makes of the second one
            server.join()
            assert time.monotonic() - began < 4


def test_limits_may_be_infinite_or_short(speech2text):
    with Running(speech2text, send_seconds=math.inf, max_span_seconds=math.inf) as server:
        with server.stream("?chunk_size=inf&context=inf") as client:
            ready = client.recv(serving.TIMEOUT)
        assert json.loads(ready)["chunk_seconds"] is None and "Infinity" not in ready
        with server.stream("?endpoint_length=inf&endpoint_silence=inf") as client:  # no segment would ever end
            messages, code = receive(client)
        assert (code, messages[-1]["code"]) == (1008, "bad-setting")
    with Running(speech2text, max_span_seconds=10.0) as server:
        server.service.warm()
        assert server.service.open_stream().config.endpoint_length == 10.0


def test_a_port_is_taken_by_one_server_only():
    with bind(ServerConfig(port=0)) as first:
        with pytest.raises(UserError, match="cannot listen on 127.0.0.1 port"):
            bind(ServerConfig(port=first.getsockname()[1]))


def test_stopping_waits_no_longer_than_it_may(speech2text):
    data, _ = pcm(tiny.speech(1, 16000 * 60))
    with Running(speech2text, shutdown_seconds=0.1, max_message_bytes=len(data)) as server:
        with server.stream("?chunk_size=0.32") as client:
            client.send(data)
            json.loads(client.recv(serving.TIMEOUT))
            began = time.monotonic()
            server.stop()
            server.join()
            assert time.monotonic() - began < 4
            assert receive(client)[1] in (1001, 1006, 1012)


# Files


def wav(samples, rate=16000, form="WAV"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


def post(server, content, name="speech.wav", **fields):
    """Return the response to a file, sent as OpenAI's clients do."""
    return httpx.post(
        f"{server.http}/v1/audio/transcriptions",
        files={"file": (name, content)},
        data={"model": "whisper-1", **fields},
        timeout=serving.TIMEOUT,
    )


@pytest.fixture(scope="module")
def recording(speech2text):
    """A WAV file and its transcript by the model alone."""
    content = wav(tiny.speech(40, 100000))
    return content, speech2text(soundfile.read(io.BytesIO(content), dtype="float32")[0])[0]


def test_a_file_in_every_format(server, recording):
    content, expected = recording
    response = post(server, content)
    assert response.json() == {"text": expected.text, "usage": {"type": "duration", "seconds": 7}} and expected.text
    assert post(server, content, response_format="text").text == expected.text + "\n"
    srt, vtt = (post(server, content, response_format=form).text for form in ("srt", "vtt"))
    assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n", srt) and vtt.startswith("WEBVTT\n\n00:00:0")
    for captions in (srt, vtt):
        assert " ".join(re.findall(r"^(?!WEBVTT|\d+$|\d\d:)(.+)$", captions, re.M)) == expected.text


def test_a_file_with_all_there_is_to_say(server, recording):
    content, expected = recording
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"], "language": "en"}
    response = post(server, content, prompt="names", temperature="0.2", **fields)
    said = response.json()
    assert response.headers["x-ignored-fields"] == "language, prompt, temperature"
    assert (said["task"], said["language"], said["duration"], said["text"]) == ("transcribe", "en", 6.25, expected.text)
    assert [(w["word"], w["start"], w["end"]) for w in said["words"]] == [
        (word.text, round(word.start, 3), round(word.end, 3)) for word in expected.words
    ]
    assert " ".join(segment["text"] for segment in said["segments"]) == expected.text
    assert [segment["id"] for segment in said["segments"]] == list(range(len(said["segments"])))
    assert "words" not in post(server, content, response_format="verbose_json").json()


def test_a_field_that_no_answer_can_hold_is_escaped(server, recording):
    """The client chooses a character set that makes half of a surrogate pair."""
    language = b'--b\r\nContent-Disposition: form-data; name="language"\r\n\r\n\\ud800\r\n'
    verbose = b'--b\r\nContent-Disposition: form-data; name="response_format"\r\n\r\nverbose_json\r\n'
    body = FORM.replace(b"RIFF", recording[0]).removesuffix(b"--b--\r\n") + language + verbose + b"--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b; charset=unicode_escape"}
    response = httpx.post(f"{server.http}/v1/audio/transcriptions", content=body, headers=headers, timeout=60)
    assert response.status_code == 200 and response.json()["language"] == "\\ud800"


@pytest.mark.parametrize("form, rate, channels", [("FLAC", 44100, 2), ("OGG", 8000, 1), ("MP3", 24000, 1)])
def test_a_file_of_another_kind(server, speech2text, tmp_path, form, rate, channels):
    samples = np.stack([tiny.speech(41, 3 * rate)] * channels, axis=1)
    (tmp_path / "file").write_bytes(wav(samples, rate, form))
    expected = speech2text(tmp_path / "file")[0].text
    assert post(server, (tmp_path / "file").read_bytes(), response_format="text").text == expected + "\n"


def test_a_channel_of_a_file(server, speech2text):
    parties = [tiny.speech(seed, 60000) for seed in (43, 44)]
    content = wav(np.stack(parties, axis=1))
    pair = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    for channel in (0, 1):
        response = post(server, content, channel=str(channel))
        assert response.json()["text"] == speech2text(pair[:, channel])[0].text
        assert not {"x-remarks", "x-ignored-fields"} & {*response.headers}
    for fields in ({}, {"channel": "mix"}):
        response = post(server, content, **fields)
        assert response.json()["text"] == speech2text(pair)[0].text
        assert response.headers["x-remarks"].startswith("2 channels averaged; choose one of them, from 0 on")


def test_what_is_lost_in_silence_is_said(server):
    quiet = tiny.speech(45, 60000) * 1e-3
    assert post(server, wav(quiet)).headers["x-remarks"].startswith("nearly silent, its loudest parts are at -")
    data, _ = pcm(quiet)
    messages, code = play(server, data)
    assert code == 1000 and [text[:14] for text in messages[-1]["remarks"]] == ["nearly silent,"]
    messages, code = play(server, np.full(1, np.nan, "<f4").tobytes(), "?format=f32")  # too little to be judged at once
    assert code == 1007 and messages[-1]["code"] == "bad-audio" and "NaN" in messages[-1]["message"]


@pytest.mark.parametrize(
    "content, fields, status, code, says",
    [
        (b"", {}, 400, "bad-audio", "speech.wav is an empty file"),
        (b"RIFF" + bytes(100), {}, 400, "bad-audio", "speech.wav (WAV) is damaged (Format not recog"),
        (wav(np.zeros(0, np.float32)), {}, 400, "bad-audio", "holds no samples"),
        (wav(tiny.speech(0, 5000))[:6000], {}, 400, "bad-audio", "is cut short: its header promises 5000 samples"),
        (
            b"",
            {"response_format": "diarized_json"},
            400,
            "bad-setting",
            "use one of json, text, srt, verbose_json, vtt",
        ),
        (b"", {"timestamp_granularities[]": "word"}, 400, "bad-setting", "need response_format verbose_json"),
        (b"", {"timestamp_granularities[]": "letter"}, 400, "bad-setting", "'letter': use one of segment, word"),
        (b"", {"stream": "true"}, 400, "bad-setting", "files are answered whole; for results as they come use /v1/str"),
        (
            b"",
            {"channel": "each"},
            400,
            "bad-setting",
            "channel 'each' is no channel: give its number, from 0 on, or mix;",
        ),
        (wav(tiny.speech(0, 5000)), {"channel": "1"}, 400, "bad-audio", "has no channel 1: it has 1, counted from 0"),
        (b"\0\0\0\x1cftypM4A " + bytes(99), {}, 400, "bad-audio", "speech.wav"),
        (b"", {"prompt": "x" * 70000}, 400, "bad-message", "the form cannot be read (Part exceeded maximum size"),
    ],
    ids=range(12),
)
def test_a_file_that_cannot_be_used(server, content, fields, status, code, says):
    response = post(server, content, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert (
        says in error["message"] and "\n" not in error["message"] and set(error) == {"message", "type", "param", "code"}
    )


def test_requests_that_are_no_files(server):
    address = f"{server.http}/v1/audio/transcriptions"
    for response, status in [
        (httpx.post(address, json={"file": "x"}), 400),
        (httpx.post(address, files={"audio": b"x"}), 400),
        (httpx.post(address, content=b"--", headers={"content-type": "multipart/form-data"}), 400),
        (httpx.get(address), 405),
        (httpx.get(f"{server.http}/v1/translations"), 404),
    ]:
        assert response.status_code == status and response.json()["error"]["type"] == "invalid_request_error"
        assert response.headers.get("allow") == ("POST" if status == 405 else None)


def test_files_have_limits(speech2text):
    long = wav(np.zeros(40001, np.float32))
    with Running(speech2text, max_file_bytes=200000, max_file_seconds=2.5, upload_seconds=0.3) as strict:
        response = post(strict, long)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too-long")
        assert "speech.wav is longer than 2.5 s" in response.json()["error"]["message"]
        assert post(strict, wav(np.zeros(40000, np.float32))).status_code == 200
        assert post(strict, bytes(200001)).json()["error"]["code"] == "too-big"
        assert post(strict, bytes(8000000)).json()["error"]["code"] == "too-big"  # not even read
        with socket.create_connection(strict.listener.getsockname(), serving.TIMEOUT) as slow:
            head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b".encode())
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_unpacking_stops_at_the_limit():
    """Small files may hold much audio: 8 channels of silence, or FLAC of unknown length."""
    for content, seconds in [(wav(np.zeros((48000, 8)), 48000, "FLAC"), 3), (wav(np.zeros(16000 * 9), form="FLAC"), 8)]:
        with pytest.raises(AudioError) as caught:
            read_bytes(content, most_seconds=seconds)
        assert caught.value.reason == "too-long"
        assert len(read_bytes(content, most_seconds=9)) in (16000, 16000 * 9)
    endless = bytearray(wav(np.zeros(3 * (1 << 20), np.int16), form="FLAC"))
    endless[21] &= 0xF0  # the total number of samples, 36 bits of STREAMINFO: unknown
    endless[22:26] = bytes(4)
    assert len(read_bytes(bytes(endless))) == 3 * (1 << 20)
    with pytest.raises(AudioError, match="longer than 100 s"):
        read_bytes(bytes(endless), most_seconds=100)


def test_more_files_than_places_are_refused(speech2text):
    content = wav(tiny.speech(1, 400000))
    with Running(speech2text, max_files=1) as strict, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, strict, content)
        wait_until(lambda: strict.service.served("file") == 1)
        refused = post(strict, content)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "full" and refused.json()["error"]["type"] == "server_error"
        assert first.result().status_code == 200
        with socket.create_connection(strict.listener.getsockname(), serving.TIMEOUT) as gone:  # and one who leaves
            request = httpx.Request("POST", f"{strict.http}/v1/audio/transcriptions", files={"file": content})
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            gone.sendall(f"POST /v1/audio/transcriptions HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            wait_until(lambda: strict.service.served("file") == 1)
        wait_until(lambda: strict.service.served("file") == 0)
        assert post(strict, wav(tiny.speech(1, 20000))).status_code == 200


# What else there is


def test_health_models_metrics_and_page(server, recording):
    for _ in range(2):
        post(server, recording[0])
    play(server, pcm(tiny.speech(1, CHUNK * 3))[0], "?search=greedy")
    health = httpx.get(f"{server.http}/health")
    assert health.json() == {"status": "ok", "model": "tiny", "streams": 0, "max_streams": 6}
    assert [model["id"] for model in httpx.get(f"{server.http}/v1/models").json()["data"]] == ["tiny"]
    metrics = httpx.get(f"{server.http}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(re.findall(r"^(speechllm_xl_[^ ]+) ([\d.e+-]+)$", metrics.text, re.M))
    for name, least in [
        ('files_total{status="200"}', 2),
        ('audio_seconds_total{source="file"}', 12.5),
        ('audio_seconds_total{source="stream"}', 1.8),
        ('engine_calls_total{kind="encode"}', 3),
        ('engine_requests_total{kind="token"}', 3),
        ("engine_busy_seconds_total", 0.01),
        ('streams_ended_total{reason="end"}', 1),
        ("latency_seconds_count", 1),
    ]:
        assert float(values[f"speechllm_xl_{name}"]) >= least, name
    assert values["speechllm_xl_streams"] == "0.0"
    model = httpx.get(f"{server.http}/v1/models/tiny").json()
    assert model == httpx.get(f"{server.http}/v1/models").json()["data"][0] and model["object"] == "model"
    assert (model["settings"]["search"], model["settings"]["chunk_size"]) == ("chunk_sync", 0.64)
    other = httpx.get(f"{server.http}/v1/models/whisper%0a1")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    assert other.json()["error"]["message"] == "there is no model 'whisper 1' here: it is called 'tiny'"
    page = httpx.get(server.http)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert httpx.get(f"{server.http}/page/index.html").text == page.text
    assert httpx.get(f"{server.http}/page/%2e%2e/app.py").status_code == 404


@contextlib.contextmanager
def served_by_command(model, *options):
    """Run the command, which may write no file; yield ``(process, address)``."""
    command = [sys.executable, "-m", "espnet_speechllm_xl", "serve", "--model", str(model), "--port", "0", *options]
    shell = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh"]
    with subprocess.Popen([*shell, *command], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline() == f"speechllm-xl serve: loading {model} ...\n"
            line = process.stderr.readline()
            yield process, re.fullmatch(r"speechllm-xl serve: http://(127\.0\.0\.1:\d+)\n", line)[1]
        finally:
            process.kill()


def test_the_command(tiny_model_dir):
    """SIGTERM ends the command's process with 0; audio sent before is finished, and nothing goes to the disk."""
    data, samples = pcm(tiny.speech(50, 60000))
    options = ["--dtype", "float64", "--search", "greedy", "--token", "secret"]
    with served_by_command(tiny_model_dir, *options) as (process, address):
        big = {"file": wav(np.zeros((80000, 16), np.int16))}  # 2.5 MB; starlette puts more than 1 MB into a file
        headers = {"Authorization": "Bearer secret"}
        response = httpx.post(f"http://{address}/v1/audio/transcriptions", files=big, headers=headers, timeout=60)
        assert response.status_code == 200
        with connect(f"ws://{address}/v1/stream?token=secret", open_timeout=serving.TIMEOUT) as client:
            send(client, data, end=False)
            json.loads(client.recv(serving.TIMEOUT))
            process.send_signal(signal.SIGTERM)
            messages, code = receive(client)
        assert process.wait(serving.TIMEOUT) == 0
        assert process.stderr.read() == ""  # and no token in a log
    speech2text = Speech2Text.from_pretrained(tiny_model_dir, dtype="float64", search="greedy")
    same_segments(messages, alone(speech2text, samples, "greedy"))
    assert code == 1001


@pytest.mark.parametrize(
    "host, says",
    [
        ("", "host is empty: give an address"),
        ("no.such.invalid", "cannot listen on no.such.invalid port 0 ("),
        ("a" * 70, "cannot listen on aaaa"),
        ("192.0.2.1", "cannot listen on 192.0.2.1 port 0 (Cannot assign requested address): choose"),
    ],
)
def test_a_host_that_is_none_is_one_line(capsys, tiny_model_dir, host, says):
    assert cli.main(["serve", "--model", str(tiny_model_dir), "--host", host, "--port", "0"]) == 2
    *loading, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"speechllm-xl: error: {says}")
    assert loading == [] if host == "" else [f"speechllm-xl serve: loading {tiny_model_dir} ..."]


def test_a_port_that_is_taken_is_one_line(capsys, server, tiny_model_dir):
    port = server.listener.getsockname()[1]
    assert cli.main(["serve", "--model", str(tiny_model_dir), "--port", str(port)]) == 2
    _, line = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"speechllm-xl: error: cannot listen on 127.0.0.1 port {port} (Address already in use): choose"
    )


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"port": 70000}, "port 70000 is not in 0 .. 65535"),
        ({"host": ""}, "host is empty: give an address of this machine"),
        ({"host": " "}, "host is empty"),
        ({"token": ""}, "token is empty: give one, or leave --token out"),
        ({"allow_origin": ["localhost:3000"]}, "allow_origin 'localhost:3000' is no origin: give scheme://name"),
        ({"allow_origin": ["http://a.example/app"]}, "allow_origin 'http://a.example/app' is no origin"),
        ({"allow_origin": ["null"]}, "allow_origin 'null' is no origin"),
        ({"allow_origin": ["*"]}, "allow_origin '*': any page could listen: give a --token"),
        ({"max_streams": 0}, "server max_streams must be positive"),
        ({"idle_seconds": -1.0}, "server idle_seconds must be positive"),
        ({"handshake_seconds": 0.0}, "server handshake_seconds must be positive"),
    ],
)
def test_settings_are_checked(settings, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        ServerConfig(**settings)
