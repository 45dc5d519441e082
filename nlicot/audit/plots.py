"""An audit's plots as SVG, for whoever shows it as a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any


def plot_accuracy_by_length(bins: Sequence[Mapping[str, Any]], *, ink: str = "black") -> str:
    """Accuracy of thoughts by their length as an SVG element, with 95 % intervals; text stays text.

    Args:
        bins: `name`, `num`, `accuracy`, `low` and `high` of each, as `figures["bins"]` of the section
            `lengths` has them.
        ink: colour of everything that is drawn; the ground is left clear.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nlicot", "font.size": 10}):
        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(bins))
        heights = [100 * each["accuracy"] for each in bins]
        # Rounding may leave an interval's end a hair on the wrong side of the value.
        below = [max(0.0, 100 * (each["accuracy"] - each["low"])) for each in bins]
        above = [max(0.0, 100 * (each["high"] - each["accuracy"])) for each in bins]
        axes.errorbar(places, heights, yerr=[below, above], fmt="o-", color=ink, capsize=4)
        axes.set_xticks(list(places), [f"{each['name']}\n{each['num']} thoughts" for each in bins])
        axes.set_ylim(0, 100)
        axes.set_ylabel("right, %")
        axes.set_title("Right thoughts by length, 95 % intervals")
        for part in (axes.title, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
            part.set_color(ink)
        axes.tick_params(colors=ink)
        for spine in axes.spines.values():
            spine.set_color(ink)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    svg = target.getvalue()
    return svg[svg.index("<svg") :]
