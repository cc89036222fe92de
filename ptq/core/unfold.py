"""Geometry by which inputs of linear layers become rows that meet the weight matrix: im2col for any number of axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

AutoPad = Literal["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]


@dataclass(frozen=True)
class Unfold:
    """Geometry of a convolution; without kernel axes that of a product over the last axis.

    Attributes:
        kernel: Kernel extents, () for Gemm and MatMul.
        strides: Per kernel axis.
        dilations: Per kernel axis.
        pads: Begin of each axis, then end of each, as ONNX orders them.
        auto_pad: ONNX's rule for pads, `NOTSET` for the explicit ones.
        groups: Convolution groups.
        transposed: A transposed convolution: the input is spread out by the strides and met by the mirrored kernel.
        extra: Its `output_padding`, () for none.
        columns: For a product: the weight stands on the left, so that it meets the columns of the input.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: AutoPad = "NOTSET"
    groups: int = 1
    transposed: bool = False
    extra: tuple[int, ...] = ()
    columns: bool = False

    def rows(self, values: NDArray[Any], limit: int | None = None) -> NDArray[Any]:
        """Return what each position of the output reads, columns in the weight matrix's order (channel, kernel...).

        Args:
            values: [batch, channels, spatial...] for a convolution, [..., in] for a product.
            limit: Most positions wanted; default: all. Fewer are spread evenly over the batch and every axis.

        Returns:
            Shape [groups, positions, in].
        """
        if not self.kernel:
            values = np.swapaxes(values, -1, -2) if self.columns else values
            flat = values.reshape(-1, values.shape[-1])
            return flat[_spread(len(flat), limit)][None]
        if self.transposed:
            return self._mirrored(values, limit)
        spatial = len(self.kernel)
        begin, end = self._pads(values.shape[2:])
        padded = np.pad(values, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
        reach = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        windows = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + spatial)))
        steps = (slice(None), slice(None), *(slice(None, None, s) for s in self.strides))
        taps = tuple(slice(None, None, d) for d in self.dilations)
        chosen = windows[(*steps, *taps)]  # [batch, channels, out..., kernel...]
        batch, channels = chosen.shape[:2]
        extents = (batch, *chosen.shape[2 : 2 + spatial])
        at, *where = np.unravel_index(_spread(int(np.prod(extents)), limit), extents)
        index: tuple[Any, ...] = (at, slice(None), *where)
        picked = chosen[index]  # [positions, channels, kernel...]
        columns = channels // self.groups * int(np.prod(self.kernel))
        return np.ascontiguousarray(picked.reshape(-1, self.groups, columns).transpose(1, 0, 2))

    def _mirrored(self, values: NDArray[Any], limit: int | None) -> NDArray[Any]:
        """Return the rows of a transposed convolution, as those of the plain one with the same result."""
        half = len(self.kernel)
        extents = tuple((n - 1) * s + 1 for n, s in zip(values.shape[2:], self.strides, strict=True))
        apart = np.zeros((*values.shape[:2], *extents), values.dtype)
        apart[(slice(None), slice(None), *(slice(None, None, s) for s in self.strides))] = values
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilations, strict=True)]
        extra = self.extra or (0,) * half
        begin = [r - p for r, p in zip(reach, self.pads[:half], strict=True)]
        end = [r - p + e for r, p, e in zip(reach, self.pads[half:], extra, strict=True)]
        inner = (slice(max(-b, 0), n - max(-e, 0)) for b, e, n in zip(begin, end, extents, strict=True))
        cropped = apart[(slice(None), slice(None), *inner)]
        pads = (*(max(b, 0) for b in begin), *(max(e, 0) for e in end))
        plain = Unfold(self.kernel, (1,) * half, self.dilations, pads)
        rows = plain.rows(cropped, limit)
        taps = rows.reshape(*rows.shape[:2], -1, *self.kernel)
        return np.flip(taps, tuple(range(3, 3 + half))).reshape(rows.shape)

    def _pads(self, extents: tuple[int, ...]) -> tuple[list[int], list[int]]:
        half = len(self.kernel)
        if self.auto_pad == "VALID":
            return [0] * half, [0] * half
        if self.auto_pad == "NOTSET":
            return list(self.pads[:half]), list(self.pads[half:])
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(extents, self.strides, self.kernel, self.dilations, strict=True)
        ]
        small = [total // 2 for total in totals]
        large = [total - half_ for total, half_ in zip(totals, small, strict=True)]
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)


def _spread(total: int, limit: int | None) -> NDArray[np.intp]:
    """Choose indices below `total`, at most `limit` of them, far apart in whatever axes the index runs over.

    Multiples of the golden section modulo `total`: a plain stride would meet the same columns of an image again and
    again, and with them its border.
    """
    if limit is None or limit >= total:
        return np.arange(total)
    step = max(int(total * 0.6180339887498949), 1)
    while np.gcd(step, total) != 1:
        step += 1
    return np.sort(np.arange(limit, dtype=np.int64) * step % total)
