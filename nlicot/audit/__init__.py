"""`audit`: a label-aware look at a data root, before a student is trained on it.

`audit(data)` runs every check; each family of checks is a module of its own that turns `AuditData` into a
`Section`: what was looked at, its figures, and a `Finding` for whatever is wrong.
"""

from nlicot.audit.checks import audit
from nlicot.audit.findings import Audit, Finding, Section
from nlicot.audit.reading import AuditData, SplitData

__all__ = ["Audit", "AuditData", "Finding", "Section", "SplitData", "audit"]
