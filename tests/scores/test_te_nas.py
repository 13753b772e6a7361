"""TE-NAS: the kernel against Jacobians, regions against counts in a plane."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev

from evokd.losses.taps import Taps
from evokd.scores import score_all, te_nas
from evokd.scores.te_nas import POINTS, WALKS, te_nas_ranks
from tests.scores.networks import Chain, Tiny, batch, generator, value


def conditioned(student, images):
    """λ_max/λ_min of Σ_w (d Σ_k z_ik/dw)(d Σ_k z_jk/dw) by `jacrev`, for weights alone, with statistics of the batch."""
    for norm in (m for m in student.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = False, None, None, None
    params = {k: v.detach() for k, v in student.named_parameters()}
    weights = {k: v for k, v in params.items() if k.endswith("weight")}
    found = jacrev(lambda w: functional_call(student, params | w, images).logits.sum(1))(weights)
    jacobian = torch.cat([j.flatten(1) for j in found.values()], 1)
    values = np.linalg.eigvalsh((jacobian @ jacobian.T).numpy())
    return values[-1] / values[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_condition_number_is_that_of_the_jacobian(seed):
    assert value("te_nas_ntk", Tiny(seed=seed)) == pytest.approx(-conditioned(Tiny(seed=seed), batch()[0]), rel=1e-6)


def test_of_a_linear_layer_it_is_that_of_the_images():
    images = batch(n=4, side=1, channels=7)[0]
    gram = images.flatten(1) @ images.flatten(1).t()
    values = torch.linalg.eigvalsh(gram)  # z = W x: every logit has the same gradient
    found = value("te_nas_ntk", Chain(7, 5), None, images, torch.zeros(4, dtype=torch.long))
    assert found == pytest.approx(-float(values[-1] / values[0]))


def test_more_images_than_weights_are_singular_and_only_sixteen_count():
    images, labels = batch(n=20, side=1, channels=7)
    assert value("te_nas_ntk", Chain(7, 5), None, images, labels) < -1e10  # or infinite, as rounding will have it
    wide = batch(n=20, side=1, channels=40)
    assert value("te_nas_ntk", Chain(40, 5), None, *wide) == value("te_nas_ntk", Chain(40, 5), None, wide[0][:16], wide[1][:16])


class Plane(nn.Module):
    """ReLU layers on points (N,2,1,1) of the plane."""

    def __init__(self, *widths, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((2, *widths)))
        self.double()

    def patterns(self, x):
        """(N, all units): which of them are on."""
        found = []
        for layer in self.layers[:-1]:
            x = layer(x).relu()
            found.append(x > 0)
        return torch.cat(found, 1)

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return Taps(self.layers[-1](x), x)


def walks(images):
    return [(images[i].flatten(), images[(i + 1) % len(images)].flatten()) for i in range(min(WALKS, len(images)))]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_one_layer_of_units_parts_a_line_at_most_once_each(seed):
    """So a walk meets 1 + as many regions as units whose sign differs at its ends."""
    network = Plane(30, 4, seed=seed)
    images = 3 * torch.randn(5, 2, 1, 1, generator=generator(seed), dtype=torch.float64)
    expected = [1 + int((network.patterns(a[None]) != network.patterns(b[None])).sum()) for a, b in walks(images)]
    found = value("te_nas_regions", network, None, images, torch.zeros(5, dtype=torch.long))
    assert found == pytest.approx(np.mean(expected))


def brute(network, images, points):
    """Regions met, by listing the distinct patterns one after another of very many points."""
    counts = []
    for a, b in walks(images):
        along = torch.linspace(0, 1, points, dtype=torch.float64)[:, None]
        rows = [tuple(row) for row in network.patterns(a + along * (b - a)).tolist()]
        counts.append(1 + sum(x != y for x, y in pairwise(rows)))
    return np.mean(counts)


def test_deep_networks_meet_as_many_regions_as_a_fine_walk_lists(monkeypatch):
    monkeypatch.setattr(te_nas, "POINTS", 1501)
    for seed in range(2):
        network = Plane(6, 6, 6, 4, seed=seed)
        images = 3 * torch.randn(4, 2, 1, 1, generator=generator(seed), dtype=torch.float64)
        found = value("te_nas_regions", network, None, images, torch.zeros(4, dtype=torch.long))
        assert found == pytest.approx(brute(network, images, 4_001))


def test_a_coarse_walk_sees_no_more_than_a_fine_one():
    network = Plane(12, 12, 4, seed=3)
    images = 3 * torch.randn(4, 2, 1, 1, generator=generator(3), dtype=torch.float64)
    coarse = value("te_nas_regions", network, None, images, torch.zeros(4, dtype=torch.long))
    assert 1 < coarse <= brute(network, images, 2_001)
    assert POINTS < 2_001


def test_a_linear_network_has_one_region():
    images, labels = batch(n=4, side=1, channels=7)
    assert value("te_nas_regions", Chain(7, 5), None, images, labels) == 1


def test_of_one_network_the_two_make_a_ratio():
    found = score_all(["te_nas", "te_nas_ntk", "te_nas_regions"], Tiny(), None, *batch(), generator())
    assert found["te_nas"] == pytest.approx(math.log(found["te_nas_regions"] / -found["te_nas_ntk"]))


def test_a_population_is_ranked_by_the_sum_of_ranks():
    columns = {"te_nas_ntk": [-30.0, -10.0, -20.0, -math.inf], "te_nas_regions": [5.0, 5.0, 9.0, -math.inf]}
    assert te_nas_ranks(columns) == [2 + 2.5, 4 + 2.5, 3 + 4, 1 + 1]
