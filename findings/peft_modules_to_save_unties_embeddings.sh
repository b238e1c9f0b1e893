#!/usr/bin/env bash
# peft: `modules_to_save` on a language model whose input and output embeddings are one table.  Found 2026-11-30.
#
# One would guess that `LoraConfig(modules_to_save=["embed_tokens", "lm_head"])` trains the table that the two share
# (`tie_word_embeddings: true`, as in SmolLM2, Qwen2 and Gemma), and that they still share it after a step.
# They get a copy each.  With peft 0.21.2 both copies train, apart from one another, beside the frozen table.  Of a
# model with 49,152 tokens of 576 numbers that is 57 million trained weights where LoRA has under 5 million.
# `ensure_weight_tying=True` keeps them one.
#
# usage: findings/peft_modules_to_save_unties_embeddings.sh     needs python3 (3.10 to 3.13) and PyPI; some minutes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.11.0 transformers==5.24.0 peft==0.21.2
cat >"$folder/try.py" <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

for tying in (False, True):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    ))
    one_table = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model = get_peft_model(model, LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=tying,
    ))
    trained = [weight for weight in model.parameters() if weight.requires_grad and weight.numel() == 32000]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    tokens = torch.arange(20)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    base = model.get_base_model()
    first, second = (part.weight for part in (base.get_input_embeddings(), base.get_output_embeddings()))
    print(f"ensure_weight_tying={tying}: one table before: {one_table}; tables that train: {len(trained)}; "
          f"equal after a step: {torch.equal(first, second)}")
PY
"$folder/env/bin/python" -W ignore "$folder/try.py" 2>"$folder/said" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' && echo "as found"
ensure_weight_tying=False: one table before: True; tables that train: 2; equal after a step: False
ensure_weight_tying=True: one table before: True; tables that train: 1; equal after a step: True
SEEN
