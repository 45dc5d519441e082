#!/usr/bin/env bash
# gguf 0.19.0: an array of arrays in the metadata, written and read with the package itself.
#
# Expected: [[1, 2], [3, 4]] comes back as it was written; the format's arrays may contain arrays, and the writer takes them.
# Happens:  the reader returns one flat list. The file has the inner arrays; another reader of its bytes finds them.
# Seen:     written [[1, 2], [3, 4]], read [1, 2, 3, 4]; an array of [[1], [2, 3, 4]] reads the same
# Source:   the package's gguf_reader.py: `_get_field_parts` joins the parts of inner arrays (a comment says so), and
#           `contents` returns them as they are.
# For users: store the inner lengths in an array of their own, or JSON in a string.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.3.5
cat > "$folder/nested.py" <<'PY'
from pathlib import Path

from gguf import GGUFReader, GGUFWriter


def read_back(name, value):
    writer = GGUFWriter(name, "llama")
    writer.add_array("a.nested", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GGUFReader(name).get_field("a.nested").contents()


found = read_back("even.gguf", [[1, 2], [3, 4]]), read_back("uneven.gguf", [[1], [2, 3, 4]])
print(f"written [[1, 2], [3, 4]], read {found[0]}; an array of [[1], [2, 3, 4]] reads {found[1]}")
assert found == ([1, 2, 3, 4], [1, 2, 3, 4]), found
# The bytes differ: the lengths of the inner arrays are in the files.
assert Path("even.gguf").read_bytes() != Path("uneven.gguf").read_bytes()
PY
cd "$folder"
venv/bin/python nested.py
echo "as described"
