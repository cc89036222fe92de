"""Small runs over every path of the house. What they deliver is hashed against an earlier commit, and read as text.

`python -m tests.golden.scenarios` prints a line per run: name, hash of the model, hash of the card.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

import ptq
from ptq import Recipe, pipeline
from ptq.calibration.observers import Dynamic, Kl, Mse, Percentile
from ptq.calibration.shards import Shard
from ptq.job import Result
from ptq.recipe import Goals, LayerRule, Weights
from ptq.weights import Gpfq, Gptq, Hqq, Pot, Qronos, Rtn
from tests.builders import SWIGLU_WIDTH, attention, conv_net, feeds, model_from_text, random, swiglu
from tests.unit import (
    test_absorbing,
    test_balancing,
    test_dynamic,
    test_equalising,
    test_other_words,
    test_stored,
    test_sums,
    test_transformers,
    test_unfuse,
    test_widen,
)

Feeds = Sequence[Mapping[str, Any]]
Run = Callable[[ir.Model, Feeds, Recipe], Result]


@dataclass(frozen=True)
class Scenario:
    """One run.

    Attributes:
        build: Makes the float model.
        data: Calibration samples.
        recipe: Decisions; the target is named, so that any machine writes the same graph.
        run: How it is quantized.
        form: Whether the text of its graph is kept: one for each form that lowering writes.
    """

    build: Callable[[], ir.Model]
    data: Feeds
    recipe: Recipe = field(default_factory=Recipe)
    run: Run = ptq.quantize
    form: bool = False

    def result(self) -> Result:
        """Quantize."""
        target, weights = self.recipe.target or "cpu-x86", self.recipe.weights
        weights = replace(weights, method=weights.method or Rtn())
        return self.run(self.build(), list(self.data), replace(self.recipe, target=target, weights=weights))


def streamed(model: ir.Model, data: Feeds, recipe: Recipe) -> Result:
    """As if the model were too large for memory."""
    whole, pipeline.needs_streaming = pipeline.needs_streaming, lambda _model: True
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            ir.save(model, path, external_data="m.onnx.data", size_threshold_bytes=0)
            return ptq.quantize(path, list(data), recipe)
    finally:
        pipeline.needs_streaming = whole


def sharded(model: ir.Model, data: Feeds, recipe: Recipe) -> Result:
    """Calibrated in two shards, in as many rounds as it takes, merged, then quantized."""
    with TemporaryDirectory() as folder:
        parts, whole = [Path(folder) / f"{index}.calib" for index in range(2)], Path(folder) / "all.calib"
        for known in (None, whole):
            for index, path in enumerate(parts):
                shard = Shard(index, len(parts))
                ptq.calibrate(model.clone(), list(data), recipe, shard=shard, calibration=known).save(path)
            merged = ptq.merge(parts)
            merged.save(whole)
            if not merged.is_first_round:
                break
        return ptq.quantize(model, list(data), recipe, calibration=whole)


def evaluated(model: ir.Model, data: Feeds, recipe: Recipe) -> Result:
    """Verified on data of its own."""
    return ptq.quantize(model, data[:16], recipe, evaluation=list(data[16:]))


def transposed_conv() -> ir.Model:
    """A transposed convolution between two convolutions, padding in front."""
    text = """
    net (float[1, 3, 8, 8] x) => (float[A, B, C, D] y) {
        p = Pad (x, pads)
        a = Conv (p, w0)
        r = Relu (a)
        t = ConvTranspose <strides = [2, 2]> (r, w1)
        y = Conv (t, w2)
    }"""
    weights = {"w0": random((6, 3, 3, 3), 1), "w1": random((6, 5, 2, 2), 2), "w2": random((4, 5, 3, 3), 3)}
    return model_from_text(text, weights | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])})


def chain() -> ir.Model:
    """Products with a Relu between, of sizes that streaming takes."""
    text = """
    m (float[N, 64] x) => (float[N, 64] y) {
        a = MatMul (x, w0)
        r = Relu (a)
        b = MatMul (r, w1)
        y = Add (b, x)
    }"""
    return model_from_text(text, {"w0": random((64, 200), 1, 0.1), "w1": random((200, 64), 2, 0.1)})


def words(count: int) -> Feeds:
    """Sequences for `swiglu`."""
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 5, SWIGLU_WIDTH)).astype(np.float32)} for _ in range(count)]


IMAGES, TOKENS, WIDE = feeds(24, 3, 16, 16), feeds(24, 7, 16), feeds(24, 3, 10, 10)
SMALL, ROWS = feeds(24, 8, 8, 8), feeds(24, 64)
net = partial(Scenario, conv_net, IMAGES)
transformer = partial(Scenario, attention, TOKENS)
gated = partial(Scenario, partial(swiglu, 20.0), words(16))
centre = partial(Scenario, test_sums.wide_centre, WIDE)
language = partial(Scenario, test_transformers.language_model, test_transformers.tokens(24))
recurrent = partial(Scenario, test_stored.lstm, test_stored.sequences())
BLOCKS = "block-32"

SCENARIOS: dict[str, Scenario] = {
    "static": net(form=True),
    "static per tensor": net(Recipe(weights=Weights(granularity="per-tensor"))),
    "static kl": net(Recipe(activations=Kl())),
    "static mse": net(Recipe(activations=Mse(), samples=12)),
    "static percentile": net(Recipe(activations=Percentile()), evaluated),
    "static 6-bit activations": net(Recipe(activation_bits=6), form=True),
    "static 4-bit gptq": net(Recipe(weights=Weights(Gptq(), 4))),
    "static 3-bit qronos": net(Recipe(weights=Weights(Qronos(), 3)), form=True),
    "static 5-bit gpfq": net(Recipe(weights=Weights(Gpfq(), 5, first_last_bits=8))),
    "static 4-bit mse": net(Recipe(weights=Weights(Rtn("mse"), 4)), form=True),
    "static 3-bit pot": net(Recipe(weights=Weights(Pot(), 3)), form=True),
    "more points": net(Recipe(weights=Weights(Gptq(), 4, extra_macs=0.1)), form=True),
    "more points qronos": centre(Recipe(weights=Weights(Qronos(), 3, extra_macs=0.2))),
    "split whole": net(Recipe(weights=Weights(Gptq(), 3, split="whole"))),
    "split kept at 4 bits": centre(Recipe(weights=Weights(Gptq(), 4))),
    "split kept at 8 bits": centre(Recipe(weights=Weights(granularity="per-tensor")), form=True),
    "split asked for at 8 bits": centre(Recipe(weights=Weights(split="center"))),
    "split on native": centre(Recipe("native", weights=Weights(split="center"))),
    "rules": net(Recipe(weights=Weights(bits=4), layers=(LayerRule("Conv", bits=8), LayerRule("Gemm", skip=True)))),
    "excluded": net(Recipe(exclude=("Concat", "re:d.*"), seed=3)),
    "portable": net(Recipe("portable"), form=True),
    "portable 8-bit gptq": net(Recipe("portable", weights=Weights(Gptq()))),
    "arm": net(Recipe("cpu-arm")),
    "native": net(Recipe("native"), form=True),
    "native 4-bit transformer": transformer(Recipe("native", weights=Weights(Gptq(), 4)), form=True),
    "transformer": Scenario(attention, TOKENS[:16], form=True),
    "transformer 4-bit gptq": transformer(Recipe(weights=Weights(Gptq(), 4))),
    "outlier channels": Scenario(test_balancing.outlier_net, TOKENS),
    "outlier channels dynamic": Scenario(test_balancing.outlier_net, TOKENS, Recipe(activations=Dynamic())),
    "fused transformer": Scenario(partial(test_unfuse.fused, test_unfuse.NODES["masked"]), test_unfuse.samples(24)),
    "equalized": Scenario(partial(test_equalising.net, "Relu", test_equalising.UNEVEN), SMALL),
    "not equalized": Scenario(
        partial(test_equalising.net, "Relu", test_equalising.UNEVEN), SMALL, Recipe(equalize=False)
    ),
    "absorbed": Scenario(test_absorbing.net, SMALL),
    "transposed": Scenario(transposed_conv, feeds(24, 3, 8, 8), form=True),
    "tables": language(form=True),
    "tables weight-only 4 bits": language(Recipe(weight_only=True, weights=Weights(bits=4))),
    "other words": Scenario(
        test_other_words.encoder, test_other_words.texts(24, test_other_words.FEW), Recipe(weights=Weights(Gptq(), 4))
    ),
    "recurrent": recurrent(form=True),
    "recurrent dynamic": recurrent(Recipe(activations=Dynamic()), form=True),
    "recurrent dynamic portable": recurrent(Recipe("portable", Dynamic())),
    "recurrent weight-only": Scenario(
        partial(test_stored.lstm, "reverse", "GRU"), test_stored.sequences(), Recipe(weight_only=True)
    ),
    "bodies": Scenario(test_stored.branches, feeds(24, 8, 8, 8), form=True),
    "half floats": Scenario(partial(test_widen.net, "float16"), test_widen.samples("float16", 24)),
    "dynamic": transformer(Recipe(activations=Dynamic()), form=True),
    "dynamic native": transformer(Recipe("native", Dynamic()), form=True),
    "dynamic gemm 4 bits": Scenario(
        test_dynamic.products, feeds(24, 24), Recipe(activations=Dynamic(), weights=Weights(bits=4))
    ),
    "dynamic blocks": gated(Recipe(activations=Dynamic(), weights=Weights(bits=4, granularity=BLOCKS)), form=True),
    "weight-only blocks": gated(Recipe(weight_only=True, weights=Weights(bits=4, granularity=BLOCKS)), form=True),
    "weight-only blocks of 8 bits": gated(Recipe(weight_only=True, weights=Weights(granularity=BLOCKS))),
    "weight-only hqq": gated(Recipe(weight_only=True, weights=Weights(Hqq(), 3, BLOCKS)), form=True),
    "weight-only blocks gptq": gated(Recipe(weight_only=True, weights=Weights(Gptq(), 4, BLOCKS))),
    "weight-only gptq": net(Recipe(weight_only=True, weights=Weights(Gptq(), 5)), form=True),
    "streamed": Scenario(chain, ROWS[:4], Recipe(weight_only=True, weights=Weights(bits=4)), streamed, form=True),
    "streamed 8 bits": Scenario(chain, ROWS[:4], Recipe(weight_only=True, weights=Weights(Rtn("mse"))), streamed),
    "in shards": Scenario(conv_net, feeds(80, 3, 16, 16), Recipe(weights=Weights(Gptq(), 4)), sharded),
    "transformer in shards": Scenario(attention, feeds(80, 7, 16), run=sharded),
    "goal": net(Recipe(weights=Weights(bits=3), goals=Goals(min_sqnr_db=30.0), search=True)),
}


def hashes(name: str) -> tuple[str, str, str]:
    """Name, and what became of the run: SHA-256 of the files of the model, and of its card."""
    result, model = SCENARIOS[name].result(), hashlib.sha256()
    with result.delivery.as_file() as path:
        for each in sorted(path.parent.iterdir()):
            model.update(each.read_bytes())
    return name, model.hexdigest(), hashlib.sha256(result.report.card_json().encode()).hexdigest()


if __name__ == "__main__":
    for chosen in sys.argv[1:] or SCENARIOS:
        print(json.dumps(hashes(chosen)), flush=True)  # noqa: T201 - read by the test
