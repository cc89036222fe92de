"""The range with the least information lost: Kullback-Leibler (entropy) calibration, with a real search.

A histogram of |x| with many more bins than codes is cut at every candidate threshold. The clipped reference P (tail
mass moved into its last bin) is compared with Q, the same bins merged into as many levels as there are codes and
spread evenly over the bins that P occupies. With prefix sums each candidate costs one look-up per level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import Range
from ptq.core.checks import require_within
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram

FLOOR = 1e-9  # stands for q where P has mass and Q has none
Variant = Literal["standard", "cfws"]


@dataclass(frozen=True)
class Kl:
    """Threshold of least KL divergence, every bin boundary tried.

    Source:
        The method of TensorRT ("8-bit inference with TensorRT", GTC 2017). Differs: exact zeros are left out (they
        are exact in every grid), data without negatives uses all 2^b levels, levels need not divide the bins evenly,
        counts stay real numbers.

    Attributes:
        num_bins: Resolution of the search, in bins over (0, max |x|].
    """

    num_bins: int = 2048

    def __post_init__(self) -> None:
        require_within(self, num_bins=(2, 1 << 20))

    def choose_range(self, statistics: Histogram, spec: QuantSpec) -> Range:
        """Search the threshold T; the range is [0, T] or [-T, T], within what was observed.

        Args:
            statistics: The tensor.
            spec: Its code count sets the number of levels.

        Returns:
            The clipped range, widened to contain 0.
        """
        return _range_of(statistics, spec, self.num_bins, "standard")


def _range_of(statistics: Histogram, spec: QuantSpec, num_bins: int, variant: Variant) -> Range:
    reach = max(-statistics.rmin, statistics.rmax)
    if reach <= 0:
        return Range.of(0.0, 0.0)
    one_sided = statistics.rmin >= 0 or statistics.rmax <= 0
    codes = spec.qmax - spec.qmin + 1
    levels = codes if one_sided and not spec.symmetric else codes // 2
    cut = best_cut(statistics.linear(num_bins), levels, variant)
    threshold = reach * cut / num_bins
    return Range.of(max(statistics.rmin, -threshold), min(statistics.rmax, threshold))


def best_cut(counts: NDArray[np.float64], num_levels: int, variant: Variant = "standard") -> int:
    """Number of leading bins to keep for the least divergence.

    Args:
        counts: Histogram of magnitudes. Shape [bins], >= 0.
        num_levels: Levels that the kept bins are merged into.
        variant: Form of the divergence, see `divergences`.

    Returns:
        A cut in [num_levels, bins]; the largest among equals, because clipping less is free then.
    """
    if len(counts) <= num_levels or counts.sum() <= 0:
        return len(counts)
    cuts = np.arange(num_levels, len(counts) + 1)
    values = divergences(counts, num_levels, cuts, variant)
    return int(cuts[np.flatnonzero(values <= values.min() + 1e-12 * np.abs(values).max())[-1]])


def divergences(
    counts: NDArray[np.float64], num_levels: int, cuts: NDArray[np.int64], variant: Variant = "standard"
) -> NDArray[np.float64]:
    """Divergence of the merged from the clipped histogram for several cuts.

    With p the clipped counts (sum P), q the merged ones (sum Q, no tail mass in them):

        standard   sum p/P ln( (p/P) / (q/Q) )
        cfws       the same + 2 ln(P/Q): a penalty of about twice the clipped mass

    Args:
        counts: Histogram of magnitudes. Shape [bins].
        num_levels: Levels that the kept bins are merged into; level k spans bins round(k cut / levels) onwards.
        cuts: How many leading bins are kept. Shape [cuts].
        variant: `cfws` is the form in the code of the coarse-and-fine weight splitting paper (arXiv 2312.10588).

    Returns:
        Divergence in nats. Shape [cuts].
    """
    total = counts.sum()
    mass = np.r_[0.0, np.cumsum(counts)]
    occupied = np.r_[0, np.cumsum(counts > 0)]
    entropy = np.r_[0.0, np.cumsum(_x_log_x(counts))]
    edges = np.floor(cuts[:, None] * (np.arange(num_levels + 1) / num_levels) + 0.5).astype(np.int64)
    sums = np.diff(mass[edges], axis=1)
    filled = np.diff(occupied[edges], axis=1).astype(np.float64)
    tail = total - mass[cuts]
    last = counts[cuts - 1]
    filled[:, -1] += (last == 0) & (tail > 0)  # the tail occupies the last bin even when the data did not
    quantized = np.maximum(sums / np.maximum(filled, 1.0), FLOOR)
    reference = sums.copy()
    reference[:, -1] += tail
    own = entropy[cuts] - _x_log_x(last) + _x_log_x(last + tail)
    kept = np.maximum(mass[cuts], FLOOR)
    cross = (reference * np.log(quantized)).sum(1)
    standard = (own - cross) / total - np.log(total) + np.log(kept)
    penalty = 2 * np.log(total / kept) if variant == "cfws" else np.zeros(len(cuts))
    result: NDArray[np.float64] = standard + penalty
    return result


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * np.log(np.where(x > 0, x, 1.0))
