"""The decoder: cached, evicted, re-based and batched calls against one plain masked call; sizes; checkpoints."""

import copy
import dataclasses
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from espnet_speechllm_xl.model import pretrained
from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.model.emformer import EmformerEncoder
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.settings import ConfigError

CONF = Path(__file__).parents[2] / "conf"
SIZES = {"dim": 16, "layers": 3, "heads": 2, "ffn_dim": 24}
VOCABULARY = 11
ROUND_OFF = 1e-12  # float64
# Hugging Face computes rotary angles in float32 whatever the model's type: what a shift of positions may change.
ANGLES = 2e-5


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


@dataclasses.dataclass
class Stream:
    """A hypothesis under test: all its inputs so far, and the log-probabilities that extend() gave on the way."""

    past: object
    inputs: list = dataclasses.field(default_factory=list)  # (chunk, frames (q, D) or token)
    given: list = dataclasses.field(default_factory=list)  # (number of inputs, log-probabilities)

    def fork(self):
        return Stream(self.past, list(self.inputs), list(self.given))

    def request(self, rng, dim, dtype, most=6):
        chunk = self.inputs[-1][0] if self.inputs else -1
        if chunk < 0 or rng.random() < 0.5:
            frames = torch.randn(rng.randint(1, most), dim, dtype=dtype)
            self.inputs.append((chunk + 1, frames))
            return Request(self.past, chunk + 1, frames=frames)
        self.inputs.append((chunk, rng.randrange(VOCABULARY)))
        return Request(self.past, chunk, token=self.inputs[-1][1])

    def accept(self, result):
        self.past = result.past
        self.given.append((sum(1 if isinstance(x, int) else len(x) for _, x in self.inputs), result.log_probs))


@torch.no_grad()
def full_forward(decoder, inputs, context, first=0):
    """Log-probabilities (L, V + 1) of a whole history in one call without a cache."""
    pieces = [decoder.embed(torch.tensor([x])) if isinstance(x, int) else x for _, x in inputs]
    chunk = torch.tensor([k for (k, _), piece in zip(inputs, pieces, strict=True) for _ in range(len(piece))])[None]
    position = torch.arange(first, first + chunk.shape[1])[None]
    hidden = decoder(torch.cat(pieces)[None], position, chunk, context)
    return decoder.logits(hidden)[0].log_softmax(-1)


