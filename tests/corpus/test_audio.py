"""Audio entries of every kind, and every kind of bad audio."""

import errno
import io
import os
import shlex

import kaldiio
import numpy as np
import pytest
import soundfile
import soxr

from espnet_speechllm_xl.corpus import audio
from espnet_speechllm_xl.corpus.audio import AudioError, conform, read_audio, resample, to_int16, write_flac

RATE = 16000


def speech(seconds=1.0, seed=0, channels=None, rate=RATE):
    shape = (int(seconds * rate),) if channels is None else (int(seconds * rate), channels)
    return np.random.default_rng(seed).integers(-20000, 20000, shape).astype(np.int16)


def as_float(samples):
    return samples.astype(np.float32) / 32768


def write(path, samples, rate=RATE, **kind):
    soundfile.write(path, samples, rate, **kind)
    return str(path)


def entries(tmp_path, samples, rate=RATE):
    """The same 16-bit audio behind every kind of entry."""
    wav = write(tmp_path / "a.wav", samples, rate)
    found = {
        "wav": wav,
        "flac": write(tmp_path / "a.flac", samples, rate),
        "sphere": write(tmp_path / "a.sph", samples, rate, format="NIST", subtype="PCM_16"),
        "float wav": write(tmp_path / "f.wav", as_float(samples), rate, subtype="FLOAT"),
        "blank in name": write(tmp_path / "a b.wav", samples, rate),
        "pipe": f"cat {shlex.quote(wav)} |",
        "flac pipe": f"cat {shlex.quote(str(tmp_path / 'a.flac'))} | cat |",
    }
    other = speech(0.3, seed=9)
    for kind, options in (("riff", {}), ("audio", {"write_function": "soundfile"})):
        ark = str(tmp_path / f"{kind}.ark")
        scp = str(tmp_path / f"{kind}.scp")
        kaldiio.save_ark(ark, {"before": (rate, other), "utt": (rate, samples), "z": (rate, other)}, scp=scp, **options)
        found[f"ark {kind}"] = dict(line.split(" ", 1) for line in open(scp).read().splitlines())["utt"]
    flac_ark = tmp_path / "flac.ark"
    head = b"utt "
    flac_ark.write_bytes(head + (tmp_path / "a.flac").read_bytes() + b"z " + (tmp_path / "a.wav").read_bytes())
    found["ark flac"] = f"{flac_ark}:{len(head)}"
    return found


@pytest.mark.parametrize("channels", [None, 2])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_of_an_archive_of_flac_only_the_recording_is_read(tmp_path, subtype, channels):
    samples = speech(2.0, channels=channels)  # white noise: hardly compressed
    soundfile.write(tmp_path / "a.flac", samples, RATE, subtype=subtype)
    recording = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.ark").write_bytes(b"utt " + recording + bytes(1 << 20))
    entry = f"{tmp_path}/a.ark:4"
    content = audio._fetch(entry, None)
    assert content[: len(recording)] == recording and len(content) < 2 * len(recording)
    np.testing.assert_array_equal(read_audio(entry, RATE), read_audio(str(tmp_path / "a.flac"), RATE))


def test_files_of_a_command(tmp_path):
    names = [tmp_path / name for name in ("my file.wav", "b.wav", "c.wav")]
    for name in names:
        name.touch()
    blank, b, c = names
    assert audio.backing_files(f"sox '{blank}' -t wav - |") == [blank]
    assert audio.backing_files(f"sox -t wav - <{b}|cat {c}|sox - - |") == [b, c]
    assert audio.backing_files(f"sox 'unbalanced {b} |") == []


@pytest.mark.parametrize("segment", [(0.0, None), (0.29, 0.87), (0.5, None), (0.0, 0.1)])
def test_every_kind_of_entry_gives_the_same_samples(tmp_path, segment):
    samples = speech()
    start, end = segment
    want = as_float(samples)[round(start * RATE) : None if end is None else round(end * RATE)]
    cache = {}
    for kind, entry in entries(tmp_path, samples).items():
        for kept in (None, cache, cache):
            got = read_audio(entry, RATE, start=start, end=end, cache=kept)
            assert got.dtype == np.float32 and got.flags.c_contiguous, kind
            np.testing.assert_array_equal(got, want, err_msg=kind)


