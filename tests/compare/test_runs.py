"""Searches overlaid: figures by hand on written journals, and a page that needs no network."""

import csv
import json
import re

import pytest

from evokd.commands import main as evokd
from evokd.compare.runs import common, labels, overlay, parts
from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.folder import locked
from evokd.lineage import Member


def individual(i, text, fitness, op="random", parents=(), status=None, reason="", size=5):
    status = status or ("OK" if fitness is not None else "CRASHED")
    return {
        "event": "individual", "id": i, "generation": 0, "op": op, "parents": list(parents), "key": text, "text": text,
        "tree": ["x"] * size, "status": status, "fitness": fitness, "reason": reason, "metrics": {"size": float(size)}, "seconds": 1.0,
    }  # fmt: skip


KD, COSINE = "3*kl(logits, tau=4)", "30*cosine(transpose(logits))"
FIRST = [
    individual(0, "kl(logits, tau=4)", 50.0, "seed", size=4),
    individual(1, "l2(embedding)", None, status="REJECTED", reason="static: no"),
    individual(2, KD, 60.0, "weight", [0], size=4),
    individual(3, "cosine(logits)", None),
    individual(4, COSINE, None, status="REJECTED", reason="rung 1: place 9 of 9 with 1"),
    individual(5, f"{KD} + conf*l2(norm_C(mm(features[-1])))", 55.0, "crossover@2", [2, 3], size=12),
]
SECOND = [
    individual(0, KD, 60.5, "random", size=4),
    individual(1, COSINE, 70.0, "random", size=5),
]


def journal(folder, events, end="", **config):
    folder.mkdir()
    made = make_config(config)
    (folder / "config.toml").write_text(made.to_toml())
    final = [{"event": "final", "row": "evolved", "metrics": {"accuracy": value}} for value in (70.0, 72.0)] if end else []
    events = [{"event": "start", "problem": "p"}, *events, *final, *([{"event": "end", "best": end}] if end else [])]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


@pytest.fixture
def pair(tmp_path):
    return [
        journal(tmp_path / "a", FIRST),
        journal(tmp_path / "b", SECOND, end=COSINE, controller="random"),
    ]


def test_what_each_search_did(pair):
    found = overlay(pair)
    first, second = found.ran
    assert [each.label for each in found.ran] == ["evolution", "random"]
    assert first.curve == [(1, 50.0), (2, 60.0), (4, 60.0)]  # the crash counts, the gate and the rung do not
    assert (first.evaluations, second.evaluations) == (4, 2)
    assert (first.front, second.front) == ([(60.0, 4.0)], [(70.0, 5.0), (60.5, 4.0)])
    assert (first.state, second.state, first.test, second.test) == ("stopped", "finished", None, 71.0)
    assert (first.winner, first.line) == (2, {0, 2})
    assert found.alike


def test_what_several_searches_found(pair):
    """Of one canonical text: the winner of one that another came to as well stands first."""
    first, second = overlay(pair).common
    assert (first.text, first.ids, first.in_line) == (COSINE, {"evolution": 4, "random": 1}, {"random"})
    assert (second.text, second.fitness, second.in_line) == (KD, {"evolution": 60.0, "random": 60.5}, {"evolution"})
    assert common(overlay(pair).ran[:1]) == []


def test_building_blocks_of_the_elites(pair):
    found = overlay(pair).blocks
    assert found["distance", "kl"] == {"evolution": 1.0, "random": 0.5}
    assert found["distance", "l2"] == {"evolution": 1 / 3}
    assert found["transform", "transpose"] == {"random": 0.5}
    assert found["position", "logits"] == {"evolution": 1.0, "random": 1.0}
    assert found["weight mode or part", "conf"] == {"evolution": 1 / 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ramp(0, 0.3)*conf*l2(norm_C(mm(features[-1])))", "conf l2 norm_C mm features[-1]"),
        ("0.8*crd + 0.9*kl(teacher.temper(logits, tau=2), tau=4)", "crd kl teacher.temper logits"),
        ("kl(embedding, tau=anneal(8, 1))", "kl embedding"),
    ],
)
def test_parts_of_a_loss(text, expected):
    member = Member(0, 0, "seed", (), text, (), "OK", 1.0, "", "", None, {})
    assert [name for _, name in parts(member)] == expected.split()


def test_parts_of_a_student_are_its_slots():
    member = Member(0, 0, "seed", (), "8 16", (("width", "8"), ("depth", "16")), "OK", 1.0, "", "", None, {})
    assert list(parts(member)) == [("width", "8"), ("depth", "16")]


def test_what_operators_made(pair):
    made = overlay(pair).operators
    assert tuple(made["weight"]["evolution"]) == (1, 1, 1, 1)
    assert tuple(made["crossover"]["evolution"]) == (1, 1, 0, 0)
    assert tuple(made["random"]["evolution"]) == (3, 1, 0, 0)
    assert tuple(made["random"]["random"]) == (2, 2, 2, 1)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ([("a", 0, "x"), ("b", 0, "y")], ["a", "b"]),
        ([("a", 0, "x"), ("a", 1, "y")], ["a, seed 0", "a, seed 1"]),
        ([("a", 0, "x"), ("a", 0, "y")], ["a, x", "a, y"]),
    ],
)
def test_labels_are_as_short_as_they_can_be(about, expected):
    assert labels(about) == expected


def test_a_run_that_another_process_writes_is_going(pair):
    with locked(pair[0]):
        assert overlay(pair).ran[0].state == "going"


def test_other_protocols_are_not_compared_in_silence(tmp_path, capsys):
    made = journal(tmp_path / "a", FIRST), journal(tmp_path / "b", SECOND, fitness="ce")
    assert not overlay(made).alike
    assert evokd(["compare", "runs", *map(str, made), "--to", str(tmp_path / "to")]) == 0
    assert "Fitness cannot be compared" in capsys.readouterr().out
    assert "Fitness cannot be compared" in (tmp_path / "to" / "compare-runs.html").read_text()


def test_the_command_prints_draws_and_writes(pair, tmp_path, capsys):
    table = tmp_path / "all.csv"
    assert evokd(["compare", "runs", *map(str, pair), "--to", str(tmp_path / "to"), "--csv", str(table)]) == 0
    said = capsys.readouterr().out
    assert "2 candidates were found by more than one search" in said
    assert re.search(r"evolution +stopped +4 +60\.00 +– +3\*kl", said)
    page = (tmp_path / "to" / "compare-runs.html").read_text()
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', ""))
    assert "<script" not in page
    assert (tmp_path / "to" / "compare-runs.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    curve = [(row["x"], row["value"]) for row in rows if (row["table"], row["search"]) == ("curve", "random")]
    assert curve == [("1", "60.5"), ("2", "70.0")]
    assert {row["table"] for row in rows} == {"curve", "front", "common", "block", "operator"}


def test_text_of_a_journal_is_no_markup(tmp_path):
    evil = individual(0, "<script>alert(1)</script>", 1.0)
    made = journal(tmp_path / "a", [evil]), journal(tmp_path / "b", [evil], seed=1)
    evokd(["compare", "runs", *map(str, made), "--to", str(tmp_path / "to")])
    assert "<script" not in (tmp_path / "to" / "compare-runs.html").read_text()


def test_what_cannot_be_compared_is_refused(pair, tmp_path):
    student = journal(tmp_path / "s", SECOND, task="student")
    for runs, about in (
        ([pair[0]], "two runs or more"),
        ([pair[0], pair[0]], "none twice"),
        ([pair[0], student], "the same thing"),
    ):
        with pytest.raises(EvokdError, match=about):
            overlay(runs)
