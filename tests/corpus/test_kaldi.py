"""Kaldi directories: read, check, mend, perturb, cut, dumps, long forms, AN4."""

import importlib.util
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus import directories, dump, kaldi
from espnet_speechllm_xl.corpus.audio import read_audio
from espnet_speechllm_xl.corpus.ctm import Word, read_ctm, write_ctm
from espnet_speechllm_xl.corpus.dump import Report, Settings, audio_path, format_dir, group, join_ctm, longform_dir
from espnet_speechllm_xl.corpus.kaldi import Joined, KaldiError, Problem, joined

ROOT = Path(__file__).resolve().parents[2]
RATE = 16000
PACK = Path(os.environ.get("SPEECHLLM_XL_DATA") or ROOT.parent / "shared" / "data")


def main(argv):
    """The exit code of ``speechllm-xl data``."""
    return cli.main(["data", *argv])


def noise(seconds, seed):
    return np.random.default_rng(seed).integers(-9000, 9000, round(seconds * RATE)).astype(np.int16)


def make(path, lengths, ctm=False, rate=RATE):
    """A directory of WAV files: ``{utterance: seconds}``, the speaker is what precedes the first hyphen."""
    (path / "wav").mkdir(parents=True)
    wav, text, utt2spk, words = {}, {}, {}, {}
    for seed, (utterance, seconds) in enumerate(lengths.items()):
        wav[utterance] = str(path / "wav" / f"{seed}.wav")
        soundfile.write(wav[utterance], noise(seconds, seed), rate)
        text[utterance] = f"WORD{seed} END"
        utt2spk[utterance] = utterance.split("-")[0]
        words[utterance] = [Word(f"WORD{seed}", 0.1, 0.2), Word("END", 0.25, 0.3)]
    for name, table in (("wav.scp", wav), ("text", text), ("utt2spk", utt2spk), ("spk2utt", kaldi.spk2utt(utt2spk))):
        kaldi.write_table(path / name, table)
    if ctm:
        write_ctm(path / "ref.ctm", words)
    return path


