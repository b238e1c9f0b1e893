"""Decoders from checkpoints of others: each family as it is, what trains, what a state dict holds, what is refused."""

import copy
import dataclasses
import math
import shutil
import warnings

import checkpoints
import pytest
import torch
from aligned import as_batch, make_acoustic, random_utterances
from decoders import (
    ANGLES,
    ROUND_OFF,
    VOCABULARY,
    assert_no_drift,
    full_forward,
    run_streams,
    worst_difference,
)

from espnet_speechllm_xl.config import ChunkingConfig, LossConfig
from espnet_speechllm_xl.model import pretrained
from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.model.int8 import use_int8
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.model.sequence import IGNORE
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.systems.base_model import start_at_scale
from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXL

# Norms, rotary angles and some softmaxes of transformers are in float32 whatever the model's type.
SINGLE = 2e-5
FAMILIES = list(checkpoints.FAMILIES)
WITH_WINDOW = {"mistral", "qwen2", "gemma2", "gemma3_text"}
ROWS, DIM = checkpoints.SIZES["vocab_size"], checkpoints.SIZES["hidden_size"]


def test_a_model_is_tried_with_exact_products(tmp_path, monkeypatch):
    """Rounded to bfloat16, as training may have them, 30 layers of a true LLM would be refused."""
    seen, find = [], pretrained.PretrainedNetwork._find_turned

    def watch(network):
        seen.append(torch.get_float32_matmul_precision())
        return find(network)

    monkeypatch.setattr(pretrained.PretrainedNetwork, "_find_turned", watch)
    path, before = checkpoints.make(tmp_path / "llama"), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        Decoder(ROWS, pretrained=path)
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(family)``: the directory of its tiny checkpoint."""
    paths = {}

    def make(family):
        if family not in paths:
            paths[family] = checkpoints.make(tmp_path_factory.mktemp("llm") / family, family)
        return paths[family]

    return make


@pytest.fixture(scope="module")
def llama(made):
    return made("llama")


def named(decoder, trained=None):
    """The names of its weights, of the trained or the frozen ones alone."""
    weights = decoder.named_parameters()
    return {name for name, weight in weights if trained is None or weight.requires_grad == trained}


def count(weights):
    return sum(weight.numel() for weight in weights)


def make_model(path, seed=0, vocabulary=VOCABULARY, **conf):
    torch.manual_seed(seed)
    decoder = Decoder(vocabulary, pretrained=path, **conf)
    return SpeechLLMXL(make_acoustic(), decoder, ChunkingConfig(8, 1), LossConfig())


def batch_of(seed=3):
    batch = as_batch(random_utterances(seed))
    return {**batch, "speech": batch["speech"].float()}


def train(model, steps=2, rate=0.01):
    """Train on one batch; return the losses."""
    optimiser = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        torch.manual_seed(1)  # each step has the same masks of SpecAugment
        loss = model.train()(**batch_of())[0]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


# --- families ---


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers(made, family):
    """Its own masks, its own scaling and limits, on a sequence longer than its window; those of `$` are limited too."""
    from transformers import AutoModelForCausalLM

    own = AutoModelForCausalLM.from_pretrained(made(family), attn_implementation="eager").eval()
    decoder = Decoder(VOCABULARY, pretrained=made(family)).eval()
    decoder.end_row.copy_(own.get_output_embeddings().weight[7])
    inputs, position = torch.randn(2, 30, DIM), torch.arange(30).expand(2, -1)
    expected = own(inputs_embeds=inputs).logits
    given = decoder.logits(decoder(inputs, position, torch.zeros(2, 30).long(), None))
    assert (given[..., :-1] - expected[..., :VOCABULARY]).abs().max() < 1e-4 * expected.abs().max()
    assert (given[..., -1] - expected[..., 7]).abs().max() < 1e-4 * expected.abs().max()
    tokens = torch.randint(VOCABULARY, (2, 9))
    seen = []
    own.get_decoder().layers[0].register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    own(input_ids=tokens)
    assert decoder.embed(tokens).equal(seen[0])
    if family in WITH_WINDOW:
        decoder._pretrained._window = None
        wide = decoder.logits(decoder(inputs, position, torch.zeros(2, 30).long(), None))
        assert (wide - given).abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", [0, 2, None])
def test_cached_evicted_and_rebased_equals_full(made, family, context, monkeypatch):
    decoder = Decoder(VOCABULARY, pretrained=made(family)).double().eval()
    streams = run_streams(decoder, context, seed=2)
    assert max(stream.past.length for stream in streams) > checkpoints.WINDOW
    assert worst_difference(decoder, streams, context) < SINGLE
    monkeypatch.setattr(pretrained, "REBASE_POSITION", 5)
    decoder = copy.deepcopy(decoder)
    assert worst_difference(decoder, run_streams(decoder, context, seed=5, rounds=60), context) < 4 * ANGLES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conf", [{"lora_rank": 2}, {}], ids=["lora", "all"])
def test_a_family_trains_and_its_weights_load(made, family, conf):
    model = make_model(made(family), **conf, dropout=0.1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    losses = train(model, steps=3)
    assert all(math.isfinite(loss) for loss in losses)
    moved = {name for name, weight in model.named_parameters() if not weight.equal(before[name])}
    assert moved == named(model, trained=True)
    again = make_model(made(family), seed=1, **conf)
    again.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    assert again.eval()(**batch_of())[0].equal(model.eval()(**batch_of())[0])


def test_the_layers_without_positions_are_found(made):
    decoder = Decoder(VOCABULARY, pretrained=made("smollm3"))
    assert decoder._pretrained.turned.flatten().tolist() == [True, False, True]


# --- one family in depth ---


@pytest.mark.parametrize("vocabulary", [10, ROWS])
def test_tables_keep_their_rows(llama, vocabulary):
    from safetensors.torch import load_file

    decoder = Decoder(vocabulary, pretrained=llama)
    saved = load_file(f"{llama}/model.safetensors")
    table = saved["model.embed_tokens.weight"]
    assert decoder.lm.get_input_embeddings().weight.equal(table)
    assert decoder.lm.model.layers[1].mlp.up_proj.weight.equal(saved["model.layers.1.mlp.up_proj.weight"])
    assert decoder.eoc == vocabulary
    assert decoder.dim == DIM and decoder.network.cache_shape == (3, 2, 8)
    hidden = torch.randn(5, DIM)
    expected = torch.cat([hidden @ table[:vocabulary].T, (hidden @ decoder.end_row)[:, None]], dim=1)
    assert (decoder.logits(hidden) - expected).abs().max() < 1e-5
    assert all(weight.requires_grad for weight in decoder.parameters())


def test_a_tokenizer_of_more_tokens_is_refused(llama):
    with pytest.raises(ConfigError, match=f"knows {ROWS} tokens, the tokenizer has {ROWS + 1}: give its own tokenizer"):
        Decoder(ROWS + 1, pretrained=llama)


@pytest.mark.parametrize("context", [0, 1, 2])
def test_rebasing_changes_nothing(llama, context, monkeypatch):
    monkeypatch.setattr(pretrained, "REBASE_POSITION", 10**9)
    decoder = Decoder(VOCABULARY, pretrained=llama).double().eval()
    plain = run_streams(decoder, context, seed=5, rounds=60)
    monkeypatch.setattr(pretrained, "REBASE_POSITION", 5)
    decoder = copy.deepcopy(decoder)
    rebased = run_streams(decoder, context, seed=5, rounds=60)
    assert max(stream.past.next_position for stream in plain) > 80
    # A visible window is at most (context + 1) chunks of 6 frames and their tokens.
    longest = max(stream.past.length for stream in rebased)
    assert max(stream.past.next_position for stream in rebased) <= 5 + 2 * longest
    assert worst_difference(decoder, plain, context) < ROUND_OFF
    assert worst_difference(decoder, rebased, context) < ANGLES


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_long_stream_of_a_pretrained_model_does_not_drift(made, family):
    decoder = Decoder(VOCABULARY, pretrained=made(family)).eval()
    assert assert_no_drift(decoder) <= pretrained.REBASE_POSITION + 200


def test_a_large_position_would_err_in_float32(llama, monkeypatch):
    """Why pasts of pretrained models are re-based at all."""
    monkeypatch.setattr(pretrained, "REBASE_POSITION", 10**9)
    decoder = Decoder(VOCABULARY, pretrained=llama).eval()
    frames, errors = torch.randn(40, DIM), []
    for position in (1000, 900_000):
        late = dataclasses.replace(decoder.initial_past(1), next_position=position)
        start, end = decoder.extend([Request(past, 0, frames=frames) for past in (decoder.initial_past(1), late)])
        errors.append((start.log_probs - end.log_probs).abs().max())
    assert errors[1] > 1e-4 and errors[1] > 50 * errors[0]


def test_scaled_rope_is_rebased_without_scaling_again(tmp_path, monkeypatch):
    """YaRN multiplies cosines and sines by a factor; a key that is rotated once more must not take it twice."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    path = checkpoints.make(tmp_path, rope_parameters=rope, max_position_embeddings=256)
    decoder = Decoder(VOCABULARY, pretrained=path).double().eval()
    assert decoder.lm.get_decoder().rotary_emb.attention_scaling != 1
    monkeypatch.setattr(pretrained, "REBASE_POSITION", 5)
    assert worst_difference(decoder, run_streams(decoder, 1, seed=3, rounds=60), 1) < ANGLES


