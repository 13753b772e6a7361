"""Losses with modules: one contract for all, and each against the formula of its paper or torchdistill."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from evokd.errors import EvokdError
from evokd.losses.modules import CRD, MGD, MODULES, BatchNorm, hierarchical_context
from evokd.losses.taps import Taps
from tests.losses.common import learning, make_taps

CLASSES, N = 5, 4
LABELS = torch.tensor([0, -1, 3, 2])
INDEX = torch.tensor([3, 0, 7, 4])
UNKNOWN = torch.full((N,), -1)

names = pytest.mark.parametrize("name", MODULES)


def with_head(taps, seed=9):
    draw = torch.Generator().manual_seed(seed)
    shape = (taps.logits.shape[1], taps.embedding.shape[1])
    head = (
        torch.randn(shape, dtype=taps.logits.dtype, generator=draw),
        torch.randn(shape[0], dtype=taps.logits.dtype, generator=draw),
    )
    return Taps(taps.logits, taps.embedding, taps.features, head=head)


def pair(n=N, dtype=torch.float64):
    """Taps that differ in channels, sizes, width and number of stages."""
    student = make_taps(1, n, dtype=dtype)
    teacher = make_taps(2, n, width=9, maps=((3, 9, 9), (5, 6, 5), (7, 2, 6), (6, 5, 3)), dtype=dtype)
    return student, with_head(teacher)


S, T = pair()


def make(name, student=S, teacher=T, seed=0):
    loss = MODULES[name](student, teacher, seed).to(student.logits.dtype)
    if name == "crd":
        loss.negatives = 6
    return loss


def call(loss, student=S, teacher=T, labels=LABELS, seed=0, index=INDEX):
    n = len(student.logits)
    return loss(student, teacher, labels[:n], 0.5, torch.Generator().manual_seed(seed), index[:n])


def agree(value, expected, *inputs):
    """Equal values, and equal gradients at the inputs."""
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-10)
    ours, theirs = (torch.autograd.grad(v, inputs, retain_graph=True, allow_unused=True) for v in (value, expected))
    assert any(g is not None and g.abs().sum() > 0 for g in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-10)


# The contract.


@names
def test_the_value_is_a_finite_scalar_that_moves_the_student_and_never_the_teacher(name):
    student, teacher, loss = learning(S), learning(T), make(name)
    value = call(loss, student, teacher)
    value.backward()
    assert value.shape == ()
    assert value.isfinite()
    reached = [student.at(p) for p in loss.needs if p != "teacher_head" and student.at(p).grad is not None]
    assert sum(tap.grad.abs().sum() for tap in reached) > 0
    assert all(tap.grad is None for tap in (teacher.logits, teacher.embedding, *teacher.features, *teacher.head))
    assert all(w.grad is not None and w.grad.isfinite().all() for w in loss.parameters())


@names
def test_nothing_but_the_needs_is_read(name):
    loss = make(name)
    for position in {"logits", "embedding", "features[-1]", "features[-2]", "features[-3]"} - set(loss.needs):
        student, teacher = ruined(S, position), ruined(T, position)
        torch.testing.assert_close(call(make(name), student, teacher), call(make(name)))
    if "teacher_head" not in loss.needs:
        torch.testing.assert_close(call(make(name), S, Taps(T.logits, T.embedding, T.features)), call(make(name)))


def ruined(taps, position):
    """The same taps with NaN at one position."""
    change = {id(taps.at(position)): torch.full_like(taps.at(position), math.nan)}
    return taps.map(lambda tap: change.get(id(tap), tap))


@names
def test_seed_and_generator_fix_the_value_and_the_global_state_stays(name):
    before = torch.get_rng_state()
    values = [call(make(name)) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*values)
    if list(make(name).parameters()):
        assert not torch.equal(values[0], call(make(name, seed=1)))
    if name in ("crd", "mgd"):
        assert not torch.equal(values[0], call(make(name), seed=1))


@names
def test_labels_that_are_unknown_are_not_used(name):
    if name != "ipwd":
        torch.testing.assert_close(call(make(name), labels=UNKNOWN), call(make(name)))
        return
    order = torch.tensor([0, 1, 3, 2])  # swaps two samples, of which one is unknown
    loss, swapped = make(name), T.map(lambda tap: tap[order] if len(tap) == N else tap)
    mixed = S.map(lambda tap: tap[order])
    torch.testing.assert_close(call(loss, mixed, swapped, LABELS[order]), call(loss))
    student = learning(S)
    call(loss, student, labels=UNKNOWN).backward()
    torch.testing.assert_close(call(loss, labels=UNKNOWN), loss(S, T))
    assert all(not w.grad.any() for w in loss.parameters())  # no label, nothing to learn for the second classifier


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maps", [((2, 6, 5), (3, 4, 4), (4, 3, 4)), ((2, 1, 1),)])
def test_one_sample_gives_no_nan(name, dtype, maps):
    student = learning(make_taps(1, 1, maps=maps, dtype=dtype))
    teacher = with_head(make_taps(2, 1, width=9, maps=((7, 1, 1),), dtype=dtype))
    loss = make(name, student, teacher)
    value = call(loss, student, teacher)
    value.backward()
    assert value.isfinite()
    assert value.dtype == dtype
    assert all(w.grad.isfinite().all() for w in loss.parameters() if w.grad is not None)


@names
def test_a_copy_is_the_same_loss_and_learns_by_itself(name):
    loss = make(name)
    call(loss)
    twin = copy.deepcopy(loss)
    assert torch.equal(call(loss), call(twin))
    call(twin, learning(make_taps(7)), index=INDEX + 10).backward()
    assert all(w.grad is None for w in loss.parameters())
    assert name != "crd" or len(loss.seen) < len(twin.seen)


@names
def test_a_saved_loss_goes_on_where_it_was(name):
    loss, fresh = make(name), make(name, seed=5)
    call(loss)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(call(fresh), call(loss))


@names
def test_training_lowers_the_value(name):
    student, loss = learning(S), make(name)
    taps = [student.logits, student.embedding, *student.features]
    optimiser = torch.optim.Adam([*taps, *loss.parameters()], 0.02)
    values = []
    for _ in range(40):
        values.append(call(loss, student))
        optimiser.zero_grad()
        values[-1].backward()
        optimiser.step()
    assert values[-1] < values[0] - 0.05 * values[0].abs()


@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [
        *((n, Taps(S.logits), T) for n in ("crd", "vid", "ft", "mgd", "reviewkd", "srrl", "simkd", "ipwd")),
        *((n, S, Taps(T.logits)) for n in ("crd", "vid", "ft", "mgd", "reviewkd", "srrl", "simkd")),
        ("srrl", S, Taps(T.logits, T.embedding, T.features)),
        *((n, make_taps(1, classes=3), T) for n in ("ipwd", "atkd")),
    ],
)
def test_what_is_missing_is_said_at_construction(name, student, teacher):
    with pytest.raises(EvokdError):
        MODULES[name](student, teacher, 0)


@pytest.mark.parametrize(("name", "where"), [("crd", "index"), ("mgd", "generator"), ("crd", "generator")])
def test_a_loss_says_what_a_call_lacks(name, where):
    given = {"index": INDEX, "generator": torch.Generator()} | {where: None}
    with pytest.raises(EvokdError, match=where):
        make(name)(S, T, LABELS, 0.5, **given)


# Each against its formula.


def torchdistill():
    return pytest.importorskip("torchdistill.losses.mid_level")


def io(**outputs):
    return {name: {"output": value} for name, value in outputs.items()}


def test_crd_is_the_published_estimate_once_the_banks_are_full():
    """With every sample present, torchdistill's data set size is the number of rows, and its ε = 0."""
    rows = 10
    loss, oracle = make("crd"), torchdistill().CRDLoss("n", "e", "n", CRD.width, rows, 6, rows, eps=0)
    for first in (0, 4, 6):
        call(loss, index=torch.arange(first, first + N))
    oracle.double()
    oracle.memory_v1, oracle.memory_v2 = loss.bank_s.clone(), loss.bank_t.clone()
    oracle.params[2:4] = loss.log_z.exp() * rows
    others = torch.randint(rows - 1, (N, 6), generator=torch.Generator().manual_seed(3))
    picks = torch.cat((INDEX[:, None], others + (others >= INDEX[:, None])), 1)

    student = learning(S)
    s, t = F.normalize(loss.embed_s(student.embedding)), F.normalize(loss.embed_t(T.embedding))
    expected = sum(map(oracle.compute_contrast_loss, oracle.contrast_memory(s, t, INDEX, picks)))
    value = call(loss, student, seed=3)
    agree(value, expected.squeeze(), student.embedding, loss.embed_s.weight, loss.embed_t.weight)
    torch.testing.assert_close(loss.bank_s, oracle.memory_v1)
    torch.testing.assert_close(loss.bank_t, oracle.memory_v2)


