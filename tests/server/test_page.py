"""The web page in a real Chromium: with the server and a model of tones, and with results that the tests make up."""

import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from urllib.parse import parse_qs, urlsplit

import jiwer
import melodies
import numpy as np
import pytest
import soundfile
import training
from playwright.sync_api import expect, sync_playwright

from espnet_speechllm_xl.corpus.ctm import Word
from espnet_speechllm_xl.decoding.output_formats import Captions

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium (Debian's package is chromium): the page is not tested"
)


@pytest.fixture(scope="module")
def recogniser(melody_model):
    from espnet_speechllm_xl import Speech2Text

    return Speech2Text.from_pretrained(melody_model, search="greedy")


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    """Audio of the letters of melodies.py, and silence after them."""
    path = tmp_path_factory.mktemp("wav") / "melody.wav"
    _, samples, _ = melodies.melody(random.Random(5), melodies.LETTERS, tail=2 * training.RATE)
    soundfile.write(path, samples, training.RATE, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def server(melody_model, tmp_path_factory):
    """The address of a server with that model."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "espnet_speechllm_xl", "serve", "--model", str(melody_model), "--port", "0"]
    with open(log, "w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        while not (match := re.search(r"http://\S+\n", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield match[0].strip()
        assert process.poll() is None, f"the server ended: {log.read_text()}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(wav):
    """A browser whose microphone plays ``wav`` once, from the moment it is opened."""
    fake = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    microphone = f"--use-file-for-fake-audio-capture={wav}%noloop"
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, as whom containers run tests; their /dev/shm is small.
        container = ("--no-sandbox", "--disable-dev-shm-usage")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*container, *fake, microphone])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The opened page; at the end it must have contacted no other host and logged no error."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page = context.new_page()
    addresses, complaints = [], []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("websocket", lambda socket: addresses.append(socket.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server)
    yield page
    context.close()
    assert len(addresses) > 5
    own = (server, server.replace("http", "ws"), "blob:" + server)
    assert not [address for address in addresses if not address.startswith((*own, "data:"))]
    assert complaints == []


def finished(page, seconds=30):
    expect(page.locator("#status")).to_have_text(re.compile("^Done"), timeout=1000 * seconds)


def text_of(page):
    """Return the settled text of all paragraphs."""
    return " ".join(" ".join(page.locator("#captions .settled").all_inner_texts()).split())


def drop(page, path):
    """Drop a file on the page, as a mouse does."""
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name));
          return transfer;
        }""",
        [path.name, list(path.read_bytes())],
    )
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})


def tip(word):
    """Return the description of a Word as the page shows it."""
    percent = math.floor(100 * round(word.confidence, 4) + 0.5)
    return f"{word.start:.2f}–{word.end:.2f} s, {percent} %"


def sent(page):
    """A list that takes the page's parameters and its messages."""
    messages = []

    def keep(socket):
        messages.append(parse_qs(urlsplit(socket.url).query))
        socket.on("framesent", lambda message: messages.append(message))

    page.on("websocket", keep)
    return messages


def use_greedy(page):
    page.click("summary")
    page.select_option("[name=search]", "greedy")


def assert_near_letters(text, most=2):
    """A model trained for seconds may miss a letter, so the page's text is compared with the model's own."""
    assert jiwer.wer(" ".join(melodies.LETTERS), text) <= most / 8, text


def test_a_dropped_file_reads_as_the_recogniser_has_it(page, recogniser, melody_model, wav):
    expected = recogniser(wav)[0]
    assert_near_letters(expected.text)
    messages = sent(page)
    use_greedy(page)
    page.check("#fast")
    drop(page, wav)
    finished(page)
    assert text_of(page) == expected.text
    words = page.locator("#captions .word")
    assert words.all_inner_texts() == [word.text for word in expected.words]
    tips = [word.get_attribute("data-tip") for word in words.all()]
    assert tips == [tip(word) for word in expected.words]
    assert page.locator("#captions .partial").count() == 0
    assert messages[0] == {"rate": ["16000"], "format": ["s16"], "search": ["greedy"]}
    assert messages[-1] == '{"type":"end"}'
    samples, _ = soundfile.read(wav, dtype="int16")
    assert b"".join(messages[1:-1]) == samples.tobytes(), "the file's own samples"
    assert page.inner_text("header p") == f"{melody_model.name} · greedy"
    for value in ("last", "p50", "p90"):
        assert re.fullmatch(r"\d+ ms|\d+\.\d\d s", page.inner_text(f"#{value}"))
    assert page.inner_text("#algorithmic") == "0.32 + 0.08 s"