def append(path, line):
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def contents(path):
    """Every file below a directory, with its bytes."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def samples_of(dump):
    scp = kaldi.read_table(dump / "wav.scp")
    return {utterance: soundfile.read(path, dtype="int16")[0] for utterance, path in scp.items()}


LENGTHS = {"ann-1": 0.4, "ann-2": 0.5, "ann-3": 0.6, "bob-1": 0.7, "bob-2": 0.8}


# ---- tables, check, fix


def test_tables_keep_text_and_sort_as_c_locale(tmp_path):
    table = {"b": "two  words", "B": "x", "a-2": "é\u00a0ω", "a": "", "ä": "z", "a1": "y"}
    kaldi.write_table(tmp_path / "text", table)
    assert kaldi.read_table(tmp_path / "text") == table
    order = subprocess.run(["sort", "-c", tmp_path / "text"], env={**os.environ, "LC_ALL": "C"})
    assert order.returncode == 0
    (tmp_path / "text").write_bytes("u\tA B\r\nv  C\u2028D\n".encode())
    assert kaldi.read_table(tmp_path / "text") == {"u": "A B", "v": "C\u2028D"}


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfu A\r\nv B\r\n")
    assert kaldi.read_table(tmp_path / "text") == {"u": "A", "v": "B"}


def test_text_is_composed_and_else_untouched(tmp_path):
    data = make(tmp_path / "d", {"ann-1": 0.2})
    (data / "text").write_text("ann-1 e\u0301t\u00e9  Don't\n", encoding="utf-8")
    assert kaldi.read_data_dir(data).text == {"ann-1": "\u00e9t\u00e9  Don't"}


@pytest.mark.parametrize(
    "name, lines, message",
    [
        ("text", b"u A\nu B\n", "duplicate id with another value ('u', line 2)"),
        ("wav.scp", b"u x.wav\nv\n", "line without a value ('v', line 2)"),
        ("text", b"u A\n\nv B\n", "blank line (line 2)"),
        ("text", b"u A\nv \xff\n", "bytes that are no UTF-8 (line 2): convert the file"),
        ("segments", b"u rec 0 1e300\n", "0 <= start < end"),
        ("utt2dur", b"u 1\nv nan\n", "not a number of seconds ('v', line 2)"),
        ("utt2num_samples", b"u -5\n", "not a number of samples ('u', line 1)"),
        ("utt2speed", b"u 1e9\n", "not a speed in 0.1 .. 10 ('u', line 1)"),
        ("none", None, "does not exist"),
    ],
)
def test_damaged_tables_are_named(tmp_path, name, lines, message):
    if lines is not None:
        (tmp_path / name).write_bytes(lines)
    with pytest.raises(KaldiError) as caught:
        kaldi.read_table(tmp_path / name)
    assert message in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoilt, mended",
    [
        ({"text": "ann-1 A\n\nbob-1 B\n"}, True),
        ({"utt2spk": None}, True),
        ({"text": None, "utt2spk": "ann-1 ann\n\nbob-1 bob\n"}, True),  # a set that is only decoded
        ({"utt2speed": "ann-1 fast\nbob-1 1\n"}, False),
    ],
)
def test_what_format_and_perturb_advise_helps(tmp_path, capsys, spoilt, mended):
    data = make(tmp_path / "d", {"ann-1": 0.2, "bob-1": 0.2})
    for name, content in spoilt.items():
        (data / name).write_text(content) if content else (data / name).unlink()
    command = ["format", "--data", str(data), "--dump", str(tmp_path / "o"), "--nj", "1", "--no-text-ok"]
    if None in spoilt.values() and "text" not in spoilt:
        command = ["perturb", "--data", str(data), "--out", str(tmp_path / "o")]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert ("check" in line) == mended
    if mended:
        words = shlex.split(line.rpartition("run ")[2].strip("`"))
        assert main(words[words.index("check") :]) == 0
    else:
        assert line.endswith("mend it: give the speed at which it is played, 1.0: as recorded")
        (data / "utt2speed").write_text("ann-1 1.0\nbob-1 1\n")
    assert main(command) == 0


def test_check_accepts_a_good_directory(tmp_path, capsys):
    data = make(tmp_path / "d", LENGTHS, ctm=True)
    assert directories.check_dir(data) == []
    assert main(["check", str(data)]) == 0
    assert "good" in capsys.readouterr().out


def spoil(data):
    """One defect of every kind.  Only ann-1, bob-1 and bob-2 stay whole."""
    lines = (data / "text").read_text().splitlines()
    (data / "text").write_text("\n".join(reversed(lines)).replace("ann-2 WORD1 END", "ann-2") + "\n")
    append(data / "text", "ann-1 WORD0 END")
    append(data / "text", "carl-1 NO AUDIO")
    scp = (data / "wav.scp").read_text().splitlines()
    (data / "wav.scp").write_text("\n".join([*scp, "dora-1 " + scp[0].split()[1]]) + "\n")
    (data / "utt2spk").write_text((data / "utt2spk").read_text().replace("ann-3 ann\n", ""))
    (data / "spk2utt").write_text("ann ann-1\nbob bob-1 bob-2\n")


def test_check_names_every_defect_and_fix_mends_them(tmp_path, capsys):
    data = make(tmp_path / "d", LENGTHS, ctm=True)
    spoil(data)
    problems = {(Path(item.file).name, item.what): (item.times, item.first) for item in directories.check_dir(data)}
    assert problems == {
        ("text", "ids not sorted as LC_ALL=C sort does"): (4, "'bob-1' after 'bob-2', line 2"),
        ("text", "duplicate id"): (1, "'ann-1', line 6"),
        ("text", "utterance of wav.scp is not here"): (1, "'dora-1'"),
        ("text", "utterance is not in wav.scp"): (1, "'carl-1'"),
        ("text", "empty text"): (1, "'ann-2'"),
        ("utt2spk", "utterance of wav.scp is not here"): (2, "'ann-3'"),
        ("spk2utt", "speaker's utterances are not those of utt2spk"): (1, "'ann'"),
    }
    before = (data / "text").read_bytes()
    assert main(["check", str(data)]) == 1
    (command,) = re.findall(f"{data}: 7 problems; this mends them: (.*)\n", capsys.readouterr().err)
    assert (data / "text").read_bytes() == before
    run, *words = shlex.split(command)  # as typed
    assert Path(run).name == "run.sh" and os.access(run, os.X_OK)
    assert words[:5] == ["python3", "-m", "espnet_speechllm_xl", "data", "check"] and main(words[4:]) == 0
    out = capsys.readouterr().out
    assert "7 in = 3 kept + 4 dropped (1 empty-text, 1 no-audio-entry, 1 no-speaker, 1 no-text)" in out
    assert directories.check_dir(data) == []
    assert list(kaldi.read_table(data / "text")) == ["ann-1", "bob-1", "bob-2"]
    assert list(read_ctm(data / "ref.ctm")) == ["ann-1", "bob-1", "bob-2"]
    assert (data / ".backup" / "text").read_bytes() == before
    assert f"old files in {data}/.backup\n" in out
    append(data / "text", "zoe NO AUDIO")
    between = contents(data)
    assert main(["check", str(data), "--fix"]) == 0
    assert f"old files in {data}/.backup.2\n" in capsys.readouterr().out
    assert (data / ".backup" / "text").read_bytes() == before
    assert len(read_ctm(data / ".backup" / "ref.ctm")) == 5
    for name in ("wav.scp", "text", "utt2spk", "spk2utt", "ref.ctm"):
        assert (data / ".backup.2" / name).read_bytes() == between[name]


def test_a_fix_that_would_not_help_is_not_named(tmp_path, capsys):
    good = make(tmp_path / "good", LENGTHS)
    for name, text, reason in (
        ("text", None, "--fix cannot mend them: {}/text does not exist: write it; a set that is only to be decoded"),
        ("text", "other A\n", "--fix cannot mend them: {}: no utterance is in all files"),
        ("text", "ann-1\n", "--fix cannot mend them: {}/text holds no words: remove it, or write it; a set"),
        ("utt2spk", None, "this mends them: "),
        ("wav.scp", None, "--fix cannot mend them: {}/wav.scp does not exist"),
    ):
        data = shutil.copytree(good, tmp_path / f"{name} {(text or 'none').strip()}")
        (data / name).unlink()
        if text:
            (data / name).write_text(text)
        before = contents(data)
        assert main(["check", str(data)]) == 1
        assert reason.format(data) in capsys.readouterr().err and contents(data) == before
    strange = shutil.copytree(good, tmp_path / "strange")
    for name in ("wav.scp", "text", "utt2spk"):
        table = kaldi.read_table(strange / name)
        kaldi.write_table(strange / name, {key.replace("bob-2", "bob\u00a02"): value for key, value in table.items()})
    assert main(["check", str(strange)]) == 1
    assert f"this mends what it can, not {strange}/" in capsys.readouterr().err


def test_a_set_without_text_is_good_where_that_is_said(tmp_path, capsys):
    data = make(tmp_path / "d", LENGTHS)
    (data / "text").unlink()
    assert main(["check", str(data), "--no-text-ok"]) == 0
    (data / "utt2spk").write_text("".join(reversed((data / "utt2spk").read_text().splitlines(keepends=True))))
    capsys.readouterr()
    assert main(["check", str(data), "--no-text-ok"]) == 1
    (command,) = re.findall("this mends them: (.*)", capsys.readouterr().err)
    assert main(shlex.split(command)[5:]) == 0


@pytest.mark.parametrize(
    "samples, rate, limits, message",
    [
        (3199, 16000, {"min_seconds": 0.2}, "0.1999 s is less than 0.2 s"),
        (480001, 16000, {"max_seconds": 30.0}, "30.0001 s is more than 30.0 s"),
        (1440001, 48000, {"max_seconds": 30.0}, "30.00002 s is more than 30.0 s"),
        (3000, 16000, {"min_seconds": 0.2}, "0.188 s is less than 0.2 s"),
    ],
)
def test_a_length_beside_its_limit_shows_on_which_side_it_is(samples, rate, limits, message):
    _, shown = dump._length_reason(samples, Settings(sample_rate=rate, **limits))
    assert shown.startswith(message)


def test_spk2utt_may_be_missing_and_must_be_right(tmp_path):
    data = make(tmp_path / "d", LENGTHS)
    (data / "spk2utt").write_text("ann ann-1\n")
    assert [Path(item.file).name for item in directories.check_dir(data)] == ["spk2utt"]
    (data / "spk2utt").unlink()
    assert directories.check_dir(data) == [] and format_dir(data, tmp_path / "o").written == len(LENGTHS)


def test_a_dump_is_checked_for_what_the_stages_need(tmp_path, capsys):
    good = tmp_path / "good"
    format_dir(make(tmp_path / "d", LENGTHS), good)
    assert main(["check", str(good), "--dump"]) == 0
    narrow = make(tmp_path / "narrow", LENGTHS, rate=8000)
    kaldi.write_table(narrow / "utt2num_samples", dict.fromkeys(LENGTHS, 3200))
    scp = kaldi.read_table(narrow / "wav.scp")
    soundfile.write(scp["bob-2"], noise(0.3, 0).reshape(-1, 2), RATE)
    Path(scp["ann-3"]).write_text("no audio")
    capsys.readouterr()
    assert main(["check", str(narrow), "--dump"]) == 1
    error = capsys.readouterr().err
    assert "entry is not mono audio at 16000 Hz (5 times, first: 'ann-1': 1 channels, 8000 Hz)" in error
    assert "which makes a copy" in error
    assert main(["check", str(narrow), "--dump", "--sample-rate", "8000"]) == 1
    error = capsys.readouterr().err
    assert "(2 times, first: 'ann-3'" in error and "is no sound file of a known format" in error
    (good / "utt2num_samples").unlink()
    assert main(["check", str(good), "--dump"]) == 1
    assert "utt2num_samples: file is missing" in capsys.readouterr().err


def test_fix_rebuilds_speakers(tmp_path):
    data = make(tmp_path / "d", LENGTHS)
    (data / "utt2spk").unlink()
    assert Problem(str(data / "utt2spk"), "file is missing", 1, "") in directories.check_dir(data)
    kept, dropped, remarks, _ = directories.fix_dir(data)
    assert len(kept) == 5 and not dropped and remarks == ["utt2spk rebuilt from spk2utt"]
    assert kaldi.read_table(data / "utt2spk")["bob-2"] == "bob"
    (data / "utt2spk").unlink(), (data / "spk2utt").unlink()
    assert "own speaker" in directories.fix_dir(data)[2][0]
    assert kaldi.read_table(data / "spk2utt") == {utterance: utterance for utterance in LENGTHS}


def test_fix_leaves_a_hopeless_directory_alone(tmp_path):
    data = make(tmp_path / "d", LENGTHS)
    (data / "text").write_text("other A\n")
    before = contents(data)
    with pytest.raises(KaldiError, match="no utterance is in all files"):
        directories.fix_dir(data)
    assert contents(data) == before


def test_segments_are_checked(tmp_path):
    data = make(tmp_path / "d", {"rec": 2.0})
    (data / "segments").write_text("rec-1 rec 0 0.5\nrec-2 none 0 1\nrec-3 rec 1 0.5\nrec-4 rec x 1\nrec-5 rec 1 -1\n")
    for name in ("text", "utt2spk"):
        kaldi.write_table(data / name, {f"rec-{i}": "rec" for i in range(1, 6)})
    kaldi.write_table(data / "spk2utt", kaldi.spk2utt(kaldi.read_table(data / "utt2spk")))
    found = {item.what: (item.times, item.first) for item in directories.check_dir(data)}
    assert found == {
        f"not {kaldi.FIELDS['segments'].what}": (2, "'rec-3', line 3"),
        "recording is not in wav.scp": (1, "'rec-2'"),
    }
    assert directories.fix_dir(data)[0] == ["rec-1", "rec-5"] and directories.check_dir(data) == []
    assert {key: len(value) for key, value in format_and_read(data, tmp_path / "o").items()} == {
        "rec-1": 8000,
        "rec-5": 16000,
    }


def test_channel_of_a_segment(tmp_path):
    """Both sides of a telephone call in one file, as Kaldi's fifth column tells them apart."""
    data = make(tmp_path / "d", {"rec": 2.0})
    left, right = noise(1.0, 3), noise(1.0, 4)
    soundfile.write(kaldi.read_table(data / "wav.scp")["rec"], np.stack([left, right], axis=1), RATE)
    segments = {"rec-a": "rec 0 1 0", "rec-b": "rec 0 0.5 1", "rec-c": "rec 0.5 -1 1", "rec-d": "rec 0 1"}
    kaldi.write_table(data / "segments", segments)
    for name in ("text", "utt2spk"):
        kaldi.write_table(data / name, dict.fromkeys(segments, "rec"))
    (data / "spk2utt").unlink()
    assert directories.check_dir(data) == []
    got = format_and_read(data, tmp_path / "o")
    np.testing.assert_array_equal(got["rec-a"], left)
    np.testing.assert_array_equal(np.concatenate([got["rec-b"], got["rec-c"]]), right)
    np.testing.assert_allclose(got["rec-d"], (left / 2 + right / 2), atol=1)
    kaldi.write_table(data / "segments", {**segments, "rec-a": "rec 0 1 1"})
    assert format_dir(data, tmp_path / "o").reused == 3
    np.testing.assert_array_equal(samples_of(tmp_path / "o")["rec-a"], right)
    for bad in ("rec 0 1 left", "rec 0 1 -1", "rec 0 1 0 0", "rec 0"):
        kaldi.write_table(data / "segments", {**segments, "rec-a": bad})
        assert [item.what for item in directories.check_dir(data)] == [f"not {kaldi.FIELDS['segments'].what}"]
        with pytest.raises(KaldiError, match="'rec-a', line 1.: mend it"):
            kaldi.read_data_dir(data)


