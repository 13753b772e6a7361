import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evokd.losses.taps import Taps
from evokd.scores.passes import Event, blocks, watched
from evokd.students import nas_bench_201
from tests.scores.networks import Tiny, batch


@pytest.mark.parametrize(
    "relu",
    [F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()],
    ids=["F.relu", "relu", "relu_", "method", "method_", "module", "inplace", "relu6"],
)
def test_every_way_to_call_a_relu_is_seen_once(relu):
    class Net(nn.Module):
        def forward(self, x):
            y = relu(x - 1)
            return Taps(y.flatten(1), y.flatten(1))

    def outputs(event: Event):
        return event.output.clone() if event.module is None else None

    images, _ = batch()
    _, seen = watched(Net(), images, (outputs,))
    assert [torch.equal(s, (images - 1).clamp(0, 6 if isinstance(relu, nn.ReLU6) else None)) for s in seen[outputs]] == [True]


def test_blocks_are_the_outermost_modules_with_parts():
    student = Tiny()
    assert blocks(student) == [student.stages[0][0], student.stages[1][0], student.stages[1][1]]
    cells = nas_bench_201.space(channels=4, cells=2).network(dict.fromkeys(nas_bench_201.EDGES, "skip_connect"), 5, 3)
    assert [type(block).__name__ for block in blocks(cells)] == ["Cell", "Cell", *["Reduction", "Cell", "Cell"] * 2]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert blocks(plain) == [plain[0], plain[2]]
