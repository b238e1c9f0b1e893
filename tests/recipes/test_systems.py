"""./run.sh --system NAME: what each system of each recipe trains and decodes, by the calls of a stand-in for Python."""

import itertools
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from listing import ROOT, Listed, summary

# As the scripts run_ctc.sh, run_espnet.sh, ... did that --system took the place of: models in exp/ go on.
BLOCKS = (Path(__file__).parent / "systems.txt").read_text(encoding="utf-8").split("== ")[1:]
EXPECTED = {tuple(block.split("\n")[0].split()): block.split("\n")[1:-1] for block in BLOCKS}
CORPORA = sorted({corpus for corpus, _ in EXPECTED})
DEFINED = (ROOT / "egs2/TEMPLATE/speechllm_xl1/systems.sh").read_text(encoding="utf-8")
SYSTEMS = re.findall(r"^system_(\w+)\(\)", DEFINED, re.MULTILINE)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """``listed(corpus)``: the copy of a recipe, with data, tokens and alignments, made once."""
    made = {}

    def get(corpus):
        if corpus not in made:
            made[corpus] = Listed(corpus, tmp_path_factory.mktemp(corpus) / "repository")
            made[corpus].run("--stop-stage", "align")
        return made[corpus]

    return get


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_system_is_trained_and_decoded_as_before(listed, corpus):
    recipe = listed(corpus)
    for system in (system for known, system in EXPECTED if known == corpus):  # ctc before transducer, which needs it
        found = summary(recipe.run("--system", system, "--stage", "tokens", "--stop-stage", "decode"))
        assert found == EXPECTED[corpus, system], (corpus, system)


def test_every_system_is_listed():
    assert {*SYSTEMS} == {system for _, system in EXPECTED}


def test_the_digits(listed):
    found = summary(listed("fsdd").run("--stop-stage", "longform"))
    tokens = "data/tokens_train_char/tokenizer.model"
    start = "--task speechllm_xl --init_param exp/aligner_multichunk/valid.ter.ave.pth:acoustic:acoustic"
    assert found[:2] == [
        f"train-aligner conf/train_aligner_tiny_multichunk.yaml {tokens} -> exp/aligner_multichunk --max_epoch 8",
        f"train conf/train_tiny_multichunk.yaml {tokens} -> exp/speechllm_xl_tiny_multichunk {start}",
    ]
    assert [line.split(": ")[1] for line in found[2:]] == ["dev test test_2x test_10x"] * 3


def texts(calls):
    """What each step of a recipe takes as text."""
    found = []
    for call in calls:
        values = dict(itertools.pairwise(call))
        if "format" in call:
            found.append(("format", values["--text"]))
        elif "tokens" in call:
            found.append(("tokens", values["--text"], values["--out"], *values["--others"].split()))
        elif "--valid_shape_file" in call:
            command = next(word for word in call if word.startswith("train"))
            found.append((command, *[word for word in call if ",text,text" in word]))
        elif "score" in call:
            found.append(("score", values["--normaliser"]))
    return found


def test_written_text_is_heard_as_it_is_read(listed):
    found = texts(listed("ljspeech").run("--stop-stage", "score"))
    aligned = "exp/aligner_multichunk/aligned"
    assert list(dict.fromkeys(found)) == [
        ("format", "written"),
        ("tokens", "dump/raw/train/text", "data/tokens_train_char", "dump/raw/dev/text"),
        ("tokens", "dump/raw/train/text_spoken", "data/tokens_train_char_spoken", "dump/raw/dev/text_spoken"),
        ("train-aligner", "dump/raw/train/text_spoken,text,text", "dump/raw/dev/text_spoken,text,text"),
        ("train", f"{aligned}/train/text,text,text", f"{aligned}/dev/text,text,text"),
        ("score", "english"),
    ]


@pytest.mark.parametrize("style", ["plain", "as-is"])
def test_other_text_is_the_same_for_both(listed, style):
    found = texts(listed("ljspeech").run("--stop-stage", "score", "--text", style, "--expdir", f"exp/{style}"))
    assert found[0] == ("format", style)
    assert not any("text_spoken" in word for step in found for word in step)


