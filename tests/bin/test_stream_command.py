"""``speechllm-xl stream``: every source, every format, Ctrl-C."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import soundfile
import tiny

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.audio import AudioError
from espnet_speechllm_xl.corpus.ctm import Word
from espnet_speechllm_xl.corpus.raw_pcm import Pcm
from espnet_speechllm_xl.decoding.output_formats import LiveResults
from espnet_speechllm_xl.decoding.results import TextSegment, Update

RULES = ["--endpoint-length", "2.5", "--endpoint-silence", "0.6"]


@pytest.fixture(scope="module")
def audio():
    """Samples that 16 bits hold exactly."""
    return (np.round(tiny.speech(11, 90000) * 32767) / 32768).astype(np.float32)


@pytest.fixture(scope="module")
def wav(audio, tmp_path_factory):
    path = tmp_path_factory.mktemp("wav") / "speech.wav"
    soundfile.write(path, audio, 16000)
    return str(path)


@pytest.fixture(scope="module")
def expected(tiny_model_dir, audio):
    """Segments of the same audio, pushed at once."""
    from espnet_speechllm_xl import Speech2Text

    stream = Speech2Text.from_pretrained(tiny_model_dir).stream("greedy", endpoint_length=2.5, endpoint_silence=0.6)
    segments = [*stream.push(audio).segments, *stream.close().segments]
    assert len(segments) > 1
    return segments


def stream(capsys, model, *options, search="greedy"):
    code = cli.main(["stream", "--model", str(model), "--search", search, *RULES, *options])
    out, err = capsys.readouterr()
    return code, out, err


def test_text_of_a_file(capsys, tiny_model_dir, wav, expected):
    for form in ("text", "terminal"):  # no terminal here: the same lines
        code, out, _ = stream(capsys, tiny_model_dir, wav, "--format", form)
        assert (code, out.splitlines()) == (0, [segment.text for segment in expected])


def test_what_is_no_raw_pcm(capsys, monkeypatch, tiny_model_dir, wav):
    for option in (["--rate", "8000"], ["--encoding", "f32"]):
        code, _, err = stream(capsys, tiny_model_dir, wav, *option)
        assert code == 2 and "--rate and --encoding are of raw PCM on standard input" in err
    with open(wav, "rb") as file:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=file))
        code, out, err = stream(capsys, tiny_model_dir, "-", "--format", "text")
    assert (code, out) == (2, "") and "an audio file with a header (WAV), not raw PCM: transcribe the file" in err


@pytest.mark.parametrize("kind", ["WAV", "RF64", "FLAC", "OGG", "AIFF"])
def test_files_are_told_from_raw_pcm(kind, audio):
    file = io.BytesIO()
    soundfile.write(file, audio, 16000, format=kind)
    with pytest.raises(AudioError, match="an audio file with a header"):
        Pcm("s16", 16000, 16000).samples(file.getvalue())


def test_what_browsers_record_is_told_from_raw_pcm():
    webm = bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282847765626d")
    mp4 = bytes.fromhex("0000001c6674797069736f35000000016d703431") + bytes(20)
    for data in (webm, mp4):
        with pytest.raises(AudioError, match="an audio file with a header"):
            Pcm("s16", 16000, 16000).samples(data)


def mp3(audio):
    """An MP3 file without a tag: it begins with a frame."""
    file = io.BytesIO()
    soundfile.write(file, audio, 16000, format="MP3")
    return file.getvalue()


def test_mp3_without_a_tag_is_told_from_raw_pcm(capsys, monkeypatch, tiny_model_dir, audio):
    pipe(monkeypatch, mp3(audio))
    code, out, err = stream(capsys, tiny_model_dir, "-", "--format", "text")
    assert (code, out) == (2, "") and "an audio file with a header (MP3), not raw PCM: transcribe the file" in err
    for size in (1, 2, 50, 700):
        pcm, content = Pcm("s16", 16000, 16000), mp3(audio)
        with pytest.raises(AudioError, match="an audio file with a header"):
            for first in range(0, len(content), size):
                assert len(pcm.samples(content[first : first + size])) == 0
        assert len(pcm.rest()) == 0  # nothing of the file is taken for PCM


@pytest.mark.parametrize("head", [b"", b"\xff\xfb\x90\x64", b"\xff\xf1\x60\x80", b"RI", b"\xff\xff\xff\xff"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pcm_that_begins_like_a_file(audio, head, size):
    data = head + (audio[:3000] * 32768).astype("<i2").tobytes()
    pcm = Pcm("s16", 16000, 16000)
    pieces = [pcm.samples(data[first : first + size]) for first in range(0, len(data), size)]
    np.testing.assert_array_equal(np.concatenate([*pieces, pcm.rest()]), np.frombuffer(data, "<i2") / 32768)
    short = Pcm("s16", 16000, 16000)
    assert len(short.samples(data[:5])) + len(short.rest()) == 2 and short.bytes_left == data[4:5]


def test_a_channel_of_a_file(capsys, tiny_model_dir, tmp_path, audio, expected):
    texts = [segment.text for segment in expected]
    soundfile.write(tmp_path / "call.wav", np.stack([audio[::-1], audio], axis=1), 16000)
    code, out, err = stream(capsys, tiny_model_dir, str(tmp_path / "call.wav"), "--channel", "1", "--format", "text")
    assert (code, out.splitlines(), err) == (0, texts, "")
    code, out, err = stream(capsys, tiny_model_dir, str(tmp_path / "call.wav"), "--format", "text")
    assert code == 0 and out.splitlines() != texts and "speechllm-xl stream: 2 channels averaged" in err
    code, _, err = stream(capsys, tiny_model_dir, "-", "--channel", "1")
    assert code == 2 and "--channel is of a file: - is mono" in err


def test_what_is_lost_is_remarked_on_at_the_end(capsys, monkeypatch, tiny_model_dir, audio):
    pipe(monkeypatch, (audio * 3e-3).astype("<f4").tobytes())
    code, _, err = stream(capsys, tiny_model_dir, "-", "--format", "text", "--encoding", "f32")
    assert code == 0 and err.splitlines()[-1].startswith("speechllm-xl stream: nearly silent, ")
    pipe(monkeypatch, (audio * 300).astype("<f4").clip(-9, 9).tobytes())
    code, _, err = stream(capsys, tiny_model_dir, "-", "--format", "text", "--encoding", "f32")
    assert code == 0 and err.splitlines()[-1].startswith("speechllm-xl stream: heavily clipped, ")


def test_json_lines(capsys, tiny_model_dir, wav, expected):
    code, out, _ = stream(capsys, tiny_model_dir, wav, "--format", "json")
    results = [json.loads(line) for line in out.splitlines()]
    final = [result for result in results if result["is_final"]]
    assert code == 0 and [one["text"] for one in final] == [segment.text for segment in expected]
    for one, segment in zip(final, expected, strict=True):
        assert (one["segment"], one["partial"], one["settled"]) == (segment.index, "", one["text"])
        assert [word["text"] for word in one["words"]] == [word.text for word in segment.words]
        assert one["start_time"] == one["words"][0]["start"] and one["timestamps"][0] == 0
        assert len(one["tokens"]) == len(one["timestamps"]) and 0 < one["confidence"] <= 1
    assert len(results) > len(final)
    texts = [{**result, "time": 0} for result in results]
    assert all(one != other for one, other in zip(texts, texts[1:], strict=False))  # nothing is said twice
    times = [result["time"] for result in results]
    assert times == sorted(times)


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_captions_are_those_of_the_segments(capsys, tiny_model_dir, wav, expected, form):
    code, out, _ = stream(capsys, tiny_model_dir, wav, "--format", form)
    blocks = [block.splitlines() for block in out.strip().split("\n\n")]
    if form == "vtt":
        assert blocks.pop(0) == ["WEBVTT"]
    else:
        assert [block.pop(0) for block in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    assert code == 0 and all(" --> " in block[0] for block in blocks)
    assert " ".join(block[1] for block in blocks) == " ".join(segment.text for segment in expected)


def pipe(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))


def test_pcm_on_standard_input(capsys, monkeypatch, tiny_model_dir, audio, expected):
    texts = [segment.text for segment in expected]
    pipe(monkeypatch, (audio * 32768).astype("<i2").tobytes())
    assert stream(capsys, tiny_model_dir, "-", "--format", "text")[1].splitlines() == texts
    pipe(monkeypatch, audio.astype("<f4").tobytes() + b"abc")
    code, out, err = stream(capsys, tiny_model_dir, "-", "--format", "text", "--encoding", "f32")
    assert (code, out.splitlines()) == (0, texts) and "the last sample is cut" in err


def test_pcm_that_is_none_of_its_kind():
    with pytest.raises(AudioError, match="PCM: a sample of 9000, but full scale is 1"):  # clipped it would be noise
        Pcm("f32", 16000, 16000).samples(np.array([0.1, -9000], "<f4").tobytes())


def test_pcm_at_another_rate(capsys, monkeypatch, tiny_model_dir, audio):
    import soxr

    high = soxr.resample(audio, 16000, 44100)
    whole = Pcm("f32", 44100, 16000)
    once = np.concatenate([whole.samples(high.astype("<f4").tobytes()), whole.rest()])
    assert len(once) == pytest.approx(len(audio), abs=2)
    pieces, data = Pcm("f32", 44100, 16000), high.astype("<f4").tobytes()
    cut = [pieces.samples(data[first : first + 4411]) for first in range(0, len(data), 4411)]
    np.testing.assert_allclose(np.concatenate([*cut, pieces.rest()]), once, atol=1e-6)
    assert np.abs(once[200:-200] - audio[200 : len(once) - 200]).std() < 0.3 * audio.std()  # the top is filtered
    pipe(monkeypatch, data)
    code, out, _ = stream(capsys, tiny_model_dir, "-", "--rate", "44100", "--encoding", "f32", "--format", "text")
    assert code == 0 and out.strip()


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_pcm_goes_on_behind_a_rest_as_another_recording(audio, rate):
    first, second = (audio[begin : begin + 9999].astype("<f4").tobytes() for begin in (0, 12000))
    other, pcm = Pcm("f32", rate, 16000), Pcm("f32", rate, 16000)
    expected = np.concatenate([other.samples(second), other.rest()])
    before = np.concatenate([pcm.samples(first), pcm.rest()])
    assert len(pcm.rest()) == 0
    after = np.concatenate([pcm.samples(second), pcm.rest()])
    np.testing.assert_allclose(after, expected, atol=1e-7)
    assert len(before) == len(after) == pytest.approx(9999 * 16000 / rate, abs=1)


def test_real_time_takes_as_long_as_the_audio(capsys, tiny_model_dir, tmp_path, audio):
    soundfile.write(tmp_path / "short.wav", audio[:32000], 16000)
    arguments = [str(tmp_path / "short.wav"), "--format", "text"]
    started = time.monotonic()
    slow = stream(capsys, tiny_model_dir, *arguments, "--realtime")
    assert time.monotonic() - started > 1.9
    assert slow == stream(capsys, tiny_model_dir, *arguments)


def test_interrupt_ends_with_the_last_words(tiny_model_dir, wav):
    """What was heard before Ctrl-C comes out, also what was still partial; no traceback, exit code 0."""
    command = [sys.executable, "-m", "espnet_speechllm_xl", "stream", "-", "--model", str(tiny_model_dir)]
    process = subprocess.Popen(
        [*command, "--search", "greedy", "--format", "json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False,
    )  # fmt: skip
    samples, _ = soundfile.read(wav, dtype="int16")
    process.stdin.write(samples[:40000].tobytes())
    process.stdin.flush()
    first = json.loads(process.stdout.readline())
    time.sleep(0.5)  # the rest of what was sent
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    last = json.loads(out.splitlines()[-1])
    assert process.returncode == 0 and b"Traceback" not in err
    assert not first["is_final"] and last["is_final"] and last["partial"] == "" and last["time"] == pytest.approx(2.48)


def test_output_that_nobody_reads_is_no_traceback(tiny_model_dir, wav):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "espnet_speechllm_xl", "stream", wav, "--model", str(tiny_model_dir)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (["--search", "alsd"], "search 'alsd' needs all audio before the first word: use 'greedy' or 'chunk_sync'"),
        (["--endpoint-silence", "inf", "--endpoint-length", "inf"], "are both inf"),
        (["--settle-seconds", "0"], "settle_seconds must be positive"),
        (["--chunk-size", "0.05"], "chunk size 0.05 s is not a multiple of 0.04 s"),
        (["--look-ahead", "0.05"], "look-ahead 0.05 s is not a multiple of 0.04 s"),
        (["--partial-seconds", "0"], "stream partial_seconds must be positive (inf: never)"),
    ],
)
def test_wrong_settings(capsys, tiny_model_dir, wav, options, message):
    assert cli.main(["stream", wav, "--model", str(tiny_model_dir), *options]) == 2
    assert message in capsys.readouterr().err


def test_what_was_heard_before_broken_audio_is_written(capsys, monkeypatch, tiny_model_dir, audio):
    good, found = audio[: 50 * 1600].astype("<f4").tobytes(), []  # whole blocks of 0.1 s
    for data in (good, good + np.full(1600, np.nan, "<f4").tobytes()):
        pipe(monkeypatch, data)
        found.append(stream(capsys, tiny_model_dir, "-", "--format", "text", "--encoding", "f32"))
    (_, whole, _), (code, out, err) = found
    assert code == 1 and out == whole != ""
    assert "NaN or infinite samples" in err and err.count("\n") == 1


def test_times_of_tokens_begin_with_the_first_word():
    """A word-start piece that settled alone is no part of the text."""
    words, tokens = (Word("the", 1.92, 2.1, 0.5), Word("on", 2.24, 2.4, 0.5)), ("\u2581", "\u2581the", "\u2581on")
    (result,) = LiveResults().of(Update(segment=TextSegment(0, words, tokens, (0.0, 1.92, 2.24))), 3.0)
    assert (result["start_time"], result["tokens"], result["timestamps"]) == (1.92, [*tokens[1:]], [0.0, 0.32])


def test_wrong_sources(capsys, monkeypatch, tiny_model_dir, tmp_path):
    assert stream(capsys, tiny_model_dir, str(tmp_path / "no.wav"))[0] == 2
    pipe(monkeypatch, np.array([0.1, np.nan], "<f4").tobytes())
    code, _, err = stream(capsys, tiny_model_dir, "-", "--encoding", "f32")
    assert code == 2 and "NaN or infinite samples" in err
    pipe(monkeypatch, b"")
    code, _, err = stream(capsys, tiny_model_dir, "-", "--rate", "5")
    assert code == 2 and "rate 5: give whole Hz from 8000 to 192000" in err
    pipe(monkeypatch, b"")
    assert stream(capsys, tiny_model_dir, "-", "--format", "text")[:2] == (0, "")


def test_a_microphone_that_is_not_there(capsys, monkeypatch, tiny_model_dir):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, err = stream(capsys, tiny_model_dir, "microphone")
    assert code == 2 and "pip install sounddevice" in err


def test_a_microphone(capsys, monkeypatch, tiny_model_dir, audio, expected):
    """A stand-in for sounddevice, which needs a device: it plays ``audio``, then somebody presses Ctrl-C."""

    class Recorder:
        def __init__(self, rate, device, channels, dtype, callback):
            assert (rate, device, channels, dtype) == (16000, "desk", 1, "int16")
            self.callback = callback

        def __enter__(self):
            for block in np.array_split((audio * 32768).astype("<i2"), 40):
                self.callback(block.tobytes(), len(block), None, None)
            signal.setitimer(signal.ITIMER_REAL, 3.0)

        def __exit__(self, *_):
            pass

    monkeypatch.setitem(
        sys.modules,
        "sounddevice",
        types.SimpleNamespace(
            query_devices=lambda device, kind: {"default_samplerate": 16000.0},
            RawInputStream=Recorder,
            PortAudioError=OSError,
        ),
    )
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        code, out, _ = stream(capsys, tiny_model_dir, "microphone", "--microphone-device", "desk", "--format", "text")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (code, out.splitlines()) == (0, [segment.text for segment in expected])
