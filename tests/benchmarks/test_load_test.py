"""The load test against real servers: its clients, its command, the server that it starts; delays that are planted."""

import asyncio
import contextlib
import functools
import http.server
import json
import re
import socket
import threading
import time

import numpy as np
import psutil
import pytest
import serving
import soundfile
import tiny
from serving import Running, wait_until
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.http11 import Response

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.benchmarks import load_report, load_test
from espnet_speechllm_xl.benchmarks.load_clients import Address, Schedule, greet, play_streams
from espnet_speechllm_xl.benchmarks.load_figures import Answer, Played, Window, make_figures
from espnet_speechllm_xl.benchmarks.load_server import Server
from espnet_speechllm_xl.benchmarks.load_test import LoadPlan, load_recordings
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.errors import UserError

RATE = 16000
# Of the server of planted delays, in seconds.
CHUNK, LOOKAHEAD, ANSWER, FINAL = 0.64, 0.08, 0.15, 0.3
BUSY = 0.3  # seconds by which a busy machine may be late


@pytest.fixture(scope="module")
def speech2text(tiny_model_dir):
    return Speech2Text.from_pretrained(tiny_model_dir)


@pytest.fixture
def files(tmp_path):
    """Three recordings of 1.2, 1.5 and 1.8 s."""
    names = [str(tmp_path / f"{number}.wav") for number in range(3)]
    for number, name in enumerate(names):
        soundfile.write(name, tiny.speech(number, 19200 + 4800 * number), RATE, subtype="PCM_16")
    return names


# A server of planted delays


