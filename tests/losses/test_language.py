import json
import random
import sys
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.genome.grammar import kind, subtree_heights
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.variation import mutate_constant, mutate_node
from evokd.losses import schedules
from evokd.losses.canonical import ABSORBED, IDENTITIES, canonical
from evokd.losses.distances import DISTANCES
from evokd.losses.growth import loss_grammar, vary_number
from evokd.losses.known import KNOWN
from evokd.losses.language import (
    MAX_TERMS,
    MAX_TEXT,
    NO,
    SIDES,
    Call,
    Term,
    kind_of,
    parse_loss,
    to_terms,
    to_tree,
    tree_from_names,
    write_loss,
)
from evokd.losses.modules import MODULES
from evokd.losses.operators import KINDS
from evokd.losses.program import DistillLoss, compile_loss, read_tap
from evokd.losses.schedules import SCHEDULES, Schedule
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES
from evokd.space import read_space, space_names
from tests.losses.common import CHAINS, POSITIONS, call, every_operator, learning, make_taps, random_trees, weight_mode
from tests.losses.forms import EVERYWHERE, LABELS, PAIRS, S, T, generator, grown

MANY = settings(derandomize=True, deadline=None, max_examples=150)
GRAMMARS = {name: loss_grammar(read_space(name).space, EVERYWHERE) for name in space_names()}
TREES = st.builds(
    lambda name, seed: grow_tree(GRAMMARS[name], random_chooser(random.Random(seed), 0.4)),
    st.sampled_from(sorted(GRAMMARS)),
    st.integers(0, 10**9),
)


def value(tree, s=S, t=T):
    return compile_loss(tree, s, t).double()(s, t, LABELS, 0.3, generator()).item()


# --- reading and writing -----------------------------------------------------------------------------------------------------


@MANY
@given(TREES)
def test_text_and_tree_convert_exactly_both_ways(tree):
    text = write_loss(tree)
    again = parse_loss(text)
    assert list(again) == list(tree)
    assert write_loss(again) == text


@MANY
@given(TREES)
def test_names_and_terms_convert_exactly_too(tree):
    assert list(tree_from_names(json.loads(json.dumps(to_names(tree))))) == list(tree)
    assert list(to_tree(to_terms(tree))) == list(tree)


@MANY
@given(TREES, st.integers(0, 10**9))
def test_numbers_off_the_grid_survive(tree, seed):
    draw = random.Random(seed)
    for _ in range(5):
        (tree,) = mutate_constant(tree, GRAMMARS["compact"], draw)
    assert list(parse_loss(write_loss(tree))) == list(tree)
    assert list(tree_from_names(json.loads(json.dumps(to_names(tree))))) == list(tree)


def test_random_trees_hold_all_that_the_language_has():
    found = {node.name.partition(":")[0] for space in space_names() for tree in grown(space, range(500)) for node in tree}
    assert found >= {*TRANSFORMS, *DISTANCES, *MODES, *EVERYWHERE} - {"no"}
    assert {name.partition("(")[0].removeprefix("tau=") for name in found if "(" in name} == set(SCHEDULES)
    assert {side for side in SIDES if any(name.startswith(side + ".") for name in found)} == set(SIDES)


@MANY
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e6))
def test_any_finite_number_is_legal(weight, tau):
    (term,) = to_terms(parse_loss(f"{weight!r}*power_sum(tau={tau!r})*kl(logits, tau={tau!r})"))
    assert (term.weight, term.mode, term.distance.params) == (weight, Call("power_sum", params=(tau,)), (tau,))


@MANY
@given(st.sampled_from(sorted(SCHEDULES)), st.lists(st.floats(1e-6, 1e6), min_size=4, max_size=4))
def test_any_schedule_is_legal_where_a_number_is(name, numbers):
    start, end, hot, cold = numbers
    text = f"{name}({start!r},{end!r})*kl(temper(logits, tau={name}({hot!r}, {cold!r})), tau={name}({cold!r},{hot!r}))"
    (term,) = to_terms(parse_loss(text))
    assert term.weight == Schedule(name, start, end)
    assert term.distance.params == (Schedule(name, cold, hot),)
    assert list(parse_loss(str(term))) == list(parse_loss(text))


@pytest.mark.parametrize(
    "text",
    [
        *every_operator(),
        *(f"{mode}*l2(logits)" for mode in map(weight_mode, MODES)),
        *(f"{name}(1, 2)*l2(logits)" for name in SCHEDULES),
        *(f"l2({position})" for position in EVERYWHERE),
        *MODULES,
        "0.8*crd + l2(logits) + ramp(0, 1)*vid",
        "3*focal*l2(logits)",
        "-1*l2(logits)",
        "0.5*l2(logits)",
        "ramp(-1, 0.5)*power_sum(tau=anneal(8, 1))*kl(teacher.temper(logits, tau=step(2, 3)), tau=cosine(1, 4))",
    ],
)
def test_every_operator_and_kind_can_be_written_and_read(text):
    assert write_loss(parse_loss(text)) == text


