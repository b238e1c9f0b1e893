"""Phrases of streams and files: each has its own, side by side with the others; what is refused."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import serving
import tiny
from serving import Running, finals, pcm, receive
from test_server_prompts import wav

from espnet_speechllm_xl import Speech2Text

LISTS = [[], ["anna", "the other office :2"], ["seven", "on then :2"], ["no \u00e9"]]


@pytest.fixture(scope="module")
def speech2text(tiny_model_dir):
    return Speech2Text.from_pretrained(
        tiny_model_dir, dtype="float64", search="chunk_sync", beam_size=3, max_tokens_per_chunk=8, phrase_boost=1.5
    )


@pytest.fixture(scope="module")
def server(speech2text):
    with Running(speech2text, max_phrases=2000) as running:
        yield running


def play(server, data, *texts):
    """Send text messages, then audio; return the messages and the close code."""
    with server.stream() as client:
        for text in texts:
            client.send(text if isinstance(text, str) else json.dumps(text))
        serving.send(client, data, 3200, pause=0.01)
        return receive(client)


def expect(*phrases):
    return {"type": "phrases", "phrases": list(phrases)}


def test_streams_with_their_phrases_side_by_side(server, speech2text):
    data, samples = pcm(tiny.speech(51, 90000))
    expected = []
    for phrases in LISTS[:3]:
        stream = speech2text.stream(phrases=phrases)
        segments = (*stream.push(samples).segments, *stream.close().segments)
        expected.append([tuple(segment.tokens) for segment in segments])
    assert len({str(one) for one in expected}) == 3
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda phrases: play(server, data, expect(*phrases)), LISTS[:3]))
    for (messages, code), segments in zip(answers, expected, strict=True):
        assert code == 1000 and messages[0]["type"] == "ready"
        assert [tuple(one["tokens"]) for one in finals(messages)] == segments
    messages, code = play(server, data, expect(*LISTS[1]), expect(*LISTS[2]))  # the last ones hold
    assert [tuple(one["tokens"]) for one in finals(messages)] == expected[2]
    messages, code = play(server, data, expect(*LISTS[1]), expect())
    assert [tuple(one["tokens"]) for one in finals(messages)] == expected[0]


def test_files_with_their_phrases(server, speech2text):
    import soundfile

    content = wav(tiny.speech(53, 60000))
    heard = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    url, texts = f"{server.http}/v1/audio/transcriptions", []
    for phrases in LISTS[:3]:
        expected = speech2text(heard, phrases=phrases)[0].text
        for fields in ({"phrases": "\n".join(phrases)}, {"phrases": phrases}):
            answer = httpx.post(url, files={"file": ("a.wav", content)}, data=fields, timeout=serving.TIMEOUT)
            assert answer.json()["text"] == expected and "x-ignored-fields" not in answer.headers
        texts.append(expected)
    assert len(set(texts)) > 1
    for fields, says in [
        ({"phrases": LISTS[3]}, "'no \u00e9' (\u00e9)"),
        ({"phrases": "anna\n" * 2001}, "2001 phrases"),
    ]:
        answer = httpx.post(url, files={"file": ("a.wav", content)}, data=fields, timeout=serving.TIMEOUT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad-setting")
        assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "message, code, close, says",
    [
        (expect(*LISTS[3]), "bad-setting", 1008, "lacks characters of phrases, 'no \u00e9' (\u00e9): leave these out"),
        (expect("anna :-1"), "bad-setting", 1008, "phrase 'anna': its weight -1.0 is negative"),
        (expect(*["anna"] * 2001), "bad-setting", 1008, "there are 2001 phrases: give at most 2000"),
        (expect("anna", 3), "bad-message", 1007, "phrases are no list of texts"),
        ({"type": "phrases", "phrases": "anna"}, "bad-message", 1007, "phrases are no list of texts"),
        ({"type": "phrases"}, "bad-message", 1007, "phrases are no list of texts"),
        ({"type": "names"}, "bad-message", 1007, 'only {"type": "end"}, {"type": "flush"} and {"type": "phrases", '),
    ],
)
def test_what_is_refused(server, message, code, close, says):
    with server.stream() as client:
        client.send(json.dumps(message))
        messages, closed = receive(client)
    assert (messages[-1]["type"], messages[-1]["code"], closed) == ("error", code, close)
    assert says in messages[-1]["message"]


def test_phrases_come_before_the_audio(server):
    with server.stream() as client:
        client.send(json.dumps(expect("anna")))
        client.send(pcm(tiny.speech(1, 800))[0])
        client.send(json.dumps(expect("seven")))
        messages, closed = receive(client)
    assert (messages[-1]["code"], closed) == ("bad-message", 1007)
    assert messages[-1]["message"] == "phrases came behind audio: send them before the first"


def test_half_a_character_is_no_fault_of_the_model(server):
    with server.stream() as client:
        client.send('{"type": "phrases", "phrases": ["a\\ud800"]}')
        messages, closed = receive(client)
    assert (messages[-1]["code"], closed) == ("bad-setting", 1008)
