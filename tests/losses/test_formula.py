import inspect
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import sympy as sp
import torch
import torch.nn.functional as F

from evokd.errors import EvokdError
from evokd.losses.formula import to_latex, to_sympy
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, write_loss
from evokd.losses.modules import MODULES
from evokd.losses.schedules import SCHEDULES
from evokd.losses.weights import MODES
from evokd.space import read_space
from tests.losses.common import every_operator, make_taps, weight_mode
from tests.losses.forms import PAIRS, UNLIKE, S, T, evaluate, grown, run, told

pairs = pytest.mark.parametrize("pair", PAIRS)


def close(value, expected):
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-9)


def assert_equal(tree, s=S, t=T, **more):
    ran = run(tree, s, t, **more)
    assert ran.value.isfinite()
    close(told(tree, s, t, ran, **more), ran.value.item())


# --- equal to the program ----------------------------------------------------------------------------------------------------


@pairs
@pytest.mark.parametrize("name", KNOWN)
def test_known_losses_equal_their_formula(name, pair):
    assert_equal(parse_loss(KNOWN[name]), *PAIRS[pair])


@pairs
@pytest.mark.parametrize("text", every_operator())
def test_every_operator_equals_its_formula_on_every_kind(text, pair):
    assert_equal(parse_loss(text), *PAIRS[pair])


@pytest.mark.parametrize("mode", [*map(weight_mode, MODES)])
@pytest.mark.parametrize("chain", ["features[-1]", "mm(features[-2])", "embedding"])
def test_weight_modes_equal_their_formula(mode, chain):
    assert_equal(parse_loss(f"0.3*{mode}*l2({chain}) + {mode}*kl(logits, tau=2)"))


@pytest.mark.parametrize("progress", [0, 0.2, 0.5, 0.9, 1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_their_formula_all_along(name, progress):
    tree = parse_loss(f"{name}(0.5, 3)*power_sum(tau={name}(4, 1))*kl(temper(logits, tau={name}(1, 7)), tau={name}(2, 1))")
    assert_equal(tree, progress=progress)


def test_masks_are_numbered_in_the_order_in_which_they_are_drawn():
    for text in (
        "l2(mask(teacher.mask(features[-1])))",
        "l2(drop(student.drop(logits))) + l1(teacher.drop(drop(embedding)))",
        "l2(mask(features[-1])) + l1(mm(drop(mask(features[-1]))))",
    ):
        tree = parse_loss(text)
        ran = run(tree, S, T)
        formula = to_sympy(tree, S, T)
        assert {name for side, name in formula.taps if side == ""} == {f"m_{i + 1}" for i in range(len(ran.masks))}
        close(evaluate(formula, S, T, ran), ran.value.item())


def test_a_mask_is_one_before_and_behind_a_connector():
    t = make_taps(2, maps=((2, 6, 5), (5, 5, 3), (4, 3, 4)))  # only stage −2 differs
    tree = parse_loss("l2(cross(mask(features[-1]), features[-2])) + l2(mask(features[-1]))")
    assert len(run(tree, S, t).masks) == 1
    assert_equal(tree, S, t)


@pytest.mark.parametrize(("space", "seeds"), [("extended", range(200)), ("kd_zero", range(100))])
def test_random_losses_equal_their_formula(space, seeds):
    skipped, masked, both = 0, 0, list(PAIRS.values())
    for seed, tree in zip(seeds, grown(space, seeds), strict=True):
        s, t = both[seed % 2]
        ran = run(tree, s, t)
        try:
            value = told(tree, s, t, ran)
        except FloatingPointError:  # e^x beyond extended precision; torch takes the maximum out of its softmax first
            skipped += 1
            continue
        masked += bool(ran.masks)
        assert ran.value.isfinite()
        assert value == pytest.approx(ran.value.item(), rel=1e-5, abs=1e-9), write_loss(tree)
    assert skipped <= 0.03 * len(seeds)
    assert masked > 0.05 * len(seeds) or "mask" not in read_space(space).space.transforms


@pytest.mark.slow
@pytest.mark.parametrize("space", ["compact", "logits", "kd_zero", "extended"])
def test_many_more_random_losses_equal_their_formula(space):
    test_random_losses_equal_their_formula(space, range(1000, 1400))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 2.5])
