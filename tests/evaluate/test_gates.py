from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from evokd.evaluate import gates
from evokd.evaluate.gates import flaws, probe, trim
from evokd.losses import KNOWN, Taps, compile_loss, parse_loss, write_loss
from evokd.losses.language import ALL, learn_operator, node_named, rules, to_terms
from evokd.losses.modules import MODULES
from evokd.losses.operators import EVERY, Transform
from evokd.losses.transforms import TRANSFORMS
from tests.losses.common import make_taps


def static(tree, student, teacher, labels) -> str:
    return gates.static(tree, flaws(student, teacher, labels))


@pytest.fixture(scope="module")
def examples(problem):
    return problem.examples


@pytest.fixture(scope="module")
def made():
    """A pair that shows everything, of unlike widths."""
    teacher = make_taps(2, 8, width=9, maps=((5, 6, 5), (6, 4, 4), (8, 3, 4)), dtype=torch.float32)
    return make_taps(1, 8, dtype=torch.float32), teacher, torch.arange(8) % 5


@pytest.fixture
def own():
    """Adds a function to the language, as a user's operator on values of any kind, until the test ends."""
    names = []

    def add(fn):
        learn_operator(Transform(fn, EVERY, lambda b, a: a, "", keeps_shape=True))
        names.append(fn.__name__)

    yield add
    for name in names:
        TRANSFORMS.pop(name)
        ALL.discard(name)
    rules.cache_clear()
    node_named.cache_clear()


@pytest.mark.parametrize("name", [*KNOWN, *MODULES])
def test_published_losses_pass_where_the_pair_shows_what_they_read(examples, made, name):
    tree = parse_loss(KNOWN.get(name, name))
    assert static(tree, *made) == probe(tree, *made) == ""
    missing = {p for term in to_terms(tree) for p in term.distance.positions()} - set(examples[1].positions())
    constant = name == "skd_pairwise"  # see the next test
    for gate in (static, probe):
        reason = gate(tree, *examples)
        if missing:
            assert reason.startswith(f"{gate.__name__}: EvokdError: position")
        else:
            assert reason == ("static: term 1 is constant" if constant and gate is static else "")


def test_the_one_published_loss_that_is_refused_is_constant_on_this_pair(examples):
    student = examples[0].features[-1].detach().double().requires_grad_()
    assert student.shape[2:] == (2, 2)
    unit = F.normalize(F.max_pool2d(student, 2).flatten(2), dim=1)
    affinity = unit.transpose(1, 2) @ unit
    assert affinity.shape[1:] == (1, 1)  # one position and itself
    assert torch.allclose(affinity, torch.ones_like(affinity))
    (gradient,) = torch.autograd.grad(affinity.sum(), student)
    assert gradient.abs().max() < 1e-12


# --- one term at a time ------------------------------------------------------------------------------------------------------


def test_a_constant_term_is_named_by_its_number(made):
    assert static(parse_loss("l2(logits) + kl(mean_C(features[-1]), tau=1)"), *made) == "static: term 2 is constant"
    assert static(parse_loss("0*kl(logits, tau=4) + l2(logits)"), *made) == "static: term 1 is constant"
    assert static(parse_loss("l2(logits) + ramp(0, 0)*l1(logits)"), *made) == "static: term 2 is constant"


@pytest.mark.parametrize("weight", ["ramp(0, 3)", "cosine(1, 0)", "step(1, 0)", "step(0, 1)", "ramp(-1, 1)", "1e-30", "-2"])
def test_a_weight_that_is_not_zero_throughout_is_no_constant(made, weight):
    assert static(parse_loss(f"{weight}*kl(logits, tau=anneal(8, 1))"), *made) == ""


def test_a_term_without_a_path_to_the_student_is_refused(made, own):
    def cut(f):
        return f.detach()

    own(cut)
    assert static(parse_loss("l2(logits) + l2(cut(embedding))"), *made) == "static: term 2 has no gradient path to the student"
    assert static(parse_loss("l2(teacher.cut(logits))"), *made) == ""


