"""Emission delays: planted streams with known times, the arithmetic of the report, and the command itself."""

import json

import numpy as np
import pytest
import soundfile
import tiny

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
from espnet_speechllm_xl.corpus.dump import format_dir
from espnet_speechllm_xl.corpus.kaldi import write_table
from espnet_speechllm_xl.evaluation import latency_report, metrics, stream_latency
from espnet_speechllm_xl.evaluation.stream_latency import Emission, Flushed, Run
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.sets import stream as command

PNG = b"\x89PNG\r\n\x1a\n"


def test_spread():
    values = [float(value) for value in range(101)]
    assert metrics.spread(values[::-1]) == metrics.Spread(101, 50.0, 50.0, 90.0, 95.0, 99.0)
    assert metrics.spread([1.0, 2.0]) == metrics.Spread(2, 1.5, 1.5, *map(pytest.approx, (1.9, 1.95, 1.99)))
    assert metrics.spread([]) == metrics.Spread(0)


def run_of(text, ends, audio, late=0.5):
    """A recording of 4 s whose words were emitted at ``audio``, and ``late`` seconds later on the wall clock."""
    words = zip(text.split(), ends, audio, strict=True)
    words = tuple(Emission(word, end - 0.2, end, emitted, emitted + late) for word, end, emitted in words)
    return Run(words, audio_seconds=4.0, seconds=1.0, chunk_seconds=(0.2, 0.3), capped=0)


RUNS = {
    "u1": run_of("the black cat sat", [0.5, 0.8, 1.1, 1.5], [1.0, 1.0, 2.0, 2.0]),  # black: inserted
    "u2": run_of("go hose", [0.6, 1.2], [1.0, 3.0]),  # hose: substituted
    "u3": run_of("one two", [0.5, 1.0], [2.0, 2.0]),
    "u4": run_of("one two", [0.5, 1.0], [2.0, 2.0]),
}
TEXTS = {"u1": "the cat sat down", "u2": "go home", "u3": "one two", "u4": "one two", "u5": "not there"}
TIMES = {
    "u1": [Word(text, 0.0, end) for text, end in (("The", 0.4), ("cat", 1.2), ("sat", 1.5), ("down", 2.0))],
    "u2": [Word("go", 0.0, 0.7), Word("home", 0.7, 1.2)],
    "u4": [Word("one", 0.0, 0.7), Word("three", 0.7, 1.2)],
    "u6": [Word("more", 0.0, 0.1)],
}


def test_only_correct_words_with_a_reference_count():
    found = stream_latency.compare(RUNS, TEXTS, TIMES)
    assert [(match.first, match.last) for match in found.matches] == [
        (True, False), (False, False), (False, False), (True, False)
    ]  # fmt: skip
    assert [match.audio for match in found.matches] == pytest.approx([0.6, 0.8, 0.5, 0.3])
    assert [match.wall for match in found.matches] == pytest.approx([1.1, 1.3, 1.0, 0.8])
    assert [match.end for match in found.matches] == pytest.approx([0.1, -0.1, 0.0, -0.1])
    assert found.left_out == {
        "deleted": 1,
        "substituted": 1,
        "correct, but without reference time": 2,
        "correct, but other words in the reference times": 2,
        "audio not read": 2,
    }
    assert len(found.matches) + sum(found.left_out.values()) == sum(len(text.split()) for text in TEXTS.values())


def test_texts_without_spaces_are_compared_letter_by_letter():
    """Whatever the tokens of the stream and the words of the reference times are."""
    run = Run((Emission("今天", 0.0, 0.5, 1.0, 1.0), Emission("好", 0.5, 0.8, 1.0, 1.0)), 2.0, 0.1, (), 0)
    times = {"u": [Word("今", 0.0, 0.3), Word("天好", 0.3, 0.9)]}
    found = stream_latency.compare({"u": run}, {"u": "今天 好"}, times)
    assert (found.scored.total.words, found.scored.total.correct) == (3, 3) and not found.left_out
    assert [match.audio for match in found.matches] == pytest.approx([0.7, 0.1, 0.1])


