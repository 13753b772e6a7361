"""`evokd lineage` as a user calls it."""

import json

import pytest

from evokd.commands import COMMANDS
from evokd.commands import main as evokd
from evokd.commands.lineage import main, say
from evokd.errors import EvokdError
from evokd.journal import read_events
from evokd.lineage import family, winner
from tests.toy import Toy

FILES = {"lineage.html", "lineage.svg", "lineage.png", "lineage.graphml"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "run"
    Toy(folder, generations=5, size=6).run()
    return folder


def test_the_winner_s_tree_is_printed_and_drawn_into_the_run(run, capsys):
    assert main([str(run)]) == 0
    members = family(read_events(run))
    best = members[winner(read_events(run), members)]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"● #{best.id}  g{best.generation}  {best.fitness:.2f}  {best.op} #")
    assert printed[1].endswith(best.text)
    assert printed[-1] == f"{len(members)} candidates; " + "  ".join(
        str(run / f) for f in ("lineage.html", "lineage.svg", "lineage.png", "lineage.graphml")
    )
    assert {path.name for path in run.iterdir()} >= FILES


def test_another_candidate_can_be_named_and_the_pictures_put_elsewhere(run, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main([str(run), "g000-i0001", "--to", str(tmp_path / "new" / "folder")]) == 0
    assert capsys.readouterr().out.startswith("● #1  g0")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert "Family tree of #1 · run" in (tmp_path / "new" / "folder" / "lineage.html").read_text()


def test_all_candidates_are_drawn_on_request(run, tmp_path):
    main([str(run), "--to", str(tmp_path / "one")])
    main([str(run), "--all", "--to", str(tmp_path / "all")])
    count = [(tmp_path / name / "lineage.svg").read_text().count("data-id=") for name in ("one", "all")]
    assert count[0] < count[1] == len(family(read_events(run)))


def refusal(monkeypatch, capsys, *arguments):
    """(exit code, standard error) of the whole command."""
    monkeypatch.setitem(COMMANDS, "lineage", "")
    code = evokd(["lineage", *arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("spec", ["999", "best", "<b>", "1\x1b[31m"])
def test_an_unknown_candidate_is_one_line(run, spec, monkeypatch, capsys):
    code, said = refusal(monkeypatch, capsys, str(run), spec)
    assert code == 2
    assert said.count("\n") == 1
    assert said.startswith(f"evokd: ID: expected a candidate of the run, 0 to {len(family(read_events(run))) - 1}, got ")
    assert "\x1b" not in said


def test_an_unknown_run_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    code, said = refusal(monkeypatch, capsys, str(tmp_path / "none"))
    assert (code, said.count("\n")) == (2, 1)
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_just_begun_is_told_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "start"}) + "\n" + '{"event": "indiv')
    assert refusal(monkeypatch, capsys, str(tmp_path)) == (
        2,
        f"evokd: {tmp_path}: expected a run with candidates, got none yet\n",
    )


def test_without_a_fitness_a_candidate_must_be_named_or_all_be_drawn(tmp_path, capsys):
    event = {
        "event": "individual",
        "id": 0,
        "generation": 0,
        "op": "random",
        "parents": [],
        "text": "x",
        "tree": [],
        "fitness": None,
    }
    (tmp_path / "events.jsonl").write_text(json.dumps(event | {"status": "REJECTED", "reason": "gate", "metrics": {}}) + "\n")
    with pytest.raises(EvokdError, match="or take --all"):
        main([str(tmp_path)])
    assert main([str(tmp_path), "0"]) == main([str(tmp_path), "--all"]) == 0
    assert "REJECTED" in capsys.readouterr().out


def test_a_target_that_is_a_file_is_one_line(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    code, said = refusal(monkeypatch, capsys, str(run), "--to", str(tmp_path / "file"))
    assert (code, said.count("\n")) == (2, 1)


@pytest.mark.parametrize(("terminal", "expected"), [(False, "x" * 300), (True, "x" * 79 + "…")])
def test_a_line_is_cut_at_a_terminal_s_width_alone(terminal, expected, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    say("x" * 300)
    assert capsys.readouterr().out == expected + "\n"
