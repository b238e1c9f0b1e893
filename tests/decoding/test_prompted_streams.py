"""A prompt of a recording or stream: offline == stream, batches with and without, joint scoring, who refuses one."""

import random

import pytest
import soundfile
import tiny

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.bin.cli import main
from espnet_speechllm_xl.decoding.engine import model_calls, run
from espnet_speechllm_xl.decoding.prompts import prompt_tokens, with_prompt
from espnet_speechllm_xl.decoding.streams import decode
from espnet_speechllm_xl.settings import ConfigError

PROMPTS = ["", "call anna", "no rain today the other office"]


def load(directory, **settings):
    return Speech2Text.from_pretrained(directory, dtype="float64", max_tokens_per_chunk=8, **settings)


@pytest.mark.parametrize(
    "search, ctc_weight, chunk_size",
    [("greedy", 0.0, 0.32), ("chunk_sync", 0.0, 0.64), ("greedy", 0.3, 0.64), ("alsd", 0.0, 0.64)],
)
def test_streams_files_and_batches_with_prompts(prompted_model_dir, search, ctc_weight, chunk_size):
    speech2text = load(prompted_model_dir, search=search, ctc_weight=ctc_weight, chunk_size=chunk_size, beam_size=3)
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


def test_each_recording_of_a_batch_has_its_own_prompt(prompted_model_dir):
    speech2text = load(prompted_model_dir, search="chunk_sync", beam_size=3)
    recordings = [tiny.speech(seed, size) for seed, size in ((51, 40000), (52, 25000), (51, 40000), (53, 30000))]
    prompts = [PROMPTS[1], "", PROMPTS[2], PROMPTS[1]]
    together = speech2text.transcribe_batch(recordings, prompts)
    for nbest, recording, prompt in zip(together, recordings, prompts, strict=True):
        (expected, *_) = speech2text(recording, prompt=prompt)
        assert nbest[0].token_ids == expected.token_ids and nbest[0].score == pytest.approx(expected.score, abs=1e-9)
    assert together[0][0].score != pytest.approx(together[2][0].score, abs=1e-3)  # the same audio
    plain = speech2text.transcribe_batch(recordings, [""] * 4)
    assert [nbest[0] for nbest in plain] == [nbest[0] for nbest in speech2text.transcribe_batch(recordings)]


def test_who_takes_no_prompt_says_so(tiny_model_dir, tiny_aligner_dir):
    with pytest.raises(ConfigError, match="trained without prompts"):
        load(tiny_model_dir)(tiny.speech(1, 30000), prompt="anna")
    with pytest.raises(ConfigError, match="trained without prompts"):
        load(tiny_model_dir, ctc_weight=0.3).stream(prompt="anna")
    aligner = Speech2Text.from_pretrained(tiny_aligner_dir)
    with pytest.raises(ConfigError, match="a model of task 'ctc' takes no prompt"):
        aligner.transcribe_batch([tiny.speech(1, 30000)] * 2, ["", "anna"])


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_a_prompt_is_no_longer_than_its_distance(prompted_model_dir, ctc_weight):
    speech2text = load(prompted_model_dir, ctc_weight=ctc_weight)
    lengths = {count: len(prompt_tokens(speech2text.tokenizer, "a " * count)) for count in range(60)}
    fits = "a " * max(count for count, length in lengths.items() if length <= 50)
    assert len(prompt_tokens(speech2text.tokenizer, fits)) >= 49
    speech2text.stream(prompt=fits)
    with pytest.raises(ConfigError, match=r"the prompt has 5\d tokens: .* more than 50 inputs .*: shorten the prompt"):
        speech2text.stream(prompt=fits + "a a")


def test_half_a_character_is_no_fault_of_the_model(prompted_model_dir):
    assert load(prompted_model_dir).stream(prompt="a\ud800 \x00 \N{GRINNING FACE}").push(tiny.speech(1, 20000))


def test_a_baseline_takes_no_prompt():
    from espnet_speechllm_xl.systems.chunked_aed import LabelDecoder

    assert LabelDecoder(9, dim=16, lstm_layers=1, blocks=1, heads=2, ffn_dim=24).most_prompt_tokens == 0


def test_the_commands_take_a_prompt(prompted_model_dir, tmp_path, capsys):
    audio = tiny.speech(51, 40000)
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    speech2text = Speech2Text.from_pretrained(prompted_model_dir, search="greedy", max_tokens_per_chunk=8)
    expected = {prompt: speech2text(audio, prompt=prompt) for prompt in PROMPTS[:2]}
    options = ["--model", str(prompted_model_dir), "--search", "greedy", "--max-tokens-per-chunk", "8"]
    for prompt, nbest in expected.items():
        assert main(["transcribe", str(tmp_path / "a.wav"), *options, "--prompt", prompt]) == 0
        assert capsys.readouterr().out == nbest[0].text + "\n"
    assert expected[""][0].score != expected["call anna"][0].score
    heard = []
    for prompt in PROMPTS[:2]:
        assert main(["stream", str(tmp_path / "a.wav"), *options, "--format", "json", "--prompt", prompt]) == 0
        heard.append(capsys.readouterr().out)
    assert heard[0] != heard[1]
