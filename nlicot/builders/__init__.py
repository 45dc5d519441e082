"""Builders: what the student is shown of the teacher's work, one rule to a file.

`--data.builder reflected` names one of these; a class path names anybody's own.
"""

from nlicot.builders.base import Builder, BuildReport
from nlicot.builders.correct_only import CorrectOnly
from nlicot.builders.finding import BUILDERS, builder_name, find_builder
from nlicot.builders.label_first import LabelFirst
from nlicot.builders.label_only import LabelOnly
from nlicot.builders.multitask import Multitask
from nlicot.builders.reflected import Reflected
from nlicot.builders.unmodified import Unmodified

__all__ = [
    "BUILDERS",
    "BuildReport",
    "Builder",
    "CorrectOnly",
    "LabelFirst",
    "LabelOnly",
    "Multitask",
    "Reflected",
    "Unmodified",
    "builder_name",
    "find_builder",
]
