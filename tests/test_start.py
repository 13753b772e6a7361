"""What is imported where: a start that waits for what it does not need is a slow one."""

import json
import subprocess
import sys

import pytest

from evokd.executor import Workers
from evokd.genome.individual import Outcome, Status

LATE = ("mlflow", "sympy", "scipy.stats", "sklearn", "torchvision", "matplotlib", "optuna", "ray")


def open_looker(recipe):
    """What a worker of a search imports before its first job, bank aside."""
    import evokd.evaluate.distill  # noqa: F401

    return lambda job: Outcome(Status.OK, 0.0, {"loaded": sorted(set(sys.modules) & set(job))})


def test_a_worker_imports_only_what_it_trains_with():
    workers = Workers(1, open_looker, None)
    (outcome,) = workers.map([[*LATE, "torch"]])
    workers.close()
    assert outcome.metrics["loaded"] == ["torch"]


@pytest.mark.parametrize("module", ["evokd.distiller"])
def test_a_search_starts_without_what_only_its_end_needs(module):
    code = f"import sys, json, {module}; print(json.dumps(sorted(set(sys.modules) & set({LATE!r}))))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == []
