"""Delivery of the finished model: packed once, verified as a file, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx
import onnx_ir as ir

from ptq.core.errors import InputError
from ptq.files.scratch import Scratch, clear, owned, scratch_folder, signals_later
from ptq.models.source import INLINE_BYTES, ModelSource, external_files, fingerprint, runnable_source, weight_bytes
from ptq.models.validation import tensors_of
from ptq.passes.modules import forget_modules

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

DATA_SUFFIX = ".data"
REJECTED = ".rejected.onnx"
"""Suffix of the model's path under which a model goes that did not pass, to be looked at."""

PRODUCTS = ("", ".card.json", ".card.md", ".bench.json", DATA_SUFFIX, REJECTED)
"""Suffixes of the model's path under which a run writes."""


@dataclass(frozen=True)
class Delivery:
    """A quantized model, ready to be written.

    Attributes:
        model: The graph.
        data: Its serialized form; None when it is too large for one file and its weights go beside it.
    """

    model: ir.Model
    data: bytes | None

    @property
    def num_bytes(self) -> int:
        """Size of the model on disk."""
        return len(self.data) if self.data is not None else weight_bytes(self.model)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file, or of the graph without weights when those are stored beside it."""
        return fingerprint(self.data) if self.data is not None else ""

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """Write the model to a temporary folder as the file it will be, and give its path."""
        with scratch_folder() as folder:
            path = Path(folder) / "model.onnx"
            try:
                self.write(path)
            except OSError as error:
                raise InputError(f"cannot write a temporary file in {folder}: {cause_of(error)}") from error
            yield path

    def write(self, path: Path) -> None:
        """Write the model, and beside it what does not fit into one file."""
        if self.data is not None:
            path.write_bytes(self.data)
        else:
            ir.save(self.model.clone(), path, external_data=path.name + DATA_SUFFIX)


def pack(model: ir.Model, metadata: Mapping[str, str]) -> Delivery:
    """Serialize a lowered model.

    Args:
        model: The quantized graph; its own metadata is kept.
        metadata: Entries to add to it.

    Returns:
        The delivery.
    """
    model.metadata_props.update(metadata)
    forget_modules(model)
    _drop_inferable(model)
    constants = [value.const_value for value in model.graph.initializers.values()]
    large = weight_bytes(model) > INLINE_BYTES or any(isinstance(each, ir.ExternalTensor) for each in constants)
    return Delivery(model, None if large else ir.to_proto(model).SerializeToString(deterministic=True))


def as_it_came(source: ModelSource, model: ir.Model) -> Delivery:
    """Return a model as it came: the bytes of its file, if it is one file that had to be put right nowhere.

    Args:
        source: Where it came from.
        model: As read from there.
    """
    constants = [value.const_value for value in model.graph.initializers.values()]
    large = weight_bytes(model) > INLINE_BYTES or any(isinstance(each, ir.ExternalTensor) for each in constants)
    form = runnable_source(source, model)
    if isinstance(form, bytes):
        return Delivery(model, form)
    beside = external_files(Path(form))
    if not beside:
        return Delivery(model, Path(form).read_bytes())
    return Delivery(model, None if large else ir.to_proto(model).SerializeToString(deterministic=True))


def _drop_inferable(model: ir.Model) -> None:
    """Leave out types and shapes that every runtime infers; custom operators are opaque, so their models keep them."""
    if any(node.domain for node in model.graph):
        return
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None


class Writable(Protocol):
    """Something that can be written as a model file."""

    def write(self, path: Path) -> None:
        """Write the model, and beside it what does not fit into one file."""


def deliver(output: Path, delivery: Writable | None, cards: Mapping[str, bytes]) -> None:
    """Put a model and its cards in their places: whatever happens, the older ones are there or the new ones.

    Everything is written and synced under other names first. The model's rename is what counts; its cards follow at
    once, and hold its hash. Weights beside a model get a name that the older model does not use.

    Args:
        output: Where the model goes.
        delivery: The model; None if a goal was missed: then an older one goes, too.
        cards: Suffix of `output` -> contents.

    Raises:
        InputError: Something cannot be written. What was there is still there; only where the disk fails after the
            model's rename, the model is the new one and the message says that its card is missing.
    """
    try:
        with Scratch(owned(f".{output.name[:60]}."), ".tmp", output.parent) as name:
            staged = Path(name)
            for suffix, contents in cards.items():
                (staged / suffix).write_bytes(contents)
            if delivery is not None:
                delivery.write(staged / output.name)
            for path in staged.iterdir():
                _sync(path)
            places = {suffix: output.with_name(output.name + suffix) for suffix in cards}
            with alone_in(output.parent):
                (_withdraw if delivery is None else _exchange)(output, staged, places)
                with suppress(OSError):  # all is in its place; not every file system can sync a folder
                    _sync(output.parent)
    except OSError as error:
        raise InputError(f"cannot write {output}: {cause_of(error)}") from error


def reject(output: Path, delivery: Delivery, cards: Mapping[str, bytes]) -> None:
    """Put a model that did not pass beside its place, where it can be looked at and nobody takes it for a good one.

    Args:
        output: Where it would have gone; an older model goes from there.
        delivery: The model.
        cards: Suffix of `output` -> contents.

    Raises:
        InputError: Something cannot be written. What was there is still there.
    """
    if delivery.data is not None:
        deliver(output, None, {**cards, REJECTED: delivery.data})
        return
    deliver(output, None, cards)
    deliver(output.with_name(output.name + REJECTED), delivery, {})


def forget_rejected(output: Path) -> None:
    """Remove the model that an earlier run has put beside the place of one that passes now."""
    place = output.with_name(output.name + REJECTED)
    if place.is_file():
        deliver(place, None, {})


def cause_of(error: OSError) -> str:
    """Describe why something could not be written; libraries that write for us do not always tell."""
    return error.strerror or (str(error) if error.args and error.args[0] is not None else "the disk is full or fails")


def _exchange(output: Path, staged: Path, places: Mapping[str, Path]) -> None:
    """Exchange an older model for the new one; from its rename on there is no way back."""
    outdated = _weights_beside(output)
    weights = _place_weights(output, staged)
    try:
        (staged / output.name).replace(output)
    except OSError:
        if weights is not None and weights not in outdated:
            weights.unlink(missing_ok=True)
        raise
    for place in places.values():  # better none for a moment than those of another model
        place.unlink(missing_ok=True)
    for suffix, place in places.items():
        _move(staged / suffix, place)
    for path in outdated - {weights}:
        path.unlink(missing_ok=True)


def _withdraw(output: Path, staged: Path, places: Mapping[str, Path]) -> None:
    """Remove the older model and put cards that say why; the older cards come back if these find no place."""
    outdated = _weights_beside(output)
    older = {place: place.read_bytes() for place in places.values() if place.is_file()}
    try:
        for suffix, place in places.items():
            (staged / suffix).replace(place)
    except OSError:
        for place in places.values():
            if place in older:
                place.write_bytes(older[place])
            else:
                place.unlink(missing_ok=True)
        raise
    for path in outdated | {output}:
        path.unlink(missing_ok=True)


def _place_weights(output: Path, staged: Path) -> Path | None:
    """Move weights that lie beside the graph to a name that no other model uses, and tell the graph."""
    written = staged / (output.name + DATA_SUFFIX)
    if not written.exists():
        return None
    place = output.with_name(written.name)
    if place.exists():
        digest = hashlib.sha256()
        with written.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        place = output.with_name(f"{output.name}.{digest.hexdigest()[:8]}{DATA_SUFFIX}")
        proto = onnx.load(str(staged / output.name), load_external_data=False)
        for tensor in tensors_of(proto):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place.name
        (staged / output.name).write_bytes(proto.SerializeToString(deterministic=True))
        _sync(staged / output.name)
    written.replace(place)
    return place


def _weights_beside(output: Path) -> set[Path]:
    """Return the files of weights that an older model at the path has written beside itself."""
    hashed = re.compile(re.escape(output.name) + r"\.[0-9a-f]{8}" + re.escape(DATA_SUFFIX))
    named = output.with_name(output.name + DATA_SUFFIX)  # only if the model says so: it could be anybody's
    return {path for path in output.parent.iterdir() if hashed.fullmatch(path.name)} | (
        {named} & set(external_files(output))
    )


def _move(source: Path, place: Path) -> None:
    """Move a card whose model is in place already: by another way where the first is barred."""
    try:
        source.replace(place)
    except OSError:
        try:
            place.write_bytes(source.read_bytes())
        except OSError as error:
            raise InputError(f"the model is in place, but cannot write its card {place}: {cause_of(error)}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, and signals for later, for a moment."""
    with signals_later():
        handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
        try:
            if fcntl is not None and handle is not None:
                with suppress(OSError):  # some network file systems know no locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            if handle is not None:
                os.close(handle)