def test_a_term_is_read_for_what_it_says():
    (term,) = to_terms(parse_loss("0.3*focal*l2(norm_C(mm(features[-1])))"))
    assert (term.weight, term.mode, term.distance.name) == (0.3, Call("focal"), "l2")
    assert [c.name for c in term.distance.walk()] == ["l2", "norm_C", "mm", "features[-1]"]
    assert not term.module
    (plain,) = to_terms(parse_loss("kl(logits, tau=4)"))
    assert (plain.weight, plain.mode, plain.distance.params) == (1, NO, (4,))
    (module,) = to_terms(parse_loss("ramp(0, 0.8)*crd"))
    assert module == Term(Schedule("ramp", 0, 0.8), NO, Call("crd"))
    assert module.module
    (binary,) = to_terms(parse_loss("l2(class_gradient(teacher.temper(logits, tau=2), embedding))"))
    one_sided = Call("temper", (Call("logits"),), (2,), "teacher")
    assert binary.distance == Call("l2", (Call("class_gradient", (one_sided, Call("embedding"))),))
    assert binary.distance.positions() == ["logits", "embedding"]


@pytest.mark.parametrize(
    "text",
    [
        "3*kl(logits,tau=4)+0.3*focal*l2(logits)",
        "3*kl(logits,tau=4) +0.3*focal*l2(logits)",
        "3*kl(logits,tau=4) + 0.3 * focal * l2(logits)",
        "  3 *kl (\tlogits , tau = 4.0 )\n+ .3*focal*l2( logits )  ",
        "3e0*kl(logits, tau=+4) + 3e-1*focal*l2(logits)",
        "3.0*no*kl(logits, tau=4) + 0.30*focal*l2(logits)",
        "3*kl (logits\n,tau\t=\n4)+0.3\n*focal*\nl2(logits)",
    ],
)
def test_spaces_and_the_form_of_numbers_do_not_matter(text):
    assert write_loss(parse_loss(text)) == "3*kl(logits, tau=4) + 0.3*focal*l2(logits)"


def test_spaces_inside_schedules_and_modes_do_not_matter():
    tree = parse_loss(" ramp( 0 ,\n.3 ) * power_sum ( tau = 4.0 ) * l2( logits ) + 0.80 * crd ")
    assert write_loss(tree) == "ramp(0, 0.3)*power_sum(tau=4)*l2(logits) + 0.8*crd"


def made(value):
    """What a chain of transforms makes of the student's taps."""
    if not value.args:
        return S.logits if value.name == "teacher_head" else read_tap(S, value.name)
    operator, args = TRANSFORMS[value.name], [made(arg) for arg in value.args]
    mask = [torch.ones([n if axis in operator.mask[1] else 1 for axis, n in enumerate(args[0].shape)])] if operator.mask else []
    return operator.fn(*args, *([LABELS] if operator.labels else mask), *value.params)


@pytest.mark.parametrize("text", every_operator())
def test_the_kind_told_is_the_shape_made(text):
    (term,) = to_terms(parse_loss(text))
    inside, n = term.distance.args[0], len(S.logits)
    out, found = made(inside), kind_of(inside)
    assert found in KINDS
    assert out.dim() == {"maps": 4, "tokens": 3}.get(found, 2)
    if found != "columns":
        assert out.shape[0] == n
    per_sample = DISTANCES[term.distance.name].per_sample and found != "columns"
    assert kind_of(term.distance) == ("distance" if per_sample else "total")


# --- what is refused ---------------------------------------------------------------------------------------------------------


