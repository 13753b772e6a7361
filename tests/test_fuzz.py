"""Mutated files of every kind that evokd reads: a value or one line, never a traceback, a hang or code that runs.

EVOKD_FUZZ mutations a kind in the slow campaign (default 500); a few by default.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from evokd.checkpoint import read_state
from evokd.config import make_config, read_config
from evokd.errors import EvokdError
from evokd.export import read_loss
from evokd.journal import good_events, read_events
from evokd.losses import KNOWN, parse_loss
from evokd.models.teachers import read_weights
from evokd.models.zoo import build
from evokd.space import read_space
from evokd.students import read_student_space
from evokd.trainings import NAME, Trainings
from tests.disturbed import disturbed

ROOT = Path(__file__).parents[1]
PIECES = [
    b"",
    b"\0",
    b"\xff",
    b"[" * 3000,
    b"(" * 3000,
    b"9" * 400,
    b"-1",
    b"1e999",
    b"NaN",
    b'"',
    b"{}",
    b"null",
    b"\n",
    b"__import__('os')",
    b"\xed\xa0\x80",
]


def mutated(text: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut, doubled, or replaced by something nasty, once to four times."""
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(text) + 1), draw.choice([0, 1, 1, 4, 40])
        kind = draw.randrange(5)
        if kind == 0:
            text = text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :]
        elif kind == 1:
            text = text[:at] + text[at + length :]
        elif kind == 2:
            text = text[:at] + text[at : at + length] * 2 + text[at + length :]
        elif kind == 3:
            text = text[:at]
        else:
            text = text[:at] + draw.choice(PIECES) + text[at + length :]
    return text


def weights() -> bytes:
    return save({k: v.contiguous() for k, v in build("resnet8w4", 10, 1, 0).state_dict().items()}, {"mean": "0.5", "std": "0.2"})


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A toy run that was cut in its second generation, with trainings of it."""
    folder = tmp_path_factory.mktemp("cut")
    disturbed(folder, "evolution", 2)
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-4]))
    kept = Trainings(folder)
    for event in [json.loads(line) for line in lines if b'"OK"' in line]:
        from evokd.journal import read_outcome

        kept.keep([*event["tree"], "0.5"], read_outcome(event))
    kept.close()
    return folder


def goes_on(name):
    """Reads a run folder of which one file is mutated, and goes on in it."""

    def read(path: Path, folder: Path) -> None:
        (folder / name).write_bytes(path.read_bytes())
        disturbed(folder, "evolution", 2)

    return read


def as_text(read):
    return lambda path, folder: read(path.read_bytes().decode(errors="replace"))


SEEDS = {
    "space": (
        lambda draw: draw.choice(sorted((ROOT / "spaces" / "distiller").glob("*.toml"))).read_bytes(),
        lambda p, f: read_space(str(p)),
    ),
    "student space": (
        lambda draw: draw.choice(sorted((ROOT / "spaces" / "student").glob("*.toml"))).read_bytes(),
        lambda p, f: read_student_space(str(p)),
    ),
    "loss": (lambda draw: draw.choice(sorted(KNOWN.values())).encode(), as_text(parse_loss)),
    "loss.json": (
        lambda draw: json.dumps(
            {"format": "evokd-loss-1", "text": "l2(logits)", "tree": ["loss1", "term", "1", "no", "l2:rows", "logits"]}
        ).encode(),
        lambda p, f: read_loss(str(p)),
    ),
    "config": (lambda draw: make_config({}).to_toml().encode(), lambda p, f: read_config(p)),
    "safetensors": (lambda draw: weights(), lambda p, f: read_weights(p)),
    "state": (None, goes_on("state.json")),
    "journal": (None, goes_on("events.jsonl")),
    "trainings": (None, goes_on(NAME)),
}
SUFFIX = {"loss.json": "loss.json", "safetensors": "x.safetensors"}
FILES = {"state": "state.json", "journal": "events.jsonl", "trainings": NAME}


def campaign(kind: str, count: int, cut: Path, tmp_path: Path, capsys) -> int:
    """Mutations refused in one line, of so many."""
    make, read = SEEDS[kind]
    draw, refused = random.Random(f"fuzz {kind}"), 0
    canary = tmp_path / "canary"
    for number in range(count):
        path = tmp_path / SUFFIX.get(kind, "x.toml")
        raw = (cut / FILES[kind]).read_bytes() if make is None else make(draw)
        # a header is a small part of a file of weights
        path.write_bytes(mutated(raw[:400], draw) + raw[400:] if kind == "safetensors" else mutated(raw, draw))
        folder = tmp_path / f"run{number}"
        if make is None:
            shutil.copytree(cut, folder)
            if kind == "journal" and number % 2:
                (folder / "state.json").unlink()  # so that no checksum guards it
        try:
            read(path, folder)
        except EvokdError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 2000:
                pytest.fail(f"{kind}, mutation {number}: not one line: {error}"[:600])
        except Exception as error:
            pytest.fail(f"{kind}, mutation {number}: {type(error).__name__}: {error}"[:600])
        shutil.rmtree(folder, ignore_errors=True)
    capsys.readouterr()
    assert not canary.exists()
    return refused


@pytest.mark.parametrize("kind", SEEDS)
def test_a_few_mutations(kind, cut, tmp_path, capsys):
    assert campaign(kind, 25, cut, tmp_path, capsys) > 0 or kind in ("state", "trainings")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEDS)
def test_many_mutations(kind, cut, tmp_path, capsys):
    count = int(os.environ.get("EVOKD_FUZZ", "500"))
    print(f"{kind}: {campaign(kind, count, cut, tmp_path, capsys)} of {count} refused")


EVIL = "__import__('pathlib').Path('canary').write_text('ran')"


@pytest.mark.parametrize("text", [EVIL, f"l2(logits) if {EVIL} else 0", f"{EVIL}*kl(logits, tau=4)", f"kl(logits, tau={EVIL})"])
def test_no_text_of_a_loss_runs(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvokdError):
        parse_loss(text)
    (tmp_path / "loss.json").write_text(json.dumps({"format": "evokd-loss-1", "text": text, "tree": [text]}))
    with pytest.raises(EvokdError):
        read_loss(str(tmp_path / "loss.json"))
    assert not (tmp_path / "canary").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.parametrize("name", ["teacher.safetensors", "teacher.pt"])
def test_no_pickle_in_the_place_of_weights_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Evil()}, tmp_path / name)
    with pytest.raises(EvokdError):
        read_weights(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_no_pickle_in_the_place_of_data_runs(tmp_path, monkeypatch):
    import numpy as np

    from evokd.data import read_data

    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", train_x=np.array([Evil()], dtype=object), train_y=[0], test_x=[0], test_y=[0])
    with pytest.raises(EvokdError):
        read_data(str(tmp_path / "x.npz"))
    assert not (tmp_path / "canary").exists()


def test_a_run_folder_names_no_code_that_runs(tmp_path, monkeypatch):
    """Operators, students and teachers of a user's own files are named again on the command line, or not loaded."""
    from evokd.distiller import resume
    from evokd.report.terminal import Terminal

    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('canary').write_text('ran')\ndef net(k): pass\n")
    for key in ("operators", "student", "teacher"):
        value = ("evil.py:net",) if key == "operators" else "evil.py:net"
        folder = tmp_path / key
        folder.mkdir()
        (folder / "config.toml").write_text(make_config({key: value}).to_toml())
        (folder / "events.jsonl").write_text("")
        with pytest.raises(EvokdError, match=rf"--{key} evil\.py:net, as the run had"):
            resume(folder, Terminal(quiet=True))
    assert not (tmp_path / "canary").exists()


def test_the_ui_binds_to_localhost(tmp_path, monkeypatch):
    from evokd.commands import ui

    (tmp_path / "mlflow.db").touch()
    asked = []
    monkeypatch.setattr(ui.subprocess, "call", lambda command, env: asked.append((command, env)) or 0)
    assert ui.main(["--out", str(tmp_path)]) == 0
    ((command, environment),) = asked
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_journal_that_is_no_journal_is_refused_by_its_line(tmp_path):
    (tmp_path / "events.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(EvokdError, match="line 1"):
        read_events(tmp_path)
    (tmp_path / "state.json").write_text("[" * 100_000)
    with pytest.raises(EvokdError, match="a whole state file"):
        read_state(tmp_path / "state.json")
    assert good_events(tmp_path, lambda line: None) == []
