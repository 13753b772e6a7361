import pytest
import torch

from evokd.evaluate.gates import probe
from evokd.losses import KNOWN, Taps, parse_loss
from evokd.losses.language import to_terms


@pytest.fixture(scope="module")
def examples(problem):
    return problem.examples


@pytest.mark.parametrize("name", KNOWN)
def test_published_losses_pass_where_the_pair_shows_what_they_read(examples, name):
    student, teacher, labels = examples
    tree = parse_loss(KNOWN[name])
    missing = {p for term in to_terms(tree) for p in term.distance.positions()} - set(teacher.positions())
    reason = probe(tree, student, teacher, labels)
    assert reason.startswith("probe: EvokdError: position") if missing else reason == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0*kl(logits, tau=4)", "gradient is zero"),
        ("1e38*l2(pow4(pow4(logits)))", "value inf"),
        ("l2(features[-9])", "position features[-9]"),
        ("l2(logits) + 1e38*l2(pow4(pow4(logits)))", "value inf"),
    ],
)
def test_losses_that_cannot_train_are_refused_with_their_reason(examples, text, reason):
    told = probe(parse_loss(text), *examples)
    assert told.startswith(("probe: ", "static: "))
    assert reason in told
    assert "\n" not in told


def test_a_constant_in_the_student_is_no_path(examples):
    student, teacher, labels = examples
    assert "zero" in probe(parse_loss("l2(relu(logits))"), student.map(lambda t: -t.abs() - 1), teacher, labels)


def test_ill_shaped_pairs_are_refused(examples):
    student, teacher, labels = examples
    fewer = Taps(student.logits[:, :7], student.embedding, student.features)
    assert "equally many classes" in probe(parse_loss(KNOWN["kd"]), fewer, teacher, labels)


def test_the_probe_leaves_taps_and_global_draws_alone(examples):
    student, teacher, labels = examples
    before, state = student.logits.clone(), torch.get_rng_state()
    probe(parse_loss(KNOWN["fitnet"]), student, teacher, labels)
    assert torch.equal(student.logits, before)
    assert not student.logits.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_may_all_be_hidden(examples):
    student, teacher, labels = examples
    assert probe(parse_loss(KNOWN["wsld"]), student, teacher, torch.full_like(labels, -1)) == ""
