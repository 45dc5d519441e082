"""An audit as text for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from nlicot.audit.findings import SEVERITIES, Audit, Finding
from nlicot.text_tables import aligned, counted, escaped, listed, piped, printable

WIDTH = 100
MOST_IDS = 5


def as_text(audit: Audit) -> str:
    """Each section's tables, then the findings, the worst first, then what it comes to.

    The findings stand last, where a terminal has scrolled to.
    """
    blocks = []
    for section in audit.sections:
        lines = _wrapped(f"{section.title}: {printable(section.summary)}", "  ")
        for table in section.tables:
            lines += ["", f"  {printable(table.title)}", *aligned(table, indent="    ")]
        blocks.append("\n".join(lines))
    blocks += ["\n".join(_finding_lines(finding)) for finding in audit.findings]
    return "\n\n".join([*blocks, verdict(audit)])


def _finding_lines(finding: Finding) -> list[str]:
    lines = _wrapped(f"{finding.severity.upper()}  {finding.name}: {printable(finding.summary)}", "    ")
    lines += _wrapped(f"    do: {printable(finding.advice)}", "        ")
    if finding.ids:
        ids = listed(finding.ids, MOST_IDS)
        lines += _wrapped(f"    {counted(len(finding.ids), 'pair')}: {ids}", "        ")
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    glued = text.replace(" %", "\x00%")
    lines = textwrap.wrap(
        glued, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return [line.replace("\x00", " ") for line in lines]


def verdict(audit: Audit) -> str:
    """What it comes to, in one line."""
    counts = [(audit.num(severity), severity) for severity in SEVERITIES]
    told = ", ".join(counted(num, severity) for num, severity in counts)
    return f"{told}: " + ("mend the errors before training" if audit.exit_code else "nothing that must wait")


def as_markdown(audit: Audit) -> str:
    """The same in Markdown, with headings."""
    lines = ["# Audit", "", escaped(verdict(audit)), ""]
    for finding in audit.findings:
        lines.append(f"- **{finding.severity}: {escaped(finding.name)}**: {escaped(finding.summary)}")
        lines.append(f"  - what to do: {escaped(finding.advice)}")
        if finding.ids:
            lines.append(f"  - ids: {escaped(listed(finding.ids, MOST_IDS))}")
    for section in audit.sections:
        lines += ["", f"## {escaped(section.title)}", "", escaped(section.summary)]
        for table in section.tables:
            lines += ["", f"{escaped(table.title)}:", "", *piped(table)]
    return "\n".join(lines) + "\n"


def to_json(audit: Audit) -> dict[str, Any]:
    """Everything, all ids included."""
    return {
        "exit_code": audit.exit_code,
        "counts": {severity: audit.num(severity) for severity in SEVERITIES},
        "files": audit.files,
        "findings": [asdict(finding) for finding in audit.findings],
        "sections": [
            {
                "name": section.name,
                "title": section.title,
                "summary": section.summary,
                "findings": [finding.name for finding in section.findings],
                "tables": [asdict(table) for table in section.tables],
                "figures": section.figures,
            }
            for section in audit.sections
        ],
    }
