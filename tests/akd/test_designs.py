"""A searched student beside human designs: widths of equal cost, and every way of training."""

import json

import pytest

from evokd.akd.designs import Scaled, choose_widths
from evokd.akd.experiment import Plan, read_plan
from evokd.akd.run import run_plan
from evokd.models.mobile import DESIGNS, build_mobile
from evokd.report.terminal import Terminal
from evokd.students.cost import measure

QUIET = Terminal(quiet=True)


def test_the_width_nearest_in_latency_or_macs_is_taken_as_a_factor():
    costs = {"s": Scaled("", 1, 100, 1.0, 1.0)}
    for design in DESIGNS:
        for width, macs, ms in ((0.1, 20, 0.45), (0.5, 90, 1.6), (1.0, 110, 2.2)):
            costs[f"{design}x{width:g}"] = Scaled(f"{design}x{width:g}", 1, macs, ms, ms)
    assert [each.spec for each in choose_widths(costs, "s", "macs").values()] == ["", *(f"{d}x1" for d in DESIGNS)]
    assert [each.spec for each in choose_widths(costs, "s", "latency").values()] == ["", *(f"{d}x0.5" for d in DESIGNS)]


@pytest.fixture(scope="module")
def designs(tiny, tmp_path_factory):
    kept = {k: v for k, v in tiny.items() if k not in ("task", "student", "population", "generations", "finals", "tracking_uri")}
    values = kept | {"space": "digits", "protocol": tiny["protocol"] | {"steps": 2, "transfer": 60}, "teacher": "resnet8w4"}
    out = tmp_path_factory.mktemp("designs")
    options = {"equal": "macs", "checkpoints": 2, "route": ()}
    plan = Plan("designs", values | {"out": str(out)}, students=("basic8-1-1-1",), finals=2, options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evokd.akd.designs.WIDTHS", (0.05, 0.1))
        return run_plan(plan, QUIET, tracking="none"), next(out.glob("*akd-designs*"))


def test_every_student_is_told_in_every_way_with_its_real_costs(designs):
    rows = [dict(zip(designs[0].tables[0].columns, row, strict=True)) for row in designs[0].tables[0].rows]
    assert [row["student"].partition("x")[0] for row in rows] == ["basic8-1-1-1", *DESIGNS]
    assert rows[0]["latency ratio"] == 1
    for row in rows[1:]:
        assert (row["parameters"], row["MACs"]) == measure(build_mobile(row["student"], 10, 1, 8), (1, 1, 8, 8))
        assert row["ms"] > 0
        assert row["KD − plain"].mean == pytest.approx(row["KD"].mean - row["plain"].mean)
    events = [json.loads(line) for line in (designs[1] / "finals" / "events.jsonl").read_text().splitlines()]
    assert len(events) == 4 * 3 * 2
    assert {event["status"] for event in events} == {"OK"}


def test_widths_once_chosen_stay(designs, monkeypatch):
    results, folder = designs
    monkeypatch.setattr("evokd.akd.designs.latency", lambda *given: pytest.fail("measured again"))
    again = run_plan(read_plan(folder), QUIET, folder=folder, tracking="none")
    assert again.tables[0].rows == results.tables[0].rows
