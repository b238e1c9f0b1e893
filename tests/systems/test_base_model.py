"""The recogniser's loss against slow computations; batch == alone; causality; gradients.  Eval mode, float64."""

import itertools
import math

import checkpoints
import pytest
import torch
from aligned import ENCODERS, SHAPE, VOCABULARY, as_batch, make_acoustic, random_utterances
from slow import slow_ctc, slow_errors, slow_sequence, slow_stacks

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, EncoderConfig, LossConfig, ProjectionConfig, TextPromptConfig
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.model.sequence import build_sequence, gather_inputs
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.systems.ctc import CTCModel
from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXL


def make_model(encoder="conv", chunk=8, context=1, delay=0, projection=(), pretrained=None, **loss):
    torch.manual_seed(0)
    conf = {"pretrained": pretrained} if pretrained else {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 24}
    decoder = Decoder(VOCABULARY, **conf)
    sections = ChunkingConfig(chunk, context, delay), LossConfig(**loss), ProjectionConfig(*projection)
    prompts = TextPromptConfig(probability=0.5)
    model = SpeechLLMXL(make_acoustic(encoder), decoder, *sections, prompts)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    return model.double().eval()


@torch.no_grad()
def slow_losses(model, utterance):
    """Log-probabilities (V + 1,) at every scored input of one utterance with its target: list of pairs."""
    frames, counts = model.acoustic(utterance["speech"][None], torch.tensor([len(utterance["speech"])]))
    chunk, delay, reduction = model.chunking.chunk, model.chunking.delay, model.projection_config.reduction
    inputs, chunks, targets = slow_sequence(
        int(counts), utterance["text"], utterance["ends"], chunk, delay, VOCABULARY, reduction
    )
    stacks, _ = slow_stacks(int(counts), chunk, reduction)
    (weight, bias), vectors = model.projection.parameters(), []
    for kind, index in inputs:
        if kind == "frame":
            stack = frames[0, stacks[index]].flatten()
            vectors.append(weight[:, : len(stack)] @ stack + bias)  # what an input lacks adds nothing
        else:
            vectors.append(model.decoder.lm.get_input_embeddings().weight[utterance["text"][index]])
    position = torch.arange(len(inputs))[None]
    hidden = model.decoder(torch.stack(vectors)[None], position, torch.tensor([chunks]), model.chunking.context)
    log_probs = model.decoder.logits(hidden)[0].log_softmax(-1)
    return [(log_probs[i], target) for i, target in enumerate(targets) if target is not None]


@pytest.mark.parametrize("chunk, context, delay", [(8, 1, 0), (8, 0, 3), (2, None, 0), (4, 2, 1), (None, None, 0)])
@pytest.mark.parametrize("smoothing, reduction", [(0.0, 1), (0.2, 1), (0.0, 2), (0.0, 4)])
def test_loss_counts_text_and_end_targets_only(chunk, context, delay, smoothing, reduction):
    model = make_model(chunk=chunk, context=context, delay=delay, projection=(reduction,), label_smoothing=smoothing)
    utterances = random_utterances(seed=3)
    pairs = [pair for utterance in utterances for pair in slow_losses(model, utterance)]
    expected = 0.0
    for log_probs, target in pairs:
        spread = sum(-log_probs[v] for v in range(VOCABULARY + 1)) / (VOCABULARY + 1)
        expected += (1 - smoothing) * -log_probs[target] + smoothing * spread
    loss, stats, weight = model(**as_batch(utterances))
    chunks = sum(int(timeline.num_chunks(timeline.frames(len(u["speech"]), 16000), chunk)) for u in utterances)
    assert int(weight) == len(pairs) == chunks + sum(len(u["text"]) for u in utterances)
    assert loss.item() == pytest.approx(expected.item() / len(pairs), rel=1e-10)
    right = [int(log_probs.argmax()) == target for log_probs, target in pairs]
    text = [hit for hit, (_, target) in zip(right, pairs, strict=True) if target != VOCABULARY]
    assert stats["acc"].item() == pytest.approx(sum(right) / len(right))
    assert stats["acc_text"].item() == pytest.approx(sum(text) / len(text))