def test_ways_to_write_are_checked(tmp_path):
    script = ROOT / "egs2/ljspeech/speechllm_xl1/run.sh"
    for options, message in (
        (["--text", "shouted"], "--text 'shouted': give as-is, written or plain"),
        (["--normaliser", "french"], "--normaliser 'french': give none, basic or english"),
    ):
        done = subprocess.run([script, *options], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr


def test_the_first_call_prepares_the_data(listed):
    calls = listed("an4").run("--stop-stage", "data", "--downloads", "my disk", "--data-opts", "--dev 9 --any-size")
    assert calls == [["local/data.py", "--downloads", "my disk", "--dev", "9", "--any-size"]]


def special(calls):
    """What training gets behind the files."""
    return [line.split(" -> ")[1] for line in summary(calls) if line.startswith("train ")]


def test_further_options_given_twice_are_joined(listed):
    options = ["--train-args", "--max_epoch 2", "--train-args", "--chunking_conf chunk=16", "--train-args", ""]
    options += ["--tag", "joined", "--decode-args", "--nbest 2", "--decode-args", "--dtype float32"]
    calls = listed("mboshi").run("--stage", "train", "--stop-stage", "score", *options)
    assert special(calls) == [
        "exp/joined --task speechllm_xl --init_param exp/aligner_multichunk/valid.ter.ave.pth:acoustic:acoustic "
        "--max_epoch 12 --max_epoch 29 --max_epoch 2 --chunking_conf chunk=16"
    ]
    decoding = next(call for call in calls if "decode" in call)
    assert decoding[-6:-2] == ["--nbest", "2", "--dtype", "float32"] and decoding[-2] == "--nj"
    command = calls[-1][calls[-1].index("--command") + 1]
    assert r"--train-args --max_epoch\ 2 --train-args --chunking_conf\ chunk=16 --train-args ''" in command


CHARACTERS = "--loss_conf ctc_tokenizer=data/tokens_train_char/tokenizer.model"
FROM_ALIGNER = "--init_param exp/aligner/valid.ter.ave.pth:acoustic:acoustic"
FETCHED = "downloads/SmolLM2-135M"


def fetches(calls):
    """Where calls fetch an LLM to."""
    return [call[-1] for call in calls if call[2:5] == ["llm", "fetch", "smollm2"]]


def tokenizers(calls):
    """What tokens are made of, by their directory."""
    return {call[call.index("--out") + 1]: call[call.index("--type") + 1 :] for call in calls if "tokens" in call}


def test_the_default_llm_is_fetched_where_it_is_missing(listed):
    recipe = listed("an4")
    options = ["--system", "llm", "--stage", "tokens", "--stop-stage", "tokens"]
    calls = recipe.run(*options)
    made = f"data/tokens_train_nodev_sp_hf_{Path(FETCHED).name}_lower"
    assert fetches(calls) == [FETCHED] and made in tokenizers(calls)
    assert tokenizers(calls)[made] == ["hf", "--vocab-size", "100", "--hf", FETCHED, "--lower-case"]
    (recipe.recipe / FETCHED).mkdir(parents=True)
    (recipe.recipe / FETCHED / "config.json").touch()
    assert not fetches(recipe.run(*options))
    assert tokenizers(recipe.run(*options, "--hf-letters", "as-is"))[made.removesuffix("_lower")][-1] == FETCHED


@pytest.mark.parametrize("by_option", [True, False])
def test_an_llm_of_ones_own(listed, tmp_path, monkeypatch, by_option):
    llm = tmp_path / "mine"
    llm.mkdir()
    (llm / "config.json").touch()
    monkeypatch.setenv("SPEECHLLM_XL_LLM", str(tmp_path / "not-there" if by_option else llm))
    options = ["--stage", "tokens", "--stop-stage", "pack", "--pack-args", "--with-llm"]
    calls = listed("mini_espeak").run("--system", "llm", *options, *["--llm", str(llm)] * by_option)
    (training,) = special(calls)
    name = "exp/llm_tiny_hf_mine"
    assert training.startswith(f"{name} ") and training.endswith(f" --decoder_conf pretrained={llm}")
    assert not fetches(calls)
    assert CHARACTERS in training and "exp/aligner/valid.ter.ave.pth:ctc:ctc" in training
    (packing,) = [call for call in calls if "pack" in call]
    assert packing[-5:] == ["--model", name, "--out", f"{name}.zip", "--with-llm"]


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ([], f"{CHARACTERS} {FROM_ALIGNER} exp/aligner/valid.ter.ave.pth:ctc:ctc"),
        (["--system", "chunked_aed"], f"{CHARACTERS} {FROM_ALIGNER} exp/aligner/valid.ter.ave.pth:ctc:ctc"),
        (["--init", "none"], CHARACTERS),
        (["--alignment", "ctm:ref"], CHARACTERS),
        (["--aligner-token-type", "bpe"], FROM_ALIGNER.replace("aligner/", "aligner_bpe100/")),
        (["--system", "ctc_prompt_lm"], FROM_ALIGNER),
        (["--train-args", "--loss_conf ctc_tokenizer=null"], FROM_ALIGNER),
    ],
)
def test_with_the_tokens_of_an_llm_ctc_has_the_aligners(listed, options, start):
    recipe = listed("mboshi")
    llm = ["--system", "fixed_chunk", "--token-type", "hf", "--hf-tokenizer", "models/some-llm", *options]
    calls = recipe.run("--stage", "tokens", "--stop-stage", "train", *llm)
    further = "--max_epoch 12" + " --loss_conf ctc_tokenizer=null" * ("--train-args" in options)
    assert special(calls)[-1].split(" ", 3)[3] == f"{start} {further}"
    made = [call[call.index("--out") + 1] for call in calls if "tokens" in call]
    assert ("data/tokens_train_char" in made) == ("bpe" not in options)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        (["--system", "ctc", "--init", "none"], ["exp/ctc_tiny --task ctc --max_epoch 12"]),
        (["--system", "ctc", "--alignment", "ctm:ref"], ["exp/ctc_tiny --task ctc --max_epoch 12"]),
        (
            ["--size", "small", "--init", "none"],
            ["exp/speechllm_xl_small_multichunk --task speechllm_xl --max_epoch 12 --max_epoch 29"],
        ),
        (
            ["--system", "fixed_chunk", "--size", "small"],
            ["exp/speechllm_xl_small --task speechllm_xl --init_param exp/aligner/valid.ter.ave.pth:acoustic:acoustic "
             "--max_epoch 12"],
        ),
        (
            ["--size", "paper", "--train-config", "train_small.yaml", "--init", "none"],
            ["exp/speechllm_xl_small --task speechllm_xl --max_epoch 12"],
        ),
    ],
)
def test_size_configuration_and_start(listed, options, trained):
    calls = listed("mboshi").run("--stage", "train", "--stop-stage", "train", *options)
    assert special(calls) == trained


