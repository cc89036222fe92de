"""Executors: parts of the work run in this process, or as Ray tasks on many machines.

Parts depend on the data alone and are put together in their order, so the result has the same bits wherever they ran.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ptq.calibration.parallel import in_order
from ptq.core.errors import InputError, PtqError

C = TypeVar("C")
T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3
"""Times that a part is run again when its worker dies."""

PATIENCE_SECONDS = 3600.0
"""How long a part may take before the run is given up."""


class Executor(Protocol):
    """Something that runs parts of the work side by side."""

    def map(self, function: Callable[[C, T], R], common: C, items: Iterable[T]) -> Iterator[R]:
        """Yield function(common, item) for every item, in the items' order; items are not read far ahead."""
        ...

    def open(self) -> AbstractContextManager[None]:
        """Prepare for several maps: what takes time to start is started once, and ends with the context."""
        ...


@dataclass(frozen=True)
class Threads:
    """Threads of this process.

    Attributes:
        num_workers: Parts at once; None is one per core.
    """

    num_workers: int | None = None

    def map(self, function: Callable[[C, T], R], common: C, items: Iterable[T]) -> Iterator[R]:
        """Run the function in threads; see `Executor`."""
        return in_order(lambda item: function(common, item), items, self.num_workers or os.cpu_count() or 1)

    def open(self) -> AbstractContextManager[None]:
        """Prepare nothing: threads start at once."""
        return nullcontext()


LOCAL = Threads()


@dataclass(frozen=True)
class Ray:
    """Tasks of a Ray cluster, whose machines need this package and its dependencies.

    Attributes:
        address: Of a running cluster; None starts one on this machine, without a dashboard.
        num_workers: Parts at once; None is one per core of the cluster.
    """

    address: str | None = None
    num_workers: int | None = None

    def map(self, function: Callable[[C, T], R], common: C, items: Iterable[T]) -> Iterator[R]:
        """Run the function as tasks of the cluster; see `Executor`.

        Raises:
            InputError: Ray is not installed, cannot be reached, or lost a part again and again.
        """
        ray = _installed()
        with nullcontext() if ray.is_initialized() else self.open():
            task = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
            shared, flight = ray.put(common), deque[Any]()
            most = self.num_workers or int(ray.cluster_resources().get("CPU", 1))
            for item in items:
                flight.append(task.remote(shared, item))
                if len(flight) > most:
                    yield _result(ray, flight.popleft())
            while flight:
                yield _result(ray, flight.popleft())

    @contextmanager
    def open(self) -> Iterator[None]:
        """Connect to the cluster, or start one; disconnect when the context ends.

        Raises:
            InputError: Ray is not installed, or cannot be reached.
        """
        ray = _installed()
        self._connect(ray)
        try:
            yield
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        options: dict[str, Any] = {"num_cpus": self.num_workers} if self.address is None else {}
        try:
            ray.init(
                address=self.address or "local", include_dashboard=None if self.address else False,
                log_to_driver=False, logging_level="ERROR", configure_logging=False, **options,
            )  # fmt: skip
        except Exception as error:  # of Ray's own and of the network's many types
            where = self.address or "this machine"
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"Ray cannot be reached or started at {where}: {reason}; check --address") from error


def _installed() -> Any:
    try:
        import ray
        from ray import init as _there  # noqa: F401 - a folder that happens to be called ray is none
    except ImportError as error:
        raise InputError('--engine ray needs Ray; run pip install "ptq[ray]"') from error
    return ray


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=PATIENCE_SECONDS)
    except Exception as error:  # Ray's own is of the cause's type too, but says it with a traceback
        cause = getattr(error, "cause", None)
        if isinstance(cause, PtqError):
            raise cause from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"a part of the work failed on Ray: {reason}; run it again, or without --engine") from error
