"""A weight that somebody else has chosen; no member of the family: a stage that solves layers together hands it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ptq.core.encoding import WeightEncoding
from ptq.core.problem import LayerProblem, Needs


@dataclass(frozen=True)
class Given:
    """Take the weight as it is; the bias that belongs to it is found as for any other.

    Attributes:
        encoding: The weight.
    """

    encoding: WeightEncoding
    needs: ClassVar[Needs] = Needs.WEIGHT
    independent_rows: ClassVar[bool] = False

    def quantize(self, _problem: LayerProblem) -> WeightEncoding:
        """Return the weight."""
        return self.encoding