def test_cache_keeps_one_command(tmp_path):
    log = tmp_path / "log"
    write(tmp_path / "a.wav", speech())
    entry = f"echo run >> {log}; cat {tmp_path / 'a.wav'} |"
    cache = {}
    for start in (0.0, 0.25, 0.5):
        read_audio(entry, RATE, start=start, end=start + 0.2, cache=cache)
    assert log.read_text().count("run") == 1
    read_audio(f"cat {tmp_path / 'a.wav'} |", RATE, cache=cache)
    assert len(cache) == 1 and entry not in cache


def test_stereo_is_averaged_and_counted_or_chosen(tmp_path):
    samples = speech(channels=2)
    for name in ("s.wav", "s.flac"):
        path = write(tmp_path / name, samples)
        notes = {}
        mono = read_audio(path, RATE, notes=notes)
        np.testing.assert_allclose(mono, as_float(samples).mean(axis=1), atol=1e-7)
        assert [*notes] == ["channels-averaged"]
        for channel in (0, 1):
            np.testing.assert_array_equal(read_audio(path, RATE, channel=channel), as_float(samples)[:, channel])
        with pytest.raises(AudioError, match=r"s\.\w+ has no channel 2: it has 2") as caught:
            read_audio(path, RATE, channel=2)
        assert caught.value.reason == "channel"


def test_remarks_are_logged_when_nobody_counts(tmp_path, caplog):
    read_audio(write(tmp_path / "s.wav", speech(channels=2, rate=8000), 8000), RATE)
    assert "2 channels averaged" in caplog.text and "resampled from 8000 to 16000 Hz" in caplog.text


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_other_rates_keep_a_tone(tmp_path, rate):
    time = np.arange(rate) / rate
    path = write(
        tmp_path / "tone.wav", (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), rate, subtype="FLOAT"
    )
    notes = {}
    got = read_audio(path, RATE, notes=notes)
    assert abs(len(got) - RATE) <= 1 and "resampled" in notes
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(got)) / RATE)
    assert np.abs(got - want)[800:-800].max() < 1e-3
    with pytest.raises(AudioError, match=f"tone.wav is at {rate} Hz, 16000 Hz are wanted") as caught:
        read_audio(path, RATE, resample=False)
    assert caught.value.reason == "sample-rate"


@pytest.mark.parametrize("speed", [0.9, 1.1, 2.0])
def test_speed_divides_the_duration_and_moves_the_pitch(tmp_path, speed):
    time = np.arange(2 * RATE) / RATE
    path = write(tmp_path / "tone.wav", (0.5 * np.sin(2 * np.pi * 500 * time)).astype(np.float32))
    got = read_audio(path, RATE, speed=speed, resample=False)
    assert abs(len(got) - 2 * RATE / speed) <= 1
    spectrum = np.abs(np.fft.rfft(got * np.hanning(len(got))))
    assert abs(spectrum.argmax() * RATE / len(got) - 500 * speed) < 1


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_one_sample_is_audio(tmp_path, rate):
    got = read_audio(write(tmp_path / "one.wav", np.array([16384], np.int16), rate), RATE)
    assert 1 <= len(got) <= 2 and np.isfinite(got).all()


