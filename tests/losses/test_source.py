import ast
import inspect

import pytest
import torch

from evokd.errors import EvokdError
from evokd.losses.distances import DISTANCES
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, write_loss
from evokd.losses.modules import MODULES
from evokd.losses.schedules import SCHEDULES
from evokd.losses.source import to_torch_source
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES
from tests.losses.common import by_position, every_operator, learning, make_taps, weight_mode
from tests.losses.forms import EVERYWHERE, LABELS, PAIRS, UNLIKE, S, T, call, exported, generator, grown, load, run

pairs = pytest.mark.parametrize("pair", PAIRS)
modes = pytest.mark.parametrize("mode", [*map(weight_mode, MODES)])
EVERY_POSITION = " + ".join(f"l1({p})" for p in EVERYWHERE if "-3" not in p and p != "features[-2]")


def gradients(value, taps, loss):
    """One vector: of the taps that were reached, and of the connectors."""
    leaves = [taps.logits, taps.embedding, taps.tokens, taps.attention, *taps.features, *taps.pre_relu]
    leaves += [weight for _, weight in sorted(loss.connectors.named_parameters())] if loss.connectors else []
    found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)
    return torch.cat([torch.zeros(leaf.numel()) if g is None else g.flatten() for leaf, g in zip(leaves, found, strict=True)])


def assert_equal(tree, s=S, t=T, labels=LABELS):
    """Equal value and equal gradients; no gradient reaches the teacher."""
    s, t = learning(s), learning(t)
    ran = run(tree, s, t, labels)
    loss = exported(tree, s, t, ran)
    value = call(loss, s, t, labels)
    assert value.shape == ()
    assert value.isfinite()
    assert value.item() == pytest.approx(ran.value.item(), rel=1e-6, abs=1e-12)
    if not hasattr(loss, "connectors"):
        loss.connectors = None
    ours, theirs = gradients(ran.value, s, ran.loss), gradients(value, s, loss)
    assert (ours - theirs).norm() <= 1e-6 * ours.norm()
    assert all(tap.grad is None for tap in (t.logits, t.embedding, *t.features))


# --- equal to the program ----------------------------------------------------------------------------------------------------


@pairs
@pytest.mark.parametrize("name", KNOWN)
def test_known_losses_are_exported_as_they_run(name, pair):
    assert_equal(parse_loss(KNOWN[name]), *PAIRS[pair])


@pairs
@pytest.mark.parametrize("text", every_operator())
def test_every_operator_is_exported_as_it_runs(text, pair):
    assert_equal(parse_loss(text), *PAIRS[pair])


@modes
@pytest.mark.parametrize("operator", ["log", "exp", "sqrt", "batch", "scale", "mask"])
def test_names_of_operators_do_not_shadow_what_the_weights_call(mode, operator):
    assert_equal(parse_loss(f"{mode}*l2({operator}(features[-1]))"))


@pytest.mark.parametrize(("space", "seeds"), [("extended", range(200)), ("kd_zero", range(100))])
def test_random_losses_are_exported_as_they_run(space, seeds):
    both = list(PAIRS.values())
    for seed, tree in zip(seeds, grown(space, seeds), strict=True):
        assert_equal(tree, *both[seed % 2])


@pytest.mark.slow
@pytest.mark.parametrize("space", ["compact", "logits", "kd_zero", "extended"])
def test_many_more_random_losses_are_exported_as_they_run(space):
    test_random_losses_are_exported_as_they_run(space, range(1000, 1500))


def test_a_distance_and_a_schedule_may_share_a_name():
    assert_equal(parse_loss("cosine(0, 1)*cosine(logits) + step(1, 3)*cosine(temper(logits, tau=cosine(4, 1)))"))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("progress", [0, 0.4, 0.5, 1])
def test_schedules_are_exported_as_they_run(name, progress):
    tree = parse_loss(f"{name}(0.5, 3)*power_sum(tau={name}(4, 1))*kl(temper(logits, tau={name}(1, 7)), tau={name}(2, 1))")
    value = call(exported(tree, S, T, run(tree, S, T)), S, T, progress=progress)
    assert value.item() == pytest.approx(run(tree, S, T, progress=progress).value.item(), rel=1e-12)


