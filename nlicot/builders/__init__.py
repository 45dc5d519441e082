"""Builders turn pairs and the teacher's texts into training examples, one rule per file.

`BUILDERS` maps each short name to its class. To add a builder, write a file and register its class here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from nlicot.builders.base import Builder
from nlicot.builders.correct_only import CorrectOnly
from nlicot.builders.draft_first import DraftFirst
from nlicot.builders.label_first import LabelFirst
from nlicot.builders.label_only import LabelOnly
from nlicot.builders.multitask import Multitask
from nlicot.builders.reflected import Reflected
from nlicot.builders.unmodified import Unmodified
from nlicot.command_line import worded
from nlicot.errors import ConfigError, DataError
from nlicot.records import TrainingExample

BUILDERS: dict[str, type[Builder]] = {
    "correct_only": CorrectOnly,
    "reflected": Reflected,
    "unmodified": Unmodified,
    "label_only": LabelOnly,
    "label_first": LabelFirst,
    "draft_first": DraftFirst,
    "multitask": Multitask,
}


def builder_name(builder: Builder) -> str:
    """Return the short name of a registered builder, or the class name of another one."""
    short_names = {kind: name for name, kind in BUILDERS.items()}
    return short_names.get(type(builder), type(builder).__name__)


def check_built(built: Sequence[TrainingExample], builder: Builder, path: Path) -> None:
    """Refuse pairs, those of the file `path`, of which a builder made no example."""
    if not built:
        texts = " with thoughts" * bool(builder.needed_texts("train"))
        raise DataError(
            f"nothing that the builder {builder_name(builder)} can use", f"labelled pairs{texts}", path=path
        )


def find_builder(
    name: str, args: Mapping[str, Any] | None = None, *, flag: str = "--data.builder"
) -> Builder:
    """Create a builder by its short name or class path; `args` are converted to their types."""
    kind = BUILDERS.get(name) or _imported(name, flag)
    args = _checked(kind, args, f"{flag}_args") if args else {}
    try:
        return kind(**args)
    except TypeError as error:
        raise ConfigError(
            f"{flag} {name}: cannot be made without arguments ({error}); pass them with --builder_args in "
            "prepare, with --data.builder.NAME in fit"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _imported(name: str, flag: str) -> type[Builder]:
    expected = f"expected one of {', '.join(BUILDERS)}, or the class path of your own (module.Class)"
    module_name, _, class_name = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        reason = f" ({error})" if module_name else ""
        raise ConfigError(f"{flag}: found {name!r}{reason}, {expected}") from error
    if not (isinstance(found, type) and issubclass(found, Builder)):
        raise ConfigError(f"{flag}: found {name!r}, which is not a Builder subclass; {expected}")
    return found


def _checked(kind: type[Builder], args: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Convert the arguments to their types; those that a class passes on by `**` are known too."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False)
    known = parser.get_defaults().as_dict()
    for name in args:
        if name not in known:
            raise ConfigError(f"{setting}: found {name!r}, expected some of {', '.join(known)}")
    try:
        parsed = parser.parse_object(dict(args)).as_dict()
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise ConfigError(f"{setting} {worded(error).removeprefix('--')}") from None
    return {name: parsed[name] for name in args}