def test_without_reference_times_the_streams_own():
    found = stream_latency.compare({"u3": RUNS["u3"]}, {"u3": "one two"})
    assert [match.audio for match in found.matches] == pytest.approx([1.5, 1.0])
    assert [match.end for match in found.matches] == [None, None]
    assert [(match.first, match.last) for match in found.matches] == [(True, False), (False, True)]
    assert stream_latency.summary({"u3": RUNS["u3"]}, found)["word_ends_ms"]["all"]["words"] == 0


def test_summary():
    found = stream_latency.summary(RUNS, stream_latency.compare(RUNS, TEXTS, TIMES))
    # 10 + 2 words, of which 1 deleted, 1 substituted, 2 deleted with u5; 1 inserted.
    assert found["wer"] == pytest.approx(100 * 5 / 12)
    words = found["words"]
    assert (words["reference"], words["measured"], words["inserted"]) == (12, 4, 1)
    assert words["measured"] + sum(words["left_out"].values()) == words["reference"]
    assert found["delay_ms"]["all"]["mean"] == pytest.approx(550)
    assert [found["delay_ms"][group]["count"] for group in ("all", "first", "last", "not_last")] == [4, 2, 0, 4]
    assert found["wall_delay_ms"]["first"]["mean"] == pytest.approx(950)
    assert found["word_ends_ms"]["all"]["delay"] == pytest.approx(-25)
    assert found["word_ends_ms"]["all"]["delta"] == pytest.approx(75)
    assert found["compute_ms_per_chunk"]["count"] == 8
    assert found["compute_ms_per_chunk"]["p50"] == pytest.approx(250)
    assert found["rtf"] == pytest.approx(0.25)
    seconds = {"chunk_seconds": 1.28, "context_seconds": None, "algorithmic_seconds": 1.52}
    figures = {**seconds, **found, **stream_latency.flush_summary({"u1": Flushed(RUNS["u1"], 0.02)}, RUNS, TEXTS)}
    head, _, row = (line.strip("|").split("|") for line in latency_report.latency_table([figures]))
    cells = dict(zip(head, row, strict=True))
    assert (cells["RTF"], cells["RTFx"], cells["context (s)"]) == ("0.250", "4.0", "inf")
    assert cells["TTFS P50 (ms)"] == "20.0"


def test_the_end_of_speech():
    late = {"u1": [*TIMES["u1"], Word("more", 3.0, 4.3)]}  # ends behind the recording of 4 s
    found = stream_latency.speech_ends({**RUNS, "u7": Run((), 4.0, 0.1, (), 0)}, {**TIMES, **late, "u3": []})
    assert found == {"u1": 4.0, "u2": 1.2, "u4": 1.2}  # of the reference, whatever its words are
    assert stream_latency.speech_ends(RUNS) == {"u1": 1.5, "u2": 1.2, "u3": 1.0, "u4": 1.0}


def test_flushed_utterances():
    flushed = {name: Flushed(RUNS[name], ttfs) for name, ttfs in (("u1", 0.02), ("u2", 0.04), ("u4", 0.12))}
    found = stream_latency.flush_summary(flushed, RUNS, TEXTS)
    assert found["ttfs_ms"] == pytest.approx({"count": 3, "mean": 60, "p50": 40, "p90": 104, "p95": 112, "p99": 118.4})
    # 4 + 2 + 2 words: one inserted, one deleted, one substituted.
    assert found["flushed"] == {"utterances": 3, "without_end_of_speech": 1, "wer": pytest.approx(100 * 3 / 8)}
    nothing = stream_latency.flush_summary({}, RUNS, TEXTS)
    assert nothing["flushed"] == {"utterances": 0, "without_end_of_speech": 4, "wer": None}
    assert nothing["ttfs_ms"]["p99"] is None


