#!/usr/bin/env bash
# jsonargparse 4.53.0: a text that looks like a number in scientific notation, saved and read back.
#
# Expected: what dump (or save) writes can be parsed by the same parser.
# Happens:  dump writes `run: 5e-4` without quotes, since PyYAML does not take 5e-4 for a number; the parser's own
#           loader does, so parse_string refuses its own output. PyYAML's safe_load reads the text.
# Seen:     run: 5e-4 -> Expected a <class 'str'>. Got value: 0.0005
# Source:   jsonargparse's loader replaces PyYAML's pattern for floats (YAML 1.2 instead of 1.1), the dumper does not.
# For users: a run named after its learning rate could be trained and never resumed. Read the file with
#           yaml.BaseLoader and let the types of the settings decide.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'jsonargparse[signatures]==4.53.0' PyYAML==6.0.3
"$folder/venv/bin/python" - <<'PY'
import yaml
from jsonargparse import ArgumentParser

parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--run", type=str)
saved = parser.dump(parser.parse_args(["--run", "5e-4"]))
try:
    parser.parse_string(saved)
except Exception as error:
    message = " ".join(str(error).split())
else:
    raise SystemExit("the text is read back: the behaviour has changed")
print(saved.strip(), "->", message)
assert saved.strip() == "run: 5e-4"
assert "Got value: 0.0005" in message
assert yaml.safe_load(saved) == {"run": "5e-4"}
PY
echo "as described"
