"""The decoder's network against transformers' own Llama."""

import pytest
import torch

from espnet_speechllm_xl.config import DecoderConfig
from espnet_speechllm_xl.model.attention import DenseAttention
from espnet_speechllm_xl.model.llama import Llama, Rotary
from espnet_speechllm_xl.model.visibility import attention_mask

SIZES = {"dim": 24, "layers": 3, "heads": 3, "ffn_dim": 40}


def transformers_llama(config, vocabulary, **more):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            rope_theta=config.rope_theta,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",
            **more,
        )
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_weights_of_transformers_load_with_the_same_outputs(tied, theta):
    config = DecoderConfig(**SIZES, tie_embeddings=tied, rope_theta=theta)
    theirs = transformers_llama(config, 11, initializer_range=0.3).double()
    ours = Llama(config, 11).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tied
    inputs = torch.randn(2, 13, 24, dtype=torch.float64)
    position = torch.arange(13)[None].expand(2, -1)
    chunk_id = torch.arange(13)[None].expand(2, -1) // 4
    mask = attention_mask(position, chunk_id, position, chunk_id, 1, torch.float64)
    wanted = theirs(inputs_embeds=inputs, attention_mask=mask, position_ids=position).logits
    given = ours.get_output_embeddings()(ours.run(inputs, position, DenseAttention(mask)))
    assert wanted.std() > 0.1
    assert (given - wanted).abs().max() < 1e-5 * wanted.std()  # transformers' angles are float32


@pytest.mark.parametrize("tied", [False, True])
def test_a_seed_gives_the_weights_that_it_gives_transformers(tied):
    config = DecoderConfig(**SIZES, tie_embeddings=tied)
    theirs = transformers_llama(config, 11, initializer_range=0.02)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    ours = Llama(config, 11)
    assert torch.equal(torch.rand(3), drawn)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name]), name


def test_only_differences_of_positions_matter_to_any_position():
    torch.manual_seed(2)
    query, keys = torch.randn(2, 6, 1, 16)
    position = torch.arange(6)
    scores = []
    for first in (0, 3_000_000):
        rotary = Rotary(position + first, 16, 10000.0, torch.float32)
        scores.append(torch.einsum("qhd,khd->qk", rotary(query), rotary(keys)))
    assert (scores[0] - scores[1]).abs().max() < 1e-5
    assert (scores[0] - torch.einsum("qhd,khd->qk", query, keys)).abs().max() > 0.1
