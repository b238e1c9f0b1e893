"""The command line: exit codes, formats, decoding and aligning a dump set, what is listed and counted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import tiny
import yaml
from limits import longest_file

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.ctm import Word, read_ctm
from espnet_speechllm_xl.corpus.dump import format_dir
from espnet_speechllm_xl.corpus.kaldi import read_table, write_table
from espnet_speechllm_xl.decoding.output_formats import Captions
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.sets import align, decode
from espnet_speechllm_xl.sets import audio as set_audio
from espnet_speechllm_xl.systems.ctc import CTCModel

TEXTS = {
    "a-1": "turn the light on",
    "a-2": "no rain today",
    "a-3": "stop",
    "b-1": "one two three four five six seven eight nine ten",  # too long for its audio
    "b-2": "the caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{GREEK SMALL LETTER OMEGA}",  # the tokenizer has neither
    "b-3": "it's late",
    "b-4": "the rest is in there",
}
SAMPLES = {"a-1": 40000, "a-2": 30001, "a-3": 17000, "b-1": 8000, "b-2": 25000, "b-3": 33000, "b-4": 52000}


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """A set of 7 utterances of 2 speakers, written by the format stage."""
    root = tmp_path_factory.mktemp("recipe")
    data = root / "data" / "test"
    for seed, (utterance, samples) in enumerate(SAMPLES.items()):
        (data / "wav").mkdir(parents=True, exist_ok=True)
        soundfile.write(data / "wav" / f"{utterance}.wav", tiny.speech(seed, samples), 16000)
    write_table(data / "wav.scp", {utterance: data / "wav" / f"{utterance}.wav" for utterance in TEXTS})
    write_table(data / "text", TEXTS)
    write_table(data / "utt2spk", {utterance: utterance[0] for utterance in TEXTS})
    report = format_dir(data, root / "dump" / "raw" / "test")
    assert report.written == len(TEXTS)
    return root / "dump" / "raw" / "test"


@pytest.fixture
def broken_dump(dump, tmp_path):
    """The same with one file missing, one of garbage, one not in wav.scp, and one without text."""
    copy = shutil.copytree(dump, tmp_path / "broken")
    table = read_table(copy / "wav.scp")
    table["a-2"] = "gone.flac"
    (tmp_path / "garbage.flac").write_bytes(b"fLaC" + bytes(500))
    table["b-3"] = tmp_path / "garbage.flac"
    del table["a-3"]
    write_table(copy / "wav.scp", table)
    return copy


def run(capsys, *argv):
    """(exit code, standard output, standard error) of the command in this process."""
    capsys.readouterr()
    try:
        code = cli.main([str(word) for word in argv])
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_line(error):
    lines = error.splitlines()
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


# The end of the process


def ended(begin):
    """(exit code, standard output) of a process whose command ``transcribe`` is ``begin``, lines of Python."""
    script = [
        "import atexit, sys, threading, time",
        "from espnet_speechllm_xl.bin import cli",
        "class Garbage:",
        "    def __del__(self): print('freed', flush=True)",
        "garbage = Garbage()",
        "garbage.itself = garbage",
        "def main():",
        *(f"    {line}" for line in begin),
        "    return 2",
        "cli.main, sys.argv = main, ['speechllm-xl', 'transcribe']",
        "cli.run()",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout.split()


def test_the_process_ends_without_freeing_its_memory():
    assert ended(["atexit.register(print, 'last')", "print('text')"]) == (2, ["text", "last"])


def test_the_process_waits_for_its_threads():
    late = ["threading.Thread(target=lambda: (time.sleep(0.3), print('late'))).start()", "print('text')"]
    assert ended(late) == (2, ["text", "late", "freed"])


# Help and wrong use


@pytest.mark.parametrize(
    "argv", [[], *([command] for command in cli.COMMANDS)], ids=lambda argv: " ".join(argv) or "top"
)
def test_help_is_instant(argv):
    seconds = []
    while not seconds or (min(seconds) >= 1 and len(seconds) < 4):  # a busy machine may need another try
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "espnet_speechllm_xl", *argv, "--help"], capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 0 and done.stdout.startswith("usage: speechllm-xl") and done.stderr == ""
    assert min(seconds) < 1, seconds
    if not argv:
        assert all(re.search(rf"^ +{command}\b", done.stdout, re.M) for command in cli.COMMANDS)


@pytest.mark.parametrize(
    "argv, says",
    [
        (["fly"], "invalid choice: 'fly'"),
        ([], "the following arguments are required: COMMAND"),
        (["transcribe"], "the following arguments are required: FILE, --model"),
        (["transcribe", "a.wav", "--model", "m", "--format", "doc"], "argument --format: invalid choice: 'doc'"),
        (["transcribe", "a.wav", "--model", "m", "--beam-size", "many"], "argument --beam-size: invalid int value"),
        (["align", "--dump", "d", "--out", "o"], "one of the arguments --model --ctm is required"),
        (["score", "--ref", "r"], "--hyp --out must be given too"),
    ],
)
def test_wrong_use_is_2(capsys, argv, says):
    code, out, error = run(capsys, *argv)
    assert (code, out) == (2, "") and says in error


def test_one_table_of_exit_codes(capsys, tmp_path):
    absent = tmp_path / "absent"
    (tmp_path / "text").write_text("")
    for code, argv in (
        (1, ["data", "check", absent]),
        (1, ["data", "subset", "--data", absent, "--out", tmp_path / "out", "--first", "1"]),
        (1, ["align-report", "--aligned", absent, "--dump", absent]),
        (1, ["border-report", "--decoded", absent, "--dump", absent]),
        (2, ["tokens", "--text", tmp_path / "text", "--out", tmp_path / "out"]),
        (2, ["score", "--exp", absent, "--dump", absent, "--results", tmp_path / "RESULTS.md"]),
        (2, ["tables", "--corpus", "none"]),
        (2, ["pack", "--model", absent, "--out", tmp_path / "out"]),
    ):
        found, printed, error = run(capsys, *argv)
        assert (found, printed) == (code, "") and one_line(error), argv
        assert argv[:2] == ["data", "check"] or error.startswith("speechllm-xl: error: "), argv
    listed = run(capsys, "--help")[1].partition("exit codes:")[2]
    assert re.findall(r"^  (\d+) ", listed, re.M) == ["0", "1", "2", "3", "130"]


def test_train_without_options_is_wrong_use(capsys):
    assert run(capsys, "train")[0] == 2
    code, out, _ = run(capsys, "train-aligner", "-h")
    assert code == 0 and "--print_config" in out


@pytest.mark.parametrize(
    "content, says",
    [
        (b"max_epoch: 3\n# caf\xe9\n", "train.yaml, line 2: bytes that are no UTF-8: convert the file"),
        (b"max_epoch: [3\n", "train.yaml, line 2 is not readable YAML ("),
        (b"tag: 2024-13-45\n", "train.yaml is not readable YAML (ValueError: month must be in 1..12"),
        (b"a: \x00\n", "train.yaml, line 1 is not readable YAML (character U+0000"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_line(capsys, tmp_path, content, says):
    (tmp_path / "train.yaml").write_bytes(content)
    code, _, error = run(capsys, "train", "--config", tmp_path / "train.yaml", "--output_dir", tmp_path / "out")
    assert code == 2 and says in error and one_line(error)


@pytest.mark.parametrize("bad", ["inf", "nan", "-1", "1e300", "x"])
def test_seconds_that_are_none_are_wrong_use(capsys, bad):
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "longform", "--dump", "d", "--out", "o", "--factor", "2", f"--gap-seconds={bad}"])
    assert ended.value.code == 2 and "argument --gap-seconds: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["align", "--dump", "d", "--out", "o", "--model", "m", "--batch-size=0"],
        ["decode", "--dump", "d", "--out", "o", "--model", "m", "--batch-size=-1"],
        ["latency", "--dump", "d", "--out", "o", "--model", "m", "--nj=0"],
        ["decode", "--dump", "d", "--out", "o", "--model", "m", f"--nj={10**12}"],
    ],
)
def test_counts_that_are_none_are_wrong_use(capsys, argv):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2 and f"argument {argv[-1].partition('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("argv, task", [(["train"], "speechllm_xl"), (["train-aligner"], "ctc")])
def test_train_prints_its_configuration(capsys, argv, task):
    with pytest.raises(SystemExit) as ended:
        cli.main([*argv, "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert not ended.value.code and shown["task"] == task and shown["encoder_conf"]["segment"] == 32


@pytest.mark.parametrize("command", ["transcribe", "decode", "align", "pack"])
def test_an_unusable_model_is_one_line(capsys, tmp_path, dump, command):
    first = {"transcribe": ["a.wav"], "decode": ["--dump", dump], "align": ["--dump", dump], "pack": []}[command]
    out = [] if command == "transcribe" else ["--out", tmp_path / "out"]
    code, printed, error = run(capsys, command, *first, *out, "--model", tmp_path / "absent")
    assert (code, printed) == (2, "")
    assert one_line(error).startswith(f"speechllm-xl: error: {tmp_path / 'absent'} ")


def test_settings_that_do_not_fit_are_one_line(capsys, tiny_model_dir):
    for option, says in (
        (["--chunk-size", "0.65"], "chunk size 0.65 s is not a multiple of 0.04 s"),
        (["--look-ahead", "0.05"], "look-ahead 0.05 s is not a multiple of 0.04 s"),
        (["--context", "1"], "context 1.0 s is not a multiple of the chunk size 0.64 s"),
        (["--beam-size", "0"], "search beam_size must be at least 1"),
        (["--dtype", "float1"], "dtype 'float1' is unknown"),
        (["--format", "srt"], "--format srt takes one FILE"),
    ):
        code, out, error = run(capsys, "transcribe", "a.wav", "b.wav", "--model", tiny_model_dir, *option)
        assert (code, out) == (2, "") and one_line(error).startswith(f"speechllm-xl: error: {says}")


def test_a_bug_keeps_its_traceback(capsys, monkeypatch, dump, tiny_model_dir, tmp_path):
    def buggy(settings):
        raise ValueError("a bug")

    monkeypatch.setattr(decode, "make_worker", buggy)
    code, _, error = decode_set(capsys, dump, tiny_model_dir, tmp_path / "out")
    assert code == 3 and "Traceback" in error and "ValueError: a bug" in error  # not 1, after which recipes go on
    monkeypatch.setattr("espnet_speechllm_xl.bin.score._score_one", lambda args: [].pop())
    texts = ("--ref", dump / "text", "--hyp", dump / "text", "--utt2spk", dump / "utt2spk")
    code, _, error = run(capsys, "score", *texts, "--out", tmp_path / "out")
    assert code == 3 and "IndexError" in error


def test_user_errors_are_what_they_should_be():
    from espnet_speechllm_xl import settings, tokenization, trained_model
    from espnet_speechllm_xl.corpus import audio, kaldi
    from espnet_speechllm_xl.model import alignment
    from espnet_speechllm_xl.training import batches

    for kind in (
        alignment.AlignmentError, audio.AudioError, settings.ConfigError, batches.DataError, trained_model.ModelError,
        kaldi.KaldiError, tokenization.TokenizerError,
    ):  # fmt: skip
        assert issubclass(kind, UserError) and issubclass(kind, ValueError)


# transcribe


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Audio of all kinds, good and bad, by name."""
    folder = tmp_path_factory.mktemp("audio")
    speech = tiny.speech(0, 96000)
    for name, samples, rate, options in (
        ("good.wav", speech, 16000, {}),
        ("nan.wav", np.array([0.1, np.nan, 0.2], np.float32), 16000, {"subtype": "FLOAT"}),
        ("stereo.wav", np.stack([speech, speech], 1), 16000, {}),
        ("eight khz.wav", tiny.speech(4, 20000), 8000, {}),
        ("one.wav", speech[:1], 16000, {}),
        ("none.wav", speech[:0], 16000, {}),
    ):
        soundfile.write(folder / name, samples, rate, **options)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:30000])
    (folder / "text.txt").write_text("no audio")
    return folder


