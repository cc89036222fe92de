"""Modules that nodes were exported from, read out of the names that exporters leave: names that people know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ptq.passes.linear import name_of

Path = tuple[str, ...]

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the modules around a node: a Python list of names, each holding the one before."""

REWRITINGS = "pkg.onnxscript.rewriter."
MODULE = "ptq.module"
"""Where a prepared graph keeps the module of a node, its parts joined by dots; nothing of it is delivered."""


def noted_scopes(model: ir.Model) -> dict[str, Path]:
    """Read the modules that torch's exporter noted beside the nodes, by the name of a node's result."""
    scopes = {}
    for node in model.graph:
        names = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES, ""))
        if len(names) > 1 and not names[0]:
            scopes[name_of(node)] = tuple(part for part in names[-2].split(".") if part)
    return scopes


def module_paths(model: ir.Model, scopes: Mapping[str, Path]) -> dict[str, Path]:
    """Map the results of nodes to the modules that they are in, the outermost first.

    Args:
        model: Prepared float model.
        scopes: What `noted_scopes` found in the model as it came.
    """
    paths: dict[str, Path] = {}
    for node in model.graph.all_nodes():
        if node.op_type != "Constant":
            path = own_path(node) or scopes.get(name_of(node)) or path_of_neighbors(node, paths)
            paths |= {str(value.name): path for value in node.outputs}
    return paths


def note_modules(model: ir.Model, origin: ir.Model) -> None:
    """Note beside each node of a prepared graph the module that it is in.

    Args:
        model: Prepared float model; modified.
        origin: The model as it came.
    """
    paths = module_paths(model, noted_scopes(origin))
    for node in model.graph.all_nodes():
        if path := paths.get(name_of(node)) if node.outputs else None:
            node.metadata_props[MODULE] = ".".join(path)


def forget_modules(model: ir.Model) -> None:
    """Remove what `note_modules` noted, and what the library of rewritings writes down for itself."""
    for node in model.graph.all_nodes():
        node.metadata_props.pop(MODULE, None)
        for key in [key for key in node.metadata_props if key.startswith(REWRITINGS)]:
            del node.metadata_props[key]


def module_of(node: ir.Node) -> str:
    """Return the noted module of a node; empty if it has none."""
    return node.metadata_props.get(MODULE, "")


def modules_of(model: ir.Model) -> dict[str, str]:
    """Map the names of nodes to their noted modules."""
    return {name_of(node): module_of(node) for node in model.graph.all_nodes() if node.outputs and module_of(node)}


def own_path(node: ir.Node) -> Path:
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


def path_of_neighbors(node: ir.Node, paths: Mapping[str, Path]) -> Path:
    """Place a node without a name of its own where all the nodes that it reads from are, or around them."""
    own = [paths[str(value.name)] for value in node.inputs if value is not None and str(value.name) in paths]
    common = own[0][:-1] if own else ()
    for path in own[1:]:
        same = 0
        while same < min(len(common), len(path) - 1) and common[same] == path[same]:
            same += 1
        common = common[:same]
    return common


@dataclass(frozen=True)
class Handles:
    """Names to put into a command: a module where it holds no other named node, else the node's own.

    Attributes:
        modules: Name of a node -> its module.
    """

    modules: Mapping[str, str]

    def of(self, name: str) -> str:
        """Return the name that people know, if it means this node alone."""
        module = self.modules.get(name, "")
        inside = [each for each in self.modules.values() if each == module or each.startswith(f"{module}.")]
        return module if module and len(inside) == 1 else name


def shown_name(name: str, modules: Mapping[str, str]) -> str:
    """Write a node's name for people: its module first where it has one.

    Example:
        >>> shown_name("getitem_24", {"getitem_24": "layer1.0.conv1"})
        'layer1.0.conv1 (getitem_24)'
    """
    module = modules.get(name, "")
    return f"{module} ({name})" if module and module != name else name
