import json

import pytest

from evokd.errors import EvokdError
from evokd.genome.individual import Individual, Outcome, Status
from evokd.journal import Journal, individuals, read_events, read_outcome, without_clock


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path)
    yield made
    made.close()


def test_a_line_is_on_disk_as_soon_as_it_is_written(journal, tmp_path):
    journal.write("start", seed=3)
    assert json.loads((tmp_path / "events.jsonl").read_text())["seed"] == 3
    journal.write("end", best="τ")
    assert [e["event"] for e in read_events(tmp_path)] == ["start", "end"]
    assert "τ" in (tmp_path / "events.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Status.OK, 1 / 3, {"ce": 0.1 + 0.2, "fitness_by_seed": [1e-300], "curve": [[0, 1.5, 2.5]]}, "", 1.25),
        Outcome(Status.REJECTED, reason="probe: gradient is zero"),
        Outcome(Status.OUT_OF_MEMORY, reason='CUDA\n"out of memory"', seconds=0.125),
    ],
)
def test_an_outcome_survives_exactly(journal, tmp_path, outcome):
    individual = Individual([], op="crossover", parents=(3, 4))
    individual.id, individual.generation = 9, 2
    individual.settle(outcome)
    journal.individual(individual, "k", "text")
    (event,) = individuals(read_events(tmp_path))
    assert read_outcome(event) == outcome
    assert (event["id"], event["generation"], event["op"], event["parents"]) == (9, 2, "crossover", [3, 4])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_nan_is_ever_written(journal, tmp_path, bad):
    with pytest.raises(ValueError, match="JSON"):
        journal.write("final", accuracy=bad)
    assert read_events(tmp_path) == []


@pytest.mark.parametrize("torn", [b'{"event": "gen', b'{"event": "generation", "best": 3}', b"\xce"])
def test_a_torn_last_line_is_dropped(journal, tmp_path, torn):
    journal.write("start")
    journal.close()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(torn)
    assert [e["event"] for e in read_events(tmp_path)] == ["start"]


@pytest.mark.parametrize("line", [b'{"event": "gen', b"", b"3", b"[]", b"{}", b"\xff", b"null"])
def test_a_broken_line_before_the_last_is_refused_by_its_number(tmp_path, line):
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "start"}\n' + line + b'\n{"event": "end"}\n')
    with pytest.raises(EvokdError, match="line 2: expected a JSON event"):
        read_events(tmp_path)


def test_a_folder_without_a_journal_is_refused(tmp_path):
    with pytest.raises(EvokdError, match=r"a run folder with events\.jsonl"):
        read_events(tmp_path)


def test_only_times_are_set_aside(journal, tmp_path):
    journal.write("a", seconds=3, inner={"time": 1, "kept": [{"seconds": 2, "x": 1}]}, best=4)
    assert without_clock(read_events(tmp_path)) == [{"event": "a", "inner": {"kept": [{"x": 1}]}, "best": 4}]