HOSTILE = [
    "",
    "   ",
    "l2",
    "l2(",
    "l2()",
    "l2(logits",
    "l2(logits))",
    "l2(logits) l2(logits)",
    "l2(logits) +",
    "+ l2(logits)",
    "3*",
    "3",
    "*l2(logits)",
    "3*3*l2(logits)",
    "focal*sim*l2(logits)",
    "l2(logits, tau=4)",
    "kl(logits)",
    "kl(logits, 4)",
    "kl(logits, tau=)",
    "kl(logits, tau=4, tau=4)",
    "kl(logits, temperature=4)",
    "kl(logits, tau=0)",
    "kl(logits, tau=-1)",
    "kl(logits, tau=1e-400)",
    "kl(logits, tau=nan)",
    "kl(logits, tau=inf)",
    "nan*l2(logits)",
    "inf*l2(logits)",
    "1e999*l2(logits)",
    "-1e400*l2(logits)",
    "0x10*l2(logits)",
    "1_000*l2(logits)",
    "1e1000*l2(logits)",
    "logits",
    "norm_C(logits)",
    "l2(l2(logits))",
    "l2(logits, logits)",
    "l2(logits + logits)",
    "l2(3)",
    "l2(focal)",
    "l2(tau=4)",
    "focal(logits)",
    "no(logits)",
    "l2(features)",
    "l2(features[1])",
    "l2(features[-0])",
    "l2(features[-10])",
    "l2(features[-1])[0]",
    "l2(logits[-1])",
    "l2(norm_HW(logits))",
    "l2(transpose(features[-1]))",
    "hard(features[-1])",
    "correlation(features[-1])",
    "focal*correlation(embedding)",
    "entropy*pearson(transpose(logits))",
    "l2(logits, tau)",
    "l2(relu(logits, logits))",
    "l2(cross(features[-1]))",
    "l2(cross(features[-1], logits))",
    "l2(cross(features[-1], features[-2], features[-3]))",
    "l2(class_gradient(embedding, logits))",
    "l2(gt_drop(embedding))",
    "l2(mask(logits))",
    "l2(norm_all(embedding))",
    "l2(temper(logits))",
    "l2(pre_relu)",
    "l2(pre_relu[1])",
    "l2(tokens[-1])",
    "l2(teacher_head[-1])",
    "l2(attention.heads)",
    "l2(teacher.logits)",
    "l2(teacher.mm(logits))",
    "l2(teacher.transpose(tokens))",
    "l2(teacher.gt_binary(logits))",
    "l2(nobody.relu(logits))",
    "l2(teacher.student.relu(logits))",
    "l2(teacher. relu(logits))",
    "l2(teacher.(logits))",
    "l2(.relu(logits))",
    "l2(teacher.__class__(logits))",
    "teacher.l2(logits)",
    "student.relu(logits)",
    "ramp(0, 3)",
    "ramp(0, 3)*",
    "ramp(0, 3)l2(logits)",
    "ramp*l2(logits)",
    "ramp()*l2(logits)",
    "ramp(0)*l2(logits)",
    "ramp(0, 1, 2)*l2(logits)",
    "ramp(0, nan)*l2(logits)",
    "ramp(0, inf)*l2(logits)",
    "ramp(0, 1e999)*l2(logits)",
    "ramp(0, ramp(0, 1))*l2(logits)",
    "ramp(l2(logits), 1)*l2(logits)",
    "ramp(tau=0, tau=1)*l2(logits)",
    "warm(0, 1)*l2(logits)",
    "3*ramp(0, 1)*l2(logits)",
    "ramp(0, 1)*3*l2(logits)",
    "anneal(0, 1)*l2(logits)",
    "anneal(1, -1)*l2(logits)",
    "kl(logits, tau=ramp(0, 4))",
    "kl(logits, tau=step(4, -1))",
    "kl(logits, tau=ramp)",
    "kl(logits, ramp(4, 1))",
    "power_sum*l2(logits)",
    "power_sum()*l2(logits)",
    "power_sum(4)*l2(logits)",
    "power_sum(tau=0)*l2(logits)",
    "power_sum(tau=nan)*l2(logits)",
    "power_sum(tau=4, tau=4)*l2(logits)",
    "power_sum(tau=4)l2(logits)",
    "power_sum(tau=4)*frobenius(logits)",
    "focal(tau=4)*l2(logits)",
    "no(tau=4)*l2(logits)",
    "crd(logits)",
    "crd()",
    "crd*crd",
    "crd*l2(logits)",
    "l2(crd)",
    "focal*crd",
    "no*crd",
    "3*4*crd",
    "crd(tau=4)",
    "__import__('sys').stop()",
    "__import__(logits)",
    "l2(__class__(logits))",
    "l2(__class__)",
    "l2.__globals__(logits)",
    "l2(logits.__class__)",
    "eval(logits)",
    "exec('import sys; sys.stop()')",
    "l2(logits); import os",
    "(lambda: 1)()",
    "l2(logits) if 1 else 0",
    "[l2(logits)]",
    "{l2}",
    "f'{1}'",
    "l2(\x00logits)",
    "l2(ｌogits)",
    "l2(lοgits)",
    "٣*l2(logits)",
    "l2(features[-١])",
    "3·l2(logits)",
    "l2(logits)\\",
    "l2(logits)  # a comment",
    "l2(" + "relu(" * 3000 + "logits" + ")" * 3000 + ")",
    "l2(" + "relu(" * 10_000 + "logits" + ")" * 10_000 + ")",
    "l2(" + "teacher.relu(" * 1500 + "logits" + ")" * 1500 + ")",
    "l2(" + "cross(" * 2000 + "features[-1], features[-1]" + ")" * 2000 + ")",
    "ramp(" * 3000 + "0, 1" + ")" * 3000 + "*l2(logits)",
    "ramp(0, " + "9" * 10_000 + ")*l2(logits)",
    "l2(logits) + ".join([""] * 9) + "+".join(["crd"] * 9),
    "(" * 10_000,
    " + ".join(["l2(logits)"] * (MAX_TERMS + 1)),
    "9" * 10_000 + "*l2(logits)",
    "a" * MAX_TEXT,
    "l2(logits)" + " " * 10_000_000,
    "l2(logits) + " * 800_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:40]))
def test_hostile_text_is_refused_without_running_anything(text, monkeypatch):
    monkeypatch.setattr(sys, "stop", lambda: pytest.fail("text was run"), raising=False)
    with pytest.raises(EvokdError) as caught:
        parse_loss(text)
    assert len(str(caught.value)) < 400  # the message does not repeat the whole text


@MANY
@given(st.text(alphabet="l2kl()logits,tau=4*+ .focalmn[-1]_Crdpste", max_size=60))
def test_no_text_fails_in_another_way(text):
    try:
        tree = parse_loss(text)
    except EvokdError:
        return
    assert list(parse_loss(write_loss(tree))) == list(tree)