# --- the first row of `$` ---


@torch.no_grad()
def first_losses(model):
    """The mean losses of text and of `$` on a batch."""
    batch = batch_of()
    frames, counts = model.acoustic(batch["speech"], batch["speech_lengths"])
    tokens = batch["text"].clamp(min=0)
    given = frames, counts, tokens, batch["text_lengths"], batch["ends"], model.chunking
    hidden, targets = model.decode_aligned(*given)
    log_probs = model.decoder.logits(hidden).log_softmax(-1)
    losses = -log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    ends = targets == model.decoder.eoc
    return losses[(targets != IGNORE) & ~ends].mean(), losses[ends].mean()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text"])
def test_the_first_loss_of_the_end_of_a_chunk_is_below_that_of_guessing(tmp_path, family, tied):
    model = make_model(checkpoints.make(tmp_path, family, tie_word_embeddings=tied), vocabulary=ROWS).eval()
    text, end = first_losses(model)
    rows, guess = model.decoder.lm.get_output_embeddings().weight, math.log(ROWS + 1)
    assert end < 0.75 * guess
    for row in (rows[7], rows.mean(0)):  # what it might start from, too: the end of text, the mean
        model.decoder.end_row.data = row.detach().clone()
        other_text, other_end = first_losses(model)
        assert other_end > guess and text < other_text + 1.1


