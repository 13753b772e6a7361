from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from evokd.errors import EvokdError
from evokd.losses.language import parse_loss, to_terms
from evokd.losses.modules import MODULES
from evokd.losses.program import compile_loss, read_tap
from evokd.losses.taps import Taps
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES
from tests.losses.common import CHAINS, POSITIONS, every_operator, learning, make_taps, random_trees

S = make_taps(1)
WIDER = {"width": 9, "maps": ((5, 6, 5), (7, 2, 2), (4, 5, 8)), "tokens": (5, 7)}
T = make_taps(
    2, **WIDER
)  # more channels; more channels on a smaller map; as many channels on a larger one; more and wider tokens
LABELS = torch.tensor([0, -1, 4, 2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def connectors(text, s=S, t=T):
    return sorted(compile_loss(parse_loss(text), s, t).connectors)


def run(text, s=S, t=None, labels=LABELS, seed=0):
    t = make_taps(2) if t is None else t
    return compile_loss(parse_loss(text), s, t).to(s.logits.dtype)(s, t, labels, generator=generator(seed))


def gradients(taps):
    """Position → gradient, of the positions that have one."""
    return {p: taps.at(p).grad for p in taps.positions() if p != "teacher_head" and taps.at(p).grad is not None}


def test_plain_kd_is_the_library_form():
    value = compile_loss(parse_loss("kl(logits, tau=4)"), S, T)(S, T)
    expected = F.kl_div((S.logits / 4).log_softmax(1), (T.logits / 4).softmax(1), reduction="batchmean") * 16
    torch.testing.assert_close(value, expected)
    assert value.shape == ()


def test_terms_are_weighed_and_summed():
    whole = compile_loss(parse_loss("0.5*l2(logits) + -3*l1(tanh(logits))"), S, T)(S, T)
    expected = 0.5 * F.mse_loss(S.logits, T.logits) - 3 * F.l1_loss(S.logits.tanh(), T.logits.tanh())
    torch.testing.assert_close(whole, expected)


def test_the_innermost_transform_is_applied_first():
    value = compile_loss(parse_loss("l2(exp(scale(logits)))"), S, T)(S, T)
    torch.testing.assert_close(value, F.mse_loss(((S.logits + 1) / 2).exp(), ((T.logits + 1) / 2).exp()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("l2(logits)", []),
        ("l2(embedding)", ["embedding"]),
        ("kl(relu(embedding), tau=2)", ["embedding"]),
        ("l2(mm(embedding))", []),
        ("l2(norm_C(mm(features[-1])))", []),
        ("l2(features[-1])", ["features_1"]),
        ("l2(mean_HW(features[-1]))", []),  # as many channels
        ("l2(mean_HW(features[-2]))", ["features_2"]),
        ("l2(bmm(features[-1]))", []),  # Gram of equally many channels
        ("l2(bmm(features[-2]))", ["features_2"]),
        ("l2(mean_C(features[-3]))", []),  # of equal size
        ("l2(mean_C(features[-2]))", ["features_2"]),
        ("pearson(transpose(embedding))", ["embedding"]),
        ("l2(features[-1]) + l2(mm(features[-2])) + l1(embedding)", ["embedding", "features_1"]),
        ("l2(pre_relu[-1])", ["pre_relu_1"]),
        ("l2(pre_relu[-1]) + l2(features[-1])", ["features_1", "pre_relu_1"]),
        ("l2(tokens)", ["tokens"]),
        ("l2(mm(tokens))", []),
        ("l2(mean_HW(tokens))", ["tokens"]),
        ("l2(bmm(tokens))", ["tokens"]),
        ("l2(teacher_head)", ["embedding"]),
        ("l2(teacher_head) + l2(embedding)", ["embedding"]),
        ("l2(mm(teacher_head)) + kl(teacher_head, tau=4)", ["embedding"]),
        ("l2(mm(attention))", []),
        ("l2(pool_1(features[-1]))", []),  # as many channels
        ("l2(pool_2(features[-1]))", []),
        ("l2(pool_4(features[-1]))", ["features_1"]),  # 3×4 here, 4×4 there
        ("l2(local_r2(features[-1]))", ["features_1"]),
        ("l2(gram_HW(features[-3]))", []),  # as many positions
        ("l2(affinity(features[-3]))", []),
        ("l2(affinity(features[-2]))", ["features_2"]),
        ("l2(pdist(features[-2])) + l2(angle(embedding))", []),
        ("l2(gt_binary(logits))", []),
        ("l2(class_gradient(logits, embedding))", ["embedding"]),
        ("l2(mm(class_gradient(logits, embedding)))", []),  # relations of classes
        ("l2(cross(features[-3], features[-1]))", ["features_1", "features_3"]),
        ("l2(mm(cross(features[-3], features[-1])))", []),
        ("l2(teacher.relu(features[-1]))", ["features_1"]),
        ("l2(mm(teacher.relu(features[-1])))", []),
        ("frobenius(norm_all(mm(features[-2])))", []),
    ],
)
def test_connectors_stand_only_where_the_distance_would_meet_unequal_shapes(text, expected):
    assert connectors(text) == expected
    t = replace(T, attention=make_taps(3, tokens=(5, 7), heads=3).attention)
    s = learning(S)
    loss = compile_loss(parse_loss(text), S, t).double()
    value = loss(s, t, LABELS)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("l2(mm(drop(features[-3])))", ["features_3"]),  # unequal channels
        ("l2(mm(drop(features[-1])))", ["features_1"]),  # as many channels, on unequal maps
        ("l2(mm(mask(features[-1])))", ["features_1"]),  # unequal space
        ("l2(mm(mask(features[-3])))", ["features_3"]),  # of equal size, with unequal channels
        ("l2(mm(drop(mean_HW(features[-1]))))", []),
        ("l2(mm(drop(tokens)))", ["tokens"]),
        ("l2(mm(drop(embedding)))", ["embedding"]),
        ("l2(mm(mask(mean_C(features[-3]))))", []),
        ("l2(mm(drop(mean_HW(features[-2]))))", ["features_2"]),
        ("l2(mm(teacher.drop(features[-3])))", ["features_3"]),
        ("l2(mm(student.mask(tokens)))", ["tokens"]),
    ],
)
def test_connectors_stand_before_masks_that_could_not_be_shared(text, expected):
    assert connectors(text) == expected
    loss = compile_loss(parse_loss(text), S, T).double()
    assert loss(learning(S), T, generator=generator()).isfinite()