@MANY
@given(
    TREES,
    st.integers(0, 10**6),
    st.sampled_from([*"()+*,=.", "logits", "l2", "4", "tau", "no", "-", "[-1]", "ramp(0, 1)", "teacher.", "crd", ""]),
)
def test_damaged_text_is_read_or_refused(tree, at, piece):
    text = write_loss(tree)
    at %= len(text)
    try:
        again = parse_loss(text[:at] + piece + text[at + 1 :])
    except EvokdError:
        return
    assert list(parse_loss(write_loss(again))) == list(again)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("l2(logit)", "did you mean 'logits'?"),
        ("l2(feature[-1])", "'features"),
        ("l2(embeding)", "did you mean 'embedding'?"),
        ("l2(norm_c(logits))", "'norm_C'"),
        ("l2(sofmax_C(logits))", "'softmax_C'"),
        ("cosin(logits)", "did you mean 'cosine'?"),
        ("l2(teacher.tempr(logits, tau=2))", "did you mean 'temper'?"),
        ("l2(teacherhead)", "did you mean 'teacher_head'?"),
        ("l2(attension)", "did you mean 'attention'?"),
        ("zzzz(logits)", "choose from"),
    ],
)
def test_a_slip_of_the_pen_is_answered_with_the_nearest_name(text, hint):
    with pytest.raises(EvokdError) as caught:
        parse_loss(text)
    assert hint in caught.value.hint
    assert hint in str(caught.value)


def test_a_misspelt_mode_is_answered_with_the_nearest_mode():
    with pytest.raises(EvokdError) as caught:
        parse_loss("3*focl*l2(logits)")
    assert "focal" in str(caught.value)


def test_errors_tell_where_and_at_which_character():
    with pytest.raises(EvokdError, match=r"^my file: .*'\)' at character 11"):
        parse_loss("l2(logits))", where="my file")
    with pytest.raises(EvokdError, match="the end' at character 3"):
        parse_loss("l2")


def test_only_the_operators_named_may_be_used():
    allowed = {"l2", "norm_C", "no"}
    assert parse_loss("l2(norm_C(logits))", allowed)
    for text in ("l1(logits)", "l2(relu(logits))", "focal*l2(logits)", "l2(teacher.relu(logits))", "crd"):
        with pytest.raises(EvokdError):
            parse_loss(text, allowed)


def test_temperatures_in_trees_are_positive_too():
    names = ["loss1", "term", "1", "no", "kl:classes", "logits", "tau=4"]
    assert write_loss(tree_from_names(names)) == "kl(logits, tau=4)"
    assert write_loss(tree_from_names([*names[:-1], "tau=ramp(4, 1)"])) == "kl(logits, tau=ramp(4, 1))"
    for bad in ("tau=0", "tau=-2", "tau=nan", "tau=1e-400", "tau=", "tau=4x", "4", "tau=ramp(4, 0)", "ramp(4, 1)", "tau=tau=4"):
        with pytest.raises(EvokdError):
            tree_from_names([*names[:-1], bad])