GOOD = ["good.wav", "stereo.wav", "eight khz.wav", "one.wav"]
BAD = {
    "absent.wav": "does not exist",
    "empty.wav": "is an empty file",
    "none.wav": "holds no samples",
    "nan.wav": "holds 1 NaN or infinite samples",
    "cut.wav": "is cut short",
    "text.txt": "is no sound file of a known format",
}


def transcribe(capsys, model, files, names, *options):
    paths = [str(files / name) for name in names]
    return run(capsys, "transcribe", *paths, "--model", model, "--search", "greedy", *options)


def test_bad_files_are_named_and_the_others_done(capsys, tiny_model_dir, files):
    mixed = ["absent.wav", "good.wav", "empty.wav", "none.wav", "stereo.wav", "nan.wav", "eight khz.wav", "cut.wav"]
    code, out, error = transcribe(capsys, tiny_model_dir, files, [*mixed, "text.txt", "one.wav"])
    assert code == 1
    texts = dict(line.split("\t") for line in out.splitlines())
    assert list(texts) == [str(files / name) for name in GOOD]
    assert texts[str(files / "good.wav")] == texts[str(files / "stereo.wav")] != ""
    assert texts[str(files / "eight khz.wav")] != "" and texts[str(files / "one.wav")] == ""
    assert f"{len(GOOD)} of {len(GOOD) + len(BAD)} files done" in error
    for name, reason in BAD.items():
        (line,) = [line for line in error.splitlines() if str(files / name) in line]
        assert line.startswith("speechllm-xl transcribe: ") and reason in line


def test_a_name_that_is_not_utf8_is_named(capsys, tiny_model_dir, files):
    name = os.fsdecode(b"caf\xe9.wav")
    shutil.copy(files / "good.wav", files / name)
    code, out, error = transcribe(capsys, tiny_model_dir, files, [name, "good.wav"])
    assert code == 1 and len(out.splitlines()) == 1 and "caf\\udce9.wav': the name is not UTF-8: rename" in error


def test_good_files_are_0(capsys, tiny_model_dir, files):
    code, out, _ = transcribe(capsys, tiny_model_dir, files, ["good.wav"])
    assert code == 0 and len(out.splitlines()) == 1 and "\t" not in out
    code, same, error = transcribe(capsys, tiny_model_dir, files, ["good.wav"], "--max-tokens-per-chunk", "1")
    assert code == 0 and same != out and re.search(r"good\.wav: \d+ chunks hit the token cap", error)
    code, other, _ = transcribe(capsys, tiny_model_dir, files, ["good.wav"], "--chunk-size", "0.32", "--context", "inf")
    assert code == 0 and other != out


@pytest.fixture(scope="module")
def expected(tiny_model_dir, files):
    """The transcript of ``good.wav``."""
    from espnet_speechllm_xl import Speech2Text

    (transcript,) = Speech2Text.from_pretrained(tiny_model_dir, search="greedy")(files / "good.wav")
    assert len(transcript.words) > 4
    return transcript


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """A call of two parties, one on each channel: (file, samples (n, 2))."""
    path = tmp_path_factory.mktemp("call") / "call.wav"
    soundfile.write(path, np.stack([tiny.speech(21, 64000), tiny.speech(22, 64000)], axis=1), 16000)
    return path, soundfile.read(path, dtype="float32")[0]


