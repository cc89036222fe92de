"""Affine arithmetic: real = scale * (code - zero_point). The only place in the project that rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.spec import Granularity, PerAxis, PerBlock, PerTensor, QuantSpec

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scales below the smallest normal float32 are flushed to zero by some kernels."""

EXACT_BITS = 16
"""Codes of this many bits are exact in float32, and their differences in int32: half the memory traffic."""


@dataclass(frozen=True, slots=True)
class Range:
    """Interval of reals that the codes shall cover; always contains 0.

    Attributes:
        rmin: Lower end, real units, scalar or one per scale.
        rmax: Upper end, real units, scalar or one per scale.
    """

    rmin: FloatArray
    rmax: FloatArray

    @staticmethod
    def of(rmin: float | FloatArray, rmax: float | FloatArray) -> Range:
        """Build a range and widen it to contain 0, which must be exact (padding, Relu)."""
        low = np.minimum(np.asarray(rmin, np.float64), 0.0)
        high = np.maximum(np.asarray(rmax, np.float64), 0.0)
        return Range(low, high)


@dataclass(frozen=True, slots=True)
class QuantParams:
    """Grid of integers: scale and zero point, and the spec that they were fitted to.

    Attributes:
        scale: Real units per code, float32, > 0. Shape [] per tensor, [n] per axis, weight-like per block.
        zero_point: The code of real 0, same shape, dtype of the codes.
        spec: Word length, sign and symmetry that were asked for.
    """

    scale: NDArray[np.float32]
    zero_point: IntArray
    spec: QuantSpec


def choose_qparams(limits: Range, spec: QuantSpec) -> QuantParams:
    """Fit an integer grid to a range of reals.

    Symmetric: scale = max(|rmin|, |rmax|) / qmax. Otherwise scale = (rmax - rmin) / (qmax - qmin) and
    zero_point = qmin - rmin / scale, rounded and clipped.

    Args:
        limits: Interval to cover, real units; scalar or one per scale.
        spec: Word length, sign and symmetry.

    Returns:
        Scale and zero point with the shape of the range.

    Example:
        >>> p = choose_qparams(Range.of(0.0, 6.0), QuantSpec())
        >>> round(float(p.scale), 6), int(p.zero_point)
        (0.023529, 0)
    """
    low, high = limits.rmin, limits.rmax
    qmin, qmax = spec.limits
    if spec.symmetric:
        reach = np.maximum(-low, high)
        scale = _usable(reach / qmax if spec.signed else 2 * reach / (qmax - qmin))
        middle = 0 if spec.signed else (qmax + 1) // 2
        return QuantParams(scale, np.full(scale.shape, middle, spec.storage_dtype), spec)
    scale = _usable((high - low) / (qmax - qmin))
    zero = np.clip(np.rint(qmin - low / scale.astype(np.float64)), qmin, qmax)
    return QuantParams(scale, zero.astype(spec.storage_dtype), spec)


def _usable(scale: FloatArray) -> NDArray[np.float32]:
    """Return scales as float32; 1 where there is nothing to resolve, so that 0 stays 0."""
    single = np.asarray(scale, np.float32)
    return np.where(single >= SMALLEST_SCALE, single, np.float32(1.0)).astype(np.float32)


def quantize(values: FloatArray, params: QuantParams) -> IntArray:
    """Round reals to codes: codes = clip(round(values / scale) + zero_point, qmin, qmax), ties to even.

    The division is done in float32, as onnxruntime's QuantizeLinear does.

    Args:
        values: Real units, any shape that fits the granularity. Not modified.
        params: The grid.

    Returns:
        Codes within [qmin, qmax], shape of `values`, dtype `params.spec.storage_dtype`.

    Example:
        >>> params = choose_qparams(Range.of(0.0, 255.0), QuantSpec())
        >>> quantize(np.array([0.5, 1.5, 300.0], np.float32), params)
        array([  0,   2, 255], dtype=uint8)
    """
    scale = expand(params.scale, values.shape, params.spec.granularity)
    zero = expand(params.zero_point, values.shape, params.spec.granularity)
    exact = np.float32 if params.spec.num_bits <= EXACT_BITS else np.float64
    codes = np.rint(np.asarray(values) / scale) + zero.astype(exact)
    clipped: IntArray = np.clip(codes, *params.spec.limits).astype(params.spec.storage_dtype)
    return clipped