def test_no_two_operators_share_a_name():
    tables = [{*TRANSFORMS}, {*DISTANCES}, {*MODES}, {*MODULES}]
    assert len(set.union(*tables)) == sum(map(len, tables))
    assert not (set(SCHEDULES) & {"exp", *TRANSFORMS, *MODES})


# --- masks -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "l2(mask(features[-1]))",
        "l2(drop(logits)) + l1(drop(logits))",
        "l2(drop(logits)) + l1(drop(embedding))",
        "l2(mask(teacher.mask(features[-1])))",
        "l2(teacher.drop(logits)) + l2(student.drop(logits))",
        "l2(mm(mask(features[-1]))) + l2(mask(features[-1]))",
        "l2(cross(mask(features[-1]), features[-2])) + l2(mask(features[-1]))",
        "l2(relu(drop(relu(logits)))) + l2(relu(logits))",
    ],
)
@pairs
def test_masks_are_drawn_as_the_compiled_loss_draws_them(text, pair):
    assert_equal(parse_loss(text), *PAIRS[pair])


def test_a_mask_is_one_before_and_behind_a_connector():
    t = make_taps(2, maps=((2, 6, 5), (5, 5, 3), (4, 3, 4)))  # only stage −2 differs
    tree = parse_loss("l2(cross(mask(features[-1]), features[-2])) + l2(mask(features[-1]))")
    assert to_torch_source(tree, S, t).count(" = bernoulli(") == 1
    assert_equal(tree, S, t)


def test_without_a_generator_masks_come_from_the_global_one():
    exported_loss = load(to_torch_source(parse_loss("l2(drop(logits))")))
    torch.manual_seed(0)
    draws = {exported_loss(by_position(S), by_position(T)).item() for _ in range(20)}
    assert len(draws) > 5
    same = {exported_loss(by_position(S), by_position(T), generator=generator()).item() for _ in range(3)}
    assert len(same) == 1


# --- the file ----------------------------------------------------------------------------------------------------------------


def sources():
    yield from (to_torch_source(parse_loss(text)) for text in (EVERY_POSITION, *KNOWN.values()))
    yield from (to_torch_source(parse_loss(text), S, UNLIKE) for text in (EVERY_POSITION, *KNOWN.values()))
    yield from (to_torch_source(tree, S, UNLIKE) for tree in grown("extended", range(1000, 1040)))


def test_only_torch_and_math_are_imported():
    for source in sources():
        imported = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
        assert imported <= {"torch", "math"}
        called = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
        assert not {"eval", "exec", "open", "compile", "__import__", "getattr"} & called


def test_every_name_is_defined_once_and_in_the_file():
    for source in sources():
        defined = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert len(set(defined)) == len(defined)
        assert defined[-1] == "EvolvedLoss"


def test_each_operator_is_copied_once():
    source = to_torch_source(
        parse_loss(
            "l2(mm(features[-1])) + 2*l2(mm(features[-2])) + focal*l2(relu(teacher.relu(logits))) + ramp(0, 1)*focal*l1(logits)"
        )
    )
    names = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert sorted(names) == ["focal", "l1", "l2", "mm", "relu", "schedule_ramp"]


def test_the_file_says_which_loss_it_is_and_what_it_was_found_beside():
    tree = parse_loss("3*kl(logits, tau=4) + 0.3*focal*l2(features[-1])")
    text = ast.get_docstring(ast.parse(to_torch_source(tree, gamma=0.1)))
    assert write_loss(tree) in text
    assert "0.1 · cross-entropy" in text
    assert "logits: (N,K)" in text
    assert "features[-1]: (N,C,H,W)" in text
    assert "embedding" not in text


def test_the_file_says_what_every_position_holds():
    text = ast.get_docstring(ast.parse(to_torch_source(parse_loss(EVERY_POSITION))))
    for words in (
        "logits: (N,K)",
        "embedding: (N,D)",
        "tokens: (N,M,C)",
        "attention: (N,heads,M,M)",
        "pre_relu[-2]: ",
        "head: (weight (K,D)",
    ):
        assert words in text
    assert "teacher_head:" not in text