@pytest.mark.parametrize("labels", [[0, 4, -1, 2], [1, 1, 0, 3], [-1, -1, -1, -1]])
def test_gamma_adds_the_cross_entropy_over_the_whole_batch(gamma, labels):
    labels, tree = torch.tensor(labels), parse_loss("3*kl(logits, tau=4) + focal*l2(embedding)")
    formula = to_sympy(tree, gamma=gamma)
    task = F.cross_entropy(S.logits, labels, ignore_index=-1, reduction="sum") / len(labels)
    distilled = run(tree, S, T, labels).value
    close(evaluate(formula, S, T, labels=labels), (gamma * task + distilled).item())


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp < 16000, reason="no extended precision on this machine")
@pytest.mark.parametrize(
    "text",
    [
        "kl(logits, tau=1)", "ce(logits, tau=1)", "l2(softmax_C(logits))", "l2(logsoftmax_N(logits))", "hard(logits)", "l2(mish(logits))",
        "l2(sigmoid(logits))", "l2(natt(logits))", "l2(catt(features[-1]))", "l2(satt(features[-1]))",
        "l2(class_gradient(logits, embedding))", "conf*l2(logits)", "focal*l2(logits)", "entropy*l2(logits)", "power_sum(tau=2)*l2(logits)",
    ],
)  # fmt: skip
def test_formulas_hold_where_exponentials_would_overflow(text):
    s, t = (taps.map(lambda f: f * 1000) for taps in (S, T))
    assert_equal(parse_loss(text), s, t)


@pytest.mark.parametrize(
    "text",
    ["l2(zscore_C(logits))", "pearson(logits)", "l2(batchnorm(features[-1]))", "correlation(embedding)", "l2(margin(tokens))"],
)
def test_formulas_hold_where_the_mean_is_far_from_zero(text):
    s, t = (taps.map(lambda f: f + 1e4) for taps in (S, T))
    assert_equal(parse_loss(text), s, t)


@pytest.mark.parametrize(
    "weight", ["2.718281828459045", "3.141592653589793", "1.618033988749895", "0.1234567890123456", "1e-7", "1e300", "-2"]
)
def test_any_weight_is_written_as_it_stands(weight):
    tree = parse_loss(f"{weight}*l2(logits)")
    expected = float(weight) * run(parse_loss("l2(logits)"), S, T).value.item()
    assert evaluate(to_sympy(tree), S, T) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tau", ["2.718281828459045", "0.37", "3.3"])
def test_any_temperature_is_written_as_it_stands(tau):
    assert_equal(parse_loss(f"power_sum(tau={tau})*kl(temper(logits, tau={tau}), tau={tau})"))


FLAT = S.map(torch.zeros_like)
TIED = T.map(lambda f: f.round().clamp(-1, 1))


@pytest.mark.parametrize(
    "text",
    [
        "cosine(logits)", "pearson(logits)", "l2(sqrt(logits))", "l2(log(logits))", "l2(norm_C(features[-1]))", "l2(sumnorm_C(logits))",
        "l2(min_max(logits))", "l2(margin(features[-1]))", "l2(affinity(features[-1]))", "l2(meannorm(pdist(embedding)))",
        "l2(norm_all(mm(embedding)))", "l2(angle(embedding))", "divergence(logits)", "frobenius(logits)",
    ],
)  # fmt: skip
def test_zeros_are_evaluated_as_the_program_does(text):
    assert_equal(parse_loss(text), FLAT, T)


@pytest.mark.parametrize("text", ["hard(logits)", "hinge(embedding)", "partial_l2(embedding)", "l2(scale_r2(features[-1]))"])
def test_ties_are_evaluated_as_the_program_does(text):
    assert_equal(parse_loss(text), S, TIED)
    assert_equal(parse_loss(text), TIED, TIED)


