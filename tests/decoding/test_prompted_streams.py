"""A prompt of a recording or stream: offline == stream, batches with and without, joint scoring, who refuses one."""

import random

import pytest
import soundfile
import tiny

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.bin.cli import main
from espnet_speechllm_xl.decoding.engine import model_calls, run
from espnet_speechllm_xl.decoding.prompts import with_prompt
from espnet_speechllm_xl.decoding.streams import decode
from espnet_speechllm_xl.settings import ConfigError

PROMPTS = ["", "call anna", "no rain today the other office"]


@pytest.fixture(scope="module")
def prompted_dir(tmp_path_factory, tiny_tokens):
    """A model of random weights that takes prompts; a long stream's chunks begin 50 inputs behind their start."""
    from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLTask

    extra = [*tiny.conf("decoder_conf", tiny.DECODER), *tiny.conf("loss_conf", ["ctc_weight=0.1"])]
    extra += [*tiny.conf("chunking_conf", ["chunk=16", "context=2"])]
    extra += tiny.conf("text_prompt_conf", ["probability=0.5", "distance=50"])
    directory = tmp_path_factory.mktemp("prompted") / "m"
    weights = "valid.acc_text.ave.pth"
    return tiny.write_model(directory, SpeechLLMXLTask, tiny_tokens, weights, extra, seed=3, change=tiny.talkative)


def load(directory, **settings):
    return Speech2Text.from_pretrained(directory, dtype="float64", max_tokens_per_chunk=8, **settings)


@pytest.mark.parametrize(
    "search, ctc_weight, chunk_size",
    [("greedy", 0.0, 0.32), ("chunk_sync", 0.0, 0.64), ("greedy", 0.3, 0.64), ("alsd", 0.0, 0.64)],
)
def test_streams_files_and_batches_with_prompts(prompted_dir, search, ctc_weight, chunk_size):
    speech2text = load(prompted_dir, search=search, ctc_weight=ctc_weight, chunk_size=chunk_size, beam_size=3)
    rng, audio = random.Random(f"{search} {chunk_size}"), tiny.speech(51, 60000)
    alone = [speech2text(audio, prompt=prompt)[0] for prompt in PROMPTS]
    assert len({one.score for one in alone}) == 3 and len({one.text for one in alone}) > 1  # the decoder reads them
    assert speech2text(audio, prompt=" ")[0] == alone[0]
    model, settings = speech2text.model, (speech2text.tokenizer, speech2text.chunking, speech2text.search_config, audio)
    models = [with_prompt(model, speech2text.tokenizer, prompt) for prompt in PROMPTS]
    mixed = run([decode(one, *settings) for one in models], model_calls(model))
    for (one, *_), expected, prompt in zip(mixed, alone, PROMPTS, strict=True):
        assert one.token_ids == expected.token_ids and one.score == pytest.approx(expected.score, abs=1e-9)
        if search != "alsd":
            stream = speech2text.stream(
                search, prompt=prompt, endpoint_silence=float("inf"), settle_seconds=float("inf")
            )
            assert tiny.said(tiny.play(stream, tiny.cuts(audio, rng, 9000))) == expected.text
    twice = speech2text.transcribe_batch([audio] * 2, PROMPTS[1])
    assert [nbest[0].token_ids for nbest in twice] == [alone[1].token_ids] * 2


def test_who_takes_no_prompt_says_so(tiny_model_dir, tiny_aligner_dir):
    with pytest.raises(ConfigError, match="trained without prompts"):
        load(tiny_model_dir)(tiny.speech(1, 30000), prompt="anna")
    with pytest.raises(ConfigError, match="trained without prompts"):
        load(tiny_model_dir).stream(prompt="anna")
    aligner = Speech2Text.from_pretrained(tiny_aligner_dir)
    with pytest.raises(ConfigError, match="a model of task 'ctc' takes no prompt"):
        aligner(tiny.speech(1, 30000), prompt="anna")


def test_a_baseline_takes_no_prompt():
    from espnet_speechllm_xl.systems.chunked_aed import LabelDecoder

    decoder = LabelDecoder(9, dim=16, lstm_layers=1, blocks=1, heads=2, ffn_dim=24)
    with pytest.raises(ConfigError, match="a model of this system takes no prompt"):
        decoder.prompted_past(0, [1])


def test_the_commands_take_a_prompt(prompted_dir, tmp_path, capsys):
    audio = tiny.speech(51, 40000)
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    expected = {
        prompt: Speech2Text.from_pretrained(prompted_dir, search="greedy", max_tokens_per_chunk=8)(audio, prompt=prompt)
        for prompt in PROMPTS[:2]
    }
    options = ["--model", str(prompted_dir), "--search", "greedy", "--max-tokens-per-chunk", "8"]
    for prompt, nbest in expected.items():
        assert main(["transcribe", str(tmp_path / "a.wav"), *options, "--prompt", prompt]) == 0
        assert capsys.readouterr().out == nbest[0].text + "\n"
    assert expected[""][0].score != expected["call anna"][0].score
    heard = []
    for prompt in PROMPTS[:2]:
        assert main(["stream", str(tmp_path / "a.wav"), *options, "--format", "json", "--prompt", prompt]) == 0
        heard.append(capsys.readouterr().out)
    assert heard[0] != heard[1]
