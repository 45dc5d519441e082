"""Runs all checks over what was read, in the order in which a person should look at them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from nlicot.audit.counts import check_counts
from nlicot.audit.duplicates import check_duplicates
from nlicot.audit.findings import Audit, Section
from nlicot.audit.hypotheses import check_hypotheses
from nlicot.audit.label_leakage import check_voice
from nlicot.audit.prompt_examples import check_prompt_examples
from nlicot.audit.reading import AuditData
from nlicot.audit.reflections import check_reflections
from nlicot.audit.teacher import check_lengths, check_teacher
from nlicot.audit.thoughts import check_thoughts

logger = logging.getLogger(__name__)

CHECKS: Sequence[Callable[[AuditData], Section | None]] = (
    check_counts,
    check_duplicates,
    check_prompt_examples,
    check_hypotheses,
    check_teacher,
    check_lengths,
    check_thoughts,
    check_reflections,
    check_voice,
)
"""Each gives None where the data hold nothing for it to look at."""


def audit(data: AuditData) -> Audit:
    """All sections of these data."""
    sections = []
    for check in CHECKS:
        started = time.perf_counter()
        section = check(data)
        logger.debug("%s: %.2f s", check.__name__, time.perf_counter() - started)
        if section is not None:
            sections.append(section)
    return Audit(files={split.name: split.files for split in data.splits}, sections=tuple(sections))