def test_bad_audio_has_its_reason_and_one_line(tmp_path):
    samples = speech()
    whole = {name: (tmp_path / name) for name in ("t.flac", "t.wav", "t.sph")}
    for path in whole.values():
        soundfile.write(path, samples, RATE, format="NIST" if path.suffix == ".sph" else None, subtype="PCM_16")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "empty.wav").touch()
    write(tmp_path / "zero.wav", samples[:0])
    (tmp_path / "text.wav").write_text("this is no audio\n" * 50)
    bad = as_float(samples)
    bad[[5, 77]] = np.nan, np.inf
    write(tmp_path / "nan.wav", bad, subtype="FLOAT")
    write(tmp_path / "loud.wav", np.full(9, -20000.0, np.float32), subtype="FLOAT")
    kaldiio.save_ark(str(tmp_path / "feats.ark"), {"u": np.ones((3, 2), np.float32)}, scp=str(tmp_path / "feats.scp"))
    feats = (tmp_path / "feats.scp").read_text().split()[1]
    kaldiio.save_ark(str(tmp_path / "w.ark"), {"u": (RATE, samples)})
    (tmp_path / "w.ark").write_bytes((tmp_path / "w.ark").read_bytes()[:9000])
    good = write(tmp_path / "good.wav", samples)
    cases = [
        (tmp_path / "none.wav", "missing", "none.wav does not exist"),
        (tmp_path / "none.ark:5", "missing", "none.ark:5 does not exist"),
        (tmp_path, "missing", "is a directory: give the audio files in it"),
        (tmp_path / "empty.wav", "empty", "empty.wav is an empty file"),
        (tmp_path / "zero.wav", "empty", "zero.wav holds no samples"),
        (tmp_path / "text.wav", "unreadable", "text.wav is no sound file of a known format: WAV, FLAC, Ogg"),
        (tmp_path / "nan.wav", "not-finite", "nan.wav holds 2 NaN or infinite samples"),
        (tmp_path / "loud.wav", "range", "loud.wav: a sample of 20000, but full scale is 1: divide 16-bit values by"),
        (whole["t.flac"], "unreadable", "t.flac (FLAC) is damaged"),
        (whole["t.wav"], "cut-short", "t.wav is cut short: its header promises 16000 samples"),
        (whole["t.sph"], "cut-short", "t.sph is cut short: its header promises 16000 samples"),
        (f"{tmp_path / 'w.ark'}:2", "cut-short", "w.ark:2 is cut short"),
        (f"{tmp_path / 'w.ark'}:999999", "unreadable", "w.ark:999999: no sound (RIFF, FLAC) begins there"),
        (feats, "unreadable", "is a matrix of features"),
        ("echo so it is >&2; exit 3 |", "command-failed", "failed with exit code 3: so it is"),
        ("no-such-program-at-all x |", "command-failed", "exit code 127"),
        ("true |", "empty", "wrote no audio"),
        ("echo abcdefghijkl |", "unreadable", "is no sound file of a known format"),
        (f"head -c 9000 {good} |", "cut-short", "is cut short"),
    ]
    for entry, reason, message in cases:
        with pytest.raises(AudioError) as caught:
            read_audio(entry, RATE)
        assert caught.value.reason == reason, entry
        assert message in str(caught.value) and "\n" not in str(caught.value), entry


@pytest.mark.parametrize("kind", ["AIFF", "Ogg", "MP3"])
def test_what_else_an_archive_holds_is_named(tmp_path, kind):
    soundfile.write(tmp_path / "a", speech(), RATE, format=kind.upper())
    (tmp_path / "a.ark").write_bytes(b"utt " + (tmp_path / "a").read_bytes() + b"utt2 more")
    with pytest.raises(AudioError) as caught:
        read_audio(f"{tmp_path}/a.ark:4")
    assert str(caught.value).startswith(f"{tmp_path}/a.ark:4: {kind} begins there, but of archives WAV and FLAC are")
    # In kaldiio's wrapping, which says the length, it is read.
    size = (tmp_path / "a").stat().st_size.to_bytes(4, "little")
    (tmp_path / "b.ark").write_bytes(b"utt AUDIO\4" + size + (tmp_path / "a").read_bytes() + b"utt2 more")
    np.testing.assert_array_equal(read_audio(f"{tmp_path}/b.ark:4"), read_audio(tmp_path / "a"))


