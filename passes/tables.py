"""Search for embedding tables among the constants of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from ptq.core.layer import LinearLayer
from ptq.passes.linear import constant, is_float32, name_of
from ptq.passes.tied import kept_rows, tied_products

SMALLEST = 4096
"""Numbers in a table that are worth two more operators."""


@dataclass(frozen=True)
class Table:
    """Table of numbers whose rows Gather nodes pick.

    Attributes:
        name: Name of the initializer.
        readers: Names of the Gather nodes.
        shape: Rows and columns.
        product: Name of the layer whose output features are the rows, too; empty if there is none.
    """

    name: str
    readers: tuple[str, ...]
    shape: tuple[int, int]
    product: str = ""


def find_tables(
    model: ir.Model, excluded: Callable[[ir.Node], str | None], layers: Iterable[LinearLayer] = ()
) -> tuple[Table, ...]:
    """Find constant float tables of two axes that nothing but Gather along the first one reads, in bodies too.

    Args:
        model: Prepared float model.
        excluded: The user's exclusions.
        layers: Layers whose weights lie on codes; one of them may be tied to a table.

    Returns:
        The tables, in dataflow order.
    """
    found: dict[str, Table] = {}
    tied = tied_products(model, layers)
    for node in model.graph.all_nodes():
        value = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        if value is None or str(value.name) in found or not is_float32(value):
            continue
        uses, array = [use.node for use in value.uses()], constant(value)
        readers = [reader for reader in uses if not kept_rows(tied, value, reader)]
        if array is None or not value.is_initializer() or array.ndim != 2 or array.size < SMALLEST:
            continue
        if all(_picks_rows(reader, value) and not excluded(reader) for reader in readers):
            name, shape = str(value.name), (array.shape[0], array.shape[1])
            names = tuple(name_of(reader) for reader in readers)
            found[name] = Table(name, names, shape, tied.get(name, ""))
    return tuple(found.values())


def _picks_rows(node: ir.Node, table: ir.Value) -> bool:
    index = node.inputs[1] if node.op_type == "Gather" and not node.domain else None
    is_table = node.inputs[0] is table and index is not table
    return index is not None and is_table and constant(index) is None and node.attributes.get_int("axis", 0) == 0
