#!/usr/bin/env bash
# Everything that a GPU has to show, in one call without a network: installs the wheels in a folder for this
# run only, then runs benchmarks/gpu.py with the other flags. The time for the wheels counts.
#   bash benchmarks/gpu.sh --wheels FOLDER --json benchmarks/results/gpu.json
set -euo pipefail
started=$(date +%s)
wheels=""
flags=()
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) wheels="${2:?--wheels needs a folder}"; shift 2 ;;
    --wheels=*) wheels="${1#*=}"; shift ;;
    *) flags+=("$1"); shift ;;
  esac
done
python="${PYTHON:-python3}"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "$wheels" ]; then
  test -d "$wheels" || { echo "--wheels $wheels: not a folder; name the one with the .whl files" >&2; exit 2; }
  for wheel in "$wheels"/*.whl; do
    test -e "$wheel" || { echo "--wheels $wheels: no .whl in it; going on without" >&2; break; }
    # One at a time: a wheel for another Python must not keep the others out.
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheel" ||
      echo "$wheel: not installed" >&2
  done
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$(dirname "$0")/gpu.py" --started "$started" ${flags[@]+"${flags[@]}"}
