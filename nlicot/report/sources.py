"""Reads what the page shows beside predictions: the teacher's summaries, an audit, what `fit` left.

All are tolerant of what is missing, for they come from other commands, perhaps of another version; a file
that is no JSON is an error all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.data.rows import shown
from nlicot.errors import DataError
from nlicot.evaluation.metrics import GroupAccuracy, Interval
from nlicot.report.read_runs import ComparedRun, section
from nlicot.text_tables import Table

STAGES = {"thoughts": "generate", "reflections": "reflect", "score": "score"}
"""Folders of a data root's `logs/`, and the command that writes summaries there."""
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that an audit found; texts are empty and `ids` too where the file does not have them."""

    name: str
    severity: str
    summary: str
    advice: str
    ids: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSection:
    """One family of an audit's checks: what was looked at, tables, and accuracy by length where known."""

    title: str
    summary: str
    tables: Sequence[tuple[str, Table]]
    by_length: Sequence[GroupAccuracy]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """An audit's findings, gravest first, its sections, and the file that they were read from."""

    path: Path
    findings: Sequence[Finding]
    sections: Sequence[AuditSection]

    @property
    def serious(self) -> list[Finding]:
        """Errors and warnings."""
        return [finding for finding in self.findings if finding.severity in SEVERITIES[:2]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSummary:
    """What one stage of the teacher came to on one split, as its summary file says."""

    path: Path
    stage: str
    split: str
    content: dict[str, Any]


def read_audit(path: Path) -> Audit:
    """The findings of an audit that was written as JSON: `{"findings": [{"name": ..., ...}, ...]}`.

    Each may have `name`, `severity`, `summary`, `advice` and `ids`; `sections` may stand beside them, each
    with `title`, `summary` and `tables`. All else is passed over.

    Raises:
        DataError: the file cannot be read, or holds no findings.
    """
    content = read_json(path)
    found = content.get("findings")
    if not isinstance(found, list):
        raise DataError(f"findings {shown(found)}", "a list", path=path, remedy="make it with: audit --json")
    findings = [_finding(fields) for fields in _objects(found)]
    return Audit(
        path=path,
        findings=sorted(findings, key=lambda finding: _gravity(finding.severity)),
        sections=[_audit_section(fields) for fields in _objects(content.get("sections"))],
    )


def _finding(fields: dict[str, Any]) -> Finding:
    ids = fields.get("ids")
    name, severity, summary, advice = (
        str(fields.get(key) or "") for key in ("name", "severity", "summary", "advice")
    )
    return Finding(
        name=name or "(unnamed)",
        severity=severity.lower() or "note",
        summary=summary,
        advice=advice,
        ids=[str(id_) for id_ in ids] if isinstance(ids, list) else [],
    )


def _audit_section(fields: dict[str, Any]) -> AuditSection:
    return AuditSection(
        title=str(fields.get("title") or fields.get("name") or ""),
        summary=str(fields.get("summary") or ""),
        tables=[
            (str(table.get("title") or ""), Table(header=_texts(table["header"]), rows=_rows(table["rows"])))
            for table in _objects(fields.get("tables"))
            if isinstance(table.get("header"), list) and isinstance(table.get("rows"), list)
        ],
        by_length=[
            GroupAccuracy(
                name=str(group["name"]),
                num=int(group["num"]),
                accuracy=float(group["accuracy"]),
                interval=Interval(low=float(group["low"]), high=float(group["high"])),
            )
            for group in _objects(section(fields, "figures").get("bins"))
            if {"name", "num", "accuracy", "low", "high"} <= group.keys()
        ],
    )


def _objects(value: object) -> list[dict[str, Any]]:
    """Those members of a list that are JSON objects; none of what is no list."""
    return [member for member in value if isinstance(member, dict)] if isinstance(value, list) else []


def _texts(values: list[object]) -> list[str]:
    return [str(value) for value in values]


def _rows(values: list[object]) -> list[list[str]]:
    return [_texts(row) for row in values if isinstance(row, list)]


def _gravity(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        DataError: the file cannot be read as one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    except (ValueError, RecursionError):
        raise DataError("no JSON", "a JSON object", path=path) from None
    if not isinstance(content, dict):
        raise DataError(shown(content), "a JSON object", path=path)
    return content


def teacher_summaries(runs: Sequence[ComparedRun]) -> list[TeacherSummary]:
    """The newest summary of each stage and split in the logs of the runs' data roots, where there are any."""
    named = dict.fromkeys(root for run in runs if (root := _root(run)))
    found = []
    for logs in (Path(name).expanduser() / "logs" for name in named):
        for folder, stage in STAGES.items():
            newest: dict[str, Path] = {}
            # Their names begin with the time, so that the last of a split is the newest.
            for path in sorted((logs / folder).glob("*.summary.json")):
                split = path.name.removesuffix(".summary.json").split("-", 2)[-1]
                newest[split] = path
            found += [
                TeacherSummary(path=path, stage=stage, split=split, content=read_json(path))
                for split, path in newest.items()
            ]
    return found


def _root(run: ComparedRun) -> str | None:
    root = section(run.config, "data").get("root")
    return root if isinstance(root, str) else None


def fit_summary(run: ComparedRun) -> dict[str, Any]:
    """What `fit` wrote of itself; empty for predictions without a run."""
    path = None if run.folder is None else run.folder / "fit.json"
    return read_json(path) if path and path.is_file() else {}
