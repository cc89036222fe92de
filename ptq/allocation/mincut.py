"""Division of things into two kinds at the least cost.

A thing costs more as one kind than as the other, and neighbors of different kinds cost extra: a minimum cut, found as
a maximum flow.

Source: Ford and Fulkerson, "Maximal flow through a network" (1956); paths of fewest edges first, as in Edmonds and
Karp (1972).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

FORBIDDEN = float("inf")
TINY = 1e-12


@dataclass
class Division:
    """Division problem under construction.

    Example:
        >>> problem = Division()
        >>> problem.cost("a", here=1.0, there=5.0)
        >>> problem.cost("b", here=3.0, there=2.0)
        >>> problem.apart("a", "b", 4.0)
        >>> sorted(problem.solve())
        ['a', 'b']
    """

    _room: dict[Hashable, dict[Hashable, float]] = field(default_factory=dict)

    def cost(self, thing: Hashable, here: float, there: float) -> None:
        """Add the costs of a thing on either side.

        Args:
            thing: Any name.
            here: Cost of its being in the set that `solve` returns; `FORBIDDEN` keeps it out.
            there: Cost of its not being in it.
        """
        self._edge(_SOURCE, thing, there)
        self._edge(thing, _SINK, here)

    def apart(self, inside: Hashable, outside: Hashable, cost: float) -> None:
        """Add a cost if one is in the set and the other is not; `FORBIDDEN` makes the second follow the first."""
        self._edge(inside, outside, cost)

    def solve(self) -> set[Hashable]:
        """Find the set of least cost; of several such sets the smallest."""
        while path := self._path():
            room = min(self._room[a][b] for a, b in path)
            if room == FORBIDDEN:
                raise ValueError("every division is forbidden")
            for a, b in path:
                self._room[a][b] -= room
                self._room[b][a] += room
        return self._reached().keys() - {_SOURCE}

    def _edge(self, a: Hashable, b: Hashable, cost: float) -> None:
        if cost < 0:
            raise ValueError(f"cost {cost}; expected at least 0")
        self._room.setdefault(a, {}).setdefault(b, 0.0)
        self._room.setdefault(b, {}).setdefault(a, 0.0)
        self._room[a][b] += cost

    def _reached(self) -> dict[Hashable, Hashable]:
        """Return everything that flow can still reach from the source -> where it comes from."""
        came: dict[Hashable, Hashable] = {_SOURCE: _SOURCE}
        queue = deque([_SOURCE])
        while queue:
            here = queue.popleft()
            for there, room in self._room.get(here, {}).items():
                if room > TINY and there not in came:
                    came[there] = here
                    queue.append(there)
        return came

    def _path(self) -> list[tuple[Hashable, Hashable]]:
        """Find a way from source to sink with room for more; empty if there is none."""
        came = self._reached()
        path, here = [], _SINK
        while here in came and here != _SOURCE:
            path.append((came[here], here))
            here = came[here]
        return path


_SOURCE, _SINK = object(), object()
