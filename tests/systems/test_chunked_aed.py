"""The chunked AED: steps == the parallel pass, its own chunk only, batch == alone, offline == stream, a training."""

import random

import pytest
import tiny
import torch
import training
from aligned import VOCABULARY, as_batch, make_acoustic, random_utterances
from slow import slow_label_sequence

from espnet_speechllm_xl.config import ChunkingConfig, LossConfig, ProjectionConfig
from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.systems.chunked_aed import ChunkedAED, LabelDecoder

SIZES = {"dim": 16, "lstm_layers": 2, "blocks": 2, "heads": 2, "ffn_dim": 24}


def make_model(chunk=8, delay=0, reduction=1, **loss):
    torch.manual_seed(0)
    decoder = LabelDecoder(VOCABULARY, **SIZES)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    sections = ChunkingConfig(chunk, 0, delay), LossConfig(**loss), ProjectionConfig(reduction)
    return ChunkedAED(make_acoustic(), decoder, *sections).double().eval()


@torch.no_grad()
@pytest.mark.parametrize("option, blocks", [("dropout", False), ("dropout", True), ("embed_dropout", True)])
def test_dropout_acts_in_training_only(option, blocks):
    """On the LSTM's output, in the blocks, on the labels."""
    torch.manual_seed(0)
    decoder = LabelDecoder(VOCABULARY, **{**SIZES, "dropout": 0.0, option: 0.5})
    if not blocks:
        decoder.blocks = torch.nn.ModuleList()
    elif option == "dropout":
        decoder.dropout = torch.nn.Identity()
    labels, chunk = torch.randint(VOCABULARY, (1, 30)), torch.zeros(1, 30).long()
    memory = decoder.memory(torch.randn(1, 8, 16), torch.arange(8)) if blocks else torch.zeros(1, 0)

    def states():
        return decoder(decoder.embed(labels), chunk, memory, torch.zeros(1, 8).long())[0]

    assert decoder.train() and not states().equal(states())
    assert decoder.eval() and states().equal(states())


@torch.no_grad()
def stepwise(model, utterance):
    """Log-probabilities (V + 1,) with their targets, label by label as a search asks for them."""
    frames, counts = model.acoustic(utterance["speech"][None], torch.tensor([len(utterance["speech"])]))
    chunks = [model.projection(piece) for piece in frames[0].split(model.chunking.chunk or int(counts))]
    settings = model.chunking.chunk, model.chunking.delay, VOCABULARY
    labels, chunk, targets = slow_label_sequence(int(counts), utterance["text"], utterance["ends"], *settings)
    past, pairs = model.decoder.initial_past(0), []
    for label, index, target in zip(labels, chunk, targets, strict=True):
        begins = label == VOCABULARY
        request = Request(past, index, chunks[index]) if begins else Request(past, index, token=label)
        (result,) = model.decoder.extend([request])
        past = result.past
        pairs.append((result.log_probs, target))
    return pairs


@pytest.mark.parametrize("reduction", [1, 4])
@pytest.mark.parametrize("chunk, delay", [(8, 0), (4, 3), (2, 0), (None, 0)])
def test_the_loss_is_that_of_the_steps(chunk, delay, reduction):
    model = make_model(chunk, delay, reduction)
    utterances = random_utterances(seed=3)
    pairs = [pair for utterance in utterances for pair in stepwise(model, utterance)]
    loss, stats, weight = model(**as_batch(utterances))
    assert int(weight) == len(pairs)
    expected = sum(-float(log_probs[target]) for log_probs, target in pairs) / len(pairs)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    right = [int(log_probs.argmax()) == target for log_probs, target in pairs]
    assert stats["acc"].item() == pytest.approx(sum(right) / len(right))


@torch.no_grad()
def test_it_hears_its_own_chunk_only_and_remembers_every_label():
    model = make_model(chunk=4)
    counts, lengths = torch.tensor([14]), torch.tensor([5])
    ends, tokens = torch.tensor([[1, 5, 6, 9, 13]]), torch.tensor([[1, 2, 3, 4, 5]])
    frames = torch.randn(1, 14, 16).double()
    chunk = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])  # of the labels: EOC 1, EOC 2 3, EOC 4, EOC 5

    def moved(frames_now, tokens_now):
        hidden, _ = model.decode_aligned(frames_now, counts, tokens_now, lengths, ends, model.chunking)
        return (hidden - before)[0].abs().amax(1) > 1e-6

    before, _ = model.decode_aligned(frames, counts, tokens, lengths, ends, model.chunking)
    for index in range(4):
        other = frames.clone()
        other[:, 4 * index : 4 * index + 4] += 1
        assert moved(other, tokens).tolist() == (chunk == index).tolist()
    swapped = frames[:, [1, 0, *range(2, 14)]]  # frames carry their place
    assert moved(swapped, tokens).tolist() == (chunk == 0).tolist()
    assert moved(frames, torch.tensor([[7, 2, 3, 4, 5]])).tolist() == [False] + [True] * 8


