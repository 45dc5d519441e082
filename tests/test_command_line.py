from __future__ import annotations

from pathlib import Path

import pytest

from nlicot.cli import COMMANDS, main
from nlicot.command_line import CommandParser
from nlicot.data.pairs import PairFormat


@pytest.mark.parametrize("flag", ["--label_map", "--label-map"])
@pytest.mark.parametrize("value", ["-=skip,a=1", "-1=skip,1=1"])
def test_a_label_map_may_start_with_a_dash(flag: str, value: str) -> None:
    parser = CommandParser("tried", description="", example="")
    parser.add_class_arguments(PairFormat)
    settings = PairFormat.of(parser.parse([flag, value, "--delimiter", ";"]))
    assert str(settings.label_map) == value
    assert settings.flags() == ["--label_map", value, "--delimiter", ";"]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"report"}))
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
