"""Folders of images as calibration data: value = (pixel * scale - mean) / std, per channel."""

from __future__ import annotations

import csv
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptq.calibration.sample import Sample
from ptq.core.errors import InputError
from ptq.models.source import InputSpec

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # a name proves nothing, and EPS would start Ghostscript
DEEP_MODES = frozenset({"F", "I", "I;16", "I;16B", "I;16L", "I;16N"})  # Pillow clips these to 255 without a word
LABELS = "labels.csv"
IMAGE_RANK = 4
MAX_SIDE = 8192


@dataclass(frozen=True)
class ImageOptions:
    """Options for turning pixels into numbers.

    Attributes:
        resize: Shorter side, or (height, width), in pixels; default: what the model's fixed extents ask for.
        crop: Center crop after it, side or (height, width).
        mean: Per channel, after scaling, in the order of `channels`.
        std: Likewise.
        scale: Factor on pixels 0..255.
        channels: Order of the channels.
        layout: Order of the axes.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 1 / 255
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"


def image_folder(
    folder: Path, spec: InputSpec, options: ImageOptions, fetch: Callable[[Path], None] = lambda _path: None
) -> tuple[Callable[[], Iterator[Sample]], int]:
    """Find the images of a folder.

    Labels are the class subfolders in sorted order, or the columns `file` and `label` of labels.csv. Classes are taken
    in turn, so that any number of leading samples covers them all.

    Args:
        folder: Holds images, or one subfolder per class.
        spec: The model's only input, of rank 4.
        options: How pixels become numbers.
        fetch: Called with each file before it is opened.

    Returns:
        A function that starts the stream of samples.

    Raises:
        InputError: The model does not take images, there are none, or Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f'{folder}: image folders need Pillow; run pip install "ptq[images]"') from error
    _require_image_input(folder, spec, options)
    _check(options)
    files = _list(folder)

    def stream() -> Iterator[Sample]:
        for path, label in files:
            fetch(path)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    warnings.simplefilter("error", Image.DecompressionBombWarning)
                    with Image.open(path, formats=FORMATS) as image:
                        array = _array(image, spec, options)
            except Exception as error:  # on a broken file Pillow's decoders raise nearly anything
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                yield Sample({}, label, f"{path.name}: not a readable image ({reason}); remove or replace it")
            else:
                yield Sample({spec.name: array}, label)

    return stream, len(files)


def _require_image_input(folder: Path, spec: InputSpec, options: ImageOptions) -> None:
    raw = options.scale == 1 and not options.mean and not options.std
    if spec.shape is None or len(spec.shape) != IMAGE_RANK or not (spec.dtype.kind == "f" or spec.dtype == np.uint8):
        raise InputError(f"{folder}: an image folder needs a float or uint8 input of rank 4; the model wants {spec}")
    if spec.dtype == np.uint8 and not raw:
        raise InputError(
            f"{folder}: the model wants {spec}, which takes pixels as they are; set scale 1, no mean or std"
        )


def _check(options: ImageOptions) -> None:
    channels = 1 if options.channels == "gray" else 3
    for name, values in (("mean", options.mean), ("std", options.std)):
        if len(values) not in (0, 1, channels):
            raise InputError(f"--{name} has {len(values)} numbers; expected one or {channels}")
    if any(value == 0 for value in options.std):
        raise InputError("--std holds 0; expected numbers other than 0")
    for name, values in (("mean", options.mean), ("std", options.std), ("scale", (options.scale,))):
        if not all(math.isfinite(value) for value in values):
            raise InputError(f"--{name} holds NaN or infinity; expected finite numbers")
    for name, goal in (("resize", options.resize), ("crop", options.crop)):
        sides = () if goal is None else (goal,) if isinstance(goal, int) else goal
        if any(not 1 <= side <= MAX_SIDE for side in sides):
            raise InputError(f"--{name} is {goal}; expected 1 to {MAX_SIDE} pixels")


def _list(folder: Path) -> list[tuple[Path, int | None]]:
    """List image files with labels, in an order that does not depend on the file system."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if classes:
        columns = [[(path, label) for path in _images(each)] for label, each in enumerate(classes)]
        turns = itertools.zip_longest(*columns)
        files: list[tuple[Path, int | None]] = [item for turn in turns for item in turn if item is not None]
    elif os.path.lexists(folder / LABELS):
        files = _labelled(folder)
    else:
        files = [(path, None) for path in _images(folder)]
    if not files:
        raise InputError(f"{folder}: no image in it; expected files such as .jpg or .png, or one subfolder per class")
    return files


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _labelled(folder: Path) -> list[tuple[Path, int | None]]:
    files: list[tuple[Path, int | None]] = []
    if not (folder / LABELS).is_file():
        raise InputError(f"{folder / LABELS}: expected a regular file; remove it if there are no labels")
    try:
        with (folder / LABELS).open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                files.append(_labelled_file(folder, row, f"{folder / LABELS}: line {number}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{folder / LABELS}: not a readable CSV file in UTF-8 ({error}); save it again") from error
    return files


def _labelled_file(folder: Path, row: Mapping[str, str], where: str) -> tuple[Path, int]:
    try:
        path, label = folder / row["file"], int(row["label"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: expected columns file and label (a number)") from error
    if "\0" in str(path) or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise InputError(f"{where}: no image {row['file']!r:.200} in the folder")
    return path, label


def _array(image: Any, spec: InputSpec, options: ImageOptions) -> NDArray[Any]:
    """Return one decoded image as the model's input."""
    if image.mode in DEEP_MODES:
        raise ValueError(f"it has mode {image.mode}; expected 8 bits per channel")
    picture = image.convert("L" if options.channels == "gray" else "RGB")
    picture = _crop(_resize(picture, _resize_goal(spec, options)), options.crop)
    values: NDArray[Any] = np.asarray(picture, np.float32)
    values = values[..., None] if values.ndim == 2 else values
    if options.channels == "bgr":
        values = values[..., ::-1]
    values = values * np.float32(options.scale)
    if options.mean:
        values = values - np.asarray(options.mean, np.float32)
    if options.std:
        values = values / np.asarray(options.std, np.float32)
    ordered = values if options.layout == "nhwc" else values.transpose(2, 0, 1)
    return np.ascontiguousarray(ordered[None], spec.dtype)


def _resize_goal(spec: InputSpec, options: ImageOptions) -> int | tuple[int, int] | None:
    if options.resize is not None or options.crop is not None or spec.shape is None:
        return options.resize
    height, width = spec.shape[2:] if options.layout == "nchw" else spec.shape[1:3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _resize(picture: Any, goal: int | tuple[int, int] | None) -> Any:
    if goal is None:
        return picture
    width, height = picture.size
    if isinstance(goal, int):
        factor = goal / min(width, height)
        goal = (max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1))
    return picture if goal == (height, width) else picture.resize((goal[1], goal[0]), resample=2)  # bilinear


def _crop(picture: Any, crop: int | tuple[int, int] | None) -> Any:
    if crop is None:
        return picture
    height, width = (crop, crop) if isinstance(crop, int) else crop
    left, top = (picture.size[0] - width) // 2, (picture.size[1] - height) // 2
    if left < 0 or top < 0:
        raise ValueError(f"it is {picture.size[1]}x{picture.size[0]}, smaller than the crop {height}x{width}")
    return picture.crop((left, top, left + width, top + height))
