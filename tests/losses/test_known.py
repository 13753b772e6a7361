"""Each known loss against its published formula, written as in the authors' code or in CRD's benchmark (RepDistiller)."""

import pytest
import torch
import torch.nn.functional as F

from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, write_loss
from evokd.losses.program import compile_loss
from tests.losses.common import learning, make_taps

SHAPES = {
    "small": {},
    "wide": {"n": 6, "classes": 11, "width": 9, "maps": ((3, 8, 8), (5, 4, 4), (8, 2, 2))},
    "oblong": {"n": 5, "classes": 7, "width": 8, "maps": ((2, 3, 7), (4, 2, 5), (6, 1, 3))},
}


def kd(s, t, y):
    kl = F.kl_div(F.log_softmax(s.logits / 4, 1), F.softmax(t.logits / 4, 1), reduction="sum") / len(y)
    return 0.9 * 4**2 * kl


def fitnet(s, t, y):
    return 100 * F.mse_loss(s.features[1], t.features[1])


def at(s, t, y):
    def attention(f):
        return F.normalize(f.pow(2).mean(1).flatten(1))

    return 1000 * sum((attention(a) - attention(b)).pow(2).mean() for a, b in zip(s.features, t.features, strict=True))


def sp(s, t, y):
    def similarity(f):
        return F.normalize(f.flatten(1) @ f.flatten(1).T, p=2, dim=1)

    return 3000 * torch.norm(similarity(s.features[-1]) - similarity(t.features[-1])) ** 2 / len(y) ** 2


def dist(s, t, y):
    def relation(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-8).mean()

    p_s, p_t = (F.softmax(f.logits / 4, 1) for f in (s, t))
    return 2 * 4**2 * relation(p_s, p_t) + 2 * 4**2 * relation(p_s.T, p_t.T)


def lskd(s, t, y):
    def standard(z):
        return (z - z.mean(-1, keepdim=True)) / (1e-7 + z.std(-1, keepdim=True))

    log_q, p = F.log_softmax(standard(s.logits) / 2, 1), F.softmax(standard(t.logits) / 2, 1)
    return 9 * F.kl_div(log_q, p, reduction="none").sum(1).mean() * 2**2


def logits(s, t, y):
    return F.mse_loss(s.logits, t.logits)


def ickd(s, t, y):
    def relation(f):
        f = f.flatten(2)
        return F.normalize(torch.bmm(f, f.permute(0, 2, 1)), dim=2)

    # the authors divide by C·N, this language by C²·N
    return 2.5 * (relation(s.features[-1]) - relation(t.features[-1])).pow(2).sum() / (s.features[-1].shape[1] ** 2 * len(y))


def itrd(s, t, y):
    def standard(e):
        return (e - e.mean(0)) / e.std(0)

    c = torch.einsum("bx,bx->x", standard(s.embedding), standard(t.embedding)) / len(y)
    return 2 * torch.log2((c - 1).abs().pow(2.0).pow(1.01).sum())


def wsld(s, t, y):
    p, log_q = F.softmax(t.logits / 4, 1), F.log_softmax(s.logits / 4, 1)
    kl = (p * (p.log() - log_q)).sum(1)
    ce_s, ce_t = (F.cross_entropy(f.logits.detach(), y, reduction="none") for f in (s, t))
    weight = 1 - torch.exp(-torch.clamp(ce_s / (ce_t + 1e-7), min=0))
    return 2.25 * 4**2 * (weight * kl).mean()


PUBLISHED = {f.__name__: f for f in (kd, fitnet, at, sp, dist, lskd, logits, ickd, itrd, wsld)}


def pair(shape):
    options = SHAPES[shape]
    s, t = make_taps(1, **options), make_taps(2, **options)
    return s, t, torch.arange(len(s.logits)) % s.logits.shape[1]


def gradients(loss, s, t, y):
    leaves = learning(s)
    value = loss(leaves, t, y)
    value.backward()
    flat = [leaves.logits, leaves.embedding, *leaves.features]
    return value.detach(), torch.cat([(f.grad if f.grad is not None else torch.zeros_like(f)).flatten() for f in flat])


def test_every_known_loss_has_its_published_formula_here():
    assert set(KNOWN) == set(PUBLISHED)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", KNOWN)
def test_value_and_gradient_are_the_published_ones(name, shape):
    s, t, y = pair(shape)
    value, gradient = gradients(compile_loss(parse_loss(KNOWN[name]), s, t), s, t, y)
    expected, wanted = gradients(PUBLISHED[name], s, t, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - wanted).norm() <= 1e-4 * wanted.norm()
    assert wanted.norm() > 0


