"""On a CUDA device: figures within noise of the CPU's, memory given back, and running out of it told as a status."""

import gc

import pytest
import torch

from evokd.config import make_config
from evokd.evaluate.distill import Distiller, Job
from evokd.genome.codec import to_names
from evokd.genome.individual import Status
from evokd.losses import KNOWN, parse_loss
from evokd.problem import open_problem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def job(text: str | None, *seeds: int) -> Job:
    return Job(tuple(to_names(parse_loss(text))) if text else None, seeds)


@pytest.fixture(scope="module")
def pair(tiny):
    """(CPU, CUDA) distillers of one problem, trained long enough to tell losses apart."""
    protocol = tiny["protocol"] | {"steps": 80, "batch": 32}
    return [
        open_problem(make_config({**tiny, "device": d, "protocol": protocol}), print).executor.evaluate for d in ("cpu", "cuda")
    ]


@pytest.mark.parametrize("text", [None, KNOWN["kd"], KNOWN["fitnet"], KNOWN["dist"]])
def test_fitness_is_within_noise_of_the_cpus(pair, text):
    seeds = range(6)
    cpu, cuda = (torch.tensor(d(job(text, *seeds)).metrics["fitness_by_seed"]) for d in pair)
    error = ((cpu.var() + cuda.var()) / len(seeds)).sqrt()
    assert (cpu.mean() - cuda.mean()).abs() < 3 * error + 1


def test_the_first_step_is_the_cpus(pair):
    """Same initialisation, batch and views on both; later steps part by rounding."""
    cpu, cuda = (d(job(KNOWN["kd"], 1)).metrics["curve"][0] for d in pair)
    assert cuda == pytest.approx(cpu, rel=1e-3)


def test_memory_is_given_back_after_a_job(pair):
    cuda = pair[1]
    cuda(job(KNOWN["fitnet"], 1))
    gc.collect()
    before = torch.cuda.memory_allocated()
    for seed in range(3):
        cuda(job(KNOWN["sp"], seed))
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_running_out_of_memory_is_a_status_and_the_next_job_runs(pair):
    cuda = pair[1]

    def greedy(classes):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

    outcome = Distiller(cuda.bank, greedy, cuda.plan, cuda.protocol, "accuracy", "cuda")(job(None, 1))
    assert outcome.status is Status.OUT_OF_MEMORY
    assert outcome.fitness is None
    assert cuda(job(None, 1)).status is Status.OK
