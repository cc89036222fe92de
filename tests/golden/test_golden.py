"""Lowered graphs as text: what changes here changes what users deploy. `pytest --regen` writes them anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from ptq import quantize
from tests.builders import attention, conv_net, feeds

HERE = Path(__file__).parent


def as_text(model: ir.Model) -> str:
    """One line per node: outputs, operator, inputs; then the initializers with types and shapes."""
    lines = [
        f"{', '.join(str(v.name) for v in node.outputs)} = {node.op_type}"
        f"({', '.join(str(v.name) if v is not None else '-' for v in node.inputs)})"
        for node in model.graph
    ]
    weights = [f"{name}: {value.dtype} {value.shape}" for name, value in sorted(model.graph.initializers.items())]
    return "\n".join([*lines, "", *weights]) + "\n"


@pytest.mark.parametrize(("build", "shape"), [(conv_net, (3, 16, 16)), (attention, (7, 16))])
def test_lowered_graph_is_the_golden_one(build: Callable[[], ir.Model], shape: tuple[int, ...], regen: bool) -> None:
    model = quantize(build(), feeds(16, *shape)).delivery.model
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    text, path = as_text(model), HERE / f"{build.__name__}.txt"
    if regen:
        path.write_text(text)
    assert text == path.read_text()