@pytest.mark.parametrize("name", KNOWN)
def test_known_texts_are_written_as_they_are_read(name):
    assert write_loss(parse_loss(KNOWN[name])) == KNOWN[name]


@pytest.mark.parametrize("name", [n for n in KNOWN if n not in ("itrd",)])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name):
    s, _, y = pair("wide")
    assert compile_loss(parse_loss(KNOWN[name]), s, s)(s, s, y).abs() < 1e-6


def test_attention_and_relation_losses_need_no_connector_for_unequal_channels():
    s, t = make_taps(1), make_taps(2, width=9, maps=((5, 6, 5), (7, 4, 4), (9, 3, 4)))
    y = torch.zeros(4, dtype=torch.long)
    for name in ("kd", "at", "sp", "dist", "lskd", "logits", "wsld"):
        loss = compile_loss(parse_loss(KNOWN[name]), s, t)
        assert not loss.connectors
        assert loss(s, t, y).item() == pytest.approx(PUBLISHED[name](s, t, y).item(), rel=1e-5)


def test_wsld_as_its_authors_code_it_has_the_same_gradient():
    # There the weighted term is a cross-entropy, which differs from KL by the teacher's entropy.
    s, t, y = pair("wide")

    def coded(s, t, y):
        soft = -(F.softmax(t.logits / 4, 1) * F.log_softmax(s.logits / 4, 1)).sum(1)
        ce_s, ce_t = (F.cross_entropy(f.logits.detach(), y, reduction="none") for f in (s, t))
        return 2.25 * 4**2 * ((1 - torch.exp(-ce_s / (ce_t + 1e-7))) * soft).mean()

    _, gradient = gradients(compile_loss(parse_loss(KNOWN["wsld"]), s, t), s, t, y)
    _, wanted = gradients(coded, s, t, y)
    assert (gradient - wanted).norm() <= 1e-4 * wanted.norm()


def oracle(name, **options):
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    return getattr(mid_level, name)(**options)


PATHS = {
    "student_module_path": "z", "student_module_io": "output", "teacher_module_path": "z", "teacher_module_io": "output",
}  # fmt: skip


def io(taps):
    tensors = {"z": taps.logits, **{f"f{i}": f for i, f in enumerate(taps.features)}}
    return {name: {"output": tensor} for name, tensor in tensors.items()}


@pytest.mark.filterwarnings("ignore")
def test_torchdistill_agrees_on_kd():
    s, t, _y = pair("wide")
    # its plain form leaves out the factor tau²
    value = 0.9 * 4**2 * oracle("KDLoss", temperature=4, alpha=0, **PATHS)(io(s), io(t))
    assert compile_loss(parse_loss(KNOWN["kd"]), s, t)(s, t).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torchdistill_agrees_on_dist():
    s, t, _y = pair("wide")
    value = oracle("DISTLoss", beta=2, gamma=2, tau=4, **PATHS)(io(s), io(t))
    assert compile_loss(parse_loss(KNOWN["dist"]), s, t)(s, t).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torchdistill_agrees_on_sp_but_for_its_norm():
    # It calls normalize(G, 1), which divides rows by their sum instead of by their Euclidean norm.
    s, t, _y = pair("wide")
    reference = oracle("SPKDLoss", student_output_path="f2", teacher_output_path="f2", reduction="batchmean")
    reference.matmul_and_normalize = lambda z: F.normalize(z.flatten(1) @ z.flatten(1).T, dim=1)
    value = 3000 * reference(io(s), io(t))
    assert compile_loss(parse_loss(KNOWN["sp"]), s, t)(s, t).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torchdistill_agrees_on_at():
    s, t, _y = pair("wide")
    stages = {
        f"stage{i}": {side: {"io": "output", "path": f"f{i}"} for side in ("student", "teacher")} | {"weight": 1000}
        for i in range(3)
    }
    value = oracle("ATLoss", at_pairs=stages, mode="code")(io(s), io(t))
    assert compile_loss(parse_loss(KNOWN["at"]), s, t)(s, t).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torchdistill_agrees_on_lskd():
    s, t, _y = pair("wide")
    value = 9 * 2**2 * oracle("LogitStdKDLoss", temperature=2, alpha=0, **PATHS)(io(s), io(t))
    assert compile_loss(parse_loss(KNOWN["lskd"]), s, t)(s, t).item() == pytest.approx(value.item(), rel=1e-4)
