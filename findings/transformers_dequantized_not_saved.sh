#!/usr/bin/env bash
# transformers 5.23.0 with bitsandbytes 0.50.2: a model loaded from a folder that was saved in 4 bits, then dequantised.
#
# Expected: after model.dequantize() it is a plain model, which save_pretrained writes, as for one quantised while loading.
# Happens:  save_pretrained raises NotImplementedError: the reading of 4-bit files is to be reversed, and has no reverse.
# Seen:     quantised while loading: saved | loaded in 4 bits: NotImplementedError
# Source:   the package's core_model_loading.py: save_pretrained reverses the conversions of the load, `ConversionOps`
#           raises in `reverse_op`, and `Bnb4bitDeserialize` does not replace it.
# For users: merging an adapter into a cached 4-bit base and saving it fails at the last step. Drop the model's
#           `_weight_conversions` after dequantize().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 bitsandbytes==0.50.2 torch==2.13.0 \
  numpy==2.3.5 huggingface_hub==2.4.0 accelerate==1.15.0
cat > "$folder/save.py" <<'PY'
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2)).save_pretrained("plain")
in_4_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
AutoModelForCausalLM.from_pretrained("plain", quantization_config=in_4_bits).save_pretrained("quantised")


def saved(name, **options):
    model = AutoModelForCausalLM.from_pretrained(name, **options).dequantize()
    try:
        model.save_pretrained("out")
    except Exception as error:
        return type(error).__name__
    return "saved"


found = saved("plain", quantization_config=in_4_bits), saved("quantised")
print(f"quantised while loading: {found[0]} | loaded in 4 bits: {found[1]}")
assert found == ("saved", "NotImplementedError"), found
PY
cd "$folder"
venv/bin/python save.py 2>errors.txt || { cat errors.txt; exit 1; }
echo "as described"
