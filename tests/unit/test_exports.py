"""Models as exporters and old tools write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ptq

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", pytest.param("resnet50", marks=pytest.mark.nightly)])
def test_onnx_backend_models_quantize_and_run(name: str) -> None:
    path = LIGHT / f"light_{name}.onnx"
    if not path.is_file():
        pytest.skip("this onnx wheel ships no backend models")
    result = ptq.quantize(path, None, ptq.Recipe(samples=2, optimize="integers"))
    assert result.report.data.is_random
    assert result.report.proof.kernels.num_linear >= 20
    assert not result.report.proof.kernels.fallbacks


@pytest.fixture
def network() -> Any:
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Convolutions, depthwise, batch normalisation, Relu6, residual, resize, concatenation, classes."""

        def __init__(self) -> None:
            super().__init__()
            nn = torch.nn
            self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
            self.depthwise, self.point = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 16, 1)
            self.merge, self.drop, self.head = nn.Conv2d(32, 32, 3, 1, 1), nn.Dropout(), nn.Linear(32, 10)

        def forward(self, x: Any) -> Any:
            f = torch.nn.functional
            a = f.relu6(self.norm(self.stem(x)))
            b = a + self.point(f.relu6(self.depthwise(a)))
            c = f.interpolate(f.max_pool2d(b, 2), scale_factor=2.0)
            d = f.relu(self.merge(torch.cat([b, c], 1)))
            return self.head(self.drop(d.mean((2, 3))))

    torch.manual_seed(0)
    return Network().eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_fresh_torch_exports_quantize_without_a_flag(network: Any, tmp_path: Path, exporter: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    path, sample = tmp_path / "m.onnx", torch.zeros(2, 3, 32, 32)
    if exporter == "dynamo":
        torch.onnx.export(network, (sample,), path, dynamo=True, dynamic_shapes=({0: "batch"},), external_data=True)
        assert (tmp_path / "m.onnx.data").exists()
    else:
        options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "N"}}}
        torch.onnx.export(network, (sample,), path, dynamo=False, **options)
    x = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)
    result = ptq.quantize(path, x)
    assert result.report.proof.kernels.num_linear == 5
    assert set(result.report.proof.kernels.islands) <= {"ReduceMean"}
    assert result.report.proof.comparison.sqnr_db > 35
    assert result.delivery.num_bytes < result.report.float_model.num_bytes