def test_a_file_that_cannot_be_seen_is_not_said_to_be_missing(tmp_path, monkeypatch):
    """The stand-in for a closed folder: whoever is root sees into all."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").write_text("")
    for entry, why in (
        (tmp_path / "a", "Too many levels"),
        (tmp_path / "file/x", "Not a dir"),
        ("x" * 300, "File name"),
    ):
        with pytest.raises(AudioError, match=f"cannot be read: {why}"):
            read_audio(entry)

    def denied(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(AudioError, match=r"folder/x\.wav cannot be read: Permission denied"):
        read_audio("folder/x.wav")


@pytest.mark.parametrize("kind", ["WAVEX", "RF64", "AIFF", "AU", "SVX"])
def test_cut_files_of_other_kinds_are_noticed(tmp_path, kind):
    path = tmp_path / "t"
    soundfile.write(path, speech(), RATE, format=kind)
    assert len(read_audio(path, RATE)) == len(speech())
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(AudioError, match="t is cut short: its header promises 1[56]...") as caught:
        read_audio(path, RATE)
    assert caught.value.reason == "cut-short"


@pytest.mark.parametrize(
    "form, subtype, says",
    [
        ("W64", "PCM_16", "its header promises 16000 samples, 7974 are there"),
        ("W64", "FLOAT", "its header promises 16000 samples, 7983 are there"),
        ("W64", "MS_ADPCM", "its header promises 1[456]... samples"),
        ("VOC", "PCM_16", "its end is missing"),
        ("WAV", "GSM610", "its header promises 1[56]... samples"),
    ],
)
def test_rarer_formats_are_not_read_to_where_they_were_cut_either(tmp_path, form, subtype, says):
    for length in (9000, RATE):  # GSM 6.10 pads blocks of 65 bytes to even ones
        soundfile.write(tmp_path / "t", as_float(speech())[:length], RATE, format=form, subtype=subtype)
        assert len(read_audio(tmp_path / "t", RATE)) >= length
    whole = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError, match=f"t is cut short: {says}") as caught:
        read_audio(tmp_path / "t", RATE)
    assert caught.value.reason == "cut-short"


def test_an_ogg_file_without_its_end_is_remarked_on(tmp_path):
    """Recorders that are stopped in the middle leave whole pages."""
    path, notes = tmp_path / "t.ogg", {}
    soundfile.write(path, np.tile(speech(), 10), RATE, format="OGG", subtype="VORBIS")
    read_audio(path, RATE, notes=notes)
    assert not notes
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(read_audio(path, RATE, notes=notes)) < 9 * len(speech()) and [*notes] == ["no-end"]


def test_a_header_that_promises_more_than_the_memory_holds(tmp_path, monkeypatch):
    path = write(tmp_path / "t.flac", speech())

    def too_much(*_, **__):
        raise MemoryError

    monkeypatch.setattr(soundfile.SoundFile, "read", too_much)
    with pytest.raises(AudioError, match="t.flac is longer than the memory holds") as caught:
        read_audio(path, RATE)
    assert caught.value.reason == "too-long"


def test_writers_to_a_pipe_do_not_know_the_length(tmp_path):
    samples = speech()
    wav = bytearray(open(write(tmp_path / "a.wav", samples), "rb").read())
    for size in (0x7FFFF024, 0xFFFFFFFF):
        wav[4:8] = wav[40:44] = size.to_bytes(4, "little")
        (tmp_path / "stream.wav").write_bytes(wav)
        np.testing.assert_array_equal(read_audio(f"cat {tmp_path / 'stream.wav'} |", RATE), as_float(samples))
    flac = bytearray(open(write(tmp_path / "a.flac", samples), "rb").read())
    flac[21] &= 0xF0  # STREAMINFO: the 36 bits of the number of samples, 0 for unknown
    flac[22:26] = bytes(4)
    (tmp_path / "stream.flac").write_bytes(flac)
    np.testing.assert_array_equal(read_audio(f"cat {tmp_path / 'stream.flac'} |", RATE), as_float(samples))
    part = read_audio(tmp_path / "stream.flac", RATE, start=0.25, end=0.5)
    np.testing.assert_array_equal(part, as_float(samples)[4000:8000])


def test_segments_outside_of_the_recording(tmp_path):
    path = write(tmp_path / "a.wav", speech())
    notes = {}
    assert len(read_audio(path, RATE, start=0.5, end=1.2, notes=notes)) == 8000
    assert [*notes] == ["segment-end-cut"]
    for start, end in ((1.0, 1.1), (2.0, None), (0.5, 1.6)):
        with pytest.raises(AudioError, match=r"outside of the recording \(1.000 s\)") as caught:
            read_audio(path, RATE, start=start, end=end)
        assert caught.value.reason == "segment"


def test_a_segment_shorter_than_a_sample(tmp_path):
    """The recording is not empty, as was said before."""
    path = write(tmp_path / "a.wav", speech())
    with pytest.raises(
        AudioError, match=r"a\.wav: segment 0\.5 \.\. 0\.50001 s holds no sample: correct segments"
    ) as caught:
        read_audio(path, RATE, start=0.5, end=0.50001)
    assert caught.value.reason == "segment"


def test_arrays():
    samples = speech()
    np.testing.assert_array_equal(resample(samples, RATE, RATE), as_float(samples))
    np.testing.assert_array_equal(conform(samples.astype(np.int32) * 65536, RATE), as_float(samples))
    np.testing.assert_array_equal(conform(np.array([0, 128, 255], np.uint8), RATE), np.float32([-1, 0, 127 / 128]))
    low = speech(rate=8000)
    np.testing.assert_array_equal(resample(low, 8000, RATE), soxr.resample(as_float(low), 8000, RATE))
    for wrong in (np.array(["a"]), np.zeros((2, 2, 2)), np.zeros(0)):
        with pytest.raises(AudioError):
            conform(wrong, RATE)


def test_flac_keeps_16_bit_audio_and_clipping_is_reported(tmp_path):
    samples = np.concatenate([speech(), np.array([-32768, 32767, 0], np.int16)])
    whole, clipped = to_int16(as_float(samples))
    assert clipped == 0
    np.testing.assert_array_equal(whole, samples)
    assert to_int16(np.array([1.0, 1.5, -1.0, -1.1], np.float32))[1] == 3
    for length in (1, 2, len(samples)):
        write_flac(tmp_path / "deep" / "a.flac", samples[:length], RATE)
        np.testing.assert_array_equal(read_audio(tmp_path / "deep" / "a.flac", RATE), as_float(samples[:length]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.flac"]


def test_what_is_no_audio_file_is_named(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"\1\2" * 1000)
    os.mkfifo(tmp_path / "pipe")
    for name, says in (
        ("a.raw", "a.raw is PCM without a header: `sox -t raw"),
        ("pipe", "is no file, but a pipe: save it first"),
    ):
        with pytest.raises(AudioError, match=says):
            audio.read_file(tmp_path / name)


def test_parts_of_an_mp3_are_those_of_the_whole(tmp_path):
    # Tones between silence: the encoder saves bits in the silence, and later frames begin in those before.
    rng = np.random.default_rng(1)
    time = np.arange(RATE // 2) / RATE
    pieces = [np.sin(2 * np.pi * rng.uniform(200, 3000) * time) * rng.uniform(0, 0.8) * (i % 3 > 0) for i in range(60)]
    path = write(
        tmp_path / "a.mp3", np.concatenate(pieces), format="MP3", bitrate_mode="CONSTANT", compression_level=0.9
    )
    whole = read_audio(path)
    for start in np.arange(0.25, 29, 0.25):
        part = read_audio(path, start=start, end=start + 0.3)
        first = round(start * RATE)
        np.testing.assert_allclose(part, whole[first : first + len(part)], atol=0.01)


SUBTYPES = ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "GSM610"]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form, subtype", [*(("WAV", kind) for kind in SUBTYPES), ("FLAC", "PCM_24"), ("RF64", "ULAW")])
def test_a_range_of_an_archived_recording_in_any_coding(tmp_path, form, subtype, channels):
    if subtype == "GSM610" and channels == 2:
        pytest.skip("GSM is mono")
    soundfile.write(tmp_path / "a", as_float(speech(channels=channels)), RATE, format=form, subtype=subtype)
    file = (tmp_path / "a").read_bytes()
    (tmp_path / "a.ark").write_bytes(b"one " + file + b"two " + file)
    size = len(file).to_bytes(4, "little")
    (tmp_path / "wrapped.ark").write_bytes(b"one AUDIO\4" + size + file + b"two AUDIO\4" + size + file)
    wanted = soundfile.read(tmp_path / "a", dtype="float32", always_2d=True)[0]
    for entry in (f"{tmp_path}/a.ark:{len(file) + 8}", f"{tmp_path}/wrapped.ark:4"):
        for part, rows in (
            ("", slice(None)),
            ("[800:2399]", slice(800, 2400)),
            ("[5]", slice(5, 6)),
            ("[:,0]", slice(None)),
        ):
            if part != "[:,0]" or channels == 2:
                np.testing.assert_array_equal(read_audio(entry + part, RATE, channel=0, notes={}), wanted[rows, 0])
    for part in ("[800:2399]", "[800:2399,1]")[:channels]:
        got = read_audio(f"{tmp_path}/a.ark:4{part}", RATE, start=0.05, end=0.075, cache={}, notes={})
        want = wanted[1600:2000, 1] if part.endswith(",1]") else wanted[1600:2000].mean(axis=1, dtype=np.float64)
        np.testing.assert_array_equal(got, want.astype(np.float32))


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_a_sound_without_length_does_not_hold_those_behind_it_in_an_archive(tmp_path, form):
    soundfile.write(tmp_path / "a", speech(), RATE, format=form, subtype="PCM_16")
    file = bytearray((tmp_path / "a").read_bytes())
    if form == "WAV":
        file[4:8] = file[40:44] = b"\xff" * 4  # as ffmpeg writes it to a pipe
    else:
        file[21:26] = bytes([file[21] & 0xF0]) + bytes(4)
    (tmp_path / "a.ark").write_bytes(b"one " + file + b"two " + file)
    for part in ("", "[0:99]"):
        with pytest.raises(
            AudioError, match="its header says no length, .* and other sounds follow it: make the archive"
        ):
            read_audio(f"{tmp_path}/a.ark:4{part}", RATE)
        wanted = as_float(speech())[:100] if part else as_float(speech())
        np.testing.assert_array_equal(read_audio(f"{tmp_path}/a.ark:{len(file) + 8}{part}", RATE), wanted)


def wav(samples, whole=None, data=None):
    """The bytes of a 16-bit WAV file of int16 samples, with other lengths in its header."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format="WAV", subtype="PCM_16")
    file = bytearray(stream.getvalue())
    for place, length in ((4, whole), (40, data)):
        if length is not None:
            file[place : place + 4] = length.to_bytes(4, "little")
    return bytes(file)