def test_a_channel_is_chosen_or_each_for_itself(capsys, tiny_model_dir, files, call, tmp_path):
    from espnet_speechllm_xl import Speech2Text

    path, samples = call
    speech2text = Speech2Text.from_pretrained(tiny_model_dir, search="greedy")
    left, right = (speech2text(samples[:, channel])[0] for channel in (0, 1))
    mix = speech2text(path)[0]
    assert len({left.text, right.text, mix.text}) == 3 and speech2text(path, channel=1)[0] == right

    def say(*options, names=("call.wav",)):
        code, out, error = transcribe(capsys, tiny_model_dir, path.parent, names, *options)
        return code, out, error

    assert say("--channel", "0") == (0, f"{left.text}\n", "") and say("--channel", "1")[1] == f"{right.text}\n"
    for options in ((), ("--channel", "mix")):
        code, out, error = say(*options)
        assert (code, out) == (0, f"{mix.text}\n") and f"{path}: 2 channels averaged" in error
    assert say("--channel", "each") == (0, f"0\t{left.text}\n1\t{right.text}\n", "")
    both = say("--channel", "each", names=("call.wav", str(files / "good.wav")))[1].splitlines()
    assert both[:2] == [f"{path}\t0\t{left.text}", f"{path}\t1\t{right.text}"] and both[2].split("\t")[1] == "0"
    objects = [json.loads(line) for line in say("--channel", "each", "--format", "json")[1].splitlines()]
    assert [(one["channel"], one["text"]) for one in objects] == [(0, left.text), (1, right.text)]
    lines = [line.split() for line in say("--channel", "each", "--format", "ctm")[1].splitlines()]
    assert [line[4] for line in lines if line[:2] == ["call", "2"]] == right.text.split()
    code, out, error = say("--channel", "2")
    assert (code, out) == (1, "") and "call.wav has no channel 2: it has 2, counted from 0" in error
    code, out, error = say("--channel", "each", "--format", "srt")
    assert code == 2 and "subtitles of all channels would be one mixed track: give one" in error


def test_what_is_lost_is_remarked_on_once_a_file(capsys, tiny_model_dir, tmp_path):
    speech = tiny.speech(23, 48000)
    soundfile.write(tmp_path / "quiet.wav", speech * 1e-3, 16000)
    soundfile.write(tmp_path / "against.wav", np.stack([speech, -speech], axis=1), 16000)
    soundfile.write(tmp_path / "clipped.wav", (speech * 300).clip(-1, 1), 16000)
    names = ["quiet.wav", "against.wav", "clipped.wav"]
    code, out, error = transcribe(capsys, tiny_model_dir, tmp_path, names)
    assert code == 0 and len(out.splitlines()) == 3
    for name, texts in (("quiet", ["nearly silent"]), ("clipped", ["heavily clipped"]),
                        ("against", ["its 2 channels cancel each other", "2 channels averaged"])):  # fmt: skip
        start = f"speechllm-xl transcribe: {tmp_path}/{name}.wav: "
        lines = [line.removeprefix(start) for line in error.splitlines() if line.startswith(start)]
        lines = [line for line in lines if "hit the token cap" not in line]
        assert len(lines) == len(texts)
        assert all(line.startswith(text) for line, text in zip(lines, texts, strict=True))
    error = transcribe(capsys, tiny_model_dir, tmp_path, ["against.wav"], "--channel", "each")[2]
    assert "cancel" not in error and "averaged" not in error


def test_format_json(capsys, tiny_model_dir, files, expected):
    code, out, _ = transcribe(capsys, tiny_model_dir, files, GOOD, "--format", "json")
    assert code == 0
    objects = [json.loads(line) for line in out.splitlines()]
    assert [item["file"] for item in objects] == [str(files / name) for name in GOOD]
    assert objects[0]["text"] == expected.text and objects[0]["score"] == pytest.approx(expected.score)
    assert [(word["text"], word["start"]) for word in objects[0]["words"]] == [
        (word.text, round(word.start, 3)) for word in expected.words
    ]
    assert objects[-1] == {
        "file": str(files / "one.wav"), "text": "", "score": 0.0, "words": [], "nbest": [{"text": "", "score": 0.0}]
    }  # fmt: skip
    options = ("--format", "json", "--search", "chunk_sync", "--nbest", "3")
    nbest = json.loads(transcribe(capsys, tiny_model_dir, files, ["good.wav"], *options)[1])["nbest"]
    assert 1 < len(nbest) <= 3 and len({one["text"] for one in nbest}) == len(nbest)


def test_format_ctm(capsys, tiny_model_dir, files, expected, tmp_path):
    code, out, _ = transcribe(capsys, tiny_model_dir, files, GOOD, "--format", "ctm")
    assert code == 0
    (tmp_path / "ctm").write_text(out, "utf-8")
    words = read_ctm(tmp_path / "ctm")
    assert set(words) == {"good", "stereo", "eight_khz"}
    assert [word.text for word in words["good"]] == [word.text for word in expected.words]
    for word, exact in zip(words["good"], expected.words, strict=True):
        assert (word.start, word.end) == pytest.approx((exact.start, exact.end), abs=6e-4)
        assert word.confidence == pytest.approx(exact.confidence, abs=1e-3)


def test_a_ctm_does_not_mix_recordings(capsys, tiny_model_dir, files):
    code, out, error = transcribe(capsys, tiny_model_dir, files, ["good.wav", "good.wav"], "--format", "ctm")
    assert (code, out) == (2, "") and "2 files would be the recording 'good': transcribe them one by" in one_line(error)


def _seconds(clock):
    hours, minutes, seconds = clock.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _check_captions(captions, expected):
    assert " ".join(text for _, text in captions) == expected.text
    times = [tuple(map(_seconds, line.split(" --> "))) for line, _ in captions]
    assert all(0 <= start < end <= 6 for start, end in times)
    assert all(first[1] <= second[0] + 1e-9 for first, second in zip(times, times[1:], strict=False))


def test_a_long_recording_is_told_of_the_stream(capsys, monkeypatch, tiny_model_dir, files, expected):

    assert "stream" not in transcribe(capsys, tiny_model_dir, files, ["good.wav"])[2]
    monkeypatch.setattr(set_audio, "LONG_SECONDS", 1)
    code, out, error = transcribe(capsys, tiny_model_dir, files, ["good.wav"])
    assert (code, out) == (0, f"{expected.text}\n")
    assert "good.wav lasts 0.0 h: it is held in memory whole" in one_line(error)
    assert "good.wav --search chunk_sync` writes as it goes" in error


def test_format_srt(capsys, tiny_model_dir, files, expected):
    code, out, _ = transcribe(capsys, tiny_model_dir, files, ["good.wav"], "--format", "srt")
    blocks = [block.split("\n") for block in out.strip().split("\n\n")]
    assert code == 0 and [int(number) for number, *_ in blocks] == list(range(1, len(blocks) + 1))
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}", line) for _, line, *_ in blocks)
    _check_captions([(line, " ".join(lines)) for _, line, *lines in blocks], expected)


def test_format_vtt(capsys, tiny_model_dir, files, expected):
    code, out, _ = transcribe(capsys, tiny_model_dir, files, ["good.wav"], "--format", "vtt")
    head, *blocks = out.strip().split("\n\n")
    assert (code, head) == (0, "WEBVTT")
    _check_captions([(line, " ".join(lines)) for line, *lines in (block.split("\n") for block in blocks)], expected)


def test_captions_of_the_web_are_escaped():
    words = [Word(text, index, index + 0.5, 1.0) for index, text in enumerate(["<noise>", "AT&T", "a-->b"])]
    text = Captions("vtt").all(words)
    assert text.endswith("\n&lt;noise&gt; AT&amp;T a--&gt;b\n\n")
    assert "<noise> AT&T a-->b" in Captions("srt").all(words)


# decode, align, score


TABLES = ["text", "token", "token_int", "score"]


def read_all(directory):
    return {name: (directory / name).read_bytes() for name in (*TABLES, "failed", "words.ctm")}


def decode_set(capsys, dump, model, out, *options):
    base = ("--dump", dump, "--model", model, "--out", out, "--search", "greedy", "--dtype", "float64")
    return run(capsys, "decode", *base, "--batch-size", "2", *options)


@pytest.fixture(scope="module")
def decoded(dump, tiny_model_dir):
    """``exp/tiny/decode_greedy/test`` beside the dump, decoded once without disturbance."""
    out = dump.parents[2] / "exp" / "tiny" / "decode_greedy" / "test"
    base = ["--dump", dump, "--model", tiny_model_dir, "--out", out, "--search", "greedy", "--dtype", "float64"]
    assert cli.main(["decode", *map(str, base), "--batch-size", "2"]) == 0
    return out


