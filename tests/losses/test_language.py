import random
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.genome.grammar import kind, subtree_heights
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.variation import mutate_constant, mutate_node
from evokd.losses.distances import DISTANCES
from evokd.losses.known import KNOWN
from evokd.losses.language import (
    ABSORBED,
    MAX_TERMS,
    MAX_TEXT,
    Term,
    canonical,
    kind_of,
    loss_grammar,
    parse_loss,
    to_terms,
    to_tree,
    tree_from_names,
    vary_number,
    write_loss,
)
from evokd.losses.program import compile_loss
from evokd.losses.transforms import TRANSFORMS
from evokd.space import read_space
from tests.losses.common import CHAINS, POSITIONS, call, every_operator, learning, make_taps, random_trees

MANY = settings(derandomize=True, deadline=None, max_examples=150)
GRAMMARS = {name: loss_grammar(read_space(name).space, POSITIONS) for name in ("compact", "logits")}
TREES = st.builds(
    lambda name, seed: grow_tree(GRAMMARS[name], random_chooser(random.Random(seed), 0.4)),
    st.sampled_from(sorted(GRAMMARS)),
    st.integers(0, 10**9),
)
S, T = make_taps(1), make_taps(2)
LABELS = torch.tensor([0, 4, -1, 2])


def value(tree, s=S, t=T):
    return compile_loss(tree, s, t)(s, t, LABELS).item()


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
    assert list(tree_from_names(to_names(tree))) == list(tree)
    assert list(to_tree(to_terms(tree))) == list(tree)


@MANY
@given(TREES, st.integers(0, 10**9))
def test_numbers_off_the_grid_survive(tree, seed):
    draw = random.Random(seed)
    for _ in range(5):
        (tree,) = mutate_constant(tree, GRAMMARS["compact"], draw)
    assert list(parse_loss(write_loss(tree))) == list(tree)


@MANY
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e6))
def test_any_finite_number_is_legal(weight, tau):
    (term,) = to_terms(parse_loss(f"{weight!r}*kl(logits, tau={tau!r})"))
    assert (term.weight, term.distance.params) == (weight, (tau,))


@pytest.mark.parametrize("text", [*every_operator(), "3*focal*l2(logits)", "sim*l2(logits)", "-1*l2(logits)", "0.5*l2(logits)"])
def test_every_operator_and_kind_can_be_written_and_read(text):
    assert write_loss(parse_loss(text)) == text


def test_a_term_is_read_for_what_it_says():
    (term,) = to_terms(parse_loss("0.3*focal*l2(norm_C(mm(features[-1])))"))
    assert (term.weight, term.mode, term.distance.name) == (0.3, "focal", "l2")
    assert [c.name for c in term.distance.walk()] == ["l2", "norm_C", "mm", "features[-1]"]
    (plain,) = to_terms(parse_loss("kl(logits, tau=4)"))
    assert (plain.weight, plain.mode, plain.distance.params) == (1, "no", (4,))


@pytest.mark.parametrize(
    "text",
    [
        "3*kl(logits,tau=4)+0.3*focal*l2(logits)",
        "3*kl(logits,tau=4) +0.3*focal*l2(logits)",
        "3*kl(logits,tau=4) + 0.3 * focal * l2(logits)",
        "  3 *kl (\tlogits , tau = 4.0 )\n+ .3*focal*l2( logits )  ",
        "3e0*kl(logits, tau=+4) + 3e-1*focal*l2(logits)",
        "3.0*no*kl(logits, tau=4) + 0.30*focal*l2(logits)",
    ],
)
def test_spaces_and_the_form_of_numbers_do_not_matter(text):
    assert write_loss(parse_loss(text)) == "3*kl(logits, tau=4) + 0.3*focal*l2(logits)"


@pytest.mark.parametrize("text", every_operator())
def test_the_kind_told_is_the_shape_made(text):
    (term,) = to_terms(parse_loss(text))
    *calls, position = term.distance.args[0].walk()
    out = S.at(position.name)
    for step in reversed(calls):
        out = TRANSFORMS[step.name].fn(out, *step.params)
    found = kind_of(term.distance.args[0])
    n = len(S.logits)
    assert out.dim() == {"maps": 4, "stack": 3}.get(found, 2)
    assert out.shape[1 if found == "columns" else 0] == n
    if found == "relation":
        assert out.shape == (n, n)
    assert kind_of(term.distance) == ("total" if found == "columns" or text.startswith("correlation") else "distance")


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
    "l2(tokens)",
    "l2(norm_HW(logits))",
    "l2(transpose(features[-1]))",
    "hard(features[-1])",
    "correlation(features[-1])",
    "focal*correlation(embedding)",
    "entropy*pearson(transpose(logits))",
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
@given(st.text(alphabet="l2kl()logits,tau=4*+ .focalmn[-1]_C", max_size=60))
def test_no_text_fails_in_another_way(text):
    try:
        tree = parse_loss(text)
    except EvokdError:
        return
    assert list(parse_loss(write_loss(tree))) == list(tree)


