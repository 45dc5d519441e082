"""Turn a command's flags and YAML files into its settings: one parser for every command.

A setting has one name: the key in YAML (`label_map: entailment=1`), the flag (`--label_map entailment=1`;
dashes are accepted for underscores) and the name in messages.

A scalar in a file stays text until the type of its setting says what it means: a run named `5e-4` is a name,
a learning rate of `5e-4` a number.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type

from nlicot.data.pairs import LABEL_MAP_EXAMPLE
from nlicot.data.rows import binary_label
from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions, read_definitions
from nlicot.shipped import find_config
from nlicot.yaml_files import hint, read_yaml

OLD_NAMES = {
    "data.root": "root",
    "data.label_map": "label_map",
    "data.definitions": "definitions",
    "entailment": "definitions.entailment",
    "no_entailment": "definitions.no_entailment",
    "votes": "model.decoding.votes",
    "think": "model.decoding.think",
    "data.share_beginning": "data.share_prefix",
    "model.warmup_share": "model.warmup_ratio",
}
"""Earlier and shorter names of settings, still read in flags and in the config.yaml of older runs."""
GROUP_FILE_HELP = "Path to a configuration file."
LABEL_MAP_HELP = "labels of other names, such as entailment=1,neutral=0,contradiction=0"
TYPE_NAMES = {
    "int": "a whole number",
    "PositiveInt": "a whole number, 1 or more",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
}


class Names(tuple[str, ...]):
    """Names, each once: a list in YAML, separated by commas in a flag."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: str | Iterable[str]) -> Names:
        """Read a flag's text or a YAML list.

        >>> Names.parse("train, dev,train")
        ('train', 'dev')

        Raises:
            ValueError: the value is a mapping: `a: b` in a flag, which jsonargparse then passes as it was.
        """
        if isinstance(value, Mapping):
            raise ValueError("expected names, not a mapping")
        parts = value.split(",") if isinstance(value, str) else map(str, value)
        return cls(dict.fromkeys(part.strip() for part in parts if part.strip()))


class LabelMap(Mapping[str, int]):
    """The label, 0 or 1, that each label of a file stands for.

    Not a dict: jsonargparse would take its keys for settings.
    """

    def __init__(self, labels: Mapping[str, int]) -> None:
        self._labels = dict(labels)

    def __getitem__(self, name: str) -> int:
        return self._labels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __str__(self) -> str:
        return ",".join(f"{name}={label}" for name, label in self.items())

    @classmethod
    def parse(cls, value: str | Mapping[str, Any]) -> LabelMap:
        """Read `NAME=0,NAME=1` or a YAML mapping.

        Raises:
            ConfigError: a part is not NAME=0 or NAME=1, or a name is given twice.
        """
        if not isinstance(value, str):
            value = ",".join(f"{name}={label}" for name, label in value.items())
        return cls(parse_label_map(value))


def parse_label_map(text: str) -> dict[str, int]:
    """Read the labels of a `--label_map`.

    >>> parse_label_map("entailment=1, neutral=0")
    {'entailment': 1, 'neutral': 0}

    Raises:
        ConfigError: a part is not NAME=0 or NAME=1, or a name is given twice.
    """
    labels: dict[str, int] = {}
    for part in text.split(","):
        name, _, digit = (piece.strip() for piece in part.rpartition("="))
        label = binary_label(digit)
        if not name or label is None:
            raise ConfigError(
                f"--label_map: found {part.strip()!r}, expected NAME=0 or NAME=1 ({LABEL_MAP_EXAMPLE})"
            )
        if name in labels:
            raise ConfigError(f"--label_map: found {name!r} twice, expected each name once")
        labels[name] = label
    return labels


register_type(Names, list, Names.parse)
register_type(LabelMap, str, LabelMap.parse)