def run_streams(decoder, context, seed, rounds=40, forks=True):
    """Hypotheses of different ages, some forked, extended together in random groups."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = decoder.lm.get_output_embeddings().weight.dtype
    streams = [Stream(decoder.initial_past(context))]
    for _ in range(rounds):
        if len(streams) < 7 and rng.random() < 0.4:
            old = rng.choice(streams)
            streams.append(old.fork() if forks and rng.random() < 0.6 else Stream(decoder.initial_past(context)))
        group = rng.sample(streams, rng.randint(1, len(streams)))
        results = decoder.extend([stream.request(rng, decoder.dim, dtype) for stream in group])
        for stream, result in zip(group, results, strict=True):
            stream.accept(result)
    return streams


def worst_difference(decoder, streams, context):
    worst = 0.0
    for stream in streams:
        if stream.inputs:
            expected = full_forward(decoder, stream.inputs, context)
            for count, log_probs in stream.given:
                worst = max(worst, (expected[count - 1] - log_probs).abs().max().item())
    return worst


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


def assert_no_drift(decoder):
    torch.manual_seed(1)
    recent = [torch.randn(100, 16) for _ in range(3)]
    past, highest = decoder.initial_past(1), 0
    for chunk in range(197):
        past = decoder.extend([Request(past, chunk, frames=torch.randn(100, 16))])[0].past
        highest = max(highest, past.next_position)
    fresh = decoder.initial_past(1)
    for chunk, frames in enumerate(recent):
        old, new = decoder.extend([Request(past, 197 + chunk, frames=frames), Request(fresh, chunk, frames=frames)])
        past, fresh = old.past, new.past
    assert (old.log_probs - new.log_probs).abs().max() < 1e-3
    assert (old.log_probs - new.log_probs).abs().max() < 1e-2 * new.log_probs.std()
    return highest


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


# --- checkpoints of others ---


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Llama with grouped keys and a larger vocabulary, saved as users have it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        max_position_embeddings=64,
    )
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def check_extend(decoder, context=1, seed=2):
    streams = run_streams(decoder.double().eval(), context, seed)
    assert worst_difference(decoder, streams, context) < ROUND_OFF


@pytest.mark.parametrize("vocabulary", [10, 30])
def test_pretrained_in_full(checkpoint, vocabulary):
    from safetensors.torch import load_file

    decoder = Decoder(vocabulary, pretrained=str(checkpoint))
    saved = load_file(checkpoint / "model.safetensors")
    kept = min(vocabulary + 1, 16)
    assert torch.equal(decoder.lm.get_input_embeddings().weight[:kept], saved["model.embed_tokens.weight"][:kept])
    assert torch.equal(decoder.lm.model.layers[1].mlp.up_proj.weight, saved["model.layers.1.mlp.up_proj.weight"])
    assert decoder.eoc == vocabulary and decoder.logits(torch.zeros(1, 16)).shape == (1, vocabulary + 1)
    assert decoder.dim == 16 and decoder.network.cache_shape == (2, 2, 4)
    assert all(weight.requires_grad for weight in decoder.parameters())


@pytest.mark.parametrize("context", [0, 1, None])
def test_pretrained_forward_and_extend_agree(checkpoint, context):
    check_extend(Decoder(VOCABULARY, pretrained=str(checkpoint)), context)


@pytest.mark.parametrize("context", [0, 1, 2])
def test_rebasing_changes_nothing(checkpoint, context, monkeypatch):
    monkeypatch.setattr(pretrained, "REBASE_POSITION", 10**9)
    decoder = Decoder(VOCABULARY, pretrained=str(checkpoint)).double().eval()
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


def test_a_long_stream_of_a_pretrained_model_does_not_drift(checkpoint):
    decoder = Decoder(VOCABULARY, pretrained=str(checkpoint)).eval()
    assert assert_no_drift(decoder) <= pretrained.REBASE_POSITION + 200


def test_a_large_position_would_err_in_float32(checkpoint, monkeypatch):
    """Why pasts of pretrained models are re-based at all."""
    monkeypatch.setattr(pretrained, "REBASE_POSITION", 10**9)
    decoder = Decoder(VOCABULARY, pretrained=str(checkpoint)).eval()
    frames, errors = torch.randn(40, 16), []
    for position in (1000, 900_000):
        late = dataclasses.replace(decoder.initial_past(1), next_position=position)
        start, end = decoder.extend([Request(past, 0, frames=frames) for past in (decoder.initial_past(1), late)])
        errors.append((start.log_probs - end.log_probs).abs().max())
    assert errors[1] > 1e-4 and errors[1] > 50 * errors[0]


def test_lora_trains_adapters_embeddings_and_output_only(checkpoint):
    decoder = Decoder(VOCABULARY, pretrained=str(checkpoint), lora_rank=4)
    trained = {name for name, weight in decoder.named_parameters() if weight.requires_grad}
    adapters = {name for name in trained if "lora_" in name}
    assert len(adapters) == 2 * 7 * 2, "A and B of 7 products in 2 layers"
    rest = trained - adapters
    assert len(rest) == 2 and all(("embed_tokens" in name) or ("lm_head" in name) for name in rest)

    before = {name: weight.detach().clone() for name, weight in decoder.named_parameters()}
    optimiser = torch.optim.SGD([weight for weight in decoder.parameters() if weight.requires_grad], lr=1.0)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    for _ in range(2):  # B of an adapter starts at zero, so A moves in the second step
        hidden = decoder(decoder.embed(tokens), torch.arange(5)[None], torch.zeros(1, 5).long(), 1)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(decoder.logits(hidden)[0], torch.tensor([2, 3, 4, 5, VOCABULARY])).backward()
        optimiser.step()
    moved = {name for name, weight in decoder.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == trained
    check_extend(decoder)


def test_lora_weights_survive_a_checkpoint(checkpoint):
    decoder = Decoder(VOCABULARY, pretrained=str(checkpoint), lora_rank=4)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.add_(torch.randn_like(weight))
    again = Decoder(VOCABULARY, pretrained=str(checkpoint), lora_rank=4)
    again.load_state_dict(decoder.state_dict(), strict=True)
    inputs = [(0, torch.randn(4, 16)), (0, 3)]
    assert torch.equal(full_forward(decoder.eval(), inputs, 1), full_forward(again.eval(), inputs, 1))


def test_dropout_reaches_the_adapters(checkpoint):
    """With dropout on the residual branches a branch is dropped whole, adapter and frozen weights together."""
    decoder = Decoder(VOCABULARY, pretrained=str(checkpoint), lora_rank=4, dropout=0.5).train()
    seen = []
    for layer in decoder.lm.get_decoder().layers:
        with torch.no_grad():
            layer.mlp.down_proj.lora_B["default"].weight.normal_()
        layer.mlp.register_forward_hook(lambda _module, _inputs, output: seen.append((output == 0).double().mean()))
    decoder(torch.randn(1, 50, 16), torch.arange(50)[None], torch.zeros(1, 50).long(), 1)
    assert all(0.4 < share < 0.6 for share in seen) and len(seen) == 2


def test_dropout_of_a_mixture_of_experts(tmp_path):
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    more = {"num_key_value_heads": 2, "intermediate_size": 24, "shared_expert_intermediate_size": 8}
    Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, **experts, **more)).save_pretrained(tmp_path)
    decoder = Decoder(VOCABULARY, pretrained=str(tmp_path), dropout=0.5)
    inputs = torch.randn(1, 50, 16), torch.arange(50)[None], torch.zeros(1, 50).long(), 1
    assert not decoder.train()(*inputs).equal(decoder(*inputs))
    assert decoder.eval()(*inputs).equal(decoder(*inputs))


def test_damaged_weights_are_one_line(checkpoint, tmp_path):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = broken / "model.safetensors"
    for content in (
        weights.read_bytes()[: weights.stat().st_size // 2],
        b"",
        b"version https://git-lfs.github.com/spec/v1",
    ):
        weights.write_bytes(content)
        with pytest.raises(ConfigError, match="broken cannot be used"):
            Decoder(VOCABULARY, pretrained=str(broken))


def test_scaled_rope_is_rebased_without_scaling_again(tmp_path, monkeypatch):
    """YaRN multiplies cosines and sines by a factor; a key that is rotated once more must not take it twice."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(8)
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.4,
        max_position_embeddings=256,
        rope_parameters=rope,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    decoder = Decoder(VOCABULARY, pretrained=str(tmp_path)).double().eval()
    assert decoder.lm.get_decoder().rotary_emb.attention_scaling != 1
    monkeypatch.setattr(pretrained, "REBASE_POSITION", 5)
    assert worst_difference(decoder, run_streams(decoder, 1, seed=3, rounds=60), 1) < ANGLES


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"pretrained: {tmp_path} holds no Hugging Face checkpoint"):
        Decoder(VOCABULARY, pretrained=str(tmp_path))


def test_a_checkpoint_without_rotary_positions_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no rotary position embedding"):
        Decoder(VOCABULARY, pretrained=str(tmp_path))


@pytest.mark.parametrize("kind", ["gpt_neox", "cohere", "gemma3_text"])
def test_a_checkpoint_with_rotary_positions_of_another_layout_is_refused(tmp_path, kind):
    """Part of the dimensions, pairs side by side, several sets: all would go wrong once positions are re-based."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 16}
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = CONFIG_MAPPING[kind](**sizes, **heads, **special)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no rotary position embedding in Llama's layout"):
        Decoder(VOCABULARY, pretrained=str(tmp_path))
