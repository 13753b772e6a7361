"""Random search and tuned KD: computed once for a protocol, kept with it, and never lent to another pair."""

import functools

import pytest

from evokd import evolve_distiller
from evokd.errors import EvokdError
from evokd.journal import read_events
from evokd.models.resnet import ResNet

SMALL = {"generations": 1, "population": 2, "finals": 2, "confirm": 1}


@pytest.fixture
def cache(tiny, tmp_path):
    """An `out` of its own that shares the session's teacher."""
    from pathlib import Path

    (tmp_path / "cache").mkdir()
    teachers = Path(tiny["out"]) / "cache" / "teachers"
    teachers.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache" / "teachers").symlink_to(teachers)
    return tmp_path / "cache" / "baselines"


def search(tiny, cache, **more):
    return evolve_distiller(**tiny | SMALL | {"out": str(cache.parents[1]), **more})


def told(result) -> dict:
    return {e["name"]: (e["text"], e["gamma"], e["fitness"]) for e in read_events(result.run) if e["event"] == "baseline"}


def test_they_are_computed_once_and_then_read(tiny, cache, monkeypatch):
    first = told(search(tiny, cache, seed=1))
    monkeypatch.setattr("evokd.baselines.tune_kd", lambda *args: pytest.fail("tuned again"))
    monkeypatch.setattr("evokd.baselines.RandomSearch", lambda *args: pytest.fail("searched again"))
    assert told(search(tiny, cache, seed=2)) == first


def test_they_have_the_budget_of_the_search_and_no_part_of_its_seed(tiny, cache):
    result = search(tiny, cache, seed=3, generations=2, population=3, budget_evals=5)
    events = [e for e in read_events(next(cache.iterdir())) if e["event"] == "individual" and e["status"] != "REJECTED"]
    assert len(events) == 5
    assert told(result)["random"][0] in {e["text"] for e in events}
    assert "kl(logits" in told(result)["kd"][0]


def test_other_problems_have_their_own(tiny, cache):
    search(tiny, cache)
    for change in ({"protocol": tiny["protocol"] | {"steps": 9}}, {"student": "resnet8w8"}, {"space": "logits"}):
        before = set(cache.iterdir())
        search(tiny, cache, **change)
        assert len(set(cache.iterdir()) - before) == 1, change


def test_two_students_of_one_name_do_not_share_them(tiny, cache):
    for width in (4, 6):
        search(tiny, cache, student=lambda classes, width=width: ResNet(8, width, classes, 1))
    assert len(list(cache.iterdir())) == 2


def test_a_student_may_be_any_callable(tiny, cache):
    student = functools.partial(ResNet, 8, 4, channels=1)
    result = search(tiny, cache, student=student)
    assert (result.run / "best" / "loss.json").exists()


def test_a_torn_entry_is_refused_by_name(tiny, cache):
    search(tiny, cache)
    path = next(cache.iterdir()) / "kd.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(EvokdError, match=r"kd\.json.*delete it"):
        search(tiny, cache)
