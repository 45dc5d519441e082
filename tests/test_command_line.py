from __future__ import annotations

import pytest

from nlicot.command_line import LabelMap
from nlicot.errors import ConfigError


def test_a_label_map_is_parsed() -> None:
    assert LabelMap.parse("entailment=1,neutral=0, not sure = 0 ,a=b=1") == {
        "entailment": 1,
        "neutral": 0,
        "not sure": 0,
        "a=b": 1,
    }


@pytest.mark.parametrize("text, part", [("", ""), ("a", "a"), ("a=2", "a=2"), ("=1", "=1"), ("a=1,", "")])
def test_an_invalid_label_map_is_a_config_error(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LabelMap.parse(text)
    assert str(raised.value) == (
        f"--label_map: found {part!r}, expected NAME=0 or NAME=1, "
        "such as entailment=1,neutral=0,contradiction=0"
    )


def test_a_repeated_name_in_a_label_map_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^--label_map: found 'a' twice, expected each name once$"):
        LabelMap.parse("a=1,a=0")
