"""What the solvers share: grids and codes judged by the error that they cause at the layer's output.

With H the second moment of the quantized network's input and G its cross moment with the float one, weights Q err by
J(Q) = tr(Q H Q^T) - 2 tr(Q P^T) + energy, where P = W G^T is what the output asks of each weight; if both networks
agree this is tr((Q - W) H (Q - W)^T).

Arrays are batched over convolution groups: weight [groups, out, in], gram [groups, in, in], scale [groups, out]; or,
where blocks of inputs have scales of their own, one for every column: [groups, out, in].
Weights are symmetric, so a code is a level and a level times the scale is the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import QuantParams, Range, choose_qparams, nearest_level
from ptq.core.encoding import IntegerWeight, WeightEncoding
from ptq.core.errors import CalibrationError
from ptq.core.layer_statistics import least_squares
from ptq.core.problem import LayerProblem
from ptq.core.spec import PerAxis, PerBlock, PerTensor, QuantSpec
from ptq.core.widths import Widths

Float = NDArray[np.float64]
DEAD = 1e-10  # of the largest second moment: a column that the calibration set never excites
Order = Literal["natural", "norm", "activation"]
RATIOS = np.geomspace(1.0, 0.35, 30)
BLOCK_RATIOS = np.geomspace(1.0, 0.35, 20)
ROOMY = 1.25
"""Times the scale at which the levels of neighbours fit: the first one that is tried."""

BLOCK_FITS = 2
"""Rounds of fitting the scale of a block to its rounded weights."""

SWEEPS_PER_FIT = 2
"""Sweeps of coordinate descent between two fits of the scales of blocks: nearly all that sweeps gain, two do."""


@dataclass(frozen=True)
class GroupedProblem:
    """A layer problem as the solvers see it.

    Attributes:
        weight: Float weight. Shape [groups, out, in].
        gram: H. Rows and columns of dead inputs are those of the identity, so that they keep their weights instead
            of being anything at no cost. Shape [groups, in, in].
        cross: G, its dead rows likewise; the same array as `gram` where both networks agree. Shape [groups, in, in].
        energy: Of the float output. Shape [groups, out].
        spec: The grid wished for.
        target: The real weight of least J; the float weight itself where both networks agree. Shape of `weight`.
        target_correlation: P = W G^T. Shape of `weight`.
        lowest: Smallest level of each weight. Shape of `weight`.
        highest: Largest level, likewise.
        widths: Bits of each weight; None is the word length of the spec.
        widest_scale: Scales wide enough, where neighbours share their levels. Shape [groups, out].
    """

    weight: Float
    gram: Float
    cross: Float
    energy: Float
    spec: QuantSpec
    target: Float
    target_correlation: Float
    lowest: Float
    highest: Float
    widths: Widths | None
    widest_scale: Float | None = None

    @staticmethod
    def of(problem: LayerProblem) -> GroupedProblem:
        """Arrange a layer by groups.

        Raises:
            CalibrationError: The layer has no statistics; names it.
            ValueError: Scales are shared by blocks of something else than the inputs of ungrouped layers.
        """
        statistics = problem.statistics
        if statistics is None:
            raise CalibrationError(f"layer {problem.name!r} has no input statistics; expected a calibration run")
        if isinstance(problem.spec.granularity, PerBlock) and (len(statistics.gram) > 1 or problem.widths is not None):
            raise ValueError(f"layer {problem.name!r}: scales per block; expected one group and words of one length")
        weight = problem.weight.astype(np.float64).reshape(len(statistics.gram), -1, statistics.gram.shape[-1])
        gram, dead = _revive(statistics.gram)
        cross = gram if statistics.matched else _keep_dead(statistics.cross, gram, dead)
        target_correlation = np.matmul(weight, cross.transpose(0, 2, 1))
        target = weight if statistics.matched else least_squares(weight, gram, target_correlation)
        saturation = problem.saturation
        low, high = problem.limits if saturation is None else (saturation.low, saturation.high)
        low, high = (np.broadcast_to(end, problem.weight.shape).reshape(weight.shape) for end in (low, high))
        widest_scale = None if saturation is None else (saturation.scale * ROOMY).reshape(weight.shape[:2])
        return GroupedProblem(
            weight,
            gram,
            cross,
            statistics.energy,
            problem.spec,
            target,
            target_correlation,
            low,
            high,
            problem.widths,
            widest_scale,
        )

    @property
    def widest(self) -> Float:
        """Scales to shrink from. Shape [groups, out]."""
        if self.widest_scale is not None:
            return self.widest_scale
        return np.asarray((np.abs(self.target) / self.highest).max(-1))

    def encode(self, levels: Float, scale: Float) -> WeightEncoding:
        """Levels [groups, out, in] and scales [groups, out] as an encoding of the whole matrix."""
        codes = levels.reshape(-1, levels.shape[-1]).astype(self.spec.storage_dtype)
        single = scale.reshape(-1).astype(np.float32)
        if isinstance(self.spec.granularity, PerTensor):
            single = single[0]
        if isinstance(self.spec.granularity, PerBlock):
            single = single.reshape(codes.shape)[:, :: self.spec.granularity.block_size]
        zero = np.zeros(single.shape, self.spec.storage_dtype)
        if isinstance(self.spec.granularity, PerBlock):  # levels reach from qmin - zero to qmax - zero
            ends = self.lowest.reshape(codes.shape)
            codes = codes + (self.spec.qmin - ends).astype(codes.dtype)
            zero = (self.spec.qmin - ends[:, :: self.spec.granularity.block_size]).astype(codes.dtype)
        params = QuantParams(single, zero, self.spec)
        return IntegerWeight.of(codes, params, self.widths)

    def error(self, levels: Float, scale: Float) -> Float:
        """J per output feature, the constant left out. Shape [groups, out]."""
        values = levels * along(scale)
        return np.asarray(np.einsum("goi,goi->go", np.matmul(values, self.gram) - 2 * self.target_correlation, values))


def along(scale: Float) -> Float:
    """Scales for whole rows of levels: [groups, out, 1 or in]."""
    return scale[..., None] if scale.ndim == 2 else scale


def at(scale: Float, column: int) -> Float:
    """Scales of one column. Shape [groups, out]."""
    return scale if scale.ndim == 2 else scale[..., column]


def rows_where(chosen: NDArray[np.bool_], scale: Float, other: Float) -> Float:
    """Scales of the chosen rows, and the other ones."""
    return np.where(chosen if scale.ndim == 2 else chosen[..., None], scale, other)


Start = Callable[[GroupedProblem, Float], Float]
"""(problem, scale [groups, out]) -> levels [groups, out, in]."""


def _revive(gram: Float) -> tuple[Float, NDArray[np.bool_]]:
    """The moment with dead inputs put on the diagonal, and which they are. Shape [groups, in]."""
    diagonal = np.einsum("gii->gi", gram)
    dead = diagonal <= DEAD * diagonal.max(initial=0.0)
    if not dead.any():
        return gram, dead  # a copy of a wide layer's moment would be felt
    alive = np.where(dead[:, :, None] | dead[:, None, :], 0.0, gram)
    np.einsum("gii->gi", alive)[dead] = max(float(diagonal.mean()), 1e-30)
    return alive, dead


def _keep_dead(cross: Float, gram: Float, dead: NDArray[np.bool_]) -> Float:
    if not dead.any():
        return cross
    kept = np.where(dead[:, :, None], 0.0, cross)
    np.einsum("gii->gi", kept)[dead] = np.einsum("gii->gi", gram)[dead]
    return kept


def solve(problem: LayerProblem, start: Start, num_sweeps: int, order: Order = "natural") -> WeightEncoding:
    """What every solver does: choose scales, find levels its own way, polish them, refit the scales, keep the best.

    Args:
        problem: Layer with statistics of its input.
        start: The method: (problem, scale [groups, out]) -> levels [groups, out, in].
        num_sweeps: Sweeps of coordinate descent; 0 also leaves the scales alone.
        order: In which order the method meets the columns.

    Returns:
        Codes and one scale per row.

    Raises:
        CalibrationError: The layer has no statistics.
    """
    grouped, scale = best_grid(GroupedProblem.of(problem))
    levels = in_order(grouped, scale, start, order)
    if num_sweeps:
        rounded, first = round_to_nearest(grouped, grouped.weight, scale), scale
        levels, scale = settle(grouped, levels, scale, num_sweeps)
        worse = grouped.error(rounded, first) < grouped.error(levels, scale)  # greed can lose; rounding then stays
        levels, scale = np.where(worse[..., None], rounded, levels), rows_where(worse, first, scale)
    return grouped.encode(levels, scale)


def settle(problem: GroupedProblem, levels: Float, scale: Float, num_sweeps: int) -> tuple[Float, Float]:
    """Levels for the scales and scales for the levels in turns. J never rises.

    The one scale of a row is fitted once, between two polishings; the many of blocks gain more, and are fitted every
    few sweeps.

    Args:
        problem: The layer.
        levels: Start. Shape [groups, out, in].
        scale: Start. Shape [groups, out], or [groups, out, in] for blocks.
        num_sweeps: Sweeps of coordinate descent, at least 1: before the fit and behind it; for blocks altogether.

    Returns:
        Levels and scales.
    """
    in_blocks = isinstance(problem.spec.granularity, PerBlock)
    sweeps = min(num_sweeps, SWEEPS_PER_FIT) if in_blocks else num_sweeps
    residual = residual_of(problem, levels, scale)
    levels = polish(problem, levels, scale, sweeps, residual)
    for _ in range(-(-num_sweeps // sweeps) - 1 if in_blocks else 1):
        scale = refit(problem, levels, scale, residual)
        levels = polish(problem, levels, scale, sweeps, residual)
    return levels, scale


def residual_of(problem: GroupedProblem, levels: Float, scale: Float) -> Float:
    """R = Q H - P, half the gradient of J. Shape of the weight."""
    return np.asarray(np.matmul(levels * along(scale), problem.gram) - problem.target_correlation)


def in_order(problem: GroupedProblem, scale: Float, start: Start, order: Order) -> Float:
    """Let a method meet the columns in another order; its levels come back in the natural one.

    Args:
        problem: The layer.
        scale: Shape [groups, out].
        start: The method.
        order: `activation` takes the columns of the largest inputs first, `norm` those that contribute the most to
            the output, counting the weights.
    """
    if order == "natural":
        return start(problem, scale)
    energy = np.einsum("gii->gi", problem.gram)
    if order == "norm":
        energy = energy * np.square(problem.weight).sum(1)
    columns = np.argsort(-energy, axis=1, kind="stable")
    wide, high = columns[:, None], columns[:, :, None]
    turned = replace(
        problem,
        gram=np.take_along_axis(np.take_along_axis(problem.gram, high, 1), wide, 2),
        cross=np.take_along_axis(np.take_along_axis(problem.cross, high, 1), wide, 2),
        weight=np.take_along_axis(problem.weight, wide, 2),
        target=np.take_along_axis(problem.target, wide, 2),
        target_correlation=np.take_along_axis(problem.target_correlation, wide, 2),
        lowest=np.take_along_axis(problem.lowest, wide, 2),
        highest=np.take_along_axis(problem.highest, wide, 2),
    )
    steps = scale if scale.ndim == 2 else np.take_along_axis(scale, wide, 2)
    levels = start(turned, steps)
    natural = np.empty_like(levels)
    np.put_along_axis(natural, np.broadcast_to(wide, levels.shape), levels, 2)
    if steps is not scale:  # a method may choose other scales
        np.put_along_axis(scale, np.broadcast_to(wide, scale.shape), steps, 2)
    return natural


def refit(problem: GroupedProblem, levels: Float, scale: Float, residual: Float) -> Float:
    """The scale of least J for given levels, where it is positive and better.

    Args:
        problem: The layer.
        levels: Shape [groups, out, in].
        scale: Shape [groups, out], or [groups, out, in] for blocks, each then fitted given all before it.
        residual: `residual_of` these; follows the scales in place.

    Returns:
        Shape of `scale`.
    """
    if isinstance(problem.spec.granularity, PerTensor):
        return scale
    count = levels.shape[-1]
    size = problem.spec.granularity.block_size if isinstance(problem.spec.granularity, PerBlock) else count
    fitted = along(scale.copy())
    for start in range(0, count, size):
        part = slice(start, start + size)
        own, old = levels[..., part], fitted[..., start]
        moved = np.matmul(own, problem.gram[:, part])
        energy = np.einsum("goi,goi->go", moved[..., part], own)
        slope = np.einsum("goi,goi->go", residual[..., part], own)
        best = (old - slope / np.where(energy > 0, energy, 1.0)).astype(np.float32).astype(np.float64)
        better = (energy > 0) & (best > 0) & ((best - old) * ((best - old) * energy + 2 * slope) < 0)
        best = np.where(better, best, old)
        residual += (best - old)[..., None] * moved
        fitted[..., part] = best[..., None]
    return fitted.reshape(scale.shape)


def best_grid(problem: GroupedProblem) -> tuple[GroupedProblem, Float]:
    """Scales as `best_scale` finds them; for blocks that may have a zero point, the better of both, then fitted.

    Returns:
        The problem with the limits that belong to the zero points, and scales.
    """
    spec, scale = problem.spec, best_scale(problem)
    if not isinstance(spec.granularity, PerBlock):
        return problem, scale
    if spec.symmetric:
        return problem, _fit_blocks(problem, scale, spec.granularity.block_size)
    lowest, highest, size = problem.lowest.copy(), problem.highest.copy(), spec.granularity.block_size
    for start in range(0, scale.shape[-1], size):
        part = slice(start, start + size)
        own, even = _block(problem, part), scale[..., start]
        best = own.error(round_to_nearest(own, own.target, even), even)
        low, high = np.minimum(own.target.min(-1), 0.0), np.maximum(own.target.max(-1), 0.0)
        for ratio in BLOCK_RATIOS:
            grid = choose_qparams(Range.of(low * ratio, high * ratio), replace(spec, granularity=PerAxis(0)))
            steps = grid.scale.astype(np.float64)
            ends = [np.repeat((end - grid.zero_point)[..., None], own.weight.shape[-1], -1) for end in spec.limits]
            tried = replace(own, lowest=ends[0].astype(np.float64), highest=ends[1].astype(np.float64))
            error = own.error(round_to_nearest(tried, own.target, steps), steps)
            better = error < best
            best = np.where(better, error, best)
            scale[..., part] = np.where(better[..., None], steps[..., None], scale[..., part])
            lowest[..., part] = np.where(better[..., None], tried.lowest, lowest[..., part])
            highest[..., part] = np.where(better[..., None], tried.highest, highest[..., part])
    problem = replace(problem, lowest=lowest, highest=highest)
    return problem, _fit_blocks(problem, scale, size)


def _fit_blocks(problem: GroupedProblem, scale: Float, size: int) -> Float:
    """Scales of blocks by least squares for the levels that rounding gives, in turns, where the block errs less."""
    fitted = scale.copy()
    for start in range(0, scale.shape[-1], size):
        part = slice(start, start + size)
        own, steps = _block(problem, part), scale[..., start]
        levels = round_to_nearest(own, own.target, steps)
        least = own.error(levels, steps)
        for _ in range(BLOCK_FITS):
            tried = refit(own, levels, steps, residual_of(own, levels, steps))
            levels = round_to_nearest(own, own.target, tried)
            error = own.error(levels, tried)
            steps, least = np.where(error < least, tried, steps), np.minimum(error, least)
        fitted[..., part] = steps[..., None]
    return fitted


def best_scale(problem: GroupedProblem, ratios: Float = RATIOS) -> Float:
    """Per row the clipped range whose rounded weights err least at the output.

    Args:
        problem: The layer.
        ratios: Shares of the range that are tried; blocks have their own.

    Returns:
        Scale, exact in float32. Shape [groups, out], or [groups, out, in] for blocks, each chosen by itself.
    """
    if isinstance(problem.spec.granularity, PerBlock):
        size, count = problem.spec.granularity.block_size, problem.weight.shape[-1]
        parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        steps = [along(best_scale(_block(problem, part), BLOCK_RATIOS)) for part in parts]
        return np.concatenate([np.repeat(s, p.stop - p.start, 2) for s, p in zip(steps, parts, strict=True)], 2)
    reach = problem.widest * problem.spec.qmax
    if isinstance(problem.spec.granularity, PerTensor):
        reach = np.full(reach.shape, reach.max())
    best_error, best = np.full(reach.shape, np.inf), np.zeros(reach.shape)
    rowwise = replace(problem.spec, granularity=PerAxis(0))
    for ratio in ratios:
        scale = choose_qparams(Range.of(-reach * ratio, reach * ratio), rowwise).scale.astype(np.float64)
        error = problem.error(round_to_nearest(problem, problem.target, scale), scale)
        if isinstance(problem.spec.granularity, PerTensor):
            error = np.full(error.shape, error.sum())
        better = error < best_error
        best_error, best = np.where(better, error, best_error), np.where(better, scale, best)
    return best


def _block(problem: GroupedProblem, part: slice) -> GroupedProblem:
    """Some columns as a problem of their own: come near the best weights, as seen through their own inputs."""
    gram, target = problem.gram[:, part, part], problem.target[..., part]
    return replace(
        problem,
        weight=problem.weight[..., part],
        gram=gram,
        cross=gram,
        spec=replace(problem.spec, granularity=PerAxis(0)),
        target=target,
        target_correlation=np.matmul(target, gram),
        lowest=problem.lowest[..., part],
        highest=problem.highest[..., part],
    )


def round_to_nearest(problem: GroupedProblem, weight: Float, scale: Float) -> Float:
    """Levels of the nearest codes. Shape of `weight`."""
    return nearest_level(weight / along(scale), problem.lowest, problem.highest)


def polish(problem: GroupedProblem, levels: Float, scale: Float, num_sweeps: int, residual: Float) -> Float:
    """Coordinate descent on J: move one column at a time to its best level, given all others.

    With R = Q H - P the best value of column t is q_t - R_t / H_tt; its nearest level is the best
    level because J is a parabola in it. J never rises.

    Args:
        problem: The layer.
        levels: Start. Shape [groups, out, in]. Not modified.
        scale: Shape [groups, out].
        num_sweeps: Passes over all columns; ends early when nothing moves.
        residual: `residual_of` these; follows the levels in place.

    Returns:
        Levels of lower or equal J.

    Cost:
        O(out * in^2) per sweep, less once few rows move.
    """
    gram = problem.gram
    levels = levels.copy()
    for _ in range(num_sweeps):
        moved = False
        for t in range(levels.shape[-1]):
            steps = at(scale, t)
            step = residual[..., t] / gram[:, None, t, t] / steps
            best = nearest_level(levels[..., t] - step, problem.lowest[..., t], problem.highest[..., t])
            change = best - levels[..., t]
            groups, rows = np.nonzero(change)
            if len(rows):
                levels[groups, rows, t] = best[groups, rows]
                residual[groups, rows] += (change * steps)[groups, rows, None] * gram[groups, t]
                moved = True
        if not moved:
            break
    return levels
