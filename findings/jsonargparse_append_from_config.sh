#!/usr/bin/env bash
# jsonargparse 4.53.0: an option that can be repeated (action="append"), given in a config file.
#
# Expected: a list in the file is that list, as from repeated flags; what dump writes is read back.
# Happens:  the type is applied to the whole list: with type=str the value is the text of the list, without an error.
# Seen:     flags ['a', 'b'] | config "['a', 'b']" | dump read back "['a', 'b']"
# Source:   documentation, "Configuration files" and "Basic usage": arguments are added as with argparse, and dump
#           writes a config that the same parser takes.
# For users: two ids or request fields in YAML would be one text in brackets. A type list[str] without
#           action="append" reads a list from both; each flag then adds to it as `--tag+ VALUE`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jsonargparse==4.53.0 PyYAML==6.0.3
"$folder/venv/bin/python" - <<'PY'
from jsonargparse import ArgumentParser

parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--config", action="config")
parser.add_argument("--tag", type=str, action="append", default=[])

from_flags = parser.parse_args(["--tag", "a", "--tag", "b"])
from_config = parser.parse_args(["--config", '{"tag": ["a", "b"]}'])
read_back = parser.parse_args(["--config", parser.dump(from_flags)])
print(f"flags {from_flags.tag} | config {from_config.tag!r} | dump read back {read_back.tag!r}")
assert from_flags.tag == ["a", "b"]
assert from_config.tag == read_back.tag == "['a', 'b']"
PY
echo "as described"
