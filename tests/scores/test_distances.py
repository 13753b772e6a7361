"""KD-based scores against the losses' formulas in plain torch, on the taps of a pass in train mode."""

import pytest
import torch
import torch.nn.functional as F

from evokd.errors import EvokdError
from evokd.losses import KNOWN, compile_loss, parse_loss
from evokd.scores import SCORES, score_of_loss
from evokd.scores.distances import LOSSES
from tests.scores.networks import N, Tiny, batch, generator, value


@pytest.fixture(scope="module")
def taps():
    images, _ = batch()
    with torch.no_grad():
        return Tiny()(images), Tiny(seed=1)(images)


def kd(s, t):
    p, q = (t.logits / 4).softmax(1), (s.logits / 4).softmax(1)
    return 0.9 * 16 * (p * (p / q).log()).sum() / N


def fitnet(s, t):
    return (s.features[-1] - t.features[-1]).square().mean()


def sp(s, t):
    grams = [F.normalize(x.features[-1].flatten(1) @ x.features[-1].flatten(1).t(), dim=1) for x in (s, t)]
    return 3000 * (grams[0] - grams[1]).square().mean()


def rkd(s, t):
    distances, angles = [], []
    for e in (s.embedding, t.embedding):
        d = torch.stack([torch.stack([(a - b).norm() for b in e]) for a in e])
        distances.append(d / d[d > 0].mean())
        sides = F.normalize(e[None] - e[:, None], dim=2)
        angles.append(torch.einsum("ijd,ikd->ijk", sides, sides))
    return 25 * F.smooth_l1_loss(*distances) + 50 * F.smooth_l1_loss(*angles)


def pkt(s, t):
    kernels = []
    for e in (s.embedding, t.embedding):
        k = (F.normalize(e) @ F.normalize(e).t() + 1) / 2
        kernels.append(k / k.sum(1, keepdim=True))
    return 468.75 * (kernels[1] * ((kernels[1] + 1e-7) / (kernels[0] + 1e-7)).log()).sum(1).mean()


def cc(s, t):
    kernels = [torch.exp(-0.4 * torch.cdist(F.normalize(x.embedding), F.normalize(x.embedding)) ** 2) for x in (s, t)]
    return 0.02 * (kernels[0] - kernels[1]).square().mean()


def nst(s, t):
    total = 0
    for stage in (-1, -2):
        grams = []
        for x in (s, t):
            f = F.normalize(x.features[stage].flatten(2), dim=2)
            grams.append(torch.einsum("ncp,ncq->npq", f, f) / f.shape[1])
        total = total + (grams[0] - grams[1]).square().mean()
    return total


def ickd(s, t):
    grams = []
    for x in (s, t):
        f = x.features[-1].flatten(2)
        grams.append(F.normalize(f @ f.transpose(1, 2) / f.shape[2], dim=2, eps=1e-4))
    return 2.5 * (grams[0] - grams[1]).square().mean()


def at(s, t):
    total = 0
    for stage in (-1, -2, -3):
        maps = [F.normalize(x.features[stage].square().mean(1).flatten(1)) for x in (s, t)]
        total = total + 1000 * (maps[0] - maps[1]).square().mean()
    return total


FORMULAS = {f.__name__: f for f in (kd, fitnet, sp, rkd, pkt, cc, nst, ickd, at)}


@pytest.mark.parametrize("name", LOSSES)
def test_a_score_is_the_negated_loss_of_the_taps(name, taps):
    expected = -FORMULAS[name](*taps).item()
    assert value(name, Tiny(), Tiny(seed=1)) == pytest.approx(expected, rel=2e-4)
    loss = compile_loss(parse_loss(LOSSES[name][0]), *taps)
    assert value(name, Tiny(), Tiny(seed=1)) == pytest.approx(-loss(*taps).item(), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_itself_is_the_best_student(name):
    assert SCORES[name].higher_is_better
    assert value(name, Tiny(), Tiny()) == pytest.approx(0, abs=1e-9)
    assert value(name, Tiny(seed=2), Tiny()) < 0


def test_any_loss_of_the_language_is_a_score(taps):
    score = score_of_loss(KNOWN["dkd"])
    _, labels = batch()
    loss = compile_loss(parse_loss(KNOWN["dkd"]), *taps)
    assert score.fn(Tiny(), Tiny(seed=1), *batch(), None) == pytest.approx(-loss(*taps, labels).item())
    with pytest.raises(EvokdError):
        score_of_loss("l3(logits)")


def test_masks_are_drawn_from_the_generator():
    score = score_of_loss("l2(mask(features[-1]))")
    runs = [score.fn(Tiny(), Tiny(seed=1), *batch(), generator(seed)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_widths_may_differ_behind_a_connector():
    wide = Tiny(width=6).float()
    images, labels = batch()
    values = [SCORES["fitnet"].fn(wide, Tiny(seed=1).float(), images.float(), labels, generator(s)) for s in (0, 0)]
    assert values[0] == values[1] < 0
    assert value("sp", Tiny(width=6), Tiny(seed=1)) < 0