def test_the_microphone_is_heard(page, recogniser, wav):
    # Chromium resamples, and begins at any time: what the page must show is the text of what it sent.
    messages = sent(page)
    use_greedy(page)
    page.click("text=Start microphone")
    expect(page.locator("#status")).to_have_text("Listening …")
    page.wait_for_timeout(1000 * soundfile.info(wav).duration)
    assert page.locator(".word").count() > 3, "captions while it listens"
    page.click("text=Stop")
    finished(page)
    rate = int(messages[0]["rate"][0])
    samples = np.frombuffer(b"".join(messages[1:-1]), np.int16) / np.float32(32768)
    assert len(samples) / rate > soundfile.info(wav).duration - 1
    assert text_of(page) == recogniser(samples, rate)[0].text
    assert_near_letters(text_of(page), most=4)  # the first and the last may be cut


def test_the_recorder_gives_what_it_holds_when_it_is_asked(page):
    """The last samples before the microphone is stopped fill no block."""
    script = """async () => {
      const posted = [];
      globalThis.AudioWorkletProcessor = class {
        port = { postMessage: (block) => posted.push(block.length) };
      };
      const made = new Promise((resolve) => (globalThis.registerProcessor = (name, kind) => resolve(kind)));
      await import("/page/recorder.js");
      const recorder = new (await made)({ processorOptions: { size: 480 } });
      for (let quantum = 0; quantum < 10; quantum++) recorder.process([[new Float32Array(128)]]);
      recorder.port.onmessage({});
      return posted;
    }"""
    assert page.evaluate(script) == [480, 480, 320]


def test_a_file_may_be_sent_as_it_is_heard(page, wav):
    use_greedy(page)
    page.check("#play")
    page.set_input_files("#file", wav)
    page.wait_for_selector(".word")
    assert page.inner_text("#status") == "Reading melody.wav …"
    page.click("text=Stop")
    finished(page)
    assert 0 < len(text_of(page).split()) < len(melodies.LETTERS)


def test_what_is_wrong_with_the_sound_is_said_at_its_end(page, wav, tmp_path):
    samples, rate = soundfile.read(wav)
    soundfile.write(tmp_path / "quiet.wav", samples / 1000, rate)
    page.check("#fast")
    page.set_input_files("#file", tmp_path / "quiet.wav")
    finished(page)
    said = page.inner_text("#status")
    assert re.search(r"The sound: nearly silent, .* of full scale: words may be missing; .*, or amplify it\.$", said)


def test_sizes_that_were_not_trained_are_said_at_the_end(page, wav):
    use_greedy(page)
    page.fill("[name=look_ahead]", "0.04")
    page.check("#fast")
    page.set_input_files("#file", wav)
    finished(page)
    assert "The settings: look-ahead 0.04 s: the model was trained with" in page.inner_text("#status")


def test_a_model_without_prompts_has_no_field_for_one(page):
    page.click("summary")
    expect(page.locator("[name=prompt]")).to_be_disabled()
    expect(page.locator("[name=prompt]")).to_have_attribute("placeholder", "this model takes none")


def test_a_prompt_is_sent_with_the_stream(page, wav, server):
    """The server of these tests has a model without prompts, and says so."""

    def with_prompts(route):
        answer = route.fetch()
        models = answer.json()
        models["data"][0]["takes_prompts"] = True
        route.fulfill(response=answer, json=models)

    page.route("**/v1/models", with_prompts)
    page.goto(server)
    page.click("summary")
    expect(page.locator("[name=prompt]")).to_be_enabled()
    messages = sent(page)
    page.fill("[name=prompt]", "anna & Jos\u00e9")
    page.check("#fast")
    page.set_input_files("#file", wav)
    expect(page.locator("#error")).to_contain_text("this model was trained without prompts")
    assert messages[0]["prompt"] == ["anna & Jos\u00e9"]


