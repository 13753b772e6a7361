from dataclasses import replace

import numpy as np
import pytest
import torch

from evokd.config import make_config
from evokd.data import Split
from evokd.evaluate.distill import Distiller, Job
from evokd.genome.codec import to_names
from evokd.genome.individual import Status
from evokd.losses import KNOWN, parse_loss
from evokd.models.resnet import ResNet
from evokd.problem import open_problem


def job(text: str | None, *seeds: int, **more) -> Job:
    return Job(tuple(to_names(parse_loss(text))) if text else None, seeds or (1,), **more)


def hidden(distiller, share: float):
    """The distiller with a share of its labels unknown."""
    labels = distiller.bank.labels["train"].clone()
    labels[int(len(labels) * (1 - share)) :] = -1
    return Distiller(
        replace(distiller.bank, labels={**distiller.bank.labels, "train": labels}),
        distiller.student,
        distiller.plan,
        distiller.protocol,
        distiller.fitness,
    )


def curve(distiller, text=None, seed=1, **more):
    return distiller.train(job(text, **more), seed)[1]


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_cross_entropy_is_averaged_over_the_whole_batch(distiller, share):
    """The first point of the curve by hand: Σ −log p over known labels, divided by the batch and not by their number."""
    some = hidden(distiller, share)
    index, view = next(some.batches(1))
    network = some.build(1).train()
    labels = some.bank.labels["train"][index]
    p = torch.softmax(network(some.bank.batch(index, view)), 1)
    known = labels >= 0
    expected = -p[known].gather(1, labels[known, None]).log().sum() / len(labels)
    assert 0 < known.sum() <= len(labels)
    assert curve(some)[0][1] == pytest.approx(expected.item(), rel=1e-5)


def test_the_distillation_term_stands_beside_cross_entropy_with_its_weight(distiller):
    """The first step's Hinton KD by hand: τ² Σ p log(p/q), mean over the batch, times its weight."""
    index, view = next(distiller.batches(1))
    network = distiller.build(1).train()
    s, t = network(distiller.bank.batch(index, view)), distiller.bank.taps["logits"][view, index]
    p, q = torch.softmax(t / 4, 1), torch.softmax(s / 4, 1)
    expected = 3 * 16 * (p * (p / q).log()).sum(1).mean()
    assert curve(distiller, "3*kl(logits, tau=4)")[0][2] == pytest.approx(expected.item(), rel=1e-4)


def test_every_image_is_seen_once_an_epoch_and_every_view_is_used(distiller):
    batches = list(replace_steps(distiller, 40).batches(5))
    index = torch.cat([i for i, _ in batches])
    count = len(distiller.bank.labels["train"])
    assert len(batches) == 40
    assert all(len(i) == 16 for i, _ in batches)
    for at in range(0, len(index) - count + 1, count):
        assert sorted(index[at : at + count].tolist()) == list(range(count))
    assert set(torch.cat([v for _, v in batches]).tolist()) == {0, 1}


def test_balanced_batches_draw_every_class_equally_often(distiller):
    labels = distiller.bank.labels["train"]
    kept = torch.cat([torch.nonzero(labels == k)[: (3 if k % 2 else 40), 0] for k in range(10)])
    bank = replace(distiller.bank, labels={**distiller.bank.labels, "train": labels[kept]})
    protocol = distiller.protocol.model_copy(update={"steps": 500, "balanced": True})
    some = Distiller(bank, distiller.student, distiller.plan, protocol, "accuracy")
    drawn = torch.cat([labels[kept][i] for i, _ in some.batches(1)])
    shares = torch.bincount(drawn, minlength=10) / len(drawn)
    assert shares.min() > 0.08
    assert shares.max() < 0.12


def replace_steps(distiller, steps, **more):
    protocol = distiller.protocol.model_copy(update={"steps": steps, **more})
    return Distiller(distiller.bank, distiller.student, distiller.plan, protocol, distiller.fitness)


