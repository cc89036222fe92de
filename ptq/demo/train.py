"""Train the demo network and export it: `python -m ptq.demo.train digits.onnx`. Needs the extra `learn` (torch).

RepVGG style: 3x3, 1x1 and identity branches with batch normalization while training, one 3x3 convolution per block in
the export. Not part of the product: the result is committed, so the demo runs without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from ptq.demo.data import Digits, load
from ptq.runtime import open_session

BLOCKS = ((1, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))  # channels in, out, stride
EPOCHS, BATCH = 24, 50


class Block(nn.Module):
    """A multi-branch block that folds into one convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.wide = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.narrow = nn.Conv2d(channels_in, channels_out, 1, stride, 0, bias=False)
        same = channels_in == channels_out and stride == 1
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels_out) for _ in range(3 if same else 2))

    def forward(self, x: Tensor) -> Tensor:
        """Sum the branches, and rectify. [N, in, H, W] -> [N, out, H / stride, W / stride]."""
        total = self.norms[0](self.wide(x)) + self.norms[1](self.narrow(x))
        if len(self.norms) == 3:
            total = total + self.norms[2](x)
        return functional.relu(total)

    def folded(self) -> nn.Conv2d:
        """Return the block as one 3x3 convolution with bias."""
        weight = self.wide.weight
        channels_out, channels_in = weight.shape[:2]
        identity = torch.zeros_like(weight)
        if len(self.norms) == 3:
            identity[range(channels_out), range(channels_in), 1, 1] = 1.0
        kernels = [weight, functional.pad(self.narrow.weight, (1, 1, 1, 1)), identity]
        conv = nn.Conv2d(channels_in, channels_out, 3, self.stride, 1)
        parts = [_fold(kernel, norm) for kernel, norm in zip(kernels, self.norms, strict=False)]
        conv.weight.data = torch.stack([part[0] for part in parts]).sum(0)
        conv.bias = nn.Parameter(torch.stack([part[1] for part in parts]).sum(0))
        return conv


def _fold(kernel: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Fold a batch normalization into the convolution in front of it; return kernel and bias."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise TypeError("expected a batch normalization with running statistics")
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return kernel * gain[:, None, None, None], norm.bias - gain * norm.running_mean


class Head(nn.Module):
    """A head of global average and classes. [N, 64, H, W] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(BLOCKS[-1][1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Compute class scores. [N, 64, H, W] -> [N, 10]."""
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


def train(digits: Digits) -> nn.Sequential:
    """Train on shifted copies of the digits; returns the multi-branch network in evaluation mode."""
    torch.manual_seed(0)
    network = nn.Sequential(*(Block(*block) for block in BLOCKS), Head())
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    steps = EPOCHS * len(digits.images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            shift = [int(n) for n in torch.randint(-3, 4, (2,))]
            batch = torch.roll(images[chosen], shift, (2, 3))
            loss = functional.cross_entropy(network(batch), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def export(network: nn.Sequential, path: Path) -> None:
    """Fold every block and write the network as ONNX, without traces of the machine it was made on."""
    folded = nn.Sequential(*(p for b in network if isinstance(b, Block) for p in (b.folded(), nn.ReLU())), network[-1])
    sample = torch.zeros(2, 1, 32, 32)
    program = torch.onnx.export(
        folded.eval(),
        (sample,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        dynamo=True,
    )
    if program is None:
        raise RuntimeError("torch exported nothing")
    model = program.model_proto
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:], model.graph.metadata_props[:]
    onnx.save(model, str(path))


def main(path: Path) -> None:
    """Train, export, check the export against the network it came from, and say how good it is."""
    digits, _, evaluation = load()
    network = train(digits)
    with torch.no_grad():
        scores = network(torch.from_numpy(evaluation.images)).numpy()
    export(network, path)
    (exported,) = open_session(path).run(None, {"image": evaluation.images})
    if np.abs(exported - scores).max() > 1e-3:
        raise RuntimeError(f"{path} computes something else than the network it was folded from")
    print(f"{path}: accuracy {np.mean(exported.argmax(1) == evaluation.labels):.4f}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
