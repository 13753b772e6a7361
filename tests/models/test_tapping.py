import pytest
import torch
from torch import nn

from evokd.errors import EvokdError
from evokd.losses import Taps
from evokd.models.resnet import ResNet
from evokd.models.tapping import Tapped, TapPlan, logits_of, plan_taps, tap_table


class HandMade(nn.Module):
    """Stages that are no containers, an auxiliary output, a 1×1 map before the classifier, and a module that is never called."""

    def __init__(self):
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.act, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.unused, self.classify = nn.Conv2d(3, 9, 1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.act(self.deep(x))
        return self.classify(self.pool(x).flatten(1))


IMAGES = torch.randn(2, 3, 32, 32)


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_our_resnet_is_tapped_after_its_stages():
    network = ResNet(14, 4, 10)
    plan = plan_taps(network, IMAGES)
    assert plan == TapPlan(("layer1", "layer2", "layer3"), "fc", ("layer1.1.relu", "layer2.1.relu", "layer3.1.relu"))
    with Tapped(network.eval(), plan) as tapped:
        taps = tapped(IMAGES)
    first = network.layer1(torch.relu(network.bn1(network.conv1(IMAGES))))
    second = network.layer2(first)
    third = network.layer3(second)
    for found, expected in zip(taps.features, (first, second, third), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(taps.embedding, third.mean((2, 3))) or torch.allclose(taps.embedding, third.mean((2, 3)))
    assert torch.equal(taps.logits, network(IMAGES))
    assert taps.head[0] is network.fc.weight
    assert taps.head[1] is network.fc.bias


def test_torchvisions_resnet_is_tapped_at_every_size():
    from torchvision.models import resnet18

    network = resnet18(num_classes=7)
    plan = plan_taps(network, torch.zeros(2, 3, 64, 64))
    assert plan.features[-3:] == ("layer2", "layer3", "layer4")
    assert plan.head == "fc"
    with Tapped(network, plan) as tapped:
        taps = tapped(torch.zeros(2, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in taps.features] == [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert taps.embedding.shape == (2, 512)


def test_a_hand_made_network_is_tapped_where_each_size_is_last_seen():
    network = HandMade()
    plan = plan_taps(network, IMAGES)
    assert plan.head == "classify"
    with Tapped(network, plan) as tapped:
        taps = tapped(IMAGES)
    assert [tuple(f.shape[1:]) for f in taps.features] == [(4, 32, 32), (6, 16, 16)]
    assert torch.allclose(taps.embedding, torch.relu(network.deep(torch.relu(network.stem(IMAGES)))).mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("inplace", [False, True])
def test_what_a_stages_last_relu_is_given_is_tapped_before_it_acts(inplace):
    network = ResNet(8, 4, 10).eval()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = inplace
    with Tapped(network, plan_taps(network, IMAGES)) as tapped:
        taps = tapped(IMAGES)
    for before, after in zip(taps.pre_relu, taps.features, strict=True):
        assert (before < 0).any()
        assert torch.equal(before.relu(), after)


def test_a_stage_without_a_relu_module_shows_nothing_before_it():
    assert plan_taps(HandMade(), IMAGES).pre_relu == ()


def test_a_network_that_returns_taps_is_taken_at_its_word():
    class Own(nn.Module):
        def forward(self, x):
            return Taps(x.flatten(1)[:, :5], tokens=x.flatten(2).transpose(1, 2))

    plan = plan_taps(Own(), IMAGES)
    with Tapped(Own(), plan) as tapped:
        assert tapped(IMAGES).positions() == ["logits", "tokens"]
        assert tap_table(tapped(IMAGES), tapped(IMAGES), plan, plan) == [("logits", "5", "5"), ("tokens", "1024×3", "1024×3")]
    assert logits_of(Own(), IMAGES).shape == (2, 5)


def test_gradients_flow_through_taps():
    network = ResNet(8, 4, 10)
    with Tapped(network, plan_taps(network, IMAGES)) as tapped:
        tapped(IMAGES).features[0].square().mean().backward()
    assert network.conv1.weight.grad.abs().sum() > 0
    assert network.layer3[0].conv1.weight.grad is None


def test_no_hook_outlives_its_context():
    network = ResNet(8, 4, 10)
    plan = plan_taps(network, IMAGES)
    assert hooks(network) == 0
    with Tapped(network, plan) as tapped:
        assert hooks(network) == 4 + 3  # stages and classifier, and the ReLU that ends each stage
        tapped(IMAGES)
    assert hooks(network) == 0
    with pytest.raises(ZeroDivisionError), Tapped(network, plan):
        1 / 0  # noqa: B018
    assert hooks(network) == 0
    with pytest.raises(EvokdError):
        plan_taps(network, torch.zeros(2, 5, 8, 8))
    assert hooks(network) == 0


def test_planning_leaves_the_network_as_it_was():
    network = ResNet(8, 4, 10).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    plan_taps(network, IMAGES)
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_users_paths_are_taken_in_their_order():
    network = ResNet(14, 4, 10)
    plan = plan_taps(network, IMAGES, ("layer1.0", "layer3.1"))
    assert plan.features == ("layer1.0", "layer3.1")
    with Tapped(network, plan) as tapped:
        taps = tapped(IMAGES)
    assert taps.positions() == [
        "logits", "embedding", "features[-1]", "features[-2]", "pre_relu[-1]", "pre_relu[-2]", "teacher_head",
    ]  # fmt: skip
    assert taps.at("features[-1]").shape == (2, 16, 8, 8)


def test_wrong_paths_are_refused_with_the_closest():
    network = ResNet(8, 4, 10)
    with pytest.raises(EvokdError, match=r"--teacher-taps: expected the path of a module, got 'layer4'; did you mean 'layer"):
        plan_taps(network, IMAGES, ("layer1", "layer4"), "--teacher-taps")
    with pytest.raises(EvokdError, match="modules that give maps"):
        plan_taps(network, IMAGES, ("fc",))
    with pytest.raises(EvokdError, match="unused"):
        plan_taps(HandMade(), IMAGES, ("unused",))


def test_a_network_without_a_linear_classifier_is_refused():
    with pytest.raises(EvokdError, match="ends in a linear layer"):
        plan_taps(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGES)


def test_the_table_shows_paths_and_shapes():
    networks = ResNet(8, 4, 10).eval(), HandMade().eval()
    plans = [plan_taps(n, IMAGES) for n in networks]
    taps: list[Taps] = []
    for network, plan in zip(networks, plans, strict=True):
        with Tapped(network, plan) as tapped:
            taps.append(tapped(IMAGES))
    table = {row[0]: row[1:] for row in tap_table(*taps, *plans)}
    assert table["logits"] == ("fc 10", "classify 5")
    assert table["features[-1]"][0] == "layer3 16×8×8"
    assert table["features[-1]"][1].endswith(" 6×16×16")
    assert table["features[-3]"] == ("layer1 4×32×32", "–")
