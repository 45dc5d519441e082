"""Reads a run's learning curves from its TensorBoard event files: what was logged, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CURVES = {
    "dev/loss": "dev loss",
    "train/loss": "train loss",
    "dev_generated/accuracy": "dev accuracy, generated",
    "dev/loss_label": "dev loss of the label",
    "train/loss_label": "train loss of the label",
    "dev/teacher_forced_label_accuracy": "dev label accuracy, teacher-forced",
}
"""The tags that the page shows where they were logged, most telling first, and what they are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value and the optimizer step that it was logged at."""

    step: int
    value: float
    wall_time: float


def read_curves(folder: Path) -> dict[str, list[Point]]:
    """Each tag of `CURVES` that a run's folder has events of; empty where it has no event file."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # what a killed run left half-written is no news
    # All points, and those too that tensorboard takes for a restart's: which of them count is decided below.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    logged = events.Tags()["scalars"]
    return {
        tag: as_it_went_on(
            Point(step=event.step, value=event.value, wall_time=event.wall_time)
            for event in events.Scalars(tag)
        )
        for tag in CURVES
        if tag in logged
    }


def as_it_went_on(points: Iterable[Point]) -> list[Point]:
    """The points of the run as it ended: where it was killed and resumed, steps done again replace the first.

    >>> kept = as_it_went_on(Point(step=s, value=v, wall_time=t) for t, (s, v) in enumerate(
    ...     [(1, 3.0), (2, 2.5), (3, 2.4), (2, 2.2), (3, 2.0)]))
    >>> [(point.step, point.value) for point in kept]
    [(1, 3.0), (2, 2.2), (3, 2.0)]
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: point.wall_time):
        while kept and kept[-1].step >= point.step:
            kept.pop()
        kept.append(point)
    return kept
