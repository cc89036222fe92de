"""Weight methods: arrays in, encoding out. One file each, one verb: `quantize`."""

from __future__ import annotations

from ptq.core.family import members, tag_of
from ptq.core.problem import Needs
from ptq.weights.gpfq import Gpfq
from ptq.weights.gptq import Gptq
from ptq.weights.hqq import Hqq
from ptq.weights.pot import Pot
from ptq.weights.qronos import Qronos
from ptq.weights.rtn import Rtn

WeightMethod = Rtn | Gpfq | Gptq | Qronos | Hqq | Pot
"""Every weight method. Recipe tags, command-line choices, contract tests and `ptq methods` are read from this union."""


def methods_that_need(needs: Needs) -> tuple[str, ...]:
    """Tags of the methods that look at all of some things."""
    return tuple(tag_of(member) for member in members(WeightMethod) if needs in member().needs)


__all__ = ["Gpfq", "Gptq", "Hqq", "Pot", "Qronos", "Rtn", "WeightMethod", "methods_that_need"]
