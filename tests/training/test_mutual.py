"""Deep mutual learning: its loss by the published formula, its gradients, and a training that goes on to the same bits."""

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from evokd.commands.distill import main
from evokd.data import read_data
from evokd.errors import EvokdError
from evokd.training.mutual import MutualTraining, mutual
from evokd.training.recipes import short
from evokd.training.seed import FullTraining


def divergence(target, own):
    """KL(target ‖ own) of probabilities (N,K), a mean over the batch."""
    return (target * (target / own).log()).sum(1).mean()


@pytest.mark.parametrize("count", [2, 3])
def test_loss_is_the_published_one(count):
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(5, 4, generator=draw, dtype=torch.float64) for _ in range(count)]
    p = [softmax(z, 1) for z in logits]
    for i, found in enumerate(mutual(logits)):
        expected = sum(divergence(p[j], p[i]) for j in range(count) if j != i) / (count - 1)
        torch.testing.assert_close(found, expected)


def test_nobody_is_taught_through_what_it_teaches():
    """By hand: the gradient of KL(p2 ‖ p1) in z1 is (p1 − p2)/N."""
    z1, z2 = (torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in (1, 2))
    sum(mutual([z1, z2])).backward()
    p1, p2 = softmax(z1.detach(), 1), softmax(z2.detach(), 1)
    torch.testing.assert_close(z1.grad, (p1 - p2) / 3)
    torch.testing.assert_close(z2.grad, (p2 - p1) / 3)


@pytest.fixture(scope="module")
def data():
    return read_data("digits").with_transfer(100)


def test_first_step_is_that_of_two_losses_in_plain_torch(data):
    training = MutualTraining(data, "resnet8w2", short(1), peers=2)
    state = training._begin(3, None)
    alone = FullTraining(data, "resnet8w2", short(1))._begin(3, None)
    first = state.network.networks[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), alone.network.parameters(), strict=True))
    index, images = next(training.batches(3, 0))
    z = [each.detach() for each in state.network.all(images)]
    told = training._step(state, images, index, None, 0.0, torch.Generator())
    hard = sum(cross_entropy(each, training.labels[index]) for each in z) / 2
    soft = (divergence(softmax(z[1], 1), softmax(z[0], 1)) + divergence(softmax(z[0], 1), softmax(z[1], 1))) / 2
    torch.testing.assert_close(told, torch.stack([hard, soft]))


def test_a_training_that_was_cut_goes_on_to_the_same_bits(data, tmp_path):
    training, path = MutualTraining(data, "resnet8w2", short(2), peers=2), tmp_path / "checkpoint.safetensors"
    whole = training.train(1)
    training.train(1, path, until=1)
    again = training.train(1, path)
    assert again.figures | {"seconds": 0} == whole.figures | {"seconds": 0}
    assert all(torch.equal(a, b) for a, b in zip(again.network.parameters(), whole.network.parameters(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "dml", "--peers", "1"],
        ["--peers", "3"],
        ["--method", "dml", "--loss", "kd"],
        ["--method", "dml", "--teacher", "x"],
    ],
)
def test_what_has_no_teacher_takes_none(options):
    with pytest.raises(EvokdError, match=r"--peers|--method dml"):
        main(options)