@torch.no_grad()
def test_the_first_row_of_the_end_of_a_chunk_is_fitted_to_made_inputs(llama):
    """The ridge is the same as further states, one for each dimension, with a score of 0 each."""
    decoder = Decoder(ROWS, pretrained=llama)
    hidden = decoder._pretrained._made_states(ROWS, decoder.input_rms)
    assert hidden.shape == (4 * 4 * (1 + 3), DIM), "sequences, chunks, the last frame and the tokens"
    text = decoder.logits(hidden)[:, :-1].logsumexp(-1)
    further = (pretrained.RIDGE * hidden.square().sum(1).mean()).sqrt() * torch.eye(DIM)
    wanted = torch.cat([text + math.log(0.2 / 0.8), torch.zeros(DIM)])
    expected = torch.linalg.lstsq(torch.cat([hidden, further]), wanted[:, None]).solution[:, 0]
    assert (decoder.end_row - expected).abs().max() < 1e-4 * expected.abs().max()
    shares = decoder.logits(hidden).softmax(-1)[:, -1]
    assert shares.mean() == pytest.approx(pretrained.END_SHARE, rel=0.5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_limited_scores_are_traced_back(made, family):
    network = Decoder(VOCABULARY, pretrained=made(family))._pretrained
    scores, hidden = torch.linspace(-3.7, 3.7, 20), torch.zeros(20, DIM)
    hidden[:, 0] = network._products(scores)
    given = network.scores(hidden, torch.eye(DIM)[0])[:, -1]
    assert (given - scores).abs().max() < 1e-5, "the row takes the product out of the states"
    assert bool((hidden[:, 0] != scores).any()) == (family == "gemma2")
    assert network._products(torch.tensor([90.0])).isfinite()


def test_the_first_row_of_the_end_of_a_chunk_depends_on_the_llm_alone(made, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(made("gemma2")).to(torch.bfloat16).save_pretrained(tmp_path)
    rows = []
    for seed, conf in enumerate(({}, {"lora_rank": 2}, {"freeze": True, "frozen_dtype": "bfloat16"})):
        torch.manual_seed(seed)
        rows.append(Decoder(VOCABULARY, pretrained=str(tmp_path), **conf).end_row)
    assert rows[0].equal(rows[1]) and {row.dtype for row in rows} == {torch.float32}
    assert (rows[0] - rows[2]).abs().max() < 1e-3, "embeddings are scaled in bfloat16 there"
    assert not rows[0].equal(Decoder(VOCABULARY, pretrained=made("gemma3_text")).end_row)


@pytest.mark.parametrize("conf", [{}, {"freeze": True}], ids=["all", "frozen"])
def test_no_row_is_fitted_where_a_trained_one_takes_its_place(llama, conf):
    state = make_model(llama, **conf).decoder.state_dict()
    with pretrained.weights_follow():
        decoder = Decoder(VOCABULARY, pretrained=llama, **conf)
    assert not decoder.end_row.any()
    decoder.load_state_dict(state)
    assert decoder.end_row.equal(state["end_row"])


# --- frames ---


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_frames_have_the_size_of_the_embeddings_that_layers_see(made, family):
    model = make_model(made(family)).eval()
    batch = batch_of()
    frames, counts = model.acoustic(batch["speech"], batch["speech_lengths"])
    real = torch.arange(frames.shape[1])[None] < counts[:, None]
    size = model.projection(frames)[real].square().mean().sqrt()
    embedded = model.decoder.embed(torch.arange(VOCABULARY)).square().mean().sqrt()
    assert size == pytest.approx(embedded.item(), rel=0.25)
    scaled = embedded / model.decoder.lm.get_input_embeddings().weight[:VOCABULARY].square().mean().sqrt()
    assert scaled == pytest.approx(1.0 if family == "llama" else DIM**0.5, rel=1e-3)


@torch.no_grad()
def test_a_projection_of_two_layers_starts_at_scale():
    projection = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.Linear(40, 16))
    first = projection[0].weight.clone()
    start_at_scale(projection, 24, 0.1)
    size = projection(torch.nn.functional.layer_norm(torch.randn(900, 24), [24])).square().mean().sqrt()
    assert size.item() == pytest.approx(0.1, rel=0.1) and projection[0].weight.equal(first)


def test_the_first_loss_is_that_of_guessing(tmp_path):
    """The layers of this LLM turn what they know, small embeddings, into an even guess, and large inputs drown them."""
    path = checkpoints.make(tmp_path, mlp_bias=True, initializer_range=0.01, tie_word_embeddings=False)
    guess = math.log(VOCABULARY + 1)
    model = make_model(path).eval()
    with torch.no_grad():
        model.decoder.lm.model.layers[0].mlp.down_proj.bias[0] = 3.0
        rows = model.decoder.lm.get_output_embeddings().weight
        for weight in (rows, model.decoder.end_row):
            weight.normal_(0, 1.5)
            weight[..., 0] = 0
        assert model(**batch_of())[0] < 1.1 * guess
        model.projection.reset_parameters()  # torch's start, the size of any other model
        assert model(**batch_of())[0] > 1.5 * guess


# --- what trains ---


def test_lora_trains_adapters_and_the_row_of_the_end_of_a_chunk(llama):
    decoder = Decoder(VOCABULARY, pretrained=llama, lora_rank=4)
    adapters = {name for name in named(decoder, trained=True) if "lora_" in name}
    assert len(adapters) == 2 * 7 * 3, "A and B of 7 products in 3 layers"
    assert named(decoder, trained=True) - adapters == {"end_row"}
    check = decoder.double().eval()
    assert worst_difference(check, run_streams(check, 1, seed=2), 1) < ROUND_OFF


def test_targets_of_adapters_are_chosen_by_name(llama):
    decoder = Decoder(VOCABULARY, pretrained=llama, lora_rank=4, lora_targets=["q_proj", "v_proj"])
    products = {name.split(".")[-4] for name in named(decoder, trained=True) if "lora_" in name}
    assert products == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="lora_targets: 'query' is none of the model's down_proj, gate_proj, k_proj"):
        Decoder(VOCABULARY, pretrained=llama, lora_rank=4, lora_targets=["q_proj", "query"])