def test_a_size_without_a_configuration_for_several_chunk_sizes_has_one(listed):
    recipe = listed("mini_espeak")
    (recipe.recipe / "conf").mkdir(exist_ok=True)
    for name in ("train_mine.yaml", "train_aligner_mine.yaml"):
        (recipe.recipe / "conf" / name).write_text("max_epoch: 1\n")
    found = summary(recipe.run("--size", "mine", "--stage", "aligner", "--stop-stage", "train"))
    assert found[0].startswith("train-aligner conf/train_aligner_mine.yaml") and found[0].endswith("-> exp/aligner")
    assert found[1].startswith("train conf/train_mine.yaml") and " -> exp/speechllm_xl_mine --task" in found[1]


@pytest.mark.parametrize(
    ("options", "model", "tokens"),
    [
        ([], "asr_las_an4", "char"),
        (["--token-type", "bpe"], "asr_las_an4_bpe100", "bpe100"),
        (["--size", "tiny"], "asr_las_tiny", "char"),
        (["--train-config", "train_asr_las_paper.yaml"], "asr_las_paper", "char"),
        (["--tag", "mine", "--train-args", "--max_epoch 3"], "mine --max_epoch 3", "char"),
    ],
)
def test_stock_espnet_takes_the_same_options(listed, options, model, tokens):
    command = ["--system", "espnet_las", "--stage", "tokens", "--stop-stage", "train", *options]
    calls = listed("an4").run(*command)
    (training,) = summary(calls)
    assert training.startswith("local/espnet/asr_train.py ") and training.endswith(f"-> exp/{model}")
    assert calls[0][calls[0].index("--out") + 1] == f"data/tokens_train_nodev_sp_{tokens}"