def test_decode_writes_espnets_layout(dump, decoded, tiny_model_dir):
    from espnet_speechllm_xl import Speech2Text

    speech2text = Speech2Text.from_pretrained(tiny_model_dir, search="greedy", dtype="float64")
    audio = read_table(dump / "wav.scp")
    tables = {name: read_table(decoded / name) if name != "failed" else {} for name in TABLES}
    timed = read_ctm(decoded / "words.ctm")
    assert all(list(table) == sorted(TEXTS) for table in tables.values())
    for utterance in TEXTS:
        (transcript,) = speech2text(audio[utterance])
        assert tables["text"][utterance] == transcript.text
        assert tables["token"][utterance].split() == list(transcript.tokens)
        assert tables["token_int"][utterance].split() == list(map(str, transcript.token_ids))
        assert float(tables["score"][utterance]) == pytest.approx(transcript.score, abs=1e-9)
        words = [(word.text, round(word.start, 3), round(word.end, 3)) for word in transcript.words]
        assert [(word.text, word.start, word.end) for word in timed.get(utterance, ())] == words
    assert sum(map(len, timed.values())) > 5
    assert (decoded / "failed").read_bytes() == b""
    summary = json.loads((decoded / "decode.json").read_text())
    assert (summary["utterances"], summary["failed"]) == (7, 0)
    assert summary["audio_seconds"] == pytest.approx(sum(SAMPLES.values()) / 16000)
    assert summary["seconds"] > 0 and summary["settings"]["search"] == "greedy"
    assert not (decoded / ".parts").exists()


def test_decoding_counts_remarks(capsys, dump, tiny_model_dir, tmp_path):
    shutil.copytree(dump, tmp_path / "dump")
    table = dict(line.split(maxsplit=1) for line in (tmp_path / "dump" / "wav.scp").read_text().splitlines())
    for utterance in sorted(table)[:2]:
        table[utterance] = f"{tmp_path}/{utterance}.wav"
        soundfile.write(table[utterance], np.zeros(20000), 16000)
    (tmp_path / "dump" / "wav.scp").write_text("".join(f"{key} {table[key]}\n" for key in sorted(table)))
    code, out, _ = decode_set(capsys, tmp_path / "dump", tiny_model_dir, tmp_path / "out")
    first = min(table)  # b-1 is short and quiet
    assert code == 0 and f"  remark: 3 nearly-silent, the first: {first}: nearly silent, digital silence" in out
    summary = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert [*summary["remarks"]] == ["nearly-silent"] and summary["remarks"]["nearly-silent"][:2] == [3, first]


def test_decoding_a_long_recording_is_told_of_the_stream(capsys, monkeypatch, dump, tiny_model_dir, tmp_path):

    assert decode_set(capsys, dump, tiny_model_dir, tmp_path / "short")[2] == ""
    monkeypatch.setattr(set_audio, "LONG_SECONDS", min(SAMPLES.values()) / 16000)  # all of them are as long
    code, _, error = decode_set(capsys, dump, tiny_model_dir, tmp_path / "long", "--search", "alsd")
    first = min(SAMPLES, key=SAMPLES.get)
    file = read_table(dump / "wav.scp")[first]
    assert code == 0 and one_line(error).startswith(f"{first}: {file} lasts 0.0 h: it is held in memory whole")
    assert f"`speechllm-xl stream {file} --search chunk_sync` writes as it goes" in error


def test_words_of_a_decoded_set_in_their_recordings(capsys, dump, decoded, tiny_model_dir, tmp_path):
    """Each utterance begins 10 s after the one before, in one recording for a speaker, the second's on channel 2."""
    out = shutil.copytree(decoded, tmp_path / "out")
    starts = {utterance: 10.0 * index for index, utterance in enumerate(sorted(TEXTS))}
    segments = [f"{name} tape-{name[0]} {at} {at + 9} {int(name[0] == 'b')}\n" for name, at in starts.items()]
    (tmp_path / "segments").write_text("".join(segments))
    code, printed, _ = decode_set(capsys, dump, tiny_model_dir, out, "--segments", tmp_path / "segments")
    assert code == 0 and "were decoded before" in printed  # nothing else has to be done for it
    found = read_ctm(out / "recordings.ctm")
    words = [(name[0], word) for name, each in sorted(read_ctm(out / "words.ctm").items()) for word in each]
    assert sorted(found) == ["tape-a", "tape-b"]
    for speaker in "ab":
        wanted = [word.text for name, word in words if name == speaker]
        assert [word.text for word in found[f"tape-{speaker}"]] == wanted
    name, first = next((name, each[0]) for name, each in sorted(read_ctm(out / "words.ctm").items()) if name[0] == "b")
    assert found["tape-b"][0].start == pytest.approx(starts[name] + first.start, abs=0.0011)
    lines = (out / "recordings.ctm").read_text().splitlines()
    assert {tuple(line.split()[:2]) for line in lines} == {("tape-a", "1"), ("tape-b", "2")}
    (tmp_path / "segments").write_text("".join(segments[1:]))
    code, _, error = decode_set(capsys, dump, tiny_model_dir, out, "--segments", tmp_path / "segments")
    assert code == 2 and "segments lacks a-1 (1 in all): give the segments of the set" in one_line(error)


def test_unusable_audio_is_listed_and_counted(capsys, broken_dump, decoded, tiny_model_dir, tmp_path):
    code, out, _ = decode_set(capsys, broken_dump, tiny_model_dir, tmp_path / "out")
    assert code == 1
    failed = read_table(tmp_path / "out" / "failed")
    assert list(failed) == ["a-2", "a-3", "b-3"] and failed["a-3"] == "not in wav.scp"
    assert "gone.flac does not exist" in failed["a-2"] and "garbage.flac (FLAC) is damaged" in failed["b-3"]
    text = read_table(tmp_path / "out" / "text")
    assert text == {u: t for u, t in read_table(decoded / "text").items() if u not in failed}
    summary = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert (summary["utterances"], summary["failed"]) == (len(text), len(failed)) == (4, 3)
    assert "4 utterances decoded, 3 failed" in out and all(f"failed: {utterance}: " in out for utterance in failed)


def counting(make_worker, calls, stop=None):
    """``make_worker`` whose worker notes its batches in ``calls``; interrupted at batch number ``stop``."""

    def make(settings):
        worker = make_worker(settings)

        def work(batch):
            calls.append(batch)
            if len(calls) - 1 == stop:
                raise KeyboardInterrupt
            return worker(batch)

        return work

    return make


def test_an_interrupted_decoding_goes_on(capsys, monkeypatch, dump, decoded, tiny_model_dir, tmp_path):
    make_worker, out = decode.make_worker, tmp_path / "out"
    first, second, third = [], [], []
    monkeypatch.setattr(decode, "make_worker", counting(make_worker, first, stop=2))
    code, _, error = decode_set(capsys, dump, tiny_model_dir, out)
    assert code == 130 and "interrupted" in error and not (out / "text").exists() and len(first) == 3
    kept = shutil.copytree(out, tmp_path / "kept")
    monkeypatch.setattr(decode, "make_worker", counting(make_worker, second))
    assert decode_set(capsys, dump, tiny_model_dir, out)[0] == 0
    assert len(second) == 2 and first[:2] + second == sorted(first[:2] + second, key=lambda b: min(map(SAMPLES.get, b)))
    assert read_all(out) == read_all(decoded)
    monkeypatch.setattr(decode, "make_worker", counting(make_worker, third))
    assert decode_set(capsys, dump, tiny_model_dir, kept, "--max-tokens-per-chunk", "1")[0] == 0
    assert len(third) == 4  # other settings: nothing of the interrupted run is taken over
    assert read_all(kept)["text"] != read_all(decoded)["text"]


def test_what_is_decoded_anew_is_not_scored_before(capsys, monkeypatch, dump, decoded, tiny_model_dir, tmp_path):
    out = shutil.copytree(decoded, tmp_path / "out")
    monkeypatch.setattr(decode, "make_worker", counting(decode.make_worker, [], stop=1))
    assert decode_set(capsys, dump, tiny_model_dir, out, "--max-tokens-per-chunk", "1")[0] == 130
    assert [path.name for path in out.iterdir()] == [".parts"]


