"""The report: complete, bounded, offline, the same bytes every time, and safe whatever a card says."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from ptq.analysis import page as page_module
from ptq.analysis import report as report_module
from ptq.analysis.card_file import read_bench, read_card
from ptq.analysis.page import page
from ptq.analysis.report import Attempt, TimedPlan
from ptq.cli import main
from ptq.core.affine import Range, choose_qparams, quantize
from ptq.core.distribution import distribution_of_values, distribution_of_weight
from ptq.core.encoding import IntegerWeight
from ptq.core.spec import INT8_WEIGHT, PerAxis, QuantSpec
from ptq.core.statistics import Histogram
from ptq.recipe import LayerRule, Recipe, Weights
from ptq.recipe.toml import recipe_from, recipe_to, recipe_toml
from ptq.weights.gptq import Gptq
from tests.builders import conv_net, feeds

SCHEMA = json.loads((Path(report_module.__file__).parent / "card.schema.json").read_text())
EVIL = "</script></td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and its report."""
    folder = tmp_path_factory.mktemp("page")
    ir.save(conv_net(), folder / "m.onnx")
    np.savez(folder / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(20, 3, 16, 16)]))
    command = ["quantize", folder / "m.onnx", "--data", folder / "d.npz", "-o", folder / "q.onnx"]
    done = invoke(*command, "--exclude", "Gemm", "--report", folder / "q.html", "--front-matter", "-q")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def card(made: Path) -> dict[str, Any]:
    """The card of that run, to be broken."""
    return copy.deepcopy(json.loads((made / "q.onnx.card.json").read_text()))


class Seen(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rendered(card: dict[str, Any], bench: bytes | None = None) -> bytes:
    return page(
        read_card(json.dumps(card).encode(), "card"), None if bench is None else read_bench(bench, "measurements")
    )


def test_a_run_and_a_card_give_the_same_page_in_any_process(made: Path, tmp_path: Path) -> None:
    whole = (made / "q.html").read_bytes()
    (tmp_path / "matplotlibrc").write_text("lines.linestyle: --\nlines.marker: o\npath.sketch: 1, 100, 2\n")
    command = [sys.executable, "-m", "ptq", "report", made / "q.onnx.card.json", "-o", tmp_path / "o.html"]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "MATPLOTLIBRC": str(tmp_path)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "o.html").read_bytes() == whole


def test_every_layer_is_named_once_and_the_worst_is_first(made: Path, card: dict[str, Any]) -> None:
    html = (made / "q.html").read_text()
    table = html[html.index('<table class="sortable">') :]
    seen = Seen(table[: table.index("</table>")].encode())
    names = [text for text in seen.texts if text in {row["name"] for row in card["layers"]}]
    assert sorted(names) == sorted(row["name"] for row in card["layers"])
    heads = seen.of("th")[: len(seen.of("th")) - len(names)]
    assert [head.get("aria-sort") for head in heads].count("ascending") == 1
    column = [head.get("aria-sort") for head in heads].index("ascending")
    values = [cell["data-value"] for cell in seen.of("td") if "data-value" in cell]
    errors = [float(value or "nan") for value in values[column - 1 :: len(values) // len(names)]]
    assert errors == sorted(errors)
    assert all(head.get("scope") == "col" for head in heads)


def test_it_says_what_the_card_says(made: Path, card: dict[str, Any]) -> None:
    text = " ".join(Seen((made / "q.html").read_bytes()).texts)
    sections = (
        "Holds; no goal was set; SQNR",
        "What changed",
        "Where time goes",
        "left in float",
        "make it again",
    )
    assert all(words in text for words in sections)
    assert card["quantized_model"]["sha256"] in text
    assert card["data"]["sha256"] in text
    assert all(note in text for note in card["notes"])
    assert all(reason in text for reason in card["left_float"].values())
    assert "ptq quantize" in json.loads((made / "q.onnx.bench.json").read_text())["command"]
    operators = json.loads((made / "q.onnx.bench.json").read_text())["operators"]
    assert "Conv" in "".join(operators["float"])
    assert "QLinearConv" in text


def test_it_needs_nothing_from_anywhere(made: Path) -> None:
    html = (made / "q.html").read_bytes()
    seen = Seen(html)
    assert html.count(b"://") == html.count(b'xmlns="http://www.w3.org/2000/svg"')
    assert all((link["href"] or "").startswith("#") for link in seen.of("a"))
    assert not [tag for tag, attributes in seen.tags if "src" in attributes or tag in ("link", "iframe", "img")]
    ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(link["href"] or "")[1:] for link in seen.of("a")} <= set(ids)
    assert seen.of("html") == [{"lang": "en"}]
    assert all(attributes.get("aria-label") for attributes in (a for _, a in seen.tags) if attributes.get("role"))


def test_names_are_text_and_nothing_else(card: dict[str, Any]) -> None:
    card["float_model"]["name"] = card["quantized_model"]["name"] = card["data"]["description"] = EVIL
    card["notes"], card["left_float"] = [EVIL], {EVIL: EVIL}
    card["layers"][0]["name"] = card["layers"][0]["points"] = card["accuracy"]["outputs"][0]["name"] = EVIL
    card["recipe"]["exclude"] = [EVIL]
    card["kernels"]["integer"] = {EVIL: 1}
    card["spreads"]["activations"] = {EVIL: next(iter(card["spreads"]["activations"].values()))}
    card["verdict"]["findings"] = [{"level": "warning", "text": EVIL}]
    card["versions"][EVIL] = EVIL
    html = rendered(card)
    seen = Seen(html)
    assert len(seen.of("script")) == 1
    assert not seen.of("img")
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]
    assert EVIL in seen.texts
    assert b"49" not in html[html.index(b"<h1>") : html.index(b"</h1>")]


