"""Turn a command's flags and YAML files into its settings: one parser for every command.

A setting has one name: the key in YAML (`label_map: entailment=1`), the flag (`--label_map entailment=1`;
dashes are accepted for underscores) and the name in messages. A number's type says what values it may have:
they are checked before anything is read or loaded, and messages and `--help` take their words from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import json
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse.typing import register_type

from nlicot.config_files import hint, merged, nested, present_name, read_settings, renamed
from nlicot.data.pairs import ColumnNames, LabelMap
from nlicot.data.shards import Shard
from nlicot.errors import ConfigError
from nlicot.prompts import read_definitions

NUM_BITS = 63
"""Whole numbers of more bits fit neither a tensor nor a journal."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The values that a setting may have, and the words for them."""

    words: str
    allows: Callable[[Any], bool]


PositiveInt: TypeAlias = Annotated[int, Constraint("a whole number, 1 or more", lambda value: value >= 1)]
NonNegativeInt: TypeAlias = Annotated[int, Constraint("a whole number, 0 or more", lambda value: value >= 0)]
JudgeScore: TypeAlias = Annotated[
    int, Constraint("a whole number from 1 to 5", lambda value: 1 <= value <= 5)
]
UpToThousand: TypeAlias = Annotated[
    int, Constraint("a whole number from 1 to 1000", lambda value: 1 <= value <= 1000)
]
Limit: TypeAlias = Annotated[
    int, Constraint("a whole number, 1 or more, or -1 for no limit", lambda value: value == -1 or value >= 1)
]
Seed: TypeAlias = Annotated[
    int, Constraint("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
]
PositiveFloat: TypeAlias = Annotated[float, Constraint("a number above 0", lambda value: value > 0)]
NonNegativeFloat: TypeAlias = Annotated[float, Constraint("a number, 0 or more", lambda value: value >= 0)]
Proportion: TypeAlias = Annotated[float, Constraint("a number from 0 to 1", lambda value: 0 <= value <= 1)]
OpenProportion: TypeAlias = Annotated[
    float, Constraint("a number between 0 and 1", lambda value: 0 < value < 1)
]
Dropout: TypeAlias = Annotated[float, Constraint("a number from 0, below 1", lambda value: 0 <= value < 1)]
TopP: TypeAlias = Annotated[float, Constraint("a number above 0, at most 1", lambda value: 0 < value <= 1)]
MAX_DEVICES = 4096
Devices: TypeAlias = Annotated[
    int | list[int] | str,
    Constraint(
        "auto, -1 for all, a number of devices, or their indices such as 0,1",
        lambda value: value == "auto" or _are_devices(value),
    ),
]
NumBatches: TypeAlias = Annotated[
    int | float,
    Constraint(
        "a number of batches, or a proportion from 0.0 to 1.0",
        lambda value: _are_batches(value) or value == 0,
    ),
]
BatchInterval: TypeAlias = Annotated[
    int | float,
    Constraint(
        "a number of batches, or a proportion above 0.0 and up to 1.0", lambda value: _are_batches(value)
    ),
]

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "Path": "a path",
    "list": "a list",
    "LabelMap": "NAME=0,NAME=1",
    "ColumnNames": "COLUMN=NAME",
    "dict": "NAME=VALUE",
    "Names": "NAME,NAME",
    "Shard": "I/N",
}
"""Types as messages and `--help` name them."""
UNRECOGNIZED = "unrecognized arguments: "
_GROUP_FILE_HELP = "Path to a configuration file."