BAD_TIMES = ["-0.5", "nan", "inf", "1e300", "1_0", "\u0661", "0x1", ""]


@pytest.mark.parametrize("bad", BAD_TIMES)
def test_numbers_that_are_no_times_are_named_and_dropped(tmp_path, bad):
    data = make(tmp_path / "d", {"rec": 2.0})
    ids = ["rec-1", "rec-2", "rec-3"]
    for name in ("text", "utt2spk"):
        kaldi.write_table(data / name, dict.fromkeys(ids, "rec"))
    kaldi.write_table(data / "spk2utt", kaldi.spk2utt(dict.fromkeys(ids, "rec")))
    (data / "segments").write_text(f"rec-1 rec 0 1\nrec-2 rec {bad} 2\nrec-3 rec 1.5 {bad}\n")
    (data / "utt2dur").write_text(f"rec-1 1\nrec-3 {bad}x\n")
    (data / "ref.ctm").write_text(f"rec-1 1 0 0.2 A\nrec-2 1 0 {bad}y B\nrec-3 1 0.5 0.1 C\nrec-3 1 0.2 0.1 D\n")
    what = {name: f"not {field.what}" for name, field in kaldi.FIELDS.items()}
    found = {(Path(item.file).name, item.what): (item.times, item.first) for item in directories.check_dir(data)}
    assert found[("segments", what["segments"])] == (2, "'rec-2', line 2")
    assert found[("utt2dur", what["utt2dur"])] == (1, "'rec-3', line 2")
    count, first = found[("ref.ctm", "not words with their times")]
    assert count == 2 and first.startswith(f"line 2: duration '{bad}y' is not a number in 0 .. 100000000: ")
    assert len(found) == 3
    kept, dropped, remarks, _ = directories.fix_dir(data)
    assert kept == ["rec-1"] and dropped == {"no-audio-entry": 2} and directories.check_dir(data) == []
    assert any("'rec-2' has no reference times" in remark for remark in remarks)
    assert any("segments: not `utterance" in remark and "-> utterance dropped" in remark for remark in remarks)


def test_reference_times_are_put_in_order(tmp_path):
    data = make(tmp_path / "d", LENGTHS, ctm=True)
    lines = (data / "ref.ctm").read_text().splitlines()
    (data / "ref.ctm").write_text("\n".join([*lines[1::2], *lines[::2]]) + "\n")
    (problem,) = directories.check_dir(data)
    assert (problem.times, Path(problem.file).name) == (5, "ref.ctm") and "'WORD0' starts at 0.1 s" in problem.first
    directories.fix_dir(data)
    assert (data / "ref.ctm").read_text().splitlines() == lines and directories.check_dir(data) == []


def test_bytes_that_are_no_utf8_are_all_named_and_nothing_is_guessed(tmp_path, capsys):
    data = make(tmp_path / "d", LENGTHS, ctm=True)
    (data / "text").write_bytes((data / "text").read_bytes().replace(b"WORD1", b"caf\xe9").replace(b"WORD3", b"\xff"))
    (data / "ref.ctm").write_bytes((data / "ref.ctm").read_bytes().replace(b"WORD1", b"caf\xe9"))
    found = {(Path(item.file).name, item.what): (item.times, item.first) for item in directories.check_dir(data)}
    convert = "convert the file (iconv -f ENCODING -t UTF-8)"
    assert found == {
        ("text", "bytes that are no UTF-8"): (2, "line 2"),
        ("ref.ctm", "not words with their times"): (1, f"line 3: bytes that are no UTF-8: {convert}"),
    }
    before = contents(data)
    assert main(["check", str(data), "--fix"]) == 1
    error = capsys.readouterr().err
    assert f"text: bytes that are no UTF-8 (2 times, first: line 2): {convert}; the directory was left" in error
    assert contents(data) == before and error.count("\n") == 1


# Ends of line for `str.splitlines` or for files opened with universal ends of line, and marks nobody sees.
CONTROLS = ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x00", "\x1b", "\ufeff"]


