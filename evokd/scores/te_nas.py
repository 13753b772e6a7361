"""TE-NAS (Chen et al., ICLR 2021): how trainable a network is, by its neural tangent kernel, and how expressive, by its linear regions.

The paper prunes a supernet by the sum of the two ranks among what is left. A sum of ranks belongs to a population: `te_nas_ranks` gives
it. Of one network alone `te_nas` is log(regions / condition number), which orders any pair that agrees in both figures as the ranks do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.stats import rankdata
from torch import Tensor

from evokd.models.tapping import logits_of
from evokd.scores.passes import Event, untouched, watched
from evokd.scores.score import Case, Score, shared
from evokd.streams import derive

NTK_IMAGES = 16  # a backward pass each; the released code takes 72 images
WALKS, POINTS = 4, 16  # straight lines between images, and points on each
TE_NAS = ("te_nas_ntk", "te_nas_regions")


def tangent_kernel(case: Case) -> Tensor:
    """(N,N) of the first images: ⟨dΣ_k z_ik/dw, dΣ_k z_jk/dw⟩ over all weights, the norms' too, as in the released code."""
    weights = [p for name, p in case.student.named_parameters() if name.endswith("weight")]
    with untouched(case.student, derive(case.seed, "ntk"), gradients=True), torch.enable_grad():
        sums = logits_of(case.student, case.images[:NTK_IMAGES]).sum(1)
        rows = [torch.autograd.grad(each, weights, retain_graph=True, allow_unused=True) for each in sums]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row if g is not None]) for row in rows]).double()
    return jacobian @ jacobian.t()


def condition(case: Case) -> Tensor:
    """λ_max / λ_min of the kernel, infinite where it is singular."""
    values = torch.linalg.eigvalsh(case.once(tangent_kernel))
    return values[-1] / values[0].clamp_min(0)


def crossings(event: Event) -> Tensor | None:
    """How often a unit of a ReLU turns on or off from a point to the next, over all walks."""
    if event.module is not None:
        return None
    signs = (event.output > 0).unflatten(0, (-1, POINTS)).flatten(2)
    return (signs[:, 1:] != signs[:, :-1]).sum().double()


def regions(case: Case) -> Tensor:
    """Linear regions met on a straight walk from one image to the next, mean over walks.

    The paper counts distinct activation patterns of 3,000 images of 3×3 in a copy of one channel. In a network of real width every image
    has a pattern of its own and that count says nothing; boundaries crossed do not saturate. One that is crossed and crossed back
    between two points is not seen.
    """
    starts, ends = case.images[:WALKS, None], case.images.roll(-1, 0)[:WALKS, None]
    along = torch.linspace(0, 1, POINTS, device=starts.device, dtype=starts.dtype).view(-1, 1, 1, 1)
    _, seen = watched(case.student, (starts + along * (ends - starts)).flatten(0, 1), (crossings,))
    return 1 + sum(seen[crossings]) / len(starts)


def log_ratio(case: Case) -> Tensor:
    return torch.as_tensor(case.once(regions)).log() - case.once(condition).log()


def te_nas_ranks(columns: Mapping[str, Sequence[float]]) -> list[float]:
    """TE-NAS's sum of ranks in a population (section 3.3), higher being better, the best rank being the population.

    Args:
        columns: the values of `TE_NAS`, higher being better.
    """
    return [float(sum(row)) for row in zip(*(rankdata(columns[name]) for name in TE_NAS), strict=True)]


TE_NAS_SCORES: dict[str, Score] = {
    "te_nas_ntk": shared(
        lambda case: -case.once(condition), "TE-NAS (Chen et al., ICLR 2021), section 3.1.1: −λ_max/λ_min of the NTK"
    ),
    "te_nas_regions": shared(
        lambda case: case.once(regions), "TE-NAS, section 3.1.2: linear regions, here met on walks between images"
    ),
    "te_nas": shared(log_ratio, "TE-NAS of one network: log(regions / NTK condition number) in place of the sum of ranks"),
}
