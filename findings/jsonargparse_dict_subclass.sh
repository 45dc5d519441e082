#!/usr/bin/env bash
# jsonargparse 4.53.0: a type made with register_type, whose class derives from dict.
#
# Expected: the same value from a flag, from a config file and in dump: the deserializer returns it in each case.
# Happens:  from a flag it is whole; from a config it is empty, and dump writes `{}`, both without an error.
# Seen:     flag {'entailment': 1, 'neutral': 0} | config {} | dump label_map: {}
# Source:   documentation of register_type ("Registering types"), which does not exclude dict subclasses.
# For users: a label map given in YAML would silently be no label map. A Mapping that is not a dict works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'jsonargparse[signatures]==4.53.0' PyYAML==6.0.3
"$folder/venv/bin/python" - <<'PY'
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type


class LabelMap(dict):
    pass


def parse(value):
    if isinstance(value, str):
        value = dict(part.split("=") for part in value.split(","))
    return LabelMap({name: int(label) for name, label in value.items()})


register_type(LabelMap, dict, parse)
parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--config", action="config")
parser.add_argument("--label_map", type=LabelMap)

from_flag = parser.parse_args(["--label_map", "entailment=1,neutral=0"])
from_config = parser.parse_args(["--config", '{"label_map": {"entailment": 1, "neutral": 0}}'])
print("flag", dict(from_flag.label_map), "| config", dict(from_config.label_map), "| dump", parser.dump(from_flag).strip())
assert from_flag.label_map == {"entailment": 1, "neutral": 0}
assert from_config.label_map == {}
assert parser.dump(from_flag).strip() == "label_map: {}"
PY
echo "as described"
