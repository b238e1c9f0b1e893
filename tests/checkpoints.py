"""Tiny Hugging Face checkpoints, as users have them, with weights large enough that what an input sees matters."""

import torch

SIZES = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.4, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": 7, "tie_word_embeddings": True,
}  # fmt: skip
WINDOW = 6  # positions, of layers with a sliding window; chunks see farther
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 4.0, **SLIDING}
# transformers' name of a family -> what makes its tiny checkpoint show what is special about it
FAMILIES = {
    "llama": {"num_hidden_layers": 3},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, **SLIDING},
    "qwen3": {},
    "smollm3": {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]},
    "gemma2": {"attn_logit_softcapping": 2.0, **GEMMA},
    "gemma3_text": {
        **GEMMA,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        },
    },
}


def make(path, family="llama", seed=7, **changes):
    """Save a checkpoint of random weights in the directory ``path``; return the path as text."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**{**SIZES, **FAMILIES.get(family, {}), **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)