@MANY
@given(TREES, st.integers(0, 10**6), st.sampled_from([*"()+*,=", "logits", "l2", "kl", "4", "tau", "no", "-", "[-1]", ""]))
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
    for text in ("l1(logits)", "l2(relu(logits))", "focal*l2(logits)"):
        with pytest.raises(EvokdError):
            parse_loss(text, allowed)


def test_temperatures_in_trees_are_positive_too():
    names = ["loss1", "term", "1", "no", "kl:rows", "logits", "tau=4"]
    assert write_loss(tree_from_names(names)) == "kl(logits, tau=4)"
    for bad in ("tau=0", "tau=-2", "tau=nan", "tau=1e-400", "tau=", "tau=4x", "4"):
        with pytest.raises(EvokdError):
            tree_from_names([*names[:-1], bad])


def test_trees_of_unknown_names_are_refused():
    names = ["loss1", "term", "1", "no", "l2:rows", "logits"]
    assert tree_from_names(names)
    for at, bad in [(0, "loss9"), (0, "l2:rows"), (2, "nan"), (3, "__class__"), (4, "l2"), (4, "l2:maps"), (5, "features[-1]")]:
        with pytest.raises(EvokdError):
            tree_from_names([*names[:at], bad, *names[at + 1 :]])


# --- canonical form ----------------------------------------------------------------------------------------------------------


@MANY
@given(TREES)
def test_canonical_form_is_idempotent_and_keeps_the_value(tree):
    once = canonical(tree)
    assert list(canonical(once)) == list(once)
    assert len(once) <= len(tree)
    before, after = value(tree), value(once)
    assert after == pytest.approx(before, rel=1e-3, abs=1e-6)


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


def test_different_meanings_keep_different_forms():
    # Of many random trees, those of equal canonical text have equal values, and few of different text do.
    seen = {}
    for tree in random_trees("compact", range(150)):
        seen.setdefault(write_loss(canonical(tree)), []).append(value(tree))
    for values in seen.values():
        assert values == pytest.approx([values[0]] * len(values), rel=1e-3, abs=1e-6)


PAIRS = [(outer, inner, k) for outer, found in ABSORBED.items() for inner in sorted(found) for k in CHAINS]
# Identities that hold up to an epsilon under a root or a floor under a norm; all others are exact but for rounding.
APPROXIMATE = {"zscore_C", "min_max", "correlation"}


def absorbed_pair(outer, inner, k):
    """The loss with and without the inner operator on one kind, or None where the chain cannot be built."""
    if k not in TRANSFORMS[inner].kinds:
        return None
    with_it = call(inner, CHAINS[k])
    try:
        if outer in DISTANCES:
            texts = call(outer, with_it), call(outer, CHAINS[k])
        else:
            texts = f"l2({call(outer, with_it)})", f"l2({call(outer, CHAINS[k])})"
        return tuple(map(parse_loss, texts))
    except EvokdError:
        return None


@pytest.mark.parametrize(("outer", "inner", "k"), [p for p in PAIRS if absorbed_pair(*p)])
def test_absorbed_operators_change_neither_value_nor_gradient(outer, inner, k):
    approximate = outer in APPROXIMATE or inner in APPROXIMATE
    tolerance = 1e-3 if approximate else 1e-9
    found = []
    trees = absorbed_pair(outer, inner, k)
    for tree in trees:
        s, t = learning(make_taps(7, n=6, classes=8, width=8)), make_taps(8, n=6, classes=8, width=8)
        loss = compile_loss(tree, s, t)(s, t)
        loss.backward()
        gradient = torch.cat([f.grad.flatten() for f in (s.logits, s.embedding, *s.features) if f.grad is not None])
        found.append((loss.item(), gradient))
    (with_it, gradient), (without, expected) = found
    assert with_it == pytest.approx(without, rel=tolerance)
    assert (gradient - expected).norm() <= 10 * tolerance * expected.norm() + 1e-12
    first, second = (write_loss(canonical(tree)) for tree in trees)
    assert first == second


def test_every_absorption_is_proved_on_some_kind():
    proved = {(outer, inner) for outer, inner, k in PAIRS if absorbed_pair(outer, inner, k)}
    assert proved == {(outer, inner) for outer, found in ABSORBED.items() for inner in found}


@pytest.mark.parametrize(
    "text",
    [
        "l2(relu(leaky(logits)))",
        "l2(mm(centre_C(logits)))",
        "kl(scale(logits), tau=4)",
        "cosine(centre_C(logits))",
        "l2(pow2(relu(logits)))",
        "l2(softmax_N(centre_C(logits)))",
        "pearson(norm_C(logits))",
        "l2(softmax_C(softmax_C(logits)))",
        "l1(transpose(logits))",
        "hard(temper(logits, tau=2))",
        "l2(mean_HW(satt(features[-1])))",
        "l2(norm_N(norm_C(logits)))",
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
            assert term.mode in space.modes
            calls = list(term.distance.walk())
            assert calls[0].name in space.distances
            assert all(c.name in space.transforms for c in calls[1:-1])
            assert all(p in space.taus for c in calls for p in c.params)


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
