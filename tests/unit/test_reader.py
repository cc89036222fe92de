"""Data of every kind becomes the same stream of checked samples."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.calibration.images import ImageOptions
from ptq.calibration.reader import open_data, random_data
from ptq.core.errors import InputError
from ptq.modelfile import InputSpec

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = [InputSpec("x", F32, ("N", 3, 4, 4))]
TOKENS = [InputSpec("ids", I64, ("B", "S")), InputSpec("mask", I64, ("B", "S"))]


def images(count: int = 10) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 4, 4)).astype(np.float32)


def values(reader: Any, name: str = "x") -> np.ndarray:
    return np.concatenate([sample.feed[name] for sample in reader])


class OrtReader:
    """As users of onnxruntime write them."""

    def __init__(self, x: np.ndarray) -> None:
        self._items = iter([{"x": row[None]} for row in x])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_npz_in_any_form_is_the_same_stream(tmp_path: Path, save: Any, order: str, endian: str) -> None:
    x = images()
    save(tmp_path / "d.npz", x=np.asarray(x, f"{endian}f4", order=order), labels=np.arange(10))
    reader = open_data(tmp_path / "d.npz", IMAGE)
    np.testing.assert_array_equal(values(reader), x)
    assert [sample.label for sample in reader] == list(range(10))
    assert reader.description == "npz file d.npz"


def test_every_source_is_the_same_stream(tmp_path: Path) -> None:
    x = images()
    np.save(tmp_path / "d.npy", x)
    sources: list[Any] = [
        tmp_path / "d.npy",
        x,
        {"x": x},
        [{"x": row[None]} for row in x],
        list(x[:, None]),
        OrtReader(x),
    ]
    for source in sources:
        np.testing.assert_array_equal(values(open_data(source, IMAGE)), x)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_any_batching_is_the_same_stream(sizes: list[int]) -> None:
    x = images(sum(sizes))
    batches = np.split(x, np.cumsum(sizes)[:-1])
    np.testing.assert_array_equal(values(open_data([{"x": batch} for batch in batches], IMAGE)), x)
    assert sum(1 for _ in open_data([{"x": batch} for batch in batches], IMAGE)) == sum(sizes)


def test_labels_come_along_with_batches() -> None:
    reader = open_data([({"x": images(4)}, [3, 1, 4, 1])], IMAGE)
    assert [sample.label for sample in reader] == [3, 1, 4, 1]


def test_ragged_feeds_several_inputs_and_integers() -> None:
    feeds = [{name: np.ones((1, length), np.int64) for name in ("ids", "mask")} for length in (3, 7, 5)]
    assert [sample.feed["ids"].shape for sample in open_data(feeds, TOKENS)] == [(1, 3), (1, 7), (1, 5)]


@pytest.mark.parametrize(
    ("shape", "data", "expected"),
    [
        ((1, 3), (5, 3), [(1, 3)] * 5),
        ((2, 3), (5, 3), [(2, 3)] * 2),
        ((3,), (5, 3), [(3,)] * 5),
        ((), (5,), [()] * 5),
        (("N", 3), (5, 1, 3), [(1, 3)] * 5),
        (None, (5, 3), [(1, 3)] * 5),
    ],
    ids=["batch 1", "batch 2", "no batch axis", "rank 0", "each row a batch", "unknown rank"],
)
def test_rows_become_feeds_of_the_models_shape(
    shape: tuple[Any, ...] | None, data: tuple[int, ...], expected: list[tuple[int, ...]]
) -> None:
    reader = open_data({"x": np.ones(data, np.float32)}, [InputSpec("x", F32, shape)])
    assert [sample.feed["x"].shape for sample in reader] == expected


def test_limit_is_read_first() -> None:
    def endless() -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield {"x": images(1)}

    assert sum(1 for _ in open_data(endless(), IMAGE, limit=7)) == 7


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (42, ("int", "expected")),
        ("missing.npz", ("missing.npz", "no such")),
        ([], ("no sample",)),
        ([{"y": images(1)}], ("y", "x")),
        ([{"x": images(1).astype(np.float64)}], ("float64", "float32", "astype")),
        ([{"x": np.ones((1, 2, 4, 4), np.float32)}], ("[1, 2, 4, 4]", "x")),
        ([{"x": images(1)}, {"x": images(1) * np.nan}], ("sample 1", "NaN")),
        ({"x": np.array([object()])}, ("objects",)),
    ],
)
def test_misfits_are_named(source: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        list(open_data(source, IMAGE))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_a_bare_array_needs_a_single_input() -> None:
    with pytest.raises(InputError, match=r"ids, mask"):
        open_data(images(), TOKENS)


def write_npy(path: Path, header: str, body: bytes) -> None:
    text = header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 3, 4, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 4, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 4)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "__import__('os').system('true')",
        "{" * 5000,
    ],
)
def test_lying_headers_are_refused_before_anything_is_allocated(tmp_path: Path, header: str) -> None:
    write_npy(tmp_path / "d.npy", header, bytes(3 * 4 * 4 * 4))
    with pytest.raises(InputError, match=r"d\.npy"):
        list(open_data(tmp_path / "d.npy", IMAGE))


def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="device or pipe"):
        open_data(tmp_path / "pipe.npz", IMAGE)


STREAM = """
import resource, sys
from ptq.calibration.reader import open_data
from ptq.modelfile import InputSpec
import numpy as np
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spec = [InputSpec("x", np.dtype(np.float32), ("N", 1024, 256))]
print(sum(1 for _ in open_data(sys.argv[1], spec, limit=10**6)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((300, 1024, 256), np.float32))  # inflates to 300 MiB
    out = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path / "d.npz")], capture_output=True, text=True, check=True
    )
    count, growth = (int(line) for line in out.stdout.split())
    assert count == 300
    assert growth * (1 if sys.platform == "darwin" else 1024) < 40 * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_random_data_is_reproducible_and_says_so() -> None:
    a, b = (random_data([*IMAGE, InputSpec("n", I64, (1, "k"))], 2, 3) for _ in range(2))
    assert a.is_random
    for x, y in zip(a, b, strict=True):
        assert x.feed["n"].shape == (1, 16)
        np.testing.assert_array_equal(x.feed["x"], y.feed["x"])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(2):
            colour = (10 * index, 100, 200) if name == "cat" else (200, 100, 10 * index)
            image.new("RGB", (6, 8), colour).save(tmp_path / name / f"{index}.png")
    return tmp_path


