import math

import pytest
import torch
from torch import nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.scores import az_nas
from evokd.scores.activations import regularised_swap
from evokd.streams import derive
from tests.scores.networks import N, Tiny, batch, generator, value


def drawn(purpose, *shape, count=1, seed=0):
    """What a score draws for a purpose from `generator(seed)`."""
    start = int(torch.randint(2**62, (), generator=generator(seed)))
    source = torch.Generator().manual_seed(derive(start, purpose))
    return [torch.randn(*shape, generator=source).double() for _ in range(count)]


def test_nwot_is_the_log_determinant_of_the_hamming_kernel():
    student, (images, _) = Tiny(), batch()
    codes = torch.cat([(r > 0).flatten(1) for r in student.maps(images)[1]], 1)
    kernel = torch.zeros(N, N, dtype=torch.float64)
    for i in range(N):
        for j in range(N):
            kernel[i, j] = codes.shape[1] - (codes[i] != codes[j]).sum()
    assert value("nwot", student) == pytest.approx(torch.linalg.slogdet(kernel)[1].item(), rel=1e-12)


def test_nwot_of_twins_is_the_worst():
    images, labels = batch()
    images[1] = images[0]
    assert value("nwot", Tiny(), None, images, labels) == -math.inf


@pytest.mark.parametrize(("n", "groups"), [(6, 1), (16, 1), (31, 1), (32, 2), (50, 3)])
def test_swap_counts_the_distinct_columns_of_the_sign_matrix_over_sixteen_samples(n, groups):
    student, (images, labels) = Tiny(), batch(n, side=4)
    codes = torch.cat([(r > 0).flatten(1) for r in student.maps(images)[1]], 1)
    parts = codes.split(16)[:groups]
    columns = [{tuple(column) for column in part.t().tolist()} for part in parts]
    assert value("swap", student, None, images, labels) == pytest.approx(sum(map(len, columns)) / groups)


def test_the_regular_swap_prefers_a_size():
    student = Tiny()
    size = sum(p.numel() for p in student.parameters()) / 1000
    found = regularised_swap(2.0, 3.0).fn(student, None, *batch(), generator())
    assert found == pytest.approx(value("swap", student) * math.exp(-((size - 2) ** 2) / 3))


def test_meco_sums_least_eigenvalues_over_modules():
    student = Tiny()
    noise = drawn("meco", 1, 3, 64, 64)[0]
    outputs = []
    for module in student.modules():
        module.register_forward_hook(lambda m, args, out: outputs.append(out.clone()) if isinstance(out, torch.Tensor) else None)
    student(noise)
    expected = 0.0
    for out in outputs:
        if out.dim() == 4:
            corr = torch.corrcoef(out[0].flatten(1)).nan_to_num(0)
            expected += torch.linalg.eigvals(corr).real.min().item()
    assert value("meco", Tiny()) == pytest.approx(expected, abs=1e-9)


def test_zen_of_explicit_passes():
    student = Tiny()
    noise, shift = drawn("zen", N, 3, 8, 8, count=2)
    inputs = []
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda m, args: inputs.append(args[0])) for m in norms]
    first = student(noise).features[-1]
    for handle in handles:
        handle.remove()
    second = student(noise + 0.01 * shift).features[-1]
    expected = sum((a - b).abs().sum() for a, b in zip(first, second, strict=True)).div(N).log()
    for x in inputs:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        expected = expected + centred.square().mean((0, 2, 3)).mean().sqrt().log()
    assert value("zen", Tiny()) == pytest.approx(expected.item(), rel=1e-9)


def entropies(student, images):
    found = []
    for x in student.maps(images)[0][1:]:  # after the blocks, without the stem
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        p = torch.linalg.eigvals(torch.cov(rows.t(), correction=0)).real.clamp_min(0)
        p = p / p.sum()
        found.append(-(p * (p + 1e-8).log()).sum().item())
    return found


def test_az_nas_of_eigenvalues():
    student, (images, _) = Tiny(), batch()
    first, second, third = entropies(student, images)
    assert value("az_expressivity", student) == pytest.approx(first + second + third, abs=1e-9)
    assert value("az_progressivity", student) == pytest.approx(min(second - first, third - second), abs=1e-9)


def test_az_nas_ranks_a_population():
    columns = {"az_expressivity": [3.0, 1.0, 2.0], "macs": [10.0, 10.0, 5.0]}
    thirds = [(3, 2.5), (1, 2.5), (2, 1)]
    assert az_nas(columns) == pytest.approx([math.log(a / 3) + math.log(b / 3) for a, b in thirds])
    assert az_nas({"macs": [-math.inf, 1.0]}) == pytest.approx([math.log(1 / 2), 0])


def test_teacherless_statistics():
    student, (images, _) = Tiny(), batch()
    taps = student(images)
    for name, x in (("map_cosine", taps.features[-1].flatten(1)), ("embedding_cosine", taps.embedding)):
        pairs = [torch.cosine_similarity(x[i], x[j], 0).item() for i in range(N) for j in range(N) if i != j]
        assert value(name, student) == pytest.approx(sum(pairs) / len(pairs))
    assert value("logit_spread", student) == pytest.approx(taps.logits.std().item())


def test_a_network_without_relus_or_blocks_has_no_score_of_them():
    class Smooth(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(192, 5).double()

        def forward(self, x):
            return Taps(self.fc(x.flatten(1)), x.flatten(1))

    for name in ("nwot", "swap", "az_expressivity", "az_trainability"):
        with pytest.raises(EvokdError, match="network"):
            value(name, Smooth())