@pytest.mark.parametrize("control", CONTROLS)
def test_control_characters_within_a_line_are_mended_in_text(tmp_path, control):
    data, shown = make(tmp_path / "d", LENGTHS), f"U+{ord(control):04X}"
    spoilt = (data / "text").read_text().replace("WORD2 END", f"WORD2{control}END{control}")
    (data / "text").write_bytes(spoilt.encode())
    wanted = "WORD2 END" if control.isspace() else "WORD2END"
    (problem,) = directories.check_dir(data)
    assert (problem.what, problem.first) == (kaldi.CONTROL, f"{shown} of 'ann-3', line 3")
    assert kaldi.read_data_dir(data).text["ann-3"] == kaldi.read_text(data / "text")["ann-3"] == wanted
    format_dir(data, tmp_path / "o")
    directories.fix_dir(data)
    assert directories.check_dir(data) == []
    for text in (data / "text", tmp_path / "o" / "text"):
        # As ESPnet reads it, and as whoever cuts at every end of line.
        assert len(open(text, encoding="utf-8").readlines()) == len(text.read_text("utf-8").splitlines()) == 5
        assert kaldi.read_table(text)["ann-3"] == wanted


@pytest.mark.parametrize("control", [control for control in CONTROLS if control.isspace()])
def test_lines_with_other_ends_do_not_give_words_to_another_utterance(tmp_path, capsys, control):
    """As old Macs wrote them: mended as blanks, all texts would be those of the first utterance."""
    data = make(tmp_path / "d", LENGTHS)
    first, *others = (data / "text").read_text().splitlines()
    (data / "text").write_bytes(control.join([first, *others]).encode())
    before, name, following = contents(data), first.split()[0], others[0].split()[0]
    why = f"U+{ord(control):04X} ends the line of '{name}', and that of '{following}' follows: convert the ends of its"
    for command in (["check", str(data)], ["check", str(data), "--fix"]):
        assert main(command) == 1
        assert why in capsys.readouterr().err
    assert contents(data) == before
    with pytest.raises(kaldi.KaldiError, match="convert the ends"):
        format_dir(data, tmp_path / "o")


@pytest.mark.parametrize("name", ["utt2dur", "utt2num_samples"])
def test_lengths_of_which_none_is_a_number_are_removed(tmp_path, name):
    """An empty file would be the next defect."""
    data = make(tmp_path / "d", LENGTHS)
    (data / name).write_text("".join(f"{key} nan\n" for key in kaldi.read_table(data / "utt2spk")))
    assert directories.left_by_fix(data) == []
    *_, backup = directories.fix_dir(data)
    assert directories.check_dir(data) == [] and not (data / name).exists() and (backup / name).exists()


@pytest.mark.parametrize("control", CONTROLS)
def test_control_characters_within_reference_words_are_found(tmp_path, control):
    """Texts lose them, so that the word would be no word of its text."""
    data = make(tmp_path / "d", LENGTHS, ctm=True)
    (data / "ref.ctm").write_bytes((data / "ref.ctm").read_text().replace("WORD1", f"WO{control}RD1").encode())
    (problem,) = directories.check_dir(data)
    assert f"control character U+{ord(control):04X} within the line" in problem.first
    directories.fix_dir(data)
    assert directories.check_dir(data) == [] and len(read_ctm(data / "ref.ctm")) == len(LENGTHS) - 1


def test_control_characters_elsewhere_are_left_and_named(tmp_path):
    """A name is not changed, nor what may be an apostrophe of Windows."""
    data = make(tmp_path / "d", LENGTHS)
    for name, old, new in (("utt2spk", "bob\n", "bob\x00\n"), ("text", "WORD2", "DON\x92T")):
        (data / name).write_text((data / name).read_text().replace(old, new), encoding="utf-8")
    (data / "spk2utt").unlink()
    assert sorted(item.first for item in directories.check_dir(data)) == [
        "U+0000 of 'bob-1', line 4",
        "U+0092 of 'ann-3', line 3",
    ]
    directories.fix_dir(data)
    assert kaldi.read_table(data / "text")["ann-3"] == "DON\x92T END"
    assert {(Path(item.file).name, item.what) for item in directories.check_dir(data)} == {
        ("text", kaldi.CONTROL),
        ("utt2spk", kaldi.CONTROL),
        ("spk2utt", kaldi.CONTROL),
    }


def test_changed_audio_behind_a_command_is_read_again(tmp_path):
    data = make(tmp_path / "d", LENGTHS)
    scp = kaldi.read_table(data / "wav.scp")
    kaldi.write_table(data / "wav.scp", {key: f"cat '{path}' |" for key, path in scp.items()})
    assert format_dir(data, tmp_path / "o").reused == 0 and format_dir(data, tmp_path / "o").reused == 5
    soundfile.write(scp["ann-1"], noise(0.7, 9), RATE)
    report = format_dir(data, tmp_path / "o")
    assert (report.written, report.reused) == (5, 4)
    np.testing.assert_array_equal(samples_of(tmp_path / "o")["ann-1"], noise(0.7, 9))


def test_what_failed_is_tried_again_and_disturbs_nobody_until_it_does_not_fail(tmp_path):
    data, out = make(tmp_path / "d", LENGTHS), tmp_path / "o"
    scp, switch = kaldi.read_table(data / "wav.scp"), tmp_path / "mounted"
    kaldi.write_table(data / "wav.scp", {**scp, "ann-1": f"cat {switch}/*.wav |"})
    assert format_dir(data, out).skipped == {"command-failed": 1}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert format_dir(data, out).skipped == {"command-failed": 1}
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    switch.mkdir()
    shutil.copy(scp["ann-1"], switch / "a.wav")
    report = format_dir(data, out)
    assert (report.written, report.reused) == (5, 4) and not report.skipped
    np.testing.assert_array_equal(samples_of(out)["ann-1"], noise(LENGTHS["ann-1"], 0))


def test_what_others_made_is_not_written_over(tmp_path):
    data, foreign = make(tmp_path / "d", LENGTHS), make(tmp_path / "foreign", LENGTHS)
    before = contents(foreign)
    with pytest.raises(KaldiError, match="foreign was not made by formatting: rename it, or remove it"):
        format_dir(data, foreign)
    with pytest.raises(KaldiError, match="foreign was not made by this command: rename it"):
        directories.perturb_dir(data, foreign, "0.9 1")
    assert contents(foreign) == before
    for _ in range(2):  # our own are made anew
        assert directories.perturb_dir(data, tmp_path / "sp", "0.9 1") == (5, 10)
        assert format_dir(data, tmp_path / "o").written == 5


@pytest.mark.parametrize("nj", ["1", "2"])
def test_what_a_process_is_killed_of_is_left_out(tmp_path, capsys, nj):
    data = make(tmp_path / "d", {f"s-{index:02d}": 0.2 for index in range(20)})
    scp = kaldi.read_table(data / "wav.scp")
    kaldi.write_table(data / "wav.scp", {**scp, "s-03": "kill -9 $PPID |"})
    assert main(["format", "--data", str(data), "--dump", str(tmp_path / "o"), "--nj", nj]) == 0
    said = capsys.readouterr()
    assert "20 in = 19 written + 1 skipped (1 crashed)" in said.out and "it had: s-03\n" in said.err
    reason = kaldi.read_table(tmp_path / "o" / "failed")["s-03"]
    assert reason.startswith("crashed the process that worked on it was killed, most often because memory ran out")
    kaldi.write_table(data / "wav.scp", scp)
    assert main(["format", "--data", str(data), "--dump", str(tmp_path / "o")]) == 0
    assert "20 in = 20 written + 0 skipped" in capsys.readouterr().out


