"""Draw the page's figures with matplotlib as SVG with the colours and fonts of the page's style.

Figures are drawn in placeholder colours, which then become CSS variables: one drawing serves light and dark.
Text stays text, so that it can be selected, searched and read aloud.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from nlicot.evaluation.metrics import Interval
from nlicot.report.compare import Breakdown, CalibrationBin
from nlicot.report.read_runs import Run
from nlicot.report.tables import shortened
from nlicot.text_tables import printable

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import ScalarEvent

NUM_SERIES = 8
INK, MUTED, LINE = "#000101", "#000102", "#000103"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    f"#0000{number:02x}": f"var(--series-{number})" for number in range(1, NUM_SERIES + 1)
}
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", "-.", ":")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a name may contain two dollar signs
    "figure.constrained_layout.use": True,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), LINE),
}
MAX_NAME_LENGTH = 24
FEW_POINTS = 12  # up to this number, each point has a marker; more would hide the line


@rc_context(_STYLE)
def draw_curve(title: str, lines: Mapping[int, Sequence[ScalarEvent]]) -> str:
    """Draw one tag's values over optimizer steps; `lines` by the runs' numbers."""
    axes = Figure(figsize=(3.5, 2.3)).add_subplot()
    for number, points in lines.items():
        look = {**_line(number), "marker": _marker(number) if len(points) <= FEW_POINTS else None}
        steps, values = [point.step for point in points], [point.value for point in points]
        axes.plot(steps, values, linewidth=1.5, markersize=4, **look)
    axes.set(title=title, xlabel="optimizer step")
    axes.grid(axis="y")
    return _svg(axes, f"{title} over optimizer steps")


@rc_context(_STYLE)
def draw_runs(runs: Sequence[Run]) -> str:
    """Draw each run's accuracy with its interval, and the proportion of the majority label."""
    axes = Figure(figsize=(4.4, 0.7 + 0.3 * len(runs))).add_subplot()
    for number, run in enumerate(runs, start=1):
        _accuracy(axes, number - 1, number, run.metrics.accuracy.value, run.metrics.accuracy.interval)
    axes.axvline(100 * runs[0].metrics.majority, color=MUTED, linewidth=0.8, linestyle=":")
    _label_rows(axes, [f"{number}  {_short(run.name)}" for number, run in enumerate(runs, start=1)])
    axes.margins(x=0.07)
    return _svg(axes, "accuracy of each run with its interval")


@rc_context(_STYLE)
def draw_breakdown(breakdown: Breakdown, numbers: Mapping[str, int]) -> str:
    """Draw accuracy by group, the runs below each other within a group."""
    names, num_runs = breakdown.names, len(breakdown.by_run)
    height = 0.7 + len(names) * max(0.26, 0.14 * (num_runs + 1))
    axes = Figure(figsize=(4.6, height)).add_subplot()
    for offset, (run, groups) in enumerate(breakdown.by_run.items()):
        for group in groups:
            row = names.index(group.name) + (offset - (num_runs - 1) / 2) / (num_runs + 1)
            _accuracy(axes, row, numbers[run], group.accuracy, group.interval)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color=LINE, linewidth=0.4)
    sizes, *others = ({group.name: group.num for group in found} for found in breakdown.by_run.values())
    same = all(other == sizes for other in others)  # bins of thoughts have another size in each run
    _label_rows(axes, [f"{_short(name)} ({sizes.get(name, 0)})" if same else _short(name) for name in names])
    axes.set_xlim(-3, 103)
    return _svg(axes, f"accuracy {breakdown.title.lower()}")


@rc_context(_STYLE)
def draw_calibration(by_run: Mapping[int, Sequence[CalibrationBin]]) -> str:
    """Draw the proportion of entailments over the predicted probability; dots grow with the pairs."""
    axes = Figure(figsize=(4.2, 3.6)).add_subplot()
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=":")
    for number, bins in by_run.items():
        largest = max(bin_.num for bin_ in bins)
        predicted = [100 * bin_.mean_p for bin_ in bins]
        axes.plot(predicted, [100 * bin_.proportion for bin_ in bins], linewidth=1, **_line(number))
        for x, bin_ in zip(predicted, bins, strict=True):
            interval = [100 * bin_.interval.low, 100 * bin_.interval.high]
            axes.plot([x, x], interval, color=_color(number), linewidth=1, alpha=0.45)
            size = 3 + 5 * (bin_.num / largest) ** 0.5
            axes.plot(x, 100 * bin_.proportion, _marker(number), color=_color(number), markersize=size)
    axes.set(xlim=(-3, 103), ylim=(-3, 103))
    axes.set(xlabel="predicted probability of entailment %", ylabel="entailments %")
    axes.grid()
    return _svg(axes, "proportion of entailments by predicted probability")


def _accuracy(axes: Axes, row: float, number: int, value: float, interval: Interval) -> None:
    ends = [100 * interval.low, 100 * interval.high]
    axes.plot(ends, [row, row], color=_color(number), linewidth=1.4, alpha=0.55)
    axes.plot(100 * value, row, _marker(number), color=_color(number), markersize=5)


def _label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows of an accuracy plot, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("accuracy %, 95 % interval")


def _color(number: int) -> str:
    """Placeholder for the colour of the run with that number, from 1."""
    return f"#0000{(number - 1) % NUM_SERIES + 1:02x}"


def _line(number: int) -> dict[str, Any]:
    return {"color": _color(number), "linestyle": _LINES[(number - 1) % len(_LINES)]}


def _marker(number: int) -> str:
    return _MARKERS[(number - 1) % len(_MARKERS)]


def _short(name: str) -> str:
    return shortened(printable(name), MAX_NAME_LENGTH)


def _svg(axes: Axes, label: str) -> str:
    """Return the SVG element of a drawing; `label` is read aloud."""
    written = io.StringIO()
    with rc_context({"svg.hashsalt": re.sub(r"\W+", "-", label)}):  # ids must be unique within the page
        canvas: Any = FigureCanvasSVG(axes.get_figure(root=True))
        canvas.print_svg(written, metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg ") :], flags=re.DOTALL)
    referenced = set(re.findall(r"[(\"']#([^)\"']+)[)\"']", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None, "matplotlib writes a drawing's size"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[1]} {size[2]}" '
        f'style="--width: {size[1]}px" role="img" aria-label="{escape(printable(label))}">'
    )
    return opening + svg[svg.index(">") + 1 :].strip()
