"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import UnionType

import pytest

from ptq.allocation import AllocationMethod
from ptq.calibration.observers import Observer
from ptq.core.family import members, tag_of
from ptq.sensitivity import SensitivityMethod
from ptq.weights import WeightMethod

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for folder in ("ptq", "passes", "calibration", "runtime") for path in (ROOT / folder).rglob("*.py")
)
WORDED = (
    *(f"ptq/{room}" for room in ("analysis", "cli", "core", "delivery", "demo", "display", "exporters", "files")),
    *(f"ptq/{room}" for room in ("inspection", "models", "modes", "recipe", "streaming", "transforms")),
    *(f"ptq/{name}.py" for name in ("api", "job", "pipeline", "target")),
    *("calibration", "passes", "runtime"),
)
"""Folders and files whose docstrings and names are held to the rules below."""

NOT_YET_WORDED = frozenset(
    {
        *(f"passes/{name}.py" for name in ("decoding", "graph_writer", "insert_dynamic", "insert_qdq", "lifting")),
        *(f"passes/{name}.py" for name in ("lower_stored", "lower_weight", "lowered_layer", "native_products")),
        *(f"passes/{name}.py" for name in ("packing", "pieces", "sites", "stored", "tables", "use_native")),
        *(f"ptq/core/{name}.py" for name in ("affine", "distribution", "encoding", "plan", "problem")),
        *(f"ptq/core/{name}.py" for name in ("saturation", "storage", "widths")),
        *(f"ptq/analysis/diff/{name}.py" for name in ("codes", "weights")),
    }
)
"""Files among them that are still to be worded."""

LEFT_TO_THE_NAME = re.compile(r"(?:What|The same|Likewise|Of|By|On|In)\b")
BRITISH = re.compile(
    r"(?:equal|normal|optim|general|recogn)is(?:e|ing|ation)|centr(?:e|ing)|neighbour|colour|behaviour", re.IGNORECASE
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rounding_is_written_once(path: Path) -> None:
    found = re.findall(r"np\.(?:rint|round|around)\b", path.read_text())
    assert not found or path == ROOT / "ptq/core/affine.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


FAMILIES = {
    "Observer": Observer, "WeightMethod": WeightMethod, "SensitivityMethod": SensitivityMethod,
    "AllocationMethod": AllocationMethod,
}  # fmt: skip


@pytest.mark.parametrize("union", FAMILIES.values(), ids=FAMILIES)
def test_a_method_is_one_file_with_one_class_and_one_verb(union: UnionType) -> None:
    for member in members(union):
        path = Path(__import__(member.__module__, fromlist=["_"]).__file__)
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        assert [node.name for node in classes if not node.name.startswith("_")] == [member.__name__]
        verbs = [name for name in dir(member) if not name.startswith("_") and callable(getattr(member, name))]
        assert len(verbs) == 1, f"{tag_of(member)} has verbs {verbs}"
        assert member.__dataclass_params__.frozen


@pytest.mark.parametrize("name", ["passes", "calibration", "runtime"])
def test_the_root_is_the_package_as_it_lies(name: str) -> None:
    assert (ROOT / "ptq" / name).readlink() == Path("..") / name
    spec = find_spec(f"ptq.{name}")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).samefile(ROOT / name / "__init__.py")
    alone = [sys.executable, "-S", "-c", f"import importlib.util as u; print(u.find_spec('ptq.{name}').origin)"]
    origin = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(origin) == ROOT / "ptq" / name / "__init__.py"


def test_the_map_in_the_readme_names_every_folder() -> None:
    readme = (ROOT / "README.md").read_text()
    folders = {str(path.parent.relative_to(ROOT)) for path in SOURCES}
    assert {folder for folder in folders if f"`{folder}/`" not in readme} == set()


def test_nothing_speaks_of_the_machine_it_was_written_on() -> None:
    files = [
        *SOURCES,
        *sorted((ROOT / "tests").rglob("*.py")),
        *(ROOT / n for n in ("README.md", "CHANGELOG.md", "Makefile")),
    ]
    pattern = re.compile("/" + r"work/|/" + r"root/|\.lib" + "rary")
    assert [path.name for path in files if pattern.search(path.read_text())] == []