class CommandParser(ArgumentParser):
    """The parser of one command; add settings with `add_argument` and `add_class_arguments`.

    Args:
        command: the command's name.
        description: one or two sentences for `--help`.
        example: a command line that works, for `--help`.
        sections: commands that may share a settings file, each with a section under its name. A file
            without any section holds the settings of this command.
        file_settings: the setting that takes a group's plain value: with
            `{"definitions": "definitions.file"}`, `--definitions FILE` sets `definitions.file`.
    """

    def __init__(
        self,
        command: str = "",
        *,
        description: str = "",
        example: str = "",
        sections: Sequence[str] = (),
        file_settings: Mapping[str, str] = MappingProxyType({}),
        **inner: Any,
    ) -> None:
        self.command, self.sections, self.file_settings = command, sections, file_settings
        self._own_pages: set[str] = set()
        if not command:  # jsonargparse makes parsers of this class for the arguments of a class path
            super().__init__(**inner)
            return
        super().__init__(
            prog=f"python -m nlicot {command}",
            usage=f"python -m nlicot {command} [options]",
            description=description,
            epilog=f"example: {example}",
            exit_on_error=False,
            allow_abbrev=False,
            print_config=None,
        )
        self.add_argument("--config", action="config", help="a YAML file of settings; later files win")
        self.add_argument(
            "--print_config", type=bool, default=False, help="print the settings as YAML, and stop"
        )

    def list_on_own_page(self, group: str) -> None:
        """List a group's settings under `--GROUP.help` instead of `--help`."""
        self._own_pages.add(group)
        self._group(group).description = f"listed by python -m nlicot {self.command} --{group}.help"

    def format_help(self, formatter: Any = None) -> str:
        """Return the text of `--help`."""
        return self._help_without(lambda name: any(name.startswith(f"{group}.") for group in self._own_pages))

    def parse(
        self,
        args: Sequence[str],
        *,
        settings: Mapping[str, Any] | None = None,
        source: str = "settings",
        check: Callable[[Namespace], None] = lambda settings: None,
    ) -> Namespace:
        """Parse a command line.

        Args:
            args: what was typed after the command's name.
            settings: values below those of `--config` files and flags: a recipe, or a run's own settings.
            source: where `settings` come from, for messages.
            check: raises `ConfigError` for settings that do not fit each other, before they are printed, too.

        Raises:
            ConfigError: an unknown setting, with the nearest name, or a value of the wrong type.
        """
        for group in self._own_pages:
            if f"--{group}.help" in args:
                self._group(group).description = None
                print(self._help_without(lambda name: not name.startswith(f"{group}.")))  # noqa: B023
                raise SystemExit(0)
        flags, files = self._split(self._normalised(args))
        merged: dict[str, Any] = {}
        if settings:
            merge(merged, self._checked(settings, source))
        for name, path in files:
            if name == "definitions":
                merge(merged, {"definitions": read_definitions(path)})
            else:
                merge(merged, self._checked(self._section(read_settings(path), path), f"--config {path}"))
        try:
            found = self.parse_args([f"--config={json.dumps(merged)}", *flags] if merged else flags)
        except (argparse.ArgumentError, TypeError, KeyError) as error:
            raise ConfigError(worded(error)) from None
        found.pop("config", None)
        print_config = found.pop("print_config")
        check(found)
        if print_config:
            self.instantiate(found)
            print(self.dump(found, skip_unset=False), end="")
            raise SystemExit(0)
        return found

    def add_definitions(self) -> None:
        """Add `--definitions FILE`, `--definitions.entailment` and `--definitions.no_entailment`."""
        self.add_class_arguments(LabelDefinitions, "definitions")

    def _group(self, name: str) -> Any:
        return (self.groups or {})[name]

    def _help_without(self, is_hidden: Callable[[str], bool]) -> str:
        texts = {action: action.help for action in self._actions}
        for action in self._actions:  # only for now: a setting without help would be left out of YAML
            if action.dest == "definitions":
                action.help = "a YAML file with both"
            elif is_hidden(action.dest) or action.help == GROUP_FILE_HELP:
                action.help = argparse.SUPPRESS
        try:
            return str(super().format_help())
        finally:
            for action, text in texts.items():
                action.help = text

    def _names(self) -> dict[str, Any]:
        """Each setting's dotted name with its action."""
        return {
            action.dest: action
            for action in self._actions
            if action.option_strings and action.dest not in (argparse.SUPPRESS, "help")
        }

    def knows(self, name: str) -> bool:
        """Return whether a setting, or a group of settings, has this dotted name."""
        names = self._names()
        if name in names or f"{name}.help" in names or any(known.startswith(f"{name}.") for known in names):
            return True
        # Below a mapping or a class of the user's choice, the setting's type decides.
        parts = name.split(".")
        return any(_is_open(names.get(".".join(parts[:end]))) for end in range(1, len(parts)))

    def _unknown(self, name: str, where: str) -> ConfigError:
        names = [known for known in self._names() if not known.endswith(".help")]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        last_parts = {known.rpartition(".")[2]: known for known in names}
        near = near or [
            last_parts[part] for part in difflib.get_close_matches(name.rpartition(".")[2], last_parts, n=1)
        ]
        hint = f"did you mean --{near[0]}?" if near else f"see python -m nlicot {self.command} --help"
        return ConfigError(f"{where}: unknown setting; {hint}")

    def _normalised(self, args: Sequence[str]) -> Iterator[str]:
        """Yield flags under their own names with underscores, and with a value if one is implied.

        A boolean flag without a value means true; NAME=VALUE after a mapping's flag is one of its items.
        """
        names = self._names()
        mapping = ""
        for index, arg in enumerate(args):
            if not arg.startswith("--") or arg == "--":
                yield _item(mapping, arg) if mapping else arg
                continue
            _, equals, value = arg.partition("=")
            name = _typed_name(arg)
            name = self.file_settings.get(name, name)
            if name not in ("help", "config") and not self.knows(name.removesuffix("+")):
                raise self._unknown(name, arg.partition("=")[0])
            mapping = name if not equals and _is_mapping(names.get(name)) else ""
            following = args[index + 1] if index + 1 < len(args) else "--"
            if not equals and _is_boolean(names.get(name)) and following not in ("true", "false"):
                yield f"--{name}=true"
            elif not mapping:
                yield f"--{name}{equals}{value}"

    def _split(self, args: Iterable[str]) -> tuple[list[str], list[tuple[str, Path]]]:
        """Split off the flags that name a file of settings, `--config` and `--definitions`."""
        named = {"--config", "--definitions"} if "definitions.entailment" in self._names() else {"--config"}
        flags: list[str] = []
        files: list[tuple[str, Path]] = []
        remaining = iter(args)
        for arg in remaining:
            name, equals, value = arg.partition("=")
            if name not in named:
                flags.append(arg)
                continue
            path = value if equals else next(remaining, None)
            if path is None:
                raise ConfigError(f"{name} needs a file name")
            files.append((name[2:], Path(path)))
        return flags, files

    def _section(self, content: dict[str, Any], path: Path) -> Mapping[str, Any]:
        """Return this command's settings in a file that other commands may share."""
        if not any(name in self.sections for name in content):
            return content
        for name in content:
            if name not in self.sections:
                raise ConfigError(f"--config {path}: {name}: unknown section; {hint(name, self.sections)}")
        section = content.get(self.command)
        if section in (None, "", "null"):
            return {}
        if not isinstance(section, dict):
            raise ConfigError(f"--config {path}: {self.command}: expected settings with values under it")
        return section

    def _checked(self, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        current = renamed(settings)
        for group, name in self.file_settings.items():
            if group in current and not isinstance(current[group], Mapping):
                current |= _nested(name, current[group])
        if isinstance(current.get("definitions"), str) and "definitions.entailment" in self._names():
            current["definitions"] = read_definitions(Path(current["definitions"]))
        for name in leaf_names(current):
            if not self.knows(name):
                raise self._unknown(name, f"{where}: {name}")
        return current


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; scalars stay text, so that the types of settings decide.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    found = find_config(path)
    if not found.exists():
        near = ", ".join(sorted(other.name for other in found.parent.glob("*.yaml")))
        there = f"there: {near}" if near else "there is no YAML file in that folder"
        raise ConfigError(f"--config {path}: no such file ({there})")
    content = read_yaml(found, label=f"--config {path}", loader=yaml.BaseLoader)
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected keys with values, such as `root: data`")
    return _with_nulls(content)


def _with_nulls(settings: dict[str, Any]) -> dict[str, Any]:
    """Turn the text `null` into None, because a type could not distinguish it from a name."""
    return {
        key: _with_nulls(value) if isinstance(value, dict) else None if value == "null" else value
        for key, value in settings.items()
    }


def typed_names(args: Sequence[str]) -> set[str]:
    """Return the present names of the settings that a command line names by flags.

    >>> sorted(typed_names(["--data.root", "mine", "--probe-thoughts", "--split=dev"]))
    ['probe_thoughts', 'root', 'split']
    """
    return {_typed_name(arg) for arg in args if arg.startswith("--")}


def typed_values(args: Sequence[str], name: str) -> list[str]:
    """Return all values that a command line gives a setting by flags, before anything is parsed.

    >>> typed_values(["--ckpt-path", "a", "--split=dev", "--ckpt_path=b"], "ckpt_path")
    ['a', 'b']
    """
    found: list[str] = []
    for index, arg in enumerate(args):
        if arg.startswith("--") and _typed_name(arg) == name:
            _, equals, value = arg.partition("=")
            found += [value] if equals else args[index + 1 : index + 2]
    return found


def _typed_name(arg: str) -> str:
    return current_name(arg[2:].partition("=")[0].replace("-", "_"))


def current_name(name: str) -> str:
    """Return the present name of a setting, whatever it was called.

    >>> current_name("data.definitions.entailment"), current_name("root")
    ('definitions.entailment', 'root')
    """
    for old, new in OLD_NAMES.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under their present names.

    >>> renamed({"data": {"root": "mine", "seed": 1}})
    {'root': 'mine', 'data': {'seed': 1}}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        for old, new in OLD_NAMES.items():
            parent, _, last = old.rpartition(".")
            if parent == key and isinstance(value, Mapping) and last in value:
                if value[last] not in (None, "null"):
                    merge(found, _nested(new, value[last]))
                value = {name: inner for name, inner in value.items() if name != last}
        merge(found, _nested(current_name(key), value))
    return found


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def merge(settings: dict[str, Any], others: Mapping[str, Any]) -> None:
    """Lay other settings over these, in place; one that names a class replaces what was there."""
    for key, value in others.items():
        mine = settings.get(key)
        if isinstance(mine, dict) and value in ("", None):  # a key of which only the name is left
            continue
        if isinstance(mine, dict) and isinstance(value, Mapping) and "class_path" not in value:
            merge(mine, value)
        else:
            settings[key] = dict(value) if isinstance(value, Mapping) else value


def leaf_names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of nested settings.

    >>> list(leaf_names({"a": {"b": 1, "c": {}}, "d": 2}))
    ['a.b', 'a.c', 'd']
    """
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaf_names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def worded(error: Exception) -> str:
    """Put a parser's message into one line: the flag, the value that was found, and what was expected.

    >>> worded(TypeError("Parser key \\"data.seed\\":\\n  Expected a <class 'int'>. Got value: x"))
    "--data.seed: found 'x', expected a whole number"
    """
    message = " ".join(str(error).split())
    name = re.search(r"Parser key \"([\w.]+)\"|argument --([\w.]+)", message)
    flag = f"--{name[1] or name[2]}: " if name else ""
    # A type of our own words its refusal; among the errors of a union it is the one to show.
    own = re.search(r"Errors: .*?- (--\w[\w.-]*: .+?) - Expected a <class 'NoneType'>", message)
    if own:
        return own[1]
    value = re.search(
        r"(?:Got|Given) value: (.*?)$|: (\S+) does not conform|invalid literal .*?: '(.*?)'", message
    )
    kinds = re.findall(r"(?:Expected an? |Not of type )(.+?)(?=: | - |\.? (?:Got|Given) |$)", message)
    if not (name and value and kinds):
        return flag + re.sub(r"^.*?(?:Parser key \"[\w.]+\"|argument --[\w.]+): ", "", message)
    found = next(filter(None, value.groups())).strip("'\"")
    expected = dict.fromkeys(map(_kind, kinds))
    if len(expected) > 1:
        expected.pop("null", None)
    return f"{flag}found {found!r}, expected {' or '.join(expected)}"


def _kind(name: str) -> str:
    """Name a type as users do.

    >>> _kind("<class 'int'>"), _kind("typing.Literal['a', 'b']")
    ('a whole number', 'one of a, b')
    """
    if name.startswith("typing.Literal["):
        return f"one of {name[15:-1].replace(chr(39), '')}"
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name)
    return "null" if name == "NoneType" else TYPE_NAMES.get(name, name)


def _is_boolean(action: Any) -> bool:
    return getattr(action, "_typehint", None) is bool


def _is_mapping(action: Any) -> bool:
    return typing.get_origin(getattr(action, "_typehint", None)) is dict


def _item(mapping: str, text: str) -> str:
    if text.startswith("{"):
        return f"--{mapping}={text}"
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--{mapping}: found {text!r}, expected NAME=VALUE")
    return f"--{mapping}.{name}={value}"


def _is_open(action: Any) -> bool:
    """True if the setting's value may have keys that the parser does not know by name."""
    kind = getattr(action, "_typehint", None)
    return kind is not None and kind not in (int, float, str, bool, Path)
