"""Folders of images that cannot be trusted."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.trust.cases import Stage, broken, each, odd


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG file that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", size), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GOOD = png(8, 8, (b"\0" + bytes(range(24))) * 8)
IMAGES: dict[str, bytes] = {
    "text": b"not an image",
    "empty": b"",
    "half of one": GOOD[:60],
    "a bomb of 10^10 pixels": png(100_000, 100_000),
    "a bomb of 10^8 pixels": png(10_000, 10_000, bytes(30_010_000)),
    "no pixels": png(8, 8),
    "no extent": png(0, 0),
    "2^31 wide": png(2**31 - 1, 1),
    "a script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
}


def folder(stage: Stage) -> Path:
    """A folder with three good images as the calibration set."""
    stage.put_works()
    stage.data = stage.inputs / "images"
    stage.data.mkdir()
    for index in range(3):
        (stage.data / f"good{index}.png").write_bytes(GOOD)
    return stage.data


@each(lambda name: broken(f"images: {name}", "bad.png"), IMAGES)
def image(stage: Stage, contents: bytes) -> None:
    (folder(stage) / "bad.png").write_bytes(contents)


def _only_text(path: Path) -> None:
    for each_path in path.iterdir():
        each_path.unlink()
    (path / "readme.txt").write_text("none here")


def _outside(path: Path) -> None:
    (path / "labels.csv").write_text("file,label\n../../elsewhere/secret.png,1\n")


@each(
    lambda name: broken(f"images: {name}", "images", "labels.csv"),
    {
        "none in the folder": _only_text,
        "labels.csv names one outside": _outside,
        "labels.csv names a missing one": lambda path: (path / "labels.csv").write_text("file,label\nno.png,1\n"),
        "labels.csv without columns": lambda path: (path / "labels.csv").write_text("good0.png;1\n"),
        "labels.csv with text labels": lambda path: (path / "labels.csv").write_text("file,label\ngood0.png,cat\n"),
        "labels.csv is no text": lambda path: (path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1\n"),
        "labels.csv is empty": lambda path: (path / "labels.csv").write_bytes(b""),
        "labels.csv is a pipe": lambda path: os.mkfifo(path / "labels.csv"),
        "labels.csv is a folder": lambda path: (path / "labels.csv").mkdir(),
    },
)
def labels(stage: Stage, make: Callable[[Path], object]) -> None:
    make(folder(stage))


@odd("images: of another size than the model takes")
def size(stage: Stage) -> None:
    folder(stage)
    for index in range(3):
        (stage.inputs / f"images/good{index}.png").write_bytes(png(9, 9, (b"\0" + bytes(27)) * 9))
    stage.feeds = [{"x": np.zeros((1, 3, 8, 8), np.float32)}]


@each(
    lambda name: broken(f"images: {name}", name.split()[0], f"{name.split()[0][2:]} 100", "folder images: x holds NaN"),
    {
        "--resize 0": ["--resize", "0"],
        "--resize wide": ["--resize", "wide"],
        "--crop 9x9x9": ["--crop", "9x9x9"],
        "--crop 100": ["--crop", "100"],
        "--mean 1,2": ["--mean", "1,2"],
        "--mean nan,nan,nan": ["--mean", "nan,nan,nan"],
        "--std 0,1,1": ["--std", "0,1,1"],
        "--std inf,1,1": ["--std", "inf,1,1"],
        "--scale nan": ["--scale", "nan"],
        "--scale inf": ["--scale", "inf"],
        "--scale much": ["--scale", "much"],
        "--layout nope": ["--layout", "nope"],
        "--resize 999999": ["--resize", "999999"],
    },
)
def options(stage: Stage, given: list[str]) -> None:
    folder(stage)
    stage.options = given
