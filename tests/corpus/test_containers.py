"""Kinds of sound files by their first bytes; containers that PyAV reads."""

import io
import sys

import numpy as np
import pytest
import soundfile
from test_audio_remarks import voice

from espnet_speechllm_xl.corpus.audio import AudioError, read_audio, read_bytes, read_file
from espnet_speechllm_xl.corpus.containers import AAC, MP3, is_decided, kind_of

RATE = 16000


def mp3(rate, level, mode="CONSTANT"):
    """An MP3 file without a tag."""
    file = io.BytesIO()
    soundfile.write(file, voice(rate=rate), rate, format="MP3", bitrate_mode=mode, compression_level=level)
    return file.getvalue()


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000])
@pytest.mark.parametrize("level, mode", [(0.0, "CONSTANT"), (0.9, "CONSTANT"), (0.5, "VARIABLE")])
def test_mp3_without_a_tag_is_known_by_two_frames(rate, level, mode):
    content = mp3(rate, level, mode)
    assert content[0] == 0xFF and kind_of(content) == MP3 and is_decided(content)


def adts(lengths):
    """Frames of AAC with their headers (no tag; sound of no meaning)."""
    frames = []
    for length in lengths:
        frame = bytearray.fromhex("fff160800000fc") + bytes(length - 7)
        frame[3] |= length >> 11
        frame[4], frame[5] = length >> 3 & 255, (length & 7) << 5 | 0x1F
        frames.append(bytes(frame))
    return b"".join(frames)


def test_aac_without_a_tag():
    assert kind_of(adts([200, 150, 180])) == AAC
    assert kind_of(adts([200])) is None


@pytest.mark.parametrize(
    "content", [mp3(16000, 0.5), adts([200, 150]), b"RIFF\x24\0\0\0WAVEfmt ", b"\x1aE\xdf\xa3" * 9]
)
def test_a_verdict_stands_however_the_bytes_come(content):
    """Nothing is called undecided for ever, and what is decided does not change."""
    whole = kind_of(content)
    assert whole is not None
    for size in range(1, 3000):
        head = content[:size]
        if kind_of(head) or is_decided(head):
            assert kind_of(head) == whole
    assert is_decided(bytes(8)) and is_decided(b"\xff\xff" * 6)


def test_pcm_is_none_of_them():
    rng = np.random.default_rng(0)
    for _ in range(500):
        pcm = rng.integers(-32768, 32768, 8192).astype("<i2").tobytes()
        assert kind_of(pcm) is None
        # a first sample that looks like the header of a frame of MP3 or AAC
        for head in (b"\xff\xfb\x90\x64", b"\xff\xf1\x60\x80", b"\xff\xf3\x84\xc4"):
            assert kind_of(head + pcm) is None and is_decided(head + pcm)
    quiet = rng.integers(-3, 3, 8192).astype("<i2").tobytes()
    assert kind_of(quiet) is None


# PyAV

CODECS = {"m4a": ("ipod", "aac"), "mp4": ("mp4", "aac"), "webm": ("webm", "libopus"), "aac": ("adts", "aac"),
          "mkv": ("matroska", "aac"), "3gp": ("3gp", "aac"), "amr": ("amr", "libopencore_amrnb"),
          "wma": ("asf", "wmav2"), "wav": ("wav", "libmp3lame")}  # fmt: skip


def encoded(kind, samples, rate=48000, film=False):
    """The bytes of a container of float samples (n, channels), perhaps with pictures; AMR is mono at 8 kHz."""
    av = pytest.importorskip("av")
    form, codec = CODECS[kind]
    rate = 8000 if kind == "amr" else rate
    file, layout = io.BytesIO(), "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if kind == "wma":
            stream.bit_rate = 64000
        if film:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 64
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
            container.mux(pictures.encode(None))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.format, layout=layout, rate=rate, frame_size=stream.frame_size or 1024
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(piece))
    return file.getvalue()


def tones(rate, seconds=2.0, hertz=(500, 800)):
    time = np.arange(int(seconds * rate)) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * each * time) for each in hertz], axis=1)