def test_workflows_make_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = "\n".join(path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml"))
    asked = re.findall(r"(?:make |target: \[)([\w ,-]+)\]?$", texts, re.MULTILINE)
    assert {"test", "fuzz-inputs", "kills"} <= set(" ".join(asked).replace(",", "").split()) <= targets


def test_the_pipeline_is_read_in_five_minutes() -> None:
    text = (ROOT / "ptq/pipeline.py").read_text()
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom | ast.Import)]
    names = [alias.name for node in imports for alias in node.names if alias.name != "annotations"]
    assert len(text.splitlines()) <= 150
    assert len(names) <= 35, len(names)


def test_the_root_of_the_package_holds_four_modules() -> None:
    modules = {path.stem for path in (ROOT / "ptq").glob("*.py")}
    assert modules - {"__init__", "__main__"} == {"api", "job", "pipeline", "target"}


def worded_paths() -> list[Path]:
    paths = [
        path for name in WORDED for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    return sorted(path for path in paths if str(path.relative_to(ROOT)) not in NOT_YET_WORDED)


def docstrings(node: ast.AST, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of a module's parts, which begin with a dot, and their docstrings."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text is not None:
            yield name, text
    for child in ast.iter_child_nodes(node):
        yield from docstrings(child, f"{name}.{child.name}" if hasattr(child, "name") else name)


def wording_faults(source: str) -> list[str]:
    faults = []
    for name, text in docstrings(ast.parse(source)):
        private = re.search(r"\._(?!_)", name) is not None
        if LEFT_TO_THE_NAME.match(text) or (not private and len(text.split()) <= 3):
            faults.append(f"{name or 'module'}: {text.splitlines()[0]}")
    return faults


def british_names(source: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type == tokenize.NAME and BRITISH.search(token.string)]


@pytest.mark.parametrize("path", worded_paths(), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_understood_without_the_name(path: Path) -> None:
    assert wording_faults(path.read_text()) == []


@pytest.mark.parametrize("path", worded_paths(), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_have_one_spelling(path: Path) -> None:
    assert british_names(path.read_text()) == []


@pytest.mark.parametrize(
    ("docstring", "is_sound"),
    [
        ("Return the largest magnitude. Shape [channels].", True),
        ("Whether values are on codes.", True),
        ("Integers of all layers.", True),
        ("Tell it all.", False),
        ("What came out of the run.", False),
        ("The same for a model without weights.", False),
        ("Likewise for the other half.", False),
        ("Of all layers that read a value.", False),
        ("By feature of the layer.", False),
        ("On whatever machine this runs.", False),
        ("In the order of the items.", False),
    ],
)
def test_riddles_are_noticed(docstring: str, *, is_sound: bool) -> None:
    for place in ('"""{}"""', 'class A:\n    """{}"""', 'class A:\n    def f(self):\n        """{}"""'):
        assert (wording_faults(place.format(docstring)) == []) is is_sound


def test_private_names_may_be_short_and_no_riddles() -> None:
    assert wording_faults('def _f():\n    """Add one sample."""') == []
    assert wording_faults('def _f():\n    """Of one sample."""') == ["._f: Of one sample."]
    assert wording_faults('def __exit__():\n    """Remove the files."""') == [".__exit__: Remove the files."]


@pytest.mark.parametrize("name", ["equalise", "find_centre", "is_normalised", "Neighbours", "COLOURS", "optimiser"])
def test_british_names_are_noticed(name: str) -> None:
    assert british_names(f"x = {name}") == [name]


def test_american_names_and_texts_are_no_fault() -> None:
    source = "center = normalize(neighbors, color, optimize, optimistic)  # centre\nnote = 'values equalised'"
    assert british_names(source) == []


def test_worded_places_exist() -> None:
    assert [name for name in WORDED if not (ROOT / name).exists()] == []
