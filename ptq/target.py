"""Deployment targets: what their kernels like decides signs, word lengths and which operators to quantize."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path

from ptq.core.kernel_costs import KernelCosts, Rates
from ptq.core.spec import PerAxis, QuantSpec

INTEGER_OPS = frozenset({"Conv", "Gemm", "MatMul"})
LINEAR_OPS = INTEGER_OPS | {"ConvTranspose"}
"""Operators that have a weight; onnxruntime has no integer kernel for ConvTranspose on CPUs."""

ARITHMETIC_OPS = frozenset({"Add", "Mul", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Concat"})
"""Operators that integers pass through; not AveragePool, whose integer kernel takes 5 to 20 times the float's time."""

RESHAPING = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
MOVING = RESHAPING | {"MaxPool", "Resize", "Slice", "Gather", "Pad", "DepthToSpace", "SpaceToDepth", "Expand", "Tile"}
"""Operators that leave values on the grid on which they come."""


X86_COSTS = KernelCosts(
    floats={
        "dense": Rates(390, 0.043, 0.008, 0.03, rest=0.32),
        "depthwise": Rates(330, 0.043, 0.012, rest=0.032),
        "grouped": Rates(300, 0.0215, 0.056),
        "Add": Rates(600, 0.25),
        "Clip": Rates(200, 0.06),
        "Concat": Rates(300, 0.10),
        "GlobalAveragePool": Rates(800, 0.30),
        "HardSigmoid": Rates(0, 0.11),
        "LeakyRelu": Rates(50, 0.18),
        "MaxPool": Rates(450, 0.10),
        "MaxPool apart": Rates(450, 0.20),
        "Mul": Rates(300, 0.08),
        "Relu": Rates(200, 0.06),
        "Sigmoid": Rates(0, 0.065),
    },
    integers={
        "dense": Rates(610, 0.041, 0.0018, 0.013, 0.91, edge=4.2),
        "depthwise": Rates(820, 0.052, 0.0124, tap=0.56, rest=1.1),
        "grouped": Rates(540, 0.074, 0.23),
        "Add": Rates(800, 0.22),
        "Concat": Rates(300, 0.20),
        "GlobalAveragePool": Rates(350, 0.08),
        "HardSigmoid": Rates(300, 0.028),
        "LeakyRelu": Rates(250, 0.25),
        "MaxPool": Rates(400, 0.20),
        "MaxPool apart": Rates(400, 8.0),
        "Mul": Rates(400, 0.185),
        "Sigmoid": Rates(250, 0.25),
    },
    conversion=Rates(700, 0.30),
)
"""Measured on an x86-64 with AVX512-VNNI, onnxruntime 1.31.1: layers and operators as by `python -m tests.bench_costs`,
conversions by alternating layers on codes and in float, pooling apart and narrow groups by single nodes.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A family of processors that run the model in onnxruntime.

    Attributes:
        name: Name on the command line.
        activation: Grid of activations. x86 kernels are fastest with unsigned, ARM ones with signed codes.
        why: One line for the card.
        native: Use operators of our own where they are faster; they carry bodies of standard ones for other machines.
        saturates: Sums of two products of bytes may overflow 16 bits (x86 without VNNI): neighbors share room.
        channel_lanes: Channels that the float and integer convolutions take at once: counts between them are rounded up
            to a multiple where channels leave (`tests/bench_channels.py`).
        depthwise_lanes: Channels that the integer depthwise kernel takes at once, the rest one by one; 1 where that is
            not known, or makes no difference.
        costs: Stated times of onnxruntime's kernels; None where nobody measured them.
    """

    name: str
    activation: QuantSpec
    why: str
    native: bool = False
    saturates: bool = False
    channel_lanes: int = 16
    depthwise_lanes: int = 1
    costs: KernelCosts | None = None

    @property
    def weight(self) -> QuantSpec:
        """Grid of weights: symmetric, signed, one scale per output feature."""
        return QuantSpec(8, signed=True, symmetric=True, narrow_range=True, granularity=PerAxis(0))

    @property
    def native_words(self) -> tuple[int, ...]:
        """Word lengths of weights whose products our own operators run; without VNNI onnxruntime's run bytes faster."""
        if not self.native:
            return ()
        return (2, 4) if self.saturates else (2, 4, 8)


CPU_X86 = Target(
    "cpu-x86",
    QuantSpec(),
    "unsigned activations, weights of 8 bits each: x86 with VNNI sums without overflow",
    depthwise_lanes=16,
    costs=X86_COSTS,
)
CPU_ARM = Target("cpu-arm", QuantSpec(signed=True), "signed activations and weights: ARM's dot product")
PORTABLE = Target(
    "portable",
    QuantSpec(),
    "unsigned activations, neighbouring weights share room: no overflow on any CPU",
    saturates=True,
    depthwise_lanes=16,
    costs=X86_COSTS,  # without VNNI dense layers on codes take longer still; what is left in float here is slower there
)
NATIVE = Target(
    "native", QuantSpec(), "operators of domain ai.ptq where they are faster, else as this CPU", native=True
)
TARGETS = (CPU_X86, CPU_ARM, PORTABLE, NATIVE)


def host_target() -> Target:
    """Return the target that suits this machine."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return CPU_ARM
    if machine in ("x86_64", "amd64") and _has_vnni():
        return CPU_X86
    return PORTABLE


def target_named(name: str | None) -> Target:
    """Look a target up; None means this machine's.

    Raises:
        KeyError: No such target.
    """
    if name is None:
        return host_target()
    found = {target.name: target for target in TARGETS}[name]
    return replace(found, saturates=host_target().saturates) if found.native else found


def _has_vnni() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and bool({"avx512_vnni", "avx_vnni"} & set(info.read_text(errors="replace").split()))