def test_dora_trains_lengths_too(llama):
    decoder = Decoder(VOCABULARY, pretrained=llama, lora_rank=4, use_dora=True)
    lengths = [name for name in named(decoder, trained=True) if "magnitude" in name]
    assert len(lengths) == 7 * 3
    plain, inputs = Decoder(VOCABULARY, pretrained=llama), [(0, torch.randn(6, DIM))]
    assert (full_forward(decoder.eval(), inputs, 1) - full_forward(plain.eval(), inputs, 1)).abs().max() < 1e-4


def test_dropout_of_adapters_acts_in_training(llama):
    model = make_model(llama, lora_rank=4, lora_dropout=0.5)
    train(model)  # adapters start as zero
    decoder, inputs = model.decoder, (torch.randn(1, 9, DIM), torch.arange(9)[None], torch.zeros(1, 9).long(), 1)
    assert decoder.eval()(*inputs).equal(decoder(*inputs))
    assert not decoder.train()(*inputs).equal(decoder(*inputs))


def test_a_frozen_llm_stays_as_it_is(llama):
    model = make_model(llama, freeze=True)
    assert named(model.decoder, trained=True) == {"end_row"}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model)
    moved = {name for name, weight in model.named_parameters() if not weight.equal(before[name])}
    assert moved == named(model, trained=True) and "projection.weight" in moved


