"""What an audit says: findings, the sections that they stand in, and the whole of it.

    Audit > Section (one family of checks: what was looked at, tables, figures) > Finding

Severities: an `error` makes the command exit with 1, a `warning` is worth a look, a `note` is worth knowing.
How they are printed is `rendering`'s work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nlicot.text_tables import Table

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    `name` is the same for the same fault in any data; `ids` are of the form `split/id`, in the order of the
    data; `advice` is one line on what to do; `figures` holds what JSON readers want of it.
    """

    name: str
    severity: str
    summary: str
    advice: str
    ids: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES, self.severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One family of checks; `summary` says in a line what was looked at and how it came out."""

    name: str
    title: str
    summary: str
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All sections, and which files were read: `files` maps a split to its files by kind."""

    files: dict[str, dict[str, str]]
    sections: tuple[Section, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the worst first, else in the sections' order."""
        found = [finding for section in self.sections for finding in section.findings]
        return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))

    def num(self, severity: str) -> int:
        """How many findings are this severe."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """1 where something is wrong enough to mend before training, else 0."""
        return 1 if self.num("error") else 0

    def section(self, name: str) -> Section | None:
        """The section of this name; None where there was nothing to look at."""
        return next((section for section in self.sections if section.name == name), None)


def place(split: str, pair_id: str) -> str:
    """How a finding names a pair: ids are unique in a split only."""
    return f"{split}/{pair_id}"


def unique(ids: Iterable[str]) -> tuple[str, ...]:
    """Ids in order, each once."""
    return tuple(dict.fromkeys(ids))
