"""A decoder-only language model with a key/value cache, as torch exports it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ptq
from ptq.calibration.observers import Dynamic, Observer
from ptq.recipe import Recipe, Weights
from ptq.runtime import open_session
from ptq.weights import Gptq

VOCABULARY, WIDTH, HEADS = 500, 128, 4
CACHE = ("past_key_0", "past_value_0", "past_key_1", "past_value_1")
NAMES = ["input_ids", "attention_mask", *CACHE]
CLEAR = 0.25
"""Margin of the first over the second token, in standard deviations of the logits, that counts as clear."""


def _decoder(torch: Any) -> Any:
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.gate, self.up = (nn.Linear(WIDTH, 4 * WIDTH, bias=False) for _ in range(2))
            self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x: Any, mask: Any, key: Any, value: Any) -> Any:
            batch, length, _ = x.shape

            def heads(y: Any) -> Any:
                return y.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)

            y = self.before(x)
            key, value = torch.cat([key, heads(self.k(y))], 2), torch.cat([value, heads(self.v(y))], 2)
            scores = heads(self.q(y)) @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask
            mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, WIDTH)
            x = x + self.o(mixed)
            y = self.between(x)
            return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y)), key, value

    class Decoder(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(256, WIDTH)
            self.blocks = nn.ModuleList([Block() for _ in range(2)])
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

        def forward(self, input_ids: Any, attention_mask: Any, *past: Any) -> Any:
            places = torch.arange(input_ids.shape[1]) + past[0].shape[2]
            x = self.words(input_ids) + self.places(places)
            later = torch.arange(attention_mask.shape[1])[None] > places[:, None]
            hidden = later[None, None] | (attention_mask == 0)[:, None, None, :]
            mask = torch.where(hidden, torch.finfo(torch.float32).min, 0.0)
            present = []
            for block, *old in zip(self.blocks, past[::2], past[1::2], strict=True):
                x, *new = block(x, mask, *old)
                present += new
            return (self.head(self.norm(x)), *present)

    torch.manual_seed(0)
    return Decoder().eval()


def _cache(length: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
    shape = (1, HEADS, length, WIDTH // HEADS)
    values = [np.zeros(shape) if rng is None else 0.5 * rng.standard_normal(shape) for _ in CACHE]
    return {name: value.astype(np.float32) for name, value in zip(CACHE, values, strict=True)}


def _samples(count: int = 24) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        length, past = int(rng.integers(1, 12)), int(rng.integers(0, 9))
        ids, mask = rng.integers(0, VOCABULARY, (1, length)), np.ones((1, length + past), np.int64)
        yield {"input_ids": ids, "attention_mask": mask} | _cache(past, rng)


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():  # torch's own, whichever test asks for the export first
        warnings.simplefilter("ignore")
        return _export(request.param, tmp_path_factory.mktemp(request.param))


def _export(exporter: str, folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    path = folder / "decoder.onnx"
    past = [torch.zeros(1, HEADS, 3, WIDTH // HEADS) for _ in CACHE]
    inputs = (torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 8, dtype=torch.long), *past)
    outputs = ["logits", *(name.replace("past", "present") for name in CACHE)]
    if exporter == "dynamo":
        free = torch.export.Dim.DYNAMIC
        shapes = ({1: free}, {1: free}, tuple({2: free} for _ in CACHE))
        torch.onnx.export(
            _decoder(torch), inputs, path, input_names=NAMES, output_names=outputs, dynamic_shapes=shapes, dynamo=True
        )
    else:
        axes = {"input_ids": {1: "S"}, "attention_mask": {1: "T"}, **{name: {2: "P"} for name in CACHE}}
        torch.onnx.export(
            _decoder(torch), inputs, path, input_names=NAMES, output_names=outputs, dynamic_axes=axes, dynamo=False
        )
    return path


RECIPES: dict[str, tuple[Observer | None, Weights]] = {
    "4 bits in blocks": (None, Weights(Gptq(), 4, "block-32")),
    "4 bits": (None, Weights(Gptq(), 4)),
    "dynamic": (Dynamic(), Weights()),
}


@pytest.mark.parametrize("name", RECIPES)
def test_generates_the_tokens_of_the_float_model(decoder: Path, name: str) -> None:
    observer, weights = RECIPES[name]
    recipe = Recipe(weights=weights, weight_only=True) if observer is None else Recipe(None, observer, weights)
    result = ptq.quantize(decoder, list(_samples()), recipe)
    assert len(result.report.layers) == 15
    assert result.report.verdict.passed
    float_session, session = open_session(decoder), result.session()
    clear = 0
    for seed in range(4):
        ids = np.random.default_rng(seed).integers(0, VOCABULARY, (1, 6))
        past, own = _cache(0), _cache(0)
        for _ in range(8):
            mask = np.ones((1, past[CACHE[0]].shape[2] + ids.shape[1]), np.int64)
            feed = {"input_ids": ids, "attention_mask": mask}
            logits, *present = float_session.run(None, feed | past)
            found, *kept = session.run(None, feed | own)
            past, own = (dict(zip(CACHE, each, strict=True)) for each in (present, kept))
            last = np.sort(logits[0, -1])
            if last[-1] - last[-2] > CLEAR * logits[0, -1].std():
                clear += 1
                assert found[0, -1].argmax() == logits[0, -1].argmax()
            ids = logits[:, -1:].argmax(-1)  # both go on with the float model's token
    assert clear >= 8


def test_masks_and_positions_stay_out_of_every_range(decoder: Path) -> None:
    result = ptq.quantize(decoder, list(_samples()))
    assert min(each.sqnr_db for each in result.report.proof.comparison.outputs) > 33
    assert {row.op_type for row in result.report.layers} == {"MatMul"}


def test_an_empty_input_is_refused_where_nothing_else_says_how_much_there_is(decoder: Path) -> None:
    feed = next(_samples()) | {"input_ids": np.zeros((1, 0), np.int64)}
    with pytest.raises(ptq.PtqError, match="input_ids is empty in sample 0"):
        ptq.quantize(decoder, [feed])
