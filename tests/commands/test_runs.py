"""`evokd runs` reads journals alone: of searches and full trainings, finished, stopped, torn or just begun."""

import json

import pytest

from evokd.commands.runs import describe, main

GENERATION = {"event": "generation", "generation": 2, "best": 71.5, "evaluations": 9, "best_text": "l2(logits)"}


def folder(home, name, *events):
    made = home / name
    made.mkdir()
    (made / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return made


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([{"event": "start"}], "stopped   before its first generation"),
        ([{"event": "start"}, GENERATION], "stopped   g2       9 trained  best 71.50  l2(logits)"),
        ([{"event": "start"}, GENERATION, {"event": "end"}], "finished  g2       9 trained  best 71.50  l2(logits)"),
        ([{"event": "start"}, GENERATION | {"best": None, "best_text": ""}], "stopped   g2       9 trained  best –  "),
        ([{"event": "begin"}, {"event": "seed"}, {"event": "seed"}], "stopped   2 seeds trained"),
        ([{"event": "begin"}, {"event": "seed"}, {"event": "end"}], "finished  1 seeds trained"),
    ],
)
def test_a_run_is_told_by_its_journal(tmp_path, events, told):
    assert describe(folder(tmp_path, "a-run", *events)) == f"{'a-run':<44} {told}"


def test_all_runs_of_a_folder_are_listed_and_an_unreadable_one_is_said(tmp_path, capsys):
    folder(tmp_path, "b", {"event": "start"})
    (folder(tmp_path, "a") / "events.jsonl").write_text("nonsense\n" + json.dumps(GENERATION) + "\n")
    assert main(["--out", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["a", "unreadable"]
    assert second.startswith("b ")
    assert main(["--out", str(tmp_path / "none")]) == 0
    assert "no runs under" in capsys.readouterr().out
