"""The command line: light help, and every mistake of a user in one line with exit code 2 and nothing left behind."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evokd.evolve import main
from evokd.journal import read_events, without_clock

HEAVY = ("torch", "mlflow", "sympy", "numpy", "pydantic", "deap", "rich", "scipy", "matplotlib")


@pytest.mark.parametrize("module", ["evokd.evolve", "evokd.commands"])
def test_help_loads_nothing_heavy(module):
    code = f"""
import sys, {module} as m
try: m.main(["distiller", "--help"] if m.__name__ == "evokd.evolve" else ["--help"])
except SystemExit as end: print("code", end.code)
print("heavy", [name for name in {HEAVY} if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.endswith("code 0\nheavy []\n")


def test_help_names_every_option_of_the_design():
    told = subprocess.run(
        [sys.executable, "-m", "evokd.evolve", "distiller", "--help"], capture_output=True, text=True, check=True
    )
    options = [
        "space",
        "teacher",
        "student",
        "data",
        "controller",
        "fitness",
        "generations",
        "population",
        "budget-evals",
        "seed",
    ]
    more = ["budget-seconds", "workers", "device", "out", "resume", "seed-with", "tracking-uri", "transfer", "labels", "download"]
    for option in options + more:
        assert f"--{option}" in told.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Things that a user may point at by mistake."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "broken.toml").write_text("task = [")
    compact = (Path(__file__).parents[1] / "spaces" / "distiller" / "compact.toml").read_text()
    (folder / "operator.toml").write_text(compact.replace('"softmax_C"', '"softmaxC"'))
    (folder / "file").write_text("not a folder")
    (folder / "torn.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    (folder / "text.npz").write_text("not an archive")
    (folder / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (folder / "empty.npz").write_bytes(b"")
    pixels = np.zeros((40, 8, 8), np.uint8)
    np.savez(folder / "three.npz", train_x=pixels, train_y=np.arange(40) % 3, test_x=pixels, test_y=np.arange(40) % 3)
    (folder / "net.py").write_text(
        "from evokd.models.resnet import ResNet\n"
        "def number(classes):\n    return classes\n"
        "def colour(classes):\n    return ResNet(8, 4, classes, channels=3)\n"
        "def seven(classes):\n    return ResNet(8, 4, 7, channels=1)\n"
    )
    (folder / "loss.json").write_text('{"format": "evokd-loss-9", "tree": []}')
    from safetensors.torch import save_file

    from evokd.models.resnet import ResNet

    save_file(ResNet(8, 4, 7, 1).state_dict(), folder / "seven.safetensors")
    return folder


BAD = {
    "--space nowhere": "--space: .*'nowhere'.*did you mean|choose from",
    "--space compct": "did you mean 'compact'",
    "--space {files}/broken.toml": "expected TOML",
    "--space {files}/operator.toml": r"transforms\[1\].*'softmaxC'; did you mean 'softmax_C'",
    "--teacher resnet9": "--teacher: expected a network, got 'resnet9'",
    "--teacher {files}/none.safetensors": "expected an existing file",
    "--teacher {files}/torn.safetensors": "a whole safetensors file",
    "--teacher {files}/seven.safetensors": "10 classes, as digits has",
    "--teacher {files}/net.py:number": "return an nn.Module",
    "--teacher {files}/net.py:other": "a callable 'other'",
    "--teacher {files}/none.py:net": "an existing Python file",
    "--student wideresnet": "--student",
    "--student torchvision:resnet19": "a torchvision model",
    "--student torchvision:resnet18": "--student: expected .*1.*8",
    "--student {files}/net.py:colour": "--student: expected .*1.*8",
    "--student {files}/net.py:seven": "10 classes, as digits has",
    "--data digitz": "did you mean 'digits'",
    "--data {files}/none.npz": "--data",
    "--data {files}/text.npz": "an npz with",
    "--data {files}/torn.npz": "an npz with",
    "--data {files}/empty.npz": "an npz with",
    "--data {files}/three.npz --teacher {files}/seven.safetensors": "3 classes, as three has",
    "--data {files}": "folders train/ and test/",
    "--budget-evals -3": "--budget-evals: expected greater than or equal to 1, got -3",
    "--budget-seconds -1": "--budget-seconds",
    "--generations 0": "--generations",
    "--population 1": "--population",
    "--seed -1": "--seed",
    "--transfer -5": "-s protocol.transfer",
    "--transfer 5000": "--transfer: expected 1 to",
    "--labels 5000": "--labels",
    "--controller annealing": "--controller",
    "--fitness beauty": "--fitness",
    "--device tpu": "--device: expected auto, cpu or cuda",
    "--seed-with kl(nothing)": "--seed-with",
    "--seed-with {files}/loss.json": "--seed-with",
    "--teacher-taps layer9": "--teacher-taps.*did you mean",
    "--student-taps fc": "--student-taps",
    "--resume {files}": r"config\.toml",
    "-s protocol.stepz=3": "did you mean 'steps'",
    "-s protocol.steps": "key=value",
    "-s protocol.steps=0": "-s protocol.steps",
    "-s protocol.rare_classes=[10]": "classes 0 to 9",
}


@pytest.mark.parametrize("options", BAD)
def test_a_mistake_is_said_in_one_line_and_leaves_nothing(options, files, tmp_path, tiny, capsys, monkeypatch):
    monkeypatch.setattr("evokd.models.teachers.train_teacher", lambda *args: None)
    settings = ["--teacher", "resnet8w8", "--student", "resnet8w4", "--out", str(tmp_path / "out"), "--tracking-uri", "none"]
    code = main(["distiller", *settings, "--quiet", *options.format(files=files).split(" ")])
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.startswith("evokd: ")
    assert said.err.count("\n") == 1
    assert re.search(BAD[options], said.err), said.err
    left = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.parent.name != "teachers"]
    assert left == []
    assert not list((tmp_path / "out").glob("*distiller*"))


@pytest.mark.parametrize("out", ["{files}/file", "{files}/file/below", "/proc/evokd"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(out, files, capsys, monkeypatch):
    monkeypatch.setattr("evokd.models.teachers.train_teacher", lambda *args: pytest.fail("trained"))
    assert main(["distiller", "--quiet", "--out", out.format(files=files)]) == 2
    assert capsys.readouterr().err.startswith("evokd: --out: expected a folder that can be written")


def test_the_exit_code_reaches_the_shell():
    told = subprocess.run([sys.executable, "-m", "evokd.evolve", "distiller", "--space", "no"], capture_output=True, text=True)
    assert told.returncode == 2
    assert "Traceback" not in told.stderr
    assert told.stderr.count("\n") == 1


def test_a_search_from_the_command_line(tiny, capsys):
    out = Path(tiny["out"])
    before = set(out.glob("*/events.jsonl"))
    protocol = [f"-sprotocol.{k}={list(v) if k == 'rare_classes' else v}" for k, v in tiny["protocol"].items()]
    names = ("teacher", "student", "out", "workers", "generations", "population")
    options = [text for name in names for text in (f"--{name}", str(tiny[name]))]
    rest = [
        "-sfunnel.rungs=[]",
        "-sfinals=2",
        "-sconfirm=2",
        "-sconfirm_repeats=1",
        "-sbaselines=false",
        "-steacher_epochs=3",
        "--tracking-uri",
        "none",
    ]
    assert main(["distiller", *options, *rest, *protocol, "--seed", "1", "--seed-with", "kd"]) == 0
    said = capsys.readouterr()
    (run,) = {path.parent for path in set(out.glob("*/events.jsonl")) - before}
    events = without_clock(read_events(run))
    assert events[-1]["event"] == "end"
    assert next(e["text"] for e in events if e["event"] == "individual") == "0.9*kl(logits, tau=4)"
    assert said.err == ""
    for told in (f"best  {events[-1]['best']}", "features[-1]", "plain, equal steps", f"{run / 'best'}", f"evokd export {run}"):
        assert told in said.out


@pytest.fixture(scope="module")
def finished(tiny):
    from evokd import evolve_distiller

    return evolve_distiller(**tiny, evaluate=lambda loss: float(len(loss.terms)), seed=77).run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--generations -5", "generations"),
        ("--generations 0", "generations"),
        ("--budget-evals -1", "budget"),
        ("--workers -1", "workers"),
        ("--device tpu", "device"),
        ("--seed 5", "--resume: expected seed = 77"),
        ("--labels 5", "labels"),
        ("--transfer 50", "transfer"),
        ("-s population=9", "population"),
        ("-s protocol.steps=9", "steps"),
        ("-s generation=9", "generation"),
    ],
)
def test_what_resume_cannot_do_is_refused_and_not_passed_over(finished, capsys, options, told):
    before = (finished / "events.jsonl").read_bytes()
    assert main(["distiller", "--quiet", "--resume", str(finished), *options.split()]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert (finished / "events.jsonl").read_bytes() == before


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setattr("evokd.evolve.evolve", interrupted)
    assert main(["distiller"]) == 130
    assert "--resume" in capsys.readouterr().err
