import numpy as np
import pytest
import sympy as sp
import torch

from evokd.errors import EvokdError
from evokd.losses.formula import to_latex, to_sympy
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss
from evokd.losses.program import compile_loss
from tests.losses.common import CHAINS, every_operator, make_taps, random_trees

SHAPES = {"n": 4, "classes": 5, "width": 6, "maps": ((2, 5, 3), (4, 3, 4), (3, 4, 4))}
S, T = make_taps(1, **SHAPES), make_taps(2, **SHAPES)
LABELS = torch.tensor([0, -1, 4, 2])


def evaluate(formula, s=S, t=T, labels=LABELS):
    values = {}
    for side, position in formula.taps:
        tap = labels if position == "labels" else (s if side == "S" else t).at(position)
        values[side, position] = tap.detach().numpy()
    return formula.evaluate(values)


def compiled(tree, s=S, t=T):
    return compile_loss(tree, s, t)(s, t, LABELS).item()


OVERFLOW = "overflow encountered"  # of e^x in extended precision; torch takes the maximum out of its softmax first


def assert_all_equal(trees):
    skipped = 0
    for tree in trees:
        try:
            assert_equal(tree)
        except RuntimeWarning as warning:
            if OVERFLOW not in str(warning):
                raise
            skipped += 1
    assert skipped <= 0.05 * len(trees)


def assert_equal(tree):
    expected = compiled(tree)
    assert np.isfinite(expected)
    assert evaluate(to_sympy(tree)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", KNOWN)
def test_known_losses_equal_their_formula(name):
    assert_equal(parse_loss(KNOWN[name]))


@pytest.mark.parametrize("text", every_operator())
def test_every_operator_equals_its_formula_on_every_kind(text):
    assert_equal(parse_loss(text))


@pytest.mark.parametrize("mode", ["entropy", "conf", "focal", "sim"])
@pytest.mark.parametrize("chain", ["features[-1]", "mm(features[-2])", "embedding"])
def test_weight_modes_equal_their_formula(mode, chain):
    assert_equal(parse_loss(f"0.3*{mode}*l2({chain}) + {mode}*kl(logits, tau=2)"))


@pytest.mark.parametrize("space", ["compact", "logits"])
def test_random_losses_equal_their_formula(space):
    assert_all_equal(random_trees(space, range(60)))


@pytest.mark.slow
@pytest.mark.parametrize("space", ["compact", "logits"])
def test_many_more_random_losses_equal_their_formula(space):
    assert_all_equal(random_trees(space, range(60, 180)))


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp < 16000, reason="no extended precision on this machine")
@pytest.mark.parametrize(
    "text",
    [
        "kl(logits, tau=1)",
        "l2(softmax_C(logits))",
        "l2(logsoftmax_N(logits))",
        "hard(logits)",
        "l2(mish(logits))",
        "l2(sigmoid(logits))",
        "l2(natt(logits))",
        "l2(catt(features[-1]))",
        "l2(satt(features[-1]))",
        "conf*l2(logits)",
        "focal*l2(logits)",
        "entropy*l2(logits)",
    ],
)
def test_formulas_hold_where_exponentials_would_overflow(text):
    s, t = (taps.map(lambda f: f * 1000) for taps in (S, T))
    tree = parse_loss(text)
    assert evaluate(to_sympy(tree), s, t) == pytest.approx(compiled(tree, s, t), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    "text", ["l2(zscore_C(logits))", "pearson(logits)", "l2(batchnorm(features[-1]))", "correlation(embedding)"]
)
def test_formulas_hold_where_the_mean_is_far_from_zero(text):
    s, t = (taps.map(lambda f: f + 1e4) for taps in (S, T))
    tree = parse_loss(text)
    assert evaluate(to_sympy(tree), s, t) == pytest.approx(compiled(tree, s, t), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    "weight", ["2.718281828459045", "3.141592653589793", "1.618033988749895", "0.1234567890123456", "1e-7", "1e300"]
)
def test_any_weight_is_written_as_it_stands(weight):
    tree = parse_loss(f"{weight}*l2(logits)")
    assert evaluate(to_sympy(tree)) == pytest.approx(float(weight) * compiled(parse_loss("l2(logits)")), rel=1e-12)


