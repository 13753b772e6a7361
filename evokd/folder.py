"""What a run folder holds: its configuration and space as they were, the environment, and the front."""

from __future__ import annotations

import csv
import io
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from evokd.checkpoint import write_whole
from evokd.config import Config
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
    name = f"{date.today()}-{config.task}-{data}-{config.hash()[:4]}"
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        folder = Path(config.out) / (name + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        write_whole(folder / "config.toml", config.to_toml())
        write_whole(folder / "space.toml", space)
        write_whole(folder / "environment.txt", _environment())
        return folder
    raise EvokdError("--out", "fewer than 1000 runs of one name a day", name)


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
