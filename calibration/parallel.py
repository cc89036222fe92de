"""Items worked on side by side in threads, results in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Iterator[R]:
    """Map a function over items in threads; the input is never read far ahead.

    Args:
        function: Called in threads.
        items: Consumed one after the other.
        num_workers: Threads.

    Yields:
        Results in the order of the items.
    """
    with ThreadPoolExecutor(num_workers) as pool:
        flight: deque[Future[R]] = deque()
        try:
            for item in items:
                flight.append(pool.submit(function, item))
                if len(flight) > num_workers:
                    yield flight.popleft().result()
            while flight:
                yield flight.popleft().result()
        finally:
            for future in flight:
                future.cancel()