@pytest.mark.parametrize("tau", ["2.718281828459045", "0.37", "3.3"])
def test_any_temperature_is_written_as_it_stands(tau):
    assert_equal(parse_loss(f"kl(temper(logits, tau={tau}), tau={tau})"))


def test_zero_rows_and_ties_are_evaluated_as_the_program_does():
    flat = S.map(torch.zeros_like)
    for text in (
        "cosine(logits)",
        "l2(norm_C(features[-1]))",
        "l2(sqrt(logits))",
        "l2(log(logits))",
        "pearson(logits)",
        "l2(min_max(logits))",
    ):
        tree = parse_loss(text)
        assert evaluate(to_sympy(tree), flat, T) == pytest.approx(compiled(tree, flat, T), rel=1e-5, abs=1e-9)
    tied = T.map(lambda f: f.round().clamp(-1, 1))
    assert evaluate(to_sympy(parse_loss("hard(logits)")), S, tied) == pytest.approx(compiled(parse_loss("hard(logits)"), S, tied))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_formula_serves_all_sizes(n):
    s, t = (make_taps(seed, n=n, classes=3, width=4, maps=((2, 2, 2), (2, 1, 3), (1, 1, 1))) for seed in (3, 4))
    for text in (
        "kl(logits, tau=2)",
        "l2(scale_r2(features[-2]))",
        "l2(zscore_C(embedding))",
        KNOWN["sp"],
        "correlation(logits)",
    ):
        tree = parse_loss(text)
        expected = compile_loss(tree, s, t)(s, t).item()
        assert evaluate(to_sympy(tree), s, t) == pytest.approx(expected, rel=1e-5, abs=1e-9)


# --- pairs of unequal shapes -------------------------------------------------------------------------------------------------

WIDE = make_taps(2, n=4, classes=5, width=9, maps=((5, 5, 3), (7, 3, 4), (6, 4, 4)))


def connected_value(text, t=WIDE):
    """The formula fed with the student's taps behind the connectors where their sizes say so, and the compiled value."""
    tree = parse_loss(text)
    loss = compile_loss(tree, S, t).double()
    formula = to_sympy(tree, S, t)
    teachers = {position: array for (side, position), array in formula.taps.items() if side == "T"}
    values = {}
    for (side, position), array in formula.taps.items():
        tap = t.at(position) if side == "T" else S.at(position)
        if side != "T" and tap.shape != t.at(position).shape and array.sizes == teachers[position].sizes:
            tap = loss.connectors[position.replace("[-", "_").replace("]", "")](tap)
        values[side, position] = tap.detach().numpy()
    return formula.evaluate(values), loss(S, t).item(), formula


@pytest.mark.parametrize(
    ("text", "connected"),
    [
        ("l2(norm_C(mm(features[-1])))", ()),
        ("l2(norm_HW(mean_C(pow2(features[-2]))))", ()),
        ("l2(mm(embedding)) + kl(logits, tau=4)", ()),
        ("l2(features[-1])", ("features[-1]",)),
        ("cosine(embedding) + l2(mm(features[-1]))", ("embedding",)),
        (KNOWN["at"], ()),
        (KNOWN["ickd"], ("features[-1]",)),
    ],
)
def test_unequal_channels_are_summed_each_over_their_own(text, connected):
    value, expected, formula = connected_value(text)
    assert {position for side, position in formula.taps if side == "S connected"} == set(connected)
    assert value == pytest.approx(expected, rel=1e-5)


def test_a_position_may_be_read_both_behind_its_connector_and_before():
    for text in ("l2(features[-1]) + l2(mm(features[-1]))", "l2(mm(embedding)) + cosine(embedding)"):
        value, expected, formula = connected_value(text)
        students = {array.name for (side, _), array in formula.taps.items() if side != "T"}
        assert len(students) == 2  # two arrays of two shapes
        assert value == pytest.approx(expected, rel=1e-5)


def test_sizes_that_differ_have_names_of_their_own():
    formula = to_sympy(parse_loss("l2(mm(features[-1]))"), S, WIDE)
    student, teacher = (array.sizes for array in formula.taps.values())
    assert student[0] == teacher[0]
    assert student[1] != teacher[1]