def test_each_request_of_a_batch_as_if_alone():
    model = make_model()
    decoder, frames = model.decoder, torch.randn(8, 16).double()
    start = decoder.initial_past(0)
    first, second, short = decoder.extend(
        [Request(start, 0, frames), Request(start, 0, frames), Request(start, 0, frames[:3])]
    )
    assert first.past.memory.data_ptr() == second.past.memory.data_ptr(), "the same frames, the same memory"
    requests = [
        Request(first.past, 0, token=2),
        Request(short.past.alone(), 0, token=5),
        Request(short.past, 1, frames[2:4]),
    ]
    together = decoder.extend(requests)
    for request, result in zip(requests, together, strict=True):
        (alone,) = decoder.extend([request])
        torch.testing.assert_close(alone.log_probs, result.log_probs, rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.past.state, result.past.state, rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.past.memory, result.past.memory, rtol=0, atol=1e-12)


def test_gradient_reaches_every_weight_and_batch_is_the_mean_of_singles():
    model = make_model(ctc_weight=0.1)
    utterances = random_utterances(seed=5)
    loss, _, weight = model(**as_batch(utterances))
    singles = [model(**as_batch([utterance])) for utterance in utterances]
    assert loss.item() * int(weight) == pytest.approx(sum(o.item() * int(n) for o, _, n in singles), rel=1e-10)
    model.train()(**as_batch(utterances))[0].backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and value.grad.abs().max() > 0 and torch.isfinite(value.grad).all(), name


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_tokens):
    """A chunked AED of random weights with gains that make its text depend on the audio."""

    def listen(model):
        for weight in model.decoder.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
        model.projection.weight.mul_(8)
        model.decoder.output.bias[model.decoder.eoc] += 2

    fields = [f"{name}={value}" for name, value in SIZES.items()]
    extra = [*tiny.conf("decoder_conf", fields), *tiny.conf("chunking_conf", ["chunk=16", "context=0"])]
    extra += tiny.conf("search_conf", ["beam_size=3", "max_tokens_per_chunk=8"])
    directory = tmp_path_factory.mktemp("exp") / "chunked_aed"
    task = training.task_of("chunked_aed")
    return tiny.write_model(directory, task, tiny_tokens, "valid.acc_text.ave.pth", extra, change=listen)


@pytest.fixture(scope="module")
def load(model_dir):
    from espnet_speechllm_xl import Speech2Text

    return lambda **settings: Speech2Text.from_pretrained(model_dir, dtype="float64", **settings)


@pytest.mark.parametrize("search", ["greedy", "chunk_sync", "alsd"])
def test_batch_is_alone_and_offline_is_the_stream(load, search):
    speech2text, rng = load(search=search), random.Random(search)
    recordings = [tiny.speech(seed, length) for seed, length in enumerate([30000, 300, 41234])]
    together = [nbest[0] for nbest in speech2text.transcribe_batch(recordings)]
    assert together[0].text and together[1].text == "" and together[0].text != together[2].text
    for one, recording in zip(together, recordings, strict=True):
        alone = speech2text(recording)[0]
        assert alone.token_ids == one.token_ids and alone.score == pytest.approx(one.score, abs=1e-9)
        if search != "alsd":
            stream = speech2text.stream(search, endpoint_silence=float("inf"), settle_seconds=float("inf"))
            assert tiny.said(tiny.play(stream, tiny.cuts(recording, rng, 9000))) == one.text


def test_another_context_is_refused(load):
    message = "a chunked AED attends to its own chunk only: set chunking_conf context to 0"
    with pytest.raises(ConfigError, match=message):
        ChunkedAED(make_acoustic(), LabelDecoder(VOCABULARY, **SIZES), ChunkingConfig(8, 1), LossConfig())
    with pytest.raises(ConfigError, match=message):
        load(context=1.28)(tiny.speech(1, 16000))
    assert load(chunk_size=float("inf")).chunking == ChunkingConfig(None, 0)


def test_training_raises_the_accuracy_and_what_it_leaves_decodes(toy_data, toy_stats, tmp_path):
    from espnet_speechllm_xl import Speech2Text

    out = training.train("chunked_aed", toy_data, tmp_path / "exp", toy_stats, max_epoch=6)
    history = [epoch["train"] for _, epoch in sorted(training.history(out).items())]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"] and history[-1]["acc"] > history[0]["acc"]
    (out / "tokenizer.model").write_bytes(toy_data.tokenizer.read_bytes())
    s2t = Speech2Text.from_pretrained(out, search="greedy")
    assert len({s2t(tiny.speech(seed, 16000))[0].text for seed in range(4)}) > 1
