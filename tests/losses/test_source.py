import ast

import pytest
import torch

from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, write_loss
from evokd.losses.program import compile_loss
from evokd.losses.source import to_torch_source
from tests.losses.common import POSITIONS, by_position, every_operator, learning, make_taps, random_trees

S, T = make_taps(1), make_taps(2)
WIDE = make_taps(2, width=9, maps=((5, 6, 5), (7, 2, 2), (4, 5, 8)))  # more channels; smaller; larger
LABELS = torch.tensor([0, -1, 4, 2])


def load(source):
    namespace = {"__name__": "exported"}
    exec(compile(source, "exported", "exec"), namespace)  # the file as its user would import it
    return namespace["EvolvedLoss"]()


def assert_equal(tree, s=S, t=T):
    expected = compile_loss(tree, s, t)(s, t, LABELS).item()
    value = load(to_torch_source(tree))(by_position(s), by_position(t), LABELS)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_known_losses_are_exported_as_they_run(name):
    assert_equal(parse_loss(KNOWN[name]))


@pytest.mark.parametrize("text", every_operator())
def test_every_operator_is_exported_as_it_runs(text):
    assert_equal(parse_loss(text))


@pytest.mark.parametrize("mode", ["entropy", "conf", "focal", "sim"])
@pytest.mark.parametrize("operator", ["log", "exp", "sqrt", "batch", "scale"])
def test_names_of_operators_do_not_shadow_what_the_weights_call(mode, operator):
    assert_equal(parse_loss(f"{mode}*l2({operator}(features[-1]))"))


@pytest.mark.parametrize("space", ["compact", "logits"])
def test_random_losses_are_exported_as_they_run(space):
    for tree in random_trees(space, range(40)):
        assert_equal(tree)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["compact", "logits"])
def test_many_more_random_losses_are_exported_as_they_run(space):
    for tree in random_trees(space, range(40, 250)):
        assert_equal(tree)


@pytest.mark.parametrize("examples", [(), (S, WIDE)], ids=["plain", "with connectors"])
def test_only_torch_and_math_are_imported(examples):
    for text in ("entropy*l2(logits) + 3*kl(logits, tau=4)", " + ".join(f"l2({p})" for p in POSITIONS)):
        source = to_torch_source(parse_loss(text), *examples)
        imported = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
        assert imported <= {"torch", "math"}


def test_each_operator_is_copied_once():
    source = to_torch_source(
        parse_loss("l2(mm(features[-1])) + 2*l2(mm(features[-2])) + focal*l2(relu(relu(logits))) + focal*l1(logits)")
    )
    names = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert sorted(names) == ["focal", "l1", "l2", "mm", "relu"]


def test_the_file_says_which_loss_it_is_and_what_it_was_found_beside():
    tree = parse_loss("3*kl(logits, tau=4) + 0.3*focal*l2(features[-1])")
    text = ast.get_docstring(ast.parse(to_torch_source(tree, gamma=0.1)))
    assert write_loss(tree) in text
    assert "0.1 · cross-entropy" in text
    assert "logits: (N,K)" in text
    assert "features[-1]: (N,C,H,W)" in text
    assert "embedding" not in text


ALL_POSITIONS = "l2(embedding) + 0.5*l1(norm_C(features[-1])) + l2(features[-2]) + conf*l2(features[-3]) + kl(logits, tau=4)"


@pytest.mark.parametrize(
    "text",
    [
        ALL_POSITIONS,
        "l2(features[-1]) + l2(mm(features[-1]))",
        "l2(norm_C(mm(features[-1])))",
        "cosine(embedding)",
        KNOWN["fitnet"],
    ],
)
def test_connectors_fit_those_of_the_compiled_loss(text):
    tree = parse_loss(text)
    loss = compile_loss(tree, S, WIDE, seed=3).double()
    exported = load(to_torch_source(tree, S, WIDE)).double()
    if loss.connectors:
        weights = loss.connectors.state_dict()
        assert set(exported.connectors.state_dict()) == set(weights)
        exported.connectors.load_state_dict(weights)
    assert not set(exported.state_dict()) ^ set(loss.state_dict())
    value = exported(by_position(S), by_position(WIDE), LABELS)
    assert value.item() == pytest.approx(loss(S, WIDE, LABELS).item(), rel=1e-9)


def test_connectors_start_like_those_of_the_compiled_loss():
    tree = parse_loss("l2(embedding) + l2(features[-3])")
    torch.manual_seed(0)
    exported = load(to_torch_source(tree, S, WIDE))
    for name, weight in exported.connectors.state_dict().items():
        bound = weight.shape[1] ** -0.5
        assert bound / 2 < weight.abs().max() <= bound, name
        assert weight.min() < 0 < weight.max()


def test_gradients_reach_the_student_and_the_connectors_and_never_the_teacher():
    tree = parse_loss(ALL_POSITIONS)
    exported = load(to_torch_source(tree, S, WIDE)).double()
    s, t = learning(S), learning(WIDE)
    exported(by_position(s), by_position(t), LABELS).backward()
    assert all(f.grad.abs().sum() > 0 for f in (s.logits, s.embedding, *s.features))
    assert all(f.grad is None for f in (t.logits, t.embedding, *t.features))
    assert all(p.grad.abs().sum() > 0 for p in exported.parameters())


@pytest.mark.parametrize("mode", ["entropy", "conf", "focal", "sim"])
def test_no_gradient_flows_through_exported_weights(mode):
    s = learning(S)
    load(to_torch_source(parse_loss(f"{mode}*l2(embedding)")))(by_position(s), by_position(T), LABELS).backward()
    assert s.logits.grad is None
    assert s.embedding.grad.abs().sum() > 0


@pytest.mark.parametrize("text", ["focal*l2(embedding)", "entropy*l1(logits)", "kl(logits, tau=4)"])
def test_labels_may_be_left_out(text):
    tree = parse_loss(text)
    exported = load(to_torch_source(tree))
    value = exported(by_position(S), by_position(T))
    assert value.item() == pytest.approx(compile_loss(tree, S, T)(S, T).item(), rel=1e-9)
    assert value == exported(by_position(S), by_position(T), torch.full((4,), -1))


def test_positions_that_are_not_needed_may_be_missing():
    exported = load(to_torch_source(parse_loss("2*kl(logits, tau=4)")))
    assert exported({"logits": S.logits}, {"logits": T.logits}).isfinite()
