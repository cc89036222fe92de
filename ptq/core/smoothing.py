"""Smoothing of activations with a few channels that dwarf the rest: what a grid for all costs, and what helps.

A product x W on one 8-bit grid for all of x gives every channel the step of the widest one. Two exact rewritings
narrow it: x W = (x / s) (s W) moves part of a channel's width into the weight, and x W = x' W + x_c W_c takes the
widest channels c out of the product and computes them in float beside it. Which to take is decided by the error to be
expected at the output:

    step(x / s)^2 / 12 sum_c s_c^2 |W_c|^2  +  sum_o step(s W)_o^2 / 12 T sum_c E[x_c^2] / s_c^2  +  clipping,

where o goes over output features, c over the channels that feature reads, and T is the number of taps of a kernel;
clipping with ranges from one half of the samples and extremes from the other: narrow channels that share their range
with wide ones have room for what was not seen yet, channels that all fill the range have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.channel_extremes import ChannelExtremes

Float = NDArray[np.float64]
Halves = tuple[ChannelExtremes, ChannelExtremes]

STRENGTHS = tuple(np.linspace(0.05, 1.0, 20))
"""Shares of a channel's width that move into the weight."""

MOST_ASIDE = 8
"""Most channels that are computed in float beside a product; and at most one in 64."""

ASIDE_DB = 0.5
"""Gain that each channel beside the product has to bring, dB."""

CODES = 255
"""Steps of an activation's grid."""


