"""Histograms as SVG that takes its colors from the page."""

from __future__ import annotations

import io
import itertools
import math
import re

from ptq.core.distribution import BINS, Distribution

INSIDE, OUTSIDE, RANGE = "#010101", "#020202", "#030303"
COLORS = {INSIDE: "var(--bar)", OUTSIDE: "var(--alert)", RANGE: "var(--ink)"}
"""Color that matplotlib draws with -> the variable of the page that takes its place."""

DECADES = 6
"""Shares from one in a million to all have a height."""

LEAST = 0.02
"""Height of a bin with anything in it."""


def histogram(spread: Distribution) -> str:
    """Draw the values over the range that was chosen for them, heights logarithmic.

    Args:
        spread: The values.

    Returns:
        An <svg> element without text, ids, size or colors of its own; empty if all values are one.
    """
    start, end = min(spread.rmin, spread.low), max(spread.rmax, spread.high)
    if not end / 2 - start / 2 > 0:
        return ""

    def place(value: float) -> float:
        return (value / 2 - start / 2) / (end / 2 - start / 2)

    left, right, low, high = map(place, (spread.rmin, spread.rmax, spread.low, spread.high))
    edges = [left + (right - left) * i / BINS for i in range(BINS + 1)]
    heights = [_height(share) for share in spread.shares]
    inside = [low <= (a + b) / 2 <= high for a, b in itertools.pairwise(edges)]
    kinds = {INSIDE: [h * f for h, f in zip(heights, inside, strict=True)]}
    kinds[OUTSIDE] = [h * (not f) for h, f in zip(heights, inside, strict=True)]
    return _drawn(edges, kinds, (low, high))


def _height(share: float) -> float:
    return min(max(1 + math.log10(share) / DECADES, LEAST), 1.0) if share > 0 else 0.0


def _drawn(edges: list[float], kinds: dict[str, list[float]], limits: tuple[float, float]) -> str:
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import StepPatch
    from matplotlib.transforms import Affine2D

    with style.context(["default", {"svg.hashsalt": "ptq", "svg.fonttype": "none", "path.simplify": False}]):
        figure = Figure(figsize=(3.2, 0.8), frameon=False)  # without axes, which cost ten times the rest
        place = Affine2D.from_values(0.98, 0, 0, 0.83, 0.01, 0.17) + figure.transFigure
        for color, heights in kinds.items():
            if any(heights):
                figure.add_artist(StepPatch(heights, edges, facecolor=color, fill=True, linewidth=0, transform=place))
        low, high = limits
        foot = [-0.04, -0.15, -0.15, -0.04]
        figure.add_artist(Line2D([low, low, high, high], foot, color=RANGE, linewidth=1, transform=place))
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(written, metadata=nothing)
    return _inline(written.getvalue())


def _inline(text: str) -> str:
    """Keep what belongs into a page: the picture's own style sheet, ids and size would meet those of others."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>.*?</defs>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:id|width|height|version|xmlns:xlink|clip-path)="[^"]*"', "", text)
    text = re.sub(r"(\d\.\d)\d+", r"\1", text)
    text = re.sub(r"\s+", " ", text).replace("> <", "><")
    for color, variable in COLORS.items():
        text = text.replace(color, variable)
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1).strip()
