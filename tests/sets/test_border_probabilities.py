"""What a model makes of a word that was left out at a border: against the decoder's own steps, one input at a time."""

import dataclasses

import numpy as np
import pytest
import torch

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.audio import write_flac
from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
from espnet_speechllm_xl.corpus.kaldi import write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.inference import Speech2Text
from espnet_speechllm_xl.model.alignment import AlignmentError
from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.sets.border_probabilities import BorderWord, border_words

TEXT = "the cat sat on the mat today"
# Last frames 5, 14, 15, 31, 47, 50 and 60, in chunks of 16: the words of the chunks 0 | 1 | 2 | 3.
ENDS = [0.24, 0.60, 0.64, 1.28, 1.92, 2.04, 2.44]
WORDS = [Word(word, end - 0.1, end) for word, end in zip(TEXT.split(), ENDS, strict=True)]


@pytest.fixture(scope="module")
def recogniser(tiny_model_dir):
    speech2text = Speech2Text.from_pretrained(tiny_model_dir, dtype="float64")
    acoustic = speech2text.model.acoustic
    acoustic.config = dataclasses.replace(acoustic.config, tail_frames=0)  # it would begin a fifth chunk
    return speech2text


@pytest.fixture(scope="module")
def speech():
    return np.random.default_rng(0).normal(0, 0.1, 40000)  # 62 frames


@torch.no_grad()
def steps(recogniser, speech, words_of_chunks):
    """Log-probabilities of each word (list), and of `$` in its place (list), when the chunks have these words."""
    model = recogniser.model
    frames, _ = model.acoustic(torch.tensor(speech)[None], torch.tensor([len(speech)]))
    row, words, ends = model.decoder.initial_past(recogniser.chunking.context), [], []
    for chunk, (piece, text) in enumerate(
        zip(model.projection(frames[0]).split(recogniser.chunking.chunk), words_of_chunks, strict=True)
    ):
        (result,) = model.decoder.extend([Request(row, chunk, frames=piece)])
        for word in text.split():
            ends.append(float(result.log_probs[-1]))
            words.append(0.0)
            for token in recogniser.tokenizer.encode(word)[0]:
                words[-1] += float(result.log_probs[token])
                (result,) = model.decoder.extend([Request(result.past, chunk, token=token)])
        row = result.past
    return words, ends


def test_the_steps_say_the_same(recogniser, speech):
    near = 3
    found = border_words(recogniser.model, recogniser.tokenizer, recogniser.chunking, speech, TEXT, WORDS, near)
    words, ends = steps(recogniser, speech, ["the cat sat", "on", "the", "mat today"])
    held_back = [
        steps(recogniser, speech, ["the cat", "sat on", "the", "mat today"])[0][2],
        steps(recogniser, speech, ["the cat sat", "", "on the", "mat today"])[0][3],
        steps(recogniser, speech, ["the cat sat", "on", "", "the mat today"])[0][4],
    ]
    expected = [BorderWord(0, *np.exp([words[2 + i], ends[2 + i], held_back[i]])) for i in range(3)]
    assert [dataclasses.astuple(word) for word in found] == [
        pytest.approx(dataclasses.astuple(word), rel=1e-9) for word in expected
    ]
    assert found[0].lost == pytest.approx(found[0].ended * (1 - found[0].taken_up))


def test_what_is_at_a_border_follows_the_delay(recogniser, speech):
    settings = recogniser.model, recogniser.tokenizer
    # One frame of delay moves the three words behind the border, and "cat" to its chunk's last frame.
    late = dataclasses.replace(recogniser.chunking, delay=1)
    (found,) = border_words(*settings, late, speech, TEXT, WORDS, 1)
    words, ends = steps(recogniser, speech, ["the cat", "sat", "on", "the mat today"])
    held_back = steps(recogniser, speech, ["the", "cat sat", "on", "the mat today"])[0]
    assert dataclasses.astuple(found) == pytest.approx((0, *np.exp([words[1], ends[1], held_back[1]])), rel=1e-9)
    (found, *_) = border_words(*settings, late, speech, TEXT, WORDS, 2)
    assert found.distance == 0
    # Behind the last chunk there is none: "mat" and "today" are due later, and share it with "the" in frame 61.
    far = dataclasses.replace(recogniser.chunking, delay=14)
    words = [*WORDS[:-2], Word("mat", 2.0, 2.08), WORDS[-1]]
    assert [word.distance for word in border_words(*settings, far, speech, TEXT, words, 3)] == [2, 2]
    # With longer chunks only "on" ends at a border; "cat" and "sat" share a chunk with what follows.
    assert len(border_words(*settings, recogniser.chunking.resized(32), speech, TEXT, WORDS, 3)) == 1
    assert border_words(*settings, recogniser.chunking.resized(64), speech, TEXT, WORDS, 3) == []
    with pytest.raises(AlignmentError):
        border_words(*settings, late, speech, TEXT, WORDS[1:], 1)
    with pytest.raises(UserError, match="a token ends at frame 79 but the audio has 62 frames"):
        border_words(*settings, late, speech, TEXT, [*WORDS[:-1], Word("today", 2.1, 3.2)], 1)


def test_report(tiny_model_dir, tiny_aligner_dir, tmp_path, capsys, speech, recogniser):
    (tmp_path / "audio").mkdir()
    write_flac(tmp_path / "audio/u1.flac", (speech * 32767).astype(np.int16), 16000)
    write_table(tmp_path / "text", {"u1": TEXT, "u2": "stop", "u3": "go on then", "u4": "stop"})
    audio = str(tmp_path / "audio/u1.flac")
    write_table(tmp_path / "wav.scp", {"u1": audio, "u2": audio, "u3": audio, "u5": audio})
    write_ctm(tmp_path / "ref.ctm", {"u1": WORDS, "u3": WORDS})
    options = ["--dump", str(tmp_path), "--model", str(tiny_model_dir)]
    assert cli.main(["border-report", *options]) == 0
    head, _, first, second, third, total, _, note, *reasons = capsys.readouterr().out.splitlines()
    assert head == "|frames|words|written|`$` instead|taken up, if left out|lost|"
    assert first.startswith("|0|3|0.") and total == first.replace("|0|", "|all|", 1)
    assert second == "|1|0|-|-|-|-|" and third == "|2|0|-|-|-|-|"
    assert "its chunk of 0.64 s" in note and note.endswith("Utterances: 4, counted: 1, left out: 3.")
    assert reasons == [
        "Left out, no reference times: u2.",
        "Left out, not in wav.scp: u4.",
        "Left out, other words than its reference times: u3.",
    ]
    write_ctm(tmp_path / "other.ctm", {"u1": WORDS, "u2": [Word("stop", 0.1, 0.2)]})
    assert cli.main(["border-report", *options, "--reference", str(tmp_path / "other.ctm")]) == 0
    assert "counted: 2, left out: 2" in capsys.readouterr().out
    assert cli.main(["border-report", *options, "--chunk", "32", "--near", "1"]) == 0
    assert "|all|1|0." in capsys.readouterr().out
    assert cli.main(["border-report", *options, "--near", "16"]) == 1
    assert "16 frames near a boundary do not fit into a chunk of 16: give fewer" in capsys.readouterr().err
    assert cli.main(["border-report", "--dump", str(tmp_path), "--model", str(tiny_aligner_dir)]) == 1
    assert "does not write chunk by chunk" in capsys.readouterr().err