def test_another_chunk_size_sees_as_far_back():
    trained = ChunkingConfig(chunk=32, context=4)
    assert [trained.resized(chunk).context for chunk in (8, 32, 64, 100, None)] == [16, 4, 2, 2, None]
    assert ChunkingConfig(chunk=32, context=None).resized(8) == ChunkingConfig(chunk=8, context=None)
    assert timeline.context_seconds(trained.resized(100)) == 8.0
    assert timeline.context_seconds(trained.resized(None)) == np.inf


# The command, with a model of random weights


@pytest.fixture(scope="module")
def truth(tiny_model_dir):
    """What a greedy stream of chunks of 0.64 s says of three recordings: ``{utterance: (samples, words)}``."""
    speech2text, found = Speech2Text.from_pretrained(tiny_model_dir), {}
    for utterance, seed, count in (("a-1", 4, 40000), ("a-2", 3, 30001), ("b-1", 6, 52000)):
        samples = np.round(tiny.speech(seed, count) * 32767).astype(np.int16)
        stream = speech2text.stream("greedy")
        words = [*stream.push(samples / np.float32(32768)).words, *stream.close().words]
        assert len(words) > 2
        found[utterance] = (samples, words)
    return found


@pytest.fixture
def dump(truth, tmp_path):
    """Their dump; the reference says that every word ended 0.1 s earlier than the stream says, and knows not b-1."""
    data = tmp_path / "data/test"
    data.mkdir(parents=True)
    for utterance, (samples, _) in truth.items():
        soundfile.write(data / f"{utterance}.wav", samples, 16000)
    write_table(data / "wav.scp", {utterance: data / f"{utterance}.wav" for utterance in truth})
    write_table(
        data / "text", {utterance: " ".join(word.text for word in words) for utterance, (_, words) in truth.items()}
    )
    write_table(data / "utt2spk", {utterance: utterance[0] for utterance in truth})
    earlier = {
        utterance: [Word(word.text, 0.0, max(0.0, word.end - 0.1)) for word in words]
        for utterance, (_, words) in truth.items()
    }
    write_ctm(data / "ref.ctm", {utterance: words for utterance, words in earlier.items() if utterance != "b-1"})
    format_dir(data, tmp_path / "dump/raw/test")
    return tmp_path / "dump/raw/test"


def run_command(capsys, model, dump, *options):
    """(exit code, standard output, standard error, latency.json or None)."""
    capsys.readouterr()
    out = dump.parents[2] / "out"
    argv = ["latency", "--model", model, "--dump", dump, "--out", out, "--search", "greedy", *options]
    try:
        code = cli.main([str(word) for word in argv])
    except SystemExit as stopped:
        code = stopped.code
    said, figures = capsys.readouterr(), out / "latency.json"
    return code, said.out, said.err, json.loads(figures.read_text("utf-8")) if figures.exists() else None


def test_the_command(capsys, tiny_model_dir, dump, truth):
    code, said, errors, content = run_command(capsys, tiny_model_dir, dump, "--chunk-sizes", "0.64,0.32,inf")
    assert (code, errors) == (0, "")
    sizes = {size["chunk_seconds"]: size for size in content["chunk_sizes"]}
    assert list(sizes) == [0.64, 0.32, None]  # None: infinite
    assert [size["algorithmic_seconds"] for size in sizes.values()] == [0.72, 0.4, None]
    assert [size["context_seconds"] for size in sizes.values()] == [1.28, 1.28, None]
    for size in sizes.values():
        words = size["words"]
        assert words["measured"] + sum(words["left_out"].values()) == words["reference"]
        assert size["rtf"] > 0 and size["compute_ms_per_chunk"]["p50"] > 0
        assert size["flushed"]["utterances"] == 2 and size["flushed"]["without_end_of_speech"] == 1  # b-1
        assert size["ttfs_ms"]["count"] == 2 and 0 < size["ttfs_ms"]["p50"] <= size["ttfs_ms"]["p95"]
    trained = sizes[0.64]
    timed = sum(len(words) for utterance, (_, words) in truth.items() if utterance != "b-1")
    assert trained["wer"] == 0 and trained["words"]["measured"] == timed
    assert trained["words"]["left_out"] == {"correct, but without reference time": len(truth["b-1"][1])}
    assert trained["word_ends_ms"]["all"]["delay"] == pytest.approx(100, abs=1)
    assert trained["compute_ms_per_chunk"]["count"] == 4 + 3 + 5  # 62, 46 and 80 frames
    assert all(
        trained["wall_delay_ms"][group]["mean"] > trained["delay_ms"][group]["mean"] for group in ("all", "last")
    )
    out = dump.parents[2] / "out"
    assert (out / "latency.png").read_bytes().startswith(PNG)
    text = (out / "LATENCY.md").read_text("utf-8")
    begin = text.splitlines()[:12]
    assert begin[2].startswith("|chunk (s)|") and any("(latency.png)" in line for line in begin)  # the figures first
    assert "command: `speechllm-xl latency --model" in text and "git hash" in text and "(latency.png)" in text
    table = [line for line in said.splitlines() if line.startswith("|")]
    assert len(table) == 5 and all(line in text for line in table)
    assert said.splitlines()[-1] == f"written: {out / 'LATENCY.md'}"


