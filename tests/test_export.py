import importlib.util
import json
import sys

import pytest
import torch

from evokd.commands import main
from evokd.errors import EvokdError
from evokd.export import export_loss, read_loss
from evokd.genome.codec import to_names
from evokd.losses import KNOWN, compile_loss, parse_loss, write_loss

TEXT = "3*kl(logits, tau=4) + 0.3*focal*l2(norm_C(mm(features[-1])))"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, problem):
    folder = tmp_path_factory.mktemp("run") / "best"
    paths = export_loss(folder, parse_loss(TEXT), 0.25, problem.examples[:2], {"run": "r", "test": []})
    return folder, paths


def test_four_files_are_written(exported):
    folder, paths = exported
    assert {p.name for p in paths} == {p.name for p in folder.iterdir()} == {"loss.json", "loss.py", "loss.tex", "loss.sympy.txt"}


def test_gamma_stands_in_every_file(exported):
    folder, _ = exported
    assert json.loads((folder / "loss.json").read_text())["gamma"] == 0.25
    for name in ("loss.py", "loss.tex", "loss.sympy.txt"):
        assert "0.25" in (folder / name).read_text(), name


def test_the_json_is_read_back_as_the_same_tree(exported):
    folder, _ = exported
    assert to_names(read_loss(str(folder / "loss.json"))) == to_names(parse_loss(TEXT))


def test_the_python_file_runs_alone_and_tells_the_same_value(exported, problem):
    folder, _ = exported
    source = (folder / "loss.py").read_text()
    assert "evokd" not in "".join(line for line in source.splitlines() if line.startswith(("import", "from")))
    spec = importlib.util.spec_from_file_location("exported_loss", folder / "loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    student, teacher, labels = problem.examples
    taps = [{p: t.at(p) for p in ("logits", "features[-1]")} for t in (student, teacher)]
    ours = compile_loss(parse_loss(TEXT), student, teacher)(student, teacher, labels)
    assert torch.allclose(module.EvolvedLoss()(*taps, labels), ours, rtol=1e-5)
    assert "exported_loss" not in sys.modules


MODULE = "2*kl(logits, tau=4) + 0.8*crd"
NEW = (
    "ramp(0, 3)*power_sum(tau=5)*kl(teacher.temper(logits, tau=5), tau=anneal(4, 1)) + l2(mask(features[-1])) + l1(teacher_head)"
)


@pytest.mark.parametrize("text", [NEW, KNOWN["fsp"], KNOWN["dkd"], MODULE])
def test_what_a_loss_may_hold_survives_its_json(text, tmp_path):
    export_loss(tmp_path, parse_loss(text), 0.1)
    again = read_loss(str(tmp_path / "loss.json"))
    assert list(again) == list(parse_loss(text))
    assert json.loads((tmp_path / "loss.json").read_text())["text"] == write_loss(again)


def test_all_files_of_a_new_loss_name_what_it_needs(tmp_path):
    export_loss(tmp_path, parse_loss(NEW), 0.1)
    assert "generator: torch.Generator | None" in (tmp_path / "loss.py").read_text()
    for name in ("loss.tex", "loss.sympy.txt"):
        text = (tmp_path / name).read_text()
        for words in ("random mask", "teacher's weight", "share of training done"):
            assert words in text, name


def test_a_loss_with_trained_parts_is_its_json_alone(tmp_path):
    (path,) = export_loss(tmp_path, parse_loss(MODULE), 0.1)
    assert [path] == [*tmp_path.iterdir()] == [tmp_path / "loss.json"]


@pytest.mark.parametrize("form", ["sympy", "latex", "torch"])
def test_a_loss_with_trained_parts_is_refused_in_other_forms(form, tmp_path, capsys):
    export_loss(tmp_path / "best", parse_loss(MODULE), 0.1)
    for given in (["--loss", MODULE], ["--loss", str(tmp_path / "best" / "loss.json")], [str(tmp_path)]):
        assert main(["export", *given, "--format", form]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert (
            said.err
            == "evokd: 0.8*crd: expected a loss that is a formula, got one with trained parts or memory; it is code: losses/modules.py\n"
        )
    assert main(["export", "--loss", MODULE, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == MODULE


@pytest.mark.parametrize("spec", ["kd", KNOWN["kd"], TEXT])
def test_names_and_texts_are_losses_too(spec):
    assert write_loss(read_loss(spec)) == write_loss(parse_loss(KNOWN.get(spec, spec)))


HOSTILE = {
    "no json": "{",
    "no object": "[]",
    "no tree": '{"format": "evokd-loss-1"}',
    "other format": '{"format": "evokd-loss-2", "tree": []}',
    "tree as text": '{"format": "evokd-loss-1", "tree": "__import__(\'os\')"}',
    "code as node": '{"format": "evokd-loss-1", "tree": ["loss1", "__import__(\'os\').system(\'true\')"]}',
    "object as node": '{"format": "evokd-loss-1", "tree": [["loss1"], {"a": 1}]}',
    "torn tree": '{"format": "evokd-loss-1", "tree": ["loss1", "term"]}',
    "empty tree": '{"format": "evokd-loss-1", "tree": []}',
    "NaN as weight": '{"format": "evokd-loss-1", "tree": ["loss1", "plain", "nan", "pearson:rows", "logits"]}',
    "wrong kinds": '{"format": "evokd-loss-1", "tree": ["loss1", "logits"]}',
    "schedule of nothing": '{"format": "evokd-loss-1", "tree": ["loss1", "plain", "ramp(0, nan)", "crd"]}',
    "NaN literal": '{"format": "evokd-loss-1", "tree": ["loss1", "plain", NaN, "crd"]}',
    "dunder node": '{"format": "evokd-loss-1", "tree": ["loss1", "plain", "1", "__class__"]}',
    "nested calls": json.dumps(
        {"format": "evokd-loss-1", "tree": ["loss1", "term", "1", "no", "l2:classes", *["relu:classes"] * 390, "logits"]}
    ),
    "10 MB node": json.dumps({"format": "evokd-loss-1", "tree": ["loss1", "plain", "9" * 10_000_000, "crd"]}),
    "bomb": json.dumps({"format": "evokd-loss-1", "tree": ["loss1"] * 100_000}),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_foreign_and_hostile_files_are_refused(case, tmp_path):
    path = tmp_path / "loss.json"
    path.write_text(HOSTILE[case])
    with pytest.raises(EvokdError) as caught:
        read_loss(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("spec", ["nowhere/loss.json", "kl(nothing)", "__import__('os')", "", "kd" * 20_000, "a" * 300 + ".json"])
def test_what_is_no_loss_is_refused(spec):
    with pytest.raises(EvokdError):
        read_loss(spec)


@pytest.mark.parametrize(
    ("form", "told"), [("sympy", "L ="), ("latex", "\\"), ("torch", "class EvolvedLoss"), ("json", '"tree"')]
)
def test_the_command_writes_every_form(form, told, capsys):
    assert main(["export", "--loss", TEXT, "--format", form]) == 0
    assert told in capsys.readouterr().out


def test_the_command_copies_a_runs_own_files(exported, capsys):
    folder, _ = exported
    assert main(["export", str(folder.parent), "--format", "torch"]) == 0
    assert capsys.readouterr().out == (folder / "loss.py").read_text()


@pytest.mark.parametrize(
    "options", [[], ["nowhere"], ["run", "--loss", "kd"], ["--loss", "kl(x)"], ["--loss", "/"], ["--loss", "."]]
)
def test_the_command_refuses_in_one_line(options, capsys):
    assert main(["export", *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("evokd: ")
    assert said.err.count("\n") == 1
