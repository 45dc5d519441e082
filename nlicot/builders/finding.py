"""Finds a builder by its short name or by the class path of anybody's own."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from nlicot.builders.base import Builder
from nlicot.builders.correct_only import CorrectOnly
from nlicot.builders.label_first import LabelFirst
from nlicot.builders.label_only import LabelOnly
from nlicot.builders.multitask import Multitask
from nlicot.builders.reflected import Reflected
from nlicot.builders.unmodified import Unmodified
from nlicot.errors import ConfigError

BUILDERS: dict[str, type[Builder]] = {
    "correct_only": CorrectOnly,
    "reflected": Reflected,
    "unmodified": Unmodified,
    "label_only": LabelOnly,
    "label_first": LabelFirst,
    "multitask": Multitask,
}


def builder_name(builder: Builder) -> str:
    """The short name of a builder that ships, the class's own of any other."""
    shipped = {kind: name for name, kind in BUILDERS.items()}
    return shipped.get(type(builder), type(builder).__name__)


def find_builder(
    name: str, args: Mapping[str, Any] | None = None, *, flag: str = "--data.builder"
) -> Builder:
    """A builder by its short name or class path, made with `args`.

    Args:
        flag: what the user named it with, for error messages.

    Raises:
        ConfigError: there is none of that name, and the known ones are listed; or it does not take `args`.
    """
    kind = BUILDERS.get(name) or _imported(name, flag)
    if args:
        _check_arguments(kind, args, f"{flag}-args")
    try:
        return kind(**args or {})
    except TypeError as error:
        raise ConfigError(
            f"{flag}: found {name!r}, which needs arguments or lacks `target` ({error}); give it as "
            "class_path and init_args"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _imported(name: str, flag: str) -> type[Builder]:
    known = f"expected one of {', '.join(BUILDERS)}, or the class path of your own (module.Class)"
    module_name, _, class_name = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        why = f" ({error})" if module_name else ""
        raise ConfigError(f"{flag}: found {name!r}{why}, {known}") from error
    if not (isinstance(found, type) and issubclass(found, Builder)):
        raise ConfigError(f"{flag}: found {name!r}, which is no Builder; {known}")
    return found


def _check_arguments(kind: type[Builder], args: Mapping[str, Any], flag: str) -> None:
    types = _argument_types(kind)
    for name, value in args.items():
        if name not in types:
            raise ConfigError(f"{flag}: found {name!r}, expected some of {', '.join(types)}")
        expected = types[name]
        if not _fits(value, expected):
            told = getattr(expected, "__name__", None) or str(expected)
            raise ConfigError(f"{flag} {name}: found {value!r}, expected {told}")


def _argument_types(kind: type[Builder]) -> dict[str, Any]:
    """All arguments of a class, those that it passes on to its parents by `**` included."""
    types: dict[str, Any] = {}
    for parent in kind.__mro__:
        init = vars(parent).get("__init__")
        if init is None or parent is object:
            continue
        hints = typing.get_type_hints(init)
        parameters = inspect.signature(init).parameters.values()
        named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        types |= {each.name: hints.get(each.name, Any) for each in named[1:] if each.name not in types}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return types


def _fits(value: object, expected: Any) -> bool:
    """Whether a value is of a plain type or of one of several; other annotations are left to the builder."""
    options = typing.get_args(expected) or (expected,)
    if not all(isinstance(option, type) for option in options):
        return True
    return type(value) in options or (type(value) is int and float in options)
