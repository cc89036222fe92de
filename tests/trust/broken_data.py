"""Calibration sets that do not fit, lie, explode or block: refused before the first run, by name."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.builders import random
from tests.trust.broken_files import Canary
from tests.trust.cases import SAMPLES, Stage, broken, each, either

Array = np.ndarray[Any, Any]
X = random((SAMPLES, 3, 8, 8), 7, 1.0)


def _with(index: int, value: float) -> Array:
    array = X.copy()
    array[index, 1, 2, 3] = value
    return array


ARRAYS: dict[str, dict[str, Any]] = {
    "another name": {"z": X},
    "no array": {},
    "one array too many": {"x": X, "mask": X},
    "labels alone": {"labels": np.zeros(SAMPLES, np.int64)},
    "doubles": {"x": X.astype(np.float64)},
    "halves": {"x": X.astype(np.float16)},
    "bytes": {"x": X.astype(np.uint8)},
    "booleans": {"x": X > 0},
    "complex numbers": {"x": X.astype(np.complex64)},
    "text": {"x": X.astype("U8")},
    "dates": {"x": X.astype(np.int64).astype("datetime64[s]")},
    "records": {"x": np.zeros((SAMPLES, 3, 8, 8), np.dtype([("a", np.float32)]))},
    "5 channels": {"x": np.ones((SAMPLES, 5, 8, 8), np.float32)},
    "channels last": {"x": np.ones((SAMPLES, 8, 8, 3), np.float32)},
    "a single image": {"x": X[0]},
    "flat images": {"x": X.reshape(SAMPLES, -1)},
    "a number": {"x": np.float32(1)},
    "no sample": {"x": X[:0]},
    "images of no rows": {"x": np.ones((SAMPLES, 3, 0, 8), np.float32)},
    "labels of another count": {"x": X, "labels": np.zeros(SAMPLES - 1, np.int64)},
    "labels of fractions": {"x": X, "labels": np.full(SAMPLES, 0.5)},
    "NaN in the first sample": {"x": _with(0, np.nan)},
    "NaN in the last sample": {"x": _with(SAMPLES - 1, np.nan)},
    "NaN in a sample held out": {"x": _with(7, np.nan)},
    "infinity in one sample": {"x": _with(5, np.inf)},
    "minus infinity in one sample": {"x": _with(5, -np.inf)},
    "NaN everywhere": {"x": X * np.nan},
}


@each(lambda name: broken(f"data: {name}", "d.npz"), ARRAYS)
def arrays(stage: Stage, given: dict[str, Any]) -> None:
    stage.put_works()
    stage.put_data(**given)


TWO = """net (float[N, 4] left, float[N, 4] right) => (float[N, 4] y) {
    a = MatMul (left, weight)
    y = Add (a, right)
}"""
FOUR = np.ones((9, 4), np.float32)


@each(
    lambda name: broken(f"data for two inputs: {name}", "d.npz"),
    {
        "one is missing": {"left": FOUR},
        "different counts": {"left": FOUR, "right": FOUR[:8]},
        "one is empty": {"left": FOUR, "right": FOUR[:0]},
        "names with other cases": {"Left": FOUR, "Right": FOUR},
    },
)
def two_inputs(stage: Stage, given: dict[str, Array]) -> None:
    stage.put_text(TWO, {"weight": random((4, 4))})
    stage.put_data(**given)


@broken("data for two inputs: a bare array", "d.npy", "left")
def bare_array(stage: Stage) -> None:
    stage.put_text(TWO, {"weight": random((4, 4))})
    np.save(stage.inputs / "d.npy", FOUR)
    stage.data = stage.inputs / "d.npy"


IDS = """net (int64[N, S] ids) => (float[N, S, 4] y) {
    h = Gather (table, ids)
    y = MatMul (h, weight)
}"""


@each(
    lambda name: broken(f"tokens: {name}", "d.npz", "ids"),
    {"beyond the table": 99, "far below the table": -99, "2^62": 2**62},
)
def tokens(stage: Stage, token: int) -> None:
    stage.put_text(IDS, {"table": random((9, 4)), "weight": random((4, 4))})
    stage.put_data(ids=np.full((5, 6), token, np.int64))


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(text: str, body: bytes = X.tobytes(), *, version: int = 1, length: int | None = None) -> bytes:
    """A .npy file whose header says what it likes."""
    line = text.encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(line) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + line + body


def claim(shape: str, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}"


HEADERS: dict[str, bytes] = {
    "2^40 samples": header(claim("(1099511627776, 3, 8, 8)")),
    "768 GiB": header(claim("(1073741824, 3, 8, 8)")),
    "a shape that overflows": header(claim("(4294967296, 4294967296, 8, 8)")),
    "a shape that overflows to the right size": header(claim("(9223372036854775809, 3, 8, 16)")),
    "a negative extent": header(claim("(-12, 3, 8, 8)")),
    "two negative extents": header(claim("(-12, -3, 8, 8)")),
    "a fraction": header(claim("(12.0, 3, 8, 8)")),
    "a shape that is a number": header(claim("12")),
    "True samples": header(claim("(True, 36, 8, 8)")),
    "fewer samples than bytes": header(claim("(11, 3, 8, 8)")),
    "objects": header(claim("(12, 3, 8, 8)", "|O")),
    "a type nobody knows": header(claim("(12, 3, 8, 8)", "<q9")),
    "a type of no bytes": header(claim("(12, 3, 8, 8)", "|V0")),
    "a type of 2 GiB": header(claim("(1,)", "|V2147483647")),
    "no keys": header("{}"),
    "a key too many": header(claim("(12, 3, 8, 8)")[:-1] + ", 'more': 1}"),
    "no dictionary": header("[1, 2, 3]"),
    "code": header("__import__('os').mkdir('hatched')"),
    "9000 brackets": header("(" * 9000),
    "9000 minus signs": header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 9000 + "1,)}"),
    "a number of 9000 digits": header(claim("(" + "9" * 9000 + ",)")),
    "a header of 2 GiB": header(claim("(12, 3, 8, 8)"), version=2, length=2**31 - 1),
    "a header of 4 GiB": header(claim("(12, 3, 8, 8)"), version=2, length=2**32 - 1),
    "a header of no bytes": header("", length=0),
    "a header longer than the file": header(claim("(12, 3, 8, 8)"), b"", length=60000),
    "version 9": header(claim("(12, 3, 8, 8)"), version=9),
    "a NUL": header(claim("(12, 3, 8, 8)\0")),
    "bytes that are no text": header(claim("(12, 3, 8, 8)")).replace(b"descr", b"\xff\xfe\xff\xfe\xff"),
    "half of the samples": npy(X)[: X.nbytes // 2],
    "only the magic word": b"\x93NUMPY",
    "no magic word": b"NUMPY" + npy(X)[6:],
    "a pickle of an array": pickle.dumps(X),
    "nothing": b"",
}


@each(lambda name: broken(f"npy: {name}", "d.npy"), HEADERS)
def npy_file(stage: Stage, contents: bytes) -> None:
    stage.put_works()
    stage.data = stage.inputs / "d.npy"
    stage.data.write_bytes(contents)


@each(
    lambda name: broken(f"npz: member with {name}", "d.npz"),
    {name: HEADERS[name] for name in ("2^40 samples", "a negative extent", "objects", "a header of 2 GiB", "code")},
)
def lying_member(stage: Stage, contents: bytes) -> None:
    stage.put_works()
    zipped(stage, ("x.npy", contents))


def zipped(stage: Stage, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with zipfile.ZipFile(stage.inputs / "d.npz", "w", method) as archive:
            for name, contents in members:
                archive.writestr(name, contents)


def _flag(stage: Stage, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a stored archive."""
    zipped(stage, ("x.npy", npy(X)), method=zipfile.ZIP_STORED)
    path = stage.inputs / "d.npz"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def _encrypt(data: bytearray) -> None:
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1


