"""`evokd ui`: the MLflow UI on the right store, on localhost only."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from evokd.errors import EvokdError


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="evokd ui", description="Open the MLflow UI on the runs, on localhost.")
    options.add_argument("--out", default="runs", metavar="DIR")
    options.add_argument("--port", type=int, default=5000)
    given = options.parse_args(arguments)
    store = Path(given.out) / "mlflow.db"
    if not store.is_file():
        raise EvokdError(str(store), "an MLflow store", "none", "run `python -m evokd.evolve distiller` first, or name its --out")
    print(f"MLflow UI on http://127.0.0.1:{given.port}, end it with Ctrl-C", flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        f"sqlite:///{store.resolve()}",
        "--host",
        "127.0.0.1",
    ]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.call([*command, "--port", str(given.port)], env=environment)