class Planted:
    """A server that speaks the protocol, and answers each chunk ``ANSWER`` seconds after its look-ahead is there.

    Each chunk gets a partial word, which the next chunk takes back if its number is odd, and settles if it is even.
    The final text comes ``FINAL`` seconds after the end.  From ``slow`` streams at a time on, answers come two chunks
    later.
    """

    def __init__(self, slow=1000):
        self.slow, self.open, self.most = slow, 0, 0

    def __enter__(self):
        ready = threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self._serve(ready),))
        self.thread.start()
        assert ready.wait(serving.TIMEOUT)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(serving.TIMEOUT)

    async def _serve(self, ready):
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self._stream, "127.0.0.1", 0, process_request=self._http, compression=None) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await self.stop.wait()

    def _http(self, _connection, request):
        answers = {"/health": b'{"max_streams": 50}', "/metrics": b"speechllm_xl_engine_busy_seconds_total 7.0\n"}
        if request.path in answers:
            return Response(200, "OK", Headers(Connection="close"), answers[request.path])
        return None

    async def _stream(self, socket):
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await self._talk(socket)
        finally:
            self.open -= 1

    async def _talk(self, socket):
        settings = {"search": "chunk_sync", "beam_size": 8, "ctc_weight": 0.3}
        ready = {"type": "ready", "sample_rate": RATE, "model": "planted", "settings": settings}
        await socket.send(json.dumps({**ready, "chunk_seconds": CHUNK, "lookahead_seconds": LOOKAHEAD}))
        samples, chunks, answers = 0, 0, []
        async for message in socket:
            if isinstance(message, str):
                break
            samples += len(message) // 2
            while samples >= (CHUNK * (chunks + 1) + LOOKAHEAD) * RATE:
                chunks += 1
                late = ANSWER + 2 * CHUNK * (self.open >= self.slow)
                answers.append(asyncio.create_task(self._answer(socket, chunks, late)))
        await asyncio.gather(asyncio.sleep(FINAL), *answers)
        settled = " ".join("w" for _ in range(0, chunks, 2))
        final = {"text": settled, "settled": settled, "is_final": True, "time": samples / RATE}
        await socket.send(json.dumps({"type": "result", **final}))
        await socket.send(json.dumps({"type": "end", "time": samples / RATE}))

    async def _answer(self, socket, chunk, late):
        await asyncio.sleep(late)
        settled = ["w"] * (chunk // 2)
        words = [*settled, "w" if chunk % 2 else "x"]
        result = {"settled": " ".join(settled), "text": " ".join(words), "is_final": False, "time": chunk * CHUNK}
        with contextlib.suppress(Exception):  # the client is gone
            await socket.send(json.dumps({"type": "result", **result}))


def play(url, recordings, count, schedule):
    """Return the figures of a run, all that was played, and the window."""
    window = schedule.window(time.monotonic())
    played = asyncio.run(play_streams(Address(url), recordings, RATE, count, schedule, window))
    return make_figures(played, window), played, window


def test_the_clients_measure_the_planted_delays():
    recordings = [np.zeros(int(seconds * RATE), np.int16) for seconds in (1.4, 1.9)]
    schedule = Schedule(spread=CHUNK, warm_up=0.5, seconds=5.0, tail=1.0, message=0.04, seed=0)
    with Planted() as server:
        found, played, window = play(server.url, recordings, 2, schedule)
    assert found.errors == 0 and server.most == 2
    # A chunk is answered ANSWER behind the last sample of its look-ahead; the final result, of no whole chunk, FINAL
    # behind its end.
    latency = found.result_latency
    assert LOOKAHEAD + ANSWER <= latency.p50 <= LOOKAHEAD + ANSWER + BUSY
    assert CHUNK + LOOKAHEAD + ANSWER <= found.first_partial.p50 <= CHUNK + LOOKAHEAD + ANSWER + BUSY
    assert FINAL <= found.ttfs.p50 <= FINAL + BUSY
    assert found.ttfs.count == sum(one.whole and one.begin + one.seconds in window for one in played) >= 3
    # Words in partial text: w, x, w, x, ...: the second of each pair is taken back, the first is settled.
    assert 0.3 < found.churn < 0.6
    shares = 1 / (1 + FINAL / 1.65)  # of the time that a place plays
    assert 2 * shares * 0.6 < found.rtfx <= 2.0


def test_recordings_are_played_at_real_time_one_after_the_other():
    """Two places and five recordings: the first plays 0, 2, 4, 1, ..., the other 1, 3, 0, ..."""
    seconds = [0.41, 0.52, 0.63, 0.74, 0.85]
    recordings = [np.zeros(int(value * RATE), np.int16) for value in seconds]
    schedule = Schedule(spread=0.2, warm_up=0.0, seconds=4.0, tail=0.3, message=0.1, seed=3)
    begin = time.monotonic()
    with Planted() as server:
        _, played, window = play(server.url, recordings, 2, schedule)
    whole = [one for one in played if one.whole]
    expected = [[seconds[number % 5] for number in range(place, 40, 2)] for place in (0, 1)]
    first, second = (sorted(same, key=lambda one: one.begin) for same in _by_place(played, expected))
    assert len(first) > 2 and len(second) > 2 and len(whole) >= len(played) - 2
    for one in whole:
        (final,) = (answer for answer in one.answers if answer.kind == "end")
        assert final.at - one.begin >= one.seconds + FINAL  # neither faster than it is spoken
    assert window.begin == pytest.approx(begin + 0.2, abs=BUSY)
    assert schedule.waits(2) == schedule.waits(2) != Schedule(0.2, 0, 4, 0.3, 0.1, 4).waits(2)
    assert max(one.begin + one.seconds for one in played) <= window.end + 0.3 + 1e-6


def _by_place(played, expected):
    """Part streams by the place that played them: their order within ``played`` is that of the places."""
    cut = next(index for index in range(1, len(played)) if played[index].begin < played[index - 1].begin)
    places = played[:cut], played[cut:]
    for streams, wanted in zip(places, expected, strict=True):
        assert [round(one.seconds, 2) for one in streams if one.whole] == wanted[: sum(one.whole for one in streams)]
    return places


def test_the_search_finds_the_number_from_which_the_server_is_slow(files):
    with Planted(slow=4) as server:
        plan = LoadPlan(files=tuple(files), warm_up=0.1, seconds=1.0, message=0.04)
        outcome = load_test.run(plan, Server(Address(server.url)))
    assert outcome.maximum == 3
    assert {count: len(runs) for count, runs in outcome.runs.items()} == {1: 1, 2: 1, 3: 3, 4: 3}
    assert "**Maximum streams: 3** (P99 of result latency under one chunk, 0 errors, median of three; a chunk" in (
        load_report.maximum_line(outcome)
    )
    assert all(run.busy == 0.0 and run.batch is None for runs in outcome.runs.values() for run in runs)


# Our server


def test_streams_of_a_real_server_have_its_text(speech2text, files):
    """Every stream that was played to its end has the text of a stream that nobody disturbs."""
    recordings = load_recordings(LoadPlan(files=tuple(files)), RATE)
    expected = {}
    for recording in recordings:
        stream = speech2text.stream()
        segments = [*stream.push(recording / np.float32(32768)).segments, *stream.close().segments]
        expected[len(recording) / RATE] = " ".join(segment.text for segment in segments)
    schedule = Schedule(spread=0.64, warm_up=0.0, seconds=4.0, tail=1.0, message=0.1, seed=0)
    with Running(speech2text) as server:
        found, played, _ = play(server.http, recordings, 3, schedule)
        wait_until(lambda: server.service.served("stream") == 0)
        assert server.ended("end") == len(played)
    assert found.errors == 0 and found.result_latency.count > 5 and found.ttfs.count > 3
    assert 0.5 < found.rtfx < 3.3
    whole = [one for one in played if one.whole]
    assert len({one.seconds for one in whole}) == 3
    for one in whole:
        assert " ".join(answer.text for answer in one.answers if answer.final) == expected[one.seconds]
        times = [answer.time for answer in one.answers]
        assert times == sorted(times) and times[-1] == pytest.approx(one.seconds, abs=0.045)


def command(capfd, *options):
    code = cli.main(["load-test", *map(str, options)])
    return code, *capfd.readouterr()


SHORT = ["--no-maximum", "--warm-up", "0.5", "--seconds", "3"]


def rows(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]


def test_the_command_starts_a_server_and_stops_it(tiny_model_dir, files, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    record, page = tmp_path / "load.json", tmp_path / "load.md"
    page.write_text("# Mine\n", "utf-8")
    options = ["--model", tiny_model_dir, "--search", "greedy", "--token", "secret", "--audio", *files, *SHORT]
    code, out, err = command(capfd, *options, "--streams", "1", "4", "--json", record, "--markdown", page)
    assert code == 0, err
    assert "load-test: 4 streams, run 1: P99 of result latency" in err
    first, second = rows(out)
    assert (first["streams"], second["streams"], second["runs"], second["errors"]) == ("1", "4", "1", "0")
    assert float(second["RTFx"]) > float(first["RTFx"]) > 0.3
    assert float(second["result latency P50 (ms)"]) <= float(second["P90"]) and float(second["TTFS P50 (ms)"]) > 0
    assert 50 < float(second["peak memory (MB)"]) < 5000
    assert "Maximum streams" not in out and "More streams than recordings" in out
    assert "1 thread; float32; greedy; chunks of 0.64 s**" in out and "secret" not in out
    saved = json.loads(record.read_text("utf-8"))
    assert [row["streams"] for row in saved["rows"]] == [1, 4] and saved["maximum"] is None
    assert saved["server"]["settings"]["search"] == "greedy" and saved["server"]["started"]
    assert f"{1000 * saved['rows'][1]['median']['ttfs']['p95']:.0f}" in out
    text = page.read_text("utf-8")
    assert text.startswith("# Mine\n") and out.strip() in text and "secret" not in text + record.read_text("utf-8")
    assert not [child for child in psutil.Process().children() if "serve" in child.cmdline()]


def test_a_server_of_others_is_measured_without_its_memory(speech2text, files, capfd):
    with Running(speech2text, max_streams=2, token="secret") as server:
        measured = ["--url", server.http, "--audio", files[0], *SHORT, "--token", "secret", "--precision", "bfloat16"]
        code, out, _ = command(capfd, *measured, "--streams", "2", "--query", "search=greedy&chunk_size=0.32")
        assert code == 0 and "peak memory (MB)" not in out and "Peak memory was not measured" in out
        assert "**hardware not named; bfloat16; greedy; chunks of 0.32 s**" in out
        (row,) = rows(out)
        assert float(row["engine busy (%)"]) > 0 and float(row["batch"]) >= 1
        # More than it admits: said before anything is measured.
        code, out, err = command(capfd, *measured, "--streams", "3")
        assert (code, out) == (2, "") and "3 streams: the server admits 2: give it a larger --max-streams" in err
        # Somebody else takes one of its places.
        with server.stream("?token=secret"):
            wait_until(lambda: server.service.served("stream") == 1)
            code, out, err = command(capfd, *measured, "--streams", "2")
        assert code == 1 and int(rows(out)[0]["errors"]) > 0
        assert re.search(r"load-test: \d+ failed: the server is full, 2 streams are being decoded", err)
        for options, message in (
            (["--token", "wrong"], "refuses a stream: wrong or missing token"),
            (["--query", "chunk_size=wide"], "refuses a stream: chunk_size 'wide' is no number"),
        ):
            code, out, err = command(capfd, *measured, "--streams", "1", *options)
            assert (code, out) == (2, "") and message in err


def test_the_search_stops_at_what_a_server_admits(speech2text, files, capfd):
    with Running(speech2text, max_streams=1) as server:
        options = ["--url", server.http, "--audio", *files, "--warm-up", "0", "--seconds", "1.5"]
        code, out, _ = command(capfd, *options, "--query", "search=greedy")
    assert code == 0 and "**Maximum streams: 1**" in out and "The server admits no more" in out
    assert [row["runs"] for row in rows(out)] == ["3"]


def test_a_server_that_ends_during_the_test_is_no_slow_server(speech2text, files, capfd):
    with Running(speech2text) as server:
        timer = threading.Timer(2.0, server.stop)
        timer.start()
        code, out, err = command(capfd, "--url", server.http, "--audio", *files, "--warm-up", "0", "--seconds", "4")
        timer.join()
    assert (code, out) == (2, "") and f"{server.http}/health does not tell the state of a server" in err
    assert "failed: the server ended the stream itself (code 1001)" in err


@contextlib.contextmanager
def other_server():
    """A server of files."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/nowhere")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_not_there_or_is_another_one(capfd, files):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = command(capfd, "--url", url, "--audio", *files)
    assert code == 2 and f"{url}: no server answers" in err and "start one with `speechllm-xl serve`" in err
    with other_server() as url:
        code, _, err = command(capfd, "--url", url, "--audio", *files)
    assert code == 2 and f"{url} is no server of `speechllm-xl serve`" in err


def test_a_server_that_does_not_start_says_why(capfd, files, tmp_path):
    code, out, err = command(capfd, "--model", tmp_path / "nothing", "--audio", *files)
    assert (code, out) == (2, "") and err.startswith("speechllm-xl: error: ") and str(tmp_path / "nothing") in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["--audio", "a.wav"], "give the --url of a server that runs, or the --model"),
        (["--url", "http://x", "--model", "m", "--audio", "a.wav"], "give the --url of a server that runs, or the"),
        (["--url", "127.0.0.1:8000", "--audio", "a.wav"], "--url 127.0.0.1:8000: give http://host:port"),
        (["--url", "http://x"], "there is nothing to play"),
        (["--url", "http://x", "--audio", "a.wav", "--search", "greedy"], "--search is an option of a server that is"),
        (["--url", "http://x", "--audio", "a.wav", "--no-maximum"], "--no-maximum: give numbers with --streams"),
        (["--url", "http://x", "--audio", "a.wav", "--query", "rate=8000"], "--query rate: the clients choose it"),
    ],
)
def test_options_that_do_not_fit(capfd, options, message):
    code, _, err = command(capfd, *options)
    assert code == 2 and message in err


def test_recordings_of_a_dump_in_an_order_that_the_seed_gives(files, tmp_path):
    (tmp_path / "wav.scp").write_text("".join(f"u{n} {name}\n" for n, name in enumerate(files)), "utf-8")

    def lengths(seed):
        return [len(one) for one in load_recordings(LoadPlan(dump=tmp_path, seed=seed), RATE)]

    assert sorted(lengths(0)) == [19200, 24000, 28800] and lengths(0) == lengths(0)
    assert len({tuple(lengths(seed)) for seed in range(8)}) > 1
    (tmp_path / "wav.scp").write_text("", "utf-8")
    with pytest.raises(UserError, match="holds no recording"):
        lengths(0)


def planted_outcome(*played, count=1, recordings=1, **measured):
    """The outcome of one run of ``count`` streams of 0.64 s chunks."""
    settings = {"search": "chunk_sync", "beam_size": 8, "ctc_weight": 0.3}
    ready = {"chunk_seconds": 0.64, "lookahead_seconds": 0.08, "model": "m", "settings": settings}
    figures = make_figures(played, Window(0.0, 10.0), **measured)
    return load_test.Outcome(ready, most=4, recordings=recordings, runs={count: [figures]})


def test_silence_has_no_figures():
    """A model that hears nothing has no result that could be late."""
    with pytest.raises(UserError, match="no stream had a result that counts"):
        load_test.check(planted_outcome())
    load_test.check(planted_outcome(Played(1.0, 0.0, 0.1, error="full")))  # what failed has said why


def test_the_report_says_what_limits_its_figures():
    words = [Answer(1.3, 0.64, "result", "a b", "a"), Answer(1.94, 1.28, "result", "a c", "a c")]
    played = Played(0.0, 20.0, 0.1, whole=False, answers=words)
    outcome = planted_outcome(played, count=3, busy=0.254, batch=1.25, peak_bytes=321_400_000, lag=0.081)
    outcome.maximum = 0
    found = load_report.record(LoadPlan(), Server(Address("http://x", "", "q=1"), 7), outcome, "H", "int8", "cmd")
    *_, row = load_report.table(outcome)
    # Sent at 0.7 and 1.3 s: with the messages that hold their last samples.
    assert row.strip("|").split("|") == [
        *("3", "1", "620", "636", "638", "640", "1300", "-", "-", "-", "100.0", "0.1", "25.4", "1.2", "0", "321"),
    ]
    text = "\n".join(load_report.block(outcome, found))
    assert text.startswith("**H; int8; chunk_sync, beam 8, CTC 0.3; chunks of 0.64 s**\n\n`cmd`\n")
    assert (
        "**Maximum streams: 0** (P99 of result latency under one chunk, 0 errors, median of three; a chunk lasts 640"
        in text
    )
    assert (
        "More streams than recordings" in text and "up to 81 ms late" in text and "No recording ended in time" in text
    )
    assert "Peak memory was not measured" not in text and "The clients ran on the server's machine" in text


def test_the_greeting_ends_the_stream(speech2text):
    with Running(speech2text) as server:
        ready = asyncio.run(greet(Address(server.http)))
        wait_until(lambda: server.ended("end") == 1)
    assert ready["model"] == "tiny" and ready["chunk_seconds"] == pytest.approx(0.64)
