"""Reads what the page shows beside predictions: the teacher's summaries, an audit, what `fit` left.

Both are tolerant of what is missing, for they come from other commands, perhaps of another version; a file
that is no JSON is an error all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.errors import DataError
from nlicot.files import shown
from nlicot.report.runs import ComparedRun, section

STAGES = {"thoughts": "generate", "reflections": "reflect", "score": "score"}
"""Folders of a data root's `logs/`, and the command that writes summaries there."""
SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that an audit found; texts are empty and `ids` too where the file does not have them."""

    name: str
    severity: str
    summary: str
    advice: str
    ids: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """An audit's findings, gravest first, and the file that they were read from."""

    path: Path
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSummary:
    """What one stage of the teacher came to on one split, as its summary file says."""

    path: Path
    stage: str
    split: str
    content: dict[str, Any]


def read_audit(path: Path) -> Audit:
    """The findings of an audit that was written as JSON: `{"findings": [{"name": ..., ...}, ...]}`.

    Each may have `name`, `severity`, `summary`, `advice` and `ids`; all else is passed over.

    Raises:
        DataError: the file cannot be read, or holds no findings.
    """
    found = read_json(path).get("findings")
    if not isinstance(found, list):
        raise DataError(f"findings {shown(found)}", "a list", path=path, remedy="make it with: audit --json")
    findings = [_finding(fields) for fields in found if isinstance(fields, dict)]
    return Audit(path=path, findings=sorted(findings, key=lambda finding: _gravity(finding.severity)))


def _finding(fields: dict[str, Any]) -> Finding:
    ids = fields.get("ids")
    name, severity, summary, advice = (
        str(fields.get(key) or "") for key in ("name", "severity", "summary", "advice")
    )
    return Finding(
        name=name or "(unnamed)",
        severity=severity.lower() or "info",
        summary=summary,
        advice=advice,
        ids=[str(id_) for id_ in ids] if isinstance(ids, list) else [],
    )


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
