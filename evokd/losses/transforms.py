"""Transforms: what happens to a tap before it is compared. One table; an operator lives in the file of its family."""

from evokd.losses.norms import NORMS
from evokd.losses.operators import Transform
from evokd.losses.pointwise import POINTWISE
from evokd.losses.regions import REGIONS
from evokd.losses.relations import RELATIONS

TRANSFORMS: dict[str, Transform] = {t.name: t for t in (*POINTWISE, *NORMS, *REGIONS, *RELATIONS)}

# what KD-Zero (NeurIPS 2023) lists in its Table 1, by its groups
TABLE_1: dict[str, tuple[str, ...]] = {
    "normalisation": (
        "batchnorm", "min_max", "norm_HW", "norm_C", "norm_N", "softmax_HW", "softmax_C", "softmax_N", "logsoftmax_HW", "logsoftmax_C",
        "logsoftmax_N",
    ),
    "activation": ("exp", "mish", "leaky", "relu", "tanh", "sigmoid", "pow2", "pow4", "log", "sqrt"),
    "scale": ("scale", "multi_scale", "scale_r1", "scale_r2", "local_r1", "local_r2", "local_r4", "batch", "channel"),
    "attention": ("drop", "satt", "natt", "catt", "mask"),
    "other": ("no", "bmm", "mm"),
}  # fmt: skip
