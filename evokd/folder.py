"""What a run folder holds: its configuration and space as they were, the environment, and the front; who may write it, and go on in it."""

from __future__ import annotations

import csv
import io
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from difflib import ndiff
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout

from evokd.checkpoint import write_whole
from evokd.config import Config, config_drift, read_config
from evokd.errors import EvokdError
from evokd.report.sizes import Size


def write_front(folder: Path, sizes: Sequence[Size]) -> list[tuple[int, float, str]]:
    """front.csv: the best loss of each size that no smaller one beats, on validation, with what each node more bought."""
    text = io.StringIO()
    rows = [(s.size, s.fitness, s.text, round(s.gain, 6), int(s.picked)) for s in sizes]
    csv.writer(text, lineterminator="\n").writerows([("size", "fitness", "loss", "gain", "picked"), *rows])
    write_whole(folder / "front.csv", text.getvalue())
    return [(s.size, s.fitness, s.text) for s in sizes]


def new_folder(config: Config, data: str, space: str) -> Path:
    folder = fresh(Path(config.out), f"{config.task}-{data}-{config.hash()[:4]}")
    write_whole(folder / "config.toml", config.to_toml())
    write_whole(folder / "space.toml", space)
    write_whole(folder / "environment.txt", _environment())
    return folder


def fresh(out: Path, name: str) -> Path:
    """A folder of today's date and a name, made now; numbered if there is one.

    Raises:
        EvokdError: after a thousand of them.
    """
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        folder = out / f"{date.today()}-{name}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise EvokdError("--out", "fewer than 1000 runs of one name a day", name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer a run.

    Raises:
        EvokdError: another process has it, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise EvokdError(str(folder), "a run that no other process writes", "a locked one", "wait for it, or stop it") from None
    except OSError as error:
        raise EvokdError(str(folder), "a run folder that can be written", error.strerror or str(error)) from None
    try:
        yield
    finally:
        lock.release()


def state_of(folder: Path, events: Sequence[Mapping]) -> str:
    """Of a run, from its events and its lock: finished, going, or stopped by whatever ended it."""
    if events and events[-1]["event"] == "end":
        return "finished"
    try:
        with locked(folder):
            return "stopped"
    except EvokdError:
        return "going"


def check_drift(
    folder: Path, config: Config, space: str, key: str, events: Sequence[Mapping], accept: bool, warn: Callable[[str], None]
) -> list[str]:
    """What has changed since the run began that makes it another search, line by line; recorded in the folder if it is accepted.

    Args:
        folder: of the run.
        config: with which it goes on, which is written into the folder.
        space: text of the space file as it is now.
        key: content hash of pair, data and protocol as they are now.
        events: of the journal.
        accept: go on all the same.
        warn: told that packages have changed, which may change figures.

    Raises:
        EvokdError: something has changed, and nobody has accepted it.
    """
    drift = [f"{name} = {now!r} (was {was!r})" for name, was, now in config_drift(read_config(folder / "config.toml"), config)]
    drift += _space_drift(folder / "space.toml", space)
    was = next((event["problem"] for event in events if event["event"] == "start" and "problem" in event), key)
    if was != key and not drift:
        drift.append(f"data, teacher or student: content {key} (was {was})")
    if drift and not accept:
        hint = "undo it, or go on all the same with --accept-drift"
        raise EvokdError(str(folder), "what the run began with", "; ".join(drift[:6]), hint)
    _environment_drift(folder, warn)
    write_whole(folder / "config.toml", config.to_toml())
    if drift:
        note = (folder / "environment.txt").read_text(encoding="utf-8") + "".join(f"drift {line}\n" for line in drift)
        write_whole(folder / "environment.txt", note)
        write_whole(folder / "space.toml", space)
    return drift


def _space_drift(path: Path, now: str) -> list[str]:
    """Changed lines as a diff has them. A student's run of an earlier version kept the space's name alone."""
    try:
        was = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvokdError(str(path), "the space of the run", str(error)[:80]) from None
    if was.startswith('task = "student"\nspace = '):
        return []
    return [f"space {line[:100]}" for line in ndiff(was.splitlines(), now.splitlines()) if line[:1] in "+-"]


def _environment_drift(folder: Path, warn: Callable[[str], None]) -> None:
    try:
        was = (folder / "environment.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        was = []
    changed = [line for line in _environment().splitlines() if line not in was and not line.startswith("commit ")]
    if was and changed:
        warn(f"{folder}: not as when the run began: {', '.join(changed)}; figures may differ")


def _environment() -> str:
    lines = [f"python {platform.python_version()}", f"platform {platform.platform()}", f"commit {commit()}"]
    for name in ("evokd", "torch", "torchvision", "deap", "numpy", "sympy", "mlflow", "scikit-learn"):
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} none")
    return "\n".join([*lines, ""])


def commit() -> str:
    """Commit of the checkout evokd runs from, or `none`."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return found.stdout.strip() or "none"
