"""One thread, no telemetry, no network, and one tiny real problem that all tests share."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
os.environ.pop("MLFLOW_TRACKING_URI", None)

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = {
    "teacher": "resnet8w8",
    "student": "resnet8w4",
    "data": "digits",
    "space": "compact",
    "teacher_epochs": 3,
    "generations": 2,
    "population": 3,
    "confirm": 2,
    "confirm_repeats": 1,
    "finals": 2,
    "workers": 1,
    "device": "cpu",
    "tracking_uri": "none",
    "funnel": {"rungs": ()},
    "protocol": {"steps": 8, "batch": 16, "views": 2, "gamma": 1.0, "repeats": 1, "rare_classes": (), "transfer": 300},
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data: EVOKD_DATA, or shared/data beside the project."""
    folder = Path(os.environ.get("EVOKD_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set EVOKD_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict:
    """Settings of a search of seconds on digits; one `out` for the session, so that the teacher is trained once."""
    return TINY | {"out": str(tmp_path_factory.mktemp("runs"))}


@pytest.fixture(scope="session")
def problem(tiny):
    """The tiny problem, opened: `problem.executor.evaluate` is its distiller."""
    from evokd.config import make_config
    from evokd.problem import open_problem

    return open_problem(make_config(tiny), lambda line: None)


@pytest.fixture(scope="session")
def distiller(problem):
    return problem.executor.evaluate


@pytest.fixture(scope="session")
def digits():
    from evokd.data import read_data

    return read_data("digits")
