"""Data of every kind becomes the same stream of checked samples."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.calibration.images import ImageOptions
from ptq.calibration.reader import open_data, random_data
from ptq.core.errors import InputError
from ptq.models.source import InputSpec

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
from ptq.models.source import InputSpec
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


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_any_batching_of_several_inputs_and_labels_is_the_same_stream(sizes: list[int]) -> None:
    total, cuts = sum(sizes), np.cumsum(sizes)[:-1]
    ids, classes = np.arange(3 * total).reshape(total, 3), np.arange(total)
    parts = zip(np.split(ids, cuts), np.split(classes, cuts), strict=True)
    samples = list(open_data([({"ids": part, "mask": part}, label) for part, label in parts], TOKENS))
    assert [sample.label for sample in samples] == list(range(total))
    np.testing.assert_array_equal(np.concatenate([sample.feed["ids"] for sample in samples]), ids)


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1] * 12])
def test_a_bad_sample_has_one_number_however_it_was_batched(sizes: list[int]) -> None:
    x = images(12)
    x[11, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match="x holds NaN or infinity in sample 11"):
        list(open_data([{"x": part} for part in np.split(x, np.cumsum(sizes)[:-1])], IMAGE))


def test_nothing_is_read_beyond_the_limit() -> None:
    drawn: list[int] = []

    def source() -> Iterator[dict[str, np.ndarray]]:
        for index in range(9):
            drawn.append(index)
            yield {"x": images(1)}

    assert len(list(open_data(source(), IMAGE, limit=3))) == 3
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize(
    "labels",
    [np.full(6, np.nan), np.full(6, 1.7), np.int64(3), np.ones((6, 1), int), np.array(["cat"] * 6), np.arange(5)],
    ids=["nan", "fractions", "scalar", "matrix", "text", "too few"],
)
def test_labels_that_are_no_classes_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(InputError, match="labels"):
        list(open_data({"x": images(6), "labels": labels}, IMAGE))


@pytest.mark.parametrize(("label", "word"), [([1, 2], "2 labels for 6"), ("cat", "cat"), ([0.5] * 6, "0.5")])
def test_labels_of_feeds_that_do_not_fit_are_refused(label: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        list(open_data([({"x": images(6)}, label)], IMAGE))


def test_a_fixed_batch_has_no_single_class() -> None:
    specs = [InputSpec("x", F32, (2, 3, 4, 4))]
    for source in ([({"x": images(2)}, [4, 5])], {"x": images(2), "labels": np.array([4, 5])}):
        (sample,) = open_data(source, specs)
        assert sample.label is None


def test_labels_count_feeds_where_only_another_input_is_batched() -> None:
    specs = [InputSpec("x", F32, (2, 3)), InputSpec("y", F32, (3,))]
    source = {"x": np.ones((10, 3), np.float32), "y": np.ones((5, 3), np.float32), "labels": np.arange(5)}
    assert [sample.label for sample in open_data(source, specs)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ({"x": [[1], [1, 2]]}, "cannot become an array"),
        ({1: images(), "x": images()}, "1, x"),
        ([{"x": images()}, {"x": images(1)[:0]}], "empty in sample 10"),
        ([{"x": images(1)[0]}], r"\[3, 4, 4\]"),
        (b"PK", "bytes"),
        ("a" * 5000 + ".npz", "cannot read it"),
        ({"x": images().astype(np.float64)}, "astype"),
        ({"x": images(), "y": images()}, "x, y"),
        ({"x": images()[:0]}, "empty"),
    ],
)
def test_more_misfits_are_named(source: Any, word: str) -> None:
    with pytest.raises(InputError, match=word) as error:
        list(open_data(source, IMAGE))
    assert "\n" not in str(error.value)


def test_different_sample_counts_show_both() -> None:
    with pytest.raises(InputError, match="ids 4, mask 3"):
        list(open_data({"ids": np.ones((4, 2), int), "mask": np.ones((3, 2), int)}, TOKENS))


def test_unknown_suffixes_name_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("1")
    with pytest.raises(InputError, match=r"\.npz or \.npy"):
        open_data(tmp_path / "d.csv", IMAGE)


def test_get_next_may_return_bare_arrays() -> None:
    class Arrays:
        def __init__(self) -> None:
            self.left = [images(1), images(1)]

        def get_next(self) -> np.ndarray | None:
            return self.left.pop() if self.left else None

    assert len(list(open_data(Arrays(), IMAGE))) == 2


def test_random_data_gives_one_name_one_size() -> None:
    specs = [InputSpec("a", F32, ("B", "S")), InputSpec("x", F32, (None, 3, "S", "W"))]
    (sample,) = random_data(specs, 1, 0)
    assert sample.feed["a"].shape == (1, 16)
    assert sample.feed["x"].shape == (1, 3, 16, 224)


def test_random_data_is_for_numbers_and_not_for_nothing() -> None:
    with pytest.raises(InputError, match="a takes text"):
        random_data([InputSpec("a", np.dtype(object), ("B",))], 1, 0)
    with pytest.raises(InputError, match="at least 1"):
        random_data(IMAGE, 0, 0)


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["member", "unused member", "npy", "pickle as npz", "pickle as npy"])
def test_pickles_are_never_loaded(tmp_path: Path, kind: str) -> None:
    trap = np.array([Canary(tmp_path / "hatched")], object)
    path = tmp_path / ("d.npy" if kind.endswith("npy") else "d.npz")
    if kind == "npy":
        np.save(path, trap, allow_pickle=True)
    elif kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(trap))
    else:
        arrays = {"x": images(), "other": trap} if kind == "unused member" else {"x": trap}
        np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"d\.np"):
        list(open_data(path, IMAGE))
    assert not (tmp_path / "hatched").exists()


def npy_bytes(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def zip_of(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytearray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in members:
                archive.writestr(name, data)
    return bytearray(path.read_bytes())


def damaged(path: Path, how: str) -> bytes:
    x = npy_bytes(images())
    if how == "duplicate":
        return bytes(zip_of(path, ("x.npy", x), ("x.npy", x)))
    if how == "header length":
        return bytes(zip_of(path, ("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + x)))
    if how == "short member":
        return bytes(zip_of(path, ("x.npy", x[:-1])))
    data = zip_of(path, ("x.npy", x))
    if how == "crc":
        data[data.index(x) + len(x) - 1] ^= 1
    elif how == "encrypted":
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    elif how == "truncated":
        del data[len(data) // 2 :]
    return b"not a zip" if how == "no zip" else bytes(data)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("duplicate", "twice"),
        ("header length", "array x.*header claims"),
        ("short member", "array x claims"),
        ("crc", "array x.*CRC"),
        ("encrypted", "array x is encrypted"),
        ("truncated", "not a readable npz"),
        ("no zip", "not a readable npz"),
    ],
)
def test_damaged_npz_files_are_named(tmp_path: Path, how: str, word: str) -> None:
    (tmp_path / "d.npz").write_bytes(damaged(tmp_path / "whole.npz", how))
    with pytest.raises(InputError, match=rf"d\.npz.*{word}"):
        list(open_data(tmp_path / "d.npz", IMAGE))


def test_member_names_are_only_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    zip_of(tmp_path / "in" / "d.npz", ("../../x.npy", npy_bytes(images())))
    with pytest.raises(InputError, match="has arrays"):
        list(open_data(tmp_path / "in" / "d.npz", IMAGE))
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "d.npz"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_never_give_a_traceback(tmp_path: Path, method: int) -> None:
    whole, dice = zip_of(tmp_path / "whole.npz", ("x.npy", npy_bytes(images())), method=method), random.Random(method)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 3, 10])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        (tmp_path / "d.npz").write_bytes(data)
        with suppress(InputError):  # nothing else may come out
            list(open_data(tmp_path / "d.npz", IMAGE))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"ids": [2**40]}, "holds 1099511627776"),
        ({"ids": [-(2**31) - 1]}, "takes -2147483648"),
        ({"ids": [0.5]}, "no flat list"),
        ({"ids": []}, "empty|no flat list"),
        ({"ids": [1], "text": [2]}, "holds ids, text"),
        ({"ids": [1], "label": "cat"}, "label of sample 0 is 'cat'"),
        ({"ids": [1], "label": True}, "label of sample 0 is True"),
        ({"ids": [1, 2]}, "wants ids"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path: Path, suffix: str, row: dict[str, Any], word: str) -> None:
    path = tmp_path / f"d{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(row))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({k: [v] for k, v in row.items()}), path)
    with pytest.raises(InputError, match=word):
        list(open_data(path, [InputSpec("ids", np.dtype(np.int32), ("B", 1))]))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b'{"ids": "\xff"}', "UTF-8"),
        (b'{"ids": [' + b"9" * 5000 + b"]}", "not JSON"),
        (b'{"ids": [' + b"1," * 9 * 2**20 + b"1]}", "longer than"),
        (b'{"ids": ' + b"[" * 100_000, "not JSON"),
        (b"", "no sample"),
    ],
    ids=["latin-1", "5000 digits", "long line", "deep", "empty"],
)
def test_hostile_json_lines_are_refused(tmp_path: Path, data: bytes, word: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=word):
        list(open_data(tmp_path / "d.jsonl", [InputSpec("ids", I64, ("B", "S"))]))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"file,label\n\xff.png,1\n", "UTF-8"),
        (b"file,label\na\0.png,1\n", "line 2"),
        (b"file,label\n" + b"a" * 200_000 + b",1\n", "CSV"),
        (b"name,label\na.png,1\n", "line 2"),
        (b"file,label\na.png,cat\n", "line 2"),
    ],
    ids=["latin-1", "nul", "long field", "columns", "text label"],
)
def test_broken_labels_csv_is_named(tmp_path: Path, data: bytes, word: str) -> None:
    pytest.importorskip("PIL.Image").new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(InputError, match=rf"labels\.csv.*{word}"):
        list(open_data(tmp_path, IMAGE))


def test_a_spreadsheets_byte_order_mark_and_hidden_folders_do_no_harm(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image").new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes("\ufefffile,label\na.png,5\n".encode())
    (tmp_path / ".thumbnails").mkdir()
    assert [sample.label for sample in open_data(tmp_path, IMAGE)] == [5]


def test_images_that_cannot_be_trusted_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"

    def refused(word: str) -> None:
        with pytest.raises(InputError, match=rf"a\.png.*{word}"):
            list(open_data(tmp_path, IMAGE))

    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    refused("cannot identify")
    image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path)
    refused("8 bits")
    image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 1000)  # a warning to Pillow, an error here
    refused("bomb")
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 100)
    refused("bomb")


def test_a_pipe_among_the_images_is_not_opened(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image").new("RGB", (4, 4)).save(tmp_path / "b.png")
    os.mkfifo(tmp_path / "a.png")
    assert len(list(open_data(tmp_path, IMAGE))) == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (ImageOptions(resize=0), "--resize is 0"),
        (ImageOptions(crop=(4, -1)), "--crop"),
        (ImageOptions(std=(1.0, 0.0, 1.0)), "--std holds 0"),
        (ImageOptions(mean=(1.0, 2.0)), "--mean has 2"),
        (ImageOptions(crop=50), "smaller than the crop"),
    ],
)
def test_image_options_that_make_no_sense_are_refused(pictures: Path, options: ImageOptions, word: str) -> None:
    with pytest.raises(InputError, match=word):
        list(open_data(pictures, IMAGE, images=options))


def test_models_of_bytes_take_pixels_as_they_are(pictures: Path) -> None:
    spec = [InputSpec("x", np.dtype(np.uint8), (1, 3, 4, 4))]
    sample = next(iter(open_data(pictures, spec, images=ImageOptions(scale=1.0))))
    assert sample.feed["x"][0, :, 0, 0].tolist() == [0, 100, 200]
    with pytest.raises(InputError, match="scale 1"):
        open_data(pictures, spec)


@pytest.mark.parametrize(
    ("module", "name", "extra"), [("PIL", "folder", r"ptq\[images\]"), ("pyarrow", "d.parquet", r"ptq\[data\]")]
)
def test_missing_extras_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, extra: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "d.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=extra):
        open_data(tmp_path / name, IMAGE)


def test_the_order_of_a_folders_listing_does_not_matter(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards, listing = values(open_data(pictures, IMAGE)), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listing(self), reverse=True)))
    np.testing.assert_array_equal(values(open_data(pictures, IMAGE)), forwards)


def test_bad_samples_are_skipped_on_request_and_said(tmp_path: Path) -> None:
    values = np.ones((12, 3), np.float32)
    values[[2, 5], 1] = np.nan
    np.savez(tmp_path / "d.npz", x=values)
    specs = [InputSpec("x", np.dtype(np.float32), (None, 3))]
    with pytest.raises(InputError, match="NaN or infinity in sample 2"):
        list(open_data(str(tmp_path / "d.npz"), specs))
    reader = open_data(str(tmp_path / "d.npz"), specs, skip_bad=True)
    assert len(list(reader)) == 10
    assert len(list(reader)) == 10
    assert [fault.split(" in ")[-1] for fault in reader.skipped] == [
        "sample 2; check its preprocessing",
        "sample 5; check its preprocessing",
    ]
    np.savez(tmp_path / "d.npz", x=np.full((3, 3), np.inf, np.float32))
    with pytest.raises(InputError, match=r"no sample in it.*3 were skipped"):
        list(open_data(str(tmp_path / "d.npz"), specs, skip_bad=True))


def test_broken_images_are_skipped_on_request(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for index in range(4):
        image.new("RGB", (8, 8), (index, 2, 3)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    specs = [InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))]
    with pytest.raises(InputError, match=r"1\.png: not a readable image"):
        list(open_data(str(tmp_path), specs))
    reader = open_data(str(tmp_path), specs, skip_bad=True)
    assert len(list(reader)) == 3
    assert "1.png" in reader.skipped[0]