def test_searches_of_stock_espnet_are_files_of_the_repository_and_of_the_recipe(listed):
    recipe = listed("mboshi")
    own = recipe.recipe / "conf/espnet/decode_asr_ctc_mine.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("beam_size: 2\n")
    options = ["--system", "espnet_ctc", "--stop-stage", "decode", "--searches", "mine greedy"]
    calls = recipe.run("--stage", "tokens", *options, "--decode-args", "--nbest 2")
    assert summary(calls)[1:] == [
        "asr_inference conf/espnet/decode_asr_ctc_mine.yaml -> exp/asr_ctc_tiny/decode_mine: valid dev",
        "asr_inference conf/espnet/decode_asr_ctc_greedy.yaml -> exp/asr_ctc_tiny/decode_greedy: valid dev",
    ]
    assert all(call[-2:] == ["--nbest", "2"] for call in calls if "asr_inference" in call)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--system", "llm", "--llm", "nowhere"], "--llm nowhere: there is no Hugging Face directory of a language"),
        (["--system", "llm", "--llm", "my llm"], "--llm 'my llm': give a path without blanks"),
        (["--system", "ctc", "--llm", "mine"], "--llm mine: ctc takes none: give --system llm"),
        (["--hf-letters", "upper"], "--hf-letters 'upper': give as-is or lower"),
        (["--system", "las"], f"--system las: there are {', '.join(SYSTEMS)}"),
        (["--system", "ctc", "--size", "small"], "no configuration train_ctc_small.yaml here, in conf/ or in "),
        (["--system", "espnet_las", "--searches", "greedy"], "--searches: espnet_las has beam, not 'greedy'"),
        (["--system", "espnet_ctc", "--token-type", "hf"], "--token-type hf: espnet_ctc takes sentencepiece tokens"),
        (["--system", "espnet_ctc", "--init", "aligner"], "--init aligner: espnet_ctc has ESPnet's own option"),
        (["--system", "espnet_ctc", "--size", "9"], "no configuration train_asr_ctc_9.yaml here, in conf/ or in "),
    ],
)
def test_mistakes_are_one_line_before_any_work(listed, options, says):
    recipe = listed("mboshi").recipe
    done = subprocess.run([recipe / "run.sh", *options], capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_help_lists_the_systems():
    done = subprocess.run([ROOT / "egs2/an4/speechllm_xl1/run.sh", "--help"], capture_output=True, text=True)
    assert f"\nsystems: {' '.join(SYSTEMS)}\n" in done.stdout


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_its_configurations(system):
    """A new system needs these files and a function in systems.sh."""
    prefix = f"train_{system}_"
    if system in ("speechllm_xl", "fixed_chunk", "nonstreaming", "nonstreaming_full", "reallm"):
        prefix = "train_"
    elif system.startswith("espnet_"):
        prefix = f"espnet/train_asr_{system.removeprefix('espnet_')}_"
    for size in ("tiny", "paper"):
        several = "_multichunk" if system == "speechllm_xl" else ""
        assert yaml.safe_load((ROOT / "conf" / f"{prefix}{size}{several}.yaml").read_text(encoding="utf-8"))


def test_a_corpus_is_two_files():
    for recipe in ROOT.glob("egs2/*/speechllm_xl1"):
        if recipe.parent.name != "TEMPLATE":
            assert [path.name for path in recipe.glob("*.sh")] == ["run.sh"]
            assert (recipe / "local/data.py").is_file()
            assert not re.search(r"--system|case ", (recipe / "run.sh").read_text().split("set -euo")[1])