def test_a_mask_is_the_same_before_and_behind_a_connector():
    bare, mended = "l2(mask(mean_C(features[-3])))", "l2(cross(mask(mean_C(features[-3])), features[-2]))"
    assert connectors(bare) == []
    assert "features_3" in connectors(mended)
    both, one, two = (run(text, S, T) for text in (f"{bare} + {mended}", bare, mended))
    torch.testing.assert_close(both, one + two)


def test_equal_pairs_need_no_connector():
    for text in every_operator():
        assert not connectors(text, S, make_taps(3)), text


def test_flattened_maps_of_coincident_size_are_still_aligned():
    # 2·4·4 = 8·2·2 entries, but not the same ones: flattening must not stand in for a connector.
    s, t = make_taps(1, maps=((2, 4, 4),)), make_taps(2, maps=((8, 2, 2),))
    assert connectors("l2(features[-1])", s, t) == ["features_1"]
    assert connectors("l2(batch(features[-1]))", s, t) == ["features_1"]


def test_channels_of_coincident_area_are_still_aligned():
    s, t = make_taps(1, maps=((3, 2, 8),)), make_taps(2, maps=((3, 4, 4),))
    assert connectors("l2(features[-1])", s, t) == ["features_1"]
    assert connectors("l2(channel(features[-1]))", s, t) == ["features_1"]


ALIGNED = [*POSITIONS[1:], "tokens", "pre_relu[-1]", "pre_relu[-2]", "pre_relu[-3]"]


@pytest.mark.parametrize("position", ALIGNED)
def test_a_connector_gives_the_teachers_shape(position):
    loss = compile_loss(parse_loss(f"l2({position})"), S, T).double()
    (connector,) = loss.connectors.values()
    assert connector(read_tap(S, position)).shape == read_tap(T, position).shape