HOSTILE_NAMES = {
    0: ["loss9", "l2:classes", "term"],
    1: ["plain"],
    2: [
        "nan", "inf", "1e999", "0x10", "tau=1", "9" * 10_000_000, "__import__('sys').stop()", "ramp(0, 1", "ramp(0,1)", "ramp(0, 1, 2)",
        "ramp(0, nan)", "anneal(0, 1)", "anneal(1, -1)", "ramp(sys.stop(), 1)", "__class__(0, 1)", "ramp(0, " + "1" * 10_000_000 + ")",
    ],
    3: ["__class__", "crd", "power_sum"],
    4: ["l2", "l2:maps", "l2:__class__", "frobenius:classes", "crd", "teacher.l2:classes"],
    5: [
        "features[-1]", "features[-10]", "relu:classes", "eval", "", "\x00" * 10_000_000, 5, None, ["logits"], {"logits": 1}, float("nan"),
        True,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("at", "bad"), [(at, bad) for at in HOSTILE_NAMES for bad in HOSTILE_NAMES[at]], ids=lambda x: repr(x)[:30]
)
def test_hostile_names_are_refused_without_running_anything(at, bad, monkeypatch):
    monkeypatch.setattr(sys, "stop", lambda: pytest.fail("a name was run"), raising=False)
    names = ["loss1", "term", "1", "no", "l2:classes", "logits"]
    assert tree_from_names(names)
    with pytest.raises(EvokdError) as caught:
        tree_from_names([*names[:at], bad, *names[at + 1 :]])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("deep", [41, 390, 10_000])
def test_trees_deeper_than_texts_are_refused(deep):
    names = ["loss1", "term", "1", "no", "l2:classes", *["relu:classes"] * deep, "logits"]
    with pytest.raises(EvokdError, match="at most"):
        tree_from_names(names)
    with pytest.raises(EvokdError, match="at most"):
        parse_loss("l2(" + "relu(" * deep + "logits" + ")" * deep + ")")
    names = ["loss1", "term", "1", "no", "l2:classes", *["relu:classes"] * 40, "logits"]
    assert list(parse_loss(write_loss(tree_from_names(names)))) == list(tree_from_names(names))


def test_torn_and_overlong_trees_are_refused():
    names = to_names(parse_loss("2*focal*kl(temper(logits, tau=2), tau=4) + 0.8*crd"))
    for at in range(len(names)):
        for torn in (names[:at], [*names[:at], *names[at + 1 :]], [*names[: at + 1], *names[at:]]):
            with pytest.raises(EvokdError):
                tree_from_names(torn)


# --- canonical form ----------------------------------------------------------------------------------------------------------


# Identities that hold up to an epsilon under a root or a floor under a norm; all others are exact but for rounding.
APPROXIMATE = {"zscore_C", "min_max", "correlation"}


@pytest.fixture
def masks_by_shape(monkeypatch):
    """Equal masks for arguments of equal shape, so that the same loss in another order of terms draws the same ones."""

    def mask(_, step, s, batch):
        keep, axes = step.operator.mask
        sizes = [size if axis in axes else 1 for axis, size in enumerate(s[step.sources[0]].shape)]
        return ((torch.rand(sizes, generator=torch.Generator().manual_seed(sum(sizes))) < keep).double(),)

    monkeypatch.setattr(DistillLoss, "_mask", mask)


@MANY
@given(TREES)
def test_canonical_form_is_idempotent_and_never_longer(tree):
    once = canonical(tree)
    assert list(canonical(once)) == list(once)
    assert len(once) <= len(tree)


@pytest.mark.usefixtures("masks_by_shape")
@pytest.mark.parametrize(("space", "seeds"), [("extended", range(300)), ("kd_zero", range(100)), ("compact", range(100))])
def test_canonical_form_keeps_the_value(space, seeds):
    shorter, pairs = 0, list(PAIRS.values())
    for seed, tree in zip(seeds, grown(space, seeds), strict=True):
        once = canonical(tree)
        assert list(canonical(once)) == list(once)
        before, after = value(tree, *pairs[seed % 2]), value(once, *pairs[seed % 2])
        floors = any(node.name.partition(":")[0].rpartition(".")[2] in APPROXIMATE for node in tree)
        assert after == pytest.approx(before, rel=2e-2 if floors else 1e-5, abs=1e-6), write_loss(tree)
        shorter += len(once) < len(tree)
    assert shorter > 0.05 * len(seeds)


@MANY
@given(TREES, st.integers(0, 10**6))
def test_the_order_of_terms_does_not_matter(tree, seed):
    terms = list(to_terms(tree))
    random.Random(seed).shuffle(terms)
    assert list(canonical(to_tree(terms))) == list(canonical(tree))


def test_the_order_of_terms_to_be_merged_does_not_matter():
    texts = ("1000000*l2(logits) + 4*l2(logits) + 4.4*l2(logits)", "4*l2(logits) + 4.4*l2(logits) + 1000000*l2(logits)")
    first, second = (write_loss(canonical(parse_loss(text))) for text in texts)
    assert first == second


def test_equal_terms_are_merged_and_others_are_not():
    def form(text):
        return write_loss(canonical(parse_loss(text)))

    assert form("0.1*l2(logits) + 0.2*l2(logits)") == "0.3*l2(logits)"
    assert form("l2(logits) + focal*l2(logits)").count("l2") == 2
    assert form("kl(logits, tau=2) + kl(logits, tau=4)").count("kl") == 2
    assert form("l2(batch(features[-1])) + l2(channel(features[-1])) + l2(features[-1])") == "3*l2(features[-1])"
    assert form("pearson(scale(zscore_C(centre_C(logits))))") == "pearson(logits)"
    assert form("l2(relu(norm_C(norm_C(relu(relu(logits))))))") == "l2(relu(norm_C(relu(logits))))"


@pytest.mark.usefixtures("masks_by_shape")
@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("0.1*l2(logits) + 0.2*l2(logits)", "0.3*l2(logits)"),
        ("l2(logits) + focal*l2(logits) + -3*l2(logits)", "focal*l2(logits) + -2*l2(logits)"),
        ("2*power_sum(tau=2)*l1(logits) + 3*power_sum(tau=2)*l1(logits)", "5*power_sum(tau=2)*l1(logits)"),
        (
            "power_sum(tau=2)*l1(logits) + power_sum(tau=3)*l1(logits)",
            "power_sum(tau=2)*l1(logits) + power_sum(tau=3)*l1(logits)",
        ),
        ("l2(relu(logits)) + l2(relu(relu(logits)))", "2*l2(relu(logits))"),
        ("kl(temper(logits, tau=2), tau=2) + kl(logits, tau=4)", "1.25*kl(logits, tau=4)"),
        ("l2(drop(logits)) + 2*l2(drop(logits))", "3*l2(drop(logits))"),
        ("l2(teacher.relu(logits)) + l2(student.relu(logits))", "l2(student.relu(logits)) + l2(teacher.relu(logits))"),
        ("ramp(0, 1)*l2(logits) + 2*l2(logits) + l2(logits)", "3*l2(logits) + ramp(0, 1)*l2(logits)"),
        ("ramp(0, 1)*l2(logits) + ramp(0, 1)*l2(logits)", "ramp(0, 1)*l2(logits) + ramp(0, 1)*l2(logits)"),
        ("1e308*l2(logits) + 1e308*l2(logits) + l2(logits)", "l2(logits) + 1e+308*l2(logits) + 1e+308*l2(logits)"),
    ],
)
def test_equal_terms_are_one_of_their_sum(text, merged):
    tree = parse_loss(text)
    assert write_loss(canonical(tree)) == merged
    if "1e308" not in text:
        assert value(canonical(tree)) == pytest.approx(value(tree), rel=1e-6)


