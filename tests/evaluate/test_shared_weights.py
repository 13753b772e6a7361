"""Cells judged with the weights of one supernet."""

import pytest
import torch

from evokd.config import make_config
from evokd.evaluate.shared_weights import judge_on, open_shared, shared_weights
from evokd.evaluate.students import StudentJob
from evokd.genome.codec import to_names
from evokd.genome.individual import Status
from evokd.journal import individuals, read_events
from evokd.models.views import normalised
from evokd.problem import transfer_set
from evokd.report.terminal import Terminal
from evokd.student import run
from evokd.students import nas_bench_201
from evokd.students.oneshot import Recipe, search
from tests.students.test_oneshot import CELLS

SPACE = nas_bench_201.space(channels=4, cells=1)
QUICK = Recipe(steps=60, batch=32, lr=0.1)


@pytest.fixture(scope="module")
def found(digits):
    return search("rsps", SPACE, digits, QUICK, 3)


@pytest.fixture(scope="module")
def judge(found, digits):
    return judge_on(found.network, SPACE, digits)


def job(text, split="validation"):
    return StudentJob(tuple(to_names(SPACE.parse(text))), "shared", (), split)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_figures_are_those_of_the_path_on_all_images_of_the_split(judge, found, digits, split):
    outcome, part = judge(job(CELLS[0], split)), getattr(digits, split)
    images, labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)
    gates = {slot: {op: 1.0} if op != "none" else {} for slot, op in SPACE.read(CELLS[0]).items()}
    halves = [slice(None)] if split == "validation" else [slice(0, 300), slice(300, 600)]
    with torch.no_grad():
        x = normalised(images, digits.mean, digits.std)
        logits = torch.cat([found.network(x[half], gates).logits for half in halves])
    assert outcome.status is Status.OK
    assert outcome.fitness == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert outcome.metrics["ce"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_trained_path_beats_a_dead_one_and_judging_changes_nothing(judge):
    first, dead, again = (judge(job(text)).fitness for text in (CELLS[0], CELLS[2], CELLS[0]))
    assert first == again
    assert first > 20
    assert dead < 20


def test_logits_that_are_not_finite_are_a_failure(found, digits):
    import copy

    network = copy.deepcopy(found.network)
    network.classifier.bias.data[0] = float("nan")
    outcome = judge_on(network, SPACE, digits)(job(CELLS[0]))
    assert (outcome.status, outcome.fitness) == (Status.DIVERGED, None)


def test_a_file_is_trained_once_and_opens_to_the_same_judge(digits, distiller, judge, tmp_path):
    said = []
    file = shared_weights(tmp_path, SPACE, digits, QUICK, 3, "cpu", said.append)
    count = len(said)
    assert count > 0
    assert shared_weights(tmp_path, SPACE, digits, QUICK, 3, "cpu", said.append) == file
    assert len(said) == count
    assert shared_weights(tmp_path, SPACE, digits, QUICK, 4, "cpu", said.append) != file
    opened = open_shared(file, SPACE, distiller.bank, "cpu")
    for text in CELLS:
        assert opened(job(text)).metrics == judge(job(text)).metrics


def test_a_search_for_a_student_ranks_by_shared_weights(tiny, digits, tmp_path):
    space = tmp_path / "small.toml"
    space.write_text('task = "student"\nlanguage = "nas_bench_201"\nchannels = 4\ncells = 1\n')
    kept = {k: v for k, v in tiny.items() if k not in ("student", "population")}
    changes = {
        "space": str(space),
        "controller": "random",
        "evaluator": "shared",
        "shared_epochs": 2,
        "population": 3,
        "baselines": False,
    }
    config = make_config(kept | {"task": "student"} | changes | {"protocol": tiny["protocol"] | {"steps": 4, "transfer": 150}})
    result = run(config, Terminal(quiet=True))
    data = transfer_set(digits, config.protocol)
    network = search("rsps", SPACE, data, Recipe(epochs=2), 0).network
    judge = judge_on(network, SPACE, data)
    trained = list(individuals(read_events(result.run)))
    assert len(trained) == 6
    assert [e["fitness"] for e in trained] == [judge(job(e["text"])).fitness for e in trained]
    assert result.best.startswith(max(trained, key=lambda e: (e["fitness"], -e["id"]))["text"])