def pitch(samples, rate=RATE):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * rate / len(samples)


@pytest.mark.parametrize("kind", CODECS)
def test_containers_are_read(tmp_path, kind):
    rate = 8000 if kind == "amr" else 48000
    content = encoded(kind, tones(rate, hertz=(500,) if kind == "amr" else (500, 800)))
    (tmp_path / "a.bin").write_bytes(content)  # known by what it is, whatever its name
    for samples in (read_file(tmp_path / "a.bin", channel=0, notes={}), read_bytes(content, channel=0, notes={})):
        assert len(samples) == pytest.approx(2 * RATE, abs=0.1 * RATE) and pitch(samples) == pytest.approx(500, abs=2)
        assert 0.25 < np.abs(samples[8000:24000]).max() < 0.6
    if kind != "amr":
        assert pitch(read_file(tmp_path / "a.bin", channel=1, notes={})) == pytest.approx(800, abs=2)
    part = read_audio(f"cat {tmp_path / 'a.bin'} |", start=0.5, end=1.0, channel=0, notes={})
    assert len(part) == 8000 and pitch(part) == pytest.approx(500, abs=4)


def test_containers_have_limits():
    content = encoded("m4a", tones(48000, seconds=20))
    with pytest.raises(AudioError, match="a.m4a is longer than 10 s") as caught:
        read_bytes(content, name="a.m4a", most_seconds=10)
    assert caught.value.reason == "too-long"


def test_aac_behind_a_tag(tmp_path):
    """However long the tag is: players put pictures there."""
    for size in (10, 90000):
        tag = b"ID3\4\0\0" + bytes([0, size >> 14, size >> 7 & 127, size & 127]) + bytes(size)
        (tmp_path / "a.aac").write_bytes(tag + encoded("aac", tones(48000)))
        assert pitch(read_file(tmp_path / "a.aac", channel=0, notes={})) == pytest.approx(500, abs=2)


def test_mp3_in_wav_is_not_cut_short():
    """Its header counts the silence that the encoder added, too."""
    samples = read_bytes(encoded("wav", tones(16000, seconds=1.0), 16000), channel=0, notes={})
    assert len(samples) == pytest.approx(RATE, abs=0.1 * RATE) and pitch(samples) == pytest.approx(500, abs=2)


def test_quicktime_of_old_has_no_type():
    content = encoded("mp4", tones(48000))
    assert content[4:8] == b"ftyp"
    assert pitch(read_bytes(content[:4] + b"wide" + content[8:], channel=0, notes={})) == pytest.approx(500, abs=2)


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize(
    "kind, share, says", [("m4a", 0.7, r"\(MP4 .*\) is damaged"), ("mkv", 0.5, "cut short: its header")]
)
def test_cut_containers(kind, share, says, film):
    content = encoded(kind, tones(48000, seconds=10), film=film)
    with pytest.raises(AudioError, match=says):
        read_bytes(content[: int(share * len(content))], name="a")


def test_a_film_without_sound_holds_no_samples():
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(AudioError, match="a.mp4 holds no samples"):
        read_bytes(file.getvalue(), name="a.mp4")


def test_without_pyav_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for head, kind in ((b"\0\0\0\x1cftypM4A " + bytes(99), "MP4"), (b"\x1aE\xdf\xa3" + bytes(99), "WebM"),
                       (b"#!AMR\n" + bytes(99), "AMR"), (adts([200, 200]), "AAC")):  # fmt: skip
        with pytest.raises(
            AudioError, match=f"rec is {kind}.*: `pip install av`; or convert it: `ffmpeg -i IN OUT.wav`"
        ):
            read_bytes(head, name="rec")


def test_playlists_are_not_followed(tmp_path):
    """FFmpeg would open what they name."""
    soundfile.write(tmp_path / "secret.wav", voice(), RATE)
    for text in (
        f"#EXTM3U\n#EXTINF:3,\n{tmp_path}/secret.wav\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n",
    ):
        with pytest.raises(AudioError, match="no sound file of a known format: WAV, FLAC"):
            read_bytes(text.encode(), name="list")