def test_blocks_tell_when_words_come(capsys, tiny_model_dir, dump, truth):
    """Emission times are ends of blocks, and those of a stream that was pushed by hand."""
    _, _, _, content = run_command(capsys, tiny_model_dir, dump, "--chunk-sizes", "0.64", "--block", "0.1")
    stored = json.loads((dump.parents[2] / "out/streamed_0.64.json").read_text("utf-8"))
    speech2text = Speech2Text.from_pretrained(tiny_model_dir)
    for utterance, (samples, words) in truth.items():
        stream, expected = speech2text.stream("greedy"), []
        for start in range(0, len(samples), 1600):
            block = samples[start : start + 1600] / np.float32(32768)
            expected += [min(start + 1600, len(samples)) / 16000] * len(stream.push(block).words)
        expected += [len(samples) / 16000] * len(stream.close().words)
        emitted = stored["runs"][utterance]["words"]
        assert [word["text"] for word in emitted] == [word.text for word in words]
        assert [word["audio"] for word in emitted] == pytest.approx(expected)
    assert content["block_seconds"] == 0.1


@pytest.mark.parametrize("with_reference", [True, False])
def test_the_final_text_is_of_a_stream_that_is_flushed_at_the_end_of_speech(
    capsys, tiny_model_dir, dump, truth, with_reference
):
    if not with_reference:
        (dump / "ref.ctm").unlink()
    _, _, _, content = run_command(capsys, tiny_model_dir, dump, "--chunk-sizes", "0.64", "--block", "0.1")
    stored = json.loads((dump.parents[2] / "out/flushed_0.64.json").read_text("utf-8"))["runs"]
    assert set(stored) == ({"a-1", "a-2"} if with_reference else set(truth))
    speech2text, errors = Speech2Text.from_pretrained(tiny_model_dir), 0
    for utterance, item in stored.items():
        samples, words = truth[utterance]
        end = round((words[-1].end - 0.1 * with_reference) * 16000)
        stream = speech2text.stream("greedy")
        expected = [*stream.push(samples[:end] / np.float32(32768)).words, *stream.flush().words]
        assert [word["text"] for word in item["run"]["words"]] == [word.text for word in expected]
        assert item["run"]["audio_seconds"] == pytest.approx(end / 16000, abs=1e-3) and item["ttfs"] > 0
        errors += [word.text for word in expected] != [word.text for word in words]
    (size,) = content["chunk_sizes"]
    assert bool(size["flushed"]["wer"]) == bool(errors)
    text = (dump.parents[2] / "out/LATENCY.md").read_text("utf-8")
    row = f"|0.64|{len(stored)}|{3 - len(stored)}|{size['ttfs_ms']['mean']:.1f}|{size['flushed']['wer']:.1f}|"
    assert "## Flushed at the end of speech" in text and row in text.splitlines()


