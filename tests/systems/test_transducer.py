"""The transducer baseline: its loss against a slow lattice, its classes, a training, and what it refuses."""

import pytest
import tiny
import torch
import training
from slow import lattice_loss, slow_ctc

from espnet_speechllm_xl.config import LossConfig
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.systems.transducer import SEARCHES, TransducerModel


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_tokens):
    """A transducer of random weights."""
    from espnet_speechllm_xl.systems import find_task

    return tiny.write_model(
        tmp_path_factory.mktemp("exp") / "transducer",
        find_task("transducer"),
        tiny_tokens,
        "valid.loss.ave.pth",
        [*tiny.conf("decoder_conf", ["hidden_size=12"]), *tiny.conf("joint_network_conf", ["joint_space_size=10"])],
        change=lambda model: model.joint_network.lin_out.weight.mul_(8),
    )


@pytest.fixture(scope="module")
def load(model_dir):
    from espnet_speechllm_xl import Speech2Text

    return lambda **settings: Speech2Text.from_pretrained(model_dir, **settings)


def test_the_loss_is_that_of_the_lattice(load):
    model = load().model
    speech, lengths = torch.zeros(2, 16000), torch.tensor([16000, 9000])
    for index, length in enumerate(lengths.tolist()):
        speech[index, :length] = torch.as_tensor(tiny.speech(index, length))
    text, text_lengths = torch.tensor([[5, 9, 9], [2, -1, -1]]), torch.tensor([3, 1])
    loss, stats, weight = model(speech, lengths, text, text_lengths)
    frames, counts = model.acoustic(speech, lengths)
    wanted = []
    for index, count in enumerate(counts.tolist()):
        labels = [token + 1 for token in text[index, : text_lengths[index]].tolist()]
        decoded = model.decoder(torch.tensor([[0, *labels]]))
        joint = model.joint_network(frames[index, :count, None], decoded)
        wanted.append(lattice_loss(joint.log_softmax(-1), labels))
    assert float(loss) == pytest.approx(sum(wanted) / 2, rel=1e-5)
    assert weight == 2 and set(stats) == {"loss", "loss_transducer"}


def test_audio_without_a_frame_leaves_the_others_loss_alone(load):
    model = load().model
    speech = torch.zeros(2, 16000)
    speech[0] = torch.as_tensor(tiny.speech(0, 16000))
    text, text_lengths = torch.tensor([[5, 9, -1], [2, 3, 4]]), torch.tensor([2, 3])  # the longest one is left out
    alone, *_ = model(speech[:1], torch.tensor([16000]), text[:1], text_lengths[:1])
    loss, stats, _ = model(speech, torch.tensor([16000, 400]), text, text_lengths)
    assert float(stats["loss_transducer"]) == pytest.approx(float(alone), rel=1e-5)
    loss.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_the_auxiliary_loss_is_ctcs(load):
    model = load().model
    torch.manual_seed(0)
    model = TransducerModel(model.acoustic, model.decoder, model.joint_network, LossConfig(ctc_weight=0.3)).eval()
    speech, lengths = torch.as_tensor(tiny.speech(0, 16000))[None], torch.tensor([16000])
    text, text_lengths = torch.tensor([[5, 9]]), torch.tensor([2])
    loss, stats, _ = model(speech, lengths, text, text_lengths)
    frames, counts = model.acoustic(speech, lengths)
    ctc = slow_ctc(model.ctc(frames)[0].tolist(), [5, 9], model.ctc.blank)
    assert float(stats["loss_ctc"]) == pytest.approx(ctc, rel=1e-4)
    assert float(loss) == pytest.approx(float(stats["loss_transducer"]) + 0.3 * ctc, rel=1e-4)
    assert float(model(speech, torch.tensor([400]), text, text_lengths)[0]) == 0  # no frame, no path


def test_alsd_writes_more_tokens_than_espnets_default_allows(load):
    speech2text = load(search="alsd", beam_size=2)
    joint = speech2text.model.joint_network.lin_out
    with torch.no_grad():
        joint.bias[0] -= 100  # never blank: every step writes
    (nbest,) = speech2text.transcribe_batch([tiny.speech(1, 16000 * 4)])
    assert len(nbest[0].token_ids) > 50
    with torch.no_grad():
        joint.bias[0] += 100


@pytest.mark.parametrize("search", SEARCHES)
def test_batch_is_alone(load, search):
    speech2text = load(search=search, beam_size=3, nbest=3)
    recordings = [tiny.speech(1, 20000), tiny.speech(3, 300), tiny.speech(7, 16000)]
    together = speech2text.transcribe_batch(recordings)
    for nbest, recording in zip(together, recordings, strict=True):
        alone = speech2text(recording)
        assert [one.token_ids for one in alone] == [one.token_ids for one in nbest]
        assert [one.score for one in alone] == pytest.approx([one.score for one in nbest], abs=1e-4)
    assert together[0][0].text and together[1][0].text == "" and together[2][0].text
    assert speech2text.transcribe_batch([]) == []
    assert [len(nbest) for nbest in together] == ([1, 1, 1] if search == "greedy" else [3, 1, 3])


@pytest.mark.parametrize("search", SEARCHES)
def test_class_k_is_the_tokenizers_k_minus_1(load, search):
    speech2text = load(search=search, beam_size=2)
    token = speech2text.tokenizer.pieces.index("▁a")
    with torch.no_grad():
        speech2text.model.joint_network.lin_out.weight.zero_()
        speech2text.model.joint_network.lin_out.bias.zero_()
        speech2text.model.joint_network.lin_out.bias[[0, token + 1]] = torch.tensor([3.0, 4.0])
    (transcript,) = speech2text(tiny.speech(1, 6400))
    assert set(transcript.token_ids) == {token} and set(transcript.text.split()) == {"a"}


@pytest.mark.parametrize("search", ["alsd", "tsd", "nsc", "maes"])  # default takes minutes
def test_a_beam_may_be_larger_than_the_vocabulary(load, search):
    speech2text = load(search=search, beam_size=1000, nbest=2)
    nbest = speech2text(tiny.speech(1, 3200))
    assert len(nbest) == 2 and nbest[0].score > nbest[1].score


def test_training_lowers_the_loss_and_what_it_leaves_decodes(toy_data, toy_stats, tmp_path):
    from espnet_speechllm_xl import Speech2Text

    out = training.train("transducer", toy_data, tmp_path / "exp", toy_stats, max_epoch=4)
    losses = [epoch["train"]["loss"] for _, epoch in sorted(training.history(out).items())]
    assert losses[-1] < 0.7 * losses[0]
    (out / "tokenizer.model").write_bytes(toy_data.tokenizer.read_bytes())
    nbest = Speech2Text.from_pretrained(out, nbest=3)(tiny.speech(1, 16000))
    assert len({one.text for one in nbest}) == 3 and nbest[0].score > nbest[1].score > nbest[2].score


def test_what_it_cannot_do(load, capsys, model_dir):
    from espnet_speechllm_xl.bin import cli

    with pytest.raises(ConfigError, match="run in float32 only"):
        load(dtype="float64")(tiny.speech(1, 16000))
    model = load().model
    with pytest.raises(ConfigError, match="a transducer's loss is over paths"):
        type(model)(model.acoustic, model.decoder, model.joint_network, LossConfig(label_smoothing=0.1))
    assert cli.main(["transcribe", "no.wav", "--model", str(model_dir), "--format", "srt"]) == 2
    assert "a model of task 'transducer' gives no word times: use text or json" in capsys.readouterr().err
