"""Tree of the modules that a graph was exported from: no computation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ptq.passes.linear import name_of
from ptq.passes.modules import Path, module_paths

DEEPEST = 24
"""Parts of a path; names are anybody's, and trees are walked by recursion."""


@dataclass
class Module:
    """A module and everything inside it.

    Attributes:
        name: Last part of its path.
        operators: Operator type -> nodes, here and below.
        parameters: Numbers in weights, here and below.
        layers: Names of the linear layers right here, in dataflow order.
        children: Modules inside, in dataflow order.
    """

    name: str
    operators: Counter[str] = field(default_factory=Counter)
    parameters: int = 0
    layers: list[str] = field(default_factory=list)
    children: dict[str, Module] = field(default_factory=dict)

    def paths(self, before: str = "") -> dict[str, str]:
        """Map each linear layer to the modules around it, joined by dots."""
        path = f"{before}.{self.name}".strip(".")
        paths = dict.fromkeys(self.layers, path)
        for child in self.children.values():
            paths |= child.paths(path)
        return paths

    def facts(self) -> dict[str, Any]:
        """Return the module as nested tables that are ready for JSON."""
        return {
            "name": self.name,
            "operators": dict(sorted(self.operators.items(), key=lambda item: (-item[1], item[0]))),
            "parameters": self.parameters,
            "layers": self.layers,
            "children": [child.facts() for child in self.children.values()],
        }


def module_tree(model: ir.Model, layers: Sequence[str], scopes: Mapping[str, Path]) -> Module:
    """Sort the nodes of a graph into modules.

    Args:
        model: Prepared float model; weights are counted, not read.
        layers: Names of its linear layers.
        scopes: What `noted_scopes` found in the model as it came.

    Returns:
        The whole model, without a name.
    """
    root, known, counted, paths = Module(""), set(layers), set[str](), module_paths(model, scopes)
    for node in model.graph.all_nodes():
        if node.op_type == "Constant":
            continue
        path = paths.get(name_of(node), ()) if node.outputs else ()
        parameters = sum(_parameters(node, counted))
        for module in _walk(root, path[:DEEPEST]):
            module.operators[node.op_type] += 1
            module.parameters += parameters
        if name_of(node) in known:
            module.layers.append(name_of(node))
    return root


def _walk(root: Module, path: Path) -> Iterator[Module]:
    """Yield the modules along a path, made where they are missing."""
    module = root
    yield module
    for name in path:
        module = module.children.setdefault(name, Module(name))
        yield module


def _parameters(node: ir.Node, counted: set[str]) -> Iterator[int]:
    """Yield the sizes of the float constants that a node is the first to read."""
    for value in node.inputs:
        tensor = None if value is None else value.const_value
        if value is None or tensor is None or str(value.name) in counted or not tensor.dtype.is_floating_point():
            continue
        counted.add(str(value.name))
        yield tensor.size