def test_modules_are_terms_like_others():
    assert write_loss(canonical(parse_loss("crd + 0.5*vid + 2*crd"))) == "3*crd + 0.5*vid"


@pytest.mark.usefixtures("masks_by_shape")
def test_different_meanings_keep_different_forms():
    # Of many random trees, those of equal canonical text have equal values, and few of different text do.
    seen = {}
    for tree in [*random_trees("compact", range(150)), *grown("tiny", range(150))]:
        seen.setdefault(write_loss(canonical(tree)), []).append(value(tree))
    for values in seen.values():
        assert values == pytest.approx([values[0]] * len(values), rel=1e-3, abs=1e-6)
    assert len({f"{values[0]:.6g}" for values in seen.values()}) > 0.9 * len(seen)


def around(outer, inside, side=""):
    """A loss of an operator around something: the distance itself, or L2 of the transform."""
    return call(outer, inside) if outer in DISTANCES else f"l2({call(outer, inside, side)})"


def legal(text):
    try:
        return parse_loss(text)
    except EvokdError:
        return None


def sides(name):
    return ("", *SIDES) if name in TRANSFORMS and TRANSFORMS[name].keeps_shape else ("",)


@cache
def stacked():
    """(outer, its side, inner, its side, kind) of every stack of an operator and one that it absorbs that can be built."""
    pairs = [(outer, inner) for outer, found in ABSORBED.items() for inner in sorted(found)]
    found = []
    for (outer, inner), k in product(pairs, CHAINS):
        for one, two in product(sides(outer), sides(inner)):
            if k in TRANSFORMS[inner].kinds and legal(around(outer, call(inner, CHAINS[k], two), one)):
                found.append((outer, one, inner, two, k))
    return found


def measured(tree):
    """Value and gradient at the student's taps."""
    s, t = learning(make_taps(7, n=6, classes=8, width=8)), make_taps(8, n=6, classes=8, width=8)
    found = compile_loss(tree, s, t)(s, t)
    leaves = [s.logits, s.embedding, s.tokens, *s.features]
    gradients = torch.autograd.grad(found, leaves, allow_unused=True)
    return found.item(), torch.cat(
        [torch.zeros_like(x).flatten() if g is None else g.flatten() for x, g in zip(leaves, gradients, strict=True)]
    )


@pytest.mark.parametrize(("outer", "one", "inner", "two", "k"), [p for p in stacked() if p[1] in ("", p[3])])
def test_absorbed_operators_change_neither_value_nor_gradient(outer, one, inner, two, k):
    with_it, without = (parse_loss(around(outer, inside, one)) for inside in (call(inner, CHAINS[k], two), CHAINS[k]))
    tolerance = 1e-3 if {outer, inner} & APPROXIMATE else 1e-9
    (found, gradient), (expected, slope) = measured(with_it), measured(without)
    assert found == pytest.approx(expected, rel=tolerance)
    assert (gradient - slope).norm() <= 10 * tolerance * slope.norm() + 1e-12
    assert write_loss(canonical(with_it)) == write_loss(canonical(without))


@pytest.mark.parametrize(("outer", "one", "inner", "two", "k"), [p for p in stacked() if p[1] not in ("", p[3])])
def test_what_acts_on_one_side_hides_nothing_on_the_other(outer, one, inner, two, k):
    text = around(outer, call(inner, CHAINS[k], two), one)
    assert write_loss(canonical(parse_loss(text))) == text


def test_every_absorption_is_proved_on_some_kind():
    proved = {(outer, inner) for outer, one, inner, two, _ in stacked() if one == two == ""}
    assert proved == {(outer, inner) for outer, found in ABSORBED.items() for inner in found}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("l2(temper(logits, tau=1))", "l2(logits)"),
        ("l2(mm(teacher.temper(embedding, tau=1)))", "l2(mm(embedding))"),
        ("l2(temper(logits, tau=2))", "l2(temper(logits, tau=2))"),
        ("l2(temper(logits, tau=ramp(1, 1)))", "l2(temper(logits, tau=ramp(1, 1)))"),
    ],
)
def test_a_temperature_of_one_is_left_out(text, form):
    assert write_loss(canonical(parse_loss(text))) == form


@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_identities_are_left_out_everywhere(name):
    for k in TRANSFORMS[name].kinds:
        inside = CHAINS[k]
        for side in sides(name):
            for outer in ("l1({})", "smooth_l1(relu({}))", "l1(mm({}))", "l1(student.relu({}))"):
                tree = legal(outer.format(call(name, inside, side)))
                if tree:
                    plain = parse_loss(outer.format(inside))
                    assert list(canonical(tree)) == list(canonical(plain))
                    assert value(tree) == value(plain)
    for position in ("features[-1]", "features[-2]"):
        both = "l1(cross(features[-1], features[-2]))"
        tree = parse_loss(both.replace(position, f"{name}({name}({position}))"))
        assert write_loss(canonical(tree)) == both
        assert value(tree) == value(parse_loss(both))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("kl(transpose(transpose(tokens)), tau=2)", "kl(tokens, tau=2)"),
        ("cosine(transpose(transpose(bmm(features[-1]))))", "cosine(bmm(features[-1]))"),
        ("cosine(transpose(transpose(transpose(transpose(tokens)))))", "cosine(tokens)"),
        ("kl(transpose(no(transpose(tokens))), tau=2)", "kl(tokens, tau=2)"),
        ("l1(relu(transpose(transpose(relu(tokens)))))", "l1(relu(tokens))"),
    ],
)
def test_double_transposes_are_left_out(text, form):
    tree = parse_loss(text)
    assert write_loss(canonical(tree)) == form
    assert value(canonical(tree)) == pytest.approx(value(tree), rel=1e-9)


