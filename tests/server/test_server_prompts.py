"""Prompts of streams and files: each has its own, in one batch with the others; limits; who takes none."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import pytest
import serving
import soundfile
import tiny
from serving import Running, finals, pcm, play, receive

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.decoding.engine import alone
from espnet_speechllm_xl.server.limits import ServerConfig
from espnet_speechllm_xl.server.service import Service

PROMPTS = ["", "call anna", "no rain today the other office", "call anna & b\u00e9n"]


@pytest.fixture(scope="module")
def speech2text(prompted_model_dir):
    return Speech2Text.from_pretrained(
        prompted_model_dir, dtype="float64", search="chunk_sync", beam_size=3, max_tokens_per_chunk=8
    )


@pytest.fixture(scope="module")
def server(speech2text):
    with Running(speech2text, max_prompt_tokens=30) as running:
        yield running


def stream_alone(speech2text, samples, prompt):
    """Return the tokens and confidences of the segments of a stream that nobody disturbs."""
    stream = speech2text.stream(prompt=prompt)
    return [(s.tokens, s.confidence) for s in (*stream.push(samples).segments, *stream.close().segments)]


def post(server, content, **fields):
    url = f"{server.http}/v1/audio/transcriptions"
    return httpx.post(url, files={"file": ("a.wav", content)}, data=fields, timeout=serving.TIMEOUT)


def wav(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV")
    return file.getvalue()


def test_streams_with_their_prompts_side_by_side(server, speech2text):
    data, samples = pcm(tiny.speech(51, 90000))
    expected = [stream_alone(speech2text, samples, prompt) for prompt in PROMPTS]
    assert len({str(one) for one in expected}) == len(PROMPTS)  # the decoder reads them
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        queries = [f"?prompt={quote(prompt)}" for prompt in PROMPTS]
        answers = list(pool.map(lambda query: play(server, data, query, size=3200, pause=0.02), queries))
    for (messages, code), segments in zip(answers, expected, strict=True):
        assert code == 1000 and messages[0]["type"] == "ready"
        found = [(tuple(one["tokens"]), one["confidence"]) for one in finals(messages)]
        assert [tokens for tokens, _ in found] == [tuple(tokens) for tokens, _ in segments]
        assert [c for _, c in found] == pytest.approx([c for _, c in segments], abs=1e-9)


def test_streams_with_different_prompts_share_the_batches(speech2text):
    """The engine is held until all have asked, so that every round holds all of them."""
    _, samples = pcm(tiny.speech(52, 60000))
    service, gate = Service(speech2text, ServerConfig(), "tiny"), threading.Event()
    try:
        service.engine.submit("gate", alone(lambda: gate.wait(serving.TIMEOUT)))
        opening = [
            service.engine.submit(i, alone(lambda p=p: service.open_stream(prompt=p))) for i, p in enumerate(PROMPTS)
        ]
        gate.set()
        streams = [future.result(serving.TIMEOUT) for future in opening]
        gate.clear()
        service.engine.submit("gate", alone(lambda: gate.wait(serving.TIMEOUT)))
        updates = [service.engine.submit(stream, stream.consume(samples, final=True)) for stream in streams]
        before = service.engine.calls["prefill"], service.engine.requests["prefill"]
        gate.set()
        found = [future.result(serving.TIMEOUT).segments for future in updates]
        calls, requests = service.engine.calls["prefill"] - before[0], service.engine.requests["prefill"] - before[1]
    finally:
        gate.set()
        service.close()
    assert requests >= 3 * calls > 0  # at times a stream needs a round more for a chunk than the others
    for segments, prompt in zip(found, PROMPTS, strict=True):
        assert [s.tokens for s in segments] == [tokens for tokens, _ in stream_alone(speech2text, samples, prompt)]


def test_files_with_their_prompts(server, speech2text):
    content = wav(tiny.speech(53, 60000))
    heard = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    expected = [speech2text(heard, prompt=prompt)[0] for prompt in PROMPTS]
    assert len({one.text for one in expected}) > 1
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: post(server, content, prompt=prompt, language="en"), PROMPTS))
    for answer, transcript in zip(answers, expected, strict=True):
        assert answer.json()["text"] == transcript.text and answer.headers["x-ignored-fields"] == "language"


def test_a_prompt_that_is_too_long_is_refused(server):
    long = "anna " * 40
    with server.stream(f"?prompt={quote(long)}") as client:
        (error,), close = receive(client)
    assert (error["code"], close) == ("bad-setting", 1008)
    assert error["message"].endswith("tokens: give at most 30") and error["message"].startswith("the prompt has ")
    answer = post(server, wav(tiny.speech(1, 20000)), prompt=long)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad-setting")
    assert answer.json()["error"]["message"] == error["message"]


def test_a_prompt_that_is_longer_than_the_model_reads_is_refused(speech2text):
    with Running(speech2text) as generous, generous.stream(f"?prompt={quote('anna ' * 40)}") as client:
        (error,), close = receive(client)
    assert (error["code"], close) == ("bad-setting", 1008)
    assert "tokens: no chunk of this model begins more than 50 inputs" in error["message"]


def test_a_model_without_prompts(tiny_model_dir):
    """A stream's client asked for it and is told; clients of files send prompts to any model."""
    speech2text, content = Speech2Text.from_pretrained(tiny_model_dir, dtype="float64"), wav(tiny.speech(40, 50000))
    with Running(speech2text, max_prompt_tokens=3) as plain:
        for prompt in ("anna", "anna " * 40):
            with plain.stream(f"?prompt={quote(prompt)}") as client:
                (error,), close = receive(client)
            assert (error["code"], close) == ("bad-setting", 1008)
            assert error["message"].startswith("this model was trained without prompts")
            answer = post(plain, content, prompt=prompt)
            assert answer.headers["x-ignored-fields"] == "prompt"
            assert answer.json()["text"] == post(plain, content).json()["text"] != ""
        with plain.stream("?prompt=") as client:
            assert json.loads(client.recv(serving.TIMEOUT))["type"] == "ready"
        assert httpx.get(f"{plain.http}/v1/models/tiny").json()["takes_prompts"] is False


def test_clients_learn_that_the_model_takes_prompts(server):
    assert httpx.get(f"{server.http}/v1/models/tiny").json()["takes_prompts"] is True


def test_a_prompt_that_is_no_text(server):
    """The client chooses a character set that makes half of a surrogate pair."""
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav(tiny.speech(1, 20000))
    form += b'\r\n--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\\ud800\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b; charset=unicode_escape"}
    answer = httpx.post(f"{server.http}/v1/audio/transcriptions", content=form, headers=headers, timeout=60)
    assert answer.status_code == 200 and "x-ignored-fields" not in answer.headers