@pytest.mark.parametrize("labels", [[-1, -1, -1, -1], [0, 1, 2, 3], [4, 4, 4, 4]])
@pytest.mark.parametrize(
    "text", ["focal*l2(logits)", "l2(gt_drop(logits))", "kl(gt_binary(logits), tau=2)", "l1(class_gradient(logits, embedding))"]
)
def test_labels_known_and_unknown_are_evaluated_as_the_program_does(text, labels):
    assert_equal(parse_loss(text), labels=torch.tensor(labels))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_formula_serves_all_sizes(n):
    shapes = {"n": n, "classes": 3, "width": 4, "maps": ((2, 2, 2), (2, 1, 3), (1, 1, 1)), "tokens": (1, 2)}
    s, t = (make_taps(seed, **shapes) for seed in (3, 4))
    labels = torch.tensor([0, -1, 2, 1, 1][:n])
    for text in (
        "kl(logits, tau=2)", "l2(scale_r2(features[-2]))", "l2(zscore_C(embedding))", KNOWN["sp"], KNOWN["hcl"], "correlation(logits)",
        "l2(multi_scale(features[-3]))", "l2(angle(embedding))", "l2(affinity(tokens))", "l1(local_r4(features[-2]))",
    ):  # fmt: skip
        tree = parse_loss(text)
        ran = run(tree, s, t, labels)
        close(evaluate(to_sympy(tree), s, t, labels=labels), ran.value.item())


# --- pairs of unequal shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "connected"),
    [
        ("l2(norm_C(mm(features[-1])))", ()),
        ("l2(mm(embedding)) + kl(logits, tau=4)", ()),
        ("l2(features[-1])", ("features[-1]",)),
        ("l2(pre_relu[-1]) + l2(features[-1])", ("features[-1]", "pre_relu[-1]")),
        ("l2(tokens) + cosine(embedding)", ("tokens", "embedding")),
        ("cosine(embedding) + l2(mm(features[-1]))", ("embedding",)),
        ("l2(teacher_head)", ("embedding",)),
        ("l2(teacher_head) + l2(embedding)", ("embedding",)),
        (KNOWN["fsp"], ("features[-1]", "features[-2]", "features[-3]")),
        (KNOWN["ickd"], ("features[-1]",)),
    ],
)
def test_connectors_stand_in_the_formula_with_a_weight_each(text, connected):
    tree = parse_loss(text)
    formula = to_sympy(tree, S, UNLIKE)
    weights = {position: array for (side, position), array in formula.taps.items() if side == "W"}
    assert set(weights) == set(connected)
    names = [array.name for array in formula.taps.values()]
    assert len(set(names)) == len(names)
    ran = run(tree, S, UNLIKE)
    assert len(ran.loss.connectors) == len(connected)
    close(evaluate(formula, S, UNLIKE, ran), ran.value.item())


@pytest.mark.parametrize(
    ("own", "other"),
    [((3, 4, 4), (5, 2, 2)), ((3, 2, 2), (5, 4, 4)), ((3, 5, 2), (4, 2, 5)), ((3, 3, 3), (3, 7, 5)), ((2, 7, 5), (2, 3, 5))],
    ids=["half", "double", "wider and lower", "larger alone", "lower alone"],
)
def test_resizing_is_written_out(own, other):
    s, t = make_taps(1, maps=(own,)), make_taps(2, maps=(other,))
    assert_equal(parse_loss("l2(features[-1])"), s, t)


@pytest.mark.parametrize(("own", "other"), [((3, 4), (7, 5)), ((6, 4), (2, 4)), ((4, 2), (4, 6))])
def test_resizing_of_tokens_is_written_out(own, other):
    s, t = make_taps(1, tokens=own), make_taps(2, tokens=other)
    assert_equal(parse_loss("l2(tokens)"), s, t)


def test_small_maps_below_a_pool_get_a_connector_too():
    for name in ("pool_2", "pool_4"):
        s, t = make_taps(1, maps=((3, 1, 3),)), make_taps(2, maps=((3, 3, 2),))
        assert_equal(parse_loss(f"l2({name}(features[-1]))"), s, t)


def test_a_path_of_more_entries_than_can_be_counted_gets_a_connector():
    s, t = make_taps(1, maps=((2, 2, 1),)), make_taps(2, maps=((3, 1, 2),))
    for text in ("l1(bmm(local_r1(features[-1])))", "l2(mm(transpose(batch(bmm(local_r1(features[-1]))))))"):
        assert len(run(parse_loss(text), s, t).loss.connectors) == 1
        assert_equal(parse_loss(text), s, t)


def test_a_position_may_be_read_both_behind_its_connector_and_before():
    for text in ("l2(features[-1]) + l2(mm(features[-1]))", "l2(mm(embedding)) + cosine(embedding)"):
        assert_equal(parse_loss(text), S, UNLIKE)