def test_crd_first_batch_by_loops():
    loss, student = make("crd"), learning(S)
    g, h = loss.embed_s(student.embedding), loss.embed_t(T.embedding)
    g, h = g / g.norm(dim=1, keepdim=True), h / h.norm(dim=1, keepdim=True)
    place = INDEX.argsort().argsort()  # rows are in the order of the samples' indices
    by_row = INDEX.argsort()
    others = torch.randint(N - 1, (N, 6), generator=torch.Generator().manual_seed(0))
    expected = 0
    for anchors, bank in ((g, h), (h, g)):
        e = torch.zeros(N, 7, dtype=g.dtype)
        for i in range(N):
            partners = [r + (r >= place[i]) for r in others[i]]
            assert place[i] not in partners
            for k, row in enumerate([place[i], *partners]):
                e[i, k] = (anchors[i] @ bank[by_row[row]].detach() / 0.07).exp()
        e = e / e.detach().mean()
        expected = expected - (e[:, 0] / (e[:, 0] + 6)).log().mean() - (6 / (e[:, 1:] + 6)).log().sum(1).mean()
    agree(call(loss, student), expected, student.embedding, loss.embed_s.weight)


def test_crd_remembers_samples_by_index():
    loss = make("crd")
    call(loss)
    assert loss.seen.nonzero().squeeze(1).tolist() == sorted(INDEX.tolist())
    torch.testing.assert_close(loss.bank_s[INDEX], F.normalize(loss.embed_s(S.embedding)).detach())
    before, other = loss.bank_t.clone(), make_taps(7)
    call(loss, other, Taps(T.logits, T.embedding.flip(0)))
    moved = F.normalize(0.5 * before[INDEX] + 0.5 * F.normalize(loss.embed_t(T.embedding.flip(0)))).detach()
    torch.testing.assert_close(loss.bank_t[INDEX], moved)
    call(loss, index=torch.tensor([20, 0, 1, 2]))
    assert len(loss.seen) == 21
    torch.testing.assert_close(loss.bank_t[7], moved[2])


