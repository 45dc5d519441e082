#!/usr/bin/env bash
# pyarrow 26.0.1: a Parquet file with two columns of one name, as a join of two tables leaves them.
#
# Expected: every way to read it refuses the file, or keeps both columns' values.
# Happens:  read_table refuses it; ParquetFile, which is the way to read a file in batches, reads it, and to_pylist
#           on its tables and batches keeps the last column of the name only, without a warning.
# Seen:     read_table: ArrowInvalid | ParquetFile: [{'id': 'a', 'label': 0}] | iter_batches: the same
# Source:   documentation of Table.to_pylist ("a list of rows / dictionaries"), which does not mention names.
# For users: pairs whose label column appears twice would be trained on one of them. nlicot refuses such a file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import pyarrow as pa
import pyarrow.parquet as pq

columns = [pa.array(["a"]), pa.array([1]), pa.array([0])]
pq.write_table(pa.table(columns, names=["id", "label", "label"]), "pairs.parquet")
try:
    pq.read_table("pairs.parquet")
except pa.ArrowInvalid as error:
    refusal = type(error).__name__
else:
    raise SystemExit("read_table reads the file: the behaviour has changed")
whole = pq.ParquetFile("pairs.parquet").read().to_pylist()
batches = [row for batch in pq.ParquetFile("pairs.parquet").iter_batches() for row in batch.to_pylist()]
print(f"read_table: {refusal} | ParquetFile: {whole} | iter_batches: {'the same' if batches == whole else batches}")
assert whole == batches == [{"id": "a", "label": 0}]
PY
echo "as described"
