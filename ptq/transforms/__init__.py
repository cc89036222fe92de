"""Transforms, float model to float model: the same function, easier to quantize. One file each, one verb: `rewrite`."""

from ptq.transforms.equalize_convs import EqualizeConvs
from ptq.transforms.float_islands import FloatIslands
from ptq.transforms.guard_recurrent import GuardRecurrent
from ptq.transforms.plain_slopes import PlainSlopes
from ptq.transforms.prune_channels import PruneChannels
from ptq.transforms.rewritten import Rewritten, Transform
from ptq.transforms.scale_salient import ScaleSalient
from ptq.transforms.smooth_products import SmoothProducts
from ptq.transforms.split_centers import SplitCenters
from ptq.transforms.squeeze import Squeeze

__all__ = [
    "EqualizeConvs",
    "FloatIslands",
    "GuardRecurrent",
    "PlainSlopes",
    "PruneChannels",
    "Rewritten",
    "ScaleSalient",
    "SmoothProducts",
    "SplitCenters",
    "Squeeze",
    "Transform",
]
