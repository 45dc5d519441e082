#!/usr/bin/env bash
# jsonargparse 4.53.0: a constraint in Annotated (pydantic's), on a parameter or a dataclass field, in a module that
# starts with `from __future__ import annotations`.
#
# Expected: the value 0 is refused for Annotated[int, Gt(0)], as without that line and as with add_argument.
# Happens:  the constraint is dropped silently: the setting is a plain int, and 0 is accepted.
# Seen:     0 is accepted: [False, False, False] without the line, [False, True, True] with it; in turn for add_argument, a
#           dataclass and a function
# Source:   documentation, "Type hints": types of pydantic and postponed evaluation of annotations are both supported.
# For users: a learning rate of 0 or a negative number of steps passes a check that is there in the source. Constraints
#           of classes have to be read with `typing.get_type_hints(cls, include_extras=True)` and checked after parsing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jsonargparse==4.53.0 pydantic==2.14.4 PyYAML==6.0.3
cat > "$folder/settings.py" <<'PY'
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from jsonargparse import ArgumentError, ArgumentParser


@dataclass
class Settings:
    steps: Annotated[int, Gt(0)] = 1


def train(steps: Annotated[int, Gt(0)] = 1): ...


def accepts_zero(add) -> bool:
    parser = ArgumentParser(exit_on_error=False)
    add(parser)
    try:
        return parser.parse_args(["--steps", "0"]).steps == 0
    except ArgumentError:
        return False


found = [
    accepts_zero(lambda parser: parser.add_argument("--steps", type=Annotated[int, Gt(0)])),
    accepts_zero(lambda parser: parser.add_class_arguments(Settings)),
    accepts_zero(lambda parser: parser.add_function_arguments(train)),
]
PY
{ echo "from __future__ import annotations"; cat "$folder/settings.py"; } > "$folder/postponed.py"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import postponed
import settings

print(f"0 is accepted: {settings.found} without the line, {postponed.found} with it")
assert settings.found == [False, False, False]
assert postponed.found == [False, True, True]
PY
echo "as described"
