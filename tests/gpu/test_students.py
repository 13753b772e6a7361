"""The search for a student on a CUDA device: the same scores as on the CPU but for rounding, and a whole search to its end."""

import pytest
import torch

from evokd.config import make_config
from evokd.evaluate.students import StudentJob
from evokd.genome.codec import to_names
from evokd.journal import individuals, read_events
from evokd.report.terminal import Terminal
from evokd.student import random_students, run
from evokd.student_problem import open_student_problem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def small(tiny) -> dict:
    kept = {name: value for name, value in tiny.items() if name not in ("space", "student")}
    return kept | {"task": "student", "population": 4, "promote": 0.5}


@pytest.mark.parametrize("score", ["diswot", "diswot_paper", "nwot", "synflow", "zico", "loss:sp", "loss:l2(drop(logits))"])
def test_scores_are_the_cpus_but_for_rounding(small, score):
    values = []
    for device in ("cpu", "cuda"):
        problem = open_student_problem(make_config(small | {"device": device, "score": score}), print)
        jobs = [StudentJob(tuple(to_names(i)), "score", (1,), key=str(i.id)) for i in random_students(problem, 3)]
        values.append([outcome.fitness for outcome in problem.executor.map(jobs)])
    if "drop" in score:  # another generator draws the masks
        assert all(value is not None for value in values[1])
    else:
        assert values[1] == pytest.approx(values[0], rel=2e-2)


def test_a_whole_search(small):
    result = run(make_config(small | {"device": "cuda", "baselines": False}), Terminal(quiet=True))
    assert [e["status"] for e in individuals(read_events(result.run))].count("OK") == 4
    assert (result.run / "best" / "student.safetensors").exists()
    assert all(row.values for row in result.rows)
