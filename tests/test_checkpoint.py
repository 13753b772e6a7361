import json
import os

import pytest

from evokd.checkpoint import read_state, write_state, write_whole
from evokd.errors import EvokdError

STATE = {"version": 1, "seed": 3, "best": 0.1 + 0.2, "name": "τ", "list": [1, None]}


def test_a_state_survives_exactly(tmp_path):
    write_state(tmp_path / "state.json", STATE)
    assert read_state(tmp_path / "state.json") == STATE


def test_a_changed_figure_is_noticed(tmp_path):
    path = tmp_path / "state.json"
    write_state(path, STATE)
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(EvokdError, match="a whole state file"):
        read_state(path)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"3", b"{}", b"\xff", b'{"state": {}}', json.dumps({"sha256": 3, "state": 4}).encode()]
)
def test_torn_and_foreign_files_are_refused(tmp_path, raw):
    (tmp_path / "state.json").write_bytes(raw)
    with pytest.raises(EvokdError, match=r"state\.json"):
        read_state(tmp_path / "state.json")
    with pytest.raises(EvokdError):
        read_state(tmp_path / "none.json")


def test_a_death_while_writing_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_whole(path, "old")

    def dies(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new, much longer")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_whole(path, "newer")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "newer")]
