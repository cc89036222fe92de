"""Powers of two, whose products are shifts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import SMALLEST_SCALE, QuantParams, nearest_place, per_scale_view
from ptq.core.encoding import IntegerWeight, WeightEncoding
from ptq.core.grid_search import keep_best
from ptq.core.problem import LayerProblem, Needs
from ptq.core.storage import Alphabet

Float = NDArray[np.float64]

LARGEST = 64
"""The largest power that fits a byte with both signs; two neighbours of it fit 16 bits on any processor."""

RATIOS = np.geomspace(1.3, 0.2, 50)
"""Largest levels that are tried, against the largest weight under the same scale."""


@dataclass(frozen=True)
class Pot:
    """Round every weight to 0 or to a power of two times a scale.

    Source:
        Ardakani et al., "Standard deviation-based quantization for deep neural networks" (arXiv 2202.12422), its base-2
        logarithmic levels +-c 2^-e, e = 0 .. 2^(b-1) - 2, and 0. Differs: c, there a trained multiple of the standard
        deviation, by least squared error of the weights; at most seven powers, all that fit a byte, so that beyond 4
        bits nothing is gained; words of several lengths are not told apart.
    """

    needs = Needs.WEIGHT
    independent_rows = True

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Choose scales and round.

        Args:
            problem: Layer; only its weight and spec are read.

        Returns:
            Powers of two, shape [out, in], stored by their place in the list of them, and one scale per row, block or
            tensor.
        """
        alphabet = Alphabet(_levels(problem.spec.num_bits))
        rows, shape = per_scale_view(problem.weight.astype(np.float64), problem.spec.granularity)
        scale = _scales(rows, alphabet.levels).reshape(shape)
        spec = replace(problem.spec, num_bits=8, symmetric=True)  # what kernels multiply
        params = QuantParams(scale, np.zeros(shape, np.int8), spec)
        blank = IntegerWeight(np.zeros(problem.weight.shape, np.int8), params, alphabet)
        return blank.nearest(problem.weight)


def _levels(num_bits: int) -> NDArray[np.int8]:
    """0 and both signs of as many powers of two as fit the word and a byte, ascending."""
    powers = LARGEST >> np.arange(min((1 << (num_bits - 1)) - 1, LARGEST.bit_length()))
    return np.concatenate([-powers, [0], powers[::-1]]).astype(np.int8)


def _scales(rows: Float, levels: NDArray[np.int8]) -> NDArray[np.float32]:
    """Scales of least squared error: a search, and for each candidate the scale that suits its levels best."""
    reach = np.abs(rows).max(1, initial=0.0) / LARGEST

    def candidate(scale: Float) -> tuple[Float, tuple[NDArray[np.float32]]]:
        usable = np.where(scale >= SMALLEST_SCALE, scale, 1.0).astype(np.float32)
        return np.square(_rounded(rows, usable, levels) * usable[:, None].astype(np.float64) - rows).sum(1), (usable,)

    (searched,) = keep_best(candidate(reach * ratio) for ratio in RATIOS)
    rounded = _rounded(rows, searched, levels)
    fitted = (rounded * rows).sum(1) / np.maximum(np.square(rounded).sum(1), 1.0)
    (best,) = keep_best(candidate(scale.astype(np.float64)) for scale in (searched, fitted))
    return np.asarray(best, np.float32)


def _rounded(rows: Float, scale: NDArray[np.float32], levels: NDArray[np.int8]) -> Float:
    return levels[nearest_place(rows / scale[:, None].astype(np.float64), levels)].astype(np.float64)
