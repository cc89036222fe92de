"""Data at URLs is the same stream as local data; what cannot be read is one line, and nothing stays behind."""

from __future__ import annotations

import functools
import gc
import io
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from ptq.calibration import remote
from ptq.calibration.reader import open_data
from ptq.cli import main
from ptq.core.errors import InputError
from ptq.models.source import InputSpec
from tests.trust.cases import Stage

IMAGE = [InputSpec("x", np.dtype(np.float32), ("N", 3, 4, 4))]
TOKENS = [InputSpec("ids", np.dtype(np.int64), ("B", "S"))]


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies lie."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its URL on a server that knows no ranges."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def images(count: int = 5, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def values(reader: Any) -> np.ndarray:
    return np.concatenate([sample.feed["x"] for sample in reader])


def test_files_are_read_like_local_ones_and_go_with_the_reader(memory: Any, temp: Path) -> None:
    x = images()
    memory.pipe("/bucket/d.npz", npz(x=x, labels=np.arange(5)))
    reader = open_data("memory://bucket/d.npz", IMAGE)
    assert reader.description == "npz file d.npz"
    for _ in range(2):
        np.testing.assert_array_equal(values(reader), x)
    assert [sample.label for sample in reader] == list(range(5))
    assert list(temp.iterdir())
    started = iter(reader)
    next(started)
    del reader
    gc.collect()
    assert len(list(started)) == 4
    del started
    gc.collect()
    assert not list(temp.iterdir())


def test_tokens(memory: Any, temp: Path) -> None:
    memory.pipe("/t.jsonl", b'{"ids": [1, 2]}\n{"ids": [3]}\n')
    assert [sample.feed["ids"].tolist() for sample in open_data("memory://t.jsonl", TOKENS)] == [[[1, 2]], [[3]]]


def test_only_images_that_are_read_are_copied(memory: Any, temp: Path) -> None:
    for name, value in {"cat/a.png": 1, "cat/b.png": 2, "dog/c.png": 3, "dog/d.png": 4}.items():
        memory.pipe(f"/photos/{name}", png(value))
    memory.pipe("/photos/notes.txt", b"?" * 1000)
    reader = open_data("memory://photos", IMAGE, limit=3)
    assert reader.description == "image folder images"
    found = [(round(float(sample.feed["x"].max() * 255)), sample.label) for sample in reader]
    assert found == [(1, 0), (3, 1), (2, 0)]
    sizes = {path.name: path.stat().st_size > 0 for path in temp.rglob("*") if path.is_file()}
    assert sizes == {"a.png": True, "b.png": True, "c.png": True, "d.png": False}


def test_labels_may_name_files_in_roundabout_ways(memory: Any, temp: Path) -> None:
    memory.pipe("/photos/a.png", png(7))
    memory.pipe("/photos/labels.csv", b"file,label\n./../images/a.png,3\n")
    assert [sample.label for sample in open_data("memory://photos", IMAGE)] == [3]


def test_names_that_lead_elsewhere_are_not_copied(temp: Path) -> None:
    inside = {"/p/a.png": "a.png", "/p/c/b.png": "c/b.png"}
    outside = ["/p/../b.png", "/p/c/d/e.png", "/q/a.png", "/p//etc/a.png", "/p/", "/p", "/p/\0a.png"]
    assert {name: str(remote._inner(name, "/p")) for name in inside} == inside
    assert [remote._inner(name, "/p") for name in outside] == [None] * len(outside)


def test_servers_without_ranges_are_read_as_a_stream(served: tuple[Path, str], temp: Path) -> None:
    pytest.importorskip("aiohttp")
    folder, url = served
    (folder / "d.npz").write_bytes(npz(x=images(3, 800)))  # larger than a block
    (folder / "a.png").write_bytes(png(9))
    wide = [InputSpec("x", np.dtype(np.float32), ("N", 3, 800, 800))]
    assert len(values(open_data(f"{url}/d.npz?key=secret", wide))) == 3
    assert len(values(open_data(f"{url}/", IMAGE))) == 1
    with pytest.raises(InputError, match="404"):
        open_data(f"{url}/e.npz", IMAGE)


def test_file_urls_are_paths(tmp_path: Path, temp: Path) -> None:
    path = tmp_path / "a b.npz"
    path.write_bytes(npz(x=images()))
    np.testing.assert_array_equal(values(open_data(path.as_uri(), IMAGE)), images())
    assert not list(temp.iterdir())


def _too_large(memory: Any, patch: pytest.MonkeyPatch) -> str:
    memory.pipe("/d.npz", npz(x=images()))
    patch.setattr(remote._Source, "__init__", functools.partialmethod(remote._Source.__init__, left=99))
    return "memory://d.npz"


def _too_many(memory: Any, patch: pytest.MonkeyPatch) -> str:
    for index in range(3):
        memory.pipe(f"/p/{index}.png", png(index))
    patch.setattr(remote, "MAX_FILES", 2)
    return "memory://p"


def _not_installed(_memory: Any, patch: pytest.MonkeyPatch) -> str:
    patch.setitem(sys.modules, "fsspec.core", None)
    return "s3://bucket/d.npz"


def _broken(memory: Any, _patch: pytest.MonkeyPatch) -> str:
    memory.pipe("/d.npz", b"no zip file")
    return "memory://d.npz"


FAULTS: dict[str, tuple[str | Callable[[Any, pytest.MonkeyPatch], str], str]] = {
    "no such file": ("memory://bucket/d.npz", "memory://bucket/d.npz: no such file"),
    "no such folder": ("memory://nowhere", "memory://nowhere: no image in it"),
    "unknown protocol": ("abc://u:secret@x/d.npz?secret", "abc://x/d.npz: cannot read it (Protocol not known: abc)"),
    "library missing": ("gs://bucket/d.npz", "gs://bucket/d.npz: cannot read it (Please install gcsfs"),
    "fsspec missing": (_not_installed, 'run pip install "ptq[remote]"'),
    "no server": ("http://127.0.0.1:9/d.npz", "http://127.0.0.1:9/d.npz: cannot read it"),
    "chained": ("zip://d.npz::file:///etc/x.zip", "chained"),
    "another machine": ("file://there/d.npz", "file on another machine"),
    "no host": ("http://[", "http://["),
    "no machine": ("file://[", "file on another machine"),
    "an address of version 6": ("abc://[::1]/d.npz", "Protocol not known"),
    "another name of local files": ("local:///d.npz", "neither"),
    "too large": (_too_large, "more than"),
    "too many": (_too_many, "3 images; expected at most 2"),
    "broken": (_broken, "d.npz is not a readable npz file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(name: str, memory: Any, temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, words = FAULTS[name]
    if name == "no server":
        pytest.importorskip("aiohttp")
    url = given if isinstance(given, str) else given(memory, monkeypatch)
    with pytest.raises(InputError) as raised:
        list(open_data(url, IMAGE))
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)
    assert str(temp) not in str(raised.value)
    assert "\n" not in str(raised.value)
    gc.collect()
    assert not list(temp.iterdir())


def test_command_line(memory: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage.at(tmp_path / "stage")
    stage.put_works()
    assert stage.data
    memory.pipe("/d.npz", stage.data.read_bytes())
    hashes = set()
    for data in (str(stage.data), stage.data.as_uri(), "memory://d.npz"):
        assert _code(["quantize", str(stage.model), "--data", data, "-o", str(stage.output), "-q"]) == 0
        hashes.add((stage.output.read_bytes(), Path(f"{stage.output}.card.json").read_bytes()))
    assert len(hashes) == 1
    arguments = ["quantize", str(stage.model), "--data", "memory://e.npz", "-o", str(stage.output)]
    assert _code(arguments) == 2
    assert capfd.readouterr().err == "error: memory://e.npz: no such file or folder; check the URL\n"
    assert _code(["quantize", str(stage.model), "--data", stage.data.as_uri(), "-o", str(stage.data)]) == 2
    assert "it is also the input" in capfd.readouterr().err


def _code(arguments: list[str]) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(arguments, prog_name="ptq")
    return ended.value.code