def test_phrases_are_sent_before_the_sound(page, wav):
    """Lines of a field, the empty ones left out; what the model cannot write is shown."""
    page.click("summary")
    messages = sent(page)
    page.fill("[name=phrases]", "bad\n\n  Jos\u00e9 :2 \n")
    page.check("#fast")
    page.set_input_files("#file", wav)
    expect(page.locator("#error")).to_contain_text("lacks characters of phrases, 'Jos\u00e9' (")
    assert "phrases" not in messages[0]
    assert json.loads(messages[1]) == {"type": "phrases", "phrases": ["bad", "  Jos\u00e9 :2 "]}


class Script:
    """Stands for the server: sends ``ready``, then the messages of the test."""

    def __init__(self, page, wav):
        page.route_web_socket(re.compile("/v1/stream"), self._accept)
        page.check("#fast")
        page.set_input_files("#file", wav)
        expect(page.locator("#status")).to_have_text("Waiting for the last words …")
        self.page = page

    def _accept(self, socket):
        self.socket = socket
        settings = {"search": "chunk_sync", "beam_size": 8, "ctc_weight": 0.3, "chunk_size": 1.28, "context": None}
        ready = {"sample_rate": 16000, "chunk_seconds": 1.28, "lookahead_seconds": 0.24, "settings": settings}
        self.say(type="ready", model="scripted", **ready)

    def say(self, **message):
        self.socket.send(json.dumps(message))

    def result(self, segment, settled, partial="", is_final=False, joined=False):
        words = [
            {"text": text, "start": 20 * segment + 0.4 * index, "end": 20 * segment + 0.4 * index + 0.28}
            | {"confidence": 0.93}
            | ({"joined": True} if joined and index else {})
            for index, text in enumerate(settled.replace(" ", "") if joined else settled.split())
        ]
        text = f"{settled}{'' if joined else ' '}{partial}".strip()
        self.say(
            type="result", text=text, settled=settled, partial=partial, words=words,
            segment=segment, is_final=is_final, start_time=None, time=2.56, latency=7.05 + segment / 1000, queued=7.0,
        )  # fmt: skip
        return words

    def end(self):
        self.say(type="end", time=5.0)
        self.socket.close(code=1000)
        finished(self.page)


@pytest.fixture
def script(page, wav):
    return Script(page, wav)


def shown(page, settled, partial):
    """Wait until the last paragraph has these parts."""
    paragraph = page.locator("#captions p").last
    expect(paragraph.locator(".settled")).to_have_text(settled)
    if partial:
        expect(paragraph.locator(".partial")).to_have_text(partial)
    else:
        expect(paragraph.locator(".partial")).to_have_count(0)


def test_settled_and_partial_text_differ_in_more_than_colour(page, script):
    expect(page.locator("#search")).to_have_text("· chunk_sync, beam 8, CTC 0.3")
    script.result(0, "the taxi", "two chic")
    shown(page, "the taxi", "two chic")
    style = "element => { const s = getComputedStyle(element); return [s.fontStyle, s.textDecorationLine, s.color]; }"
    settled, partial = (page.locator(f"#captions {part}").evaluate(style) for part in (".settled", ".partial"))
    assert settled[:2] == ["normal", "none"] and partial[:2] == ["italic", "underline"]
    assert settled[2] != partial[2]
    script.result(0, "the taxi to", "chicago leaves")
    shown(page, "the taxi to", "chicago leaves")
    script.result(0, "the taxi to chicago leaves", "", is_final=True)
    script.result(1, "", "<b>book</b>")
    shown(page, "", "<b>book</b>")  # text, not markup
    assert text_of(page) == "the taxi to chicago leaves"
    script.end()
    assert page.locator("#captions p").count() == 1  # what never settled is gone
    assert page.inner_text("#p50") == "50 ms"