def test_sizes_that_differ_have_names_of_their_own():
    formula = to_sympy(parse_loss("l2(mm(features[-1]))"), S, UNLIKE)
    student, teacher = (array.sizes for array in formula.taps.values())
    assert student[0] == teacher[0]
    assert not {*student[1:]} & {*teacher[1:]}


def test_unequal_teachers_of_all_relation_losses_agree():
    for inner in ("mm(features[-1])", "mm(bmm(features[-2]))", "mm(embedding)", "mm(norm_HW(features[-1]))"):
        for outer in ("l2({})", "cosine({})", "kl({}, tau=2)", "l1(norm_C({}))"):
            assert_equal(parse_loss(outer.format(inner)), S, UNLIKE)


# --- what is read ------------------------------------------------------------------------------------------------------------


def test_inlining_gives_one_expression_of_equal_value():
    tree = parse_loss("3*kl(logits, tau=4)")
    formula = to_sympy(tree)
    expression = formula.inline()
    names = {str(base.base.label) for base in expression.atoms(sp.Indexed)}
    assert names == {array.name for array in formula.taps.values()}
    n, k = formula.taps["S", "logits"].sizes
    concrete = expression.subs({n: 4, k: 5}).doit()
    arrays = {array.name: (S if side == "S" else T).logits for (side, _), array in formula.taps.items()}
    entries = {a: sp.Float(arrays[str(a.base.label)][tuple(map(int, a.indices))].item()) for a in concrete.atoms(sp.Indexed)}
    assert float(concrete.xreplace(entries)) == pytest.approx(run(tree, S, T).value.item(), rel=1e-9)


@pytest.mark.parametrize(
    "text",
    [
        "l2(drop(logits))", "focal*l2(embedding)", "l2(min_max(logits))", "l2(teacher_head)", "ramp(0, 1)*l2(norm_all(mm(embedding)))",
        "hard(logits)", "kl(gt_binary(logits), tau=2)",
    ],
)  # fmt: skip
def test_inlining_leaves_no_definition(text):
    formula = to_sympy(parse_loss(text))
    expression = formula.inline()
    left = {str(a.base.label) for a in expression.atoms(sp.Indexed)} | {str(a) for a in expression.atoms(sp.Symbol)}
    assert not left & {let.array.name for let in formula.lets}
    assert {array.name for array in formula.taps.values()} <= left


def test_inlining_stops_at_its_limit():
    formula = to_sympy(parse_loss("kl(zscore_C(softmax_C(zscore_C(logits))), tau=4)"))
    with pytest.raises(EvokdError, match="at most 50 operations"):
        formula.inline(limit=50)
    assert inspect.signature(formula.inline).parameters["limit"].default == 2000
    assert sp.count_ops(to_sympy(parse_loss("l2(logits)")).inline(limit=50)) <= 50


def test_equal_values_are_written_once():
    once = to_sympy(parse_loss("l2(norm_C(mm(features[-1])))"))
    twice = to_sympy(parse_loss("l2(norm_C(mm(features[-1]))) + l1(norm_C(mm(features[-1])))"))
    assert len(twice.lets) == len(once.lets) + 1


def test_what_acts_on_one_side_alone_is_written_once():
    both, one = (to_sympy(parse_loss(f"l2({side}relu(logits))")) for side in ("", "teacher."))
    assert len(both.lets) == len(one.lets) + 1


def test_definitions_come_before_their_use():
    for tree in grown("extended", range(20)):
        formula = to_sympy(tree, S, UNLIKE)
        known = {array.name for array in formula.taps.values()}
        for let in formula.lets:
            assert {str(a.base.label) for a in let.body.atoms(sp.Indexed)} <= known
            known.add(let.array.name)
        assert len(known) == len(formula.taps) + len(formula.lets)


def test_only_the_taps_in_use_are_asked_for():
    def asked(text):
        return set(to_sympy(parse_loss(text)).taps)

    assert asked("l2(logits)") == {("S", "logits"), ("T", "logits")}
    assert ("", "labels") in asked("focal*l2(embedding)")
    assert ("", "labels") not in asked("conf*l2(embedding)")
    assert ("", "labels") in asked("l2(gt_drop(logits))")
    assert asked("l2(drop(logits))") == {("S", "logits"), ("T", "logits"), ("", "m_1")}
    assert asked("l2(teacher_head)") == {("S", "embedding"), ("T", "logits"), ("T", "weight"), ("T", "bias")}