def require_writable(output: Path, inputs: Sequence[Path], suffixes: Sequence[str] = PRODUCTS) -> None:
    """Find out before the work starts whether the result can be written.

    Args:
        output: Where the model goes; its card, measurements and weights go beside it.
        inputs: Files and folders of files that must not be overwritten.
        suffixes: What is written, as suffixes of the path.

    Raises:
        InputError: One of the paths is a folder, a device or pipe, or an input, or cannot be written.
    """
    try:
        _require_writable(output, inputs, suffixes)
    except OSError as error:
        raise InputError(f"cannot write {str(output)[:300]}: {error.strerror}") from error


def require_apart(output: Path, other: Path) -> None:
    """Refuse a second output that the first would overwrite, or be overwritten by.

    Args:
        output: Where the model goes.
        other: Where the second output goes.

    Raises:
        InputError: They meet.
    """
    if other.resolve() in {output.with_name(output.name + suffix).resolve() for suffix in PRODUCTS if output.name}:
        raise InputError(f"cannot write {other}: the quantized model goes there with its cards; choose another path")


def _require_writable(output: Path, inputs: Sequence[Path], suffixes: Sequence[str]) -> None:
    for path in (output.with_name(output.name + suffix) for suffix in suffixes) if output.name else (output,):
        if not _is_there(path):
            continue
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give a file name")
        if not path.is_file():
            raise InputError(f"cannot write {path}: it is a device, a pipe or a broken link; choose another path")
        for other in inputs:
            if _is_there(other) and (path.samefile(other) or _is_image_of(path, other)):
                raise InputError(f"cannot write {path}: it is also the input {other}; choose another output path")
    if not output.parent.is_dir():
        raise InputError(f"cannot write {output}: no such folder {output.parent}; create it first")
    hidden = f".{output.name[:60]}."
    clear(output.parent, hidden)
    clear(Path(tempfile.gettempdir()), "ptq-")
    with tempfile.NamedTemporaryFile(prefix=owned(hidden), suffix=".tmp", dir=output.parent):
        pass


def _is_there(path: Path) -> bool:
    """Whether anything has the name, also a link to nothing; a name that is too long is an error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_image_of(path: Path, folder: Path) -> bool:
    """Whether a file belongs to a folder of calibration data, and is no earlier model that merely lies there."""
    within = folder.is_dir() and path.resolve().is_relative_to(folder.resolve())
    return within and not path.name.endswith((".onnx", *PRODUCTS[1:]))
