"""The decoder: cached, evicted, re-based and batched calls against one plain masked call; sizes."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
import yaml
from decoders import (
    ANGLES,
    ROUND_OFF,
    VOCABULARY,
    Stream,
    assert_no_drift,
    full_forward,
    run_streams,
    worst_difference,
)

from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.model.emformer import EmformerEncoder
from espnet_speechllm_xl.model.llm import Decoder

CONF = Path(__file__).parents[2] / "conf"
SIZES = {"dim": 16, "layers": 3, "heads": 2, "ffn_dim": 24}


def make_decoder(dtype=torch.float64, seed=0, **conf):
    """Weights large enough that what an input sees matters."""
    torch.manual_seed(seed)
    decoder = Decoder(VOCABULARY, **{**SIZES, **conf}).to(dtype).eval()
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.4)
    return decoder


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


@pytest.mark.parametrize("context", [0, 1, 2, None])
def test_cached_and_evicted_equals_full(decoder, context):
    for seed in range(3):
        streams = run_streams(decoder, context, seed)
        assert max(stream.inputs[-1][0] for stream in streams if stream.inputs) >= 8, "many chunks"
        assert worst_difference(decoder, streams, context) < ROUND_OFF


@torch.no_grad()
def test_streams_of_several_contexts_run_together(decoder):
    contexts, rng = [0, 2, None, 1], random.Random(1)
    torch.manual_seed(1)
    streams = [Stream(decoder.initial_past(context)) for context in contexts]
    for _ in range(30):
        results = decoder.extend([stream.request(rng, decoder.dim, torch.float64) for stream in streams])
        for stream, result in zip(streams, results, strict=True):
            stream.accept(result)
    for stream, context in zip(streams, contexts, strict=True):
        assert worst_difference(decoder, [stream], context) < ROUND_OFF


def test_the_context_matters(decoder):
    """Otherwise the test above would show nothing."""
    streams = run_streams(decoder, 1, seed=0)
    assert worst_difference(decoder, streams, 0) > 0.1
    assert worst_difference(decoder, streams, 2) > 0.1


@pytest.mark.parametrize("context", [0, 2])
def test_eviction_bounds_the_cache(decoder, context):
    past = decoder.initial_past(context)
    for chunk in range(30):
        past = decoder.extend([Request(past, chunk, frames=torch.randn(4, 16, dtype=torch.float64))])[0].past
        past = decoder.extend([Request(past, chunk, token=3)])[0].past
        assert past.length == past.entries.shape[1] == 5 * (min(chunk, context) + 1)
        assert past.slot.store.width == 64


@pytest.mark.parametrize("context", [0, 1, 2])
def test_a_row_holds_its_own_past_and_no_more(decoder, context):
    """Whatever it was batched with: hypotheses that begin their chunks at different times do not widen one another."""
    for seed in range(3):
        for stream in run_streams(decoder, context, seed, rounds=80):
            newest = stream.inputs[-1][0] if stream.inputs else 0
            visible = [x for chunk, x in stream.inputs if chunk >= newest - context]
            width = sum(1 if isinstance(x, int) else len(x) for x in visible)
            assert stream.past.length == sum(count for _, count in stream.past.chunks) == width


def test_hour_10_equals_the_start():
    """A stream at position 900,000 gives what it gives at position 0, also in float32."""
    for dtype in (torch.float32, torch.float64):
        decoder = make_decoder(dtype)
        young = decoder.initial_past(1)
        old = dataclasses.replace(young, next_position=900_000 + torch.randint(1000, (1,)).item())
        for chunk in range(3):
            frames = torch.randn(7, 16, dtype=dtype)
            for new in ({"frames": frames}, {"token": 4}):
                results = decoder.extend([Request(young, chunk, **new), Request(old, chunk, **new)])
                assert (results[0].log_probs - results[1].log_probs).abs().max() < ANGLES
                young, old = (result.past for result in results)
        assert old.next_position > 900_000 > young.next_position == 24


def test_a_long_stream_does_not_drift():
    """After 20,000 positions the last chunks alone decide: with L layers and context b, L b + 1 chunks."""
    decoder = make_decoder(torch.float32, layers=2)
    assert_no_drift(decoder)


def test_forks_do_not_disturb_each_other(decoder):
    torch.manual_seed(3)
    frames = torch.randn(5, 16, dtype=torch.float64)
    parent = decoder.extend([Request(decoder.initial_past(1), 0, frames=frames)])[0].past
    before = dataclasses.replace(parent), parent.entries.clone()
    together = decoder.extend([Request(parent, 0, token=t) for t in (1, 2, 3)] + [Request(parent, 1, frames=frames)])
    alone = [decoder.extend([Request(parent, 0, token=t)])[0] for t in (1, 2, 3)]
    alone += decoder.extend([Request(parent, 1, frames=frames)])
    for one, other in zip(together, alone, strict=True):
        assert (one.log_probs - other.log_probs).abs().max() < ROUND_OFF
        assert one.past.next_position == other.past.next_position
    assert (together[0].log_probs - together[1].log_probs).abs().max() > 1e-3
    assert parent == before[0] and torch.equal(parent.entries, before[1])
    deeper = decoder.extend([Request(together[1].past, 0, token=5), Request(together[0].past, 0, token=5)])
    inputs = [(0, frames), (0, 2), (0, 5)]
    assert (deeper[0].log_probs - full_forward(decoder, inputs, 1)[-1]).abs().max() < ROUND_OFF


def test_only_differences_of_positions_matter(decoder):
    torch.manual_seed(4)
    frames = torch.randn(7, 16, dtype=torch.float64)
    inputs = [(0, frames[:5]), (0, 3), (1, frames[5:]), (1, 7)]
    start = full_forward(decoder, inputs, 1)
    assert (start - full_forward(decoder, inputs, 1, first=100)).abs().max() < ANGLES


def test_rope_theta_is_used():
    inputs = [(0, torch.randn(9, 16, dtype=torch.float64))]
    one, other = make_decoder(rope_theta=10000.0), make_decoder(rope_theta=100.0)
    assert (full_forward(one, inputs, 1) - full_forward(other, inputs, 1)).abs().max() > 1e-3


def test_embed_dropout_zeroes_whole_tokens():
    decoder = make_decoder(embed_dropout=0.3).train()
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (50, 40))
    embedded = decoder.embed(tokens)
    plain = decoder.eval().embed(tokens)
    zeroed = (embedded == 0).all(-1)
    assert torch.equal(embedded[~zeroed], plain[~zeroed])
    assert 0.26 < zeroed.double().mean() < 0.34
    assert not (plain == 0).all(-1).any()


def test_residual_dropout_acts_in_training_only():
    decoder = make_decoder(dropout=0.4)
    inputs = torch.randn(1, 6, 16, dtype=torch.float64)
    position, chunk = torch.arange(6)[None], torch.zeros(1, 6).long()
    still = decoder(inputs, position, chunk, 1)
    assert torch.equal(still, make_decoder()(inputs, position, chunk, 1))
    decoder.train()
    assert not torch.equal(decoder(inputs, position, chunk, 1), decoder(inputs, position, chunk, 1))


# --- sizes ---


def count_parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def test_size_paper_counts_what_the_paper_says():
    conf = yaml.safe_load((CONF / "train_paper.yaml").read_text())
    with torch.device("meta"):
        decoder = Decoder(5000, **conf["decoder_conf"])
        encoder = EmformerEncoder(80, **conf["encoder_conf"])
        projection = torch.nn.Linear(encoder.output_size(), decoder.dim)
    shape = decoder.config
    assert (shape.layers, shape.dim, shape.heads, shape.ffn_dim) == (12, 768, 12, 2048)
    assert count_parameters(decoder) == pytest.approx(92e6, rel=0.03)
    assert count_parameters(encoder) + count_parameters(projection) == pytest.approx(107e6, rel=0.03)
    assert (encoder.config.segment, encoder.config.right_context) == (32, 6), "look-ahead of 0.24 s"
    assert conf["chunking_conf"] == {"chunk": 32, "context": 4, "delay": 0}


def test_baselines_of_size_paper_count_what_the_paper_says():
    from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
    from espnet2.asr_transducer.joint_network import JointNetwork

    from espnet_speechllm_xl.model.ctc import CTCHead

    files = (CONF / f"train_{name}_paper.yaml" for name in ("ctc", "transducer"))
    ctc, transducer = (yaml.safe_load(file.read_text()) for file in files)
    with torch.device("meta"):
        encoder = EmformerEncoder(80, **ctc["encoder_conf"])
        decoder = TransducerDecoder(5001, **transducer["decoder_conf"])
        joint = JointNetwork(5001, encoder.output_size(), decoder.dunits, **transducer["joint_network_conf"])
        head = CTCHead(encoder.output_size(), 5000)
    assert ctc["encoder_conf"] == transducer["encoder_conf"]
    assert count_parameters(encoder) + count_parameters(head) == pytest.approx(246e6, rel=0.02)
    assert sum(map(count_parameters, (encoder, head, decoder, joint))) == pytest.approx(256e6, rel=0.03)


AN4 = CONF.parent / "egs2/an4/speechllm_xl1/conf"
BASE_SIZES = [(CONF, size) for size in ("tiny", "small", "paper")] + [(AN4, "an4")]
OF_SIZES = BASE_SIZES + [(folder, f"{size}_multichunk") for folder, size in BASE_SIZES]


@pytest.mark.parametrize("system", ["aligner", "chunked_aed"])
@pytest.mark.parametrize("folder, size", OF_SIZES)
def test_others_have_the_recognisers_encoder(folder, size, system):
    file = folder / f"train_{system}_{size}.yaml"
    if system == "aligner" or size in ("tiny", "paper", "an4"):
        recogniser = yaml.safe_load((folder / f"train_{size}.yaml").read_text())
        assert recogniser["encoder_conf"] == yaml.safe_load(file.read_text())["encoder_conf"]
    else:
        assert not file.exists()


@pytest.mark.parametrize("system", ["", "aligner_"])
@pytest.mark.parametrize("folder, size", BASE_SIZES)
def test_several_chunk_sizes_are_all_that_differs(folder, size, system):
    one, several = (
        yaml.safe_load((folder / f"train_{system}{name}.yaml").read_text()) for name in (size, f"{size}_multichunk")
    )
    assert one["encoder_conf"].pop("segment") == 32 and several["encoder_conf"].pop("segment") == 8
    if not system:
        assert several["chunking_conf"].pop("train_chunks") == [8, 16, 32, 64]
        assert one.pop("max_epoch") < several.pop("max_epoch")
    assert one == several