@pytest.mark.parametrize("count", [2, 3, 5])
def test_tokens_are_averaged_or_interpolated_to_the_teachers_number(count):
    s, t = make_taps(1, tokens=(3, 4)), make_taps(2, tokens=(count, 7))
    loss = compile_loss(parse_loss("l2(tokens)"), s, t).double()
    weight, f = loss.connectors["tokens"].weight, s.tokens.transpose(1, 2)
    fewer = torch.stack([f[:, :, :2].mean(2), f[:, :, 1:].mean(2)], 2)
    sized = {2: fewer, 3: f, 5: F.interpolate(f, 5, mode="linear", align_corners=False)}[count]
    expected = F.mse_loss((sized.transpose(1, 2) @ weight.T).transpose(1, 2), t.tokens.transpose(1, 2))
    torch.testing.assert_close(loss(s, t), expected)


def test_attention_is_read_with_its_keys_as_channels():
    t = make_taps(2)
    torch.testing.assert_close(run("kl(attention, tau=1)", S, t), attention_divergence(S.attention, t.attention))


def attention_divergence(s, t):
    """Mean over samples, heads and queries."""
    n, heads, queries, keys = s.shape
    rows = [(s[i, h, q], t[i, h, q]) for i in range(n) for h in range(heads) for q in range(queries)]
    assert all(len(a) == keys for a, _ in rows)
    return sum(F.kl_div(a.log_softmax(0), b.softmax(0), reduction="sum") for a, b in rows) / len(rows)


@pytest.mark.parametrize("other", [{"tokens": (5, 4)}, {"heads": 3}])
def test_attention_of_other_heads_or_tokens_is_refused(other):
    with pytest.raises(EvokdError, match="equally many heads and tokens"):
        compile_loss(parse_loss("l2(attention)"), S, make_taps(2, **other))
    assert not connectors("l2(mm(attention))", S, make_taps(2, **other))


def test_the_teachers_head_judges_the_students_embedding():
    t = make_taps(2)
    (weight, bias), s = t.head, learning(S)
    loss = compile_loss(parse_loss("l2(teacher_head)"), s, t)
    assert not list(loss.parameters())
    value = loss(s, t)
    torch.testing.assert_close(value, F.mse_loss(S.embedding @ weight.T + bias, t.logits))
    value.backward()
    assert set(gradients(s)) == {"embedding"}


def test_the_teachers_head_shares_the_connector_of_the_embedding():
    loss = compile_loss(parse_loss("l2(teacher_head) + l1(embedding) + kl(mm(teacher_head), tau=2)"), S, T).double()
    assert sorted(loss.connectors) == ["embedding"]
    e = S.embedding @ loss.connectors["embedding"].weight.T
    z = F.linear(e, *T.head)
    relation = F.kl_div((z @ z.T / 2).log_softmax(1), (T.logits @ T.logits.T / 2).softmax(1), reduction="batchmean") * 4
    torch.testing.assert_close(loss(S, T), F.mse_loss(z, T.logits) + F.l1_loss(e, T.embedding) + relation)


def test_a_relation_of_embeddings_takes_no_connector_beside_a_head_that_does():
    loss = compile_loss(parse_loss("l2(mm(embedding)) + l2(teacher_head)"), S, T).double()
    z = F.linear(loss.connectors["embedding"](S.embedding), *T.head)
    gram, target = (taps.embedding @ taps.embedding.T for taps in (S, T))
    torch.testing.assert_close(loss(S, T), F.mse_loss(gram, target) + F.mse_loss(z, T.logits))


def test_the_head_is_the_teachers_own_and_is_needed():
    t = make_taps(2)
    other = replace(S, head=tuple(f * 100 for f in S.head))
    assert run("l2(teacher_head)", other, t) == run("l2(teacher_head)", S, t)
    with pytest.raises(EvokdError, match="teacher_head"):
        compile_loss(parse_loss("l2(teacher_head)"), S, replace(t, head=None))