def _spoil(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def _method(data: bytearray) -> None:
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 77


def _larger(data: bytearray) -> None:
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = struct.pack("<I", 2**32 - 2)


def _cut(data: bytearray) -> None:
    del data[-30:]


def _offset(data: bytearray) -> None:
    place = data.index(b"PK\x01\x02") + 42
    data[place : place + 4] = struct.pack("<I", 2**31)


@each(
    lambda name: broken(f"npz: {name}", "d.npz"),
    {
        "encrypted": _encrypt,
        "a wrong checksum": _spoil,
        "an unknown compression": _method,
        "a size that is not so": _larger,
        "no end": _cut,
        "an offset past the end": _offset,
    },
)
def archive(stage: Stage, change: Callable[[bytearray], None]) -> None:
    stage.put_works()
    _flag(stage, change)


@each(
    lambda name: broken(f"npz: {name}", "d.npz"),
    {
        "a member twice": [("x.npy", npy(X)), ("x.npy", npy(X))],
        "a member and its name without suffix": [("x.npy", npy(X)), ("x", npy(X))],
        "a member one folder up": [("../../x.npy", npy(X))],
        "a member with an absolute name": [("/tmp/x.npy", npy(X))],
        "a member that is no array": [("x.npy", b"hello")],
        "a member of no bytes": [("x.npy", b"")],
        "a text member": [("x.npy", npy(X)), ("readme.txt", b"hello")],
        "5000 members": [(f"a{i}.npy", npy(X[0, 0, 0])) for i in range(5000)],
    },
)
def members(stage: Stage, given: list[tuple[str, bytes]]) -> None:
    stage.put_works()
    zipped(stage, *given)


@each(lambda name: broken(f"npz: pickled objects in {name}", "d.npz"), {"an input": "x", "an unused array": "more"})
def pickled(stage: Stage, name: str) -> None:
    stage.put_works()
    trap = np.array([Canary(stage.root / "hatched")], object)
    given = {"x": X, name: trap}
    zipped(stage, *((f"{key}.npy", npy(value)) for key, value in given.items()))


@each(lambda name: broken(f"data: a bare pickle as {name}", "d."), {"npz": "d.npz", "npy": "d.npy", "pkl": "d.pkl"})
def bare_pickle(stage: Stage, name: str) -> None:
    stage.put_works()
    stage.data = stage.inputs / name
    stage.data.write_bytes(pickle.dumps(Canary(stage.root / "hatched")))


BLOCK = bytes(3 * 2**23)


def _bomb(stage: Stage, shape: str, blocks: int) -> None:
    """A member that inflates a thousandfold: one flushed block of zeros again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = header(claim(shape), b"")
    start = packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(BLOCK) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.crc32(text)
    for _ in range(blocks):
        checksum = zlib.crc32(BLOCK, checksum)
    body = start + zeros * blocks + packer.flush()
    facts = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, checksum, len(body), blocks * len(BLOCK) + len(text))
    local = b"PK\x03\x04" + facts + struct.pack("<HH", 5, 0) + b"x.npy" + body
    central = b"PK\x01\x02" + struct.pack("<H", 20) + facts + struct.pack("<HHHHHII", 5, 0, 0, 0, 0, 0, 0) + b"x.npy"
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    (stage.inputs / "d.npz").write_bytes(local + central + end)


@broken("npz: bomb with samples of another shape", "d.npz")
def bomb(stage: Stage) -> None:
    stage.put_works()
    _bomb(stage, f"(40, 3, {len(BLOCK) // 12}, 1)", 40)


@either("npz: bomb in one sample of free size", "d.npz")
def bomb_that_fits(stage: Stage) -> None:
    text = "net (float[N, 1, M] x) => (float[N, 4, 1] y) { a = Conv (x, w)  y = GlobalMaxPool (a) }"
    stage.put_text(text, {"w": random((4, 1, 3))})
    _bomb(stage, f"(1, 1, {4 * len(BLOCK) // 4})", 4)
    stage.feeds = stage.feeds[:1]


@either("npz: bomb of samples that fit", "d.npz")
def bomb_of_samples(stage: Stage) -> None:
    stage.put_works()
    _bomb(stage, f"({40 * len(BLOCK) // 768}, 3, 8, 8)", 40)
    stage.feeds = [{"x": np.zeros((1, 3, 8, 8), np.float32)}]


def _sparse(stage: Stage) -> None:
    with (stage.inputs / "data.npz").open("wb") as file:
        file.truncate(2**31)


def _pipe(stage: Stage) -> None:
    os.mkfifo(stage.inputs / "data.npz")


@each(
    lambda name: broken(f"data file: {name}", "data.npz"),
    {
        "missing": lambda stage: None,
        "a pipe": _pipe,
        "a link to itself": lambda stage: (stage.inputs / "data.npz").symlink_to("data.npz"),
        "a link to a device": lambda stage: (stage.inputs / "data.npz").symlink_to("/dev/zero"),
        "empty": lambda stage: (stage.inputs / "data.npz").write_bytes(b""),
        "text": lambda stage: (stage.inputs / "data.npz").write_text("1,2,3\n"),
        "random bytes": lambda stage: (stage.inputs / "data.npz").write_bytes(np.random.default_rng(1).bytes(3000)),
        "an empty archive": lambda stage: np.savez(stage.inputs / "data.npz"),
        "an empty folder": lambda stage: (stage.inputs / "data.npz").mkdir(),
        "2 GiB of nothing": _sparse,
    },
)
def data_file(stage: Stage, make: Callable[[Stage], object]) -> None:
    stage.put_works()
    stage.data = stage.inputs / "data.npz"
    make(stage)


@broken("data file: a suffix nobody knows", "d.h5")
def suffix(stage: Stage) -> None:
    stage.put_works()
    stage.data = stage.inputs / "d.h5"
    stage.data.write_bytes(b"")