def test_image_folder_takes_classes_in_turn(pictures: Path) -> None:
    samples = list(open_data(pictures, IMAGE, images=ImageOptions(scale=1.0)))
    assert [sample.label for sample in samples] == [0, 1, 0, 1]
    np.testing.assert_allclose(samples[0].feed["x"][0, :, 0, 0], [0, 100, 200])
    assert samples[0].feed["x"].shape == (1, 3, 4, 4)


def test_image_options_order_scale_and_shape(pictures: Path) -> None:
    options = ImageOptions(resize=8, crop=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), channels="bgr")
    (sample, *_) = open_data(pictures, IMAGE, images=options)
    expected = (np.array([200, 100, 0]) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    np.testing.assert_allclose(sample.feed["x"][0, :, 0, 0], expected, rtol=1e-5)
    nhwc = [InputSpec("x", F32, (1, "h", "w", 1))]
    (sample, *_) = open_data(pictures, nhwc, images=ImageOptions(channels="gray", layout="nhwc"))
    assert sample.feed["x"].shape == (1, 8, 6, 1)


def test_labels_csv(pictures: Path, tmp_path: Path) -> None:
    for path in sorted(pictures.rglob("*.png")):
        path.rename(tmp_path / f"{path.parent.name}{path.name}")
    for name in ("cat", "dog"):
        (tmp_path / name).rmdir()
    (tmp_path / "labels.csv").write_text("file,label,note\ndog1.png,7,a\ncat0.png,3,b\n")
    assert [sample.label for sample in open_data(tmp_path, IMAGE)] == [7, 3]
    (tmp_path / "labels.csv").write_text("file,label\n../secret.png,1\n")
    with pytest.raises(InputError, match="line 2"):
        open_data(tmp_path, IMAGE)


def test_broken_images_and_empty_folders_are_named(pictures: Path, tmp_path: Path) -> None:
    (pictures / "cat" / "0.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"0\.png"):
        list(open_data(pictures, IMAGE))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        open_data(tmp_path / "empty", IMAGE)
    with pytest.raises(InputError, match="rank 4"):
        open_data(pictures, [InputSpec("x", F32, ("N", 3))])


ROWS = [{"ids": [1, 2, 3], "mask": [1, 1, 1]}, {"ids": [4], "mask": [1]}]


def test_token_files(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({**row, "label": 1}) for row in ROWS) + "\n")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({key: [row[key] for row in ROWS] for key in ("ids", "mask")})
    parquet.write_table(table, tmp_path / "d.parquet")
    for name in ("d.jsonl", "d.parquet"):
        samples = list(open_data(tmp_path / name, TOKENS))
        assert [sample.feed["ids"].tolist() for sample in samples] == [[[1, 2, 3]], [[4]]]
        assert samples[0].feed["ids"].dtype == np.int64


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "line 1"),
        ("[1]", "line 1"),
        ('{"ids": [1]}', "mask"),
        ('{"ids": [[1]], "mask": [1]}', "ids"),
        ('{"ids": ["a"], "mask": [1]}', "ids"),
    ],
)
def test_broken_token_files_are_named(tmp_path: Path, line: str, word: str) -> None:
    (tmp_path / "d.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=word):
        list(open_data(tmp_path / "d.jsonl", TOKENS))
    (tmp_path / "d.parquet").write_bytes(b"no parquet")
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"d\.parquet"):
        list(open_data(tmp_path / "d.parquet", TOKENS))