def test_vid_is_torchdistill_summed_over_stages():
    loss, student = make("vid"), learning(S)
    assert loss.needs == ("features[-1]", "features[-2]", "features[-3]")
    for alpha in loss.alphas:
        alpha.data += torch.linspace(-1, 1, len(alpha))
    sizes, expected = {1: (3, 3), 2: (2, 4), 3: (6, 5)}, 0
    for i, size in sizes.items():
        first, second, third = (layer.weight for layer in loss.means[i - 1] if hasattr(layer, "weight"))
        mean = F.adaptive_avg_pool2d(student.features[-i], size)
        mean = F.conv2d(F.conv2d(F.conv2d(mean, first).relu(), second).relu(), third)
        variance = ((1 + loss.alphas[i - 1].exp()).log() + 1e-5).view(1, -1, 1, 1).expand_as(mean)
        oracle = torchdistill().VIDLoss(
            {"p": {"student": {"io": "output", "path": "s"}, "teacher": {"io": "output", "path": "t"}}}
        )
        target = F.adaptive_avg_pool2d(T.features[-i], size)
        expected = expected + oracle({"s": {"output": (mean, variance)}}, io(t=target))
    agree(call(loss, student), expected, *student.features, *loss.parameters())


def test_vid_starts_at_variance_five():
    torch.testing.assert_close(F.softplus(make("vid").alphas[0]) + 1e-5, torch.full((6,), 5.0, dtype=torch.float64))


def test_ft_is_torchdistill_plus_the_reconstruction():
    loss, student = make("ft"), learning(S)
    factor = loss.paraphraser(T.features[-1])
    assert factor.shape == (N, 3, 5, 3)  # half of six channels
    s = F.adaptive_avg_pool2d(loss.translator(student.features[-1]), (3, 3))
    t = F.adaptive_avg_pool2d(factor, (3, 3))
    transfer = torchdistill().FTLoss()(io(translator=s), io(paraphraser=t.detach()))
    expected = transfer + (loss.decoder(factor) - T.features[-1]).square().mean()
    agree(call(loss, student), expected, student.features[-1], *loss.parameters())


