"""The rules of the house, read off the source: who may import whom, and what nobody may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "evokd"
FILES = sorted(PACKAGE.rglob("*.py"))
GROUND = {"errors", "streams", "config", "genome"}
WINGS = {
    "meaning": {"space", "data", "models", "losses", "students", "scores", "evaluate"},
    "search": {"search"},
    "memory": {"journal", "checkpoint", "store", "tracker"},
}
DOORS = {
    "deap": ("genome/", "search/", "students/"),
    "sympy": ("losses/formula.py",),
    "mlflow": ("store.py",),
    "moocore": ("search/",),
    "pyarrow": ("parquet.py",),
    "networkx": ("students/", "report/"),
    "optuna": ("search/tpe.py",),
    "timm": ("models/",),
    "ray": ("ray_actors.py",),
    "pydantic": ("config.py",),
    "matplotlib": ("report/",),
    "jinja2": ("report/",),
    "rich": ("report/",),
    "torch": (
        "data.py",
        "models/",
        "losses/",
        "students/",
        "scores/",
        "evaluate/",
        "search/reinforce.py",
        "problem.py",
        "memory.py",
        "student_problem.py",
        "student_export.py",
        "training/",
    ),
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").split("/")[0]


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports anywhere, but for those under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    skipped = {id(inner) for hint in hints for inner in ast.walk(hint)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def rooms(path: Path) -> set[str]:
    """Rooms of evokd that a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("evokd.")}


def calls(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_readers_above_see_what_is_there():
    assert "deap.gp" in imports(PACKAGE / "genome" / "codec.py")
    assert "losses" in rooms(PACKAGE / "evaluate" / "distill.py")
    assert "torch.set_num_threads" in calls(PACKAGE / "problem.py")
    assert len(FILES) > 30


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in GROUND], ids=name_of)
def test_the_ground_stands_on_the_standard_library(path):
    allowed = {"evokd", "pydantic", "deap"} | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in imports(path)} <= allowed
    assert rooms(path) <= GROUND


@pytest.mark.parametrize("wing", WINGS)
def test_wings_meet_only_in_the_roof(wing):
    for path in FILES:
        if room_of(path) in WINGS[wing]:
            assert rooms(path) <= WINGS[wing] | GROUND, name_of(path)


@pytest.mark.parametrize("package", DOORS)
def test_third_parties_come_in_by_their_door(package):
    users = {name_of(path) for path in FILES if package in {name.split(".")[0] for name in imports(path)}}
    assert not [user for user in users if not user.startswith(DOORS[package])]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_runs_text_as_code(path):
    assert not {"pickle", "dill", "cloudpickle", "marshal", "shelve"} & {name.split(".")[0] for name in imports(path)}
    assert not {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load"} & set(calls(path))


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "streams.py"], ids=name_of)
def test_no_draw_comes_from_a_global_generator(path):
    private = ("random.Random", "np.random.Generator", "np.random.PCG64")
    bare = ("random.", "np.random.", "numpy.random.", "torch.manual_seed", "torch.seed", "torch.cuda.manual_seed")
    assert not [call for call in calls(path) if call.startswith(bare) and not call.startswith(private)]
    assert not [name for name in imports(path) if name.startswith(("random.", "numpy.random.")) and name != "random.Random"]


@pytest.mark.parametrize("entry", ["evolve.py", "commands/__init__.py", "__init__.py", "errors.py"])
def test_the_entries_import_nothing_heavy_before_they_must(entry):
    tree = ast.parse((PACKAGE / entry).read_text(encoding="utf-8"))
    names = [n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in tree.body if "Import" in type(n).__name__]
    assert all(name.split(".")[0] in sys.stdlib_module_names or name == "evokd.errors" for name in names), names


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: git cannot tell which files are the project's")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "pyproject.toml" in listed
    return listed


def test_the_top_level_stays_bare(tracked):
    allowed = {"pyproject.toml", "evokd", "spaces", "runs", "tests", "README.md", "LICENSE"}
    assert {top for path in tracked if not (top := path.split("/")[0]).startswith(".")} <= allowed


def test_spaces_and_runs_hold_no_python(tracked):
    assert not [path for path in tracked if path.startswith(("spaces/", "runs/")) and path.endswith(".py")]


def test_every_test_folder_mirrors_a_room(tracked):
    mirrored = {"gpu", "bench"} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert {path.split("/")[1] for path in tracked if path.startswith("tests/") and path.count("/") > 1} <= mirrored
