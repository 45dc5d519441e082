"""`audit`: a label-aware look at a data root, before a student is trained on it.

`audit(read_root(root, builder, prompts=read_prompts([])))` runs every check. Each family of checks is a
module of its own that turns `AuditData` into a `Section`: what was looked at, its figures, and a `Finding`
for whatever is wrong. `rendering` makes text, Markdown and JSON of it, `plots` an SVG.
"""

from nlicot.audit.checks import audit
from nlicot.audit.findings import Audit, Finding, Section
from nlicot.audit.prompt_examples import read_prompts
from nlicot.audit.reading import AuditData, SplitData, read_root

__all__ = ["Audit", "AuditData", "Finding", "Section", "SplitData", "audit", "read_prompts", "read_root"]
