import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evokd.losses.taps import Taps
from evokd.scores.gradients import correlations
from evokd.scores.passes import blocks
from evokd.streams import derive
from tests.scores.networks import Chain, N, Tiny, batch, generator, value


def weighted(student):
    return [m for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def gradients(student, images, labels):
    """dCE/dw by a backward pass into `.grad`."""
    student.zero_grad()
    F.cross_entropy(student(images).logits, labels).backward()
    return [(m.weight, m.weight.grad.clone()) for m in weighted(student)]


def test_grad_norm_and_snip():
    found = gradients(Tiny(), *batch())
    assert value("grad_norm", Tiny()) == pytest.approx(sum(g.square().sum().sqrt().item() for _, g in found))
    assert value("snip", Tiny()) == pytest.approx(sum((w * g).abs().sum().item() for w, g in found))


def test_snip_is_the_sensitivity_to_a_mask():
    student, (images, labels) = Tiny(), batch()
    weight = student.fc.weight.detach().clone()
    expected = 0.0
    for i in range(weight.numel()):
        losses = []
        for mask in (1 + 1e-5, 1 - 1e-5):
            with torch.no_grad():
                student.fc.weight.copy_(weight)
                student.fc.weight.view(-1)[i] *= mask
                losses.append(F.cross_entropy(student(images).logits, labels).item())
        expected += abs(losses[0] - losses[1]) / 2e-5
    student.fc.weight.data.copy_(weight)
    others = sum((w * g).abs().sum().item() for w, g in gradients(student, images, labels)[:-1])
    assert value("snip", student) == pytest.approx(others + expected, rel=1e-6)


def test_fisher_of_retained_gradients():
    student, (images, labels) = Tiny(), batch()
    outputs = {}

    def keep(module, args, out):
        out.retain_grad()
        outputs[module] = out
        return out * 1  # a ReLU in place follows

    for module in weighted(student):
        module.register_forward_hook(keep)
    F.cross_entropy(student(images).logits, labels).backward()
    expected = 0.0
    for module, out in outputs.items():
        for channel in range(out.shape[1]):
            y, g = out[:, channel].reshape(N, -1), out.grad[:, channel].reshape(N, -1)
            expected += 0.5 * (y * g).sum(1).square().mean() * module.weight[0].numel()
    assert value("fisher", Tiny()) == pytest.approx(expected.item())


def test_grasp_by_differences_along_the_gradient():
    student, (images, labels) = Tiny(), batch()
    found = gradients(student, images, labels)
    start = [w.detach().clone() for w, _ in found]
    step, sides = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for (w, g), before in zip(found, start, strict=True):
                w.copy_(before + sign * step * g)
        sides.append([g for _, g in gradients(student, images, labels)])
    product = [(a - b) / (2 * step) for a, b in zip(*sides, strict=True)]
    expected = -sum((w * h).sum().item() for w, h in zip(start, product, strict=True))
    assert value("grasp", Tiny()) == pytest.approx(expected, rel=1e-3)


def test_synflow_of_linear_layers_is_the_product_of_absolute_weights():
    student = Chain(4, 3, 6, 2)
    flow = torch.ones(4, dtype=torch.float64)
    for layer in student.layers:
        flow = layer.weight.detach().abs() @ flow
    images, labels = batch(channels=1, side=2)
    assert value("synflow", student, None, images, labels % 2) == pytest.approx(3 * flow.sum().item())


def test_synflow_leaves_batch_norms_out():
    student = Tiny()
    x = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    copy = Tiny()
    with torch.no_grad():
        for p in copy.parameters():
            p.abs_()
    for block in (copy, *blocks(copy)):
        for name in ("norm", "bn1"):
            if hasattr(block, name):
                setattr(block, name, nn.Identity())
    copy(x).logits.sum().backward()
    expected = sum((m.weight * m.weight.grad).sum().item() for m in weighted(copy))
    assert value("synflow", student) == pytest.approx(expected)


def test_jacov_of_input_gradients():
    student, (images, _) = Tiny(), batch()
    x = images.clone().requires_grad_(True)
    student(x).logits.sum().backward()
    corr = torch.corrcoef(x.grad.flatten(1))
    assert torch.allclose(correlations(x.grad.flatten(1)), corr)
    expected = -sum(math.log(v + 1e-5) + 1 / (v + 1e-5) for v in torch.linalg.eigvals(corr).real.tolist())
    assert value("jacov", Tiny()) == pytest.approx(expected, rel=1e-6)


def test_zico_over_two_halves():
    student, (images, labels) = Tiny(), batch()
    halves = [gradients(student, images[part], labels[part]) for part in (slice(0, 3), slice(3, 6))]
    expected = 0.0
    for (_, a), (_, b) in zip(*halves, strict=True):
        spread = (a - b).abs() / 2  # the deviation of two values
        used = spread > 0
        expected += (((a.abs() + b.abs()) / 2)[used] / spread[used]).sum().log().item()
    assert value("zico", Tiny()) == pytest.approx(expected)


def test_trainability_of_explicit_jacobians():
    student, (images, _) = Tiny(), batch()
    start = int(torch.randint(2**62, (), generator=generator()))
    draw = torch.Generator().manual_seed(derive(start, "trainability"))
    with torch.no_grad():
        first, second, _ = student.maps(images)[0][1:]
    scores = []
    for block, before in zip(blocks(student)[1:], (first, second), strict=True):
        before = before.clone().requires_grad_(True)
        after = block(before)
        signs = torch.randint(0, 2, after.shape, generator=draw).double() * 2 - 1
        (back,) = torch.autograd.grad(after, before, signs)
        if back.shape[2] != signs.shape[2]:
            back = F.pixel_unshuffle(back, 2)
        link = torch.einsum("nihw,njhw->ij", back, signs) / (N * signs.shape[2] * signs.shape[3])
        s = torch.linalg.svdvals(link).max().item()
        scores.append(2 - s - 1 / (s + 1e-6))
    assert value("az_trainability", Tiny()) == pytest.approx(sum(scores) / 2, rel=1e-6)


def test_layers_on_no_path_add_nothing():
    class DeadEnd(Tiny):
        def __init__(self):
            super().__init__()
            self.aside = nn.Conv2d(3, 50, 3).double()
            self.never = nn.Linear(3, 3).double()

        def forward(self, x):
            self.aside(x)
            return super().forward(x)

    for name in ("grad_norm", "snip", "fisher", "grasp", "synflow", "zico"):
        assert value(name, DeadEnd()) == pytest.approx(value(name, Tiny())), name


def test_unknown_labels_are_left_out_of_the_cross_entropy():
    images, labels = batch()
    labels[:2] = -1
    student = Tiny()
    loss = F.cross_entropy(student(images).logits[2:], labels[2:])
    found = torch.autograd.grad(loss, [m.weight for m in weighted(student)])
    assert value("grad_norm", Tiny(), None, images, labels) == pytest.approx(sum(g.norm().item() for g in found))


def test_a_block_that_hands_gradients_through_is_the_worst():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x):
            return self.part(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.Sequential(Idle(), Idle())

        def forward(self, x):
            x = self.stages(x)
            return Taps(x.mean((2, 3)), x.mean((2, 3)), (x,))

    assert value("az_trainability", Net()) == -math.inf