def test_wrong_use_leaves_what_was_decoded(capsys, dump, decoded, tiny_model_dir, tmp_path):
    out = shutil.copytree(decoded, tmp_path / "out")
    for options in (["--chunk-size", "0.65"], ["--device", "cuda:99"]):
        assert decode_set(capsys, dump, tiny_model_dir, out, *options)[0] == 2
    assert read_all(out) == read_all(decoded)


def test_only_what_failed_is_decoded_again(capsys, monkeypatch, broken_dump, decoded, tiny_model_dir, tmp_path):
    first, second = [], []
    for calls in (first, second):
        with monkeypatch.context() as patch:
            patch.setattr(decode, "make_worker", counting(decode.make_worker, calls))
            assert decode_set(capsys, broken_dump, tiny_model_dir, tmp_path / "out")[0] == 1
    assert 0 < len(second) < len(first) and set(map(tuple, second)) < set(map(tuple, first))
    shutil.copy(read_table(broken_dump / "wav.scp")["a-1"], tmp_path / "garbage.flac")
    assert decode_set(capsys, broken_dump, tiny_model_dir, tmp_path / "out")[0] == 1
    assert list(read_table(tmp_path / "out" / "failed")) == ["a-2", "a-3"]


def test_two_processes_give_what_one_gives(capsys, dump, decoded, tiny_model_dir, tmp_path):
    assert decode_set(capsys, dump, tiny_model_dir, tmp_path / "out", "--nj", "2")[0] == 0
    assert read_all(tmp_path / "out") == read_all(decoded)


def test_an_utterance_that_a_process_crashes_on_is_named_and_left_out(
    capsys, dump, decoded, tiny_model_dir, tiny_aligner_dir, tmp_path
):
    copy, reason = shutil.copytree(dump, tmp_path / "dump"), "the process that worked on it crashed (SIGSEGV): look at"
    write_table(copy / "wav.scp", {**read_table(copy / "wav.scp"), "a-3": "kill -SEGV $PPID |"})
    code, _, error = decode_set(capsys, copy, tiny_model_dir, tmp_path / "out", "--nj", "2")
    assert code == 1 and "a worker process crashed (SIGSEGV); it had: a-3\n" in error
    failed, whole = read_table(tmp_path / "out" / "failed"), read_table(decoded / "text")
    assert list(failed) == ["a-3"] and failed["a-3"].startswith(reason)
    assert read_table(tmp_path / "out" / "text") == {name: text for name, text in whole.items() if name != "a-3"}
    # One process alone dies itself; the next run knows what it had.
    out = tmp_path / "aligned"
    command = ["align", "--dump", str(copy), "--model", str(tiny_aligner_dir), "--batch-size", "2", "--out", str(out)]
    assert subprocess.run([sys.executable, "-m", "espnet_speechllm_xl", *command]).returncode == -signal.SIGSEGV
    code, _, error = run(capsys, *command)
    assert code == 1 and "it had: a-3\n" in error
    assert read_table(out / "failed")["a-3"].startswith(f"unusable audio: {reason}")


def test_shards_give_what_one_run_gives(capsys, monkeypatch, dump, decoded, tiny_model_dir, tiny_aligner_dir, tmp_path):
    out, batches = tmp_path / "out", []
    for shard in ("2/2", "1/2"):
        assert decode_set(capsys, dump, tiny_model_dir, out, "--shard", shard)[0] == 0
        assert not (out / "text").exists()
    monkeypatch.setattr(decode, "make_worker", counting(decode.make_worker, batches))
    assert decode_set(capsys, dump, tiny_model_dir, out)[0] == 0
    assert read_all(out) == read_all(decoded) and batches == []
    base = ("align", "--dump", dump, "--model", tiny_aligner_dir, "--batch-size", "3", "--out")
    assert run(capsys, *base, tmp_path / "whole")[0] == 0
    for options in (["--shard", "1/2"], ["--shard", "2/2"], []):
        assert run(capsys, *base, tmp_path / "aligned", *options)[0] == 0
    for name in ("char_ends", "words.ctm", "failed"):
        assert (tmp_path / "aligned" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    code, _, error = decode_set(capsys, dump, tiny_model_dir, out, "--shard", "3/2")
    assert code == 2 and "3/2 is not I/N with 1 <= I <= N" in error


def test_nbest_lists(capsys, dump, tiny_model_dir, tmp_path):
    options = ("--search", "chunk_sync", "--nbest", "3", "--batch-size", "8")
    assert decode_set(capsys, dump, tiny_model_dir, tmp_path / "out", *options)[0] == 0
    lists = [json.loads(line) for line in (tmp_path / "out" / "nbest.jsonl").read_text("utf-8").splitlines()]
    best = read_table(tmp_path / "out" / "text")
    assert {item["utterance"]: item["nbest"][0]["text"] for item in lists} == best
    assert max(len(item["nbest"]) for item in lists) > 1
    written = (tmp_path / "out" / "nbest.jsonl").read_text("utf-8")
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")  # whose own settings want them
    config = yaml.safe_load((model / "config.yaml").read_text("utf-8"))
    config["search_conf"] = {**config.get("search_conf", {}), "nbest": 3}
    (model / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    assert decode_set(capsys, dump, model, tmp_path / "own", "--search", "chunk_sync", "--batch-size", "8")[0] == 0
    assert (tmp_path / "own" / "nbest.jsonl").read_text("utf-8") == written
    assert decode_set(capsys, dump, tiny_model_dir, tmp_path / "out")[0] == 0
    assert not (tmp_path / "out" / "nbest.jsonl").exists()  # it was not of these texts


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda d: (d / "wav.scp").unlink(), "wav.scp does not exist: give a Kaldi data directory"),
        (
            lambda d: (d / "utt2num_samples").write_text("a-1 long\n"),
            "samples: not a number of samples ('a-1', line 1)",
        ),
        (lambda d: [(d / n).write_text("") for n in ("wav.scp", "utt2num_samples")], "wav.scp is empty: run the"),
        (lambda d: (d / "wav.scp").write_text("a-1\n"), "wav.scp: line without a value"),
    ],
)
def test_damaged_dumps_are_one_line(capsys, dump, tiny_model_dir, tmp_path, change, says):
    copy = shutil.copytree(dump, tmp_path / "copy")
    change(copy)
    code, _, error = decode_set(capsys, copy, tiny_model_dir, tmp_path / "out")
    assert code == 2 and says in one_line(error) and not (tmp_path / "out").exists()


def check_aligned(out, dump, failed):
    report = json.loads((out / "report.json").read_text())
    texts = {utterance: text for utterance, text in read_table(dump / "text").items()}
    good = {utterance: text for utterance, text in texts.items() if utterance not in failed}
    counts = [report[name] for name in ("aligned", "failed", "total")]
    assert counts == [len(good), len(failed), len(texts)]
    assert read_table(out / "text") == good and read_table(out / "failed") == failed
    ends = {utterance: list(map(int, value.split())) for utterance, value in read_table(out / "char_ends").items()}
    samples = read_table(dump / "utt2num_samples")
    assert list(ends) == sorted(good)
    for utterance, values in ends.items():
        assert len(values) == len(good[utterance]) and values == sorted(values)
        assert 0 <= values[0] and values[-1] < (int(samples[utterance]) - 400) // 160 // 4 + 1
    words = read_ctm(out / "words.ctm")
    assert {utterance: " ".join(word.text for word in line) for utterance, line in words.items()} == good
    for name in ("wav.scp", "utt2spk", "utt2num_samples"):
        assert list(read_table(out / name)) == sorted(good)


def test_align(capsys, dump, tiny_aligner_dir, tmp_path):
    copy = shutil.copytree(dump, tmp_path / "dump")
    texts = {**TEXTS, "a-3": ""}
    write_table(copy / "text", texts)
    code, out, _ = run(capsys, "align", "--dump", copy, "--model", tiny_aligner_dir, "--out", tmp_path / "out")
    assert code == 0
    failed = read_table(tmp_path / "out" / "failed")
    assert list(failed) == ["a-3", "b-1", "b-2"]
    assert failed["a-3"] == "empty text" and failed["b-2"] == "unknown symbols: \u00e9\u03c9"
    assert re.fullmatch(r"too few frames \(12\) for \d+ tokens and \d+ repeats", failed["b-1"])
    check_aligned(tmp_path / "out", copy, failed)
    assert "4 of 7 utterances aligned, 1 left out: empty text, 1 left out: too few frames, 1 left out: unknown" in out


