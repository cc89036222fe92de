"""Operators that onnxruntime has in ONNX's own domains and ONNX has not, there or in that version.

onnxruntime's optimizers write them (LayerNormalization below opset 17, SimplifiedLayerNormalization); it alone decides
whether they run. ONNX's tools pass over domains that they do not know, so these operators wait in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import onnx

from ptq.models.validation import bodies_of, tensors_of

HIDEOUT = "ai.ptq.foreign"
"""Domain in which they wait; never written to a file."""

OWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""Domains in which ONNX's tools refuse what they do not know."""


def is_foreign(domain: str, op_type: str, opset: int) -> bool:
    """Whether an operator is in a domain of ONNX's, and ONNX has none of the name up to an operator set."""
    if domain not in OWN_DOMAINS:
        return False
    try:
        onnx.defs.get_schema(op_type, opset, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return True
    return False


def hide_foreign(proto: onnx.ModelProto) -> bool:
    """Move operators that ONNX does not know out of its domains; return whether there were any."""
    local = {(function.domain, function.name) for function in proto.functions}
    found = False
    for part in (proto, *proto.functions):
        opsets = {entry.domain: entry.version for entry in part.opset_import}
        nodes = part.graph.node if isinstance(part, onnx.ModelProto) else part.node
        here = False
        for node in _all_nodes(nodes):
            opset = opsets.get(node.domain)
            if opset is None or (node.domain, node.op_type) in local:
                continue
            if is_foreign(node.domain, node.op_type, opset):
                node.domain = f"{HIDEOUT}:{node.domain}"
                here = True
        for domain in OWN_DOMAINS if here else ():
            part.opset_import.add(domain=f"{HIDEOUT}:{domain}", version=1)
        found = found or here
    return found


def show_foreign(proto: onnx.ModelProto) -> None:
    """Move hidden operators back to where `hide_foreign` found them."""
    for part in (proto, *proto.functions):
        for node in _all_nodes(part.graph.node if isinstance(part, onnx.ModelProto) else part.node):
            if node.domain.startswith(HIDEOUT):
                node.domain = node.domain.removeprefix(f"{HIDEOUT}:")
        kept = [entry for entry in part.opset_import if not entry.domain.startswith(HIDEOUT)]
        del part.opset_import[:]
        part.opset_import.extend(kept)


def check(proto: onnx.ModelProto) -> None:
    """Let ONNX's checker look at what it can know: not at foreign operators, nor at files beside the model.

    Raises:
        Exception: Of several types, ONNX's own and plain ones.
    """
    with _without_files(proto):
        hidden = hide_foreign(proto)
        try:
            onnx.checker.check_model(proto)
        finally:
            if hidden:
                show_foreign(proto)


@contextmanager
def _without_files(proto: onnx.ModelProto) -> Iterator[None]:
    """Make tensors in other files empty ones; the checker would look for the files where the process happens to be."""
    aside = []
    for tensor in tensors_of(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            kept = onnx.TensorProto()
            kept.CopyFrom(tensor)
            aside.append((tensor, kept))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
    try:
        yield
    finally:
        for tensor, kept in aside:
            tensor.CopyFrom(kept)


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, and those of the bodies they carry."""
    waiting: list[Iterable[onnx.NodeProto]] = [nodes]
    while waiting:
        for node in waiting.pop():
            yield node
            waiting += [body.node for body in bodies_of(node)]
