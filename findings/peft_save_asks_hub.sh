#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0: saving a LoRA adapter of attention layers, whose base has a hub name.
#
# Expected: save_pretrained writes the adapter's files and needs no network: embeddings are neither adapted nor saved.
# Happens:  each save asks the hub for the base's config.json, to compare its vocabulary size with the model's.
# Seen:     default: HEAD /someone/model/resolve/main/config.json | save_embedding_layers=False: no request
# Source:   documentation of PeftModel.save_pretrained: "auto" checks whether target_modules holds an embedding layer;
#           it does not mention a request.
# For users: on a cluster node without network each checkpoint waits for the hub's time-outs, and warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.23.0 torch==2.13.0 \
  numpy==2.3.5 huggingface_hub==2.4.0 accelerate==1.15.0
cat > "$folder/save.py" <<'PY'
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import os

asked = []


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        if "config.json" in self.path:
            asked.append(f"{self.command} {self.path}")
        self.send_response(404)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
)
base = LlamaForCausalLM(config)
base.config._name_or_path = base.name_or_path = "someone/model"
model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
model.save_pretrained("without", save_embedding_layers=False)
silent = list(asked)
model.save_pretrained("adapter")
print(f"default: {asked[0] if asked else 'no request'} | save_embedding_layers=False: {silent or 'no request'}")
assert not silent
assert asked and asked[0].endswith(" /someone/model/resolve/main/config.json"), asked
PY
cd "$folder"
HF_HOME="$folder/hub" venv/bin/python save.py 2>errors.txt || { cat errors.txt; exit 1; }
echo "as described"
