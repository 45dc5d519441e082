"""Draws the page's figures with matplotlib as SVG that takes its colours and fonts from the page's style.

Figures are drawn in stand-in colours, which then become CSS variables: one drawing serves light and dark.
Text stays text, so that it can be selected, searched and read aloud.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nlicot.evaluation.metrics import GroupAccuracy
from nlicot.report.breakdowns import Breakdown, CalibrationBin
from nlicot.report.compare import RunFigures
from nlicot.report.curves import Point
from nlicot.report.tables import shortened
from nlicot.text_tables import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_SERIES = 8
INK, MUTED, LINE = "#000101", "#000102", "#000103"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    f"#0000{number:02x}": f"var(--series-{number})" for number in range(1, NUM_SERIES + 1)
}
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", "-.", ":")
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "figure.constrained_layout.use": True,
}
LONGEST_NAME = 24
FEW_POINTS = 12
"""As many or fewer get a marker each; more would hide the line."""


def series(number: int) -> str:
    """The stand-in colour of the run with that number, from 1."""
    return f"#0000{(number - 1) % NUM_SERIES + 1:02x}"


def draw_curve(title: str, lines: Mapping[int, Sequence[Point]]) -> str:
    """One tag's values over optimizer steps; `lines` by the runs' numbers."""

    def draw(axes: Axes) -> None:
        for number, points in lines.items():
            axes.plot(
                [point.step for point in points],
                [point.value for point in points],
                color=series(number),
                linestyle=_LINES[(number - 1) % len(_LINES)],
                linewidth=1.5,
                marker=_marker(number) if len(points) <= FEW_POINTS else None,
                markersize=4,
            )
        axes.set_title(title)
        axes.set_xlabel("optimizer step")
        axes.grid(axis="y")

    return _svg(draw, f"{title} over optimizer steps", width=3.5, height=2.3)


def draw_runs(rows: Sequence[RunFigures]) -> str:
    """Each run's accuracy and its interval, and what always saying the commoner label would reach."""
    metrics = rows[0].metrics
    commoner = max(metrics.num_positive, metrics.support - metrics.num_positive) / metrics.support

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            metric = row.metrics.accuracy
            _interval(axes, place, place + 1, metric.value, metric.interval.low, metric.interval.high)
        axes.axvline(100 * commoner, color=MUTED, linewidth=0.8, linestyle=":")
        _names(axes, [f"{number}  {_short(row.name)}" for number, row in enumerate(rows, start=1)])
        axes.margins(x=0.07)
        axes.set_xlabel("accuracy %, 95 % interval")

    return _svg(draw, "accuracy of each run with its interval", width=4.4, height=0.7 + 0.3 * len(rows))


def draw_breakdown(breakdown: Breakdown, numbers: Mapping[str, int]) -> str:
    """Accuracy by group, the runs below each other within a group."""
    names, num_runs = breakdown.names, len(breakdown.by_run)
    sizes = _sizes(next(iter(breakdown.by_run.values())))
    step = 1 / (num_runs + 1)

    def draw(axes: Axes) -> None:
        for offset, (run, groups) in enumerate(breakdown.by_run.items()):
            for group in groups:
                height = names.index(group.name) + (offset - (num_runs - 1) / 2) * step
                low, high = group.interval.low, group.interval.high
                _interval(axes, height, numbers[run], group.accuracy, low, high)
        for edge in range(1, len(names)):
            axes.axhline(edge - 0.5, color=LINE, linewidth=0.4)
        # Where runs have thoughts of their own, a bin's size is another in each.
        same = all(_sizes(groups) == sizes for groups in breakdown.by_run.values())
        _names(axes, [f"{_short(name)} ({sizes.get(name, 0)})" if same else _short(name) for name in names])
        axes.set_xlim(-3, 103)
        axes.set_xlabel("accuracy %, 95 % interval")

    height = 0.7 + len(names) * max(0.26, 0.14 * (num_runs + 1))
    return _svg(draw, f"accuracy {breakdown.title.lower()}", width=4.6, height=height)


def _sizes(groups: Sequence[GroupAccuracy]) -> dict[str, int]:
    return {group.name: group.num for group in groups}


def draw_calibration(by_run: Mapping[int, Sequence[CalibrationBin]]) -> str:
    """How often pairs are entailments against the probability they were given; dots grow with the pairs."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=":")
        for number, bins in by_run.items():
            most = max(bin_.num for bin_ in bins)
            given = [100 * bin_.mean_p for bin_ in bins]
            axes.plot(
                given,
                [100 * bin_.share for bin_ in bins],
                color=series(number),
                linewidth=1,
                linestyle=_LINES[(number - 1) % len(_LINES)],
            )
            for x, bin_ in zip(given, bins, strict=True):
                interval = [100 * bin_.interval.low, 100 * bin_.interval.high]
                axes.plot([x, x], interval, color=series(number), linewidth=1, alpha=0.45)
                size = 3 + 5 * (bin_.num / most) ** 0.5
                axes.plot(x, 100 * bin_.share, _marker(number), color=series(number), markersize=size)
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("given probability of entailment %")
        axes.set_ylabel("are entailments %")
        axes.grid()

    return _svg(draw, "share of entailments by the probability given", width=4.2, height=3.6)


def _interval(axes: Axes, height: float, number: int, value: float, low: float, high: float) -> None:
    axes.plot([100 * low, 100 * high], [height, height], color=series(number), linewidth=1.4, alpha=0.55)
    axes.plot(100 * value, height, _marker(number), color=series(number), markersize=5)


def _names(axes: Axes, names: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _marker(number: int) -> str:
    return _MARKERS[(number - 1) % len(_MARKERS)]


def _short(name: str) -> str:
    return shortened(printable(name), LONGEST_NAME)


def _svg(draw: Callable[[Axes], None], label: str, *, width: float, height: float) -> str:
    """The SVG element of one drawing, `width` by `height` inches; `label` is what it is read aloud as."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    salt = re.sub(r"\W+", "-", label)  # ids within one page must not meet
    written = io.StringIO()
    settings: dict[Any, Any] = {**_STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height))
        draw(figure.add_subplot())
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(written, metadata={"Date": None, "Creator": None})
    return _for_the_page(written.getvalue(), label)


def _for_the_page(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    referred = set(re.findall(r"[(\"']#([^)\"']+)[)\"']", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    size = _sizes_of(svg)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'style="--width: {size[0]}px" role="img" aria-label="{_attribute(label)}">'
    )
    return opening + svg[svg.index(">") + 1 :].strip()


def _sizes_of(svg: str) -> tuple[str, str]:
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None, "matplotlib names a drawing's size"
    return found[1], found[2]


def _attribute(text: str) -> str:
    return re.sub(r'[&<>"]', lambda found: f"&#{ord(found[0])};", printable(text))


def chosen_curves(
    tags: Iterable[str], by_run: Mapping[int, Mapping[str, Sequence[Point]]]
) -> dict[str, dict[int, Sequence[Point]]]:
    """For each tag that some run has logged: its points by the runs' numbers."""
    return {
        tag: found
        for tag in tags
        if (found := {number: curves[tag] for number, curves in by_run.items() if tag in curves})
    }