def test_unequal_teachers_of_all_relation_losses_agree():
    for inner in ("mm(features[-1])", "mm(bmm(features[-2]))", "mm(embedding)", "mm(norm_HW(features[-1]))"):
        for outer in ("l2({})", "cosine({})", "kl({}, tau=2)", "l1(norm_C({}))"):
            value, expected, _ = connected_value(outer.format(inner))
            assert value == pytest.approx(expected, rel=1e-5)


# --- what is read ------------------------------------------------------------------------------------------------------------


def test_inlining_gives_one_expression_of_equal_value():
    formula = to_sympy(parse_loss("3*kl(logits, tau=4)"))
    expression = formula.inline()
    names = {str(base.base.label) for base in expression.atoms(sp.Indexed)}
    assert names == {array.name for array in formula.taps.values()}
    n, k = formula.taps["S", "logits"].sizes
    concrete = expression.subs({n: 4, k: 5}).doit()
    arrays = {array.name: (S if side == "S" else T).logits for (side, _), array in formula.taps.items()}
    entries = {a: sp.Float(arrays[str(a.base.label)][tuple(map(int, a.indices))].item()) for a in concrete.atoms(sp.Indexed)}
    assert float(concrete.xreplace(entries)) == pytest.approx(compiled(parse_loss("3*kl(logits, tau=4)")), rel=1e-9)


def test_inlining_stops_at_its_limit():
    formula = to_sympy(parse_loss("kl(zscore_C(softmax_C(zscore_C(logits))), tau=4)"))
    with pytest.raises(EvokdError, match="at most 50 operations"):
        formula.inline(limit=50)
    assert sp.count_ops(to_sympy(parse_loss("l2(logits)")).inline(limit=50)) <= 50


def test_equal_values_are_written_once():
    once = to_sympy(parse_loss("l2(norm_C(mm(features[-1])))"))
    twice = to_sympy(parse_loss("l2(norm_C(mm(features[-1]))) + l1(norm_C(mm(features[-1])))"))
    assert len(twice.lets) == len(once.lets) + 1


def test_definitions_come_before_their_use():
    for tree in random_trees("compact", range(20)):
        formula = to_sympy(tree)
        known = {array.name for array in formula.taps.values()}
        for let in formula.lets:
            assert {str(a.base.label) for a in let.body.atoms(sp.Indexed)} <= known
            known.add(let.array.name)
        assert len(known) == len(formula.taps) + len(formula.lets)


def test_only_the_taps_in_use_are_asked_for():
    assert set(to_sympy(parse_loss("l2(logits)")).taps) == {("S", "logits"), ("T", "logits")}
    assert ("", "labels") in to_sympy(parse_loss("focal*l2(embedding)")).taps
    assert ("", "labels") not in to_sympy(parse_loss("conf*l2(embedding)")).taps


def test_the_texts_name_the_loss_and_its_arrays():
    formula = to_sympy(parse_loss("3*kl(logits, tau=4) + 0.3*focal*l2(norm_C(mm(features[-1])))"))
    text = formula.pretty()
    assert text.startswith("# 3*kl(logits, tau=4) + 0.3*focal*l2(norm_C(mm(features[-1])))")
    assert "teacher's logits, sizes (N, K)" in text
    assert text.splitlines()[-1].startswith("L = ")
    assert all(let.array.name in text for let in formula.lets)


def test_latex_is_balanced_and_has_a_line_for_every_definition():
    for text in [
        *KNOWN.values(),
        *(f"l2({chain})" for chain in CHAINS.values()),
        "hard(logits)",
        "l2(min_max(scale_r2(features[-1])))",
    ]:
        tree = parse_loss(text)
        latex = to_latex(tree)
        assert latex.count("{") == latex.count("}")
        assert latex.count(r"\left") == latex.count(r"\right")
        assert latex.startswith(r"\begin{aligned}")
        assert latex.rstrip().endswith(r"\end{aligned}")
        assert latex.count(r" \\" + "\n") == len(to_sympy(tree).lets)


def test_the_constructors_rebuild_the_loss():
    for text in (KNOWN["kd"], "l2(zscore_C(logits))"):
        formula = to_sympy(parse_loss(text))
        *_, last = formula.srepr().strip().splitlines()
        assert sp.sympify(last.partition(" = ")[2]) == formula.loss
