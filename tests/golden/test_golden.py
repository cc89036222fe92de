"""Lowered graphs as text, one for each form that lowering writes: what changes here changes what users deploy.

`pytest tests/golden --regen` writes them anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from tests.golden.scenarios import SCENARIOS

HERE = Path(__file__).parent
FORMS = [name for name, scenario in SCENARIOS.items() if scenario.form]


def lines(graph: ir.Graph, indent: str = "") -> Iterator[str]:
    """A line per node: outputs, operator, inputs; bodies behind their node."""
    for node in graph:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        given = ", ".join("-" if value is None else str(value.name) for value in node.inputs)
        yield f"{indent}{', '.join(str(value.name) for value in node.outputs)} = {operator}({given})"
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield f"{indent}  {attribute.name}:"
                yield from lines(attribute.as_graph(), indent + "    ")


def as_text(model: ir.Model) -> str:
    """The nodes; the initializers with types and shapes; the operators that are also functions."""
    weights = [f"{name}: {value.dtype} {value.shape}" for name, value in sorted(model.graph.initializers.items())]
    functions = sorted(f"{domain}.{name} {overload}".strip() for domain, name, overload in model.functions)
    return "\n".join([*lines(model.graph), "", *weights, "", *functions]).rstrip() + "\n"


@pytest.mark.parametrize("name", FORMS)
def test_lowered_graph_is_the_golden_one(name: str, regen: bool) -> None:
    delivery = SCENARIOS[name].result().delivery
    if not delivery.model.functions:
        with delivery.as_file() as file:
            onnx.checker.check_model(str(file), full_check=True)
    text, path = as_text(delivery.model), HERE / f"{name.replace(' ', '_')}.txt"
    if regen:
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_text_has_a_run() -> None:
    assert {path.stem for path in HERE.glob("*.txt")} == {name.replace(" ", "_") for name in FORMS}