def test_the_texts_name_the_loss_and_its_arrays():
    formula = to_sympy(parse_loss("3*kl(logits, tau=4) + 0.3*focal*l2(norm_C(mm(features[-1])))"))
    text = formula.pretty()
    assert text.startswith("# 3*kl(logits, tau=4) + 0.3*focal*l2(norm_C(mm(features[-1])))")
    assert "teacher's logits, sizes (N, K)" in text
    assert text.splitlines()[-1].startswith("L = ")
    assert all(let.array.name in text for let in formula.lets)
    assert "share of training" not in text


def test_the_legend_explains_masks_connectors_heads_and_progress():
    tree = parse_loss("ramp(0, 1)*l2(drop(embedding)) + focal*l2(teacher_head)")
    legend = "\n".join(to_sympy(tree, S, UNLIKE).legend())
    for words in (
        "random mask",
        "connector at embedding",
        "teacher's weight",
        "teacher's bias",
        "class of each sample",
        "share of training",
    ):
        assert words in legend


PYTHON = re.compile(r"\b(Piecewise|Sum|MaxOver|MinOver|Indexed|Mod|Max|Min|Abs|sqrt|And|True|lambda|None)\b(?<!\\sqrt)")


def assert_is_latex(latex, lets):
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", latex.replace(r"\\", "")):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert latex.count(r"\left") - latex.count(r"\leftarrow") == latex.count(r"\right") - latex.count(r"\rightarrow")
    opened, closed = re.findall(r"\\begin\{(\w+)\}", latex), re.findall(r"\\end\{(\w+)\}", latex)
    assert opened[0] == closed[-1] == "aligned"
    assert sorted(opened) == sorted(closed)
    assert latex.count(r" \\" + "\n") == lets
    assert not PYTHON.search(latex)


@pytest.mark.parametrize("text", [*KNOWN.values(), "step(1, 0)*kl(attention, tau=anneal(8, 1)) + l2(mask(tokens))"])
def test_latex_is_balanced_and_has_a_line_for_every_definition(text):
    for examples in ((), PAIRS["other shapes"]):
        formula = to_sympy(parse_loss(text), *examples)
        assert_is_latex(formula.latex(), len(formula.lets))


def test_latex_of_every_operator_is_balanced():
    for text in (t for t in every_operator() if "teacher." not in t and "student." not in t):
        formula = to_sympy(parse_loss(text))
        assert_is_latex(formula.latex(), len(formula.lets))


def mathml(formula):
    """The elements of a formula's MathML, without the names that only HTML knows."""
    return [ElementTree.fromstring(re.sub(r"&(?!lt;|gt;|amp;|#)\w+;", "", element)) for element in formula.mathml()]


@pytest.mark.parametrize("name", KNOWN)
def test_mathml_is_xml_with_an_element_for_every_definition(name):
    formula = to_sympy(parse_loss(KNOWN[name]), S, UNLIKE)
    assert [element.tag for element in mathml(formula)] == ["math"] * (len(formula.lets) + 1)


def test_mathml_sets_cases_and_extremes_as_print_does():
    for text in ("l2(gt_drop(logits))", "hard(logits)", "l2(min_max(embedding))", "step(1, 0)*l2(multi_scale(features[-1]))"):
        words = {e.text for element in mathml(to_sympy(parse_loss(text))) for e in element.iter()}
        assert not words & {"piecewise", "maxover", "minover", "True"}
        assert words & {"otherwise", "max"}


def test_an_extreme_tells_its_window():
    assert r"\max_{2 k \leq p \leq" in to_latex(parse_loss("l2(scale_r2(features[-1]))"))


@pytest.mark.parametrize("name", MODULES)
def test_a_loss_with_trained_parts_has_no_formula(name):
    for text in (name, f"l2(logits) + 0.8*{name}"):
        for write in (to_sympy, to_latex):
            with pytest.raises(EvokdError, match=f"{name}: expected a loss that is a formula") as caught:
                write(parse_loss(text))
            assert "\n" not in str(caught.value)


def test_the_constructors_rebuild_the_loss():
    for text in (KNOWN["kd"], "l2(zscore_C(logits))", "cosine(1, 0)*l2(logits)"):
        formula = to_sympy(parse_loss(text))
        *_, last = formula.srepr().strip().splitlines()
        assert sp.sympify(last.partition(" = ")[2]) == formula.loss