def test_align_written_text(capsys, dump, tiny_aligner_dir, tmp_path):
    """The aligner hears text_spoken; numbers have the time of what is read between their neighbours."""
    copy = shutil.copytree(dump, tmp_path / "dump")
    names = ["a-1", "a-2", "b-3", "b-4"]
    spoken = {name: TEXTS[name] for name in names} | {"a-1": "turn ten lights on", "b-3": "one two three stop"}
    written = {"a-1": "Turn 10 lights on.", "a-2": "No rain, today!", "b-3": "123 stop", "b-4": "Other words, these."}
    for name in ("wav.scp", "utt2spk", "utt2num_samples"):
        write_table(copy / name, {key: value for key, value in read_table(copy / name).items() if key in names})
    base = ("align", "--dump", copy, "--model", tiny_aligner_dir, "--out")
    write_table(copy / "text", spoken)
    assert run(capsys, *base, tmp_path / "plain")[0] == 0
    write_table(copy / "text", written)
    write_table(copy / "text_spoken", spoken)
    code, out, _ = run(capsys, *base, tmp_path / "out")
    assert code == 0 and "3 of 4 utterances aligned, 1 left out: no word of the text is spoken" in out
    assert (
        f"{tmp_path / 'out'}: 2 of 9 words are not written as they are read (most often: 10 1, 123 1); they have the "
        "time of what is spoken between their neighbours\n"
    ) in out
    heard, read = (read_ctm(tmp_path / name / "words.ctm") for name in ("plain", "out"))
    assert [word.text for word in read["a-1"]] == written["a-1"].split()
    assert [word.end for word in read["a-1"]] == [word.end for word in heard["a-1"]]
    assert [word.end for word in read["a-2"]] == [word.end for word in heard["a-2"]]
    assert [(word.start, word.end) for word in read["b-3"]] == [
        (heard["b-3"][0].start, heard["b-3"][2].end),
        (heard["b-3"][3].start, heard["b-3"][3].end),
    ]
    assert read_table(tmp_path / "out/read_otherwise") == {"a-1": "10", "b-3": "123"}
    assert read_table(tmp_path / "out/text_spoken") == {name: spoken[name] for name in ("a-1", "a-2", "b-3")}
    ends = {key: list(map(int, value.split())) for key, value in read_table(tmp_path / "out/char_ends").items()}
    assert all(len(ends[name]) == len(written[name]) and ends[name] == sorted(ends[name]) for name in ends)
    assert "were aligned before" in run(capsys, *base, tmp_path / "out")[1]
    code, out, _ = run(capsys, "align-report", "--aligned", tmp_path / "out", "--dump", copy, "--plots", "0")
    assert code == 0 and "; 2 words not written as they are read; 0 plots" in out
    assert "Written text: 2 of 9 words are not" in (tmp_path / "out/report/report.md").read_text("utf-8")
    # Without what is spoken: the text itself, as before.
    (copy / "text_spoken").unlink()
    write_table(copy / "text", spoken)
    assert run(capsys, *base, tmp_path / "out")[0] == 0
    assert not (tmp_path / "out/read_otherwise").exists() and not (tmp_path / "out/text_spoken").exists()
    write_table(copy / "text_spoken", {"a-1": "stop"})
    code, _, error = run(capsys, *base, tmp_path / "out")
    assert code == 2 and "text_spoken lacks 'a-2' (3 in all): run the format stage again" in one_line(error)


def test_align_says_that_its_aligner_is_hopeless(capsys, dump, tiny_aligner_dir, tmp_path):
    model = shutil.copytree(tiny_aligner_dir, tmp_path / "aligner")

    def aligned(out, *options):
        code, printed, error = run(capsys, "align", "--dump", dump, "--model", model, "--out", tmp_path / out, *options)
        assert code == 0
        return printed, error

    assert aligned("first")[1] == ""  # nothing is known of it
    (model / "train.log").write_text("1epoch results: [train] loss=1, [valid] ter=0.52, loss=1\n")
    for out, says in (("first", "were aligned before"), ("second", "of 7 utterances aligned")):
        printed, error = aligned(out)
        assert says in printed
        assert one_line(error).startswith(f"warning: {model}: its token error rate is 0.52 at best, over 0.3: ")
    assert aligned("third", "--shard", "1/2")[1] == ""


def test_what_memory_does_not_hold_is_listed_while_the_others_go_on(
    capsys, dump, tiny_aligner_dir, tiny_model_dir, tmp_path, monkeypatch
):
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    log_probs, transcribe_batch = CTCModel.log_probs, Speech2Text.transcribe_batch

    def small_log_probs(self, speech, lengths):
        if int(lengths.max()) == SAMPLES["b-4"]:
            raise full
        return log_probs(self, speech, lengths)

    def small_batch(self, recordings, *others):
        if max(map(len, recordings)) == SAMPLES["b-4"]:
            raise full
        return transcribe_batch(self, recordings, *others)

    monkeypatch.setattr(CTCModel, "log_probs", small_log_probs)
    monkeypatch.setattr(Speech2Text, "transcribe_batch", small_batch)
    for command, model in (("align", tiny_aligner_dir), ("decode", tiny_model_dir)):
        out = tmp_path / command
        code, _, _ = run(capsys, command, "--dump", dump, "--model", model, "--out", out)
        assert code == 1 and "memory does not hold it: cut it" in read_table(out / "failed")["b-4"]
        done = read_table(out / "text", empty_values=True)
        assert "b-4" not in done and {"a-1", "b-3"} <= done.keys()


def test_align_lists_unusable_audio(capsys, broken_dump, tiny_aligner_dir, tmp_path):
    base = ("--dump", broken_dump, "--model", tiny_aligner_dir, "--out", tmp_path / "out", "--batch-size", "3")
    code, out, _ = run(capsys, "align", *base)
    failed = read_table(tmp_path / "out" / "failed")
    assert code == 1 and list(failed) == ["a-2", "a-3", "b-1", "b-2", "b-3"]
    assert failed["a-3"] == "unusable audio: not in wav.scp" and "gone.flac does not exist" in failed["a-2"]
    assert "2 of 7 utterances aligned" in out and "3 left out: unusable audio" in out
    shutil.copytree(broken_dump, tmp_path / "lost")
    write_table(tmp_path / "lost/wav.scp", dict.fromkeys(read_table(broken_dump / "text"), tmp_path / "away.flac"))
    lost = ("--dump", tmp_path / "lost", "--model", tiny_aligner_dir, "--out", tmp_path / "found")
    assert run(capsys, "align", *lost)[0] == 2
    shutil.copy(read_table(broken_dump / "wav.scp")["a-1"], tmp_path / "away.flac")
    assert run(capsys, "align", *lost)[0] == 0
    # One file is mended: the same command takes it in.
    shutil.copy(read_table(broken_dump / "wav.scp")["a-1"], tmp_path / "garbage.flac")
    code, out, _ = run(capsys, "align", *base)
    assert code == 1 and "2 left out: unusable audio" in out
    assert "unusable" not in read_table(tmp_path / "out" / "failed").get("b-3", "")


def test_align_lists_what_the_dump_lacks(capsys, dump, tiny_aligner_dir, tmp_path):
    copy = shutil.copytree(dump, tmp_path / "copy")
    speakers = read_table(copy / "utt2spk")
    write_table(copy / "utt2spk", {name: speaker for name, speaker in speakers.items() if name != "a-1"})
    code, _, _ = run(capsys, "align", "--dump", copy, "--model", tiny_aligner_dir, "--out", tmp_path / "out")
    assert code == 0 and read_table(tmp_path / "out" / "failed")["a-1"] == "not in utt2spk"