@pytest.mark.parametrize("distance", ["kl", "ce"])
@pytest.mark.parametrize(
    "inner", ["temper({}, tau=0.7)", "scale({})", "temper(scale(temper({}, tau=3)), tau=2)", "temper(centre_C(scale({})), tau=2)"]
)
@pytest.mark.parametrize("k", [k for k in CHAINS if "," not in k])
def test_temperatures_are_joined(distance, inner, k):
    tree = parse_loss(f"3*{distance}({inner.format(CHAINS[k])}, tau=1.5)")
    form = write_loss(canonical(tree))
    assert "temper" not in form
    assert "scale" not in form
    assert list(canonical(canonical(tree))) == list(canonical(tree))
    (found, gradient), (expected, slope) = measured(canonical(tree)), measured(tree)
    assert found == pytest.approx(expected, rel=1e-5)
    assert (gradient - slope).norm() <= 1e-5 * slope.norm()


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("kl(temper(logits, tau=2), tau=4)", "0.25*kl(logits, tau=8)"),
        ("focal*ce(temper(logits, tau=2), tau=4)", "focal*ce(logits, tau=8)"),
        ("8*kl(scale(logits), tau=4)", "2*kl(logits, tau=8)"),
        ("kl(temper(centre_C(temper(logits, tau=2)), tau=2), tau=2)", "0.0625*kl(logits, tau=8)"),
    ],
)
def test_joined_temperatures_read_as_expected(text, form):
    assert write_loss(canonical(parse_loss(text))) == form


