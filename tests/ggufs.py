"""GGUF files of tiny language models, written as llama.cpp's converter writes them."""

import numpy as np
import torch

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d"]
SPECIAL = "<|end|>"
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "rms_norm_eps": 1e-5,
}


def vocabulary():
    """The tokens of a byte-level BPE: the 256 bytes, the merges, and one special token."""
    from espnet_speechllm_xl.tokenization import BYTES

    return [*BYTES, *(merge.replace(" ", "") for merge in MERGES), SPECIAL]


def make_model(kind, seed=0, **changes):
    """A causal LM of transformers with random weights: ``kind`` is the beginning of its class's name, "Llama"."""
    import transformers

    config_class = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
    torch.manual_seed(seed)
    settings = {**SHAPE, "vocab_size": len(vocabulary()), "pad_token_id": None, "bos_token_id": 0, **changes}
    model = getattr(transformers, f"{kind}ForCausalLM")(config_class(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def write(path, model, architecture, without=(), extra=None, quantised=False, rule="default"):
    """Write a GGUF file.

    Args:
        path: of the file.
        model: of transformers.
        architecture: GGUF's name of it.
        without: weights to leave out, by transformers' names.
        extra: further tensors and header fields; ``extra(writer)`` writes them.
        quantised: write matrices with 8 bits a weight, in blocks of 32.
        rule: how text is cut before tokens are looked up.
    """
    import gguf

    config, tokens = model.config, vocabulary()
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture == "llama":
        writer.add_rope_dimension_count(head_dim)
    elif architecture != "qwen2":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    positions = config.rope_parameters
    writer.add_rope_freq_base(positions.get("full_attention", positions)["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(len(tokens) - 1)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if name in without or (tied and name == "lm_head.weight"):
            continue
        stem, _, suffix = name.rpartition(".")
        values = weight.float().numpy()
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):  # halves become neighbours
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            rows = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
            values = rows.swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            values = values + 1
        place, kind = f"{names.get_name(stem)}.{suffix}", None
        if quantised and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quantize(values, kind)
        writer.add_tensor(place, np.ascontiguousarray(values), raw_dtype=kind)
    if extra is not None:
        extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