PIPED = 0xFFFFFFFF


@pytest.mark.parametrize("part", ["", "[0:99]"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("whole, data", [(None, None), (0, 0), (8, 0), (36, 0), (PIPED, 0), (0, None)])
def test_a_wav_file_without_samples_is_said_to_be_one_in_an_archive_too(tmp_path, whole, data, last, part):
    empty, full = wav(speech()[:0], whole, data), wav(speech())
    entries = [full, empty] if last else [empty, full]
    archive = b"".join(b"u%d " % index + file for index, file in enumerate(entries))
    (tmp_path / "a.ark").write_bytes(archive)
    (tmp_path / "a.wav").write_bytes(empty)
    places = {bool(index) == last: archive.index(b"u%d RIFF" % index) + 3 for index in (0, 1)}
    archived, file = f"{tmp_path}/a.ark:{places[True]}{part}", f"{tmp_path}/a.wav"
    for entry, end in ((archived, None), (file, None), (file, 0.5)):
        with pytest.raises(AudioError, match="holds no samples") as raised:
            read_audio(entry, RATE, end=end)
        assert raised.value.reason == "empty"
    np.testing.assert_array_equal(read_audio(f"{tmp_path}/a.ark:{places[False]}", RATE), as_float(speech()))


@pytest.mark.parametrize("whole", [0, 8, 36, PIPED, None])
def test_the_length_of_the_samples_counts_in_an_archive(tmp_path, whole):
    file = wav(speech(), whole)
    (tmp_path / "a.ark").write_bytes(b"one " + file + b"two " + wav(speech()[::-1]))
    np.testing.assert_array_equal(read_audio(f"{tmp_path}/a.ark:4", RATE), as_float(speech()))


@pytest.mark.parametrize("missing", [100, 1000, 2 * len(speech())])
def test_a_sound_cut_short_in_an_archive_is_not_read_on_into_the_next(tmp_path, missing):
    (tmp_path / "a.ark").write_bytes(b"one " + wav(speech())[:-missing] + b"two " + wav(speech()) * 2)
    for part in ("", "[0:99]"):
        with pytest.raises(AudioError, match="is cut short: its header promises more samples than are there") as raised:
            read_audio(f"{tmp_path}/a.ark:4{part}", RATE)
        assert raised.value.reason == "cut-short"


def test_ranges_outside_of_the_recording(tmp_path):
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"u": (RATE, speech())}, scp=str(tmp_path / "scp"))
    entry = (tmp_path / "scp").read_text().split()[1]
    for part, says in (
        ("[16000:17000]", "is outside of the recording"),
        ("[0:50000]", "is outside of the recording"),
        ("[0:90:2]", r"give the range as \[FIRST:LAST\]"),
        ("[0:9,0:0,0:0]", r"give the range as \[FIRST:LAST\]"),
        ("[9:5]", r"give the range as \[FIRST:LAST\]"),
    ):
        with pytest.raises(AudioError, match=says) as caught:
            read_audio(entry + part)
        assert caught.value.reason == "segment" and entry in str(caught.value)
    assert len(read_audio(entry + "[8000:]")) == 8000 and len(read_audio(entry + "[]")) == 16000
    with pytest.raises(AudioError, match="has no channel 1: it has 1"):
        read_audio(entry + "[0:9,1]")
    for beyond in (10**9, 10**25):
        with pytest.raises(AudioError, match="no sound .* begins there"):
            read_audio(f"{tmp_path}/a.ark:{beyond}")


