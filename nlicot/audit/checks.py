"""The registry of checks: to add one, write a module and list its function in `CHECKS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nlicot.audit.counts import check_counts
from nlicot.audit.duplicates import check_duplicates, check_prompt_examples
from nlicot.audit.findings import Audit, Section
from nlicot.audit.inputs import AuditData
from nlicot.audit.label_leakage import check_hypotheses, check_voice
from nlicot.audit.teacher import check_lengths, check_teacher

CHECKS: Sequence[Callable[[AuditData], Section | None]] = (
    check_counts,
    check_duplicates,
    check_prompt_examples,
    check_hypotheses,
    check_teacher,
    check_lengths,
    check_voice,
)
"""In the order of the output. A check returns None if the data hold nothing for it to look at."""


def run_checks(data: AuditData) -> Audit:
    """Run every check."""
    sections = tuple(section for check in CHECKS if (section := check(data)) is not None)
    return Audit(files={split.name: split.files for split in data.splits}, sections=sections)
