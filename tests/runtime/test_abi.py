"""What the library declares of onnxruntime's C interface, against its own header where there is one: abi.cc."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.headers import official_headers

SOURCES = Path(__file__).parents[2] / "runtime/cpp"
HEADERS = official_headers()
COMPILER = shutil.which(os.environ.get("CXX") or "g++")
pytestmark = [
    pytest.mark.skipif(HEADERS is None, reason="no headers: `runtime/cpp/fetch_headers.sh build/ort` gets Debian's"),
    pytest.mark.skipif(COMPILER is None and not os.environ.get("PTQ_REQUIRE_NATIVE"), reason="no C++ compiler"),
]


def compiled(sources: Path) -> subprocess.CompletedProcess[str]:
    """The compiler's answer to abi.cc with the declarations of a folder."""
    assert COMPILER is not None, "PTQ_REQUIRE_NATIVE is set; expected a C++ compiler"
    return subprocess.run(
        # The official header's attributes do not belong to a type.
        [COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-ignored-attributes",
         f"-I{sources}", f"-I{HEADERS}", Path(__file__).with_name("abi.cc")],
        capture_output=True, text=True, check=False, timeout=120,
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},  # a sanitizer's is not for it
    )  # fmt: skip


def test_the_declarations_are_onnxruntimes() -> None:
    done = compiled(SOURCES)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "right", "wrong", "complaint"),
    [
        ("ort_api.inc", "(62, Status*, GetDimensions,", "(63, Status*, GetDimensions,", "position of GetDimensions"),
        ("ort_api.inc", "(274, ", "(275, ", "length of the table"),
        ("ort_api.inc", "const Value*, ShapeInfo**", "Value*, ShapeInfo**", "type of GetTensorTypeAndShape"),
        ("ort_api.inc", "AllocatorType, MemoryType,", "MemoryType, AllocatorType,", "type of CreateCpuMemoryInfo"),
        ("ort_abi.h", "  int (*GetVariadicInputMinArity)(const CustomOp*);\n", "", "GetVariadicInputMinArity"),
        ("ort_abi.h", "  int (*GetEndVersion)(const CustomOp*);\n};", "  int (*GetEndVersion)(const CustomOp*);\n"
         "  int (*More)(const CustomOp*);\n};", "end of CustomOp"),
        ("ort_abi.h", "Presence (*GetInputCharacteristic)", "MemoryType (*GetInputCharacteristic)", "type of GetInput"),
        ("ort_abi.h", "kInt32 = 6", "kInt32 = 5", "ElementType::kInt32"),
        ("ort_abi.h", "void (*Free)(Allocator*, void*);", "void (*Free)(void*);", "type of Free"),
        ("ort_abi.h", "kApiVersion = 17", "kApiVersion = 99", "older than the version"),
    ],
)  # fmt: skip
def test_what_is_not_is_found(name: str, right: str, wrong: str, complaint: str, tmp_path: Path) -> None:
    for each in ("ort_abi.h", "ort_api.inc"):
        shutil.copyfile(SOURCES / each, tmp_path / each)
    text = (SOURCES / name).read_text()
    assert text.count(right) == 1
    (tmp_path / name).write_text(text.replace(right, wrong))
    done = compiled(tmp_path)
    assert done.returncode != 0
    assert complaint in done.stderr