def test_connectors_are_a_linear_layer_or_a_convolution_after_resizing():
    loss = compile_loss(parse_loss(" + ".join(f"l2({p})" for p in POSITIONS[1:])), S, T).double()
    weight = {name: c.weight.flatten(1) for name, c in loss.connectors.items()}
    expected = {
        "embedding": S.embedding @ weight["embedding"].T,
        "features_3": torch.einsum("oc,nchw->nohw", weight["features_3"], S.features[-3]),
        "features_2": torch.einsum("oc,nchw->nohw", weight["features_2"], F.avg_pool2d(S.features[-2], 2)),
        "features_1": torch.einsum(
            "oc,nchw->nohw",
            weight["features_1"],
            F.interpolate(S.features[-1], (5, 8), mode="bilinear", align_corners=False),
        ),
    }
    assert set(weight) == set(expected)
    for name, tap in zip(("embedding", "features_1", "features_2", "features_3"), POSITIONS[1:], strict=True):
        torch.testing.assert_close(loss.connectors[name](S.at(tap)), expected[name])


def test_one_connector_serves_all_terms_of_a_position():
    loss = compile_loss(parse_loss("l2(features[-3]) + 2*l1(norm_C(features[-3])) + l2(mm(features[-3]))"), S, T).double()
    assert sorted(loss.connectors) == ["features_3"]
    seen = loss.connectors["features_3"](S.features[0])
    own, theirs = S.features[0].flatten(1), T.features[0].flatten(1)
    expected = (
        F.mse_loss(seen, T.features[0])
        + 2 * F.l1_loss(F.normalize(seen), F.normalize(T.features[0]))
        + F.mse_loss(own @ own.T, theirs @ theirs.T)  # a relation needs no connector and takes none
    )
    torch.testing.assert_close(loss(S, T), expected)


def weights(seed, text="l2(features[-3]) + l2(embedding)", t=T):
    return compile_loss(parse_loss(text), S, t, seed=seed).connectors.state_dict()


def test_connectors_start_from_the_seed_the_position_and_the_shapes():
    torch.manual_seed(1)
    first = weights(0)
    torch.manual_seed(2)
    again = weights(0, "l2(embedding) + l1(features[-3])")
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = weights(1)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_connectors_of_two_positions_start_differently():
    s = make_taps(1, maps=((2, 4, 4), (2, 4, 4), (2, 4, 4)))
    t = make_taps(1, maps=((3, 4, 4), (3, 4, 4), (3, 4, 4)))
    found = compile_loss(parse_loss("l2(features[-1]) + l2(features[-2])"), s, t).connectors.state_dict().values()
    assert not torch.equal(*found)