@pytest.mark.parametrize(
    "text",
    [
        "kl(teacher.temper(logits, tau=2), tau=4)",
        "kl(student.scale(logits), tau=4)",
        "kl(temper(logits, tau=ramp(2, 1)), tau=4)",
        "kl(temper(logits, tau=2), tau=ramp(4, 1))",
        "ramp(0, 1)*kl(temper(logits, tau=2), tau=4)",
        "kl(temper(logits, tau=1e-200), tau=1)",
        "kl(temper(logits, tau=1e+200), tau=1)",
        "ce(temper(logits, tau=100000), tau=1e+300)",
        "1e+305*kl(temper(logits, tau=0.001), tau=1)",
        "l2(temper(logits, tau=2))",
        "hard(temper(logits, tau=2))",
        "kl(relu(temper(logits, tau=2)), tau=4)",
    ],
)
def test_temperatures_that_cannot_be_joined_stay(text):
    assert write_loss(canonical(parse_loss(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        "l2(relu(leaky(logits)))",
        "l2(mm(centre_C(logits)))",
        "kl(softmax_C(scale(logits)), tau=4)",
        "cosine(centre_C(logits))",
        "l2(pow2(relu(logits)))",
        "l2(softmax_N(centre_C(logits)))",
        "pearson(norm_C(logits))",
        "l2(softmax_C(softmax_C(logits)))",
        "cosine(transpose(logits))",
        "hard(temper(logits, tau=2))",
        "l2(mean_HW(satt(features[-1])))",
        "l2(norm_N(norm_C(logits)))",
        "l2(mask(mask(features[-1])))",
        "l2(teacher.relu(student.relu(logits)))",
        "l2(gt_drop(gt_drop(logits)))",
        "l2(class_gradient(centre_C(logits), embedding))",
    ],
)
def test_operators_that_matter_stay(text):
    assert write_loss(canonical(parse_loss(text))) == text


@pytest.mark.parametrize("outer", ["l1", "l2", "smooth_l1", "batch"])
def test_absorbing_a_flattening_keeps_the_value_for_pairs_of_coincident_size(outer):
    # 2·4·4 = 8·2·2: without the flattening the pair gets a connector, and so must it with it.
    s, t = make_taps(1, maps=((2, 4, 4),)), make_taps(2, maps=((8, 2, 2),))
    distance = "l2({})" if outer == "batch" else outer + "({})"
    inner = "batch(channel(features[-1]))" if outer == "batch" else "batch(features[-1])"
    tree = parse_loss(distance.format(inner))
    before, after = (compile_loss(x, s, t).double()(s, t).item() for x in (tree, canonical(tree)))
    assert after == pytest.approx(before)


# --- growth ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kd", "fitnet", "at", "sp", "ickd", "lskd", "dist"])
def test_the_compact_space_holds_the_published_losses_but_for_their_numbers(name):
    known = {node.name for node in parse_loss(KNOWN[name]) if node.ret.__name__ not in ("value", "tau")}
    assert known <= set(loss_grammar(read_space("compact").space, POSITIONS).nodes)
    assert subtree_heights(parse_loss(KNOWN[name]))[0] <= GRAMMARS["compact"].height


def test_a_space_is_cut_to_the_positions_that_both_networks_show():
    space = read_space("compact").space
    only = loss_grammar(space, ("logits",))
    assert "embedding" not in only.nodes
    assert not any(node.ret is kind("maps") for node in only.nodes.values())
    assert not any(kind("maps") in node.args for node in only.nodes.values() if node.arity)
    some = loss_grammar(space, ("logits", "features[-2]"))
    assert "features[-2]" in some.nodes
    assert "features[-1]" not in some.nodes


def test_a_pair_that_shows_nothing_of_the_space_is_refused():
    with pytest.raises(EvokdError, match="they show embedding"):
        loss_grammar(read_space("logits").space, ("embedding",))


def test_trees_keep_the_limits_of_their_space():
    space = replace(read_space("compact").space, max_terms=2, max_transforms=1)
    grammar, draw = loss_grammar(space, POSITIONS), random.Random(0)
    deepest, most = 0, 0
    for _ in range(200):
        terms = to_terms(grow_tree(grammar, random_chooser(draw)))
        most = max(most, len(terms))
        deepest = max(deepest, *(sum(bool(c.args) for c in term.distance.walk()) - 1 for term in terms))
    assert (most, deepest) == (2, 1)


def test_grown_trees_use_the_names_and_numbers_of_their_space():
    space = read_space("compact").space
    for tree in random_trees("compact", range(100)):
        for term in to_terms(tree):
            assert isinstance(term, Term)
            assert term.weight in space.values
            assert term.mode.name in space.modes
            calls = list(term.distance.walk())
            assert calls[0].name in space.distances
            assert all(c.name in space.transforms for c in calls[1:-1])
            assert all(p in space.taus for c in calls for p in c.params)


def test_sides_schedules_and_modules_grow_where_the_space_names_them():
    space = replace(
        read_space("extended").space, modules=("crd", "vid"), schedules=("ramp", "step"), one_sided=("temper", "relu")
    )
    grammar, draw = loss_grammar(space, EVERYWHERE), random.Random(0)
    calls, weights, modules = [], [], set()
    for term in (t for _ in range(300) for t in to_terms(grow_tree(grammar, random_chooser(draw)))):
        calls += term.distance.walk()
        weights.append(term.weight)
        modules |= {term.distance.name} if term.module else set()
    assert {(c.side, c.name) for c in calls if c.side} == set(product(SIDES, space.one_sided))
    assert modules == {"crd", "vid"}
    numbers = [*weights, *(p for c in calls for p in c.params)]
    assert {n.name for n in numbers if isinstance(n, Schedule)} == {"ramp", "step"}
    assert {c.name for c in calls if len(c.args) == 2} == {"cross", "class_gradient"}


def test_a_space_without_them_grows_none():
    for name in ("kd_zero", "compact", "tiny"):
        for term in (t for tree in grown(name, range(60)) for t in to_terms(tree)):
            assert not term.module
            assert not isinstance(term.weight, Schedule)
            assert not any(c.side for c in term.distance.walk())


def test_a_schedule_moves_at_both_ends_and_keeps_its_sort():
    draw = random.Random(0)
    for text, at in (("ramp(0, 3)*l2(logits)", 2), ("kl(logits, tau=anneal(8, 1))", -1)):
        node = parse_loss(text)[at]
        old = schedule_of(node)
        for new in filter(None, (vary_number(node, draw) for _ in range(100))):
            found = schedule_of(new)
            assert new.ret is node.ret
            assert found.name == old.name
            assert (found.start == 0) == (old.start == 0)
            assert found.end > 0


def schedule_of(node):
    return schedules.read(node.name.removeprefix("tau="))


def test_a_constant_moves_a_little_and_is_rounded_to_two_digits():
    draw, node = random.Random(0), parse_loss("3*l2(logits)")[2]
    new = [float(n.name) for n in (vary_number(node, draw) for _ in range(300)) if n is not None]
    assert len(new) > 250
    assert all(v == float(f"{v:.2g}") and v > 0 for v in new)
    assert sum(1.5 <= v <= 6 for v in new) > 0.55 * len(new)  # within a factor of two, one deviation
    assert min(new) < 1 < 9 < max(new)


def test_constants_stay_within_bounds_and_keep_their_kind():
    draw = random.Random(1)
    for text, at, low, high in (
        ("1e4*l2(logits)", 2, 1e-3, 1e4),
        ("kl(logits, tau=64)", -1, 0.1, 64),
        ("0.001*l2(logits)", 2, 1e-3, 1e4),
    ):
        node = parse_loss(text)[at]
        for _ in range(200):
            new = vary_number(node, draw)
            if new is not None:
                assert new.ret is node.ret
                assert low <= float(new.name.removeprefix("tau=")) <= high


def test_only_numbers_are_varied():
    draw = random.Random(0)
    tree = parse_loss("3*focal*kl(temper(logits, tau=2), tau=4)")
    varied = [node.name for node in tree if vary_number(node, draw) is not None]
    assert set(varied) <= {"3", "tau=2", "tau=4"}
    assert varied


def test_mutants_can_be_written_and_read():
    for name, grammar in GRAMMARS.items():
        draw = random.Random(2)
        for tree in random_trees(name, range(60)):
            (mutant,) = mutate_node(tree, grammar, draw)
            assert list(parse_loss(write_loss(mutant))) == list(mutant)