@dataclass(frozen=True)
class Reader:
    """Size of a layer's weights for each channel of its input.

    Attributes:
        reach: Largest weight of a channel for a feature. Shape [groups, channels per group, features per group].
        energy: Sum of squares of a channel's weights. Shape [channels].
        taps: Positions of the kernel.
    """

    reach: Float
    energy: Float
    taps: int

    @staticmethod
    def of_matrix(weight: NDArray[np.float32]) -> Reader:
        """Measure the weight of a product.

        Args:
            weight: Shape [channels, features].
        """
        size = np.abs(weight).astype(np.float64)
        return Reader(size[None], np.square(size).sum(1), 1)

    @staticmethod
    def of_kernel(weight: NDArray[np.float32], groups: int) -> Reader:
        """Measure the kernel of a convolution.

        Args:
            weight: Shape [features, channels per group, taps...].
            groups: Of channels.

        Example:
            >>> Reader.of_kernel(np.ones((6, 1, 3, 3), np.float32), 3).reach.shape
            (3, 1, 2)
        """
        features, channels = weight.shape[:2]
        size = np.abs(weight).astype(np.float64).reshape(groups, features // groups, channels, -1)
        return Reader(size.max(3).transpose(0, 2, 1), np.square(size).sum((1, 3)).reshape(-1), size.shape[3])


@dataclass(frozen=True)
class Smoothing:
    """A rewriting of one product's input: scales per channel, and channels that leave the product.

    Attributes:
        scale: What each channel is divided by, and its weights multiplied. Shape [channels].
        aside: Channels that are computed in float beside the product, ascending.
        gain_db: How much less error is to be expected at the output.
    """

    scale: Float
    aside: NDArray[np.int64]
    gain_db: float


@dataclass(frozen=True)
class SmoothingTerms:
    """Conditions that a rewriting has to fulfill.

    Attributes:
        worth_db: What dividing has to gain, as it is one more pass over the tensor.
        may_stand_aside: Whether channels may leave the product.
        levels: Codes of a weight on either side of 0.
        narrowest: Channels narrower than this share of the widest are divided as if they had that: what a calibration
            set hardly shows, other data may.
    """

    worth_db: float
    may_stand_aside: bool
    levels: int = 127
    narrowest: float = 0.0


def best_smoothing(readers: Sequence[Reader], halves: Halves, terms: SmoothingTerms) -> Smoothing:
    """Choose the rewriting of least expected error at the output of the layers that read a tensor.

    Args:
        readers: Their weights.
        halves: Extremes of the tensor over two halves of a calibration set.
        terms: What it has to fulfill.

    Returns:
        The best one; scales of 1 and no channel aside if nothing is worth it.

    Source:
        SmoothQuant, arXiv 2211.10438, equation 4: scale = max |x|^a / max |W|^(1 - a). Differs: also with max |x|^a
        alone, and a searched per tensor by expected output error.
    """
    both = halves[0].merge(halves[1])
    ones, nothing = np.ones(len(both.reach)), np.zeros(0, np.int64)
    worth_db, levels = terms.worth_db, terms.levels
    plain = _expected_error(readers, halves, np.ones_like, nothing, levels)
    best = Smoothing(ones, nothing, 0.0)
    for scale_of in scales_of(_widest(readers), terms.narrowest):
        gain = _gain_db(plain, _expected_error(readers, halves, scale_of, nothing, levels))
        if gain > max(best.gain_db, worth_db):
            best = Smoothing(scale_of(both.reach), nothing, gain)
    if not terms.may_stand_aside:
        return best
    widest = np.argsort(-both.reach, kind="stable")
    net = best.gain_db
    for count in range(1, min(MOST_ASIDE, len(widest) // 64) + 1):
        aside = np.sort(widest[:count]).astype(np.int64)
        gain = _gain_db(plain, _expected_error(readers, halves, np.ones_like, aside, levels))
        if gain - ASIDE_DB * count > net and gain > worth_db:
            best, net = Smoothing(ones, aside, gain), gain - ASIDE_DB * count
    return best


def _widest(readers: Sequence[Reader]) -> Float:
    """Largest magnitude of a weight of each channel over all readers. Shape [channels]."""
    return np.asarray(np.maximum(np.max([reader.reach.max(2).reshape(-1) for reader in readers], axis=0), 1e-9))


def scales_of(widest: Float, narrowest: float) -> Iterator[Callable[[Float], Float]]:
    """Yield candidates: functions from the reach of each channel to its divisor, of geometric mean 1."""
    for strength in STRENGTHS:
        for taken in (1 - strength, 0.0):

            def scale_of(reach: Float, strength: float = strength, taken: float = taken) -> Float:
                scale = np.maximum(reach, max(narrowest * reach.max(), 1e-9)) ** strength / widest**taken
                return np.asarray(scale / np.exp(np.log(scale).mean()))

            yield scale_of


def _expected_error(
    readers: Sequence[Reader],
    halves: Halves,
    scale_of: Callable[[Float], Float],
    aside: NDArray[np.int64],
    levels: int,
) -> float:
    """Error energy per position at the output, ranges from one half, clipping from the other; both ways added."""
    inside = np.ones(len(halves[0].reach))
    inside[aside] = 0
    return sum(
        _error(readers, (seen.masked(inside), other.masked(inside)), scale_of(seen.reach), inside, levels)
        for seen, other in (halves, halves[::-1])
    )


def _error(readers: Sequence[Reader], halves: Halves, scale: Float, inside: Float, levels: int) -> float:
    within, beyond = (half.over(scale) for half in halves)
    energy = inside * np.square(scale) * sum(reader.energy for reader in readers)  # of a channel's weights
    low, high = within.low.min(), within.high.max()
    step = (high - low) / CODES
    weights = sum(_weight_error(reader, inside * scale, within, levels) for reader in readers)
    missed = np.square(np.maximum(beyond.high - high, 0)) + np.square(np.maximum(low - beyond.low, 0))
    return float(step**2 / 12 * energy.sum() + weights + (missed * energy).sum() / max(beyond.count, 1))


def _weight_error(reader: Reader, scale: Float, within: ChannelExtremes, levels: int) -> float:
    """Energy that rounding weights adds at the output, per position, if every feature has a scale of its own."""
    groups = len(reader.reach)
    steps = (reader.reach * scale.reshape(groups, -1, 1)).max(1) / levels
    square = within.square.reshape(groups, -1).sum(1) * reader.taps / max(within.count, 1)
    return float(np.square(steps).sum(1) @ square / 12)


def _gain_db(before: float, after: float) -> float:
    return float(10 * np.log10(max(before, 1e-300) / max(after, 1e-300)))
