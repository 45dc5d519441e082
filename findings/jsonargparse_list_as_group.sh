#!/usr/bin/env bash
# jsonargparse 4.53.0: a dataclass as a group of options, and a list where a config file should have its options.
#
# Expected: refused when it is parsed, with the group's name, as text in that place is, and as the list is in place of
#           a number.
# Happens:  parsed without an error. A group at the top is then made with its defaults, as if the file had nothing;
#           a group inside another ends in a TypeError of an inner function, without the group's name.
# Seen:     top: [{'rate': 0.5}] -> Model(lora=Lora(r=8), rate=0.001) | inside: TypeError: ... argument after ** must be
#           a mapping, not list | text: refused | a number: refused
# Source:   documentation, "Classes, methods and functions": add_class_arguments adds an argument for each parameter of
#           the class; the other two cases, which are refused.
# For users: one dash too many in YAML (`model:` with `- rate: 0.5` under it) and a fit trains with the defaults.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'jsonargparse[signatures]==4.53.0' PyYAML==6.0.3
"$folder/venv/bin/python" - <<'PY'
import json
from dataclasses import dataclass, field

from jsonargparse import ArgumentError, ArgumentParser


@dataclass
class Lora:
    r: int = 8


@dataclass
class Model:
    lora: Lora = field(default_factory=Lora)
    rate: float = 1e-3


parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--config", action="config")
parser.add_class_arguments(Model, "model")


def made(content: object) -> str:
    """Return what a config file's content becomes, or the error that ends it."""
    try:
        parsed = parser.parse_args(["--config", json.dumps(content)])
    except ArgumentError:
        return "refused"
    try:
        return repr(parser.instantiate(parsed).model)
    except TypeError as error:
        return f"TypeError: {error}"


top, inside = made({"model": [{"rate": 0.5}]}), made({"model": {"lora": [{"r": 4}]}})
text, number = made({"model": "rate"}), made({"model": {"rate": [0.5]}})
print(f"top: [{{'rate': 0.5}}] -> {top} | inside: {inside} | text: {text} | a number: {number}")
assert made({"model": {"rate": 0.5}}) == "Model(lora=Lora(r=8), rate=0.5)"
assert top == "Model(lora=Lora(r=8), rate=0.001)"
assert inside.endswith("argument after ** must be a mapping, not list") and "lora" not in inside
assert text == number == "refused"
PY
echo "as described"