def format_and_read(data, out, **options):
    format_dir(data, out, **options)
    return samples_of(out)


# ---- format


def kinds(tmp_path):
    """The same five utterances as plain files, pipes, arks, segments, and an ESPnet dump with segments."""
    plain = make(tmp_path / "plain", LENGTHS, ctm=True)
    scp = kaldi.read_table(plain / "wav.scp")
    audio = {utterance: soundfile.read(path, dtype="int16")[0] for utterance, path in scp.items()}
    for kind in ("pipe", "ark", "segments"):
        (tmp_path / kind).mkdir()
        for name in ("text", "utt2spk", "spk2utt", "ref.ctm"):
            (tmp_path / kind / name).write_bytes((plain / name).read_bytes())
    kaldi.write_table(tmp_path / "pipe" / "wav.scp", {key: f"cat {path} |" for key, path in scp.items()})
    kaldiio.save_ark(
        str(tmp_path / "a.ark"),
        {key: (RATE, samples) for key, samples in audio.items()},
        scp=str(tmp_path / "ark" / "wav.scp"),
    )
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, np.concatenate(list(audio.values())), RATE)
    bounds = np.cumsum([0, *(len(samples) for samples in audio.values())]) / RATE
    table = {key: f"all {bounds[i]:.4f} {bounds[i + 1]:.4f}" for i, key in enumerate(audio)}
    kaldi.write_table(tmp_path / "segments" / "segments", table)
    kaldi.write_table(tmp_path / "segments" / "wav.scp", {"all": f"cat {whole} |"})
    return plain, audio


def test_every_kind_of_directory_gives_the_same_dump(tmp_path):
    plain, audio = kinds(tmp_path)
    dumps = {}
    for kind in ("plain", "pipe", "ark", "segments"):
        report = format_dir(tmp_path / kind, tmp_path / "dump" / kind)
        assert str(report).startswith("5 in = 5 written + 0 skipped;") and report.notes == {}
        dumps[kind] = contents(tmp_path / "dump" / kind)
        for key, samples in samples_of(tmp_path / "dump" / kind).items():
            np.testing.assert_array_equal(samples, audio[key])
    for kind, files in dumps.items():
        assert files.keys() == dumps["plain"].keys()
        for name in files.keys() - {"wav.scp", "progress.jsonl"}:
            assert files[name] == dumps["plain"][name], (kind, name)
    assert dumps["plain"]["feats_type"] == b"raw\n"
    assert dumps["plain"]["utt2num_samples"].splitlines()[0] == b"ann-1 6400"
    assert dumps["plain"]["text"] == (plain / "text").read_bytes()
    assert read_ctm(tmp_path / "dump" / "ark" / "ref.ctm") == read_ctm(plain / "ref.ctm")
    again = format_and_read(tmp_path / "dump" / "plain", tmp_path / "dump" / "again")
    assert all(np.array_equal(again[key], audio[key]) for key in audio)


