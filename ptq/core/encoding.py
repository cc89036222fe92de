"""How a weight is stored: integers on a grid, or places in a table of reals.

What is asked of a weight is answered here; its integers are the business of solvers, lowering and codecs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import (
    FloatArray,
    IntArray,
    QuantParams,
    dequantize,
    expand,
    nearest_level,
    nearest_place,
    quantize,
)
from ptq.core.storage import Alphabet, Storage, Words, place_bits
from ptq.core.widths import Widths

Ends = tuple[FloatArray, FloatArray]


@dataclass(frozen=True)
class IntegerWeight:
    """Weight of integers that kernels multiply: real = scale * (code - zero point).

    Attributes:
        codes: Integers within `limits`, int8. Shape [out, in].
        params: Scales and zero points; its spec is the grid that most weights have.
        storage: Form in which the codes lie in a file.
    """

    codes: IntArray
    params: QuantParams
    storage: Storage

    @staticmethod
    def of(codes: IntArray, params: QuantParams, widths: Widths | None = None) -> IntegerWeight:
        """Put codes into words: as long as the spec of their grid says, or each as long as `widths` says."""
        return IntegerWeight(codes, params, Words(params.spec.num_bits if widths is None else widths))

    @staticmethod
    def stack(parts: Sequence[IntegerWeight]) -> IntegerWeight:
        """Put weights one below the other. All have scales for each row, one grid, and words of one length."""
        codes = np.concatenate([part.codes.astype(np.int8, copy=False) for part in parts])
        scale, zero = (np.concatenate([getattr(part.params, key) for part in parts]) for key in ("scale", "zero_point"))
        return replace(parts[0], codes=codes, params=replace(parts[0].params, scale=scale, zero_point=zero))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of output features and of inputs."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def scale(self) -> NDArray[np.float32]:
        """Real units per code. Shape [], [out], or [out, blocks]."""
        return self.params.scale

    @property
    def num_bits(self) -> int:
        """Word length in the file; where it differs from weight to weight, the one that most have."""
        return self.storage.num_bits if isinstance(self.storage, Alphabet) else self.params.spec.num_bits

    @property
    def widths(self) -> Widths | None:
        """Bits of each weight; None where all words have one length."""
        lengths = self.storage.lengths if isinstance(self.storage, Words) else None
        return lengths if isinstance(lengths, Widths) else None

    @property
    def limits(self) -> Ends:
        """Smallest and largest code that each weight could have. Shapes [out, in], or [] if all are alike."""
        if isinstance(self.storage, Alphabet):
            low, high = self.storage.levels[[0, -1]]
        elif self.widths is not None:
            return self.widths.limits(narrow_range=self.params.spec.narrow_range)
        else:
            low, high = self.params.spec.limits
        return np.asarray(low, np.float64), np.asarray(high, np.float64)

    def decode(self) -> NDArray[np.float32]:
        """Compute the weight that the model will compute with. Shape [out, in], real units."""
        return dequantize(self.codes, self.params)

    def size_in_bits(self) -> int:
        """Count the bits of the codes as they are stored, plus scales at 32 bits each."""
        return self.storage.size_in_bits(self.shape) + self.params.scale.size * 32

    def zeros(self) -> int:
        """Count the weights that are 0, whatever code stands for it."""
        return int(np.count_nonzero(self.codes == self._expanded(self.params.zero_point)))

    def num_levels(self) -> int:
        """Count the different codes that are used."""
        used = np.bincount(self.codes.reshape(-1).view(np.uint8), minlength=256)
        return int(np.count_nonzero(used))

    def reach(self) -> NDArray[np.int64]:
        """Sum the magnitudes of each row: the most that inputs of one code can make of it. Shape [out]."""
        zero = self._expanded(self.params.zero_point).astype(np.int64)
        return np.asarray(np.abs(self.codes.astype(np.int64) - zero).sum(1))

    def ends(self) -> tuple[float, float]:
        """Return the smallest and the largest real that any weight could be."""
        low, high = self._ends()
        return float(np.min(low)), float(np.max(high))

    def covers(self, weight: FloatArray) -> NDArray[np.bool_]:
        """Find the weights that lie within their levels, or less than half a step outside. Shape [out, in]."""
        (low, high), scale = self._ends(), self._expanded(self.params.scale)
        below, above = (half * scale for half in self._half_steps())
        return np.asarray((weight >= low - below) & (weight <= high + above))

    def widest_step(self) -> NDArray[np.float32]:
        """Return the largest distance of two neighboring levels. Shape [] or [out], real units."""
        scale = self.params.scale.max(1) if self.params.scale.ndim == 2 else self.params.scale
        gap = np.diff(self.storage.levels).max(initial=1) if isinstance(self.storage, Alphabet) else 1
        return np.asarray(scale * np.float32(gap))

    def nearest(self, weight: FloatArray) -> IntegerWeight:
        """Round another weight to the same grid. Shape [out, in]."""
        scale = self._expanded(self.params.scale).astype(np.float64)
        if isinstance(self.storage, Alphabet):
            codes: IntArray = self.storage.levels[nearest_place(weight / scale, self.storage.levels)]
        elif self.widths is None:
            codes = quantize(weight, self.params)
        else:
            codes = nearest_level(weight / scale, *self.limits).astype(np.int8)
        return replace(self, codes=codes)

    def raised(self, least: FloatArray, weight: FloatArray, limits: Ends | None = None) -> tuple[IntegerWeight, int]:
        """Raise scales that are too small; rows whose scale stays keep their codes.

        Args:
            least: Smallest scales that will do, real units per code. Shape [out].
            weight: Reals that the other rows are rounded from. Shape [out, in].
            limits: Levels that the codes must not leave. Shapes [out, in]; None if they may take all.

        Returns:
            The weight, and how many scales were raised.
        """
        least = least if self.scale.ndim else np.asarray(least.max(initial=0.0))
        low = self.scale < least
        if not low.any():
            return self, 0
        scale = np.where(low, least, self.scale).astype(np.float32)
        params = replace(self.params, scale=scale)
        codes = replace(self, params=params).nearest(weight).codes
        if limits is not None:
            codes = np.clip(codes, *limits).astype(codes.dtype)
        again = np.broadcast_to(low[..., None], codes.shape)
        return replace(self, codes=np.where(again, codes, self.codes), params=params), int(low.sum())

    def scaled(self, factor: float) -> IntegerWeight:
        """Multiply the weight by a positive number: the scales take it, the codes stay."""
        return replace(self, params=replace(self.params, scale=(self.scale * np.float32(factor)).astype(np.float32)))

    def rows(self, chosen: slice) -> IntegerWeight:
        """Return a part of the rows as a weight. All have scales of their own, and words of one length."""
        params = replace(self.params, scale=self.params.scale[chosen], zero_point=self.params.zero_point[chosen])
        return replace(self, codes=self.codes[chosen], params=params)

    def _ends(self) -> Ends:
        scale, zero = self._expanded(self.params.scale), self._expanded(self.params.zero_point).astype(np.float64)
        low, high = ((code - zero) * scale for code in self.limits)
        return low, high

    def _half_steps(self) -> tuple[float, float]:
        """Return half the distance to the neighbor of the smallest and of the largest level, in scales."""
        if not isinstance(self.storage, Alphabet) or len(self.storage.levels) < 2:
            return 0.5, 0.5
        gaps = np.diff(self.storage.levels.astype(np.float64))
        return float(gaps[0] / 2), float(gaps[-1] / 2)

    def _expanded(self, per_scale: NDArray[Any]) -> NDArray[Any]:
        return expand(per_scale, self.codes.shape, self.params.spec.granularity)


@dataclass(frozen=True)
class LookupWeight:
    """Weight of places in a table of reals, for float kernels: real = table[index], decoded when the session opens.

    Attributes:
        indices: Places in the table, uint8. Shape [out, in].
        table: Reals, ascending; layers that have the same one share it in the file. Shape [at most 256], float32.
    """

    indices: NDArray[np.uint8]
    table: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of output features and of inputs."""
        return self.indices.shape[0], self.indices.shape[1]

    @property
    def num_bits(self) -> int:
        """Word length of an index, bits."""
        return place_bits(len(self.table))

    @property
    def widths(self) -> None:
        """None, as all words have one length."""
        return

    def decode(self) -> NDArray[np.float32]:
        """Compute the weight that the model will compute with. Shape [out, in], real units."""
        return np.asarray(self.table[self.indices], np.float32)

    def size_in_bits(self) -> int:
        """Count the bits of the indices at their word length, plus the table at 32 bits a number."""
        return self.indices.size * self.num_bits + self.table.size * 32

    def zeros(self) -> int:
        """Count the weights that are 0."""
        return int(np.count_nonzero(self.table[self.indices] == 0))

    def num_levels(self) -> int:
        """Count the different reals that are used."""
        return int(np.count_nonzero(np.bincount(self.indices.reshape(-1), minlength=256)))

    def reach(self) -> NDArray[np.int64]:
        """Return 0 for each row, as nothing is summed in integers. Shape [out]."""
        return np.zeros(len(self.indices), np.int64)

    def ends(self) -> tuple[float, float]:
        """Return the smallest and the largest real that any weight could be."""
        return float(self.table[0]), float(self.table[-1])

    def covers(self, weight: FloatArray) -> NDArray[np.bool_]:
        """Find the weights that lie within the table, or less than half a step outside. Shape [out, in]."""
        steps = np.diff(self.table.astype(np.float64)) / 2 if len(self.table) > 1 else np.zeros(1)
        return np.asarray((weight >= self.table[0] - steps[0]) & (weight <= self.table[-1] + steps[-1]))

    def widest_step(self) -> NDArray[np.float32]:
        """Return the largest distance of two neighbors in the table. Shape [], real units."""
        return np.asarray(np.diff(self.table).max(initial=0.0), np.float32)

    def nearest(self, weight: FloatArray) -> LookupWeight:
        """Round another weight to the reals of the same table. Shape [out, in]."""
        return replace(self, indices=nearest_place(weight, self.table).astype(np.uint8))


WeightEncoding = IntegerWeight | LookupWeight
"""Every way to store a weight. Methods are open, encodings are closed: lowering matches on this union."""