def test_the_recipe_of_the_page_makes_the_same_model(made: Path, card: dict[str, Any], tmp_path: Path) -> None:
    texts = Seen((made / "q.html").read_bytes()).texts
    recipe = next(text for text in texts if "[weights]" in text)
    (tmp_path / "recipe.toml").write_text(recipe)
    command = ("quantize", made / "m.onnx", "--data", made / "d.npz", "--recipe", tmp_path / "recipe.toml")
    assert invoke(*command, "-q", "-o", tmp_path / "q.onnx").exit_code == 0
    assert (tmp_path / "q.onnx").read_bytes() == (made / "q.onnx").read_bytes()


def test_the_markdown_has_the_same_recipe_and_shares(made: Path, card: dict[str, Any]) -> None:
    text = (made / "q.onnx.card.md").read_text()
    recipe = recipe_from(tomllib.loads(text.split("```toml\n")[1].split("```")[0]), "markdown")
    assert recipe == replace(recipe_from(card["recipe"], "card"), target=card["quantization"]["target"])
    row = next(line for line in text.splitlines() if line.startswith(f"| `{card['layers'][0]['name']}` "))
    assert f"| {card['spreads']['activations'][card['layers'][0]['grid']]['clipped']:.2%} |" in row


def test_a_recipe_comes_back_from_toml() -> None:
    rules = (LayerRule("x", method=Gptq(), bits=8), LayerRule("y", skip=True))
    recipe = Recipe(
        weights=Weights(Gptq(), 4), layers=rules, exclude=('a"b\\\x7f\n', "\N{GRINNING FACE}"), target="native"
    )
    for each in (recipe, Recipe()):
        assert recipe_from(tomllib.loads(recipe_toml(recipe_to(each))), "toml") == each


def test_without_measurements_or_with_those_of_another_model(made: Path, card: dict[str, Any]) -> None:
    bench = (made / "q.onnx.bench.json").read_bytes()
    alone = rendered(card).decode()
    assert "not beside the card" in alone
    assert "Not measured" in alone
    assert rendered(card, bench) == (made / "q.html").read_bytes()
    card["quantized_model"]["sha256"] = "0" * 64
    other = rendered(card, bench).decode()
    assert "of another model" in other
    assert "interleaved" not in other


def test_what_was_tried_is_told(made: Path) -> None:
    card = read_card((made / "q.onnx.card.json").read_bytes(), "the card")
    bench = read_bench((made / "q.onnx.bench.json").read_bytes(), "its measurements")
    assert "Plans that were timed" not in (plain := page(card, bench).decode())
    plans, tries = (TimedPlan("3 layers <in> float", 3, 1.5),), (Attempt("as given", 20.0, 1234567, passed=False),)
    text = page(card, replace(bench, plans=plans, tries=tries)).decode()
    assert "3 layers &lt;in&gt; float" in text
    assert "1,234,567" in text
    assert "Recipes that were tried" not in plain


