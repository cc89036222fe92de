"""An inspection as rows of text: modules as a tree, equal neighbors once, linear layers as leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from ptq.core.printable import printable

Facts = Mapping[str, Any]

DEEPEST, MOST_ROWS = 8, 60
"""Most levels of modules that are shown, fewer where that would be more lines."""

NAMED = 3
"""Number of layers that are called by name where many share a reason."""

WIDE = 104
"""Columns of a terminal from which on ranges are shown too."""

LEAST_OPERATORS, MOST_OPERATORS = 16, 48
"""Characters of what is in a module; the whole list is in the JSON."""

LEGEND = "rows: reach of the widest output row over that of the median one; peak: largest weight over their rms"

COLUMNS = (("weights", 7), ("MACs", 7), ("rows", 5), ("peak", 5), ("runs as", 7))
MORE_COLUMNS = (("range", 15), ("input", 15))


@dataclass(frozen=True)
class Row:
    """A line of the tree.

    Attributes:
        depth: How far it is indented.
        name: Of a module, of several that are alike, or of a layer.
        what: Operators, or operator and shape of the weight.
        parameters: Numbers in weights.
        macs: Products per sample; None if unknown.
        layers: The linear layers in it, or that it is.
        is_layer: Whether it is one.
    """

    depth: int
    name: str
    what: str
    parameters: int
    macs: int | None
    layers: Sequence[Facts]
    is_layer: bool = False


def tree_rows(facts: Facts) -> list[Row]:
    """Turn an inspection into the lines of a tree.

    Args:
        facts: As `ptq.inspection.inspect_model` gives them.

    Returns:
        A line per module or layer, as deep as the screen allows. Of neighbors that are alike but for their names one
        is shown, with the ranges of all.
    """
    layers = {layer["name"]: layer for layer in facts["layers"]}
    for depth in range(DEEPEST, 0, -1):
        rows = list(_rows([facts["modules"]], layers, 0, depth))
        if len(rows) <= MOST_ROWS:
            break
    return rows


def _rows(alike: Sequence[Facts], layers: Mapping[str, Facts], depth: int, most: int) -> Iterator[Row]:
    """Yield lines for modules that are alike: those of the first, with ranges over the layers of all."""
    for names in zip(*(module["layers"] for module in alike), strict=True):
        yield _layer_row(depth, names[0], [layers[name] for name in names])
    brothers = list(zip(*(module["children"] for module in alike), strict=True))
    for _, group in groupby(brothers, key=lambda each: _shape(each[0], layers)):
        run = list(group)
        same = [module for each in run for module in each]
        yield from _module_rows([each[0]["name"] for each in run], same, layers, depth, most)


def _module_rows(
    names: Sequence[str], same: Sequence[Facts], layers: Mapping[str, Facts], depth: int, most: int
) -> Iterator[Row]:
    first = same[0]
    name = names[0] if len(names) == 1 else f"{len(names)} x {names[0]}..{names[-1]}"
    while not first["layers"] and len(first["children"]) == 1:  # a module that is only a wrapper
        same = [module["children"][0] for module in same]
        first = same[0]
        name = f"{name}.{first['name']}"
    inside = [_inside(module, layers) for module in same]
    if len(inside[0]) == 1:
        yield _layer_row(depth, name, [each[0] for each in inside])
        return
    every = [layer for each in inside for layer in each]
    macs = [layer["macs"] for layer in inside[0]]
    known = None if None in macs else sum(macs)
    yield Row(depth, name, operators_of(first["operators"]), first["parameters"], known, every)
    if depth + 1 < most:
        yield from _rows(same, layers, depth + 1, most)


def _layer_row(depth: int, name: str, same: Sequence[Facts]) -> Row:
    first = same[0]
    what = f"{first['op_type']} {'x'.join(map(str, first['shape']))}"
    return Row(depth, name, what, first["parameters"], first["macs"], same, is_layer=True)


def _inside(module: Facts, layers: Mapping[str, Facts]) -> list[Facts]:
    below = [layer for child in module["children"] for layer in _inside(child, layers)]
    return [layers[name] for name in module["layers"]] + below


def _shape(module: Facts, layers: Mapping[str, Facts]) -> Any:
    """Return what modules that are alike have in common, as one value."""
    own = [(layers[name]["op_type"], layers[name]["shape"], layers[name]["reason"]) for name in module["layers"]]
    children = [(child["name"], _shape(child, layers)) for child in module["children"]]
    return module["parameters"], module["operators"], own, children


def operators_of(counts: Mapping[str, int]) -> str:
    """Write operators and how often each occurs."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def tree_table(rows: Sequence[Row], width: int | None) -> Table:
    """Lay lines out as a table.

    Args:
        rows: The lines.
        width: Columns of the terminal; None shows everything.
    """
    wide = width is None or width >= WIDE
    cells = [_cells(row) for row in rows]
    shown = [each for each in (*COLUMNS, *(MORE_COLUMNS if wide else ())) if any(row[each[0]] for row in cells)]
    gap = 2 if wide else 1
    left = None if width is None else max(width - sum(size + gap for _, size in shown) - gap, 24)
    longest = max((2 * row.depth + len(printable(row.name)) for row in rows), default=0)
    needed = max((len(row.what) for row in rows if row.is_layer), default=0)
    name_width = longest if left is None else min(longest, max(left - max(needed, LEAST_OPERATORS), left // 2))
    what_width = MOST_OPERATORS if left is None else min(left - name_width, MOST_OPERATORS)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    table.add_column("module", no_wrap=True)
    table.add_column("operators", no_wrap=True)
    for title, _ in shown:
        table.add_column(title, justify="left" if title == "runs as" else "right", no_wrap=True)
    for row, texts in zip(rows, cells, strict=True):
        indent = "  " * row.depth
        name = indent + _fitted(printable(row.name), name_width - len(indent), keep_end=True)
        what = _fitted(printable(row.what), what_width)
        table.add_row(*map(Text, [name, what, *(texts[title] for title, _ in shown)]))
    return table


def _cells(row: Row) -> dict[str, str]:
    """Return the text of each column; empty where nothing is known."""
    ranges = [layer["weight_range"] for layer in row.layers if layer["weight_range"]]
    inputs = [layer["input_range"] for layer in row.layers if layer["input_range"]]
    rows = [layer["row_ratio"] for layer in row.layers if layer["row_ratio"] is not None]
    peaks = [layer["peak_ratio"] for layer in row.layers if layer["peak_ratio"] is not None]
    return {
        "weights": count_of(row.parameters),
        "MACs": count_of(row.macs or 0),
        "rows": _ratio(rows),
        "peak": _ratio(peaks),
        "runs as": _kinds(row.layers),
        "range": _span(ranges),
        "input": _span(inputs),
    }


def _ratio(ratios: Sequence[float]) -> str:
    """Write the largest ratio; empty if there is none."""
    return "" if not ratios else f"{max(ratios):.1f}" if max(ratios) < 100 else f"{max(ratios):.3g}"


def _kinds(layers: Sequence[Facts]) -> str:
    kinds = {"float" if layer["reason"] else f"int{layer['num_bits']}" for layer in layers}
    return "mixed" if len(kinds) > 1 else next(iter(kinds), "")


def _span(ranges: Sequence[Sequence[float]]) -> str:
    if not ranges:
        return ""
    return f"{min(low for low, _ in ranges):.2g} .. {max(high for _, high in ranges):.2g}"


def count_of(number: int) -> str:
    """Write a number in at most six characters; nothing for 0."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        value = number / size
        if value >= (10 if unit == "k" else 1):
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return str(number) if number else ""


def size_of(num_bytes: int) -> str:
    """Write a number of bytes in kB, MB or GB."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.2f} GB"
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


def _fitted(text: str, width: int, *, keep_end: bool = False) -> str:
    """Cut text to a number of columns; of a name the end is kept, which tells layers apart."""
    if len(text) <= width:
        return text
    return f"...{text[-max(width - 3, 0) :]}" if keep_end else f"{text[: max(width - 3, 0)]}..."


def reasons_of(left_float: Mapping[str, str]) -> list[str]:
    """Return a line per reason to stay float, with the first layers that have it."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_float.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"{', '.join(names[:NAMED])}{more}: {reason}")
    return lines


def summary_of(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield what quantizing would do, give and take, as keys and texts."""
    layers, estimate = facts["layers"], facts["estimate"]
    integers = [layer for layer in layers if not layer["reason"]]
    macs, fewer = (sum(layer["macs"] or 0 for layer in some) for some in (layers, integers))
    share = f", {fewer / macs:.1%} of {count_of(macs)} MACs per sample" if macs else ""
    tables = f"; {len(facts['tables'])} embedding tables" if facts["tables"] else ""
    key = "weights alone" if facts["weight_only"] else "on integers"
    yield key, f"{len(integers)} layers of {len(layers)} for {facts['target']}{share}{tables}"
    if facts["sample"]:
        shapes = "; ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in facts["sample"].items())
        yield "one sample", f"{shapes}; float, one thread: about {estimate['run_seconds'] * 1e3:.3g} ms"
    sizes = ", ".join(f"about {size_of(size)} at {kind}" for kind, size in estimate["file_bytes"].items())
    yield "file", f"{size_of(facts['file_bytes'])} -> {sizes}"
    memory = f"up to about {estimate['ram_bytes'] / 1e6:.0f} MB of memory"
    if estimate["seconds"] is None:
        yield "quantizing", memory
    else:
        yield "quantizing", f"about {estimate['seconds']:.0f} s for {estimate['num_samples']} samples, {memory}"
