"""Calibration data at URLs: copied to a temporary folder, file by file, where the readers of local files take over.

fsspec knows the protocols; what a server says of names and sizes is not believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.request import url2pathname

from ptq.core.errors import InputError
from ptq.files.scratch import scratch_folder

MAX_BYTES, MAX_FILES = 2**35, 100_000  # of one data set
BLOCK = 2**22
URL = re.compile(r"(?!file:)[A-Za-z][\w+.-]+://")


@dataclass(frozen=True)
class Copy:
    """A copy, on this machine, of data at a URL.

    Attributes:
        url: Without passwords and queries, for messages.
        path: The file, or a folder in which files are empty until they are fetched.
        fetch: Brings a file of the folder.
        remove: Deletes all of it.
    """

    url: str
    path: Path
    fetch: Callable[[Path], None]
    remove: Callable[[], None]


def is_url(source: object) -> bool:
    """Whether something names data on another machine, or in another system's memory."""
    return isinstance(source, str) and URL.match(source) is not None


def local_path(source: str) -> Path | None:
    """Return the path that a file:// URL or a plain path names; None for other URLs.

    Raises:
        InputError: The file:// URL names another machine.
    """
    if is_url(source):
        return None
    if not source.startswith("file://"):
        return Path(source)
    machine, slash, path = source.removeprefix("file://").partition("/")
    if machine not in ("", "localhost"):
        raise InputError(f"{source[:300]}: a file on another machine; expected file:///PATH")
    return Path(url2pathname(slash + path))


def copy_of(url: str, suffixes: tuple[str, ...], images: frozenset[str], labels: str) -> Copy:
    """Copy a file, or prepare to copy the images of a folder one by one.

    Args:
        url: Of any protocol that fsspec has.
        suffixes: Of names that are files; all others are folders.
        images: Suffixes of names that count in a folder, and in its subfolders.
        labels: Name of the file that goes with them, fetched at once.

    Returns:
        The copy; the caller removes it.

    Raises:
        InputError: fsspec or the protocol's library is missing, or nothing can be read there.
    """
    shown = re.sub(r"//[^/]*@", "//", url.partition("?")[0])[:300]
    system, root = _system(url, shown)
    folder = scratch_folder()
    place, source = Path(folder.name).resolve(), _Source(system, shown)
    path = place / PurePosixPath(url.partition("?")[0]).name
    try:
        if path.suffix.lower() in suffixes:
            source.fetch(root, path)
            return Copy(shown, path, lambda _path: None, folder.cleanup)
        path = place / "images"
        names = source.mirror(root, path, images | {labels}, labels)
    except BaseException:
        folder.cleanup()
        raise

    def fetch(wanted: Path) -> None:
        wanted = wanted.resolve()  # tables of labels may name files in roundabout ways
        if wanted in names and not wanted.stat().st_size:
            source.fetch(names[wanted], wanted)

    return Copy(shown, path, fetch, folder.cleanup)


def _system(url: str, shown: str) -> tuple[Any, str]:
    """Return the URL's file system, and the path within it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise InputError(f'{shown}: URLs need fsspec; run pip install "ptq[remote]"') from error
    if "::" in re.sub(r"\[.*?\]", "", url) or url.startswith("local:"):  # addresses of version 6 have brackets
        raise InputError(f"{shown}: neither chained nor local:// URLs are read; expected s3://, https:// and the like")
    with _named_errors(shown):
        system, root = url_to_fs(url)
    return system, str(root)


@dataclass
class _Source:
    """A file system of which no more than `left` bytes are copied."""

    system: Any
    shown: str
    left: int = MAX_BYTES

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file; it gets its name when it is complete."""
        part = path.with_name(f"{path.name[:80]}.part")
        stream = {"block_size": 0} if "http" in self.system.protocol else {}  # not every server can be asked for parts
        with _named_errors(self.shown), self.system.open(name, "rb", **stream) as file, part.open("wb") as copy:
            while block := file.read(BLOCK):
                self.left -= len(block)
                if self.left < 0:
                    raise ValueError(f"more than {MAX_BYTES} bytes; download what is needed of it")
                copy.write(block)
        part.replace(path)

    def mirror(self, root: str, folder: Path, wanted: frozenset[str], labels: str) -> dict[Path, str]:
        """Make empty files for those of a folder and its subfolders; return the remote name of each."""
        with _named_errors(self.shown):
            inner_paths = {str(name): _inner(str(name), root) for name in self.system.find(root, maxdepth=2)}
        places = {
            folder / inner: name
            for name, inner in inner_paths.items()
            if inner is not None and (inner.suffix.lower() in wanted or inner.name == labels)
        }
        if len(places) > MAX_FILES:
            raise InputError(f"{self.shown}: {len(places)} images; expected at most {MAX_FILES}, name a part of them")
        folder.mkdir()
        with _named_errors(self.shown):
            for path in places:
                path.parent.mkdir(exist_ok=True)
                path.touch()
        if folder / labels in places:
            self.fetch(places[folder / labels], folder / labels)
        return places


def _inner(name: str, root: str) -> PurePosixPath | None:
    """Return the path within the folder; None for a file outside of it."""
    inner = PurePosixPath(name.removeprefix(root.rstrip("/") + "/"))
    inside = name.startswith(root.rstrip("/") + "/") and not inner.is_absolute() and 1 <= len(inner.parts) <= 2
    return inner if inside and not {"..", "\0"} & {*inner.parts, *str(inner)} else None


@contextmanager
def _named_errors(shown: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every protocol has its own library, and the network all kinds of failures
        cause: BaseException = error
        while isinstance(cause, FileNotFoundError) and cause.__cause__:  # what fsspec makes of any failure
            cause = cause.__cause__
        if isinstance(cause, FileNotFoundError):
            raise InputError(f"{shown}: no such file or folder; check the URL") from error
        reason = " ".join(re.sub(r"\?\S+", "", str(cause)).split())[:200] or type(cause).__name__
        raise InputError(f"{shown}: cannot read it ({reason}); check URL, network and credentials") from error