@pytest.mark.parametrize("stem", ["q.onnx", "q.onnx.card.json", "q.onnx.bench.json", "m.onnx", "d.npz", "no/where"])
def test_a_report_overwrites_nothing(made: Path, stem: str, tmp_path: Path) -> None:
    for name in ("m.onnx", "d.npz"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    command = ("quantize", tmp_path / "m.onnx", "--data", tmp_path / "d.npz", "-o", tmp_path / "q.onnx")
    done = invoke(*command, "--report", tmp_path / stem)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: cannot write {tmp_path / stem}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npz", "m.onnx"]


def test_a_missing_package_is_said_before_the_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "find_spec", lambda name: None if name == "matplotlib" else object())
    command = ("quantize", made / "m.onnx", "--data", made / "d.npz", "-o", tmp_path / "q.onnx")
    for done in (
        invoke(*command, "--report", tmp_path / "q.html"),
        invoke("report", made / "q.onnx.card.json", "-o", tmp_path / "q.html"),
    ):
        assert done.exit_code == 2
        assert done.stderr == 'error: a report needs matplotlib; run pip install "ptq[report]"\n'
    assert list(tmp_path.iterdir()) == []


def test_a_missed_goal_has_a_report_too(made: Path, tmp_path: Path) -> None:
    command = ("quantize", made / "m.onnx", "--data", made / "d.npz", "-o", tmp_path / "q.onnx")
    done = invoke(*command, "--min-sqnr-db", 150, "--report", tmp_path / "q.html")
    assert done.exit_code == 1
    assert f"report in {tmp_path / 'q.html'}" in done.output
    html = (tmp_path / "q.html").read_text()
    assert "Goal missed; no model was delivered" in html
    assert "the goal is 150 dB" in html


BROKEN: dict[str, Any] = {
    "schema": "ptq.card/99",
    "layers": {"a": 1},
    "verdict": {"passed": 1, "findings": []},
    "notes": "text",
    "recipe": {"bits": 4},
    "kernels": {},
    "accuracy": {"outputs": [{"name": "y"}], "labelled": []},
    "storage": {"codes": True},
    "quantization": {"target": "moon"},
    "spreads": {"activations": {"x": {"shares": [1.0]}}, "weights": {}, "omitted": {}},
}


@pytest.mark.parametrize("key", BROKEN)
def test_what_is_no_card_is_one_line(card: dict[str, Any], tmp_path: Path, key: str) -> None:
    for broken in (card | {key: BROKEN[key]}, {name: value for name, value in card.items() if name != key}):
        (tmp_path / "b.card.json").write_text(json.dumps(broken))
        refused(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        '{"schema": NaN}',
        '{"schema": 1e999}',
        '{"schema": 1' + "0" * 5000 + "}",
        "\xff",
    ],
)
def test_what_is_no_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.card.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path)


def test_numbers_that_are_none_are_refused(card: dict[str, Any], tmp_path: Path) -> None:
    for number in ("NaN", "-Infinity", "1e999", "1" + "0" * 30):
        card["layers"][0]["weight_sqnr_db"] = "NUMBER"
        (tmp_path / "b.card.json").write_text(json.dumps(card).replace('"NUMBER"', number))
        refused(tmp_path)


def test_folders_devices_and_huge_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "missing", Path()):
        done = invoke("report", path, "-o", tmp_path / "o.html")
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    with (tmp_path / "b.card.json").open("wb") as file:
        file.truncate(2**40)
    refused(tmp_path)


def test_broken_measurements_are_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "b.card.json").write_bytes((made / "q.onnx.card.json").read_bytes())
    (tmp_path / "b.bench.json").write_text('{"latency": {}}')
    refused(tmp_path)


def refused(folder: Path) -> None:
    """One line, exit code 2, no page."""
    done = invoke("report", folder / "b.card.json")
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert not list(folder.glob("*.html"))


def test_very_many_layers_are_the_worst_of_them(card: dict[str, Any]) -> None:
    row, spread = card["layers"][0], next(iter(card["spreads"]["weights"].values()))
    card["layers"] = [row | {"name": f"layer {i}" * 99, "weight_sqnr_db": 40 + i / 100} for i in range(3000)]
    card["spreads"]["weights"] = {f"layer {i}": spread | {"sqnr_db": 40 + i / 100} for i in range(1000)}
    card["left_float"] = {f"node {i}": f"reason {i}" for i in range(3000)}
    html = rendered(card).decode()
    assert len(html) < 3_000_000
    assert "The worst 500 of 3,000" in html
    assert "900 more" in html


