"""A model run over many samples in segments: each node runs once per sample, however many values are observed.

Between two segments the values that are still to be read are kept in an `ArrayStore`. Weights are read when their
segment starts, so that a layer may be changed as long as no segment with it has run: cost is linear in depth where
running from the start for every layer would be quadratic.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.parallel import in_order
from ptq.calibration.store import ArrayStore
from ptq.models.sessions import run, session_of

IR_VERSION = 10


@dataclass(frozen=True)
class _Segment:
    """The nodes between two stops.

    Attributes:
        nodes: In dataflow order.
        reads: Values taken from the store.
        writes: Values put into it.
        frees: Values nobody reads after this segment.
        stops: Values asked for.
    """

    nodes: tuple[int, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    frees: tuple[str, ...]
    stops: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values that the segment's session returns."""
        return tuple(dict.fromkeys([*self.writes, *(name for name in self.stops if name not in self.reads)]))


class SegmentedRun:
    """One walk through a model over a fixed set of samples.

    Args:
        model: The model. Its initializers may change between two segments.
        stops: Values wanted, one tuple per segment, in an order that dataflow allows.
        store: Where values wait between segments.
        label: Keeps the values of several walks in one store apart.
        custom_ops: Libraries the model needs.
    """

    def __init__(
        self,
        model: ir.Model,
        stops: Sequence[Sequence[str]],
        store: ArrayStore,
        label: str,
        custom_ops: Sequence[str | Path] = (),
    ) -> None:
        self._model, self._store, self._label, self._custom_ops = model, store, label, tuple(custom_ops)
        self._nodes = list(model.graph)
        self._segments = _segments(model, [tuple(stop) for stop in stops])
        self._done = 0
        self._live: set[str] = set()
        self.num_chunks = 0

    def feed(self, chunk: Mapping[str, NDArray[Any]]) -> None:
        """Add model inputs, which the first segment starts from."""
        for name, array in chunk.items():
            self._store.put((self._label, self.num_chunks, name), array)
        self._live |= set(chunk)
        self.num_chunks += 1

    def advance(self) -> Iterator[list[NDArray[Any]]]:
        """Run the next segment over all chunks.

        Yields:
            The values of its stop, chunk after chunk.
        """
        segment = self._segments[self._done]
        self._done += 1
        self._live = (self._live | set(segment.writes)) - set(segment.frees)
        outputs = segment.outputs
        part, mapped = self._cut(segment.nodes, segment.reads, outputs), self._mapped(segment.nodes)
        arrays = {name: tensor.numpy() for name, tensor in mapped.items()}
        opened = session_of(part, custom_ops=self._custom_ops, weights=arrays) if outputs else nullcontext()
        with opened as session:

            def forward(chunk: int) -> dict[str, NDArray[Any]]:
                held = {name: self._store.get((self._label, chunk, name)) for name in segment.reads}
                if session is None:
                    return held
                return held | dict(zip(outputs, run(session, held, outputs), strict=True))

            workers = os.cpu_count() or 1
            for chunk, values in enumerate(in_order(forward, range(self.num_chunks), workers)):
                for name in segment.writes:
                    self._store.put((self._label, chunk, name), values[name])
                for name in segment.frees:
                    self._store.drop((self._label, chunk, name))
                yield [values[name] for name in segment.stops]
        arrays.clear()
        for tensor in mapped.values():
            tensor.release()

    def _mapped(self, indices: Sequence[int]) -> dict[str, ir.ExternalTensor]:
        """Find the weights of some nodes that stay in their file."""
        read = {name for index in indices for name in _names_read(ir.to_proto(self._nodes[index]))}
        found = {name: value.const_value for name, value in self._model.graph.initializers.items() if name in read}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, ir.ExternalTensor)}

    def held(self, chunk: int) -> dict[str, NDArray[Any]]:
        """Return all values of a chunk that later segments read, by name."""
        return {name: self._store.get((self._label, chunk, name)) for name in self._live}

    def rest(self, computed: str) -> tuple[bytes | None, tuple[str, ...]]:
        """Cut out the nodes that are left to run, given one more value than those that are held.

        Args:
            computed: Name of that value, an input of the model that is returned; its node is left out.

        Returns:
            A model, and the names of its inputs. Its outputs are the values of the last stop that it computes; None
            if it computes none.
        """
        ahead = self._segments[self._done :]
        indices = {index for segment in ahead for index in segment.nodes}
        indices = {i for i in indices if computed not in (str(value.name) for value in self._nodes[i].outputs)}
        made = {str(value.name) for i in indices for value in self._nodes[i].outputs}
        read = {name for i in indices for name in _names_read(ir.to_proto(self._nodes[i]))}
        reads = tuple(sorted(((self._live & read) | {computed}) - made))
        outputs = tuple(name for name in ahead[-1].stops if name in made)
        return self._cut(tuple(sorted(indices)), reads, outputs) if outputs else None, reads

    def close(self) -> None:
        """Forget the values that still wait in the store."""
        for name in self._live:
            for chunk in range(self.num_chunks):
                self._store.drop((self._label, chunk, name))
        self._live = set()

    def _cut(self, indices: Sequence[int], reads: Sequence[str], outputs: Sequence[str]) -> bytes:
        """Serialize some nodes as a model of their own."""
        nodes = [ir.to_proto(self._nodes[index]) for index in indices]
        read = {name for node in nodes for name in _names_read(node)}
        graph = onnx.GraphProto(name="segment", node=nodes)
        for name, value in self._model.graph.initializers.items():
            if name in read and value.const_value is not None:
                graph.initializer.append(ir.to_proto(value.const_value))
        for name in reads:
            graph.input.append(self._input(name))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        model = onnx.ModelProto(ir_version=max(self._model.ir_version, IR_VERSION), graph=graph)
        for domain, version in self._model.opset_imports.items():
            model.opset_import.add(domain=domain, version=version)
        data: bytes = model.SerializeToString()
        return data

    def _input(self, name: str) -> onnx.ValueInfoProto:
        """Describe type and rank of an input: of the value that waits in the store, or as the model says."""
        if (self._label, 0, name) in self._store:
            array = self._store.get((self._label, 0, name))
            kind, rank = ir.TensorType(ir.DataType.from_numpy(array.dtype)), array.ndim
            return ir.to_proto(ir.Value(name=name, shape=ir.Shape([None] * rank), type=kind))
        value = next(value for node in self._nodes for value in node.outputs if value.name == name)
        shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
        return ir.to_proto(ir.Value(name=name, shape=shape, type=value.type))