def test_what_was_streamed_is_not_streamed_again(capsys, monkeypatch, tiny_model_dir, dump, tmp_path):
    options = ("--chunk-sizes", "0.64")
    *_, first = run_command(capsys, tiny_model_dir, dump, *options)
    made = []
    make_worker = command.make_worker
    monkeypatch.setattr(command, "make_worker", lambda settings: made.append(settings) or make_worker(settings))
    code, said, _, again = run_command(capsys, tiny_model_dir, dump, *options)
    assert (code, made, again) == (0, [], first) and "3 utterances were streamed before" in said
    # Another reference needs none but the flushes at its ends of speech, another tail needs all.
    write_ctm(tmp_path / "other.ctm", {"b-1": [Word("nothing", 0.0, 0.1)]})
    *_, other = run_command(capsys, tiny_model_dir, dump, *options, "--reference", tmp_path / "other.ctm")
    assert [settings.get("ends") for settings in made] == [{"b-1": 0.1}]
    assert other["chunk_sizes"][0]["words"]["measured"] == 0
    assert other["chunk_sizes"][0]["flushed"]["without_end_of_speech"] == 2
    made.clear()
    assert not (tmp_path / "out/latency.png").exists()  # of the reference before
    endpoints = ("--endpoint-silence", "0.64")
    *_, longer = run_command(capsys, tiny_model_dir, dump, *options, *endpoints, "--tail", "1")
    assert len(made) == 2
    assert all((each["tail"], each["stream"]["endpoint_silence"]) == (16000, 0.64) for each in made)
    assert (first["endpoint_silence"], longer["endpoint_silence"]) == ("inf", "0.64")
    assert {"method", "beam_size", "ctc_weight", "max_tokens_per_chunk"} <= set(made[0]["search"])
    difference = longer["chunk_sizes"][0]["audio_seconds"] - first["chunk_sizes"][0]["audio_seconds"]
    assert difference == pytest.approx(3)


def test_unusable_audio_is_named_and_counted(capsys, tiny_model_dir, dump):
    (dump / "ref.ctm").unlink()
    (dump / "wav.scp").write_text((dump / "wav.scp").read_text().replace("a-2.flac", "gone.flac"))
    code, _, errors, content = run_command(capsys, tiny_model_dir, dump)  # at the model's own chunk size
    assert code == 1 and errors.startswith("speechllm-xl latency: failed: a-2: ") and errors.count("\n") == 1
    (size,) = content["chunk_sizes"]
    assert list(size["words"]["left_out"]) == ["audio not read"] and content["failed"] == 1
    assert size["words"]["measured"] + size["words"]["left_out"]["audio not read"] == size["words"]["reference"]
    assert content["reference"] is None and size["word_ends_ms"]["all"]["words"] == 0
    assert "There is no reference" in (dump.parents[2] / "out/LATENCY.md").read_text("utf-8")


@pytest.mark.parametrize(
    "options, says",
    [
        (["--reference", "absent.ctm"], "--reference absent.ctm: no such file"),
        (["--chunk-sizes", "0.64,0.65"], "chunk size 0.65 s is not a multiple of 0.04 s"),
        (["--chunk-sizes", "0.48"], "chunk 12 and encoder segment 8 do not divide one another"),
        (["--chunk-sizes", "0.64", "--context", "1"], "context 1.0 s is not a multiple of the chunk size 0.64 s"),
        (["--chunk-sizes", "some"], "argument --chunk-sizes: invalid list of seconds value: 'some'"),
        (["--search", "alsd"], "search 'alsd' needs all audio before the first word"),
        (["--block", "0"], "argument --block: 0 is no duration above 0"),
        (["--tail", "-1"], "argument --tail: -1 is no duration above 0"),
        (["--endpoint-silence", "0"], "stream endpoint_silence must be positive"),
    ],
)
def test_wrong_use_is_one_line_and_starts_nothing(capsys, tiny_model_dir, dump, options, says):
    code, said, errors, content = run_command(capsys, tiny_model_dir, dump, *options)
    assert (code, said, content) == (2, "", None) and says in errors.splitlines()[-1]