def test_tied_tables_are_one_where_peft_would_make_three(made):
    """peft's ``modules_to_save`` on tied tables: two copies, which train apart, beside the frozen one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path, table = made("llama"), ROWS * DIM
    base = count(AutoModelForCausalLM.from_pretrained(path).parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns that it does so
        options = {"r": 4, "target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]}
        theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(path), LoraConfig(**options))
    adapters = count(weight for name, weight in theirs.named_parameters() if "lora_" in name)
    assert count(theirs.parameters()) == base + adapters + 2 * table
    assert count(weight for weight in theirs.parameters() if weight.requires_grad) == adapters + 2 * table

    for trained in (False, True):
        ours = Decoder(VOCABULARY, pretrained=path, lora_rank=4, train_table=trained)
        assert ours.lm.get_output_embeddings().weight is ours.lm.get_input_embeddings().weight
        assert count(ours.parameters()) == base + adapters + DIM
        learnt = count(weight for weight in ours.parameters() if weight.requires_grad)
        assert learnt == adapters + DIM + (table if trained else 0)
        assert count(value for name, value in ours.state_dict().items() if name != "base_digest") == learnt


def test_tables_apart_stay_apart(tmp_path):
    path = checkpoints.make(tmp_path, tie_word_embeddings=False)
    decoder = Decoder(VOCABULARY, pretrained=path, freeze=True, train_table=True)
    assert len([name for name in named(decoder, trained=True) if name != "end_row"]) == 2
    assert len(decoder.state_dict()) == 4


def test_frozen_weights_in_bfloat16(llama):
    """Adapters and all that trains stay float32; the digest is that of the same LLM."""
    model, exact = (make_model(llama, lora_rank=4, frozen_dtype=dtype) for dtype in ("bfloat16", "float32"))
    for name, weight in model.named_parameters():
        assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16), name
    losses, expected = train(model, steps=4), train(exact, steps=4)
    assert losses[0] == pytest.approx(expected[0], rel=0.05) and losses[0] != expected[0]
    assert losses[-1] < losses[0]
    assert model.decoder.base_digest.equal(exact.decoder.base_digest)
    exact.load_state_dict(model.state_dict())
    inputs = [(0, torch.randn(6, DIM)), (0, 3)]
    given = full_forward(exact.decoder.eval(), inputs, 1)
    assert (full_forward(model.decoder.eval(), inputs, 1) - given).abs().mean() < 0.1 * given.std()
    streams = run_streams(model.decoder, 1, seed=2, rounds=10)
    assert worst_difference(model.decoder, streams, 1) < 0.5 * given.std()

    table = Decoder(VOCABULARY, pretrained=llama, freeze=True, train_table=True, frozen_dtype="bfloat16")
    assert table.lm.get_output_embeddings().weight.dtype == torch.float32
    assert full_forward(table.eval(), inputs, 1).isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_positions_stay_exact_in_half_precision(made, family):
    """A cast of the whole model must not round the frequencies: at position 500 an angle would be off by a radian."""
    decoder = Decoder(VOCABULARY, pretrained=made(family))
    before = {name: buffer.clone() for name, buffer in decoder._pretrained.rotary.named_buffers()}
    decoder = decoder.to(torch.bfloat16)
    assert before and all(weight.dtype == torch.bfloat16 for weight in decoder.parameters())
    after = dict(decoder._pretrained.rotary.named_buffers())
    assert all(after[name].equal(buffer) and after[name].dtype == torch.float32 for name, buffer in before.items())


def test_dropout_reaches_the_adapters(llama):
    """With dropout on the residual branches a branch is dropped whole, adapter and frozen weights together."""
    decoder = Decoder(VOCABULARY, pretrained=llama, lora_rank=4, dropout=0.5).train()
    seen = []
    for layer in decoder.lm.get_decoder().layers:
        with torch.no_grad():
            layer.mlp.down_proj.lora_B["default"].weight.normal_()
        layer.mlp.register_forward_hook(lambda _module, _inputs, output: seen.append((output == 0).double().mean()))
    decoder(torch.randn(1, 50, DIM), torch.arange(50)[None], torch.zeros(1, 50).long(), 1)
    assert all(0.4 < share < 0.6 for share in seen) and len(seen) == 3


def test_dropout_of_a_mixture_of_experts(tmp_path):
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    path = checkpoints.make(tmp_path, "qwen2_moe", shared_expert_intermediate_size=8, **experts)
    decoder = Decoder(VOCABULARY, pretrained=path, dropout=0.5)
    inputs = torch.randn(1, 50, DIM), torch.arange(50)[None], torch.zeros(1, 50).long(), 1
    assert not decoder.train()(*inputs).equal(decoder(*inputs))
    assert decoder.eval()(*inputs).equal(decoder(*inputs))


def test_weights_of_8_bits_leave_adapters_alone(llama):
    model = make_model(llama, lora_rank=4)
    train(model)
    decoder, inputs = model.decoder.eval(), [(0, torch.randn(6, DIM)), (0, 3)]
    exact = full_forward(decoder, inputs, 1)
    use_int8(decoder)
    products = decoder.lm.get_decoder().layers[0].self_attn.q_proj
    assert type(products.lora_A["default"]) is torch.nn.Linear and products.base_layer.weight.dtype == torch.int8
    error = (full_forward(decoder, inputs, 1) - exact).abs().max()
    assert 0 < error < 0.3 * exact.std()


def test_weights_of_8_bits_are_refused_beside_dora(llama):
    """It scales each output by the length of the weights, which it would read as whole numbers."""
    with pytest.raises(ConfigError, match="dtype 'int8': DoRA needs the weights as they are: merge it first"):
        use_int8(make_model(llama, lora_rank=4, use_dora=True))


# --- state dicts ---


@pytest.mark.parametrize("conf", [{"lora_rank": 4}, {"freeze": True}, {"lora_rank": 4, "train_table": True}])
def test_a_state_dict_holds_what_trains(llama, conf):
    model = make_model(llama, **conf)
    train(model)
    state = model.state_dict()
    trained = named(model, trained=True)
    buffers = {name for name, _ in model.named_buffers() if not name.startswith("decoder.lm.")}
    assert set(state) == trained | {name for name in buffers if name in state}
    assert "decoder.base_digest" in state
    plain = {name: value.clone() for name, value in state.items()}
    loads = [
        lambda other: other.load_state_dict(dict(plain)),
        lambda other: other.load_state_dict(dict(plain), assign=True),
        lambda other: other.decoder.load_state_dict(
            {name.removeprefix("decoder."): value for name, value in plain.items() if name.startswith("decoder.")}
        ),
    ]
    expected = full_forward(model.decoder.eval(), [(0, torch.ones(6, DIM)), (0, 3)], 1)
    for load in loads:
        other = make_model(llama, seed=1, **conf)
        load(other)
        assert full_forward(other.decoder.eval(), [(0, torch.ones(6, DIM)), (0, 3)], 1).equal(expected)
    lacking = {name: value for name, value in plain.items() if name != "decoder.end_row"}
    with pytest.raises(RuntimeError, match="Missing key.*decoder.end_row"):
        make_model(llama, **conf).load_state_dict(lacking)


def test_tied_weights_stay_tied_when_all_train(llama):
    model = make_model(llama)
    train(model)
    assert "decoder.lm.lm_head.weight" not in model.state_dict()
    other = make_model(llama, seed=1)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    lm = other.decoder.lm
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    assert lm.lm_head.weight.equal(model.decoder.lm.lm_head.weight)


def test_another_base_is_refused(llama, tmp_path):
    state = make_model(llama, lora_rank=4).state_dict()
    other = checkpoints.make(tmp_path / "other", seed=8)
    model = make_model(other, lora_rank=4)
    with pytest.raises(ConfigError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    assert message.startswith(f"decoder_conf pretrained: {other} is not the LLM that the weights were trained with")
    assert "\n" not in message and message.endswith("give the directory of that one")
    copied = shutil.copytree(llama, tmp_path / "copied")
    make_model(str(copied), lora_rank=4).load_state_dict(state)  # the same one elsewhere


def test_the_digest_is_of_the_weights_not_of_their_files(llama, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    digest = Decoder(VOCABULARY, pretrained=llama, freeze=True).base_digest
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load_file(tmp_path / "half/model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    for name in ("shards", "half"):
        assert Decoder(VOCABULARY, pretrained=str(tmp_path / name), freeze=True).base_digest.equal(digest)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 0.1
    model.save_pretrained(tmp_path / "changed")
    assert not Decoder(VOCABULARY, pretrained=str(tmp_path / "changed"), freeze=True).base_digest.equal(digest)


def test_a_copy_has_its_own_weights(llama):
    decoder = Decoder(VOCABULARY, pretrained=llama, lora_rank=4).eval()
    other = copy.deepcopy(decoder)
    with torch.no_grad():
        other.end_row += 1.0
    inputs = [(0, torch.ones(6, DIM))]
    assert not full_forward(other, inputs, 1).equal(full_forward(decoder, inputs, 1))
    decoder.load_state_dict(other.state_dict())
    assert full_forward(other, inputs, 1).equal(full_forward(decoder, inputs, 1))


# --- what cannot be used ---


def test_loading_is_silent(llama, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Decoder(VOCABULARY, pretrained=llama, lora_rank=4)
    assert capfd.readouterr() == ("", "")


def test_damaged_weights_are_one_line(llama, tmp_path):
    broken = shutil.copytree(llama, tmp_path / "broken")
    weights = broken / "model.safetensors"
    for content in (
        weights.read_bytes()[: weights.stat().st_size // 2],
        b"",
        b"version https://git-lfs.github.com/spec/v1",
    ):
        weights.write_bytes(content)
        with pytest.raises(ConfigError, match="broken cannot be used"):
            Decoder(VOCABULARY, pretrained=str(broken))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"pretrained: {tmp_path} holds no Hugging Face checkpoint"):
        Decoder(VOCABULARY, pretrained=str(tmp_path))


def test_a_checkpoint_without_rotary_positions_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no rotary position embedding"):
        Decoder(VOCABULARY, pretrained=str(tmp_path))


@pytest.mark.parametrize("kind", ["gpt_neox", "cohere"])
def test_a_checkpoint_with_rotary_positions_of_another_layout_is_refused(tmp_path, kind):
    """Part of the dimensions, pairs side by side: all would go wrong once positions are re-based."""
    path = checkpoints.make(tmp_path, kind)
    with pytest.raises(ConfigError, match="has no rotary position embedding in Llama's layout.*choose a model of the"):
        Decoder(VOCABULARY, pretrained=path)


def test_scores_of_an_unknown_kind_are_refused(llama, monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def scaled(self, **inputs):
        output = forward(self, **inputs)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(ConfigError, match="computes its scores in a way that is unknown here: choose"):
        Decoder(VOCABULARY, pretrained=llama)


def test_layers_that_no_mask_reaches_are_refused(tmp_path):
    linear = {"layer_types": ["linear_attention", "full_attention"], "decoder_sparse_step": 1}
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "num_experts": 2}
    path = checkpoints.make(
        tmp_path, "qwen3_next", **linear, **sizes, linear_value_head_dim=8, num_experts_per_tok=1,
        moe_intermediate_size=8, shared_expert_intermediate_size=8,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="has layers of linear_attention, which no mask limits to chunks: choose"):
        Decoder(VOCABULARY, pretrained=path)
