"""Ranges of values, each searched for once: a run asks for most of them twice, one that tunes again and again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable

from ptq.calibration.observers import Observer
from ptq.core.affine import Range
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram

KNOWN = 1024
"""Ranges that are remembered, the latest ones."""

_known: OrderedDict[Hashable, Range] = OrderedDict()
_lock = threading.Lock()


def range_of(observer: Observer, statistics: Histogram, spec: QuantSpec) -> Range:
    """Return the range that an observer chooses; for statistics that are equal it is not searched for again.

    Args:
        observer: The method.
        statistics: The tensor.
        spec: The grid that the range will be turned into.
    """
    seen = hashlib.blake2b(statistics.bins.tobytes(), digest_size=16)
    seen.update(statistics.counts.tobytes())
    key = (observer, spec, seen.digest(), statistics.rmin, statistics.rmax)
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
    found = observer.choose_range(statistics, spec)
    with _lock:
        _known[key] = found
        while len(_known) > KNOWN:
            _known.popitem(last=False)
    return found
