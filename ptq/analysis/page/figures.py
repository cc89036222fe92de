"""Histograms as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import itertools
import math
import re

from ptq.core.spread import BINS, Spread

INSIDE, OUTSIDE, RANGE = "#010101", "#020202", "#030303"
COLOURS = {INSIDE: "var(--bar)", OUTSIDE: "var(--alert)", RANGE: "var(--ink)"}
"""What matplotlib is told -> what the page says."""

DECADES = 6
"""Shares from one in a million to all have a height."""

LEAST = 0.02
"""Height of a bin with anything in it."""


def histogram(spread: Spread) -> str:
    """Draw the values over the range that was chosen for them, heights logarithmic.

    Args:
        spread: The values.

    Returns:
        An <svg> element without text, ids, size or colours of its own; empty if all values are one.
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

    with style.context(["default", {"svg.hashsalt": "ptq", "svg.fonttype": "none", "path.simplify": False}]):
        figure = Figure(figsize=(3.2, 0.8))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.2, 1))
        for colour, heights in kinds.items():
            if any(heights):
                axes.stairs(heights, edges, fill=True, facecolor=colour, linewidth=0, clip_on=False)
        low, high = limits
        axes.plot([low, low, high, high], [-0.04, -0.15, -0.15, -0.04], color=RANGE, linewidth=1, clip_on=False)
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(written, metadata=nothing)
    return _inline(written.getvalue())


def _inline(text: str) -> str:
    """What belongs into a page: its own style sheet, ids and size would meet those of others."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>.*?</defs>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, flags=re.DOTALL)  # the white sheet
    text = re.sub(r' (?:id|width|height|version|xmlns:xlink|clip-path)="[^"]*"', "", text)
    text = re.sub(r"(\d\.\d)\d+", r"\1", text)
    text = re.sub(r"\s+", " ", text).replace("> <", "><")
    for told, said in COLOURS.items():
        text = text.replace(told, said)
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1).strip()
