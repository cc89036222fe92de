"""Handwritten digits as images for the demo network: UCI's optical digits, test set, as scikit-learn ships them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MODEL = Path(__file__).with_name("digits.onnx")
DIGITS = Path(__file__).with_name("digits.npz")
"""`images`, shape [1797, 8, 8], 0..16, and `labels`, shape [1797], 0..9, both uint8."""

SIDE = 32
TRAIN, CALIBRATION = 1000, 256
MEAN, STD = 0.305, 0.377  # of the training images before upscaling, pixels in 0..1


@dataclass(frozen=True)
class Digits:
    """A set of images and their classes.

    Attributes:
        images: Shape [samples, 1, 32, 32], float32, normalized.
        labels: Shape [samples], 0..9, int64.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write an .npz as the command line reads it."""
        np.savez(path, image=self.images, labels=self.labels)


def load() -> tuple[Digits, Digits, Digits]:
    """Load the 1797 digits, shuffled once and for all.

    Returns:
        Training set (1000), calibration set (its first 256), and evaluation set (the other 797).
    """
    with np.load(DIGITS) as raw:
        images, labels = raw["images"], raw["labels"]
    order = np.random.default_rng(0).permutation(len(labels))
    digits = Digits(upscale(images[order]), labels[order].astype(np.int64))
    parts = (slice(0, TRAIN), slice(0, CALIBRATION), slice(TRAIN, None))
    train, calibration, evaluation = (Digits(digits.images[part], digits.labels[part]) for part in parts)
    return train, calibration, evaluation


def upscale(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Upscale images bilinearly to 32x32, and normalize them.

    Args:
        images: Shape [samples, 8, 8], 0..16.

    Returns:
        Shape [samples, 1, 32, 32].
    """
    size = images.shape[-1]
    at = np.clip((np.arange(SIDE) + 0.5) * size / SIDE - 0.5, 0, size - 1)
    low = np.minimum(at.astype(int), size - 2)
    matrix = np.zeros((SIDE, size))
    matrix[np.arange(SIDE), low] = 1 - (at - low)
    matrix[np.arange(SIDE), low + 1] = at - low
    large = matrix @ (images / 16) @ matrix.T
    return ((large - MEAN) / STD)[:, None].astype(np.float32)
