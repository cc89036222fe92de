"""Photographs out of packages, and lines, pages and riddles of letters, drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tests.released.fetch import Cache, Member, Package
from tests.released.texts import words

Floats = NDArray[np.float32]
SKIMAGE = Package("scikit-image", "0.26.0")
SKLEARN = Package("scikit-learn", "1.9.1")
MATPLOTLIB = Package("matplotlib", "3.11.2")
GRADIO = Package("gradio", "4.44.1")
ULTRALYTICS = Package("ultralytics", "8.4.190")
INSIGHTFACE = Package("insightface", "2.1")
PHOTOS = (  # to calibrate with; to evaluate with
    [
        *(Member(SKIMAGE, f"skimage/data/{name}") for name in ("astronaut.png", "coffee.png", "motorcycle_left.png")),
        Member(SKIMAGE, "skimage/data/retina.jpg"),
        Member(SKLEARN, "sklearn/datasets/images/china.jpg"),
        Member(ULTRALYTICS, "ultralytics/assets/bus.jpg"),
        *(Member(GRADIO, f"gradio/test_data/{name}") for name in ("lion.jpg", "cheetah1.jpg")),
    ],
    [
        *(Member(SKIMAGE, f"skimage/data/{name}") for name in ("chelsea.png", "rocket.jpg", "ihc.png")),
        Member(SKLEARN, "sklearn/datasets/images/flower.jpg"),
        Member(ULTRALYTICS, "ultralytics/assets/zidane.jpg"),
        Member(INSIGHTFACE, "insightface/data/images/t1.jpg"),
        Member(MATPLOTLIB, "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
        Member(GRADIO, "gradio/test_data/cheetah2.jpg"),
    ],
)
FACES = "DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold", "DejaVuSerif-Italic", "STIXGeneral", "cmr10"


@dataclass(frozen=True)
class Pixels:
    """How a network wants an image: its sides, and what becomes of a number from 0 to 255."""

    height: int
    width: int
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (255.0,)
    bgr: bool = False
    channels_last: bool = False

    def of(self, image: Image.Image) -> Floats:
        gray = image.mode == "L"
        numbers = np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR), np.float32)
        numbers = numbers[..., None] if gray else numbers[..., ::-1] if self.bgr else numbers
        numbers = (numbers - np.float32(self.mean)) / np.float32(self.std)
        return (numbers if self.channels_last else numbers.transpose(2, 0, 1))[None]


def photos(cache: Cache, part: int, count: int) -> list[Image.Image]:
    """Parts of photographs, of any size, some mirrored, darker or paler."""
    whole = [Image.open(io.BytesIO(cache.read(member))).convert("RGB") for member in PHOTOS[part]]
    rng = np.random.default_rng(part)
    found = []
    for index in range(count):
        image = whole[index % len(whole)]
        side = int(min(image.size) * rng.uniform(0.35, 1))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        cut = image.crop((left, top, left + side, top + side))
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut
        gain, offset = rng.uniform(0.7, 1.2), rng.uniform(-15, 15)
        found.append(cut.point(lambda value, a=gain, b=offset: value * a + b))
    return found


def fonts(cache: Cache, size: int) -> list[ImageFont.FreeTypeFont]:
    files = [cache.read(Member(MATPLOTLIB, f"matplotlib/mpl-data/fonts/ttf/{name}.ttf")) for name in FACES]
    return [ImageFont.truetype(io.BytesIO(file), size) for file in files]


def _colors(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Paper and ink: mostly dark on pale."""
    pale, dark = rng.integers(190, 256, 3), rng.integers(0, 90, 3)
    pair = tuple(int(v) for v in pale), tuple(int(v) for v in dark)
    return pair if rng.random() < 0.85 else pair[::-1]


def _worn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What a camera does to it: blur and grain."""
    blurred = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.8))))
    grain = rng.normal(0, rng.uniform(1, 9), (*image.size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(blurred) + grain, 0, 255).astype(np.uint8))


def lines(cache: Cache, part: int, count: int, size: tuple[int, int]) -> list[Image.Image]:
    """Lines of text, one an image, as a reader finds them cut out: left, in full height."""
    rng, faces, vocabulary = np.random.default_rng(10 + part), fonts(cache, 34), words(part)
    found = []
    for index in range(count):
        paper, ink = _colors(rng)
        text = " ".join(rng.choice(vocabulary, rng.integers(1, 4)))
        text = text if rng.random() < 0.7 else f"{rng.integers(0, 10**6)}-{text[:6].upper()}"
        image = Image.new("RGB", (600, 48), paper)
        ImageDraw.Draw(image).text((6, int(rng.integers(0, 7))), text, ink, faces[index % len(faces)])
        width = int(np.clip(faces[index % len(faces)].getlength(text) + 12, 60, 600))
        line = image.crop((0, 0, width, 48)).resize((min(width, size[0]), size[1]))
        whole = Image.new("RGB", size, (127, 127, 127))
        whole.paste(_worn(line, rng), (0, 0))
        found.append(whole)
    return found


def pages(cache: Cache, part: int, count: int, size: tuple[int, int]) -> list[Image.Image]:
    """Pages: headings, paragraphs and sometimes a photograph."""
    rng, vocabulary = np.random.default_rng(20 + part), words(part)
    sizes = [fonts(cache, height) for height in (14, 18, 24, 34)]
    pictures = photos(cache, part, count)
    found = []
    for index in range(count):
        paper, ink = _colors(rng)
        image = Image.new("RGB", size, paper)
        draw, top = ImageDraw.Draw(image), int(rng.integers(4, 20))
        face = int(rng.integers(len(FACES)))
        if rng.random() < 0.5:
            side = int(rng.integers(60, 160))
            image.paste(pictures[index].resize((side, side)), (size[0] - side - 8, size[1] - side - 8))
        while top < size[1] - 40:
            height = int(rng.integers(0, 4))
            text = " ".join(rng.choice(vocabulary, rng.integers(2, 9)))
            draw.text(
                (int(rng.integers(6, 40)), top), text[: int(size[0] / (8 + 3 * height))], ink, sizes[height][face]
            )
            top += (22, 28, 38, 52)[height] + int(rng.integers(0, 24))
        found.append(_worn(image.rotate(float(rng.normal(0, 1.5)), fillcolor=paper), rng))
    return found


def riddles(cache: Cache, part: int, count: int, size: tuple[int, int]) -> list[Image.Image]:
    """Letters and digits, turned and crossed out, that are to keep machines away."""
    rng, faces = np.random.default_rng(30 + part), fonts(cache, int(size[1] * 0.6))
    letters = np.array(list("abcdefghkmnpqrstuvwxyz23456789ABCDEFGHKLMNPRSTUVWXYZ"))
    found = []
    for _ in range(count):
        image = Image.new("RGB", size, _colors(rng)[0])
        text = rng.choice(letters, rng.integers(4, 6))
        step = size[0] // (len(text) + 1)
        for place, letter in enumerate(text):
            tile = Image.new("L", (size[1], size[1]))
            ImageDraw.Draw(tile).text(
                (size[1] // 4, size[1] // 8), str(letter), 255, faces[int(rng.integers(len(faces)))]
            )
            ink = Image.new("RGB", tile.size, tuple(int(v) for v in rng.integers(0, 160, 3)))
            image.paste(
                ink, (step // 4 + place * step, int(rng.integers(-4, 5))), tile.rotate(float(rng.normal(0, 15)))
            )
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 4))):
            ends = [(int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))) for _ in range(2)]
            draw.line(ends, tuple(int(v) for v in rng.integers(60, 200, 3)), 2)
        found.append(_worn(image, rng))
    return found
