"""`evokd lineage`: the family tree of a run's winner, or of any candidate: in the terminal, as a page to explore, as SVG and as PNG."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from evokd.errors import EvokdError


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(
        prog="evokd lineage", description="Draw the family tree of a run's winner, or of another candidate."
    )
    options.add_argument("run", metavar="RUN", help="a run folder; the run may still be going, or have been stopped")
    options.add_argument("id", nargs="?", metavar="ID", help="a candidate instead of the winner, e.g. 142 or g004-i0142")
    options.add_argument("--all", action="store_true", help="draw all candidates, with the tree of this one lit up")
    options.add_argument(
        "--to", metavar="DIR", help="folder of lineage.html, .svg, .png and .graphml; the run's own if not given"
    )
    given = options.parse_args(arguments)
    return draw(Path(given.run), given.id, given.all, Path(given.to or given.run))


def draw(run: Path, spec: str | None, everything: bool, target: Path) -> int:
    """Print the tree and write the pictures.

    Raises:
        EvokdError: no run, no such candidate, or a folder that cannot be written.
    """
    from evokd.journal import read_events
    from evokd.lineage import family, family_tree, pick, winner
    from evokd.report.lineage import write_lineage

    events = read_events(run)
    members = family(events)
    if not members:
        raise EvokdError(str(run), "a run with candidates", "none yet")
    focus = pick(spec, members) if spec else winner(events, members)
    if focus is None and not everything:
        raise EvokdError(str(run), "a candidate that was trained", "none yet", "name another by its ID, or take --all")
    paths = write_lineage(target, run.resolve().name, events, members, focus, everything)
    for line in family_tree(focus, members) if focus is not None else []:
        say(line)
    say(f"\n{len(members)} candidates; {'  '.join(map(str, paths))}")
    return 0


def say(line: str) -> None:
    """One line, cut at a terminal's width; piped, it stays whole."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(line if width is None or len(line) <= width else line[: width - 1] + "…")