def test_a_term_that_does_not_mind_the_teacher_is_refused(made, own):
    student, teacher, labels = made
    positive = teacher.map(torch.abs)  # as after a ReLU: the mean channel divided by its own size is 1 everywhere
    deaf = parse_loss("l2(logits) + l2(teacher.norm_C(mean_C(features[-1])))")
    assert static(deaf, student, positive, labels) == "static: term 2 does not use the teacher"
    assert static(deaf, *made) == ""

    def blank(f):
        return 0 * f

    own(blank)
    assert static(parse_loss("l2(teacher.blank(logits))"), *made) == "static: term 1 does not use the teacher"


def test_sums_over_the_batch_use_the_teacher(made, own):
    def summed(f):
        return f + 0 * f + f.sum(0, keepdim=True)

    def only_summed(f):
        return 0 * f + f.sum(0, keepdim=True)

    own(summed)
    own(only_summed)
    for text in ("l2(only_summed(logits))", "l2(summed(logits))", "l1(logits)", "hinge(pre_relu[-1])", "hard(logits)"):
        assert static(parse_loss(text), *made) == ""


def test_an_unlucky_batch_is_no_reason(made):
    student, teacher, labels = made
    below = student.map(lambda t: -t.abs() - 1)
    assert static(parse_loss("l2(relu(logits))"), below, teacher, labels) == ""
    content = student.map(lambda t: 5 * t.sign())
    assert static(parse_loss("hinge(pre_relu[-1])"), content, content, labels) == ""  # beyond the margin on the right side
    hidden = torch.full_like(labels, -1)
    assert static(parse_loss(KNOWN["dkd"]), student, teacher, hidden) == ""
    assert static(parse_loss("kl(gt_binary(logits), tau=1)"), student, teacher, hidden) == ""


def test_terms_that_teach_nothing_are_trimmed(made):
    flaw = flaws(*made)
    constant, sound = "kl(mean_C(features[-1]), tau=1)", "l2(logits) + 3*l1(logits) + l2(logits)"
    assert write_loss(trim(parse_loss(f"{constant} + {sound}"), flaw)) == sound
    assert write_loss(trim(parse_loss(f"0*kl(logits, tau=4) + 2*{constant} + {sound}"), flaw)) == sound
    for whole in (sound, constant, f"{constant} + 0*l1(logits)"):
        assert write_loss(trim(parse_loss(whole), flaw)) == whole
    assert gates.static(parse_loss(f"{constant} + 0*l1(logits)"), flaw) == "static: term 1 is constant"


def test_what_is_trimmed_has_the_gradient_of_the_whole(made):
    student, teacher, labels = made
    whole = parse_loss("2*l2(logits) + kl(mean_C(features[-1]), tau=1) + 5*kl(mean_C(features[-2]), tau=2)")
    trimmed = trim(whole, flaws(*made))
    assert 0 < len(trimmed) < len(whole)
    leaf = replace(student, logits=student.logits.detach().requires_grad_())
    first, second = (
        torch.autograd.grad(compile_loss(t, leaf, teacher)(leaf, teacher, labels), leaf.logits)[0] for t in (whole, trimmed)
    )
    assert torch.equal(first, second)


def test_each_term_is_looked_at_once_whatever_its_weight(made, own):
    looks = []

    def watched(f):
        looks.append(1)
        return f

    own(watched)
    flaw = flaws(*made)
    assert gates.static(parse_loss("l2(watched(logits))"), flaw) == ""
    count = len(looks)
    assert count > 0
    for text in ("3*l2(watched(logits))", "l1(logits) + 0.5*l2(watched(logits))"):
        assert gates.static(parse_loss(text), flaw) == ""
    assert len(looks) == count


def test_a_term_that_raises_is_told_and_not_trimmed(made, own):
    def torn(f):
        raise ValueError("no")

    own(torn)
    tree = parse_loss("l2(logits) + l2(torn(logits))")
    assert trim(tree, flaws(*made)) == tree
    assert static(tree, *made) == "static: ValueError: no"


def test_static_tells_what_an_operator_raised(made, own):
    def broken(f):
        raise ValueError("no\nway")

    own(broken)
    assert static(parse_loss("l2(broken(logits))"), *made) == "static: ValueError: no"
    assert probe(parse_loss("l2(broken(logits))"), *made) == "probe: ValueError: no"