def test_one_seed_gives_the_same_bits_and_another_does_not(distiller):
    text = KNOWN["dist"]
    first, again, other = (distiller(job(text, seed)) for seed in (1, 1, 2))
    assert first.metrics == again.metrics
    assert first.metrics["curve"] != other.metrics["curve"]
    assert [i.tolist() for i, _ in distiller.batches(1)] != [i.tolist() for i, _ in distiller.batches(2)]
    both = distiller(job(text, 1, 2))
    assert both.metrics["fitness_by_seed"] == [first.fitness, other.fitness]
    assert both.fitness == pytest.approx((first.fitness + other.fitness) / 2)


def test_a_global_draw_in_between_changes_nothing(distiller):
    first = distiller(job(KNOWN["fitnet"]))
    torch.rand(7)
    np.random.default_rng().random()
    assert distiller(job(KNOWN["fitnet"])).metrics == first.metrics


@pytest.mark.parametrize("text", ["0*l2(logits)", "0*l2(features[-1])", "0*kl(logits, tau=4) + 0*l2(features[-2])"])
def test_plain_training_and_a_loss_of_no_weight_give_one_student(distiller, text):
    """Seeds are paired: initialisation, batches and views do not depend on the loss or on its connectors."""
    plain, weightless = distiller.train(job(None), 1)[0], distiller.train(job(text), 1)[0]
    assert plain == weightless


def test_gamma_of_a_job_replaces_the_protocols(distiller):
    assert distiller(job(KNOWN["kd"], gamma=1.0)).metrics == distiller(job(KNOWN["kd"])).metrics
    without = distiller(job(KNOWN["kd"], gamma=0.0))
    assert without.metrics["curve"][0][1] == 0
    assert without.metrics["ce"] != distiller(job(KNOWN["kd"])).metrics["ce"]


def test_connectors_learn_without_weight_decay(distiller):
    from evokd.models.tapping import Tapped

    network = distiller.build(1)
    with Tapped(network, distiller.plan) as tapped:
        loss = distiller.compiled(job(KNOWN["fitnet"]), tapped, None, 1)
        optimiser, _ = distiller.optimiser(network, loss)
    decay = {id(w): group["weight_decay"] for group in optimiser.param_groups for w in group["params"]}
    connectors = list(loss.connectors.parameters())
    assert connectors
    assert all(decay[id(w)] == 0 for w in connectors)
    assert {decay[id(w)] for w in network.parameters() if w.dim() > 1} == {distiller.protocol.weight_decay}
    assert {decay[id(w)] for w in network.parameters() if w.dim() == 1} == {0}
    assert len(decay) == len(connectors) + len(list(network.parameters()))


def test_hidden_labels_leave_no_trace(digits, tiny, tmp_path):
    """True labels behind hidden ones are permuted before anything is read: teacher's taps, bank and outcome stay bit for bit."""
    torch.manual_seed(0)
    teacher = ResNet(8, 4, 10, 1).eval()
    labels = digits.train.labels.copy()
    kept = np.flatnonzero(digits.with_labels(50).train.labels >= 0)
    free = np.arange(kept.max() + 1, len(labels))
    labels[free] = np.random.default_rng(0).permutation(labels[free])
    permuted = replace(digits, train=Split(digits.train.images, labels))
    assert (digits.train.labels != labels).sum() > 200
    found = []
    for data, name in ((digits, "true"), (permuted, "permuted")):
        protocol = tiny["protocol"] | {"labels": 50, "transfer": 0, "steps": 12}
        config = make_config({**tiny, "protocol": protocol, "out": str(tmp_path / name)})
        problem = open_problem(config, lambda line: None, teacher=teacher, data=data)
        assert problem.card["labels"] == 50
        found.append([problem.executor.evaluate(job(text)).metrics for text in (KNOWN["wsld"], KNOWN["sp"], None)])
    assert found[0] == found[1]


def test_training_learns_and_a_teacher_helps(distiller):
    """Far above one in ten after some steps, and agreement with the teacher grows when KD is added."""
    longer = replace_steps(distiller, 60)
    plain, kd = longer(job(None)), longer(job("10*kl(logits, tau=4)"))
    assert plain.metrics["accuracy"] > 40
    assert kd.metrics["agreement"] > 40
    assert plain.metrics["curve"][-1][1] < plain.metrics["curve"][0][1]


