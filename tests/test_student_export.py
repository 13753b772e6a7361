import json
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.evaluate.students import StudentJob
from evokd.genome.codec import to_names
from evokd.models.tapping import logits_of
from evokd.student_export import (
    FORMAT,
    Converter,
    TrainedStudent,
    attempt,
    export_architecture,
    export_student,
    own_judge,
    read_student,
    train_final,
)
from evokd.student_problem import open_student_problem
from evokd.students import read_student_space

SPACES = {
    "resnet": ('language = "resnet"\nblocks = [1]\nwidths = [4]\n', "mobile4-1-1-1"),
    "nas_bench_201": (
        'language = "nas_bench_201"\nchannels = 4\ncells = 1\n',
        "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|",
    ),
    "conv20": ('language = "conv20"\nlayers = 3\nfilters = [4, 8]\nside = 8\n', "4k3s1 8k5s2 8k3s1"),
}
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def exercised(network: nn.Module) -> nn.Module:
    """With running statistics of batch norms that are not those of the start."""
    with torch.no_grad():
        for _ in range(3):
            network.train()(3 * IMAGES + 1)
    return network


@pytest.fixture(scope="module", params=SPACES)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    file, (table, text) = folder / "own.toml", SPACES[request.param]
    file.write_text('task = "student"\n' + table)
    space = read_student_space(str(file))
    network = exercised(space.build(space.parse(text), 7))
    student = TrainedStudent(network, str(file), space.read(text), 7, (3, 8, 8), (0.5, 0.4, 0.25), (0.25, 0.5, 1.0))
    paths = export_student(folder / "best", student, IMAGES, {"test": [{"row": "evolved", "mean": 90.0}]})
    file.unlink()  # whoever opens the export needs no space file
    return student, paths


def test_the_files_are_those_that_are_told(exported):
    _, paths = exported
    assert {"student.json", "student.safetensors", "student.pt2", "diagram.txt"} <= {path.name for path in paths}
    assert sorted(paths) == sorted(paths[0].parent.iterdir())


def test_the_json_holds_architecture_cost_input_and_figures(exported):
    student, (path, *_) = exported
    card = json.loads(path.read_text())
    assert card["format"] == FORMAT
    assert card["genome"] == student.genome
    assert card["cost"]["parameters"] == sum(p.numel() for p in student.network.parameters())
    assert (card["classes"], card["shape"]) == (7, [3, 8, 8])
    assert (card["mean"], card["std"]) == ([0.5, 0.4, 0.25], [0.25, 0.5, 1.0])
    assert card["test"] == [{"row": "evolved", "mean": 90.0}]
    assert card["torch_export"] == {"file": "student.pt2", "difference": pytest.approx(0, abs=1e-4)}


def test_a_student_read_again_is_the_same(exported):
    student, (path, *_) = exported
    network, card = read_student(path)
    assert not network.training
    assert card["text"] in (text for _, text in SPACES.values())
    assert torch.equal(logits_of(network, IMAGES), logits_of(student.network.eval(), IMAGES))
    state = network.state_dict()
    assert list(state) == list(student.network.state_dict())
    assert all(torch.equal(state[name], value) for name, value in student.network.state_dict().items())
    assert any(name.endswith("running_mean") for name in state)
    assert all(p.requires_grad for p in network.parameters())