def test_only_what_is_damaged_is_called_so(tmp_path):
    wav = open(write(tmp_path / "a.wav", speech()), "rb").read()
    foreign = bytearray(wav)
    foreign[20:22] = (0x0161).to_bytes(2, "little")  # Windows Media
    aifc = io.BytesIO()
    soundfile.write(aifc, speech(), RATE, format="AIFF", subtype="ULAW")
    aifc = aifc.getvalue().replace(b"ulaw", b"QDM2")
    au = io.BytesIO()
    soundfile.write(au, speech(), RATE, format="AU", subtype="PCM_16", endian="BIG")
    au = au.getvalue()[:12] + (24).to_bytes(4, "big") + au.getvalue()[16:]  # G.722
    w64 = io.BytesIO()
    soundfile.write(w64, speech(), RATE, format="W64", subtype="PCM_16")
    w64 = w64.getvalue()[:64] + b"\xff\0" + w64.getvalue()[66:]  # AAC
    ogg = b"OggS\0\2" + bytes(8) + bytes(8) + bytes(4) + b"\1\x33\x7fFLAC\1\0" + bytes(200)
    sphere = b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n".ljust(1024) + bytes(500)
    for name, content, says in (
        (
            "a.wav",
            bytes(foreign),
            "a.wav is WAV in a coding that is not read: convert it: `ffmpeg -i IN OUT.wav`",
        ),
        ("a.wav", wav[:20], "a.wav (WAV) is damaged (Error in WAV"),
        ("b.wav", wav[:6], "b.wav (WAV) is damaged (Format not recognised)"),
        ("b.aifc", aifc, "b.aifc is AIFF in a coding that is not read: convert it"),
        ("b.au", au, "b.au is AU in a coding that is not read: convert it"),
        ("b.w64", w64, "b.w64 is W64 in a coding that is not read: convert it"),
        ("b.oga", ogg, "b.oga is Ogg in a coding that is not read: convert it"),
        ("b.flac", open(write(tmp_path / "whole.flac", speech()), "rb").read()[:30], "b.flac (FLAC) is damaged ("),
        ("c.sph", sphere, "c.sph is compressed SPHERE: convert it by `sph2pipe -f wav FILE`"),
        ("d.wav", b"no audio " * 99, "d.wav is no sound file of a known format: WAV, FLAC"),
        ("e.raw", wav, "e.raw is no PCM, as its name says, but WAV: rename it"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError) as caught:
            read_audio(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path}/{says}") and caught.value.reason == "unreadable"


def test_what_the_system_refuses_is_not_damaged(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", speech())

    def closed(name, *_):
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(audio, "open", closed, raising=False)  # root may read everything
    with pytest.raises(AudioError, match="a.wav cannot be read: Permission denied"):
        read_audio(path)


@pytest.mark.parametrize(
    "array", [np.ones(3, np.float32)[::-2][:1], np.ones((1, 2), np.float32)[::-1, ::-1], np.ones(9)[::-1]]
)
def test_arrays_with_negative_strides_are_as_torch_wants_them(array):
    import torch

    got = conform(array, RATE, notes={})
    assert torch.from_numpy(got).tolist() == [1.0] * len(array)


def test_each_channel(tmp_path):
    samples = speech(channels=3)
    path, notes = write(tmp_path / "a.wav", samples), {}
    channels = [*audio.read_channels(path, RATE, notes=notes)]
    np.testing.assert_array_equal(channels, as_float(samples).T)
    assert notes == {}