def nearest_level(steps: FloatArray, low: FloatArray | int, high: FloatArray | int) -> NDArray[np.float64]:
    """Return the level (code - zero_point) nearest to a real, given in units of the scale; ties to even, clipped."""
    return np.minimum(np.maximum(np.rint(steps), low), high)  # a third of the time of clip for short arrays


def nearest_place(values: FloatArray, levels: NDArray[Any]) -> NDArray[np.intp]:
    """Find where the nearest of some levels stands; ties to the lower one.

    Args:
        values: Reals. Any shape.
        levels: Levels, ascending. Shape [levels].

    Returns:
        Indices into `levels`. Shape of `values`.

    Example:
        >>> nearest_place(np.array([-9.0, 0.4, 3.0]), np.array([-2, 0, 2, 4]))
        array([0, 1, 2])
    """
    exact = levels.astype(np.float64)
    return np.searchsorted((exact[1:] + exact[:-1]) / 2, values)


def dequantize(codes: IntArray, params: QuantParams) -> NDArray[np.float32]:
    """Compute the reals of codes: scale * (codes - zero_point), float32.

    Args:
        codes: Integers, any shape that fits the granularity.
        params: The grid.

    Returns:
        Real units, shape of `codes`.
    """
    scale = expand(params.scale, codes.shape, params.spec.granularity)
    zero = expand(params.zero_point, codes.shape, params.spec.granularity)
    exact = np.int32 if params.spec.num_bits <= EXACT_BITS else np.int64
    steps = codes.astype(exact) - zero.astype(exact)
    reals: NDArray[np.float32] = (steps.astype(np.float32) * scale).astype(np.float32)
    return reals


def fake_quantize(values: FloatArray, params: QuantParams) -> NDArray[np.float32]:
    """Round reals to the grid and come back: dequantize(quantize(values)). Idempotent."""
    return dequantize(quantize(values, params), params)


def expand(per_scale: NDArray[Any], shape: tuple[int, ...], granularity: Granularity) -> NDArray[Any]:
    """Reshape one-value-per-scale data so that it broadcasts against a tensor of `shape`.

    Args:
        per_scale: Shape [] (per tensor), [n] (per axis) or block-wise reduced `shape` (per block).
        shape: Shape of the tensor.
        granularity: How elements share scales.

    Returns:
        An array that broadcasts with a tensor of `shape`.

    Example:
        >>> expand(np.array([1.0, 2.0]), (2, 3), PerAxis(0)).shape
        (2, 1)
    """
    match granularity:
        case PerTensor():
            return per_scale.reshape(())
        case PerAxis(axis):
            return per_scale.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
        case PerBlock(axis, block_size):
            wide = np.repeat(per_scale, block_size, axis=axis)
            cut: NDArray[Any] = np.take(wide, np.arange(shape[axis]), axis=axis)
            return cut


def per_scale_view(values: NDArray[Any], granularity: Granularity) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Arrange a tensor as rows that share a scale.

    Args:
        values: Any tensor.
        granularity: How elements share scales.

    Returns:
        A matrix [scales, elements], blocks padded with zeros, and the shape that one-per-scale results take.
    """
    match granularity:
        case PerTensor():
            return values.reshape(1, -1), ()
        case PerAxis(axis):
            moved = np.moveaxis(values, axis, 0)
            return moved.reshape(len(moved), -1), (len(moved),)
        case PerBlock(axis, block_size):
            axis %= values.ndim
            blocks = -(-values.shape[axis] // block_size)
            pad = [(0, blocks * block_size - n if i == axis else 0) for i, n in enumerate(values.shape)]
            parts = np.pad(values, pad).reshape(*values.shape[:axis], blocks, block_size, *values.shape[axis + 1 :])
            rows = np.moveaxis(parts, axis + 1, -1)
            return rows.reshape(-1, block_size), rows.shape[:-1]
