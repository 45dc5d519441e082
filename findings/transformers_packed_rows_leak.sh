#!/usr/bin/env bash
# transformers 5.23.0: two examples in one row, told apart by position ids that start again, as padding-free training does.
#
# Expected: each example gets the logits that it has alone, in every model: the masks are made so "that each sequence is
#           fully independent", as soon as position ids start again.
# Happens:  that is so in models of attention layers only. In hybrid models, convolutions (LFM2) and linear attention
#           (Qwen3.5) read on across the border, without a warning, and training goes on.
# Seen:     largest change of a logit by the example in front: llama 0.000, lfm2 3.339, qwen3.5 3.618
# Source:   masking_utils.py finds packed sequences for attention masks; the convolution of models/lfm2 and the delta rule
#           of models/qwen3_5 get no position ids (the latter takes lengths, if the caller gives cu_seq_lens_q).
# For users: a hybrid base that is tuned on packed rows learns each label next to the label of another pair. Train it
#           without packing; nlicot refuses such bases.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 numpy==2.3.5
cat > "$folder/packed.py" <<'PY'
import torch
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig, Qwen3_5TextConfig

shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "initializer_range": 0.2}
shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
linear = {f"linear_num_{name}_heads": 2 for name in ("key", "value")}
linear |= {f"linear_{name}_head_dim": 16 for name in ("key", "value")}
configs = {
    "llama": LlamaConfig(**shape),
    "lfm2": Lfm2Config(**shape, layer_types=["conv", "full_attention"]),
    "qwen3.5": Qwen3_5TextConfig(
        **shape, head_dim=16, layer_types=["linear_attention", "full_attention"], **linear
    ),
}
first, second = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[10, 11, 12]])
positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
changes = {}
for name, config in configs.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        alone = model(input_ids=second, use_cache=False).logits
        row = model(input_ids=torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    changes[name] = float((row[:, 5:] - alone).abs().max())
print("largest change of a logit by the example in front:", {name: f"{each:.3f}" for name, each in changes.items()})
assert changes["llama"] < 1e-5, changes
assert changes["lfm2"] > 0.01 and changes["qwen3.5"] > 0.01, changes
PY
cd "$folder"
venv/bin/python packed.py 2>errors.txt || { cat errors.txt; exit 1; }
echo "as described"
