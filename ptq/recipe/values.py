"""Recipe values: everything that decides a result, besides model and data, as frozen dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from ptq.allocation.bit_plan import BitPlan
from ptq.calibration.observers import Auto, Dynamic, Observer
from ptq.core.errors import RecipeError
from ptq.core.family import tag_of
from ptq.core.problem import Needs
from ptq.core.spec import Granularity, PerAxis, PerBlock, PerTensor
from ptq.recipe.channels import check_max_macs, squeeze_share
from ptq.target import TARGETS
from ptq.weights import Gptq, Rtn, WeightMethod, methods_that_need

GranularityName = Literal["per-tensor", "per-channel", "block-16", "block-32", "block-64", "block-128", "block-256"]


Split = Literal["auto", "never", "center", "whole"]
Optimize = Literal["accuracy", "latency", "integers"]
MOST_SAMPLES = 10**12
MOST_BATCH = 65536


def _or_8(bits: int | None) -> int:
    return 8 if bits is None else bits


@dataclass(frozen=True)
class Weights:
    """Settings of how weights become integers.

    Attributes:
        method: The weight method; None takes gptq where static integers are calibrated on real data, else rounding.
        bits: Word length, 2 to 8. Below 8 the codes use less of their storage.
        granularity: Which weights share a scale: a tensor, an output feature, or a block of 16 to 256 of its inputs.
            (Blocks are for products of weight-only and dynamic models: with static activations no runtime has a kernel
            for them; other layers of such models share them per channel.)
        bias_correction: Shift biases by the mean error that the integers cause.
        split: Coarse & fine splitting: weights below 8 bits that get words twice as long. `auto` tries it where the
            center tap of a kernel is far wider than the rest and keeps it where the layer's output gains 3 dB;
            `center` tries it in every kernel, `whole` for all weights; kept wherever anything is gained.
        extra_macs: Multipoint: longer words, spent on the output features whose errors cost the network's output the
            most, as a share of all products (0.05 is 5 %).
        first_last_bits: Word length in layers with no other before them, or none behind; None treats them like all.
    """

    method: WeightMethod | None = None
    bits: int = 8
    granularity: GranularityName = "per-channel"
    bias_correction: bool = True
    split: Split = "auto"
    extra_macs: float = 0.0
    first_last_bits: int | None = None

    @property
    def chosen(self) -> WeightMethod:
        """Method that was named, or rounding."""
        return self.method or Rtn()

    @property
    def layout(self) -> Granularity:
        """Granularity as a type, on the matrix [out, in]."""
        if self.granularity.startswith("block-"):
            return PerBlock(1, int(self.granularity.removeprefix("block-")))
        return PerTensor() if self.granularity == "per-tensor" else PerAxis(0)


@dataclass(frozen=True)
class LayerRule:
    """Settings for some layers. Those that are None stay as in `Weights`; later rules win.

    Attributes:
        match: Output name, node name, module, operator type, glob, or `re:` and a pattern.
        method: The weight method.
        bits: Word length, 2 to 8.
        granularity: Which weights share a scale.
        split: Coarse & fine splitting.
        skip: Whether the layer is left in float, its weight too; None leaves that to earlier rules.
        float_kernel: Whether it is left to a float kernel, its weight on codes; likewise.
    """

    match: str
    method: WeightMethod | None = None
    bits: int | None = None
    granularity: GranularityName | None = None
    split: Split | None = None
    skip: bool | None = None
    float_kernel: bool | None = None

    @property
    def has_settings(self) -> bool:
        """Whether it says anything about weights."""
        return any(getattr(self, name) is not None for name in ("method", "bits", "granularity", "split"))

    def over(self, weights: Weights) -> Weights:
        """Return the weights' settings with this rule on top."""
        names = ("method", "bits", "granularity", "split")
        return replace(weights, **{name: getattr(self, name) for name in names if getattr(self, name) is not None})


