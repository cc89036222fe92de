"""Copies of texts with other words: which inputs are words, what stays, and what it is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import ptq
from ptq.calibration.token_augmentation import vocabularies, with_other_tokens
from ptq.recipe import Recipe, Weights
from ptq.weights import Gptq
from tests.builders import model_from_text, random

ROWS = 2000
BEGIN, END = 1, 2


def encoder() -> ir.Model:
    text = """
    m (int64[N, S] ids, int64[N, S] kinds, int64[N, S] places) => (float[N, S, 16] y) {
        narrow = Cast <to = 6> (ids)
        words = Gather (table, narrow)
        kind = Gather (two, kinds)
        place = Gather (positions, places)
        some = Add (words, kind)
        x = Add (some, place)
        a = MatMul (x, w0)
        r = Relu (a)
        y = MatMul (r, w1)
    }"""
    rank = np.random.default_rng(9).standard_normal((ROWS, 32)) * np.geomspace(3.0, 0.1, 32)  # words lie askew
    table = (rank @ np.random.default_rng(8).standard_normal((32, 32))).astype(np.float32)
    weights: dict[str, Any] = {
        "table": table, "two": random((2, 32), 2), "positions": random((1500, 32), 3) * np.float32(0.1),
        "w0": random((32, 48), 4), "w1": random((48, 16), 5),
    }  # fmt: skip
    return model_from_text(text, weights, 21)


def texts(count: int, words: NDArray[Any], seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        ids = np.concatenate([[BEGIN], rng.choice(words, int(rng.integers(10, 16))), [END]])[None]
        feeds.append({"ids": ids, "kinds": np.zeros_like(ids), "places": np.arange(ids.size)[None]})
    return feeds


FEW = np.arange(10, 40)


def test_words_are_inputs_that_pick_rows_of_a_large_table() -> None:
    assert vocabularies(encoder()) == {"ids": ROWS, "places": 1500}


def test_copies_keep_what_is_common_and_everything_but_words() -> None:
    samples = texts(40, FEW)
    copies = list(with_other_tokens(lambda: samples, vocabularies(encoder()), 0))
    assert len(copies) == len(samples)
    same, total = 0, 0
    for sample, copy in zip(samples, copies, strict=True):
        old, new = sample["ids"], copy["ids"]
        assert new.shape == old.shape
        assert new.dtype == old.dtype
        assert (new[0, 0], new[0, -1]) == (BEGIN, END)
        assert ((new >= 0) & (new < ROWS)).all()
        assert copy["places"] is sample["places"] or (copy["places"] == sample["places"]).all()
        assert copy["kinds"] is sample["kinds"]
        same, total = same + int((new == old)[0, 1:-1].sum()), total + old.size - 2
    assert 0.35 < same / total < 0.65
    assert len(np.unique(np.concatenate([copy["ids"][0] for copy in copies]))) > 2 * len(FEW)


def test_copies_depend_on_the_seed_alone() -> None:
    samples = texts(8, FEW)
    first, again, other = (
        [copy["ids"].tolist() for copy in with_other_tokens(lambda: samples, {"ids": ROWS}, seed)] for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("samples", [texts(1, FEW), texts(1, FEW) * 5], ids=["one", "all the same"])
def test_texts_of_the_same_words_have_no_copies(samples: list[dict[str, Any]]) -> None:
    assert not list(with_other_tokens(lambda: samples, {"ids": ROWS}, 0))


def test_unseen_words_lose_less() -> None:
    unseen = texts(64, np.arange(100, ROWS), seed=5)
    found = {}
    for other_words in (True, False):
        recipe = Recipe(weight_only=True, weights=Weights(Gptq(), 3, "block-32"), other_words=other_words)
        result = ptq.quantize(encoder(), texts(64, FEW), recipe, evaluation=unseen)
        found[other_words] = result.report.proof.comparison.sqnr_db
        assert any("fitted to 64 samples" in note for note in result.report.notes) is other_words
    assert found[True] > found[False] + 1.0