@pytest.mark.parametrize("text", ["1e38*l2(pow4(pow4(logits)))", "l2(logits) + 1e38*l2(pow4(pow4(pow4(logits))))"])
def test_a_loss_that_leaves_the_finite_numbers_is_diverged(distiller, text):
    outcome = distiller(job(text))
    assert outcome.status is Status.DIVERGED
    assert outcome.fitness is None
    assert outcome.metrics == {}
    assert outcome.reason.startswith("loss ")
    assert outcome.reason.endswith("at step 0")


def test_a_student_that_raises_is_crashed_with_its_reason(distiller):
    def broken(classes):
        raise RuntimeError("no such layer")

    outcome = Distiller(distiller.bank, broken, distiller.plan, distiller.protocol, "accuracy")(job(None))
    assert (outcome.status, outcome.reason) == (Status.CRASHED, "RuntimeError: no such layer")


@pytest.mark.parametrize("text", [KNOWN["kd"], KNOWN["fitnet"], KNOWN["sp"]])
def test_a_live_teacher_gives_what_the_bank_gives(distiller, problem, tiny, text):
    from pathlib import Path

    from evokd.data import read_data
    from evokd.models.tapping import plan_taps
    from evokd.models.teachers import load_teacher

    cache = Path(tiny["out"]) / "cache"
    taught = load_teacher(tiny["teacher"], read_data("digits"), cache, tiny["teacher_epochs"])
    plan = plan_taps(taught.network, torch.zeros(2, 1, 8, 8))
    bank = replace(distiller.bank, taps={})
    live = Distiller(bank, distiller.student, distiller.plan, distiller.protocol, "ce", teacher=(taught.network, plan))
    banked = Distiller(distiller.bank, distiller.student, distiller.plan, distiller.protocol, "ce")
    a, b = live(job(text)).metrics, banked(job(text)).metrics
    assert np.allclose(a["curve"], b["curve"], rtol=1e-4, atol=1e-4)
    assert a["ce"] == pytest.approx(b["ce"], abs=1e-3)


def test_no_hook_stays_on_a_live_teacher(distiller):
    network = ResNet(8, 8, 10, 1).eval()
    live = Distiller(
        replace(distiller.bank, taps={}),
        distiller.student,
        distiller.plan,
        distiller.protocol,
        "ce",
        teacher=(network, distiller.plan),
    )
    live(job(KNOWN["kd"]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("fitness", ["accuracy", "ce", "gap"])
def test_greater_fitness_is_better_whatever_is_measured(distiller, fitness):
    figures = Distiller(distiller.bank, distiller.student, distiller.plan, distiller.protocol, fitness)(job(None))
    m = figures.metrics
    expected = {"accuracy": m["accuracy"], "ce": -m["ce"], "gap": -(m["ce"] + abs(m["sharpness_gap"]) - m["cka"])}
    assert figures.fitness == pytest.approx(expected[fitness])


def test_test_and_validation_are_told_apart(distiller):
    network_figures = {split: distiller(job(None, split=split)).metrics for split in ("validation", "test")}
    labels = {split: distiller.bank.labels[split] for split in network_figures}
    for split, figures in network_figures.items():
        right = figures["accuracy"] / 100 * len(labels[split])
        assert right == pytest.approx(round(right), abs=1e-3)
    assert network_figures["validation"]["ce"] != network_figures["test"]["ce"]
    assert network_figures["validation"]["curve"] == network_figures["test"]["curve"]


def test_a_smaller_distiller_takes_half_the_batch_and_leaves_the_other_alone(distiller):
    before = distiller.protocol.batch
    half = distiller.smaller()
    sizes = [len(index) for index, _ in half.batches(1)]
    assert set(sizes) == {before // 2}
    assert len(sizes) == distiller.protocol.steps
    assert distiller.protocol.batch == before
    assert half.smaller().smaller().smaller().smaller().protocol.batch == 2