def test_ft_networks_are_three_convolutions_with_leaky_relu():
    loss, f = make("ft"), S.features[-1]
    expected = f
    for step in loss.translator:
        expected = F.leaky_relu(F.conv2d(expected, step[0].weight, step[0].bias, padding=1), 0.1)
    torch.testing.assert_close(loss.translator(f), expected)
    assert [len(part) for part in (loss.paraphraser, loss.decoder, loss.translator)] == [3, 3, 3]


def test_mgd_by_loops():
    loss, student = make("mgd"), learning(S)
    draw = torch.rand(N, 1, 5, 3, generator=torch.Generator().manual_seed(0))
    f = F.interpolate(student.features[-1], (5, 3), mode="bilinear", align_corners=False)
    f = loss.align(f) * (draw >= 0.65)
    first, _, second = loss.generate
    guess = F.conv2d(F.conv2d(f, first.weight, first.bias, padding=1).relu(), second.weight, second.bias, padding=1)
    expected = sum((guess[i] - T.features[-1][i]).square().sum() for i in range(N)) / N
    agree(call(loss, student), expected, student.features[-1], *loss.parameters())


def test_mgd_masks_the_published_share_and_aligns_only_unequal_channels():
    big = make_taps(3, 8, maps=((4, 40, 40),))
    loss = make("mgd", big, big)
    assert isinstance(loss.align, torch.nn.Identity)
    loss.generate = seen = Kept()
    call(loss, big, big, labels=LABELS, index=torch.arange(8))
    assert abs((seen.f == 0).double().mean() - MGD.masked) < 0.01
    assert ((seen.f == 0).sum(1) % 4 == 0).all()  # a pixel goes with all its channels


class Kept(torch.nn.Module):
    def forward(self, f):
        self.f = f
        return f


def norm(f, layer):
    """Batch normalisation with the batch's own statistics, written out."""
    mean, variance = f.mean((0, 2, 3), keepdim=True), f.var((0, 2, 3), correction=0, keepdim=True)
    return (f - mean) / (variance + 1e-5).sqrt() * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def unlike_ones(loss):
    """Give the batch norms weights that are not 1 and 0, so that a test sees them."""
    for i, layer in enumerate(m for m in loss.modules() if isinstance(m, BatchNorm)):
        layer.weight.data = torch.linspace(0.5, 1.5, len(layer.weight)).double() + 0.1 * i
        layer.bias.data = torch.linspace(-0.3, 0.3, len(layer.bias)).double()


def test_reviewkd_by_hand_with_torchdistills_context_loss():
    loss, student = make("reviewkd"), learning(S)
    unlike_ones(loss)
    context = torchdistill().HierarchicalContextLoss("s", "output", "t", "output")
    later, expected = None, 0
    for i, fusion in enumerate(loss.fusions, 1):
        target = T.features[-i]
        x = norm(F.conv2d(student.features[-i], fusion.reduce[0].weight), fusion.reduce[1])
        if later is not None:
            y = F.interpolate(later, x.shape[2:], mode="nearest")
            z = torch.sigmoid(fusion.gates(torch.cat([x, y], 1)))
            x = x * z[:, 0].unsqueeze(1) + y * z[:, 1].unsqueeze(1)
        later = x = F.interpolate(x, target.shape[2:], mode="nearest")
        out = norm(F.conv2d(x, fusion.expand[0].weight, padding=1), fusion.expand[1])
        narrow = [k for k in (4, 2, 1) if k < min(target.shape[2:])]  # torchdistill looks at the height alone
        context.output_sizes = narrow
        expected = expected + context({"s": {"output": (out, None)}}, io(t=target))
    assert loss.fusions[1].gates.weight.shape == (2, 2 * 4, 1, 1)  # as wide as the student's last stage
    assert [fusion.gates is None for fusion in loss.fusions] == [True, False, False]
    agree(call(loss, student), expected, *student.features, *loss.parameters())