@dataclass(frozen=True)
class Goals:
    """Goals that the quantized model has to reach; None means no goal.

    Attributes:
        min_sqnr_db: Signal to quantization noise of the worst output, dB.
        min_agreement: Share of equal decisions, 0 to 1.
        max_drop: Largest loss of top-1 accuracy or of the user's metric, as a fraction (0.01 is one point).
        max_latency_ratio: Quantized over float latency.
    """

    min_sqnr_db: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None
    max_latency_ratio: float | None = None

    @property
    def for_accuracy(self) -> bool:
        """Whether any of them says how near to float is near enough."""
        return any(goal is not None for goal in (self.min_sqnr_db, self.min_agreement, self.max_drop))

    def __post_init__(self) -> None:
        tops = {"min_sqnr_db": math.inf, "min_agreement": 1.0, "max_drop": math.inf, "max_latency_ratio": math.inf}
        for name, top in tops.items():
            goal, low = getattr(self, name), -math.inf if name == "min_sqnr_db" else 0.0
            if goal is not None and not (math.isfinite(goal) and low <= goal <= top):
                expected = "a finite number" if name == "min_sqnr_db" else "0 to 1" if top == 1 else "at least 0"
                raise RecipeError(f"goals.{name} is {goal}; expected {expected}")


@dataclass(frozen=True)
class Recipe:
    """Every decision that a result depends on, besides model and data.

    Attributes:
        target: Deployment target; None takes this machine's.
        activations: Observer that chooses activation ranges.
        weights: How weights become integers.
        activation_bits: Word length of activations, 2 to 8. Below 8 there are no kernels: the ranges are clipped inside
            8-bit codes, for study.
        weight_only: Leave activations in float: smaller files, decoded when the session opens, at float's speed.
        squeeze: Which channels leave the model before anything else: `never` any; those `proved` to be constant by the
            weights; `auto`: those too that calibration shows to carry nothing; or a share: those that move less than
            that share of their tensor's step at 8 bits; `fewest`: as many as the goals allow, by trying `max_macs`.
        max_macs: Products that may be left, as a share of those of the model as it came (0.8 is 80 %): further channels
            leave, those that cost least first, and the layers behind are fitted to the others. Needs a goal.
        equalize: Even out the channels of activations within the weights around them, where that was seen to help:
            cross-layer equalization of convolutions, smoothing and outlier channels of products, and weights that meet
            the largest activations where only weights are rounded.
        optimize: `accuracy` leaves in float what the target's stated times of kernels say is faster there, `latency`
            what was measured to be faster on this machine; `integers` does neither.
        latency_batch: Samples at once that latency is measured or estimated for.
        other_words: Let methods that look at the inputs of weights also see copies of the samples in which half of the
            tokens are others of the vocabulary.
        layers: What some layers do differently.
        bit_plan: Word lengths of layers, or of single output features; over those of `weights` and `layers`. None has
            no further say.
        exclude: Nodes left in float: output names, node names, modules, operator types, globs, or `re:` and a pattern.
        only: The nodes that are not left in float, named likewise; none names all.
        samples: Most samples read from the calibration set.
        skip_bad_samples: Leave out images that cannot be read and samples with NaN or infinity, and say so.
        min_input_sqnr_db: A layer whose input keeps less than this on its grid stays float. 23 dB is where a layer
            starts to dominate the error of a transformer; convolutional networks rarely come near.
        goals: What has to be reached.
        search: Give layers more bits, or leave them in float, until the goals are met.
        accept_poor: Keep the model as it comes out, even below the default floor. Otherwise, where no goal for accuracy
            is set, the layers and grids that are to blame get more bits, or stay float, until it is reached.
        seed: Seed of everything random.
    """

    target: str | None = None
    activations: Observer = field(default_factory=Auto)
    weights: Weights = field(default_factory=Weights)
    activation_bits: int = 8
    weight_only: bool = False
    squeeze: str = "auto"
    max_macs: float | None = None
    equalize: bool = True
    optimize: Optimize = "accuracy"
    latency_batch: int = 1
    other_words: bool = True
    layers: tuple[LayerRule, ...] = ()
    bit_plan: BitPlan | None = None
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    samples: int = 512
    skip_bad_samples: bool = False
    min_input_sqnr_db: float = 23.0
    goals: Goals = field(default_factory=Goals)
    search: bool = False
    accept_poor: bool = False
    seed: int = 0

    @property
    def is_dynamic(self) -> bool:
        """Whether ranges of activations are taken while the model runs."""
        return isinstance(self.activations, Dynamic) and not self.weight_only

    @property
    def has_grids(self) -> bool:
        """Whether activations have ranges that are chosen beforehand."""
        return not self.weight_only and not self.is_dynamic

    def settled(self, *, random_data: bool) -> Recipe:
        """Return the recipe with its weight method named: the most accurate one where data can tell."""
        if self.weights.method is not None:
            return self
        tells = self.weights.extra_macs > 0 or (self.has_grids and not random_data)
        return replace(self, weights=replace(self.weights, method=Gptq() if tells else Rtn()))

    @property
    def squeeze_share(self) -> float | None:
        """Share of a step that a channel may move by and leave; 0 for what is proved alone, None for no channel."""
        return squeeze_share(self.squeeze)

    @property
    def has_small_weights(self) -> bool:
        """Whether any weight is shorter than a byte."""
        own = [self.weights.bits, self.weights.first_last_bits, *(rule.bits for rule in self.layers)]
        planned = self.bit_plan is not None and self.bit_plan.has_small_weights
        return planned or any(bits is not None and bits < 8 for bits in own)

    def __post_init__(self) -> None:
        names = [target.name for target in TARGETS]
        if self.target is not None and self.target not in names:
            raise RecipeError(f"target is {self.target!r}; expected one of {', '.join(names)}")
        lengths = {"weights.bits": self.weights.bits, "activation_bits": self.activation_bits}
        lengths |= {"weights.first_last_bits": _or_8(self.weights.first_last_bits)}
        lengths |= {f"layers: bits of {rule.match!r:.80}": _or_8(rule.bits) for rule in self.layers}
        for key, bits in lengths.items():
            if bits not in range(2, 9):
                raise RecipeError(f"{key} is {bits}; expected 2 to 8")
        squeeze_share(self.squeeze)
        check_max_macs(self.max_macs, self.squeeze, has_goal=self.goals.for_accuracy, searches=self.search)
        self._check_extra_macs()
        self._check_blocks()
        self._check_bit_plan()
        self._check_dynamic()
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise RecipeError(f"samples is {self.samples}; expected 1 to {MOST_SAMPLES}")
        if not 1 <= self.latency_batch <= MOST_BATCH:
            raise RecipeError(f"latency_batch is {self.latency_batch}; expected 1 to {MOST_BATCH}")
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}; expected at least 0")
        if not math.isfinite(self.min_input_sqnr_db):
            raise RecipeError(f"min_input_sqnr_db is {self.min_input_sqnr_db}; expected a finite number")

    @property
    def has_blocks(self) -> bool:
        """Whether any weight has scales per block of inputs."""
        own = [self.weights.granularity, *(rule.granularity for rule in self.layers)]
        return any(name is not None and name.startswith("block-") for name in own)

    def _check_blocks(self) -> None:
        if self.has_blocks and self.has_grids:
            raise RecipeError(
                "scales per block are for weight-only and dynamic models; add --weight-only or --activations dynamic, "
                "or take per-channel"
            )
        if self.has_blocks and self.weights.extra_macs:
            raise RecipeError("extra_macs and scales per block do not go together; leave one of them")

    def _check_bit_plan(self) -> None:
        if self.bit_plan is None:
            return
        if self.search:
            raise RecipeError("a search for a goal finds word lengths by itself; leave out --goal (search) or bit_plan")
        others = {"extra_macs": self.weights.extra_macs > 0, "scales per block": self.has_blocks}
        for name in (name for name, given in others.items() if given and self.bit_plan.has_rows):
            raise RecipeError(f"{name} and a bit_plan by output feature do not go together; leave one of them")

    def _check_dynamic(self) -> None:
        if self.is_dynamic and self.activation_bits != 8:
            raise RecipeError(f"activation_bits is {self.activation_bits}; dynamic activations have 8")

    def _check_extra_macs(self) -> None:
        share, method = self.weights.extra_macs, self.weights.method
        if not 0 <= share <= 10:
            raise RecipeError(f"extra_macs is {share}; expected a share from 0 to 10, for example 0.05")
        if share and self.weights.bits > 7:
            raise RecipeError("extra_macs adds points to weights of less than 8 bits; give --bits 2 to 7, or leave it")
        if share and method is not None and Needs.MOMENTS not in method.needs:
            raise RecipeError(
                f"extra_macs is spent by output error, which {tag_of(type(method))} does not see; "
                f"expected {', '.join(methods_that_need(Needs.MOMENTS))}"
            )
