"""`evokd compare`: the options of a search, light help, and mistakes said in one line before anything is made."""

import re
import subprocess
import sys

import pytest

from evokd.commands.compare import main
from evokd.errors import EvokdError
from evokd.evolve import parser


def help_of(*words: str) -> str:
    code = f"""
import sys
from evokd.commands.compare import main
try: main({[*words, "--help"]})
except SystemExit as end: print("code", end.code)
print("heavy", [name for name in ("torch", "mlflow", "numpy", "pydantic", "rich", "scipy", "matplotlib") if name in sys.modules])
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_is_light_and_has_all_options_of_a_search():
    told = help_of("controllers", "student")
    assert told.endswith("code 0\nheavy []\n")
    known = parser()._subparsers._group_actions[0].choices["student"]
    options = {option for action in known._actions for option in action.option_strings if option.startswith("--")}
    assert {"--space", "--max-params", "--resume"} <= options
    assert options | {"--controllers", "--seeds", "--no-finals"} <= set(re.findall(r"--[a-z-]+", told))


@pytest.fixture(scope="module")
def compared(shared_data, tmp_path_factory) -> tuple[str, str]:
    """The folder of a comparison on a table, and what was said."""
    out = tmp_path_factory.mktemp("out")
    options = ["--evaluator", "tabular", "--space", "resnet_s0", "--tables", str(shared_data), "--tracking-uri", "none"]
    code = "import sys; from evokd.commands.compare import main; sys.exit(main(sys.argv[1:]))"
    words = [
        "controllers",
        "student",
        *options,
        "--out",
        str(out),
        "--controllers",
        "random, ageing",
        "--seeds",
        "3",
        "--workers",
        "1",
    ]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return str(next(p.parent for p in out.glob("*/comparison.json"))), done.stdout


def test_the_terminal_tells_every_controller_and_pair(compared):
    folder, said = compared
    for name in ("random", "ageing"):
        assert re.search(rf"{name} +3 +\d\d\.\d\d ± \d\.\d\d +\d\d\.\d\d \[\d\d\.\d\d, \d\d\.\d\d\]", said)
    assert re.search(r"(random – ageing|ageing – random) +[01]\.\d\d \[[01]\.\d\d, [01]\.\d\d\] +[+-]\d\.\d\d \[", said)
    assert "compare.html" in said
    assert folder in said


BAD = {
    "student --controllers evolution,annealing": "expected a controller, got 'annealing'",
    "student --controllers evolution,randm": "did you mean 'random'",
    "distiller --controllers evolution,annealing": "expected a controller, got 'annealing'",
    "student --controllers evolution": "--controllers: expected two or more, none twice, got 'evolution'",
    "student --controllers random,random": "none twice",
    "student --seeds 1": "--seeds: expected at least 2, got 1",
    "student --controller evolution": "--controller: expected --controllers",
    "student --generations 0": "--generations",
    "student -s promot=1": "did you mean 'promote'",
    "student --resume {run} --space digits": "--resume: expected space = 'resnet_s0'",
    "student --resume {run} --seed 4": "expected seed = 0",
    "student --resume {run} -s protocol.steps=7": "protocol.steps",
    "student --resume {run} --seeds 1": "--seeds",
    "student --resume {run} --controllers random,annealing": "'annealing'",
    "distiller --resume {run}": "expected a search for a distiller",
    "student --resume {run}/random-0": "--resume: expected the folder of a comparison",
    "student --resume {run}/none": "--resume: expected the folder of a comparison",
}


@pytest.mark.parametrize("words", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing(words, compared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvokdError, match=BAD[words]) as error:
        main(["controllers", *words.format(run=compared[0]).split(), "--quiet"])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"controllers": ["random", "ageing"], "seeds": "many", "finals": true}'])
def test_a_broken_plan_is_refused(text, tmp_path):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(EvokdError, match="--resume: expected the folder of a comparison"):
        main(["controllers", "student", "--resume", str(tmp_path), "--quiet"])
