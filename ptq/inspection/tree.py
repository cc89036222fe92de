"""Modules that a graph was exported from, read out of the names that exporters leave: no computation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ptq.passes.linear import name_of

Path = tuple[str, ...]

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the modules around a node: a Python list of names, each holding the one before."""

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
    root, known, counted = Module(""), set(layers), set[str]()
    paths: dict[str, Path] = {}
    for node in model.graph.all_nodes():
        if node.op_type == "Constant":
            continue
        path = _own_path(node) or scopes.get(name_of(node)) or _path_of_neighbors(node, paths)
        paths |= {str(value.name): path for value in node.outputs}
        parameters = sum(_parameters(node, counted))
        for module in _walk(root, path[:DEEPEST]):
            module.operators[node.op_type] += 1
            module.parameters += parameters
        if name_of(node) in known:
            module.layers.append(name_of(node))
    return root


def noted_scopes(model: ir.Model) -> dict[str, Path]:
    """Read the modules that torch's exporter noted beside the nodes, by the name of a node's result."""
    scopes = {}
    for node in model.graph:
        names = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES, ""))
        if len(names) > 1 and not names[0]:
            scopes[name_of(node)] = tuple(part for part in names[-2].split(".") if part)
    return scopes


def _own_path(node: ir.Node) -> Path:
    """Read a path from names with slashes, of the node, or with dots, of its weight; empty if there are none.

    `/layer1/layer1.0/conv1/Conv` and `layer1.0.conv1.weight` are both in layer1, 0, conv1.
    """
    parts = [part for part in (node.name or "").split("/") if part]
    if len(parts) > 1:
        path: list[str] = []
        for i, part in enumerate(parts[:-1]):
            inner = part.removeprefix(f"{parts[i - 1]}.") if i else part
            path += [each for each in inner.split(".") if each]
        return tuple(path)
    for value in node.inputs:
        if value is not None and value.const_value is not None and "." in str(value.name):
            return tuple(part for part in str(value.name).split(".")[:-1] if part)
    return ()


def _path_of_neighbors(node: ir.Node, paths: Mapping[str, Path]) -> Path:
    """Place a node without a name of its own where all the nodes that it reads from are, or around them."""
    own = [paths[str(value.name)] for value in node.inputs if value is not None and str(value.name) in paths]
    common = own[0][:-1] if own else ()
    for path in own[1:]:
        same = 0
        while same < min(len(common), len(path) - 1) and common[same] == path[same]:
            same += 1
        common = common[:same]
    return common


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