def test_the_context_loss_weighs_four_sizes():
    s, t = make_taps(3, maps=((2, 8, 8),)).features[0], make_taps(4, maps=((2, 8, 8),)).features[0]
    gaps = [(F.avg_pool2d(s - t, k)).square().mean() for k in (1, 2, 4, 8)]
    expected = (gaps[0] + gaps[1] / 2 + gaps[2] / 4 + gaps[3] / 8) / 1.875
    torch.testing.assert_close(hierarchical_context(s, t), expected)


def test_srrl_by_loops():
    loss, student = make("srrl"), learning(S)
    unlike_ones(loss)
    f = norm(F.conv2d(student.features[-1], loss.connector[0].weight), loss.connector[1]).relu()
    weight, bias = T.head
    feature = regression = 0
    for i in range(N):
        e = f[i].sum((1, 2)) / (f.shape[2] * f.shape[3])
        feature = feature + (e - T.embedding[i]).square().sum() / (N * 9)
        regression = regression + (weight @ e + bias - T.logits[i]).square().sum() / (N * CLASSES)
    agree(call(loss, student), feature + regression, student.features[-1], *loss.parameters())


def test_simkd_by_hand():
    loss, student = make("simkd"), learning(S)
    unlike_ones(loss)
    f = F.adaptive_avg_pool2d(student.features[-1], (3, 3))
    for (convolution, layer, _), padding in zip(loss.projector, (0, 1, 0), strict=True):
        f = norm(F.conv2d(f, convolution.weight, padding=padding), layer).relu()
    gap = f - F.adaptive_avg_pool2d(T.features[-1], (3, 3))
    assert loss.projector[0][0].weight.shape == (3, 4, 1, 1)
    assert loss.projector[1][0].weight.shape == (3, 3, 3, 3)
    agree(call(loss, student), gap.square().sum() / gap.numel(), student.features[-1], *loss.parameters())


def plain_kl(s, t, tau_s, tau_t):
    p, q = (t / tau_t).exp(), (s / tau_s).exp()
    p, q = p / p.sum(), q / q.sum()
    return (p * (p / q).log()).sum()


def test_ipwd_by_loops():
    loss, student = make("ipwd"), learning(S)

    def difficulty(z, y):
        z = (z - z.mean()) / z.var(correction=0).sqrt()
        return -(z[y].exp() / z.exp().sum()).log()

    guess = S.embedding @ loss.classifier.weight.T + loss.classifier.bias
    expected = 0
    for i, y in enumerate(LABELS.tolist()):
        weight = torch.tensor(2.0) if y < 0 else 1 + difficulty(guess[i], y) / difficulty(S.logits[i], y)
        expected = expected + weight.detach() * 16 * plain_kl(student.logits[i], T.logits[i], 4, 4) / N
        if y >= 0:
            expected = expected - (guess[i, y].exp() / guess[i].exp().sum()).log() / 3
    agree(call(loss, student), expected, student.logits, student.embedding, *loss.parameters())


def test_atkd_by_loops():
    loss, student = make("atkd"), learning(S)
    expected = 0
    for s, t in zip(student.logits, T.logits, strict=True):
        tau_s, tau_t = (2 * (z - z.mean()).square().mean().sqrt().item() for z in (s, t))
        expected = expected + tau_s**2 * plain_kl(s, t, tau_s, tau_t) / N
    agree(call(loss, student), expected, student.logits)


def test_atkd_does_not_ask_for_the_teachers_scale():
    value = call(make("atkd"), Taps(T.logits * 0.3 + 2), Taps(T.logits))
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)


def test_both_sides_are_equally_sharp_to_second_order():
    z = make_taps(5, classes=1000).logits
    z = z - z.mean(1, keepdim=True)
    sharpness = (z / (2 * z.std(1, correction=0, keepdim=True))).logsumexp(1)
    torch.testing.assert_close(sharpness, torch.full_like(sharpness, math.log(1000) + 1 / 8), atol=0.01, rtol=0)


def test_the_batch_norm_is_the_library_one_but_for_a_single_value():
    layer, library = BatchNorm(4), torch.nn.BatchNorm2d(4)
    f = S.features[-1].float()
    torch.testing.assert_close(layer(f), library(f))
    torch.testing.assert_close(layer.running_var, library.running_var)
    single, library = f[:1, :, :1, :1], library.eval()
    torch.testing.assert_close(layer(single), library(single))
