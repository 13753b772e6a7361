"""`evokd track sync`: fill in what MLflow lacks of a run, from the run's folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evokd.errors import EvokdError


def main(arguments: Sequence[str]) -> int:
    """Tells what was written; nothing, where the mirror was whole."""
    options = argparse.ArgumentParser(
        prog="evokd track", description="Fill in what MLflow lacks of a run, from the run's folder."
    )
    options.add_argument("what", choices=["sync"], help="sync: write what is missing; a second time changes nothing")
    options.add_argument("run", metavar="RUN", help="run folder, or its name under --out")
    options.add_argument("--out", default="runs", metavar="DIR")
    given = options.parse_args(arguments)
    folder = next((path for path in (Path(given.run), Path(given.out) / given.run) if path.is_dir()), None)
    if folder is None:
        raise EvokdError("RUN", "a run folder", repr(given.run), "see `evokd runs`")
    from evokd.mirror import sync

    written = sync(folder)
    print(f"{folder.name}: wrote " + ", ".join(f"{count} {what}" for what, count in written.items()))
    return 0