def test_only_what_is_needed_is_asked_for():
    def asked(text):
        return [*inspect.signature(load(to_torch_source(parse_loss(text))).forward).parameters][3:]

    assert asked("l2(logits)") == []
    assert asked("ramp(0, 1)*l2(logits)") == ["progress"]
    assert asked("l2(drop(logits))") == ["generator"]
    assert asked("kl(drop(logits), tau=anneal(4, 1))") == ["progress", "generator"]


@pytest.mark.parametrize("name", MODULES)
def test_a_loss_with_trained_parts_is_not_exported(name):
    for text in (name, f"l2(logits) + 0.8*{name}"):
        with pytest.raises(EvokdError, match=f"{name}: expected a loss that is a formula") as caught:
            to_torch_source(parse_loss(text))
        assert "modules.py" in caught.value.hint


# --- connectors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        EVERY_POSITION,
        "l2(features[-1]) + l2(mm(features[-1]))",
        "l2(features[-1]) + l2(pre_relu[-1]) + l2(tokens)",
        "l2(norm_C(mm(features[-1])))",
        "cosine(embedding)",
        "l2(teacher_head)",
        "l2(teacher_head) + l1(embedding)",
        KNOWN["fitnet"],
        KNOWN["fsp"],
        KNOWN["ofd"],
        KNOWN["minilm"],
    ],
)
def test_connectors_fit_those_of_the_compiled_loss(text):
    tree = parse_loss(text)
    ran = run(tree, S, UNLIKE)
    loss = load(to_torch_source(tree, S, UNLIKE))
    assert set(loss.state_dict()) == set(ran.loss.state_dict())
    if ran.loss.connectors:
        assert abs(call(loss, S, UNLIKE).item() / ran.value.item() - 1) > 1e-6  # weights of its own
    loss.load_state_dict(ran.loss.state_dict())
    assert call(loss, S, UNLIKE).item() == pytest.approx(ran.value.item(), rel=1e-9)


def test_connectors_start_like_those_of_the_compiled_loss():
    tree = parse_loss("l2(embedding) + l2(features[-3]) + l2(tokens)")
    torch.manual_seed(0)
    for name, weight in load(to_torch_source(tree, S, UNLIKE)).connectors.state_dict().items():
        bound = weight.shape[1] ** -0.5
        assert bound / 2 < weight.abs().max() <= bound, name
        assert weight.min() < 0 < weight.max()


def test_gradients_reach_the_student_and_the_connectors_and_never_the_teacher():
    loss = load(to_torch_source(parse_loss(EVERY_POSITION), S, UNLIKE))
    s, t = learning(S), learning(UNLIKE)
    call(loss, s, t).backward()
    tensors = [[f.logits, f.embedding, f.tokens, f.attention, f.features[-1], *f.pre_relu[1:]] for f in (s, t)]
    assert all(tap.grad.abs().sum() > 0 for tap in tensors[0])
    assert all(tap.grad is None for tap in (*tensors[1], *t.head))
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


@modes
def test_no_gradient_flows_through_exported_weights(mode):
    s = learning(S)
    call(load(to_torch_source(parse_loss(f"{mode}*l2(embedding)"))), s, T).backward()
    assert s.logits.grad is None
    assert s.embedding.grad.abs().sum() > 0


@pytest.mark.parametrize("text", ["focal*l2(embedding)", "entropy*l1(logits)", "kl(logits, tau=4)", "kl(gt_drop(logits), tau=4)"])
def test_labels_may_be_left_out(text):
    tree = parse_loss(text)
    loss = load(to_torch_source(tree))
    value = loss(by_position(S), by_position(T))
    assert value.item() == pytest.approx(run(tree, S, T, None).value.item(), rel=1e-9)
    assert value == loss(by_position(S), by_position(T), torch.full((4,), -1))


def test_positions_that_are_not_needed_may_be_missing():
    loss = load(to_torch_source(parse_loss("2*kl(logits, tau=4)")))
    assert loss({"logits": S.logits}, {"logits": T.logits}).isfinite()