def test_settings_left_empty_show_what_the_server_takes(page, recogniser):
    """Each input shows its default before anything is recorded, and the search by its name."""
    stream = recogniser.stream()
    expect(page.locator("header p")).to_have_text(re.compile(" · chunk_sync, beam 8$"))
    page.click("summary")
    assert page.locator("[name=search] option").first.inner_text() == "the server's: chunk_sync"
    chunk = stream.chunking.chunk * 0.04
    shown = {
        "chunk_size": chunk,
        "context": chunk * stream.chunking.context,
        "look_ahead": 0.04 * stream.model.acoustic.encoder.config.right_context,
        "endpoint_silence": 1.5,
        "settle_seconds": 1.28,
    }
    for name, seconds in shown.items():
        assert page.get_attribute(f"[name={name}]", "placeholder") == f"the server's: {seconds:g}"


def test_the_queue_of_a_file_sent_at_once_is_no_latency(page, script):
    """A file waits 7 of the 7.05 s in its own queue; live audio that waits so long does count."""
    script.result(0, "one", is_final=True)
    script.end()
    assert page.inner_text("#last") == "50 ms" and page.inner_text("#what") == "Without queue, last"
    script = """async () => {
      const { Latency } = await import("/page/latency.js");
      const parts = ["last", "p50", "p90", "algorithmic", "what"];
      const elements = Object.fromEntries(parts.map((id) => [id, { textContent: "" }]));
      const latency = new Latency(elements);
      latency.begin(false);
      latency.add({ latency: 7.05, queued: 7 });
      return [elements.last.textContent, elements.what.textContent];
    }"""
    assert page.evaluate(script) == ["7.05 s", "Latency, last"]


def test_times_of_words_by_mouse_keyboard_and_tap(page, script):
    script.result(0, "the taxi leaves", "soon")
    shown(page, "the taxi leaves", "soon")
    words, shown_tip = page.locator(".word"), page.locator("#tip")
    words.nth(1).hover()
    assert shown_tip.inner_text() == "0.40–0.68 s, 93 %"
    page.mouse.move(0, 0)
    assert shown_tip.is_hidden()
    page.focus("#captions")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shown_tip.inner_text() == "0.80–1.08 s, 93 %"
    page.keyboard.press("Escape")
    assert shown_tip.is_hidden()
    words.first.dispatch_event("click")
    assert shown_tip.inner_text() == "0.00–0.28 s, 93 %"
    script.end()


def test_text_and_captions_can_be_saved_and_cleared(page, script):
    script.result(0, "one two three four five six seven eight nine ten eleven twelve thirteen", is_final=True)
    script.result(181, "a & b", is_final=True)
    script.end()
    with page.expect_download() as download:
        page.click("text=Save .txt")
    text = download.value.path().read_text("utf-8")
    assert text.split("\n")[0] == "melody.wav" and text.endswith("twelve thirteen\na & b\n")
    with page.expect_download() as download:
        page.click("text=Save .vtt")
    assert download.value.path().read_text("utf-8").split("\n\n") == [
        "WEBVTT",
        "00:00:00.000 --> 00:00:05.080\none two three four five six seven\neight nine ten eleven twelve thirteen",
        "01:00:20.000 --> 01:00:21.080\na &amp; b",
        "",
    ]
    page.click("text=Clear")
    assert page.inner_text("#captions") == ""


def test_words_without_spaces_are_shown_and_cut_as_the_command_line_does(page, script):
    script.result(0, "今天天气很好", "我们", joined=True)
    shown(page, "今天天气很好", "我们")
    assert page.locator("#captions p").last.inner_text().endswith("今天天气很好我们")
    texts = ["今天天气很好我们去公园散步吧" * 5, "a bb " * 30, f"{'x' * 60} y", "ｶﾅ カナ" * 12]
    words = []
    for index, text in enumerate(texts):
        words.append(script.result(index, text.strip(), joined=text[0] in "今ｶ", is_final=True))
    script.end()
    with page.expect_download() as download:
        page.click("text=Save .vtt")
    groups = [[Word(**word) for word in group] for group in words]
    expected = Captions("vtt")
    assert download.value.path().read_text("utf-8") == expected.header + "".join(map(expected.add, groups))


