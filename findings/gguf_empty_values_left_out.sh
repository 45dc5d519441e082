#!/usr/bin/env bash
# gguf 0.19.0: metadata whose value is an empty string or an empty list.
#
# Expected: the key is in the file with that value; the format has strings and arrays of length 0.
# Happens:  the key is not written, and nothing is said; a number 0 and a false are written.
# Seen:     written: general.architecture, a.zero, a.false; left out: a.text, a.list
# Source:   the package's gguf_writer.py: `add_string` and `add_array` return before they add an empty value.
# For users: a copy of a model's metadata with this package loses such keys, and a reader cannot tell "none" from
#           "not known" (an empty prefix, suffix or list of stop tokens). `add_key_value` writes an empty string.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.3.5
cat > "$folder/empty.py" <<'PY'
from gguf import GGUFReader, GGUFValueType, GGUFWriter


def keys(path):
    return [key for key in GGUFReader(path).fields if not key.startswith("GGUF.")]


def written(path, add):
    writer = GGUFWriter(path, "llama")
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return keys(path)


def add(writer):
    writer.add_uint32("a.zero", 0)
    writer.add_bool("a.false", False)
    writer.add_string("a.text", "")
    writer.add_array("a.list", [])


found = written("empty.gguf", add)
left_out = [key for key in ("a.zero", "a.false", "a.text", "a.list") if key not in found]
print(f"written: {', '.join(found)}; left out: {', '.join(left_out)}")
assert left_out == ["a.text", "a.list"], left_out
found = written("text.gguf", lambda writer: writer.add_key_value("a.text", "", GGUFValueType.STRING))
assert "a.text" in found, found
PY
cd "$folder"
venv/bin/python empty.py
echo "as described"
