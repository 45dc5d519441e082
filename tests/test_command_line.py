from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import COMMANDS, main
from nlicot.command_line import CommandParser, Devices, PositiveInt, Proportion, check_numbers, constraints_of
from nlicot.data.pairs import PairFormat
from nlicot.errors import ConfigError


@pytest.mark.parametrize("flag", ["--label_map", "--label-map"])
@pytest.mark.parametrize("value", ["-=skip,a=1", "-1=skip,1=1"])
def test_a_label_map_may_start_with_a_dash(flag: str, value: str) -> None:
    parser = CommandParser("tried", description="", example="")
    parser.add_class_arguments(PairFormat)
    settings = PairFormat.of(parser.parse([flag, value, "--delimiter", ";"]))
    assert str(settings.label_map) == value
    assert settings.flags() == ["--label_map", value, "--delimiter", ";"]


# `sweep` hands flags on to `fit`.
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"datasets", "merge-shards", "report", "sweep"}))
def test_every_command_that_reads_pairs_has_settings_for_their_format(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = capsys.readouterr().out.split()
    assert {"--label_map", "--columns", "--delimiter"} <= set(words)


def test_a_repeated_flag_is_also_a_list_in_a_file_and_flags_add_to_it(tmp_path: Path) -> None:
    parser = CommandParser("inspect", description="", example="")
    parser.add_repeated("id")
    (tmp_path / "ids.yaml").write_text("id: ['7', 1e3]\n", encoding="utf-8")
    assert parser.parse(["--id", "7", "--id=a: b"]).id == ["7", "a: b"]
    assert parser.parse(["--config", str(tmp_path / "ids.yaml"), "--id", "[x"]).id == ["7", "1e3", "[x"]


@dataclass(frozen=True, kw_only=True)
class Inner:
    rank: PositiveInt | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    ratio: Proportion = 0.5
    devices: Devices = "auto"
    scale: float = 1.0


CONSTRAINTS = dict(constraints_of(Outer))


def test_constraints_are_found_by_dotted_names() -> None:
    assert {name: constraint.words for name, constraint in CONSTRAINTS.items()} == {
        "inner.rank": "a whole number, 1 or more",
        "ratio": "a number from 0 to 1",
        "devices": "auto, -1 for all, a number of devices, or their indices such as 0,1",
    }


@pytest.mark.parametrize(
    "values",
    [
        {"inner.rank": None, "ratio": 0, "devices": "0,1", "scale": -1e308},
        {"inner.rank": 2**62, "ratio": 1.0, "devices": [3, 0], "other": True},
        {"devices": -1},
        {"devices": 8},
    ],
)
def test_values_that_a_setting_may_have_pass(values: dict[str, Any]) -> None:
    check_numbers(values, CONSTRAINTS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("inner.rank", 0, "--inner.rank: found 0, expected a whole number, 1 or more"),
        ("inner.rank", 2**63, f"--inner.rank: found {2**63}, expected a whole number of at most 63 bits"),
        ("ratio", float("nan"), "--ratio: found nan, expected a number from 0 to 1"),
        ("scale", float("-inf"), "--scale: found -inf, expected a finite number"),
        ("devices", "0,0", "--devices: found '0,0', expected auto, -1 for all, a number of devices"),
        ("devices", [], "--devices: found [], expected auto"),
    ],
)
def test_other_values_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_numbers({name: value}, CONSTRAINTS)
    assert str(error.value).startswith(message)
