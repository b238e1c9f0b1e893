"""The CTC-prompt-LM baseline: CTC's end of a block, prompts, layout, steps, streams, a training, what it refuses."""

import dataclasses
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import training
import yaml
from aligned import as_batch, make_acoustic, random_utterances

from espnet_speechllm_xl.config import ChunkingConfig, LossConfig, StreamConfig
from espnet_speechllm_xl.model.ctc_prefix_score import Prefix
from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.systems.ctc import collapse
from espnet_speechllm_xl.systems.ctc_prompt_lm import CTCPromptLM, PromptConfig, PromptPast, fuse_end

REPO = Path(__file__).parents[2]
VOCABULARY, CHUNK = 9, 8
LAYOUTS = ["prompts_first", "interleaved"]


def make_model(unit="token", context=None, **prompt):
    """Random weights that make about half of the frames prompts; float64, evaluation."""
    torch.manual_seed(0)
    lm = Decoder(VOCABULARY, dim=16, layers=2, heads=2, ffn_dim=24)
    chunking, loss = ChunkingConfig(CHUNK, context, unit=unit), LossConfig(ctc_weight=0.3)
    model = CTCPromptLM(make_acoustic(), lm, chunking, loss, PromptConfig(**prompt))
    with torch.no_grad():
        for weight in lm.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
        model.acoustic.normalizer.mean.fill_(-4.0)
        model.acoustic.normalizer.std.fill_(2.0)
        model.double().eval()
        frames, counts = encoded(model, random_utterances(seed=1))
        model.ctc.output.weight.normal_(0, 1)
        scores = torch.cat([model.ctc(row[:count]) for row, count in zip(frames, counts, strict=True)])
        model.ctc.output.bias[VOCABULARY] += (scores[:, :-1].amax(1) - scores[:, -1]).median()
    return model


def encoded(model, utterances):
    batch = as_batch(utterances)
    with torch.no_grad():
        return model.acoustic(batch["speech"], batch["speech_lengths"])


# CTC's end of a block


def brute_force(log_probs):
    """``{text: probability}`` over all paths of a block."""
    texts = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = tuple(collapse(path, log_probs.shape[1] - 1))
        score = math.exp(sum(float(frame[symbol]) for frame, symbol in zip(log_probs, path, strict=True)))
        texts[text] = texts.get(text, 0.0) + score
    return texts


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_end_of_a_block_is_that_of_all_paths(frames):
    log_probs = torch.randn(frames, 4, generator=torch.Generator().manual_seed(frames)).mul(2).log_softmax(-1)
    texts = brute_force(log_probs)
    for length in range(4):
        for text in itertools.product(range(3), repeat=length):
            prefix = Prefix.empty(log_probs)
            for token in text:
                prefix = prefix.extend(token)
            begun = sum(share for other, share in texts.items() if other[:length] == text)
            expected = texts[text] / begun if begun else 1.0  # nothing can follow what does not fit
            assert prefix.end().item() == pytest.approx(math.log(expected), abs=1e-6)


def test_end_of_a_long_block_stays_finite():
    """Ten clear tokens: a text that lacks n of them leaves out any n, at e^-60 each."""
    log_probs = torch.full((400, 3), -60.0)
    log_probs[:, 2] = 0.0
    log_probs[::40, 0] = 0.0
    log_probs[::40, 2] = -60.0
    log_probs = log_probs.log_softmax(-1)
    prefix, ends = Prefix.empty(log_probs), []
    for _ in range(12):
        ends.append(prefix.end().item())
        prefix = prefix.extend(0)
    assert ends[:10] == pytest.approx([math.log(math.comb(10, n)) - 60.0 * n for n in range(10, 0, -1)], abs=1e-3)
    assert ends[10] == pytest.approx(0.0, abs=1e-6)
    assert ends[11] <= 0 and math.isfinite(ends[11])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_fusion_is_a_distribution_that_moves_the_end_only(weight):
    log_probs = torch.randn(6, dtype=torch.float64).log_softmax(0)
    fused = fuse_end(log_probs, torch.tensor(-2.0), weight)
    assert fused.logsumexp(0).item() == pytest.approx(0.0, abs=1e-12)
    assert fused[-1].item() == pytest.approx((1 - weight) * log_probs[-1].item() - 2.0 * weight)
    assert (fused[:-1] - log_probs[:-1]).std() < 1e-12
    if weight == 0:
        assert (fused - log_probs).abs().max() < 1e-12


