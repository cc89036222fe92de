"""Picture of an inspection: products and bytes of each linear layer, and what becomes integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptq.core.errors import InputError
from ptq.core.printable import printable

MOST_BARS, LONGEST_NAME = 150, 48
INTEGER, FLOAT, BEFORE = "#2a78b5", "#d1731c", "#d5d8dc"
"""Colors that are told apart without seeing red and green, and in gray."""

FLOAT_BITS = 32


def require_plotting(path: Path, model: Path) -> None:
    """Find out before the work starts whether a picture can be drawn and written.

    Raises:
        InputError: matplotlib is missing, or the path is a folder, the model, or in no folder.
    """
    try:
        import matplotlib as mpl  # noqa: F401 - found or not
    except ImportError as error:
        raise InputError('--plot needs matplotlib; run pip install "ptq[report]"') from error
    if path.suffix.lower() != ".svg":
        raise InputError(f"cannot draw to {path}: expected a name that ends in .svg")
    if not path.parent.is_dir() or path.is_dir():
        raise InputError(f"cannot write {path}: expected a file name in a folder that exists")
    if path.exists() and model.exists() and path.samefile(model):
        raise InputError(f"cannot write {path}: it is also the model; choose another path")


def plot(facts: Mapping[str, Any], path: Path) -> None:
    """Draw the linear layers of an inspection, first layer on top.

    Args:
        facts: As `inspect_model` gives them.
        path: The SVG; equal facts give equal bytes.

    Raises:
        OSError: The file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows, note = _bars(facts["layers"])
    settings = {"svg.hashsalt": "ptq", "svg.fonttype": "none", "font.size": 8, "text.parse_math": False}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(10, 1.2 + 0.19 * max(len(rows), 4)), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        _draw(left, rows, [row["macs"] or 0 for row in rows], "MACs per sample")
        right.barh(range(len(rows)), [4 * row["parameters"] for row in rows], color=BEFORE, label="float")
        _draw(right, rows, [_bytes(row) for row in rows], f"bytes of weights{note}")
        left.set_yticks(range(len(rows)), [_name(row) for row in rows])
        left.invert_yaxis()
        figure.savefig(path, format="svg", metadata={"Date": None, "Title": "linear layers"})


def _bars(layers: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Choose the layers to draw, in their order; the largest where there are too many."""
    largest = sorted(layers, key=lambda row: -row["parameters"])[:MOST_BARS]
    note = "" if len(layers) <= MOST_BARS else f" ({MOST_BARS} largest of {len(layers)} layers)"
    kept = {row["name"] for row in largest}
    return [row for row in layers if row["name"] in kept], note


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]], values: Sequence[int], title: str) -> None:
    from matplotlib.ticker import EngFormatter

    for is_float, color in ((False, INTEGER), (True, FLOAT)):
        chosen = [i for i, row in enumerate(rows) if (row["num_bits"] == FLOAT_BITS) == is_float]
        kind = "stays float" if is_float else "on integers"
        if chosen:
            axes.barh(chosen, [values[i] for i in chosen], color=color, label=kind)
    axes.set_xlabel(title)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.margins(y=0.01)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if rows:
        axes.legend(frameon=False, loc="best")


def _bytes(row: Mapping[str, Any]) -> int:
    return int(row["parameters"] * row["num_bits"] // 8)


def _name(row: Mapping[str, Any]) -> str:
    shown = printable(row["module"] or row["name"])
    return shown if len(shown) <= LONGEST_NAME else f"...{shown[-LONGEST_NAME:]}"