@torch.no_grad()
def chunkwise_losses(model, utterance, chunking):
    """Log-probabilities (V + 1,) with their targets, chunk by chunk with a cache, as a search asks for them."""
    frames, counts = model.acoustic(utterance["speech"][None], torch.tensor([len(utterance["speech"])]))
    settings = chunking.chunk, chunking.delay, VOCABULARY
    inputs, chunks, _ = slow_sequence(int(counts), utterance["text"], utterance["ends"], *settings)
    prompt, pairs = utterance.get("prompt"), []
    past = model.decoder.initial_past(chunking.context)
    if prompt:
        past = model.decoder.prompted_past(chunking.context, prompt)
    for k, piece in enumerate(frames[0].split(chunking.chunk or int(counts))):
        own = [index for (kind, index), chunk in zip(inputs, chunks, strict=True) if kind == "token" and chunk == k]
        tokens = [utterance["text"][index] for index in own]
        (result,) = model.decoder.extend([Request(past, k, frames=model.projection(piece))])
        for token, target in zip([*tokens, None], [*tokens, VOCABULARY], strict=True):
            pairs.append((result.log_probs, target))
            if token is not None:
                (result,) = model.decoder.extend([Request(result.past, k, token=token)])
        past = result.past
    return pairs


def assert_loss_is_that_of_decoding(model, utterances, rel=1e-10):
    """Chunk by chunk, as a stream decodes; return the loss of the batch and the number of its targets."""
    loss, _, weight = model(**as_batch(utterances))
    pairs = [pair for utterance in utterances for pair in chunkwise_losses(model, utterance, model.chunking)]
    assert int(weight) == len(pairs)
    expected = -sum(float(log_probs[target]) for log_probs, target in pairs) / len(pairs)
    assert loss.item() == pytest.approx(expected, rel=rel)
    return loss, len(pairs)


@pytest.mark.parametrize("projection", [(), (2, 0), (4, 0), (4, 12), (1, 12), (8, 0)], ids=str)
@pytest.mark.parametrize("chunk, context", [(8, 1), (4, 0), (2, 3), (12, 1), (16, None), (None, None)])
def test_training_is_decoding_chunk_by_chunk(projection, chunk, context):
    """With eviction; also where chunks are no whole number of inputs, and of other sizes than the model's."""
    model = make_model(projection=projection)
    model.chunking = ChunkingConfig(chunk, context, delay=1)
    utterances = random_utterances(seed=3)
    assert_loss_is_that_of_decoding(model, utterances)


@pytest.mark.parametrize("chunk, context, projection", [(8, 1, ()), (4, 0, (4,)), (2, 3, ()), (None, None, ())])
def test_training_with_prompts_is_decoding_with_prompts(chunk, context, projection):
    """A batch of utterances with a prompt and without, and each of them alone."""
    model = make_model(chunk=chunk, context=context, projection=projection)
    utterances = random_utterances(seed=3)
    for utterance, prompt in zip(utterances, [[1, 2, 3], [], [4] * 9, [5]], strict=True):
        utterance["prompt"] = prompt
    loss, count = assert_loss_is_that_of_decoding(model, utterances)
    singles = [model(**as_batch([utterance])) for utterance in utterances]
    assert loss.item() * count == pytest.approx(sum(o.item() * int(n) for o, _, n in singles), rel=1e-10)
    bare = [{name: value for name, value in utterance.items() if name != "prompt"} for utterance in utterances]
    assert model(**as_batch(bare))[0].item() != pytest.approx(loss.item(), rel=1e-4)
    assert model(**as_batch([bare[1]]))[0].item() == pytest.approx(singles[1][0].item(), rel=1e-12)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "smollm3"])
def test_training_an_llm_with_prompts_and_stacked_frames_is_decoding(family, tmp_path):
    """Gemma 2 computes softmaxes in float32."""
    model = make_model(chunk=4, context=1, projection=(2, 12), pretrained=checkpoints.make(tmp_path, family))
    utterances = random_utterances(seed=3)
    for utterance, prompt in zip(utterances, [[1, 2, 3], [], [4] * 9, [5]], strict=True):
        utterance["prompt"] = prompt
    assert_loss_is_that_of_decoding(model, utterances, rel=1e-6)


