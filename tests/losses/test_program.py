import pytest
import torch
import torch.nn.functional as F

from evokd.errors import EvokdError
from evokd.losses.language import parse_loss
from evokd.losses.program import compile_loss
from evokd.losses.taps import Taps
from tests.losses.common import POSITIONS, every_operator, learning, make_taps, random_trees

S = make_taps(1)
T = make_taps(2, width=9, maps=((5, 6, 5), (7, 2, 2), (4, 5, 8)))  # more channels; smaller; as many channels but larger


def connectors(text, s=S, t=T):
    return sorted(compile_loss(parse_loss(text), s, t).connectors)


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
    ],
)
def test_connectors_stand_only_where_the_distance_would_meet_unequal_shapes(text, expected):
    assert connectors(text) == expected
    s = learning(S)
    compile_loss(parse_loss(text), S, T).double()(s, T).backward()


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


@pytest.mark.parametrize("position", POSITIONS[1:])
def test_a_connector_gives_the_teachers_shape(position):
    loss = compile_loss(parse_loss(f"l2({position})"), S, T).double()
    (connector,) = loss.connectors.values()
    assert connector(S.at(position)).shape == T.at(position).shape


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


@pytest.mark.parametrize("text", every_operator())
def test_gradients_reach_the_student_and_never_the_teacher(text):
    s, t = learning(S), learning(make_taps(2))
    compile_loss(parse_loss(text), s, t)(s, t).backward()
    reached = [f.grad is not None and bool(f.grad.abs().sum() > 0) for f in (s.logits, s.embedding, *s.features)]
    assert sum(reached) == 1
    assert all(f.grad is None for f in (t.logits, t.embedding, *t.features))


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


@pytest.mark.parametrize("text", ["l2(embedding)", "l2(features[-1])"])
def test_a_position_that_one_network_does_not_show_is_refused(text):
    with pytest.raises(EvokdError, match="it has logits"):
        compile_loss(parse_loss(text), Taps(S.logits), T)
    with pytest.raises(EvokdError, match="it has logits"):
        compile_loss(parse_loss(text), S, Taps(T.logits))
    with pytest.raises(EvokdError, match=r"features\[-4\]"):
        compile_loss(parse_loss("l2(features[-4])"), S, T)


def test_unequal_numbers_of_classes_are_refused():
    with pytest.raises(EvokdError, match="equally many classes"):
        compile_loss(parse_loss("kl(logits, tau=4)"), S, make_taps(2, classes=7))


def test_a_batch_of_another_size_than_the_examples_is_served():
    loss = compile_loss(parse_loss("l2(norm_C(mm(features[-1]))) + l2(features[-3]) + focal*l2(embedding)"), S, T).double()
    one, two = make_taps(5, n=7), make_taps(6, n=7, width=9, maps=((5, 6, 5), (7, 2, 2), (4, 5, 8)))
    assert loss(one, two).isfinite()


def test_random_losses_give_finite_values_and_gradients_in_single_precision():
    s, t = make_taps(1, dtype=torch.float32), make_taps(2, dtype=torch.float32, width=9, maps=((5, 6, 5), (7, 2, 2), (4, 5, 8)))
    for tree in random_trees("compact", range(100)):
        leaves = learning(s)
        value = compile_loss(tree, s, t)(leaves, t)
        assert value.shape == ()
        value.backward()
        found = [f.grad for f in (leaves.logits, leaves.embedding, *leaves.features) if f.grad is not None]
        assert found
        assert all(g.isfinite().all() for g in found)
