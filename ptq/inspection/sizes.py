"""Search for a size of sample that a model takes, where the model leaves extents open and no data is given."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from ptq.calibration.reader import FREE_EXTENT, FREE_SIDE, random_data
from ptq.core.arrays import Feed
from ptq.core.errors import InputError
from ptq.models.probe import require_survivable
from ptq.models.sessions import RunError, run, session_of
from ptq.models.source import InputSpec, input_specs, runnable_source

SIDES = (FREE_SIDE, 32, 640, 28, 256, 64, 96, 128, 227, 299, 384, 512)
"""Sides of images that networks are made for; of networks that halve several times, multiples of 32 among them."""

EXTENTS = (FREE_EXTENT, 3, 1, 2, 4, 8, 32, 64, 80, 100, 128, 256, 512, 768, 1000, 1024, 4096, 16000)
"""Lengths, and numbers of features or channels; beside sides of images the first three."""

SECONDS = 30.0
"""Longest that is tried."""

Key = tuple[str, int] | str
"""Name of an open extent, or input and axis of one without a name."""


@dataclass(frozen=True)
class _Open:
    """Open extents of a model besides batches: sides of images, and others."""

    sides: tuple[Key, ...]
    others: tuple[Key, ...]

    @staticmethod
    def of(specs: Sequence[InputSpec]) -> _Open:
        """Sort the open extents of inputs."""
        found: dict[Key, bool] = {}
        for spec in specs:
            for axis, extent in enumerate(spec.shape or ()):
                if axis and not isinstance(extent, int):
                    is_side = len(spec.shape or ()) == 4 and spec.dtype.kind == "f" and axis >= 2
                    found.setdefault(extent or (spec.name, axis), is_side)
        return _Open(tuple(k for k, side in found.items() if side), tuple(k for k, side in found.items() if not side))

    def guesses(self) -> Iterator[Mapping[Key, int]]:
        """Yield sizes, the likeliest first: all alike, then one of them twice as large as the others."""
        plain = dict.fromkeys(self.sides, FREE_SIDE) | dict.fromkeys(self.others, FREE_EXTENT)
        tried = itertools.product(SIDES, EXTENTS[:3]) if self.sides else itertools.product(SIDES[:1], EXTENTS)
        sizes = [dict.fromkeys(self.sides, side) | dict.fromkeys(self.others, other) for side, other in tried]
        sizes += [plain | {key: 2 * plain[key]} for key in plain if len(plain) > 1]
        seen = list[Mapping[Key, int]]()
        for each in [plain, *sizes]:
            if each not in seen:
                seen.append(each)
                yield each


def fitting_sample(model: ir.Model, custom_ops: Sequence[str | Path] = ()) -> Feed:
    """Make up a sample of a size that the model takes.

    Args:
        model: The model.
        custom_ops: Libraries it needs.

    Returns:
        Random numbers, with the first sizes on which it runs.

    Raises:
        InputError: It runs on none of those that were tried, or no size is open.
    """
    specs, form = input_specs(model), runnable_source(model, model)
    start, first, guesses = time.perf_counter(), "", list(_Open.of(specs).guesses())
    for sizes in guesses:
        (sample,) = random_data([_sized(spec, sizes) for spec in specs], 1, 0)
        require_survivable(form, sample.feed, custom_ops)
        if not sizes:
            return sample.feed
        with session_of(form, custom_ops=custom_ops) as session:
            try:
                run(session, dict(sample.feed))
            except RunError as error:
                first = first or str(error)
            else:
                return sample.feed
        if time.perf_counter() - start > SECONDS:
            break
    told = "; ".join(str(spec) for spec in specs if any(not isinstance(extent, int) for extent in spec.shape or ()))
    raise InputError(f"no likely size fits the open extents of {told}; give a sample (--data): {first}")


def _sized(spec: InputSpec, sizes: Mapping[Key, int]) -> InputSpec:
    """Return an input with its open extents filled in."""
    if spec.shape is None:
        return spec
    shape = (
        n if isinstance(n, int) or not axis else sizes.get(n or (spec.name, axis), n)
        for axis, n in enumerate(spec.shape)
    )
    return replace(spec, shape=tuple(shape))