def _segments(model: ir.Model, stops: list[tuple[str, ...]]) -> list[_Segment]:
    """Assign each node to the first segment whose stop depends on it."""
    graph = model.graph
    nodes = list(graph)
    reads = [_names_read(ir.to_proto(node)) for node in nodes]
    producer = {str(value.name): i for i, node in enumerate(nodes) for value in node.outputs}
    fixed = _constant_nodes(reads, producer, {str(value.name) for value in graph.inputs})
    pieces, done = [], set[int]()
    for stop in stops:
        pieces.append(_ancestors(stop, reads, producer, done))
        done |= pieces[-1]
    taken = [_taken(piece, stop, reads, producer, fixed) for piece, stop in zip(pieces, stops, strict=True)]
    inputs = {str(value.name) for value in graph.inputs}
    names = [frozenset(name for name in each if name in producer or name in inputs) for each in taken]
    last = {name: k for k, each in enumerate(names) for name in each}
    segments, live = [], set[str]()
    for k, piece in enumerate(pieces):
        made = {str(value.name) for i in piece if i not in fixed for value in nodes[i].outputs}
        writes = tuple(sorted(name for name in made if last.get(name, -1) > k))
        enters = tuple(sorted(names[k] - made))
        live |= set(enters) | set(writes)
        frees = tuple(sorted(name for name in live if last[name] == k and name not in made))
        live -= set(frees)
        needed = piece | _ancestors([n for i in piece for n in reads[i]], reads, producer, set(), fixed)
        segments.append(_Segment(tuple(sorted(needed)), enters, writes, frees, stops[k]))
    return segments


def _taken(
    piece: set[int], stop: tuple[str, ...], reads: list[set[str]], producer: Mapping[str, int], fixed: set[int]
) -> set[str]:
    """Return the values that a segment reads or stops at, without those of constant nodes."""
    named = {name for i in piece for name in reads[i]} | set(stop)
    return {name for name in named if producer.get(name, -1) not in fixed}


def _constant_nodes(reads: list[set[str]], producer: Mapping[str, int], inputs: set[str]) -> set[int]:
    """Return the nodes that depend on initializers alone: segments run them again rather than store their values."""
    fixed = set[int]()
    for i, names in enumerate(reads):  # dataflow order
        if not names & inputs and all(name not in producer or producer[name] in fixed for name in names):
            fixed.add(i)
    return fixed


def _ancestors(
    names: Iterable[str],
    reads: list[set[str]],
    producer: Mapping[str, int],
    done: set[int],
    within: set[int] | None = None,
) -> set[int]:
    """Return the nodes that values depend on, without those that ran already."""
    ancestors, stack = set[int](), [producer[name] for name in names if name in producer]
    while stack:
        index = stack.pop()
        if index in ancestors or index in done or (within is not None and index not in within):
            continue
        ancestors.add(index)
        stack += [producer[name] for name in reads[index] if name in producer]
    return ancestors


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, those that its subgraphs take from outside included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            inner = {name for each in graph.node for name in _names_read(each)}
            own = {name for each in graph.node for name in each.output} | {value.name for value in graph.input}
            names |= inner - own - {tensor.name for tensor in graph.initializer}
    return names
