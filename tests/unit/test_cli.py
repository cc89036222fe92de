"""The command line: exit codes, one line per error, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from ptq.cli import main
from ptq.runtime.native import native_kernels
from tests.builders import conv_net, feeds, model_from_text, random


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model and data that work."""
    ir.save(conv_net(), tmp_path / "m.onnx")
    x = np.concatenate([feed["x"] for feed in feeds(16, 3, 16, 16)])
    np.savez(tmp_path / "d.npz", x=x, labels=np.zeros(16, np.int64))
    return tmp_path


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def quantize(folder: Path, *extra: Any, model: str = "m.onnx", data: str = "d.npz") -> Result:
    return invoke("quantize", folder / model, "--data", folder / data, "-o", folder / "q.onnx", *extra)


def refused(result: Result, folder: Path, *words: str) -> None:
    """One line on stderr, exit code 2, no output and no temporary file."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert not (folder / "q.onnx").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".") or "card" in path.name]


def test_json_is_one_object_with_card_and_bench(folder: Path) -> None:
    done = quantize(folder, "--json")
    facts = json.loads(done.stdout)
    assert facts["verdict"]["passed"] is True
    assert facts["bench"]["latency"]["ratio"] > 0


def test_quiet_says_nothing_when_all_is_well(folder: Path) -> None:
    done = quantize(folder, "--quiet")
    assert (done.exit_code, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "goal",
    [("--min-sqnr-db", 199), ("--max-latency-ratio", 1e-6), ("--max-drop", 0.0, "--min-sqnr-db", 150)],
    ids=["sqnr", "latency", "two"],
)
def test_a_missed_goal_is_exit_1_with_a_card_and_no_model(folder: Path, goal: tuple[Any, ...]) -> None:
    (folder / "q.onnx").write_bytes(b"an older model")
    done = quantize(folder, *goal)
    assert done.exit_code == 1, done.output
    assert not (folder / "q.onnx").exists()
    assert json.loads((folder / "q.onnx.card.json").read_text())["verdict"]["passed"] is False
    assert "goal" in done.output


def test_a_missed_goal_shows_even_when_quiet(folder: Path) -> None:
    done = quantize(folder, "--quiet", "--min-sqnr-db", 199)
    assert done.exit_code == 1
    assert "SQNR" in done.stderr


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.ones((4, 3, 16, 16), np.float32)}, ("z", "x")),
        ({"x": np.ones((4, 3, 16, 16), np.float32), "extra": np.ones(4)}, ("extra", "x")),
        ({"x": np.ones((4, 3, 16, 16))}, ("float64", "float32")),
        ({"x": np.ones((4, 5, 16, 16), np.float32)}, ("[5, 16, 16]", "3")),
        ({"x": np.ones((4, 16), np.float32)}, ("(4, 16)",)),
        ({"x": np.ones((0, 3, 16, 16), np.float32)}, ("empty",)),
        ({"x": np.full((4, 3, 16, 16), np.nan, np.float32)}, ("x", "sample 0", "NaN")),
        ({"x": np.full((4, 3, 16, 16), np.inf, np.float32)}, ("x", "infinity")),
        ({"x": np.ones((4, 3, 16, 16), np.float32), "labels": np.zeros(3, np.int64)}, ("labels 3", "x 4")),
    ],
    ids=["missing", "extra", "dtype", "extent", "rank", "empty", "nan", "inf", "counts"],
)
def test_data_that_does_not_fit_is_refused(folder: Path, arrays: dict[str, Any], words: tuple[str, ...]) -> None:
    np.savez(folder / "bad.npz", **arrays)
    refused(quantize(folder, data="bad.npz"), folder, "bad.npz", *words)


class Canary:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_loaded(folder: Path) -> None:
    array = np.empty(1, object)
    array[0] = Canary(folder / "canary")
    np.savez(folder / "bad.npz", x=array)
    refused(quantize(folder, data="bad.npz"), folder, "x", "never loaded")
    (folder / "bad.npy").write_bytes(pickle.dumps(Canary(folder / "canary")))
    refused(quantize(folder, data="bad.npy"), folder, "bad.npy")
    (folder / "bad.onnx").write_bytes(pickle.dumps(Canary(folder / "canary")))
    refused(quantize(folder, model="bad.onnx"), folder, "bad.onnx")
    assert not (folder / "canary").exists()


def broken(kind: str, good: bytes) -> bytes:
    return {
        "empty": b"",
        "text": b"hello",
        "truncated": good[: len(good) // 2],
        "zeros": bytes(1000),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "zeros"])
def test_broken_models_are_refused(folder: Path, kind: str) -> None:
    (folder / "bad.onnx").write_bytes(broken(kind, (folder / "m.onnx").read_bytes()))
    refused(quantize(folder, model="bad.onnx"), folder, "bad.onnx")


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "zeros"])
def test_broken_data_is_refused(folder: Path, kind: str) -> None:
    (folder / "bad.npz").write_bytes(broken(kind, (folder / "d.npz").read_bytes()))
    refused(quantize(folder, data="bad.npz"), folder, "bad.npz")


def test_missing_files_are_named(folder: Path) -> None:
    refused(quantize(folder, model="no.onnx"), folder, "no.onnx")
    refused(quantize(folder, data="no.npz"), folder, "no.npz")
    refused(invoke("validate", folder / "m.onnx", folder / "no.onnx", "--data", folder / "d.npz"), folder, "no.onnx")


def test_outputs_that_cannot_be_written_are_found_out_first(folder: Path) -> None:
    for output, word in ((folder, "folder"), (folder / "no/q.onnx", "no such folder"), (folder / "m.onnx", "input")):
        before = (folder / "m.onnx").read_bytes()
        done = invoke("quantize", folder / "m.onnx", "--data", folder / "d.npz", "-o", output)
        refused(done, folder, word)
        assert (folder / "m.onnx").read_bytes() == before
    (folder / "link.onnx").symlink_to(folder / "m.onnx")
    refused(
        invoke("quantize", folder / "m.onnx", "--data", folder / "d.npz", "-o", folder / "link.onnx"), folder, "input"
    )


def test_function_bombs_are_counted_not_inlined(folder: Path) -> None:
    opsets = 'opset_import: ["" : 17, "l" : 1]'
    image = "float[N, 3, 16, 16]"
    head = f"<ir_version: 9, {opsets}>\nn ({image} x) => ({image} y) {{ y = l.f0 (x) }}"
    bodies = [f"c = l.f{i + 1} (a)  d = l.f{i + 1} (c)  b = l.f{i + 1} (d)" for i in range(30)] + ["b = Relu (a)"]
    calls = "\n".join(f'<domain: "l", {opsets}>\nf{i} (a) => (b) {{ {body} }}' for i, body in enumerate(bodies))
    onnx.save(onnx.parser.parse_model(f"{head}\n{calls}"), folder / "bomb.onnx")
    refused(quantize(folder, model="bomb.onnx"), folder, "bomb.onnx", "nodes")


def test_models_that_do_not_run_are_refused(folder: Path) -> None:
    graph = onnx.load(folder / "m.onnx")
    graph.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(graph, folder / "bad.onnx")
    refused(quantize(folder, model="bad.onnx"), folder, "bad.onnx", "NoSuchOperator")
    text = "net (float[N, 3, 16, 16] x) => (float[N, 4, 14, 14] y) { y = custom.Thing (x) }"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17, "custom" : 1]>\n{text}')
    onnx.save(model, folder / "custom.onnx")
    refused(quantize(folder, model="custom.onnx"), folder, "--custom-ops")
    ir.save(
        model_from_text("n (float[N, 3, 16, 16] x) => (float[N, 9] y) { y = MatMul (x, w) }", {"w": random((7, 9))}),
        folder / "dim.onnx",
    )
    refused(quantize(folder, model="dim.onnx"), folder)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--target", "toaster"), "toaster"),
        (("--activations", "best"), "best"),
        (("--weights", "magic"), "magic"),
        (("--exclude", "nothing_like_it"), "nothing_like_it"),
        (("--metric", "no.such:thing"), "no.such:thing"),
        (("--mean", "a,b"), "a,b"),
        (("--random-data",), "both"),
        (("--min-agreement", 2), ""),
        (("--custom-ops", "no.so"), "no.so"),
    ],
)
def test_wrong_options_are_exit_2(folder: Path, options: tuple[Any, ...], word: str) -> None:
    done = quantize(folder, *options)
    assert done.exit_code == 2
    assert word in done.stderr
    assert "Traceback" not in done.output
    assert not (folder / "q.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [(), ("m.onnx",), ("m.onnx", "--data", "d.npz", "--samples", "0", "-o", "q.onnx"), ("--no-such-option",)],
)
def test_wrong_usage_is_one_line_too(folder: Path, arguments: tuple[str, ...]) -> None:
    refused(invoke("quantize", *arguments), folder, "--help")
    assert invoke("no-such-command").exit_code == 2
    assert invoke("--help").exit_code == 0
    assert invoke("--version").exit_code == 0


def test_the_version_comes_first_and_then_which_operators_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lines(library: str | None) -> list[str]:
        if library is not None:
            monkeypatch.setenv("PTQ_NATIVE_LIBRARY", library)
        done = invoke("--version")
        assert done.exit_code == 0
        return done.stdout.splitlines()

    first = f"ptq, version {metadata.version('ptq')}"
    kernels = native_kernels()
    assert lines(None)[0] == first
    assert lines(None)[1].startswith(f"operator library: {kernels} kernels" if kernels else "operator library: none; ")
    assert lines("") == [first, "operator library: none; PTQ_NATIVE_LIBRARY is empty"]
    (tmp_path / "text.so").write_text("no library")
    assert lines(str(tmp_path / "text.so"))[0] == first
    assert lines(str(tmp_path / "text.so"))[1].startswith(f"operator library: none; {tmp_path / 'text.so'} cannot be")


def test_poor_accuracy_is_said_without_a_goal(folder: Path) -> None:
    x = np.concatenate([feed["x"] for feed in feeds(16, 3, 16, 16)])
    x[:, 0] *= 1e4  # one channel dwarfs the others on the common grid
    np.savez(folder / "uneven.npz", x=x)
    graph = ir.load(folder / "m.onnx")
    weight = graph.graph.initializers["w1"].const_value.numpy().copy()
    weight[:, 0] = 0
    graph.graph.initializers["w1"].const_value = ir.tensor(weight)
    ir.save(graph, folder / "uneven.onnx")
    done = quantize(folder, "--fast", model="uneven.onnx", data="uneven.npz")
    assert "repaired: as asked, " in done.output
    assert "verdict: holds; no goal was set; " in done.output


def test_neither_data_nor_random_data_is_refused(folder: Path) -> None:
    refused(invoke("quantize", folder / "m.onnx", "-o", folder / "q.onnx"), folder, "--data", "neither")


def test_random_data_is_marked(folder: Path) -> None:
    done = invoke("quantize", folder / "m.onnx", "--random-data", "-o", folder / "q.onnx")
    assert done.exit_code == 0
    assert "RANDOM DATA" in (folder / "q.onnx.card.md").read_text()
    assert json.loads((folder / "q.onnx.card.json").read_text())["data"]["is_random"] is True


def test_recipe_and_options_combine(folder: Path) -> None:
    (folder / "r.toml").write_text(
        'activations = "mse"\nexclude = ["Gemm"]\n[weights.method]\nmethod = "rtn"\nclip = "mse"\n'
    )
    done = quantize(folder, "--recipe", folder / "r.toml", "--activations", "kl", "--json")
    facts = json.loads(done.stdout)
    assert facts["recipe"]["activations"]["method"] == "kl"
    assert facts["recipe"]["weights"]["method"] == {"method": "rtn", "clip": "mse"}
    assert "excluded" in facts["left_float"]["y"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wieghts = 1", ("wieghts",)),
        ('[weights]\nbias_correction = "yes"', ("weights", "bias_correction")),
        ('activations = "best"', ("best",)),
        ("[goals]\nmin_sqnr_db = true", ("min_sqnr_db",)),
        ("samples = 0", ("samples",)),
        ("= broken", ("TOML",)),
    ],
)
def test_wrong_recipes_name_the_key(folder: Path, text: str, words: tuple[str, ...]) -> None:
    (folder / "r.toml").write_text(text)
    refused(quantize(folder, "--recipe", folder / "r.toml"), folder, *words)


def test_metric_of_the_user_is_judged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mymetric.py").write_text("def score(outputs, labels):\n    return float(outputs['y'].mean())\n")
    monkeypatch.syspath_prepend(str(folder))
    done = invoke(
        "validate",
        folder / "m.onnx",
        folder / "m.onnx",
        "--data",
        folder / "d.npz",
        "--metric",
        "mymetric:score",
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert {row["name"] for row in json.loads(done.stdout)["labelled"]} == {"top1", "mymetric:score"}


def test_interrupt_is_130(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ptq.api.quantize", interrupted)
    assert quantize(folder).exit_code == 130
    assert not (folder / "q.onnx").exists()


def test_models_are_timed_side_by_side_with_a_control(folder: Path) -> None:
    path = str(folder / "m.onnx")
    result = invoke("bench", path, path, "--seconds", "0", "--batch", "2", "--profile", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["name"] for row in found["models"]] == ["m.onnx", "m.onnx", "m.onnx again"]
    assert found["batch"] == 2
    assert found["models"][0]["ratio"] == 1
    assert sum(each["nodes"] for each in found["models"][0]["operators"].values()) > 2
    text = invoke("bench", path, "--seconds", "0", "--profile", "--no-native")
    assert "x first" in text.stdout
    assert "share" in text.stdout
    assert invoke("bench", str(folder / "none.onnx")).exit_code == 2