def test_reading_draws_nothing(exported):
    before = torch.get_rng_state()
    read_student(exported[1][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_is_left_as_it_is(exported):
    student, _ = exported
    assert all(p.requires_grad for p in student.network.parameters())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_program_takes_any_number_of_images(exported, count):
    student, (path, *_) = exported
    program = torch.export.load(path.with_suffix(".pt2")).module()
    assert torch.allclose(program(IMAGES[:count]), logits_of(student.network.eval(), IMAGES[:count]), atol=1e-4)


def test_the_program_tells_no_paths_of_this_machine(exported):
    assert b"site-packages" not in exported[1][0].with_suffix(".pt2").read_bytes()


def test_a_student_that_was_never_trained_is_its_json_and_diagram(tmp_path):
    space = read_student_space("nas_bench_201")
    genome = space.read(SPACES["nas_bench_201"][1])
    paths = export_architecture(tmp_path / "best", "nas_bench_201", genome, 100, (3, 32, 32), {"test": []})
    assert sorted(paths) == sorted((tmp_path / "best").iterdir())
    assert json.loads(paths[0].read_text())["cost"]["macs"] == space.cost(genome, 100, 3, 32).macs
    with pytest.raises(EvokdError, match="one without weights"):
        read_student(paths[0])


def test_the_weights_carry_their_card(exported):
    with safe_open(exported[1][0].with_suffix(".safetensors"), "pt") as file:
        assert file.metadata()["format"] == FORMAT
        assert file.metadata()["std"] == "0.25,0.5,1.0"


@pytest.fixture
def copied(exported, tmp_path):
    for path in exported[1]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / "student.json"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": "evokd-loss-1"}, "evokd-loss-1"),
        ({"classes": "ten"}, "'ten'"),
        ({"classes": -3}, "can be built"),
        ({"classes": 8}, "size mismatch"),
        ({"classes": 10**40}, "can be built"),
        ({"shape": []}, "can be built"),
        ({"shape": ["a"]}, "can be built"),
        ({"genome": {}}, "one of"),
        ({"definition": {}}, "definition, task"),
        ({"definition": {"task": "student", "language": "own"}}, "own"),
        ({"definition": {"task": "student", "language": ["resnet"]}}, "definition, language"),
        ({"definition": {"task": "student", "language": "resnet", "colour": 1}}, "colour"),
        ({"definition": {"task": "student", "language": "resnet", "widths": [0]}}, "resnet, widths"),
        ({"weights": "0123456789abcdef"}, "0123456789abcdef"),
    ],
)
def test_a_foreign_card_is_refused_in_one_line(copied, changes, word):
    copied.write_text(json.dumps(json.loads(copied.read_text()) | changes))
    with pytest.raises(EvokdError, match=word) as caught:
        read_student(copied)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"format": "evokd-student-1"}', "\0"])
def test_a_card_that_is_none_is_refused_in_one_line(copied, text):
    copied.write_text(text)
    with pytest.raises(EvokdError, match=f"of format {FORMAT}") as caught:
        read_student(copied)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights_are_refused(copied, keep):
    weights = copied.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(EvokdError, match="whole safetensors"):
        read_student(copied)


def test_altered_weights_are_refused(copied):
    weights = copied.with_suffix(".safetensors")
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    with pytest.raises(EvokdError, match="the weights"):
        read_student(copied)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_file_is_named(copied, suffix):
    copied.with_suffix(suffix).unlink()
    with pytest.raises(EvokdError, match=f"student{suffix}.*No such file"):
        read_student(copied)


def test_without_onnx_its_absence_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "student.onnx").write_text("of an earlier export")
    told = attempt(tmp_path / "student.onnx", Converter(nn.Flatten(), IMAGES).onnx)
    assert told == {"file": None, "reason": "the package onnx is not installed"}
    assert not [*tmp_path.iterdir()]


def test_onnx_where_it_is_installed(exported):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    card = json.loads(exported[1][0].read_text())["onnx"]
    assert card["file"] == "student.onnx"
    assert card["difference"] <= 1e-4
    assert card["latency"]["milliseconds"] > 0
    assert b"site-packages" not in exported[1][0].with_suffix(".onnx").read_bytes()


class Stubborn(nn.Module):
    """Cannot be traced: it decides by numbers."""

    def forward(self, images):
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


def test_what_cannot_be_converted_says_why_and_nothing_else(tmp_path, capfd):
    told = attempt(tmp_path / "student.pt2", Converter(Stubborn(), IMAGES).torch_export)
    assert told["file"] is None
    assert "data-dependent" in told["reason"]
    assert not [*tmp_path.iterdir()]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_program_that_differs_is_refused(value):
    converter = Converter(nn.Flatten(), IMAGES)
    assert converter.difference(lambda images: images.flatten(1)) == 0
    with pytest.raises(ValueError, match="differ"):
        converter.difference(lambda images: images.flatten(1) + value)


@pytest.mark.parametrize(("tier", "workers"), [("distill", 1), ("train", 2)])
def test_the_final_student_is_the_one_whose_figures_were_told(tiny, tier, workers):
    values = {k: v for k, v in tiny.items() if k not in ("student", "space")} | {"task": "student", "workers": workers}
    problem = open_student_problem(make_config(values), lambda line: None)
    judge = own_judge(problem.executor)
    problem.executor.close()
    job = StudentJob(tuple(to_names(problem.space.parse("basic4-1-1-1"))), tier, (11,), "test")
    network, outcome = train_final(judge, job), judge(job)
    images, labels = judge.bank.normalised(judge.bank.images["test"]), judge.bank.labels["test"]
    with torch.no_grad():
        figures = F.cross_entropy(logits_of(network, images), labels).item()
    assert figures == pytest.approx(outcome.metrics["ce"], rel=1e-5)