def test_places_that_cannot_be_written_are_one_line(capsys, dump, tiny_model_dir, tmp_path):
    (tmp_path / "file").touch()
    code, _, error = decode_set(capsys, dump, tiny_model_dir, tmp_path / "file/below")
    assert code == 2 and "file" in one_line(error)
    code, _, error = run(capsys, "pack", "--model", tiny_model_dir, "--out", tmp_path)
    assert code == 2 and f"{tmp_path}" in one_line(error)


def leftovers(folder):
    """Names of half-written files, and of empty folders."""
    files = [path.name for path in folder.rglob(".*") if path.is_file()]
    return files + [str(path) for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(capsys, dump, tiny_model_dir, tiny_aligner_dir, tmp_path):
    text, out = dump / "text", tmp_path / "out"
    (tmp_path / "many").write_text("".join(f"u{i:02d} {line}\n" for i, line in enumerate(tiny.SENTENCES)), "utf-8")
    model = ("--model", tiny_model_dir, "--out")
    score = ("--ref", text, "--hyp", text, "--utt2spk", dump / "utt2spk", "--out")

    def command(*argv):
        return lambda capsys: run(capsys, *argv)

    commands = {
        "decode": lambda capsys: decode_set(capsys, dump, tiny_model_dir, out / "decode"),
        "align": command("align", "--dump", dump, "--model", tiny_aligner_dir, "--out", out / "align"),
        "pack": command("pack", *model, out / "pack" / "model.zip"),
        "score": command("score", *score, out / "score"),
        "latency": command("latency", "--dump", dump, *model, out / "latency"),
        "format": command("data", "format", "--data", dump, "--dump", out / "format", "--nj", "1"),
        "format nj": command("data", "format", "--data", dump, "--dump", out / "format nj", "--nj", "2"),
        "subset": command("data", "subset", "--data", dump, "--out", out / "subset", "--first", "2"),
        "longform": command("data", "longform", "--dump", dump, "--out", out / "longform", "--factor", "2"),
        "tokens": command("tokens", "--text", tmp_path / "many", "--out", out / "tokens", "--vocab-size", "40"),
    }
    for name, call in commands.items():
        with longest_file(0):
            code, _, error = call(capsys)
        assert code == 2 and f"{out / name}/" in one_line(error) and "File too large: raise the limit" in error, name
        assert leftovers(out) == []
        code, _, error = call(capsys)
        assert code == 0, (name, error)
        assert leftovers(out) == [], name


def on_small_disk(folder, size, script):
    """Run a shell script where ``folder`` is a disk of ``size`` bytes, in a mount namespace of its own."""
    script = f'mount -t tmpfs -o size={size} none "$0" && cd "$0" && {script}'
    done = subprocess.run(["unshare", "-m", "bash", "-c", script, folder], capture_output=True, text=True, timeout=240)
    if "unshare: " in done.stderr or "mount: " in done.stderr:
        pytest.skip(f"only root makes small disks: {done.stderr.splitlines()[0]}")
    return done


@pytest.mark.skipif(not shutil.which("unshare"), reason="no mount namespaces here")
def test_a_model_larger_than_the_disk_it_is_unpacked_on(tiny_model_dir, files, tmp_path):
    from espnet_speechllm_xl.trained_model import pack

    packed, folder = tmp_path / "model.zip", tmp_path / "disk"
    folder.mkdir()
    pack(tiny_model_dir, packed)
    command = f"{sys.executable} -m espnet_speechllm_xl transcribe {files / 'good.wav'} --model {packed}"
    script = f'TMPDIR=$PWD {command}; echo "exit $?; left behind: $(ls -A)"'
    done = on_small_disk(folder, packed.stat().st_size // 2, script)
    assert done.stdout == "exit 2; left behind: \n"
    assert one_line(done.stderr).startswith(f"speechllm-xl: error: {packed} cannot be unpacked into {folder} (TMPDIR)")
    assert "No space left on device: free some there, or name another place" in done.stderr


@pytest.mark.skipif(not shutil.which("unshare"), reason="no mount namespaces here")
def test_a_read_only_place_is_one_line(dump, tmp_path):
    (tmp_path / "disk").mkdir()
    command = f"{sys.executable} -m espnet_speechllm_xl data"
    script = f"mount -o remount,ro . && {command} subset --first 1 --data {dump} --out $PWD/out; echo exit $?"
    done = on_small_disk(tmp_path / "disk", 100000, script)
    assert done.stdout == "exit 2\n"
    assert one_line(done.stderr).startswith(
        f"speechllm-xl: error: {tmp_path}/disk/out cannot be written: Read-only file system: name"
    )


def test_an_interrupted_alignment_goes_on(capsys, monkeypatch, dump, tiny_aligner_dir, tmp_path):
    base = ("--dump", dump, "--model", tiny_aligner_dir, "--batch-size", "3", "--out")
    make_worker, first, second = align.make_worker, [], []
    assert run(capsys, "align", *base, tmp_path / "whole")[0] == 0
    monkeypatch.setattr(align, "make_worker", counting(make_worker, first, stop=1))
    assert run(capsys, "align", *base, tmp_path / "out")[0] == 130
    monkeypatch.setattr(align, "make_worker", counting(make_worker, second))
    assert run(capsys, "align", *base, tmp_path / "out")[0] == 0
    assert len(first) == 2 and len(second) == 2
    for name in ("char_ends", "words.ctm", "failed", "report.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


FOREIGN = "entries of the CTM that the transcript lacks"


def test_align_by_word_times(capsys, dump, tmp_path):
    lines = []
    for utterance, text in TEXTS.items():
        for index, word in enumerate(text.split()):
            word = f"x{word}" if utterance == "a-2" else word
            lines.append(f"{utterance} 1 {0.04 * index:.2f} 0.03 {word}\n")
    lines = [line for line in lines if not line.startswith("b-4")]
    (tmp_path / "ctm").write_text("".join(lines), "utf-8")
    code, out, _ = run(capsys, "align", "--dump", dump, "--ctm", tmp_path / "ctm", "--out", tmp_path / "out")
    assert code == 0 and "5 of 7 utterances aligned" in out
    failed = read_table(tmp_path / "out" / "failed")
    assert list(failed) == ["a-2", "b-4"] and failed["b-4"] == "not in the CTM"
    check_aligned(tmp_path / "out", dump, failed)
    # "stop" ends at 0.03 s: in frame 0, which is 0 .. 0.04 s.  "it's late": 0.03 and 0.07 s.
    ends = read_table(tmp_path / "out" / "char_ends")
    assert ends["a-3"] == "0 0 0 0" and ends["b-3"] == "0 0 0 0 1 1 1 1 1"


def test_align_by_word_times_with_silences(capsys, dump, tmp_path):
    text = {utterance: TEXTS[utterance] for utterance in sorted(TEXTS)}
    first, other, last = list(text)[:3]
    lines = []
    for utterance, words in text.items():
        words = words.split()
        words = ["<eps>", *words, "SIL"] if utterance == first else words
        words = ["<UNK>", *words[1:]] if utterance == other else words
        words = [words[0], "<pau>", *words[1:]] if utterance == last else words
        lines += [f"{utterance} 1 {0.04 * index:.2f} 0.03 {word}\n" for index, word in enumerate(words)]
    (tmp_path / "ctm").write_text("".join(lines), "utf-8")
    base = ("align", "--dump", dump, "--ctm", tmp_path / "ctm", "--out", tmp_path / "out")
    code, out, _ = run(capsys, *base)
    assert code == 0 and f"6 of 7 utterances aligned, 1 left out: {FOREIGN}" in out
    assert "passed over as silence: <eps> 1, SIL 1\n" in out and "words of the transcript: <UNK> 1\n" in out
    assert f"{FOREIGN}: <pau> (" in read_table(tmp_path / "out" / "failed")[last]
    words = read_ctm(tmp_path / "out" / "words.ctm")
    assert [word.text for word in words[other]] == text[other].split()
    assert words[first][0].start == 0.04  # after the silence
    code, out, _ = run(capsys, *base, "--silences", "<EPS>,sil,<pau>")
    assert code == 0 and "7 of 7 utterances aligned\n" in out and "<eps> 1, <pau> 1, SIL 1\n" in out


def test_align_by_a_damaged_ctm_is_one_line(capsys, dump, tmp_path):
    (tmp_path / "ctm").write_text("a-1 1 0.0 turn\n")
    base = ("--dump", dump, "--out", tmp_path / "out", "--ctm")
    code, _, error = run(capsys, "align", *base, tmp_path / "ctm")
    assert code == 2 and f"{tmp_path / 'ctm'}:1: 4 fields where a CTM line has 5 or 6" in one_line(error)
    code, _, error = run(capsys, "align", *base, tmp_path / "absent")
    assert code == 2 and one_line(error).startswith(f"speechllm-xl: error: {tmp_path / 'absent'} does not exist: give")


def test_score_after_decoding(capsys, dump, decoded):
    root = dump.parents[2]
    results = root / "RESULTS.md"
    base = ("--exp", root / "exp", "--dump", root / "dump", "--results", results, "--command", "./run.sh")
    code, out, _ = run(capsys, "score", *base)
    assert code == 0 and "sets found: 1, scored: 1, unfinished: 0, failed: 0" in out
    words = sum(len(text.split()) for text in TEXTS.values())
    assert re.search(rf"\|\s*decode_greedy/test\s*\|\s*7\s*\|\s*{words}\s*\|", results.read_text("utf-8"))
    trn = (decoded / "score_wer" / "ref.trn").read_text("utf-8").splitlines()
    assert len(trn) == len(TEXTS) and "turn the light on\t(a-a-1)" in trn
    code, _, error = run(capsys, "score", *base[:2], "--dump", root / "nothing", "--results", results)
    assert code == 2 and "no such directory" in one_line(error)


def test_pack_and_transcribe(capsys, tiny_model_dir, files, tmp_path, expected):
    code, out, _ = run(capsys, "pack", "--model", tiny_model_dir, "--out", tmp_path / "model.zip")
    assert code == 0 and f"transcribe FILE --model {tmp_path / 'model.zip'}" in out
    assert transcribe(capsys, tmp_path / "model.zip", files, ["good.wav"])[1] == expected.text + "\n"


# The whole, in a process of its own

MEASURE = """
import resource, sys
from espnet_speechllm_xl.bin.cli import main
short, long, *options = sys.argv[1:]
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
codes = [main(["transcribe", short, *options])]
before = used()
codes.append(main(["transcribe", long, *options]))
print(*codes, used() - before, file=sys.stderr)
"""


def test_ten_minutes_in_bounded_memory(tiny_model_dir, files, tmp_path):
    """10 minutes of float32 are 38 MB; what the tiny model needs on top does not grow with its layers or chunks."""
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 16000, 1, subtype="FLOAT") as audio:
        for minute in range(10):
            audio.write(tiny.speech(minute, 60 * 16000) * (minute != 4))  # one minute is digital silence
    paths = [str(files / "good.wav"), str(tmp_path / "long.wav")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths, "--model", str(tiny_model_dir), "--search", "greedy"],
        capture_output=True,
        text=True,
    )
    *codes, megabytes = map(int, done.stderr.splitlines()[-1].split())
    assert len(done.stdout.splitlines()) == 2  # a transcript each and no other word
    assert codes == [0, 0] and len(done.stdout.splitlines()[-1].split()) > 500
    assert megabytes < 400, megabytes


# compare


@pytest.fixture
def two_systems(tmp_path):
    """A set of 20 utterances of 2 words and of two speakers, and two decodings that miss 10 and 4 words of them."""
    dump, names = tmp_path / "dump/raw/test", [f"u{index:02d}" for index in range(20)]
    dump.mkdir(parents=True)
    (dump / "text").write_text("".join(f"{name} ONE TWO\n" for name in names), encoding="utf-8")
    (dump / "utt2spk").write_text("".join(f"{name} s{name[-1]}\n" for name in names), encoding="utf-8")
    for system, wrong in (("a", 10), ("b", 4)):
        (tmp_path / system).mkdir()
        lines = (f"{name} ONE{'' if index < wrong else ' TWO'}\n" for index, name in enumerate(names))
        (tmp_path / system / "text").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def compare(place, *argv):
    return cli.main(["compare", "--dump", str(place / "dump/raw/test"), *map(str, argv)])


def test_compare_has_rates_and_paired_differences(capsys, two_systems):
    a, b = two_systems / "a", two_systems / "b/text"  # a directory, a file
    assert compare(two_systems, a, b, a) == 0
    head, _, *rows, last = capsys.readouterr().out.splitlines()
    assert head == "|decoded|WER (%)|Sub|Del|Ins|minus the first|"
    cells = [row.strip("|").split("|") for row in rows]
    assert [row[0] for row in cells] == [str(a), str(b), str(a)]
    assert cells[0][1].startswith("25.0 [") and cells[1][1].startswith("10.0 [") and cells[0][1] == cells[2][1]
    low, high = map(float, re.fullmatch(r"-15\.0 \[(.*), (.*)\]", cells[1][5]).groups())
    # 6 of 20 utterances have an error less: the share of draws lies within 0.3 +- 0.2
    assert -25.0 <= low < -20.0 and -10.0 < high <= -5.0
    assert [row[5] for row in cells[::2]] == ["-", "+0.0 [+0.0, +0.0]"]
    assert [row[2:5] for row in cells] == [["0.0", "25.0", "0.0"], ["0.0", "10.0", "0.0"], ["0.0", "25.0", "0.0"]]
    assert last == "95 % intervals; blocks: 40 words in 20 utterances"
    assert compare(two_systems, a, b, "--unit", "characters") == 0
    found = capsys.readouterr().out
    assert "CER" in found and "|28.6 [" in found and "|11.4 [" in found and "blocks: 140 characters in 20" in found


def test_compare_counts_missing_hypotheses_and_names_what_does_not_fit(capsys, two_systems):
    text = two_systems / "b/text"
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    text.write_text("".join(lines[:18]), encoding="utf-8")
    assert compare(two_systems, text) == 0
    printed = capsys.readouterr()
    assert "2 utterances without hypothesis count as deletions: u18, u19" in printed.err and "|20.0 [" in printed.out
    text.write_text("".join([*lines, "v ONE\n"]), encoding="utf-8")
    assert compare(two_systems, text) == 2
    assert re.search(
        r"b/text: hypotheses: v not in the references .* decode and score the same", capsys.readouterr().err
    )
    (two_systems / "dump/raw/test/text").write_text("u00\n", encoding="utf-8")
    text.write_text("u00 A\n", encoding="utf-8")
    assert compare(two_systems, text) == 2 and "the references hold no words" in capsys.readouterr().err
    assert compare(two_systems, two_systems / "c") == 2
    assert "c does not exist" in capsys.readouterr().err.replace("/c/text", "/c")


def test_what_was_mistaken_for_a_set_or_a_model_is_named(capsys, dump, tiny_model_dir, tiny_aligner_dir, tmp_path):
    kaldi_dir = tmp_path / "data"
    kaldi_dir.mkdir()
    (kaldi_dir / "wav.scp").write_text("a a.wav\n")
    out = ("--out", tmp_path / "out")
    for command, model in (("decode", tiny_model_dir), ("align", tiny_aligner_dir)):
        code, _, error = run(capsys, command, "--dump", kaldi_dir, "--model", model, *out)
        assert code == 2 and "data is no formatted set, it has no utt2num_samples: give one (dump/raw/SET)" in error
    packed = tmp_path / "model.zip"
    assert run(capsys, "pack", "--model", tiny_aligner_dir, "--out", packed)[0] == 0
    for argv in (["pack", "--model", packed, *out], ["align", "--dump", dump, "--model", packed, *out]):
        code, _, error = run(capsys, *argv)
        assert code == 2 and "model.zip is a file: what is wanted here is the directory of a trained model" in error
    code, _, error = run(capsys, "latency", "--dump", dump, "--model", tiny_aligner_dir, *out)
    assert code == 2 and "a model of task 'ctc' decodes whole recordings only" in error
