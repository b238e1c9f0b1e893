"""The embedded corpus: deterministic, its word times right, its sets disjoint."""

import collections
import importlib.util
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "egs2" / "mini_espeak" / "speechllm_xl1" / "local"
KALDI = ("wav.scp", "text", "utt2spk", "spk2utt", "ref.ctm")


def load(name):
    spec = importlib.util.spec_from_file_location(name, LOCAL / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sentences = load("sentences")
names = load("names")
synthesise = load("synthesise")
written = load("written")
data = load("data")


def table(path):
    return [line.split() for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=[1, 2], ids=["nj1", "nj2"])
def corpus(request, tmp_path_factory):
    """A toy corpus: the real code with small numbers of seconds and words."""
    out = tmp_path_factory.mktemp("corpus") / "data"
    sizes = {"small": {"train": (40, 0), "dev": (20, 0), "test": (0, 60), "repeats": (0, 20)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SIZES", sizes)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(LOCAL)  # where the processes find the script's module
        assert data.main(["--out", str(out), "--nj", str(request.param)]) == 0
    return out


_FIRST = {}


def test_result_does_not_depend_on_jobs(corpus):
    found = {}
    for name in data.SPLITS:
        for file in KALDI[1:]:
            found[name, file] = (corpus / name / file).read_text()
        for utterance, path in table(corpus / name / "wav.scp"):
            found[utterance] = soundfile.read(path, dtype="int16")[0].tobytes()
    first = _FIRST.setdefault("found", found)
    assert found == first
    assert len(found) > 20


def test_kaldi_files_are_sorted_and_agree(corpus):
    for name in data.SPLITS:
        folder = corpus / name
        ids = [row[0] for row in table(folder / "text")]
        assert ids == sorted(set(ids))
        assert [row[0] for row in table(folder / "wav.scp")] == ids
        speakers = dict(table(folder / "utt2spk"))
        assert list(speakers) == ids
        assert all(utterance.startswith(f"{speaker}-") for utterance, speaker in speakers.items())
        rows = table(folder / "spk2utt")
        assert [row[0] for row in rows] == sorted(set(speakers.values()))
        assert [utterance for row in rows for utterance in row[1:]] == ids
        c_sorted = subprocess.run(["sort", "-c", folder / "utt2spk"], env={**os.environ, "LC_ALL": "C"})
        assert c_sorted.returncode == 0


def test_audio_and_word_times(corpus):
    for name in data.SPLITS:
        times = collections.defaultdict(list)
        for utterance, channel, start, duration, word in table(corpus / name / "ref.ctm"):
            assert channel == "1"
            times[utterance].append((word, float(start), float(start) + float(duration)))
        texts = {row[0]: row[1:] for row in table(corpus / name / "text")}
        assert list(times) == list(texts)
        for utterance, path in table(corpus / name / "wav.scp"):
            info = soundfile.info(path)
            assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "FLAC", "PCM_16")
            assert synthesise.MIN_SECONDS <= info.duration <= synthesise.MAX_SECONDS
            words = times[utterance]
            assert [word for word, _, _ in words] == texts[utterance]
            assert all(0 <= start < end <= info.duration for _, start, end in words)
            assert all(end <= start + 1e-6 for (_, _, end), (_, start, _) in zip(words, words[1:], strict=False))
            assert set(texts[utterance]) <= sentences.vocabulary()


def test_word_end_is_where_the_energy_ends():
    generator = sentences.Generator("train", 3)
    gaps = []
    for voice in synthesise.voices("test") + synthesise.voices("dev"):
        rate, spoken = synthesise.speak([generator.sentence()], voice, 160, voice.pitch)
        audio, words = spoken[0]
        hop = rate // 200
        energy = np.sqrt(np.mean(audio[: len(audio) // hop * hop].reshape(-1, hop).astype(float) ** 2, axis=1))
        last = (np.nonzero(energy > 0.02 * energy.max())[0][-1] + 1) * hop
        gaps.append((words[-1][2] - last) / rate)
    assert abs(np.median(gaps)) < 0.010
    assert np.max(np.abs(gaps)) < 0.060


def test_word_end_survives_resampling_and_pauses():
    voice = synthesise.voices("test")[0]
    texts = ["call anna at noon", "dial one two three four five six"]
    audio, words = synthesise.utterance(texts, voice, 150, 50, [1, 2, 3])
    assert [word for word, _, _ in words] == " ".join(texts).split()
    hop = 80
    energy = np.sqrt(np.mean(audio[: len(audio) // hop * hop].reshape(-1, hop).astype(float) ** 2, axis=1))
    loud = np.nonzero(energy > 0.15 * energy.max())[0] * hop / 16000
    pause_begin, pause_end = words[3][2], words[4][1]
    assert 0.25 <= pause_end - pause_begin < 0.95
    assert not np.any((loud > pause_begin + 0.03) & (loud < pause_end - 0.01))
    assert loud.max() < words[-1][2] + 0.03


def test_every_voice_is_shipped_and_inner_words_have_times():
    generator = sentences.Generator("dev", 11)
    for name in synthesise.VARIANTS:
        for voice in synthesise.voices(name):
            _, spoken = synthesise.speak([generator.sentence()], voice, 190, voice.pitch)
            ends = [end for _, _, end in spoken[0][1]]
            assert ends == sorted(set(ends)) and ends[-1] <= len(spoken[0][0])
    with pytest.raises(RuntimeError, match="no voice variant 'nobody'"):
        synthesise.speak(["call anna"], synthesise.Voice("us", "nobody"), 160, 50)


def test_joined_words_have_times_of_their_own():
    voice = synthesise.Voice("us", "")
    _, spoken = synthesise.speak(["turn on the lamp in the kitchen at ten"], voice, 160, 50)
    words = spoken[0][1]
    assert [word for word, _, _ in words] == "turn on the lamp in the kitchen at ten".split()
    for place in (2, 5):
        assert words[place - 1][1] < words[place - 1][2] == words[place][1] < words[place][2]


def test_planted_events():
    word, phoneme = 1, 7
    events = [
        (word, 0, 1, b""),
        (phoneme, 10, 1, b"g"),
        (phoneme, 20, 1, b"oU"),
        (phoneme, 45, 1, b"_:"),
        (word, 60, 4, b""),
        (phoneme, 65, 4, b"I"),
        (phoneme, 70, 4, b"n"),
        (phoneme, 80, 4, b"D"),
        (phoneme, 84, 4, b"@"),
        (5, 99, 9, b""),
    ]
    assert synthesise.word_times("go in the", events, 99) == [("go", 0, 45), ("in", 60, 80), ("the", 80, 99)]
    with pytest.raises(ValueError, match="no time for some word of 'go in it'"):
        synthesise.word_times("go in it", events, 99)
    with pytest.raises(ValueError, match="inside a word of 'goin it'"):
        synthesise.word_times("goin it", events, 99)


def test_speech_does_not_depend_on_what_was_said_before():
    voice, other = synthesise.Voice("us", "f2"), synthesise.Voice("scot", "m3")
    _, alone = synthesise.speak(["open the red door"], voice, 150, 50)
    synthesise.speak(["is it cold in paris"] * 3, other, 190, 60)
    time.sleep(1.1)  # espeak-ng by itself seeds its noise with the second
    _, after = synthesise.speak(["is it cold in paris", "open the red door"], voice, 150, 50)
    assert np.array_equal(alone[0][0], after[1][0])
    assert alone[0][1] == after[1][1]


@pytest.mark.parametrize("size", ["small", "large"])
def test_plan_of_the_full_corpus(size):
    plans = {name: data.plan_set(name, size, 0, "audio") for name in data.SPLITS}
    texts = {name: {text for plan in plans[name] for text in plan.sentences} for name in plans}
    speakers = {name: {plan.voice.speaker for plan in plans[name]} for name in plans}
    variants = {name: {plan.voice.variant for plan in plans[name]} for name in plans}
    assert not texts["test"] & texts["repeats"] and variants["repeats"] <= variants["test"]
    for one, other in (*itertools.combinations(sentences.SETS, 2), ("train", "repeats"), ("dev", "repeats")):
        for sets in (texts, speakers, variants):
            assert not sets[one] & sets[other]
    counts = {
        name: collections.Counter(word for plan in plans[name] for text in plan.sentences for word in text.split())
        for name in plans
    }
    assert min(counts["train"].values()) >= (8 if size == "small" else 30)
    assert set(counts["train"]) == sentences.vocabulary()
    assert 200 <= len(sentences.vocabulary()) <= 300
    assert sum(counts["test"].values()) >= (1000 if size == "small" else 10000)
    assert {plan.words_per_minute for plan in plans["train"]} <= set(range(140, 191))
    assert len({plan.path for name in plans for plan in plans[name]}) == sum(map(len, plans.values()))


def on_end(texts):
    """The share of words that are the same as the one before."""
    pairs = [pair for text in texts for pair in itertools.pairwise(text.split())]
    return sum(first == second for first, second in pairs) / len(pairs)


def test_repeats_are_a_set_of_their_own_and_a_share_of_training():
    plans = {name: data.plan_set(name, "small", 0, "audio") for name in data.SPLITS}
    assert on_end(text for plan in plans["repeats"] for text in plan.sentences) > 0.3
    assert on_end(text for plan in plans["test"] for text in plan.sentences) < 0.01
    sentence_of = [text for plan in plans["train"] for text in plan.sentences]
    repeating = [text for text in sentence_of if on_end([text]) > 0.15]
    assert 0.05 < sum(map(len, repeating)) / sum(map(len, sentence_of)) < 0.15


def test_brackets_are_said_again():
    assert sentences.spell_out("dial [[zero]*2 seven]*2") == "dial zero zero seven zero zero seven"
    assert sentences.spell_out("[b]*2 [h]*3") == "b b h h h" and sentences.spell_out("seat b") == "seat b"


def test_sentences_are_plain_words_and_seeded():
    first, again, other = (sentences.Generator("train", seed) for seed in (0, 0, 1))
    made = [first.sentence() for _ in range(300)]
    assert made == [again.sentence() for _ in range(300)]
    assert made != [other.sentence() for _ in range(300)]
    assert all(text == " ".join(text.split()) and text.replace(" ", "").isalpha() and text.islower() for text in made)
    assert all(sentences.set_of(text) == "train" for text in made)
    with pytest.raises(ValueError, match="'eval' is not one of"):
        sentences.Generator("eval", 0)


def test_second_run_skips_and_repairs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "SIZES", {"small": {name: (0, 12) for name in data.SPLITS}})
    command = ["--out", str(tmp_path / "data"), "--nj", "1"]
    assert data.main(command) == 0
    first = capsys.readouterr().out
    assert data.main(command) == 0
    assert capsys.readouterr().out == first.replace(" speakers\n", " speakers (was complete)\n")
    path = Path(table(tmp_path / "data" / "test" / "wav.scp")[0][1])
    audio = path.read_bytes()
    path.unlink()
    assert data.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("(was complete)") for line in lines] == [True, True, False, True]
    assert path.read_bytes() == audio
    assert data.main([*command, "--seed", "2"]) == 0
    assert "was complete" not in capsys.readouterr().out


def test_wrong_options_and_what_is_in_the_way(tmp_path):
    def run(*options):
        command = [sys.executable, LOCAL / "data.py", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run("--size", "huge")
    assert done.returncode == 2 and "invalid choice: 'huge'" in done.stderr
    (tmp_path / "data").write_text("in the way")
    done = run()
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and said.startswith("mini_espeak data: data/local") and "what is in the way" in said


@pytest.mark.parametrize(
    "sentence, expected",
    [
        (
            "call doctor miller at seven twenty five on the third of may",
            "Call Dr. Miller at 7:25 on the 3rd of May.",
        ),
        ("the onions cost four thousand two hundred dollars", "The onions cost $4200."),
        ("the lemons cost nine hundred and eleven dollars", "The lemons cost $911."),
        ("what is twenty one plus thirty", "What is 21 plus 30?"),
        ("dial zero zero two ten", "Dial 0 0 2 10."),
        ("go left after forty miles and then right", "Go left after 40 miles, and then right."),
        ("the code is b two q seven", "The code is B 2 Q 7."),
        ("anna was born on monday the twenty second of march", "Anna was born on Monday the 22nd of March."),
        ("today is june the twelfth", "Today is June the 12th."),
        ("the station in london opens at half past nine", "The station in London opens at half past 9."),
        ("set the alarm to twelve fifteen on friday", "Set the alarm to 12:15 on Friday."),
        ("call anna", "Call Anna."),
    ],
)
def test_sentences_as_people_write_them(sentence, expected):
    found = written.written(sentence)
    assert " ".join(word for word, _ in found) == expected
    assert sum(taken for _, taken in found) == len(sentence.split()) and all(taken > 0 for _, taken in found)


def test_every_sentence_can_be_written():
    for name in sentences.SETS:
        for start in ("sentence", "repeats"):
            generator = sentences.Generator(name, 3, start)
            for _ in range(100):
                sentence = generator.sentence()
                found = written.written(sentence)
                assert sum(taken for _, taken in found) == len(sentence.split())
                assert not {"hundred", "thousand", "dollars", "doctor", "second"} & {word for word, _ in found}


def test_the_written_variant_is_the_same_speech(tmp_path, monkeypatch):
    sizes = {"small": {"train": (8, 0), "dev": (8, 0), "test": (0, 12), "repeats": (0, 8)}}
    monkeypatch.setattr(data, "SIZES", sizes)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--out", str(tmp_path), "--nj", "1"]
    found = []
    for more in ([], ["--written"], ["--written"], []):
        assert data.main([*options, *more]) == 0
        files = sorted((tmp_path / "local/audio").rglob("*.flac"))
        audio = [soundfile.read(file, dtype="int16")[0].tobytes() for file in files]
        tables = {file: table(tmp_path / "test" / file) for file in ("text", "ref.ctm")}
        spoken = tmp_path / "test/text_spoken"
        found.append((audio, tables, table(spoken) if spoken.exists() else None))
    (audio, plain, nothing), (_, marked, said), again, back = found
    assert nothing is None and back == found[0] and again == found[1] and found[1][0] == audio
    assert said == plain["text"] != marked["text"]
    assert [row[4] for row in marked["ref.ctm"]] == [word for row in marked["text"] for word in row[1:]]
    assert any(word[-1] in ".?" for row in marked["text"] for word in row[1:])

    def ends(rows):
        return {(row[0], round(float(row[2]) + float(row[3]), 3)) for row in rows}

    assert ends(marked["ref.ctm"]) <= ends(plain["ref.ctm"]), "a written word ends where its last spoken one ends"


def test_made_up_names_are_of_one_set_and_unlike_those_of_the_others():
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    of_set = names.of_sets()
    assert {name: len(set(own)) for name, own in of_set.items()} == names.MOST
    names.of_sets.cache_clear()
    assert names.of_sets() == of_set
    everything = [*of_set.items(), ("grammar", sorted(sentences.vocabulary()))]
    for (_, own), (_, others) in itertools.combinations(everything, 2):
        assert cdist(own, others, scorer=Levenshtein.distance).min() > 2
        sounds = [list(map(names.sound, words)) for words in (own, others)]
        assert cdist(*sounds, scorer=Levenshtein.distance).min() > 2
    letters = set("".join(of_set["train"]))
    assert set("".join([*of_set["dev"], *of_set["test"]])) <= letters, "a tokenizer of the training text can write all"


@pytest.mark.parametrize(
    "word, other, near",
    [
        ("vanobil", "vanobil", True),
        ("vanobil", "vanebir", True),  # two changed
        ("vanobil", "vanbl", True),  # two left out
        ("vanobil", "rvanobilt", True),  # two added
        ("vanobil", "vanobayrel", False),
        ("vanobil", "zanegir", False),  # three changed
        ("phaceam", "faseem", True),  # sounds alike
        ("phaickeam", "fayceents", False),  # k and s, and three more
    ],
)
def test_near_copies(word, other, near):
    assert bool(names.neighbours(word) & names.neighbours(other)) == near


def test_who_hears_a_name_cannot_know_its_spelling():
    """Of the names with a spelling that is not the plain one, most are said as if it were."""
    assert names.sound("phaceamock") == "faseemok"
    voice, alike = synthesise.Voice("gb", ""), []
    respelt = [name for name in names.of_sets()["test"] if names.sound(name) != name]
    for name in respelt[:40]:
        said, plain = (
            synthesise.speak([f"call {text}"], voice, 160, 50)[1][0][0] for text in (name, names.sound(name))
        )
        alike.append(np.array_equal(said, plain))
    assert len(respelt) > 300 and np.mean(alike) > 0.5


def test_names_come_on_top_of_the_corpus():
    for name, split in data.SPLITS.items():
        plain, more = (data.plan_set(name, "small", 1, "audio", variant) for variant in ("plain", "names"))
        assert more[: len(plain)] == plain
        named = [text for plan in more[len(plain) :] for text in plan.sentences]
        assert bool(named) == (name != "repeats")
        words = [word for text in named for word in text.split()]
        own = set(names.of_sets()[split]).intersection(words)
        assert len(own) >= (1500 if name == "train" else 200 if name == "test" else 100 if name == "dev" else 0)
        others = {word for other in sentences.SETS if other != split for word in names.of_sets()[other]}
        assert not others.intersection(words) and all(set(text.split()) & own for text in named)


def test_the_variant_with_names_has_prompts_for_its_test_sets(tmp_path, monkeypatch, capsys):
    from espnet_speechllm_xl.bin import cli
    from espnet_speechllm_xl.corpus.kaldi import read_table
    from espnet_speechllm_xl.sets.prompts import prompts_of_set

    sizes = {"small": {"train": (8, 0), "dev": (10, 0), "test": (0, 30), "repeats": (0, 8)}}
    monkeypatch.setattr(data, "SIZES", sizes)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["--out", str(tmp_path), "--nj", "1"]
    for _ in range(2):
        assert data.main([*command, "--names"]) == 0
    assert capsys.readouterr().out.count("(was complete)") == 4
    made = ("names", *names.PROMPTS)
    for name in ("dev", "test"):
        folder, own = tmp_path / name, set(names.of_sets()[name])
        texts, files = read_table(folder / "text"), read_table(folder / "wav.scp")
        assert min(soundfile.info(file).duration for file in files.values()) >= synthesise.MIN_SECONDS
        said = {utterance: own.intersection(text.split()) for utterance, text in texts.items()}
        assert 0 < sum(map(bool, said.values())) < len(said), "some utterances have names, some have none"
        found = {file: prompts_of_set(folder, texts, "", str(folder / file)) for file in names.PROMPTS}
        for file, (right, count) in names.PROMPTS.items():
            for utterance in texts:
                prompt = found[file].get(utterance, "").split()
                wrong = set(prompt) - said[utterance]
                assert len(prompt) == len(set(prompt)) == count + len(said[utterance]) * right and set(prompt) <= own
                assert len(wrong) == count, "all that are said are in it, or none"
                assert wrong <= set(found["prompts_right_100"][utterance].split())
        assert cli.main(["compare", str(folder), "--ref", str(folder), "--words", str(folder / "names")]) == 0
        count = sum(word in own for text in texts.values() for word in text.split())
        assert f"|{count}|100.0 [100.0, 100.0]|-|0|100.0|" in capsys.readouterr().out
        assert set((folder / "names").read_text().split()) == own
    assert not any((tmp_path / name / file).exists() for name in ("train", "repeats") for file in made)
    (tmp_path / "test/prompts_right_20").unlink()
    assert data.main([*command, "--names"]) == 0 and (tmp_path / "test/prompts_right_20").exists()
    assert data.main(command) == 0
    assert not any((tmp_path / name / file).exists() for name in ("dev", "test") for file in made)