def test_compiling_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    weights(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_connectors_start_bounded_by_the_fan_in():
    for name, weight in weights(0).items():
        bound = weight.shape[1] ** -0.5
        assert weight.abs().max() <= bound, name
        assert weight.abs().max() > bound / 2
        assert weight.min() < 0 < weight.max()


def positions(text):
    return {p for term in to_terms(parse_loss(text)) for p in term.distance.positions()}


@pytest.mark.parametrize("text", [*every_operator(), "l2(attention)", "l2(pre_relu[-2])"])
def test_gradients_reach_what_the_loss_reads_of_the_student_and_never_the_teacher(text):
    s, t = learning(S), learning(make_taps(2))
    value = run(text, s, t)
    value.backward()
    assert value.shape == ()
    assert set(gradients(s)) == positions(text)
    assert all(g.abs().sum() > 1e-9 for g in gradients(s).values())
    assert not gradients(t)
    assert all(f.grad is None for taps in (s, t) for f in taps.head)


def test_gradients_never_reach_the_teachers_head():
    s, t = learning(S), learning(T)
    compile_loss(parse_loss("l2(teacher_head)"), s, t).double()(s, t).backward()
    assert not gradients(t)
    assert all(f.grad is None for f in t.head)


NARROW = {
    "batch of one": {"n": 1},
    "single channel": {"classes": 1, "width": 1, "maps": ((1, 6, 5), (1, 4, 4), (1, 3, 4)), "tokens": (3, 1), "heads": 1},
    "1x1 maps": {"maps": ((2, 1, 1), (3, 1, 1), (4, 1, 1)), "tokens": (1, 4)},
}
FLOATS = {"dtype": torch.float32}
TAPS = {
    "zeros": [make_taps(seed, **FLOATS).map(torch.zeros_like) for seed in (1, 2)],
    "ones": [make_taps(seed, **FLOATS).map(torch.ones_like) for seed in (1, 2)],
    "equal": [make_taps(1, **FLOATS)] * 2,
    "tiny": [make_taps(seed, **FLOATS).map(lambda f: f * 1e-8) for seed in (1, 2)],
    "large": [make_taps(seed, **FLOATS).map(lambda f: f.clamp(-1, 1) * 1e4) for seed in (1, 2)],
    "dead teacher": [make_taps(1, **FLOATS), make_taps(2, **FLOATS).map(torch.zeros_like)],
    "dead student": [make_taps(1, **FLOATS).map(torch.zeros_like), make_taps(2, **FLOATS)],
    **{name: [make_taps(seed, **sizes, **FLOATS) for seed in (1, 2)] for name, sizes in NARROW.items()},
}


@pytest.mark.parametrize("text", every_operator())
def test_every_operator_is_finite_on_extreme_taps(text):
    for name, (s, t) in TAPS.items():
        if name == "large" and CHAINS["relation"] in text and "pow" in text:
            continue  # the fourth power of a square exceeds single precision
        labels = LABELS[: len(s.logits)].clamp_max(s.logits.shape[1] - 1)
        for autocast in (False, True):
            leaves = learning(s)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value = run(text, leaves, t, labels)
            value.backward()
            assert value.shape == (), name
            assert value.isfinite(), name
            assert set(gradients(leaves)) == positions(text), name
            assert all(g.isfinite().all() for g in gradients(leaves).values()), name


def test_all_unknown_labels_are_like_none():
    for text in every_operator():
        assert run(text, labels=torch.full((4,), -1)) == run(text, labels=None), text


RANDOM = sorted(t.name for t in TRANSFORMS.values() if t.mask)


@pytest.mark.parametrize("name", RANDOM)
def test_student_and_teacher_share_the_mask(name):
    assert run(f"l2({name}(features[-1]))", S, S) == 0
    t = S.map(lambda f: f + 2)
    factor = {"drop": 1 / 0.9, "mask": 1.0}[name]
    shares = [run(f"l1({name}(features[-1]))", S, t, seed=seed).item() / 2 / factor for seed in range(5)]
    assert all(0 < share <= 1 for share in shares)
    assert len(set(shares)) > 1


@pytest.mark.parametrize(
    ("text", "sizes", "factor"),
    [
        ("drop(features[-2])", (4, 3, 1, 1), 0.9),
        ("drop(tokens)", (4, 4, 1), 0.9),
        ("drop(embedding)", (4, 6), 0.9),
        ("drop(logits)", (4, 5), 0.9),
        ("mask(features[-2])", (4, 1, 4, 4), 1),
        ("mask(tokens)", (4, 1, 3), 1),
    ],
)
def test_a_mask_is_drawn_for_channels_or_for_positions(text, sizes, factor):
    t = make_taps(2)
    keep = {"drop": 0.9, "mask": 0.35}[text[:4]]
    mask = (torch.rand(sizes, generator=generator(3)) < keep) / factor
    s_tap, t_tap = (read_tap(taps, text[5:-1]) for taps in (S, t))
    torch.testing.assert_close(run(f"l2({text})", S, t, seed=3), F.mse_loss(s_tap * mask, t_tap * mask))


def test_masks_keep_nine_tenths_of_the_channels_and_a_third_of_the_positions():
    ones = make_taps(1, n=100, maps=((100, 10, 10),)).map(torch.ones_like)
    zeros = ones.map(torch.zeros_like)
    kept = {name: run(f"l1({name}(features[-1]))", ones, zeros, None).item() for name in RANDOM}
    assert kept["drop"] * 0.9 == pytest.approx(0.9, abs=0.01)
    assert kept["mask"] == pytest.approx(0.35, abs=0.02)


@pytest.mark.parametrize("name", RANDOM)
def test_masks_come_from_the_generator_alone(name):
    t, text = make_taps(2), f"l2({name}(features[-2]))"
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(text, S, t, seed=5)
    torch.manual_seed(1)
    assert run(text, S, t, seed=5) == first
    assert run(text, S, t, seed=6) != first
    torch.manual_seed(0)
    run(text, S, t, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", RANDOM)
def test_every_pass_draws_a_mask_of_its_own(name):
    t, source = make_taps(2), generator()
    loss = compile_loss(parse_loss(f"l2({name}(features[-2]))"), S, t)
    assert loss(S, t, generator=source) != loss(S, t, generator=source)


@pytest.mark.parametrize("name", RANDOM)
def test_without_a_generator_masks_are_refused(name):
    t = make_taps(2)
    with pytest.raises(EvokdError, match=f"generator: expected a torch.Generator, from which {name} draws"):
        compile_loss(parse_loss(f"l2({name}(features[-1]))"), S, t)(S, t)


@pytest.mark.parametrize("name", RANDOM)
def test_equal_calls_have_one_mask_and_others_their_own(name):
    t = make_taps(2)
    assert run(f"l2({name}(features[-2])) + -1*l2({name}(features[-2]))", S, t) == 0
    one, two = (run(f"l2(norm_C({name}(features[-2])))", S, t, seed=0), run(f"l1({name}(features[-2]))", S, t, seed=0))
    torch.testing.assert_close(run(f"l2(norm_C({name}(features[-2]))) + l1({name}(features[-2]))", S, t, seed=0), one + two)
    nested = run(f"l2({name}({name}(features[-2])))", S, t)
    assert nested != run(f"l2({name}(features[-2]))", S, t)


@pytest.mark.parametrize("name", RANDOM)
def test_a_mask_of_one_side_leaves_the_other_whole(name):
    t = make_taps(2)
    mask = {"drop": torch.rand(4, 3, 1, 1, generator=generator()), "mask": torch.rand(4, 1, 4, 4, generator=generator())}[name]
    mask = (mask < 0.9) / 0.9 if name == "drop" else mask < 0.35
    f, g = S.features[-2], t.features[-2]
    torch.testing.assert_close(run(f"l2(teacher.{name}(features[-2]))", S, t), F.mse_loss(f, g * mask))
    torch.testing.assert_close(run(f"l2(student.{name}(features[-2]))", S, t), F.mse_loss(f * mask, g))


def test_losses_without_masks_draw_nothing_and_say_so():
    for text in every_operator():
        loss = compile_loss(parse_loss(text), S, make_taps(2))
        (term,) = loss.terms
        assert loss.random == any(call.name in RANDOM for call in term.distance.walk()), text
        if not loss.random:
            source = generator()
            before = source.get_state()
            loss(S, make_taps(2), LABELS, generator=source)
            assert torch.equal(source.get_state(), before), text


ONE_SIDED = [t.name for t in TRANSFORMS.values() if t.keeps_shape and not t.mask and not t.labels and "maps" in t.kinds]


@pytest.mark.parametrize("name", ONE_SIDED)
def test_an_operator_of_one_side_leaves_the_other_as_it_is(name):
    t, operator = make_taps(2), TRANSFORMS[name]
    inside = f"{name}(features[-2]{', tau=3' if operator.params else ''})"
    f, g = S.features[-2], t.features[-2]
    tau = (3.0,) * len(operator.params)
    torch.testing.assert_close(run(f"l2(teacher.{inside})", S, t), F.mse_loss(f, operator.fn(g, *tau)))
    torch.testing.assert_close(run(f"l2(student.{inside})", S, t), F.mse_loss(operator.fn(f, *tau), g))


def test_sides_may_follow_each_other_and_act_behind_the_connector():
    loss = compile_loss(parse_loss("l2(tanh(student.relu(teacher.exp(features[-2]))))"), S, T).double()
    f = loss.connectors["features_2"](S.features[-2])
    torch.testing.assert_close(loss(S, T), F.mse_loss(f.relu().tanh(), T.features[-2].exp().tanh()))


def test_a_side_is_a_step_of_its_own_and_its_prefix_is_shared():
    loss = compile_loss(parse_loss("l2(relu(mm(embedding))) + l2(teacher.relu(mm(embedding)))"), S, make_taps(2))
    assert len(loss._steps) == 3


def test_operators_of_two_values_take_both_sides_in_turn():
    t = make_taps(2)
    flows = [torch.einsum("nahw,nbhw->nab", F.adaptive_max_pool2d(f[0], (4, 4)), f[1]) / 16 for f in (S.features, t.features)]
    torch.testing.assert_close(run("l2(cross(features[-3], features[-2]))", S, t), F.mse_loss(*flows))


def test_operators_of_two_values_share_their_prefixes():
    def steps(text):
        return len(compile_loss(parse_loss(text), S, make_taps(2))._steps)

    assert steps("l2(cross(relu(features[-3]), features[-2])) + l1(relu(features[-3]))") == 2
    assert steps("l2(cross(features[-3], features[-2])) + l1(cross(features[-3], features[-2]))") == 1
    assert steps("l2(cross(features[-3], features[-2])) + l1(cross(features[-2], features[-3]))") == 2
    assert steps("l2(class_gradient(logits, embedding)) + kl(gt_drop(logits), tau=4)") == 2


def test_the_class_gradient_of_a_wider_teacher_is_met_behind_the_connector():
    loss = compile_loss(parse_loss("frobenius(class_gradient(logits, embedding))"), S, T).double()
    known = LABELS[LABELS >= 0]
    gradient = []
    for z, e in ((S.logits, loss.connectors["embedding"](S.embedding)), (T.logits, T.embedding)):
        gap = z.softmax(1)[LABELS >= 0] - F.one_hot(known, 5)
        gradient.append(gap.T @ e[LABELS >= 0] / 4)
    torch.testing.assert_close(loss(S, T, LABELS), (gradient[0] - gradient[1]).norm() / 45)


@pytest.mark.parametrize("mode", [m for m in MODES if not MODES[m].params])
def test_a_mode_weighs_what_a_relation_says_of_each_sample(mode):
    t = make_taps(2)
    weight = MODES[mode].fn(S.logits, t.logits, LABELS)
    gap = (S.embedding @ S.embedding.T - t.embedding @ t.embedding.T).square().mean(1)
    torch.testing.assert_close(run(f"{mode}*l2(mm(embedding))", S, t), (weight * gap).mean())


SEEN = {"index": torch.tensor([3, 0, 7, 1])}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_a_term_like_any_other(name):
    s, t = learning(make_taps(1, dtype=torch.float32)), learning(make_taps(2, dtype=torch.float32, **WIDER))
    t = replace(t, attention=s.attention)
    loss = compile_loss(parse_loss(f"3*{name} + 0.5*l2(logits)"), s, t)
    alone, plain = compile_loss(parse_loss(name), s, t), 0.5 * F.mse_loss(s.logits, t.logits)
    value = loss(s, t, LABELS, generator=generator(), **SEEN)
    torch.testing.assert_close(value, 3 * alone(s, t, LABELS, generator=generator(), **SEEN) + plain)
    value.backward()
    assert gradients(s)
    assert not gradients(t)
    assert all(f.grad is None for f in t.head)
    assert list(loss.parts) == [name]
    assert "logits" in loss.needs
    assert {p.data_ptr() for p in loss.parts[name].parameters()} <= {p.data_ptr() for p in loss.parameters()}


def test_a_module_named_twice_is_one_with_the_sum_of_both_weights():
    s, t = make_taps(1, dtype=torch.float32), make_taps(2, dtype=torch.float32)
    loss, alone = (compile_loss(parse_loss(text), s, t) for text in ("2*simkd + simkd", "simkd"))
    assert len(list(loss.parameters())) == len(list(alone.parameters()))
    torch.testing.assert_close(loss(s, t), 3 * alone(s, t))


def test_modules_start_from_the_seed():
    def state(seed):
        return compile_loss(parse_loss("simkd"), S, T, seed).state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_module_that_remembers_asks_for_the_samples_positions():
    s, t = make_taps(1, dtype=torch.float32), make_taps(2, dtype=torch.float32)
    loss = compile_loss(parse_loss("crd"), s, t)
    with pytest.raises(EvokdError, match="index"):
        loss(s, t, generator=generator())
    with pytest.raises(EvokdError, match="generator"):
        loss(s, t, **SEEN)


def test_a_module_needs_its_taps():
    with pytest.raises(EvokdError, match="it has logits"):
        compile_loss(parse_loss("simkd"), Taps(S.logits), T)


def test_it_tells_which_terms_read_the_student_behind_connectors():
    loss = compile_loss(parse_loss("l2(features[-1]) + l2(mm(features[-1])) + simkd"), S, T)
    assert [loss.connects(i) for i in range(3)] == [True, False, False]


def test_gradients_reach_the_connectors():
    s, t = learning(S), learning(T)
    loss = compile_loss(parse_loss("l2(features[-1]) + l2(features[-2]) + cosine(embedding)"), s, t).double()
    loss(s, t).backward()
    assert sorted(loss.connectors) == ["embedding", "features_1", "features_2"]
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    assert len(list(loss.parameters())) == 3
    assert all(f.grad is None for f in (t.embedding, *t.features))
    assert all(f.grad.abs().sum() > 0 for f in (s.embedding, s.features[1], s.features[2]))


def test_a_loss_without_connectors_has_no_parameters():
    assert not list(compile_loss(parse_loss("kl(logits, tau=4) + l2(mm(features[-1]))"), S, T).parameters())


def test_equal_prefixes_are_computed_once():
    def steps(text):
        return len(compile_loss(parse_loss(text), S, make_taps(2))._steps)

    assert steps("l2(norm_C(mm(features[-1])))") == 2
    assert steps("l2(norm_C(mm(features[-1]))) + 3*l2(norm_C(mm(features[-1])))") == 2
    assert steps("l2(norm_C(mm(features[-1]))) + l1(softmax_C(mm(features[-1])))") == 3
    assert steps("l2(norm_C(mm(features[-1]))) + l2(norm_C(mm(features[-2])))") == 4
    assert steps("kl(logits, tau=2) + l2(logits)") == 0


def test_equal_names_with_other_temperatures_are_other_steps():
    loss = compile_loss(parse_loss("l2(temper(logits, tau=2)) + l2(temper(logits, tau=4))"), S, T)
    assert len(loss._steps) == 2
    torch.testing.assert_close(loss(S, T), F.mse_loss(S.logits, T.logits) * (1 / 4 + 1 / 16))


def test_it_tells_which_positions_it_needs():
    loss = compile_loss(parse_loss("l2(features[-2]) + kl(logits, tau=4) + l1(features[-2])"), S, T)
    assert loss.needs == ("features[-2]", "logits")


def test_taps_that_are_not_needed_may_be_missing():
    bare = Taps(S.logits)
    assert compile_loss(parse_loss("l2(logits)"), bare, Taps(T.logits))(bare, T).isfinite()


@pytest.mark.parametrize(
    "text", ["l2(embedding)", "l2(features[-1])", "l2(tokens)", "kl(attention, tau=1)", "l2(pre_relu[-1])", "l2(teacher_head)"]
)
def test_a_position_that_one_network_does_not_show_is_refused(text):
    with pytest.raises(EvokdError, match="it has logits"):
        compile_loss(parse_loss(text), Taps(S.logits), T)
    with pytest.raises(EvokdError, match="it has logits"):
        compile_loss(parse_loss(text), S, Taps(T.logits))
    with pytest.raises(EvokdError, match=r"\[-4\]"):
        compile_loss(parse_loss(f"l2(features[-4]) + {text}"), S, T)


def test_unequal_numbers_of_classes_are_refused():
    with pytest.raises(EvokdError, match="equally many classes"):
        compile_loss(parse_loss("kl(logits, tau=4)"), S, make_taps(2, classes=7))
    assert not connectors("l2(mm(logits))", S, make_taps(2, classes=7))


def test_a_batch_of_another_size_than_the_examples_is_served():
    loss = compile_loss(parse_loss("l2(norm_C(mm(features[-1]))) + l2(features[-3]) + focal*l2(embedding)"), S, T).double()
    one, two = make_taps(5, n=7), make_taps(6, n=7, **WIDER)
    assert loss(one, two).isfinite()


def test_random_losses_give_finite_values_and_gradients_in_single_precision():
    s, t = make_taps(1, dtype=torch.float32), make_taps(2, dtype=torch.float32, **WIDER)
    for tree in random_trees("compact", range(100)):
        leaves = learning(s)
        value = compile_loss(tree, s, t)(leaves, t)
        assert value.shape == ()
        value.backward()
        found = [f.grad for f in (leaves.logits, leaves.embedding, *leaves.features) if f.grad is not None]
        assert found
        assert all(g.isfinite().all() for g in found)
