"""`evokd ui`: the MLflow UI on the right store, on localhost only, with the address of a run."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from evokd.errors import EvokdError


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="evokd ui", description="Open the MLflow UI on the runs, on localhost.")
    options.add_argument("run", nargs="?", metavar="RUN", help="a run folder, whose address is printed; all runs if not given")
    options.add_argument("--out", default="runs", metavar="DIR")
    options.add_argument("--port", type=int, default=5000)
    given = options.parse_args(arguments)
    folder = Path(given.run) if given.run else None
    store = (folder.resolve().parent if folder else Path(given.out)) / "mlflow.db"
    if not store.is_file():
        raise EvokdError(str(store), "an MLflow store", "none", "run `python -m evokd.evolve distiller` first, or name its --out")
    home = f"http://127.0.0.1:{given.port}"
    print(f"MLflow UI on {home}, end it with Ctrl-C{told(folder, store, home)}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{store.resolve()}", "--host", "127.0.0.1"]
    command += ["--port", str(given.port), "--workers", "1"]  # four would start four times as slowly, for one who looks
    return subprocess.call(command, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"})


def told(folder: Path | None, store: Path, home: str) -> str:
    """The address of a run in the UI.

    Raises:
        EvokdError: a folder that the store does not mirror.
    """
    if folder is None:
        return ""
    from evokd.store import address

    found = address(f"sqlite:///{store.resolve()}", folder.resolve().name)
    if not found:
        raise EvokdError(str(folder), "a run that MLflow mirrors", "none", f"evokd track sync {folder}")
    return f"\n{folder.resolve().name}: {home}/{found}"