def test_long_sessions_keep_their_text_but_not_their_words(page, script):
    for segment in range(80):
        script.result(segment, f"segment {segment}", is_final=True)
    script.end()
    assert text_of(page) == " ".join(f"segment {segment}" for segment in range(80))
    assert page.locator(".word").count() == 2 * 50
    box = page.locator("#captions").bounding_box()
    last = page.locator("#captions p").last.bounding_box()
    assert box["y"] < last["y"] < box["y"] + box["height"], "the last words are in sight"


def test_what_goes_wrong_is_said(page, wav):
    def start(way):
        page.click("text=Start microphone") if way is None else page.set_input_files("#file", way)
        page.wait_for_selector("#error:visible")
        page.wait_for_selector("text=Start microphone")
        return page.inner_text("#error")

    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', window.refusal); } }"
    )
    for refusal, words in (("NotAllowedError", "not allowed"), ("NotFoundError", "No microphone")):
        page.evaluate("name => (window.refusal = name)", refusal)
        assert words in start(None)
    assert "no sound file" in start({"name": "x.wav", "mimeType": "audio/wav", "buffer": b"no sound"})
    page.click("summary")
    page.fill("[name=chunk_size]", "0.05")
    assert "multiple" in start(wav)  # the server's words
    script = Script(page, wav)
    script.result(0, "kept", "not")
    shown(page, "kept", "not")
    script.say(type="error", code="failed", message="the model failed on this stream")
    script.socket.close(code=1011)
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error") == "the model failed on this stream"
    shown(page, "kept", None)
    script = Script(page, wav)
    script.socket.close(code=1001)
    page.wait_for_selector("#error:visible")
    assert "connection was lost" in page.inner_text("#error")


def test_the_waveform_shows_what_is_recognised_and_chunk_borders(page, script):
    colours = """() => {
      const canvas = document.querySelector('#waveform');
      const { width, height } = canvas;
      const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
      const style = getComputedStyle(canvas);
      const count = {};
      for (const name of ['accent', 'dim', 'line', 'text']) {
        const hex = style.getPropertyValue(`--${name}`).trim();
        const wanted = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
        const columns = new Set();
        for (let at = 0; at < data.length; at += 4) {
          if (data[at + 3] === 255 && wanted.every((value, part) => value === data[at + part])) {
            columns.add((at / 4) % width);
          }
        }
        count[name] = [...columns].sort((a, b) => a - b).map((column) => (20 * column) / width);
      }
      return count;
    }"""
    script.result(0, "b d", "a")  # up to 2.56 s
    shown(page, "b d", "a")
    page.wait_for_timeout(200)
    seconds = page.evaluate(colours)
    assert max(seconds["accent"]) < 2.6 < max(seconds["dim"])
    assert min(abs(column - 2.56) for column in seconds["text"]) < 0.1
    for border in range(3, 15):  # those before are behind the sound
        assert min(abs(column - 1.28 * border) for column in seconds["line"]) < 0.05
    script.end()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all(page, wav, scheme):
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    script = Script(page, wav)
    script.result(0, "the taxi to chicago leaves at quarter to eleven " + "w" * 80, "rhabarberbarbara" * 5)
    page.wait_for_selector(".word")
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert page.evaluate(size) == [360, 740]
    page.locator(".word").last.scroll_into_view_if_needed()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # scrolled
    page.locator(".word").last.hover()
    box = page.locator("#tip").bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= 360
    script.end()
    page.click("summary")
    assert page.evaluate(size)[0] == 360
    script = Script(page, wav)  # the settings fold away, so that the captions have their room again
    expect(page.locator("#settings")).to_be_hidden()
    assert page.evaluate(size) == [360, 740]
    script.end()
    assert all(button.bounding_box()["height"] >= 40 for button in page.locator("button").all())
    style = "getComputedStyle(document.documentElement)"
    text, back = (page.evaluate(f"parseInt({style}.{name}.slice(4))") for name in ("color", "backgroundColor"))
    assert (text < 50 and back > 200) if scheme == "light" else (text > 200 and back < 50)