# --- the whole loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0*kl(logits, tau=4)", "gradient is zero"),
        ("1e38*l2(pow4(pow4(logits)))", "value inf"),
        ("l2(features[-9])", "position features[-9]"),
        ("l2(logits) + 1e38*l2(pow4(pow4(logits)))", "value inf"),
    ],
)
def test_losses_that_cannot_train_are_refused_with_their_reason(examples, text, reason):
    told = probe(parse_loss(text), *examples)
    assert told.startswith(("probe: ", "static: "))
    assert reason in told
    assert "\n" not in told


def test_a_constant_in_the_student_is_no_path(examples):
    student, teacher, labels = examples
    assert "zero" in probe(parse_loss("l2(relu(logits))"), student.map(lambda t: -t.abs() - 1), teacher, labels)


def root(f):
    return f.abs().sqrt()


def loud(f):
    return f.exp()


def spread(f):
    return f / (f.amax(1, keepdim=True) - f.amin(1, keepdim=True))


def sharp(f):
    return f.log_softmax(1).exp().log()


@pytest.mark.parametrize(
    ("fn", "position", "reason"),
    [
        (root, "features[-1]", "probe: gradient is not finite on dead maps and one class"),
        (loud, "logits", "probe: value nan on saturated logits"),
        (sharp, "logits", "probe: value nan on saturated logits"),
        (lambda f: 1 / f.square(), "features[-2]", "probe: value inf on dead maps and one class"),
        (lambda f: spread(f + 1e-3 * (f == 0) * torch.arange(f.shape[1])), "logits", "probe: value inf on tiny constant rows"),
    ],
)  # fmt: skip
def test_operators_that_break_at_the_ends_are_told_where(made, own, fn, position, reason):
    def edge(f):
        return fn(f)

    own(edge)
    assert probe(parse_loss(f"l2(edge({position}))"), *made) == reason


def test_the_ends_are_dead_saturated_and_without_contrast(made, own):
    student, teacher, _ = made
    seen = []

    def watch(f):
        seen.append(f.detach().clone())
        return f

    own(watch)
    assert probe(parse_loss("l2(watch(logits))"), *made) == ""
    (real, _), (dead, beside), (hot, hot_teacher), (flat, cold) = zip(seen[::2], seen[1::2], strict=True)
    assert torch.equal(real, student.logits)
    assert not dead.any()
    assert torch.equal(beside, teacher.logits)
    assert torch.equal(hot, student.logits * 1e4)
    assert torch.equal(hot_teacher, teacher.logits * 1e4)
    assert torch.allclose(flat, student.logits.mean(1, keepdim=True) * 1e-6 + torch.zeros_like(flat))
    assert torch.equal(cold, teacher.logits * 1e-6)


def test_stages_that_were_not_recorded_do_no_harm(made):
    student, teacher, labels = (
        *(Taps(t.logits, t.embedding, (torch.empty(0), t.features[-1]), head=t.head) for t in made[:2]),
        made[2],
    )
    for gate in (probe, static):
        assert gate(parse_loss("l2(features[-1]) + l2(teacher_head)"), student, teacher, labels) == ""


def test_ill_shaped_pairs_are_refused(examples):
    student, teacher, labels = examples
    fewer = Taps(student.logits[:, :7], student.embedding, student.features)
    assert "equally many classes" in probe(parse_loss(KNOWN["kd"]), fewer, teacher, labels)


@pytest.mark.parametrize("gate", [probe, static])
def test_gates_leave_taps_and_global_draws_alone(examples, gate):
    student, teacher, labels = examples
    before, state = student.logits.clone(), torch.get_rng_state()
    gate(parse_loss(KNOWN["fitnet"] + " + mgd"), student, teacher, labels)
    assert torch.equal(student.logits, before)
    assert not student.logits.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_may_all_be_hidden(examples):
    student, teacher, labels = examples
    for gate in (probe, static):
        assert gate(parse_loss(KNOWN["wsld"]), student, teacher, torch.full_like(labels, -1)) == ""