def test_bad_utterances_are_skipped_listed_and_counted(tmp_path, capsys):
    lengths = {f"ann-{i:02d}": 0.3 for i in range(12)} | {"ann-20": 0.05, "ann-21": 3.0}
    data = make(tmp_path / "d", lengths)
    wav = {key: Path(path) for key, path in kaldi.read_table(data / "wav.scp").items()}
    wav["ann-00"].unlink()
    wav["ann-01"].write_bytes(b"")
    soundfile.write(wav["ann-02"], np.full(9000, np.nan, np.float32), RATE, subtype="FLOAT")
    wav["ann-03"].write_bytes(wav["ann-03"].read_bytes()[:5000])
    soundfile.write(wav["ann-04"], noise(0.3, 0).reshape(-1, 2), RATE)
    soundfile.write(wav["ann-05"], noise(0.3, 0), 8000)
    soundfile.write(wav["ann-06"], np.full(9000, 1.5, np.float32), RATE, subtype="FLOAT")
    text = kaldi.read_table(data / "text") | {"ann-07": "", "zoe": "NO AUDIO"}
    del text["ann-08"]
    kaldi.write_table(data / "text", text)
    (data / "utt2spk").write_text((data / "utt2spk").read_text().replace("ann-09 ann\n", ""))
    dump = tmp_path / "o"
    args = ["format", "--data", str(data), "--dump", str(dump), "--min-seconds", "0.1", "--max-seconds", "2"]
    assert main([*args, "--nj", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "15 in = 5 written + 10 skipped (1 cut-short, 1 empty, 1 empty-text, 1 missing, 1 no-audio-entry, " in line
    assert "1 no-speaker, 1 no-text, 1 not-finite, 1 too-long, 1 too-short)" in line
    assert "notes: 1 channels-averaged, 1 clipped, 1 nearly-silent, 1 resampled" in line
    remarks = kaldi.read_table(dump / "remarks")
    assert remarks["ann-05"] == "resampled: resampled from 8000 to 16000 Hz"
    assert remarks["ann-06"].startswith("clipped: 9000 samples beyond full scale clipped; nearly-silent: ")
    assert remarks.keys() == {"ann-04", "ann-05", "ann-06"}
    written = kaldi.read_table(dump / "wav.scp").keys()
    skipped = kaldi.read_table(dump / "skipped")
    assert sorted(written) == ["ann-04", "ann-05", "ann-06", "ann-10", "ann-11"]
    assert not written & skipped.keys() and len(written) + len(skipped) == 15
    assert skipped["ann-00"].startswith("missing ") and "0.wav does not exist" in skipped["ann-00"]
    assert skipped["ann-21"] == "too-long 3.000 s is more than 2.0 s (--max-seconds; of run.sh: --max-wav-duration)"
    # What no setting left out is a failure.
    failed = kaldi.read_table(dump / "failed")
    assert failed == {name: why for name, why in skipped.items() if name in failed}
    assert sorted(why.split()[0] for why in failed.values()) == ["cut-short", "empty", "missing", "not-finite"]
    for name in ("text", "utt2spk", "utt2num_samples"):
        assert kaldi.read_table(dump / name).keys() == written
    assert len(list((dump / "audio").rglob("*"))) == 5 + len({path.parent for path in (dump / "audio").rglob("*.flac")})

    with pytest.raises(SystemExit):
        main([*args, "--channel", "each"])
    assert "'each' is no channel: give its number, from 0 on, or mix" in capsys.readouterr().err
    assert main([*args, "--channel", "mix"]) == 0 and "7 were done before" in capsys.readouterr().out
    assert main([*args, "--no-resample", "--channel", "0", "--no-text-ok"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "15 in = 6 written + 9 skipped" in line and "1 sample-rate" in line
    assert kaldi.read_table(dump / "text")["ann-07"] == ""


def test_mended_audio_and_changed_limits_and_sources_are_noticed(tmp_path):
    data, dump = make(tmp_path / "d", LENGTHS), tmp_path / "o"
    wav = kaldi.read_table(data / "wav.scp")
    kept = Path(wav["bob-1"]).read_bytes()
    Path(wav["bob-1"]).unlink()
    assert format_dir(data, dump, Settings(max_seconds=0.7)).skipped == {"missing": 1, "too-long": 1}
    Path(wav["bob-1"]).write_bytes(kept)
    report = format_dir(data, dump)
    assert (report.written, report.reused) == (5, 3)
    soundfile.write(wav["ann-1"], noise(0.9, 77), RATE)
    report = format_dir(data, dump, Settings(min_seconds=0.6))
    assert (report.written, report.reused, report.skipped) == (4, 4, {"too-short": 1})
    np.testing.assert_array_equal(samples_of(dump)["ann-1"], noise(0.9, 77))
    assert not audio_path(dump, "ann-2").exists()


def test_nothing_written_is_an_error(tmp_path, capsys):
    data = make(tmp_path / "d", LENGTHS)
    assert main(["format", "--data", str(data), "--dump", str(tmp_path / "o"), "--min-seconds", "9"]) == 1
    assert "no utterance could be written: 5 in = 0 written + 5 skipped (5 too-short)" in capsys.readouterr().err
    assert not (tmp_path / "o" / "wav.scp").exists()
    assert main(["format", "--data", str(data), "--dump", str(tmp_path / "o")]) == 0
    assert main(["format", "--data", str(data), "--dump", str(tmp_path / "o"), "--min-seconds", "9"]) == 1
    assert not (tmp_path / "o" / "feats_type").exists() and not (tmp_path / "o" / "wav.scp").exists()
    capsys.readouterr()
    assert main(["format", "--data", str(tmp_path / "none"), "--dump", str(tmp_path / "o")]) == 1
    assert "none/wav.scp does not exist" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none")]) == 1
    assert "none does not exist: give a Kaldi data directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["format", "--data", str(data)])
    assert caught.value.code == 2


def test_missing_text_or_speakers(tmp_path):
    data = make(tmp_path / "d", LENGTHS)
    (data / "text").unlink(), (data / "utt2spk").unlink()
    with pytest.raises(KaldiError, match="text does not exist.*--no-text-ok"):
        format_dir(data, tmp_path / "o")
    assert format_dir(data, tmp_path / "o", text_optional=True).written == 5
    assert not (tmp_path / "o" / "text").exists()
    assert kaldi.read_table(tmp_path / "o" / "utt2spk")["ann-1"] == "ann-1"


def test_a_set_without_some_texts_is_good(tmp_path):
    data = make(tmp_path / "d", LENGTHS)
    texts = kaldi.read_table(data / "text")
    texts.pop("ann-1")
    kaldi.write_table(data / "text", texts)
    assert directories.check_dir(data, need_text=False) == []
    assert [problem.what for problem in directories.check_dir(data)] == ["utterance of wav.scp is not here"]


def test_blanks_of_unicode_are_blanks(tmp_path):
    data = make(tmp_path / "d", LENGTHS)
    texts = kaldi.read_table(data / "text")
    kaldi.write_table(data / "text", {**texts, "ann-1": "\u3000 \u3000"})
    assert [(problem.what, problem.first) for problem in directories.check_dir(data)] == [("empty text", "'ann-1'")]
    for name in ("wav.scp", "text", "utt2spk"):
        table = kaldi.read_table(data / name)
        kaldi.write_table(data / name, {key.replace("-", "\u00a0"): value for key, value in table.items()} | table)
    assert kaldi.CUT_ID in [problem.what for problem in directories.check_dir(data)]


def test_a_speaker_is_one_word(tmp_path):
    data = make(tmp_path / "d", LENGTHS)
    speakers = {**kaldi.read_table(data / "utt2spk"), "ann-1": "ann smith"}
    kaldi.write_table(data / "utt2spk", speakers)
    assert "a speaker holds a blank" in [problem.what for problem in directories.check_dir(data)]
    kept, dropped, _, _ = directories.fix_dir(data)
    assert dropped == {"no-speaker": 1} and "ann-1" not in kept and not directories.check_dir(data)


def test_any_utterance_id_has_its_own_file(tmp_path):
    names = ["a/b", "a%2Fb", "..", "é:1", "x" * 300, "x" * 299 + "y", "a|"]
    data = make(tmp_path / "d", dict.fromkeys(names, 0.2))
    assert format_dir(data, tmp_path / "o").written == 7
    got = samples_of(tmp_path / "o")
    for seed, name in enumerate(names):
        np.testing.assert_array_equal(got[name], noise(0.2, seed))


def test_killed_and_run_again_gives_the_same(tmp_path):
    data = make(tmp_path / "d", {f"s{i % 7}-{i:03d}": 0.2 for i in range(60)}, ctm=True)
    scp = kaldi.read_table(data / "wav.scp")
    kaldi.write_table(data / "wav.scp", {key: f"sleep 0.02; cat {path} |" for key, path in scp.items()})
    command = [sys.executable, "-m", "espnet_speechllm_xl", "data", "format", "--data", "d", "--dump"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    assert subprocess.run([*command, "o", "--nj", "2"], **run).returncode == 0
    (tmp_path / "o").rename(tmp_path / "whole")
    with subprocess.Popen(
        [*command, "o", "--nj", "1"], cwd=tmp_path, env=environment, start_new_session=True
    ) as process:
        journal, deadline = tmp_path / "o" / "progress.jsonl", time.monotonic() + 60
        while not (journal.exists() and journal.read_text().count("\n") > 20):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "o" / "feats_type").exists()
    append(journal, '{"utt": "s0-0')
    (tmp_path / "o" / "audio" / "left").mkdir()
    (tmp_path / "o" / "audio" / "left" / ".left.flac").touch()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "o" / "audio").rglob("s*.flac")}
    again = subprocess.run([*command, "o", "--nj", "2"], **run)
    assert again.returncode == 0 and "60 in = 60 written + 0 skipped" in again.stdout
    reused = int(again.stdout.split(" were done before")[0].split()[-1])
    assert 20 <= reused < 60
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()) >= reused
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")
    assert not (tmp_path / "o" / "audio" / "left").exists()


# ---- perturb, subset


@pytest.mark.parametrize("kind", ["plain", "segments"])
def test_perturbed_directory_and_its_dump(tmp_path, kind):
    kinds(tmp_path)
    out = tmp_path / "sp"
    assert directories.perturb_dir(tmp_path / kind, out, "0.9 1.0 1.1") == (5, 15)
    assert directories.check_dir(out) == []
    assert kaldi.read_table(out / "utt2spk")["sp0.9-bob-1"] == "sp0.9-bob"
    assert kaldi.read_table(out / "text")["sp1.1-ann-2"] == kaldi.read_table(out / "text")["ann-2"] == "WORD1 END"
    assert format_dir(out, tmp_path / "o").written == 15
    lengths = {key: int(value) for key, value in kaldi.read_table(tmp_path / "o" / "utt2num_samples").items()}
    words = read_ctm(tmp_path / "o" / "ref.ctm")
    for key, seconds in LENGTHS.items():
        for prefix, factor in (("sp0.9-", 0.9), ("", 1.0), ("sp1.1-", 1.1)):
            assert abs(lengths[prefix + key] - seconds * RATE / factor) <= 1
            assert words[prefix + key][1].end == pytest.approx(0.3 / factor, abs=1e-3)
            assert words[prefix + key][1].start == pytest.approx(0.25 / factor, abs=1e-3)
    np.testing.assert_array_equal(samples_of(tmp_path / "o")["bob-2"], noise(0.8, 4))


@pytest.mark.parametrize("factors", ["0.9 x", "0", "-1", "1 1.0", "", "nan"])
def test_bad_factors(tmp_path, factors, capsys):
    data = make(tmp_path / "d", LENGTHS)
    assert main(["perturb", "--data", str(data), "--out", str(tmp_path / "o"), "--factors", factors]) == 1
    assert "give" in capsys.readouterr().err or "not a number" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_perturbing_twice_is_refused(tmp_path):
    directories.perturb_dir(make(tmp_path / "d", LENGTHS), tmp_path / "sp", "0.9 1")
    with pytest.raises(KaldiError, match="perturbed already"):
        directories.perturb_dir(tmp_path / "sp", tmp_path / "sp2", "0.9 1")
    with pytest.raises(KaldiError, match="same directory"):
        directories.perturb_dir(tmp_path / "d", tmp_path / "d", "0.9 1")


def test_perturbing_goes_on_after_a_kill(tmp_path, monkeypatch):
    make(tmp_path / "d", LENGTHS)
    write_table = directories.write_table
    for last in range(1, 5):
        out, names = tmp_path / f"sp{last}", []

        def killed(path, table, last=last, names=names):
            names.append(path)
            if len(names) > last:
                raise KeyboardInterrupt
            write_table(path, table)

        monkeypatch.setattr(directories, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            directories.perturb_dir(tmp_path / "d", out, "0.9 1")
        monkeypatch.undo()
        assert directories.perturb_dir(tmp_path / "d", out, "0.9 1") == (5, 10) and directories.check_dir(out) == []


def test_subsets(tmp_path, capsys):
    kinds(tmp_path)
    (tmp_path / "list").write_text("bob-1 and more\nann-3\nghost\nann-3\n")
    for kind in ("plain", "segments"):
        data = tmp_path / kind
        for option, want in (
            (["--first", "2"], ["ann-1", "ann-2"]),
            (["--last", "2"], ["bob-1", "bob-2"]),
            (["--utt-list", str(tmp_path / "list")], ["ann-3", "bob-1"]),
        ):
            out = tmp_path / "sub"
            assert main(["subset", "--data", str(data), "--out", str(out), *option]) == 0
            assert list(kaldi.read_table(out / "text")) == list(read_ctm(out / "ref.ctm")) == want
            assert directories.check_dir(out) == []
            assert (out / "segments").exists() == (kind == "segments")
        assert "3 listed = 2 written + 1 not in" in capsys.readouterr().out
        assert main(["subset", "--data", str(data), "--out", str(out), "--first", "6"]) == 1
        assert "has 5 utterances, 6 were asked for" in capsys.readouterr().err


# ---- long forms


def test_groups_use_every_utterance_once():
    chance = random.Random(0)
    for factor in (1, 2, 10):
        utt2spk = {f"s{i}-{j:02d}": f"s{i}" for i in range(6) for j in range(chance.randint(1, 25))}
        for order in ("consecutive", "shuffled"):
            groups = group(utt2spk, factor, order, seed=3)
            flat = [utterance for items in groups for utterance in items]
            assert sorted(flat) == sorted(utt2spk)
            short = Counter()
            for items in groups:
                assert len({utt2spk[item] for item in items}) == 1 and len(items) <= factor
                short[utt2spk[items[0]]] += len(items) < factor
            assert max(short.values()) <= 1
            assert (flat == sorted(utt2spk)) or order == "shuffled"
        assert group(utt2spk, factor, "shuffled", 3) == group(utt2spk, factor, "shuffled", 3)
    assert group(utt2spk, 10, "shuffled", 3) != group(utt2spk, 10, "shuffled", 4)


def test_joined_words_are_shifted():
    words = {"a": [Word("A", 0.1, 0.5)], "b": [Word("B", 0.0, 0.25), Word("C", 0.5, 0.75)]}
    assert join_ctm(words, ["b", "x", "a"], [16000, 8000, 4000], 1600, RATE) == [
        Word("B", 0.0, 0.25),
        Word("C", 0.5, 0.75),
        Word("A", pytest.approx(1.8), pytest.approx(2.2)),
    ]


@pytest.mark.parametrize("gap", [0.0, 0.25])
def test_long_forms(tmp_path, gap, capsys):
    format_dir(make(tmp_path / "d", LENGTHS, ctm=True), tmp_path / "o")
    out = tmp_path / "x2"
    args = ["longform", "--dump", str(tmp_path / "o"), "--out", str(out), "--factor", "2", "--gap-seconds", str(gap)]
    assert main(args) == 0
    assert "3 in = 3 written + 0 skipped" in capsys.readouterr().out
    pause = np.zeros(round(gap * RATE), np.int16)
    got = samples_of(out)
    want = {
        "ann-1-x2": np.concatenate([noise(0.4, 0), pause, noise(0.5, 1)]),
        "ann-3-x2": noise(0.6, 2),
        "bob-1-x2": np.concatenate([noise(0.7, 3), pause, noise(0.8, 4)]),
    }
    assert got.keys() == want.keys()
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])
    assert kaldi.read_table(out / "text")["bob-1-x2"] == "WORD3 END WORD4 END"
    assert kaldi.read_table(out / "utt2spk")["bob-1-x2"] == "bob"
    assert kaldi.read_table(out / "utt2parts")["bob-1-x2"] == "bob-1 bob-2"
    second = read_ctm(out / "ref.ctm")["bob-1-x2"][2:]
    assert [word.text for word in second] == ["WORD4", "END"]
    assert second[0].start == pytest.approx(0.7 + gap + 0.1) and second[1].end == pytest.approx(0.7 + gap + 0.3)
    assert directories.check_dir(out) == []


