"""The record of an audit, as text, Markdown and JSON; `report` reads the JSON back.

    Audit > Section (one check: what it looked at, its tables and figures) > Finding

An `error` makes the command exit with 1, a `warning` deserves a look, a `note` is for information.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nlicot.data.rows import shown
from nlicot.errors import DataError
from nlicot.evaluation.metrics import Interval
from nlicot.text_tables import Table, aligned, counted, escaped, listed, percent, piped, printable

SEVERITIES = ("error", "warning", "note")
WIDTH = 100
MAX_SHOWN_IDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    `name` identifies the kind of fault in any data; `ids` have the form `split/id`, in the order of the data;
    `advice` is one line on what to do; `figures` go to JSON only.
    """

    name: str
    severity: str
    summary: str
    advice: str
    ids: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The result of one check; `summary` says in one line what it looked at and the outcome."""

    name: str
    title: str
    summary: str
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All sections, and the files that were read, by split and kind.

    An audit read from JSON has its findings in `unassigned`, since the file lists them outside of sections.
    """

    files: dict[str, dict[str, str]]
    sections: tuple[Section, ...]
    unassigned: tuple[Finding, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the most severe first, otherwise in the order of the sections."""
        found = [*self.unassigned, *(finding for section in self.sections for finding in section.findings)]
        return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))

    def num(self, severity: str) -> int:
        """Count the findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """1 if there are errors, which should be fixed before training, else 0."""
        return 1 if self.num("error") else 0


def full_id(split: str, pair_id: str) -> str:
    """Return a pair's id with its split: ids are unique only within a split."""
    return f"{split}/{pair_id}"


def percent_range(interval: Interval) -> str:
    """Format an interval of proportions."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def unique(ids: Iterable[str]) -> tuple[str, ...]:
    """Return ids in order, each once."""
    return tuple(dict.fromkeys(ids))


def as_text(audit: Audit) -> str:
    """Render the sections, then the findings and the verdict, which a terminal shows last."""
    blocks = []
    for section in audit.sections:
        lines = _wrapped(f"{section.title}: {printable(section.summary)}", "  ")
        for table in section.tables:
            lines += ["", f"  {printable(table.title)}", *aligned(table, indent="    ")]
        blocks.append("\n".join(lines))
    for finding in audit.findings:
        lines = _wrapped(f"{finding.severity.upper()}  {finding.name}: {printable(finding.summary)}", "    ")
        lines += _wrapped(f"    do: {printable(finding.advice)}", "        ")
        if finding.ids:
            ids = f"{counted(len(finding.ids), 'pair')}: {listed(finding.ids, MAX_SHOWN_IDS)}"
            lines += _wrapped(f"    {ids}", "        ")
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, verdict(audit)])


def _wrapped(text: str, indent: str) -> list[str]:
    glued = text.replace(" %", "\x00%")
    lines = textwrap.wrap(
        glued, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return [line.replace("\x00", " ") for line in lines]


def verdict(audit: Audit) -> str:
    """Return the outcome in one line."""
    counts = ", ".join(counted(audit.num(severity), severity) for severity in SEVERITIES)
    return f"{counts}: {'fix the errors before' if audit.exit_code else 'nothing blocks'} training"


def as_markdown(audit: Audit) -> str:
    """Render the verdict, the findings and the sections as Markdown."""
    lines = ["# Audit", "", escaped(verdict(audit)), ""]
    for finding in audit.findings:
        lines.append(f"- **{finding.severity}: {escaped(finding.name)}**: {escaped(finding.summary)}")
        lines.append(f"  - what to do: {escaped(finding.advice)}")
        if finding.ids:
            lines.append(f"  - ids: {escaped(listed(finding.ids, MAX_SHOWN_IDS))}")
    for section in audit.sections:
        lines += ["", f"## {escaped(section.title)}", "", escaped(section.summary)]
        for table in section.tables:
            lines += ["", f"{escaped(table.title)}:", "", *piped(table)]
    return "\n".join(lines) + "\n"


def to_json(audit: Audit) -> dict[str, Any]:
    """Return everything, with all ids, as JSON values."""
    return {
        "exit_code": audit.exit_code,
        "counts": {severity: audit.num(severity) for severity in SEVERITIES},
        "files": audit.files,
        "findings": [asdict(finding) for finding in audit.findings],
        "sections": [
            asdict(section) | {"findings": [finding.name for finding in section.findings]}
            for section in audit.sections
        ],
    }


def from_json(content: dict[str, Any], path: Path) -> Audit:
    """Read texts, tables and ids of an audit, perhaps by another version: missing fields are empty."""
    findings = content.get("findings")
    if not isinstance(findings, list):
        remedy = "make it with: audit --json"
        raise DataError(f"findings {shown(findings)}", "a list", path=path, remedy=remedy)
    return Audit(
        files={},
        sections=tuple(map(_section, _objects_in(content.get("sections")))),
        unassigned=tuple(map(_finding, _objects_in(findings))),
    )


def _finding(fields: dict[str, Any]) -> Finding:
    severity, ids = _text(fields, "severity").lower(), fields.get("ids")
    return Finding(
        name=_text(fields, "name") or "(unnamed)",
        severity=severity if severity in SEVERITIES else "note",
        summary=_text(fields, "summary"),
        advice=_text(fields, "advice"),
        ids=tuple(map(str, ids)) if isinstance(ids, list) else (),
    )


def _section(fields: dict[str, Any]) -> Section:
    tables = [
        Table(
            title=_text(table, "title"),
            header=[str(cell) for cell in table["header"]],
            rows=[[str(cell) for cell in row] for row in table["rows"] if isinstance(row, list)],
        )
        for table in _objects_in(fields.get("tables"))
        if isinstance(table.get("header"), list) and isinstance(table.get("rows"), list)
    ]
    name, title, summary = (_text(fields, key) for key in ("name", "title", "summary"))
    return Section(name=name, title=title or name, summary=summary, tables=tuple(tables))


def _text(fields: dict[str, Any], name: str) -> str:
    return str(fields.get(name) or "")


def _objects_in(value: object) -> list[dict[str, Any]]:
    return [member for member in value if isinstance(member, dict)] if isinstance(value, list) else []