@pytest.mark.parametrize("projection", [(), (4, 12)], ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_batch_equals_the_weighted_mean_of_singles(encoder, projection):
    model = make_model(encoder, projection=projection)
    utterances = random_utterances(seed=5, count=6)
    loss, _, weight = model(**as_batch(utterances))
    singles = [model(**as_batch([utterance])) for utterance in utterances]
    total = sum(one.item() * int(count) for one, _, count in singles)
    assert int(weight) == sum(int(count) for _, _, count in singles)
    assert loss.item() * int(weight) == pytest.approx(total, rel=1e-10)


def test_auxiliary_ctc_loss():
    plain, model = make_model(), make_model(ctc_weight=0.3)
    model.load_state_dict(plain.state_dict(), strict=False)
    utterances = random_utterances(seed=7)
    short = {"speech": utterances[0]["speech"][:6000], "text": [1] * 12, "ends": [3] * 12}  # no path: 8 frames
    utterances.append(short)
    total = 0.0
    for utterance in utterances:
        frames, _ = model.acoustic(utterance["speech"][None], torch.tensor([len(utterance["speech"])]))
        logits = frames[0] @ model.ctc.output.weight.T + model.ctc.output.bias
        loss = slow_ctc(logits.log_softmax(-1).tolist(), utterance["text"], VOCABULARY)
        total += 0.0 if math.isinf(loss) else loss
    assert math.isinf(loss), "the last one has no path"
    batch = as_batch(utterances)
    loss, stats, targets = model(**batch)
    mean = total / int(targets)  # per text and `$` target, as the loss itself
    expected = plain(**batch)[0].item()
    assert stats["loss_llm"].item() == pytest.approx(expected, rel=1e-10)
    assert stats["loss_ctc"].item() == pytest.approx(mean, rel=1e-8)
    assert loss.item() == pytest.approx(expected + 0.3 * mean, rel=1e-8)


@torch.no_grad()
def logits_of(model, utterance):
    """Logits (L, V + 1) of one utterance and the chunk of each input."""
    batch = as_batch([utterance])
    frames, counts = model.acoustic(batch["speech"], batch["speech_lengths"])
    sequence = build_sequence(
        counts, batch["text"], batch["text_lengths"], batch["ends"], model.chunking, model.decoder.eoc
    )
    inputs = gather_inputs(sequence, model.projection(frames), model.decoder.embed(batch["text"]))
    hidden = model.decoder(inputs, sequence.position, sequence.chunk_id, model.chunking.context)
    return model.decoder.logits(hidden)[0], sequence.chunk_id[0]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("chunk, context", [(4, 1), (8, 0), (2, None)])
def test_later_audio_changes_nothing_earlier_than_it_may(encoder, chunk, context):
    model = make_model(encoder, chunk=chunk, context=context)
    utterance = random_utterances(seed=11)[2]
    logits, chunks = logits_of(model, utterance)
    assert int(chunks.max()) >= 3
    segment, right = SHAPE["segment"], SHAPE["right_context"]
    for k in range(int(chunks.max()) - 1):
        # The chunk's last frame is computed with its whole segment and the look-ahead.
        heard = -(-(k + 1) * chunk // segment) * segment + right
        samples = timeline.samples_for_frames(heard, 16000)
        changed = dict(utterance, speech=utterance["speech"].clone())
        if samples >= len(changed["speech"]):
            break
        changed["speech"][samples:] = torch.randn(len(changed["speech"]) - samples).double()
        other, _ = logits_of(model, changed)
        # Also chunks that share the segment of chunk k know nothing of it.
        early = chunks <= (heard - right) // chunk - 1
        assert (logits[early] - other[early]).abs().max() < 1e-10
        assert (logits[~early] - other[~early]).abs().max() > 1e-3
        changed["speech"] = utterance["speech"].clone()
        changed["speech"][samples - 100 : samples] += 0.5  # the last samples that may count do count
        other, _ = logits_of(model, changed)
        assert (logits[chunks <= k] - other[chunks <= k]).abs().max() > 1e-9


@pytest.mark.parametrize("encoder, projection", [*((name, ()) for name in ENCODERS), ("conv", (2, 12))])
def test_gradient_reaches_every_weight(encoder, projection):
    model = make_model(encoder, projection=projection, ctc_weight=0.1).train()
    model(**as_batch(random_utterances(seed=13)))[0].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name
        assert torch.isfinite(weight.grad).all(), name


def test_a_batch_without_text_trains():
    """Every weight still has a gradient: DDP waits for all of them."""
    utterances = [dict(utterance, text=[], ends=[]) for utterance in random_utterances(seed=17)]
    model = make_model(projection=(2,), ctc_weight=0.1).train()
    loss, stats, weight = model(**as_batch(utterances))
    loss.backward()
    assert int(weight) == sum(-(-timeline.frames(len(u["speech"]), 16000) // 8) for u in utterances)
    assert torch.isfinite(loss) and stats["acc_text"] == 0
    assert all(weight.grad is not None for weight in model.parameters())


def test_mixed_precision_is_close_and_finite():
    model = make_model(ctc_weight=0.1).float()
    batch = as_batch(random_utterances(seed=19))
    batch["speech"] = batch["speech"].float()
    expected = model(**batch)[0].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, _ = model.train()(**batch)
        close = model.eval()(**batch)[0].item()
    loss.backward()
    assert close == pytest.approx(expected, rel=0.05)
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_chunk_and_segment_must_fit():
    with pytest.raises(ConfigError, match="chunk 6 and encoder segment 4 do not divide one another"):
        make_model(chunk=6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_ctc_model_batch_equals_alone(encoder):
    torch.manual_seed(0)
    model = CTCModel(make_acoustic(encoder), VOCABULARY, dropout=0.1).double().eval()
    utterances = random_utterances(seed=23, count=5)
    batch = as_batch(utterances)
    log_probs, counts = model.log_probs(batch["speech"], batch["speech_lengths"])
    total = 0.0
    for index, utterance in enumerate(utterances):
        alone, count = model.log_probs(utterance["speech"][None], torch.tensor([len(utterance["speech"])]))
        assert int(count) == int(counts[index]) == timeline.frames(len(utterance["speech"]), 16000)
        assert (alone[0] - log_probs[index, : int(count)]).abs().max() < 1e-10
        total += slow_ctc(alone[0].tolist(), utterance["text"], VOCABULARY)
    loss, stats, weight = model(**batch)
    assert loss.item() == pytest.approx(total / len(utterances), rel=1e-8) and int(weight) == len(utterances)
    errors = 0
    for index, utterance in enumerate(utterances):
        path = log_probs[index, : int(counts[index])].argmax(-1).tolist()
        found = [token for token, _ in itertools.groupby(path) if token != VOCABULARY]
        errors += slow_errors(utterance["text"], found)
    assert stats["ter"] == pytest.approx(errors / sum(len(utterance["text"]) for utterance in utterances))
    assert errors and len({len(utterance["text"]) for utterance in utterances}) > 1


def test_dropout_before_the_ctc_head_acts_in_training_only():
    head, frames = CTCHead(6, 3, dropout=0.5), torch.randn(1, 40, 6)
    assert head.train()(frames).ne(head(frames)).any()
    assert head.eval()(frames).equal(head(frames))


def test_training_draws_chunk_sizes_and_evaluation_does_not():
    model = make_model(chunk=8, context=2)
    batch = as_batch(random_utterances(3))
    sizes = {8: 2, 4: 4, 16: 1}  # chunk: context that reaches as far back
    losses = {chunk: make_model(chunk=chunk, context=context)(**batch)[0].item() for chunk, context in sizes.items()}
    model.chunking = ChunkingConfig(8, 2, train_chunks=[4, 8, 16])
    assert {model(**batch)[0].item() for _ in range(5)} == {losses[8]}
    model.training = True  # the parts stay in evaluation: no dropout, no SpecAugment
    torch.manual_seed(1)
    drawn = [model(**batch)[0].item() for _ in range(30)]
    assert len(set(losses.values())) == 3 and set(drawn) == set(losses.values())
    assert min(drawn.count(value) for value in losses.values()) >= 3


def test_training_draws_look_aheads_and_evaluation_does_not():
    batch = as_batch(random_utterances(3))
    losses = {}
    for ahead in (0, 1, 5):
        model = make_model(chunk=8, context=2)
        model.chunking = ChunkingConfig(8, 2, look_ahead=ahead)
        losses[ahead] = model(**batch)[0].item()
    model.chunking = ChunkingConfig(8, 2, look_ahead=1, train_look_aheads=[0, 5])
    assert {model(**batch)[0].item() for _ in range(5)} == {losses[1]}
    model.training = True  # the parts stay in evaluation
    torch.manual_seed(1)
    drawn = [model(**batch)[0].item() for _ in range(20)]
    assert len(set(losses.values())) == 3 and set(drawn) == {losses[0], losses[5]}
    assert 4 <= drawn.count(losses[0]) <= 16


def test_look_aheads_must_fit_the_encoder():
    with pytest.raises(ConfigError, match=r"train_look_aheads \[-1\]: give a list of frames >= 0, or null"):
        ChunkingConfig(8, 1, train_look_aheads=[-1])
    with pytest.raises(ConfigError, match="look_ahead -1: give frames >= 0, or null"):
        ChunkingConfig(8, 1, look_ahead=-1)
    whole = EncoderConfig(segment=None, left_context=0, right_context=0)
    ChunkingConfig(8, 1, look_ahead=0).check_against(whole)
    for conf in ({"look_ahead": 2}, {"train_look_aheads": [0, 2]}):
        with pytest.raises(ConfigError, match="look_ahead 2: an encoder with segment null hears the whole utterance"):
            ChunkingConfig(8, 1, **conf).check_against(whole)


def test_every_drawn_chunk_size_must_fit_the_segment():
    model = make_model()
    with pytest.raises(ConfigError, match="chunk 6 and encoder segment 4 do not divide one another"):
        SpeechLLMXL(model.acoustic, model.decoder, ChunkingConfig(8, 1, train_chunks=[4, 6]), LossConfig())
    with pytest.raises(ConfigError, match=r"train_chunks \[0\]: give a list of frames >= 1, or null"):
        ChunkingConfig(8, 1, train_chunks=[0])