def test_long_forms_across_speakers_are_full(tmp_path):
    format_dir(make(tmp_path / "d", LENGTHS), tmp_path / "o")
    out = tmp_path / "x2"
    args = ["longform", "--dump", str(tmp_path / "o"), "--out", str(out), "--factor", "2", "--across-speakers"]
    assert main(args) == 0
    assert kaldi.read_table(out / "utt2parts") == {
        "ann-1-x2": "ann-1 ann-2",
        "ann-3-x2": "ann-3 bob-1",
        "bob-2-x2": "bob-2",
    }
    assert kaldi.read_table(out / "utt2spk")["ann-3-x2"] == "ann"
    assert directories.check_dir(out) == []


def test_long_forms_in_every_way(tmp_path):
    """local/longform.sh: the sets are named by factor and way, and each holds every utterance once."""
    format_dir(make(tmp_path / "d", LENGTHS), tmp_path / "o")
    script = [str(ROOT / "local/longform.sh"), "--dump", str(tmp_path / "o")]
    options = ["--factors", "2 3", "--ways", "across speaker shuffled", "--seed", "3", "--nj", "1"]
    done = subprocess.run([*script, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert names == ["o_2x", "o_3x", "o_2x_speaker", "o_3x_speaker", "o_2x_shuffled", "o_3x_shuffled"]
    assert [joined(name) for name in names] == [
        Joined("o", factor, way) for way in ("", "speaker", "shuffled") for factor in (2, 3)
    ]
    assert joined("o") is None and joined("x2") is None
    parts = {name: [*kaldi.read_table(tmp_path / name / "utt2parts").values()] for name in names}
    assert parts["o_3x"] == ["ann-1 ann-2 ann-3", "bob-1 bob-2"]
    assert parts["o_2x"] == ["ann-1 ann-2", "ann-3 bob-1", "bob-2"]
    assert parts["o_2x_speaker"] == ["ann-1 ann-2", "ann-3", "bob-1 bob-2"]
    assert sorted(map(len, map(str.split, parts["o_3x_shuffled"]))) == [2, 3]
    for groups in parts.values():
        assert sorted(" ".join(groups).split()) == sorted(kaldi.read_table(tmp_path / "o/text"))
    wrong = subprocess.run([*script, "--ways", "across all"], capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2 and "there are across, speaker, shuffled, not 'all'" in wrong.stderr
    # An option of the tool below, which would make other sets of the same names.
    wrong = subprocess.run([*script, "--factor", "4"], capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2 and "unknown option --factor; see --help" in wrong.stderr


def test_long_forms_lose_nothing_silently(tmp_path):
    data, dump = make(tmp_path / "d", LENGTHS, ctm=True), tmp_path / "o"
    words = read_ctm(data / "ref.ctm")
    del words["ann-2"]
    write_ctm(data / "ref.ctm", words)
    format_dir(data, dump)
    longform_dir(dump, tmp_path / "x", 2)
    assert list(read_ctm(tmp_path / "x" / "ref.ctm")) == ["ann-3-x2", "bob-1-x2"]
    audio_path(dump, "bob-2").unlink()
    with pytest.raises(KaldiError, match=r"3 in = 2 written \+ 1 skipped \(1 missing\).*every utterance must be in"):
        longform_dir(dump, tmp_path / "y", 2)
    assert not (tmp_path / "y" / "feats_type").exists()


def test_counts_of_a_report_add_up():
    report = Report(total=5, written=3, seconds=7200, skipped=Counter(missing=1, empty=1))
    assert str(report) == "5 in = 3 written + 2 skipped (1 empty, 1 missing); 2.000 h"


# ---- AN4


def an4_module():
    path = ROOT / "egs2" / "an4" / "speechllm_xl1" / "local" / "data.py"
    spec = importlib.util.spec_from_file_location("an4_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def an4_tree(root, train=7, test=3):
    """A small tree in the layout of the archive."""
    for part, folder, number in (("train", "an4_clstk", train), ("test", "an4test_clstk", test)):
        names = [f"an{i}-{('fash', 'mrab')[i % 2]}-b" for i in range(number)]
        files = [f"{folder}/{name.split('-')[1]}/{name}" for name in names]
        lines = [f"GO {name[2:3]} ({name})" for name in names]
        if part == "train":
            lines = [f"<s> go ++NOISE++ <sil> {name[2:3]} </s> ({name})" for name in names]
        (root / "an4" / "etc").mkdir(parents=True, exist_ok=True)
        (root / "an4" / "etc" / f"an4_{part}.fileids").write_text("\n".join(files) + "\n")
        (root / "an4" / "etc" / f"an4_{part}.transcription").write_text("\n".join(lines) + "\n")
        for seed, file in enumerate(files):
            path = root / "an4" / "wav" / f"{file}.sph"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, noise(0.2, seed), RATE, format="NIST", subtype="PCM_16")
    return root


def test_an4_layout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPEECHLLM_XL_DATA", raising=False)
    tree, prep = an4_tree(tmp_path / "pack"), an4_module()
    with tarfile.open(tmp_path / "pack" / "an4_sphere.tar.gz", "w:gz") as tar:
        tar.add(tree / "an4", "an4")
    options = ["--dev", "2", "--any-size"]
    assert prep.main(["--downloads", str(tree), *options]) == 0
    extracted = contents(tmp_path / "data")
    assert kaldi.read_table(tmp_path / "data" / "train_dev" / "text") == {"fash-an0-b": "GO 0", "fash-an2-b": "GO 2"}
    assert len(kaldi.read_table(tmp_path / "data" / "train_nodev" / "text")) == 5
    assert kaldi.read_table(tmp_path / "data" / "test" / "utt2spk")["mrab-an1-b"] == "mrab"
    for name in ("train_nodev", "train_dev", "test"):
        assert directories.check_dir(tmp_path / "data" / name) == []
    np.testing.assert_array_equal(
        read_audio(kaldi.read_table(tmp_path / "data" / "test" / "wav.scp")["mrab-an1-b"]), noise(0.2, 1) / 32768
    )
    (tree / "an4").rename(tmp_path / "gone")
    for _ in range(2):
        assert prep.main(["--downloads", str(tree), *options]) == 0
    assert contents(tmp_path / "data").keys() == extracted.keys()
    assert directories.check_dir(tmp_path / "data" / "test") == []
    assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == ["an4"]
    capsys.readouterr()
    assert prep.main(["--downloads", str(tree), "--dev", "2"]) == 1
    assert "5 utterances with 10 words, the official archive has 848 with 4851" in capsys.readouterr().err


def test_an4_errors_say_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPEECHLLM_XL_DATA", raising=False)
    prep = an4_module()
    assert prep.main(["--downloads", str(tmp_path)]) == 1
    assert "holds neither an4_sphere.tar.gz nor an4/" in capsys.readouterr().err
    monkeypatch.setattr(prep, "URL", "http://127.0.0.1:9/an4_sphere.tar.gz")
    assert prep.main([]) == 1
    error = capsys.readouterr().err
    assert "could not be fetched" in error and "--downloads DIR" in error
    assert list((tmp_path / "downloads").iterdir()) == []
    (tmp_path / "an4_sphere.tar.gz").write_bytes(b"\x1f\x8b broken")
    assert prep.main(["--downloads", str(tmp_path)]) == 1
    assert "cannot be extracted" in capsys.readouterr().err
    assert list((tmp_path / "downloads").iterdir()) == []
    tree = an4_tree(tmp_path / "pack")
    next((tree / "an4" / "wav").rglob("*.sph")).unlink()
    assert prep.main(["--downloads", str(tree), "--dev", "2", "--any-size"]) == 1
    assert ".sph does not exist: the corpus is incomplete" in capsys.readouterr().err


def test_an4_is_fetched_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPEECHLLM_XL_DATA", raising=False)
    tree, prep = an4_tree(tmp_path / "pack"), an4_module()
    with tarfile.open(tmp_path / "served.tar.gz", "w:gz") as tar:
        tar.add(tree / "an4", "an4")
    monkeypatch.setattr(prep, "URL", (tmp_path / "served.tar.gz").as_uri())
    assert prep.main(["--dev", "2", "--any-size"]) == 0
    assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == ["an4", "an4_sphere.tar.gz"]
    assert len(kaldi.read_table(tmp_path / "data" / "train_nodev" / "text")) == 5


@pytest.mark.skipif(not (PACK / "an4" / "an4_sphere.tar.gz").exists(), reason="no AN4 archive here")
def test_an4_has_the_official_sizes(tmp_path):
    script = ROOT / "egs2" / "an4" / "speechllm_xl1" / "local" / "data.py"
    done = subprocess.run(
        [sys.executable, script, "--downloads", PACK / "an4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "data/train_nodev: 848 utterances, 4851 words",
        "data/train_dev: 100 utterances, 591 words",
        "data/test: 130 utterances, 773 words",
    ]
    dev, rest = (kaldi.read_table(tmp_path / "data" / name / "text") for name in ("train_dev", "train_nodev"))
    assert max(dev) < min(rest) and min(dev) == "fash-an251-b"
    letters = {character for text in dev.values() for character in text}
    assert letters == set(" ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_empty_values(tmp_path):
    path = tmp_path / "token"
    path.write_text("u1 a  b \nu2\nu4\tx\u2028y\r\n", encoding="utf-8")
    assert kaldi.read_table(path, empty_values=True) == {"u1": "a  b", "u2": "", "u4": "x\u2028y"}
    with pytest.raises(kaldi.KaldiError, match="line without a value"):
        kaldi.read_table(path)
