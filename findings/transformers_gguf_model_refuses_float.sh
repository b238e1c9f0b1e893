#!/usr/bin/env bash
# transformers: a model read from a GGUF file refuses to be cast.  Found 2026-11-30.
#
# `from_pretrained(folder, gguf_file=...)` turns the weights of a GGUF file into plain tensors, and says that this is for
# training and further work on them.  One would guess that the model is then like any other.
# With transformers 5.24.0 its weights are plain float32 parameters, but `.float()` and `.half()` raise ValueError: it
# still counts as quantised.  Its state dict, loaded into a fresh model of the same configuration, has no such limit.
# Reading a GGUF file also needs accelerate, on which transformers itself does not depend.  Seen with Python 3.11.
#
# usage: findings/transformers_gguf_model_refuses_float.sh     needs python3, PyPI, 5 GB for a while; some minutes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.11.0 transformers==5.24.0 \
  gguf==0.19.0 accelerate==1.15.0
cat >"$folder/try.py" <<'PY'
import sys
import gguf, numpy as np
from transformers import AutoModelForCausalLM, LlamaForCausalLM

folder, dim, hidden, words = sys.argv[1], 32, 64, 20
writer = gguf.GGUFWriter(f"{folder}/tiny.gguf", "llama")
writer.add_context_length(64)
writer.add_embedding_length(dim)
writer.add_block_count(1)
writer.add_feed_forward_length(hidden)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(dim // 2)
writer.add_vocab_size(words)
shapes = {"token_embd": (words, dim), "output_norm": (dim,), "output": (words, dim)}
shapes |= {f"blk.0.attn_{name}": (dim, dim) for name in ("q", "k", "v", "output")}
shapes |= {"blk.0.ffn_gate": (hidden, dim), "blk.0.ffn_up": (hidden, dim), "blk.0.ffn_down": (dim, hidden)}
shapes |= {"blk.0.attn_norm": (dim,), "blk.0.ffn_norm": (dim,)}
for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", np.full(shape, 0.5, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf")
weights = list(model.parameters())
print("parameters:", {type(weight).__name__ for weight in weights}, {str(weight.dtype) for weight in weights})
fresh = LlamaForCausalLM(model.config)
fresh.load_state_dict(model.state_dict())
for name, each in (("as it was read", model), ("its weights in a fresh model", fresh)):
    for cast in ("float", "half"):
        try:
            getattr(each, cast)()
            print(f"{name}: .{cast}() works")
        except ValueError as error:
            print(f"{name}: .{cast}() raises ValueError")
PY
"$folder/env/bin/python" -W ignore "$folder/try.py" "$folder" 2>"$folder/said" | tee "$folder/seen" ||
  { cat "$folder/said" >&2; exit 1; }
diff "$folder/seen" - <<'SEEN' && echo "as found"
parameters: {'Parameter'} {'torch.float32'}
as it was read: .float() raises ValueError
as it was read: .half() raises ValueError
its weights in a fresh model: .float() works
its weights in a fresh model: .half() works
SEEN