class Names(tuple[str, ...]):
    """Names, each once: a list in YAML, separated by commas in a flag."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: str | Iterable[str]) -> Names:
        """Read a flag's text or a YAML list.

        >>> Names.parse("train, dev,train")
        ('train', 'dev')
        """
        if isinstance(value, Mapping):  # `a: b` in a flag, which jsonargparse then passes as it was
            raise ValueError("expected names, not a mapping")
        parts = value.split(",") if isinstance(value, str) else map(str, value)
        return cls(dict.fromkeys(part.strip() for part in parts if part.strip()))


register_type(Names, list, Names.parse)
register_type(LabelMap, str, LabelMap.parse)
register_type(ColumnNames, str, ColumnNames.parse)
register_type(Shard, str, Shard.parse)


class _HelpFormatter(DefaultHelpFormatter):
    def __init__(self, parser: CommandParser) -> None:
        super().__init__(parser.prog)  # type: ignore[no-untyped-call]
        self._parser = parser

    def add_argument(self, action: argparse.Action) -> None:
        if self._parser.shows(action):
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        return "a YAML file with both" if action.dest == "definitions" else super()._get_help_string(action)

    def _get_type_str(self, action: argparse.Action) -> str | None:
        if constraint := self._parser.constraints.get(action.dest):
            return constraint.words
        is_listed = str(action.metavar).startswith("{")  # with its values, after the flag
        name = None if is_listed else super()._get_type_str(action)
        return name and _kind(name).removesuffix(" or null")


class CommandParser(ArgumentParser):
    """The parser of one command; add settings with `add_argument` and `add_class_arguments`.

    Args:
        example: a command line that works, for `--help`.
        sections: commands that may share a settings file, each with a section under its name.
        file_settings: the setting that takes a group's plain value: with
            `{"definitions": "definitions.file"}`, `--definitions FILE` sets `definitions.file`.
        own_page: a group whose settings are listed by `--GROUP.help` instead of `--help`.
    """

    def __init__(
        self,
        command: str = "",
        *,
        example: str = "",
        sections: Sequence[str] = (),
        file_settings: Mapping[str, str] = MappingProxyType({}),
        own_page: str = "",
        **parser_options: Any,
    ) -> None:
        self._command, self._sections, self._file_settings = command, sections, file_settings
        self._own_page, self._page = own_page, ""
        self._repeated: set[str] = set()
        self._field_constraints: dict[str, Constraint] = {}
        if not command:  # jsonargparse makes parsers of this class for the arguments of a class path
            super().__init__(**parser_options)
            return
        super().__init__(
            prog=f"python -m nlicot {command}",
            usage="%(prog)s [options]",
            epilog=f"example: {example}" + (f" (and --{own_page}.help lists more)" if own_page else ""),
            exit_on_error=False,
            allow_abbrev=False,
            print_config=None,
            **parser_options,
        )
        add = self.add_argument
        add("--config", action="config", help="a YAML file of settings; later files win")
        add("--print_config", type=bool, default=False, help="print the settings as YAML, and stop")

    def add_class_arguments(self, settings_class: type, prefix: str | None = None, **options: Any) -> Any:
        """Add the fields of a class as settings; jsonargparse drops the constraints of their types."""
        if self._command:
            self._field_constraints |= constraints_of(settings_class, f"{prefix}." if prefix else "")
        return super().add_class_arguments(settings_class, prefix, **options)

    def add_repeated(self, name: str, group: Any = None, **options: Any) -> None:
        """Add a flag that may be given several times, or as a list in a file.

        Not by `action="append"`: jsonargparse 4.53 makes a list in a file the text of that list.
        """
        (group or self).add_argument(f"--{name}", type=list[str], default=[], **options)
        self._repeated.add(name)

    def parse(
        self,
        args: Sequence[str],
        *,
        settings: Mapping[str, Any] = MappingProxyType({}),
        source: str = "settings",
        check: Callable[[Namespace], object] = lambda settings: None,
    ) -> Namespace:
        """Parse the arguments after the command's name.

        Args:
            settings: values below those of `--config` files and flags: a recipe, or a run's own settings.
            source: the origin of `settings`, for messages.
            check: raises `ConfigError` for settings that do not fit each other, before they are printed, too.
        """
        if self._own_page and f"--{self._own_page}.help" in args:
            self._page = self._own_page
            args = ["--help"]
        flags, files = self._read_flags(args)
        layered = self._checked(settings, source)
        # A flag is over all files of settings.
        for name, path in sorted(files, key=lambda each: each[0] == "definitions"):
            if name == "definitions":
                layered = merged(layered, {"definitions": read_definitions(path)})
            else:
                section = self._section(read_settings(path), path)
                if "config" in section:
                    raise ConfigError(
                        f"--config {path}: config: found {section['config']!r}, expected a --config "
                        "flag for each file"
                    )
                layered = merged(layered, self._checked(section, f"--config {path}"))
        try:
            found = self.parse_args([f"--config={json.dumps(layered)}", *flags] if layered else flags)
        except (argparse.ArgumentError, TypeError, KeyError) as error:
            message = worded(error, self.constraints)
            if message.startswith(UNRECOGNIZED):
                value = message.removeprefix(UNRECOGNIZED)
                message = f"found {value!r}, expected flags such as --config FILE; see {self.prog} --help"
            raise ConfigError(message) from None
        found.pop("config", None)
        print_config = found.pop("print_config")
        check_numbers(vars(found.as_flat()), self.constraints)
        check(found)
        if print_config:
            self.instantiate(found)
            print(self.dump(found, skip_unset=False), end="")
            raise SystemExit(0)
        return found

    def instantiate(self, *args: Any, **kwargs: Any) -> Namespace:
        """Create the objects in parsed settings; a value that a class refuses is a `ConfigError`."""
        try:
            created: Namespace = super().instantiate(*args, **kwargs)
        except ValueError as error:
            raise ConfigError(worded(error)) from None
        return created

    def shows(self, action: argparse.Action) -> bool:
        """Return whether the requested page of help lists a setting."""
        is_on_page = bool(self._own_page) and action.dest.startswith(f"{self._own_page}.")
        is_group_file = action.help == _GROUP_FILE_HELP and action.dest != "definitions"
        return is_on_page == bool(self._page) and not is_group_file

    def _get_formatter(self) -> argparse.HelpFormatter:
        return _HelpFormatter(self)

    @property
    def constraints(self) -> dict[str, Constraint]:
        """The constraint of each setting that has one."""
        found = {name: constraint_of(_type_of(action)) for name, action in self._settings().items()}
        return self._field_constraints | {name: each for name, each in found.items() if each is not None}

    def knows(self, name: str) -> bool:
        """Return whether a setting, or a group of settings, has this dotted name."""
        actions = self._settings()
        if any(f"{known}.".startswith(f"{name}.") for known in actions):
            return True
        # Below a mapping or a class of the user's choice, the setting's type decides.
        parents = (name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1))
        return any(_type_of(actions.get(each)) not in (None, int, float, str, bool, Path) for each in parents)

    def _settings(self) -> dict[str, Any]:
        """Return the action of each setting by its dotted name."""
        return {
            action.dest: action
            for action in self._actions
            if action.option_strings and action.dest not in (argparse.SUPPRESS, "help")
        }

    def _unknown(self, name: str, where: str) -> ConfigError:
        names = {known: known for known in self._settings() if not known.endswith(".help")}
        last_parts = {known.rpartition(".")[2]: known for known in names}
        for known, typed, cutoff in ((names, name, 0.5), (last_parts, name.rpartition(".")[2], 0.6)):
            if near := difflib.get_close_matches(typed, known, n=1, cutoff=cutoff):
                return ConfigError(f"{where}: unknown setting; did you mean --{known[near[0]]}?")
        return ConfigError(f"{where}: unknown setting; see {self.prog} --help")

    def _read_flags(self, args: Sequence[str]) -> tuple[list[str], list[tuple[str, Path]]]:
        """Return flags under their present names, and the files of settings with the flags that name them.

        A boolean flag without a value means true; NAME=VALUE after a mapping's flag is one of its items.
        """
        actions = self._settings()
        flags: list[str] = []
        files: list[tuple[str, Path]] = []
        takes_others = any(not action.option_strings for action in self._actions)
        mapping, switch, remaining = "", "", list(args)
        while remaining:
            arg = remaining.pop(0)
            if not arg.startswith("--") or arg == "--":
                if switch and not takes_others:
                    raise ConfigError(f"--{switch}: found {arg!r}, expected true, false or no value")
                is_item = mapping and not arg.startswith("{")
                if is_item and not re.match("[^=]+=", arg):
                    raise ConfigError(f"--{mapping}: found {arg!r}, expected NAME=VALUE")
                flags.append(f"--{mapping}.{arg}" if is_item else f"--{mapping}={arg}" if mapping else arg)
                continue
            typed, equals, value = arg.partition("=")
            name = present_name(arg[2:].partition("=")[0].replace("-", "_"))
            name = self._file_settings.get(name, name)
            if name not in ("help", "config") and not self.knows(name.removesuffix("+")):
                raise self._unknown(name, typed)
            kind, mapping, switch = _type_of(actions.get(name)), "", ""
            if kind in (Path, Path | None) and (value if equals else "".join(remaining[:1] or "-")) == "":
                raise ConfigError(f"--{name}: found '', expected a path")
            if name == "config" or (name == "definitions" and "definitions.entailment" in actions):
                if not equals and not remaining:
                    raise ConfigError(f"--{name} needs a file name")
                files.append((name, Path(value if equals else remaining.pop(0))))
            elif not equals and kind in (bool, bool | None) and remaining[:1] not in (["true"], ["false"]):
                flags.append(f"--{name}=true")
                switch = name
            elif typing.get_origin(kind) is dict:
                if equals:
                    remaining.insert(0, value)
                elif not remaining or remaining[0].startswith("--"):
                    raise ConfigError(f"--{name} needs NAME=VALUE")
                mapping = name
            else:
                if not equals and remaining and re.match("-[^-]*=", remaining[0]):
                    equals, value = "=", remaining.pop(0)  # argparse takes `-=skip` for a flag
                added = "+" if name in self._repeated else ""
                flags.append(f"--{name}{added}{equals}{value}")
        return flags, files

    def _section(self, content: dict[str, Any], path: Path) -> Mapping[str, Any]:
        """Return this command's settings in a file that other commands may share."""
        unknown = [name for name in content if name not in self._sections]
        if len(unknown) == len(content):
            return content
        if unknown:
            advice = hint(unknown[0], self._sections)
            raise ConfigError(f"--config {path}: {unknown[0]}: unknown section; {advice}")
        section = content.get(self._command) or {}
        if not isinstance(section, dict):
            raise ConfigError(f"--config {path}: {self._command}: expected settings with values under it")
        return renamed(section)

    def _checked(self, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return settings with the content of their file of definitions, if every name is known.

        A group of which only the name is left has the settings below it.
        """
        current = dict(settings)
        for group, name in self._file_settings.items():
            if group in current and not isinstance(current[group], Mapping):
                current |= nested(name, current[group])
        if isinstance(current.get("definitions"), str) and self.knows("definitions.entailment"):
            current["definitions"] = read_definitions(Path(current["definitions"]))
        for name, value in _leaves(current):
            if not self.knows(name):
                raise self._unknown(name, f"{where}: {name}")
            if self._is_group(name) and value not in ("", None, {}):
                raise ConfigError(f"{where}: {name}: found {value!r}, expected settings under it")
        return self._without_empty_groups(current)

    def _is_group(self, name: str) -> bool:
        """Return whether a name that is known has no value of its own, only settings below it."""
        settings = self._settings()
        action = settings.get(name)
        has_value = action is not None and action.help != _GROUP_FILE_HELP
        return not has_value and any(other.startswith(f"{name}.") for other in settings)

    def _without_empty_groups(self, settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in settings.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                found[key] = self._without_empty_groups(value, f"{name}.")
            elif value not in ("", None) or not self._is_group(name):
                found[key] = value
        return found


def _type_of(action: argparse.Action | None) -> Any:
    return getattr(action, "_typehint", None)


def typed_settings(args: Sequence[str]) -> dict[str, list[str]]:
    """Return the values that a command line gives by flags, under the present names of their settings.

    >>> typed_settings(["--data.root", "mine", "--probe-thoughts", "--split=dev", "--split=test"])
    {'root': ['mine'], 'probe_thoughts': [], 'split': ['dev', 'test']}
    """
    found: dict[str, list[str]] = {}
    for arg, following in itertools.pairwise([*args, "--"]):
        if arg.startswith("--"):
            _, equals, value = arg.partition("=")
            values = found.setdefault(present_name(arg[2:].partition("=")[0].replace("-", "_")), [])
            values += [value] if equals else [] if following.startswith("--") else [following]
    return found


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def worded(error: Exception, constraints: Mapping[str, Constraint] = MappingProxyType({})) -> str:
    """Put a parser's message into one line: the flag, the value that was found, and what was expected.

    `constraints` have better words for numbers than their type's.

    >>> worded(TypeError("Parser key \\"data.seed\\":\\n  Expected a <class 'int'>. Got value: x"))
    "--data.seed: found 'x', expected a whole number"
    """
    message = " ".join(str(error).split())
    name = re.search(r"(?:Parser key \"|argument --)([\w.]+)", message)
    flag = f"--{name[1]}: " if name else ""
    # Among the errors of a union, show the one that a class or a type of our own words.
    own = re.search(r"Errors: - (?!Expected |Not of |invalid literal )(.+?) - Expected a <class", message)
    if own:
        return flag + re.sub(r"^--[\w.]+: ", "", own[1]) if flag else own[1]
    if "Unable to load config" in message:  # a value for a group of settings
        file = re.search(r"Unable to load config ['\"](.*?)['\"]", message)
        return f"{flag}found {file[1] if file else ''!r}, expected one of its settings: {flag[:-2]}.NAME"
    if message.endswith(("expected one argument", "expected at least one argument")):
        return f"{flag}found no value, expected one"
    value = re.search(
        r"(?:Got|Given) value: ?(.*?)$|: (\S+) does not conform|invalid literal .*?: '(.*?)'", message
    )
    kinds = re.findall(r"(?:Expected an? |Not of type )(.+?)(?=: | - |\.? (?:Got|Given) |$)", message)
    if not (name and value and kinds):
        return flag + re.sub(r"^.*?(?:Parser key \"[\w.]+\"|argument --[\w.]+): ", "", message)
    found = next((each for each in value.groups() if each), "").strip("'\"")
    expected = " or ".join(dict.fromkeys(map(_kind, kinds))).removesuffix(" or null")
    if " or " not in expected and name[1] in constraints:
        expected = constraints[name[1]].words
    return f"{flag}found {found!r}, expected {expected}"


def _kind(name: str) -> str:
    """Name a type as users do.

    >>> _kind("<class 'int'>"), _kind("typing.Literal['a', 'b']"), _kind("Optional[Literal['a']]")
    ('a whole number', 'one of a, b', 'one of a')
    >>> _kind("Path | null")
    'a path or null'
    """
    name = re.sub(r"^Optional\[(.*)\]$", r"\1", name.removeprefix("typing."))
    if name.startswith("Literal["):
        return f"one of {name[8:-1].replace(chr(39), '')}"
    parts = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name).replace("NoneType", "null").split(" | ")
    return " or ".join(KINDS.get(part, part) for part in parts)


def constraint_of(kind: Any) -> Constraint | None:
    """Return the constraint in a type, also in one of a union's."""
    own = [each for each in getattr(kind, "__metadata__", ()) if isinstance(each, Constraint)]
    others = map(constraint_of, typing.get_args(kind))
    return next(filter(None, [*own, *others]), None)


def constraints_of(settings: type | Callable[..., Any], prefix: str = "") -> Iterator[tuple[str, Constraint]]:
    """Yield the dotted name and the constraint of each field of a class, or parameter, that has one."""
    for name, kind in typing.get_type_hints(settings, include_extras=True).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from constraints_of(kind, f"{prefix}{name}.")
        elif (constraint := constraint_of(kind)) is not None:
            yield f"{prefix}{name}", constraint


def check_numbers(values: Mapping[str, Any], constraints: Mapping[str, Constraint]) -> None:
    """Refuse numbers that are not finite, too large, or against their constraint; raises `ConfigError`."""
    for name, value in values.items():
        if value is None or isinstance(value, bool):
            continue
        constraint = constraints.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            expected = constraint.words if constraint else "a finite number"
        elif isinstance(value, int) and value.bit_length() > NUM_BITS:
            expected = f"a whole number of at most {NUM_BITS} bits"
        elif constraint and not constraint.allows(value):
            expected = constraint.words
        else:
            continue
        found = (
            f"{value:g}"
            if isinstance(value, float)
            else str(value)
            if isinstance(value, int)
            else repr(value)
        )
        raise ConfigError(f"--{name}: found {found}, expected {expected}")


def _are_batches(value: float) -> bool:
    return value >= 1 if isinstance(value, int) else 0 < value <= 1


def _are_devices(value: int | list[int] | str) -> bool:
    if isinstance(value, int):
        return value == -1 or 1 <= value <= MAX_DEVICES
    indices = value.split(",") if isinstance(value, str) else list(map(str, value))
    return all(map(str.isdecimal, indices)) and len(set(indices)) == len(indices) > 0
