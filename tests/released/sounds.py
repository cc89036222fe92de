"""Speech, recorded and synthesized, noises and music, and what networks of sound want of them."""

from __future__ import annotations

import ctypes
import io
import wave
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tests.released.fetch import Cache, Member, Package
from tests.released.images import GRADIO
from tests.released.texts import sentences

Floats = NDArray[np.float32]
RATE = 16_000
ESPEAK = Package("espeakng-loader", "0.2.4")
RECORDINGS = (  # to calibrate with; to evaluate with
    Member(Package("pyannote-audio", "4.0.7"), "pyannote/audio/sample/sample.wav"),
    Member(Package("useful-moonshine-onnx", "20251121"), "moonshine_onnx/assets/beckett.wav"),
)
MUSIC = Member(GRADIO, "gradio/_frontend_code/component-test/src/lib/images/cantina.wav")
VOICES = ("en-us", "en-gb+f2", "en-us+m3", "en-us+f4"), ("en-gb", "en-us+f3", "en-gb+m5", "en-us+m7")
NUM_SENTENCES = 48


def recording(cache: Cache, member: Member) -> tuple[Floats, int]:
    with wave.open(io.BytesIO(cache.read(member))) as file:
        numbers = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return numbers.astype(np.float32) / 32768, file.getframerate()


def resampled(sound: Floats, rate: int, wanted: int) -> Floats:
    times = np.arange(0, len(sound) / rate, 1 / wanted)
    return np.interp(times, np.arange(len(sound)) / rate, sound).astype(np.float32)


def synthesized(cache: Cache, part: int) -> list[Floats]:
    """Sentences as a machine says them with voices of its own."""
    inside = "espeakng_loader/"
    for name in cache.names(ESPEAK):
        if name.startswith(inside):
            folder = cache.unpacked(Member(ESPEAK, name))
    while folder.name != "espeakng_loader":
        folder = folder.parent
    library, pieces = ctypes.CDLL(str(folder / "libespeak-ng.so.1")), list[NDArray[np.int16]]()
    rate = library.espeak_Initialize(2, 0, str(folder).encode(), 0)  # 2: synchronous, nothing is played

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def keep(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(keep)
    found = []
    for index, text in enumerate(sentences(part, NUM_SENTENCES)):
        pieces.clear()
        library.espeak_SetVoiceByName(VOICES[part][index % 4].encode())
        data = text.encode() + b"\0"
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, 1, None, None)
        library.espeak_Synchronize()
        found.append(resampled(np.concatenate(pieces).astype(np.float32) / 32768, rate, RATE))
    return found


@lru_cache
def speech(cache: Cache, part: int) -> Floats:
    """Minutes of speech with pauses: a recording, cut into pieces, between sentences of a synthesizer."""
    rng, (real, _) = np.random.default_rng(part), recording(cache, RECORDINGS[part])
    pieces = []
    for sentence in synthesized(cache, part):
        start, length = int(rng.integers(0, len(real) - RATE)), int(rng.integers(RATE, 4 * RATE))
        pieces += [real[start : start + length], np.zeros(int(rng.integers(1000, RATE)), np.float32)]
        pieces += [sentence * np.float32(0.6), np.zeros(int(rng.integers(1000, RATE // 2)), np.float32)]
    return np.concatenate(pieces)


def noise(rng: np.random.Generator, count: int) -> Floats:
    """Noise of some color, sometimes with a hum."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** rng.choice([0.0, 0.5, 1.0])
    found = np.fft.irfft(spectrum, count)
    if rng.random() < 0.4:
        found += found.std() * np.sin(np.arange(count) * rng.uniform(0.02, 0.3))
    return (found / found.std()).astype(np.float32)


def clips(cache: Cache, part: int, count: int, length: int) -> Floats:
    """Windows of speech in noise, louder or softer, at most 1 in size. Shape [count, length]."""
    rng, whole = np.random.default_rng(70 + part), speech(cache, part)
    found = np.zeros((count, length), np.float32)
    for index in range(count):
        start = int(rng.integers(0, len(whole) - length))
        clean = whole[start : start + length]
        level = float(np.sqrt(np.mean(np.square(clean)))) + 1e-4
        noisy = clean + noise(rng, length) * np.float32(level * 10 ** rng.uniform(-2.5, 0.1))
        found[index] = noisy * np.float32(rng.uniform(0.3, 1.5))
    return np.clip(found, -1, 1)


def struck(rng: np.random.Generator, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """A string with its overtones, from some moment on."""
    pitch, after = 440 * 2 ** (rng.integers(-30, 25) / 12), np.maximum(time - rng.uniform(0, time[-1]), 0)
    found = np.zeros_like(time)
    for overtone in range(1, 7):
        fade = np.exp(-after * overtone * rng.uniform(0.5, 3)) * (after > 0) / overtone ** rng.uniform(0.7, 2)
        found += fade * np.sin(2 * np.pi * pitch * overtone * after)
    return found


def chords(cache: Cache, part: int, count: int, length: int, rate: int) -> Floats:
    """Music: struck strings in chords, every fourth clip a band. Shape [count, length]."""
    rng, (band, _) = np.random.default_rng(80 + part), recording(cache, MUSIC)
    time, half, found = np.arange(length) / rate, len(band) // 2, np.zeros((count, length), np.float32)
    for index in range(count):
        if index % 4 == 3:
            start = part * half + int(rng.integers(0, max(half - length, 1)))
            played = np.resize(band[start : (part + 1) * half], length).astype(np.float64)
        else:
            played = sum((struck(rng, time) for _ in range(int(rng.integers(4, 14)))), np.zeros(length))
        played /= max(np.abs(played).max(), 1e-3) * rng.uniform(1.1, 4)
        found[index] = played + noise(rng, length) * 10 ** rng.uniform(-4, -2.5)
    return found


def log_spectra(sounds: Floats, window: int = 512) -> Floats:
    """Log power of half overlapping windows over 20. Shape [count, frames, window / 2 + 1]."""
    frames = np.lib.stride_tricks.sliding_window_view(sounds, window, 1)[:, :: window // 2]
    power = np.square(np.abs(np.fft.rfft(frames * np.hamming(window + 1)[:-1], window)))
    return (np.log(np.maximum(power, 1e-12)) / 20).astype(np.float32)


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2595 * np.log10(1 + hertz / 700)


def mel_spectra(sounds: Floats, bands: int = 160, window: int = 513, hop: int = 256) -> Floats:
    """Decibels below the loudest of triangular bands, (dB + 40) / 40. Shape [count, frames, bands]."""
    frames = np.lib.stride_tricks.sliding_window_view(sounds, window, 1)[:, ::hop]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(window), window)))
    bins = _mel(np.linspace(0, RATE / 2, power.shape[-1]))
    edges = np.linspace(0, bins[-1], bands + 2)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    energy = power @ np.maximum(np.minimum(rising, falling), 0).T + 1e-10
    decibels = np.maximum(10 * np.log10(energy / energy.max((1, 2), keepdims=True)), -80)
    return ((decibels + 40) / 40).astype(np.float32)
