"""Scales of least error at the output for weights that are rounded, before any solver looks at them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ptq.core.affine import Range, choose_qparams
from ptq.core.grid_search import keep_best
from ptq.core.spec import PerAxis, PerBlock, PerTensor
from ptq.weights._descent import Descent
from ptq.weights._problem import Candidate, Float, GroupedProblem

RATIOS = np.geomspace(1.0, 0.35, 30)
BLOCK_RATIOS = np.geomspace(1.0, 0.35, 20)
BLOCK_FITS = 2
"""Rounds of fitting the scale of a block to its rounded weights."""


def best_grid(problem: GroupedProblem) -> tuple[GroupedProblem, Float]:
    """Scales as `best_scale` finds them; for blocks that may have a zero point, the better of both, then fitted.

    Returns:
        The problem with the limits that belong to the zero points, and scales. Shape [groups, out, blocks].
    """
    scale = best_scale(problem)
    if not isinstance(problem.spec.granularity, PerBlock):
        return problem, scale
    if not problem.spec.symmetric:
        blocks = [_best_zeros(problem, part, scale[..., [index]]) for index, part in enumerate(problem.parts)]
        scale, lowest, highest = (np.concatenate(each, -1) for each in zip(*blocks, strict=True))
        problem = replace(problem, lowest=lowest, highest=highest)
    fitted = [_fit_block(_block(problem, part), scale[..., [index]]) for index, part in enumerate(problem.parts)]
    return problem, np.concatenate(fitted, -1)


def best_scale(problem: GroupedProblem, ratios: Float = RATIOS) -> Float:
    """Per row the clipped range whose rounded weights err least at the output.

    Args:
        problem: The layer.
        ratios: Shares of the range that are tried; blocks have their own.

    Returns:
        Scale, exact in float32. Shape [groups, out, blocks], each block chosen by itself.
    """
    if isinstance(problem.spec.granularity, PerBlock):
        return np.concatenate([best_scale(_block(problem, part), BLOCK_RATIOS) for part in problem.parts], -1)
    reach, shared = problem.widest * problem.spec.qmax, isinstance(problem.spec.granularity, PerTensor)
    if shared:
        reach = np.full(reach.shape, reach.max())
    rowwise = replace(problem.spec, granularity=PerAxis(0))

    def candidate(ratio: float) -> tuple[Float, tuple[Float]]:
        scale = choose_qparams(Range.of(-reach * ratio, reach * ratio), rowwise).scale.astype(np.float64)[..., None]
        error = problem.error(problem.rounded(problem.target, scale))
        return np.full(error.shape, error.sum()) if shared else error, (scale,)

    return keep_best(candidate(ratio) for ratio in ratios)[0]


def _best_zeros(problem: GroupedProblem, part: slice, even: Float) -> tuple[Float, Float, Float]:
    """Scale, lowest and highest levels of a block: around a zero point, or even where that errs less."""
    own, spec = _block(problem, part), problem.spec
    low, high = np.minimum(own.target.min(-1), 0.0), np.maximum(own.target.max(-1), 0.0)

    def candidate(ratio: float) -> tuple[Float, tuple[Float, Float, Float]]:
        grid = choose_qparams(Range.of(low * ratio, high * ratio), replace(spec, granularity=PerAxis(0)))
        scale = grid.scale.astype(np.float64)[..., None]
        ends = [np.repeat((end - grid.zero_point)[..., None], own.weight.shape[-1], -1) for end in spec.limits]
        tried = replace(own, lowest=ends[0].astype(np.float64), highest=ends[1].astype(np.float64))
        return own.error(tried.rounded(own.target, scale)), (scale, tried.lowest, tried.highest)

    first = own.error(own.rounded(own.target, even)), (even, own.lowest, own.highest)
    scale, lowest, highest = keep_best([first, *(candidate(ratio) for ratio in BLOCK_RATIOS)])
    return scale, lowest, highest


def _fit_block(own: GroupedProblem, scale: Float) -> Float:
    """The scale by least squares for the levels that rounding gives, in turns, where the block errs less."""
    found = own.rounded(own.target, scale)
    least = own.error(found)
    for _ in range(BLOCK_FITS):
        descent = Descent(own, Candidate(found.levels, scale))
        descent.refit()
        found = own.rounded(own.target, descent.found.scale)
        error = own.error(found)
        scale, least = np.where((error < least)[..., None], found.scale, scale), np.minimum(error, least)
    return scale


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
        block=np.zeros(part.stop - part.start, np.intp),
    )
