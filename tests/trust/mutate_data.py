"""Calibration sets, recipes and options that are spoilt at random."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.trust.broken_data import claim, header, npy
from tests.trust.broken_images import png
from tests.trust.mutate_model import Rng, changed_bytes, pick
from tests.trust.vocabulary import FLOATS, NUMBERS, WORDS

Arrays = dict[str, Any]
KINDS = ("<f4", ">f4", "<f8", "<f2", "<i8", "|u1", "|b1", "<c8", "<U4", "|S3", "|O", "<M8[s]", "|V4", "|V0")
SHAPES = ("(12, 3, 8, 8)", "(12,)", "()", "(0,)", "(-1,)", "(12, 3, 8)", "12", "(1.5,)", "(1099511627776, 8)",
          "(True, 8)", "(12, 3, 8, 8, 1)", "None", "[12, 3, 8, 8]", "(9223372036854775807, 2)")  # fmt: skip
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA")


def changed_arrays(rng: Rng, arrays: Arrays) -> Arrays:
    """Other values, types, shapes, counts or names."""
    made = dict(arrays)
    for _ in range(int(rng.geometric(0.6))):
        _change_array(rng, made, pick(rng, sorted(made) or ["x"]))
    return made


def _change_array(rng: Rng, made: Arrays, name: str) -> None:
    array = np.asarray(made.get(name, 0.0))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of complex numbers becoming real ones
        match int(rng.integers(8)):
            case 0 if array.dtype.kind == "f" and array.size:
                array = np.where(rng.random(array.shape) < pick(rng, (0.01, 0.5, 1)), pick(rng, FLOATS), array)
                made[name] = array.astype(np.float32)
            case 1 if array.size:
                made[name] = np.full_like(array, pick(rng, (0, 1, 2, 5, 100, 127)))
            case 2:
                made[name] = array.astype(pick(rng, ("<f8", "<f2", "<i8", "|u1", "|b1", ">f4", "<i4", "<c8", "<U4")))
            case 3:
                made[name] = np.resize(array, [pick(rng, (0, 1, 2, 3, 8, 12, 40)) for _ in range(int(rng.integers(6)))])
            case 4:
                made[pick(rng, WORDS[:9])] = made.pop(name, array)
            case 5:
                made["labels"] = pick(rng, (np.arange(12), np.full(12, -1), np.full(12, 2**62), np.zeros((12, 1), int)))
            case 6 if array.ndim:
                made[name] = array[: int(rng.integers(len(array) + 1))] if len(array) else array
            case _:
                made[name] = np.asfortranarray(array)


def changed_npz(rng: Rng, arrays: Arrays) -> bytes:
    """An archive whose arrays, headers, members or bytes are spoilt."""
    made = changed_arrays(rng, arrays) if rng.random() < 0.6 else arrays
    buffer = io.BytesIO()
    packing = pick(rng, PACKINGS)
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, array in made.items():
            data = changed_npy(rng, array) if rng.random() < 0.3 else npy(np.asarray(array))
            entry = zipfile.ZipInfo(name.replace("\0", "") + pick(rng, (".npy", ".npy", ".npy", "", ".txt")))
            entry.compress_type = packing
            archive.writestr(entry, data)
    data = buffer.getvalue()
    return _changed_zip(rng, data) if rng.random() < 0.4 else data


def _changed_zip(rng: Rng, data: bytes) -> bytes:
    """Fields of the archive's own records, or any byte."""
    starts = [data.find(mark) for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06")]
    start = pick(rng, starts)
    if rng.random() < 0.4 or start < 0:
        return changed_bytes(rng, data)
    made = bytearray(data)
    at = start + 4 + 2 * int(rng.integers(21))
    made[at : at + 4] = struct.pack("<I", pick(rng, NUMBERS) % 2**32)
    return bytes(made)


def changed_npy(rng: Rng, array: Any) -> bytes:
    """An array's file: other bytes, or a header that lies."""
    data = npy(np.asarray(array))
    if rng.random() < 0.5:
        return changed_bytes(rng, data)
    text = claim(pick(rng, SHAPES), pick(rng, KINDS)).encode()
    text = changed_bytes(rng, text) if rng.random() < 0.5 else text
    body = np.asarray(array).tobytes()
    return header(
        text.decode("latin-1").encode("ascii", "ignore").decode()[:9000], body, version=pick(rng, (1, 1, 2, 3))
    )


def changed_jsonl(rng: Rng) -> bytes:
    """Rows of token ids of which some are odd."""
    rows: list[Any] = [{"ids": rng.integers(0, 9, int(rng.integers(1, 9))).tolist()} for _ in range(9)]
    for _ in range(int(rng.geometric(0.5))):
        row = pick(rng, rows)
        if not isinstance(row, dict):
            continue
        match int(rng.integers(5)):
            case 0:
                row["ids"] = _json_value(rng)
            case 1:
                row["ids"] = [*row.get("ids", []), _json_value(rng)] if isinstance(row.get("ids"), list) else []
            case 2:
                row[pick(rng, ("label", *WORDS))] = _json_value(rng)
            case 3:
                row.pop("ids", None)
            case _:
                rows[int(rng.integers(len(rows)))] = _json_value(rng)
    data = "\n".join(json.dumps(row) for row in rows).encode()
    return changed_bytes(rng, data) if rng.random() < 0.4 else data


def _json_value(rng: Rng) -> Any:
    odd: list[Any] = [None, True, "x", [], {}, [[1, 2]], [1, "a"], [[1], [2, 3]], 10**400, 1e400, {"a": 1}, "1"]
    return pick(rng, [*odd, *NUMBERS, *FLOATS])


def changed_parquet(rng: Rng) -> bytes:
    """A column of token ids, as bytes that are spoilt."""
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    columns = {"ids": [rng.integers(0, 9, int(rng.integers(1, 9))).tolist() for _ in range(9)]}
    if rng.random() < 0.2:
        columns["label"] = pick(rng, ([None] * 9, list(range(9)), [0.5] * 9, ["a"] * 9))
    parquet.write_table(pa.table(columns), buffer)
    return changed_bytes(rng, buffer.getvalue()) if rng.random() < 0.8 else buffer.getvalue()


def image(rng: Rng) -> bytes:
    """An image of any mode and format, mostly spoilt."""
    if rng.random() < 0.1:
        return png(pick(rng, NUMBERS) % 2**31, pick(rng, (1, 8, 10_000)), bytes(25))
    mode, format_name = pick(rng, MODES), pick(rng, FORMATS)
    extent = (int(rng.integers(1, 24)), int(rng.integers(1, 24)))
    made, buffer = (
        Image.new(mode, extent, int(rng.integers(200)) if mode in {"L", "1", "P", "I;16"} else None),
        io.BytesIO(),
    )
    try:
        made.save(buffer, format_name)
    except (OSError, KeyError, ValueError):  # a mode that the format has not
        made.convert("RGB").save(buffer, "PNG")
    return changed_bytes(rng, buffer.getvalue()) if rng.random() < 0.7 else buffer.getvalue()


def labels(rng: Rng) -> bytes:
    """A table of labels, mostly spoilt."""
    words = ("0", "1", "-1", "cat", "", "1.5", str(2**70), "1,2", '"', '"0\n1"', "NaN", "\ufeff0", "0x1", "1_0", "１")  # noqa: RUF001
    names = (
        "good0.png",
        "good1.png",
        "good2.png",
        "no.png",
        "../m.onnx",
        "/dev/zero",
        "",
        ".",
        "labels.csv",
        "good0.png\0",
    )
    rows = [f"good{index}.png,{index}" for index in range(3)]
    for _ in range(int(rng.geometric(0.5))):
        rows[int(rng.integers(len(rows)))] = f"{pick(rng, names)},{pick(rng, words)}"
        if rng.random() < 0.3:
            rows.append(pick(rng, rows))
    head = pick(rng, ("file,label", "file,label", "label,file", "file", "file,label,more", "", "file,file"))
    data = "\n".join([head, *rows]).encode()
    return changed_bytes(rng, data) if rng.random() < 0.5 else data


METHODS = ("rtn", "hqq", "gpfq", "gptq", "qronos")
OBSERVERS = ("auto", "minmax", "percentile", "mse", "kl", "kl_cfws", "dynamic")
BLOCKS = ("per-tensor", "per-channel", "block-16", "block-32", "block-128")
SPLITS = ("auto", "never", "center", "whole")
PATTERNS = (
    "Conv",
    "MatMul",
    "Gemm",
    "*",
    "y",
    "re:.*",
    "re:^(a+)+$",
    "[",
    "[!a",
    "re:[",
    "re:(?P<x",
    "",
    "y*",
    "\0",
    "nothing",
)
OPTIONS: dict[str, tuple[str, ...]] = {
    "--target": ("cpu-x86", "cpu-arm", "portable", "native"),
    "--activations": OBSERVERS,
    "--weights": METHODS,
    "--bits": tuple("2345678"),
    "--activation-bits": tuple("2345678"),
    "--first-last-bits": tuple("2345678"),
    "--granularity": BLOCKS,
    "--split": SPLITS,
    "--extra-macs": ("5%", "0.5", "0", "1000%", "1e-9", "%", "5%%"),
    "--max-macs": ("90%", "0.5", "0", "1e-9", "%", "100%"),
    "--layer": ("Conv:bits=4", "MatMul:skip", "*:method=gptq", "re:.*:split=whole", "Gemm:bits=2"),
    "--exclude": PATTERNS,
    "--samples": ("1", "2", "5", "12", "1000000", "9223372036854775808", "1" * 5000),
    "--seed": ("0", "1", "4294967296", "9" * 30, "-1"),
    "--min-sqnr-db": ("0", "10", "99", "1e308", "-1e308", "-inf"),
    "--min-agreement": ("0", "0.5", "1", "nan"),
    "--max-drop": ("0", "0.01", "1e308"),
    "--resize": ("8", "8x8", "9", "1", "8192", "٣", "²", "1x", "x1", "9" * 5000),
    "--crop": ("8", "8x8", "8192"),
    "--mean": ("0", "0.5,0.5,0.5", "1e400", "1e38,1,1", ",", "nan"),
    "--std": ("1", "0.5,0.5,0.5", "1e-45", "-1", "1e-320"),
    "--scale": ("1", "0", "-1", "1e38", "1e-45"),
    "--channels": ("rgb", "bgr", "gray"),
    "--layout": ("nchw", "nhwc"),
    "--metric": ("os:getcwd", "numpy:mean", "json:", "a.b.c:d", "..:x", "numpy:linalg.norm"),
    "--eval-data": ("../in/d.npz", "../in/m.onnx", "../in", "nope", "file:///nope", "memory://d.npz", "abc://", "http://["),
    "--custom-ops": ("../in/m.onnx", "../in", "", "nope"),
}  # fmt: skip
FLAGS = ("--weight-only", "--no-bias-correction", "--no-equalize", "--json", "-q")


def good_options(rng: Rng) -> list[str]:
    """Some options that most models bear."""
    names = ("--target", "--activations", "--weights", "--bits", "--granularity", "--split", "--first-last-bits")
    made = [word for name in names if rng.random() < 0.25 for word in (name, pick(rng, OPTIONS[name]))]
    return made + [flag for flag in FLAGS if rng.random() < 0.1]


def odd_options(rng: Rng) -> list[str]:
    """One to four options with values that are good, strange, or wrong."""
    made = []
    for _ in range(int(rng.geometric(0.5))):
        name = pick(rng, sorted(OPTIONS))
        odd = (*WORDS, *PATTERNS, *map(str, NUMBERS), *map(str, FLOATS))
        value = pick(rng, OPTIONS[name]) if rng.random() < 0.6 else pick(rng, odd)
        if rng.random() < 0.15:
            value = changed_bytes(rng, value.encode()).decode("utf-8", "replace")
        made += [name, value.replace("\0", "")]  # no argument of a process holds one
    return made + [flag for flag in FLAGS if rng.random() < 0.1]


Choice = tuple[Any, ...]
RECIPE: dict[str, dict[str, Choice]] = {
    "": {
        "target": ("cpu-x86", "portable", "native"), "activations": OBSERVERS, "activation_bits": (2, 4, 8),
        "weight_only": (True, False), "equalize": (True, False), "exclude": ([], ["Conv"], ["re:(a+)+$"], ["*"]),
        "samples": (1, 5, 2**63, 2**64), "min_input_sqnr_db": (0, 23.0, -1e9, 1e300), "seed": (0, 2**40, 2**64, 2**200),
    },
    "weights": {
        "method": METHODS, "bits": (2, 3, 4, 8), "granularity": BLOCKS, "bias_correction": (True, False),
        "split": SPLITS, "extra_macs": (0.0, 0.05, 10, 1e-300), "first_last_bits": (2, 8),
    },
    "weights.method": {
        "method": METHODS, "num_sweeps": (0, 1, 8, -1, 1000), "order": ("activation", "natural"),
        "block": (1, 64, 0, -3),
        "damping": (0, 0.01, 1e300, -1), "clip": ("absmax", "mse"), "step": ("range", "search"),
        "threshold": (0, 0.6, -1, 1e9),
        "sparse": ("none", "soft", "hard"), "stochastic": (True, False), "alphabet": ("storage", "paper"),
        "seed": (0, -1, 2**64),
    },
    "activations": {
        "method": OBSERVERS, "percentile": (0, 50, 99.999, 100, 101, -1), "num_bins": (0, 1, 2, 16, 2048, -1, 10**7),
        "num_candidates": (0, 1, 48, -1), "num_rounds": (0, 1, 2, -1),
    },
    "goals": {
        "min_sqnr_db": (0, 10.0, 1e308), "min_agreement": (0, 0.5, 1), "max_drop": (0, 0.5),
        "max_latency_ratio": (0, 100),
    },
    "[layers]": {
        "match": PATTERNS, "method": METHODS, "bits": (2, 8, 0), "granularity": BLOCKS, "split": SPLITS,
        "skip": (True, False),
    },
}  # fmt: skip


def recipe(rng: Rng) -> bytes:
    """A recipe of known keys, with values good and bad, that is then perhaps spoilt."""
    odd: Choice = (*NUMBERS[:12], *FLOATS, *WORDS[:8], True, [], [[]], {}, "nan")
    parts = []
    for table, keys in RECIPE.items():
        if table and rng.random() < 0.65:
            continue
        parts.append(f"[{table}]" if table else "")
        for key, good in keys.items():
            needed = key == "match" or (key == "method" and table in {"weights.method", "activations"})
            if needed or rng.random() < 0.25:
                parts.append(f"{key} = {_toml(pick(rng, good if rng.random() < 0.93 else odd))}")
    data = "\n".join(parts).encode()
    return changed_bytes(rng, data) if rng.random() < 0.3 else data


def _toml(value: Any) -> str:
    if isinstance(value, float) and not np.isfinite(value):
        return "nan" if np.isnan(value) else "inf" if value > 0 else "-inf"
    return "{}" if value == {} else json.dumps(value)


Maker = Callable[[Rng], bytes]
TOKENS: dict[str, Maker] = {"d.jsonl": changed_jsonl, "d.parquet": changed_parquet}
