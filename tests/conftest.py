"""Shared fixtures.  Session-scoped where making them costs more than a blink."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from terminal import run_at_terminal


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny tensors are slower on more threads, here and in the processes that tests start."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sentences():
    """Two hundred sentences of a small grammar, lower case."""
    rng = random.Random(0)
    names = "ada ben carla dmitri eve farid greta hugo".split()
    verbs = "calls sees finds paints thanks visits".split()
    things = "the red boat|a quiet street|seven green apples|the old piano|her brother's letter|it isn't far".split("|")
    return [f"{rng.choice(names)} {rng.choice(verbs)} {rng.choice(things)}" for _ in range(200)]


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory, sentences):
    """``make(model_type, vocab_size, **options) -> path`` of a model trained on ``sentences``."""
    made = {}

    def make(model_type="bpe", vocab_size=60, **options):
        key = (model_type, vocab_size, *sorted(options.items()))
        if key not in made:
            import sentencepiece

            prefix = tmp_path_factory.mktemp("sentencepiece") / model_type
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_prefix=str(prefix),
                model_type=model_type,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                minloglevel=2,
                **options,
            )
            made[key] = prefix.with_suffix(".model")
        return made[key]

    return make


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory, sentences, sentencepiece_model):
    """``{kind: tokenizer}`` for all kinds of made_tokenizers.py."""
    from made_tokenizers import save_hugging_face

    from espnet_speechllm_xl.tokenization import load_tokenizer

    return {
        "bpe": load_tokenizer(sentencepiece_model("bpe", 60)),
        "unigram": load_tokenizer(sentencepiece_model("unigram", 60)),
        "char": load_tokenizer(sentencepiece_model("char", 60)),
        "bytes": load_tokenizer(sentencepiece_model("bpe", 320, byte_fallback=True)),
        "gpt2": load_tokenizer(save_hugging_face(tmp_path_factory.mktemp("gpt2"), sentences, True)),
        "metaspace": load_tokenizer(save_hugging_face(tmp_path_factory.mktemp("metaspace"), sentences, False)),
    }


@pytest.fixture(scope="session")
def tiny_tokens(tmp_path_factory):
    """A BPE tokenizer of 40 pieces: ``tokenizer.model`` and ``tokens.txt``."""
    from espnet_speechllm_xl.bin import cli

    out = tmp_path_factory.mktemp("tokens")
    (out / "text").write_text("".join(f"u{i:02d} {line}\n" for i, line in enumerate(tiny.SENTENCES)), "utf-8")
    options = ["--text", str(out / "text"), "--out", str(out), "--type", "bpe", "--vocab-size", "40"]
    assert cli.main(["tokens", *options]) == 0
    return out


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tiny_tokens):
    """A SpeechLLM-XL directory: chunks of 16 frames, context 2, segment 8, look-ahead 2; random weights."""
    from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLTask

    return tiny.write_model(
        tmp_path_factory.mktemp("exp") / "speechllm_xl_tiny",
        SpeechLLMXLTask,
        tiny_tokens,
        "valid.acc_text.ave.pth",
        [
            *tiny.conf("decoder_conf", tiny.DECODER),
            *tiny.conf("chunking_conf", ["chunk=16", "context=2"]),
            *tiny.conf("loss_conf", ["ctc_weight=0.1"]),
            *tiny.conf("search_conf", ["beam_size=4", "max_tokens_per_chunk=12"]),
        ],
        seed=3,
        change=tiny.talkative,
    )


@pytest.fixture(scope="session")
def prompted_model_dir(tmp_path_factory, tiny_tokens):
    """The same, but it takes prompts: a long stream's chunks begin 50 inputs behind their start."""
    from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLTask

    extra = [*tiny.conf("decoder_conf", tiny.DECODER), *tiny.conf("loss_conf", ["ctc_weight=0.1"])]
    extra += [*tiny.conf("chunking_conf", ["chunk=16", "context=2"])]
    extra += tiny.conf("text_prompt_conf", ["probability=0.5", "distance=50"])
    directory, weights = tmp_path_factory.mktemp("prompted") / "m", "valid.acc_text.ave.pth"
    return tiny.write_model(directory, SpeechLLMXLTask, tiny_tokens, weights, extra, seed=3, change=tiny.talkative)


@pytest.fixture(scope="session")
def tiny_aligner_dir(tmp_path_factory, tiny_tokens):
    """A CTC aligner directory on the same kind of encoder; random weights."""
    from espnet_speechllm_xl.systems.ctc import CTCTask

    return tiny.write_model(
        tmp_path_factory.mktemp("exp") / "aligner_tiny", CTCTask, tiny_tokens, "valid.ter.ave.pth", seed=2
    )


@pytest.fixture(scope="session")
def melody_model(tmp_path_factory):
    """The directory of a SpeechLLM-XL that understands the melodies of melodies.py."""
    import melodies

    return melodies.train(tmp_path_factory.mktemp("melodies"))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """A few seconds of tones with their alignment (training.py)."""
    import training

    return training.make_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_stats(toy_data, tmp_path_factory):
    """The statistics directory of ``toy_data``, by the task's own statistics stage."""
    import training

    return training.train("ctc", toy_data, tmp_path_factory.mktemp("stats") / "stats")


@pytest.fixture(scope="session")
def run_driver(tmp_path_factory):
    """``run(driver, folder, *options) -> CompletedProcess``: a driver of egs2/TEMPLATE, at work in ``folder``.

    From a copy of the scripts without the installation step, so that tests leave their environment as it is.  With
    ``terminal=True`` its standard streams are a terminal (terminal.py).
    """
    repository, copy = Path(__file__).resolve().parents[1], tmp_path_factory.mktemp("repository")
    template = Path("egs2/TEMPLATE/speechllm_xl1")
    for part in (template, Path("local")):
        shutil.copytree(repository / part, copy / part)
    for part in ("conf", "espnet_speechllm_xl"):
        (copy / part).symlink_to(repository / part)
    (copy / "local/install.sh").write_text("#!/bin/sh\n")

    def run(driver, folder, *options, terminal=False):
        folder.mkdir(exist_ok=True)
        command = [copy / template / driver, *map(str, options)]
        environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}  # the tests' own, activated or not
        if terminal:
            return run_at_terminal(command, folder, environment)
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)

    return run