def test_a_certain_end_leaves_nothing_to_the_tokens():
    fused = fuse_end(torch.tensor([-1.0, -1.0, -30.0]).log_softmax(0), torch.tensor(0.0), 1.0)
    assert fused.tolist() == [-math.inf, -math.inf, 0.0]


# Prompts


@torch.no_grad()
def slow_prompts(model, frames):
    """Prompts of one utterance (T, E) as a list of (block, vector)."""
    decoder, memory, found = model.decoder, None, []
    for block in range(-(-len(frames) // CHUNK)):
        own = frames[block * CHUNK : (block + 1) * CHUNK]
        for frame in own:
            scores = decoder.ctc.output.weight @ frame + decoder.ctc.output.bias
            if int(scores.argmax()) != VOCABULARY:
                found.append((block, decoder.frame_prompt(frame)))
        embedding, memory = decoder.memory(own.mean(0)[None, None], memory)
        found.append((block, decoder.context_prompt(embedding[0, 0])))
    return found


def test_prompts_are_frames_that_ctc_hears_and_a_context_embedding_a_block():
    model, utterances = make_model(), random_utterances(seed=3, count=6)
    frames, counts = encoded(model, utterances)
    prompts = model.decoder.prompts(frames, counts, CHUNK)
    heard = 0
    for index, count in enumerate(counts.tolist()):
        expected = slow_prompts(model, frames[index, :count])
        blocks = [block for block, _ in expected]
        more = prompts.block[index, len(expected) :]
        assert prompts.block[index, : len(expected)].tolist() == blocks and (more > max(blocks)).all()
        vectors = torch.stack([vector for _, vector in expected])
        assert (prompts.vectors[index, : len(expected)] - vectors).abs().max() < 1e-12
        heard += len(expected) - len(set(blocks))
    assert 0.2 < heard / int(counts.sum()) < 0.8


def test_prompts_block_by_block_are_those_of_the_whole():
    model, utterances = make_model(), random_utterances(seed=4, count=3)
    frames, counts = encoded(model, utterances)
    for row, count in zip(frames, counts.tolist(), strict=True):
        whole = model.decoder.prompts(row[None, :count], torch.tensor([count]), CHUNK)
        memory, pieces = None, []
        for block in row[:count].split(CHUNK):
            prompts = model.decoder.prompts(block[None], torch.tensor([len(block)]), None, memory)
            memory = prompts.memory
            pieces.append(prompts.vectors)
        assert (torch.cat(pieces, 1) - whole.vectors).abs().max() < 1e-12
        assert (memory - whole.memory).abs().max() < 1e-12


# Training


@torch.no_grad()
def slow_scores(model, frames, tokens, blocks, cut):
    """``[(log-probabilities (V + 1,), target)]`` of one utterance (T, E) that is cut after ``cut`` blocks."""
    prompts, embeddings = slow_prompts(model, frames), model.decoder.lm.lm.get_input_embeddings().weight
    pairs = list(zip(tokens, blocks, strict=True))
    parts = [
        ([vector for b, vector in prompts if b == block], [token for token, b in pairs if b == block])
        for block in range(cut)
    ]
    if model.prompt_config.layout == "prompts_first":
        parts = [tuple(sum(lists, []) for lists in zip(*parts, strict=True))]
    inputs, chunks, scored = [], [], []
    for chunk, (vectors, text) in enumerate(parts):
        inputs += [*vectors, *(embeddings[token] for token in text)]
        scored += zip(range(len(inputs) - len(text) - 1, len(inputs)), [*text, VOCABULARY], strict=True)
        chunks += [chunk] * (len(vectors) + len(text))
    position = torch.arange(len(inputs))[None]
    hidden = model.decoder.lm(torch.stack(inputs)[None], position, torch.tensor([chunks]), model.chunking.context)
    log_probs = model.decoder.lm.logits(hidden)[0].log_softmax(-1)
    return [(log_probs[index], target) for index, target in scored]


def token_blocks(utterance, count):
    return [min(end // CHUNK, -(-count // CHUNK) - 1) for end in utterance["ends"]]


@pytest.mark.parametrize("cuts", [None, [1, 2, 1, 2, 3, 2]])
@pytest.mark.parametrize("layout, context", [("prompts_first", None), ("interleaved", None), ("interleaved", 1)])
def test_loss_is_that_of_the_prompts_and_texts_of_the_first_blocks(monkeypatch, layout, context, cuts):
    model, utterances = make_model(layout=layout, context=context), random_utterances(seed=5, count=6)
    if cuts is not None:
        monkeypatch.setattr(model, "_draw_cut", lambda blocks: torch.tensor(cuts).minimum(blocks))
    frames, counts = encoded(model, utterances)
    losses, ended = [], 0
    for index, (utterance, count) in enumerate(zip(utterances, counts.tolist(), strict=True)):
        cut = min(-(-count // CHUNK), 99 if cuts is None else cuts[index])
        pairs = slow_scores(model, frames[index, :count], utterance["text"], token_blocks(utterance, count), cut)
        losses += [-log_probs[target].item() for log_probs, target in pairs]
        ended += cut if layout == "interleaved" else 1
    _, stats, weight = model(**as_batch(utterances))
    assert int(weight) == len(losses) and stats["loss_llm"].item() == pytest.approx(np.mean(losses), rel=1e-10)
    assert (len(losses) - ended < sum(len(each["text"]) for each in utterances)) == (cuts is not None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_equals_the_weighted_mean_of_singles(layout):
    model, utterances = make_model(layout=layout), random_utterances(seed=6, count=6)
    loss, stats, weight = model(**as_batch(utterances))
    singles = [model(**as_batch([utterance])) for utterance in utterances]
    assert int(weight) == sum(int(count) for _, _, count in singles)
    total = sum(one.item() * int(count) for one, _, count in singles)
    assert loss.item() * int(weight) == pytest.approx(total, rel=1e-10)
    assert loss.item() == pytest.approx(stats["loss_llm"].item() + 0.3 * stats["loss_ctc"].item())


def test_training_cuts_prompts_and_evaluation_does_not():
    blocks = torch.tensor([1, 4, 2]).repeat(200)
    model = make_model(prefix_probability=0.5)
    assert model._draw_cut(blocks).equal(blocks)
    torch.manual_seed(0)
    drawn = model.train()._draw_cut(blocks)
    shares = [(drawn[1::3] == cut).float().mean().item() for cut in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.125, 0.125, 0.125, 0.625], abs=0.1)
    assert (drawn[0::3] == 1).all() and set(drawn[2::3].tolist()) == {1, 2}
    assert make_model(prefix_probability=0.0).train()._draw_cut(blocks).equal(blocks)


def test_more_prefixes_of_an_utterance_weigh_alike():
    batch = as_batch(random_utterances(seed=7))
    one, three = make_model(prefix_probability=0.0), make_model(prefix_probability=0.0, prefixes=3)
    for model in (one, three):
        model.training = True  # the parts stay in evaluation: no dropout, no SpecAugment
    (loss, _, weight), (other, _, more) = one(**batch), three(**batch)
    assert int(more) == 3 * int(weight) and other.item() == pytest.approx(loss.item(), rel=1e-10)


def test_gradient_reaches_every_weight():
    model = make_model().train()
    model(**as_batch(random_utterances(seed=13)))[0].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name
        assert torch.isfinite(weight.grad).all(), name


def test_training_lowers_the_loss_and_what_it_leaves_decodes(toy_data, toy_stats, tmp_path):
    from espnet_speechllm_xl import Speech2Text

    out = training.train("ctc_prompt_lm", toy_data, tmp_path / "exp", toy_stats, max_epoch=5)
    for name, share in (("loss", 0.8), ("loss_llm", 0.9), ("loss_ctc", 0.8)):
        losses = [epoch["train"][name] for _, epoch in sorted(training.history(out).items())]
        assert losses[-1] < share * losses[0], name
    (out / "tokenizer.model").write_bytes(toy_data.tokenizer.read_bytes())
    speech2text = Speech2Text.from_pretrained(out, search="greedy")
    assert speech2text(tiny.speech(1, 32000))[0].text


# Steps


@pytest.mark.parametrize(
    "layout, context, weight",
    [("prompts_first", None, 0.0), ("prompts_first", None, 0.4), ("interleaved", None, 0.4), ("interleaved", 1, 0.0)],
)
def test_steps_compute_what_training_computes(layout, context, weight):
    """At every block, with the prompts and the text so far; hypotheses of several lengths in one call."""
    model = make_model(layout=layout, context=context, end_ctc_weight=weight)
    utterances = [item for item in random_utterances(seed=8, count=5) if item["text"]]
    frames, counts = encoded(model, utterances)
    rng, most = random.Random(1), [0, 2, 1, 3][: len(utterances)]  # tokens of each in a block
    rows, texts = [model.decoder.initial_past(context)] * len(most), [[] for _ in most]  # (token, block)
    for block in range(-(-int(counts.min()) // CHUNK)):
        own = [row[:count][block * CHUNK : (block + 1) * CHUNK] for row, count in zip(frames, counts, strict=True)]
        requests = {index: Request(rows[index], block, each) for index, each in enumerate(own)}
        prefixes = [Prefix.empty(model.ctc(each[None])[0]) for each in own]
        for step in range(1, 5):
            results = model.decoder.extend(list(requests.values()))
            for index, result in zip(requests, results, strict=True):
                rows[index] = result.past
                tokens, blocks = zip(*texts[index], strict=True) if texts[index] else ((), ())
                expected, _ = slow_scores(model, frames[index, : counts[index]], tokens, blocks, block + 1)[-1]
                if weight:
                    expected = fuse_end(expected, prefixes[index].end(), weight)
                assert (result.log_probs - expected).abs().max() < 1e-10
            requests = {}
            for index in [index for index, count in enumerate(most) if step <= count]:
                token = rng.randrange(VOCABULARY)
                texts[index].append((token, block))
                prefixes[index] = prefixes[index].extend(token)
                requests[index] = Request(rows[index], block, token=token)
            if not requests:
                break
    assert block >= 1 and [len(text) for text in texts] == [count * (block + 1) for count in most]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forks_do_not_disturb_one_another(layout):
    model = make_model(layout=layout)
    frames, counts = encoded(model, random_utterances(seed=9, count=2)[:1])
    first, second = frames[0, :CHUNK], frames[0, CHUNK : 2 * CHUNK]
    (result,) = model.decoder.extend([Request(model.decoder.initial_past(None), 0, first)])
    tokens = model.decoder.extend([Request(result.past, 0, token=token) for token in (1, 2)])
    ended = [result.past, *(each.past.alone() for each in tokens)]  # texts (), (1), (2)
    together = model.decoder.extend([Request(row, 1, second) for row in ended])
    for row, expected in zip(ended, together, strict=True):
        (alone,) = model.decoder.extend([Request(row, 1, second)])
        assert (alone.log_probs - expected.log_probs).abs().max() < 1e-12
        assert alone.past.prompts == expected.past.prompts and alone.past.tokens == row.tokens
    assert not together[1].log_probs.allclose(together[2].log_probs)


# Decoding


def talkative(model):
    """Gains, found by trial, with which the text depends on the audio."""
    decoder = model.decoder
    inputs, outputs = decoder.lm.lm.get_input_embeddings().weight, decoder.lm.lm.get_output_embeddings().weight
    for gain, weights in (
        (2, model.acoustic.encoder.parameters()),
        (6, decoder.lm.lm.model.layers.parameters()),
        (8, [decoder.frame_prompt.weight, decoder.context_prompt.weight]),
        (4, [*decoder.memory.parameters(), decoder.ctc.output.weight]),
        (25, [inputs]),
        (40, [outputs]),
    ):
        for weight in weights:
            if weight.dim() >= 2:
                weight.mul_(gain)
    # A coordinate that is large in every input is large after the last norm too: a bias for `$`.
    decoder.frame_prompt.bias[0] = decoder.context_prompt.bias[0] = inputs[:, 0] = 3.0
    outputs[:, 0] = 0.0
    outputs[decoder.eoc, 0] = 1.5


@pytest.fixture(scope="module", params=LAYOUTS)
def load(request, tmp_path_factory, tiny_tokens):
    """``load(**settings)``: a model of random weights with blocks of 16 frames, of each layout."""
    from espnet_speechllm_xl import Speech2Text

    directory = tiny.write_model(
        tmp_path_factory.mktemp("exp") / "ctc_prompt_lm",
        training.task_of("ctc_prompt_lm"),
        tiny_tokens,
        "valid.acc_text.ave.pth",
        [
            *tiny.conf("decoder_conf", tiny.DECODER),
            *tiny.conf("chunking_conf", ["chunk=16", "context=null"]),
            *tiny.conf("loss_conf", ["ctc_weight=0.3"]),
            *tiny.conf("prompt_conf", [f"layout={request.param}"]),
            *tiny.conf("search_conf", ["beam_size=4", "max_tokens_per_chunk=8"]),
        ],
        seed=3,
        change=talkative,
    )
    return lambda **settings: Speech2Text.from_pretrained(directory, **{"dtype": "float64", **settings})


OFF = dataclasses.asdict(StreamConfig(settle_seconds=math.inf, endpoint_silence=math.inf, endpoint_length=math.inf))


def said(stream, pieces):
    updates = [*(stream.push(piece) for piece in pieces), stream.close()]
    return " ".join(update.text for update in updates if update.text)


@pytest.mark.parametrize("search", ["greedy", "chunk_sync"])
def test_stream_gives_what_offline_gives(load, search):
    speech2text, rng, texts = load(search=search), random.Random(search), set()
    for seed in range(3):
        audio = tiny.speech(seed, rng.randint(20000, 56000))
        (transcript,) = speech2text(audio)
        pieces = np.split(audio, sorted(rng.sample(range(len(audio)), 12)))
        assert said(speech2text.stream(search, **OFF), pieces) == transcript.text
        texts.add(transcript.text)
    assert len(texts) == 3  # the LM listens


@pytest.mark.parametrize("search", ["greedy", "chunk_sync", "alsd"])
def test_each_of_a_batch_as_if_alone(load, search):
    speech2text = load(search=search, beam_size=3, nbest=3)
    recordings = [tiny.speech(seed, n) for seed, n in enumerate([30000, 41234, 300, 16000, 52001])]
    for nbest, recording in zip(speech2text.transcribe_batch(recordings), recordings, strict=True):
        alone = speech2text(recording)
        assert [one.token_ids for one in alone] == [one.token_ids for one in nbest]
        assert [one.score for one in alone] == pytest.approx([one.score for one in nbest], abs=1e-9)
        assert len(recording) < 16000 or nbest[0].words


def test_greedy_is_a_beam_of_one(load):
    audio = tiny.speech(7, 48000)
    (greedy,) = load(search="greedy")(audio)
    for search in ("chunk_sync", "alsd"):
        (one,) = load(search=search, beam_size=1)(audio)
        assert (one.token_ids, one.score) == (greedy.token_ids, pytest.approx(greedy.score, abs=1e-9))
    assert load(search="chunk_sync", beam_size=6)(audio)[0].score >= greedy.score


def test_a_long_stream(load):
    """Far beyond any training sequence: nothing is out of sight, text is settled and forgotten on the way."""
    stream = load(dtype="float32").stream("greedy", settle_seconds=1.28)
    piece = tiny.speech(5, 16000)
    words = 0
    for _ in range(40):
        words += len(stream.push(piece).words)
    past = stream.search.beam[0]._past
    assert words > 10 and isinstance(past, PromptPast)
    read_twice = past.lm.next_position - past.prompts  # tokens that a new block reads again
    assert len(past.tokens) == (read_twice if stream.model.prompt_config.layout == "prompts_first" else 0)
    assert past.prompts > 40 * 25 // 16 and past.lm.next_position > past.prompts + 40
    assert len(stream.search.best().tokens) < 40  # of a word that goes on and on: those of twice the time
    stream.close()


# Settings


@pytest.mark.parametrize(
    "chunking, loss, prompt, message",
    [
        ({}, {}, {}, "loss_conf ctc_weight: the prompts are found by CTC: set it above 0"),
        ({"context": 4}, {"ctc_weight": 0.3}, {}, "chunking_conf context 4: .* set it to null, or prompt_conf layout"),
        ({"train_chunks": [8]}, {"ctc_weight": 0.3}, {}, "train_chunks: chunks have one size: leave it at null"),
        ({"train_look_aheads": [2]}, {"ctc_weight": 0.3}, {}, "train_look_aheads: there is one: leave it at null"),
        ({"unit": "word"}, {"ctc_weight": 0.3}, {}, "prompt_conf end_ctc_weight: .* set it to 0, or"),
        ({"delay": 2}, {"ctc_weight": 0.3}, {}, "prompt_conf end_ctc_weight: .* set one of them to 0"),
        ({"chunk": 6}, {"ctc_weight": 0.3}, {}, "chunk 6 and encoder segment 4 do not divide one another"),
    ],
)
def test_settings_that_do_not_go_together(chunking, loss, prompt, message):
    lm = Decoder(VOCABULARY, dim=16, layers=1, heads=2, ffn_dim=24)
    chunking = ChunkingConfig(**{"chunk": CHUNK, "context": None, **chunking})
    with pytest.raises(ConfigError, match=message):
        CTCPromptLM(make_acoustic(), lm, chunking, LossConfig(**loss), PromptConfig(**prompt))
    make_model(unit="word", end_ctc_weight=0.0)


def test_values_out_of_range():
    for settings, message in (
        ({"prefix_probability": 1.5}, r"prompt prefix_probability 1.5 is not in \[0, 1\]"),
        ({"end_ctc_weight": -0.1}, r"prompt end_ctc_weight -0.1 is not in \[0, 1\]"),
        ({"prefixes": 0}, "prompt prefixes 0 must be at least 1"),
        ({"layout": "text_first"}, "prompt layout 'text_first': use 'prompts_first' or 'interleaved'"),
    ):
        with pytest.raises(ConfigError, match=message):
            PromptConfig(**settings)


def test_a_bounded_context_needs_interleaving(load):
    audio = tiny.speech(1, 40000)
    speech2text = load(context=1.28)
    if speech2text.model.prompt_config.layout == "interleaved":
        assert speech2text(audio)[0].score != load(context=math.inf)(audio)[0].score
    else:
        with pytest.raises(ConfigError, match="sees the prompts of all chunks: leave out the context, or make it inf"):
            speech2text(audio)
    assert load(context=math.inf, chunk_size=0.32)(audio)[0].score < 0


def test_alignment_of_other_audio_is_refused():
    utterances = random_utterances(seed=3)
    utterances[0]["ends"] = [10**4] * len(utterances[0]["text"])
    with pytest.raises(ValueError, match="the alignment belongs to other audio"):
        make_model()(**as_batch(utterances))


@pytest.mark.parametrize(
    "name", ["conf/train{}_tiny.yaml", "conf/train{}_paper.yaml", "egs2/an4/speechllm_xl1/conf/train{}_an4.yaml"]
)
def test_encoder_and_lm_are_those_of_the_recogniser(name):
    plain, other = (yaml.safe_load((REPO / name.format(system)).read_text()) for system in ("", "_ctc_prompt_lm"))
    assert plain["encoder_conf"] == other["encoder_conf"] and plain["decoder_conf"] == other["decoder_conf"]
    PromptConfig(**other["prompt_conf"]).check_against(
        ChunkingConfig(**other["chunking_conf"]), LossConfig(**other["loss_conf"])
    )
