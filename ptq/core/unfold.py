"""Inputs of linear layers as rows that meet the weight matrix: im2col for any number of spatial axes."""

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
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: AutoPad = "NOTSET"
    groups: int = 1

    def rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """Every position's input as a row, columns in the order of the weight matrix (channel, kernel...).

        Args:
            values: [batch, channels, spatial...] for a convolution, [..., in] for a product.

        Returns:
            Shape [groups, positions, in].
        """
        if not self.kernel:
            return values.reshape(1, -1, values.shape[-1])
        spatial = len(self.kernel)
        begin, end = self._pads(values.shape[2:])
        padded = np.pad(values, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
        reach = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        windows = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + spatial)))
        steps = (slice(None), slice(None), *(slice(None, None, s) for s in self.strides))
        taps = tuple(slice(None, None, d) for d in self.dilations)
        chosen = windows[(*steps, *taps)]  # [batch, channels, out..., kernel...]
        batch, channels = chosen.shape[:2]
        grouped = chosen.reshape(batch, self.groups, channels // self.groups, *chosen.shape[2:])
        order = (1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
        columns = channels // self.groups * int(np.prod(self.kernel))
        return grouped.transpose(order).reshape(self.groups, -1, columns)

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
