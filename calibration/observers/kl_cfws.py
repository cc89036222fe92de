"""KL calibration with the clipping penalty of the coarse-and-fine paper's code."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.calibration.observers.kl import _range_of
from ptq.core.affine import Range
from ptq.core.checks import require_within
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram


@dataclass(frozen=True)
class KlCfws:
    """`Kl` with 2 ln(P/Q) added: cutting off mass costs about twice its share, so outliers are clipped less readily.

    Source:
        "Coarse-fine weight split" (arXiv 2312.10588), divergence of its published code.

    Attributes:
        num_bins: Resolution of the search, in bins over (0, max |x|].
    """

    num_bins: int = 2048

    def __post_init__(self) -> None:
        require_within(self, num_bins=(2, 1 << 20))

    def choose_range(self, statistics: Histogram, spec: QuantSpec) -> Range:
        """Search the threshold as `Kl` does, with the penalized divergence.

        Args:
            statistics: The tensor.
            spec: Its code count sets the number of levels.

        Returns:
            The clipped range, widened to contain 0.
        """
        return _range_of(statistics, spec, self.num_bins, "cfws")
