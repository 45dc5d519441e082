"""Instruction data: the teacher's texts, through a builder, into files that `fit` and other trainers take."""

from nlicot.prepare.export import Selection, prepare_examples, prepare_file
from nlicot.prepare.formats import FORMATS, MARKERS, Markers, from_row, to_row

__all__ = [
    "FORMATS",
    "MARKERS",
    "Markers",
    "Selection",
    "from_row",
    "prepare_examples",
    "prepare_file",
    "to_row",
]