def test_odd_ranges_are_drawn_or_left_out(card: dict[str, Any]) -> None:
    spread = next(iter(card["spreads"]["weights"].values()))
    ranges = [(-1.7e308, 1.7e308), (0.0, 0.0), (5.0, -5.0), (1e-300, 2e-300), (-1e308, -1e308)]
    card["spreads"]["weights"] = {
        f"{i} {j}": spread | {"rmin": a, "rmax": b, "low": c, "high": d, "shares": [7.0, -1.0] * 24, "sqnr_db": -1e300}
        for i, (a, b) in enumerate(ranges)
        for j, (c, d) in enumerate(ranges)
    }
    card["layers"][0] |= {"weight_sqnr_db": -1e300, "input_sqnr_db": 1e300}
    assert b"nan" not in rendered(card)


def test_the_card_keeps_the_coarsest_spreads(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report_module, "MOST_SPREADS", 2)
    command = ("quantize", made / "m.onnx", "--data", made / "d.npz", "-q", "-o", tmp_path / "q.onnx")
    assert invoke(*command, "--report", tmp_path / "q.html").exit_code == 0
    card = json.loads((tmp_path / "q.onnx.card.json").read_text())
    jsonschema.validate(card, SCHEMA)
    rows = sorted(card["layers"], key=lambda row: row["weight_sqnr_db"])
    assert sorted(card["spreads"]["weights"]) == sorted(row["name"] for row in rows[:2])
    assert card["spreads"]["omitted"]["weights"] == len(rows) - 2 > 0
    assert f"{len(rows) - 2} more, which lose less, are left out" in (tmp_path / "q.html").read_text()


def test_a_layer_names_the_grid_of_its_input(card: dict[str, Any]) -> None:
    assert {row["grid"] for row in card["layers"]} <= card["spreads"]["activations"].keys()


def test_spreads_of_values_that_are_known() -> None:
    values = np.linspace(-1, 3, 4001, dtype=np.float32)
    grid = choose_qparams(Range.of(0.0, 2.0), QuantSpec())
    spread = distribution_of_values(Histogram.of(values), grid, 12.0)
    assert (spread.rmin, spread.rmax, spread.sqnr_db) == (-1, 3, 12)
    assert (spread.low, spread.high) == pytest.approx((0, 2))
    assert spread.clipped == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(spread.shares, 1 / 48, rtol=0.1)
    empty = distribution_of_values(Histogram(np.zeros(0, np.int64), np.zeros(0, np.int64), np.inf, -np.inf), grid, 0.0)
    assert (empty.rmin, empty.clipped, sum(empty.shares)) == (0, 0, 0)


def test_each_row_of_a_weight_is_clipped_at_its_own_scale() -> None:
    weight = np.array([[1.0, 0.5, -0.25, 0.125], [100.0, 50.0, -25.0, 12.5]], np.float32)
    spec = replace(INT8_WEIGHT, granularity=PerAxis(0))
    params = choose_qparams(Range.of(np.array([-0.4, -100.0]), np.array([0.4, 100.0])), spec)
    spread = distribution_of_weight(weight, IntegerWeight.of(quantize(weight, params), params), 20.0)
    assert spread.clipped == 2 / 8
    assert (spread.low, spread.high) == pytest.approx((-100, 100))
    assert (sum(spread.shares), spread.shares[-1]) == (1, 0.125)


def test_front_matter_is_what_model_cards_begin_with(made: Path, card: dict[str, Any]) -> None:
    text = (made / "q.onnx.card.md").read_text()
    _, head, rest = text.split("---\n", 2)
    assert rest.startswith("\n# Quantization card")
    assert "library_name: onnxruntime" in head.splitlines()
    assert 'base_model: "m.onnx"' in head.splitlines()
    facts = dict(line.strip().split(": ", 1) for line in head.splitlines() if line.startswith("  "))
    assert json.loads(facts["float_sha256"]) == card["float_model"]["sha256"]
    assert json.loads(facts["weight_bits"]) == [8]
